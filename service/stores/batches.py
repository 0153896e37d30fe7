"""Calls that arrive while others are under way go together into the next batch."""

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Generic, TypeVar

import structlog

from service.errors import StoreUnavailable
from service.repeats import OnceAMinute

Call = TypeVar("Call")

CALM_SECONDS = 5.0  # without a failure, then the store works again


class Batches(Generic[Call]):
    """Hands calls to `run` in batches, one at a time, in order of arrival; an answer that is an exception is raised.

    A caller that is cancelled leaves alone: its call may have run, and the others of its batch are not touched.
    """

    def __init__(self, run: Callable[[list[Call]], Awaitable[list[Any]]]) -> None:
        self._run = run
        self._waiting: list[tuple[Call, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None
        self._failed_at = 0.0
        self._outage = OnceAMinute()
        self._closed = False

    async def call(self, call: Call) -> Any:
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
            batch, self._waiting = [one for one in self._waiting if not one[1].done()], []
            if not batch:
                break
            try:
                answers = await self._run([call for call, _ in batch])
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
        """Log when the store begins to fail, once a minute while it fails, and when it works again."""
        failure = next((answer for answer in answers if isinstance(answer, StoreUnavailable)), None)
        if failure is not None:
            self._failed_at = monotonic()
            if self._outage.is_due():
                structlog.get_logger().error("session_store_unavailable", reason=str(failure.__cause__))
        # A full store may fail at writing alone, between calls that work.
        elif self._outage.logged_at is not None and monotonic() - self._failed_at >= CALM_SECONDS:
            self._outage.logged_at = None
            structlog.get_logger().info("session_store_available")


def unavailable(cause: Exception) -> StoreUnavailable:
    """An error whose message may be shown; the cause, which may name paths and addresses, is for the log."""
    error = StoreUnavailable("the store of sessions cannot be used now")
    error.__cause__ = cause
    return error
