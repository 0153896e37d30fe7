"""Whole models over HTTP: front, pooling and head by every call and format, compared with torch.nn in float64."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from service.spec import ModelSpec
from tests.reference import numbers, run_chain, run_reference, weights_of, with_chains

from .formats import NDJSON, line, post_arrays
from .models import write_model
from .problems import assert_problem
from .running import start
from .sockets import opened

CHAINS = 40
POOLINGS = ("last", "final", "mean", "max")


def random_spec(seed: int) -> ModelSpec:
    rng = np.random.default_rng(seed)

    def choose(options):
        return options[rng.integers(len(options))]

    spec = ModelSpec(
        choose(["rnn", "gru", "lstm"]),
        choose([1, 5, 16]),
        choose([3, 16, 33]),
        num_layers=choose([1, 2]),
        bidirectional=choose([False, False, True]),
    )
    spec = with_chains(choose, spec)
    return replace(spec, pooling=choose(["none", "none", *POOLINGS])) if spec.head else spec


SPECS = {f"chain-{seed}": random_spec(seed) for seed in range(CHAINS)}
STEPPED = {name: spec for name, spec in SPECS.items() if not spec.bidirectional}
TOKENS = next(name for name, spec in STEPPED.items() if spec.num_embeddings and spec.pooling == "none" and spec.head)
POOLED = next(name for name, spec in STEPPED.items() if spec.pooling in ("mean", "max"))


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("chains")
    for name, spec in SPECS.items():
        write_model(root, name, 1, spec)
    running = start(root, tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


def inputs_for(spec: ModelSpec, *shape: int, seed: int = 0) -> np.ndarray:
    """Inputs as a client sends them: (…, I), or token ids (…)."""
    rng = np.random.default_rng(seed)
    if spec.num_embeddings:
        return rng.integers(0, spec.num_embeddings, shape)
    return numbers(rng, *shape, spec.in_features)


def expected(name: str, row: np.ndarray):
    """One row in float64; predictions are pooled where the model pools."""
    spec = SPECS[name]
    arrays = weights_of(spec, seed=1)
    vectors = row[:, None].astype(np.float32) if spec.num_embeddings else row
    result = run_reference(spec, arrays, vectors)
    if spec.pooling != "none":
        outputs, width = result.outputs, spec.state_size
        pooled = {
            "last": outputs[-1],
            "final": result.h[-spec.directions :].reshape(spec.directions * width),
            "mean": outputs.mean(axis=0),
            "max": outputs.max(axis=0),
        }[spec.pooling]
        tensors = {key: torch.from_numpy(array).double() for key, array in arrays.items()}
        result.predictions = run_chain(spec.head, tensors, torch.from_numpy(pooled)).numpy()
    return result


def assert_near(actual, wanted: np.ndarray) -> None:
    """Law 1 for whole models: relative to the largest value."""
    np.testing.assert_allclose(np.array(actual), wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("name", SPECS)
def test_forward_agrees_with_float64(service, name):
    spec = SPECS[name]
    rows = [inputs_for(spec, length, seed=length) for length in (4, 1, 6)]
    reply = service.post("/rnn/forward", {"model": name, "inputs": [row.tolist() for row in rows]})
    assert reply.status_code == 200, reply.text
    document = reply.json()
    for index, row in enumerate(rows):
        wanted = expected(name, row)
        assert_near(document["outputs"][index], wanted.outputs)
        assert_near(np.array(document["h_n"])[:, index], wanted.h)
        if spec.head:
            assert_near(document["predictions"][index], wanted.predictions)


@pytest.mark.parametrize("name", SPECS)
def test_formats_give_the_same_bits(service, name):
    inputs = inputs_for(SPECS[name], 3, 4)
    text = service.post("/rnn/forward", {"model": name, "inputs": inputs.tolist()}).json()
    reply = post_arrays(service, "/rnn/forward", {"inputs": inputs}, model=name)
    assert reply.status_code == 200, reply.text
    arrays = load(reply.content)
    assert arrays.keys() == text.keys() - {"model", "version"}
    for field, array in arrays.items():
        np.testing.assert_array_equal(np.array(text[field], np.float32), array)


@pytest.mark.parametrize("name", STEPPED)
def test_steps_sessions_and_streams_give_the_bits_of_one_run(service, name):
    spec = SPECS[name]
    inputs = inputs_for(spec, 5)
    whole = service.post("/rnn/forward", {"model": name, "inputs": inputs.tolist()}).json()
    per_step = {"outputs"} | ({"predictions"} if spec.head and spec.pooling == "none" else set())
    wanted = [{field: whole[field][t] for field in per_step} for t in range(5)]

    def fields(reply):
        return {field: reply[field] for field in per_step}

    session = service.post("/cell/sessions", {"model": name}).json()["session"]
    stepped = [service.post("/cell/step", {"session": session, "inputs": x}).json() for x in inputs.tolist()]
    assert [fields(reply) for reply in stepped] == wanted
    together = service.post("/cell/sessions", {"model": name}).json()["session"]
    reply = service.post("/cell/step", {"session": together, "inputs": inputs.tolist()}).json()
    assert [{field: reply[field][t] for field in per_step} for t in range(5)] == wanted
    lines = [line(x) for x in inputs.tolist()]
    lines[2] = line({"inputs": inputs.tolist()[2]})
    streamed = service.post(
        "/cell/step", content=b"".join(lines), params={"model": name}, headers={"content-type": NDJSON}
    )
    assert [fields(answer) for answer in map(json.loads, streamed.iter_lines())] == wanted
    h = None
    for x, outputs in zip(inputs.tolist(), wanted, strict=True):
        reply = service.post(
            "/cell/step", {"model": name, "inputs": x} | h if h else {"model": name, "inputs": x}
        ).json()
        assert fields(reply) == outputs
        h = {field: reply[field] for field in ("h", "c") if field in reply}


def test_token_ids_come_as_int32_frames(service):
    inputs = inputs_for(SPECS[TOKENS], 6)
    whole = service.post("/rnn/forward", {"model": TOKENS, "inputs": inputs.tolist()}).json()
    with opened(service, f"?model={TOKENS}&returns=predictions") as socket:
        socket.send(inputs.astype("<i4").tobytes())
        answer = np.frombuffer(socket.recv(), "<f4")
        np.testing.assert_array_equal(answer, np.array(whole["predictions"], np.float32).reshape(-1))
        socket.send(np.array([7], "<i4").tobytes())
        assert "token ids, whole numbers from 0 to 6" in socket.recv()


@pytest.mark.parametrize(
    ("inputs", "detail"),
    [
        ([[1, 7]], "inputs[0][1] is 7"),
        ([[1, 2], [3, 4, -1]], "inputs[1][2] is -1"),
        ([[1, 2.5]], "inputs[0][1] is 2.5"),
        ([[1, True]], "inputs[0][1] is a boolean"),
        ([["1"]], "inputs[0][0] is a string"),
        ([[[1]]], "inputs has 3 axes; expected token ids (B,T) or (T)"),
        (1, "inputs: expected a list of numbers"),
    ],
)
def test_what_is_no_token_id_is_named(service, inputs, detail):
    assert_problem(service.post("/rnn/forward", {"model": TOKENS, "inputs": inputs}), 422, "invalid-request", detail)


@pytest.mark.parametrize("inputs", [7, "1", True, 1e300, [[1]], None])
def test_what_is_no_token_id_is_refused_in_a_step(service, inputs):
    assert_problem(service.post("/cell/step", {"model": TOKENS, "inputs": inputs}), 422, "invalid-request", "inputs")


def test_one_id_is_a_step_and_a_list_is_steps(service):
    session = service.post("/cell/sessions", {"model": TOKENS}).json()["session"]
    one = service.post("/cell/step", {"session": session, "inputs": 3}).json()
    several = service.post("/cell/step", {"session": session, "inputs": [3.0]}).json()
    assert (np.array(one["outputs"]).ndim, np.array(several["outputs"]).ndim) == (1, 2)
    assert several["step"] == 2


def test_floats_are_no_token_ids_in_safetensors(service):
    reply = post_arrays(service, "/rnn/forward", {"inputs": np.ones((1, 2), np.float32)}, model=TOKENS)
    assert_problem(reply, 422, "invalid-request", "token ids are int64 or int32")


def test_a_pool_over_sequences_gives_no_step_predictions(service):
    inputs = inputs_for(SPECS[POOLED], 1)[0].tolist()
    reply = service.post("/cell/step", {"model": POOLED, "inputs": inputs}).json()
    assert "predictions" not in reply
    asked = service.post("/cell/step", {"model": POOLED, "inputs": inputs, "returns": ["predictions"]})
    assert_problem(asked, 422, "invalid-request", "returns[0] is predictions", "/rnn/forward")


@pytest.mark.parametrize("name", SPECS)
def test_models_say_what_goes_in_and_comes_out(service, name):
    spec = SPECS[name]
    model = service.get(f"/models/{name}").json()
    reply = service.post("/rnn/forward", {"model": name, "inputs": inputs_for(spec, 2, 3).tolist()}).json()
    sizes = {"B": 2, "T": 3}
    shapes = {each["name"]: tuple(sizes.get(axis, axis) for axis in each["shape"]) for each in model["outputs"]}
    assert shapes == {field: np.array(reply[field]).shape for field in reply.keys() - {"model", "version"}}
    assert model["inputs"][0]["dtype"] == ("int64" if spec.num_embeddings else "float32")
    assert model["steppable"] is not spec.bidirectional
