"""Clients that others' tools generate from the OpenAPI document compile, and call a real service."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import tool

from .conftest import SIGNED_KEY
from .running import ROOT

pytestmark = pytest.mark.integration

EXAMPLES = ROOT / "examples" / "generated"


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture
def document(guarded, tmp_path):
    file = tmp_path / "openapi.json"
    file.write_bytes(guarded.get("/openapi.json").content)
    return file


def assert_right(said, service):
    """What a client was answered is what httpx is."""
    key = {"authorization": f"Bearer {SIGNED_KEY}"}
    rows = [[[1, 2, 3, 4, 5], [0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0]]]
    two = {"model": "tanh", "inputs": [[1, 2, 3, 4], [0, 1, 0, 1]]}
    forward = service.post("/rnn/forward", {"model": "lstm", "inputs": rows}, headers=key).json()
    alone = service.post("/cell/step", {"model": "tanh", "inputs": [1, 2, 3, 4]}, headers=key).json()
    assert (said["outputs"], said["h"]) == (forward["outputs"], alone["h"])
    assert (said["count"], said["ended"]["step"]) == (2, 2)
    assert said["ended"]["h"] == service.post("/rnn/forward", two, headers=key).json()["outputs"][-1]
    assert said["gone"] == [410, "deleted", 2]
    assert said["size"] == 5


def test_typescript_client_compiles_and_runs(guarded, document, tmp_path):
    modules = tool("typescript") / "node_modules"
    shutil.copy(EXAMPLES / "client.ts", tmp_path)
    shutil.copy(Path(__file__).parent / "wrong.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(modules)
    run(modules / ".bin" / "openapi-typescript", document, "--output", "rnn.d.ts", cwd=tmp_path)
    strict = ("--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    run(modules / ".bin" / "tsc", *strict, "client.ts", "wrong.ts", cwd=tmp_path)
    assert_right(json.loads(run("node", "client.js", guarded.url, SIGNED_KEY, cwd=tmp_path)), guarded)


def test_python_client_compiles_and_runs(guarded, document, tmp_path):
    programs = tool("openapi-python-client") / "bin"
    shutil.copy(EXAMPLES / "client.py", tmp_path)
    options = ("--meta", "none", "--config", EXAMPLES / "config.yml", "--output-path", "rnn")
    said = run(programs / "openapi-python-client", "generate", "--path", document, *options, cwd=tmp_path)
    # Streams of steps are not for it: it knows no NDJSON.
    assert said.count("WARNING") == said.count("Unsupported content type application/x-ndjson")
    # The user's side of the types; mypy finds faults inside of what the tool writes for lists of several depths.
    strict = ("--strict", "--follow-imports", "silent", "--cache-dir", tmp_path / "mypy")
    run(sys.executable, "-m", "mypy", *strict, "client.py", cwd=tmp_path)
    run(programs / "python", "-m", "compileall", "-q", "rnn", cwd=tmp_path)
    assert_right(json.loads(run(programs / "python", "client.py", guarded.url, SIGNED_KEY, cwd=tmp_path)), guarded)
