"""The faults of `make chaos`, small: with every durable store, nothing is lost and nothing runs twice."""

import pytest

from tests.chaos.__main__ import set_up
from tests.chaos.faults import Load, killed_service, racing_processes, stopped_store, told_to_stop
from tests.chaos.servers import NAME

LOAD = Load(sessions=40, steps=12, connections=8, kills=2)

pytestmark = pytest.mark.integration
needs_a_server = pytest.mark.skipif(NAME is None, reason="neither valkey-server nor redis-server is on the PATH")


@pytest.fixture(params=["sqlite", pytest.param("valkey", marks=needs_a_server)])
def store(request):
    return request.param


@pytest.mark.parametrize("fault", [killed_service, told_to_stop])
def test_ended_process_loses_no_answered_step(store, fault):
    with set_up(store, {}) as (deployment, _):
        fault(deployment, LOAD)


def test_racing_workers_count_every_step(store):
    with set_up(store, {"workers": 2}) as (deployment, _):
        racing_processes(deployment, 400)


@needs_a_server
def test_restarted_store_loses_nothing():
    with set_up("valkey", {}) as (deployment, server):
        stopped_store(deployment, LOAD, server)
