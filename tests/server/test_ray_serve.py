"""The builder of Ray Serve's application: which arguments and variables it takes."""

import pytest

pytest.importorskip("ray.serve")

from service.server.ray_serve import build  # it imports ray

VALKEY = "valkey://127.0.0.1:6379/0"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no .env of the developer's


def test_arguments_go_before_variables(monkeypatch):
    monkeypatch.setenv("RNN_SESSION_STORE", VALKEY)
    monkeypatch.setenv("RNN_ENGINE", "torch")
    monkeypatch.setenv("RNN_WORKERS", "4")  # of a service that listens itself
    application = build({"engine": "native", "preload": "a,b", "max_queued_requests": "7"})
    (settings,) = application._bound_deployment.init_args
    assert (settings.preload, settings.max_queued_requests) == (("a", "b"), 7)
    assert (settings.session_store, settings.engine, settings.workers) == (VALKEY, "native", 1)


@pytest.mark.parametrize("store", [{}, {"session_store": "memory://"}, {"session_store": "sqlite:///sessions.db"}])
def test_stores_of_one_machine_are_refused(store):
    with pytest.raises(ValueError, match=r"set session_store, or RNN_SESSION_STORE, to valkey://host:port/0"):
        build(store)


@pytest.mark.parametrize("name", ["host", "port", "workers", "model_path"])
def test_argument_that_is_no_setting_is_named(name):
    with pytest.raises(ValueError, match=rf"^{name}: no such setting here"):
        build({"session_store": VALKEY, name: 1})


def test_wrong_value_does_not_show_the_password():
    with pytest.raises(ValueError, match="session_store") as refused:
        build({"session_store": "mysql://user:secret@host"})
    assert "secret" not in str(refused.value)
