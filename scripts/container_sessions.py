"""The container check of sessions: kill -9 over a volume, and the parts of the `scaled` profile together."""

import json
import math
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from container_client import Client, expect, free_port, started
from container_engine import ROOT, CheckFailed, Container, Engine

MODEL = "sunspots"
STEPS = 12
START_SECONDS = 20

# Runs in the container, with the websockets library of the image: continues a session over a WebSocket and prints the
# outputs of its steps.
STREAM = """
import json, os, sys
from websockets.sync.client import connect
port, session, first, *inputs = json.loads(sys.argv[1])
with connect(f"ws://127.0.0.1:{port or os.environ['RNN_PORT']}/cell/stream", proxy=None) as socket:
    socket.send(json.dumps({"session": session}))
    outputs = []
    for step, values in enumerate(inputs, first):
        socket.send(json.dumps({"inputs": values, "step": step}))
        reply = json.loads(socket.recv(timeout=30))
        assert reply["step"] == step, reply
        outputs.append(reply["outputs"])
print(json.dumps(outputs))
"""


def sequence() -> list[list[float]]:
    """(STEPS, 1) inputs."""
    return [[50.0 + 40.0 * math.sin(step)] for step in range(STEPS)]


def whole(client: Client) -> list[list[float]]:
    """The outputs of the sequence in one call; a session's steps must give the same to the last digit."""
    outputs: list[list[float]] = client.json("/rnn/forward", {"model": MODEL, "inputs": sequence()})["outputs"]
    return outputs


def step(client: Client, session: str, number: int) -> Any:
    """The outputs of a numbered step, the first of which is 1."""
    return client.json("/cell/step", {"session": session, "inputs": sequence()[number - 1], "step": number})["outputs"]


def stream(container: Container, session: str, first: int, port: int | None = None) -> Any:
    """The outputs of the steps from `first` on, over one WebSocket to the service itself, or to this port."""
    words = [port, session, first, *sequence()[first - 1 :]]
    return json.loads(container.run("python", "-c", STREAM, json.dumps(words)))


def check_kill(engine: Engine, workers: int) -> None:
    """A session in SQLite on a volume survives the end of its container."""
    settings = {"RNN_SESSION_STORE": "sqlite:////sessions/sessions.db", "RNN_WORKERS": str(workers)}
    with engine.volume() as volume:
        with started(engine, settings, sessions=volume) as (container, client):
            outputs = whole(client)
            session = client.json("/cell/sessions", {"model": MODEL})["session"]
            steps = [step(client, session, number) for number in range(1, 6)]
            container.kill()
        with started(engine, settings, sessions=volume) as (container, client):
            expect("step after kill -9", client.json(f"/cell/sessions/{session}")["step"], 5)
            expect("the last step, sent again, has its reply", step(client, session, 5) == steps[-1], True)
            steps += [step(client, session, number) for number in range(6, STEPS + 1)]
            expect(f"{workers} workers, SQLite: steps before and after equal the whole", steps == outputs, True)
            expect("exit code after SIGTERM", container.stop(), 0)


def check_scaled(engine: Engine) -> None:
    """Two containers, a key-value server and nginx with deploy/nginx.conf: each answers any step; one may be killed.

    nginx and the server are processes of this machine, so that their images need not be fetched.
    """
    server = shutil.which("valkey-server") or shutil.which("redis-server")
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if server is None or nginx is None:
        print("skip  two replicas behind nginx: needs nginx, and valkey-server or redis-server, on this machine")
        return
    with tempfile.TemporaryDirectory() as folder, key_value(server, Path(folder)) as url:
        settings = {"RNN_SESSION_STORE": url}
        with (
            started(engine, settings, on_host_network=True) as (one, first),
            started(engine, settings, on_host_network=True) as (other, second),
            proxy(nginx, Path(folder), [one.port, other.port]) as port,
        ):
            client = Client(port)
            outputs = whole(client)
            session = client.json("/cell/sessions", {"model": MODEL})["session"]
            steps = [step(client, session, number) for number in range(1, 7)]
            expect("both replicas have stepped", all(steps_of(replica) for replica in (first, second)), True)
            one.kill()
            steps += [step(client, session, number) for number in range(7, 10)]
            steps += stream(other, session, 10, port)
            expect("behind nginx, one replica killed: steps and WebSocket equal the whole", steps == outputs, True)
            expect("exit code after SIGTERM", other.stop(), 0)


def steps_of(client: Client) -> float:
    """Steps that a replica has run."""
    found = re.search(r"^rnn_steps_total\S* (\S+)", client.text("/metrics"), re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def key_value(server: str, folder: Path) -> Iterator[str]:
    """A server with an append-only file, as in docker-compose.yml: its URL."""
    port = free_port()
    options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder), "--appendonly", "yes", "--save", ""]
    with process([server, *options], port):
        yield f"valkey://127.0.0.1:{port}/0"


@contextmanager
def proxy(nginx: str, folder: Path, ports: list[int]) -> Iterator[int]:
    """The port of an nginx with deploy/nginx.conf in front of these."""
    port = free_port()
    text = (ROOT / "deploy" / "nginx.conf").read_text().replace("listen 8000;", f"listen 127.0.0.1:{port};")
    for number, replica in enumerate(ports, 1):
        text = text.replace(f"rnn-service-{number}:8000", f"127.0.0.1:{replica}")
    # Its workers are another user's and must reach what lies under the folder.
    folder.chmod(0o755)
    configuration = folder / "nginx.conf"
    configuration.write_text(re.sub(r"/tmp/(\w)", rf"{folder}/\1", text))
    with process([nginx, "-c", str(configuration), "-p", str(folder), "-g", "daemon off;"], port):
        yield port


@contextmanager
def process(command: list[str], port: int) -> Iterator[None]:
    """A process that listens on the port; ended at the end."""
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not listens(port):
            if running.poll() is not None or time.monotonic() > deadline:
                raise CheckFailed(f"expected {command[0]} to listen on port {port}; it ended, or took too long")
            time.sleep(0.05)
        yield
    finally:
        running.terminate()
        running.wait(START_SECONDS)


def listens(port: int) -> bool:
    """Whether the port accepts a connection."""
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0
