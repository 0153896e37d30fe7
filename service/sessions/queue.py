"""The order of one session's calls in this process: each waits for those that came before it."""

import asyncio
from dataclasses import dataclass, field
from types import TracebackType

from service.engine.interface import Floats
from service.errors import SessionBusy
from service.sessions.stepper import Steps


class InFlight:
    """A call that waits or runs, with the inputs (k,I) of its steps, and whoever waits for its reply, too."""

    def __init__(self, inputs: Floats | None) -> None:
        self.inputs = inputs
        self._outcome: asyncio.Future[list[Steps] | None] | None = None

    def is_of(self, inputs: Floats) -> bool:
        """Whether these are its inputs, to the bit."""
        return self.inputs is not None and self.inputs.tobytes() == inputs.tobytes()

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

    def turn(self, session: str, step: int | None = None, inputs: Floats | None = None) -> "Turn":
        """With it, wait until all who came before are done; numbered steps can be found `in_flight` from now on.

        What is landed in the result goes to whoever waits for a copy. Raises SessionBusy if too many wait.
        """
        lane = self._lanes.get(session)
        if lane is None:
            lane = self._lanes[session] = Lane()
        if lane.waiting >= self._max_waiting:
            raise SessionBusy(
                f"{lane.waiting} calls of this session wait already; wait for replies before sending more"
            )
        return Turn(self._lanes, session, lane, step, InFlight(inputs))


class Turn:
    """A place in a lane, for `async with`; a generator would cost a small step more than its own computing."""

    __slots__ = ("_lane", "_lanes", "_mine", "_session", "_step")

    def __init__(self, lanes: dict[str, Lane], session: str, lane: Lane, step: int | None, mine: InFlight) -> None:
        self._lanes = lanes
        self._session = session
        self._lane = lane
        self._step = step
        self._mine = mine

    async def __aenter__(self) -> InFlight:
        lane = self._lane
        lane.waiting += 1
        if self._step is not None:
            lane.in_flight.setdefault(self._step, self._mine)
        try:
            await lane.turn.acquire()
        except BaseException:
            self._leave()
            raise
        return self._mine

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lane.turn.release()
        self._leave()

    def _leave(self) -> None:
        lane, step = self._lane, self._step
        self._mine.land(None)
        if step is not None and lane.in_flight.get(step) is self._mine:
            del lane.in_flight[step]
        lane.waiting -= 1
        if not lane.waiting:
            del self._lanes[self._session]
