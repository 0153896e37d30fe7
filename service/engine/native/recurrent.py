"""A cell's loop over time as a kernel: it goes on from the x-parts that `Linear` has made, step by step."""

from dataclasses import dataclass
from functools import cache, partial

from service.engine.native.cells import CELLS, Cell, Unit
from service.engine.native.compiler import Processor
from service.engine.native.ir import Function, Module, Value, Vectors
from service.engine.native.linear import Linear
from service.engine.native.panels import Panels
from service.engine.native.tile import Product, TileShape, accumulate
from service.spec import WeightsDtype


@dataclass(frozen=True)
class Recurrent:
    """`hidden` units that read a state of `state` values, fewer if it is a projection of the units' outputs.

    Compiled signature: recurrent(ptr panels, ptr projection, ptr x_parts, ptr h, ptr c, ptr units, ptr unit_table, i64
    rows, i64 steps), everything dense: x_parts (steps, rows, `x_columns`); h (steps + 1, rows, `h_columns`), of which
    the first is given and the others are computed; c (rows, `c_columns`), changed in place. With a projection, units
    (rows, `c_columns`) and unit_table, a pointer for each row, are scratch.
    """

    cell: str
    hidden: int
    state: int
    weights: WeightsDtype
    processor: Processor
    name = "recurrent"

    @property
    def _cell(self) -> Cell:
        return CELLS[self.cell]

    @property
    def panels(self) -> Panels:
        """The layout of W_hh: each panel has its units' columns gate by gate."""
        width, gates = self.processor.width_for(self.hidden), self._cell.gates
        units = -(-self.hidden // width)
        per_panel = gates * min(units, max(1, self.processor.panel_vectors // gates))
        return Panels(self.state, gates * units, per_panel, width, self.processor.tile_rows(per_panel), self.weights)

    @property
    def projection(self) -> Linear | None:  # h = W_hr · units
        return None if self.state == self.hidden else Linear(self.hidden, self.state, self.weights, self.processor)

    @property
    def c_columns(self) -> int:  # units with their padding
        return self.panels.columns // self._cell.gates

    @property
    def h_columns(self) -> int:  # values of the state with their padding
        return self.projection.panels.columns if self.projection else self.c_columns

    def x_parts(self, depth: int) -> Linear:
        """The product that makes the x-parts of inputs of K = `depth` values, columns in the order of `panels`."""
        return Linear(depth, self.panels.columns, self.weights, self.processor)

    @property
    def x_columns(self) -> int:  # floats from one row's x-parts to the next's
        return self.x_parts(1).panels.columns

    def text(self) -> str:
        module = Module()
        names = ("panels", "projection", "x_parts", "h", "c", "units", "unit_table")
        f = module.function(self.name, {**dict.fromkeys(names, "ptr"), "rows": "i64", "steps": "i64"})
        cells = Product(f, self.panels, "%rows", cache(partial(self._tile, module)))
        project = self.projection.write(module) if self.projection else None
        if project:
            with f.loop("%rows") as row:
                f.store("ptr", f.element("%units", row, self.c_columns, 0), f.at("%unit_table", f.mul(row, 8)), 8)
        x_step, h_step = (f.mul("%rows", 4 * columns) for columns in (self.x_columns, self.h_columns))
        with f.loop("%steps") as t:
            x = f.at("%x_parts", f.mul(t, x_step))
            before = f.at("%h", f.mul(t, h_step))
            after = f.at(before, h_step)

            def arguments(row: Value | int, column: Value | int) -> list[Value]:
                unit = f.div(column, self._cell.gates)
                return [
                    f.element(before, row, self.h_columns, 0),  # called in this round
                    f.element(x, row, self.x_columns, column),
                    f.element(before, row, self.h_columns, unit),
                    f.element("%c", row, self.c_columns, unit),
                    f.element("%units" if project else after, row, self.c_columns, unit),
                ]

            cells.emit(arguments)
            if project:
                f.call(project, ["%projection", "%unit_table", after, "%rows"])
        return module.text()

    def _tile(self, module: Module, shape: TileShape) -> Function:
        """M rows of a panel, or one row of several panels: the sums over h, then the cell.

        Called with the panel, the rows' state, and for the first row and unit: x-parts, state, cell state, output.
        """
        panels, gates = self.panels, self._cell.gates
        parameters = dict.fromkeys(("panel", "state", "x", "h", "c", "out"), "ptr")
        f = module.function(f"cell_{shape}", parameters, internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = shape.panels(f, panels)
        units = shape.vectors // gates  # in vectors
        # Bytes from the x-parts and units of one row, or of one panel, to those of the next.
        x_step, h_step, c_step = 4 * self.x_columns, 4 * self.h_columns, 4 * self.c_columns
        if shape.abreast > 1:
            x_step, h_step, c_step = shape.vectors * v.bytes, units * v.bytes, units * v.bytes

        def start(row: int, panel: int, vector: int) -> Value:
            if vector // units in self._cell.apart:
                return v.load(addresses[panel], vector * v.bytes)
            return v.load("%x", (row + panel) * x_step + vector * v.bytes)

        places = [(panel, vector) for panel in range(shape.abreast) for vector in range(shape.vectors)]
        starts = [[start(m, *place) for place in places] for m in range(shape.rows)]
        states = [f.at("%state", 4 * m * self.h_columns) for m in range(shape.rows)]
        sums = [total for row in accumulate(v, panels, addresses, states, starts) for total in row]
        # A loop, by way of memory: all at once would need more registers than there are.
        kept = f.buffer(len(sums) * v.bytes)
        for j, total in enumerate(sums):
            v.store(total, kept, j * v.bytes)
        with f.loop(shape.rows * shape.abreast) as number:
            own = f.at(kept, f.mul(number, shape.vectors * v.bytes))
            x, h, c, out = (
                f.at(base, f.mul(number, step))
                for base, step in (("%x", x_step), ("%h", h_step), ("%c", c_step), ("%out", c_step))
            )
            for offset in range(0, units * v.bytes, v.bytes):
                of_gate = [offset + gate * units * v.bytes for gate in range(gates)]
                unit = Unit(
                    sums=[v.load(own, place) for place in of_gate],
                    x=[v.load(x, place) for place in of_gate],
                    h=v.load(h, offset),
                    c=v.load(c, offset),
                )
                new_h, new_c = self._cell.update(v, unit)
                v.store(new_h, out, offset)
                if new_c is not None:
                    v.store(new_c, c, offset)
        return f
