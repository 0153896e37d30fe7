"""A row that is split over threads by columns: the bits of one thread, whoever does the shares."""

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.interface import Rows
from service.engine.native import NativeEngine
from service.engine.native.compiler import compiled
from service.engine.native.layers import Head, Layer, LayerWeights, Stack
from service.engine.native.packing import Bytes, aligned
from service.engine.native.passes import Pass
from service.engine.native.processor import Processor
from service.engine.native.rows import Way, row_table
from service.engine.native.schedule import Schedule
from service.engine.native.split import Split, SplitRule
from service.engine.native.team import ENDED, LINE_WORDS, Helper, TeamWord
from service.engine.native.threads import Crew
from service.spec import ModelSpec
from tests.engine.native.models import assert_same_bits, initial_weights, random_rows, run_rows
from tests.engine.native.test_laws import KINDS

ALWAYS = SplitRule(step_bytes=0, flops=0, rest=0)


class Deserted(Crew):
    """A crew of whose threads only the caller's own ever comes."""

    def run(self, works: Sequence[Callable[[], object]]) -> None:
        works[0]()


def engine(spec: ModelSpec, threads: int, rule: SplitRule = ALWAYS) -> NativeEngine:
    return NativeEngine(spec, initial_weights(spec), threads=threads, split_rule=rule)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(KINDS),
    hidden=st.sampled_from([2, 16, 33, 130, 200]),
    threads=st.integers(2, 5),
    steps=st.integers(2, 400),
    data=st.data(),
)
def test_a_split_row_has_the_bits_of_one_thread(
    spec: ModelSpec, hidden: int, threads: int, steps: int, data: st.DataObject
) -> None:
    spec = replace(
        spec,
        input_size=data.draw(st.sampled_from([1, 40])),
        hidden_size=hidden,
        proj_size=spec.proj_size and data.draw(st.sampled_from([1, hidden - 1])),
        num_layers=data.draw(st.integers(1, 2)),
        bidirectional=data.draw(st.booleans()),
        out_features=data.draw(st.sampled_from([None, 70])),
        weights_dtype=data.draw(st.sampled_from(["f32", "bf16"])),
    )
    x, h, c = random_rows(spec, [steps])
    alone, split = run_rows(engine(spec, 1), x, h, c), run_rows(engine(spec, threads), x, h, c)
    assert_same_bits(split.outputs[0], alone.outputs[0])
    assert_same_bits(split.h, alone.h)
    if split.c is not None and alone.c is not None:
        assert_same_bits(split.c, alone.c)
    if split.predictions and alone.predictions:
        assert_same_bits(split.predictions[0], alone.predictions[0])


@pytest.mark.parametrize("spec", [*KINDS, replace(KINDS[4], proj_size=150)], ids=str)
def test_a_large_layer_called_often_keeps_its_bits(spec: ModelSpec) -> None:
    spec = replace(spec, input_size=100, hidden_size=300, proj_size=spec.proj_size and 150)
    alone, split = engine(spec, 1), engine(spec, 3)
    for seed in range(20):
        x, h, c = random_rows(spec, [60], seed)
        assert_same_bits(run_rows(split, x, h, c).outputs[0], run_rows(alone, x, h, c).outputs[0])


def test_more_callers_than_cores_do_not_lock() -> None:
    spec = ModelSpec("gru", 30, 160, num_layers=2)
    model = engine(spec, 3)
    x, h, c = random_rows(spec, [150])
    expected = run_rows(engine(spec, 1), x, h, c)
    with ThreadPoolExecutor(50) as pool:
        for result in pool.map(lambda _: run_rows(model, x, h, c), range(200)):
            assert_same_bits(result.outputs[0], expected.outputs[0])


@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_the_leader_does_what_no_helper_does(kind: str) -> None:
    spec = ModelSpec("rnn" if kind == "rnn_tanh" else kind, 20, 150, out_features=70)  # type: ignore[arg-type]
    weights, processor, crew = initial_weights(spec), Processor.host(), Deserted(4)
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    layer = Layer(kind, LayerWeights(*(weights[name] for name in names)), "f32", processor)
    head = Head(weights["head.weight"], weights["head.bias"], "f32", processor)
    split = Split(ALWAYS, crew, processor)
    x, h, c = random_rows(spec, [33])
    predictions = np.zeros((33, 70), np.float32)
    batch = Rows(x[0], np.array([0]), np.array([33]), h.copy(), None if c is None else c.copy(), None, predictions)
    Pass(Stack([layer], head), compiled(Schedule(processor)), crew, 1, split).run(row_table([batch], Way()))
    expected = run_rows(engine(spec, 1), x, h, c)
    assert expected.predictions
    assert_same_bits(predictions, expected.predictions[0])
    assert_same_bits(batch.h, expected.h)


def test_a_helper_does_its_share_of_each_open_phase_and_leaves() -> None:
    memory: Bytes = aligned(8 * (TeamWord.SEATS + 3 * LINE_WORDS))
    words = memory.view(np.int64)
    words[TeamWord.MEMBERS] = 3
    done = []
    share = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(
        lambda _, part, parts: done.append((part, parts))
    )
    words[TeamWord.FUNCTION] = ctypes.cast(share, ctypes.c_void_p).value or 0
    code = compiled(Helper(Processor.host()))
    assist = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)(code.address)
    seat = TeamWord.SEATS + LINE_WORDS
    with ThreadPoolExecutor(1) as pool:
        helper = pool.submit(assist, words.ctypes.data, 2)
        for phase in (1, 2):
            words[TeamWord.PHASE] = phase
            while words[seat] != 2 * phase:
                assert not helper.done()
        words[seat] = 6  # the leader has taken the share of phase 3
        words[TeamWord.PHASE] = 3
        words[TeamWord.PHASE] = ENDED
        helper.result(timeout=60)
    assert done == [(2, 3), (2, 3)]


def test_a_split_is_for_large_calls_on_several_threads() -> None:
    processor = Processor.host()
    assert not Split(ALWAYS, Crew(1), processor).pays(1 << 40, 1 << 40)
    split = Split(SplitRule(step_bytes=100, flops=1000), Crew(2), processor)
    assert split.pays(100, 1000)
    assert not split.pays(99, 1000)
    assert not split.pays(100, 999)


def test_after_a_split_that_brought_nothing_calls_run_on_one_thread_for_a_while() -> None:
    split = Split(SplitRule(step_bytes=0, flops=0, rest=3), Deserted(2), Processor.host())

    def no_one_helped(team: int) -> None:
        ctypes.c_int64.from_address(team + 8 * TeamWord.LEFT).value = 5

    split.run(no_one_helped)
    assert [split.pays(1, 1) for _ in range(5)] == [False, False, False, True, True]
    split.run(lambda _: None)
    assert split.pays(1, 1)
