"""What a stored session is, and what a store of sessions can do.

A store keeps bytes and numbers; it knows no models. Whoever advances a session names the revision that it started from:
a commit from an old one is refused, so that two processes can never both advance a session.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Reason = Literal["deleted", "expired", "evicted", "model-replaced"]

SESSION_OVERHEAD_BYTES = 500  # what a session counts for in `Totals.bytes` beside its arrays
ENDED_SECONDS = 86_400.0  # how long an ended session is remembered


class Weights(NamedTuple):
    """Which weights a session runs on: a model's version, and a digest of what its files held."""

    model: str
    version: str
    fingerprint: bytes


class Position(NamedTuple):
    """Where a session stands; every commit replaces it whole, and counts one `revision`.

    state is h (L,P), then c (L,H) of an LSTM, as little-endian float32; replies is as `sessions.replay` encodes it.
    Times are in seconds since the epoch, here and everywhere.
    """

    revision: int
    step: int
    state: bytes
    replies: bytes
    used_at: float

    @property
    def nbytes(self) -> int:
        return len(self.state) + len(self.replies)


@dataclass(slots=True)
class SessionRecord:
    """owner is a digest of the key that opened the session; initial is what `reset` goes back to, empty for zeros."""

    id: str
    owner: bytes
    weights: Weights
    ttl_seconds: float
    created_at: float
    initial: bytes
    position: Position

    @property
    def expires_at(self) -> float:
        return self.position.used_at + self.ttl_seconds

    @property
    def nbytes(self) -> int:
        return SESSION_OVERHEAD_BYTES + len(self.initial) + self.position.nbytes


class Ended(NamedTuple):
    reason: Reason
    step: int
    owner: bytes
    at: float


class Totals(NamedTuple):
    sessions: int  # live ones
    bytes: int


class StoreError(ValueError):
    """The store cannot be used as it is set up; the message holds no password."""


class SessionStore(Protocol):
    """Sessions by id. Used from one event loop; every call may raise StoreUnavailable.

    Such a call has changed nothing, unless its answer was lost on the way back from a server: load the session to know.
    The same holds for a caller that is cancelled. Other callers' work is not touched by either.

    shared: several processes may use the store at once, and sessions outlive them.
    lost: what holds the sessions was taken away, as the last `expire` saw; all calls raise until it is back.
    """

    shared: bool
    lost: bool

    @property
    def totals(self) -> Totals:
        """As this process last heard of them; exact where the store is not shared."""

    async def open(self) -> None:
        """Before any other call. Raises StoreError if the store can never be used as it is set up."""

    async def close(self) -> None:
        """Finish what is under way, and let go of everything; also after an `open` that failed."""

    async def create(self, record: SessionRecord) -> SessionRecord | None:
        """Keep a new session. Its id is new, or else its revision is one that no session of this id has had.

        If its revision is not 0, nothing stays of what had the id, live or ended; gives the session that was live.
        """

    async def load(self, session: str) -> SessionRecord | Ended | None:
        """The session; None if it never was. Not to be changed; `position` may be replaced while others run."""

    async def commit(self, session: str, before: Position, position: Position) -> bool:
        """Replace a position if its revision is still that of `before`; says whether it was."""

    async def end(self, session: str, reason: Reason, at: float, begun: float | None = None) -> SessionRecord | None:
        """Give the last record, or None if no session was live, or none that was created at `begun`."""

    async def expire(self, now: float) -> tuple[int, bool]:
        """End some sessions that are due, and forget some that ended more than `ENDED_SECONDS` ago.

        Gives how many ended, and whether more may be due. Looks only at sessions that may be due.
        """

    async def evict(self, count: int, now: float) -> int:
        """End the `count` least recently used sessions, a few; gives how many there were."""

    async def page(self, after: str, limit: int) -> list[SessionRecord]:
        """Live sessions whose ids come after `after`, by id."""

    async def in_use(self) -> Mapping[Weights, int]:
        """Live sessions by the weights that they run on."""
