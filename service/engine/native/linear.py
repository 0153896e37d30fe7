"""A matrix product as a kernel, for the x-parts of many steps at once and for the head."""

from dataclasses import dataclass

from service.engine.native.ir import Function, module
from service.engine.native.panels import Panels
from service.engine.native.processor import Processor
from service.engine.native.tile import Product, Tiles, TileShape, accumulate
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
        """The module in LLVM's language."""
        f = Function("linear", {"panels": "ptr", "inputs": "ptr", "y": "ptr", "n": "i64"})
        tiles = Tiles(self._tile)
        Product(f, self.panels, "%n", tiles).emit(
            lambda row, column: [
                f.at("%inputs", f.mul(row, 8)),
                f.element("%y", row, self.panels.columns, column),
            ]
        )
        v = Vectors(f, self.panels.width, self.processor.has_fma)
        return module([f, *tiles.functions], v.declarations)

    def _tile(self, shape: TileShape) -> Function:
        panels = self.panels
        f = Function(f"tile_{shape}", {"panel": "ptr", "inputs": "ptr", "y": "ptr"}, internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = shape.panels(f, panels)
        bias = [v.load(panel, j * v.bytes) for panel in addresses for j in range(shape.vectors)]
        inputs = [f.pointer("%inputs", row) for row in range(shape.rows)]
        for m, row in enumerate(accumulate(v, panels, addresses, inputs, [bias] * shape.rows)):
            for j, total in enumerate(row):
                v.store(total, "%y", 4 * m * panels.columns + j * v.bytes)
        return f
