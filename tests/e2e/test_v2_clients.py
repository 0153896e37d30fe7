"""Clients of the Open Inference Protocol as they come: Triton's, KServe's, and perf_analyzer."""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest

from tests.reference import numbers
from tests.tools import tool

from .conftest import ADMIN_KEY
from .models import BROKEN, assert_close, expected
from .running import ROOT

pytestmark = pytest.mark.integration

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
X = numbers(np.random.default_rng(1), 3, 5, 5)


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.fixture
def client(triton, service):
    with triton.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
        yield client


def inputs_of(triton, arrays, *, binary):
    inputs = []
    for name, array in arrays.items():
        inputs.append(triton.InferInput(name, array.shape, "FP32" if array.dtype == np.float32 else "INT64"))
        inputs[-1].set_data_from_numpy(array, binary_data=binary)
    return inputs


def check(result, rows=X):
    for row, inputs in enumerate(rows):
        wanted = expected("lstm", inputs)
        assert_close(result.as_numpy("outputs")[row], wanted.outputs)
        assert_close(result.as_numpy("c_n")[row], wanted.c)


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("asks", [None, False, True], ids=["no-outputs", "json-outputs", "binary-outputs"])
@pytest.mark.parametrize("packs", [None, "gzip", "deflate"])
def test_tritonclient(triton, client, binary, asks, packs):
    names = ("outputs", "c_n")
    outputs = None if asks is None else [triton.InferRequestedOutput(name, binary_data=asks) for name in names]
    result = client.infer(
        "lstm",
        inputs_of(triton, {"inputs": X}, binary=binary),
        outputs=outputs,
        request_id="mine",
        request_compression_algorithm=packs,
        response_compression_algorithm=packs,
        timeout=60_000_000,
    )
    check(result)
    assert result.get_response()["id"] == "mine"


def test_tritonclient_at_once(triton, client):
    inputs = inputs_of(triton, {"inputs": X}, binary=True)
    for pending in [client.async_infer("lstm", inputs) for _ in range(8)]:
        check(pending.get_result())


@pytest.mark.parametrize("binary", [False, True])
def test_tritonclient_with_nan(triton, client, binary):
    inputs = np.array([[[np.nan], [np.inf]]], np.float32)
    result = client.infer("explodes", inputs_of(triton, {"inputs": inputs}, binary=binary))
    assert np.isnan(result.as_numpy("outputs")[0, 0]).all()


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_tritonclient_steps_tokens(triton, bundled, binary, shape):
    with triton.InferenceServerClient(f"127.0.0.1:{bundled.port}") as client:
        assert client.get_model_metadata("names.step")["inputs"][0]["shape"] == [-1, 1]
        inputs = inputs_of(triton, {"inputs": np.array([1, 2, 3]).reshape(shape)}, binary=binary)
        assert client.infer("names.step", inputs).as_numpy("predictions").shape == (3, 27)


