"""A session, for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable
from contextlib import AsyncExitStack, aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import ArrayLike
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from rnn_client.address import STREAM_FAILURES
from rnn_client.calls import Call, Returns
from rnn_client.errors import ClientError, SessionGone, SessionNotFound
from rnn_client.progress import Progress, SessionView
from rnn_client.results import StepResult
from rnn_client.snapshots import Snapshot
from rnn_client.stream import Stream

if TYPE_CHECKING:
    from rnn_client.async_client import AsyncClient


class AsyncSession(SessionView):
    """A stream of steps whose state the service keeps; for one task at a time.

    Steps are numbered, so that whatever is lost on the way is sent again and runs once.
    """

    def __init__(self, client: "AsyncClient", progress: Progress, *, keep: bool) -> None:
        super().__init__(progress, keep=keep)
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keep:
            return
        if error is None:
            await self.close()
            return
        with suppress(ClientError):  # must not hide the error, nor keep it waiting
            await self._client.send(self._progress.close(), retry=False)

    async def step(self, inputs: ArrayLike, *, returns: Returns = None) -> StepResult:
        """Run one step of inputs (I), or k steps of inputs (k,I) as one commit.

        After a ConnectionLost it is unknown whether the steps ran: call again with the same inputs, and they are
        answered, having run once. returns: some of outputs, predictions, h, c.
        """
        return await self._client.send(self._progress.step(inputs, returns))

    async def stream(
        self, inputs: Iterable[ArrayLike] | AsyncIterable[ArrayLike], *, returns: Returns = None, ahead: int = 1
    ) -> AsyncGenerator[StepResult, None]:
        """Run each of the inputs, (I) or (k,I), and give their results in order, over one WebSocket.

        It comes back after a cut and goes on behind the last answered step. ahead: how many inputs may be taken before
        the first is answered; 1 suits live inputs and inputs that depend on results, more hides the way to the service.
        Ask for one array (`returns="predictions"`) and it travels in binary, the fastest way. A stream that is left
        early waits for what is under way; leave it inside `contextlib.aclosing`, so that it is left at once.
        """
        stream = Stream(self._progress, returns, ahead)
        async with aclosing(_Link(self._client, stream)) as link, aclosing(_each(inputs)) as source:
            try:
                async for each in source:
                    stream.take(each)
                    while not stream.room:
                        for result in await link.exchange():
                            yield result
                while not stream.idle:
                    for result in await link.exchange():
                        yield result
            except (Exception, GeneratorExit):  # the inputs failed, or it is left early
                stream.leave()
                while not stream.idle:
                    await link.exchange()
                raise
            finally:  # cancelled, too
                stream.give_up()

    async def snapshot(self) -> Snapshot:
        """The state now, which `AsyncClient.restore` takes."""
        return await self._client.send(self._progress.snapshot())

    def fork(self, *, keep: bool = False) -> "Opening":
        """A new session from this one's state, at step 0."""
        return Opening(self._client, self._progress.fork(), keep=keep)

    async def reset(self) -> None:
        """Back to the state that the session was opened with; the count of steps goes on.

        If the answer is lost, ConnectionLost is raised and nothing repeated: call it again.
        """
        await self._client.send(self._progress.reset())

    async def close(self) -> None:
        """End the session; one that has ended already is no error."""
        with suppress(SessionGone, SessionNotFound):
            await self._client.send(self._progress.close())


class Opening:
    """A session that is about to be open: `s = await …`, or `async with … as s`, which ends it with the block."""

    def __init__(self, client: "AsyncClient", call: Call[Progress], *, keep: bool) -> None:
        self._client = client
        self._call = call
        self._keep = keep
        self._session: AsyncSession | None = None

    def __await__(self) -> Generator[Any, None, AsyncSession]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncSession:
        self._session = await self._open()
        return self._session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.__aexit__(kind, error, trace)

    async def _open(self) -> AsyncSession:
        return AsyncSession(self._client, await self._client.send(self._call), keep=self._keep)


class _Link:
    """The connection of a stream, which may be another one after every failure."""

    def __init__(self, client: "AsyncClient", stream: Stream) -> None:
        self._client = client
        self._stream = stream
        self._patience = client.patience()
        self._open = AsyncExitStack()
        self._connection: ClientConnection | None = None

    async def exchange(self) -> list[StepResult]:
        """Send what may be sent and take one message; connect again as often as it needs."""
        while True:
            try:
                if self._connection is None:
                    self._connection = await self._open.enter_async_context(self._client.connect())
                    self._stream.connected()
                with suppress(ConnectionClosed):  # what came before the end can still be received, and says why
                    for frame in self._stream.to_send():
                        await self._connection.send(frame)
                async with asyncio.timeout(self._client.address.timeout):
                    message = await self._connection.recv()
                results = self._stream.receive(message)
            except STREAM_FAILURES as failure:
                await self.aclose()
                try:
                    delay = self._patience.delay(self._client.address.broken_off(failure))
                except ClientError:
                    self._stream.give_up()
                    raise
                await asyncio.sleep(delay)
            else:
                self._patience.renew()
                return results

    async def aclose(self) -> None:
        """Close the connection, if there is one."""
        self._connection = None
        await self._open.aclose()


async def _each(inputs: Iterable[ArrayLike] | AsyncIterable[ArrayLike]) -> AsyncGenerator[ArrayLike, None]:
    if isinstance(inputs, AsyncIterable):
        async for each in inputs:
            yield each
    else:
        for each in inputs:
            yield each
