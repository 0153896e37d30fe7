"""Calls that change which models are served: every worker of the service does them, and one answers for all."""

import asyncio
import os
from inspect import isawaitable
from typing import Literal, Protocol

from service.errors import ModelInUse, ServiceError, WorkerFailed
from service.serving.registry import Model, Registry

Action = Literal["reload", "check_unused", "unload", "drain"]  # methods of a registry


class OtherWorkers(Protocol):
    """The workers of the service beside this one."""

    async def ask(self, action: Action, *arguments: str | None) -> dict[str, str]:
        """Have each do it; gives why it did not, empty if it did, by process id. One that ends is left out."""

    async def listen(self, administration: "Administration") -> None:
        """From now on do what they ask for."""


class Administration:
    """Each call gives the model as this worker has it, and how many workers did it.

    They raise what all workers raise, or else WorkerFailed. `others` is None in a service of one process.
    """

    def __init__(self, registry: Registry, others: OtherWorkers | None) -> None:
        self._registry = registry
        self._others = others
        self._alone = asyncio.Lock()

    async def reload(self, name: str) -> tuple[Model, int]:
        return await self._everywhere("reload", name)

    async def unload(self, name: str) -> tuple[Model, int]:
        """Raises ModelInUse if sessions run on it in any worker: it stays loaded in all."""
        try:
            await self._everywhere("check_unused", name)
        except WorkerFailed as error:
            raise ModelInUse(str(error)) from None
        return await self._everywhere("unload", name)

    async def drain(self, name: str, version: str | None) -> tuple[Model, int]:
        return await self._everywhere("drain", name, version)

    async def here(self, action: Action, *arguments: str | None) -> Model:
        """Do it in this worker alone, one after the other: each of many reloads at once would hold the weights."""
        async with self._alone:
            done = getattr(self._registry, action)(*arguments)
            model: Model = (await done) if isawaitable(done) else done
            return model

    async def _everywhere(self, action: Action, *arguments: str | None) -> tuple[Model, int]:
        asked = asyncio.ensure_future(self._others.ask(action, *arguments)) if self._others else None
        error = None
        try:
            model = await self.here(action, *arguments)
        except ServiceError as raised:
            error = raised
        reasons = await asked if asked else {}
        reasons[str(os.getpid())] = str(error or "")
        if error and all(reasons.values()):
            raise error
        if failed := [f"worker {worker}: {reason}" for worker, reason in reasons.items() if reason]:
            raise WorkerFailed(f"{len(failed)} of {len(reasons)} workers refused: {'; '.join(failed)}")
        return model, len(reasons)
