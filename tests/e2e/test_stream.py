"""Streams of steps: NDJSON over POST /cell/step."""

import json
import zlib

import numpy as np
import pytest

from tests.reference import numbers

from .formats import NDJSON, line, zstd
from .models import assert_close, expected
from .problems import assert_document, assert_problem
from .raw import Wire, chunk, head, stream_head


def stream(service, *lines, query="?model=tanh"):
    """A whole stream, sent at once; its answers."""
    with Wire(service) as wire:
        pieces = [chunk(b"".join(map(line, lines)))] if lines else []
        wire.send(b"".join([stream_head(f"/cell/step{query}"), *pieces, chunk(b"")]))
        reply = wire.reply()
    assert reply.status == 200, reply.body
    return [json.loads(answer) for answer in reply.body.splitlines()]


@pytest.mark.parametrize("name", ["gru", "lstm-proj"])
def test_model_with_a_head_adds_predictions(service, name):
    inputs = numbers(np.random.default_rng(1), 1500, 4)  # more than one block
    answers = stream(service, *inputs, query=f"?model={name}")
    assert [answer["step"] for answer in answers] == list(range(1, 1501))
    wanted = expected(name, inputs)
    assert_close([answer["outputs"] for answer in answers], wanted.outputs)
    assert_close([answer["predictions"] for answer in answers], wanted.predictions)


def test_first_line_may_open_the_stream(service):
    rng = np.random.default_rng(2)
    inputs, h, c = numbers(rng, 3, 5), numbers(rng, 2, 6), numbers(rng, 2, 6)
    opening = {"model": "lstm", "version": "1", "h": h.tolist(), "c": c.tolist(), "returns": ["outputs", "h", "c"]}
    answers = stream(service, opening, *inputs, query="")
    assert_close([answer["outputs"] for answer in answers], expected("lstm", inputs, h, c).outputs)
    for index, answer in enumerate(answers):
        wanted = expected("lstm", inputs[: index + 1], h, c)
        assert_close(answer["h"], wanted.h)
        assert_close(answer["c"], wanted.c)


def test_query_may_open_the_stream(service):
    answers = stream(service, [1, 2, 3, 4], query="?model=gru-two-versions&version=1&returns=predictions,h")
    assert answers[0].keys() == {"predictions", "h", "step"}
    assert_close(answers[0]["predictions"], expected("gru", np.array([[1, 2, 3, 4]], np.float32)).predictions[0])


def test_lines_may_number_their_steps(service):
    answers = stream(service, {"inputs": [1, 2, 3, 4], "step": 1}, {"inputs": [4, 3, 2, 1]}, [1, 1, 1, 1])
    assert [answer["step"] for answer in answers] == [1, 2, 3]


def test_line_may_arrive_in_pieces(service):
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh"))
        for piece in (b"[1,2", b",3", b",4", b"]\r", b"\n\n[1"):
            wire.send(chunk(piece))
        assert wire.status_and_headers()[0] == 200
        first = json.loads(wire.chunk())
        wire.send(chunk(b",2,3,4]") + chunk(b""))  # the last line may lack its newline
        second = json.loads(wire.chunk())
    assert_close(
        [first["outputs"], second["outputs"]], expected("tanh", np.array([[1, 2, 3, 4]] * 2, np.float32)).outputs
    )


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_compressed_stream_is_answered_early(service, encoding):
    packer = zlib.compressobj(wbits=31) if encoding == "gzip" else zstd.ZstdCompressor()
    flush = zlib.Z_SYNC_FLUSH if encoding == "gzip" else zstd.ZstdCompressor.FLUSH_BLOCK
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh", **{"Content-Encoding": encoding}))
        for index in range(3):
            wire.send(chunk(packer.compress(line([1, 2, 3, 4])) + packer.flush(flush)))
            if index == 0:
                assert wire.status_and_headers()[0] == 200
            assert json.loads(wire.chunk())["step"] == index + 1


