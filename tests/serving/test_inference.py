"""Running rows: the queue is bounded, deadlines hold, and failures touch nobody else."""

import asyncio
import gc
import threading
import weakref
from time import monotonic

import numpy as np
import pytest
import torch

from service.engine.interface import Rows
from service.engine.load import EngineFactory
from service.engine.torch_engine import TorchEngine
from service.errors import ClientGone, DeadlinePassed, ServiceFull
from service.serving.inference import Inference
from service.serving.registry import Registry

CONFIG = {"kind": "rnn", "input_size": 4, "hidden_size": 3}
LONG = 64


class GatedEngine(TorchEngine):
    """The real engine, held up until the test opens the gate."""

    def __init__(self, spec, weights):
        super().__init__(spec, weights, device=torch.device("cpu"))
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.threads = []
        self.batches = []

    def run(self, batches):
        self.batches.append(len(batches))
        self.threads.append(threading.current_thread())
        self.entered.set()
        assert self.gate.wait(30)
        super().run(batches)


class GatedFactory(EngineFactory):
    def load(self, spec, weights):
        return GatedEngine(spec, weights)


def rows_of(steps):
    return Rows(
        inputs=np.zeros((steps, 4), np.float32),
        starts=np.zeros(1, np.int64),
        lengths=np.array([steps]),
        h=np.zeros((1, 1, 3), np.float32),
        outputs=np.full((steps, 3), np.nan, np.float32),
    )


@pytest.fixture
def parts(write_model, tmp_path):
    write_model("m", CONFIG)
    registry = Registry(tmp_path, GatedFactory(torch.device("cpu"), 1, "torch"), default_model=None, cache_bytes=2**30)
    registry.scan()
    inference = Inference(registry, workers=1, max_queued_requests=3, max_queued_bytes=100_000)
    model = registry.resolve("m", None)
    engine = asyncio.run(registry.engine(model))
    yield inference, model, engine
    engine.gate.set()
    inference.close()


def test_full_queue_refuses_newcomers(parts):
    inference, model, engine = parts

    async def run():
        waiting = [asyncio.create_task(inference.run(model, rows_of(LONG))) for _ in range(3)]
        await asyncio.sleep(0)  # let them queue
        with pytest.raises(ServiceFull, match="3 requests are waiting"):
            await inference.run(model, rows_of(LONG))
        engine.gate.set()
        return await asyncio.gather(*waiting)

    timings = asyncio.run(run())
    assert len(timings) == 3
    assert (inference.queued_requests, inference.queued_bytes) == (0, 0)


def test_queue_is_bounded_in_bytes(parts):
    inference, model, _ = parts

    async def run():
        with pytest.raises(ServiceFull):
            await inference.run(model, rows_of(10_000))

    asyncio.run(run())
    assert inference.queued_bytes == 0


def test_deadline_that_has_passed(parts):
    inference, model, _ = parts
    with pytest.raises(DeadlinePassed):
        asyncio.run(inference.run(model, rows_of(1), deadline=monotonic() - 1))


def test_small_work_runs_where_it_stands(parts):
    inference, model, engine = parts
    engine.gate.set()

    async def run():
        await inference.run(model, rows_of(1))
        await inference.run(model, rows_of(LONG))

    asyncio.run(run())
    here, elsewhere = engine.threads
    assert here is threading.main_thread()
    assert elsewhere is not here


def test_failure_of_the_engine_frees_its_place(parts):
    inference, model, engine = parts
    engine.gate.set()
    broken = rows_of(LONG)
    broken.h = np.zeros((7, 1, 3), np.float32)

    async def run():
        with pytest.raises(ValueError, match="broadcast"):
            await inference.run(model, broken)
        good = rows_of(LONG)
        await inference.run(model, good)
        return good

    assert np.isfinite(asyncio.run(run()).outputs).all()
    assert (inference.queued_requests, inference.queued_bytes) == (0, 0)


def test_client_that_hangs_up_leaves_the_queue(parts):
    inference, model, engine = parts
    rows = rows_of(LONG)

    async def run():
        first = asyncio.create_task(inference.run(model, rows_of(LONG)))
        await asyncio.to_thread(engine.entered.wait)
        gone = asyncio.Event()
        leaving = asyncio.create_task(inference.run(model, rows, None, gone.wait))
        await asyncio.sleep(0)
        gone.set()
        with pytest.raises(ClientGone):
            await leaving
        assert inference.queued_requests == 1
        engine.gate.set()
        await first

    asyncio.run(run())
    assert np.isnan(rows.outputs).all()


def test_unloaded_engine_is_freed(write_model, tmp_path):
    write_model("m", CONFIG)
    registry = Registry(tmp_path, EngineFactory(torch.device("cpu"), 1, "torch"), default_model=None, cache_bytes=2**30)
    registry.scan()
    inference = Inference(registry, workers=1, max_queued_requests=3, max_queued_bytes=100_000)
    model = registry.resolve("m", None)
    asyncio.run(inference.run(model, rows_of(LONG)))
    engine = weakref.ref(model.engine)
    registry.unload("m")
    gc.collect()
    assert engine() is None
    inference.close()
