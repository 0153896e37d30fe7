"""Calls that change which models are served: every worker of the service does them, and one answers for all."""

import asyncio
import os
from typing import Literal, NamedTuple, Protocol

import structlog

from service.errors import ModelInUse, ServiceError, WorkerFailed
from service.serving.registry import Model, Registry


class Call(NamedTuple):
    """What every worker is to do; `refuse_in_use` raises what `unload` would."""

    action: Literal["reload", "refuse_in_use", "unload", "drain"]
    model: str
    version: str | None = None


class Failure(NamedTuple):
    """Why a worker did not do it: the error's name, and its sentence."""

    kind: str
    detail: str


class Others(Protocol):
    """The other workers of the service."""

    async def serve(self, administration: "Administration") -> None:
        """From now on do what they ask for."""

    def close(self) -> None:
        """They ask for nothing any more."""

    async def ask(self, call: Call) -> dict[int, Failure | None]:
        """Let them do it; gives, by their process ids, why it failed. Who ends meanwhile is left out."""


class Administration:
    """`others` is None in a service of one process."""

    def __init__(self, registry: Registry, others: Others | None) -> None:
        self._registry = registry
        self._others = others

    async def reload(self, name: str) -> tuple[Model, int]:
        """As `Registry.reload`; gives also how many workers did it. Raises WorkerFailed if not all did."""
        return await self._everywhere(Call("reload", name))

    async def unload(self, name: str) -> tuple[Model, int]:
        """As `Registry.unload`; nothing is unloaded where a worker knows of a session. Raises WorkerFailed."""
        await self._everywhere(Call("refuse_in_use", name))
        return await self._everywhere(Call("unload", name))

    async def drain(self, name: str, version: str | None) -> tuple[Model, int]:
        """As `Registry.drain`. Raises WorkerFailed."""
        return await self._everywhere(Call("drain", name, version))

    async def obey(self, call: Call) -> Failure | None:
        """Do what another worker asks for."""
        try:
            await self._do(call)
        except ServiceError as error:
            return _failure(error)
        except Exception:
            structlog.get_logger().exception("internal_error", call=call)
            return Failure("", "it failed; the log has the reason")
        return None

    async def _everywhere(self, call: Call) -> tuple[Model, int]:
        asked = asyncio.ensure_future(self._others.ask(call)) if self._others else None
        own: ServiceError | None = None
        try:
            model = await self._do(call)
        except ServiceError as error:
            own = error
        answers = await asked if asked else {}
        failures = {worker: failure for worker, failure in answers.items() if failure}
        if own and len(failures) == len(answers):  # all workers are of one mind
            raise own
        if own:
            failures[os.getpid()] = _failure(own)
        if not failures:
            return model, 1 + len(answers)
        for failure in failures.values():
            if failure.kind == ModelInUse.__name__:
                raise ModelInUse(failure.detail)
        count = f"{len(failures)} of {1 + len(answers)} workers failed to {call.action} model {call.model!r}"
        raise WorkerFailed(f"{count}: {'; '.join(f'{worker}: {why.detail}' for worker, why in failures.items())}")

    async def _do(self, call: Call) -> Model:
        match call.action:
            case "reload":
                return await self._registry.reload(call.model)
            case "refuse_in_use":
                return self._registry.refuse_in_use(call.model)
            case "unload":
                return self._registry.unload(call.model)
            case "drain":
                return self._registry.drain(call.model, call.version)


def _failure(error: ServiceError) -> Failure:
    return Failure(type(error).__name__, str(error))
