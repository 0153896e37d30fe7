"""The next step of a session in one go: where nothing has to be waited for, or nothing but its commit.

Between `begin` and `commit` the event loop runs nothing else, so the session's lane need not be entered: that it is
empty is enough. Everything that is not quite like that is left to `SessionSteps`.
"""

from typing import NamedTuple

from service.engine.interface import Floats
from service.serving.registry import ModelVersion, Registry
from service.sessions.cache import Shelf
from service.sessions.queue import Lanes
from service.stores.interface import Position, SessionRecord


class Begun(NamedTuple):
    """A session whose next step may run now."""

    record: SessionRecord
    model: ModelVersion


class NextStep:
    """Begins and commits single steps of sessions that are at hand.

    waits: the store is shared, and a commit takes its time; then it is `commit_in_turn`, else `commit`.
    """

    def __init__(self, shelf: Shelf, lanes: Lanes, registry: Registry) -> None:
        self._shelf = shelf
        self._lanes = lanes
        self._registry = registry
        self.waits = shelf.may_be_stale

    def begin(self, session: str, owner: bytes | None, step: int | None) -> Begun | None:
        """The session, if `step` is its next one (None always is), nobody else is at it, and its weights are loaded."""
        record = self._shelf.find_held(session, owner)
        if record is None or not self._lanes.empty(session):
            return None
        if step is not None and step != record.position.step + 1:
            return None
        model = self._registry.pinned_loaded(*record.weights)
        return None if model is None else Begun(record, model)

    def after(self, record: SessionRecord, state: bytes, kept: bytes) -> Position:
        """Where the session stands after the step, in a state; kept is what answers a retry."""
        before = record.position
        return Position(before.revision + 1, before.step + 1, state, kept, self._shelf.clock())

    def commit(self, record: SessionRecord, position: Position) -> bool:
        """Advance the session. False: nothing has happened."""
        if not self._shelf.commit_held(record, position):
            return False
        self._count()
        return True

    async def commit_in_turn(self, record: SessionRecord, position: Position, step: int | None, inputs: Floats) -> bool:
        """As `commit`, of the step that came with a number and inputs (1,I); the lane is held until it is known.

        False: another process was first. Raises SessionsFull, StoreUnavailable.
        """
        async with self._lanes.turn(record.id, step, inputs):
            if not await self._shelf.commit(record, position):
                return False
        self._count()
        return True

    def _count(self) -> None:
        self._shelf.counts.commits += 1
        self._shelf.counts.steps += 1