@pytest.mark.parametrize(
    ("bad", "status", "slug", "words"),
    [
        (b"[1,2,3]", 422, "invalid-request", ("inputs", "3 values", "input_size 4")),
        (b"[1,2", 400, "malformed-body", ("not JSON",)),
        (b"[NaN,2,3,4]", 422, "invalid-request", ("inputs[0]", "NaN")),
        (b'["a",2,3,4]', 422, "invalid-request", ("inputs[0]", "string")),
        (b'{"inputs":[1,2,3,4],"step":7}', 422, "invalid-request", ("step is 7", "expects 3")),
        (b'{"inputs":[1,2,3,4],"step":[3,3]}', 422, "invalid-request", ("step",)),
        (b'{"inputs":[1,2,3,4],"steps":3}', 422, "invalid-request", ("steps", "did you mean step?")),
        (b'{"inputs":[1,2,3,4],"inputs":[1,2,3,4]}', 400, "duplicate-name", ("inputs",)),
        (b"[" * 100_000, 400, "malformed-body", ()),
        (b"[[1,2,3,4]]", 422, "invalid-request", ("2 axes",)),
        (b"null", 400, "malformed-body", ("null",)),
        (b"\xff\xfe", 400, "malformed-body", ()),
    ],
)
def test_bad_line_ends_the_stream_and_is_named(service, bad, status, slug, words):
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n\n" + line([4, 3, 2, 1])))
        assert wire.status_and_headers()[0] == 200
        answers = b""
        while answers.count(b"\n") < 2:
            answers += wire.chunk()
        wire.send(chunk(bad + b"\n[1,1,1,1]\n") + chunk(b""))
        last = json.loads(wire.chunk())
        assert last.keys() == {"error"}
        # The blank line counts, as in editors.
        assert_document(last["error"], status, slug, "line 4", *words)
        assert wire.chunk() == b""
    assert [json.loads(answer)["step"] for answer in answers.splitlines()] == [1, 2]


def test_error_before_the_first_answer(service):
    for query, opening, status, slug in [
        ("", [1, 2, 3, 4], 422, "invalid-request"),
        ("?model=unknown", [1, 2, 3, 4], 404, "model-not-found"),
        ("?model=both-ways", [1, 2, 3], 422, "not-steppable"),
        ("?model=tanh&model=tanh", [1, 2, 3, 4], 422, "invalid-request"),
        ("?model=tanh&return=h", [1, 2, 3, 4], 422, "invalid-request"),
        ("?model=tanh", [1, 2, 3], 422, "invalid-request"),
        ("", {"model": "tanh", "h": [1, 2]}, 422, "invalid-request"),
        ("", {"model": "tanh", "c": [0] * 6}, 422, "invalid-request"),
    ]:
        with Wire(service) as wire:
            wire.send(stream_head(f"/cell/step{query}") + chunk(line(opening)))
            assert_problem(wire.reply(), status, slug)


def test_non_finite_step_ends_the_stream(service):
    answers = stream(service, [1], [1], [1], [1], query="?model=explodes")
    assert [answer.get("step") for answer in answers] == [1, 2, None]
    assert_document(answers[-1]["error"], 422, "non-finite-output", "line 3", "step 3")
    allowed = stream(service, [1], [1], [1], query="?model=explodes&non_finite=null")
    assert allowed[:2] == answers[:2]
    assert allowed[2] == {"outputs": [None, None], "step": 3}


def test_empty_stream_has_an_empty_reply(service):
    assert stream(service) == []


def test_only_ndjson_answers_a_stream(service):
    request = head(
        "POST", "/cell/step?model=tanh", {"Content-Type": NDJSON, "Accept": "application/json", "Content-Length": 0}
    )
    with Wire(service) as wire:
        wire.send(request)
        assert_problem(wire.reply(), 406, "not-acceptable", "application/json", NDJSON)


def test_line_over_the_limit(service):
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[" + b"1," * 600_000))
        assert_problem(wire.reply(), 413, "body-too-large", "line")
