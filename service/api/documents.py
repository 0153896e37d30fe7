"""A request's body as named values, and a reply's named values as a body, in the formats that the client chose."""

import asyncio
from collections.abc import Sequence
from time import perf_counter

import numpy as np

from service.api.body import BodyLimits, read_body, whole_body
from service.api.exchange import Exchange
from service.api.negotiation import JSON, SAFETENSORS, reply_format, request_format
from service.api.reply import Pieces
from service.errors import FieldError, InvalidRequest, NonFiniteOutput
from service.serving.admission import HEAVY_BYTES, Admission
from service.wire import json, json_pieces, json_slow, safetensors
from service.wire.arrays import Document, Floats, Integers, finite

DECODE_ON_LOOP_BYTES = 2**20
"""Larger bodies are decoded on another thread, in pieces: the parser holds the GIL, but not from one to the next."""

VIEW_ON_LOOP_BYTES = 4 * 2**20
"""The same for safetensors, where nothing is parsed but the header."""

AT_ONCE_VALUES = 2 * json.SLICE_VALUES
"""Numbers of a reply that are not worth cutting into slices."""

MOST_WAITING = 4
"""How many times as long as its own pieces take a large reply gives way to others between them."""

IDLE_TURN_SECONDS = 50e-6
"""A turn of the event loop that was shorter had nothing to do."""

FORMATS: Sequence[str] = (JSON, SAFETENSORS)


async def read_document(exchange: Exchange, limits: BodyLimits, heavy: asyncio.Lock) -> tuple[Document, str]:
    """The named values of a body, and its format; large ones are decoded one at a time.

    Raises as `read_body` and the decoders do.
    """
    if exchange.scope["query_string"]:
        message = "query parameters are for streams (application/x-ndjson); here every field stands in the body"
        raise InvalidRequest([FieldError(("query",), message)])
    kind = request_format(exchange.header(b"content-type"), FORMATS)
    if (whole := whole_body(exchange, limits)) is not None and kind == JSON:
        document = _decode_whole(exchange, whole)  # small: no thread, no lock, and mostly no second look
        if document is not None:
            return document, kind
    body = whole if whole is not None else await read_body(exchange, limits)
    if len(body) < HEAVY_BYTES or (kind == SAFETENSORS and len(body) <= VIEW_ON_LOOP_BYTES):
        return await _decode(exchange, body, kind), kind
    async with heavy:
        return await _decode(exchange, body, kind), kind


def _decode_whole(exchange: Exchange, body: bytes) -> Document | None:
    begun = perf_counter()
    try:
        document = json.decode(body)
    except json.Suspicious:
        return None
    exchange.mark("decode", begun)
    return document


async def _decode(exchange: Exchange, body: bytes, kind: str) -> Document:
    begun = perf_counter()
    document = await _decode_fast(body, kind)
    if document is None:
        document = await asyncio.to_thread(json_slow.decode, body)
    exchange.mark("decode", begun)
    return document


async def _decode_fast(body: bytes, kind: str) -> Document | None:
    """The document, or None where the fast JSON reader is not sure.

    A function of its own: an error of the slow reader must not keep the fast one's memory, by way of its context.
    """
    try:
        if kind == SAFETENSORS:
            large = len(body) > VIEW_ON_LOOP_BYTES
            return await asyncio.to_thread(safetensors.decode, body) if large else safetensors.decode(body)
        large = len(body) > DECODE_ON_LOOP_BYTES
        return await asyncio.to_thread(json_pieces.decode, body) if large else json.decode(body)
    except json.Suspicious:
        return None


def answer_format(exchange: Exchange, kind: str) -> str:
    """The format of the reply to a request of a format. Raises NotAcceptable."""
    accept = exchange.headers.get(b"accept")
    return kind if accept is None else reply_format(accept.decode("latin-1"), FORMATS, kind)


def encode_document(exchange: Exchange, fields: Document, kind: str) -> bytes:
    """The body of a reply; numbers that the format cannot carry were looked for before."""
    begun = perf_counter()
    body = safetensors.encode(fields) if kind == SAFETENSORS else json.encode(fields)
    exchange.mark("encode", begun)
    return body


async def give_way(seconds: float) -> float:
    """Let everybody else on the event loop have his turn, and again while they are busy, for at most so many seconds.

    Returns `perf_counter()`.
    """
    begun = now = perf_counter()
    while True:
        before = now
        await asyncio.sleep(0)
        now = perf_counter()
        if now - before < IDLE_TURN_SECONDS or now - begun > seconds:
            return now


async def encode_large(exchange: Exchange, fields: Document, kind: str, values: int, admission: Admission) -> Pieces:
    """The body of a large reply, in pieces; JSON is printed one reply at a time, with others' turns between pieces.

    values is how many numbers it has, about.
    """
    if kind == SAFETENSORS:
        return safetensors.pieces(fields)
    if values <= AT_ONCE_VALUES:
        async with admission.heavy:
            return [encode_document(exchange, fields, kind)]
    pieces = []
    async with admission.printing:
        begun = perf_counter()
        for piece in json.slices(fields):
            pieces.append(piece)
            spent = exchange.mark("encode", begun) - begun
            begun = await give_way(MOST_WAITING * spent)
    return pieces


def refuse_non_finite(name: str, values: Floats, starts: Integers | None = None) -> None:
    """Raise NonFiniteOutput naming the row, if there is a NaN or infinity in values (B, ·); with starts, the step too.

    Then values are (N, ·), and starts (B,) the first steps of the rows in them, rising.
    """
    if finite(values):
        return
    place = int(np.flatnonzero(~np.isfinite(values).all(axis=-1))[0])
    row, step = place, ""
    if starts is not None:
        row = int(np.searchsorted(starts, place, side="right")) - 1
        step = f" at step {place - int(starts[row])}"
    raise NonFiniteOutput(
        f"{name} of row {row} is not finite{step}, and JSON has no NaN or infinity; ask for safetensors, or send "
        '"non_finite": "null"'
    )
