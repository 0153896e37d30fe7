"""Clients with sessions of their own: a step is sent again until it is answered."""

import asyncio
import random
from dataclasses import dataclass, field

import aiohttp
import numpy as np

GIVE_UP_SECONDS = 120.0


@dataclass
class Stream:
    """One session, what is sent to it, and what was answered."""

    session: str
    inputs: np.ndarray  # (T, I)
    outputs: list[list[float]] = field(default_factory=list)


@dataclass
class Tally:
    """What the clients saw."""

    answered: int = 0
    retried: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    _waiters: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def answer(self) -> None:
        """Count one answer."""
        self.answered += 1
        for count, event in self._waiters:
            if self.answered >= count:
                event.set()

    async def reached(self, count: int) -> None:
        """Wait for so many answers."""
        self._waiters.append((count, event := asyncio.Event()))
        if self.answered < count:
            await event.wait()


class Clients:
    """`connections` clients that share the sessions. `url` may change: they go on where it points to."""

    def __init__(self, url: str, model: str, input_size: int) -> None:
        self.url = url
        self.model = model
        self.input_size = input_size
        self.streams: list[Stream] = []
        self.tally = Tally()

    async def open(self, count: int, steps: int) -> None:
        """Open sessions; their inputs are random and different."""
        rng = np.random.default_rng(1)
        async with aiohttp.ClientSession() as http:
            for _ in range(count):
                async with http.post(f"{self.url}/cell/sessions", json={"model": self.model}) as reply:
                    assert reply.status == 201, await reply.text()
                    session = (await reply.json())["session"]
                inputs = rng.standard_normal((steps, self.input_size)).astype(np.float32)
                self.streams.append(Stream(session, inputs))

    async def run(self, connections: int) -> None:
        """Step every session to its end."""
        shares = [self.streams[first::connections] for first in range(connections)]
        await asyncio.gather(*(self._run(share) for share in shares))

    async def _run(self, streams: list[Stream]) -> None:
        timeout = aiohttp.ClientTimeout(total=60)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            for step in range(max(len(stream.inputs) for stream in streams)):
                for stream in streams:
                    stream.outputs.append(await self._step(http, stream, step + 1))

    async def _step(self, http: aiohttp.ClientSession, stream: Stream, step: int) -> list[float]:
        """Send a numbered step until it is answered."""
        body = {"session": stream.session, "inputs": stream.inputs[step - 1].tolist(), "step": step}
        give_up = asyncio.get_running_loop().time() + GIVE_UP_SECONDS
        while asyncio.get_running_loop().time() < give_up:
            try:
                async with http.post(f"{self.url}/cell/step", json=body) as reply:
                    document = await reply.json()
                    if reply.status == 200:
                        assert document["step"] == step, document
                        self.tally.answer()
                        return document["outputs"]
                    self.tally.refused[reply.status] = self.tally.refused.get(reply.status, 0) + 1
                    assert reply.status in (429, 502, 503, 504), (reply.status, document)
            except (aiohttp.ClientError, TimeoutError, ConnectionError):
                pass
            self.tally.retried += 1
            await asyncio.sleep(random.uniform(0.01, 0.1))
        raise AssertionError(f"step {step} was not answered within {GIVE_UP_SECONDS:g} s")

    async def check(self) -> int:
        """Compare all answers and states with one run of each session; returns the number of steps.

        Raises AssertionError at the first difference of a bit.
        """
        async with aiohttp.ClientSession() as http:
            for stream in self.streams:
                body = {"model": self.model, "inputs": stream.inputs.tolist(), "returns": ["outputs", "h_n"]}
                async with http.post(f"{self.url}/rnn/forward", json=body) as reply:
                    whole = await reply.json()
                assert stream.outputs == whole["outputs"]
                async with http.get(f"{self.url}/cell/sessions/{stream.session}?state=true") as reply:
                    snapshot = await reply.json()
                assert snapshot["step"] == len(stream.inputs), (snapshot["step"], len(stream.inputs))
                assert [snapshot["h"]] == whole["h_n"]
        return sum(len(stream.inputs) for stream in self.streams)
