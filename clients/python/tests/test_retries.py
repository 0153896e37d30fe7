"""When a failure is worth another try, and how long to wait for it."""

import logging

import pytest

from rnn_client import ConnectionLost, InvalidRequest, ModelFailed, ServiceError, StreamClosed
from rnn_client.retries import FIRST_SECONDS, LONGEST_SECONDS, Retries

LOST = ConnectionLost("no answer")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def retries(seconds=1000.0, clock=None, uniform=lambda _, most: most):
    return Retries(seconds, clock or Clock(), uniform)


def refused(status, **problem):
    return ServiceError({"status": status, "detail": "no", **problem})


def test_delays_double_up_to_limit():
    tries = retries()
    delays = [tries.delay(LOST) for _ in range(9)]
    assert delays[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert delays[-1] == LONGEST_SECONDS
    tries.succeeded()
    assert tries.delay(LOST) == FIRST_SECONDS


def test_delays_vary_between_half_and_whole():
    assert retries(uniform=lambda least, most: least).delay(LOST) == FIRST_SECONDS / 2


def test_retry_after_is_kept():
    busy = ServiceError({"status": 429, "detail": "full"}, retry_after=3.0)
    assert retries(uniform=lambda least, _: least).delay(busy) == 3.0
    assert retries().delay(busy) == 3.75


def test_gives_up_when_next_try_is_too_late():
    clock = Clock()
    tries = retries(1.0, clock)
    tries.delay(LOST)
    clock.now += 0.95
    with pytest.raises(ConnectionLost):
        tries.delay(LOST)
    with pytest.raises(ConnectionLost):
        retries(0.0).delay(LOST)


def test_transient_errors_are_retried():
    for error in (LOST, StreamClosed(1011, ""), *map(refused, (408, 429, 502, 503, 504))):
        assert retries().delay(error) > 0


def test_lasting_errors_are_raised():
    lasting = [InvalidRequest({"status": 422}), ModelFailed({"status": 503}), StreamClosed(1008, "no")]
    for error in (*lasting, *map(refused, (400, 409, 500))):
        with pytest.raises(type(error)):
            retries().delay(error)


def test_unrepeatable_call_is_retried_only_if_settled():
    for unknown in (LOST, refused(502), refused(504)):
        with pytest.raises(type(unknown)):
            retries().delay(unknown, repeatable=False)
    for known in (ConnectionLost("refused", settled=True), refused(503), refused(429)):
        assert retries().delay(known, repeatable=False) > 0


def test_retry_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "rnn_client"):
        retries().delay(LOST)
    assert caplog.messages == ["no answer; trying again in 0.05 s"]
