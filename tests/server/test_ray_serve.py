"""The builder of Ray Serve's application: which arguments and variables it takes."""

import pytest

from service.settings import Settings

pytest.importorskip("ray.serve")

from service.server.ray_serve import build  # it imports ray

VALKEY = "valkey://127.0.0.1:6379/0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def built(**arguments) -> Settings:
    """The settings that replicas get."""
    deployment = build(arguments)._bound_deployment
    (settings,) = deployment.init_args
    return settings


def test_arguments_are_settings():
    settings = built(session_store=VALKEY, models="/models", preload="a,b", max_queued_requests="7")
    assert (str(settings.models), settings.preload, settings.max_queued_requests) == ("/models", ("a", "b"), 7)


def test_arguments_go_before_variables(monkeypatch):
    monkeypatch.setenv("RNN_SESSION_STORE", VALKEY)
    monkeypatch.setenv("RNN_SHUTDOWN_SECONDS", "5")
    monkeypatch.setenv("RNN_ENGINE", "torch")
    monkeypatch.setenv("RNN_WORKERS", "4")  # of a service that listens itself
    settings = built(engine="native")
    assert (settings.session_store, settings.shutdown_seconds) == (VALKEY, 5)
    assert (settings.engine, settings.workers) == ("native", 1)


@pytest.mark.parametrize("store", [None, "memory://", "sqlite:///sessions.db"])
def test_stores_of_one_machine_are_refused(store):
    with pytest.raises(ValueError, match=r"set session_store, or RNN_SESSION_STORE, to valkey://host:port/0"):
        build({"session_store": store} if store else {})


@pytest.mark.parametrize("name", ["host", "port", "workers"])
def test_what_is_for_ray_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: Ray has its own settings for this"):
        build({"session_store": VALKEY, name: 1})


def test_unknown_argument_is_named():
    with pytest.raises(ValueError, match=r"^modles: no such setting"):
        build({"session_store": VALKEY, "modles": "/models"})


def test_wrong_value_does_not_show_the_password():
    with pytest.raises(ValueError, match="session_store") as refused:
        build({"session_store": "mysql://user:secret@host"})
    assert "secret" not in str(refused.value)
