"""How the C library hands memory back."""

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


def give_back() -> None:
    """Return free memory to the system; takes some milliseconds. Source: malloc_trim(3)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
