"""What has to stay true while somebody misbehaves: the others are served, and memory comes back."""

import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .raw import Wire
from .running import Service, until

OK = {"model": "tanh", "inputs": [[1, 2, 3, 4]]}
RSS_TOLERANCE_MIB = 64

# Far beyond the limits of the impatient service, all of them 1 or 2 s, and far below the default ones.
PATIENCE = 9.0


@contextmanager
def others_are_served(service: Service) -> Iterator[Callable[[], int]]:
    """Another client calls all the while, and gets its answers; gives how many it has got."""
    over = threading.Event()
    failures: list[str] = []
    answered = 0

    def call() -> None:
        nonlocal answered
        with service.client() as client:
            while not over.is_set():
                try:
                    reply = client.post("/rnn/forward", json=OK)
                except Exception as error:  # told below, in the test's own thread
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
        until(lambda: answered > before or failures, "the other client is served again")
    finally:
        over.set()
        thread.join(60)
    assert not failures, failures[:3]


@contextmanager
def memory_returns(service: Service) -> Iterator[None]:
    """The process ends up with about the memory that it had."""
    service.post("/rnn/forward", OK)
    before = service.rss_mib
    yield
    until(
        lambda: service.rss_mib < before + RSS_TOLERANCE_MIB,
        f"memory is back at {before:.0f} MiB + {RSS_TOLERANCE_MIB}, from {service.rss_mib:.0f}",
    )


def all_gone(service: Service) -> None:
    """Wait until the service holds no connection any more."""
    until(lambda: service.connections == 0, f"no connection is left of {service.connections}", 30)


def dropped(wire: Wire, piece: bytes = b"", every: float = 0.1, seconds: float = PATIENCE) -> bytes:
    """Send a piece again and again until the service cuts the connection; gives what it said before."""
    said = b""
    deadline = time.monotonic() + seconds
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
    raise AssertionError(f"the connection is still open after {seconds} s; the service said {said[:300]!r}")


def flooded(wire: Wire, piece: bytes) -> bytes:
    """The same, as fast as the service takes it."""
    return dropped(wire, piece, every=0.001)
