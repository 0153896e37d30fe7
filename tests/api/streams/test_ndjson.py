"""NDJSON over ASGI: lines out of a body that is still arriving, and the reply that begins with the first answer."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.streams.ndjson import NdjsonStreams, lines_of
from service.errors import BodyTimeout, BodyTooLarge, InvalidRequest, NotAcceptable

from .fakes import Opens, Receives, idle, request


def collect(pieces, limit=1000):
    async def arriving():
        for piece in pieces:
            yield piece

    async def run():
        return [block async for block in lines_of(arriving(), limit)]

    return asyncio.run(run())


@given(st.lists(st.text("ab {}", max_size=8).map(str.encode)), st.lists(st.integers(0, 80), max_size=6))
def test_lines_are_the_same_however_cut(lines, places):
    data = b"".join(line + b"\n" for line in lines)
    ends = sorted({min(place, len(data)) for place in places} | {len(data)})
    pieces = [data[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]
    assert [line for block in collect(pieces) for line in block] == lines


def test_lines_that_arrive_together_are_a_block():
    assert collect([b"1\n2\n3", b"\n4\n"]) == [[b"1", b"2"], [b"3", b"4"]]


def test_last_line_may_lack_its_newline():
    assert collect([b"1\n2"]) == [[b"1"], [b"2"]]


@pytest.mark.parametrize("pieces", [[b"x" * 11], [b"xxxxxx", b"xxxxxx"], [b"x" * 11 + b"\n"]])
def test_line_has_a_limit(pieces):
    with pytest.raises(BodyTooLarge):
        collect(pieces, limit=10)


def body(*pieces):
    return [{"type": "http.request", "body": piece, "more_body": n < len(pieces)} for n, piece in enumerate(pieces, 1)]


def sent(messages, asked=None, seconds=20.0, **options):
    """What is sent back."""
    found = []

    async def send(message):
        found.append(message)

    asyncio.run(NdjsonStreams(Opens(**options), idle(seconds))(asked or request(), Receives(*messages), send))
    return found


def test_each_piece_is_answered_at_once():
    asked = request()
    start, *pieces = sent(body(b'{"model":"sums"}\n[1,', b"2]\n[3,", b"4", b"]"), asked)
    assert (start["status"], (b"x-request-id", b"r1") in start["headers"]) == (200, True)
    assert [(piece["body"], piece["more_body"]) for piece in pieces] == [
        (b'{"outputs":[1.0,2.0],"step":1}\n', True),
        (b'{"outputs":[4.0,6.0],"step":2}\n', True),
        (b"", False),
    ]
    assert (asked.rows, asked.steps, asked.sent_bytes, asked.status) == (1, 2, 62, 200)


def test_empty_stream_has_an_empty_reply():
    assert [message.get("body") for message in sent(body(b"\n \n"))] == [None, b""]


def test_error_follows_the_first_answer():
    with pytest.raises(InvalidRequest, match="line 2: "):
        sent(body(b"\n[1,2,3]\n"))
    *_, last, end = sent(body(b"[1,2]\n", b"[1,2,3]\n", b"[1,2]\n"))
    problem = json.loads(last["body"])["error"]
    assert (problem["status"], problem["request_id"]) == (422, "r1")
    assert problem["detail"].startswith("line 2: ")
    assert end == {"type": "http.response.body", "body": b"", "more_body": False}


def test_blank_lines_count_and_have_a_limit():
    *_, last, _ = sent(body(b"\r\n\n[1,2]\n", b"[1]\n"))
    assert "line 4: " in json.loads(last["body"])["error"]["detail"]
    *_, last, _ = sent(body(b"[1,2]\n", b" \n" * 20_000))
    assert "more than 10000 blank lines" in json.loads(last["body"])["error"]["detail"]


def test_silent_client_is_told_to_go():
    with pytest.raises(BodyTimeout, match="no complete line"):
        sent([{"type": "http.request", "body": b"[1,2]", "more_body": True}], seconds=0.01)


def test_client_that_takes_no_ndjson_is_refused():
    with pytest.raises(NotAcceptable):
        sent([], request(accept="application/json"))
