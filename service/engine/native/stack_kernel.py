"""The stack kernel takes rows of unequal length through front, stack and head, in one call; one serves all models.

A thread has some lanes. Each lane holds a row that is under way; when a row ends, the next of the table takes its lane.
Work goes in blocks: all lanes advance by the same number of steps, as many as the scratch memory holds and as the
shortest row has left, through one layer after the other. Several threads may work on one table of rows: they draw row
numbers from a counter in it.

The tables that the kernel reads are arrays of 64-bit words, laid out as the enums say.
"""

from dataclasses import dataclass
from enum import IntEnum

from service.engine.native.compiler import Processor
from service.engine.native.ir import Function, Module, Value, Variable
from service.engine.native.rows import COUNT, HEADER_BYTES, LANE_COUNT, ROW_BYTES, RowWord

LINEAR = ["ptr"] * 3 + ["i64"]
RECURRENT = ["ptr"] * 7 + ["i64"] * 2


class StackWord(IntEnum):
    """Words of a stack: how many layers, and maps of front and head there are, and where their words are."""

    LAYERS, LAYER_TABLE, FRONT, FRONT_TABLE, HEAD, HEAD_TABLE, OUTPUT_BYTES, PREDICTION_BYTES = range(8)


class MapWord(IntEnum):
    """Words of a map: kernel and parameters, bytes from one result to the next, and the `BufferWord` of all results."""

    CODE, PARAMETERS, STRIDE, TARGET = range(4)


class LayerWord(IntEnum):
    """Words of a layer: addresses of its kernels and panels, and the sizes of its states.

    `_STRIDE`: bytes from one row to the next in scratch; `_BYTES`: of the state itself.
    """

    LINEAR, LINEAR_PANELS, RECURRENT, PANELS, PROJECTION, H_STRIDE, H_BYTES, C_STRIDE, C_BYTES = range(9)


class BufferWord(IntEnum):
    """Words of a thread's buffers: their addresses; `ROW_STEPS`: most steps, summed over the lanes, of a block."""

    INPUTS, X_PARTS, MAPPED, H, H_NEXT, C, UNITS, UNIT_TABLE, LANES, ROW_STEPS = range(10)


@dataclass(frozen=True)
class StackKernel:
    """Compiled signature: run_stack(ptr stack, ptr buffers, ptr rows)."""

    processor: Processor
    name = "run_stack"

    def text(self) -> str:
        module = Module()
        f = module.function(self.name, {"stack": "ptr", "buffers": "ptr", "rows": "ptr"})
        lanes, live = f.pointer("%buffers", BufferWord.LANES), f.variable("i64", 0)
        with f.repeat() as done:
            _fill_lanes(f, lanes, live)
            rows = live.get()
            done(f.compare("eq", rows, 0))
            block = Block(f, lanes, rows)
            block.run()
            block.advance(live)
        return module.text()


def _fill_lanes(f: Function, lanes: Value, live: Variable) -> None:
    """Draw rows until the lanes are full or no row is left; rows of no steps are passed over."""
    capacity, count = f.word("%rows", LANE_COUNT), f.word("%rows", COUNT)
    with f.repeat() as full:
        full(f.compare("sge", live.get(), capacity))
        # A look before the draw: late threads must not push the counter on without end.
        full(f.compare("sge", f.word("%rows"), count))
        number = f.value("atomicrmw add ptr %rows, i64 1 seq_cst")
        full(f.compare("sge", number, count))
        row = f.at("%rows", f.add(f.mul(number, ROW_BYTES), HEADER_BYTES))
        with f.when(f.compare("sgt", f.word(row, RowWord.STEPS), 0)):
            f.copy(f.at(lanes, f.mul(live.get(), ROW_BYTES)), row, ROW_BYTES)
            live.set(f.add(live.get(), 1))


