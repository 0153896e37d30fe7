"""A service with keys: every call needs one, and a session belongs to the key that opened it."""

import numpy as np
import pytest

from rnn_client import Session, SessionNotFound, Unauthorized
from rnn_client.async_session import AsyncSession
from tests.e2e.running import start

INPUTS = np.ones((3, 4), np.float32)


@pytest.fixture(scope="module")
def guarded(repository, tmp_path_factory):
    running = start(repository, tmp_path_factory.mktemp("guarded"), api_keys="ours,theirs")
    yield running
    running.stop()


def test_key_opens_every_call(connect, guarded):
    client = connect(guarded.url, api_key="ours")
    whole = client.forward(INPUTS, "gru").outputs
    with client.session("gru") as session:
        np.testing.assert_array_equal(session.step(INPUTS[0]).outputs, whole[0])
        streamed = [result.outputs for result in session.stream(INPUTS[1:])]
        np.testing.assert_array_equal(streamed, whole[1:])


def test_calls_without_key_are_refused(connect, guarded):
    stranger = connect(guarded.url)
    with connect(guarded.url, api_key="ours").session("gru") as session:
        with pytest.raises(Unauthorized):
            stranger.forward(INPUTS, "gru")
        with pytest.raises(Unauthorized):
            stranger.attach(session.id)
        found = AsyncSession(stranger._async._caller, session._async._progress, keep=True)
        with pytest.raises(Unauthorized):
            list(Session(found).stream(INPUTS))


def test_session_of_another_key_is_not_found(connect, guarded):
    with connect(guarded.url, api_key="ours").session("gru") as session, pytest.raises(SessionNotFound):
        connect(guarded.url, api_key="theirs").attach(session.id)
