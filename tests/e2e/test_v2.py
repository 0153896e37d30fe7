"""The Open Inference Protocol: the numbers of torch.nn in float64, whatever carries them; errors that name places."""

import gzip
import json
import zlib

import numpy as np
import pytest

from tests.reference import numbers

from .conftest import ADMIN_KEY
from .models import BROKEN, SMALL, SPECS, STEPPABLE, assert_close, expected, write_model
from .open_inference import LENGTH, assert_error, body_of, infer, read
from .raw import Wire, chunk, head, post
from .running import until

BATCH, TIME = 3, 5
ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
FORMS = pytest.mark.parametrize("binary", [False, True, ("inputs",)], ids=["json", "binary", "mixed"])


def given_for(name, rng, before=("h0", "c0")):
    """Initial states, batch first, by name."""
    spec = SPECS[name]
    sizes = (spec.state_size, spec.hidden_size)[: 1 + spec.has_cell_state]
    return {field: numbers(rng, BATCH, spec.states, size) for field, size in zip(before, sizes, strict=False)}


@FORMS
@pytest.mark.parametrize("name", SMALL)
def test_sequences_with_states(service, name, binary):
    rng = np.random.default_rng(1)
    inputs, states = numbers(rng, BATCH, TIME, SPECS[name].input_size), given_for(name, rng)
    wanted = {"outputs", "last", "h_n"} | ({"c_n"} if "c0" in states else set())
    wanted |= {"predictions"} if SPECS[name].head else set()
    outputs = [{"name": one} for one in sorted(wanted)]
    parameters = {"binary_data_output": bool(binary)}
    got = infer(service, name, {"inputs": inputs, **states}, binary, outputs=outputs, parameters=parameters)
    assert list(got) == sorted(wanted)
    for row in range(BATCH):
        result = expected(name, inputs[row], *(state[row] for state in states.values()))
        assert_close(got["outputs"][row], result.outputs)
        assert_close(got["last"][row], result.outputs[-1])
        assert_close(got["h_n"][row], result.h)
        if "c_n" in wanted:
            assert_close(got["c_n"][row], result.c)
        if "predictions" in wanted:
            assert_close(got["predictions"][row], result.predictions)


@pytest.mark.parametrize("name", ["lstm-proj", "both-ways"])
def test_padded_rows_equal_rows_alone(service, name):
    inputs, lengths = numbers(np.random.default_rng(2), BATCH, TIME, SPECS[name].input_size), np.array([5, 1, 3])
    got = infer(service, name, {"inputs": inputs, "lengths": lengths}, ("lengths",))
    as_declared = infer(service, name, {"inputs": inputs, "lengths": lengths[:, None]})
    np.testing.assert_array_equal(got["outputs"], as_declared["outputs"])
    for row, length in enumerate(lengths):
        alone = infer(service, name, {"inputs": inputs[row : row + 1, :length]}, binary=True)
        for field in ("outputs", "predictions")[: 1 + bool(SPECS[name].head)]:
            np.testing.assert_array_equal(got[field][row, :length], alone[field][0])
            assert not got[field][row, length:].any()
        np.testing.assert_array_equal(got["h_n"][row], alone["h_n"][0])


@FORMS
@pytest.mark.parametrize("name", STEPPABLE)
def test_steps_carry_their_state(service, name, binary):
    rng = np.random.default_rng(3)
    inputs, states = numbers(rng, BATCH, TIME, SPECS[name].input_size), {}
    for time in range(TIME):
        got = infer(service, f"{name}.step", {"inputs": inputs[:, time], **states}, binary)
        states = {state: got[state] for state in ("h", "c") if state in got}
    for row in range(BATCH):
        result = expected(name, inputs[row])
        assert_close(got["outputs"][row], result.outputs[-1])
        assert_close(got["h"][row], result.h)
        if SPECS[name].head:
            assert_close(got["predictions"][row], result.predictions[-1])


def test_same_bits_as_forward(service):
    inputs = numbers(np.random.default_rng(4), 2, 7, 5)
    forward = service.post("/rnn/forward", {"model": "lstm", "inputs": inputs.tolist()}).json()
    for binary in (False, True):
        got = infer(service, "lstm", {"inputs": inputs}, binary, parameters={"binary_data_output": binary})
        np.testing.assert_array_equal(got["outputs"], np.array(forward["outputs"], np.float32))
        np.testing.assert_array_equal(got["c_n"], np.array(forward["c_n"], np.float32).swapaxes(0, 1))


