"""Sending replies by ASGI: whole ones, and those whose lines are sent as they come."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.types import Send

from service.api.bodies import Incoming
from service.api.negotiation import NDJSON
from service.api.request import Reply, Request

READ_TO_THE_END_BYTES = 256 * 1024  # the rest of a smaller body is read sooner than a new connection is made

_LINE_HEADERS = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


async def send_whole(request: Request, reply: Reply, send: Send, incoming: Incoming | None = None) -> None:
    """Send a reply without lines, and a last word to a client that is still sending."""
    body: Any = reply.body
    pieces: Sequence[bytes | memoryview] = [body] if isinstance(body, bytes) else body
    size = sum(map(len, pieces))
    request.status, request.sent_bytes = reply.status, size
    headers = [
        (b"content-type", reply.media_type),
        (b"content-length", str(size).encode()),
        (b"x-request-id", request.request_id.encode()),
        *reply.headers,
        *request.cors,
    ]
    declared = request.declared_bytes
    interrupts = incoming is not None and not incoming.complete
    closes = "close" in request.header(b"connection").lower()
    interrupts = interrupts and (closes or not 0 < declared <= READ_TO_THE_END_BYTES)
    interrupts = interrupts and (declared > 0 or b"transfer-encoding" in request.headers)
    if interrupts:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        if index:  # a client that reads as quickly as we send would have the event loop for itself
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": piece, "more_body": interrupts or index < last})
    if interrupts and incoming is not None:
        # Closing a connection with unread data in it resets it, and the client could lose the reply.
        await incoming.linger()
        await send({"type": "http.response.body", "body": b""})


async def send_lines(request: Request, lines: AsyncGenerator[bytes, None], send: Send) -> Exception | None:
    """Send lines as they come, and give the failure that ends them too soon, which is still to be told."""
    async with aclosing(lines):
        try:
            async for line in lines:
                await send_line(request, line, send)
        except Exception as error:
            return error
    await send_line(request, b"", send, last=True)
    return None


async def send_line(request: Request, line: bytes, send: Send, *, last: bool = False) -> None:
    """Send a line, or several, of a reply that begins with the first one."""
    if not request.status:
        request.status = 200
        headers = [*_LINE_HEADERS, (b"x-request-id", request.request_id.encode()), *request.cors]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
    request.sent_bytes += len(line)
    await send({"type": "http.response.body", "body": line, "more_body": not last})
