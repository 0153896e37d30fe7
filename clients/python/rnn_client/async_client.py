"""The client for asyncio; `Client` runs the same code over a blocking transport."""

import json
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, Self, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rnn_client.async_session import SESSIONS, Opening
from rnn_client.calls import Caller, path
from rnn_client.generation import GenerateResult, Inputs, Options, request
from rnn_client.results import ForwardResult, ModelInfo, Snapshot, StepResult
from rnn_client.tensors import MEDIA_TYPE, Floats, Returns, encode, names, sequences
from rnn_client.transports import Address, AsyncTransport, Transport


class AsyncClient:
    """A service at an address; may be used by many tasks of one event loop.

    - url: `http://127.0.0.1:8000`; api_key: one of its keys, if it has any
    - timeout: seconds that one answer may take
    - retry_seconds: how long a call is tried again when the service is out of reach, full or restarting; 0: not at all
    - ssl_context: for https, the authorities to trust, if not the usual ones

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
        _transport: Callable[[Address], Transport] = AsyncTransport,
    ) -> None:
        self._caller = Caller(_transport(Address(url, api_key, timeout, ssl_context)), retry_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; sessions live on."""
        await self._caller.transport.close()

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
        h0 (L·D,B,P) and, of an LSTM, c0 (L·D,B,H) are the initial states, without B for one sequence: both or neither,
        then zeros. lengths (B) are the true lengths of padded inputs. returns: some of outputs, last, h_n, c_n,
        predictions.
        """
        arrays = sequences(inputs, lengths) | {"h0": h0, "c0": c0}
        rows = None if arrays["inputs"] is inputs else np.asarray(arrays["lengths"]).tolist()
        body = encode(arrays, {"model": model, "version": version, "returns": names(returns)})
        read = partial(ForwardResult.read, lengths=rows)
        return await self._caller.send("POST", "/rnn/forward", read, body=body, accept=MEDIA_TYPE)

    async def generate(
        self, inputs: Inputs, model: str | None = None, *, steps: int, **options: Unpack[Options]
    ) -> GenerateResult:
        """Let a model go on by itself for so many steps after inputs, which are as those of `forward`.

        Token ids are whole numbers: (B,T), (T), or a list of B arrays (T_i). `Options` has the other arguments.
        """
        body = request(inputs, {"model": model, "steps": steps}, options)
        return await self._caller.send("POST", "/rnn/generate", GenerateResult.read, body=body, accept=MEDIA_TYPE)

    async def generate_stream(
        self, inputs: Inputs, model: str | None = None, *, steps: int, **options: Unpack[Options]
    ) -> AsyncGenerator[GenerateResult, None]:
        """As `generate`, step by step as they are made. A stream that fails is not tried again."""
        body = request(inputs, {"model": model, "steps": steps}, options)
        result = None
        async with aclosing(self._caller.lines("/rnn/generate", body)) as lines:
            async for line in lines:
                result = GenerateResult.of_line(line, result)
                yield result

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

        h (L,B,P), (B,P) if L = 1, or (P); c likewise for an LSTM: both or neither, then zeros.
        """
        fields = {"model": model, "version": version, "returns": names(returns)}
        body = encode({"inputs": inputs, "h": h, "c": c}, fields)
        return await self._caller.send("POST", "/cell/step", StepResult.read, body=body, accept=MEDIA_TYPE)

    async def models(self) -> list[ModelInfo]:
        """Every model of the service."""
        return await self._caller.send(
            "GET", "/models", lambda body: [ModelInfo.read(item) for item in json.loads(body)["models"]]
        )

    async def model(self, name: str) -> ModelInfo:
        """One model."""
        at = path("/models", name, "name")
        return await self._caller.send("GET", at, lambda body: ModelInfo.read(json.loads(body)))

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

        ttl_seconds: how long it lives unused. In a `with` block (`async with` for AsyncClient, which also takes
        `s = await client.session(…)`) it ends with the block, unless keep is true.
        """
        # If the answer is lost and a second session opened, the first ends by itself when its time has passed.
        body = encode({"h": h, "c": c}, {"model": model, "version": version, "ttl_seconds": ttl_seconds})
        return Opening(self._caller, "POST", SESSIONS, body=body, keep=keep)

    def attach(self, session_id: str, *, done: int | None = None, keep: bool = True) -> Opening:
        """Go on with a session that is open. It outlives a `with` block unless keep is false.

        done: the last step whose answer was received, if that of a later one may be lost; the next step has the number
        after it, and is answered again if it has run.
        """
        return Opening(self._caller, "GET", path(SESSIONS, session_id, "session_id"), keep=keep, done=done)

    def restore(self, snapshot: Snapshot, *, ttl_seconds: float | None = None, keep: bool = False) -> Opening:
        """Open a session from a snapshot's state, on the same version of the model."""
        return self.session(
            snapshot.model, version=snapshot.version, h=snapshot.h, c=snapshot.c, ttl_seconds=ttl_seconds, keep=keep
        )
