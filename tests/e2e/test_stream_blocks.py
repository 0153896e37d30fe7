"""Law 5: however a stream is cut, and in whatever format, its results are the same bits."""

import json
import random

import numpy as np
import pytest
from safetensors.numpy import load

from tests.reference import numbers

from .formats import post_arrays
from .models import SPECS, STEPPABLE
from .raw import Wire, chunk, stream_head
from .sockets import opened


def ndjson(inputs, form="plain"):
    """Lines of a block, in one of the forms that a client may choose, or in all of them in turn."""
    lines = []
    for index, row in enumerate(inputs):
        values = json.dumps(row.tolist())
        forms = {
            "plain": values,
            "numbered": f'{{"inputs":{values},"step":{index + 1}}}',
            "spaced": f'{{ "step": {index + 1}, "inputs": {values} }}\r',
            "odd": f'{{"inputs":{values},"st\\u0065p":{index + 1}}}',
        }
        lines.append(list(forms.values())[index % 4] if form == "mixed" else forms[form])
    return "\n".join([*lines, ""]).encode()


def answered(service, query, pieces):
    """The body that answers pieces, each sent as a chunk of its own."""
    with Wire(service) as wire:
        wire.send(stream_head(f"/cell/step{query}"))
        for piece in pieces:
            wire.send(chunk(piece))
        wire.send(chunk(b""))
        reply = wire.reply()
    assert reply.status == 200, reply.body
    return reply.body


def cut(body, rng):
    """The same bytes in pieces, cut anywhere."""
    ends = sorted(rng.sample(range(1, len(body)), min(rng.choice([0, 1, 5, 40]), len(body) - 1)))
    return [body[begin:end] for begin, end in zip([0, *ends], [*ends, len(body)], strict=True)]


@pytest.mark.parametrize("query", ["?model=tanh", "?model=gru", "?model=lstm-proj&returns=outputs,h,c,predictions"])
@pytest.mark.parametrize("form", ["plain", "numbered", "spaced", "odd", "mixed"])
def test_stream_gets_same_bytes_however_cut(service, query, form):
    inputs = numbers(np.random.default_rng(9), 60, 4)
    lines = ndjson(inputs).splitlines(keepends=True)
    one_by_one = answered(service, query, lines)
    rng = random.Random(form + query)
    for _ in range(4):
        assert answered(service, query, cut(ndjson(inputs, form), rng)) == one_by_one


@pytest.mark.parametrize("bad", [b"[1,2,3]\n", b"[1,2,3,4\n", b'{"inputs":[1,2,3,4],"step":7}\n', b"[1,2,3,NaN]\n"])
def test_bad_line_is_the_same_however_cut(service, bad):
    rng = random.Random(str(bad))
    body = b"[1,2,3,4]\n" * 30 + b"\n" + bad + b"[1,2,3,4]\n" * 5
    answers = []
    for _ in range(4):
        *lines, last = answered(service, "?model=tanh", cut(body, rng)).splitlines()
        problem = json.loads(last)["error"]
        assert problem.pop("request_id")
        assert "line 32" in problem["detail"]
        answers.append((lines, problem))
    assert len(answers[0][0]) == 30
    assert all(answer == answers[0] for answer in answers)


@pytest.mark.parametrize("name", STEPPABLE)
def test_every_stream_format_gives_same_bits(service, name):
    spec = SPECS[name]
    inputs = numbers(np.random.default_rng(10), 50, spec.input_size)
    reply = post_arrays(service, "/rnn/forward", {"inputs": inputs}, model=name, returns="outputs")
    wanted = load(reply.content)["outputs"].tobytes()

    def parsed(text):
        return np.array([json.loads(line)["outputs"] for line in text.splitlines()], np.float32).tobytes()

    query = f"?model={name}&returns=outputs"
    assert parsed(answered(service, query, [ndjson(inputs)])) == wanted
    rng = random.Random(name)
    with opened(service, query) as socket:
        for piece in np.split(inputs, sorted(rng.sample(range(1, 50), 6))):
            socket.send(ndjson(piece).decode())
        assert b"".join(parsed(socket.recv()) for _ in range(7)) == wanted
    with opened(service, query) as socket:
        for piece in np.split(inputs, sorted(rng.sample(range(1, 50), 6))):
            socket.send(piece.tobytes())
        assert b"".join(socket.recv() for _ in range(7)) == wanted
