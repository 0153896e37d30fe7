"""WebSockets of clients that are gone, slow or hostile, and of a service that stops: each is told why."""

import json
from contextlib import suppress

import numpy as np
import pytest

from tests.reference import numbers

from . import sessions
from .models import assert_close, expected
from .raw import Wire, head
from .running import start, until
from .sockets import BINARY, CLOSE, PING, PONG, TEXT, closing, ended, frame, opened, received, upgraded
from .watching import connections_close, memory_returns, others_are_served

STEP = b"[1,2,3,4]"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"\xff" * 5000, 1002),
        (b"GET / HTTP/1.1\r\n\r\n", 1002),
        (b"\x81\x04abcd", 1002),  # a client must mask
        (frame(3, b"x"), 1002),  # an opcode that does not exist
        (frame(PING, b"x", fin=False), 1002),  # control frames are not fragmented
        (frame(PING, b"x" * 126), 1002),
        (frame(0, b"x"), 1002),  # goes on with nothing
        (frame(TEXT, b"[1", fin=False) + frame(TEXT, b"2]"), 1002),
        (frame(TEXT, b"\xff\xfe"), 1007),
        (frame(TEXT, b"[" + b"1," * 600_000 + b"1]"), 1009),
        (frame(BINARY, bytes(2**20 + 16)), 1009),
        (b"\x82\xff" + (2**40).to_bytes(8, "big") + b"mask", 1009),  # said to be enormous
        (frame(TEXT, b"1" * 2**19, fin=False) + frame(0, b"1" * 2**19, fin=False) + frame(0, b"11"), 1009),
        (frame(TEXT, b"[", fin=False) + frame(0, b"", fin=False) * 5000, 1009),
        (frame(CLOSE, (1000).to_bytes(2, "big") + b"bye"), 1000),
    ],
)
def test_invalid_frames_close_with_a_code(service, sent, code):
    with others_are_served(service), memory_returns(service), Wire(service) as wire:
        upgraded(wire)
        wire.send(frame(TEXT, STEP))
        assert json.loads(received(wire)[1])["step"] == 1
        with suppress(BrokenPipeError, ConnectionResetError):  # the service has closed before all was sent
            wire.send(sent)
        assert closing(wire)[0] == code
        assert wire.is_closed()


def test_fragments_with_pings_between(service):
    with Wire(service) as wire:
        upgraded(wire)
        for index, piece in enumerate((b"[1,", b"", b"2,3", b",4]")):
            wire.send(frame(0 if index else TEXT, piece, fin=index == 3))
            if index < 3:
                wire.send(frame(PING, b"%d" % index))
                assert received(wire) == (PONG, b"%d" % index)
        assert json.loads(received(wire)[1])["step"] == 1


def test_frame_byte_by_byte(service):
    with Wire(service) as wire:
        upgraded(wire)
        for byte in frame(TEXT, STEP) + frame(BINARY, np.ones(4, "<f4").tobytes()):
            wire.send(bytes([byte]))
        assert json.loads(received(wire)[1])["step"] == 1
        assert len(received(wire)[1]) == 24


def test_silent_client_is_told_to_go(short_timeouts):
    with opened(short_timeouts, "?model=tanh", "[1,2,3,4]") as socket:
        messages, code, reason = ended(socket)
    assert (code, reason) == (1008, "body-timeout")
    assert "no complete message" in json.loads(messages[-1])["error"]["detail"]


@pytest.fixture(scope="module")
def heartbeat(repository, tmp_path_factory):
    """A service whose pings have to be answered within 2 s."""
    running = start(repository, tmp_path_factory.mktemp("heartbeat"), heartbeat_seconds=2)
    yield running
    running.stop()


def test_only_who_answers_no_ping_is_cut(heartbeat):
    """As after a pulled cable: not even the client's kernel answers."""
    with opened(heartbeat, "?model=tanh") as alive, Wire(heartbeat) as wire:  # the library answers pings
        upgraded(wire)
        assert received(wire)[0] == PING
        assert closing(wire)[0] == 1011
        assert wire.is_closed()
        alive.send("[1,2,3,4]")
        assert json.loads(alive.recv())["step"] == 1


