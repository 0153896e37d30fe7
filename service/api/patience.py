"""Waiting for a client's next words: not for ever, and not beyond the end of the process."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from service.api.draining import Draining
from service.errors import BodyTimeout, ServiceDraining

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream may be silent: `seconds` from one word to the next."""

    draining: Draining
    seconds: float

    def listening(self, word: str) -> "Listening":
        """For one stream; `word` is what is waited for."""
        return Listening(self.draining, self.seconds, word)


class Listening:
    """The waits of one stream, between `with` and its end in one task.

    They share a timer, that is not touched by a word which comes in time: when it is due, it is set anew if the wait of
    then began later.
    """

    def __init__(self, draining: Draining, seconds: float, word: str) -> None:
        self._draining = draining
        self._seconds = seconds
        self._word = word
        self._since: float | None = None
        self._over = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # streams have one
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(self._seconds, self._look)
        self._draining.waiting.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draining.waiting.discard(self)
        self._timer.cancel()

    async def wait(self, arrive: Callable[[], Awaitable[T]]) -> T:
        """What arrives. Raises BodyTimeout or ServiceDraining."""
        if self._draining.started:  # even if there is something: a client that always sends would never be told
            raise self._failure()
        self._since = self._loop.time()
        try:
            return await arrive()
        except asyncio.CancelledError:
            if not self._over or self._task.uncancel() > 0:  # somebody else's doing
                raise
            raise self._failure() from None
        finally:
            self._since = None

    def reschedule(self, when: float) -> None:
        """End the wait, if there is one then, at a time of the loop."""
        self._timer.cancel()
        self._timer = self._loop.call_at(when, self._end)

    def _look(self) -> None:
        now = self._loop.time()
        due = (now if self._since is None else self._since) + self._seconds
        if due <= now:
            self._end()
        else:
            self._timer = self._loop.call_at(due, self._look)

    def _end(self) -> None:
        if self._since is not None and not self._over:
            self._over = True
            self._task.cancel()

    def _failure(self) -> ServiceDraining | BodyTimeout:
        if self._draining.started:
            return ServiceDraining("the service is shutting down; open the stream again, from the last state you have")
        return BodyTimeout(f"no complete {self._word} came for {self._seconds:g} s")
