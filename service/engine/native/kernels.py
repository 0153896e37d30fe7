"""The kernel of a cell's loop over time, `Recurrent`: it goes on from the x-parts that `Linear` has made, step by step.

Both take all rows through the same tiles (see `tile`), panel by panel, so that a panel is read into the nearest cache
once for all the rows.
"""

from dataclasses import dataclass
from functools import partial

from service.engine.native.cells import CELLS, Unit
from service.engine.native.ir import Function, Value
from service.engine.native.linear import Linear, element, is_null, kernel_module, panels_abreast
from service.engine.native.processor import Processor
from service.engine.native.sweep import Arguments, Sweep, Tiles, TileShape
from service.engine.native.team import SHARE, lead
from service.engine.native.tile import Panels, accumulate
from service.engine.native.vectors import Vectors
from service.spec import WeightsDtype


@dataclass(frozen=True)
class Recurrent:
    """A cell's loop over time: `hidden` units that read a state of `state` values.

    The two differ if the state is a projection of the units' outputs (LSTM with proj_size).

    Compiled signature: recurrent(ptr panels, ptr projection, ptr x_parts, ptr h, ptr c, ptr units, i64 rows, i64
    steps, ptr team), everything dense: x_parts (steps, rows, `x_columns`); h (steps + 1, rows, `h_columns`), of which
    the first is given and the others are computed; c (rows, `c_columns`), changed in place; units (rows, `c_columns`),
    scratch. `team` is null for one thread; with a team there is one row.
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
        main = Function("recurrent", {**dict.fromkeys(names, "ptr"), "rows": "i64", "steps": "i64", "team": "ptr"})
        tiles = [Tiles(self._tile)]
        sweeps = [Sweep(main, self.panels, "%rows", tiles[0])]
        shares = [self._share(tiles[0])]
        if self.projection:
            tiles.append(Tiles(self._projection_tile))
            sweeps.append(Sweep(main, self.projection, "%rows", tiles[1], "%projection"))
            shares.append(self._projection_share(self.projection, tiles[1]))
        alone = is_null(main, "%team")
        together = main.negated(alone)
        x_step, h_step = (main.mul("%rows", 4 * columns) for columns in (self.x_columns, self.h_columns))
        with main.loop("%steps") as t:
            x = main.at("%x_parts", main.mul(t, x_step))
            before = main.at("%h", main.mul(t, h_step))
            after = main.at(before, h_step)
            out = "%units" if self.projection else after
            with main.when(alone):
                sweeps[0].emit(self._arguments(main, x, before, "%c", out))
                for projection in sweeps[1:]:
                    projection.emit(self._projection_arguments(main, "%units", after))
            with main.when(together):
                lead(main, self.processor, "%team", shares[0], ["%panels", x, before, "%c", out])
                for share in shares[1:]:
                    lead(main, self.processor, "%team", share, ["%projection", "%units", after])
        functions = [function for some in tiles for function in some.functions]
        return kernel_module([main, *shares, *functions], self.processor, self.panels.width)

    def _projection_arguments(self, f: Function, units: Value, after: Value) -> Arguments:
        """What the projection's tiles are called with in a step."""
        return lambda row, column: [
            element(f, units, row, self.c_columns, 0),
            element(f, after, row, self.h_columns, column),
        ]

    def _share(self, tiles: Tiles) -> Function:
        """A part of the units of a single row, in one step; the words are what `_arguments` takes, after the panels."""
        f = Function("share", SHARE, internal=True)
        panels, x, before, c, out = (f.pointer("%arguments", number) for number in range(5))
        Sweep(f, self.panels, "1", tiles, panels, ("%part", "%parts")).one_row(self._arguments(f, x, before, c, out))
        return f

    def _projection_share(self, projection: Panels, tiles: Tiles) -> Function:
        """A part of a single row's projection."""
        f = Function("share_projection", SHARE, internal=True)
        panels, units, after = (f.pointer("%arguments", number) for number in range(3))
        Sweep(f, projection, "1", tiles, panels, ("%part", "%parts")).one_row(
            self._projection_arguments(f, units, after)
        )
        return f

    def _arguments(self, main: Function, x: Value, before: Value, c: Value, after: Value) -> Arguments:
        """What the cell's tiles are called with in a step."""

        def arguments(row: Value | int, column: Value | int) -> list[Value]:
            unit = main.div(column, CELLS[self.cell].gates)
            return [
                element(main, before, row, self.h_columns, 0),
                element(main, x, row, self.x_columns, column),
                element(main, before, row, self.h_columns, unit),
                element(main, c, row, self.c_columns, unit),
                element(main, after, row, self.c_columns, unit),
            ]

        return arguments

    def _tile(self, shape: TileShape) -> Function:
        """M rows of a panel, or one row of several: the sums over h, then the cell."""
        cell, panels = CELLS[self.cell], self.panels
        f = Function(f"tile_{shape}", dict.fromkeys(("panel", "h", *PLACES), "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = panels_abreast(f, panels, shape)

        def start(row: int, panel: int, vector: int) -> Value:
            if vector // (shape.vectors // cell.gates) in cell.apart:
                return v.load(addresses[panel], vector * v.bytes)
            return v.load("%x", 4 * row * self.x_columns + (panel * shape.vectors + vector) * v.bytes)

        places = [(panel, vector) for panel in range(shape.abreast) for vector in range(shape.vectors)]
        starts = [[start(m, *place) for place in places] for m in range(shape.rows)]
        inputs = [f.at("%h", 4 * m * self.h_columns) for m in range(shape.rows)]
        sums = accumulate(v, panels, addresses, inputs, starts)
        if shape.rows == 1:
            for panel in range(shape.abreast):
                own = sums[0][panel * shape.vectors : (panel + 1) * shape.vectors]
                self._update(v, own, self._panel_place(v, panel, shape.vectors))
            return f
        # A loop, by way of memory: all rows at once would need more registers than there are.
        kept = f.buffer(shape.rows * shape.vectors * v.bytes)
        for m, row in enumerate(sums):
            for j, total in enumerate(row):
                v.store(total, kept, (m * shape.vectors + j) * v.bytes)
        with f.loop(shape.rows) as number:
            sizes = (self.x_columns, self.h_columns, self.c_columns, self.c_columns)
            place = Place(*(element(f, f"%{base}", number, size, 0) for base, size in zip(PLACES, sizes, strict=True)))
            own_sums = f.at(kept, f.mul(number, shape.vectors * v.bytes))
            self._update(v, [v.load(own_sums, j * v.bytes) for j in range(shape.vectors)], place)
        return f

    def _panel_place(self, v: Vectors, panel: int, vectors: int) -> "Place":
        """Where the units of a panel of a single row stand."""
        f, units = v.function, vectors // CELLS[self.cell].gates
        steps = (vectors, units, units, units)
        return Place(*(f.at(f"%{base}", panel * step * v.bytes) for base, step in zip(PLACES, steps, strict=True)))

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

    def _projection_tile(self, shape: TileShape) -> Function:
        """M rows of a panel of h = W_hr · units."""
        panels = self.projection or self.panels
        f = Function(f"project_{shape}", dict.fromkeys(("panel", "units", "h"), "ptr"), internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        zeros = [[v.constant(0.0)] * (shape.vectors * shape.abreast)] * shape.rows
        inputs = [f.at("%units", 4 * m * self.c_columns) for m in range(shape.rows)]
        for m, row in enumerate(accumulate(v, panels, panels_abreast(f, panels, shape), inputs, zeros)):
            for j, total in enumerate(row):
                v.store(total, "%h", 4 * m * self.h_columns + j * v.bytes)
        return f


PLACES = ("x", "h_units", "c", "out")


@dataclass(frozen=True)
class Place:
    """Addresses of one row's x-parts, state before, cell state and units' outputs, at the first unit of a panel."""

    x: Value
    h: Value
    c: Value
    out: Value
