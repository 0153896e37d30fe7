"""Runs one piece of work on several threads at once, the caller's own among them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


class Crew:
    """Up to `size` threads, the caller's included. The others are started when first needed and sleep when idle."""

    def __init__(self, size: int) -> None:
        self.size = max(size, 1)
        # The pool's threads end when it is collected with the engine that owns it.
        self._others = ThreadPoolExecutor(max(self.size - 1, 1), thread_name_prefix="rnn-kernel")

    def run(self, works: Sequence[Callable[[], object]]) -> None:
        """Run at most `size` works that share one task; return when the task is done.

        A work that no thread has begun when the caller's own has returned is dropped: nothing was left for it to do.
        """
        futures = [self._others.submit(work) for work in works[1:]]
        works[0]()
        for future in futures:
            if not future.cancel():
                future.result()
