"""A session, for blocking callers."""

import time
from collections.abc import Generator, Iterable
from contextlib import ExitStack, closing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from numpy.typing import ArrayLike
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from rnn_client.address import STREAM_FAILURES
from rnn_client.calls import Returns
from rnn_client.errors import ClientError, SessionGone, SessionNotFound
from rnn_client.progress import Progress, SessionView
from rnn_client.results import StepResult
from rnn_client.snapshots import Snapshot
from rnn_client.stream import Stream

if TYPE_CHECKING:
    from rnn_client.client import Client


class Session(SessionView):
    """A stream of steps whose state the service keeps; for one thread at a time.

    Steps are numbered, so that whatever is lost on the way is sent again and runs once.
    """

    def __init__(self, client: "Client", progress: Progress, *, keep: bool) -> None:
        super().__init__(progress, keep=keep)
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._keep:
            return
        if error is None:
            self.close()
            return
        with suppress(ClientError):  # must not hide the error, nor keep it waiting
            self._client.send(self._progress.close(), retry=False)

    def step(self, inputs: ArrayLike, *, returns: Returns = None) -> StepResult:
        """Run one step of inputs (I), or k steps of inputs (k,I) as one commit.

        After a ConnectionLost it is unknown whether the steps ran: call again with the same inputs, and they are
        answered, having run once. returns: some of outputs, predictions, h, c.
        """
        return self._client.send(self._progress.step(inputs, returns))

    def stream(
        self, inputs: Iterable[ArrayLike], *, returns: Returns = None, ahead: int = 1
    ) -> Generator[StepResult, None, None]:
        """Run each of the inputs, (I) or (k,I), and give their results in order, over one WebSocket.

        It comes back after a cut and goes on behind the last answered step. ahead: how many inputs may be taken before
        the first is answered; 1 suits live inputs and inputs that depend on results, more hides the way to the service.
        Ask for one array (`returns="predictions"`) and it travels in binary, the fastest way. A stream that is left
        early waits for what is under way.
        """
        stream = Stream(self._progress, returns, ahead)
        with closing(_Link(self._client, stream)) as link:
            try:
                for each in inputs:
                    stream.take(each)
                    while not stream.room:
                        yield from link.exchange()
                while not stream.idle:
                    yield from link.exchange()
            except (Exception, GeneratorExit):  # the inputs failed, or it is left early
                stream.leave()
                while not stream.idle:
                    link.exchange()
                raise
            finally:
                stream.give_up()

    def snapshot(self) -> Snapshot:
        """The state now, which `Client.restore` takes."""
        return self._client.send(self._progress.snapshot())

    def fork(self, *, keep: bool = False) -> "Session":
        """A new session from this one's state, at step 0."""
        return Session(self._client, self._client.send(self._progress.fork()), keep=keep)

    def reset(self) -> None:
        """Back to the state that the session was opened with; the count of steps goes on.

        If the answer is lost, ConnectionLost is raised and nothing repeated: call it again.
        """
        self._client.send(self._progress.reset())

    def close(self) -> None:
        """End the session; one that has ended already is no error."""
        with suppress(SessionGone, SessionNotFound):
            self._client.send(self._progress.close())


class _Link:
    """The connection of a stream, which may be another one after every failure."""

    def __init__(self, client: "Client", stream: Stream) -> None:
        self._client = client
        self._stream = stream
        self._patience = client.patience()
        self._open = ExitStack()
        self._connection: ClientConnection | None = None

    def exchange(self) -> list[StepResult]:
        """Send what may be sent and take one message; connect again as often as it needs."""
        while True:
            try:
                if self._connection is None:
                    self._connection = self._open.enter_context(self._client.connect())
                    self._stream.connected()
                with suppress(ConnectionClosed):  # what came before the end can still be received, and says why
                    for frame in self._stream.to_send():
                        self._connection.send(frame)
                results = self._stream.receive(self._connection.recv(self._client.address.timeout))
            except STREAM_FAILURES as failure:
                self.close()
                try:
                    delay = self._patience.delay(self._client.address.broken_off(failure))
                except ClientError:
                    self._stream.give_up()
                    raise
                time.sleep(delay)
            else:
                self._patience.renew()
                return results

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._connection = None
        self._open.close()
