"""The faults of `make chaos`, small: with every durable store, nothing is lost and nothing runs twice."""

import pytest

from tests.chaos.__main__ import set_up
from tests.chaos.faults import Load, killed_service, racing_processes, stopped_store, told_to_stop
from tests.chaos.servers import NAME

LOAD = Load(sessions=40, steps=12, connections=8, harms=2)

needs_a_server = pytest.mark.skipif(NAME is None, reason="neither valkey-server nor redis-server is on the PATH")


@pytest.fixture(params=["sqlite", pytest.param("valkey", marks=needs_a_server)])
def store(request):
    return request.param


@pytest.mark.parametrize("fault", [killed_service, told_to_stop])
def test_no_answered_step_is_lost_when_the_process_ends(store, fault):
    with set_up(store, {}) as (stage, _):
        fault(stage, LOAD)


def test_two_workers_that_race_on_one_session_count_every_step(store):
    with set_up(store, {"workers": 2}) as (stage, _):
        racing_processes(stage, 400)


@needs_a_server
def test_a_store_that_goes_and_comes_back_loses_nothing():
    with set_up("valkey", {}) as (stage, server):
        stopped_store(stage, LOAD, server)
