"""Bad clients, part two: those that hang up, never read, or just sit there."""

import json
import resource
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .raw import Wire, chunk, head, post, stream_head
from .running import until
from .watching import all_gone, memory_returns, others_are_served

LONG = json.dumps({"model": "tanh", "inputs": [[0.1, 0.2, 0.3, 0.4]] * 60_000, "returns": ["outputs"]}).encode()


def hang_up(wire, how):
    wire.reset() if how == "reset" else wire.close()


@pytest.fixture(params=["close", "reset"])
def how(request):
    return request.param


def test_hanging_up_mid_headers(impatient, how):
    with others_are_served(impatient):
        for cut in range(1, 40, 4):
            wire = Wire(impatient)
            wire.send(head("POST", "/rnn/forward", {"Content-Length": 10})[:cut])
            hang_up(wire, how)
        all_but_one_gone(impatient)


@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step", "/nothing"])
@pytest.mark.parametrize("headers", [{"Content-Length": 10**7}, {"Transfer-Encoding": "chunked"}])
def test_hanging_up_mid_body(impatient, path, headers, how):
    with memory_returns(impatient), others_are_served(impatient):
        for _ in range(5):
            wire = Wire(impatient)
            wire.send(head("POST", path, headers))
            wire.send(chunk(LONG[:100_000]) if "Transfer-Encoding" in headers else LONG[:100_000])
            hang_up(wire, how)
        all_but_one_gone(impatient)


def test_hanging_up_mid_compressed_body(impatient, how):
    with others_are_served(impatient):
        wire = Wire(impatient)
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 1000, "Content-Encoding": "gzip"}) + b"\x1f\x8b\x08")
        hang_up(wire, how)
        all_but_one_gone(impatient)


def test_hanging_up_mid_stream(impatient, how):
    with others_are_served(impatient):
        for burst in (1, 3000):
            wire = Wire(impatient)
            wire.send(stream_head("/cell/step?model=tanh") + chunk(b"[1,2,3,4]\n"))
            assert wire.status_and_headers()[0] == 200
            assert json.loads(wire.chunk())["step"] == 1
            wire.send(chunk(b"[1,2,3,4]\n" * burst))
            hang_up(wire, how)
        all_but_one_gone(impatient)


def test_hanging_up_before_and_during_the_reply(impatient, how):
    with memory_returns(impatient), others_are_served(impatient):
        for read in (0, 1000):
            wire = Wire(impatient, receive_buffer=4096)
            wire.send(post("/rnn/forward", LONG))
            if read:
                wire.exactly(read)
            hang_up(wire, how)
        all_but_one_gone(impatient)


def test_a_client_that_hung_up_is_no_error_of_the_service(impatient):
    """499 in the log, and nothing else; the service's log is searched for errors when it ends."""
    wire = Wire(impatient)
    request = head("POST", "/rnn/forward", {"Content-Length": 10**6, "X-Request-Id": "hung-up"})
    wire.send(request + b"{")
    wire.close()
    line = until(lambda: [row for row in impatient.log().splitlines() if "hung-up" in row], "the log line")[0]
    assert json.loads(line)["status"] == 499


def all_but_one_gone(service):
    """Nothing is held but the connection of the client that is served meanwhile."""
    until(lambda: service.connections <= 1, f"no connection is left of {service.connections}")


def is_held(service, port):
    return any(held.raddr and held.raddr.port == port for held in service.process.net_connections("tcp"))


def unsent(service, port):
    """Bytes that the kernel holds for a client that does not read, on the service's side."""
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
    except TimeoutError:  # the service has stopped to read as well: it does not heap answers up
        return wire
    raise AssertionError("20 MB of lines were taken, and no answer read")


def never_reads_a_little_too_much(service):
    """Fill the kernel's buffers by small replies, so that less than a high-water mark of the last is left over."""
    wire = Wire(service, receive_buffer=4096)
    port = wire.socket.getsockname()[1]
    body = json.dumps({"model": "tanh", "inputs": [[0.1, 0.2, 0.3, 0.4]] * 500, "returns": ["outputs"]}).encode()
    reply_bytes = 36_000
    full = 0
    for index in range(300):
        request_id = f"unread-{port}-{index}"
        wire.send(post("/rnn/forward", body, {"X-Request-Id": request_id}))
        until(lambda name=request_id: name in service.log(), "the reply is written", every=0.005)
        queued = unsent(service, port)
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


def reads_slowly(service):
    """A hundred times the least rate, for longer than the service takes to look; gives whether all arrived."""
    with Wire(service, receive_buffer=4096) as wire:
        wire.send(post("/rnn/forward", LONG))
        status, headers = wire.status_and_headers()
        left = int(headers["content-length"])
        for _ in range(65):
            left -= len(wire.exactly(10_000))
            time.sleep(0.1)
        try:
            return status == 200 and len(wire.exactly(left)) == left
        except ConnectionError:
            return False


@pytest.fixture(scope="module")
def unread(impatient):
    """All of them at once, as the service looks every few seconds: who is still held, and whether the slow one was."""
    with (
        memory_returns(impatient),
        others_are_served(impatient),
        ThreadPoolExecutor(len(NEVER_READ) + 1) as pool,
    ):
        slow = pool.submit(reads_slowly, impatient)
        wires = dict(zip(NEVER_READ, pool.map(lambda client: client(impatient), NEVER_READ), strict=True))
        ports = {client: wire.socket.getsockname()[1] for client, wire in wires.items()}
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and any(is_held(impatient, port) for port in ports.values()):
            time.sleep(0.1)
        held = {client for client, port in ports.items() if is_held(impatient, port)}
        for wire in wires.values():
            wire.close()
        return held, slow.result()


@pytest.mark.parametrize("client", NEVER_READ)
def test_a_reply_that_is_never_read(unread, client):
    assert client not in unread[0], "the connection was held for 20 s"


def test_a_reply_that_is_read_slowly_arrives(unread):
    assert unread[1]


@pytest.fixture
def many_files():
    """Room for the connections of both sides."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip(f"a process may open {hard} files here, and this test needs more")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_thousand_idle_connections(many_files, launch):
    service = launch(header_timeout_seconds=3)
    with memory_returns(service), others_are_served(service):
        idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(1000)]
        until(lambda: service.connections >= 1000, "the connections are there")
        assert service.get("/health/ready").status_code == 200
        until(lambda: service.connections <= 1, "they are dropped")
        for connection in idle:
            connection.close()
    all_gone(service)
