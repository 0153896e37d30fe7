"""Several processes on one port: they share connections, work and metrics, and are replaced."""

import shutil
import signal
from contextlib import ExitStack

import psutil
import pytest

from .raw import Wire, post
from .running import serve, until

pytestmark = pytest.mark.integration
STEP = {"model": "tanh", "inputs": [1, 2, 3, 4]}
RAW_STEP = post("/cell/step", b'{"model":"tanh","inputs":[1,2,3,4]}')


def workers_of(service):
    """The worker processes; a spawn helper of multiprocessing is a child too, and so is one that has just died."""
    return [child for child in service.process.children() if is_worker(child)]


def is_worker(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it ended between the two calls
        return False


@pytest.fixture
def two(launch, repository, tmp_path):
    """A service of two workers, and a repository of its own."""
    models = shutil.copytree(repository, tmp_path / "models")
    service = launch(models=models, workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
    until(lambda: len(workers_of(service)) == 2, "two workers")
    return service


def test_workers_answer_and_count_together(two):
    answers = {two.post("/cell/step", STEP).text for _ in range(40)}
    assert len(answers) == 1  # the same bits from either
    until(lambda: two.metric("rnn_steps_total") == 40, "the count of both workers")
    workers = workers_of(two)
    two.stop()
    assert not any(worker.is_running() for worker in workers)


def test_statistics_are_of_all_workers(two):
    body = {"inputs": [{"name": "inputs", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    for _ in range(20):
        assert two.post("/v2/models/tanh.step/infer", body).status_code == 200

    def counted():
        (entry,) = two.get("/v2/models/tanh.step/stats").json()["model_stats"]
        return entry["inference_count"], entry["inference_stats"]["success"]["count"]

    until(lambda: {counted() for _ in range(10)} == {(20, 20)}, "the same count by either")


def held(worker):
    """Open connections of a worker."""
    return sum(found.status == psutil.CONN_ESTABLISHED for found in worker.net_connections("tcp"))


def test_workers_share_connections(two):
    """The end of a worker resets no connection of the other's."""
    until(
        lambda: all(two.post("/cell/step", STEP).status_code == 200 and held(w) == 0 for w in workers_of(two)), "idle"
    )
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(two)) for _ in range(64)]
        until(lambda: sum(map(held, workers_of(two))) == 64, "all are accepted")
        victim, other = workers_of(two)
        kept = held(other)
        victim.send_signal(signal.SIGKILL)
        until(lambda: len(set(workers_of(two)) - {victim, other}) == 1, "a new worker")
        answered = 0
        for wire in wires:
            try:
                wire.send(RAW_STEP)
                answered += wire.reply().status == 200
            except ConnectionError:  # the killed worker's
                continue
        assert answered == kept
    for _ in range(10):
        assert two.post("/cell/step", STEP).status_code == 200


def test_sighup_renews_workers_and_models(two):
    """Reload reaches one worker, the signal all; somebody answers all the while."""
    models = two.log_file.parent.parent / "models"
    shutil.copytree(models / "tanh", models / "added")
    old = set(workers_of(two))
    two.process.send_signal(signal.SIGHUP)

    def renewed():
        assert two.post("/cell/step", STEP).status_code == 200
        return len(workers_of(two)) == 2 and not set(workers_of(two)) & old

    until(renewed, "two new workers")
    assert two.get("/models/added").status_code == 200


def test_failed_start_of_workers_says_why(tmp_path):
    done = serve(tmp_path, "--models", "nowhere", workers=2, session_store="sqlite:///sessions.db")
    assert done.returncode == 3
    assert "cannot be listed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