def test_tokens_and_raw_bodies(bundled):
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    wanted = np.array(bundled.post("/rnn/forward", {"model": "names", "inputs": ids.tolist()}).json()["predictions"])
    for binary in (False, True):
        for dtype in (np.int64, np.int32):
            np.testing.assert_array_equal(
                infer(bundled, "names", {"inputs": ids.astype(dtype)}, binary)["predictions"], wanted.astype(np.float32)
            )
            for shape in ((3,), (3, 1)):
                steps = infer(bundled, "names.step", {"inputs": ids[0].astype(dtype).reshape(shape)}, binary)
                np.testing.assert_allclose(steps["predictions"][0], wanted[0, 0], rtol=1e-5)
                assert steps["outputs"].shape[0] == 3
    for model, tensor, shape in (
        ("names", ids[0], (1, 3, 27)),
        ("names.step", ids[0], (3, 27)),
        ("weather", np.ones((4, 7), np.float32), (1, 4, 3)),
        ("weather.step", np.ones((4, 7), np.float32), (4, 3)),
    ):
        reply = bundled.post(f"/v2/models/{model}/infer", content=tensor.tobytes(), headers={LENGTH: "0"})
        assert read(reply)[1]["predictions"].shape == shape
    reply = bundled.post("/v2/models/weather/infer", content=b"12345", headers={LENGTH: "0"})
    assert_error(reply, 400, "the body has 5 bytes; expected FP32, 28 bytes a step")
    for shape in ((1, 3, 1), (3, 2), (3, 1, 1)):
        body, _ = body_of({"inputs": np.ones(shape, np.int64)})
        reply = bundled.post("/v2/models/names.step/infer", content=body)
        assert_error(reply, 400, f"inputs is INT64 of shape {[*shape]}; expected INT64 of shape [-1, 1]")
    config = bundled.get("/v2/models/names.step/config").json()
    assert [(one["name"], one["dims"]) for one in config["input"]] == [("inputs", [1])]
    reply = bundled.post("/v2/models/names/infer", content=body_of({"inputs": np.ones((1, 2), np.float32)})[0])
    assert_error(reply, 400, "inputs is FP32 of shape [1, 2]; expected INT64 of shape [-1, -1]")


def test_reply_says_what_ran(service):
    arrays = {"inputs": numbers(np.random.default_rng(5), 1, 2, 4)}
    for path, version in (("", "2"), ("/versions/1", "1")):
        body, _ = body_of(arrays, id="mine \u2713")
        document, _ = read(service.post(f"/v2/models/gru-two-versions{path}/infer", content=body))
        assert document["id"] == "mine \u2713"
        assert (document["model_name"], document["model_version"]) == ("gru-two-versions", version)


def test_each_output_says_whether_it_is_binary(service):
    outputs = [{"name": "h_n", "parameters": {"binary_data": False}}, {"name": "outputs"}]
    body, headers = body_of(
        {"inputs": np.ones((1, 2, 4), np.float32)}, True, outputs=outputs, parameters={"binary_data_output": True}
    )
    document, _ = read(service.post("/v2/models/tanh/infer", content=body, headers=headers))
    assert ["data" in output for output in document["outputs"]] == [True, False]


def deflated(data):
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [("gzip", gzip.compress), ("deflate", zlib.compress), ("deflate", deflated)],
)
def test_compression_both_ways(service, encoding, pack):
    arrays = {"inputs": numbers(np.random.default_rng(6), 3, 100, 4)}
    body, headers = body_of(arrays, True, parameters={"binary_data_output": True})
    headers |= {"content-encoding": encoding, "accept-encoding": encoding}
    reply = service.post("/v2/models/tanh/infer", content=pack(body), headers=headers)
    assert reply.headers["content-encoding"] == encoding
    np.testing.assert_array_equal(read(reply)[1]["outputs"], infer(service, "tanh", arrays)["outputs"])


def test_nan_and_infinity_come_and_go(service):
    inputs = np.array([[[1], [np.nan]], [[np.inf], [-np.inf]]], np.float32)
    wanted = infer(service, "explodes", {"inputs": inputs}, True, parameters={"binary_data_output": True})["outputs"]
    assert np.isnan(wanted).any()
    assert np.isinf(wanted).any()
    body, _ = body_of({"inputs": inputs})
    assert b"NaN" in body
    np.testing.assert_array_equal(read(service.post("/v2/models/explodes/infer", content=body))[1]["outputs"], wanted)


