"""The commands from outside: help, versions, tables, exit codes."""

import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from service.cli import build_app
from service.models.importing.staging import staged
from service.spec import ModelSpec
from tests.reference import weights_of


def run(*arguments):
    return CliRunner().invoke(build_app(), list(map(str, arguments)))


def add(root, name, spec):
    arrays = {key: torch.from_numpy(array) for key, array in weights_of(spec).items()}
    with staged(root, name, spec, arrays, version=None, description=None) as model:
        return model.publish()


@pytest.mark.parametrize("command", ["serve", "import", "models"])
def test_help_of_every_command_has_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: rnn-service {command} " in result.stdout


def test_help_imports_no_torch():
    script = (
        "import sys; from service.cli import main; sys.argv = ['rnn-service', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: assert not {'torch', 'onnx', 'fastapi', 'numpy'} & set(sys.modules)"
    )
    for arguments in (["--help"], ["serve", "--help"], ["--version"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_no_command_shows_the_help():
    assert "serve" in run().output


def test_table_of_models(tmp_path):
    for _ in range(2):
        add(tmp_path, "plain", ModelSpec("rnn", 3, 4, nonlinearity="relu"))
    add(tmp_path, "wide", ModelSpec("lstm", 5, 6, num_layers=2, bidirectional=True, proj_size=2).with_linear_head(7))
    (tmp_path / "wide" / "1" / "model.safetensors").write_bytes(b"junk")
    (tmp_path / "empty").mkdir()
    result = run("models", "--models", tmp_path)
    assert result.exit_code == 0
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in result.stdout.splitlines() if "│" in line]
    assert rows[0] == ["empty", "–", "", "", "", "", "", "", "failed: config.json is missing"]
    assert rows[1] == ["plain", "1", "rnn relu", "3 → 4", "1", "1", "–", "f32", "available"]
    assert rows[2] == ["plain", "2", "", "", "", "", "", "", "available"]
    assert rows[3][:8] == ["wide", "1", "lstm", "5 → 6 → 2", "2", "2", "7", "f32"]
    assert rows[3][8].startswith("failed: model.safetensors is not a safetensors file")


def test_empty_or_absent_repository(tmp_path):
    assert run("models", "--models", tmp_path).stdout == f"no models in {tmp_path}\n"
    result = run("models", "--models", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert result.stderr.endswith("nowhere: the model repository cannot be listed: No such file or directory\n")


def test_usage_errors_are_no_tracebacks(tmp_path):
    for arguments in (["import", "none.pt", "--name", "m"], ["serve", "--port", "x"], ["nonsense"]):
        command = [sys.executable, "-m", "service", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
