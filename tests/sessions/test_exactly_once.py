"""Each step of a session runs exactly once: against a list of what was done, through two processes at one store."""

import asyncio
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.request import Request
from service.engine.interface import Rows
from service.engine.native.engine import NativeEngine
from service.errors import SessionBusy, SessionGone, SessionNotFound, SessionsFull, StepConflict, StepOutOfOrder
from service.serving.inference import Inference
from service.serving.registry import ModelVersion
from service.sessions.cache import SessionCache, SessionLimits
from service.sessions.exactly_once import SessionSteps, Terms
from service.sessions.lifecycle import Session
from service.sessions.queue import SessionQueue
from service.sessions.replay import decode_state, encode_state, zero_state
from service.sessions.stepper import NonFinite
from service.spec import ModelSpec
from service.stores.interface import Ended, Position, SessionRecord, Weights
from service.stores.memory import MemoryStore
from tests.loop import in_loop
from tests.reference import weights_of

SPECS = [ModelSpec("rnn", 3, 5), ModelSpec("lstm", 2, 4, num_layers=2, proj_size=3).with_linear_head(2)]
ENGINES = [NativeEngine(spec, weights_of(spec, seed=1), threads=1) for spec in SPECS]
OWNER = b"somebody"
UNTIMED = Request("POST", "/cell/step", b"", {}, "", "")
UNLIMITED = SessionLimits(10**6, 2**40, "refuse")


class SharedStore(MemoryStore):
    """One store for several caches, as several processes have it: what they loaded does not change under them."""

    shared = True

    async def load(self, session):
        found = await super().load(session)
        return replace(found) if isinstance(found, SessionRecord) else found

    async def create(self, record):
        return await super().create(replace(record))


class Registry:
    """Engines that are loaded."""

    def loaded(self, model):
        return model.engine


@dataclass
class Process:
    """What one process has of the serving layer."""

    engine: NativeEngine
    store: MemoryStore
    limits: SessionLimits = UNLIMITED
    max_waiting: int = 64
    now: float = 1000.0
    cache: SessionCache = field(init=False)
    steps: SessionSteps = field(init=False)

    def __post_init__(self):
        self.model = ModelVersion("m", "1", self.engine.spec, None, None, engine=self.engine)
        self.inference = Inference(Registry(), workers=1, max_queued_requests=99, max_queued_bytes=2**30)
        self.cache = SessionCache(self.store, self.limits, lambda: self.now)
        self.queue = SessionQueue(self.max_waiting)
        self.steps = SessionSteps(self.cache, self.queue, self.inference, replay_bytes=400)

    async def open(self, name="s", ttl=60.0):
        state = zero_state(self.engine.spec)
        weights = Weights("m", "1", b"")
        record = SessionRecord(name, OWNER, weights, ttl, self.now, b"", Position(0, 0, state, b"", self.now))
        await self.cache.create(record)

    async def run(self, inputs, step=None, *, in_stream=False, strict=True, name="s"):
        record = await self.cache.find(name, OWNER)
        terms = Terms(strict, with_state=False, in_stream=in_stream, times=UNTIMED)
        ran = await self.steps.run(Session(record, self.model, self.engine), inputs, step, terms)
        return np.concatenate([steps.outputs for steps in ran]), ran

    async def reset(self, name="s"):
        while True:
            record = await self.cache.find(name, OWNER, fresh=True)
            before = record.position
            position = Position(before.revision + 1, before.step, zero_state(self.engine.spec), b"", self.now)
            if await self.cache.commit(record, before, position):
                return


def in_one_run(engine, inputs):
    """All steps (N,I) from zeros in one run: outputs and final state."""
    spec = engine.spec
    h, c = decode_state(spec, zero_state(spec))
    outputs = np.empty((len(inputs), spec.output_size), np.float32)
    engine.run([Rows(inputs, np.zeros(1, np.int64), np.array([len(inputs)]), h, c, outputs)])
    return outputs, encode_state(h, c)


def vectors(spec, count, seed):
    return np.random.default_rng(seed).standard_normal((count, spec.input_size)).astype(np.float32)


