"""What is taken on, and what is refused."""

import pytest

from service.errors import ServiceFull
from service.serving.admission import Admission


def test_requests_are_counted_and_given_back():
    admission = Admission(2, 1000)
    with admission.enter(10), admission.enter(20):
        assert (admission.requests, admission.bytes) == (2, 30)
        with pytest.raises(ServiceFull, match="2 requests are under way"), admission.enter(1):
            pass
    assert (admission.requests, admission.bytes) == (0, 0)


def test_bytes_are_bounded_but_one_body_is_always_taken():
    admission = Admission(9, 100)
    with admission.enter(500):
        with pytest.raises(ServiceFull), admission.enter(1):
            pass
        assert admission.bytes == 500


def test_a_failure_gives_back_too():
    admission = Admission(1, 1)
    with pytest.raises(KeyError), admission.enter(1):
        raise KeyError
    assert admission.requests == 0
