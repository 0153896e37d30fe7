"""Sequences of the Open Inference Protocol, by hand and with Triton's client."""

import asyncio
import shutil

import numpy as np
import pytest

from service.models.layer_config import LayerConfig, chain_layers
from service.spec import ModelSpec

from .conftest import ADMIN_KEY
from .models import write_model
from .open_inference import assert_error, body_of, infer, read
from .running import replicas
from .sessions import ADMIN, vectors

MODEL = "lstm-proj"
OTHERS = {
    "wider": ModelSpec("gru", 7, 3),
    "both-ways": ModelSpec("gru", 4, 3, bidirectional=True),
    "tokens": ModelSpec(
        "gru", 4, 3, front=chain_layers("front", [LayerConfig(type="embedding", num_embeddings=9, embedding_dim=4)], 4)
    ),
}
STEP = f"/v2/models/{MODEL}.step/infer"


def step(service, inputs, *, headers=None, model=MODEL, binary=False, **parameters):
    body, sent = body_of({"inputs": np.atleast_2d(inputs)}, binary, parameters=parameters)
    return service.post(f"/v2/models/{model}.step/infer", content=body, headers=sent | (headers or {}))


def begin(service, sequence_id, **options):
    reply = step(service, vectors(MODEL, 1), sequence_id=sequence_id, sequence_start=True, **options)
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("binary", [False, True])
def test_steps_equal_one_forward(service, binary):
    inputs = vectors(MODEL, 6)
    whole = infer(service, MODEL, {"inputs": inputs[None]}, binary)
    sequence, names = f"forward-{binary}", ("outputs", "predictions", "h", "c")
    wanted = {"outputs": [{"name": name, "parameters": {"binary_data": binary}} for name in names]}
    rows = []
    for first, stop in ((0, 1), (1, 2), (2, 5), (5, 6)):  # several steps may come in one call
        flags = {"sequence_id": sequence, "sequence_start": first == 0, "sequence_end": stop == 6}
        body, headers = body_of({"inputs": inputs[first:stop]}, binary, parameters=flags, id="7", **wanted)
        document, arrays = read(service.post(STEP, content=body, headers=headers))
        assert document["parameters"] == {"sequence_id": sequence, "step": stop}
        assert (document["model_name"], document["model_version"], document["id"]) == (f"{MODEL}.step", "1", "7")
        rows.append(arrays)
    for name in ("outputs", "predictions"):
        assert np.concatenate([arrays[name] for arrays in rows]).tobytes() == whole[name].tobytes()
    assert rows[-1]["h"].tobytes() == whole["h_n"].tobytes()
    assert rows[-1]["c"].tobytes() == whole["c_n"].tobytes()
    assert rows[-1]["c"].shape == (1, 1, 8)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"sequence_id": 404}, 'sequence 404 of model "lstm-proj" has not begun'),
        ({"sequence_id": "404"}, 'sequence "404" of model "lstm-proj" has not begun'),
        ({"sequence_id": 0, "sequence_start": True}, "sequence_id is 0; 0 and the empty string are none"),
        ({"sequence_id": "", "sequence_end": True}, "sequence_id is ''; 0 and the empty string are none"),
        ({"step": 3}, "sequence_id is 0; 0 and the empty string are none"),
        ({"sequence_id": -1, "sequence_start": True}, "sequence_id is -1; expected 64 bits"),
        ({"sequence_id": 2**64, "sequence_start": True}, f"sequence_id is {2**64}; expected 64 bits"),
        ({"sequence_id": 1.5, "sequence_start": True}, "parameters.sequence_id: input should be a valid integer"),
        ({"sequence_id": "\ud800", "sequence_start": True}, "parameters.sequence_id: input should be a valid string"),
        (
            {"sequence_id": "x" * 1025, "sequence_start": True},
            "parameters.sequence_id: string should have at most 1024",
        ),
        ({"sequence_id": True, "sequence_start": True}, "parameters.sequence_id: input should be a valid integer"),
        ({"sequence_id": 9, "sequence_start": 1}, "parameters.sequence_start: input should be a valid boolean"),
        ({"sequence_id": 9, "sequence_start": True, "step": 2}, "step is 2; the first step of a sequence is 1"),
        ({"sequence_id": 9, "sequence_start": True, "step": 0}, "parameters.step: input should be greater than"),
    ],
)
def test_wrong_parameters_are_named(service, parameters, words):
    assert_error(step(service, vectors(MODEL, 1), **parameters), 400, words)


