"""How the next token is drawn from a prediction.

Nothing is remembered from one draw to the next: the random number of a step is a function of the row's seed and the
step's number, so a row draws the same tokens alone, in a batch, and when it goes on later.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine.interface import Floats, Integers
from service.errors import NonFiniteOutput

UNIFORMS = 8192  # numbers made at a time: one by one each would take as long as the rest of a draw
COLDEST = 1e-30  # lower temperatures count as this one, so that nothing overflows


@dataclass(slots=True)
class Sampling:
    """Draws tokens of rows with their own seeds (B,).

    - firsts (B,): number of the first step that draws, counted over each row's sequence
    - temperature: 0 takes the most likely token, of equals the lowest id
    - top_k, top_p: only tokens as likely as the k-th are drawn, and of these the likeliest, as many as it takes for a
      probability of top_p; tokens as likely as the last of them are drawn, too
    - normalized: predictions are probabilities, not logits
    """

    seeds: NDArray[np.uint64]
    firsts: Integers
    temperature: float
    top_k: int | None
    top_p: float
    normalized: bool
    _block: Any = None

    def draw(self, predictions: Floats, step: int) -> Integers:
        """One token of each row of predictions (B,O), for the step that comes `step` steps after the first.

        Raises NonFiniteOutput if a prediction has NaN or infinity where the likeliest token should be.
        """
        tokens: Integers
        if not self.temperature:
            if not isfinite(np.maximum.reduce(predictions, axis=None)):
                raise _nothing_to_draw(predictions, step)
            tokens = predictions.argmax(axis=1)
            return tokens
        # By ufuncs, here and below: numpy's methods of the same name take twice as long for a row.
        likeliest = np.maximum.reduce(predictions, axis=1, keepdims=True)
        if not np.logical_and.reduce(np.isfinite(likeliest), axis=None):
            raise _nothing_to_draw(predictions, step)
        weights = predictions.astype(np.float64)
        temperature = max(self.temperature, COLDEST)
        if self.normalized:
            weights /= likeliest
            weights **= 1 / temperature
        else:
            weights -= likeliest
            if temperature != 1:
                weights /= temperature
            np.exp(weights, out=weights)
        if self.top_k is not None and self.top_k < weights.shape[1]:
            weights[weights < np.partition(weights, -self.top_k, axis=1)[:, -self.top_k, None]] = 0
        if self.top_p < 1:
            falling = np.sort(weights, axis=1)[:, ::-1]
            sums = np.add.accumulate(falling, axis=1)
            last = np.add.reduce(sums < self.top_p * sums[:, -1:], axis=1, keepdims=True)
            weights[weights < np.take_along_axis(falling, last, axis=1)] = 0
        sums = np.add.accumulate(weights, axis=1)
        tokens = np.add.reduce(sums <= self._uniform(step) * sums[:, -1:], axis=1)
        return tokens  # by its type

    def _uniform(self, step: int) -> NDArray[np.float64]:
        """The random numbers (B,1) of a step, from 0 up to but not 1."""
        size = max(1, UNIFORMS // len(self.seeds))
        if step % size == 0:
            self._block = uniforms(self.seeds[:, None], self.firsts[:, None] + np.arange(step, step + size))
        block: NDArray[np.float64] = self._block
        return block[:, step % size, None]


def uniforms(seeds: NDArray[np.uint64], numbers: Integers) -> NDArray[np.float64]:
    """Random numbers, from 0 up to but not 1, of seeds and the numbers of steps.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014).
    """
    golden = np.uint64(0x9E3779B97F4A7C15)
    mixed = _mix(_mix(seeds + golden) + numbers.astype(np.uint64) * golden)
    # Of 52 bits: the largest number times any sum is less than that sum.
    return (mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _nothing_to_draw(predictions: Floats, step: int) -> NonFiniteOutput:
    row = int(np.argmin(np.isfinite(predictions.max(axis=1))))
    return NonFiniteOutput(
        f"predictions of row {row} are not finite at step {step + 1}: no token can be drawn from them"
    )
