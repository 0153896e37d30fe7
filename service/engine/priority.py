"""Threads that compute stand back where the event loop's thread wants a core: it has little to do, and others wait."""

import os
import sys
import threading

NICENESS = 5
"""Above that of the process: enough that a thread that wakes up goes first, and a third of a core stays to compute."""


def stand_back() -> None:
    """Lower the priority of the calling thread. Does nothing where priorities are those of whole processes."""
    if sys.platform == "linux":
        nice = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
