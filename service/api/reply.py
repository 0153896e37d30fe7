"""Sending a reply: headers, compression, and a last word to a client that is still sending."""

import asyncio
import sys
import zlib
from collections.abc import Sequence

from service.api.exchange import Exchange
from service.api.negotiation import reply_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Headers = list[tuple[bytes, bytes]]

Pieces = Sequence[bytes | memoryview]
Body = bytes | Pieces
"""A reply's bytes, whole or in pieces, each of which is handed on when the client has taken most of those before."""

COMPRESS_FROM_BYTES = 1024
COMPRESS_ELSEWHERE_FROM_BYTES = 32 * 1024
GZIP_LEVEL = 4
LINGER_SECONDS = 2.0
READ_TO_THE_END_BYTES = 256 * 1024


async def send_reply(
    exchange: Exchange, status: int, media_type: bytes, body: Body, headers: Headers | None = None
) -> None:
    """Send a whole reply, compressed if the client takes that and it is worth it."""
    extra = list(headers) if headers else []
    encoding = None
    pieces: Pieces = [body] if isinstance(body, bytes) else body
    size = sum(map(len, pieces))
    if size >= COMPRESS_FROM_BYTES:
        encoding = reply_encoding(exchange.header(b"accept-encoding"))
        extra.append((b"vary", b"accept-encoding"))
    if encoding:
        # Compression releases the GIL; a small body is done before another thread has woken up.
        elsewhere = size >= COMPRESS_ELSEWHERE_FROM_BYTES
        packed = await asyncio.to_thread(_compress, pieces, encoding) if elsewhere else _compress(pieces, encoding)
        pieces, size = [packed], len(packed)
        extra.append((b"content-encoding", encoding.encode()))
    sends = status >= 400 and (exchange.declared_bytes or b"transfer-encoding" in exchange.headers)
    interrupts = sends and not exchange.received_all and exchange.whole is None
    # The rest of a small body is read sooner than a new connection is made.
    if interrupts and not 0 < exchange.declared_bytes <= READ_TO_THE_END_BYTES:
        extra.append((b"connection", b"close"))
    exchange.status, exchange.sent_bytes = status, size
    whole = exchange.whole
    if whole is not None and len(pieces) == 1:
        head = _spelt(media_type, size, exchange.request_id, extra)
        if whole.reply(status, head, pieces[0]):
            return
    await exchange.send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type),
                (b"content-length", str(size).encode()),
                (b"x-request-id", exchange.request_id.encode()),
                *extra,
            ],
        }
    )
    last = len(pieces) - 1
    for index, piece in enumerate(pieces):
        more = interrupts or index < last
        await exchange.send({"type": "http.response.body", "body": piece, "more_body": more})
    if interrupts:
        # Closing a connection with unread data in it resets it, and the client could lose the reply that says why.
        await linger(exchange)
        await exchange.send({"type": "http.response.body", "body": b""})


def spelt_reply(media_type: bytes, body: bytes, request_id: str, accept_encoding: bytes) -> tuple[bytes, int]:
    """The header lines and the body of what `send_reply` would send, and the size of that body; for small ones."""
    extra: Headers = []
    if len(body) >= COMPRESS_FROM_BYTES:
        encoding = reply_encoding(accept_encoding.decode("latin-1"))
        extra.append((b"vary", b"accept-encoding"))
        if encoding:
            body = _compress([body], encoding)
            extra.append((b"content-encoding", encoding.encode()))
    return b"%b\r\n%b" % (_spelt(media_type, len(body), request_id, extra), body), len(body)


def _spelt(media_type: bytes, size: int, request_id: str, extra: Headers) -> bytes:
    lines = b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n" % (media_type, size, request_id.encode())
    return b"".join((lines, *(b"%b: %b\r\n" % line for line in extra))) if extra else lines


async def linger(exchange: Exchange) -> None:
    """Read on for a moment, to no purpose, if the client is still sending."""
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while not exchange.received_all:
                message = await exchange.receive()
                gone = message["type"] == "http.disconnect"
                exchange.received_all = gone or not message.get("more_body", False)
    except TimeoutError:
        pass


def _compress(pieces: Pieces, encoding: str) -> bytes:
    packer = zstd.ZstdCompressor() if encoding == "zstd" else zlib.compressobj(GZIP_LEVEL, wbits=31)
    return b"".join([*map(packer.compress, pieces), packer.flush()])
