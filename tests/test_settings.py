"""Settings: how they are read, and that docs/configuration.md and docker-compose.yml have them all."""

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings

ROOT = Path(__file__).parents[1]
FIXED_IN_COMPOSE = {"RNN_HOST", "RNN_PORT", "RNN_MODELS", "RNN_DEVICE"}


@pytest.fixture(autouse=True)
def no_env_file(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def test_keys_are_not_printed(monkeypatch):
    monkeypatch.setenv("RNN_API_KEYS", "one,two")
    settings = Settings()
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert "two" not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70_000},
        {"allowed_origins": "lab.example"},
        {"allowed_origins": "https://lab.example, https://other.example/"},
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


def row_of(name, field):
    empty = field.default is None or field.default == ()
    default = "–" if empty else str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return f"| `RNN_{name.upper()}` | {default} | {field.description} |"


def test_page_lists_every_setting():
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = [line.replace("\\|", "|") for line in page.splitlines() if line.startswith("| `RNN_")]
    assert rows == [row_of(name, field) for name, field in Settings.model_fields.items()]


def test_compose_passes_every_setting_on():
    compose = (ROOT / "docker-compose.yml").read_text()
    passed = re.findall(r"^  (RNN_\w+):", compose, re.MULTILINE)
    assert passed == [
        name for field in Settings.model_fields if (name := f"RNN_{field.upper()}") not in FIXED_IN_COMPOSE
    ]
