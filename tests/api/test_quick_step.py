"""The commonest steps are answered in one go, and nothing is touched by those that are not."""

import asyncio
import gc
import json
import weakref

import pytest

from tests.api.quick_way import PLAIN, QuickWay
from tests.e2e.models import SPECS, STEPPABLE, write_model


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name in (*STEPPABLE, "explodes", "both-ways"):
        write_model(root, name)
    return root


def way(repository, **settings):
    return QuickWay(b"/cell/step", repository, **settings)


@pytest.fixture(scope="module")
def quick(repository):
    quick = way(repository)
    for name in (*STEPPABLE, "explodes", "both-ways"):
        quick.load(name)
    return quick


@pytest.mark.parametrize("name", STEPPABLE)
def test_one_row_in_any_form_is_answered(quick, name):
    spec = SPECS[name]
    x, h = [0.5] * spec.input_size, [0.25] * spec.state_size
    layers = [h] * spec.num_layers
    assert quick({"model": name, "inputs": x})["model"] == name
    assert quick({"model": name, "inputs": [x], "version": "1"})["version"] == "1"
    assert quick({"model": name, "inputs": x, "h": layers})["h"] != layers
    rows = [[row] for row in layers]
    assert len(quick({"model": name, "inputs": [x], "h": rows})["h"]) == spec.num_layers
    if spec.num_layers == 1:
        assert len(quick({"model": name, "inputs": x, "h": h})["h"]) == spec.state_size
    if spec.has_cell_state:
        c = [[0.125] * spec.hidden_size] * spec.num_layers
        assert len(quick({"model": name, "inputs": x, "h": layers, "c": c})["c"]) == spec.num_layers


STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "nobody", "inputs": [1]},
        {"model": "both-ways", "inputs": [1, 2, 3]},
        {"model": "explodes", "inputs": [1], "h": [3e38, 3e38]},
        STEP | {"inputs": [1, 2, 3]},
        STEP | {"inputs": [[1, 2, 3, 4]] * 2},
        STEP | {"inputs": [1, 2, 3, True]},
        STEP | {"inputs": [1, 2, 3, 1e39]},
        STEP | {"inputs": []},
        STEP | {"h": [[1] * 5 + [[1]]]},
        STEP | {"c": [1] * 6},
        STEP | {"returns": ["h"]},
        STEP | {"session": "nobody's"},
        [],
        ["session"],
        1,
        b"{",
        b'{"model":"tanh","inputs":[1,2,3,4],"inputs":[1,2,3,4]}',
        b'{"model":null,"inputs":[1,2,3,4],"inputs":[1,2,3,4]}',
        b'{"model":"t\\u0061nh","inputs":[1,2,3,4]}',
    ],
)
def test_everything_else_is_left_to_the_handlers(quick, fields):
    assert quick(STEP)
    assert quick(fields) is None


@pytest.mark.parametrize(
    "header",
    [
        {b"accept": b"application/vnd.safetensors"},
        {b"content-type": b"application/json; charset=utf-8"},
        {b"content-encoding": b"gzip"},
        {b"x-session-id": b"a"},
        {b"x-request-timeout-ms": b"100"},
    ],
)
def test_headers_that_say_more_are_left_to_the_handlers(quick, header):
    assert quick(STEP, PLAIN | header) is None


def test_limits_and_keys_hold(repository):
    limited = way(repository, max_input_values=8, api_keys=("a-key",), max_body_bytes=200)
    limited.load("tanh")
    assert limited(STEP) is None
    assert limited(STEP, PLAIN | {b"authorization": b"Bearer another"}) is None
    with_key = PLAIN | {b"authorization": b"Bearer a-key"}
    assert limited(STEP, with_key) is None  # input, state and output together are more than 8 numbers
    roomy = way(repository, api_keys=("a-key",), max_body_bytes=60)
    roomy.load("tanh")
    assert roomy(STEP, with_key)
    assert roomy(json.dumps(STEP).encode() + b" " * 60, with_key) is None


def test_a_model_is_not_held_by_having_been_stepped(repository):
    quick = way(repository)
    assert quick(STEP) is None  # it is not loaded
    engine = weakref.ref(quick.load("tanh").engine)
    assert quick(STEP)
    quick.registry.unload("tanh")
    gc.collect()
    assert engine() is None
    assert quick(STEP) is None
    quick.load("tanh")
    assert quick(STEP)


def test_a_session_that_somebody_else_steps_is_waited_for(quick):
    sessions = quick.answers._next_step
    model = quick.registry.resolve("tanh", None)

    async def run():
        from service.sessions.lifecycle import weights_of  # noqa: PLC0415
        from service.stores.interface import Position, SessionRecord  # noqa: PLC0415

        shelf = sessions._shelf
        now = shelf.clock()
        record = SessionRecord("s", b"", weights_of(model), 60.0, now, b"", Position(0, 0, bytes(24), b"", now))
        await shelf.create(record)
        step = {"session": "s", "inputs": [1, 2, 3, 4]}
        assert quick(step)["step"] == 1
        async with sessions._lanes.turn("s"):
            assert quick(step) is None
        assert quick(step | {"step": 2})["step"] == 2
        assert quick(step | {"step": 2}) is None  # a retry
        assert quick(step | {"step": 9}) is None
        assert quick(step | {"inputs": [1]}) is None
        assert record.position.step == 2
        record.position = record.position._replace(used_at=now - 61)
        assert quick(step) is None

    asyncio.run(run())
