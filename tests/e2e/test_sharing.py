"""Workers that share a port get about as many connections each, also when these come together."""

import signal
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
        sum(found.status != psutil.CONN_LISTEN for found in worker.net_connections("tcp"))
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
        # Beyond sixteen each, a worker takes several at a time.
        assert held(two)[0] >= (count // 2 if count <= 16 else count // 3)
        for wire in wires[:8]:
            wire.send(post("/cell/step", BODY))
        assert {wire.reply().status for wire in wires[:8]} == {200}


def test_a_worker_that_does_not_move_keeps_nobody_waiting(two):
    until(lambda: sum(held(two)) == 0, "the connections before have gone")
    still, other = workers_of(two)
    still.send_signal(signal.SIGSTOP)
    try:
        with ExitStack() as stack:
            wires = [stack.enter_context(Wire(two)) for _ in range(4)]
            until(lambda: len(other.net_connections("tcp")) >= 5, "the other one takes all; it listens, too")
            for wire in wires:
                wire.send(post("/cell/step", BODY))
            assert {wire.reply().status for wire in wires} == {200}
    finally:
        still.send_signal(signal.SIGCONT)


def test_connections_are_shared_with_the_successor_of_a_worker_that_was_killed(two):
    until(lambda: sum(held(two)) == 0, "the connections before have gone")
    victim, other = workers_of(two)
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(two)) for _ in range(8)]
        until(lambda: sum(held(two)) == 8, "all are taken")
        victim.send_signal(signal.SIGKILL)
        until(lambda: len(set(workers_of(two)) - {victim, other}) == 1, "a new worker", 60)
        (successor,) = set(workers_of(two)) - {victim, other}

        def taken():
            wires.append(stack.enter_context(Wire(two)))
            return any(found.status == psutil.CONN_ESTABLISHED for found in successor.net_connections("tcp"))

        until(taken, "the new worker serves", 60)
