"""Refusing a request from its head alone, and leaving its connection alone for a while."""

import asyncio

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

Refusal = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of a reply."""

READ_AND_FORGET_BYTES = 256 * 1024
"""Bodies of refused requests up to this are read to no purpose: a new connection would cost more, and most of them have
been read with the head. Larger ones are refused by the application, which closes the connection."""

REFUSAL_SECONDS = 0.1e-3
FORGET_BYTES_PER_SECOND = 1.2e9
"""What a refusal, and what reading its body to no purpose, counts for: about what they take. Where refusals
count for more than all of the time, refused connections are not read for a while: their clients try again at once."""

MOST_PAUSE_SECONDS = 1.0
"""As Retry-After asks of them."""


class Refusals:
    """How many connections of the process are not read at the moment, since they were refused something."""

    def __init__(self) -> None:
        self.paused = 0

    def pause(self, body_bytes: int, flow: FlowControl, transport: asyncio.Transport) -> None:
        """Leave a connection alone that was refused a body of so many bytes: the longer, the more of them there are."""
        cost = REFUSAL_SECONDS + body_bytes / FORGET_BYTES_PER_SECOND
        pause = min((self.paused + 1) * cost, MOST_PAUSE_SECONDS)
        self.paused += 1
        flow.pause_reading()
        asyncio.get_running_loop().call_later(pause, self._resume, flow, transport)

    def _resume(self, flow: FlowControl, transport: asyncio.Transport) -> None:
        self.paused -= 1
        if not transport.is_closing():
            flow.resume_reading()


def forgettable(cycle: RequestResponseCycle) -> bool:
    """Whether the connection can be used after a reply ahead of the request's body, and is worth reading that."""
    return (
        cycle.keep_alive and not cycle.waiting_for_100_continue and 0 <= declared_bytes(cycle) <= READ_AND_FORGET_BYTES
    )


def declared_bytes(cycle: RequestResponseCycle) -> int:
    """Content-Length; -1 without."""
    length = next((value for name, value in cycle.scope["headers"] if name == b"content-length"), b"")
    return int(length) if length.isdigit() else -1


def spelt_refusal(refusal: Refusal, default_lines: bytes) -> tuple[bytes, bytes]:
    """Head and body of the reply, as they are sent."""
    status, headers, body = refusal
    lines = (b"%b: %b\r\n" % line for line in (*headers, (b"content-length", b"%d" % len(body))))
    return b"".join((STATUS_LINE[status], default_lines, *lines, b"\r\n")), body