@pytest.mark.parametrize("with_nan", [False, True])
def test_large_bodies(service, with_nan):
    inputs = numbers(np.random.default_rng(7), 40, 200, 4)
    if with_nan:
        inputs[7, 150, 2:] = np.nan, -np.inf
    outputs = [{"name": "outputs"}]
    forms = [infer(service, "tanh", {"inputs": inputs}, binary, outputs=outputs) for binary in (False, True)]
    forms.append(infer(service, "tanh", {"inputs": inputs}, parameters={"binary_data_output": True}))
    for form in forms[1:]:
        np.testing.assert_array_equal(form["outputs"], forms[0]["outputs"])
    np.testing.assert_array_equal(np.isnan(forms[0]["outputs"]).any(axis=(1, 2)), with_nan * (np.arange(40) == 7))


def test_both_entrances_give_the_same_bytes(service):
    body, headers = body_of({"inputs": np.ones((1, 2, 4), np.float32)}, True)
    path, chunked = "/v2/models/tanh/infer", {"Transfer-Encoding": "chunked"} | headers
    with Wire(service) as wire:
        wire.send(post(path, body, headers))
        direct = wire.reply()
        wire.send(head("POST", path, chunked) + chunk(body) + chunk(b""))
        by_asgi = wire.reply()
        wire.send(post(path + "?a=b", body, headers))
        with_query = wire.reply()
    assert direct.status == 200
    assert direct.body == by_asgi.body == with_query.body


X = {"name": "inputs", "shape": [1, 2, 4], "datatype": "FP32", "data": [1] * 8}
STATE = {"name": "h0", "shape": [1, 1, 6], "datatype": "FP32", "data": [0] * 6}
LENGTHS = {"name": "lengths", "shape": [1], "datatype": "INT64", "data": [2]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, ["inputs is required"]),
        ([], ["dictionary"]),
        ({"inputs": []}, ["inputs"]),
        ({"inputs": [X], "output": []}, ["output is not a field of this request; did you mean outputs?"]),
        ({"inputs": [X | {"dtype": "FP32"}]}, ["inputs[0].dtype is not a field of this request"]),
        ({"inputs": [X | {"datatype": "BYTES"}]}, ["inputs[0].datatype", "'FP32'", "'BYTES'"]),
        ({"inputs": [X | {"datatype": "INT64"}]}, ["inputs is INT64 of shape [1, 2, 4]; expected FP32"]),
        ({"inputs": [X | {"shape": [2, 4]}]}, ["inputs is FP32 of shape [2, 4]; expected FP32 of shape [-1, -1, 4]"]),
        ({"inputs": [X | {"shape": [1, 4, 2]}]}, ["inputs is FP32 of shape [1, 4, 2]"]),
        ({"inputs": [X | {"shape": [1, 0, 4]}]}, ["inputs[0].shape[1]", "greater than or equal to 1"]),
        ({"inputs": [X | {"shape": [1, 2.5, 4]}]}, ["inputs[0].shape[1]"]),
        ({"inputs": [X | {"shape": [1, 3, 4]}]}, ["inputs has data of shape [8]; expected 12 numbers"]),
        ({"inputs": [X | {"data": [1, "2"]}]}, ['inputs has no list of numbers as "data"']),
        ({"inputs": [X | {"data": [1] * 7 + [None]}]}, ["inputs[7] is null"]),
        ({"inputs": [X | {"name": "input"}]}, ["inputs[0] is 'input'; this model has inputs, h0, lengths"]),
        ({"inputs": [X, X]}, ["inputs[1] is 'inputs', which comes twice"]),
        ({"inputs": [STATE]}, ["inputs is missing"]),
        (
            {"inputs": [X, STATE | {"shape": [2, 1, 3]}]},
            ["h0 is FP32 of shape [2, 1, 3]; expected FP32 of shape [1, 1, 6]"],
        ),
        ({"inputs": [STATE | {"shape": [2, 1, 6]}, X]}, ["h0 is FP32 of shape [2, 1, 6]; expected FP32 of shape [1,"]),
        ({"inputs": [X | {"shape": []}, STATE]}, ["inputs is FP32 of shape []; expected FP32 of shape [-1, -1, 4]"]),
        ({"inputs": [X, LENGTHS | {"shape": [1, 1, 1]}]}, ["lengths is INT64 of shape [1, 1, 1]; expected INT64 of"]),
        ({"inputs": [X, LENGTHS | {"shape": [2]}]}, ["lengths is INT64 of shape [2]; expected INT64 of shape [1, 1]"]),
        ({"inputs": [X], "outputs": [{"name": "c_n"}]}, ["outputs[0] is 'c_n'; this model has outputs, h_n, last"]),
        ({"inputs": [X], "outputs": [{"name": "h_n"}] * 2}, ["outputs[1] is 'h_n', which comes twice"]),
        ({"inputs": [X], "outputs": [{"name": "h_n", "parameters": {"classification": 2}}]}, ["classification"]),
        ({"inputs": [X], "parameters": {"timeout": -1}}, ["parameters.timeout"]),
        ({"inputs": [X], "parameters": {"binary_data_output": 1}}, ["parameters.binary_data_output"]),
    ],
)
def test_wrong_request_is_told_in_one_sentence(service, document, words):
    assert_error(service.post("/v2/models/tanh/infer", document), 400, *words)


