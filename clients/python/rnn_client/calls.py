"""Requests with retries, and how their replies are read."""

from collections.abc import Callable
from typing import TypeVar

import httpx

from rnn_client.errors import BrokenReply, ClientError, service_error
from rnn_client.retries import Retries
from rnn_client.tensors import MEDIA_TYPE
from rnn_client.transports import HTTP_FAILURES, Transport

Answer = TypeVar("Answer")


class Caller:
    """Sends requests over a transport, for at most `retry_seconds` each."""

    def __init__(self, transport: Transport, retry_seconds: float) -> None:
        self.transport = transport
        self._retry_seconds = retry_seconds

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
                return _answer(reply, read)
            except ClientError as error:
                await self.transport.sleep(retries.delay(error, repeatable=repeatable))


def _answer(reply: httpx.Response, read: Callable[[bytes], Answer]) -> Answer:
    if reply.status_code >= 400:
        raise service_error(reply.status_code, reply.headers, reply.content)
    try:
        return read(reply.content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        request = f"{reply.request.method} {reply.request.url.path}"
        raise BrokenReply(f"{request} was answered {reply.status_code} with something else: {error!r:.200}") from error
