"""WebSockets of clients that are gone, slow or hostile, and the end of the process: each is told why."""

import json
import time

import numpy as np
import pytest

from tests.reference import numbers

from .models import expected
from .raw import Wire
from .running import until
from .sockets import BINARY, CLOSE, PING, PONG, TEXT, closing, ended, frame, opened, received, upgraded
from .watching import memory_returns, others_are_served

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
def test_what_no_client_should_send_closes_the_connection_with_a_code(service, sent, code):
    with others_are_served(service), memory_returns(service), Wire(service) as wire:
        upgraded(wire)
        wire.send(frame(TEXT, STEP))
        assert json.loads(received(wire)[1])["step"] == 1
        wire.send(sent)
        assert closing(wire)[0] == code
        assert wire.is_closed()


def test_a_message_may_come_in_fragments_with_pings_between(service):
    with Wire(service) as wire:
        upgraded(wire)
        for index, piece in enumerate((b"[1,", b"", b"2,3", b",4]")):
            wire.send(frame(0 if index else TEXT, piece, fin=index == 3))
            if index < 3:
                wire.send(frame(PING, b"%d" % index))
                assert received(wire) == (PONG, b"%d" % index)
        assert json.loads(received(wire)[1])["step"] == 1


def test_a_frame_may_come_byte_by_byte(service):
    with Wire(service) as wire:
        upgraded(wire)
        for byte in frame(TEXT, STEP) + frame(BINARY, np.ones(4, "<f4").tobytes()):
            wire.send(bytes([byte]))
        assert json.loads(received(wire)[1])["step"] == 1
        assert len(received(wire)[1]) == 24


def test_thousands_of_small_frames_at_once(service):
    inputs = numbers(np.random.default_rng(8), 5000, 4)
    with others_are_served(service), Wire(service) as wire:
        upgraded(wire)
        wire.send(b"".join(frame(BINARY, row.tobytes()) for row in inputs))
        answers = b"".join(received(wire)[1] for _ in inputs)
    outputs = np.frombuffer(answers, "<f4").reshape(5000, 6)
    np.testing.assert_allclose(outputs, expected("tanh", inputs).outputs, atol=1e-5, rtol=0)


def never_reading(service, piece):
    """A connection that sends until the service takes no more, or has enough."""
    wire = Wire(service, receive_buffer=4096, seconds=0.5)
    upgraded(wire)
    try:
        for _ in range(5000):
            wire.send(piece)
    except (TimeoutError, ConnectionError):
        return wire
    raise AssertionError("all was taken, and no answer read")


@pytest.mark.parametrize(
    "piece", [frame(BINARY, bytes(16 * 512)), frame(TEXT, (STEP + b"\n") * 500), frame(PING, b"x" * 125) * 200]
)
def test_a_client_that_never_reads_is_cut_off_and_costs_no_memory(impatient, piece):
    with others_are_served(impatient), memory_returns(impatient):
        before = impatient.rss_mib
        wire = never_reading(impatient, piece)
        assert impatient.rss_mib < before + 64
        until(lambda: "reader_too_slow" in impatient.log(), "the service has noticed", 20)
        wire.socket.settimeout(10)
        assert wire.is_closed()
        wire.close()


def test_a_silent_client_is_told_to_go(impatient):
    with opened(impatient, "?model=tanh", "[1,2,3,4]") as socket:
        messages, code, reason = ended(socket)
    assert (code, reason) == (1008, "body-timeout")
    assert "no complete message" in json.loads(messages[-1])["error"]["detail"]


def test_a_client_that_does_not_answer_pings_is_gone(launch):
    """As one whose cable was pulled: its kernel says nothing, and neither does it."""
    service = launch(heartbeat_seconds=0.5)
    with Wire(service) as wire:
        upgraded(wire)
        assert received(wire)[0] == PING
        assert closing(wire)[0] == 1011
        assert wire.is_closed()
    with opened(service, "?model=tanh") as socket:  # the library answers
        time.sleep(2)
        socket.send("[1,2,3,4]")
        assert json.loads(socket.recv(timeout=20))["step"] == 1


def test_a_handshake_does_not_stop_the_clock_for_headers(impatient):
    with Wire(impatient) as wire:
        wire.send(b"GET /cell/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n")
        assert wire.is_closed()


def test_a_websocket_outlives_the_clock_for_headers(launch):
    service = launch(header_timeout_seconds=1, keep_alive_seconds=1)
    with opened(service, "?model=tanh") as socket:
        for step in range(1, 4):
            time.sleep(1)
            socket.send("[1,2,3,4]")
            assert json.loads(socket.recv(timeout=20))["step"] == step


@pytest.mark.parametrize(
    "headers",
    ["Sec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", ""],
)
def test_a_bad_handshake_is_refused(service, headers):
    with Wire(service) as wire:
        head = f"GET /cell/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
        wire.send((head.rstrip() + "\r\n\r\n").encode())
        assert wire.reply().status in (400, 426)


def test_streams_are_told_to_come_back_when_the_process_goes_down(launch):
    service = launch()
    with opened(service, "?model=tanh", "[1,2,3,4]") as idle, opened(service, "?model=tanh") as busy:
        idle.recv(timeout=20)
        busy.send("\n".join(["[1,2,3,4]"] * 5000))
        first = busy.recv(timeout=20)
        service.signal_to_stop()
        messages, code, reason = ended(busy)
        assert (code, reason) == (1012, "service-draining")
        steps = [json.loads(line)["step"] for text in (first, *messages[:-1]) for line in text.splitlines()]
        assert steps == list(range(1, 5001))
        assert ended(idle)[1:] == (1012, "service-draining")
    service.check_ended()


def test_a_stream_that_never_pauses_is_told_as_well(launch):
    service = launch()
    with opened(service, "?model=tanh", *["[1,2,3,4]\n" * 1024] * 20) as socket:
        answered = socket.recv(timeout=20).count("\n")
        service.signal_to_stop()
        messages, code, _ = ended(socket)
    steps = [json.loads(line).get("step") for text in messages for line in text.splitlines()]
    assert code == 1012
    assert steps[:-1] == list(range(answered + 1, answered + len(steps)))
    service.check_ended()


@pytest.mark.parametrize("goodbye", ["close", "reset"])
def test_a_client_that_hangs_up_leaves_nothing_behind(service, goodbye):
    with memory_returns(service):
        wires = [upgraded(Wire(service)) for _ in range(50)]
        for wire in wires:
            wire.send(frame(BINARY, bytes(16 * 4096)))
        for wire in wires:
            wire.reset() if goodbye == "reset" else wire.close()
        until(lambda: service.connections <= 1, "the connections are gone")
