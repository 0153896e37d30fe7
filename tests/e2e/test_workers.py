"""Several processes on one port: they share connections, work and metrics, and are replaced."""

import fcntl
import os
import shutil
import signal
import time
from contextlib import ExitStack

import psutil
import pytest

from .models import SPECS, write_model
from .raw import Wire, post
from .running import serve, start, until

pytestmark = pytest.mark.integration
RAW_STEP = post("/cell/step", b'{"model":"tanh","inputs":[1,2,3,4]}')


def workers_of(service):
    """The worker processes; a spawn helper of multiprocessing is a child too, and so is one that has just died."""
    return [child for child in service.process.children() if is_worker(child)]


def is_worker(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline())
    except psutil.Error:  # it ended between the two calls
        return False


@pytest.fixture(scope="module")
def two(repository, tmp_path_factory):
    """A service of two workers; each test has a model of its own."""
    folder = tmp_path_factory.mktemp("two")
    store = f"sqlite:///{folder}/sessions.db"
    # Idle connections outlast the start of a worker on a busy machine.
    options = {"workers": 2, "admin_keys": "admin", "session_store": store, "header_timeout_seconds": 600}
    service = start(shutil.copytree(repository, folder / "models"), folder, **options)
    until_serving(service, 2)
    yield service
    workers = workers_of(service)
    service.stop()
    assert not any(worker.is_running() for worker in workers)


@pytest.fixture
def model(request, two):
    """The name of a new model, the same as tanh, in every worker."""
    name = request.function.__name__
    write_model(two.log_file.parent / "models", name, 1, SPECS["tanh"])
    assert admin(two, name, "reload")["workers"] == 2
    return name


def until_serving(service, starts):
    """Wait until so many workers have begun to serve since the start."""
    until(lambda: len(service.logged("startup complete")) == starts, "workers serve")


def kill(service, worker):
    """Kill a worker, and wait until another one serves in its place."""
    starts = len(service.logged("startup complete"))
    worker.kill()
    until_serving(service, starts + 1)


def admin(service, model, call, status=200):
    reply = service.post(f"/models/{model}/{call}", headers={"authorization": "Bearer admin"})
    assert reply.status_code == status, reply.text
    return reply.json()


def rewrite(service, model):
    """Lay down a second version of a model."""
    write_model(service.log_file.parent / "models", model, 2, SPECS["tanh"])


def step(client, model):
    return client.post("/cell/step", json={"model": model, "inputs": [1, 2, 3, 4]})


def seen(service, call):
    """What both workers say: they take connections by turns, and each of many calls has its own."""
    with ExitStack() as stack:
        clients = [stack.enter_context(service.client()) for _ in range(32)]
        return {call(client) for client in clients}


def versions(service, model):
    """Which versions of a model serve."""
    return seen(service, lambda client: step(client, model).json()["version"])


def test_workers_answer_and_count_together(two, model):
    assert len(seen(two, lambda client: step(client, model).text)) == 1  # the same bits from either
    until(lambda: two.metrics().get(f'rnn_steps_total{{model="{model}"}}') == 32, "the count of both workers")


def test_the_supervisor_loads_no_torch(two):
    processes = two.process, *workers_of(two)
    loaded = [any("libtorch" in mapped.path for mapped in process.memory_maps()) for process in processes]
    assert loaded == [False, True, True]