def test_session_outlives_a_dead_connection(heartbeat):
    """The old connection is still open when the client comes back on a new one."""
    session, inputs = sessions.opened(heartbeat, "tanh"), numbers(np.random.default_rng(9), 20, 4)
    with Wire(heartbeat) as silent:
        upgraded(silent, f"?session={session}&returns=outputs")
        silent.send(frame(BINARY, inputs[:10].tobytes()))
        until(lambda: sessions.steps_done(heartbeat, session) == 10, "the steps have run")
        with opened(heartbeat, "", {"session": session, "step": 6}, inputs[5:].tobytes()) as socket:
            outputs = np.frombuffer(socket.recv(), "<f4").reshape(15, 6)
        assert received(silent)[0] == BINARY
        assert received(silent)[0] == PING
        assert closing(silent)[0] == 1011
    assert_close(outputs, expected("tanh", inputs).outputs[5:])
    assert sessions.steps_done(heartbeat, session) == 20


def test_open_websocket_has_no_header_timeout(short_timeouts):
    with (
        opened(short_timeouts, "?model=tanh") as socket,
        Wire(short_timeouts) as half_handshake,
        Wire(short_timeouts) as idle,
    ):
        half_handshake.send(b"GET /cell/stream HTTP/1.1\r\nHost: [::1]\r\nUpgrade: websocket\r\n")
        idle.send(head("GET", "/health/live"))
        assert idle.reply().status == 200

        def others_are_closed():
            socket.send("[1,2,3,4]")
            assert "outputs" in json.loads(socket.recv())
            return half_handshake.has_answer() and idle.has_answer()

        until(others_are_closed, "half a handshake and an idle connection are closed")
        assert half_handshake.rest() == idle.rest() == b""
        socket.send("[1,2,3,4]")
        assert "outputs" in json.loads(socket.recv())


@pytest.mark.parametrize(
    "headers",
    ["Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", ""],
)
def test_bad_handshake_is_refused(service, headers):
    with Wire(service) as wire:
        begin = f"GET /cell/stream HTTP/1.1\r\nHost: [::1]\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
        wire.send((begin.rstrip() + "\r\n\r\n").encode())
        assert wire.reply().status in (400, 426)


def steps_of(messages):
    """The numbers in text answers."""
    return [json.loads(line).get("step") for text in messages for line in text.splitlines()]


def test_stop_tells_streams_to_come_back(launch):
    """One that is idle, one that waits for its answers, and one that never pauses."""
    service = launch()
    with (
        opened(service, "?model=tanh", "[1,2,3,4]") as idle,
        opened(service, "?model=tanh") as busy,
        opened(service, "?model=tanh", *["[1,2,3,4]\n" * 1024] * 20) as never_pauses,
    ):
        idle.recv()
        busy.send("\n".join(["[1,2,3,4]"] * 5000))
        first, one = busy.recv(), never_pauses.recv()
        service.signal_to_stop()
        for socket, begun in ((busy, first), (never_pauses, one)):
            (*messages, _), code, reason = ended(socket)
            assert (code, reason) == (1012, "service-draining")
            steps = steps_of([begun, *messages])
            assert steps == list(range(1, len(steps) + 1))
            assert len(steps) == 5000 or socket is never_pauses
        assert ended(idle)[1:] == (1012, "service-draining")
    service.check_ended()


@pytest.mark.parametrize("goodbye", ["close", "reset"])
def test_client_that_hangs_up_leaves_nothing(service, goodbye):
    with memory_returns(service):
        wires = [upgraded(Wire(service)) for _ in range(50)]
        for wire in wires:
            wire.send(frame(BINARY, bytes(16 * 4096)))
        for wire in wires:
            wire.reset() if goodbye == "reset" else wire.close()
        connections_close(service)
