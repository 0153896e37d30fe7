"""Rows of a model that go on by themselves: each prediction makes the next input.

begin ─► rows ─► engine ─► take ─► next inputs ─► rows …
                            └──► results; rows that have met their end leave
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Engine, Floats, Integers, Rows
from service.serving.sampling import Sampling
from service.spec import ModelSpec

TAKE_SECONDS = 15e-6  # about what a step costs beside the engine's call


@dataclass(eq=False, slots=True)
class Generation:
    """B rows, and up to `steps` predictions of each.

    - inputs (B,I): what the first step consumes
    - returns: which results are asked for
    - sampling: how tokens are drawn; None where the model takes vectors
    - stop: tokens after which a row ends
    - feedback: which predictions replace which inputs, as their places; None: all, in order
    - future (B,steps-1,I): the other inputs of the steps after the first
    - step: how many steps have run; counts (B,): how many of each row
    - live: rows that have not ended
    - results: of tokens (B,steps), predictions (B,steps,O), outputs (B,steps,P) those that are kept; up to counts
    """

    spec: ModelSpec
    inputs: Floats
    steps: int
    returns: frozenset[str]
    sampling: Sampling | None = None
    stop: Container[int] = ()
    feedback: tuple[Sequence[int], Sequence[int]] | None = None
    future: Floats | None = None
    results: dict[str, NDArray[Any]] = field(default_factory=dict)
    step: int = 0
    live: int = 0
    counts: Integers = field(init=False)
    rows: Rows = field(init=False)

    def __post_init__(self) -> None:
        batch, steps = len(self.inputs), self.steps
        if self.sampling:
            self.results["tokens"] = np.zeros((batch, steps), np.int64)
        for name, width in (("predictions", self.spec.step_predictions), ("outputs", self.spec.output_size)):
            if name in self.returns:
                self.results[name] = np.zeros((batch, steps, width), np.float32)

    def begin(self, h: Floats, c: Floats | None) -> None:
        """Begin, also anew, from h (L,B,P), and c (L,B,H) of an LSTM, which become the final states."""
        batch = self.live = len(self.inputs)
        self.step, self.counts = 0, np.zeros(batch, np.int64)
        predictions = np.empty((batch, self.spec.step_predictions), np.float32)
        lengths = np.ones(batch, np.int64)
        self.rows = Rows(self.inputs.copy(), np.arange(batch), lengths, h, c, predictions=predictions)

    @property
    def nbytes(self) -> int:
        arrays = (self.inputs, self.future, *self.results.values(), self.rows.h, self.rows.c)
        return sum(array.nbytes for array in arrays if array is not None)

    @property
    def states(self) -> dict[str, Floats]:
        """h_n and c_n, as far as they are asked for."""
        found = {"h_n": self.rows.h, "c_n": self.rows.c}
        return {name: state for name, state in found.items() if name in self.returns and state is not None}

    def estimate(self, engine: Engine) -> float:
        """Seconds that all steps will take."""
        return self.steps * (engine.estimate(self.rows) + TAKE_SECONDS)

    def run(self, engine: Engine) -> float:
        """Run to the end; gives the seconds that it took."""
        begun = monotonic()
        while self.live:
            engine.run([self.rows])
            self.take()
        return monotonic() - begun

    def take(self) -> None:
        """Take what a step of `rows` has given: keep it, and make the next inputs. Raises as `Sampling.draw` does."""
        rows, step, results = self.rows, self.step, self.results
        given = rows.predictions
        assert given is not None  # noqa: S101  # `begin` has made it
        if self.sampling:
            results["tokens"][:, step] = rows.inputs[:, 0] = self.sampling.draw(given, step)
        elif step + 1 < self.steps:
            self._feed_back(given)
        if "predictions" in results:
            results["predictions"][:, step] = given
        if "outputs" in results:
            results["outputs"][:, step] = rows.h[-1]
        self.step = step + 1
        if self.step == self.steps:
            self.counts[rows.lengths > 0] = self.steps
            self.live = 0
        elif self.stop:
            self._end_rows(given)

    def _feed_back(self, given: Floats) -> None:
        inputs = self.rows.inputs
        if self.future is not None:
            inputs[...] = self.future[:, self.step]
        if self.feedback is None:
            inputs[...] = given
        else:
            predicted, replaced = self.feedback
            inputs[:, replaced] = given[:, predicted]

    def _end_rows(self, given: Floats) -> None:
        lengths = self.rows.lengths
        for row, token in enumerate(self.rows.inputs[:, 0].tolist()):
            if token in self.stop and lengths[row]:
                lengths[row] = 0  # the engine then leaves its state alone
                given[row] = 1  # and something can still be drawn of it
                self.counts[row] = self.step
                self.live -= 1
