"""Sequences through two processes at one store: each call against plain lists of what was done."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from random import Random

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from service.engine.load import EngineFactory
from service.errors import (
    DeadlinePassed,
    FieldError,
    InvalidRequest,
    ModelInUse,
    SessionGone,
    SessionsFull,
)
from service.serving.inference import Inference
from service.serving.registry import Registry
from service.sessions.cache import SessionCache, SessionLimits
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Lifetimes, Sessions
from service.sessions.queue import SessionQueue
from service.sessions.sequences import Sequence, SequenceCall, Sequences
from service.sessions.stepper import NonFinite
from service.spec import ModelSpec
from service.stores.memory import MemoryStore
from tests.e2e.models import weights, write_model
from tests.loop import in_loop
from tests.sessions.test_exactly_once import UNLIMITED, UNTIMED, SharedStore, in_one_run, vectors

OWNER = b"somebody"
MODEL = "lstm-proj"
TERMS = Terms(refuse_non_finite=True, with_state=False, in_stream=False, times=UNTIMED)


class Process:
    def __init__(self, root, store, now, limits=UNLIMITED):
        self._now = now  # of all processes
        factory = EngineFactory(torch.device("cpu"), 1, "auto")
        self.registry = Registry(root, factory, default_model=None, cache_bytes=2**30)
        self.registry.scan()
        inference = Inference(self.registry, workers=1, max_queued_requests=999, max_queued_bytes=2**30)
        cache, queue = SessionCache(store, limits, self.clock), SessionQueue(64)
        self.sessions = Sessions(cache, queue, self.registry, Lifetimes(60.0, 60.0))
        self.sequences = Sequences(self.sessions, SessionSteps(cache, queue, inference, replay_bytes=400))

    @property
    def now(self):
        return self._now[0]

    def clock(self):
        self._now[0] += 2**-20
        return self.now

    async def call(self, sequence_id, inputs, *, owner=OWNER, start=False, end=False, step=None, deadline=None):
        """The number of the first step, outputs, and the model that ran."""

        def read(model):
            if inputs.shape[1] != model.spec.input_size:
                raise InvalidRequest([FieldError(("inputs",), "another size")])
            return inputs

        sequence, model = Sequence.of(owner, MODEL, sequence_id), self.registry.resolve(MODEL, None)
        async with self.sequences.turn(sequence):
            on = model if start else await self.sequences.find(sequence, model)
            call = SequenceCall(sequence, on, end, step, read, TERMS, deadline)
            model, [steps] = await self.sequences.run(call)
        return steps.first, steps.outputs, model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    write_model(root, MODEL)
    return root


def spec_of(process):
    return process.registry.resolve(MODEL, None).spec


class SlowStore(SharedStore):
    """A store whose calls take some turns of the loop, before and after what they do."""

    random = Random(1)


def slow(name):
    plain = getattr(SharedStore, name)

    async def call(self, *values):
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        done = await plain(self, *values)
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)
        return done

    return call


for _name in ("load", "commit", "end", "create"):
    setattr(SlowStore, _name, slow(_name))


@dataclass(eq=False)
class Answered:
    """A call that was answered, and when it was made and answered."""

    start: bool
    end: bool
    inputs: np.ndarray
    made: int
    answered: int = 0
    first: int = 0
    outputs: bytes = b""


@dataclass
class Life:
    """One sequence from its start: its calls, in order."""

    calls: list[Answered] = field(default_factory=list)


def lives_of(engine, calls):
    """Which call ran in which life, by the bits of its outputs. Each must have run in exactly one, at its number."""
    lives, left = [Life([call]) for call in calls if call.start], [call for call in calls if not call.start]
    for life in lives:
        assert life.calls[0].outputs == in_one_run(engine, life.calls[0].inputs)[0].tobytes()
        while True:
            number = len(life.calls) + 1
            fits = []
            for call in [call for call in left if call.first == number]:
                whole = np.concatenate([*(done.inputs for done in life.calls), call.inputs])
                if in_one_run(engine, whole)[0][-1:].tobytes() == call.outputs:
                    fits.append(call)
            if not fits:
                break
            assert len(fits) == 1
            life.calls += fits
            left.remove(fits[0])
    assert not left, "a step was answered and is in no sequence"
    return lives


@pytest.mark.parametrize("seed", range(8))
@in_loop
async def test_no_step_of_an_old_life_lands_in_a_new_one(root, seed):
    """Many starts, steps and ends of one sequence at once, through two processes."""
    store, random, times, now = SlowStore(100), Random(seed), count(), [1000.0]
    processes = [Process(root, store, now), Process(root, store, now)]
    engine = await processes[0].registry.engine(processes[0].registry.resolve(MODEL, None))
    refused = Counter()

    async def client(number):
        answered = []
        for turn in range(12):
            start, end = random.random() < 0.25, random.random() < 0.1
            inputs = vectors(spec_of(processes[0]), 1, seed=1000 * number + turn)
            call = Answered(start, end, inputs, next(times))
            try:
                done = await random.choice(processes).call("s", inputs, start=start, end=end)
            except InvalidRequest as refusal:
                refused[str(refusal).split("after")[0]] += 1
            else:
                call.first, call.outputs, call.answered = done[0], done[1].tobytes(), next(times)
                answered.append(call)
            for _ in range(random.randrange(6)):
                await asyncio.sleep(0)
        return answered

    calls = [call for answered in await asyncio.gather(*map(client, range(6))) for call in answered]
    lives = lives_of(engine, calls)
    starts = [life.calls[0] for life in lives]
    for start, life in zip(starts, lives, strict=True):
        for call in life.calls:
            between = [one for one in starts if start.answered < one.made and one.answered < call.made]
            assert not between, "a step ran in a sequence that another start had replaced"
            ends = [one for one in life.calls if one.end and one.answered < call.made]
            assert not ends, "a step ran in a sequence that had ended"
    assert sum(len(life.calls) > 1 for life in lives) > 3
    states = [in_one_run(engine, np.concatenate([call.inputs for call in life.calls]))[1] for life in lives]
    assert all(record.position.state in states for record in await store.page("", 9))
    assert sum(process.sessions._users.total() for process in processes) == store.totals.sessions
    assert len(refused) <= 2


def alone(root, limits=UNLIMITED):
    return Process(root, MemoryStore(10), [1000.0], limits)


@in_loop
async def test_end_spares_a_sequence_begun_meanwhile(root):
    """Another process begins it anew between the commit of the last step and the end, or as it expires."""

    class Store(SharedStore):
        async def end(self, *values):
            if self.before_end:
                before_end, self.before_end = self.before_end, None
                await before_end
            return await super().end(*values)

    store, now = Store(10), [1000.0]
    one, other = Process(root, store, now), Process(root, store, now)
    inputs = vectors(spec_of(one), 2, seed=1)
    for seconds in (0, 60):
        store.before_end = None
        await one.call(7, inputs[:1], start=True)
        now[0] += seconds
        store.before_end = other.call(7, inputs[:1], start=True)
        if seconds:
            with pytest.raises(InvalidRequest, match=r"ended \(expired\) after step 1"):
                await one.call(7, inputs[1:])
        else:
            await one.call(7, inputs[1:], end=True)
        for process in (one, other):
            assert (await process.call(7, inputs[1:], step=2))[1].tobytes() == (
                in_one_run((await one.call(8, inputs, start=True))[2].engine, inputs)[0][1:].tobytes()
            )


@in_loop
async def test_start_moves_to_new_weights(tmp_path):
    """Another process knows the old sequence, and an older version of the model; then the old weights are gone."""
    write_model(tmp_path, MODEL)
    store, now = SharedStore(10), [1000.0]
    one, other = Process(tmp_path, store, now), Process(tmp_path, store, now)
    inputs = vectors(spec_of(one), 3, seed=1)
    await one.call(7, inputs[:1], start=True)
    first, _, old = await other.call(7, inputs[1:2])
    save_file(weights(MODEL, 2), tmp_path / MODEL / "1" / "model.safetensors")
    await one.registry.reload(MODEL)
    assert (await one.call(7, inputs[2:]))[2].fingerprint == old.fingerprint
    await one.call(7, inputs[:1], start=True)
    for number, process in enumerate([other, one], 1):
        first, outputs, new = await process.call(7, inputs[number : number + 1])
        assert first == number + 1
        assert new.fingerprint != old.fingerprint
        assert outputs.tobytes() == in_one_run(new.engine, inputs)[0][number : number + 1].tobytes()
    assert one.sessions.on(old) == 0
    latest = Process(tmp_path, store, now)
    assert (await latest.call(7, inputs[:1]))[0] == 4


@in_loop
async def test_start_moves_to_another_input_size(tmp_path):
    write_model(tmp_path, MODEL)
    store, now = SharedStore(10), [1000.0]
    one, other = Process(tmp_path, store, now), Process(tmp_path, store, now)
    await one.call(7, vectors(spec_of(one), 1, seed=1), start=True)
    await other.call(7, vectors(spec_of(one), 1, seed=2))
    write_model(tmp_path, MODEL, 2, ModelSpec("gru", 5, 3))
    for process in (one, other):
        await process.registry.reload(MODEL)
    inputs = vectors(spec_of(one), 2, seed=1)
    with pytest.raises(InvalidRequest, match="another size"):
        await other.call(7, inputs[:1])
    await one.call(7, inputs[:1], start=True)
    _, outputs, model = await other.call(7, inputs[1:])
    assert outputs.tobytes() == in_one_run(model.engine, inputs)[0][1:].tobytes()


@in_loop
async def test_full_service_takes_restarts(root):
    process = alone(root, SessionLimits(1, 10**6, "refuse"))
    inputs = vectors(spec_of(process), 2, seed=1)
    for _ in range(3):
        assert (await process.call("a", inputs[:1], start=True))[0] == 1
        with pytest.raises(SessionsFull):
            await process.call("b", inputs[:1], start=True)
        assert (await process.call("a", inputs[1:]))[0] == 2
    assert process.sessions.cache.counts.ended == {"restarted": 2}
    evicting = alone(root, SessionLimits(1, 10**6, "lru"))
    await evicting.call("a", inputs[:1], start=True)
    await evicting.call("b", inputs[:1], start=True)
    with pytest.raises(SessionGone, match=r'sequence "a" of model "lstm-proj" has ended \(evicted\) after step 1'):
        await evicting.call("a", inputs[1:])


@in_loop
async def test_start_that_fails_changes_nothing(root):
    process = alone(root)
    inputs = vectors(spec_of(process), 2, seed=1)
    _, _, model = await process.call(7, inputs[:1], start=True)
    before = (await process.sessions.cache.store.page("", 9))[0].position
    with pytest.raises(InvalidRequest, match="the first step of a sequence is 1"):
        await process.call(7, inputs[1:], start=True, step=2)
    with pytest.raises(DeadlinePassed):
        await process.call(7, inputs[1:], start=True, deadline=0.0)
    with pytest.raises(NonFinite):
        await process.call(7, inputs[1:] * np.nan, start=True)
    model.draining = True
    with pytest.raises(ModelInUse):
        await process.call(7, inputs[1:], start=True)
    assert (await process.sessions.cache.store.page("", 9))[0].position is before
    assert (await process.call(7, inputs[1:]))[0] == 2


@in_loop
async def test_sequences_of_others_are_others(root):
    process = alone(root)
    inputs = vectors(spec_of(process), 1, seed=1)
    await process.call(7, inputs, start=True)
    for other in ({"owner": b"else"}, {"sequence_id": "7"}, {"sequence_id": 8}):
        with pytest.raises(InvalidRequest, match="has not begun"):
            await process.call(inputs=inputs, **({"sequence_id": 7} | other))
    assert (await process.call(7, inputs, end=True))[0] == 2
    assert process.sessions.on(process.registry.resolve(MODEL, None)) == 0
