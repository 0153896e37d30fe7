"""Every store that there is, opened and empty."""

from contextlib import asynccontextmanager

import pytest
from valkey import Valkey

from service.stores import store_from
from tests.e2e.models import write_model
from tests.e2e.running import replicas
from tests.loop import in_loop
from tests.stores.servers import PROGRAM, Server

MODEL = "lstm-proj"
VALKEY = pytest.param("valkey", marks=pytest.mark.integration)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One server for all tests that leave it running."""
    if PROGRAM is None:
        pytest.skip("neither valkey-server nor redis-server is on the PATH")
    server = Server(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["memory", "sqlite", VALKEY])
def kind(request):
    return request.param


@pytest.fixture(params=["sqlite", VALKEY])
def durable_kind(request):
    return request.param


@pytest.fixture
def url_of(tmp_path, request):
    """The URL of an empty store of a kind."""

    def url(kind):
        if kind == "memory":
            return "memory://"
        if kind == "sqlite":
            number = len(list(tmp_path.glob("*.db")))
            return f"sqlite:///{tmp_path}/{number}.db"
        server = request.getfixturevalue("server")
        with Valkey.from_url(server.url) as client:
            client.flushall()
        return server.url

    return url


@pytest.fixture
def services(kind, url_of, tmp_path):
    """Two services on one store; of memory one service, taken for both."""
    write_model(tmp_path / "models", MODEL)
    count = 1 if kind == "memory" else 2
    with replicas(tmp_path / "models", tmp_path, count=count, session_store=url_of(kind)) as started:
        yield started * (2 // count)


@asynccontextmanager
async def opened(url, max_ended=1000):
    store = store_from(url, max_ended=max_ended)
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def on_each_store(**options):
    """Run a coroutine function as a test, with an opened, empty store of each kind."""

    def decorate(test):
        @in_loop
        async def run(kind, url_of):
            async with opened(url_of(kind), **options) as store:
                await test(store)

        run.__doc__ = test.__doc__
        return run

    return decorate
