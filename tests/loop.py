"""Tests that are coroutines."""

import asyncio
from functools import wraps


def in_loop(test):
    """Run a coroutine function as a test, in an event loop of its own."""

    @wraps(test)
    def run(*args, **kwargs):
        asyncio.run(test(*args, **kwargs))

    return run
