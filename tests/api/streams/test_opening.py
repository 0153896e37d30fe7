"""A stream of a session: who names it, what goes with it, and what the opener of sessions is given."""

import asyncio
from types import SimpleNamespace

import pytest

from service.api.request import Request
from service.api.shapes import Limits
from service.api.streams.opening import Opener
from service.errors import InvalidRequest
from service.spec import ModelSpec

MODEL = SimpleNamespace(name="m", version="3", spec=ModelSpec("gru", 2, 2, out_features=1))


def opened(query="", header=None, **message):
    """The stream, and what the sessions were asked for."""
    headers = {b"x-session-id": header.encode()} if header else {}
    request = Request("POST", "/cell/step", query.encode(), headers, "peer", "r1")
    asked = []

    async def session(fields, _):
        asked.append(dict(fields))
        return SimpleNamespace(model=MODEL, done=7)

    stream = asyncio.run(Opener(None, Limits(10, 10), session).open(request, message))
    return stream, asked[0]


@pytest.mark.parametrize(
    "named", [{"session": "abc"}, {"query": "session=abc"}, {"header": "abc"}, {"header": "abc", "session": "abc"}]
)
def test_a_session_is_named_in_any_of_three_places(named):
    stream, fields = opened(**named)
    assert fields == {"session": "abc"}
    assert stream.returns == {"outputs", "predictions"}
    assert (stream.binary, stream.number) == ("outputs", None)
    assert (stream.request.model, stream.request.version) == ("m", "3")


def test_what_is_said_of_answers_and_numbers_goes_with_it():
    stream, fields = opened("session=abc&step=8&returns=predictions&non_finite=null")
    assert fields == {"session": "abc", "step": 8, "returns": ["predictions"], "non_finite": "null"}
    assert (stream.returns, stream.binary, stream.number) == ({"predictions"}, "predictions", 8)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"session": "abc", "header": "xyz"}, "X-Session-Id"),
        ({"session": "abc", "h": [1.0]}, "h"),
        ({"session": 5}, "session"),
        ({"session": "a" * 65}, "session"),
        ({"query": "session=abc&step=0"}, "step"),
        ({"query": "session=abc&step=x"}, "step"),
        ({"query": "session=abc&returns=c"}, "returns"),
        ({"query": "session=abc&non_finite=maybe"}, "non_finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong, words):
    with pytest.raises(InvalidRequest, match=words):
        opened(**wrong)
