"""A real service, and both clients with the same methods: each test runs with the blocking and with the async one."""

import asyncio
from contextlib import ExitStack

import numpy as np
import pytest
from cutting import Cutter

import rnn_client.client
from rnn_client.transports import AsyncTransport
from tests.e2e.models import SPECS, write_repository
from tests.e2e.running import start


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(repository, tmp_path_factory):
    running = start(repository, tmp_path_factory.mktemp("service"))
    yield running
    running.stop()


@pytest.fixture(params=["blocking", "async"])
def connect(request, monkeypatch):
    """Make a client of a URL. "async": an event loop runs the async client's coroutines, over the async transport."""
    with ExitStack() as stack:
        if request.param == "async":
            runner = stack.enter_context(asyncio.Runner())
            monkeypatch.setattr(rnn_client.client, "_run", runner.run)
            monkeypatch.setattr(rnn_client.client, "BlockingTransport", AsyncTransport)
        yield lambda url, **options: stack.enter_context(rnn_client.Client(url, **options))


@pytest.fixture
def client(connect, service):
    return connect(service.url)


@pytest.fixture
def cutter(service):
    """A way to the service whose connections break after random numbers of bytes."""
    with Cutter(service.port) as running:
        yield running


@pytest.fixture
def row():
    """Make a random sequence (T,I) for a model."""
    random = np.random.default_rng(7)
    return lambda name, length: random.normal(size=(length, SPECS[name].input_size)).astype(np.float32)


@pytest.fixture
def begin(client, row):
    """Open a session of a model; give it, random inputs (T,I), and the result of the whole sequence."""
    with ExitStack() as stack:

        def begin_session(name, length):
            inputs = row(name, length)
            return stack.enter_context(client.session(name)), inputs, client.forward(inputs, name)

        yield begin_session
