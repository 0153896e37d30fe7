"""The two kernels that everything is made of: `Linear`, a matrix product, and `Recurrent`, a cell's loop over time.

`Linear` computes the x-parts of many steps at once, and the head. `Recurrent` goes on from the x-parts, step by step.
Both take all rows through the same tiles (see `tile`), panel by panel, so that a panel is read into the nearest cache
once for all the rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from service.engine.native.cells import CELLS, Unit
from service.engine.native.ir import Function, Value, module
from service.engine.native.processor import Processor
from service.engine.native.tile import Panels, Tiles, accumulate
from service.engine.native.vectors import Vectors
from service.spec import WeightsDtype


@dataclass(frozen=True)
class Linear:
    """y = bias + W x for K = `depth` values of x and `columns` of y.

    Compiled signature: linear(ptr panels, ptr inputs, ptr y, i64 n): `inputs` is a table of n pointers to K floats, y
    is dense (n, `panels.columns`).
    """

    depth: int
    columns: int
    weights: WeightsDtype
    processor: Processor
    name = "linear"

    @property
    def panels(self) -> Panels:
        """The layout of W."""
        width = self.processor.width_for(self.columns)
        vectors = -(-self.columns // width)
        per_panel = min(vectors, self.processor.panel_vectors)
        return Panels(self.depth, vectors, per_panel, width, self.processor.tile_rows(per_panel), self.weights)

    def text(self) -> str:
        """The module in LLVM's language; its entry point is `linear`."""
        panels = self.panels
        main = Function("linear", {"panels": "ptr", "inputs": "ptr", "y": "ptr", "n": "i64"})
        tiles = Tiles(main, "%n", panels.rows)
        functions = [main]

        def panel(weights: Value, first: Value | int, vectors: int) -> None:
            def tile(row: Value, rows: int) -> None:
                inputs = main.at("%inputs", main.mul(row, 8))
                y = main.at("%y", main.mul(main.add(main.mul(row, panels.columns), first), 4))
                main.call(bodies[rows], [weights, inputs, y])

            bodies = {rows: self._tile(rows, vectors) for rows in range(1, panels.rows + 1)}
            functions.extend(bodies.values())
            tiles.each(tile)

        _over_panels(main, "%panels", panels, panel)
        return _module(functions, self.processor, panels.width)

    def _tile(self, rows: int, vectors: int) -> Function:
        panels = self.panels
        f = Function(f"tile_{rows}x{vectors}", {"panel": "ptr", "inputs": "ptr", "y": "ptr"}, internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        bias = [v.load("%panel", j * v.bytes) for j in range(vectors)]
        inputs = [f.pointer("%inputs", row) for row in range(rows)]
        weights = f.at("%panel", panels.bias_bytes(vectors))
        for m, row in enumerate(accumulate(v, panels, [weights], inputs, [bias] * rows)):
            for j, total in enumerate(row):
                v.store(total, "%y", 4 * m * panels.columns + j * v.bytes)
        return f


@dataclass(frozen=True)
class Recurrent:
    """A cell's loop over time: `hidden` units that read a state of `state` values.

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
    def panels(self) -> Panels:
        """The layout of W_hh: in a panel stand its units' columns gate by gate."""
        width, gates = self.processor.width_for(self.hidden), CELLS[self.cell].gates
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
        return self.panels.columns // CELLS[self.cell].gates

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
        """The module in LLVM's language; its entry point is `recurrent`."""
        names = ("panels", "projection", "x_parts", "h", "c", "units")
        main = Function("recurrent", {**dict.fromkeys(names, "ptr"), "rows": "i64", "steps": "i64"})
        functions = [main]
        tiles = Tiles(main, "%rows", self.panels.rows)
        projection_tiles = Tiles(main, "%rows", self.projection.rows) if self.projection else None
        x_step, h_step = (main.mul("%rows", 4 * columns) for columns in (self.x_columns, self.h_columns))
        with main.loop("%steps") as t:
            x = main.at("%x_parts", main.mul(t, x_step))
            before = main.at("%h", main.mul(t, h_step))
            after = main.at(before, h_step)
            self._emit_cell(functions, tiles, x, before, "%units" if self.projection else after)
            if self.projection and projection_tiles:
                self._emit_projection(functions, self.projection, projection_tiles, after)
        return _module(functions, self.processor, self.panels.width)

    def _emit_cell(self, functions: list[Function], tiles: Tiles, x: Value, before: Value, after: Value) -> None:
        """One step of every row: from x-parts and the state before to the units' outputs."""
        main, gates = functions[0], CELLS[self.cell].gates

        def panel(weights: Value, first: Value | int, vectors: int) -> None:
            def tile(row: Value, rows: int) -> None:
                unit = main.div(first, gates)
                arguments = [
                    weights,
                    _element(main, x, row, self.x_columns, first),
                    _element(main, before, row, self.h_columns, 0),
                    _element(main, before, row, self.h_columns, unit),
                    _element(main, after, row, self.c_columns, unit),
                    _element(main, "%c", row, self.c_columns, unit),
                ]
                main.call(bodies[rows], arguments)

            bodies = {rows: self._tile(rows, vectors) for rows in range(1, self.panels.rows + 1)}
            functions.extend(bodies.values())
            tiles.each(tile)

        _over_panels(main, "%panels", self.panels, panel)

    def _tile(self, rows: int, vectors: int) -> Function:
        """M rows of one panel: the sums over h, then the cell."""
        cell, panels = CELLS[self.cell], self.panels
        names = ("panel", "x", "h", "h_units", "out", "c")
        f = Function(f"tile_{rows}x{vectors}", dict.fromkeys(names, "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        units = vectors // cell.gates

        def start(row: int, gate: int, unit: int) -> Value:
            offset = (gate * units + unit) * v.bytes
            return v.load("%panel", offset) if gate in cell.apart else v.load("%x", 4 * row * self.x_columns + offset)

        starts = [[start(m, g, u) for g in range(cell.gates) for u in range(units)] for m in range(rows)]
        inputs = [f.at("%h", 4 * m * self.h_columns) for m in range(rows)]
        sums = accumulate(v, panels, [f.at("%panel", panels.bias_bytes(vectors))], inputs, starts)
        if rows == 1:
            self._update(v, sums[0], Place("%x", "%h_units", "%c", "%out"))
            return f
        # A loop, by way of memory: all rows at once would need more registers than there are.
        kept = f.buffer(rows * vectors * v.bytes)
        for m, row in enumerate(sums):
            for j, total in enumerate(row):
                v.store(total, kept, (m * vectors + j) * v.bytes)
        with f.loop(rows) as number:
            sizes = (self.x_columns, self.h_columns, self.c_columns, self.c_columns)
            bases = ("%x", "%h_units", "%c", "%out")
            place = Place(*(_element(f, base, number, size, 0) for base, size in zip(bases, sizes, strict=True)))
            own = f.at(kept, f.mul(number, vectors * v.bytes))
            self._update(v, [v.load(own, j * v.bytes) for j in range(vectors)], place)
        return f

    def _update(self, v: Vectors, sums: list[Value], place: "Place") -> None:
        """The cell of one row, for the units of a panel."""
        cell = CELLS[self.cell]
        units = len(sums) // cell.gates
        for u in range(units):
            offset = u * v.bytes
            unit = Unit(
                sums=sums[u::units],
                x_part=lambda gate, offset=offset: v.load(place.x, offset + gate * units * v.bytes),  # type: ignore[misc]
                h=partial(v.load, place.h, offset),
                c=partial(v.load, place.c, offset),
            )
            h, c = cell.update(v, unit)
            v.store(h, place.out, offset)
            if c is not None:
                v.store(c, place.c, offset)

    def _emit_projection(self, functions: list[Function], panels: Panels, tiles: Tiles, after: Value) -> None:
        """The projection of every row: h = W_hr · units."""
        main = functions[0]

        def panel(weights: Value, first: Value | int, vectors: int) -> None:
            def tile(row: Value, rows: int) -> None:
                units = _element(main, "%units", row, self.c_columns, 0)
                main.call(bodies[rows], [weights, units, _element(main, after, row, self.h_columns, first)])

            bodies = {rows: self._projection_tile(panels, rows, vectors) for rows in range(1, panels.rows + 1)}
            functions.extend(bodies.values())
            tiles.each(tile)

        _over_panels(main, "%projection", panels, panel)

    def _projection_tile(self, panels: Panels, rows: int, vectors: int) -> Function:
        f = Function(f"project_{rows}x{vectors}", dict.fromkeys(("panel", "units", "h"), "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        zeros = [[v.constant(0.0)] * vectors] * rows
        inputs = [f.at("%units", 4 * m * self.c_columns) for m in range(rows)]
        for m, row in enumerate(accumulate(v, panels, [f.at("%panel", panels.bias_bytes(vectors))], inputs, zeros)):
            for j, total in enumerate(row):
                v.store(total, "%h", 4 * m * self.h_columns + j * v.bytes)
        return f


@dataclass(frozen=True)
class Place:
    """Addresses of one row's x-parts, state before, cell state and units' outputs, at the first unit of a panel."""

    x: Value
    h: Value
    c: Value
    out: Value


def _over_panels(main: Function, base: Value, panels: Panels, body: Callable[[Value, Value | int, int], None]) -> None:
    """Emit `body(address of the panel, its first column, its vectors)` for every panel that lies at `base`."""
    size = panels.panel_bytes(panels.per_panel)
    with main.loop(panels.full) as p:
        body(main.at(base, main.mul(p, size)), main.mul(p, panels.per_panel * panels.width), panels.per_panel)
    if panels.rest:
        body(main.at(base, panels.full * size), panels.full * panels.per_panel * panels.width, panels.rest)


def _element(f: Function, base: Value, row: Value, columns: int, column: Value | int) -> Value:
    """The address of element [row, column] of a dense float32 array."""
    return f.at(base, f.mul(f.add(f.mul(row, columns), column), 4))


def _module(functions: list[Function], processor: Processor, width: int) -> str:
    return module(functions, Vectors(functions[0], width, processor.has_fma).declarations)
