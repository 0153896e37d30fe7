"""Several processes on one port: they share connections, work and metrics, and are replaced."""

import shutil
import signal
from contextlib import ExitStack

import psutil
import pytest

from .models import write_model
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
    store = f"sqlite:///{tmp_path}/sessions.db"
    # Idle connections outlast the start of a worker on a busy machine.
    service = launch(models=models, workers=2, admin_keys="admin", session_store=store, header_timeout_seconds=600)
    until(lambda: len(service.logged("startup complete")) == 2, "two workers serve")
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
        assert 0 < kept < 64
        victim.send_signal(signal.SIGKILL)
        until(lambda: len(two.logged("startup complete")) == 3, "a new worker serves")
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


def models_of(service):
    return service.log_file.parent.parent / "models"


def seen(service, call):
    """What both workers say: they take connections by turns, and each of many calls has its own."""
    with ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(32)]
        return {call(client) for client in clients}


def admin(service, model, call, status=200):
    reply = service.post(f"/models/{model}/{call}", headers={"authorization": "Bearer admin"})
    assert reply.status_code == status, reply.text
    return reply.json()


def test_reload_reaches_every_worker(two):
    models = models_of(two)
    write_model(models, "tanh", 2)
    assert seen(two, lambda client: client.post("/cell/step", json=STEP).json()["version"]) == {"1"}
    assert admin(two, "tanh", "reload")["workers"] == 2
    assert seen(two, lambda client: client.post("/cell/step", json=STEP).json()["version"]) == {"2"}
    shutil.copytree(models / "relu", models / "added")
    assert admin(two, "added", "reload")["workers"] == 2
    shutil.rmtree(models / "gru")
    assert admin(two, "gru", "reload", 404)["detail"] == "there is no model 'gru' in the repository"
    (models / "tanh/config.json").write_text("{}")
    assert admin(two, "tanh", "reload", 503)["type"] == "/problems/model-failed"
    assert seen(two, lambda client: client.post("/cell/step", json=STEP).json()["version"]) == {"2"}
    there = seen(two, lambda client: (client.get("/models/added").status_code, client.get("/models/gru").status_code))
    assert there == {(200, 404)}


def test_unload_and_drain_reach_every_worker(two):
    """A session that one worker has just opened keeps the model loaded in both."""
    seen(two, lambda client: client.post("/cell/step", json=STEP).status_code)
    session = two.post("/cell/sessions", {"model": "tanh"}).json()["session"]
    for _ in range(8):
        assert "in use: sessions on it: 1" in admin(two, "tanh", "unload", 409)["detail"]
    assert seen(two, lambda client: client.get("/models/tanh").json()["state"]) == {"loaded"}
    assert two.delete(f"/cell/sessions/{session}").status_code == 204
    until(lambda: seen(two, sessions_on_tanh) == {0}, "both know of no session")
    assert admin(two, "tanh", "unload")["workers"] == 2
    assert seen(two, lambda client: client.get("/models/tanh").json()["state"]) == {"available"}
    assert admin(two, "relu", "drain")["workers"] == 2
    opening = {"json": {"model": "relu"}}
    assert seen(two, lambda client: client.post("/cell/sessions", **opening).status_code) == {409}


def sessions_on_tanh(client):
    return client.get("/models/tanh").json()["versions"][0]["sessions"]


def test_worker_that_is_replaced_is_not_waited_for(two):
    victim, _ = workers_of(two)
    victim.kill()
    assert admin(two, "tanh", "reload")["workers"] in (1, 2)
    until(lambda: len(workers_of(two)) == 2 and victim not in workers_of(two), "a new worker")
    write_model(models_of(two), "tanh", 2)
    assert admin(two, "tanh", "reload")["workers"] in (1, 2)  # one that has not read the models yet needs no call
    until(lambda: len(two.logged("startup complete")) == 3, "the new worker serves")
    assert seen(two, lambda client: client.post("/cell/step", json=STEP).json()["version"]) == {"2"}


def test_sighup_renews_models_in_every_worker(two):
    old = set(workers_of(two))
    write_model(models_of(two), "tanh", 2)
    (models_of(two) / "lstm/config.json").write_text("{}")
    two.process.send_signal(signal.SIGHUP)
    entries = until(lambda: len(found := two.logged("models_reloaded")) == 2 and found, "both have reloaded")
    assert {entry["process"] for entry in entries} == {worker.pid for worker in old}
    assert all("lstm" in entry["not_reloaded"] for entry in entries)
    assert seen(two, lambda client: client.post("/cell/step", json=STEP).json()["version"]) == {"2"}
    assert seen(two, lambda client: client.get("/models/lstm").json()["state"]) <= {"available", "loaded"}
    assert set(workers_of(two)) == old


def test_sighup_while_a_worker_starts(two):
    """It is renewed once it can be."""
    victim, _ = workers_of(two)
    victim.kill()
    until(lambda: victim not in workers_of(two) and len(workers_of(two)) == 2, "a new worker starts")
    write_model(models_of(two), "tanh", 2)
    two.process.send_signal(signal.SIGHUP)
    until(lambda: len(two.logged("models_reloaded")) == 2, "both have reloaded")
    assert len(workers_of(two)) == 2
    assert "died" not in two.log().split("models_reloaded")[-1]


def test_failed_start_of_workers_says_why(tmp_path):
    done = serve(tmp_path, "--models", "nowhere", workers=2, session_store="sqlite:///sessions.db")
    assert done.returncode == 3
    assert "cannot be listed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
