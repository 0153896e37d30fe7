"""Calls that change which models are served: every worker of the service does them, and one answers for all."""

import asyncio
import os
from inspect import isawaitable
from typing import Literal, Protocol

from service.errors import ModelInUse, ServiceError, WorkerFailed
from service.serving.registry import Model, Registry

Action = Literal["reload", "unload", "drain", "refuse_in_use"]  # methods of a registry


class Others(Protocol):
    """The other workers of the service."""

    async def ask(self, action: Action, *arguments: str | None) -> dict[str, str]:
        """What kept each that is alive from doing it, empty if nothing did, by process id."""

    async def obey(self, administration: "Administration") -> None:
        """From now on do what they ask for."""


class Administration:
    """`others` is None in a service of one process."""

    def __init__(self, registry: Registry, others: Others | None) -> None:
        self._registry = registry
        self._others = others
        self._alone = asyncio.Lock()

    async def everywhere(self, action: Action, *arguments: str | None) -> tuple[Model, int]:
        """Do it in every worker; gives the model as this one has it, and how many there are.

        Raises what all workers raise, or WorkerFailed; ModelInUse if there are sessions anywhere: none unloads it then.
        """
        if action == "unload":
            await self.everywhere("refuse_in_use", *arguments)
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
            if action == "refuse_in_use":
                raise ModelInUse("; ".join(failed))
            raise WorkerFailed(f"{len(failed)} of {len(reasons)} workers refused to {action}: {'; '.join(failed)}")
        return model, len(reasons)

    async def here(self, action: Action, *arguments: str | None) -> Model:
        """Do it in this worker, one after the other: each of many reloads at once would hold the weights."""
        async with self._alone:
            done = getattr(self._registry, action)(*arguments)
            model: Model = (await done) if isawaitable(done) else done
            return model
