"""Rows that generate: the same however they run, drawn as torch's softmax says, fed back as a loop in float64 does."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.interface import Rows
from service.engine.native.engine import NativeEngine
from service.errors import DeadlinePassed, NonFiniteOutput
from service.models.layer_config import LayerConfig, chain_layers
from service.serving.generation import Generation
from service.serving.sampling import Sampling, uniforms
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec
from tests.reference import numbers, run_reference, weights_of
from tests.serving.test_scheduler import Here

IDS = 7


def of_tokens(kind="gru", last=()):
    """A model that writes: IDS token ids in, IDS values out."""
    front = [LayerConfig(type="embedding", num_embeddings=IDS, embedding_dim=4)]
    head = [LayerConfig(type="linear", out_features=IDS), *(LayerConfig(type=each) for each in last)]
    spec = ModelSpec(kind, 4, 5, num_layers=2)
    return replace(spec, front=chain_layers("front", front, 4), head=chain_layers("head", head, 5))


ENGINES = {kind: NativeEngine(of_tokens(kind), weights_of(of_tokens(kind), 2), threads=1) for kind in ("gru", "lstm")}


for engine in ENGINES.values():
    engine.turn_seconds = 1e-4


def sampling(seeds, firsts=1, temperature=1.0, top_k=None, top_p=1.0, normalized=False):
    seeds = np.atleast_1d(np.array(seeds, np.uint64))
    return Sampling(seeds, np.broadcast_to(firsts, seeds.shape), temperature, top_k, top_p, normalized)


def begun(spec, inputs, steps, h, c, **options):
    generation = Generation(spec, np.array(inputs, np.float32).reshape(len(inputs), -1), steps, **options)
    generation.begin(h.copy(), None if c is None else c.copy())
    return generation


def states(spec, batch, seed=0):
    rng = np.random.default_rng(seed)
    c = numbers(rng, spec.states, batch, spec.hidden_size) if spec.has_cell_state else None
    return numbers(rng, spec.states, batch, spec.state_size), c


def state_of(generation, row):
    c = generation.rows.c
    return generation.rows.h[:, row : row + 1], None if c is None else c[:, row : row + 1]


def run_by_hand(engine, token, steps, h, c, draws, stop):
    """One row by calls of one step: its tokens."""
    h, c, tokens = h.copy(), None if c is None else c.copy(), []
    for step in range(steps):
        predictions = np.empty((1, IDS), np.float32)
        rows = Rows(np.array([[token]], np.float32), np.zeros(1, np.int64), np.ones(1, np.int64), h, c)
        engine.run([replace(rows, predictions=predictions)])
        token = int(draws.draw(predictions, step)[0])
        tokens.append(token)
        if token in stop:
            break
    return tokens, h


@given(
    kind=st.sampled_from(sorted(ENGINES)),
    tokens=st.lists(st.integers(0, IDS - 1), min_size=1, max_size=5),
    steps=st.integers(1, 40),
    cut=st.integers(1, 40),
    options=st.sampled_from([{"temperature": 0.0}, {}, {"temperature": 0.7, "top_k": 4, "top_p": 0.8}]),
    stop=st.sampled_from([(), (3,), (0, 6)]),
)
def test_alone_together_in_turns_and_in_two_pieces(kind, tokens, steps, cut, options, stop):
    engine, batch = ENGINES[kind], len(tokens)
    spec, keep = engine.spec, {"returns": frozenset(("predictions",)), "stop": frozenset(stop)}
    h, c = states(spec, batch)
    together = begun(spec, tokens, steps, h, c, sampling=sampling(range(batch), **options), **keep)
    together.run(engine)
    in_turns = begun(spec, tokens, steps, h, c, sampling=sampling(range(batch), **options), **keep)

    async def run_in_turns():
        scheduler = Scheduler(engine, Here())
        rows = Rows(np.ones((30, 1), np.float32), np.zeros(1, np.int64), np.array([30]), *states(spec, 1))
        others = [scheduler.run(rows)]
        while in_turns.live:
            await asyncio.gather(scheduler.generate(in_turns, by_turn=True), *others)
            others = []

    asyncio.run(run_in_turns())
    np.testing.assert_array_equal(in_turns.results["tokens"], together.results["tokens"])
    np.testing.assert_array_equal(in_turns.rows.h, together.rows.h)
    np.testing.assert_array_equal(in_turns.counts, together.counts)
    for row, token in enumerate(tokens):
        own = [None if state is None else state[:, row : row + 1] for state in (h, c)]
        by_hand, state = run_by_hand(engine, token, steps, *own, sampling(row, **options), stop)
        assert together.results["tokens"][row, : together.counts[row]].tolist() == by_hand
        np.testing.assert_array_equal(together.rows.h[:, row : row + 1], state)
        first = begun(spec, [token], min(cut, steps), *own, sampling=sampling(row, **options), **keep)
        first.run(engine)
        written = first.results["tokens"][0, : first.counts[0]].tolist()
        if cut < steps and written[-1] not in stop:
            draws = sampling(row, 1 + len(written), **options)
            second = begun(spec, written[-1:], steps - cut, *state_of(first, 0), sampling=draws, **keep)
            second.run(engine)
            written += second.results["tokens"][0, : second.counts[0]].tolist()
        assert written == by_hand


def chi_square(counts, wanted):
    """How far counts are from probabilities, and what is exceeded once in 10,000 times (Wilson and Hilferty)."""
    likely = wanted > 0
    assert not counts[~likely].any()
    expected, freedom = wanted[likely] * counts.sum(), likely.sum() - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.72 * np.sqrt(2 / (9 * freedom))) ** 3
    return ((counts[likely] - expected) ** 2 / expected).sum(), bound


@pytest.mark.parametrize("ends", ["logits", "softmax", "log_softmax"])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1, None, 1), (0.5, None, 1), (2, 5, 1), (1.5, 8, 0.7)])
def test_draws_as_often_as_softmax_says(ends, temperature, top_k, top_p):
    logits = torch.linspace(-2, 2, 12).sin() * 2
    given = {"logits": logits, "softmax": logits.softmax(0), "log_softmax": logits.log_softmax(0)}[ends]
    scaled = logits.double() / temperature
    if top_k:
        scaled[scaled < scaled.topk(top_k).values[-1]] = -torch.inf
    ordered, order = scaled.softmax(0).sort(descending=True)
    kept = ordered.cumsum(0) - ordered < top_p  # the first that reaches it is the last
    wanted = torch.zeros(12).double().scatter(0, order[kept], ordered[kept])
    draws = sampling(range(20_000), 1, temperature, top_k, top_p, normalized=ends == "softmax")
    tokens = draws.draw(given.expand(20_000, 12).numpy(), 0)
    counted = np.bincount(tokens, minlength=12)
    distance, bound = chi_square(counted, (wanted / wanted.sum()).numpy())
    assert distance < bound


def test_uniforms_are_uniform_in_both_directions():
    drawn = uniforms(np.arange(500, dtype=np.uint64)[:, None], np.arange(1, 501)[None])
    assert 0 <= drawn.min() < drawn.max() < 1
    for values in (drawn.ravel(), drawn[:, 0], drawn[0]):
        distance, bound = chi_square(np.histogram(values, 20, (0, 1))[0], np.full(20, 0.05))
        assert distance < bound
    assert abs(np.corrcoef(drawn[:-1].ravel(), drawn[1:].ravel())[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]) < 0.01


def test_most_likely_token_is_lowest_of_equals():
    assert sampling([0], temperature=0).draw(np.array([[1, 3, 3, 2]], np.float32), 0) == [1]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_drawn_from_what_is_not_finite(value, temperature):
    predictions = np.array([[1, 2], [value, 1]], np.float32)
    with pytest.raises(NonFiniteOutput, match=r"row 1 .* step 3"):
        sampling([0, 1], temperature=temperature).draw(predictions, 2)


@settings(max_examples=40)
@given(data=st.data(), batch=st.integers(1, 3), steps=st.integers(1, 8))
def test_rollout_equals_loop_in_float64(data, batch, steps):
    width = data.draw(st.integers(1, 4))
    feedback = data.draw(st.permutations([*range(width), None]).map(lambda places: places[: width + 1]))
    spec = ModelSpec("lstm", width + 1, 6).with_linear_head(len(feedback))
    arrays = weights_of(spec, 3)
    rng = np.random.default_rng(steps)
    inputs, future = numbers(rng, batch, width + 1), numbers(rng, batch, steps - 1, width + 1)
    pairs = [(index, place) for index, place in enumerate(feedback) if place is not None]
    options = {"returns": frozenset(("predictions",)), "feedback": tuple(zip(*pairs, strict=True)), "future": future}
    h, c = states(spec, batch)
    generation = begun(spec, inputs, steps, h, c, **options)
    generation.run(NativeEngine(spec, arrays, threads=1))
    for row in range(batch):
        sequence = inputs[row : row + 1].astype(np.float64)
        for step in range(steps):
            result = run_reference(spec, arrays, sequence, h[:, row], c[:, row])
            if step + 1 < steps:
                following = future[row, step].astype(np.float64)
                for index, place in pairs:
                    following[place] = result.predictions[-1, index]
                sequence = np.concatenate([sequence, following[None]])
        np.testing.assert_allclose(generation.results["predictions"][row], result.predictions, atol=1e-5)
        np.testing.assert_allclose(generation.rows.h[:, row], result.h, atol=1e-5)


def test_one_failure_leaves_other_generations_alone():
    engine = ENGINES["gru"]
    h, _ = states(engine.spec, 1)

    class Fails(Sampling):
        def draw(self, predictions, step):
            raise NonFiniteOutput("no")

    good = begun(engine.spec, [1], 5, h, None, returns=frozenset(), sampling=sampling(1))
    bad = begun(engine.spec, [1], 5, h, None, returns=frozenset(), sampling=Fails(*([None] * 6)))
    late = begun(engine.spec, [1], 5, h, None, returns=frozenset(), sampling=sampling(1))

    async def run():
        scheduler = Scheduler(engine, Here())
        calls = (scheduler.generate(each, at, by_turn=False) for each, at in ((good, None), (bad, None), (late, 0.0)))
        return await asyncio.gather(*calls, return_exceptions=True)

    results = asyncio.run(run())
    assert [type(result) for result in results[1:]] == [NonFiniteOutput, DeadlinePassed]
    assert (good.step, late.step) == (5, 0)
