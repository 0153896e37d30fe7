"""The blocking client and session.

They run the coroutines of AsyncClient and AsyncSession over a blocking transport. Such a coroutine never suspends, so
one `send` runs it to its end, and no event loop is needed.
"""

import ssl
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from numpy.typing import ArrayLike

from rnn_client.async_client import AsyncClient
from rnn_client.async_session import AsyncSession, Opening
from rnn_client.generation import GenerateResult
from rnn_client.results import StepResult
from rnn_client.tensors import Returns
from rnn_client.transports import BlockingTransport

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")
Method = Callable[Concatenate[Any, Arguments], Answer]


def _run(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    try:
        coroutine.send(None)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
    coroutine.close()
    raise RuntimeError(f"{coroutine} waits for an event loop; use AsyncClient")


def _blocking(method: Method[Arguments, Coroutine[Any, Any, Answer]]) -> Method[Arguments, Answer]:
    """A blocking method of a coroutine method."""

    @wraps(method)
    def call(self: Any, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> Answer:
        return _run(method(self._async, *arguments, **options))

    return call


def _opening(method: Method[Arguments, Opening]) -> Method[Arguments, "Session"]:
    """A blocking method of one that opens an AsyncSession."""

    @wraps(method)
    def call(self: Any, /, *arguments: Arguments.args, **options: Arguments.kwargs) -> "Session":
        return Session(_run(method(self._async, *arguments, **options).open()))

    vars(call)["__signature__"] = signature(method).replace(return_annotation="Session")  # for help()
    return call


def _each(results: AsyncGenerator[Answer, None]) -> Generator[Answer, None, None]:
    async def following() -> Answer | None:
        return await anext(results, None)

    try:
        while (result := _run(following())) is not None:
            yield result
    finally:
        _run(results.aclose())


class Session:
    """A stream of steps whose state the service keeps; for one thread at a time.

    Steps are numbered: what is lost on the way is sent again, and runs once. `id` is what the client's `attach` takes:
    whoever has it and the key can go on with the session.
    """

    def __init__(self, session: AsyncSession) -> None:
        self._async = session
        self.id, self.model, self.version = session.id, session.model, session.version

    @property
    def done(self) -> int:
        """Number of the last step that was answered."""
        return self._async.done

    def __enter__(self) -> Self:
        return self

    def stream(
        self, inputs: Iterable[ArrayLike], *, returns: Returns = None, ahead: int = 1
    ) -> Generator[StepResult, None, None]:
        """Run each of the inputs, (I) or (k,I), and give their results in order, over one WebSocket.

        As `AsyncSession.stream`; leave it early inside `contextlib.closing`, so that it is left at once.
        """
        yield from _each(self._async.stream(iter(inputs), returns=returns, ahead=ahead))

    __exit__ = _blocking(AsyncSession.__aexit__)
    step = _blocking(AsyncSession.step)
    generate = _blocking(AsyncSession.generate)
    snapshot = _blocking(AsyncSession.snapshot)
    fork = _opening(AsyncSession.fork)
    reset = _blocking(AsyncSession.reset)
    close = _blocking(AsyncSession.close)


class Client:
    """A service at an address; may be used from several threads.

    Arguments and calls are those of AsyncClient; sessions are of type Session.
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
        self._async = AsyncClient(
            url,
            api_key,
            timeout=timeout,
            retry_seconds=retry_seconds,
            ssl_context=ssl_context,
            _transport=BlockingTransport,
        )

    def __enter__(self) -> Self:
        return self

    @wraps(AsyncClient.generate_stream)
    def generate_stream(self, *arguments: Any, **options: Any) -> Generator[GenerateResult, None, None]:
        yield from _each(self._async.generate_stream(*arguments, **options))

    __exit__ = _blocking(AsyncClient.__aexit__)
    close = _blocking(AsyncClient.close)
    forward = _blocking(AsyncClient.forward)
    generate = _blocking(AsyncClient.generate)
    step = _blocking(AsyncClient.step)
    models = _blocking(AsyncClient.models)
    model = _blocking(AsyncClient.model)
    session = _opening(AsyncClient.session)
    attach = _opening(AsyncClient.attach)
    restore = _opening(AsyncClient.restore)
