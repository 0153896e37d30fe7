"""What an engine is: something that runs rows of unequal length through one model's weights.

`Rows` are sequences over flat buffers, so that a padded batch, a ragged batch, a slice in time of either, and a batch
of single steps need no copy. State is updated in place: running the first half of a row's steps and then the second
half with the same `Rows.h` is running the whole row.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service.spec import ModelSpec

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


@dataclass(slots=True)
class Rows:
    """B sequences over flat, C-contiguous buffers of N steps.

    Row b reads `inputs[starts[b] : starts[b] + lengths[b]]` and writes the same places of `outputs` and `predictions`,
    where those are given; steps that belong to no row are neither read nor written.

    - inputs (N, I); token ids are (N, 1), whole numbers in float32
    - starts, lengths (B,): first step and number of steps of each row; a length may be 0
    - h (L·D, B, P), c (L·D, B, H) for an LSTM: initial state on the way in, final state on the way out, in place;
      any strides, the last axis contiguous. PyTorch's order: layer 0 forward, layer 0 reverse, layer 1 forward …
    - outputs (N, D·P): hidden state of the last layer at each step; None if nobody asked
    - predictions (N, O): the head over each step's outputs; None if nobody asked or there is no head
    - pooled (B, O): the head over what is pooled of each row. `Inference` fills it when the rows are at their end
    """

    inputs: Floats
    starts: Integers
    lengths: Integers
    h: Floats
    c: Floats | None = None
    outputs: Floats | None = None
    predictions: Floats | None = None
    pooled: Floats | None = None

    def part(self, first: int, last: int) -> "Rows":
        """Some of the rows, over the same arrays."""
        which = slice(first, last)
        c = None if self.c is None else self.c[:, which]
        return replace(self, starts=self.starts[which], lengths=self.lengths[which], h=self.h[:, which], c=c)

    @property
    def steps(self) -> int:
        return int(self.lengths[0]) if len(self.lengths) == 1 else int(self.lengths.sum())


class Engine(ABC):
    """One model's weights on one device.

    It may be called from several threads at once, keeps no state between calls, and trusts what it is given.
    """

    name: str
    spec: ModelSpec
    nbytes: int  # of the loaded weights in memory
    step_seconds: float  # least time of one step of the longest row, however small the model; measured per engine
    flops_per_second: float  # rate of the arithmetic on one thread, where it takes more than that; measured per engine
    call_seconds: float = 0.0  # least time of a call; infinite if it must not run on the event loop
    turn_seconds: float = 2e-3  # what a scheduler's turn is cut to: the longest that a short job waits for another's
    turn_rows: int = 512  # most rows in a turn: everybody in it waits for its end

    def estimate(self, rows: Rows) -> float:
        """Seconds that rows will take on one thread, roughly and rather too many."""
        steps, count = len(rows.inputs), len(rows.lengths)
        longest = 1 if steps == count else steps if count == 1 else int(rows.lengths.max(initial=0))
        chain = longest * self.spec.states * self.step_seconds
        return self.call_seconds + chain + steps * self.spec.flops_per_step / self.flops_per_second

    @abstractmethod
    def run(self, batches: Sequence[Rows]) -> None:
        """Run every row of every batch together; results are written into the batches' own arrays."""

    @abstractmethod
    def predict(self, pooled: Floats) -> Floats:
        """The head over pooled outputs (B, D·P), of a model that pools: predictions (B, O)."""
