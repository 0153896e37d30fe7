"""The order of one session's calls in this process: each waits for those that came before it."""

import asyncio
from dataclasses import dataclass

from service.engine.interface import Floats
from service.errors import SessionBusy
from service.sessions.stepper import Steps


@dataclass(slots=True, eq=False)
class Call:
    """A call of a session that waits or runs; inside `async with` it runs.

    - waited: other calls ran between its arrival and its turn
    - result: what callers of the same steps get, set by the call itself; None sends them to run on their own
    """

    queues: dict[str, list["Call"]]
    session: str
    step: int | None
    inputs: Floats | None
    waited: bool = False
    result: list[Steps] | None = None
    ended: asyncio.Event | None = None

    async def __aenter__(self) -> "Call":
        calls = self.queues.setdefault(self.session, [])
        calls.append(self)
        try:
            while calls[0] is not self:
                self.waited = True
                await calls[calls.index(self) - 1].outcome()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        calls = self.queues[self.session]
        calls.remove(self)
        if not calls:
            del self.queues[self.session]
        if self.ended is not None:
            self.ended.set()

    async def outcome(self) -> list[Steps] | None:
        """Wait for the end of the call; gives its `result`."""
        if self.ended is None:
            self.ended = asyncio.Event()
        await self.ended.wait()
        return self.result


class SessionQueue:
    """The calls of all sessions; those of one session take turns. One session has at most `max_waiting` calls."""

    def __init__(self, max_waiting: int) -> None:
        self._queues: dict[str, list[Call]] = {}
        self._max_waiting = max_waiting

    @property
    def waiting(self) -> int:
        """Calls that wait or run, of all sessions."""
        return sum(map(len, self._queues.values()))

    def same(self, session: str, step: int, inputs: Floats) -> Call | None:
        """A waiting or running call of a session with the same step number and, to the bit, the same inputs."""
        for call in self._queues.get(session, ()):
            if call.step == step and call.inputs is not None and call.inputs.tobytes() == inputs.tobytes():
                return call
        return None

    def turn(self, session: str, step: int | None = None, inputs: Floats | None = None) -> Call:
        """A call to enter with `async with`. Raises SessionBusy if too many wait."""
        waiting = len(self._queues.get(session, ()))
        if waiting >= self._max_waiting:
            raise SessionBusy(f"{waiting} calls of this session wait already; wait for replies before sending more")
        return Call(self._queues, session, step, inputs)