def test_statistics_are_of_all_workers(two, model):
    body = {"inputs": [{"name": "inputs", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    for _ in range(20):
        assert two.post(f"/v2/models/{model}.step/infer", body).status_code == 200

    def counted():
        (entry,) = two.get(f"/v2/models/{model}.step/stats").json()["model_stats"]
        return entry["inference_count"], entry["inference_stats"]["success"]["count"]

    until(lambda: {counted() for _ in range(10)} == {(20, 20)}, "the same count by either")


def held(worker):
    """Open connections of a worker."""
    return sum(found.status == psutil.CONN_ESTABLISHED for found in worker.net_connections("tcp"))


def test_workers_share_connections(two):
    """The end of a worker resets no connection of the other's."""
    until(lambda: step(two, "tanh").status_code == 200 and not any(map(held, workers_of(two))), "idle")
    with ExitStack() as stack:
        wires = [stack.enter_context(Wire(two)) for _ in range(64)]
        until(lambda: sum(map(held, workers_of(two))) == 64, "all are accepted")
        victim, other = workers_of(two)
        kept = held(other)
        assert 0 < kept < 64
        kill(two, victim)
        answered = 0
        for wire in wires:
            try:
                wire.send(RAW_STEP)
                answered += wire.reply().status == 200
            except ConnectionError:  # the killed worker's
                continue
        assert answered == kept
    assert seen(two, lambda client: step(client, "tanh").status_code) == {200}


def test_reload_reaches_every_worker(two, model):
    folder = two.log_file.parent / "models" / model
    rewrite(two, model)
    assert versions(two, model) == {"1"}
    assert admin(two, model, "reload")["workers"] == 2
    assert versions(two, model) == {"2"}
    (folder / "config.json").write_text("{}")
    assert admin(two, model, "reload", 503)["type"] == "/problems/model-failed"
    assert versions(two, model) == {"2"}
    shutil.rmtree(folder)
    assert admin(two, model, "reload", 404)["detail"] == f"there is no model {model!r} in the repository"
    assert seen(two, lambda client: client.get(f"/models/{model}").status_code) == {404}


def test_unload_and_drain_reach_every_worker(two, model):
    """A session that one worker has just opened keeps the model loaded in both."""

    def told(field):
        return seen(two, lambda client: client.get(f"/models/{model}").json()["versions"][0][field])

    assert versions(two, model) == {"1"}
    session = two.post("/cell/sessions", {"model": model}).json()["session"]
    for _ in range(8):
        assert "in use: sessions on it: 1" in admin(two, model, "unload", 409)["detail"]
    assert told("state") == {"loaded"}
    assert two.delete(f"/cell/sessions/{session}").status_code == 204
    until(lambda: told("sessions") == {0}, "both know of no session")
    assert admin(two, model, "unload")["workers"] == 2
    assert told("state") == {"available"}
    assert admin(two, model, "drain")["workers"] == 2
    assert seen(two, lambda client: client.post("/cell/sessions", json={"model": model}).status_code) == {409}


def test_call_waits_for_a_worker_that_starts(two, model):
    victim, _ = workers_of(two)
    victim.kill()
    rewrite(two, model)
    assert admin(two, model, "reload")["workers"] == 2
    assert versions(two, model) == {"2"}
    assert victim not in workers_of(two)


def test_worker_that_is_replaced_knows_of_drains(two, model):
    assert admin(two, model, "drain")["workers"] == 2
    kill(two, workers_of(two)[0])
    assert seen(two, lambda client: client.post("/cell/sessions", json={"model": model}).status_code) == {409}
    since = len(two.logged("models_reloaded"))
    two.process.send_signal(signal.SIGHUP)
    reloaded(two, since)
    kill(two, workers_of(two)[0])
    assert seen(two, lambda client: client.post("/cell/sessions", json={"model": model}).status_code) == {201}


def test_folder_of_the_workers_is_locked(two):
    """systemd-tmpfiles --clean spares it: sockets, and the numbers of /metrics."""
    folder = os.open(workers_of(two)[0].environ()["PROMETHEUS_MULTIPROC_DIR"], os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(folder)


def reloaded(service, since):
    """The log's entries of workers that have read the models again, beside the first so many."""
    return until(lambda: len(found := service.logged("models_reloaded")[since:]) == 2 and found, "both have reloaded")


def test_hung_worker_that_ends_is_replaced_at_once(two):
    """The supervisor waits 30 s for the answer of one that lives."""
    victim, _ = workers_of(two)
    victim.suspend()
    time.sleep(2)  # it is being asked
    assert "died" not in two.log().split("startup complete")[-1]
    starts = len(two.logged("startup complete"))
    victim.kill()
    until(lambda: "died" in two.log().split("startup complete")[-1], "its end is seen", 20)
    until_serving(two, starts + 1)


def test_sighup_renews_models_in_every_worker(two, model):
    old, since = set(workers_of(two)), len(two.logged("models_reloaded"))
    rewrite(two, model)
    (two.log_file.parent / "models/lstm/config.json").write_text("{}")
    two.process.send_signal(signal.SIGHUP)
    entries = reloaded(two, since)
    assert {entry["process"] for entry in entries} == {worker.pid for worker in old}
    assert all("lstm" in entry["not_reloaded"] for entry in entries)
    assert versions(two, model) == {"2"}
    assert seen(two, lambda client: client.get("/models/lstm").json()["state"]) <= {"available", "loaded"}
    assert set(workers_of(two)) == old


def test_sighup_while_a_worker_starts(two, model):
    """It is renewed once it can be."""
    since = len(two.logged("models_reloaded"))
    victim, _ = workers_of(two)
    victim.kill()
    until(lambda: victim not in workers_of(two) and len(workers_of(two)) == 2, "a new worker starts")
    rewrite(two, model)
    two.process.send_signal(signal.SIGHUP)
    reloaded(two, since)
    assert versions(two, model) == {"2"}
    assert len(workers_of(two)) == 2
    assert "died" not in two.log().split("models_reloaded")[-1]


def test_ctrl_c_is_the_supervisors_business(two):
    """A terminal sends it to every process; a worker that hears of the end twice would not drain."""
    for worker in workers_of(two):
        worker.send_signal(signal.SIGINT)
    assert seen(two, lambda client: client.get("/health/ready").status_code) == {200}


def test_failed_start_of_workers_says_why(tmp_path):
    done = serve(tmp_path, "--models", "nowhere", workers=2, session_store="sqlite:///sessions.db")
    assert done.returncode == 3
    assert "cannot be listed" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
