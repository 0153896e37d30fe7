"""Calls that arrive while others are under way go together into the next batch."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

import structlog

from service.errors import StoreUnavailable

Call = TypeVar("Call")


class Batches(Generic[Call]):
    """Hands calls to `run` in batches, one batch at a time, in order of arrival.

    run takes calls and gives their answers in order; an answer that is an exception is raised to its caller. A caller
    that is cancelled leaves alone: its call may have run, and the others of its batch are not touched.
    """

    def __init__(self, run: Callable[[list[Call]], Awaitable[list[Any]]]) -> None:
        self._run = run
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None
        self._failing = False
        self._closed = False

    async def call(self, call: Call) -> Any:
        """The call's answer. Raises StoreUnavailable after `close`, and whatever `run` answered."""
        if self._closed:
            raise StoreUnavailable("the store of sessions is closed")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._task is None:
            # The task starts after all that is ready to run now: the calls of one tick are one batch.
            self._task = asyncio.create_task(self._work())
        return await future

    async def close(self) -> None:
        """Finish the calls that were made; refuse later ones."""
        self._closed = True
        if self._task is not None:
            await self._task

    async def _work(self) -> None:
        while self._waiting:
            batch = [(call, future) for call, future in self._waiting if not future.done()]
            self._waiting = []
            try:
                answers = await self._run([call for call, _ in batch]) if batch else []
            except Exception as error:  # a fault of ours: those who wait must be told, and the next batch must run
                answers = [error] * len(batch)
            self._report(answers)
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)
        self._task = None

    def _report(self, answers: list[Any]) -> None:
        """Log when the store begins to fail, and when it works again; not every call between."""
        failure = next((answer for answer in answers if isinstance(answer, StoreUnavailable)), None)
        if failure is not None and not self._failing:
            structlog.get_logger().error("session_store_unavailable", reason=str(failure.__cause__))
        elif failure is None and self._failing:
            structlog.get_logger().info("session_store_available")
        self._failing = failure is not None


def unavailable(cause: Exception) -> StoreUnavailable:
    """What callers are told; the cause, which may name paths and addresses, is for the log."""
    error = StoreUnavailable("the store of sessions cannot be used now")
    error.__cause__ = cause
    return error
