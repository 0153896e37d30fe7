"""Sending a reply: headers, compression, and a last word to a client that is still sending."""

import asyncio
import sys
import zlib

from service.api.exchange import Exchange
from service.api.negotiation import reply_encoding

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Headers = list[tuple[bytes, bytes]]

COMPRESS_FROM_BYTES = 1024
COMPRESS_ELSEWHERE_FROM_BYTES = 32 * 1024
GZIP_LEVEL = 4
LINGER_SECONDS = 2.0
READ_TO_THE_END_BYTES = 2**20


async def send_reply(
    exchange: Exchange, status: int, media_type: bytes, body: bytes, headers: Headers | None = None
) -> None:
    """Send a whole reply, compressed if the client takes that and it is worth it."""
    extra = list(headers) if headers else []
    encoding = None
    if len(body) >= COMPRESS_FROM_BYTES:
        encoding = reply_encoding(exchange.header(b"accept-encoding"))
        extra.append((b"vary", b"accept-encoding"))
    if encoding:
        # Compression releases the GIL; a small body is done before another thread has woken up.
        elsewhere = len(body) >= COMPRESS_ELSEWHERE_FROM_BYTES
        body = await asyncio.to_thread(_compress, body, encoding) if elsewhere else _compress(body, encoding)
        extra.append((b"content-encoding", encoding.encode()))
    sends = status >= 400 and (exchange.declared_bytes or b"transfer-encoding" in exchange.headers)
    interrupts = sends and not exchange.received_all and exchange.whole is None
    # The rest of a small body is read sooner than a new connection is made.
    if interrupts and not 0 < exchange.declared_bytes <= READ_TO_THE_END_BYTES:
        extra.append((b"connection", b"close"))
    exchange.status, exchange.sent_bytes = status, len(body)
    if exchange.whole is not None and exchange.whole.reply(
        status, _spelt(media_type, len(body), exchange.request_id, extra), body
    ):
        return
    await exchange.send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", media_type),
                (b"content-length", str(len(body)).encode()),
                (b"x-request-id", exchange.request_id.encode()),
                *extra,
            ],
        }
    )
    if interrupts:
        await _send_to_a_sender(exchange, body)
    else:
        await exchange.send({"type": "http.response.body", "body": body})


def spelt_reply(media_type: bytes, body: bytes, request_id: str, accept_encoding: bytes) -> tuple[bytes, int]:
    """The header lines and the body of what `send_reply` would send, and the size of that body; for small ones."""
    extra: Headers = []
    if len(body) >= COMPRESS_FROM_BYTES:
        encoding = reply_encoding(accept_encoding.decode("latin-1"))
        extra.append((b"vary", b"accept-encoding"))
        if encoding:
            body = _compress(body, encoding)
            extra.append((b"content-encoding", encoding.encode()))
    return b"%b\r\n%b" % (_spelt(media_type, len(body), request_id, extra), body), len(body)


def _spelt(media_type: bytes, size: int, request_id: str, extra: Headers) -> bytes:
    lines = b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n" % (media_type, size, request_id.encode())
    return b"".join((lines, *(b"%b: %b\r\n" % line for line in extra))) if extra else lines


async def _send_to_a_sender(exchange: Exchange, body: bytes) -> None:
    """Reply before the request's body is read, and read on for a moment.

    Closing a connection with unread data in it resets it, and the client could lose the reply that says why.
    """
    await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
    await linger(exchange)
    await exchange.send({"type": "http.response.body", "body": b""})


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


def _compress(body: bytes, encoding: str) -> bytes:
    if encoding == "zstd":
        return zstd.compress(body)
    packer = zlib.compressobj(GZIP_LEVEL, wbits=31)
    return packer.compress(body) + packer.flush()
