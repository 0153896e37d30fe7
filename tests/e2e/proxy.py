"""nginx with the configuration of the compose profile `scaled`."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.stores.servers import free_port

from .running import ANSWER_SECONDS, ROOT, Service, until

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextmanager
def nginx(folder: Path, replicas: Sequence[Service], server: str = "listen 8000;", http: str = "") -> Iterator[str]:
    """The address of nginx in front of two replicas, with other lines in `server` and more in `http`."""
    port = free_port()
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"rnn-service-{number}:8000", f"127.0.0.1:{replica.port}")
    text = re.sub(r"/tmp/(\w)", rf"{folder}/\1", text)
    text = text.replace("listen 8000;", re.sub(r"listen \d+", f"listen 127.0.0.1:{port}", server))
    text = text.replace("server {", f"{http}server {{")
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    process = subprocess.Popen([NGINX, "-c", configuration, "-p", folder, "-g", "daemon off;"])
    url = f"http{'s' if ' ssl' in server else ''}://127.0.0.1:{port}"
    try:
        until(lambda: _answers(url), "nginx answers")
        yield url
    finally:
        process.terminate()
        process.wait(ANSWER_SECONDS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", verify=False).status_code == 200
    except httpx.TransportError:
        return False