def test_tritonclient_describes(triton, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("lstm")
    assert client.is_model_ready("lstm.step", "1")
    assert not client.is_model_ready(BROKEN)
    assert not client.is_model_ready("none")
    assert client.get_server_metadata()["name"] == "rnn-service"
    assert client.get_model_metadata("lstm")["inputs"][0] == {
        "name": "inputs",
        "datatype": "FP32",
        "shape": [-1, -1, 5],
    }
    assert client.get_model_config("lstm.step")["max_batch_size"] > 0
    assert {"name": "lstm.step", "version": "1", "state": "READY", "reason": ""} in client.get_model_repository_index()
    client.infer("lstm", inputs_of(triton, {"inputs": X}, binary=True))
    (counted,) = client.get_inference_statistics("lstm")["model_stats"]
    assert counted["inference_stats"]["success"]["count"] > 0
    assert len(client.get_inference_statistics()["model_stats"]) > 10


def test_tritonclient_loads_and_unloads(triton, client):
    with pytest.raises(triton.InferenceServerException, match=r"\[401\] this call needs an admin's key"):
        client.load_model("relu")
    client.load_model("relu", headers=ADMIN)
    client.unload_model("relu", headers=ADMIN)
    with pytest.raises(triton.InferenceServerException, match=r"\[400\] parameters"):
        client.load_model("relu", headers=ADMIN, config="{}")


def test_tritonclient_is_told_what_is_wrong(triton, client):
    with pytest.raises(triton.InferenceServerException, match=r"\[400\] inputs is FP32 of shape \[3, 5\]; expected"):
        client.infer("lstm", inputs_of(triton, {"inputs": X[:, 0]}, binary=True))


def test_tritonclient_by_asyncio(service):
    aio = pytest.importorskip("tritonclient.http.aio")

    async def call():
        async with aio.InferenceServerClient(f"127.0.0.1:{service.port}") as client:
            for binary in (False, True):
                for packs in (None, "gzip", "deflate"):
                    check(
                        await client.infer(
                            "lstm",
                            inputs_of(aio, {"inputs": X}, binary=binary),
                            request_compression_algorithm=packs,
                            response_compression_algorithm=packs,
                        )
                    )
            assert await client.is_model_ready("lstm")
            assert len(await client.get_model_repository_index()) > 10
            await client.load_model("relu", headers=ADMIN)

    asyncio.run(call())


def test_kserve(service):
    python, calls = tool("kserve") / "bin" / "python", ROOT / "tests" / "e2e" / "kserve_calls.py"
    told = json.loads(subprocess.check_output([python, calls, service.url], text=True).splitlines()[-1])
    assert {name: told[name] for name in ("live", "ready", "model_ready", "no_model_ready", "broken_ready")} == {
        "live": True,
        "ready": True,
        "model_ready": True,
        "no_model_ready": False,
        "broken_ready": False,
    }
    x = (np.arange(24, dtype=np.float32) / 24).reshape(2, 3, 4)
    for form in ("json", "binary"):
        assert (told[form]["id"], told[form]["model"]) == ("mine", "tanh")
        for row in range(2):
            assert_close(told[form]["outputs"][row], expected("tanh", x[row]).outputs)
    assert told["error"].startswith("inputs")
    assert "'400 Bad Request'" in told["error"]


PAGE = (ROOT / "docs" / "open-inference-protocol.md").read_text()


@pytest.mark.parametrize("client", ["tritonclient", "kserve"])
def test_python_of_the_page_prints_what_it_says(bundled, client):
    (lines, printed) = re.search(
        rf"`pip install '?{client}.*?```python\n(.*?)```\n\nprints `(.*?)`", PAGE, re.DOTALL
    ).groups()
    python = sys.executable if client == "tritonclient" else tool("kserve") / "bin" / "python"
    pytest.importorskip("tritonclient.http")
    lines = lines.replace("127.0.0.1:8000", f"127.0.0.1:{bundled.port}")
    assert subprocess.check_output([python, "-c", lines], text=True).splitlines()[-1] == printed


@pytest.fixture(scope="module")
def perf_analyzer():
    """Runs perf_analyzer for a moment and gives what it prints."""
    folder = tool("perf_analyzer")
    program = folder / "bin" / "perf_analyzer"
    libraries = [str(found.parent) for found in folder.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib/*.so*")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join([*libraries, os.environ.get("LD_LIBRARY_PATH", "")])}
    needs = subprocess.run(["ldd", program], env=environment, capture_output=True, text=True, check=True).stdout
    if "not found" in needs:
        pytest.skip(f"perf_analyzer lacks a library (Debian has it as libb64-0d): {needs}")

    def run(service, model, *arguments):
        # The bound on how much measurements differ is high: it is not the machine that is tested.
        options = ("-u", f"127.0.0.1:{service.port}", "--measurement-interval", "1000", "-s", "999")
        command = [program, "-m", model, *options, *arguments]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    return run


@pytest.mark.parametrize("tensors", ["json", "binary"])
def test_perf_analyzer(perf_analyzer, service, tmp_path, tensors):
    formats = ("--input-tensor-format", tensors, "--output-tensor-format", tensors)
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"data": [{"inputs": {"content": X[0].ravel().tolist(), "shape": [5, 5]}}]}))
    printed = perf_analyzer(service, "lstm", "--service-kind", "triton", "-b", "2", "--input-data", str(file), *formats)
    assert "Successful request count" in printed
    assert "throughput: " in printed
    opened = 'rnn_session_events_total{event="opened"}'
    before = service.metrics()[opened]
    printed = perf_analyzer(service, "lstm.step", "--service-kind", "triton", "--sequence-length", "5", *formats)
    assert "compute infer" in printed
    assert service.metrics()[opened] > before


def test_perf_analyzer_as_the_page_says(perf_analyzer, bundled, tmp_path, monkeypatch):
    for name, data in re.findall(r'^cat > (\S+) <<< \'(\{"data".*)\'$', PAGE, re.MULTILINE):
        (tmp_path / name).write_text(data)
    monkeypatch.chdir(tmp_path)
    calls = re.findall(r"perf_analyzer -m (.*) -u \S+$", PAGE, re.MULTILINE)
    assert len(calls) == 3
    for call in calls:
        assert "throughput: " in perf_analyzer(bundled, *shlex.split(call))
