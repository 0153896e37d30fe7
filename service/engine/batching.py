"""Which rows go through the torch modules together: few calls, bounded in memory, whatever the lengths.

Rows are sorted by length. Rows of one length are a plain batch; rows of several run packed, or, where a plain batch is
much faster, side by side: grouped by lengths that are alike, each group as a plain batch as far as the shortest goes,
and packed from there on. Nothing is padded: that would run a row on past its end and lose its final state.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from service.engine.interface import Integers

ALIKE = 0.5
"""Lengths are alike if the shortest is at least this part of the longest."""

MIN_SLICE_STEPS = 16
"""Fewest steps that a batch is cut to in time, if need be; rather fewer rows than fewer steps."""


@dataclass(frozen=True, slots=True)
class Call:
    """Rows that run together: their numbers and lengths (B,), longest first, none 0; from step `begin` of each on."""

    rows: Integers
    lengths: Integers
    begin: int = 0

    @property
    def uniform(self) -> bool:
        """Whether all rows have the same length."""
        return bool(self.lengths[0] == self.lengths[-1])

    @property
    def steps(self) -> int:
        """N, the time steps of all rows."""
        return int(self.lengths.sum())


def plan(lengths: Integers, *, most_steps: int, sliceable: bool, side_by_side: bool = False) -> Iterator[Call]:
    """Calls that together run every step of rows of these lengths (R,), each row's steps in order.

    No call has more than most_steps steps, if rows can be cut in time (sliceable); else one that has is of one row.
    """
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    live = int(np.count_nonzero(falling))
    first = 0
    while first < live:
        last = live
        if side_by_side:
            last = int(np.count_nonzero(falling[:live] >= falling[first] * ALIKE))
        group = Call(order[first:last], falling[first:last])
        for part in _parts(group) if side_by_side and sliceable else (group,):
            yield from _cut(part, most_steps, sliceable=sliceable)
        first = last


def packing(lengths: Integers) -> tuple[Integers, Integers]:
    """How rows of falling lengths (B,) that lie one after the other become a packed sequence of N steps.

    Gives the steps (N,) in packed order, and the number of rows at each time step (T,).
    """
    active = np.count_nonzero(lengths[None, :] > np.arange(lengths[0])[:, None], axis=1)
    times = np.repeat(np.arange(lengths[0]), active)
    rows = np.arange(active.sum()) - np.repeat(np.cumsum(active) - active, active)
    return (np.cumsum(lengths) - lengths)[rows] + times, active


def _parts(group: Call) -> Iterator[Call]:
    """The steps that all rows of a group have, and the rest."""
    if group.uniform:
        yield group
        return
    shared = int(group.lengths[-1])
    yield Call(group.rows, np.full_like(group.lengths, shared))
    left = int(np.count_nonzero(group.lengths > shared))
    yield Call(group.rows[:left], group.lengths[:left] - shared, shared)


def _cut(call: Call, most_steps: int, *, sliceable: bool) -> Iterator[Call]:
    """The call in pieces of at most most_steps steps: in time where that can be, else by rows."""
    if call.steps <= most_steps:
        yield call
        return
    longest = int(call.lengths[0])
    shortest_slice = min(longest, MIN_SLICE_STEPS) if sliceable else longest
    width = max(1, most_steps // shortest_slice)
    edges = [*range(0, len(call.rows), width), len(call.rows)]
    for first, last in pairwise(edges):
        rows, lengths = call.rows[first:last], call.lengths[first:last]
        slice_steps = max(1, most_steps // len(rows)) if sliceable else longest
        for begin in range(0, int(lengths[0]), slice_steps):
            left = int(np.count_nonzero(lengths > begin))
            yield Call(rows[:left], np.minimum(lengths[:left] - begin, slice_steps), call.begin + begin)
