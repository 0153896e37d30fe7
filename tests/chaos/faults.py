"""The faults: each starts what it needs, does its harm under load, and raises AssertionError if anything was lost."""

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from service.engine.native.engine import NativeEngine
from service.spec import ModelSpec
from tests.chaos.servers import KeyValueServer
from tests.chaos.streams import Clients, Stream
from tests.e2e.models import write_model
from tests.e2e.running import Service, start, until
from tests.reference import weights_of

SPEC = ModelSpec("gru", 8, 16)
MODEL = "stream"


@dataclass(frozen=True)
class Load:
    """How much: sessions, steps of each, clients, and how often the harm is done."""

    sessions: int
    steps: int
    connections: int = 32
    harms: int = 3


class Stage:
    """A model repository, and one service at a time over it, on the same store and port."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.models = folder / "models"
        write_model(self.models, MODEL, 1, SPEC)
        self.engine = NativeEngine(SPEC, weights_of(SPEC, seed=1), threads=1)
        self._started = 0
        self.service = self.start()

    def start(self) -> Service:
        """Start the service (again)."""
        self._started += 1
        folder = self.folder / f"service-{self._started}"
        folder.mkdir()
        self.service = start(self.models, folder, request_log=False, **self.settings)
        return self.service

    def kill(self) -> None:
        """kill -9: the process and its workers."""
        for process in (*self.service.process.children(recursive=True), self.service.process):
            process.kill()
        self.service.process.wait()

    def clients(self) -> Clients:
        """Clients of the service as it is now."""
        return Clients(self.service.url, MODEL, SPEC.input_size)


async def under_load(clients: Clients, load: Load, harm: Callable[[], None]) -> None:
    """Run the clients; do harm at random moments meanwhile, off the loop."""

    async def harms() -> None:
        total = load.sessions * load.steps
        # Moments by progress, not by the clock: each is in the middle of the load, however fast the machine.
        for moment in sorted(random.sample(range(total // 10, total * 6 // 10), load.harms)):
            while clients.tally.answered < moment:
                await asyncio.sleep(0.002)
            await asyncio.to_thread(harm)

    await asyncio.gather(clients.run(load.connections), harms())


def played(stage: Stage, clients: Clients, load: Load, harm: Callable[[], None]) -> int:
    """Open sessions, step them under harm, and compare all with uninterrupted runs; gives how many steps that is."""

    async def play() -> int:
        await clients.open(load.sessions, load.steps)
        await under_load(clients, load, harm)
        return await clients.check(stage.engine)

    steps = asyncio.run(play())
    stage.service.stop()
    return steps


def killed_service(stage: Stage, load: Load) -> str:
    """kill -9 at random moments under load, restart, resume: every answered step is there, none twice."""
    clients = stage.clients()

    def harm() -> None:
        stage.kill()
        clients.url = stage.start().url

    steps = played(stage, clients, load, harm)
    return f"{load.harms} kills, {steps} steps of {load.sessions} sessions, {clients.tally.retried} retries"


def stopped_store(stage: Stage, load: Load, server: KeyValueServer) -> str:
    """The store is killed and started again: 503 meanwhile, nothing is lost, the service needs no restart."""
    clients = stage.clients()

    def harm() -> None:
        server.kill()
        refused = clients.tally.refused.get(503, 0)
        until(lambda: clients.tally.refused.get(503, 0) > refused, "calls of sessions get 503")
        assert stage.service.get("/health/live").status_code == 200
        server.start()

    steps = played(stage, clients, load, harm)
    return f"{load.harms} kills of the store, {steps} steps, {clients.tally.refused.get(503, 0)} answers of 503"


def racing_processes(stage: Stage, steps: int, connections: int = 16) -> str:
    """Two workers race on one session, without numbers: the count of steps is exact, each output and the state too."""
    vector = np.linspace(-1, 1, SPEC.input_size, dtype=np.float32)

    async def play() -> None:
        url = stage.service.url
        opening = {"json": {"model": MODEL}}
        async with aiohttp.ClientSession() as http, http.post(f"{url}/cell/sessions", **opening) as reply:
            session = (await reply.json())["session"]
        body, left = {"session": session, "inputs": vector.tolist()}, iter(range(steps))
        seen: list[tuple[int, list[float]]] = []

        async def send() -> None:
            async with aiohttp.ClientSession() as http:
                for _ in left:
                    async with http.post(f"{url}/cell/step", json=body) as reply:
                        document = await reply.json()
                        assert reply.status == 200, document
                        seen.append((document["step"], document["outputs"]))

        await asyncio.gather(*(send() for _ in range(connections)))
        seen.sort()
        assert [step for step, _ in seen] == list(range(1, steps + 1))
        # All inputs are the same, so the order in which they ran does not matter.
        clients = stage.clients()
        clients.streams = [Stream(session, np.tile(vector, (steps, 1)), [outputs for _, outputs in seen])]
        await clients.check(stage.engine)

    asyncio.run(play())
    stage.service.stop()
    return f"{steps} steps of one session through {connections} connections"


def told_to_stop(stage: Stage, load: Load) -> str:
    """SIGTERM under load, and another process after it: no answered step is lost."""
    clients = stage.clients()

    def harm() -> None:
        stage.service.process.send_signal(signal.SIGTERM)
        stage.service.check_ended()
        clients.url = stage.start().url

    steps = played(stage, clients, load, harm)
    return f"{load.harms} terminations, {steps} steps of {load.sessions} sessions, {clients.tally.retried} retries"
