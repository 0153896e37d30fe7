"""Turns a kernel's text into machine code, and keeps it for the next model of the same shape."""

from functools import lru_cache
from typing import Any, Protocol

import llvmlite.binding as llvm

from service.engine.native.processor import Processor

KEPT = 1024
"""Kernels that are remembered, some tens of kilobytes each; models that are loaded keep theirs in any case."""


class Source(Protocol):
    """A function to be compiled, by its text in LLVM's language: hashable, so that equal ones are compiled once."""

    name: str

    @property
    def processor(self) -> Processor: ...

    def text(self) -> str: ...


class Code:
    """A compiled function; its machine code lives as long as this object."""

    def __init__(self, source: Source) -> None:
        machine = target_machine(source.processor)
        self._engine = llvm.create_mcjit_compiler(optimised(source.text(), machine), machine)
        self._engine.finalize_object()
        self.address: int = self._engine.get_function_address(source.name)


@lru_cache(maxsize=KEPT)
def compiled(source: Source) -> Code:
    """The machine code of a source, from memory if an equal one was compiled before."""
    return Code(source)


def target_machine(processor: Processor) -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=processor.name, features=processor.features, opt=2, jit=True)


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
