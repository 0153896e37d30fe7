"""When a failure is worth another try, and how long to wait for it."""

import logging

import pytest

from rnn_client import ConnectionLost, InvalidRequest, ModelFailed, ServiceError, StreamClosed
from rnn_client.calls import FIRST_SECONDS, LONGEST_SECONDS, Retries

LOST = ConnectionLost("no answer")


def refused(status, retry_after=None):
    return ServiceError({"status": status, "detail": "no"}, retry_after)


def test_delays_double_up_to_limit_and_vary():
    tries = Retries(1000)
    for longest in (FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS):
        assert longest / 2 <= tries.delay(LOST) <= longest
    assert LONGEST_SECONDS / 2 <= max(tries.delay(LOST) for _ in range(9)) <= LONGEST_SECONDS
    tries.succeeded()
    assert tries.delay(LOST) <= FIRST_SECONDS
    assert len({Retries(1000).delay(LOST) for _ in range(9)}) > 1


def test_retry_after_is_kept():
    assert all(3 <= Retries(1000).delay(refused(429, retry_after=3)) <= 3.75 for _ in range(9))


def test_gives_up_when_next_try_is_too_late(monkeypatch):
    now = 100.0
    monkeypatch.setattr("rnn_client.calls.monotonic", lambda: now)
    tries = Retries(1)
    tries.delay(LOST)
    now += 0.99
    with pytest.raises(ConnectionLost):
        tries.delay(LOST)
    with pytest.raises(ConnectionLost):
        Retries(0).delay(LOST)


def test_transient_errors_are_retried():
    for error in (LOST, StreamClosed(1011, ""), *map(refused, (408, 429, 502, 503, 504))):
        assert Retries(1000).delay(error) > 0


def test_lasting_errors_are_raised():
    lasting = [InvalidRequest({"status": 422}), ModelFailed({"status": 503}), StreamClosed(1008, "no")]
    for error in (*lasting, *map(refused, (400, 409, 500))):
        with pytest.raises(type(error)):
            Retries(1000).delay(error)


def test_unrepeatable_call_is_retried_if_settled():
    for unknown in (LOST, refused(502), refused(504)):
        with pytest.raises(type(unknown)):
            Retries(1000).delay(unknown, repeatable=False)
    for known in (ConnectionLost("refused", settled=True), refused(503), refused(429)):
        assert Retries(1000).delay(known, repeatable=False) > 0


def test_retry_is_logged(caplog):
    with caplog.at_level(logging.WARNING, "rnn_client"):
        delay = Retries(1000).delay(LOST)
    assert caplog.messages == [f"no answer; trying again in {delay:.2g} s"]
