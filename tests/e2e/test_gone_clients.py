"""Clients that hang up, never read, or stay idle."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from .raw import Wire, chunk, head, post, stream_head
from .running import until
from .watching import RSS_TOLERANCE_MIB, connections_close, memory_returns, others_are_served

LONG = json.dumps({"model": "tanh", "inputs": [[0.1, 0.2, 0.3, 0.4]] * 60_000, "returns": ["outputs"]}).encode()


@pytest.fixture(params=["close", "reset"])
def hang_up(request):
    return {"close": Wire.close, "reset": Wire.reset}[request.param]


def mid_headers(service):
    for cut in range(1, 40, 4):
        wire = Wire(service)
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 10})[:cut])
        yield wire


def mid_body(service):
    for path in ("/rnn/forward", "/cell/step", "/nothing"):
        for headers in ({"Content-Length": 10**7}, {"Transfer-Encoding": "chunked"}):
            for _ in range(3):
                wire = Wire(service)
                wire.send(head("POST", path, headers))
                wire.send(chunk(LONG[:100_000]) if "Transfer-Encoding" in headers else LONG[:100_000])
                yield wire


def mid_compressed_body(service):
    wire = Wire(service)
    wire.send(head("POST", "/rnn/forward", {"Content-Length": 1000, "Content-Encoding": "gzip"}) + b"\x1f\x8b\x08")
    yield wire


def mid_stream(service):
    for burst in (1, 3000):
        wire = Wire(service)
        wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
        assert wire.status_and_headers()[0] == 200
        assert json.loads(wire.chunk())["step"] == 1
        wire.send(chunk(b"[1,2,3,4]\n" * burst))
        yield wire


def before_and_during_reply(service):
    for read in (0, 1000):
        wire = Wire(service, receive_buffer=4096)
        wire.send(post("/rnn/forward", LONG))
        wire.exactly(read)
        yield wire


@pytest.mark.parametrize("clients", [mid_headers, mid_body, mid_compressed_body, mid_stream, before_and_during_reply])
def test_client_that_hangs_up_leaves_nothing(short_timeouts, clients, hang_up):
    with memory_returns(short_timeouts), others_are_served(short_timeouts):
        for wire in clients(short_timeouts):
            hang_up(wire)
        connections_close(short_timeouts, left=1)


def test_hanging_up_is_logged_as_499(short_timeouts):
    """And is no error: the log is searched for errors when the service ends."""
    with Wire(short_timeouts) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 10**6, "X-Request-Id": "hung-up"}) + b"{")
    (entry,) = until(lambda: short_timeouts.logged("hung-up"), "the log line")
    assert entry["status"] == 499


def unsent(service, port):
    """Bytes in the kernel's send buffer for a client that does not read."""
    addresses = f"{service.port:04X}", f"{port:04X}"
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, _, queues = line.split()[1:5]
        if (local.split(":")[1], remote.split(":")[1]) == addresses:
            return int(queues.split(":")[0], 16)
    return 0


def never_reads_a_large_reply(service):
    wire = Wire(service, receive_buffer=4096)
    wire.send(post("/rnn/forward", LONG))
    return wire


def never_reads_with_connection_close(service):
    wire = Wire(service, receive_buffer=4096)
    wire.send(post("/rnn/forward", LONG, {"Connection": "close"}))
    return wire


def never_reads_a_stream(service):
    wire = Wire(service, receive_buffer=4096, seconds=0.2)
    wire.send(stream_head("/cell/step?model=tanh"))
    try:
        for _ in range(2000):
            wire.send(chunk(b"[1,2,3,4]\n" * 1000))
    except TimeoutError:  # the service stops reading too, and so does not collect answers
        return wire
    raise AssertionError("20 MB of lines were taken, and no answer read")


def never_reads_a_little_too_much(service):
    """Fill the kernel's buffers with small replies, so that less than a high-water mark of the last one is left."""
    wire = Wire(service, receive_buffer=4096)
    body = json.dumps({"model": "tanh", "inputs": [[0.1, 0.2, 0.3, 0.4]] * 500, "returns": ["outputs"]}).encode()
    reply_bytes = 36_000
    full = 0
    for index in range(300):
        request_id = f"unread-{wire.port}-{index}"
        wire.send(post("/rnn/forward", body, {"X-Request-Id": request_id}))
        until(lambda name=request_id: name in service.log(), "the reply is written", every=0.005)
        queued = unsent(service, wire.port)
        if index > 3 and queued < full + reply_bytes // 2:
            return wire
        full = queued
    raise AssertionError(f"the kernel took {full} bytes and was not full")


NEVER_READ = [
    never_reads_a_large_reply,
    never_reads_with_connection_close,
    never_reads_a_stream,
    never_reads_a_little_too_much,
]


def test_only_too_slow_readers_are_cut(short_timeouts):
    """A client that reads a hundred times the lowest rate gets its whole reply; those that never read are cut."""
    service = short_timeouts
    with (
        memory_returns(service),
        others_are_served(service),
        ThreadPoolExecutor(len(NEVER_READ)) as pool,
        ExitStack() as stack,
    ):
        wires = [stack.enter_context(wire) for wire in pool.map(lambda client: client(service), NEVER_READ)]
        slow = stack.enter_context(Wire(service, receive_buffer=4096))
        slow.send(post("/rnn/forward", LONG))
        status, headers = slow.status_and_headers()
        left = int(headers["content-length"])

        def all_are_cut():
            nonlocal left
            left -= len(slow.exactly(min(10_000, left // 2)))
            return not any(service.holds(wire.port) for wire in wires)

        until(all_are_cut, "the clients that do not read are cut", every=0.1)
        assert status == 200
        assert len(slow.exactly(left)) == left


def test_idle_connections_are_dropped(short_timeouts):
    service = short_timeouts
    with memory_returns(service), others_are_served(service), ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(Wire(service))
        assert service.get("/health/ready").status_code == 200
        connections_close(service, left=1)
    connections_close(service)


def test_pipelining_without_reading(service):
    """It is not read either."""
    many, sent = post("/cell/step", b'{"model":"tanh","inputs":[1,2,3,4]}') * 1000, 0
    before = service.rss_mib
    with Wire(service, seconds=1) as wire:
        with suppress(TimeoutError):
            while sent < 64 * 2**20:
                sent += wire.socket.send(many)
        assert sent < 64 * 2**20
        assert service.rss_mib < before + RSS_TOLERANCE_MIB
    connections_close(service)
