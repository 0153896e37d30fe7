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
def nginx(folder: Path, replicas: Sequence[Service]) -> Iterator[str]:
    """The address of nginx in front of two replicas."""
    port = free_port()
    text = (ROOT / "deploy" / "nginx.conf").read_text()
    for number, replica in enumerate(replicas, 1):
        text = text.replace(f"rnn-service-{number}:8000", f"127.0.0.1:{replica.port}")
    text = text.replace("listen 8000;", f"listen 127.0.0.1:{port};")
    text = re.sub(r"/tmp/(\w)", rf"{folder}/\1", text)
    configuration = folder / "nginx.conf"
    configuration.write_text(text)
    process = subprocess.Popen([NGINX, "-c", configuration, "-p", folder, "-g", "daemon off;"])
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _answers(url), "nginx answers")
        yield url
    finally:
        process.terminate()
        process.wait(ANSWER_SECONDS)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.TransportError:
        return False
