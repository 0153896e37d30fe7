"""The scheduler: takes rows of unequal length through a stack of layers, in one call; written once, for all models.

A thread has some lanes. Each lane holds a row that is under way; when a row ends, the next of the table takes its lane.
Work goes in blocks: all lanes advance by the same number of steps, as many as the scratch memory holds and as the
shortest row has left, through one layer after the other:

    inputs ──linear──► x-parts ──recurrent──► h ──(inputs of the next layer)──► …  ──► outputs, head ──► predictions
                                 ▲  ▼
                              state of the row, in the caller's memory

Because sums have one order whatever the tile, neither the blocks nor the lanes show in the results. Several threads may
work on one table of rows: they draw row numbers from a counter in it.

The functions below emit that code. The tables it reads are arrays of 64-bit words, laid out as the enums say.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import partial

from service.engine.native.ir import Function, Value, Variable, module
from service.engine.native.processor import Processor

LINEAR = ["ptr", "ptr", "ptr", "i64"]
RECURRENT = ["ptr"] * 6 + ["i64"] * 2


class StackWord(IntEnum):
    """Words of a stack of layers: how many, where their `LayerWord`s are; the head, if `HEAD` is not 0."""

    LAYERS = 0
    LAYER_TABLE = 1
    HEAD = 2
    HEAD_PANELS = 3
    HEAD_STRIDE = 4
    HEAD_BYTES = 5
    OUTPUT_BYTES = 6


class LayerWord(IntEnum):
    """Words of a layer: addresses of its kernels and panels, and the sizes of its states.

    `_STRIDE`: bytes from one row to the next in scratch; `_BYTES`: of the state itself.
    """

    LINEAR = 0
    LINEAR_PANELS = 1
    RECURRENT = 2
    PANELS = 3
    PROJECTION = 4
    H_STRIDE = 5
    H_BYTES = 6
    C_STRIDE = 7
    C_BYTES = 8


class WorkWord(IntEnum):
    """Words of a thread's scratch memory: addresses of its parts, and how much they hold.

    `ROW_STEPS` is the most steps, summed over the lanes, that a block may have.
    """

    INPUTS = 0
    X_PARTS = 1
    H = 2
    H_NEXT = 3
    C = 4
    UNITS = 5
    LANES = 6
    LANE_COUNT = 7
    ROW_STEPS = 8


class RowWord(IntEnum):
    """Words of a row: addresses of its first step's input, output and prediction (0: not asked for), and of its state.

    `_STEP`: bytes from one step to the next, negative for a row that runs backwards; `_LAYER`: bytes from one layer's
    state to the next's.
    """

    X = 0
    X_STEP = 1
    OUT = 2
    OUT_STEP = 3
    PREDICTION = 4
    PREDICTION_STEP = 5
    H = 6
    H_LAYER = 7
    C = 8
    C_LAYER = 9
    STEPS = 10


ROW_WORDS = len(RowWord)
ROW_BYTES = 8 * ROW_WORDS
HEADER_WORDS = 2
"""Ahead of the rows in a table: the number of the next row to draw, and the number of rows."""


@dataclass(frozen=True)
class Schedule:
    """The scheduler's code. Compiled signature: schedule(ptr stack, ptr work, ptr rows)."""

    processor: Processor
    name = "schedule"

    def text(self) -> str:
        """The module in LLVM's language."""
        return _text()


def _text() -> str:
    f = Function("schedule", {"stack": "ptr", "work": "ptr", "rows": "ptr"})
    lanes, capacity = f.pointer("%work", WorkWord.LANES), f.word("%work", WorkWord.LANE_COUNT)
    count = f.word("%rows", 1)
    live = f.variable("i64", 0)
    with f.repeat() as done:
        _fill_lanes(f, lanes, capacity, count, live)
        rows = live.get()
        done(f.compare("eq", rows, 0))
        steps = _block(f, lanes, rows)
        _run_block(f, lanes, rows, steps)
        _advance(f, lanes, steps, live)
    return module([f], [])


