"""POST /cell/step with `application/x-ndjson`: each line answered as soon as it has run, while the client still sends.

Lines that arrive together run as one block of steps: that is quicker and the numbers are the same.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from service.api.body import decompressed
from service.api.draining import Draining
from service.api.exchange import Exchange
from service.api.lines import blocks
from service.api.negotiation import NDJSON, reply_format
from service.api.problems import problem
from service.api.reply import linger
from service.api.requests import StreamRequest, parse
from service.api.shapes import Limits, Target, wrong
from service.api.stepper import Stepper, at_line, decode_line
from service.api.stepping import steppable
from service.errors import BodyTimeout, MalformedBody, ServiceDraining, ServiceError
from service.serving.inference import Inference
from service.wire import json
from service.wire.arrays import MAX_FIELDS

MAX_LINE_BYTES = 2**20
MAX_BLANK_LINES = 10_000

_HEADERS = [(b"content-type", NDJSON.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]


@dataclass(frozen=True, slots=True)
class Stream:
    """The handler, and what it needs. A line must be complete `idle_seconds` after the one before it."""

    inference: Inference
    limits: Limits
    draining: Draining
    idle_seconds: float

    async def __call__(self, exchange: Exchange) -> None:
        """Answer line by line. An error before the first answer is an ordinary problem; later it is the last line."""
        reply_format(exchange.header(b"accept"), [NDJSON], NDJSON)
        begun = False
        try:
            async for answer in self._answers(exchange):
                if not begun:
                    await _begin(exchange)
                    begun = True
                exchange.sent_bytes += len(answer)
                await exchange.send({"type": "http.response.body", "body": answer, "more_body": True})
        except ServiceError as error:
            if not begun:
                raise
            last = json.encode({"error": problem(error, exchange.request_id)}) + b"\n"
            await exchange.send({"type": "http.response.body", "body": last, "more_body": True})
            await linger(exchange)  # closing now could cost the client what it has not read yet
        if not begun:
            await _begin(exchange)
        await exchange.send({"type": "http.response.body", "body": b""})

    async def _answers(self, exchange: Exchange) -> AsyncIterator[bytes]:
        """Answers when they are ready, one or more lines at a time. Raises what the client is to be told."""
        stepper: Stepper | None = None
        number = blank = 0
        async for lines in self._waited(blocks(decompressed(exchange), MAX_LINE_BYTES)):
            steps = []
            for line in lines:
                number += 1
                if not line.strip():
                    blank += 1
                    if blank > MAX_BLANK_LINES:
                        raise MalformedBody(f"line {number}: the stream has more than {MAX_BLANK_LINES} blank lines")
                    continue
                if stepper is None:
                    opening = await _opening(line, number)
                    stepper = await self._open(exchange, opening or {})
                    if opening is not None:
                        continue
                steps.append((number, line))
            if stepper is not None:
                async for answer in stepper.answers(steps):
                    yield answer

    async def _waited(self, arriving: AsyncIterator[list[bytes]]) -> AsyncIterator[list[bytes]]:
        """The same lines, but not for ever. Raises BodyTimeout or ServiceDraining."""
        while not self.draining.started:
            try:
                async with asyncio.timeout(self.idle_seconds) as patience:
                    self.draining.waiting.add(patience)
                    try:
                        lines = await anext(arriving, None)
                    finally:
                        self.draining.waiting.discard(patience)
            except TimeoutError:
                if self.draining.started:
                    break
                raise BodyTimeout(f"no complete line came for {self.idle_seconds:g} s") from None
            if lines is None:
                return
            yield lines
        raise ServiceDraining("the service is shutting down; open the stream again, from the last state you have")

    async def _open(self, exchange: Exchange, opening: Mapping[str, Any]) -> Stepper:
        """The model and first state, from the query and the first line together. Raises as `resolve` and `parse` do."""
        fields = {**_from_query(exchange.scope["query_string"]), **opening}
        model = steppable(self.inference.registry.resolve_fields(fields))
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self.limits)
        return await Stepper.of(parse(StreamRequest, fields, target), model, target, self.inference, exchange)


async def _opening(line: bytes, number: int) -> Mapping[str, Any] | None:
    """The first line's fields if it opens the stream; None if it is a step already."""
    try:
        first = await decode_line(line)
    except ServiceError as error:
        raise at_line(error, number) from None
    return first if isinstance(first, Mapping) and "inputs" not in first else None


def _from_query(query: bytes) -> dict[str, Any]:
    """Query parameters as fields; `returns` is comma-separated there. Raises InvalidRequest."""
    fields: dict[str, Any] = {}
    try:
        pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise wrong(f"the query has more than {MAX_FIELDS} parameters", "query") from None
    for name, value in pairs:
        if name in fields:
            raise wrong(f"{name:.80} stands twice in the query", name[:80])
        fields[name] = value
    if "returns" in fields:
        fields["returns"] = [part for part in fields["returns"].split(",") if part]
    return fields


async def _begin(exchange: Exchange) -> None:
    exchange.status = 200
    headers = [*_HEADERS, (b"x-request-id", exchange.request_id.encode())]
    await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
