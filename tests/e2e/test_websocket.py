"""WS /cell/stream: text and binary frames, who may connect, and errors."""

import json
from base64 import urlsafe_b64encode

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from tests.reference import numbers

from .conftest import SIGNED_KEY
from .models import assert_close, expected
from .problems import assert_document, assert_problem
from .running import until
from .sockets import ended, opened

INPUTS = numbers(np.random.default_rng(5), 40, 4)
WANTED = expected("tanh", INPUTS).outputs


def lines(inputs):
    return "\n".join(json.dumps(row.tolist()) for row in inputs)


@pytest.mark.parametrize("array", ["predictions", "h", "outputs"])
def test_returns_chooses_the_binary_array(service, array):
    inputs = numbers(np.random.default_rng(1), 3, 4)
    with opened(service, f"?model=gru&returns={array}", inputs.tobytes()) as socket:
        answer = np.frombuffer(socket.recv(), "<f4").reshape(3, -1)
    for index in range(3):
        wanted = expected("gru", inputs[: index + 1])
        last = {"predictions": wanted.predictions, "outputs": wanted.outputs, "h": [wanted.h.ravel()]}[array]
        assert_close(answer[index], last[-1])


def test_binary_answer_holds_one_array(service):
    with opened(service, "?model=gru&returns=outputs,predictions", INPUTS[:1].tobytes()) as socket:
        messages, code, _ = ended(socket)
    assert code == 1007
    assert_document(json.loads(messages[-1])["error"], 422, "invalid-request", "returns", "one array")


def test_first_message_may_number_the_steps(service):
    with opened(service, "", {"model": "tanh", "step": 41}) as socket:
        socket.send('{"inputs":[1,2,3,4],"step":41}\n[1,2,3,4]')
        socket.send(INPUTS[:3].tobytes())
        socket.send("[1,2,3,4]")
        answers = [socket.recv() for _ in range(3)]
    assert [json.loads(line)["step"] for line in (answers[0] + answers[2]).splitlines()] == [41, 42, 46]


@pytest.mark.parametrize(
    ("query", "message", "code", "slug", "words"),
    [
        ("?model=tanh", "[1,2,3]", 1007, "invalid-request", ("line 2", "3 values")),
        ("?model=tanh", "[1,2", 1007, "malformed-body", ("line 2", "not JSON")),
        ("?model=tanh", '{"inputs":[1,2,3,4],"step":3}', 1007, "invalid-request", ("line 2", "expects 2")),
        ("?model=tanh", b"123", 1007, "malformed-body", ("frame 2", "3 bytes", "16 bytes")),
        ("?model=tanh", b"", 1007, "malformed-body", ("frame 2", "0 bytes")),
        ("?model=unknown", "[1,2,3,4]", 1008, "model-not-found", ("unknown",)),
        ("?model=both-ways", "[1,2,3]", 1008, "not-steppable", ("bidirectional",)),
        ("?model=explodes", "[1]\n[1]", 1008, "non-finite-output", ("line 3",)),
        ("?model=broken", "[1]", 1013, "model-failed", ()),
        ("", "[1]", 1007, "invalid-request", ("name a model",)),
        ("", '{"model":"tanh","hh":1}', 1007, "invalid-request", ("hh",)),
        ("", '{"model":"tanh","session":"a"}', 1008, "session-not-found", ("session",)),
    ],
)
def test_error_is_last_frame_and_close_code(service, query, message, code, slug, words):
    good = [] if code == 1013 or not query or slug in ("model-not-found", "not-steppable") else ["[1,2,3,4]"]
    if "explodes" in query:
        good = ["[1]"]
    with opened(service, query, *good, message) as socket:
        messages, closed, reason = ended(socket)
    assert (closed, reason) == (code, slug)
    assert_document(json.loads(messages[-1])["error"], json.loads(messages[-1])["error"]["status"], slug, *words)
    answered = [json.loads(line)["step"] for text in messages[:-1] for line in text.splitlines()]
    assert answered == list(range(1, 3 if "explodes" in query else 2 if good else 1))


def test_non_finite_result_may_be_allowed(service):
    with opened(service, "?model=explodes&non_finite=null") as socket:
        socket.send("[1]\n[1]\n[1]")
        assert json.loads(socket.recv().splitlines()[2])["outputs"] == [None, None]
        socket.send(np.ones(1, "<f4").tobytes())
        assert not np.isfinite(np.frombuffer(socket.recv(), "<f4")).any()


def refused(service, **options):
    with pytest.raises(InvalidStatus) as refusal, opened(service, "?model=tanh", **options):
        pass
    return refusal.value.response


def test_page_of_another_host_is_refused(service):
    reply = refused(service, origin="https://elsewhere.example")
    assert (reply.status_code, reply.headers["content-type"]) == (403, "application/problem+json")
    assert_document(json.loads(reply.body), 403, "forbidden", "https://elsewhere.example", "RNN_ALLOWED_ORIGINS")


def test_allowed_origins_and_keys(guarded):
    right = {"Authorization": f"Bearer {SIGNED_KEY}"}
    encoded = urlsafe_b64encode(SIGNED_KEY.encode()).decode().rstrip("=")
    for options in (
        {"additional_headers": right, "origin": "https://other.example"},
        {"subprotocols": ["rnn-service", f"bearer.{encoded}"], "origin": "https://lab.example"},
        {"subprotocols": [f"bearer.{encoded}", "rnn-service"]},
    ):
        with opened(guarded, "?model=tanh", "[1,2,3,4]", **options) as socket:
            assert json.loads(socket.recv())["step"] == 1
            assert socket.subprotocol == ("rnn-service" if "subprotocols" in options else None)
    for options in (
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["rnn-service", "bearer.d3Jvbmc"]},
        {"subprotocols": ["rnn-service", "bearer.!"]},
    ):
        assert refused(guarded, **options).status_code == 401
    assert refused(guarded, additional_headers=right, origin="https://evil.example").status_code == 403
    assert encoded not in guarded.log()


def test_plain_get_is_told_to_upgrade(service):
    reply = service.get("/cell/stream")
    assert_problem(reply, 426, "upgrade-required", "ws://")
    assert reply.headers["upgrade"] == "websocket"


def test_websocket_at_another_path(service):
    with pytest.raises(InvalidStatus) as refusal, opened(service, "/none?model=tanh"):
        pass
    assert refusal.value.response.status_code == 404


def test_stream_is_one_line_of_the_log(service):
    with opened(service, "?model=tanh", additional_headers={"X-Request-Id": "ws-log"}) as socket:
        assert socket.response.headers["x-request-id"] == "ws-log"
        socket.send(lines(INPUTS[:3]))
        socket.recv()
    (fields,) = until(lambda: service.logged("ws-log"), "the log line")
    wanted = {"method": "WS", "path": "/cell/stream", "status": 101, "model": "tanh", "rows": 1, "steps": 3}
    assert fields.items() >= wanted.items()
    assert fields["received_bytes"]
    assert fields["sent_bytes"]
    assert 'rnn_requests_total{model="tanh",path="/cell/stream",status="101"}' in service.get("/metrics").text


def test_deadline_holds_for_each_frame(service):
    with opened(service, "?model=tanh", "[1,2,3,4]", additional_headers={"X-Request-Timeout-Ms": "0"}) as socket:
        messages, code, reason = ended(socket)
    assert (code, reason) == (1008, "deadline-passed")
    assert_document(json.loads(messages[0])["error"], 504, "deadline-passed", "line 1")
