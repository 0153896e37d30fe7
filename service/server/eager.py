"""Running a coroutine here and now, and in a task only if it has to wait.

A task costs an object, two turns of the event loop and a callback, and a small request never waits for anything.
Python 3.12 has eager tasks for this; the code is written for 3.11 too.
"""

import asyncio
from collections.abc import Coroutine, Generator
from functools import partial
from types import coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def start(running: Coroutine[Any, None, T]) -> tuple[T, None] | tuple[None, Coroutine[Any, None, T]]:
    """Run up to the end, and give the result; or up to the first wait, and give a coroutine that goes on from there.

    Before its first wait the coroutine runs outside of any task, so it must not ask for one: `asyncio.timeout` does.
    What it raises meanwhile is raised here.
    """
    try:
        awaited = running.send(None)
    except StopIteration as end:
        return end.value, None
    _set_awaited(awaited, False)
    return None, _rest(running, awaited)


@coroutine
def _rest(running: Coroutine[Any, None, T], awaited: Any) -> Generator[Any, Any, T]:
    """What is left of a coroutine that waits for a future, or for the next turn (None)."""
    _set_awaited(awaited, True)
    while True:
        go_on = partial(running.send, None)
        try:
            yield awaited
        except GeneratorExit:
            running.close()
            raise
        except BaseException as error:
            go_on = partial(running.throw, error)
        try:
            awaited = go_on()
        except StopIteration as end:
            value: T = end.value
            return value


def _set_awaited(awaited: Any, now: bool) -> None:
    """The mark by which a task tells a future that is awaited from one that is yielded, for one await at a time.

    The future has set it; until the task is there to see it, others may await the same future.
    """
    if isinstance(awaited, asyncio.Future):
        awaited._asyncio_future_blocking = now  # noqa: SLF001
