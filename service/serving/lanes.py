"""The order of one session's calls in this process: each waits for those that came before it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.engine.interface import Floats
from service.errors import SessionBusy
from service.serving.steps import Steps


class InFlight:
    """A call that waits or runs, with the inputs (k,I) of its steps, and whoever waits for its reply, too."""

    def __init__(self, inputs: Floats | None) -> None:
        self.inputs = inputs
        self._outcome: asyncio.Future[list[Steps] | None] | None = None

    def land(self, done: list[Steps] | None) -> None:
        """Tell those who wait what the steps gave, once; None: they are on their own."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(done)

    async def landing(self) -> list[Steps] | None:
        """Wait for the steps to have run; None if they did not."""
        if self._outcome is None:
            self._outcome = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._outcome)


@dataclass(eq=False, slots=True)
class Lane:
    """Calls of one session: the turn, how many wait for it or have it, and the numbered steps among them by number."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    in_flight: dict[int, InFlight] = field(default_factory=dict)


class Lanes:
    """Lanes by session, there as long as somebody is in them."""

    def __init__(self, max_waiting: int) -> None:
        self._lanes: dict[str, Lane] = {}
        self._max_waiting = max_waiting

    @property
    def waiting(self) -> int:
        """Calls that wait or run, of all sessions."""
        return sum(lane.waiting for lane in self._lanes.values())

    def empty(self, session: str) -> bool:
        """Whether no call of a session waits or runs."""
        return session not in self._lanes

    def in_flight(self, session: str, step: int) -> InFlight | None:
        """The steps of a session that begin with this number, if they wait or run."""
        lane = self._lanes.get(session)
        return lane.in_flight.get(step) if lane else None

    @asynccontextmanager
    async def turn(
        self, session: str, step: int | None = None, inputs: Floats | None = None
    ) -> AsyncIterator[InFlight]:
        """Wait until all who came before are done; numbered steps can be found `in_flight` from now on.

        What is landed in the result goes to whoever waits for a copy. Raises SessionBusy if too many wait.
        """
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = Lane()
        if lane.waiting >= self._max_waiting:
            raise SessionBusy(
                f"{lane.waiting} calls of this session wait already; wait for replies before sending more"
            )
        lane.waiting += 1
        mine = InFlight(inputs)
        if step is not None:
            lane.in_flight[step] = mine
        try:
            async with lane.turn:
                yield mine
        finally:
            mine.land(None)
            if step is not None:
                del lane.in_flight[step]
            lane.waiting -= 1
            if not lane.waiting:
                del self._lanes[session]
