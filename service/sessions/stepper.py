"""Steps of one stream: what ran, and the Stepper that runs them, wherever the stream's state is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from service.engine.interface import Engine, Floats, Rows
from service.errors import InvalidRequest
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.serving.scheduler import Timings
from service.spec import ModelSpec
from service.wire.arrays import finite

_FIRST = np.zeros(1, np.int64)
_FIRST.flags.writeable = False


@dataclass(slots=True)
class Steps:
    """k steps of one stream that have run, and the state after the last."""

    first: int  # counted from 1 over the stream's life
    outputs: Floats  # (k,P)
    predictions: Floats | None  # (k,O)
    h: Floats  # (L,1,P)
    c: Floats | None  # (L,1,H)

    @property
    def count(self) -> int:
        return len(self.outputs)

    def part(self, begin: int, end: int) -> "Steps":
        """Only the state after the last step is known: `h` is empty in parts that end before it."""
        predictions = None if self.predictions is None else self.predictions[begin:end]
        h, c = (self.h, self.c) if end == self.count else (np.empty((0, 1, 0), np.float32), None)
        return Steps(self.first + begin, self.outputs[begin:end], predictions, h, c)


class NonFinite(Exception):
    """A result is NaN or infinite and the stream refuses that; nothing was committed. index counts from 0."""

    def __init__(self, index: int) -> None:
        super().__init__(f"the result of step {index} of this run is not finite")
        self.index = index


def check_finite(done: Sequence[Steps], *, state: bool) -> None:
    """Raise NonFinite at the first step whose result is not finite; h and c are results if `state`."""
    ahead = 0
    for steps in done:
        results = [steps.outputs] if steps.predictions is None else [steps.outputs, steps.predictions]
        states = [values for values in (steps.h, steps.c) if values is not None] if state else []
        if not all(map(finite, results + states)):
            good = np.ones(steps.count, np.bool_)
            for values in results:
                good &= np.isfinite(values).all(axis=-1)
            good[-1] &= all(map(finite, states))  # known of the last step only
            raise NonFinite(ahead + int(np.argmin(good)))
        ahead += steps.count


def prepare(
    spec: ModelSpec, first: int, inputs: Floats, h: Floats, c: Floats | None, *, predictions: bool = True
) -> tuple[Steps, Rows]:
    """Steps for inputs (k,I) from h (L,1,P) and c (L,1,H) or None, and the row that fills their arrays in an engine."""
    count = len(inputs)
    outputs = np.empty((count, spec.output_size), np.float32)
    wanted = np.empty((count, spec.step_predictions), np.float32) if predictions and spec.step_predictions else None
    return Steps(first, outputs, wanted, h, c), Rows(inputs, _FIRST, np.array((count,)), h, c, outputs, wanted)


class Stepper(Protocol):
    """One stream's state, wherever it is kept."""

    model: ModelVersion
    done: int  # the number of the last step that ran

    async def run(
        self, inputs: Floats, step: int | None, deadline: float | None, *, refuse_non_finite: bool
    ) -> list[Steps]:
        """Run inputs (k,I), in order; step numbers the first, None is the next in order.

        A session may answer repeated steps from what it kept: then there are several `Steps`, k steps together.
        deadline is a time of `monotonic()`. Raises NonFinite or a ServiceError: nothing of this run was committed then.
        """


@dataclass(slots=True)
class StatelessStepper:
    """A stream that lives as long as its connection: the state is kept here."""

    model: ModelVersion
    inference: Inference
    engine: Engine  # the one that the stream began with: a reload does not change the weights under it
    h: Floats  # (L,1,P)
    c: Floats | None  # (L,1,H)
    predictions: bool  # whether the head is to run
    with_state: bool  # whether h and c are results
    book: Callable[[Timings], None]  # is told when each run waited and computed
    done: int = 0

    async def run(
        self, inputs: Floats, step: int | None, deadline: float | None, *, refuse_non_finite: bool
    ) -> list[Steps]:
        """Raises InvalidRequest for a step that is not the next."""
        if step is not None and step != self.done + 1:
            raise InvalidRequest.at(f"step is {step}; this stream expects {self.done + 1}", "step")
        # The engine replaces the state in place: a run that fails must leave ours as it was.
        h, c = self.h.copy(), None if self.c is None else self.c.copy()
        steps, rows = prepare(self.model.spec, self.done + 1, inputs, h, c, predictions=self.predictions)
        timings = await self.inference.run(self.model, rows, deadline, engine=self.engine)
        self.book(timings)
        if refuse_non_finite:
            check_finite([steps], state=self.with_state)
        self.h, self.c = h, c
        self.done += steps.count
        return [steps]