def test_lying_headers(service):
    body, _ = body_of({"inputs": np.ones((1, 2, 4), np.float32)}, True)
    for length, words in (
        (str(len(body) + 1), "Inference-Header-Content-Length is"),
        (str(len(body) - 33), "not JSON"),
        (str(len(body) - 31), "not JSON"),
        (str(len(body)), "not JSON"),
        ("-1", "Inference-Header-Content-Length must be a whole number"),
        ("1" * 30, "Inference-Header-Content-Length must be a whole number"),
    ):
        assert_error(service.post("/v2/models/tanh/infer", content=body, headers={LENGTH: length}), 400, words)
    twice = [(LENGTH, "7"), (LENGTH, str(len(body) - 32))]
    assert_error(service.post("/v2/models/tanh/infer", content=body, headers=twice), 400, "a whole number")
    assert_error(service.post("/v2/models/tanh/infer", content=b'{"id":"\\ud800"}'), 400, "id")
    assert_error(service.post("/v2/models/tanh/infer", content=b"[]"), 400, "the body: input should be")


@pytest.mark.parametrize(
    ("method", "path", "status", "word"),
    [
        ("GET", "/v2/nothing", 404, "/v2/nothing"),
        ("GET", "/v2/models/none", 404, "'none'"),
        ("GET", "/v2/models/tanh/versions/9/ready", 404, "'9'"),
        ("POST", "/v2/models/none/infer", 404, "'none'"),
        ("GET", "/v2/models/tanh/infer", 405, "POST"),
        ("PUT", "/v2", 405, "GET"),
        ("GET", "/v2/models/both-ways.step", 400, "bidirectional"),
        ("POST", f"/v2/models/{BROKEN}/infer", 503, "cannot be served"),
        ("GET", f"/v2/models/{BROKEN}/config", 503, "cannot be served"),
        ("POST", "/v2/repository/models/tanh/load", 401, "admin"),
    ],
)
def test_errors_have_the_protocols_form(service, method, path, status, word):
    with service.client() as client:
        assert_error(client.request(method, path), status, word)


def test_body_over_the_limit(service):
    assert_error(service.post("/v2/models/tanh/infer", content=bytes(5 * 2**20)), 413, "limit")
    assert_error(service.post("/v2/repository/index", content=bytes(5 * 2**20)), 413, "limit")


def test_deadline(service):
    arrays = {"inputs": numbers(np.random.default_rng(8), 1, 300, 64)}
    reply = service.post("/v2/models/wide/infer", content=body_of(arrays, parameters={"timeout": 1})[0])
    assert_error(reply, 504, "deadline")
    assert infer(service, "wide", arrays, parameters={"timeout": 0}).keys() == {"outputs", "h_n", "c_n"}
    infer(service, "wide", arrays, parameters={"timeout": 60_000_000})


def test_client_that_hangs_up_is_not_served(service):
    body, headers = body_of({"inputs": np.zeros((1, 15_000, 64), np.float32)}, True, outputs=[{"name": "h_n"}])
    with Wire(service) as wire:
        wire.send(post("/v2/models/wide/infer", body, headers | {"X-Request-Id": "v2-hung-up"}))
        until(lambda: service.metric("rnn_queued_requests"), "the request in the queue")
    (entry,) = until(lambda: service.logged("v2-hung-up"), "the log line")
    assert (entry["status"], entry["model"]) == (499, "wide")


