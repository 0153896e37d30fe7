"""A matrix product as a kernel: for the x-parts of many steps at once, for the head, and for a projected state."""

from dataclasses import dataclass
from functools import cache, partial

from service.engine.native.compiler import Processor
from service.engine.native.ir import Function, Module, Vectors
from service.engine.native.panels import Panels
from service.engine.native.tile import Product, TileShape, accumulate
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
        width = self.processor.width_for(self.columns)
        vectors = -(-self.columns // width)
        per_panel = min(vectors, self.processor.panel_vectors)
        return Panels(self.depth, vectors, per_panel, width, self.processor.tile_rows(per_panel), self.weights)

    def text(self) -> str:
        module = Module()
        self.write(module)
        return module.text()

    def write(self, module: Module) -> Function:
        f = module.function(self.name, {"panels": "ptr", "inputs": "ptr", "y": "ptr", "n": "i64"})
        Product(f, self.panels, "%n", cache(partial(self._tile, module))).emit(
            lambda row, column: [f.at("%inputs", f.mul(row, 8)), f.element("%y", row, self.panels.columns, column)]
        )
        return f

    def _tile(self, module: Module, shape: TileShape) -> Function:
        panels = self.panels
        f = module.function(f"linear_{shape}", {"panel": "ptr", "inputs": "ptr", "y": "ptr"}, internal=True)
        v = Vectors(f, panels.width, self.processor.has_fma)
        addresses = shape.panels(f, panels)
        bias = [v.load(panel, j * v.bytes) for panel in addresses for j in range(shape.vectors)]
        inputs = [f.pointer("%inputs", row) for row in range(shape.rows)]
        for m, row in enumerate(accumulate(v, panels, addresses, inputs, [bias] * shape.rows)):
            for j, total in enumerate(row):
                v.store(total, "%y", 4 * m * panels.columns + j * v.bytes)
        return f
