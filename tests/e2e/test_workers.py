"""Several processes on one port: they share the work, the metrics, and the end."""

import os
import shutil
import signal
import subprocess
import sys

import psutil
import pytest

from .running import ROOT, until

STORE = ["--session-store", "sqlite:///sessions.db"]
STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}


def workers_of(service):
    """The worker processes; a spawn helper of multiprocessing is a child too, and so is one that has just died."""
    return [child for child in service.process.children() if is_worker(child)]


def is_worker(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it ended between the two looks
        return False


def total(service, name):
    """A metric over all its labels."""
    rows = [line for line in service.get("/metrics").text.splitlines() if line.startswith(name)]
    return sum(float(row.rsplit(" ", 1)[1]) for row in rows)


def test_two_workers_answer_count_together_and_stop_together(launch, tmp_path):
    service = launch(workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
    until(lambda: len(workers_of(service)) == 2, "two workers")
    answers = {service.post("/cell/step", STEP).text for _ in range(40)}
    assert len(answers) == 1  # the same bits from either
    until(lambda: total(service, "rnn_steps_total") == 40, "the count of both workers")
    workers = workers_of(service)
    service.stop()
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_that_is_killed_is_replaced(launch, tmp_path):
    service = launch(workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
    until(lambda: len(workers_of(service)) == 2, "two workers")
    victim, other = workers_of(service)
    victim.send_signal(signal.SIGKILL)
    until(lambda: len(set(workers_of(service)) - {victim, other}) == 1, "a new worker", 60)
    for _ in range(10):
        assert service.post("/cell/step", STEP).status_code == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_start_that_fails_says_why_and_exits(tmp_path, workers):
    done = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--models", "nowhere", "--port", "0", "--workers", workers, *STORE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 3
    assert "cannot be listed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_a_hang_up_signal_renews_the_workers_and_finds_new_models(launch, repository, tmp_path):
    """Reload reaches the one worker that is asked; the signal reaches all, and somebody answers meanwhile."""
    models = shutil.copytree(repository, tmp_path / "models")
    service = launch(models=models, workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
    until(lambda: len(workers_of(service)) == 2, "two workers")
    shutil.copytree(models / "tanh", models / "added")
    old = set(workers_of(service))
    service.process.send_signal(signal.SIGHUP)
    while not all_new(service, old):
        assert service.post("/cell/step", STEP).status_code == 200
    assert service.get("/models/added").status_code == 200


def all_new(service, old):
    return len(workers_of(service)) == 2 and not set(workers_of(service)) & old
