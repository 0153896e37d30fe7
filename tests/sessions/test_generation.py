"""Generations of sessions: each is committed once, whoever repeats it and through whichever process."""

import asyncio

import numpy as np
import pytest

from service.engine.native.engine import NativeEngine
from service.errors import NonFiniteOutput, StepConflict, StepOutOfOrder
from service.serving.generation import Generation
from service.serving.sampling import Sampling
from service.sessions.lifecycle import Session
from service.sessions.replay import decode_state
from tests.loop import in_loop
from tests.reference import weights_of
from tests.serving.test_generation import of_tokens
from tests.sessions.test_exactly_once import OWNER, UNTIMED, Process, SharedStore

ENGINE = NativeEngine(of_tokens("lstm"), weights_of(of_tokens("lstm"), 2), threads=1)


async def generate(process, steps, step=None, digest=b"d" * 16, seed=5, check=lambda: None):
    """What a generation gives: the number of its first step, the seed, tokens, predictions and final state."""
    sampling = Sampling(np.array([seed], np.uint64), np.ones(1, np.int64), 1.0, None, 1.0, normalized=False)
    returns = frozenset(("predictions",))
    generation = Generation(ENGINE.spec, np.array([[3]], np.float32), steps, returns, sampling, stop={6})
    session = Session(await process.cache.find("s", OWNER), process.model, ENGINE)
    first = await process.steps.generate(session, generation, step, digest, check, UNTIMED)
    count = generation.step
    results = [values[0, :count].tobytes() for values in generation.results.values()]
    return first, count, int(sampling.seeds[0]), *results, generation.rows.h.tobytes(), generation.rows.c.tobytes()


@in_loop
async def test_generation_is_committed_once():
    store = SharedStore(10)
    one, other = Process(ENGINE, store), Process(ENGINE, store)
    await one.open()
    done = await generate(one, 5, 1)
    count = done[1]
    for process in (one, other):
        assert await generate(process, 5, 1, seed=99) == done  # the seed that was drawn at first is kept
    with pytest.raises(StepConflict):
        await generate(other, 5, 1, digest=b"e" * 16)
    for step in (count + 2, count + 9):
        with pytest.raises(StepOutOfOrder):
            await generate(other, 5, step)

    def refuse():
        raise NonFiniteOutput("no")

    with pytest.raises(NonFiniteOutput):
        await generate(one, 5, check=refuse)
    tasks = [generate(process, 40, count + 1) for process in (one, one, other, other)]
    results = await asyncio.gather(*tasks)
    assert results[1:] == results[:-1]
    assert results[0][0] == count + 1
    record = await other.cache.find("s", OWNER, fresh=True)
    assert record.position.step == count + results[0][1]
    h, c = decode_state(ENGINE.spec, record.position.state)
    assert (h.tobytes(), c.tobytes()) == results[0][-2:]
    assert one.cache.counts.commits + other.cache.counts.commits == 2
    await one.run(np.array([[3]], np.float32), record.position.step + 1)
    with pytest.raises(StepConflict):
        await generate(other, 5, record.position.step + 1)