def test_service_and_models_are_described(service):
    assert service.get("/v2").json()["name"] == "rnn-service"
    extensions = {*service.get("/v2").json()["extensions"]}
    assert {"binary_tensor_data", "model_configuration", "sequence", "sequence(string_id)", "statistics"} <= extensions
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert service.get(path).json() == {"name": "rnn-service", "ready": True, "live": True}
    lstm = service.get("/v2/models/lstm").json()
    shapes = {one["name"]: (one["datatype"], one["shape"]) for one in lstm["inputs"] + lstm["outputs"]}
    assert shapes == {
        "inputs": ("FP32", [-1, -1, 5]),
        "h0": ("FP32", [-1, 2, 6]),
        "c0": ("FP32", [-1, 2, 6]),
        "lengths": ("INT64", [-1, 1]),
        "outputs": ("FP32", [-1, -1, 6]),
        "last": ("FP32", [-1, 6]),
        "h_n": ("FP32", [-1, 2, 6]),
        "c_n": ("FP32", [-1, 2, 6]),
    }
    config = service.get("/v2/models/lstm.step/versions/1/config").json()
    assert [(one["name"], one["dims"], one["optional"]) for one in config["input"]] == [("inputs", [5], False)]
    assert config["sequence_batching"] == {"max_sequence_idle_microseconds": 3_600_000_000}
    assert service.get("/v2/models/gru-two-versions").json()["versions"] == ["1", "2"]
    assert service.get("/v2/models/gru-two-versions/versions/1").json()["versions"] == ["1"]
    assert service.get(f"/v2/models/{BROKEN}/ready").json() == {"name": BROKEN, "ready": False, "live": True}


def test_repository(launch, tmp_path):
    for name in ("tanh", "both-ways", "gru"):
        write_model(tmp_path / "models", name)
    (tmp_path / "models" / "gru").rename(tmp_path / "models" / "gru.step")
    service = launch(tmp_path / "models", admin_keys=ADMIN_KEY)
    index = service.post("/v2/repository/index").json()
    states = {(one["name"], one["version"]): one["state"] for one in index}
    assert states == {
        ("both-ways", "1"): "READY",
        ("gru.step", ""): "UNAVAILABLE",
        ("tanh", "1"): "READY",
        ("tanh.step", "1"): "READY",
    }
    assert "no '.step' at the end" in next(one["reason"] for one in index if one["name"] == "gru.step")
    assert "gru.step" not in {one["name"] for one in service.post("/v2/repository/index", {"ready": True}).json()}
    write_model(tmp_path / "models", "relu")
    for path, words in (("relu/load", {"ready": True}), ("relu/unload", {"ready": True})):
        reply = service.post(f"/v2/repository/models/{path}", {}, headers=ADMIN)
        assert reply.status_code == 200
        assert reply.json() == {"name": "relu", "live": True} | words
    assert len(service.logged('"model_loaded"')) == 1
    assert infer(service, "relu", {"inputs": np.ones((1, 1, 3), np.float32)})["outputs"].shape == (1, 1, 5)
    config = {"parameters": {"config": "{}"}}
    assert_error(service.post("/v2/repository/models/relu/load", config, headers=ADMIN), 400, "parameters.config")
    assert_error(service.post("/v2/repository/models/none/load", headers=ADMIN), 404, "none")


def test_model_whose_weights_are_gone_is_not_ready(launch, tmp_path):
    write_model(tmp_path / "models", "tanh")
    service = launch(tmp_path / "models", admin_keys=ADMIN_KEY)
    (file,) = (tmp_path / "models").rglob("*.safetensors")
    kept = file.rename(tmp_path / "kept")
    body, _ = body_of({"inputs": np.ones((1, 1, 4), np.float32)})
    assert_error(service.post("/v2/models/tanh/infer", content=body), 503, "is missing")
    for name in ("tanh", "tanh.step"):
        reply = service.get(f"/v2/models/{name}/ready")
        assert (reply.status_code, reply.json()["ready"]) == (503, False)
        reply = service.post(f"/v2/repository/models/{name}/unload", headers=ADMIN)
        assert (reply.status_code, reply.json()["ready"]) == (200, False)
    kept.rename(file)
    assert service.get("/v2/models/tanh/ready").json()["ready"]
    assert service.post("/v2/models/tanh/infer", content=body).status_code == 200


