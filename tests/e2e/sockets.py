"""WebSocket clients: the library's, and frames over a plain socket for what no ordinary client does."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from .raw import Wire
from .running import ANSWER_SECONDS, Service

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Socket(ClientConnection):
    """A connection that waits for a message as long as a busy machine may take."""

    def recv(self, timeout: float | None = ANSWER_SECONDS, decode: bool | None = None) -> str | bytes:
        return super().recv(timeout, decode)


@contextmanager
def opened(service: Service, query: str = "", *messages: str | bytes | dict, **options) -> Iterator[Socket]:
    """A connection to /cell/stream, with messages sent."""
    options = {"proxy": None, "compression": None, "open_timeout": ANSWER_SECONDS, "max_size": None} | options
    options["create_connection"] = Socket
    with connect(f"ws://127.0.0.1:{service.port}/cell/stream{query}", **options) as socket:
        for message in messages:
            socket.send(json.dumps(message) if isinstance(message, dict) else message)
        yield socket


def ended(socket: Socket) -> tuple[list[str | bytes], int, str]:
    """All that is still to come: messages, and the close's code and reason."""
    messages: list[str | bytes] = []

    def read() -> None:
        while True:
            messages.append(socket.recv())

    with pytest.raises(ConnectionClosed) as over:
        read()
    assert over.value.rcvd is not None, f"the connection ended without a close frame, after {messages}"
    return messages, over.value.rcvd.code, over.value.rcvd.reason


def frame(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame."""
    mask = b"\x37\xfa\x21\x3d"
    if len(data) < 126:
        length = struct.pack("!B", 0x80 | len(data))
    elif len(data) < 2**16:
        length = struct.pack("!BH", 0x80 | 126, len(data))
    else:
        length = struct.pack("!BQ", 0x80 | 127, len(data))
    pattern = mask * (len(data) // 4 + 1)
    masked = bytes(byte ^ key for byte, key in zip(data, pattern, strict=False))
    return struct.pack("!B", 0x80 * fin | opcode) + length + mask + masked


def upgraded(wire: Wire, query: str = "?model=tanh") -> Wire:
    """The same wire, after the handshake."""
    wire.send(
        f"GET /cell/stream{query} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    status, headers = wire.status_and_headers()
    assert (status, headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
    return wire


def received(wire: Wire) -> tuple[int, bytes]:
    """The service's next frame: opcode and data."""
    first, second = wire.exactly(2)
    length = second & 0x7F
    if length == 126:
        length = int.from_bytes(wire.exactly(2), "big")
    elif length == 127:
        length = int.from_bytes(wire.exactly(8), "big")
    return first & 0x0F, wire.exactly(length)


def closing(wire: Wire) -> tuple[int, str]:
    """Code and reason of the close that comes next, pings and answers aside."""
    while True:
        opcode, data = received(wire)
        if opcode == CLOSE:
            return int.from_bytes(data[:2], "big"), data[2:].decode()
