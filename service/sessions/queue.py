"""The order of one session's calls in this process: each waits for those that came before it."""

import asyncio

from service.engine.interface import Floats
from service.errors import SessionBusy
from service.sessions.stepper import Steps


class Call:
    """A call of a session that waits or runs; inside `async with` it runs.

    - waited: other calls ran between its arrival and its turn
    - result: what callers of the same steps get, set by the call itself; None sends them to run on their own
    """

    __slots__ = ("_calls", "_ended", "_session", "inputs", "result", "step", "turn", "waited")

    def __init__(self, calls: dict[str, list["Call"]], session: str, step: int | None, inputs: Floats | None) -> None:
        self._calls = calls
        self._session = session
        self.step = step
        self.inputs = inputs
        self.turn: asyncio.Future[None] | None = None
        self.waited = False
        self.result: list[Steps] | None = None
        self._ended: asyncio.Event | None = None

    async def __aenter__(self) -> "Call":
        calls = self._calls.setdefault(self._session, [])
        calls.append(self)
        if len(calls) > 1:
            self.waited = True
            self.turn = asyncio.get_running_loop().create_future()
            try:
                await self.turn
            except BaseException:
                self._leave()
                raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    async def outcome(self) -> list[Steps] | None:
        """Wait for the end of the call; gives its `result`."""
        if self._ended is None:
            self._ended = asyncio.Event()
        await self._ended.wait()
        return self.result

    def _leave(self) -> None:
        calls = self._calls[self._session]
        calls.remove(self)
        if not calls:
            del self._calls[self._session]
        elif (turn := calls[0].turn) is not None and not turn.done():
            turn.set_result(None)
        if self._ended is not None:
            self._ended.set()


class SessionQueue:
    """The calls of all sessions; those of one session take turns. One session has at most `max_waiting` calls."""

    def __init__(self, max_waiting: int) -> None:
        self._calls: dict[str, list[Call]] = {}
        self._max_waiting = max_waiting

    @property
    def waiting(self) -> int:
        """Calls that wait or run, of all sessions."""
        return sum(map(len, self._calls.values()))

    def same(self, session: str, step: int, inputs: Floats) -> Call | None:
        """A waiting or running call of a session with the same step number and, to the bit, the same inputs."""
        for call in self._calls.get(session, ()):
            if call.step == step and call.inputs is not None and call.inputs.tobytes() == inputs.tobytes():
                return call
        return None

    def turn(self, session: str, step: int | None = None, inputs: Floats | None = None) -> Call:
        """A call to enter with `async with`. Raises SessionBusy if too many wait."""
        waiting = len(self._calls.get(session, ()))
        if waiting >= self._max_waiting:
            raise SessionBusy(f"{waiting} calls of this session wait already; wait for replies before sending more")
        return Call(self._calls, session, step, inputs)
