"""The processor, and machine code for it from a kernel's text, kept for the next model of the same shape."""

from dataclasses import dataclass
from functools import lru_cache
from platform import machine
from typing import Any, NamedTuple, Protocol

import llvmlite.binding as llvm

MOST_ROWS = 8  # of the tallest tile; each needs an address of its own
KEPT = 1024  # kernels that are remembered, some tens of kilobytes each; loaded models keep theirs in any case


@dataclass(frozen=True)
class Processor:
    """A target of LLVM by LLVM's names, and how its vector registers are best used."""

    name: str
    features: str  # what is switched on beyond those that the name stands for
    width: int  # float32 values in a vector
    registers: int
    has_fma: bool

    @classmethod
    def host(cls) -> "Processor":
        present = llvm.get_host_cpu_features()
        features = {name for name, on in present.items() if on}
        if machine() in ("aarch64", "arm64"):  # all of them have it, whatever LLVM finds out under an emulator
            features.add("neon")
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


class Source(Protocol):
    """A function to be compiled, by its text in LLVM's language: hashable, so that equal ones are compiled once."""

    name: str

    @property
    def processor(self) -> Processor: ...

    def text(self) -> str: ...


class Code(NamedTuple):
    address: int
    engine: Any  # the machine code lives as long as this


@lru_cache(maxsize=KEPT)
def compiled(source: Source) -> Code:
    machine = target_machine(source.processor)
    engine = llvm.create_mcjit_compiler(optimised(source.text(), machine), machine)
    engine.finalize_object()
    return Code(engine.get_function_address(source.name), engine)


def target_machine(processor: Processor) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return llvm.Target.from_default_triple().create_target_machine(
        cpu=processor.name, features=processor.features, opt=2, jit=True
    )


def optimised(text: str, machine: Any) -> Any:
    """The module after the few passes that the kernels need: variables into registers, address arithmetic shared."""
    module = llvm.parse_assembly(text)
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options())
    passes = llvm.create_new_function_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.add_new_gvn_pass()
    for function in module.functions:
        if not function.is_declaration:
            passes.run(function, builder)
    return module
