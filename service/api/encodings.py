"""Content codings: gzip, zstd and deflate, in requests and replies."""

import asyncio
import sys
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from service.api.negotiation import ENCODINGS, reply_encoding
from service.api.request import Reply, Request
from service.errors import MalformedBody, UnsupportedMediaType

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 256 * 1024
"""Most that is decompressed in one go: less than a millisecond's work, all that a bomb gives before it is noticed."""

MAX_EMPTY_FRAMES = 16  # of one body: members or frames without content cost time and count for nothing in its size

COMPRESS_FROM_BYTES = 1024
COMPRESS_ELSEWHERE_FROM_BYTES = 32 * 1024
"""Larger replies are compressed on other threads, which release the GIL, `PIECE_BYTES` at a time: all replies, and what
else needs a thread, have their turn."""

GZIP_LEVEL = 4
_WBITS = {"gzip": 31, "deflate": 15}
ZSTD_WINDOW_LOG = 23  # 8 MiB, the most that RFC 9659 lets an HTTP sender use


async def decompressed(encoding: str, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body of any number of gzip members or zstd frames, or of zlib or raw deflate data, `PIECE_BYTES` at a time.

    Raises UnsupportedMediaType, MalformedBody, and what chunks raise.
    """
    if encoding not in ENCODINGS:
        raise UnsupportedMediaType(f"Content-Encoding is {encoding!r:.80}; this service reads {', '.join(ENCODINGS)}")
    frame, begun, is_empty, empty_frames = _frame(encoding), False, True, 0
    async for data in chunks:
        if not begun and encoding == "deflate" and data[0] % 16 != 8:  # no header of zlib's begins so: it is raw
            frame = zlib.decompressobj(wbits=-15)
        begun = True
        more = False
        while data or more:
            if frame.eof:
                empty_frames += is_empty
                if empty_frames > MAX_EMPTY_FRAMES:
                    raise MalformedBody(f"the {encoding} data has more than {MAX_EMPTY_FRAMES} empty frames")
                frame, is_empty = _frame(encoding), True
            try:
                piece = frame.decompress(data, PIECE_BYTES)
            except (zlib.error, zstd.ZstdError) as error:
                raise MalformedBody(f"the body is not {encoding} data: {error}") from None
            # zstd keeps what it could not use at once, zlib gives it back.
            data = getattr(frame, "unconsumed_tail", b"") or frame.unused_data  # noqa: PLW2901  # what is left of it
            more = len(piece) == PIECE_BYTES and not frame.eof  # all input may be used, and some bits kept
            if piece:
                is_empty = False
                yield piece
                await asyncio.sleep(0)  # one piece a turn of the event loop
    if not frame.eof:
        raise MalformedBody(f"the {encoding} data ends too early")


def _frame(encoding: str) -> Any:
    """What decompresses one gzip member or zstd frame."""
    if encoding != "zstd":
        return zlib.decompressobj(_WBITS[encoding])
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


async def compressed(reply: Reply, request: Request) -> Reply:
    """The reply as the client takes it, compressed if that is worth it."""
    # The plain question first: the other one takes a good part of a microsecond.
    if not isinstance(reply.body, bytes) and isinstance(reply.body, AsyncGenerator):
        return reply
    pieces = [reply.body] if isinstance(reply.body, bytes) else reply.body
    size = sum(map(len, pieces))
    if size < COMPRESS_FROM_BYTES:
        return reply
    headers = (*reply.headers, (b"vary", b"accept-encoding"))
    accepted = request.headers.get(b"accept-encoding")
    encoding = reply_encoding(accepted) if accepted else None
    body = reply.body
    if encoding is not None:
        headers = (*headers, (b"content-encoding", encoding.encode()))
        packer = zstd.ZstdCompressor() if encoding == "zstd" else zlib.compressobj(GZIP_LEVEL, wbits=_WBITS[encoding])
        packed = []
        for piece in pieces:
            for begin in range(0, len(piece), PIECE_BYTES):
                part = piece[begin : begin + PIECE_BYTES]
                small = size < COMPRESS_ELSEWHERE_FROM_BYTES
                packed.append(packer.compress(part) if small else await asyncio.to_thread(packer.compress, part))
        body = [piece for piece in (*packed, packer.flush()) if piece]  # a large one is never copied
    return Reply(reply.status, reply.media_type, body, headers)
