"""Continuous batching against the plainest model of it: every row alone, one after the other, on a clock of its own."""

import asyncio
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.interface import Engine, Rows
from service.engine.native.engine import NativeEngine
from service.errors import DeadlinePassed
from service.serving.scheduler import MIN_SLICE_STEPS, SHORT_STEPS, Scheduler
from service.spec import ModelSpec
from tests.reference import numbers, weights_of

SPEC = ModelSpec("gru", 3, 5, num_layers=2).with_linear_head(2)
BOTH_WAYS = ModelSpec("rnn", 3, 5, bidirectional=True)
MAX_TURN_ROWS, TURN_SECONDS = Engine.turn_rows, Engine.turn_seconds
STEP_SECONDS = 1e-4  # a turn of one row has 20 steps
POISON = 1e30


class Poisoned(Exception):
    """What the engine of the tests raises for a row that begins with POISON."""


class Here(Executor):
    """Runs work at once, so that tests need no threads and no waiting."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


class TimedEngine(Engine):
    """The native engine on a clock that only its steps move; it refuses poison, as no engine of ours should."""

    name = "timed"
    step_seconds = STEP_SECONDS

    def __init__(self, spec):
        self.spec = spec
        self.nbytes = 0
        self.flops_per_second = spec.flops_per_step / STEP_SECONDS
        self.now = 0.0
        self.turns = []
        self._engine = NativeEngine(spec, weights_of(spec), threads=1)

    def clock(self):
        return self.now

    def run(self, batches):
        for rows in batches:
            begins = rows.starts[rows.lengths > 0]
            if (rows.inputs[begins, 0] == np.float32(POISON)).any():
                raise Poisoned
        self._engine.run(batches)
        self.turns.append([rows.lengths.tolist() for rows in batches])
        self.now += STEP_SECONDS * sum(rows.steps for rows in batches)

    def predict(self, pooled):
        return self._engine.predict(pooled)


def rows_of(spec, lengths, seed, poison=False):
    rng = np.random.default_rng(seed)
    lengths = np.array(lengths)
    total = int(lengths.sum())
    inputs = numbers(rng, total, spec.input_size)
    if poison:
        inputs[0, 0] = POISON
    return Rows(
        inputs,
        np.cumsum(lengths) - lengths,
        lengths,
        h=numbers(rng, spec.states, len(lengths), spec.state_size),
        outputs=np.zeros((total, spec.output_size), np.float32),
        predictions=np.zeros((total, spec.out_features), np.float32) if spec.out_features else None,
    )


def alone(spec, rows):
    """What the rows give without a scheduler."""
    copy = replace(rows, h=rows.h.copy(), outputs=np.zeros_like(rows.outputs))
    NativeEngine(spec, weights_of(spec), threads=1).run([copy])
    return copy


@dataclass
class Arrival:
    lengths: list[int]
    after_turns: int
    fate: str  # runs, hangs up, poison


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        lengths=st.lists(st.integers(1, 70), min_size=1, max_size=4),
        after_turns=st.integers(0, 6),
        fate=st.sampled_from(["runs", "runs", "runs", "hangs up", "poison"]),
    ),
    min_size=1,
    max_size=8,
)


@given(spec=st.sampled_from([SPEC, BOTH_WAYS]), arrivals=ARRIVALS)
def test_rows_get_what_they_would_alone(spec, arrivals):
    engine = TimedEngine(spec)
    scheduler = Scheduler(engine, Here(), clock=engine.clock)

    async def client(arrival, rows):
        while len(engine.turns) < arrival.after_turns and scheduler._task:
            await asyncio.sleep(0)
        task = asyncio.create_task(scheduler.run(rows))
        if arrival.fate == "hangs up":
            await asyncio.sleep(0)
            task.cancel()
        return await task

    async def run(work):
        clients = [client(arrival, rows) for arrival, rows in zip(arrivals, work, strict=True)]
        return await asyncio.wait_for(asyncio.gather(*clients, return_exceptions=True), 60)

    work = [rows_of(spec, arrival.lengths, seed, arrival.fate == "poison") for seed, arrival in enumerate(arrivals)]
    expected = [
        None if arrival.fate == "poison" else alone(spec, rows) for arrival, rows in zip(arrivals, work, strict=True)
    ]
    results = asyncio.run(run(work))
    for arrival, rows, result, wanted in zip(arrivals, work, results, expected, strict=True):
        if arrival.fate == "poison":
            assert isinstance(result, Poisoned)
        elif arrival.fate == "runs":
            np.testing.assert_array_equal(rows.outputs, wanted.outputs)
            np.testing.assert_array_equal(rows.h, wanted.h)
            assert result.compute >= STEP_SECONDS * max(arrival.lengths) - 1e-9
    assert scheduler._task is None


def run_all(engine, *work, deadlines=()):
    scheduler = Scheduler(engine, Here(), clock=engine.clock)

    async def run():
        jobs = [scheduler.run(rows, *deadlines[i : i + 1]) for i, rows in enumerate(work)]
        return await asyncio.gather(*jobs, return_exceptions=True)

    return asyncio.run(run())


def test_rows_that_wait_run_together():
    engine = TimedEngine(SPEC)
    run_all(engine, *(rows_of(SPEC, [4], seed) for seed in range(10)))
    assert engine.turns == [[[4]] * 10]


def test_step_waits_for_one_turn_of_a_long_row():
    engine = TimedEngine(SPEC)
    scheduler = Scheduler(engine, Here(), clock=engine.clock)

    async def run():
        long = asyncio.create_task(scheduler.run(rows_of(SPEC, [2000], 0)))
        while len(engine.turns) < 3:
            await asyncio.sleep(0)
        arrived = engine.now
        await scheduler.run(rows_of(SPEC, [1], 1))
        waited = engine.now - arrived
        assert not long.done()
        await long
        return waited

    assert asyncio.run(run()) <= 2 * TURN_SECONDS
    assert all(sum(map(sum, turn)) * STEP_SECONDS <= TURN_SECONDS + STEP_SECONDS for turn in engine.turns)


def test_short_rows_go_before_long_ones():
    engine = TimedEngine(SPEC)
    long = [rows_of(SPEC, [SHORT_STEPS + 1] * (MAX_TURN_ROWS // 2), seed) for seed in range(3)]
    short = rows_of(SPEC, [1], 9)
    run_all(engine, *long, short)
    assert [1] in engine.turns[0]
    assert len(engine.turns[0]) == 3  # the short one, and two of the long


def test_turn_of_many_rows_moves_every_row_on():
    engine = TimedEngine(SPEC)
    run_all(engine, rows_of(SPEC, [40] * 100, 0))
    assert engine.turns[0] == [[MIN_SLICE_STEPS] * 100]


def test_late_row_does_not_run():
    engine = TimedEngine(SPEC)
    first, late = rows_of(SPEC, [30] * MAX_TURN_ROWS, 0), rows_of(SPEC, [30] * MAX_TURN_ROWS, 1)
    before = late.h.copy()
    results = run_all(engine, first, late, deadlines=(1000.0, 0.001))
    assert isinstance(results[1], DeadlinePassed)
    np.testing.assert_array_equal(late.h, before)
    assert not isinstance(results[0], Exception)


def test_deadline_stops_no_running_row():
    engine = TimedEngine(SPEC)
    rows = rows_of(SPEC, [200], 0)
    wanted = alone(SPEC, rows)
    results = run_all(engine, rows, deadlines=(TURN_SECONDS / 2,))
    assert not isinstance(results[0], Exception)
    np.testing.assert_array_equal(rows.outputs, wanted.outputs)


def test_queue_and_compute_time_are_told_apart():
    engine = TimedEngine(SPEC)
    first, second = run_all(engine, rows_of(SPEC, [30] * MAX_TURN_ROWS, 0), rows_of(SPEC, [30] * MAX_TURN_ROWS, 1))
    assert first.begun == first.submitted
    assert second.begun - second.submitted == pytest.approx(first.compute)


def test_bidirectional_rows_run_whole():
    engine = TimedEngine(BOTH_WAYS)
    run_all(engine, rows_of(BOTH_WAYS, [500], 0))
    assert engine.turns == [[[500]]]


def test_short_jobs_do_not_starve_a_large_one():
    engine = TimedEngine(SPEC)
    large = rows_of(SPEC, [SHORT_STEPS + 1] * (MAX_TURN_ROWS + 1), 0)
    run_all(engine, *(rows_of(SPEC, [1] * (MAX_TURN_ROWS // 2), seed) for seed in range(1, 5)), large)
    assert len(engine.turns[0]) == 3


def test_error_of_the_scheduler_reaches_all():
    engine = TimedEngine(SPEC)

    class Broken(Executor):
        def submit(self, fn, /, *args, **kwargs):
            raise RuntimeError("cannot schedule new futures")

    scheduler = Scheduler(engine, Broken(), clock=engine.clock)

    async def run():
        return await asyncio.gather(*(scheduler.run(rows_of(SPEC, [3], i)) for i in range(3)), return_exceptions=True)

    assert [type(result) for result in asyncio.run(run())] == [RuntimeError] * 3
    assert scheduler._task is None


def test_engine_bounds_rows_and_time_of_a_turn():
    engine = TimedEngine(SPEC)
    engine.turn_rows, engine.turn_seconds = 2 * MAX_TURN_ROWS, 100 * STEP_SECONDS
    run_all(engine, *(rows_of(SPEC, [1] * MAX_TURN_ROWS, seed) for seed in range(3)))
    assert [len(turn) for turn in engine.turns] == [2, 1]
    engine.turns.clear()
    run_all(engine, rows_of(SPEC, [1000], 0))
    assert max(sum(map(sum, turn)) for turn in engine.turns) > TURN_SECONDS / STEP_SECONDS
