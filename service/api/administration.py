"""Calls that change which models are served: every worker of the service does them, and one answers for all."""

import asyncio
import os
from contextlib import suppress
from inspect import isawaitable
from typing import Literal, Protocol

from service.errors import ModelInUse, ServiceError, WorkerFailed
from service.serving.registry import Model, Registry

Action = Literal["reload", "check_unused", "unload", "drain"]  # methods of a registry


class OtherWorkers(Protocol):
    """The workers of the service beside this one."""

    async def ask(self, action: Action, *arguments: str | None) -> dict[str, str]:
        """Have each do it; gives why it did not, empty if it did, by process id.

        Raises WorkerFailed if some give no answer in time; one that starts has time to come.
        """

    async def listen(self, administration: "Administration") -> None:
        """From now on do what they ask for."""

    def drained(self) -> list[tuple[str, str]]:
        """The versions, by model and version, that open no new sessions: a worker that starts learns of them here."""

    def keep_drained(self, versions: list[tuple[str, str]]) -> None:
        """Set what `drained` gives. Raises WorkerFailed."""


class Administration:
    """Each call gives the model as this worker has it, and how many workers did it.

    They raise what all workers raise, or else WorkerFailed. `others` is None in a service of one process.
    """

    def __init__(self, registry: Registry, others: OtherWorkers | None) -> None:
        self._registry = registry
        self._others = others
        self._alone = asyncio.Lock()
        for version in others.drained() if others else ():
            with suppress(ServiceError):  # it is gone by now
                registry.drain(*version)
        self._drained = self._draining()

    async def reload(self, name: str) -> tuple[Model, int]:
        return await self._everywhere("reload", name)

    async def unload(self, name: str) -> tuple[Model, int]:
        """Raises ModelInUse if sessions run on it in any worker: it stays loaded in all."""
        await self._everywhere("check_unused", name, refused=ModelInUse)
        return await self._everywhere("unload", name)

    async def drain(self, name: str, version: str | None) -> tuple[Model, int]:
        return await self._everywhere("drain", name, version)

    async def here(self, action: Action, *arguments: str | None) -> Model:
        """Do it in this worker alone, one after the other: each of many reloads at once would hold the weights."""
        async with self._alone:
            done = getattr(self._registry, action)(*arguments)
            model: Model = (await done) if isawaitable(done) else done
            self._keep_drained()
            return model

    async def reload_all(self) -> None:
        """Reload every model in this worker alone."""
        await self._registry.reload_all()
        self._keep_drained()

    def _draining(self) -> list[tuple[str, str]]:
        versions = (version for model in self._registry.models() for version in model.versions.values())
        return [(version.name, version.version) for version in versions if version.draining]

    def _keep_drained(self) -> None:
        if self._others and (draining := self._draining()) != self._drained:
            self._others.keep_drained(draining)
            self._drained = draining

    async def _everywhere(
        self, action: Action, *arguments: str | None, refused: type[ServiceError] = WorkerFailed
    ) -> tuple[Model, int]:
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
            raise refused(f"{len(failed)} of {len(reasons)} workers refused: {'; '.join(failed)}")
        return model, len(reasons)
