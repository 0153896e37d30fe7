"""Do these arrays fit this model: the checks behind the pydantic models, and the sentences that say why not."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from service.errors import FieldError, InvalidRequest, Loc, NonFiniteOutput, spell
from service.spec import ModelSpec
from service.wire.arrays import Floats, Integers, Ragged, finite

FLOAT32 = np.dtype(np.float32)

FEW_ROWS = 64
"""Batches up to this have their starts and lengths kept from one request to the next."""

Numbers = Floats | Integers | Ragged


@dataclass(frozen=True, slots=True)
class Limits:
    """Most numbers that one request may bring, and that one reply may hold."""

    input_values: int
    reply_values: int


@dataclass(slots=True)
class Target:
    """The model that a request is checked against: pydantic's validation context.

    `text` says that plain fields came as strings (safetensors metadata) and are to be read from them.
    """

    name: str
    spec: ModelSpec
    limits: Limits
    text: bool = False


@dataclass(slots=True)
class Sequences:
    """Checked inputs: B rows over flat steps (N, I), and the form in which they came.

    `time` is T where the rows came as one array, None where they came as ragged lists.
    """

    steps: Floats
    starts: Integers
    lengths: Integers
    time: int | None
    batched: bool
    padded: bool = False
    """Whether some row is shorter than the array that holds it."""

    @property
    def batch(self) -> int:
        """B."""
        return self.lengths.size


def wrong(message: str, *loc: str | int) -> InvalidRequest:
    """The error of one field, or of one place in it."""
    return InvalidRequest([FieldError(loc, message)])


def sequences(inputs: Numbers, lengths: Numbers | None, target: Target, *, batch_first: bool) -> Sequences:
    """Check `inputs` and `lengths` against the model. Raises InvalidRequest."""
    size = inputs.values.size if isinstance(inputs, Ragged) else inputs.size
    if size > target.limits.input_values:
        raise wrong(f"inputs holds {size} numbers; the limit is {target.limits.input_values}", "inputs")
    if size == 0:
        raise wrong("inputs is empty; expected at least one row of at least one time step", "inputs")
    if isinstance(inputs, Ragged):
        return _ragged(inputs, lengths, target, batch_first=batch_first)
    return _rectangular(inputs, lengths, target, batch_first=batch_first)


def steps(inputs: Numbers, target: Target) -> tuple[Floats, bool]:
    """Check one step of each row, (B,I) or (I); give (B,I) and whether it was batched. Raises InvalidRequest."""
    if isinstance(inputs, Ragged):
        vectors(inputs, "inputs", target)
    if isinstance(inputs, Ragged) or inputs.ndim not in (1, 2):
        expected = f"(B,I) or (I), with I = {target.spec.input_size}"
        raise wrong(f"inputs has {inputs.ndim} axes; expected one step of each row, {expected}", "inputs")
    if inputs.size == 0:
        raise wrong("inputs is empty; expected at least one row", "inputs")
    if inputs.shape[-1] != target.spec.input_size:
        raise _wrong_width(("inputs", *[0] * (inputs.ndim - 1)), inputs.shape[-1], target)
    if inputs.size > target.limits.input_values:
        raise wrong(f"inputs holds {inputs.size} numbers; the limit is {target.limits.input_values}", "inputs")
    if inputs.ndim == 1:
        inputs = inputs.reshape(1, -1)
        return np.ascontiguousarray(inputs, np.float32), False
    return np.ascontiguousarray(inputs, np.float32), True


def whole_rows(batch: int, time: int) -> tuple[Integers, Integers]:
    """`Rows.starts` and `Rows.lengths` (B,) of rows of `time` steps each, one after the other; read-only."""
    return _few_rows(batch, time) if batch <= FEW_ROWS else _rows(batch, time)


def _rows(batch: int, time: int) -> tuple[Integers, Integers]:
    starts, lengths = np.arange(0, batch * time, time, dtype=np.int64), np.full(batch, time, np.int64)
    starts.flags.writeable = lengths.flags.writeable = False
    return starts, lengths


_few_rows = lru_cache(256)(_rows)


def state(value: Numbers, loc: str, expected: tuple[int, ...], letters: str) -> Floats:
    """Check an initial state; letters name its axes. Raises InvalidRequest."""
    if isinstance(value, Ragged):
        raise wrong(f"{loc} is ragged; expected shape {letters} = {expected}", loc)
    if value.shape != expected:
        raise wrong(f"{loc} has shape {value.shape}; expected {letters} = {expected}", loc)
    return value.astype(np.float32, copy=False)


def vectors(values: Ragged, loc: str, target: Target) -> None:
    """Check that every innermost list has `input_size` numbers. Raises InvalidRequest with the place of the first."""
    widths = values.sizes[-1]
    if widths.count(target.spec.input_size) != len(widths):
        index = next(index for index, width in enumerate(widths) if width != target.spec.input_size)
        raise _wrong_width(_place(values, index, loc), widths[index], target)


def refuse_cell_state(value: Any, loc: str, target: Target) -> None:
    """Raise InvalidRequest if a cell state came for a model that has none."""
    if value is not None and not target.spec.has_cell_state:
        raise wrong(f'{loc} is for LSTMs; model "{target.name}" is of kind {target.spec.kind}', loc)


def refuse_non_finite(name: str, values: Floats, starts: Integers | None = None) -> None:
    """Raise NonFiniteOutput naming the row, if there is a NaN or infinity in values (B, ·); with starts, the step too.

    Then values are (N, ·), and starts (B,) the first steps of the rows in them, rising.
    """
    if finite(values):
        return
    bad = np.flatnonzero(~np.isfinite(values).all(axis=-1))
    row, step = int(bad[0]), ""
    if starts is not None:
        row = int(np.searchsorted(starts, bad[0], side="right")) - 1
        step = f" at step {int(bad[0]) - int(starts[row])}"
    raise NonFiniteOutput(
        f"{name} of row {row} is not finite{step}, and JSON has no NaN or infinity; ask for safetensors, or send "
        '"non_finite": "null"'
    )


def refuse_too_much(rows: int, steps: int, wants: frozenset[str], target: Target) -> None:
    """Check, before any room is made, how many numbers a request leads to: its states, and what it wants per step.

    Raises InvalidRequest.
    """
    spec = target.spec
    per_step = ("outputs" in wants) * spec.output_size + ("predictions" in wants) * (spec.out_features or 0)
    total = rows * spec.state_values + steps * per_step
    if total > target.limits.reply_values:
        raise wrong(
            f"states and reply would hold {total} numbers; the limit is {target.limits.reply_values}: send fewer rows, "
            "or ask for less in returns",
            "inputs",
        )


def _rectangular(inputs: Floats | Integers, lengths: Numbers | None, target: Target, *, batch_first: bool) -> Sequences:
    if inputs.ndim not in (2, 3):
        expected = "(B,T,I) or (T,I)" if batch_first else "(T,B,I) or (T,I)"
        raise wrong(f"inputs has {inputs.ndim} axes; expected {expected}, with I = {target.spec.input_size}", "inputs")
    if inputs.shape[-1] != target.spec.input_size:
        raise _wrong_width(("inputs", *[0] * (inputs.ndim - 1)), inputs.shape[-1], target)
    batched = inputs.ndim == 3
    if not batched:
        inputs = inputs[None]
    elif not batch_first:
        inputs = inputs.swapaxes(0, 1)
    batch, time, width = inputs.shape
    steps = np.ascontiguousarray(inputs, np.float32).reshape(batch * time, width)
    if lengths is None:
        return Sequences(steps, *whole_rows(batch, time), time, batched)
    if not batched:
        raise wrong("lengths is for batches; these inputs are one sequence", "lengths")
    counts = _lengths(lengths, batch, time)
    starts, _ = whole_rows(batch, time)
    return Sequences(steps, starts, counts, time, batched, padded=bool((counts < time).any()))


def _ragged(inputs: Ragged, lengths: Numbers | None, target: Target, *, batch_first: bool) -> Sequences:
    if inputs.ndim == 3 and not batch_first:
        raise wrong("inputs is ragged, which needs batch_first true", "inputs")
    if inputs.ndim == 3 and lengths is not None:
        raise wrong("lengths is for padded inputs; ragged ones have their own", "lengths")
    if inputs.ndim == 3 and 0 in inputs.sizes[1]:
        row = inputs.sizes[1].index(0)
        raise wrong(f"inputs[{row}] has no time steps; expected at least one", "inputs", row)
    vectors(inputs, "inputs", target)
    # Vectors of one size in two axes would have been an array: what is left is rows of unequal length.
    counts = np.array(inputs.sizes[1], np.int64)
    steps = inputs.values.reshape(-1, target.spec.input_size)
    return Sequences(steps, np.cumsum(counts) - counts, counts, None, batched=True)


def _lengths(lengths: Numbers, batch: int, time: int) -> Integers:
    if isinstance(lengths, Ragged) or lengths.shape != (batch,):
        got = "a ragged list" if isinstance(lengths, Ragged) else f"shape {lengths.shape}"
        raise wrong(f"lengths is {got}; expected {batch} whole numbers, one a row", "lengths")
    with np.errstate(invalid="ignore"):
        counts = lengths.astype(np.int64)
    bad = np.flatnonzero((counts != lengths) | (counts < 1) | (counts > time))
    if bad.size:
        index = int(bad[0])
        message = f"lengths[{index}] is {lengths[index]:g}; expected a whole number from 1 to {time}"
        raise wrong(message, "lengths", index)
    return counts


def _wrong_width(loc: Loc, got: int, target: Target) -> InvalidRequest:
    place = spell(loc)
    return wrong(f'{place} has {got} values; model "{target.name}" takes input_size {target.spec.input_size}', *loc)


def _place(values: Ragged, index: int, loc: str) -> Loc:
    """Where the innermost list number `index` stands."""
    path: list[int] = []
    for depth in reversed(values.sizes[:-1]):
        ends = np.cumsum(depth)
        outer = int(np.searchsorted(ends, index, side="right"))
        path.insert(0, index - int(ends[outer] - depth[outer]))
        index = outer
    return (loc, *path)
