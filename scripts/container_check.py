#!/usr/bin/env python3
"""Build the container image, start it, call the service in it, and stop it; docs/container.md says more.

    scripts/container_check.py [--base-image IMAGE] [--torch-index-url URL]

By docker where its engine runs, else by buildah in a chroot, else by podman. Where the default base image cannot be
pulled, root with debootstrap gets a Debian one. What pip is configured with on this machine serves the build, too.
Standard library alone. Exit code 0 only if every check passed.
"""

import argparse
import ast
import configparser
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from container_engine import IMAGE, ROOT, USER, CheckFailed, Engine, choose_engine, output

DEBIAN = "localhost/rnn-service-base:bookworm"
READY_SECONDS = 120
PIP_OPTIONS = {"index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "timeout"}
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


def expect(what: str, got: object, expected: object) -> None:
    """Print a line if the two are equal. Raises CheckFailed if not."""
    if got != expected:
        raise CheckFailed(f"{what}: expected {expected!r}, and got {got!r:.400}")
    print(f"ok    {what}: {str(got)[:100] or 'nothing'}", flush=True)


def pip_options() -> dict[str, str]:
    """Where pip gets packages on this machine: from its files and PIP_* variables, which go first."""
    lines = output(sys.executable, "-m", "pip", "config", "list").splitlines()
    options = {}
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in PIP_OPTIONS:
            options[option] = ast.literal_eval(value)
    return options


def local_paths(options: dict[str, str]) -> set[Path]:
    """The files and folders of this machine that pip's options name."""
    paths = set()
    for option, value in options.items():
        for word in value.split():
            path = Path(urlsplit(word).path if word.startswith("file:") else word)
            if path.is_absolute() and path.exists():
                # An index's pages link to files that lie beside it.
                paths.add(path.parent if option.endswith("index-url") else path)
    return paths


@contextmanager
def pip_configuration(options: dict[str, str]) -> Iterator[Path]:
    """A pip.conf with the options, for the time of a build."""
    config = configparser.RawConfigParser()
    config["global"] = {option: " ".join(value.split()) for option, value in options.items()}
    with tempfile.NamedTemporaryFile("w", suffix=".conf") as file:
        config.write(file)
        file.flush()
        yield Path(file.name)


def base_image(engine: Engine, wanted: str | None) -> str:
    """The image asked for, or the Dockerfile's default, or a Debian made here. Raises CheckFailed if there is none."""
    default = re.search(r"^ARG BASE_IMAGE=(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    image = wanted or (default[1] if default else "")
    if engine.has(image):
        return image
    if wanted or os.geteuid() != 0 or shutil.which("debootstrap") is None:
        raise CheckFailed(f"expected to pull {image}, and could not")
    print(f"note  {image} cannot be pulled: Debian from debootstrap takes its place", flush=True)
    if not engine.has(DEBIAN):
        make_debian(engine)
    return DEBIAN


def make_debian(engine: Engine) -> None:
    """A Debian image with nothing but Python, from this machine's package mirror."""
    with tempfile.TemporaryDirectory() as folder:
        root, context = Path(folder, "root"), Path(folder, "context")
        context.mkdir()
        packages = "--include=python3,python3-venv,ca-certificates"
        subprocess.run(["debootstrap", "--variant=minbase", packages, "bookworm", str(root)], check=True)
        leave_out = ["--exclude=./var/cache/apt/*", "--exclude=./var/lib/apt/lists/*"]
        output("tar", "--create", "--file", f"{context}/root.tar", *leave_out, "--directory", str(root), ".")
        (context / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
        engine.build(context, "--tag", DEBIAN)


def build(engine: Engine, base: str, torch_index_url: str) -> None:
    """Build the image as this machine can."""
    options = pip_options()
    arguments = {"BASE_IMAGE": base, "TORCH_INDEX_URL": torch_index_url}
    arguments |= {name: os.environ[name] for name in PROXIES if name in os.environ}
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    if engine.mounts_while_building:
        given += [word for path in sorted(local_paths(options)) for word in ("--volume", f"{path}:{path}:ro")]
    began = time.monotonic()
    with pip_configuration(options) as file:
        engine.build(ROOT, "--tag", IMAGE, "--secret", f"id=pip_conf,src={file}", *given)
    print(f"built {IMAGE} with {engine.cli} on {base} in {time.monotonic() - began:.0f} s", flush=True)


class Client:
    """Calls the service; no proxy stands between."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._opener = build_opener(ProxyHandler({}))

    def status(self, path: str) -> int:
        """Status of a GET; 0 if nobody answers."""
        try:
            with self._opener.open(self._url + path, timeout=10) as reply:
                return int(reply.status)
        except HTTPError as error:
            return error.code
        except OSError:
            return 0

    def json(self, path: str, body: object = None) -> Any:
        """The reply to a GET, or to a POST of a body."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._url + path, data, {"content-type": "application/json"})
        with self._opener.open(request, timeout=30) as reply:
            return json.load(reply)


def await_ready(engine: Engine, client: Client) -> None:
    """Return when the service is ready. Raises CheckFailed if it ends or takes too long."""
    began = time.monotonic()
    while client.status("/health/ready") != 200:
        if not engine.running or time.monotonic() - began > READY_SECONDS:
            raise CheckFailed(f"expected the service to get ready within {READY_SECONDS} s; it ended, or took longer")
        time.sleep(0.1)
    print(f"ok    ready after {time.monotonic() - began:.1f} s", flush=True)


def check_model(client: Client, name: str, input_size: int) -> None:
    """A sequence run whole gives what its steps give one by one, to 1e-5."""
    inputs = [[math.sin(step + column) for column in range(input_size)] for step in range(3)]
    whole = client.json("/rnn/forward", {"model": name, "inputs": inputs})["outputs"]
    state: dict[str, object] = {}
    steps = []
    for values in inputs:
        reply = client.json("/cell/step", {"model": name, "inputs": values, **state})
        steps.append(reply["outputs"])
        state = {letter: reply[letter] for letter in ("h", "c") if letter in reply}
    pairs = zip(chain.from_iterable(whole), chain.from_iterable(steps), strict=True)
    error = max(abs(one - other) for one, other in pairs)
    expect(f"{name}: steps agree with the whole", error <= 1e-5, True)


def check(engine: Engine, client: Client) -> None:
    """Every check of a service that is ready."""
    models = client.json("/models")["models"]
    bundled = sorted(path.parent.name for path in ROOT.glob("models/*/config.json"))
    expect("models", sorted(model["name"] for model in models if model["state"] != "failed"), bundled)
    for model in models:
        check_model(client, model["name"], model["input_size"])
    for path, status in {"/docs": 200, "/metrics": 200, "/problems/model-not-found": 200, "/models/none": 404}.items():
        expect(f"GET {path}", client.status(path), status)
    expect("user and group", engine.run("python", "-c", "import os; print(os.getuid(), os.getgid())"), f"{USER} {USER}")
    places = ("/app", "/venv", "/models", "/usr")
    expect("what it may write there", engine.run("find", *places, "-writable", "-not", "-type", "l"), "")
    kind, *command = engine.config()["Healthcheck"]["Test"]
    expect("healthcheck", (kind, engine.run(*command)), ("CMD", ""))
    expect("exit code after SIGTERM", engine.stop(), 0)
    expect("GET /health/live then", client.status("/health/live"), 0)


def main() -> None:
    """Build, start, check, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-image", help="default: the Dockerfile's, else Debian from debootstrap")
    parser.add_argument("--torch-index-url", default="", help="where torch alone comes from, for a CPU-only image")
    options = parser.parse_args()
    engine = choose_engine()
    build(engine, base_image(engine, options.base_image), options.torch_index_url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    client = Client(port)
    try:
        engine.start(port)
        await_ready(engine, client)
        check(engine, client)
        print(f"size  {engine.size() / 1e6:.0f} MB", flush=True)
    except (CheckFailed, subprocess.SubprocessError, OSError):
        print(engine.log(), file=sys.stderr)
        raise
    finally:
        engine.remove()


if __name__ == "__main__":
    try:
        main()
    except (CheckFailed, subprocess.SubprocessError, OSError) as error:
        sys.exit(f"container check failed: {error}")
