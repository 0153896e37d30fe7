"""A real service, and both clients as one: each test runs with the blocking client and with the async one."""

import pytest
from cutting import Cutter
from driving import open_client

from tests.e2e.models import write_repository
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
def connect(request):
    """Make a client of a URL; all are closed in the end."""
    opened = []

    def connect_to(url, **options):
        opened.append(open_client(request.param, url, **options))
        return opened[-1]

    yield connect_to
    for client in opened:
        client.close()


@pytest.fixture
def client(connect, service):
    return connect(service.url)


@pytest.fixture
def cutter(service):
    """A way to the service whose connections break at random moments."""
    with Cutter(service.port) as running:
        yield running
