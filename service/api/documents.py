"""A request's body as named values, and a reply's named values as a body, in the formats that the client chose."""

import asyncio
from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from service.api.negotiation import FORMATS, JSON, SAFETENSORS, reply_format, request_format
from service.api.request import Request
from service.api.requests import validate
from service.api.shapes import invalid
from service.serving.registry import ModelVersion
from service.wire import json, json_pieces, json_slow, safetensors
from service.wire.arrays import Document

HEAVY_BYTES = 64 * 1024  # bodies from here on take a noticeable time to decode or encode; JSON is read in pieces
TURN_SECONDS = 0.5e-3  # pieces are decoded or encoded for so long before others have their turn

VIEW_BYTES = 4 * 2**20
"""Larger safetensors bodies are checked on another thread; nothing is parsed of them but the header."""

MANY_VALUES = 2**20
"""To go through more numbers takes milliseconds, and is done on another thread."""

PIECES_VALUES = 2 * json.SLICE_VALUES  # replies of more numbers are printed in pieces

T = TypeVar("T")
Asked = TypeVar("Asked", bound=BaseModel)


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
        body, begun = request.body, perf_counter()
        request.body = b""  # it need not be held any longer than it is read
        document: Document
        if kind == JSON:
            document = await self.decode_json(request, body)
        elif len(body) > VIEW_BYTES:
            document = await asyncio.to_thread(safetensors.decode, body)
        else:
            document = safetensors.decode(body)
        if len(body) < HEAVY_BYTES:
            request.mark("decode", begun)
        return document, kind

    async def encode(self, request: Request, fields: Document, kind: str) -> bytes | list[bytes | memoryview]:
        """The body of a reply; a large one comes in pieces."""
        values = sum([getattr(value, "size", 1) for value in fields.values()])
        if 4 * values < HEAVY_BYTES:
            begun = perf_counter()
            body = safetensors.encode(fields) if kind == SAFETENSORS else json.encode(fields)
            request.mark("encode", begun)
            return body
        if kind == SAFETENSORS:
            return safetensors.pieces(fields)
        parts = json.slices(fields) if values > PIECES_VALUES else map(json.encode, [fields])
        return list(await self.in_pieces(request, "encode", parts))

    async def decode_json(self, request: Request, body: bytes) -> Document:
        """The fields of a JSON object. Raises as `json_slow.decode` does."""
        try:
            if len(body) < HEAVY_BYTES:
                return json.decode(body)
            document = (await self.in_pieces(request, "decode", json_pieces.decode(body)))[-1]
        except json.Suspicious as error:
            read_slowly = error.args[0] if error.args else partial(json_slow.decode, body)
        else:
            return document
        return await asyncio.to_thread(read_slowly)  # what the fast reader held is let go by now

    async def in_pieces(self, request: Request, stage: str, work: Iterator[T]) -> list[T]:
        """All that an iterator gives."""
        taken: list[T] = []
        while True:
            async with self._piece:
                begun = perf_counter()
                for piece in work:
                    taken.append(piece)
                    if perf_counter() - begun > TURN_SECONDS:
                        break
                else:
                    return taken
                request.mark(stage, begun)
            await asyncio.sleep(0)


async def aside(values: int, work: Callable[..., T], *arguments: Any) -> T:
    """What comes of work that goes through so many numbers."""
    return await asyncio.to_thread(work, *arguments) if values > MANY_VALUES else work(*arguments)


def accepted(
    kind: type[Asked],
    request: Request,
    document: Document,
    came_as: str,
    model: ModelVersion,
    formats: tuple[str, ...] = FORMATS,
) -> tuple[Asked, str]:
    """A document as a request for a model, and the format of its reply, one of formats.

    Raises NotAcceptable, InvalidRequest, also for floats of a binary body where token ids belong.
    """
    request.model, request.version = model.name, model.version
    reply_kind = reply_format(request.headers.get(b"accept", b""), came_as, formats)
    is_binary, inputs = came_as == SAFETENSORS, document.get("inputs")
    if is_binary and model.spec.num_embeddings and isinstance(inputs, np.ndarray) and inputs.dtype.kind == "f":
        raise invalid(f"inputs are {inputs.dtype}; token ids are int64 or int32", "inputs")
    return validate(kind, document, texts=is_binary), reply_kind
