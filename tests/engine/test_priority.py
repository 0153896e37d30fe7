"""Compute threads stand back; the thread of the event loop does not."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.engine.priority import NICENESS, stand_back


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities are those of whole processes")
def test_only_the_thread_that_asks_stands_back():
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with ThreadPoolExecutor(1, initializer=stand_back) as pool:
        there = pool.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result()
    assert there == min(before + NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
