"""When to try again, and when to give up. Nothing here waits: the transport does.

A stream starts counting anew with every answer, which libraries for retries cannot do.
"""

import logging
import random
import time
from collections.abc import Callable

from rnn_client.errors import ClientError

FIRST_SECONDS = 0.05
LONGEST_SECONDS = 5.0

_log = logging.getLogger("rnn_client")


class Retries:
    """Exponential back-off with jitter, for at most `seconds` from the first failure on."""

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._seconds = seconds
        self._clock = clock
        self._uniform = uniform
        self._failures = 0
        self._deadline = 0.0

    def succeeded(self) -> None:
        """The next failure counts as the first one."""
        self._failures = 0

    def delay(self, error: ClientError, *, repeatable: bool = True) -> float:
        """Seconds to wait before the next try. Raises the error if a try would not help, or would come too late.

        repeatable: whether the request may act twice, at any later time, without harm.
        """
        if not error.transient or not (repeatable or error.settled):
            raise error
        now = self._clock()
        if self._failures == 0:
            self._deadline = now + self._seconds
        if error.retry_after is None:
            longest = min(LONGEST_SECONDS, FIRST_SECONDS * 2**self._failures)
            delay = self._uniform(longest / 2, longest)
        else:  # never sooner than asked, and not all clients at once
            delay = error.retry_after * self._uniform(1.0, 1.25)
        if now + delay > self._deadline:
            raise error
        self._failures += 1
        _log.warning("%s; trying again in %.2g s", error, delay)
        return delay
