"""A session, for asyncio; `Session` runs the same code."""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Self, Unpack

import numpy as np
from numpy.typing import ArrayLike

from rnn_client.calls import Caller, path
from rnn_client.errors import BrokenReply, ClientError, SessionGone, SessionNotFound
from rnn_client.generation import GenerateResult, Options, request
from rnn_client.results import Snapshot, StepResult
from rnn_client.stream import Progress, Stream
from rnn_client.tensors import MEDIA_TYPE, Returns, encode, names, vectors
from rnn_client.transports import STREAM_FAILURES, Exchange

SESSIONS = "/cell/sessions"


class AsyncSession:
    """A stream of steps whose state the service keeps; for one task at a time.

    Steps are numbered: what is lost on the way is sent again, and runs once. `id` is what the client's `attach` takes:
    whoever has it and the key can go on with the session.
    """

    def __init__(self, caller: Caller, progress: Progress, *, keep: bool) -> None:
        self._caller = caller
        self._progress = progress
        self._keep = keep
        self.id, self.model, self.version = progress.session, progress.model, progress.version
        self._path = path(SESSIONS, self.id, "session_id")

    @property
    def done(self) -> int:
        """Number of the last step that was answered."""
        return self._progress.done

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._keep:
            return
        if error is None:
            await self.close()
            return
        with suppress(ClientError):  # must not hide the error, nor delay it by retries
            await self._caller.send("DELETE", self._path, bytes, retry=False)

    async def step(self, inputs: ArrayLike, *, returns: Returns = None) -> StepResult:
        """Run one step of inputs (I), or k steps of inputs (k,I) as one commit; of token ids one, or k of them.

        After a ConnectionLost it is unknown whether the steps ran: call again with the same inputs, and they are
        answered, having run once. returns: some of outputs, predictions, h, c.
        """
        progress = self._progress
        progress.refuse_while_streaming()
        values = vectors(inputs, "inputs")
        may_be_ids = values.dtype.kind == "i"
        if values.ndim not in (1, 2) and not (may_be_ids and values.ndim == 0):
            raise ValueError(f"inputs have shape {values.shape}; expected (I), or (k, I) for k steps")
        counts = {len(values) if values.ndim == 2 else 1, values.size if may_be_ids and values.ndim == 1 else 1}
        fields = {"session": self.id, "step": progress.done + 1, "returns": names(returns)}
        body = encode({"inputs": values}, fields)
        result = await self._caller.send("POST", "/cell/step", StepResult.read, body=body, accept=MEDIA_TYPE)
        if result.step - progress.done not in counts:
            raise BrokenReply(f"step {progress.done + 1} was answered with step {result.step}")
        progress.done = result.step
        return replace(result, model=self.model, version=self.version)

    async def generate(self, inputs: ArrayLike, *, steps: int, **options: Unpack[Options]) -> GenerateResult:
        """Let the model go on by itself after one step of inputs, (I) or a token id, for so many steps as one commit.

        After a ConnectionLost call again with the same arguments: what has run is answered, with the same tokens.
        """
        progress = self._progress
        progress.refuse_while_streaming()
        body = request(np.asarray(inputs), {"session": self.id, "step": progress.done + 1, "steps": steps}, options)
        path = "/rnn/generate"
        result = await self._caller.send("POST", path, GenerateResult.read, body=body, accept=MEDIA_TYPE)
        progress.done = result.step
        return result

    async def stream(
        self, inputs: Iterable[ArrayLike] | AsyncIterable[ArrayLike], *, returns: Returns = None, ahead: int = 1
    ) -> AsyncGenerator[StepResult, None]:
        """Run each of the inputs, (I) or (k,I), and give their results in order, over one WebSocket.

        After a cut it connects again and goes on behind the last answered step. ahead: how many inputs may be taken
        before the first is answered; 1 suits live inputs and inputs that depend on results, more hides the latency.
        Ask for one array (`returns="predictions"`) and it travels in binary, the fastest way. A stream that is left
        early waits for what is in flight; leave it inside `contextlib.aclosing`, so that it is left at once.
        """
        stream = Stream(self._progress, returns, ahead)
        async with aclosing(_StreamConnection(self._caller, stream)) as connection, aclosing(_each(inputs)) as source:
            try:
                async for each in source:
                    stream.take(each)
                    while not stream.room:
                        for result in await connection.exchange():
                            yield result
                while not stream.idle:
                    for result in await connection.exchange():
                        yield result
            except (Exception, GeneratorExit):  # the inputs failed, or the caller leaves early
                stream.leave()
                while not stream.idle:
                    await connection.exchange()
                raise
            finally:  # cancelled, too
                stream.give_up()

    async def snapshot(self) -> Snapshot:
        """The state now, which the client's `restore` takes."""
        return await self._caller.send("GET", f"{self._path}?state=true", Snapshot.from_bytes, accept=MEDIA_TYPE)

    def fork(self, *, keep: bool = False) -> "Opening":
        """A new session from this one's state, at step 0."""
        self._progress.refuse_while_streaming()
        return Opening(self._caller, "POST", f"{self._path}/fork", keep=keep)

    async def reset(self) -> None:
        """Back to the state that the session was opened with; the count of steps goes on.

        If the answer is lost, ConnectionLost is raised and nothing repeated, as a late first try could undo later
        steps: call it again.
        """
        self._progress.refuse_while_streaming()
        self._progress.done = await self._caller.send(
            "POST", f"{self._path}/reset", lambda body: int(json.loads(body)["step"]), repeatable=False
        )

    async def close(self) -> None:
        """End the session; one that has ended already is no error."""
        with suppress(SessionGone, SessionNotFound):
            await self._caller.send("DELETE", self._path, bytes)


