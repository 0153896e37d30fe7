"""The steps of one stream: lines to vectors, blocks of vectors through the model, results to lines."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from service.api.exchange import Exchange
from service.api.requests import StreamRequest
from service.api.shapes import Target, steps, wrong
from service.api.stepping import initial, step_returns
from service.engine.interface import Engine, Floats, Rows
from service.errors import FieldError, InvalidRequest, NonFiniteOutput, ServiceError
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.wire import json, json_slow
from service.wire.arrays import Document, Ragged

MAX_BLOCK_STEPS = 1024
"""Steps that run at a time: what a stream can hold up its neighbours with."""


async def decode_line(line: bytes) -> Document | Floats | Ragged:
    """One line: an object, or an array alone. Raises MalformedBody, DuplicateName, InvalidRequest."""
    try:
        return json.decode_steps(line)
    except json.Suspicious:
        return await asyncio.to_thread(json_slow.decode_steps, line)


@dataclass(slots=True)
class Stepper:
    """The state of one stream, and its count of steps done. h is (L,1,P), c (L,1,H).

    engine is the one that the stream began with: a reload does not change the weights under it. patience is the time in
    seconds from a line's arrival within which it must begin to run.
    """

    model: ModelVersion
    target: Target
    inference: Inference
    exchange: Exchange
    engine: Engine
    patience: float | None
    returns: frozenset[str]
    refuse_non_finite: bool
    h: Floats
    c: Floats | None = None
    done: int = 0

    @classmethod
    async def of(
        cls, request: StreamRequest, model: ModelVersion, target: Target, inference: Inference, exchange: Exchange
    ) -> "Stepper":
        """Check what opens a stream, and load the model if it is not. Raises InvalidRequest, ModelFailed."""
        spec = model.spec
        returns = step_returns(request.returns, target, stateful=True)
        h = initial(request.h, "h", (spec.num_layers, 1, spec.state_size), "P", batched=False)
        engine, patience = await inference.registry.engine(model), exchange.timeout()
        stepper = cls(model, target, inference, exchange, engine, patience, returns, request.non_finite == "error", h)
        if spec.has_cell_state:
            stepper.c = initial(request.c, "c", (spec.num_layers, 1, spec.hidden_size), "H", batched=False)
        elif request.c is not None:
            raise wrong(f'c is for LSTMs; model "{target.name}" is of kind {spec.kind}', "c")
        exchange.rows = 1
        return stepper

    async def answers(self, lines: list[tuple[int, bytes]]) -> AsyncIterator[bytes]:
        """Run numbered lines, and answer one line for each, in order. Raises at the first that is wrong or fails.

        The lines before it are answered first.
        """
        for begin in range(0, len(lines), MAX_BLOCK_STEPS):
            vectors, failure = await self._vectors(lines[begin : begin + MAX_BLOCK_STEPS])
            # A state that is to be sent after each step must be there after each step.
            size = 1 if self.returns & {"h", "c"} else max(1, len(vectors))
            for first in range(0, len(vectors), size):
                block = vectors[first : first + size]
                answers, not_finite = await self._run(np.stack(block), lines[begin + first][0])
                if answers:
                    yield answers
                if not_finite:
                    raise not_finite
                await asyncio.sleep(0)  # small steps run where they stand: let the others have their turn
            if failure:
                raise failure

    async def _vectors(self, lines: list[tuple[int, bytes]]) -> tuple[list[Floats], ServiceError | None]:
        """The inputs (I) of lines up to the first that is wrong, and what is wrong with that."""
        begun = perf_counter()
        vectors: list[Floats] = []
        for number, line in lines:
            try:
                vectors.append(self._vector(await decode_line(line), len(vectors)))
            except ServiceError as error:
                return vectors, at_line(error, number)
        self.exchange.mark("decode", begun)
        return vectors, None

    def _vector(self, fields: Document | Floats | Ragged, ahead: int) -> Floats:
        """The inputs (I) of one line, `ahead` steps after the last that ran. Raises InvalidRequest."""
        inputs: Any = fields
        if isinstance(fields, Mapping):
            if unknown := fields.keys() - {"inputs", "step"}:
                name = min(unknown)[:80]
                raise wrong(f"{name} is not a field of a step; the fields are inputs, step", name)
            expected = self.done + ahead + 1
            step = fields.get("step", expected)
            if type(step) is not int:
                raise wrong("step: expected a whole number", "step")
            if step != expected:
                raise wrong(f"step is {step}; this stream expects {expected}", "step")
            inputs = fields.get("inputs")
        if not isinstance(inputs, np.ndarray | Ragged):
            raise wrong("inputs: expected a list of numbers", "inputs")
        if inputs.ndim != 1:
            raise wrong(f"inputs has {inputs.ndim} axes; a line is one step of one row, (I)", "inputs")
        vector: Floats = steps(inputs, self.target)[0][0]
        return vector

    async def _run(self, inputs: Floats, line: int) -> tuple[bytes, NonFiniteOutput | None]:
        """Run one block (k,I) whose first step is a line; give the answers, and the error of the step after them."""
        count, spec = len(inputs), self.model.spec
        rows = Rows(inputs, np.zeros(1, np.int64), np.full(1, count, np.int64), self.h, self.c)
        rows.outputs = np.empty((count, spec.output_size), np.float32)
        if "predictions" in self.returns and spec.out_features:
            rows.predictions = np.empty((count, spec.out_features), np.float32)
        deadline = None if self.patience is None else monotonic() + self.patience
        try:
            timings = await self.inference.run(self.model, rows, deadline, engine=self.engine)
        except ServiceError as error:
            raise at_line(error, line) from None
        begun = perf_counter()
        self.exchange.book(timings.queue, timings.compute)
        good = self._finite_steps(rows) if self.refuse_non_finite else count
        answers = b"\n".join([*(json.encode(self._answer(rows, index)) for index in range(good)), b""])
        self.done += good
        self.exchange.steps = self.done
        self.exchange.mark("encode", begun)
        if good == count:
            return answers, None
        message = (
            f"line {line + good}: the result of step {self.done + 1} is not finite, and JSON has no NaN or infinity"
        )
        return answers, NonFiniteOutput(message)

    def _answer(self, rows: Rows, index: int) -> Document:
        fields: dict[str, Any] = {}
        if "outputs" in self.returns and rows.outputs is not None:
            fields["outputs"] = rows.outputs[index]
        if "predictions" in self.returns and rows.predictions is not None:
            fields["predictions"] = rows.predictions[index]
        for name, state in (("h", self.h), ("c", self.c)):
            if name in self.returns and state is not None:
                fields[name] = state[0, 0] if len(state) == 1 else state[:, 0]
        fields["step"] = self.done + index + 1
        return fields

    def _finite_steps(self, rows: Rows) -> int:
        """How many of a block's steps may be sent as JSON."""
        finite = np.ones(len(rows.inputs), np.bool_)
        for values in (rows.outputs, rows.predictions):
            if values is not None:
                finite &= np.isfinite(values).all(axis=-1)
        if self.returns & {"h", "c"}:  # then the block is one step
            finite &= all(np.isfinite(state).all() for state in (self.h, self.c) if state is not None)
        return len(finite) if finite.all() else int(np.argmin(finite))


def at_line(error: ServiceError, number: int) -> ServiceError:
    """The same error, naming the line."""
    if isinstance(error, InvalidRequest):
        return InvalidRequest([FieldError(item.loc, f"line {number}: {item.msg}") for item in error.errors])
    return type(error)(f"line {number}: {error}")
