"""The short way through the door: a request that was read whole, and a reply that is written whole, in one call.

None leaves a request to the gateway, as if it had never been here.
"""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from time import perf_counter

from service.api.answer import Answer
from service.api.exchange import given_id
from service.api.negotiation import JSON
from service.api.reception import Reception
from service.api.reply import spelt_reply
from service.serving.admission import Admission

_UNUSUAL = frozenset((b"content-encoding", b"x-session-id", b"x-request-timeout-ms"))
"""Headers that say more than a quick answer listens to."""

_JSON = JSON.encode()
_CONTENT_TYPES = frozenset((None, _JSON))
_ACCEPTS = frozenset((None, b"*/*", _JSON))


Answerer = Callable[[bytes, bytes | None], Answer | None]
"""A body, and whose sessions it may use (None: everybody's), to its answer; None: nothing was done."""


class Quick:
    """Quick answers under one path, to bodies of at most max_bytes; none while what admission bounds is crowded."""

    def __init__(
        self, path: str, answer: Answerer, reception: Reception, max_bytes: int, admission: Admission | None = None
    ) -> None:
        self._path = path
        self._answer = answer
        self._reception = reception
        self._max_bytes = max_bytes
        self._admission = admission

    def listens(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether a request may get a quick answer, as far as its headers say.

        They have lower-case names, none of them twice. What may be refused or comes large is not waited for.
        """
        return (
            headers.get(b"content-type") in _CONTENT_TYPES
            and headers.get(b"accept") in _ACCEPTS
            and _UNUSUAL.isdisjoint(headers)
            and int(headers.get(b"content-length", b"0")) <= self._max_bytes
            and (self._admission is None or not self._admission.crowded)
        )

    def __call__(
        self, headers: Mapping[bytes, bytes], body: bytes
    ) -> bytes | Callable[[], Awaitable[bytes | None]] | None:
        """What is to be sent after the status line and the default headers of a 200; or None, and nothing was done.

        Or a call that gives one of these when it is known which. headers are some that it `listens` to; body is the
        request's, read whole.
        """
        begun = perf_counter()
        if len(body) > self._max_bytes:
            return None
        reception = self._reception
        caller = reception.keys.identify(headers.get(b"authorization", b""))
        if caller is None:
            return None
        answer = self._answer(body, None if caller.is_admin else caller.owner)
        if answer is None:
            return None
        if answer.commit is not None:
            return partial(self._later, answer.commit, answer, headers, len(body), begun)
        return self._reply(answer, headers, len(body), begun)

    async def _later(
        self,
        commit: Callable[[], Awaitable[bool]],
        answer: Answer,
        headers: Mapping[bytes, bytes],
        received_bytes: int,
        begun: float,
    ) -> bytes | None:
        return self._reply(answer, headers, received_bytes, begun) if await commit() else None

    def _reply(self, answer: Answer, headers: Mapping[bytes, bytes], received_bytes: int, begun: float) -> bytes:
        reception = self._reception
        request_id = given_id(headers) or reception.new_id()
        reply, size = spelt_reply(_JSON, answer.body, request_id, headers.get(b"accept-encoding", b""))
        reception.account_answer(answer, self._path, request_id, received_bytes, size, perf_counter() - begun)
        return reply