OPERATIONS = st.one_of(
    st.tuples(st.just("next"), st.integers(1, 4), st.booleans(), st.booleans()),
    st.tuples(st.just("repeat"), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans()),
    st.tuples(st.just("ahead"), st.integers(1, 3)),
    st.tuples(st.just("reset")),
)


@settings(max_examples=100)
@given(
    engine=st.sampled_from(ENGINES), script=st.lists(st.tuples(st.integers(0, 1), OPERATIONS), min_size=1, max_size=25)
)
@in_loop
async def test_each_step_runs_once(engine, script):
    store = SharedStore(10)
    processes = [Process(engine, store), Process(engine, store)]
    await processes[0].open()
    done, replies, last = [], [], (0, 0)  # inputs and outputs of every step, and the last commit's range
    since = 0  # steps before the last reset
    for number, (which, operation) in enumerate(script):
        process, (kind, *details) = processes[which], operation
        if kind == "reset":
            await process.reset()
            since, last = len(done), (0, 0)
        elif kind == "next":
            count, numbered, in_stream = details
            inputs = vectors(engine.spec, count, seed=number)
            outputs, _ = await process.run(inputs, len(done) + 1 if numbered else None, in_stream=in_stream)
            last = (len(done), len(done) + count)
            done.extend(inputs)
            replies.extend(outputs)
        elif kind == "ahead":
            with pytest.raises(StepOutOfOrder) as error:
                await process.run(vectors(engine.spec, 1, 0), len(done) + 1 + details[0])
            assert error.value.expected == len(done) + 1
        else:
            back, count, same, in_stream = details
            first = max(0, len(done) - back)
            stop = min(len(done), first + count)
            if first == stop:
                continue
            inputs = np.stack(done[first:stop]) if same else vectors(engine.spec, stop - first, seed=-number % 999)
            before, answers = (await store.load("s")).position, []
            for asked in (process, Process(engine, store)):  # whatever it has loaded before, and one that has nothing
                try:
                    outputs, _ = await asked.run(inputs, first + 1, in_stream=in_stream)
                    assert same
                    assert outputs.tobytes() == np.stack(replies[first:stop]).tobytes()
                    answers.append("done")
                except StepOutOfOrder as refusal:
                    expected = refusal.expected
                    assert expected == len(done) + 1
                    assert not (same and (first, stop) == last)
                    answers.append(str(refusal))
                except StepConflict as refusal:
                    assert not same
                    answers.append(str(refusal))
            assert answers[0] == answers[1]
            assert (await store.load("s")).position is before
    position = (await store.load("s")).position
    assert position.step == len(done)
    if len(done) > since:
        outputs, state = in_one_run(engine, np.stack(done[since:]))
        assert position.state == state
        assert np.stack(replies[since:]).tobytes() == outputs.tobytes()


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.spec.kind)
@in_loop
async def test_stream_repeats_any_of_its_last_steps(engine):
    """Blocks of any cut; what comes again is answered again and what is new runs, in one call."""
    process = Process(engine, MemoryStore(10))
    await process.open()
    inputs = vectors(engine.spec, 12, seed=3)
    expected, _ = in_one_run(engine, inputs)
    for first, stop in ((0, 3), (3, 4), (2, 7), (6, 7), (5, 10), (9, 12), (8, 12)):
        outputs, ran = await process.run(inputs[first:stop], first + 1, in_stream=True)
        assert outputs.tobytes() == expected[first:stop].tobytes()
        assert [steps.first for steps in ran] == sorted(steps.first for steps in ran)
    with pytest.raises(StepOutOfOrder, match="not kept any more"):
        await process.run(inputs[:1], 1, in_stream=True)
    assert (await process.store.load("s")).position.step == 12


@in_loop
async def test_stale_state_refuses_no_step():
    """Another process has reset the session: what its old state would have given is nobody's result."""
    store = SharedStore(10)
    processes = [Process(exploding(), store), Process(exploding(), store)]
    await processes[0].open()
    ones = np.ones((3, 1), np.float32)
    await processes[0].run(ones[:2], 1, in_stream=True)
    await processes[1].reset()
    outputs, _ = await processes[0].run(ones[:1], 3)
    assert np.isfinite(outputs).all()


