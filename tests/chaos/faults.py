"""The faults: each ends something under load, and raises AssertionError if anything was lost."""

import asyncio
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from service.spec import ModelSpec
from tests.chaos.streams import Clients, Stream
from tests.e2e.models import write_model
from tests.e2e.running import Service, start, until
from tests.stores.servers import Server

SPEC = ModelSpec("gru", 8, 16)
MODEL = "stream"


@dataclass(frozen=True)
class Load:
    """How much: sessions, steps of each, clients, and how often something is ended."""

    sessions: int
    steps: int
    connections: int = 32
    kills: int = 3


class Deployment:
    """A model repository, and one service at a time over it, on the same store and port."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.settings = settings
        self.models = folder / "models"
        write_model(self.models, MODEL, 1, SPEC)
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


def played(deployment: Deployment, clients: Clients, load: Load, kill: Callable[[], None]) -> int:
    """Open sessions, step them while something is killed, and compare with uninterrupted runs; returns the steps."""

    async def kills() -> None:
        total = load.sessions * load.steps
        # By progress, not by the clock: each is in the middle of the load, however fast the machine.
        for moment in sorted(random.sample(range(total // 10, total * 6 // 10), load.kills)):
            await clients.tally.reached(moment)
            await asyncio.to_thread(kill)

    async def play() -> int:
        await clients.open(load.sessions, load.steps)
        await asyncio.gather(clients.run(load.connections), kills())
        return await clients.check()

    steps = asyncio.run(play())
    deployment.service.stop()
    return steps


def killed_service(deployment: Deployment, load: Load) -> str:
    """kill -9 at random moments under load, restart, resume: every answered step is there, none twice."""
    clients = deployment.clients()

    def kill() -> None:
        deployment.kill()
        clients.url = deployment.start().url

    steps = played(deployment, clients, load, kill)
    return f"{load.kills} kills, {steps} steps of {load.sessions} sessions, {clients.tally.retried} retries"


def stopped_store(deployment: Deployment, server: Server, load: Load) -> str:
    """The store is killed and started again: 503 meanwhile, nothing is lost, the service needs no restart."""
    clients = deployment.clients()

    def kill() -> None:
        server.kill()
        refused = clients.tally.refused.get(503, 0)
        until(lambda: clients.tally.refused.get(503, 0) > refused, "calls of sessions get 503")
        assert deployment.service.get("/health/live").status_code == 200
        server.start()

    steps = played(deployment, clients, load, kill)
    return f"{load.kills} kills of the store, {steps} steps, {clients.tally.refused.get(503, 0)} answers of 503"


def racing_processes(deployment: Deployment, steps: int, connections: int = 16) -> str:
    """Two workers race on one session, without numbers: the count of steps is exact, each output and the state too."""
    vector = np.linspace(-1, 1, SPEC.input_size, dtype=np.float32)

    async def play() -> None:
        url = deployment.service.url
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
        clients = deployment.clients()
        clients.streams = [Stream(session, np.tile(vector, (steps, 1)), [outputs for _, outputs in seen])]
        await clients.check()

    asyncio.run(play())
    deployment.service.stop()
    return f"{steps} steps of one session through {connections} connections"


def told_to_stop(deployment: Deployment, load: Load) -> str:
    """SIGTERM under load, and another process after it: no answered step is lost."""
    clients = deployment.clients()

    def kill() -> None:
        deployment.service.process.send_signal(signal.SIGTERM)
        deployment.service.check_ended()
        clients.url = deployment.start().url

    steps = played(deployment, clients, load, kill)
    return f"{load.kills} terminations, {steps} steps of {load.sessions} sessions, {clients.tally.retried} retries"
