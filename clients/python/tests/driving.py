"""The async client with the blocking one's calls, so that one test says what both of them do."""

import asyncio
import inspect
from contextlib import contextmanager

from rnn_client import AsyncClient, AsyncSession, Client
from rnn_client.async_session import Opening


def open_client(kind, url, **options):
    if kind == "blocking":
        return Client(url, **options)
    runner = asyncio.Runner()

    async def make():
        return AsyncClient(url, **options)

    return Driven(runner.run(make()), runner, owns_runner=True)


class Driven:
    """An object whose coroutines are run to their end by the call that makes them."""

    def __init__(self, driven, runner, *, owns_runner=False):
        self._driven = driven
        self._runner = runner
        self._owns_runner = owns_runner

    def __getattr__(self, name):
        attribute = getattr(self._driven, name)
        return self._result_of(attribute) if callable(attribute) else attribute

    def _result_of(self, method):
        def call(*arguments, **options):
            result = method(*arguments, **options)
            if inspect.isasyncgen(result):
                return self._iterate(result)
            if isinstance(result, Opening):
                return Driven(self._run(result), self._runner)
            return self._run(result) if inspect.isawaitable(result) else result

        return call

    def _run(self, awaitable):
        async def wait():
            return await awaitable

        return self._runner.run(wait())

    def _iterate(self, results):
        """Leaving this early closes the async generator, as `aclosing` would."""
        end = object()
        try:
            while (result := self._run(anext(results, end))) is not end:
                yield result
        finally:
            self._run(results.aclose())

    def close(self):
        self._run(self._driven.close())
        if self._owns_runner:
            self._runner.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if isinstance(self._driven, AsyncSession):
            self._run(self._driven.__aexit__(*error))
        else:
            self.close()


@contextmanager
def left_early(results):
    """Close a stream of results on the way out."""
    try:
        yield results
    finally:
        results.close()
