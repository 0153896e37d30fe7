"""Code for 64-bit ARM: that all of it compiles for it, and, by emulation, that it computes what torch.nn does."""

import os
import pickle
import re
import shutil
import subprocess
from dataclasses import replace

import llvmlite.binding as llvm
import numpy as np
import pytest
import torch

from service.engine.native import maps, rows, stack
from service.engine.native.compiler import Processor, Source, compiled, optimised
from service.engine.native.engine import NativeEngine
from service.models.layer_config import LayerConfig, chain_layers
from service.spec import ModelSpec
from tests.engine.native.models import Results, assert_same_bits, random_rows, reference
from tests.reference import OTHERS, weights_of, with_layers
from tests.tools import ROOT, tool

EMULATOR = shutil.which("qemu-aarch64-static") or ""
EMBEDDING = LayerConfig(type="embedding", num_embeddings=7, embedding_dim=5)
RUNNER = """import pickle, platform, sys
from service.engine.native.compiler import Processor
from service.engine.native.engine import NativeEngine
from tests.engine.native.models import run_rows
cases, results = sys.argv[1:]
found = []
for processor, spec, weights, rows in pickle.load(open(cases, "rb")):
    found.append(run_rows(NativeEngine(spec, weights, threads=2, processor=processor), *rows))
pickle.dump((platform.machine(), Processor.host().has_fma, found), open(results, "wb"))
"""
SPECS = {
    "rnn": ModelSpec("rnn", 5, 37, num_layers=2).with_linear_head(3),
    "relu": ModelSpec("rnn", 5, 16, nonlinearity="relu"),
    "gru both ways": ModelSpec("gru", 5, 37, bidirectional=True),
    "gru bf16": ModelSpec("gru", 17, 33, num_layers=2, weights_dtype="bf16").with_linear_head(3),
    "lstm": ModelSpec("lstm", 3, 70, bias=False),
    "lstm bf16": ModelSpec("lstm", 5, 37, proj_size=9, weights_dtype="bf16"),
    "embedding": replace(ModelSpec("gru", 5, 21), front=chain_layers("front", [EMBEDDING], 5)),
} | {kind: with_layers(ModelSpec("gru", 5, 21), [{"type": kind} | OTHERS[kind]]) for kind in OTHERS}
LENGTHS = [9, 1, 4, 12, 7, 3, 8, 8, 2]
PROCESSORS = {"cortex-a57": "+neon", "neoverse-v1": "+neon,+sve"}


@pytest.mark.parametrize("name", PROCESSORS)
def test_every_kernel_compiles(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    sources: set[Source] = set()
    for module in (maps, rows, stack):
        monkeypatch.setattr(module, "compiled", lambda source: sources.add(source) or compiled(source))
    for spec in SPECS.values():
        NativeEngine(spec, weights_of(spec), threads=1)
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu=name, features=PROCESSORS[name], opt=2)
    processor = Processor.with_features(name, PROCESSORS[name], {"neon"})
    assert len({source.name for source in sources}) == 6  # no kind of kernel is missing
    assert "copy" in {getattr(source, "type", "") for source in sources}
    fused = 0
    for source in sources:
        text = replace(source, processor=processor).text()  # type: ignore[type-var]  # they are dataclasses
        assert "llvm.x86" not in text
        module = optimised(text, machine)
        module.verify()
        assembly = machine.emit_assembly(module)
        defined = {function.name for function in module.functions if not function.is_declaration}
        assert set(re.findall(r"\tbl?\t([a-z_]\w+)", assembly)) <= defined | {"memcpy", "memset"}
        fused += "fmla" in assembly
    assert fused > len(SPECS)
    code = machine.emit_object(module)
    assert (code[:4], code[18]) == (b"\x7fELF", 183)  # EM_AARCH64


@pytest.fixture(scope="module")
def emulators(tmp_path_factory):
    """A process that emulates each processor, and the file of its results; they run at the same time."""
    arm64 = tool("arm64")
    if not EMULATOR:
        pytest.skip("needs qemu-aarch64-static")
    started = {}
    for name, features in PROCESSORS.items():
        folder = tmp_path_factory.mktemp(name)
        old = name == "cortex-a57"  # it finds out itself what it is
        processor = None if old else Processor.with_features(name, features, {"neon"})
        cases = []
        for spec in SPECS.values():
            x, h, c = random_rows(spec, LENGTHS)
            single = [([x[b]], h[:, b : b + 1], None if c is None else c[:, b : b + 1]) for b in (0, 3)]
            cases += [(processor, spec, weights_of(spec), each) for each in [(x, h, c), *single]]
        (folder / "cases").write_bytes(pickle.dumps(cases))
        command = [EMULATOR, "-cpu", name if old else "max", "-L", arm64 / "root"]
        command += [arm64 / "root" / "usr" / "bin" / "python3", "-c", RUNNER, folder / "cases", folder / "results"]
        paths = os.pathsep.join(map(str, (ROOT, arm64 / "packages")))
        variables = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
        started[name] = subprocess.Popen(command, cwd=ROOT, env=variables), folder / "results"
    yield started
    for process, _ in started.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module", params=PROCESSORS)
def emulated(request, emulators):
    """What the engine computes of `LENGTHS` random rows, by the name of the model: all in one call, and one by one."""
    process, file = emulators[request.param]
    assert process.wait() == 0
    machine, has_fma, results = pickle.loads(file.read_bytes())
    assert (machine, has_fma) == ("aarch64", True)
    return {name: results[3 * number : 3 * number + 3] for number, name in enumerate(SPECS)}


@pytest.mark.integration
@pytest.mark.parametrize("name", SPECS)
def test_emulated_engine_agrees_with_float64(emulated: dict[str, list[Results]], name: str) -> None:
    spec = SPECS[name]
    weights = weights_of(spec)
    if spec.weights_dtype == "bf16":
        rounded = {key: torch.from_numpy(array).bfloat16().float().numpy() for key, array in weights.items()}
        weights |= {key: array for key, array in rounded.items() if array.ndim > 1}
    expected = reference(spec, weights, *random_rows(spec, LENGTHS))
    together, *alone = emulated[name]
    pairs = [*zip(together.outputs, expected.outputs, strict=True), (together.h, expected.h)]
    pairs += [] if together.c is None else [(together.c, expected.c)]
    pairs += zip(together.predictions or [], expected.predictions or [], strict=True)
    for actual, wanted in pairs:
        np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    for number, b in enumerate((0, 3)):
        assert_same_bits(alone[number].outputs[0], together.outputs[b])
        assert_same_bits(alone[number].h[:, 0], together.h[:, b])