def test_wrong_step_leaves_sequence_as_it_was(service):
    inputs = vectors(MODEL, 2)
    begin(service, "kept")
    body, headers = body_of({"inputs": inputs[None]}, parameters={"sequence_id": "kept"})
    whole = service.post("/v2/models/tanh/infer", content=body, headers=headers)
    assert_error(whole, 400, "steps of sequences go to tanh.step")
    assert_error(step(service, inputs[:1], sequence_id="kept", model="tanh"), 400, 'model "tanh" has not begun')
    assert_error(step(service, np.ones((1, 3), np.float32), sequence_id="kept", sequence_start=True), 400, "inputs is")
    assert_error(step(service, inputs[:1], sequence_id="kept", sequence_start=True, timeout=1), 504, "deadline")
    assert_error(step(service, inputs[:1], sequence_id="kept", step=3), 409, "expects 2")
    body, headers = body_of(
        {"inputs": inputs[:1], "h": np.zeros((1, 1, 3), np.float32), "c": np.zeros((1, 1, 8), np.float32)},
        parameters={"sequence_id": "kept"},
    )
    assert_error(service.post(STEP, content=body, headers=headers), 400, "c is given; a sequence has the state")
    again = step(service, inputs[:1], sequence_id="kept", step=2)
    assert again.json()["parameters"]["step"] == 2
    assert step(service, inputs[:1], sequence_id="kept", step=2).content == again.content
    assert_error(step(service, inputs[1:], sequence_id="kept", step=2), 409, "other inputs")


def test_non_finite_numbers_come_and_go(service):
    for number, flag in enumerate([True, False, False], 1):
        ones = np.ones((1, 1), np.float32)
        reply = step(service, ones, sequence_id=1, sequence_start=flag, model="explodes")
        assert reply.status_code == 200
        assert (b"Infinity" in reply.content) == (number == 3)


def test_each_key_has_its_own_sequences(guarded):
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    begin(guarded, 5, headers=one)
    assert_error(step(guarded, vectors(MODEL, 1), sequence_id=5, headers=two), 400, "has not begun")
    assert step(guarded, vectors(MODEL, 1), sequence_id=5, headers=one).json()["parameters"]["step"] == 2


def test_models_count_their_sequences(launch, tmp_path):
    write_model(tmp_path / "models", MODEL)
    service = launch(tmp_path / "models", admin_keys=ADMIN_KEY)
    begin(service, 5, headers=ADMIN)
    begin(service, 5, headers=ADMIN)
    page = service.get("/cell/sessions", headers=ADMIN).json()["sessions"]
    assert [(one["model"], one["step"], len(one["session"])) for one in page] == [(MODEL, 1, 8)]
    assert service.get(f"/models/{MODEL}").json()["versions"][0]["sessions"] == 1
    unload = f"/v2/repository/models/{MODEL}.step/unload"
    assert_error(service.post(unload, headers=ADMIN), 409, "sessions on it: 1")
    assert service.post(f"/models/{MODEL}/drain", headers=ADMIN).status_code == 200
    assert_error(step(service, vectors(MODEL, 1), sequence_id=6, sequence_start=True, headers=ADMIN), 409, "drained")
    last = step(service, vectors(MODEL, 1), sequence_id=5, sequence_end=True, headers=ADMIN)
    assert last.json()["parameters"]["step"] == 2
    assert service.post(unload, headers=ADMIN).status_code == 200
    assert service.metrics()['rnn_sessions_ended_total{reason="restarted"}'] == 1


