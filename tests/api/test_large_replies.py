"""Replies of many numbers are counted as what they are, and are printed in pieces, whatever call makes them."""

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.forward import ForwardCall
from service.api.requests import ForwardRequest, StepRequest, validate
from service.api.shapes import Limits
from service.api.step import StepCall
from service.app import create_app
from service.settings import Settings
from service.spec import ModelSpec
from service.wire.json import SLICE_VALUES

from .streams.fakes import Receives

WIDTH = 5000
CONFIG = {"kind": "rnn", "input_size": 1, "hidden_size": 4, "head": {"out_features": WIDTH}}
LARGEST = 16 * SLICE_VALUES  # bytes: no float32 takes as many
ROWS = np.linspace(0, 1, 40)[:, None].tolist()
PREDICTIONS = {"model": "wide", "returns": ["predictions"]}
TENSOR = {"name": "inputs", "shape": [1, 40, 1], "datatype": "FP32", "data": [value for (value,) in ROWS]}
GENERATED = PREDICTIONS | {"inputs": [[row] for row in ROWS], "steps": 2, "feedback": [0] + [None] * (WIDTH - 1)}
CALLS = {
    "forward": ("/rnn/forward", PREDICTIONS | {"inputs": ROWS}, "json"),
    "step": ("/cell/step", PREDICTIONS | {"inputs": ROWS}, "json"),
    "session": ("/cell/step", {"inputs": ROWS, "session": "ID"}, "json"),
    "generate": ("/rnn/generate", GENERATED, "json"),
    "generate by lines": ("/rnn/generate", GENERATED, "x-ndjson"),
    "v2": ("/v2/models/wide/infer", {"inputs": [TENSOR]}, "json"),
    "v2 step": ("/v2/models/wide.step/infer", {"inputs": [TENSOR | {"shape": [40, 1]}]}, "json"),
}


@pytest.fixture
def application(write_model, tmp_path):
    write_model("wide", CONFIG)
    return create_app(Settings(models=tmp_path), None)


async def answer(application, path, document, accepts="json"):
    """The pieces of a reply."""
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    request = application.request(
        "POST", path, b"", [*headers, (b"accept", b"application/%b" % accepts.encode())], None
    )
    request.body = json.dumps(document).encode()
    reply = await application.answer(request)
    assert reply.status in (200, 201), reply.body
    if isinstance(reply.body, AsyncGenerator):
        return [piece async for piece in reply.body]
    return [reply.body] if isinstance(reply.body, bytes) else reply.body


@pytest.mark.parametrize("call", CALLS)
def test_no_piece_of_a_reply_is_large(application, call):
    path, document, accepts = CALLS[call]

    async def pieces():
        if "session" in document:
            (opened,) = await answer(application, "/cell/sessions", {"model": "wide"})
            document["session"] = json.loads(opened)["session"]
        return await answer(application, path, document, accepts)

    found = asyncio.run(pieces())
    assert max(map(len, found)) <= LARGEST
    for line in b"".join(found).splitlines():
        assert json.loads(line)
    assert sum(map(len, found)) > 40 * WIDTH


def test_no_piece_of_a_stream_is_large(application):
    lines = [json.dumps(line).encode() for line in [PREDICTIONS, *ROWS]]
    headers = [(b"host", b"localhost"), (b"content-type", b"application/x-ndjson")]
    scope = {"type": "http", "method": "POST", "path": "/cell/step", "query_string": b"", "headers": headers}
    found = []

    async def send(message):
        found.append(message.get("body", b""))

    asyncio.run(application(scope, Receives({"type": "http.request", "body": b"\n".join(lines)}), send))
    assert max(map(len, found)) <= LARGEST
    assert sum(map(len, found)) > 40 * WIDTH


MODELS = st.builds(
    lambda kind, pooling, both: ModelSpec(kind, 2, 3, bidirectional=both, pooling=pooling).with_linear_head(7),
    st.sampled_from(["rnn", "lstm"]),
    st.sampled_from(["none", "mean", "last"]),
    st.booleans(),
)


def numbers_of(fields):
    return sum(np.asarray(getattr(value, "values", value)).size for value in fields.values())


@given(spec=MODELS, rows=st.integers(1, 3), steps=st.integers(1, 4), data=st.data())
def test_all_that_a_reply_holds_is_counted(spec, rows, steps, data):
    """By the bound of numbers in a reply, too, which is met exactly where the states are asked for."""
    model = SimpleNamespace(spec=spec, name="m", version="1", states=SimpleNamespace(h0=None, c0=None))
    names = ["outputs", "last", "h_n", "predictions", *["c_n"] * spec.has_cell_state]
    returns = data.draw(st.lists(st.sampled_from(names), unique=True))
    inputs = np.ones((rows, steps, 2), np.float32)
    asked = validate(ForwardRequest, {"inputs": inputs, "returns": returns})
    call = ForwardCall(asked, model, Limits(10**6, 10**6), False)
    assert numbers_of(call.reply()) <= call.values
    assert call.values <= numbers_of(call.reply()) + rows * (spec.state_values + steps * spec.output_size)
    if spec.bidirectional or (spec.step_predictions == 0):
        return
    step = StepCall(validate(StepRequest, {"inputs": inputs[:, 0]}), model, Limits(10**6, 10**6))
    assert numbers_of(step.reply()) == step.values
