"""A stream that is open: lines to vectors, blocks of vectors through its Stepper, results to lines.

It knows what a step looks like on the wire, and not how lines and frames travel; the Stepper knows neither.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from service.api.exchange import Exchange
from service.api.places import at, at_line
from service.api.shapes import Target, steps, wrong
from service.engine.interface import Floats
from service.errors import NonFiniteOutput, ServiceError
from service.sessions.stepper import NonFinite, Stepper, Steps
from service.wire import json, json_slow, ndjson
from service.wire.arrays import Document, Ragged

MAX_BLOCK_STEPS = 1024
"""Steps that run at a time: what a stream can hold up its neighbours with."""

Numbers = list[int | None]
"""The numbers that lines give their steps."""


async def decode_line(line: bytes) -> Document | Floats | Ragged:
    """One line: an object, or an array alone. Raises MalformedBody, DuplicateName, InvalidRequest."""
    try:
        return json.decode_steps(line)
    except json.Suspicious:
        return await asyncio.to_thread(json_slow.decode_steps, line)


@dataclass(slots=True)
class Conversation:
    """A stepper, and what its stream said at the beginning.

    binary is which of the arrays a binary answer holds, None if more than one was asked for; finite_text says that a
    result which is not finite is an error in a text answer (a binary one carries it as it is); patience is the time in
    seconds from a line's arrival within which it must begin to run; number is that of the next step that brings none,
    None if they run in the order they arrive.
    """

    stepper: Stepper
    target: Target
    exchange: Exchange
    returns: frozenset[str]
    binary: str | None
    finite_text: bool
    patience: float | None
    number: int | None

    async def answer(
        self, lines: Sequence[bytes], places: Sequence[int], send: Callable[[list[bytes]], Awaitable[None]]
    ) -> None:
        """Run up to `MAX_BLOCK_STEPS` lines, and send one line for each, in order, as they are ready.

        places are their numbers in the stream. Raises at the first that is wrong or fails; the lines before it are
        answered first.
        """
        inputs, numbers, failure = await self._decoded(lines, places)

        async def take(ran: Steps) -> None:
            begun = perf_counter()
            answers = ndjson.encode(self.fields(ran), ran.first, ran.count)
            self.exchange.mark("encode", begun)
            await send(answers)

        await self.run(inputs, numbers, lambda index: at_line(places[index]), take, finite=self.finite_text)
        if failure:
            raise failure

    async def run(
        self,
        inputs: Floats,
        numbers: Numbers,
        place: Callable[[int], str],
        take: Callable[[Steps], Awaitable[None]],
        *,
        finite: bool,
    ) -> None:
        """Run a block (k,I); numbers are those of its steps, place names a step of it in errors, take gets what ran.

        Raises at the first that is wrong or fails, naming its place; the steps before it have been taken then.
        """
        # A state that is to be sent after each step must be there after each step.
        size = 1 if self.returns & {"h", "c"} else MAX_BLOCK_STEPS
        for begin, end in _runs(self._numbered(numbers), size):
            deadline = None if self.patience is None else monotonic() + self.patience
            block, step, failure = inputs[begin:end], numbers[begin], None
            try:
                try:
                    several = await self.stepper.run(block, step, deadline, refuse_non_finite=finite)
                except NonFinite as error:
                    failure = error
                    good = block[: error.index]
                    several = await self.stepper.run(good, step, deadline, refuse_non_finite=True) if len(good) else []
            except NonFinite as error:  # another stream of the session came in between
                raise self._not_finite(place(begin + error.index)) from None
            except ServiceError as error:
                raise at(place(begin), error) from None
            self.exchange.rows = 1
            for ran in several:
                self.exchange.steps += ran.count
                await take(ran)
            if failure:
                raise self._not_finite(place(begin + failure.index))
            if len(inputs) > 1:  # small steps run where they stand: let the others have their turn
                await asyncio.sleep(0)

    def array(self, ran: Steps) -> Floats:
        """What a binary answer holds of steps that have run: the values of each step in turn, (k, ·)."""
        arrays = {"outputs": ran.outputs, "predictions": ran.predictions, "h": ran.h, "c": ran.c}
        values = arrays[self.binary or "outputs"]
        if values is None:  # what a model does not have cannot have been asked for
            raise TypeError(self.binary)
        return np.ascontiguousarray(values, "<f4").reshape(ran.count, -1)

    def fields(self, ran: Steps) -> dict[str, Floats]:
        """What the stream asked for of steps that have run, arrays (k, …); a state is there for k = 1 alone."""
        fields: dict[str, Floats] = {}
        if "outputs" in self.returns:
            fields["outputs"] = ran.outputs
        if "predictions" in self.returns and ran.predictions is not None:
            fields["predictions"] = ran.predictions
        for name, state in (("h", ran.h), ("c", ran.c)):
            if name in self.returns and state is not None:
                fields[name] = state[:, 0] if len(state) == 1 else state[None, :, 0]
        return fields

    def _numbered(self, numbers: Numbers) -> Numbers:
        """Fill the gaps in, in place, if the stream counts its steps itself."""
        if self.number is None:
            return numbers
        for index, number in enumerate(numbers):
            numbers[index] = self.number if number is None else number
            self.number = numbers[index] + 1  # type: ignore[operator]  # just filled in
        return numbers

    def _not_finite(self, place: str) -> NonFiniteOutput:
        step = self.stepper.done + 1
        return NonFiniteOutput(f"{place}: the result of step {step} is not finite, and JSON has no NaN or infinity")

    async def _decoded(
        self, lines: Sequence[bytes], places: Sequence[int]
    ) -> tuple[Floats, Numbers, ServiceError | None]:
        """The inputs (k,I) and numbers of the lines up to the first that is wrong, and what is wrong with that."""
        begun = perf_counter()
        failure = None
        try:
            inputs, numbers = ndjson.decode(lines, self.target.spec.input_size)
        except json.Suspicious:
            inputs, numbers, failure = await self._decoded_one_by_one(lines, places)
        self.exchange.mark("decode", begun)
        return inputs, numbers, failure

    async def _decoded_one_by_one(
        self, lines: Sequence[bytes], places: Sequence[int]
    ) -> tuple[Floats, Numbers, ServiceError | None]:
        vectors = np.empty((len(lines), self.target.spec.input_size), np.float32)
        numbers: Numbers = []
        for index, line in enumerate(lines):
            try:
                vectors[index], number = self._step(await decode_line(line))
            except ServiceError as error:
                return vectors[:index], numbers, at(at_line(places[index]), error)
            numbers.append(number)
        return vectors, numbers, None

    def _step(self, fields: Document | Floats | Ragged) -> tuple[Floats, int | None]:
        """The inputs (I) of one line, and its number. Raises InvalidRequest."""
        inputs: Any = fields
        number = None
        if isinstance(fields, Mapping):
            if unknown := fields.keys() - {"inputs", "step"}:
                name = min(unknown)[:80]
                raise wrong(f"{name} is not a field of a step; the fields are inputs, step", name)
            if "step" in fields:
                number = fields["step"]
                if type(number) is not int:
                    raise wrong("step: expected a whole number", "step")
            inputs = fields.get("inputs")
        if not isinstance(inputs, np.ndarray | Ragged):
            raise wrong("inputs: expected a list of numbers", "inputs")
        if inputs.ndim != 1:
            raise wrong(f"inputs has {inputs.ndim} axes; a line is one step of one row, (I)", "inputs")
        return steps(inputs, self.target)[0][0], number


def _runs(numbers: Numbers, size: int) -> Iterator[tuple[int, int]]:
    """Parts (begin, end) of at most `size` steps that follow one another: all numbered in order, or none numbered."""
    begin, count = 0, len(numbers)
    while begin < count:
        end, first = min(begin + size, count), numbers[begin]
        part = numbers[begin:end]
        # Nearly always it is all of them, which is found without looking at each here.
        if part != ([None] * len(part) if first is None else list(range(first, first + len(part)))):
            end = next(
                index
                for index in range(begin + 1, end)
                if numbers[index] != (None if first is None else first + index - begin)
            )
        yield begin, end
        begin = end
