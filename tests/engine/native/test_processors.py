"""Code for processors other than the host: what it is made of, and, where the host can run it, what it computes."""

import numpy as np
import pytest

from service.engine.native.compiler import Processor, optimised, target_machine
from service.engine.native.engine import NativeEngine
from service.engine.native.recurrent import Recurrent
from service.spec import ModelSpec
from tests.engine.native import processors
from tests.engine.native.models import assert_same_bits, random_rows, reference, run_rows
from tests.engine.native.processors import runnable
from tests.reference import OTHERS, weights_of, with_layers

SPECS = [
    ModelSpec("rnn", 5, 37, num_layers=2).with_linear_head(3),
    ModelSpec("gru", 5, 37, bidirectional=True),
    ModelSpec("lstm", 5, 37, proj_size=9, weights_dtype="bf16"),
    *(with_layers(ModelSpec("gru", 5, 21), [{"type": kind} | OTHERS[kind]]) for kind in OTHERS),
]


@pytest.mark.parametrize("processor", runnable(), ids=lambda p: p.name)
@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.front[-1].type if s.front else s.kind)
def test_every_processor_obeys_the_laws(spec: ModelSpec, processor: Processor) -> None:
    weights = weights_of(spec)
    model = NativeEngine(spec, weights, threads=1, processor=processor)
    x, h, c = random_rows(spec, [9, 1, 4, 12, 7, 3, 8, 8, 2])
    together = run_rows(model, x, h, c)
    expected = reference(spec, weights, x, h, c)
    bound = 1e-2 if spec.weights_dtype == "bf16" else 1e-5
    for b, row in enumerate(x):
        np.testing.assert_allclose(together.outputs[b], expected.outputs[b], rtol=0, atol=bound)
        if together.predictions and expected.predictions:
            np.testing.assert_allclose(together.predictions[b], expected.predictions[b], rtol=0, atol=bound)
        alone = run_rows(model, [row], h[:, b : b + 1], None if c is None else c[:, b : b + 1])
        assert_same_bits(alone.outputs[0], together.outputs[b])


@pytest.mark.parametrize(
    ("level", "has", "has_not"),
    [
        ("x86-64-v2", ["%xmm", "mulps", "addps"], ["%ymm", "vfmadd", "fmaf"]),
        ("x86-64-v3", ["%ymm", "vfmadd"], ["%zmm", "fmaf"]),
        ("x86-64-v4", ["%zmm", "vfmadd"], ["fmaf"]),
    ],
)
def test_levels_use_their_own_instructions(level: str, has: list[str], has_not: list[str]) -> None:
    processor = processors.level(level)
    machine = target_machine(processor)
    assembly = machine.emit_assembly(optimised(Recurrent("rnn_tanh", 64, 64, "f32", processor).text(), machine))
    assert all(word in assembly for word in has)
    assert not any(word in assembly for word in has_not)
