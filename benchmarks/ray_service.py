"""The service on Ray Serve: `python -m benchmarks.ray_service MODELS PORT REPLICAS`; no session is opened."""

import os
import sys
from pathlib import Path

from benchmarks.rivals.ray_server import serve_until_stopped
from service.server.ray_serve import deployment
from service.settings import Settings

if __name__ == "__main__":
    replicas = int(sys.argv[3])
    cores = max(1, len(os.sched_getaffinity(0)) // replicas)
    settings = Settings(models=Path(sys.argv[1]), request_log=False, session_store="valkey://127.0.0.1:1/0")
    options = {"num_replicas": replicas, "ray_actor_options": {"num_cpus": cores}}
    serve_until_stopped(deployment.options(**options).bind(settings), int(sys.argv[2]))
