"""The load on one core and the server on all others, so that neither takes the other's time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.servers import Server


def others(cores: set[int]) -> set[int]:
    """The server's cores: all but the last, which is the load's; of a single one both have to live."""
    return cores - {max(cores)} or cores


def apart(server: Server) -> Server:
    """The server, started on its own cores; how many threads it makes of that is its business."""
    cores = ",".join(map(str, sorted(others(os.sched_getaffinity(0)))))
    return replace(server, command=("taskset", "--cpu-list", cores, *server.command))


@contextmanager
def on_the_last_core() -> Iterator[None]:
    """Move this process, and the load that it starts, to the load's core; servers are to be started before."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
