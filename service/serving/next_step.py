"""The next step of a session in one go, where nothing has to be waited for.

Between `begin` and `commit` the event loop runs nothing else, so the session's lane need not be entered: that it is
empty is enough. Everything that is not quite like that is left to `SessionSteps`.
"""

from typing import NamedTuple

from service.serving.lanes import Lanes
from service.serving.registry import ModelVersion, Registry
from service.serving.shelf import Shelf
from service.stores.interface import Position, SessionRecord


class Begun(NamedTuple):
    """A session whose next step may run now."""

    record: SessionRecord
    model: ModelVersion


class NextStep:
    """Begins and commits single steps of sessions that this process alone keeps."""

    def __init__(self, shelf: Shelf, lanes: Lanes, registry: Registry) -> None:
        self._shelf = shelf
        self._lanes = lanes
        self._registry = registry

    def begin(self, session: str, owner: bytes | None, step: int | None) -> Begun | None:
        """The session, if `step` is its next one (None always is), nobody else is at it, and its weights are loaded."""
        record = self._shelf.find_held(session, owner)
        if record is None or not self._lanes.empty(session):
            return None
        if step is not None and step != record.position.step + 1:
            return None
        model = self._registry.pinned_loaded(*record.weights)
        return None if model is None else Begun(record, model)

    def commit(self, record: SessionRecord, state: bytes, kept: bytes) -> bool:
        """Advance the session to a state; kept is what answers a retry. False: nothing has happened."""
        before = record.position
        position = Position(before.revision + 1, before.step + 1, state, kept, self._shelf.clock())
        if not self._shelf.commit_held(record, position):
            return False
        self._shelf.counts.commits += 1
        self._shelf.counts.steps += 1
        return True