class Opening:
    """A session that is not open yet: `s = await …` opens it, and `async with … as s` ends it with the block too.

    done: the last step that was answered, if the service may have done more.
    """

    def __init__(
        self, caller: Caller, method: str, path: str, *, keep: bool, body: bytes = b"", done: int | None = None
    ) -> None:
        self._caller = caller
        self._request = partial(caller.send, method, path, Progress.read, body=body)
        self._keep = keep
        self._done = done
        self._session: AsyncSession | None = None

    async def open(self) -> AsyncSession:
        progress = await self._request()
        if self._done is not None:
            progress.done = self._done
        return AsyncSession(self._caller, progress, keep=self._keep)

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self.open().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self.open()
        return self._session

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, trace)


class _StreamConnection:
    """The connection of a stream: a new one after every failure."""

    def __init__(self, caller: Caller, stream: Stream) -> None:
        self._transport = caller.transport
        self._retries = caller.retries()
        self._stream = stream
        self._open = AsyncExitStack()
        self._exchange: Exchange | None = None

    async def exchange(self) -> list[StepResult]:
        """Send what may be sent and receive one message; connect again as often as it needs."""
        while True:
            try:
                exchange = self._exchange or await self._connect()
                results = self._stream.receive(await exchange(self._stream.to_send()))
            except STREAM_FAILURES as failure:
                await self.aclose()
                try:
                    delay = self._retries.delay(self._transport.address.broken_off(failure))
                except ClientError:
                    self._stream.give_up()
                    raise
                await self._transport.sleep(delay)
            else:
                self._retries.succeeded()
                return results

    async def _connect(self) -> Exchange:
        self._exchange = exchange = await self._open.enter_async_context(self._transport.connect())
        self._stream.connected()
        return exchange

    async def aclose(self) -> None:
        self._exchange = None
        await self._open.aclose()


async def _each(inputs: Iterable[ArrayLike] | AsyncIterable[ArrayLike]) -> AsyncGenerator[ArrayLike, None]:
    if isinstance(inputs, AsyncIterable):
        async for each in inputs:
            yield each
    else:
        for each in inputs:
            yield each
