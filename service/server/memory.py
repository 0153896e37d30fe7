"""How the C library takes memory."""

import ctypes
from contextlib import suppress

_M_ARENA_MAX = -8
ARENAS = 2


def share_arenas() -> None:
    """Let all threads take memory from a few arenas: glibc gives each its own, and keeps what each had at its largest.

    Source: mallopt(3). Does nothing where the C library is another.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, ARENAS)