def _fill_lanes(f: Function, lanes: Value, capacity: Value, count: Value, live: Variable) -> None:
    """Draw rows until the lanes are full or no row is left; rows of no steps are passed over."""
    with f.repeat() as full:
        full(f.compare("sge", live.get(), capacity))
        # A look before the draw: late threads must not push the counter on without end.
        full(f.compare("sge", f.word("%rows"), count))
        number = f.value("atomicrmw add ptr %rows, i64 1 seq_cst")
        full(f.compare("sge", number, count))
        row = f.at("%rows", f.add(f.mul(number, ROW_BYTES), 8 * HEADER_WORDS))
        with f.when(f.compare("sgt", f.word(row, RowWord.STEPS), 0)):
            f.copy(_lane(f, lanes, live.get()), row, ROW_BYTES)
            live.set(f.add(live.get(), 1))


def _block(f: Function, lanes: Value, rows: Value) -> Value:
    """How many steps the next block has: all lanes have that many left, and scratch memory holds them."""
    steps = f.variable("i64", f.most(f.div(f.word("%work", WorkWord.ROW_STEPS), rows), 1))
    with f.loop(rows) as i:
        steps.set(f.least(steps.get(), f.word(_lane(f, lanes, i), RowWord.STEPS)))
    return steps.get()


def _run_block(f: Function, lanes: Value, rows: Value, steps: Value) -> None:
    """Take every lane through `steps` steps of every layer, then write what was asked for."""
    inputs, x_parts = f.pointer("%work", WorkWord.INPUTS), f.pointer("%work", WorkWord.X_PARTS)
    row_steps = f.mul(rows, steps)
    with f.loop(rows) as i:
        lane = _lane(f, lanes, i)
        x, step = f.word(lane, RowWord.X), f.word(lane, RowWord.X_STEP)
        with f.loop(steps) as t:
            place = f.at(inputs, f.mul(f.add(f.mul(t, rows), i), 8))
            f.store("i64", f.add(x, f.mul(t, step)), place, 8)
    h, h_next = (f.variable("ptr", f.pointer("%work", part)) for part in (WorkWord.H, WorkWord.H_NEXT))
    with f.loop(f.word("%stack", StackWord.LAYERS)) as number:
        layer = f.at(f.pointer("%stack", StackWord.LAYER_TABLE), f.mul(number, 8 * len(LayerWord)))
        _run_layer(f, layer, number, lanes, rows, steps, h.get())
        _point_at(
            f,
            inputs,
            f.add(f.value(f"ptrtoint ptr {h.get()} to i64"), f.mul(rows, f.word(layer, LayerWord.H_STRIDE))),
            f.word(layer, LayerWord.H_STRIDE),
            row_steps,
        )
        before = h.get()
        h.set(h_next.get())
        h_next.set(before)
    size = f.word("%stack", StackWord.OUTPUT_BYTES)
    _write(f, lanes, rows, steps, RowWord.OUT, RowWord.OUT_STEP, size)
    head = f.pointer("%stack", StackWord.HEAD)
    with f.when(f.value(f"icmp ne ptr {head}, null")):
        f.call_at(head, LINEAR, [f.pointer("%stack", StackWord.HEAD_PANELS), inputs, x_parts, row_steps])
        stride = f.word("%stack", StackWord.HEAD_STRIDE)
        _point_at(f, inputs, f.value(f"ptrtoint ptr {x_parts} to i64"), stride, row_steps)
        _write(
            f, lanes, rows, steps, RowWord.PREDICTION, RowWord.PREDICTION_STEP, f.word("%stack", StackWord.HEAD_BYTES)
        )


