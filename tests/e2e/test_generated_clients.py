"""Clients that others' tools generate from the OpenAPI document compile, and call a real service.

`make integration` installs the tools into .peers; tests are skipped where they are missing.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import SIGNED_KEY
from .running import ROOT

EXAMPLES = ROOT / "examples" / "generated"
TYPESCRIPT = ROOT / ".peers" / "typescript"
PYTHON = ROOT / ".peers" / "openapi-python-client"


def needs(folder):
    return pytest.mark.skipif(not (folder / "installed").exists(), reason=f"make {folder.relative_to(ROOT)}/installed")


def run(*command, cwd):
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)
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


@pytest.mark.integration
@needs(TYPESCRIPT)
def test_typescript_client_compiles_and_runs(guarded, document, tmp_path):
    shutil.copy(EXAMPLES / "client.ts", tmp_path)
    shutil.copy(Path(__file__).parent / "generated" / "wrong.ts", tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "node_modules").symlink_to(TYPESCRIPT / "node_modules")
    tools = TYPESCRIPT / "node_modules" / ".bin"
    run(tools / "openapi-typescript", document, "--output", "rnn.d.ts", cwd=tmp_path)
    strict = ("--strict", "--module", "nodenext", "--target", "es2022", "--lib", "es2022,dom")
    run(tools / "tsc", *strict, "client.ts", "wrong.ts", cwd=tmp_path)
    assert_right(json.loads(run("node", "client.js", guarded.url, SIGNED_KEY, cwd=tmp_path)), guarded)


@pytest.mark.integration
@needs(PYTHON)
def test_python_client_compiles_and_runs(guarded, document, tmp_path):
    shutil.copy(EXAMPLES / "client.py", tmp_path)
    options = ("--meta", "none", "--config", EXAMPLES / "config.yml", "--output-path", "rnn")
    said = run(PYTHON / "bin/openapi-python-client", "generate", "--path", document, *options, cwd=tmp_path)
    # Streams of steps are not for it: it knows no NDJSON.
    assert said.count("WARNING") == said.count("Unsupported content type application/x-ndjson")
    # The user's side of the types; mypy finds faults inside of what the tool writes for lists of several depths.
    strict = ("--strict", "--follow-imports", "silent", "--cache-dir", tmp_path / "mypy")
    run(sys.executable, "-m", "mypy", *strict, "client.py", cwd=tmp_path)
    run(PYTHON / "bin/python", "-m", "compileall", "-q", "rnn", cwd=tmp_path)
    assert_right(json.loads(run(PYTHON / "bin/python", "client.py", guarded.url, SIGNED_KEY, cwd=tmp_path)), guarded)
