"""Reading a request's body: decompressed, limited in size, and no slower than the service waits for."""

import asyncio
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from service.api.draining import Draining
from service.api.exchange import Exchange, Rest
from service.errors import BodyTimeout, BodyTooLarge, ClientGone, MalformedBody, ServiceDraining, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 2**20
"""Most that is decompressed at a time: a bomb is noticed after one piece too many."""

ZSTD_WINDOW_LOG = 23  # 8 MiB, the most that RFC 9659 lets an HTTP sender use


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How much and how slowly: a body may take `grace_seconds`, and beyond that its bytes at `min_bytes_per_second`."""

    max_bytes: int
    grace_seconds: float
    min_bytes_per_second: float
    draining: Draining = field(default_factory=Draining)


async def read_body(exchange: Exchange, limits: BodyLimits) -> bytes:
    """The whole body, decompressed. Raises BodyTooLarge, BodyTimeout, ServiceDraining, or as `decompressed` does."""
    if exchange.declared_bytes > limits.max_bytes:
        raise BodyTooLarge(f"the body has {exchange.declared_bytes} bytes; the limit is {limits.max_bytes}")
    if (whole := whole_body(exchange, limits)) is not None:
        return whole
    if exchange.rest is not None and b"content-encoding" not in exchange.headers and exchange.rest.begin():
        return await _landed(exchange, exchange.rest, limits)
    pieces, total = [], 0
    loop = asyncio.get_running_loop()
    begun = loop.time()
    try:
        async with asyncio.timeout_at(begun + limits.grace_seconds) as patience:
            limits.draining.waiting.add(patience)
            plain = b"content-encoding" not in exchange.headers
            async for piece in (_received if plain else decompressed)(exchange, limits.max_bytes):
                total += len(piece)
                if total > limits.max_bytes:
                    raise BodyTooLarge(f"the body has more than {limits.max_bytes} bytes, which is the limit")
                pieces.append(piece)
                if exchange.received_all:
                    continue
                allowed = exchange.received_bytes / limits.min_bytes_per_second
                patience.reschedule(begun + limits.grace_seconds + allowed)
    except TimeoutError:
        raise _too_late(limits, total) from None
    finally:
        limits.draining.waiting.discard(patience)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


async def _landed(exchange: Exchange, rest: Rest, limits: BodyLimits) -> bytes:
    """The body, read in one piece: the clock is set anew when it has run out, not with everything that comes."""
    loop = asyncio.get_running_loop()
    begun, counted = loop.time(), -1
    while counted < rest.received:
        counted = rest.received
        allowed = limits.grace_seconds + counted / limits.min_bytes_per_second
        try:
            async with asyncio.timeout_at(begun + allowed) as patience:
                limits.draining.waiting.add(patience)
                body = await rest.arrived()
        except TimeoutError:
            exchange.received_bytes = rest.received
            if limits.draining.started:
                break
            continue
        finally:
            limits.draining.waiting.discard(patience)
        exchange.received_all, exchange.received_bytes = True, len(body)
        return body
    raise _too_late(limits, rest.received)


def _too_late(limits: BodyLimits, received: int) -> BodyTimeout | ServiceDraining:
    if limits.draining.started:
        return ServiceDraining("the service is shutting down and waits for no more of this body")
    rate = f"{limits.grace_seconds:g} s and {limits.min_bytes_per_second:g} bytes/s"
    return BodyTimeout(f"the body came more slowly than {rate}; {received} bytes had arrived")


def whole_body(exchange: Exchange, limits: BodyLimits) -> bytes | None:
    """A plain body that came with its headers: nothing to wait for, nothing to put together. Raises BodyTooLarge."""
    if exchange.whole is None or b"content-encoding" in exchange.headers:
        return None
    body = exchange.whole.body
    exchange.received_all, exchange.received_bytes = True, len(body)
    if len(body) > limits.max_bytes:
        raise BodyTooLarge(f"the body has {len(body)} bytes; the limit is {limits.max_bytes}")
    return body


async def decompressed(exchange: Exchange, max_received: float = inf) -> AsyncIterator[bytes]:
    """The body as it arrives, in pieces of at most `PIECE_BYTES` if it is compressed.

    max_received limits the bytes before decompression, which need not give any. Raises BodyTooLarge, MalformedBody,
    UnsupportedMediaType, ClientGone.
    """
    encoding = exchange.header(b"content-encoding").strip().lower()
    if encoding in ("", "identity"):
        async for chunk in _received(exchange, max_received):
            yield chunk
        return
    if encoding not in _DECODERS:
        raise UnsupportedMediaType(f"Content-Encoding is {encoding!r:.80}; this service reads {', '.join(_DECODERS)}")
    decoder = _DECODERS[encoding]()
    async for chunk in _received(exchange, max_received):
        pieces = decoder.feed(chunk)
        # Decompressing is real work and releases the GIL.
        while piece := await asyncio.to_thread(_next, pieces, encoding):
            yield piece
    if not decoder.complete:
        raise MalformedBody(f"the {encoding} data ends too early")


class _Decoder(Protocol):
    complete: bool

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what data adds, a piece at a time."""


class _Gzip:
    """Any number of gzip members, one after the other."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.complete = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(wbits=31)
            if piece := self._member.decompress(data, PIECE_BYTES):
                yield piece
            data = self._member.unconsumed_tail or self._member.unused_data
            self.complete = self._member.eof


class _Zstd:
    """Any number of zstd frames, one after the other."""

    def __init__(self) -> None:
        self._frame = self._new()
        self.complete = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data or not (self._frame.needs_input or self._frame.eof):
            if self._frame.eof:
                self._frame = self._new()
            if piece := self._frame.decompress(data, PIECE_BYTES):
                yield piece
            data = self._frame.unused_data if self._frame.eof else b""
            self.complete = self._frame.eof

    @staticmethod
    def _new() -> zstd.ZstdDecompressor:
        return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


_DECODERS: dict[str, type[_Gzip] | type[_Zstd]] = {"gzip": _Gzip, "zstd": _Zstd}


def _next(pieces: Iterator[bytes], encoding: str) -> bytes:
    try:
        return next(pieces, b"")
    except (zlib.error, zstd.ZstdError) as error:
        raise MalformedBody(f"the body is not {encoding} data: {error}") from None


async def _received(exchange: Exchange, limit: float) -> AsyncIterator[bytes]:
    while not exchange.received_all:
        message = await exchange.receive()
        if message["type"] == "http.disconnect":
            exchange.received_all = True
            raise ClientGone
        chunk: bytes = message.get("body", b"")
        exchange.received_bytes += len(chunk)
        exchange.received_all = not message.get("more_body", False)
        if exchange.received_bytes > limit:
            raise BodyTooLarge(f"the body has more than {limit} bytes, which is the limit")
        if chunk:
            yield chunk