def test_statistics_count_each_model(launch, tmp_path):
    for name in ("tanh", "gru"):
        write_model(tmp_path / "models", name)
    service = launch(tmp_path / "models")
    for _ in range(3):
        infer(service, "tanh", {"inputs": np.ones((2, 3, 4), np.float32)})
    infer(service, "tanh.step", {"inputs": np.ones((5, 4), np.float32)})
    service.post("/rnn/forward", {"model": "tanh", "inputs": [[[1, 2, 3, 4]]]})
    service.post("/v2/models/tanh/infer", content=b"{")
    counted = {(one["name"], one["version"]): one for one in service.get("/v2/models/stats").json()["model_stats"]}
    rows = {name: (one["inference_count"], one["execution_count"]) for (name, _), one in counted.items()}
    assert rows == {"gru": (0, 0), "gru.step": (0, 0), "tanh": (7, 4), "tanh.step": (5, 1)}
    tanh = counted["tanh", "1"]["inference_stats"]
    parts = ("success", "queue", "compute_input", "compute_infer", "compute_output")
    assert [tanh[part]["count"] for part in parts] == [4] * 5
    assert 0 < tanh["compute_infer"]["ns"] < tanh["success"]["ns"]
    assert tanh["fail"]["count"] == 1
    assert tanh["cache_hit"] == tanh["cache_miss"] == {"count": 0, "ns": 0}
    (one,) = service.get("/v2/models/tanh/versions/1/stats").json()["model_stats"]
    assert one == counted["tanh", "1"]
    assert counted["tanh", "1"]["last_inference"] > 1.7e12
    rows = {name: count for name, count in service.metrics().items() if name.startswith("rnn_rows_total{")}
    assert rows == {'rnn_rows_total{model="tanh"}': 12}


def test_paths_of_metrics_do_not_grow(service):
    for name in ("tanh", "none-such", "%2e", "both-ways.step", "a b"):
        service.post(f"/v2/models/{name}/infer", content=b"{}")
        service.post(f"/v2/models/{name}/versions/1/infer", content=b"{}")
    paths = {name for name in service.metrics() if name.startswith("rnn_requests_total") and "/v2/models" in name}
    assert {name.split('path="')[1].split('"')[0] for name in paths if "infer" in name} == {
        "/v2/models/{model}/infer",
        "/v2/models/{model}/versions/{version}/infer",
    }


def test_path_of_a_client_that_is_gone(service):
    """The route's, also where the rest of a body never came."""
    gone = 'rnn_requests_total{model="",path="/v2/repository/models/{model}/load",status="499"}'
    with Wire(service) as wire:
        wire.send(head("POST", "/v2/repository/models/gone/load", {"Content-Length": 9, **ADMIN}))
    until(lambda: service.metrics().get(gone), "it is counted")
    assert not any("models/gone" in name for name in service.metrics())


def test_keys(guarded):
    assert_error(guarded.get("/v2/models/tanh"), 401, "key")
    assert_error(guarded.post("/v2/models/tanh/infer", content=b"{}"), 401, "key")
    for path in ("/v2/health/live", "/v2/health/ready"):
        assert guarded.get(path).status_code == 200
    key = {"authorization": "Bearer one"}
    body, _ = body_of({"inputs": np.ones((1, 1, 4), np.float32)})
    assert guarded.post("/v2/models/tanh/infer", content=body, headers=key).status_code == 200
    assert_error(guarded.post("/v2/repository/models/tanh/unload", headers=key), 403, "RNN_ADMIN_KEYS")


@pytest.mark.parametrize("kind", [None, "application/octet-stream", "text/plain", "application/x-www-form-urlencoded"])
def test_content_type_has_no_effect(service, kind):
    body, _ = body_of({"inputs": np.ones((1, 1, 4), np.float32)})
    with Wire(service) as wire:
        wire.send(post("/v2/models/tanh/infer", body, {"Content-Type": kind} if kind else {}))
        assert json.loads(wire.reply().body)["model_name"] == "tanh"
        wire.send(post("/v2/repository/index", b"", {"Content-Type": kind} if kind else {}))
        assert wire.reply().status == 200
