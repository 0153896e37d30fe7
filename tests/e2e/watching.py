"""What stays true while a client misbehaves: others are served, and memory and connections are given back."""

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .raw import Wire
from .running import Service, until

OK = {"model": "tanh", "inputs": [[1, 2, 3, 4]]}
RSS_TOLERANCE_MIB = 64


@contextmanager
def others_are_served(service: Service) -> Iterator[Callable[[], int]]:
    """Another client calls all the while and gets its answers; yields a count of them."""
    over = threading.Event()
    failures: list[str] = []
    answered = 0

    def call() -> None:
        nonlocal answered
        with service.client() as client:
            while not over.is_set():
                try:
                    reply = client.post("/rnn/forward", json=OK)
                except Exception as error:  # reported below, in the test's own thread
                    failures.append(repr(error))
                    return
                if reply.status_code != 200:
                    failures.append(reply.text)
                answered += 1
                over.wait(0.02)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        until(lambda: answered or failures, "the other client is served")
        before = answered
        yield lambda: answered - before
        now = answered
        until(lambda: answered > now or failures, "the other client is served again")
    finally:
        over.set()
        thread.join()
    assert not failures, failures[:3]


@contextmanager
def memory_returns(service: Service) -> Iterator[None]:
    """The process ends up with about the memory that it had."""
    service.post("/rnn/forward", OK)
    before = service.rss_mib
    yield
    until(lambda: service.rss_mib < before + RSS_TOLERANCE_MIB, f"memory is back at about {before:.0f} MiB")


def connections_close(service: Service, left: int = 0) -> None:
    """Wait until the service holds no connection but those of others that are served."""
    until(lambda: service.connections <= left, f"at most {left} connections are open")


def dropped(wire: Wire, piece: bytes = b"", every: float = 0.1) -> bytes:
    """Send a piece again and again until the service closes the connection; return what the service sent.

    Raises AssertionError after 30 s, which is more than the short time-outs, and less than what else would end it.
    """
    said = b""
    deadline = time.monotonic() + 30
    wire.socket.settimeout(every)
    while time.monotonic() < deadline:
        try:
            if piece and select.select([], [wire.socket], [], every)[1]:
                wire.socket.send(piece)
            data = wire.socket.recv(2**16) if select.select([wire.socket], [], [], every)[0] else None
        except TimeoutError:
            continue
        except ConnectionError:
            return said
        if data == b"":
            return said
        said += data or b""
    raise AssertionError(f"the connection is still open; the service sent {said[:300]!r}")


def flooded(wire: Wire, piece: bytes) -> bytes:
    """The same, as fast as the service reads."""
    return dropped(wire, piece, every=0.001)
