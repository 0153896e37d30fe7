"""One HTTP request on its way through the service, and what is learnt of it on the way."""

import re
from collections.abc import Mapping
from time import monotonic, perf_counter
from typing import Protocol

from starlette.types import Receive, Scope, Send

from service.errors import FieldError, InvalidRequest

STAGES = ("decode", "queue", "compute", "encode")

_LISTS = (b"accept", b"accept-encoding", b"content-encoding")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

WHOLE = "rnn.whole"
"""The ASGI extension by which the connection hands over a request that it has read whole."""

FAILURE = "rnn.failure"
"""The ASGI extension by which a request comes back that was begun elsewhere and has failed: what was raised."""


class Whole(Protocol):
    """A request's whole body, and the short way for a whole reply; `service.server.whole.Whole` is one."""

    body: bytes

    def reply(self, status: int, headers: bytes, body: bytes | memoryview) -> bool:
        """Send a reply, its header lines spelt out; False if it must go by ASGI's `send`."""


REST = "rnn.rest"
"""The ASGI extension by which the connection offers to read the rest of a large body in one piece."""


class Rest(Protocol):
    """A request of which a part of a body of known length has come; `landing.Rest` is one."""

    @property
    def received(self) -> int:
        """Bytes of the body that have come."""

    def begin(self) -> bool:
        """Make room for the whole body and read into it; False if the body must be had by ASGI's `receive`."""

    async def arrived(self) -> bytes:
        """The body, when it is whole. Raises ClientGone."""


class Exchange:
    """What handlers take instead of a request object: the ASGI triple, and the notes for the log line and the metrics.

    request_id is the name that the request gets if it came without one; owner is a digest of its key. `stages` holds
    seconds by one of `STAGES`.
    """

    __slots__ = (
        "admin",
        "begun",
        "failure",
        "headers",
        "model",
        "owner",
        "receive",
        "received_all",
        "received_bytes",
        "request_id",
        "rest",
        "rows",
        "scope",
        "send",
        "sent_bytes",
        "stages",
        "status",
        "steps",
        "version",
        "whole",
    )

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.scope = scope
        self.receive = receive
        self.send = send
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(self.headers) < len(scope["headers"]):
            self._join_lists()
        self.request_id = given_id(self.headers) or request_id
        self.begun = perf_counter()
        self.admin = False
        self.owner = b""
        self.model: str | None = None
        self.version: str | None = None
        self.rows = 0
        self.steps = 0
        self.stages: dict[str, float] = {}
        extensions = scope.get("extensions")
        self.whole: Whole | None = extensions.get(WHOLE) if extensions else None
        self.rest: Rest | None = extensions.get(REST) if extensions else None
        self.failure: Exception | None = extensions.get(FAILURE) if extensions else None
        self.received_all = False
        self.received_bytes = 0
        self.sent_bytes = 0
        self.status = 0

    def header(self, name: bytes) -> str:
        """A header's value, empty if it is missing; lists that came in several lines are joined."""
        value = self.headers.get(name)
        return "" if value is None else value.decode("latin-1")

    def _join_lists(self) -> None:
        """Headers that are lists may come in several lines (RFC 9110, 5.3)."""
        for name in _LISTS:
            values = [value for key, value in self.scope["headers"] if key == name]
            if values:
                self.headers[name] = b", ".join(values)

    @property
    def client(self) -> str:
        """Whose share of the service the request counts for: its key's, else its peer address's."""
        peer = self.scope.get("client")
        return self.owner.hex() or (peer[0] if peer else "")

    @property
    def declared_bytes(self) -> int:
        """Content-Length, 0 if the body comes without."""
        return int(self.headers.get(b"content-length", b"0"))

    @property
    def session_owner(self) -> bytes | None:
        """Whose sessions the request may use; None: everybody's, for an admin."""
        return None if self.admin else self.owner

    def mark(self, stage: str, since: float) -> float:
        """Book the time since `since` to a stage; returns now."""
        now = perf_counter()
        stages = self.stages
        stages[stage] = stages.get(stage, 0.0) + now - since
        return now

    def book(self, queue: float, compute: float) -> None:
        """Book the seconds of an engine run."""
        stages = self.stages
        stages["queue"] = stages.get("queue", 0.0) + queue
        stages["compute"] = stages.get("compute", 0.0) + compute

    async def hung_up(self) -> None:
        """Return when the client has gone. For a body that was read whole; what a pipelining client sends waits."""
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def deadline(self) -> float | None:
        """The `monotonic()` time after which the request need not run any more. Raises InvalidRequest."""
        timeout = self.timeout()
        return None if timeout is None else monotonic() - (perf_counter() - self.begun) + timeout

    def timeout(self) -> float | None:
        """Seconds that X-Request-Timeout-Ms gives the request, or each line of a stream. Raises InvalidRequest."""
        value = self.headers.get(b"x-request-timeout-ms")
        if value is None:
            return None
        if not value.isdigit() or len(value) > 9:
            message = "X-Request-Timeout-Ms must be a whole number of milliseconds"
            raise InvalidRequest([FieldError(("X-Request-Timeout-Ms",), message)])
        return int(value) / 1000


def given_id(headers: Mapping[bytes, bytes]) -> str | None:
    """The name that a client gave its request."""
    given = headers.get(b"x-request-id")
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else None
