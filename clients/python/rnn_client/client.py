"""The blocking client."""

import ssl
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx
from numpy.typing import ArrayLike, NDArray
from websockets.sync.client import ClientConnection, connect

from rnn_client import calls, progress
from rnn_client.address import HTTP_FAILURES, Address
from rnn_client.calls import Call, Returns
from rnn_client.errors import ClientError
from rnn_client.models import ModelInfo
from rnn_client.patience import Patience
from rnn_client.results import ForwardResult, StepResult
from rnn_client.session import Session
from rnn_client.snapshots import Snapshot
from rnn_client.tensors import Floats

Answer = TypeVar("Answer")


class Client:
    """A service at an address; may be used from several threads.

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
        self._http = httpx.Client(**self._address.http_options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; sessions live on."""
        self._http.close()

    @overload
    def forward(
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
    def forward(
        self,
        inputs: Sequence[NDArray[Any]],
        model: str | None = None,
        *,
        version: str | None = None,
        h0: ArrayLike | None = None,
        c0: ArrayLike | None = None,
        returns: Returns = None,
    ) -> ForwardResult[list[Floats]]: ...
    def forward(
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
        return self.send(calls.forward(inputs, lengths, returns, model=model, version=version, **states))

    def step(
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
        return self.send(calls.step(inputs, returns, model=model, version=version, **states))

    def models(self) -> list[ModelInfo]:
        """Every model of the service."""
        return self.send(calls.models())

    def model(self, name: str) -> ModelInfo:
        """One model."""
        return self.send(calls.model(name))

    def session(
        self,
        model: str | None = None,
        *,
        version: str | None = None,
        h: ArrayLike | None = None,
        c: ArrayLike | None = None,
        ttl_seconds: float | None = None,
        keep: bool = False,
    ) -> Session:
        """Open a session: the service keeps the state, from h (L,P) and c (L,H) on, or zeros.

        ttl_seconds: how long it lives unused. As a context manager it ends with the block, unless it is to be kept.
        """
        fields = progress.open_fields(model, version, h, c, ttl_seconds)
        return Session(self, self.send(progress.opening(fields)), keep=keep)

    def attach(self, session_id: str, *, done: int | None = None, keep: bool = True) -> Session:
        """Go on with a session that is open. It outlives a `with` block unless keep is false.

        done: the last step whose answer was received, if that of a later one may be lost; the next step has the number
        after it, and is answered again if it has run.
        """
        return Session(self, self.send(progress.attaching(session_id, done)), keep=keep)

    def restore(self, snapshot: Snapshot, *, ttl_seconds: float | None = None, keep: bool = False) -> Session:
        """Open a session from a snapshot's state, on the same version of the model."""
        return Session(self, self.send(progress.restoring(snapshot, ttl_seconds)), keep=keep)

    def patience(self, *, retry: bool = True) -> Patience:
        """How long a call or a stream goes on trying."""
        return Patience(self._retry_seconds if retry else 0.0)

    def send(self, call: Call[Answer], *, retry: bool = True) -> Answer:
        """Send a call, again if need be, and give its answer."""
        patience = self.patience(retry=retry)
        while True:
            try:
                try:
                    reply = self._http.request(call.method, call.path, content=call.body, headers=call.headers)
                except HTTP_FAILURES as failure:
                    raise self._address.lost(failure) from failure
                return call.answer(reply.status_code, reply.headers, reply.content)
            except ClientError as error:
                time.sleep(patience.delay(error, repeatable=call.repeatable))

    def connect(self) -> AbstractContextManager[ClientConnection]:
        """A new connection for a stream. It, or entering it, raises one of `STREAM_FAILURES`."""
        connection: AbstractContextManager[ClientConnection]
        connection = connect(self._address.stream_url, **self._address.stream_options)
        return connection

    @property
    def address(self) -> Address:
        """Where the service is."""
        return self._address
