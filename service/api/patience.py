"""Waiting for a client's next words: not for ever, and not beyond the end of the process."""

import asyncio
from collections.abc import Awaitable
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

    async def wait(self, arriving: Awaitable[T], word: str) -> T:
        """What arrives. Raises BodyTimeout or ServiceDraining."""
        try:
            async with asyncio.timeout(self.seconds) as patience:
                if self.draining.started:
                    patience.reschedule(0)
                self.draining.waiting.add(patience)
                try:
                    return await arriving
                finally:
                    self.draining.waiting.discard(patience)
        except TimeoutError:
            if self.draining.started:
                message = "the service is shutting down; open the stream again, from the last state you have"
                raise ServiceDraining(message) from None
            raise BodyTimeout(f"no complete {word} came for {self.seconds:g} s") from None
