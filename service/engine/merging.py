"""Rows of many batches as one list: where each stands, and the copies to and from the batches' own arrays."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from service.engine.batching import Call
from service.engine.interface import Floats, Integers, Rows
from service.spec import ModelSpec


class Span(NamedTuple):
    """Steps that lie one after the other both in a batch's flat buffers and in a call's."""

    batch: Rows
    place: slice
    """Where they are in the batch."""
    at: slice
    """Where they are in the call."""


@dataclass(slots=True)
class Merged:
    """R rows of several batches, numbered through in the batches' order, and copies of their states.

    - batches: whose rows they are; owner (R,) the number of each row's batch, starts and lengths (R,) as in `Rows`
    - h (L·D, R, P), c (L·D, R, H) for an LSTM: contiguous; `store` writes them back
    """

    batches: Sequence[Rows]
    owner: Integers
    starts: Integers
    lengths: Integers
    h: Floats
    c: Floats | None

    @classmethod
    def of(cls, batches: Sequence[Rows], spec: ModelSpec) -> "Merged":
        """All rows of all batches."""
        counts = [rows.lengths.size for rows in batches]
        total = sum(counts)
        merged = cls(
            batches,
            owner=np.repeat(np.arange(len(batches)), counts),
            starts=_concatenated([rows.starts for rows in batches]),
            lengths=_concatenated([rows.lengths for rows in batches]),
            h=np.empty((spec.states, total, spec.state_size), np.float32),
            c=np.empty((spec.states, total, spec.hidden_size), np.float32) if spec.has_cell_state else None,
        )
        for rows, ours in zip(batches, merged._ranges(), strict=True):
            theirs = slice(None) if rows.slots is None else rows.slots
            merged.h[:, ours] = rows.h[:, theirs]
            if merged.c is not None and rows.c is not None:
                merged.c[:, ours] = rows.c[:, theirs]
        return merged

    def store(self) -> None:
        """Write the states back; those of rows without steps have not changed."""
        for rows, ours in zip(self.batches, self._ranges(), strict=True):
            theirs = slice(None) if rows.slots is None else rows.slots
            rows.h[:, theirs] = self.h[:, ours]
            if self.c is not None and rows.c is not None:
                rows.c[:, theirs] = self.c[:, ours]

    def _ranges(self) -> Iterator[slice]:
        begin = 0
        for rows in self.batches:
            yield slice(begin, begin + rows.lengths.size)
            begin += rows.lengths.size

    def spans(self, call: Call) -> list[Span]:
        """A call's steps as few stretches of memory; together they are its flat buffer of N steps, in order."""
        if len(call.rows) == 1:  # a step of one stream, above all: the same, sooner
            begin, steps = int(self.starts[call.rows[0]]) + call.begin, int(call.lengths[0])
            return [Span(self.batches[self.owner[call.rows[0]]], slice(begin, begin + steps), slice(0, steps))]
        owner, starts = self.owner[call.rows], self.starts[call.rows] + call.begin
        ends, at = starts + call.lengths, np.cumsum(call.lengths)
        breaks = np.flatnonzero((owner[1:] != owner[:-1]) | (starts[1:] != ends[:-1]))
        firsts, lasts = [0, *(breaks + 1).tolist()], [*breaks.tolist(), len(owner) - 1]
        return [
            Span(
                self.batches[owner[first]],
                slice(int(starts[first]), int(ends[last])),
                slice(int(at[first] - call.lengths[first]), int(at[last])),
            )
            for first, last in zip(firsts, lasts, strict=True)
        ]


def gathered(spans: Sequence[Span], input_size: int) -> Floats:
    """A call's inputs (N, I), one row after the other: a view where they lie so already."""
    if len(spans) == 1:
        return spans[0].batch.inputs[spans[0].place]
    inputs = np.empty((spans[-1].at.stop, input_size), np.float32)
    for span in spans:
        inputs[span.at] = span.batch.inputs[span.place]
    return inputs


def steps_that_ask(spans: Sequence[Span], name: str) -> Integers | None:
    """Which of a call's steps (≤ N,) have a place for results of that name; None if all have one."""
    asking = [span for span in spans if getattr(span.batch, name) is not None]
    if len(asking) == len(spans):
        return None
    return _concatenated([np.arange(span.at.start, span.at.stop) for span in asking])


def deliver(spans: Sequence[Span], name: str, values: Floats) -> None:
    """Write results, those of the steps that ask one after the other, to the batches' own arrays."""
    at = 0
    for span in spans:
        target = getattr(span.batch, name)
        if target is not None:
            steps = span.place.stop - span.place.start
            target[span.place] = values[at : at + steps]
            at += steps


def _concatenated(arrays: Sequence[Integers]) -> Integers:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
