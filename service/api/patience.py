"""Waiting for a client's next words: not for ever, and not beyond the end of the process."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from service.api.draining import Draining
from service.errors import BodyTimeout, ServiceDraining

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a stream may be silent: `seconds` from one word to the next; `word` is what is waited for."""

    draining: Draining
    seconds: float

    async def wait(self, arrive: Callable[[], Awaitable[T]], word: str) -> T:
        """What arrives. Raises BodyTimeout or ServiceDraining."""
        if self.draining.started:  # even if there is something: a client that always sends would never be told
            raise self._draining()
        try:
            async with asyncio.timeout(self.seconds) as patience:
                self.draining.waiting.add(patience)
                try:
                    return await arrive()
                finally:
                    self.draining.waiting.discard(patience)
        except TimeoutError:
            if self.draining.started:
                raise self._draining() from None
            raise BodyTimeout(f"no complete {word} came for {self.seconds:g} s") from None

    @staticmethod
    def _draining() -> ServiceDraining:
        return ServiceDraining("the service is shutting down; open the stream again, from the last state you have")
