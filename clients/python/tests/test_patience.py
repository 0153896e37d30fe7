"""When a failure is worth another try, and how long to wait for it."""

import logging

import pytest

from rnn_client import ConnectionLost, InvalidRequest, ModelFailed, ServiceError, StreamClosed
from rnn_client.patience import FIRST_SECONDS, LONGEST_SECONDS, Patience

LOST = ConnectionLost("no answer")


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def patience(seconds=1000.0, clock=None, uniform=lambda _, most: most):
    return Patience(seconds, clock or Clock(), uniform)


def refused(status, **problem):
    return ServiceError({"status": status, "detail": "no", **problem})


def test_waits_double_up_to_a_limit_and_start_anew_after_success():
    waiting = patience()
    delays = [waiting.delay(LOST) for _ in range(9)]
    assert delays[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert delays[-1] == LONGEST_SECONDS
    waiting.renew()
    assert waiting.delay(LOST) == FIRST_SECONDS


def test_waits_are_scattered_between_half_and_all():
    assert patience(uniform=lambda least, most: least).delay(LOST) == FIRST_SECONDS / 2


def test_the_service_says_how_long():
    busy = ServiceError({"status": 429, "detail": "full"}, retry_after=3.0)
    assert patience(uniform=lambda least, _: least).delay(busy) == 3.0
    assert patience().delay(busy) == 3.75


def test_it_gives_up_when_the_next_try_would_come_too_late():
    clock = Clock()
    waiting = patience(1.0, clock)
    waiting.delay(LOST)
    clock.now += 0.95
    with pytest.raises(ConnectionLost):
        waiting.delay(LOST)
    with pytest.raises(ConnectionLost):
        patience(0.0).delay(LOST)


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_what_may_go_better_later_is_tried_again(status):
    assert patience().delay(refused(status)) > 0


@pytest.mark.parametrize(
    "error",
    [
        refused(400),
        refused(409),
        refused(500),
        InvalidRequest({"status": 422}),
        ModelFailed({"status": 503}),
        StreamClosed(1008, "no"),
    ],
)
def test_what_will_not_go_better_is_raised(error):
    with pytest.raises(type(error)):
        patience().delay(error)


def test_a_call_that_must_not_act_late_is_repeated_only_once_its_fate_is_known():
    for unknown in (LOST, refused(502), refused(504)):
        with pytest.raises(type(unknown)):
            patience().delay(unknown, repeatable=False)
    for known in (ConnectionLost("refused", settled=True), refused(503), refused(429)):
        assert patience().delay(known, repeatable=False) > 0


def test_it_says_that_it_tries_again(caplog):
    with caplog.at_level(logging.WARNING, "rnn_client"):
        patience().delay(LOST)
    assert caplog.messages == ["no answer; trying again in 0.05 s"]