class Block:
    """Emits a block: all lanes advance by as many steps as all of them have left, and as scratch memory holds."""

    def __init__(self, function: Function, lanes: Value, rows: Value) -> None:
        f = self.f = function
        self.lanes, self.rows = lanes, rows
        steps = f.variable("i64", f.most(f.div(f.word("%buffers", BufferWord.ROW_STEPS), rows), 1))
        with f.loop(rows) as i:
            steps.set(f.least(steps.get(), f.word(self.lane(i), RowWord.STEPS)))
        self.steps = steps.get()
        self.row_steps = f.mul(rows, self.steps)
        self.inputs = f.pointer("%buffers", BufferWord.INPUTS)
        self.x_parts = f.pointer("%buffers", BufferWord.X_PARTS)
        self.c = f.pointer("%buffers", BufferWord.C)

    def lane(self, number: Value) -> Value:
        return self.f.at(self.lanes, self.f.mul(number, ROW_BYTES))

    def run(self) -> None:
        """Take every lane through every layer, then write what was asked for."""
        f = self.f
        self._point_at_rows()
        self._run_maps(StackWord.FRONT)
        h, h_next = (f.variable("ptr", f.pointer("%buffers", part)) for part in (BufferWord.H, BufferWord.H_NEXT))
        with f.loop(f.word("%stack", StackWord.LAYERS)) as number:
            layer = f.at(f.pointer("%stack", StackWord.LAYER_TABLE), f.mul(number, 8 * len(LayerWord)))
            before = h.get()
            self._run_layer(layer, number, before)
            stride = f.word(layer, LayerWord.H_STRIDE)
            self._point_at(f.at(before, f.mul(self.rows, stride)), stride)
            h.set(h_next.get())
            h_next.set(before)
        self._write(RowWord.OUT, f.word("%stack", StackWord.OUTPUT_BYTES))
        wanted = f.variable("i64", 0)
        with f.loop(self.rows) as i:
            wanted.set(f.value(f"or i64 {wanted.get()}, {f.word(self.lane(i), RowWord.PREDICTION)}"))
        with f.when(f.compare("ne", wanted.get(), 0)):
            self._run_maps(StackWord.HEAD)
            self._write(RowWord.PREDICTION, f.word("%stack", StackWord.PREDICTION_BYTES))

    def advance(self, live: Variable) -> None:
        """Move every lane on; the last lane takes the place of one that has ended."""
        f = self.f
        with f.loop(self.rows) as i:
            lane = self.lane(i)
            f.set_word(lane, RowWord.STEPS, f.sub(f.word(lane, RowWord.STEPS), self.steps))
            for address in (RowWord.X, RowWord.OUT, RowWord.PREDICTION):  # its stride is the next word
                f.set_word(lane, address, f.add(f.word(lane, address), f.mul(self.steps, f.word(lane, address + 1))))
        place = f.variable("i64", 0)
        with f.repeat() as stop:
            stop(f.compare("sge", place.get(), live.get()))
            lane = self.lane(place.get())
            ended = f.compare("eq", f.word(lane, RowWord.STEPS), 0)
            with f.when(ended):
                live.set(f.sub(live.get(), 1))
                f.copy(lane, self.lane(live.get()), ROW_BYTES)
            place.set(f.add(place.get(), f.select(ended, 0, 1)))

    def _run_layer(self, layer: Value, number: Value, h: Value) -> None:
        f = self.f
        products = [f.pointer(layer, LayerWord.LINEAR_PANELS), self.inputs, self.x_parts, self.row_steps]
        f.call_at(f.pointer(layer, LayerWord.LINEAR), LINEAR, products)
        self._move_states(layer, number, h, inward=True)
        panels, projection = f.pointer(layer, LayerWord.PANELS), f.pointer(layer, LayerWord.PROJECTION)
        scratch = [f.pointer("%buffers", word) for word in (BufferWord.UNITS, BufferWord.UNIT_TABLE)]
        arrays = [panels, projection, self.x_parts, h, self.c, *scratch]
        f.call_at(f.pointer(layer, LayerWord.RECURRENT), RECURRENT, [*arrays, self.rows, self.steps])
        last = f.at(h, f.mul(self.row_steps, f.word(layer, LayerWord.H_STRIDE)))
        self._move_states(layer, number, last, inward=False)

    def _run_maps(self, count: StackWord) -> None:
        """Take what the table of inputs points at through maps; the word after their number is where theirs are."""
        f = self.f
        table = f.pointer("%stack", count + 1)
        with f.loop(f.word("%stack", count)) as number:
            words = f.at(table, f.mul(number, 8 * len(MapWord)))
            target = f.pointer(f.at("%buffers", f.mul(f.word(words, MapWord.TARGET), 8)))
            arguments = [f.pointer(words, MapWord.PARAMETERS), self.inputs, target, self.row_steps]
            f.call_at(f.pointer(words, MapWord.CODE), LINEAR, arguments)
            self._point_at(target, f.word(words, MapWord.STRIDE))

    def _move_states(self, layer: Value, number: Value, h: Value, *, inward: bool) -> None:
        """Copy the layer's state of every lane from the caller's memory to scratch, or back."""
        f = self.f
        for scratch, address, between_layers, strides, sizes in (
            (h, RowWord.H, RowWord.H_LAYER, LayerWord.H_STRIDE, LayerWord.H_BYTES),
            (self.c, RowWord.C, RowWord.C_LAYER, LayerWord.C_STRIDE, LayerWord.C_BYTES),
        ):
            stride, size = f.word(layer, strides), f.word(layer, sizes)
            with f.when(f.compare("ne", size, 0)), f.loop(self.rows) as i:
                lane = self.lane(i)
                theirs = f.at(f.pointer(lane, address), f.mul(number, f.word(lane, between_layers)))
                ours = f.at(scratch, f.mul(i, stride))
                f.copy(*((ours, theirs) if inward else (theirs, ours)), size)

    def _entry(self, step: Value, lane: Value) -> Value:
        """The address of a lane's step in the table of inputs, where steps come first, then lanes."""
        return self.f.at(self.inputs, self.f.mul(self.f.add(self.f.mul(step, self.rows), lane), 8))

    def _point_at_rows(self) -> None:
        """Let the table of inputs point at the rows' own."""
        f = self.f
        with f.loop(self.rows) as i:
            lane = self.lane(i)
            x, step = f.word(lane, RowWord.X), f.word(lane, RowWord.X_STEP)
            with f.loop(self.steps) as t:
                f.store("i64", f.add(x, f.mul(t, step)), self._entry(t, i), 8)

    def _point_at(self, first: Value, stride: Value) -> None:
        """Let the table of inputs point at consecutive places in scratch."""
        f = self.f
        with f.loop(self.row_steps) as i:
            f.store("ptr", f.at(first, f.mul(i, stride)), f.at(self.inputs, f.mul(i, 8)), 8)

    def _write(self, place: RowWord, size: Value) -> None:
        """Copy what the table points at to where each lane wants it, if it does."""
        f = self.f
        with f.loop(self.rows) as i:
            lane = self.lane(i)
            target = f.pointer(lane, place)
            with f.when(f.value(f"icmp ne ptr {target}, null")):
                step = f.word(lane, place + 1)
                with f.loop(self.steps) as t:
                    f.copy(f.at(target, f.mul(t, step)), f.pointer(self._entry(t, i)), size)
