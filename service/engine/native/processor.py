"""What a kernel needs to know of the processor that it is compiled for."""

from dataclasses import dataclass

import llvmlite.binding as llvm

MOST_ROWS = 8
"""Rows of the tallest tile; each needs an address of its own."""


@dataclass(frozen=True)
class Processor:
    """A target of LLVM, and how its vector registers are best used.

    - name, features: LLVM's names of the processor and of what is switched on beyond it
    - width: float32 values in a vector
    - registers: how many vector registers there are
    - has_fma: whether it multiplies and adds in one instruction
    """

    name: str
    features: str
    width: int
    registers: int
    has_fma: bool

    @classmethod
    def host(cls) -> "Processor":
        """The processor that this process runs on."""
        present = llvm.get_host_cpu_features()
        features = {name for name, on in present.items() if on}
        return cls.with_features(llvm.get_host_cpu_name(), present.flatten(), features)

    @classmethod
    def with_features(cls, name: str, flags: str, features: set[str]) -> "Processor":
        if "avx512f" in features:
            return cls(name, flags, width=16, registers=32, has_fma=True)
        if "avx2" in features:
            return cls(name, flags, width=8, registers=16, has_fma="fma" in features)
        if "neon" in features:
            return cls(name, flags, width=4, registers=32, has_fma=True)
        return cls(name, flags, width=4, registers=16, has_fma=False)

    @property
    def panel_vectors(self) -> int:
        """Columns of a panel, in vectors: each broadcast of an input is used that many times."""
        return 4 if self.registers >= 32 else 2

    def tile_rows(self, vectors: int) -> int:
        """M: the rows of the tallest tile on a panel of that many vectors."""
        sums = 24 if self.registers >= 32 else 12  # the other registers hold weights and an input
        return min(MOST_ROWS, sums // vectors)

    def width_for(self, columns: int) -> int:
        """The vector width for a matrix of that many columns: no wider than they need, so little is padded."""
        width = 4
        while width < min(columns, self.width):
            width *= 2
        return width
