"""The client for asyncio; what is not waiting, it shares with the blocking one."""

import asyncio
import ssl
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx
from numpy.typing import ArrayLike, NDArray
from websockets.asyncio.client import ClientConnection, connect

from rnn_client import calls, progress
from rnn_client.address import HTTP_FAILURES, Address
from rnn_client.async_session import Opening
from rnn_client.calls import Call, Returns
from rnn_client.errors import ClientError
from rnn_client.models import ModelInfo
from rnn_client.patience import Patience
from rnn_client.results import ForwardResult, StepResult
from rnn_client.snapshots import Snapshot
from rnn_client.tensors import Floats

Answer = TypeVar("Answer")


class AsyncClient:
    """A service at an address; may be used by many tasks of one event loop.

    - url: `http://127.0.0.1:8000`; api_key: one of its keys, if it has any
    - timeout: seconds that one answer may take
    - retry_seconds: how long a call goes on trying when the service is out of reach, full or restarting; 0: not at all
    - ssl_context: for https, whom to trust, if not the usual authorities

    Every call raises ServiceError if the service refuses it, and ConnectionLost if no answer came in that time.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 30.0,
        retry_seconds: float = 30.0,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._address = Address(url, api_key, timeout, ssl_context)
        self._retry_seconds = retry_seconds
        self._http = httpx.AsyncClient(**self._address.http_options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; sessions live on."""
        await self._http.aclose()

    @overload
    async def forward(
        self,
        inputs: NDArray[Any],
        model: str | None = None,
        *,
        version: str | None = None,
        h0: ArrayLike | None = None,
        c0: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        returns: Returns = None,
    ) -> ForwardResult[Floats]: ...
    @overload
    async def forward(
        self,
        inputs: Sequence[NDArray[Any]],
        model: str | None = None,
        *,
        version: str | None = None,
        h0: ArrayLike | None = None,
        c0: ArrayLike | None = None,
        returns: Returns = None,
    ) -> ForwardResult[list[Floats]]: ...
    async def forward(
        self,
        inputs: NDArray[Any] | Sequence[NDArray[Any]],
        model: str | None = None,
        *,
        version: str | None = None,
        h0: ArrayLike | None = None,
        c0: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        returns: Returns = None,
    ) -> ForwardResult[Any]:
        """Run whole sequences.

        inputs (B,T,I), one sequence (T,I), or a list of B arrays (T_i,I) whose outputs and predictions come as lists.
        h0 (L·D,B,P) and c0 (L·D,B,H) are the initial states, without B for one sequence; zeros if left out. lengths (B)
        are the true lengths of padded inputs. returns: some of outputs, last, h_n, c_n, predictions.
        """
        states = {"h0": calls.optional(h0), "c0": calls.optional(c0)}
        return await self.send(calls.forward(inputs, lengths, returns, model=model, version=version, **states))

    async def step(
        self,
        inputs: ArrayLike,
        h: ArrayLike | None = None,
        c: ArrayLike | None = None,
        *,
        model: str | None = None,
        version: str | None = None,
        returns: Returns = None,
    ) -> StepResult:
        """Run one step of inputs (B,I) or (I) from a state that the caller keeps, and give the new state back.

        h (L,B,P), (B,P) if L = 1, or (P); c likewise for an LSTM; zeros if left out.
        """
        states = {"h": calls.optional(h), "c": calls.optional(c)}
        return await self.send(calls.step(inputs, returns, model=model, version=version, **states))

    async def models(self) -> list[ModelInfo]:
        """Every model of the service."""
        return await self.send(calls.models())

    async def model(self, name: str) -> ModelInfo:
        """One model."""
        return await self.send(calls.model(name))

    def session(
        self,
        model: str | None = None,
        *,
        version: str | None = None,
        h: ArrayLike | None = None,
        c: ArrayLike | None = None,
        ttl_seconds: float | None = None,
        keep: bool = False,
    ) -> Opening:
        """Open a session: the service keeps the state, from h (L,P) and c (L,H) on, or zeros.

        ttl_seconds: how long it lives unused. `async with client.session(…) as s` ends it with the block, unless it
        is to be kept; `s = await client.session(…)` does not.
        """
        fields = progress.open_fields(model, version, h, c, ttl_seconds)
        return Opening(self, progress.opening(fields), keep=keep)

    def attach(self, session_id: str, *, done: int | None = None, keep: bool = True) -> Opening:
        """Go on with a session that is open. It outlives a `with` block unless keep is false.

        done: the last step whose answer was received, if that of a later one may be lost; the next step has the number
        after it, and is answered again if it has run.
        """
        return Opening(self, progress.attaching(session_id, done), keep=keep)

    def restore(self, snapshot: Snapshot, *, ttl_seconds: float | None = None, keep: bool = False) -> Opening:
        """Open a session from a snapshot's state, on the same version of the model."""
        return Opening(self, progress.restoring(snapshot, ttl_seconds), keep=keep)

    def patience(self, *, retry: bool = True) -> Patience:
        """How long a call or a stream goes on trying."""
        return Patience(self._retry_seconds if retry else 0.0)

    async def send(self, call: Call[Answer], *, retry: bool = True) -> Answer:
        """Send a call, again if need be, and give its answer."""
        patience = self.patience(retry=retry)
        while True:
            try:
                try:
                    reply = await self._http.request(call.method, call.path, content=call.body, headers=call.headers)
                except HTTP_FAILURES as failure:
                    raise self._address.lost(failure) from failure
                return call.answer(reply.status_code, reply.headers, reply.content)
            except ClientError as error:
                await asyncio.sleep(patience.delay(error, repeatable=call.repeatable))

    def connect(self) -> AbstractAsyncContextManager[ClientConnection]:
        """A new connection for a stream. Entering it raises one of `STREAM_FAILURES`."""
        return connect(self._address.stream_url, **self._address.stream_options)

    @property
    def address(self) -> Address:
        """Where the service is."""
        return self._address
