"""Workers that share a port get about as many connections each, also when these come together."""

from contextlib import ExitStack

import psutil
import pytest

from .raw import Wire, post
from .running import start, until
from .test_workers import workers_of

BODY = b'{"model":"tanh","inputs":[1,2,3,4]}'


def held(service):
    """Open connections of each worker, fewest first."""
    counts = [
        sum(found.status == psutil.CONN_ESTABLISHED for found in worker.net_connections("tcp"))
        for worker in workers_of(service)
    ]
    return sorted(counts)


@pytest.fixture(scope="module")
def two(repository, tmp_path_factory):
    """A service of two workers, both of which take connections."""
    running = start(repository, tmp_path_factory.mktemp("two"), workers=2, session_store="sqlite:///sessions.db")
    with ExitStack() as wires:
        until(
            lambda: wires.enter_context(Wire(running)) and len(held(running)) == 2 and held(running)[0],
            "both serve",
            60,
        )
    yield running
    running.stop()


@pytest.mark.parametrize("count", [2, 4, 8, 16, 300])
def test_connections_that_come_together_are_shared_out(two, count):
    until(lambda: sum(held(two)) == 0, "the connections before have gone")
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(two)) for _ in range(count)]
        until(lambda: sum(held(two)) == count, "all are taken")
        assert held(two)[0] >= count // 4
        for wire in wires[:8]:
            wire.send(post("/cell/step", BODY))
        assert {wire.reply().status for wire in wires[:8]} == {200}
