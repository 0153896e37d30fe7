"""Throwing away what a client still sends, inside the kernel: nothing is copied."""

import ctypes
import socket
import sys

# Not CDLL: a call that waits for nothing is over sooner than the GIL changes hands.
_recv = ctypes.PyDLL(None).recv
_recv.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_recv.restype = ctypes.c_ssize_t

_FLAGS = socket.MSG_TRUNC | socket.MSG_DONTWAIT

MOST_AT_ONCE = 2**20
"""Bytes of one call: a millisecond's tenth."""


def discard(descriptor: int, size: int) -> int:
    """Take up to `size` bytes that a TCP socket has received; returns how many there were, 0 also for an end or error.

    Where the kernel cannot (only Linux can), 0: they are to be read, then.
    """
    if sys.platform != "linux":
        return 0
    return max(int(_recv(descriptor, None, min(size, MOST_AT_ONCE), _FLAGS)), 0)
