"""A cell's loop over time as a kernel: it goes on from the x-parts that `Linear` has made, step by step."""

from dataclasses import dataclass
from functools import partial

from service.engine.native.cells import CELLS, Cell, Unit
from service.engine.native.ir import Function, Value, module
from service.engine.native.linear import Linear
from service.engine.native.panels import Panels
from service.engine.native.processor import Processor
from service.engine.native.tile import Arguments, Product, Tiles, TileShape, accumulate
from service.engine.native.vectors import Vectors
from service.spec import WeightsDtype

PLACES = ("x", "h_units", "c", "out")


@dataclass(frozen=True)
class Place:
    """Addresses of one row's x-parts, state before, cell state and units' outputs, at the first unit of a panel."""

    x: Value
    h: Value
    c: Value
    out: Value


@dataclass(frozen=True)
class Recurrent:
    """`hidden` units that read a state of `state` values.

    The two differ if the state is a projection of the units' outputs (LSTM with proj_size).

    Compiled signature: recurrent(ptr panels, ptr projection, ptr x_parts, ptr h, ptr c, ptr units, i64 rows, i64
    steps), everything dense: x_parts (steps, rows, `x_columns`); h (steps + 1, rows, `h_columns`), of which the first
    is given and the others are computed; c (rows, `c_columns`), changed in place; units (rows, `c_columns`), scratch.
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
    def projection(self) -> Panels | None:
        """The layout of W_hr, if the state is projected."""
        if self.state == self.hidden:
            return None
        width = self.panels.width
        vectors = -(-self.state // width)
        per_panel = min(vectors, self.processor.panel_vectors)
        return Panels(self.hidden, vectors, per_panel, width, self.processor.tile_rows(per_panel), self.weights)

    @property
    def c_columns(self) -> int:
        """Units, with their padding."""
        return self.panels.columns // self._cell.gates

    @property
    def h_columns(self) -> int:
        """Values of the state, with their padding."""
        return self.projection.columns if self.projection else self.c_columns

    def x_parts(self, depth: int) -> Linear:
        """The product that makes the x-parts of inputs of K = `depth` values, columns in the order of `panels`."""
        return Linear(depth, self.panels.columns, self.weights, self.processor)

    @property
    def x_columns(self) -> int:
        """Floats from one row's x-parts to the next's."""
        return self.x_parts(1).panels.columns

    def text(self) -> str:
        """The module in LLVM's language."""
        names = ("panels", "projection", "x_parts", "h", "c", "units")
        f = Function("recurrent", {**dict.fromkeys(names, "ptr"), "rows": "i64", "steps": "i64"})
        tiles, projection_tiles = Tiles(self._tile), Tiles(self._projection_tile)
        cells = Product(f, self.panels, "%rows", tiles)
        projected = None
        if self.projection:
            projected = Product(f, self.projection, "%rows", projection_tiles, "%projection")
        x_step, h_step = (f.mul("%rows", 4 * columns) for columns in (self.x_columns, self.h_columns))
        with f.loop("%steps") as t:
            x = f.at("%x_parts", f.mul(t, x_step))
            before = f.at("%h", f.mul(t, h_step))
            after = f.at(before, h_step)
            cells.emit(self._arguments(f, x, before, "%units" if projected else after))
            if projected:
                projected.emit(
                    lambda row, column: [
                        f.element("%units", row, self.c_columns, 0),
                        f.element(after, row, self.h_columns, column),
                    ]
                )
        v = Vectors(f, self.panels.width, self.processor.has_fma)
        return module([f, *tiles.functions, *projection_tiles.functions], v.declarations)

    def _arguments(self, f: Function, x: Value, before: Value, after: Value) -> Arguments:
        """What the cell's tiles are called with in a step."""

        def arguments(row: Value | int, column: Value | int) -> list[Value]:
            unit = f.div(column, self._cell.gates)
            return [
                f.element(before, row, self.h_columns, 0),
                f.element(x, row, self.x_columns, column),
                f.element(before, row, self.h_columns, unit),
                f.element("%c", row, self.c_columns, unit),
                f.element(after, row, self.c_columns, unit),
            ]

        return arguments

    def _tile(self, shape: TileShape) -> Function:
        """M rows of a panel, or one row of several: the sums over h, then the cell."""
        panels = self.panels
        f = Function(f"tile_{shape}", dict.fromkeys(("panel", "h", *PLACES), "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = shape.panels(f, panels)

        def start(row: int, panel: int, vector: int) -> Value:
            if vector // (shape.vectors // self._cell.gates) in self._cell.apart:
                return v.load(addresses[panel], vector * v.bytes)
            return v.load("%x", 4 * row * self.x_columns + (panel * shape.vectors + vector) * v.bytes)

        places = [(panel, vector) for panel in range(shape.abreast) for vector in range(shape.vectors)]
        starts = [[start(m, *place) for place in places] for m in range(shape.rows)]
        inputs = [f.at("%h", 4 * m * self.h_columns) for m in range(shape.rows)]
        sums = accumulate(v, panels, addresses, inputs, starts)
        if shape.rows == 1:
            units = shape.vectors // self._cell.gates
            for panel in range(shape.abreast):
                own = sums[0][panel * shape.vectors : (panel + 1) * shape.vectors]
                offsets = (panel * vectors * v.bytes for vectors in (shape.vectors, units, units, units))
                place = Place(*(f.at(f"%{base}", offset) for base, offset in zip(PLACES, offsets, strict=True)))
                self._update(v, own, place)
            return f
        # A loop, by way of memory: all rows at once would need more registers than there are.
        kept = f.buffer(shape.rows * shape.vectors * v.bytes)
        for m, row in enumerate(sums):
            for j, total in enumerate(row):
                v.store(total, kept, (m * shape.vectors + j) * v.bytes)
        with f.loop(shape.rows) as number:
            sizes = (self.x_columns, self.h_columns, self.c_columns, self.c_columns)
            place = Place(*(f.element(f"%{base}", number, size, 0) for base, size in zip(PLACES, sizes, strict=True)))
            own_sums = f.at(kept, f.mul(number, shape.vectors * v.bytes))
            self._update(v, [v.load(own_sums, j * v.bytes) for j in range(shape.vectors)], place)
        return f

    def _update(self, v: Vectors, sums: list[Value], place: Place) -> None:
        """The cell of one row, for the units of a panel."""
        units = len(sums) // self._cell.gates
        for u in range(units):
            offset = u * v.bytes
            unit = Unit(
                sums=sums[u::units],
                x_part=lambda gate, offset=offset: v.load(place.x, offset + gate * units * v.bytes),  # type: ignore[misc]
                h=partial(v.load, place.h, offset),
                c=partial(v.load, place.c, offset),
            )
            h, c = self._cell.update(v, unit)
            v.store(h, place.out, offset)
            if c is not None:
                v.store(c, place.c, offset)

    def _projection_tile(self, shape: TileShape) -> Function:
        """M rows of a panel of h = W_hr · units."""
        panels = self.projection or self.panels
        f = Function(f"project_{shape}", dict.fromkeys(("panel", "units", "h"), "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        zeros = [[v.constant(0.0)] * (shape.vectors * shape.abreast)] * shape.rows
        inputs = [f.at("%units", 4 * m * self.c_columns) for m in range(shape.rows)]
        for m, row in enumerate(accumulate(v, panels, shape.panels(f, panels), inputs, zeros)):
            for j, total in enumerate(row):
                v.store(total, "%h", 4 * m * self.h_columns + j * v.bytes)
        return f