@in_loop
async def test_copies_are_bounded_and_end_with_their_sessions():
    store = SharedStore(10)
    one, other = (Process(ENGINES[0], store, SessionLimits(99, 20_000, "refuse")) for _ in range(2))
    inputs = vectors(SPECS[0], 100, seed=1)  # kept for a retry: 3,200 bytes
    for name in map(str, range(20)):
        await other.open(name)
        await one.run(inputs, name=name)
        await other.cache.end(name, "deleted")
        assert one.cache._bytes == sum(record.nbytes for record in one.cache._records.values()) <= 20_000
    assert one.cache._bytes > 10_000
    one.now += 60
    await one.cache.sweep()
    assert (one.cache._bytes, len(one.cache._records)) == (0, 0)


class CountingStore(MemoryStore):
    loads = 0

    async def load(self, session):
        self.loads += 1
        return await super().load(session)


@pytest.mark.parametrize("shared", [False, True])
@in_loop
async def test_step_loads_its_record_once(shared):
    store = CountingStore(10)
    store.shared = shared
    process = Process(ENGINES[0], store)
    await process.open()
    for step in range(1, 4):
        store.loads = 0
        await process.run(vectors(SPECS[0], 1, seed=step), step)
        assert store.loads == (not shared)  # of a shared store it is cached


class SlowStore(SharedStore):
    """A store whose commits take until the next turns of the loop."""

    async def commit(self, session, before, position):
        for _ in range(3):
            await asyncio.sleep(0)
        return await super().commit(session, before, position)


@in_loop
async def test_racing_processes_count_each_step_once():
    store = SlowStore(10)
    processes = [Process(ENGINES[0], store), Process(ENGINES[0], store)]
    await processes[0].open()
    inputs = vectors(SPECS[0], 1, seed=9)
    await asyncio.gather(*(processes[number % 2].run(inputs) for number in range(100)))
    position = (await store.load("s")).position
    assert position.step == 100
    assert position.state == in_one_run(ENGINES[0], np.repeat(inputs, 100, axis=0))[1]


@in_loop
async def test_steps_may_be_sent_ahead():
    process = Process(ENGINES[0], SlowStore(10))
    await process.open()
    inputs = vectors(SPECS[0], 8, seed=11)
    expected, _ = in_one_run(ENGINES[0], inputs)
    order = [1, 2, 2, 3, 1, 4, 3, 5, 6, 7, 8]  # copies of what is in flight among them
    replies = await asyncio.gather(*(process.run(inputs[step - 1 : step], step) for step in order))
    for step, (outputs, _) in zip(order, replies, strict=True):
        assert outputs.tobytes() == expected[step - 1 : step].tobytes()
    with pytest.raises(StepConflict):
        await asyncio.gather(process.run(inputs[:1], 9), process.run(inputs[1:2], 9))


@in_loop
async def test_recut_stream_meets_its_running_steps():
    process = Process(ENGINES[0], SlowStore(10))
    await process.open()
    inputs = vectors(SPECS[0], 8, seed=12)
    expected, _ = in_one_run(ENGINES[0], inputs)
    parts = [(0, 6), (0, 2), (0, 6), (2, 8)]
    replies = await asyncio.gather(
        *(process.run(inputs[first:stop], first + 1, in_stream=True) for first, stop in parts)
    )
    for (first, stop), (outputs, _) in zip(parts, replies, strict=True):
        assert outputs.tobytes() == expected[first:stop].tobytes()
    assert process.cache.counts.steps == 8


def exploding():
    """An engine whose third step of ones is not finite."""
    spec = ModelSpec("rnn", 1, 2, nonlinearity="relu")
    weights = weights_of(spec, seed=1)
    weights["weight_hh_l0"][:] = np.eye(2) * 1e30
    weights["weight_ih_l0"][:] = 1
    return NativeEngine(spec, weights, threads=1)


@in_loop
async def test_retry_refuses_non_finite_result():
    process = Process(exploding(), SlowStore(10))
    await process.open()
    ones = np.ones((4, 1), np.float32)
    told = await asyncio.gather(
        process.run(ones, 1, in_stream=True, strict=False),
        process.run(ones, 1, in_stream=True),
        return_exceptions=True,
    )
    assert np.isinf(told[0][0][2]).all()
    assert isinstance(told[1], NonFinite)
    for first in (1, 2):
        with pytest.raises(NonFinite) as error:
            await process.run(ones[first - 1 :], first, in_stream=True)
        assert error.value.index == 3 - first


