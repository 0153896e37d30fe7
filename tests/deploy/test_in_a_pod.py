"""The service as its pod starts it: the manifests' settings, a root that cannot be written, and the probes."""

import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from tests.e2e.running import START_SECONDS, TREE, Service, environment, until
from tests.stores.servers import free_port

from .manifests import container, kserve, one, rendered

pytestmark = pytest.mark.integration

# Everything is read-only but the folder that stands for the pod's /tmp, where a test may have a mount namespace.
CONFINED = """mount --bind / / && mount -o remount,ro,bind / && mount -t tmpfs tmpfs "$TMPDIR" || exit 1
! touch "$HOME/x" 2>/dev/null && cd "$TMPDIR" && exec "$@" """
UNSHARE = ["unshare", "--mount", "sh", "-c", CONFINED, "sh"]


@contextmanager
def running(folder, manifest, variables):
    """A service with these variables; the probes of its container have answered 200."""
    (folder / "tmp").mkdir()
    places = {"HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
    environ = environment() | places | variables | {"RNN_HOST": "127.0.0.1", "RNN_PORT": str(free_port())}
    can_confine = subprocess.run([*UNSHARE, "true"], env=environ, check=False).returncode == 0
    command = [*(UNSHARE if can_confine else []), sys.executable, "-m", "service", "serve"]
    with (folder / "service.log").open("w") as log:
        process = psutil.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
    service = Service(process, folder / "service.log", int(environ["RNN_PORT"]))
    try:
        until(lambda: "Application startup complete" in service.log(), "the service has started", START_SECONDS)
        for probe in {"startupProbe", "livenessProbe", "readinessProbe"} & container(manifest).keys():
            path = container(manifest)[probe]["httpGet"]["path"]
            until(lambda path=path: service.get(path).status_code == 200, f"{path} answers 200")
        yield service
    finally:
        service.stop()


def test_pod_answers_its_probes(tmp_path):
    manifests = rendered("base")
    secret = {"RNN_API_KEYS": "one", "RNN_ADMIN_KEYS": "two", "RNN_MODELS": str(TREE / "models")}
    variables = one(manifests, "ConfigMap")["data"] | secret
    with running(tmp_path, one(manifests, "Deployment"), variables) as service:
        assert service.get("/models").status_code == 401
        models = service.get("/models", headers={"authorization": "Bearer one"}).json()["models"]
        assert {model["state"] for model in models} == {"loaded"}
        metric = one(manifests, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
        assert f"\n{metric} 0.0\n" in service.get("/metrics").text


@pytest.mark.parametrize(("folder", "served"), [("models/sunspots", "forecast"), ("models", "sunspots")])
def test_kserve_serves_one_model_or_a_repository(tmp_path, folder, served):
    """The InferenceService is called forecast; its model, or repository, is what KServe mounts as /mnt/models."""
    runtime, *_ = kserve()
    variables = {item["name"]: item["value"].replace("{{.Name}}", "forecast") for item in container(runtime)["env"]}
    with running(tmp_path, runtime, variables | {"RNN_MODELS": str(TREE / folder)}) as service:
        forward = {"model": served, "inputs": [[4.2], [21.5]], "returns": ["predictions"]}
        assert service.post("/rnn/forward", forward).json()["model"] == served
        assert (len(service.get("/models").json()["models"]) == 1) is (served == "forecast")
