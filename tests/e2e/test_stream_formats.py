"""Law 5: however a stream is cut, and in whatever format, its results are the same bits."""

import json
import random
from contextlib import ExitStack

import numpy as np
import pytest
from safetensors.numpy import load

from tests.reference import numbers

from .formats import post_arrays
from .models import SPECS, STEPPABLE, assert_close, expected
from .raw import Wire, chunk, stream_head
from .step_streams import KINDS, StepStream


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", STEPPABLE)
def test_every_stream_format_gives_same_bits(service, name, kind):
    inputs = numbers(np.random.default_rng(10), 50, SPECS[name].input_size)
    reply = post_arrays(service, "/rnn/forward", {"inputs": inputs}, model=name, returns="outputs")
    with StepStream(service, kind, f"model={name}") as stream:
        for piece in np.split(inputs, sorted(random.Random(name).sample(range(1, 50), 6))):
            stream.send(piece)
        answers = stream.receive_steps(50, SPECS[name].output_size)
    assert list(answers) == list(range(1, 51))
    assert np.array(list(answers.values()), np.float32).tobytes() == load(reply.content)["outputs"].tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_many_streams_keep_their_own_state(service, kind):
    inputs = numbers(np.random.default_rng(4), 50, 3, 4)
    answers = [{} for _ in inputs]
    with ExitStack() as stack:
        streams = [stack.enter_context(StepStream(service, kind, "model=tanh")) for _ in inputs]
        for index in range(3):
            for stream, rows in zip(streams, inputs, strict=True):
                stream.send(rows[index : index + 1])
            for stream, own in zip(streams, answers, strict=True):
                own.update(stream.receive(6))
    for rows, own in zip(inputs, answers, strict=True):
        assert_close(list(own.values()), expected("tanh", rows).outputs)
