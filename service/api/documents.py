"""A request's body as named values, and a reply's named values as a body, in the formats that the client chose."""

import asyncio
from collections.abc import Callable, Sequence
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

IN_PIECES_BYTES = 2**20
"""Larger JSON bodies are read in pieces, with others' turns between them."""

VIEW_ON_LOOP_BYTES = 4 * 2**20
"""Larger safetensors bodies are read on another thread; nothing is parsed of them but the header."""

AT_ONCE_VALUES = 2 * json.SLICE_VALUES
"""Numbers of a reply that are not worth cutting into slices."""

MOST_WAITING = 4
"""How many times as long as its own pieces take a large document gives way to others between them."""

IDLE_TURN_SECONDS = 50e-6
"""A turn of the event loop that was shorter had nothing to do."""

FORMATS: Sequence[str] = (JSON, SAFETENSORS)


async def read_document(exchange: Exchange, limits: BodyLimits, admission: Admission) -> tuple[Document, str]:
    """The named values of a body, and its format; large ones are decoded one at a time.

    Raises as `read_body` and the decoders do.
    """
    if exchange.scope["query_string"]:
        message = "query parameters are for streams (application/x-ndjson); here every field stands in the body"
        raise InvalidRequest([FieldError(("query",), message)])
    kind = request_format(exchange.header(b"content-type"), FORMATS)
    body = whole_body(exchange, limits)
    small = body is not None  # no thread, no lock, and mostly no second look
    if body is None:
        body = await read_body(exchange, limits)
    if kind == SAFETENSORS:
        return await _read_arrays(exchange, body, admission), kind
    try:
        if small or len(body) < HEAVY_BYTES:
            return _decode(exchange, body), kind
        if len(body) > IN_PIECES_BYTES:
            return await _decode_pieces(exchange, body, admission), kind
        async with admission.heavy:
            return _decode(exchange, body), kind
    except json.Suspicious:
        pass  # and whatever the fast reader holds is let go
    async with admission.heavy:
        return await _elsewhere(exchange, json_slow.decode, body), kind


def _decode(exchange: Exchange, body: bytes) -> Document:
    begun = perf_counter()
    document = json.decode(body)
    exchange.mark("decode", begun)
    return document


async def _decode_pieces(exchange: Exchange, body: bytes, admission: Admission) -> Document:
    """The fields of a large JSON object, if need be in one go. Raises Suspicious."""
    reading = json_pieces.reading(body)
    async with admission.slicing:
        while True:
            begun = perf_counter()
            try:
                next(reading)
            except StopIteration as done:
                exchange.mark("decode", begun)
                document: Document = done.value
                return document
            except json.Suspicious:
                break
            await give_way(MOST_WAITING * (exchange.mark("decode", begun) - begun))
    async with admission.heavy:
        return await _elsewhere(exchange, json.decode, body)


async def _read_arrays(exchange: Exchange, body: bytes, admission: Admission) -> Document:
    if len(body) > VIEW_ON_LOOP_BYTES:
        async with admission.heavy:
            return await _elsewhere(exchange, safetensors.decode, body)
    begun = perf_counter()
    document = safetensors.decode(body)
    exchange.mark("decode", begun)
    return document


async def _elsewhere(exchange: Exchange, decode: Callable[[bytes], Document], body: bytes) -> Document:
    begun = perf_counter()
    document = await asyncio.to_thread(decode, body)
    exchange.mark("decode", begun)
    return document


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
    async with admission.slicing:
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
