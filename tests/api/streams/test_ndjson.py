"""NDJSON over ASGI: lines out of a body that is still arriving, and the reply that begins with the first answer."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.api.streams.ndjson import NdjsonStreams, lines_of
from service.app import create_app
from service.errors import BodyTooLarge
from service.settings import Settings

from .fakes import Opens, Receives, Sums, idle


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


HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/x-ndjson"), (b"x-request-id", b"r1")]


@pytest.fixture
def sent(tmp_path):
    """What the application sends back, and the log's entry; options are those of the streams."""
    entries = []
    application = create_app(Settings(models=tmp_path), entries.append)

    def send_all(messages, *headers, seconds=20.0, **options):
        found = []

        async def send(message):
            found.append(message)

        application.streams = {"/cell/step": NdjsonStreams(Opens(**options), idle(seconds))}
        scope = {"type": "http", "method": "POST", "path": "/cell/step", "query_string": b""}
        asyncio.run(application({**scope, "headers": [*HEADERS, *headers]}, Receives(*messages), send))
        assert [message.get("more_body") for message in found] == [None, *[True] * (len(found) - 2), False]
        return found, entries[-1]

    return send_all


def problem_of(message):
    return json.loads(message["body"])


def test_each_piece_is_answered_at_once(sent):
    (start, *pieces), entry = sent(body(b'{"model":"sums"}\n[1,', b"2]\n[3,", b"4", b"]"))
    assert (start["status"], (b"x-request-id", b"r1") in start["headers"]) == (200, True)
    assert [piece["body"] for piece in pieces] == [
        b'{"outputs":[1.0,2.0],"step":1}\n',
        b'{"outputs":[4.0,6.0],"step":2}\n',
        b"",
    ]
    assert (entry["rows"], entry["steps"], entry["sent_bytes"], entry["status"]) == (1, 2, 62, 200)


def test_empty_stream_has_an_empty_reply(sent):
    assert [message.get("body") for message in sent(body(b"\n \n"))[0]] == [None, b""]


def test_error_before_the_first_answer_is_the_reply(sent):
    (start, last), _ = sent(body(b"\n[1,2,3]\n"), (b"transfer-encoding", b"chunked"))
    assert start["status"] == 422
    assert (b"connection", b"close") not in start["headers"]  # all of the body has come
    assert problem_of(last)["detail"].startswith("line 2: ")


def test_error_follows_the_first_answer(sent):
    (*_, last, end), _ = sent(body(b"[1,2]\n", b"[1,2,3]\n", b"[1,2]\n"))
    problem = problem_of(last)["error"]
    assert (problem["status"], problem["request_id"]) == (422, "r1")
    assert problem["detail"].startswith("line 2: ")
    assert end["body"] == b""


class Breaks(Sums):
    """Fails by a fault of its own at the third step."""

    async def run(self, inputs, step, deadline, *, refuse_non_finite):
        if self.done == 2:
            raise ZeroDivisionError
        return await super().run(inputs, step, deadline, refuse_non_finite=refuse_non_finite)


def test_internal_error_follows_the_answers(sent):
    (start, *answers, last, end), _ = sent(body(b"[1,2]\n", b"[1,2]\n", b"[1,2]\n", b"[1,2]\n"), stepper=Breaks())
    assert (start["status"], len(answers)) == (200, 2)
    problem = problem_of(last)["error"]
    assert (problem["type"], problem["request_id"]) == ("/problems/internal-error", "r1")
    assert end["body"] == b""
    (start, last), _ = sent(body(b"[1,2]\n"), stepper=Breaks(kept=2))
    assert (start["status"], problem_of(last)["type"]) == (500, "/problems/internal-error")


def test_blank_lines_count_and_have_a_limit(sent):
    (*_, last, _), _ = sent(body(b"\r\n\n[1,2]\n", b"[1]\n"))
    assert "line 4: " in problem_of(last)["error"]["detail"]
    (*_, last, _), _ = sent(body(b"[1,2]\n", b" \n" * 20_000))
    assert "more than 10000 blank lines" in problem_of(last)["error"]["detail"]


def test_silent_client_is_told_to_go(sent):
    messages = [{"type": "http.request", "body": b"[1,2]", "more_body": True}]
    (start, last), _ = sent(messages, seconds=0.01)
    assert start["status"] == 408
    assert "no complete line" in problem_of(last)["detail"]


def test_client_that_takes_no_ndjson_is_refused(sent):
    assert sent(body(b"[1,2]\n"), (b"accept", b"application/json"))[0][0]["status"] == 406
