"""What a handler takes and gives: one HTTP request with its whole body, and one reply."""

import asyncio
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic, perf_counter
from typing import NamedTuple

from service.engine.interface import Rows
from service.errors import InvalidRequest
from service.serving.scheduler import Timings

STAGES = ("decode", "queue", "compute", "commit", "encode")

MAX_INTERVALS = 64  # a reply that is generated turn by turn has any number of them

Headers = Iterable[tuple[bytes, bytes]]

# Two hosts make one that is malformed, and so do two origins, sizes of the JSON, or parents of a trace.
_LISTS = (
    *(b"accept", b"accept-encoding", b"access-control-request-headers", b"connection", b"content-encoding", b"host"),
    *(b"inference-header-content-length", b"origin", b"traceparent", b"tracestate", b"x-forwarded-for"),
)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class Reply(NamedTuple):
    """A whole reply; a body in pieces is sent piece by piece, at the client's pace.

    Lines that are still to be made come from a generator: what it raises is the last line.
    """

    status: int
    media_type: bytes
    body: bytes | Sequence[bytes | memoryview] | AsyncGenerator[bytes, None]
    headers: Sequence[tuple[bytes, bytes]] = ()


@dataclass(slots=True, eq=False)
class Request:
    """A request, and what is learnt of it on its way for the log line and the metrics.

    - headers: by lower-case name; lists that came in several lines are joined
    - address: the client's, as a trusted proxy says or else the connection's
    - route: the path of its route, such as /models/{name}; "other" where there is none, once it is finished
    - watch: a call that returns when the client has gone; set before the request waits for anything
    - cors: headers of its reply that say which pages may read it
    - owner: a digest of the key, empty without one; admin: whether that is an admin's, None where there are no keys
    - offered_as: what the Open Inference Protocol calls its model, where that is not the model's name
    - streams: whether it takes as long as its client wants
    - stages: seconds by one of `STAGES`
    - intervals: stage, begin and end (`perf_counter()`) in order, for a trace; None if nobody asks for them
    - failure: the kind of the error that the client was told
    """

    method: str
    path: str
    query: bytes
    headers: Mapping[bytes, bytes]
    address: str
    request_id: str
    route: str = "other"
    http_version: str = "1.1"
    body: bytes = b""
    watch: Callable[[], Awaitable[object]] | None = None
    begun: float = field(default_factory=perf_counter)
    cors: Headers = ()
    owner: bytes = b""
    admin: bool | None = None
    streams: bool = False
    model: str | None = None
    offered_as: str | None = None
    version: str | None = None
    rows: int = 0
    steps: int = 0
    stages: dict[str, float] = field(default_factory=dict)
    intervals: list[tuple[str, float, float]] | None = None
    failure: type[Exception] | None = None
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0

    def header(self, name: bytes) -> str:
        """A header's value, empty if it is missing."""
        value = self.headers.get(name)
        return "" if value is None else value.decode("latin-1")

    @property
    def declared_bytes(self) -> int:
        """Content-Length, 0 without one; a sound one may have more leading zeros than `int` takes digits."""
        return int(self.headers.get(b"content-length", b"").lstrip(b"0") or b"0")

    @property
    def client(self) -> str:
        """Whose share of the service the request counts for: its key's, else its address's."""
        return self.owner.hex() or self.address

    @property
    def session_owner(self) -> bytes | None:
        """Whose sessions the request may use; None: everybody's, for an admin."""
        return None if self.admin else self.owner

    async def hung_up(self) -> None:
        """Return when the client has gone; never, where nobody watches it."""
        await (self.watch() if self.watch else asyncio.Event().wait())

    def mark(self, stage: str, since: float) -> float:
        """Add the time since `since` to a stage; returns now."""
        now = perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - since
        if self.intervals is not None:
            _note(self.intervals, stage, since, now)
        return now

    def book(self, timings: Timings) -> None:
        """Add an engine run."""
        stages, begun = self.stages, timings.begun
        stages["queue"] = stages.get("queue", 0.0) + begun - timings.submitted
        stages["compute"] = stages.get("compute", 0.0) + timings.compute
        if self.intervals is not None:
            shift = perf_counter() - monotonic()  # in case that the clocks differ
            if begun > timings.submitted:
                _note(self.intervals, "queue", timings.submitted + shift, begun + shift)
            _note(self.intervals, "compute", begun + shift, timings.ended + shift)

    def ran(self, rows: Rows, timings: Timings) -> None:
        """Add an engine run of rows, which is all that the request has."""
        self.rows, self.steps = rows.lengths.size, rows.steps
        self.book(timings)

    def timeout(self) -> float | None:
        """Seconds that X-Request-Timeout-Ms gives the request, or each line of a stream. Raises InvalidRequest."""
        value = self.headers.get(b"x-request-timeout-ms")
        if value is not None and not (value.isdigit() and len(value) <= 9):
            name = "X-Request-Timeout-Ms"
            raise InvalidRequest.at(f"{name} must be a whole number of milliseconds", name)
        return None if value is None else int(value) / 1000

    def deadline(self, seconds: float | None = None) -> float | None:
        """The `monotonic()` time after which the request need not run any more. Raises InvalidRequest.

        seconds is a time that the body gives it; the shorter one holds.
        """
        timeout = self.timeout()
        if seconds is not None:
            timeout = seconds if timeout is None else min(seconds, timeout)
        return None if timeout is None else monotonic() - (perf_counter() - self.begun) + timeout


def joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name; those that are lists may come in several lines (RFC 9110, 5.3)."""
    found = dict(headers)
    if len(found) < len(headers):
        for name in _LISTS:
            if values := [value for key, value in headers if key == name]:
                found[name] = b", ".join(values)
    return found


def _note(intervals: list[tuple[str, float, float]], stage: str, begin: float, end: float) -> None:
    """Keep an interval; pieces of one stage are one."""
    if intervals and intervals[-1][0] == stage:
        intervals[-1] = stage, intervals[-1][1], end
    elif len(intervals) < MAX_INTERVALS:
        intervals.append((stage, begin, end))


def given_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The id that a client gave its request, if it is one that may be logged and sent back."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else None
