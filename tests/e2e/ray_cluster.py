"""A Ray cluster on this machine, on ports and in a folder of its own, that serves deploy/ray/serve.yaml."""

import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil
import yaml

from tests.stores.servers import free_port

from .running import ANSWER_SECONDS, ROOT, START_SECONDS, Service, environment, until

HAS_RAY = find_spec("ray") is not None

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
"""`serve run`, in a cluster that needs less memory than its own; a signal lets Ray stop the replicas."""


class Cluster(Service):
    """HAProxy or Ray's own proxy, and two replicas, which run after `with`."""

    def __init__(self, models: Path, store: str, *, haproxy: bool, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rnn-ray-"))  # sockets lie in it, whose names must be short
        super().__init__(None, self.folder / "run.log", free_port())
        self.haproxy = haproxy
        self._file = self.folder / "serve.yaml"
        config = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text())
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        (application,) = config["applications"]
        application["args"] = {"models": str(models), "session_store": store, **settings}
        application["deployments"][0]["autoscaling_config"] |= {"min_replicas": 2, "max_replicas": 2}
        self._file.write_text(yaml.safe_dump(config))

    def __enter__(self) -> "Cluster":
        names = ("CONFIG_FILE_LOC", "SOCKET_PATH", "METRICS_SOCKET_PATH", "SERVER_STATE_FILE")
        proxy = {f"HAPROXY_{name}": self.folder / name[:2] for name in names}  # short, as Ray adds to the path
        proxy |= {"HAPROXY_SERVER_STATE_BASE": self.folder}
        proxy |= {f"HAPROXY_{name}_PORT": free_port() for name in ("METRICS", "STATS")}
        proxy |= {"FALLBACK_PROXY_HTTP_PORT": free_port(), "DIRECT_INGRESS_MIN_HTTP_PORT": (first := free_port())}
        proxy |= {"DIRECT_INGRESS_MAX_HTTP_PORT": first + 20, "DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": 2}
        # On a busy machine a proxy takes its time; Ray would kill it for that.
        proxy |= {f"PROXY_{name}_CHECK_TIMEOUT_S": START_SECONDS for name in ("READY", "HEALTH")}
        variables = {f"RAY_SERVE_{name}": str(value) for name, value in proxy.items()}
        variables |= {"RAY_SERVE_ENABLE_HA_PROXY": str(int(self.haproxy)), "RAY_USAGE_STATS_ENABLED": "0"}
        variables |= {"RAY_prestart_worker_first_driver": "0"}  # four processes that nothing would use
        command = [sys.executable, "-c", DRIVER, str(self.folder), str(self._file)]
        with self.log_file.open("wb") as log:
            options = {"cwd": self.folder, "env": environment() | variables}
            self.process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, **options)
        try:
            until(self._answers, "two replicas are ready", 2 * START_SECONDS, every=0.5)
        except BaseException as error:
            logs = [self.log_file, *self.folder.glob("session_latest/logs/serve/*.log")]
            error.add_note("".join(file.read_text(errors="replace")[-3000:] for file in logs))
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End every process of the cluster."""
        ours = [*self._children(), self.process]
        for process in reversed(ours):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(ours, ANSWER_SECONDS)
        shutil.rmtree(self.folder, ignore_errors=True)

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in self._children():
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith("ray::ServeReplica:rnn-service"):
                    found.append(process)
        return found

    def log_of(self, replica: psutil.Process) -> str:
        """What a replica has printed."""
        (file,) = self.folder.glob(f"session_latest/logs/worker-*-{replica.pid}.out")
        return file.read_text(errors="replace")

    def stop_replicas(self) -> None:
        self.process.send_signal(signal.SIGUSR1)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with suppress(httpx.TransportError):
            return self.get("/health/ready").status_code == 200 and len(self.replicas()) == 2
        return False

    def _children(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return self.process.children(recursive=True)
        return []
