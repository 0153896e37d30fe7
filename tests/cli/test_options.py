"""Every setting is a flag, a variable and a line of `.env`, in this order of precedence."""

import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.cli import build_app
from service.cli.options import flag_of, with_settings
from service.settings import Settings

ROOT = Path(__file__).parents[2]


def run(*arguments, env=None):
    """A command that gets its settings as `serve` does; gives them and the result."""
    received = []
    app = typer.Typer(rich_markup_mode=None)
    app.command()(with_settings(received.append))
    result = CliRunner().invoke(app, list(arguments), env=env)
    return (received[0] if received else None), result


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_every_setting_is_in_the_help():
    result = CliRunner().invoke(build_app(), ["serve", "--help"], env={"COLUMNS": "400"})
    text = " ".join(result.output.split())
    for name, field in Settings.model_fields.items():
        assert flag_of(name) in text
        assert f"RNN_{name.upper()}" in text
        assert " ".join(field.description.split()) in text


def test_nothing_given_is_the_defaults():
    assert run()[0] == Settings(_env_file=None)


def test_precedence_of_settings(tmp_path):
    assert run()[0].port == 8000
    (tmp_path / ".env").write_text("RNN_PORT=1111\nRNN_HOST=::1\n")
    assert run()[0].port == 1111
    assert run(env={"RNN_PORT": "2222"})[0].port == 2222
    settings, _ = run("--port", "3333", env={"RNN_PORT": "2222"})
    assert (settings.port, settings.host) == (3333, "::1")


def test_demo_takes_the_place_of_models():
    settings, _ = run("--demo", env={"RNN_MODELS": "elsewhere"})
    assert (settings.models / "sunspots" / "config.json").is_file()
    _, result = run("--demo", "--models", "elsewhere")
    assert (result.exit_code, "leave out --models" in result.stderr) == (2, True)


def test_demo_and_image_have_the_bundled_models_alone():
    """A model of a user may lie beside them in models/."""
    known = subprocess.check_output(["git", "ls-files", "models"], cwd=ROOT, text=True).split()
    bundled = {file.split("/")[1] for file in known}
    assert {path.name for path in (ROOT / "service" / "demo").iterdir()} == bundled
    lines = (ROOT / ".dockerignore").read_text().split()
    assert {line for line in lines if line.startswith("!models")} == {f"!models/{name}" for name in bundled}


def test_each_kind_of_value():
    settings, result = run(
        *("--preload", "a, b", "--api-keys", "one,two", "--no-request-log", "--log-format", "json"),
        *("--models", "elsewhere", "--body-timeout-seconds", "2.5", "--default-model", "a"),
    )
    assert result.exit_code == 0
    assert settings.preload == ("a", "b")
    assert [key.get_secret_value() for key in settings.api_keys] == ["one", "two"]
    assert settings.request_log is False
    assert settings.log_format == "json"
    assert str(settings.models) == "elsewhere"
    assert settings.body_timeout_seconds == 2.5


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--port", "99999"], {}, "error: --port: input should be less than or equal to 65535, and got '99999'\n"),
        ([], {"RNN_PORT": "x"}, "error: RNN_PORT (environment or .env): input should be a valid integer, "),
        (
            ["--log-format", "xml"],
            {},
            "error: --log-format: input should be 'auto', 'json' or 'console', and got 'xml'\n",
        ),
        (["--device", "tpu"], {}, "error: --device: expected auto, cpu, or cuda:N, and got 'tpu'\n"),
        (
            ["--session-store", "redis:secret"],
            {},
            "error: --session-store: expected memory://, sqlite:///path, or valkey://host:port/0\n",
        ),
    ],
)
def test_bad_value_is_one_line(arguments, env, message):
    settings, result = run(*arguments, env=env)
    assert settings is None
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_unknown_flag_is_a_usage_error():
    assert run("--prot", "1")[1].exit_code == 2


def test_contradicting_settings_are_refused():
    settings, result = run("--workers", "2")
    assert settings is None
    assert result.exit_code == 2
    assert "RNN_SESSION_STORE" in result.stderr
    assert "Traceback" not in result.output


def test_wrong_store_is_not_quoted():
    settings, result = run(env={"RNN_SESSION_STORE": "valky://:secret@host"})
    assert settings is None
    assert "secret" not in result.output
