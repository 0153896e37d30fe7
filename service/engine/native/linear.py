"""A matrix product as a kernel, for the x-parts of many steps at once and for the head; and what kernels share."""

from dataclasses import dataclass

from service.engine.native.ir import Function, Value, module
from service.engine.native.processor import Processor
from service.engine.native.sweep import Arguments, Sweep, Tiles, TileShape
from service.engine.native.team import SHARE, declarations, lead
from service.engine.native.tile import Panels, accumulate
from service.engine.native.vectors import Vectors
from service.spec import WeightsDtype


@dataclass(frozen=True)
class Linear:
    """y = bias + W x for K = `depth` values of x and `columns` of y.

    Compiled signature: linear(ptr panels, ptr inputs, ptr y, i64 n, ptr team): `inputs` is a table of n pointers to K
    floats, y is dense (n, `panels.columns`); `team` is null for one thread.
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
        main = Function("linear", {"panels": "ptr", "inputs": "ptr", "y": "ptr", "n": "i64", "team": "ptr"})
        tiles = Tiles(self._tile)
        share = self._share(tiles)
        alone = is_null(main, "%team")
        with main.when(alone):
            Sweep(main, panels, "%n", tiles).emit(self._arguments(main, "%inputs", "%y"))
        with main.when(main.negated(alone)):
            n = main.value("inttoptr i64 %n to ptr")
            lead(main, self.processor, "%team", share, ["%panels", "%inputs", "%y", n])
        return kernel_module([main, share, *tiles.functions], self.processor, panels.width)

    def _arguments(self, f: Function, inputs: Value, y: Value) -> Arguments:
        """What the tiles are called with."""
        return lambda row, column: [
            f.at(inputs, f.mul(row, 8)),
            element(f, y, row, self.panels.columns, column),
        ]

    def _share(self, tiles: Tiles) -> Function:
        """A part of the columns, for all rows; the words are `panels`, `inputs`, `y` and n."""
        f = Function("share", SHARE, internal=True)
        panels, inputs, y = (f.pointer("%arguments", number) for number in range(3))
        n = f.word("%arguments", 3)
        Sweep(f, self.panels, n, tiles, panels, ("%part", "%parts")).emit(self._arguments(f, inputs, y))
        return f

    def _tile(self, shape: TileShape) -> Function:
        panels = self.panels
        f = Function(f"tile_{shape}", {"panel": "ptr", "inputs": "ptr", "y": "ptr"}, internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = panels_abreast(f, panels, shape)
        bias = [v.load(panel, j * v.bytes) for panel in addresses for j in range(shape.vectors)]
        inputs = [f.pointer("%inputs", row) for row in range(shape.rows)]
        for m, row in enumerate(accumulate(v, panels, addresses, inputs, [bias] * shape.rows)):
            for j, total in enumerate(row):
                v.store(total, "%y", 4 * m * panels.columns + j * v.bytes)
        return f


def panels_abreast(f: Function, panels: Panels, shape: TileShape) -> list[Value]:
    """The addresses of the panels of a tile, of which the first is `%panel`."""
    return [f.at("%panel", number * panels.panel_bytes(shape.vectors)) for number in range(shape.abreast)]


def element(f: Function, base: Value, row: Value | int, columns: int, column: Value | int) -> Value:
    """The address of element [row, column] of a dense float32 array."""
    return f.at(base, f.mul(f.add(f.mul(row, columns), column), 4))


def is_null(f: Function, pointer: Value) -> Value:
    """An i1: whether a pointer is null."""
    return f.value(f"icmp eq ptr {pointer}, null")


def kernel_module(functions: list[Function], processor: Processor, width: int) -> str:
    """The text of a kernel of vectors of that width."""
    return module(functions, Vectors(functions[0], width, processor.has_fma).declarations + declarations(processor))
