"""A client of the service, and the lines that the check prints. Needs the standard library alone."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

from container_engine import CheckFailed, Container, Engine

READY_SECONDS = 120


def expect(what: str, got: object, expected: object) -> None:
    """Print a line if the two are equal. Raises CheckFailed if not."""
    if got != expected:
        raise CheckFailed(f"{what}: expected {expected!r}, and got {got!r:.400}")
    print(f"ok    {what}: {str(got)[:100] or 'nothing'}", flush=True)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Client:
    """Calls the service, without the proxies of the environment."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._opener = build_opener(ProxyHandler({}))

    def status(self, path: str) -> int:
        """Status of a GET; 0 if nobody answers."""
        try:
            with self._opener.open(self._url + path, timeout=10) as reply:
                return int(reply.status)
        except HTTPError as error:
            return error.code
        except OSError:
            return 0

    def text(self, path: str) -> str:
        """The reply to a GET."""
        with self._opener.open(self._url + path, timeout=30) as reply:
            return str(reply.read().decode())

    def json(self, path: str, body: object = None) -> Any:
        """The reply to a GET, or to a POST of a body."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data, {"content-type": "application/json"})
        with self._opener.open(request, timeout=30) as reply:
            return json.load(reply)


@contextmanager
def started(
    engine: Engine, settings: Mapping[str, str], *, sessions: str = "", on_host_network: bool = False
) -> Iterator[tuple[Container, Client]]:
    """A ready container and its client; the container is removed at the end, and its log printed on failure."""
    port = free_port()
    container = engine.start(port, settings, sessions=sessions, on_host_network=on_host_network)
    client = Client(port)
    try:
        await_ready(container, client)
        yield container, client
    except (CheckFailed, subprocess.SubprocessError, OSError):
        print(container.log(), file=sys.stderr)
        raise
    finally:
        container.remove()


def await_ready(container: Container, client: Client) -> None:
    """Return when the service is ready. Raises CheckFailed if it ends or takes too long."""
    began = time.monotonic()
    while client.status("/health/ready") != 200:
        if not container.running or time.monotonic() - began > READY_SECONDS:
            raise CheckFailed(f"expected the service to get ready within {READY_SECONDS} s; it ended, or took longer")
        time.sleep(0.1)
    print(f"ok    ready after {time.monotonic() - began:.1f} s", flush=True)