def _run_layer(f: Function, layer: Value, number: Value, lanes: Value, rows: Value, steps: Value, h: Value) -> None:
    """One layer's block: states in, both kernels, states out."""
    inputs, x_parts, c = (f.pointer("%work", part) for part in (WorkWord.INPUTS, WorkWord.X_PARTS, WorkWord.C))
    f.call_at(
        f.pointer(layer, LayerWord.LINEAR),
        LINEAR,
        [f.pointer(layer, LayerWord.LINEAR_PANELS), inputs, x_parts, f.mul(rows, steps)],
    )
    h_stride, c_stride = f.word(layer, LayerWord.H_STRIDE), f.word(layer, LayerWord.C_STRIDE)
    move = partial(_move_states, f, lanes, rows, number)
    move(RowWord.H, h, h_stride, f.word(layer, LayerWord.H_BYTES), inward=True)
    move(RowWord.C, c, c_stride, f.word(layer, LayerWord.C_BYTES), inward=True)
    panels, projection = f.pointer(layer, LayerWord.PANELS), f.pointer(layer, LayerWord.PROJECTION)
    f.call_at(
        f.pointer(layer, LayerWord.RECURRENT),
        RECURRENT,
        [panels, projection, x_parts, h, c, f.pointer("%work", WorkWord.UNITS), rows, steps],
    )
    last = f.at(h, f.mul(f.mul(steps, rows), h_stride))
    move(RowWord.H, last, h_stride, f.word(layer, LayerWord.H_BYTES), inward=False)
    move(RowWord.C, c, c_stride, f.word(layer, LayerWord.C_BYTES), inward=False)


def _move_states(
    f: Function,
    lanes: Value,
    rows: Value,
    layer: Value,
    state: RowWord,
    scratch: Value,
    stride: Value,
    size: Value,
    *,
    inward: bool,
) -> None:
    """Copy the layer's state of every lane from the caller's memory into scratch, or back."""
    with f.when(f.compare("ne", size, 0)), f.loop(rows) as i:
        lane = _lane(f, lanes, i)
        # The word that follows a state's address is the way to the next layer's.
        theirs = f.at(f.pointer(lane, state), f.mul(layer, f.word(lane, state + 1)))
        ours = f.at(scratch, f.mul(i, stride))
        f.copy(*((ours, theirs) if inward else (theirs, ours)), size)


def _point_at(f: Function, table: Value, first: Value, stride: Value, count: Value) -> None:
    """Let the table's entries point at consecutive places."""
    with f.loop(count) as i:
        f.store("i64", f.add(first, f.mul(i, stride)), f.at(table, f.mul(i, 8)), 8)


def _write(f: Function, lanes: Value, rows: Value, steps: Value, place: RowWord, stride: RowWord, size: Value) -> None:
    """Copy what the input table points at to where each lane wants it, if it does."""
    inputs = f.pointer("%work", WorkWord.INPUTS)
    with f.loop(rows) as i:
        lane = _lane(f, lanes, i)
        target = f.pointer(lane, place)
        with f.when(f.value(f"icmp ne ptr {target}, null")):
            step = f.word(lane, stride)
            with f.loop(steps) as t:
                source = f.pointer(f.at(inputs, f.mul(f.add(f.mul(t, rows), i), 8)))
                f.copy(f.at(target, f.mul(t, step)), source, size)


def _advance(f: Function, lanes: Value, steps: Value, live: Variable) -> None:
    """Move every lane on by `steps`; the last lane takes the place of one that has ended."""
    i = f.variable("i64", 0)
    with f.repeat() as stop:
        stop(f.compare("sge", i.get(), live.get()))
        lane = _lane(f, lanes, i.get())
        left = f.sub(f.word(lane, RowWord.STEPS), steps)
        f.store("i64", left, f.at(lane, 8 * RowWord.STEPS), 8)
        for address, stride in (
            (RowWord.X, RowWord.X_STEP),
            (RowWord.OUT, RowWord.OUT_STEP),
            (RowWord.PREDICTION, RowWord.PREDICTION_STEP),
        ):
            now = f.word(lane, address)
            moved = f.add(now, f.mul(steps, f.word(lane, stride)))
            f.store("i64", f.select(f.compare("eq", now, 0), 0, moved), f.at(lane, 8 * address), 8)
        i.set(f.add(i.get(), 1))
    i.set(0)
    with f.repeat() as stop:
        stop(f.compare("sge", i.get(), live.get()))
        lane = _lane(f, lanes, i.get())
        ended = f.compare("eq", f.word(lane, RowWord.STEPS), 0)
        with f.when(ended):
            live.set(f.sub(live.get(), 1))
            f.copy(lane, _lane(f, lanes, live.get()), ROW_BYTES)
        i.set(f.add(i.get(), f.select(ended, 0, 1)))


def _lane(f: Function, lanes: Value, number: Value) -> Value:
    return f.at(lanes, f.mul(number, ROW_BYTES))
