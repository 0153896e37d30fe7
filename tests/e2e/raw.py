"""HTTP over a plain socket, for what no ordinary client does."""

import json
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .formats import NDJSON
from .running import ANSWER_SECONDS, Service


@dataclass
class Reply:
    """One reply; `body` is whole and without chunk framing."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def head(method: str, path: str, headers: Mapping[str, Any] | None = None, version: str = "1.1") -> bytes:
    """A request line and headers, and the empty line after them."""
    lines = [f"{method} {path} HTTP/{version}", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def post(path: str, body: bytes, headers: Mapping[str, Any] | None = None, version: str = "1.1") -> bytes:
    """A whole POST request."""
    return head("POST", path, {"Content-Length": len(body)} | dict(headers or {}), version) + body


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream_head(path: str = "/cell/step", **headers: str) -> bytes:
    """What opens a stream of steps."""
    fields = {"Content-Type": NDJSON, "Transfer-Encoding": "chunked"} | headers
    return head("POST", path, fields)


class Wire:
    """One connection. Reading raises ConnectionError where the service closed it, TimeoutError where it is silent."""

    def __init__(self, service: Service, *, seconds: float = ANSWER_SECONDS, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(seconds)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.socket.connect(("127.0.0.1", service.port))
        except OSError:
            self.socket.close()
            raise
        self._rest = b""

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """The client's own port."""
        return int(self.socket.getsockname()[1])

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def line(self) -> bytes:
        """Up to the next newline, without it and its carriage return."""
        while b"\n" not in self._rest:
            self._more()
        line, self._rest = self._rest.split(b"\n", 1)
        return line.removesuffix(b"\r")

    def exactly(self, count: int) -> bytes:
        while len(self._rest) < count:
            self._more()
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def status_and_headers(self) -> tuple[int, dict[str, str]]:
        status = int(self.line().split()[1])
        headers = {}
        while line := self.line():
            name, value = line.decode("latin-1").split(":", 1)
            headers[name.lower()] = value.strip()
        return status, headers

    def chunk(self) -> bytes:
        """The next chunk of a chunked reply; empty at its end."""
        data = self.exactly(int(self.line(), 16))
        self.exactly(2)
        return data

    def reply(self) -> Reply:
        status, headers = self.status_and_headers()
        if status == 100:
            status, headers = self.status_and_headers()
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(iter(self.chunk, b""))
        elif "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        else:
            body = self.rest()
        return Reply(status, headers, body)

    def rest(self) -> bytes:
        """Everything until the service closes the connection."""
        try:
            while True:
                self._more()
        except ConnectionError:
            data, self._rest = self._rest, b""
            return data

    def is_closed(self) -> bool:
        """Whether the service has closed the connection; waits as long as the socket does."""
        try:
            self.rest()
        except TimeoutError:
            return False
        return True

    def has_answer(self) -> bool:
        """Whether bytes, or the end of the connection, wait to be read."""
        return bool(self._rest or select.select([self.socket], [], [], 0)[0])

    def _more(self) -> None:
        data = self.socket.recv(2**16)
        if not data:
            raise ConnectionError("the service closed the connection")
        self._rest += data
