"""What is taken on, and what is refused."""

import asyncio
from contextlib import ExitStack

import pytest

from service.errors import ClientFull, ServiceFull
from service.serving.admission import Admission


def test_requests_are_counted_and_given_back():
    admission = Admission(2, 1000)
    with admission.enter("a", 10), admission.enter("a", 20):
        assert (admission.requests, admission.bytes) == (2, 30)
        with pytest.raises(ServiceFull, match="2 requests are under way"), admission.enter("a", 1):
            pass
    assert (admission.requests, admission.bytes) == (0, 0)


def test_bytes_are_bounded_but_one_body_is_always_taken():
    admission = Admission(9, 100)
    with admission.enter("a", 500):
        with pytest.raises(ServiceFull), admission.enter("a", 1):
            pass
        assert admission.bytes == 500


def test_a_failure_gives_back_too():
    admission = Admission(1, 1)
    with pytest.raises(KeyError), admission.enter("a", 1):
        raise KeyError
    assert admission.requests == 0


def test_one_client_leaves_places_for_the_others():
    admission = Admission(4, 1000)
    with admission.enter("a", 1), admission.enter("a", 1), admission.enter("a", 1):
        with pytest.raises(ClientFull, match="3 of this client's requests"):
            admission.check("a", 1)
        with admission.enter("b", 1), pytest.raises(ServiceFull):
            admission.check("b", 1)
        admission.check("b", 1)
    admission.check("a", 1)


@pytest.mark.parametrize("most", range(1, 9))
def test_nothing_is_refused_before_it_is_crowded(most):
    admission = Admission(most, 100)
    with ExitStack() as stack:
        while not admission.crowded:
            admission.check("a", 50)
            stack.enter_context(admission.enter("a", 1))
    assert admission.requests == 0


def test_places_are_kept_for_heads_that_are_read_in_one_turn():
    admission = Admission(3, 1000)

    async def main():
        admission.keep("a", 10)
        admission.keep("b", 20)
        assert (admission.requests, admission.bytes) == (2, 30)
        admission.keep("c", 5)
        with pytest.raises(ServiceFull, match="3 requests are under way"):
            admission.keep("d", 1)
        with admission.enter("b", 20), admission.enter("a", 10):
            assert (admission.requests, admission.bytes) == (3, 35)  # theirs, not places beside them
        assert (admission.requests, admission.bytes) == (1, 5)

    asyncio.run(main())


def test_a_kept_place_is_there_in_the_next_turn_and_given_up_after_it():
    admission = Admission(1, 1000)

    async def handler():
        with admission.enter("a", 10):
            return admission.requests

    async def main():
        admission.keep("a", 10)
        assert await asyncio.create_task(handler()) == 1
        assert admission.requests == 0
        admission.keep("a", 10)  # and nobody comes
        for _ in range(3):
            await asyncio.sleep(0)
        assert (admission.requests, admission.bytes) == (0, 0)
        admission.check("a", 10)

    asyncio.run(main())