@in_loop
async def test_copy_of_a_cancelled_step_runs():
    process = Process(ENGINES[0], SlowStore(10))
    await process.open()
    inputs = vectors(SPECS[0], 1, seed=13)
    first = asyncio.create_task(process.run(inputs, 1))
    await asyncio.sleep(0)
    copy = asyncio.create_task(process.run(inputs, 1))
    await asyncio.sleep(0)
    first.cancel()
    outputs, _ = await copy
    assert outputs.tobytes() == in_one_run(ENGINES[0], inputs)[0].tobytes()
    assert (await process.store.load("s")).position.step == 1


@in_loop
async def test_refused_result_changes_nothing():
    process = Process(exploding(), MemoryStore(10))
    await process.open()
    ones = np.ones((3, 1), np.float32)
    before = (await process.store.load("s")).position
    with pytest.raises(NonFinite) as error:
        await process.run(ones, 1)
    assert error.value.index == 2
    assert (await process.store.load("s")).position is before
    await process.run(ones[:2], 1, in_stream=True)
    with pytest.raises(NonFinite) as error:
        await process.run(ones, 1, in_stream=True)
    assert error.value.index == 2
    outputs, _ = await process.run(ones[:1], 3, strict=False)
    assert not np.isfinite(outputs).all()


@in_loop
async def test_queue_is_bounded():
    process = Process(ENGINES[0], SlowStore(10), max_waiting=4)
    await process.open()
    inputs = vectors(SPECS[0], 1, seed=15)
    replies = await asyncio.gather(*(process.run(inputs) for _ in range(10)), return_exceptions=True)
    assert sum(isinstance(reply, SessionBusy) for reply in replies) == 6
    assert (await process.store.load("s")).position.step == 4
    assert not process.queue.waiting


@in_loop
async def test_expired_session_is_remembered():
    process = Process(ENGINES[0], MemoryStore(10))
    await process.open(ttl=60)
    inputs = vectors(SPECS[0], 1, seed=17)
    process.now += 59
    await process.run(inputs)
    process.now += 59
    await process.run(inputs)
    process.now += 60
    with pytest.raises(SessionGone) as error:
        await process.run(inputs)
    assert (error.value.reason, error.value.step) == ("expired", 2)
    with pytest.raises(SessionNotFound):
        await process.cache.find("s", b"somebody else")
    with pytest.raises(SessionNotFound):
        await process.cache.find("another", OWNER)
    assert isinstance(await process.store.load("s"), Ended)


@pytest.mark.parametrize("eviction", ["refuse", "lru"])
@in_loop
async def test_full_cache_refuses_or_evicts(eviction):
    process = Process(ENGINES[0], MemoryStore(10), SessionLimits(2, 2**40, eviction))
    await process.open("a")
    await process.open("b")
    await process.run(vectors(SPECS[0], 1, seed=1), name="a")
    if eviction == "refuse":
        with pytest.raises(SessionsFull):
            await process.open("c")
        await process.cache.find("b", OWNER)
    else:
        await process.open("c")
        with pytest.raises(SessionGone, match="evicted"):
            await process.cache.find("b", OWNER)
    await process.cache.find("a", OWNER)


@in_loop
async def test_step_beyond_the_byte_limit_is_refused():
    process = Process(ENGINES[0], MemoryStore(10), SessionLimits(9, 1000, "refuse"))
    await process.open()
    before = (await process.store.load("s")).position
    with pytest.raises(SessionsFull):
        await process.run(vectors(SPECS[0], 40, seed=1), 1)
    assert (await process.store.load("s")).position is before
    await process.run(vectors(SPECS[0], 1, seed=1), 1)


@in_loop
async def test_step_that_never_fits_evicts_nobody():
    process = Process(ENGINES[0], MemoryStore(10), SessionLimits(10**6, 2000, "lru"))
    for name in ("a", "b"):
        await process.open(name)
    with pytest.raises(SessionsFull):
        await process.run(vectors(SPECS[0], 100, seed=1), 1, name="a")
    for name in ("a", "b"):
        await process.run(vectors(SPECS[0], 1, seed=1), 1, name=name)