@pytest.mark.parametrize("other", ["wider", "both-ways", "tokens", "no model"])
def test_sequence_keeps_its_weights(launch, tmp_path, other):
    """As a session does, whatever its model's name means meanwhile."""
    folder, outputs = tmp_path / "models" / MODEL, [{"name": "h"}, {"name": "outputs"}]
    write_model(tmp_path / "models", MODEL)
    write_model(tmp_path / "models", "tanh")
    service = launch(tmp_path / "models", admin_keys=ADMIN_KEY)
    inputs = vectors(MODEL, 4)
    expected = infer(service, MODEL, {"inputs": inputs[None]})["outputs"][0]
    begin(service, 5)
    shutil.rmtree(folder)
    if other == "no model":
        assert_error(service.post(f"/v2/repository/models/{MODEL}/load", headers=ADMIN), 404, MODEL)
    else:
        write_model(tmp_path / "models", MODEL, 1, OTHERS[other])
        assert service.post(f"/v2/repository/models/{MODEL}/load", headers=ADMIN).status_code == 200
    for number, path in enumerate([STEP, f"/v2/models/{MODEL}.step/versions/1/infer", STEP], 1):
        flags = {"sequence_id": 5, "sequence_end": number == 3}
        body, sent = body_of({"inputs": inputs[number : number + 1]}, True, parameters=flags, outputs=outputs)
        document, arrays = read(service.post(path, content=body, headers=sent))
        assert (document["model_name"], document["model_version"]) == (f"{MODEL}.step", "1")
        assert arrays["outputs"].tobytes() == expected[number : number + 1].tobytes()
    body, _ = body_of({"inputs": inputs[:1]}, parameters={"sequence_id": 5, "sequence_start": True})
    status, words = {
        "wider": (400, "expected FP32 of shape [-1, 7]"),
        "both-ways": (400, "is bidirectional"),
        "tokens": (400, "expected INT64 of shape [-1, 1]"),
        "no model": (404, "there is no model"),
    }[other]
    assert_error(service.post(STEP, content=body), status, words)
    assert_error(step(service, inputs[:1], sequence_id=5), 400, "has ended")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two services on one store."""
    folder = tmp_path_factory.mktemp("pair")
    write_model(folder / "models", MODEL)
    with replicas(folder / "models", folder, session_store=f"sqlite:///{folder}/sessions.db") as services:
        yield services


@pytest.mark.integration
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("sequence_id", [7, 2**64 - 1, "seven"])
def test_tritonclient_steps_sequences(pair, sequence_id, binary):
    """Unmodified, and from another service at each step."""
    triton = pytest.importorskip("tritonclient.http")
    clients = [triton.InferenceServerClient(f"127.0.0.1:{service.port}") for service in pair]
    inputs = vectors(MODEL, 5)
    expected = infer(pair[0], MODEL, {"inputs": inputs[None]})["predictions"][0]
    assert clients[0].get_model_config(f"{MODEL}.step")["sequence_batching"]

    def call(number, which, **flags):
        tensor = triton.InferInput("inputs", [1, 4], "FP32")
        tensor.set_data_from_numpy(inputs[number : number + 1], binary_data=binary)
        wanted = [triton.InferRequestedOutput("predictions", binary_data=binary)]
        reply = clients[which].infer(f"{MODEL}.step", [tensor], outputs=wanted, sequence_id=sequence_id, **flags)
        return reply.as_numpy("predictions")

    for _ in range(2):  # and again under the same id
        for number in range(5):
            got = call(number, number % 2, sequence_start=number == 0, sequence_end=number == 4)
            assert got.tobytes() == expected[number : number + 1].tobytes()
        with pytest.raises(triton.InferenceServerException, match="has ended after step 5") as error:
            call(0, 0)
        assert error.value.status() == "400"
    call(3, 0, sequence_start=True)
    call(0, 1, sequence_start=True)  # restarts it, and the first service hears of it
    assert call(1, 0, sequence_end=True).tobytes() == expected[1:2].tobytes()


@pytest.mark.integration
def test_aio_client_steps_sequences(pair):
    triton = pytest.importorskip("tritonclient.http")
    aio = pytest.importorskip("tritonclient.http.aio")
    inputs = vectors(MODEL, 4)
    expected = infer(pair[0], MODEL, {"inputs": inputs[None]})["outputs"][0]

    async def sequence(client, name):
        for number in range(4):
            tensor = triton.InferInput("inputs", [1, 4], "FP32")
            tensor.set_data_from_numpy(inputs[number : number + 1])
            flags = {"sequence_start": number == 0, "sequence_end": number == 3}
            reply = await client.infer(f"{MODEL}.step", [tensor], sequence_id=name, **flags)
            assert reply.as_numpy("outputs").tobytes() == expected[number : number + 1].tobytes()

    async def main():
        async with aio.InferenceServerClient(f"127.0.0.1:{pair[1].port}") as client:
            await asyncio.gather(*(sequence(client, name) for name in range(100, 120)))

    asyncio.run(main())
