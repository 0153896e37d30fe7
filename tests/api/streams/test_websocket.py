"""The WebSocket over ASGI: frames that wait run together and are answered apart; keys, and the end."""

import asyncio
import json as standard

import numpy as np
import pytest

from service.api.problems import STATUS
from service.api.streams import step_stream
from service.api.streams.websocket import WAITING, authorization_of, close_code, serve_websocket
from service.errors import ClientGone, FieldError, InvalidRequest, ServiceDraining, ServiceFull, SessionGone
from service.wire import json

from .fakes import Opens, Receives, Sums, idle, request

GONE = {"type": "websocket.disconnect", "code": 1000}


def exchanged(*frames, asked=None, opener=None, gone=GONE, **scope):
    """What is sent back to frames that wait together."""
    messages = [{"type": "websocket.receive", "text" if isinstance(data, str) else "bytes": data} for data in frames]
    receive = Receives({"type": "websocket.connect"}, *messages, *([gone] if gone else []))
    scope = {"extensions": {WAITING: lambda: len(receive.messages)}} | scope
    found = []

    async def send(message):
        found.append(message)

    asyncio.run(serve_websocket(opener or Opens(), idle(0.05), asked or request(), scope, receive, send))
    accept, *rest = found
    assert accept["type"] == "websocket.accept"
    return rest


def floats(*rows):
    return np.array(rows, "<f4").tobytes()


@pytest.mark.parametrize("values", [2, json.SLICE_VALUES])
def test_each_frame_is_answered_in_kind(monkeypatch, values):
    monkeypatch.setattr(step_stream.json, "SLICE_VALUES", values)

    class Opened(Opens):
        stepper = Sums()

        async def open(self, asked_by, message):
            stream = await super().open(asked_by, message)
            stream.stepper = self.stepper
            return stream

    asked = request()
    texts = ['{"model":"sums"}', "[1,2]", "[1,2]\n\n[1,2]", "\n"]
    arrays = [floats([1, 2]), floats([0, 1], [1, 0])]
    answers = exchanged(*texts, *arrays, "[0,0]", asked=asked, opener=Opened())
    assert [answer.get("text") or answer.get("bytes") for answer in answers] == [
        '{"outputs":[1.0,2.0],"step":1}\n',
        '{"outputs":[2.0,4.0],"step":2}\n{"outputs":[3.0,6.0],"step":3}\n',
        floats([4, 8]),
        floats([4, 9], [5, 9]),
        '{"outputs":[5.0,9.0],"step":7}\n',
    ]
    assert Opened.stepper.asked == [(3, None), (3, None), (1, None)]
    assert (asked.rows, asked.steps, asked.status) == (1, 7, 101)


def test_large_frame_has_several_answers():
    answers = exchanged(floats(*[[1, 0]] * 2500))
    assert [len(answer["bytes"]) // 8 for answer in answers] == [1024, 1024, 452]
    assert answers[-1]["bytes"][-8:] == floats([2500, 0])


def test_state_is_sent_after_each_step():
    (answer,) = exchanged(floats([1, 0], [1, 0]), opener=Opens(returns=("h",)))
    assert answer["bytes"] == floats([1, 0], [2, 0])


def test_frames_before_a_wrong_one_are_answered():
    *answers, last, close = exchanged("[1,2]", "[1,2]\n[1,2,3]", "[1,2]")
    assert [answer["text"].count("\n") for answer in answers] == [1, 1]
    assert standard.loads(last["text"])["error"]["detail"].startswith("line 3: ")
    assert close == {"type": "websocket.close", "code": 1007, "reason": "invalid-request"}
    _, last, close = exchanged("[1,2]", b"123")
    assert "frame 2 has 3 bytes" in last["text"]
    assert (close["code"], close["reason"]) == (1007, "malformed-body")


def test_silence_ends_a_stream():
    last, close = exchanged(gone=None)
    assert "no complete message" in last["text"]
    assert (close["code"], close["reason"]) == (1008, "body-timeout")


def test_internal_error_tells_only_its_id():
    class Fails(Opens):
        async def open(self, asked_by, message):
            raise RuntimeError("secret")

    last, close = exchanged("[1,2]", opener=Fails())
    assert "r1" in last["text"]
    assert "secret" not in last["text"]
    assert (close["code"], close["reason"]) == (1011, "internal-error")


def test_gone_client_is_no_internal_error():
    async def send(message):
        if message["type"] == "websocket.send":
            raise OSError

    receive = Receives({"type": "websocket.connect"}, {"type": "websocket.receive", "text": "[1,2]"})
    with pytest.raises(ClientGone):
        asyncio.run(serve_websocket(Opens(), idle(), request(), {}, receive, send))


def test_key_may_come_as_a_subprotocol():
    assert authorization_of({"subprotocols": ["rnn-service", "bearer.YSBrZXkvKys"]}) == b"Bearer a key/++"
    for offered in ([], ["rnn-service"], ["bearer.a"], ["bearer.é"]):
        assert authorization_of({"subprotocols": offered}) is None
    assert authorization_of({}) is None


def test_close_codes():
    full, draining, wrong = ServiceFull("full"), ServiceDraining("going"), InvalidRequest([FieldError((), "wrong")])
    assert [close_code(error) for error in (full, draining, wrong)] == [1013, 1012, 1007]
    assert {close_code(kind.__new__(kind)) for kind in STATUS} == {1003, 1007, 1008, 1009, 1012, 1013}
    assert close_code(SessionGone.__new__(SessionGone)) == 1008
