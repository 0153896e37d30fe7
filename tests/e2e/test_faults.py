"""The faults of `make chaos`, small: nothing is lost and nothing runs twice."""

import pytest

from tests.chaos.__main__ import plan, set_up
from tests.chaos.faults import Load

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("fault", plan(Load(sessions=40, steps=12, connections=8, kills=2), races=400), ids=str)
def test_fault_loses_nothing(fault):
    with set_up(fault) as (deployment, server):
        fault.run(deployment, server)
