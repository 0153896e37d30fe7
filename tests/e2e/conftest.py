"""Service processes: one shared by most tests, one with short time-outs, and one per test where settings differ."""

import pytest

from .browser import Browser
from .models import write_repository
from .running import ROOT, start

ADMIN_KEY = "the-admin-key"
SIGNED_KEY = "a key/with+signs"


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def service(repository, tmp_path_factory):
    """The shared service, with limits that a test can exceed. Stopping it checks its exit code and its log."""
    running = start(
        repository,
        tmp_path_factory.mktemp("service"),
        admin_keys=ADMIN_KEY,
        max_body_bytes=4 * 2**20,
        max_input_values=1_000_000,
        max_reply_values=400_000,
        heartbeat_seconds=300,  # clients that speak WebSocket by hand answer no pings
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def short_timeouts(repository, tmp_path_factory):
    """A service with time-outs of 1 or 2 s."""
    running = start(
        repository,
        tmp_path_factory.mktemp("short-timeouts"),
        header_timeout_seconds=1,
        body_timeout_seconds=1,
        min_bytes_per_second=1000,
        stream_idle_seconds=2,
        keep_alive_seconds=2,
        max_body_bytes=64 * 2**20,
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def guarded(repository, tmp_path_factory):
    """A service with keys and allowed origins, one compute thread, and eight places for forwards."""
    running = start(
        repository,
        tmp_path_factory.mktemp("guarded"),
        api_keys=f"one,two,{SIGNED_KEY}",
        admin_keys=ADMIN_KEY,
        allowed_origins="https://lab.example, https://other.example",
        compute_threads=1,
        max_queued_requests=8,
    )
    yield running
    running.stop()


@pytest.fixture(scope="session")
def bundled(tmp_path_factory):
    """The bundled models, served."""
    running = start(ROOT / "models", tmp_path_factory.mktemp("bundled"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def window(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def browser(window):
    """A window in which nothing is open, and no complaint is left."""
    window.open("about:blank")
    window.console()
    window.requests()
    return window


@pytest.fixture
def launch(repository, tmp_path):
    """Start a service of the test's own."""
    started = []

    def launch_one(models=repository, **settings):
        started.append(start(models, tmp_path / f"service-{len(started)}", **settings))
        return started[-1]

    yield launch_one
    for running in started:
        running.stop()
