"""Refusing requests from their heads alone: what it may cost, and for how long a refused connection is left alone."""

import asyncio
from typing import Protocol

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

Refusal = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of a reply."""

REFUSAL_SECONDS = 40e-6
FORGET_BYTES_PER_SECOND = 5e9
"""What a refusal, and taking its body in to no purpose, counts for: about what they take."""

MOST_OF_THE_TIME = 0.5
"""The part of all time that refusals may take before refused connections are left alone: the rest is for what was
accepted."""

AHEAD_SECONDS = 0.02
"""How far refusals may be ahead of their part of the time: arrivals come in bursts."""

MOST_PAUSE_SECONDS = 1.0
"""As Retry-After asks of them."""


class Refuses(Protocol):
    """What an application knows of requests for which there is no room; `api.gateway.Gateway` is one."""

    @property
    def crowded(self) -> bool:
        """Whether it is worth asking: while this is false, hardly any request is refused."""

    def refuse(self, path: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Refusal | None:
        """The reply to a POST for which there is no room; None if it has to begin: its place is kept for a moment."""


class Refusals:
    """What all refusals of the process have taken, as a clock that their costs move on."""

    def __init__(self) -> None:
        self._paid_until = 0.0

    def pause(self, body_bytes: int, flow: FlowControl, transport: asyncio.Transport) -> None:
        """Leave a connection alone that was refused a body of so many bytes, if refusals take too much of the time."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        cost = REFUSAL_SECONDS + body_bytes / FORGET_BYTES_PER_SECOND
        self._paid_until = max(self._paid_until, now) + cost / MOST_OF_THE_TIME
        wait = self._paid_until - now
        if wait > AHEAD_SECONDS:
            flow.pause_reading()
            loop.call_later(min(wait, MOST_PAUSE_SECONDS), _resume, flow, transport)


def _resume(flow: FlowControl, transport: asyncio.Transport) -> None:
    if not transport.is_closing():
        flow.resume_reading()


def spelt(refusal: Refusal, default_lines: bytes) -> bytes:
    """The reply as it is sent."""
    status, headers, body = refusal
    lines = (b"%b: %b\r\n" % line for line in headers)
    return b"".join((STATUS_LINE[status], default_lines, *lines, b"content-length: %d\r\n\r\n" % len(body), body))
