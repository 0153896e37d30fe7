"""Connections that are broken, reset or flooded: each gets its own answers, others theirs, and nothing is kept."""

import threading
from contextlib import suppress

import pytest

from tests.e2e.raw import Wire, chunk, head, post, stream_head
from tests.e2e.running import until
from tests.e2e.sockets import PING, TEXT, frame, upgraded
from tests.e2e.watching import connections_close, others_are_served

STEP = b'{"model":"tanh","inputs":[1,2,3,4]}'
LONG = b'{"model":"wide","inputs":[[%s]],"returns":["last"]}' % b",".join([b"[%s0]" % (b"0," * 63)] * 500)
CHUNKED = {"Transfer-Encoding": "chunked"}
HANDSHAKE = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


def statuses(service, data):
    """What is answered until the service closes the connection."""
    found = []
    with Wire(service) as wire:
        wire.send(data)
        with suppress(ConnectionError):
            while True:
                found.append(wire.reply().status)
    return found


@pytest.mark.parametrize("broken", [b"nonsense\r\n\r\n", head("POST", "/cell/step", CHUNKED) + b"zz\r\n"])
@pytest.mark.parametrize("before", [(post("/cell/step", STEP), 200), (post("/rnn/forward", LONG), 200)])
def test_malformed_request_is_answered_in_its_turn(service, before, broken):
    request, status = before
    assert statuses(service, request * 3 + broken + request) == [status] * 3 + [400]


def test_malformed_client_that_goes_on_sending_gets_its_answer(service):
    with Wire(service) as wire:
        wire.send(b"nonsense\r\n\r\n" + b"x" * 4 * 2**20)
        reply = wire.reply()
        assert (reply.status, reply.json()["type"]) == (400, "/problems/malformed-request")
        assert wire.rest() == b""


def test_nothing_is_written_into_a_reply_that_has_begun(service):
    with Wire(service) as wire:
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert wire.status_and_headers()[0] == 200
        assert b'"step":1' in wire.chunk()
        wire.send(b"zz\r\n")
        assert wire.rest() == b""


@pytest.mark.parametrize("closes", [{"version": "1.0"}, {"headers": {"Connection": "close"}}])
def test_nothing_runs_after_the_last_reply(service, closes):
    after = post("/cell/step", STEP, {"X-Request-Id": "after-the-last"})
    keeps = {"headers": {"Connection": "keep-alive"}} if "version" in closes else {}
    assert statuses(service, post("/cell/step", STEP, **keeps, **closes) + after) == [200]
    assert not service.logged("after-the-last")


def test_handshake_in_a_pipeline_is_no_handshake(service):
    requests = post("/rnn/forward", LONG) + head("GET", "/cell/stream", HANDSHAKE) + post("/cell/step", STEP)
    assert statuses(service, requests + head("GET", "/health/live", {"Connection": "close"})) == [200, 426, 200, 200]


def test_frames_before_the_end_of_a_handshake_are_refused(service):
    assert statuses(service, head("GET", "/cell/stream?model=tanh", HANDSHAKE) + frame(TEXT, b"[1,2,3,4]")) == [400]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Length": 10**12}, 400),
        (CHUNKED, 400),
        ({"X": "x" * 9000}, 431),
        ({f"X{n}": n for n in range(130)}, 431),
    ],
)
def test_unsound_handshake_is_refused_and_closed(launch, headers, status):
    """Also at the end of the process, whose exit code `launch` checks."""
    service = launch()
    with Wire(service) as first, Wire(service) as second:
        for wire in (first, second):
            wire.send(head("GET", "/cell/stream", HANDSHAKE | headers))
            assert wire.reply().status == status
        with suppress(ConnectionError):
            while True:  # the rest of the body is thrown away, until the connection is cut
                first.send(b"x" * 2**16)
        second.send(b"x")
        service.stop()


def test_reset_connections_leave_nothing(service):
    """Of 20,000 each kept 12 KB for as long as an idle connection may last."""
    requests = [head("GET", "/health/live"), post("/cell/step", STEP), b"nonsense\r\n\r\n"]

    def reset(count):
        for index in range(count):
            wire = Wire(service)
            wire.send(requests[index % 3])
            wire.reply()
            wire.reset()

    reset(300)
    before = service.rss_mib
    reset(3000)
    assert service.rss_mib < before + 12
    connections_close(service)


FLOODS = {
    "steps": post("/cell/step", STEP),
    "forwards": post("/rnn/forward", b'{"model":"tanh","inputs":[[1,2,3,4]]}'),
    "without a key": post("/cell/step", STEP, {"Authorization": "Bearer wrong"}),
    "small": b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_pipelined_flood_holds_nobody_up(service, flood):
    """What is read and not answered waits as bytes."""
    count = 5000
    with others_are_served(service) as served, Wire(service) as wire:
        before = service.rss_mib
        sending = threading.Thread(target=wire.send, args=(FLOODS[flood] * count,))
        sending.start()
        replies = {wire.reply().status for _ in range(count)}
        sending.join()
        assert replies == {401 if flood == "without a key" else 200}
        assert served() > 0
        assert service.rss_mib < before + 16


FRAMES = {
    "blank messages": frame(TEXT, b" " * 2**20),
    "pings": frame(PING, b"x" * 125) * 2000,
    "empty messages": frame(TEXT) * 5000,
    "lines": frame(TEXT, b"[1,2,3,4]\n" * 100_000),
    "fragments": frame(TEXT, b"[1,2,3,4", fin=False) + frame(0, b" ", fin=False) * 500 + frame(0, b"]"),
}


@pytest.mark.parametrize("kind", FRAMES)
def test_unread_socket_holds_nobody_up(short_timeouts, kind):
    """It is paused, told why it is closed, and cut; what is read and not parsed is bounded."""
    service = short_timeouts
    with others_are_served(service) as served, Wire(service, receive_buffer=4096, seconds=1) as wire:
        upgraded(wire)
        before, top = service.rss_mib, 0.0
        with suppress(OSError):
            for _ in range(200):
                wire.send(FRAMES[kind])
                top = max(top, service.rss_mib)
        until(lambda: not service.holds(wire.port), "the client is cut")
        assert served() > 0
        assert top < before + 32
