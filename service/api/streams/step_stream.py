"""An open stream of steps: lines or frames to blocks of vectors, blocks through a Stepper, results to answers.

How lines and frames travel is the transports' business: `ndjson` and `websocket`. Where the state is kept is the
Stepper's.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Literal, TypeVar

import numpy as np

from service.api.documents import HEAVY_BYTES, MANY_VALUES
from service.api.problems import encode_problem, problem
from service.api.readiness import Draining
from service.api.request import Request
from service.api.requests import StepLine, validate
from service.api.shapes import invalid, steps
from service.api.stepping import wants_state
from service.engine.interface import Floats
from service.errors import BodyTimeout, FieldError, InvalidRequest, NonFiniteOutput, ServiceDraining, ServiceError
from service.sessions.stepper import NonFinite, Stepper, Steps
from service.wire import json, json_pieces, json_slow, ndjson
from service.wire.arrays import Document, Ragged

T = TypeVar("T")

MAX_BLOCK_STEPS = 1024
"""Steps that run together. Other requests wait as long as they take."""


@dataclass(slots=True)
class Block:
    """Up to `MAX_BLOCK_STEPS` steps that are run together.

    - inputs (k,I)
    - numbers: those that the client gave the steps, None where it gave none
    - places: the lines or frames that the steps stand in, for errors; `unit` says which of the two
    - failure: what is wrong with the line after the last step
    """

    inputs: Floats
    numbers: list[int | None]
    places: Sequence[int]
    unit: Literal["line", "frame"]
    failure: ServiceError | None = None


@dataclass(slots=True)
class StepStream:
    """A Stepper, and what the client asked for when it opened the stream.

    - returns: the arrays of a text answer
    - binary: the array of a binary answer; None if the client named several
    - refuse_non_finite: whether NaN and infinity are errors in text answers; binary answers carry them
    - timeout: seconds from a step's arrival within which it must begin to run
    - number: the number of the next step that brings none; None: the next in order
    """

    stepper: Stepper
    request: Request
    returns: frozenset[str]
    binary: str | None
    refuse_non_finite: bool
    timeout: float | None
    number: int | None

    @property
    def block_steps(self) -> int:
        """How many steps may run together, so that their results take little memory."""
        return max(1, min(MAX_BLOCK_STEPS, MANY_VALUES // self._width))

    @property
    def _width(self) -> int:
        """Numbers that a step gives, beside a state."""
        spec = self.stepper.model.spec
        return spec.output_size + spec.step_predictions

    async def decode(self, lines: Sequence[bytes], places: Sequence[int]) -> Block:
        """The steps of up to `MAX_BLOCK_STEPS` lines, as far as the first line that is wrong."""
        begun = perf_counter()
        if (size := sum(map(len, lines))) > HEAVY_BYTES and len(lines) > 1:
            half = len(lines) // 2
            block = await self.decode(lines[:half], places[:half])
            await asyncio.sleep(0)  # give other tasks a turn
            if block.failure is None:
                rest = await self.decode(lines[half:], places[half:])
                inputs = np.concatenate((block.inputs, rest.inputs))
                block = Block(inputs, block.numbers + rest.numbers, places, "line", rest.failure)
            return block
        try:
            if size > HEAVY_BYTES:
                raise json.Suspicious
            block = Block(*self._decode(lines), places, "line")
        except json.Suspicious:
            block = await self._decode_each(lines, places)
        self.request.mark("decode", begun)
        return block

    def _decode(self, lines: Sequence[bytes]) -> tuple[Floats, list[int | None]]:
        """The inputs (k,I) of lines, and the numbers of their steps. Raises Suspicious."""
        spec = self.stepper.model.spec
        if spec.num_embeddings is None:
            return ndjson.decode(lines, spec.in_features)
        inputs, numbers = ndjson.decode_ids(lines)
        if inputs.max(initial=0) >= spec.num_embeddings:
            raise json.Suspicious
        return inputs, numbers

    async def run(self, block: Block) -> AsyncIterator[Steps]:
        """Run a block; yield what has run, in order, few numbers at a time.

        Raises a ServiceError at the first step that is wrong or fails.
        """
        self._fill_numbers(block.numbers)
        # A state that is to be sent after each step is known only at the end of a run.
        size = 1 if wants_state(self.returns) else self.block_steps
        few = max(1, json.SLICE_VALUES // self._width)
        for begin, end in _runs(block.numbers, size):
            ran, failure = await self._run(block, begin, end)
            self.request.rows = 1
            for part in ran:
                self.request.steps += part.count
                for first in range(0, part.count, few):
                    yield part.part(first, min(first + few, part.count))
                    if len(block.inputs) > 1:  # small steps run without waiting: give other tasks a turn
                        await asyncio.sleep(0)
            if failure:
                raise failure
        if block.failure:
            raise block.failure

    def lines(self, ran: Steps) -> list[bytes]:
        """The text answers of steps that have run, one line each."""
        begun = perf_counter()
        fields: dict[str, Floats] = {}
        for name in ("outputs", "predictions", "h", "c"):
            if name in self.returns and (values := _values(ran, name)) is not None:
                fields[name] = values
        lines = ndjson.encode(fields, ran.first, ran.count)
        self.request.mark("encode", begun)
        return lines

    def array(self, ran: Steps) -> Floats:
        """The binary answers (k, ·) of steps that have run."""
        return np.ascontiguousarray(_values(ran, self.binary or "outputs"), "<f4").reshape(ran.count, -1)

    async def _run(self, block: Block, begin: int, end: int) -> tuple[list[Steps], ServiceError | None]:
        """Run steps that follow one another: what ran, and why the rest did not."""
        deadline = None if self.timeout is None else monotonic() + self.timeout
        strict = self.refuse_non_finite and block.unit == "line"
        inputs, number = block.inputs[begin:end], block.numbers[begin]
        try:
            return await self.stepper.run(inputs, number, deadline, refuse_non_finite=strict), None
        except NonFinite as error:  # nothing was kept: run the steps before it again
            bad = begin + error.index
        except ServiceError as error:
            return [], located(error, block.unit, block.places[begin])
        ran, failure = await self._run(block, begin, bad) if bad > begin else ([], None)
        text = f"the result of step {self.stepper.done + 1} is not finite, and JSON has no NaN or infinity"
        return ran, failure or located(NonFiniteOutput(text), block.unit, block.places[bad])

    def _fill_numbers(self, numbers: list[int | None]) -> None:
        """Number the steps that bring no number, if the stream began with one."""
        if self.number is None:
            return
        following = self.number
        for index, number in enumerate(numbers):
            current = following if number is None else number
            numbers[index], following = current, current + 1
        self.number = following

    async def _decode_each(self, lines: Sequence[bytes], places: Sequence[int]) -> Block:
        model = self.stepper.model
        inputs = np.empty((len(lines), model.spec.in_features), np.float32)
        numbers: list[int | None] = []
        for index, line in enumerate(lines):
            try:
                fields = await decode_line(line)
                asked = validate(StepLine, fields if isinstance(fields, Mapping) else {"inputs": fields})
                if asked.inputs.ndim > 1:
                    raise invalid(f"inputs has {asked.inputs.ndim} axes; a line is one step of one row, (I)", "inputs")
                row, batched = steps(asked.inputs, model)
                if batched:
                    raise invalid("inputs is a list; a line is one step of one row, one token id", "inputs")
                inputs[index] = row[0]
            except ServiceError as error:
                return Block(inputs[:index], numbers, places, "line", located(error, "line", places[index]))
            numbers.append(asked.step)
        return Block(inputs, numbers, places, "line")


async def decode_line(line: bytes) -> Document | Floats | Ragged | float:
    """One line: an object, an array alone, or a token id. Raises MalformedBody, DuplicateName, InvalidRequest."""
    if len(line) < HEAVY_BYTES:
        try:
            return json.decode_steps(line)
        except json.Suspicious:
            return await asyncio.to_thread(json_slow.decode_steps, line)
    document: Document = {}
    decode = json_pieces.decode_row if line.lstrip()[:1] == b"[" else json_pieces.decode
    try:
        for piece in decode(line):
            document = piece
            await asyncio.sleep(0)
    except json.Suspicious as error:
        document = await asyncio.to_thread(error.args[0])
    return document


def located(error: ServiceError, unit: str, place: int) -> ServiceError:
    """The error, which names the line or frame from now on."""
    where = f"{unit} {place}: "
    error.args = (f"{where}{error}",)
    if isinstance(error, InvalidRequest):
        error.errors = [FieldError(item.loc, where + item.msg) for item in error.errors]
    return error


def error_line(error: Exception, request_id: str) -> bytes:
    return b'{"error":%b}\n' % encode_problem(problem(error, request_id))


@dataclass(frozen=True, slots=True)
class IdleTimeout:
    """How long a stream waits for its client's next line or message."""

    draining: Draining
    seconds: float

    async def wait(self, arrive: Callable[[], Awaitable[T]], what: str) -> T:
        """Await `arrive()`. Raises BodyTimeout, or ServiceDraining, also if something has arrived."""
        if not self.draining.started:
            try:
                async with asyncio.timeout(self.seconds) as timeout:
                    self.draining.waiting.add(timeout)
                    return await arrive()
            except TimeoutError:
                if not self.draining.started:
                    raise BodyTimeout(f"no complete {what} came for {self.seconds:g} s") from None
            finally:
                self.draining.waiting.discard(timeout)
        raise ServiceDraining("the service is shutting down; open the stream again, from the last state you have")


def _values(ran: Steps, name: str) -> Floats | None:
    """One array of k steps that have run, (k, …). A state, (L,1,·), is that of k = 1."""
    values: Floats | None = getattr(ran, name)
    if values is None or name not in ("h", "c"):
        return values
    return values[:, 0] if len(values) == 1 else values[None, :, 0]


def _runs(numbers: Sequence[int | None], size: int) -> Iterator[tuple[int, int]]:
    """Parts (begin, end) of at most `size` steps that follow one another: all numbered in order, or none numbered."""
    begin = 0
    while begin < len(numbers):
        part, first = numbers[begin : begin + size], numbers[begin]
        expected = [None] * len(part) if first is None else list(range(first, first + len(part)))
        count = len(part)
        if part != expected:
            count = next(index for index in range(count) if part[index] != expected[index])
        yield begin, begin + count
        begin += count
