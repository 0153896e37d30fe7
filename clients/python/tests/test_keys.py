"""A service with keys: every way in needs one, and a session is for the key that opened it."""

import asyncio

import numpy as np
import pytest

from rnn_client import AsyncClient, AsyncSession, Client, Session, SessionNotFound, Unauthorized
from rnn_client.progress import Progress
from tests.e2e.running import start

INPUTS = np.ones((3, 4), np.float32)


@pytest.fixture(scope="module")
def guarded(repository, tmp_path_factory):
    running = start(repository, tmp_path_factory.mktemp("guarded"), api_keys="ours,theirs")
    yield running
    running.stop()


def test_a_key_opens_every_call(connect, guarded):
    client = connect(guarded.url, api_key="ours")
    whole = client.forward(INPUTS, "gru").outputs
    with client.session("gru") as session:
        np.testing.assert_array_equal(session.step(INPUTS[0]).outputs, whole[0])
        streamed = [result.outputs for result in session.stream(INPUTS[1:])]
        np.testing.assert_array_equal(streamed, whole[1:])


def test_without_a_key_nothing_is_open(connect, guarded):
    stranger = connect(guarded.url)
    session = connect(guarded.url, api_key="ours").session("gru")
    with pytest.raises(Unauthorized):
        stranger.forward(INPUTS, "gru")
    with pytest.raises(Unauthorized):
        stranger.attach(session.id)
    session.close()


def test_a_session_of_another_key_is_not_found(connect, guarded):
    with connect(guarded.url, api_key="ours").session("gru") as session, pytest.raises(SessionNotFound):
        connect(guarded.url, api_key="theirs").attach(session.id)


def test_a_stream_needs_the_key_too(guarded):
    progress = Progress("some-session", "gru", "1", 0)
    with Client(guarded.url, api_key="wrong") as client, pytest.raises(Unauthorized):
        list(Session(client, progress, keep=True).stream(INPUTS))

    async def stream_of_async_client():
        async with AsyncClient(guarded.url, api_key="wrong") as client:
            async for _ in AsyncSession(client, progress, keep=True).stream(INPUTS):
                pass

    with pytest.raises(Unauthorized):
        asyncio.run(stream_of_async_client())
