"""Settings: read from RNN_* variables and .env, frozen, lists by commas."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_variables_and_env_file_and_arguments_in_rising_order(monkeypatch, tmp_path):
    (tmp_path / ".env").write_text("RNN_PORT=1\nRNN_MODELS=/from/file\nRNN_PRELOAD=a, b\n")
    monkeypatch.setenv("RNN_PORT", "2")
    settings = Settings(max_body_bytes=3)
    assert (settings.port, settings.models, settings.preload) == (2, Path("/from/file"), ("a", "b"))
    assert settings.max_body_bytes == 3


def test_keys_are_not_printed(monkeypatch):
    monkeypatch.setenv("RNN_API_KEYS", "one,two")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "two" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"device": "tpu"},
        {"max_body_bytes": 0},
        {"log_format": "xml"},
        {"compute_threads": -1},
        {"session_ttl_seconds": 1e12},
        {"max_session_ttl_seconds": float("inf")},
    ],
)
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        Settings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        Settings().port = 1
