"""A request's body as named values, and a reply's named values as a body, in the formats that the client chose."""

import asyncio
from collections.abc import Iterator
from time import perf_counter
from typing import TypeVar

from service.api.negotiation import JSON, SAFETENSORS, request_format
from service.api.request import Request
from service.api.shapes import invalid
from service.wire import json, json_pieces, json_slow, safetensors
from service.wire.arrays import Document

HEAVY_BYTES = 64 * 1024
"""Bodies from here on take a noticeable time to decode or encode."""

PIECES_BYTES = 2**20
"""Larger JSON bodies are read in pieces."""

VIEW_BYTES = 4 * 2**20
"""Larger safetensors bodies are checked on another thread; nothing is parsed of them but the header."""

PIECES_VALUES = 2 * json.SLICE_VALUES
"""Replies of more numbers are printed in pieces."""

T = TypeVar("T")


class Documents:
    """Decodes and encodes; heavy work is done one piece a turn of the event loop, with others' work between pieces."""

    def __init__(self) -> None:
        self._piece = asyncio.Lock()

    async def decode(self, request: Request) -> tuple[Document, str]:
        """The named values of a body, and its format. Raises UnsupportedMediaType, or as the decoders do."""
        if request.query:
            raise invalid(
                "query parameters are for streams (application/x-ndjson); here every field is in the body", "query"
            )
        kind = request_format(request.headers.get(b"content-type", b""))
        body = request.body
        if len(body) < HEAVY_BYTES:
            begun = perf_counter()
            try:
                document = safetensors.decode(body) if kind == SAFETENSORS else json.decode(body)
            except json.Suspicious:
                document = await asyncio.to_thread(json_slow.decode, body)
            request.mark("decode", begun)
            return document, kind
        return await self._decode_heavy(request, body, kind), kind

    async def encode(
        self, request: Request, fields: Document, kind: str, values: int = 0
    ) -> bytes | list[bytes | memoryview]:
        """The body of a reply, of `values` numbers or so; a large one comes in pieces."""
        if 4 * values >= HEAVY_BYTES:
            return await self._encode_heavy(request, fields, kind, values)
        begun = perf_counter()
        body = safetensors.encode(fields) if kind == SAFETENSORS else json.encode(fields)
        request.mark("encode", begun)
        return body

    async def _decode_heavy(self, request: Request, body: bytes, kind: str) -> Document:
        if kind == SAFETENSORS and len(body) > VIEW_BYTES:
            return await asyncio.to_thread(safetensors.decode, body)
        try:
            if kind == JSON and len(body) > PIECES_BYTES:
                document: Document | None
                *_, document = await self._in_pieces(request, "decode", json_pieces.decode(body))
                assert document is not None  # noqa: S101  # the last that a reading gives
                return document
            async with self._piece:
                begun = perf_counter()
                document = safetensors.decode(body) if kind == SAFETENSORS else json.decode(body)
                request.mark("decode", begun)
                return document
        except json.Suspicious:  # and whatever the fast reader holds is let go
            pass
        async with self._piece:
            return await asyncio.to_thread(json_slow.decode, body)

    async def _encode_heavy(
        self, request: Request, fields: Document, kind: str, values: int
    ) -> list[bytes | memoryview]:
        if kind == SAFETENSORS:
            return safetensors.pieces(fields)
        pieces = json.slices(fields) if values > PIECES_VALUES else map(json.encode, [fields])
        return list(await self._in_pieces(request, "encode", iter(pieces)))

    async def _in_pieces(self, request: Request, stage: str, work: Iterator[T]) -> list[T]:
        """All that an iterator gives."""
        taken: list[T] = []
        while True:
            async with self._piece:
                begun = perf_counter()
                for piece in work:
                    taken.append(piece)
                    break
                else:
                    return taken
                request.mark(stage, begun)
            await asyncio.sleep(0)
