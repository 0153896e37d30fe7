"""Checks of a request's arrays against a model, and the sentences that say what is wrong with them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np

from service.errors import InvalidRequest, Loc, NonFiniteOutput, spell
from service.serving.registry import ModelVersion
from service.spec import ModelSpec
from service.wire.arrays import FLOAT32, Floats, Integers, Ragged, finite

FEW_ROWS = 64  # batches up to this have their starts and lengths kept from one request to the next

Numbers = Floats | Integers | Ragged

invalid = InvalidRequest.at

# The forms of a state of P or H values a row, without that last axis. A form may leave out axes of size 1.
SEQUENCES, SEQUENCE = ("L·D,B",), ("L·D",)
ROWS, ROW = ("L,B", "B", ""), ("L,B", "B", "", "L")


@dataclass(frozen=True, slots=True)
class Limits:
    """Most numbers that one request may bring, and that one reply may hold."""

    input_values: int
    reply_values: int

    def check_inputs(self, inputs: Numbers) -> None:
        """Raise InvalidRequest if there are too many numbers."""
        if inputs.size > self.input_values:
            raise invalid(f"inputs holds {inputs.size} numbers; the limit is {self.input_values}", "inputs")

    def check_reply(
        self, spec: ModelSpec, rows: int, steps: int, returns: frozenset[str], *, by_step: bool = False
    ) -> int:
        """The numbers of states, and of what `returns` names, counted before there is room for them.

        by_step: whether each step gives a prediction of its own. Raises InvalidRequest.
        """
        outputs = steps * ("outputs" in returns) + rows * ("last" in returns)
        predictions = (spec.out_features or 0) * (steps if by_step or spec.pooling == "none" else rows)
        total = rows * spec.state_values + outputs * spec.output_size + predictions * ("predictions" in returns)
        if total > self.reply_values:
            raise invalid(
                f"states and reply would hold {total} numbers; the limit is {self.reply_values}: send fewer rows, "
                "or ask for less in returns",
                "inputs",
            )
        return total


class Sequences(NamedTuple):
    """Checked inputs: B rows over flat steps (N, I), and the form in which they came.

    `time` is T where the rows came as one array, None where they came as ragged lists. `padded` says whether some row
    is shorter than T.
    """

    steps: Floats
    starts: Integers
    lengths: Integers
    time: int | None
    batched: bool
    padded: bool = False


def sequences(inputs: Numbers, lengths: Numbers | None, model: ModelVersion, *, batch_first: bool) -> Sequences:
    """Check `inputs` and `lengths` against the model. Raises InvalidRequest."""
    inputs = vectors(inputs, (3, 2), "B,T" if batch_first else "T,B", model)
    if isinstance(inputs, Ragged):
        return _ragged(inputs, lengths, model, batch_first=batch_first)
    batched = inputs.ndim == 3
    if not batched:
        inputs = inputs[None]
    elif not batch_first:
        inputs = inputs.swapaxes(0, 1)
    batch, time, width = inputs.shape
    steps = np.ascontiguousarray(inputs, np.float32).reshape(batch * time, width)
    starts, counts = whole_rows(batch, time)
    if lengths is None:
        return Sequences(steps, starts, counts, time, batched)
    if not batched:
        raise invalid("lengths is for batches; these inputs are one sequence", "lengths")
    counts = _lengths(lengths, batch, time)
    return Sequences(steps, starts, counts, time, batched, padded=bool((counts < time).any()))


def steps(inputs: Numbers, model: ModelVersion) -> tuple[Floats, bool]:
    """One step of each row, (B,I) or (I), or token ids (B) or one, as (B,I); and whether B was there.

    Raises InvalidRequest.
    """
    rows: Floats = np.ascontiguousarray(vectors(inputs, (2, 1), "B", model), np.float32)
    return (rows, True) if rows.ndim == 2 else (rows[None], False)


def whole_rows(batch: int, time: int) -> tuple[Integers, Integers]:
    """`Rows.starts` and `Rows.lengths` (B,) of rows of `time` steps each, one after the other; read-only."""
    return _few_rows(batch, time) if batch <= FEW_ROWS else _rows(batch, time)


def _rows(batch: int, time: int) -> tuple[Integers, Integers]:
    starts, lengths = np.arange(0, batch * time, time, dtype=np.int64), np.full(batch, time, np.int64)
    starts.flags.writeable = lengths.flags.writeable = False
    return starts, lengths


_few_rows = lru_cache(256)(_rows)


def initial_state(
    h: Numbers | None,
    c: Numbers | None,
    model: ModelVersion,
    batch: int,
    forms: tuple[str, ...],
    names: tuple[str, str] = ("h", "c"),
) -> tuple[Floats, Floats | None]:
    """States h (L·D,B,P), and c (L·D,B,H) of an LSTM, that the engine may write into.

    If they did not come, they are what the model's file holds, else zeros.

    forms are those in which they may come, names those of the fields. Raises InvalidRequest.
    """
    spec = model.spec
    state = _state(h, names[0], (spec.states, batch, spec.state_size), forms, model.states.h0)
    if spec.has_cell_state:
        cell = _state(c, names[1], (spec.states, batch, spec.hidden_size), forms, model.states.c0)
        if (h is None) != (c is None):
            came, missing = names if c is None else names[::-1]
            raise invalid(f"{missing} is missing: {came} came, and an LSTM takes both or neither", missing)
        return state, cell
    if c is not None:
        raise invalid(f'{names[1]} is for LSTMs; model "{model.name}" is of kind {spec.kind}', names[1])
    return state, None


def _state(value: Any, name: str, shape: tuple[int, int, int], forms: tuple[str, ...], stored: Floats | None) -> Floats:
    if value is None:
        state = np.zeros(shape, np.float32)
        if stored is not None:
            state[:] = stored[:, None]
        return state
    allowed = _state_shapes(shape, forms, "P" if name.startswith("h") else "H")
    if isinstance(value, Ragged) or value.shape not in allowed:
        came = "is ragged" if isinstance(value, Ragged) else f"has shape {value.shape}"
        raise invalid(f"{name} {came}; expected {' or '.join(allowed.values())}", name)
    # What was decoded from JSON is nobody else's; a view of a safetensors body must not be written into.
    own: Floats = value if value.dtype == FLOAT32 and value.flags.writeable else np.array(value, np.float32)
    return own.reshape(shape)


@lru_cache(256)
def _state_shapes(shape: tuple[int, int, int], forms: tuple[str, ...], letter: str) -> dict[tuple[int, ...], str]:
    """The shapes that mean a state of this shape (L·D,B,·), each with its letters."""
    sizes = {"L": shape[0], "L·D": shape[0], "B": shape[1]}
    allowed: dict[tuple[int, ...], str] = {}
    for form in forms:
        axes = form.split(",") if form else []
        one = (*(sizes[axis] for axis in axes), shape[2])
        if prod(one) == prod(shape):
            allowed.setdefault(one, f"({','.join([*axes, letter])}) = {one}")
    return allowed


def returned(
    names: Sequence[str] | None, default: tuple[str, ...], model: ModelVersion, *, by_step: bool = False
) -> frozenset[str]:
    """What to send back: what was named, else what the model has of the default; of single steps, or of sequences.

    Raises InvalidRequest.
    """
    spec = model.spec
    predicts = bool(spec.step_predictions if by_step else spec.out_features)
    if names is None:
        return _existing(default, spec.has_cell_state, predicts)
    for index, name in enumerate(names):
        if not _existing((name,), spec.has_cell_state, predicts):
            lacks = f"is of kind {spec.kind}"
            if name == "predictions":
                pools = f"predicts from the {spec.pooling} of whole sequences; send them to /rnn/forward"
                lacks = pools if spec.head else "has no head"
            raise invalid(f'returns[{index}] is {name}, and model "{model.name}" {lacks}', "returns", index)
    return frozenset(names)


@cache
def _existing(names: tuple[str, ...], has_cell_state: bool, has_head: bool) -> frozenset[str]:
    missing = set() if has_cell_state else {"c", "c_n"}
    return frozenset(names) - (missing if has_head else missing | {"predictions"})


def refuse_non_finite(name: str, values: Floats, starts: Integers | None = None) -> None:
    """Raise NonFiniteOutput naming the row, if there is a NaN or infinity in values (B,·) or (L·D,B,·).

    Of values (N,·) of more steps than rows the step is named, too; starts (B,) are then the rows' first steps, rising.
    """
    if finite(values):
        return
    if values.ndim == 3:
        values = values.swapaxes(0, 1).reshape(values.shape[1], -1)
    row, step = int(np.argmin(np.isfinite(values).all(axis=-1))), ""
    if starts is not None and len(values) > len(starts):
        first, row = row, int(np.searchsorted(starts, row, side="right")) - 1
        step = f" at step {first - int(starts[row])}"
    raise NonFiniteOutput(
        f"{name} of row {row} is not finite{step}, and JSON has no NaN or infinity; ask for safetensors, or send "
        '"non_finite": "null"'
    )


def vectors(inputs: Numbers, axes: tuple[int, int], letters: str, model: ModelVersion) -> Numbers:
    """Inputs whose last axis are vectors of `in_features`; token ids come without that axis, and get it here.

    axes are the numbers of axes, of a batch and of one row; letters are a batch's, without I. Raises InvalidRequest.
    """
    takes_ids = model.spec.num_embeddings is not None
    if inputs.ndim + takes_ids not in axes or not inputs.size:
        came = f"has {inputs.ndim} axes" if inputs.size else "is empty"
        alone = letters.replace("B", "").strip(",")
        expected = f"token ids ({letters}) or {f'({alone})' if alone else 'one number'}"
        if not takes_ids:
            expected = f"({letters},I) or ({f'{alone},I'.strip(',')}), with I = {model.spec.in_features}"
        raise invalid(f"inputs {came}; expected {expected}", "inputs")
    if takes_ids:
        return _ids(inputs, model)
    _check_width(inputs, model)
    return inputs


def _ids(inputs: Numbers, model: ModelVersion) -> Numbers:
    """Token ids as vectors of one value. Raises InvalidRequest."""
    count = model.spec.num_embeddings or 0
    ids: Any = inputs.values if isinstance(inputs, Ragged) else inputs.reshape(-1)
    bad = (ids < 0) | (ids >= count) | (ids != np.floor(ids))
    vectors = Ragged(ids, [*inputs.sizes, [1] * ids.size]) if isinstance(inputs, Ragged) else inputs[..., None]
    if bad.any():
        index = int(np.argmax(bad))
        place = _place(vectors, index) if isinstance(vectors, Ragged) else np.unravel_index(index, vectors.shape[:-1])
        loc: Loc = ("inputs", *map(int, place))
        takes = f'model "{model.name}" takes token ids, whole numbers from 0 to {count - 1}'
        raise invalid(f"{spell(loc)} is {ids[index]:.9g}; {takes}", *loc)
    return vectors


def _check_width(inputs: Numbers, model: ModelVersion) -> None:
    """Raise InvalidRequest if a vector is not of `in_features`."""
    width = model.spec.in_features
    if isinstance(inputs, Ragged):
        widths = np.asarray(inputs.sizes[-1])
        wrong = widths != width
        if not wrong.any():
            return
        index = int(wrong.argmax())
        got, place = int(widths[index]), _place(inputs, index)
    elif inputs.shape[-1] == width:
        return
    else:
        got, place = inputs.shape[-1], [0] * (inputs.ndim - 1)
    loc: Loc = ("inputs", *place)
    takes = f"{width} values a step" if model.spec.front else f"input_size {width}"
    raise invalid(f'{spell(loc)} has {got} values; model "{model.name}" takes {takes}', *loc)


def _ragged(inputs: Ragged, lengths: Numbers | None, model: ModelVersion, *, batch_first: bool) -> Sequences:
    """Rows of unequal length: vectors of one size in two axes would have come as an array."""
    if not batch_first:
        raise invalid("inputs is ragged, which needs batch_first true", "inputs")
    if lengths is not None:
        raise invalid("lengths is for padded inputs; ragged ones have their own", "lengths")
    counts = np.array(inputs.sizes[1], np.int64)
    if not counts.all():
        row = int(counts.argmin())
        raise invalid(f"inputs[{row}] has no time steps; expected at least one", "inputs", row)
    steps = inputs.values.reshape(-1, model.spec.in_features)
    return Sequences(steps, counts.cumsum() - counts, counts, None, batched=True)


def _lengths(lengths: Numbers, batch: int, time: int) -> Integers:
    if isinstance(lengths, Ragged) or lengths.shape != (batch,):
        got = "a ragged list" if isinstance(lengths, Ragged) else f"shape {lengths.shape}"
        raise invalid(f"lengths is {got}; expected {batch} whole numbers, one a row", "lengths")
    with np.errstate(invalid="ignore"):
        counts = lengths.astype(np.int64)
    bad = np.flatnonzero((counts != lengths) | (counts < 1) | (counts > time))
    if bad.size:
        index = int(bad[0])
        message = f"lengths[{index}] is {lengths[index]:g}; expected a whole number from 1 to {time}"
        raise invalid(message, "lengths", index)
    return counts


def _place(values: Ragged, index: int) -> list[int]:
    """Where the innermost list number `index` stands."""
    path: list[int] = []
    for depth in reversed(values.sizes[:-1]):
        ends = np.cumsum(depth)
        outer = int(np.searchsorted(ends, index, side="right"))
        path.insert(0, index - int(ends[outer] - depth[outer]))
        index = outer
    return path
