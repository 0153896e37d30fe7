"""The process: logs that nobody takes, SIGHUP, a taken port, too few descriptors, models that are in use."""

import os
import pty
import shutil
import signal
from itertools import count
from pathlib import Path

import psutil
import pytest

from .models import write_model
from .problems import assert_problem
from .running import serve, until
from .sessions import opened

STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}
ADMIN = {"authorization": "Bearer admin"}


@pytest.mark.parametrize(
    ("log", "workers"),
    [("pipe", 1), ("terminal", 1), ("gone", 1), ("full", 1), pytest.param("pipe", 2, marks=pytest.mark.integration)],
)
def test_log_that_nobody_takes(launch, tmp_path, log, workers):
    """Standard error goes the same way. Every step is answered, and lines that are lost are counted."""
    reader, stdout = pty.openpty() if log == "terminal" else os.pipe()
    if log == "gone":
        os.close(reader)
    elif log == "full":
        stdout = os.open("/dev/full", os.O_WRONLY)
    service = launch(stdout=stdout, workers=workers, session_store=f"sqlite:///{tmp_path}/sessions.db")
    os.close(stdout)
    session = opened(service, "tanh")
    with service.client() as client:
        for number in range(1, 401):
            step = {"session": session, "inputs": [1, 2, 3, 4], "step": number}
            assert client.post("/cell/step", json=step).status_code == 200
    until(lambda: service.metric("rnn_log_lines_dropped_total") > 50, "dropped lines are counted")
    service.stop()


@pytest.fixture
def own_models(repository, tmp_path):
    return shutil.copytree(repository, tmp_path / "models")


def test_sighup_reloads_models_and_ends_nothing(launch, own_models):
    service = launch(models=own_models)
    session = opened(service, "tanh")
    assert service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4]}).json()["step"] == 1
    write_model(own_models, "tanh", 2)
    shutil.copytree(own_models / "relu", own_models / "added")
    shutil.rmtree(own_models / "gru")
    (own_models / "lstm/config.json").write_text("{}")
    service.process.send_signal(signal.SIGHUP)
    until(lambda: service.logged("models_reloaded"), "the models are reloaded")
    assert service.get("/models/added").status_code == 200
    assert service.get("/models/gru").status_code == 404
    assert "config.json" in service.logged("model_failed")[-1]["reason"]
    assert service.post("/cell/step", STEP).json()["version"] == "2"
    assert service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4]}).json()["step"] == 2


def test_taken_port_is_said_before_anything_is_loaded(service, repository, tmp_path):
    for settings in ({}, {"workers": 2, "session_store": f"sqlite:///{tmp_path}/sessions.db"}):
        ended = serve(tmp_path, "--models", str(repository), port=service.port, **settings)
        assert ended.returncode == 3
        assert f"127.0.0.1:{service.port} cannot be listened on" in ended.stdout
        assert "models_found" not in ended.stdout
        assert "Traceback" not in ended.stdout + ended.stderr


def test_lack_of_descriptors_passes(launch):
    service = launch()
    with service.client() as client:
        assert client.get("/health/live").status_code == 200  # the connection is there
        limits = service.process.rlimit(psutil.RLIMIT_NOFILE)
        taken = {int(entry.name) for entry in Path(f"/proc/{service.process.pid}/fd").iterdir()}
        free = next(number for number in count() if number not in taken)
        service.process.rlimit(psutil.RLIMIT_NOFILE, (free, limits[1]))
        for _ in range(3):
            assert_problem(client.post("/cell/step", json=STEP), 503, "model-failed", "Too many open files")
        service.process.rlimit(psutil.RLIMIT_NOFILE, limits)
        assert client.post("/cell/step", json=STEP).status_code == 200
    assert len(service.logged("model_failed")) == 2  # a folder that is broken by purpose, and this one once


def test_default_model_may_come_later(launch, own_models):
    """Readiness says what is missing, and comes when it is there."""
    (own_models / "tanh").rename(own_models / ".tanh")
    service = launch(models=own_models, wait=False, preload="tanh", admin_keys="admin")
    reasons = until(lambda: service.get("/health/ready").json()["reasons"], "a reason")
    assert "tanh" in reasons[0]
    (own_models / ".tanh").rename(own_models / "tanh")
    assert service.post("/models/tanh/reload", headers=ADMIN).status_code == 200
    until(lambda: service.get("/health/ready").status_code == 200, "readiness")


def test_folder_of_one_model_is_served_under_its_name(launch, own_models):
    """The folder's name is not a model's; nothing else is served, and a reload finds a new version."""
    (own_models / "tanh").rename(own_models / "..data")
    service = launch(models=own_models / "..data", model_name="sales", preload="*", admin_keys="admin")
    assert [(one["name"], one["state"]) for one in service.get("/models").json()["models"]] == [("sales", "loaded")]
    assert service.post("/cell/step", {"inputs": [1, 2, 3, 4]}).json()["model"] == "sales"
    for other in ("..data", "1", "gru"):
        assert service.post(f"/models/{other}/reload", headers=ADMIN).status_code == 404
    (own_models / "..data/1").rename(own_models / "..data/2")
    assert service.post("/models/sales/reload", headers=ADMIN).status_code == 200
    assert service.post("/cell/step", {"model": "sales", "inputs": [1, 2, 3, 4]}).json()["version"] == "2"


def test_unload_of_a_model_in_use(launch):
    service = launch(admin_keys="admin")
    session = opened(service, "tanh")
    assert_problem(service.post("/models/tanh/unload", headers=ADMIN), 409, "model-in-use", "sessions on it: 1")
    assert service.delete(f"/cell/sessions/{session}").status_code == 204
    assert service.post("/models/tanh/unload", headers=ADMIN).json()["state"] == "available"
