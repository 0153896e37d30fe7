"""What opens a stream of a session: the body, the query and a header name it, and say how it is answered."""

import asyncio

import numpy as np
import pytest
import torch

from service.api.request import Request
from service.api.streams.opening import Opener
from service.engine.load import EngineFactory
from service.errors import InvalidRequest
from service.serving.registry import Registry
from service.sessions.cache import SessionCache, SessionLimits, steady_clock
from service.sessions.exactly_once import SessionSteps
from service.sessions.lifecycle import Lifetimes, Sessions
from service.sessions.queue import SessionQueue
from service.stores.memory import MemoryStore

CONFIG = {"kind": "gru", "input_size": 2, "hidden_size": 2, "head": {"out_features": 1}}


@pytest.fixture
def opened(write_model, tmp_path):
    """Open a session, and a stream that the arguments ask for; ID in them is the session's."""
    write_model("m", CONFIG, "3")
    registry = Registry(tmp_path, EngineFactory(torch.device("cpu"), 1, "torch"), default_model=None, cache_bytes=2**30)
    registry.scan()
    cache, queue = SessionCache(MemoryStore(9), SessionLimits(9, 2**20, "refuse"), steady_clock()), SessionQueue(9)
    sessions = Sessions(cache, queue, registry, Lifetimes(60, 60))

    async def open_stream(query="", header="", **message):
        session = (await sessions.open(registry.resolve("m", None), b"", None, None, None)).id
        query, header = (text.replace("ID", session) for text in (query, header))
        if message.get("session") == "ID":
            message["session"] = session
        headers = {b"x-session-id": header.encode()} if header else {}
        request = Request("POST", "/cell/step", query.encode(), headers, "peer", "r1")
        opener = Opener(None, sessions, SessionSteps(cache, queue, None, 1000))
        stream = await opener.open(request, message)
        assert stream.stepper._session.record.id == session
        return stream

    return lambda **asked: asyncio.run(open_stream(**asked))


@pytest.mark.parametrize(
    "named", [{"session": "ID"}, {"query": "session=ID"}, {"header": "ID"}, {"header": "ID", "session": "ID"}]
)
def test_session_is_named_in_any_of_three_places(opened, named):
    stream = opened(**named)
    assert stream.returns == {"outputs", "predictions"}
    assert (stream.binary, stream.number, stream.refuse_non_finite) == ("outputs", None, True)
    assert (stream.request.model, stream.request.version) == ("m", "3")


def test_query_says_how_a_stream_is_answered(opened):
    stream = opened(query="session=ID&step=8&returns=predictions&non_finite=null")
    assert (stream.returns, stream.binary, stream.number) == ({"predictions"}, "predictions", 8)
    assert not stream.refuse_non_finite


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"session": "ID", "header": "xyz"}, "X-Session-Id"),
        ({"session": "ID", "h": np.ones(2, np.float32)}, "h is what the session keeps"),
        ({"session": "ID", "model": "other"}, "model is other"),
        ({"session": 5}, "session"),
        ({"session": "a" * 65}, "session"),
        ({"query": "session=ID&session=ID"}, "session stands twice"),
        ({"query": "session=ID&step=0"}, "step"),
        ({"query": "session=ID&step=x"}, "step"),
        ({"query": "session=ID&returns=c"}, "returns"),
        ({"query": "session=ID&non_finite=maybe"}, "non_finite"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(opened, wrong, words):
    with pytest.raises(InvalidRequest, match=words):
        opened(**wrong)
