"""Requests with retries, and how their replies are read."""

import logging
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from time import monotonic
from typing import TypeVar
from urllib.parse import quote

from rnn_client.errors import BrokenReply, ClientError, service_error
from rnn_client.tensors import MEDIA_TYPE
from rnn_client.transports import HTTP_FAILURES, Transport, seconds

Answer = TypeVar("Answer")

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 5.0

_log = logging.getLogger("rnn_client")


def path(folder: str, name: str, argument: str) -> str:
    """The path of a thing by its name. Raises ValueError for what no name can be."""
    if not isinstance(name, str) or not 0 < len(name) <= 256 or not name.strip("."):
        raise ValueError(f"{argument} is {name!r:.80}; expected text of at most 256 characters")
    return f"{folder}/{quote(name, safe='', errors='replace')}"


class Retries:
    """When to try again: exponential back-off, for at most `seconds` from the first failure on.

    It does not wait itself. A stream starts counting anew with every answer.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._failures = 0
        self._deadline = 0.0

    def succeeded(self) -> None:
        """The next failure counts as the first one."""
        self._failures = 0

    def delay(self, error: ClientError, *, repeatable: bool = True) -> float:
        """Seconds to wait before the next try. Raises the error if a try would not help, or would come too late.

        repeatable: whether the request may act twice, at any later time, without harm.
        """
        if not error.transient or not (repeatable or error.settled):
            raise error
        now = monotonic()
        if self._failures == 0:
            self._deadline = now + self._seconds
        jitter = random.random()  # noqa: S311  # so that not all clients come back at once
        longest: float = min(LONGEST_SECONDS, FIRST_SECONDS * 2**self._failures)
        # Never sooner than the service asks.
        delay = longest * (1 + jitter) / 2 if error.retry_after is None else error.retry_after * (1 + jitter / 4)
        if now + delay > self._deadline:
            raise error
        self._failures += 1
        _log.warning("%s; trying again in %.2g s", error, delay)
        return delay


class Caller:
    """Sends requests over a transport, for at most `retry_seconds` each."""

    def __init__(self, transport: Transport, retry_seconds: float) -> None:
        self.transport = transport
        self._retry_seconds = seconds(retry_seconds, "retry_seconds", 0)

    def retries(self) -> Retries:
        return Retries(self._retry_seconds)

    async def send(
        self,
        method: str,
        path: str,
        read: Callable[[bytes], Answer],
        *,
        body: bytes = b"",
        accept: str = "application/json",
        repeatable: bool = True,
        retry: bool = True,
    ) -> Answer:
        """Send a request, again if need be; `read` makes the answer of the reply's body.

        repeatable: whether the request may act twice, at any later time, without harm.
        Raises ServiceError, ConnectionLost, or BrokenReply for a reply that `read` cannot read.
        """
        retries = self.retries() if retry else Retries(0.0)
        headers = {"accept": accept, **({"content-type": MEDIA_TYPE} if body else {})}
        while True:
            try:
                try:
                    reply = await self.transport.request(method, path, body, headers)
                except HTTP_FAILURES as failure:
                    raise self.transport.address.lost(failure) from failure
                if reply.status_code >= 400:
                    raise service_error(reply.status_code, reply.headers, reply.content)
                break
            except ClientError as error:
                await self.transport.sleep(retries.delay(error, repeatable=repeatable))
        try:
            return read(reply.content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{method} {path} was answered {reply.status_code} with something else than expected"
            raise BrokenReply(f"{what}: {error!r:.200}") from error

    async def lines(self, path: str, body: bytes) -> AsyncGenerator[str, None]:
        """The lines that answer a POST, as they come. Raises ServiceError, or ConnectionLost; nothing is repeated."""
        headers = {"accept": "application/x-ndjson", "content-type": MEDIA_TYPE}
        try:
            async with aclosing(self.transport.lines(path, body, headers)) as lines:
                async for line in lines:
                    yield line
        except HTTP_FAILURES as failure:
            raise self.transport.address.lost(failure) from failure
