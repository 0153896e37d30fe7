#!/usr/bin/env python3
"""Build the container image, start it, call the service in it, and stop it; docs/container.md says more.

    scripts/container_check.py [--base-image IMAGE] [--torch-backend NAME] [--torch-index-url URL] [--engine NAME]
                               [--built]

Uses docker where its daemon runs, else buildah in a chroot, else podman. If the default base image cannot be pulled,
root with debootstrap makes a Debian image instead. The build uses this machine's pip configuration. Needs the standard
library alone. The exit code is 0 only if every check passed.
"""

import argparse
import ast
import configparser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from container_client import Client, expect, started
from container_engine import IMAGE, ROOT, USER, CheckFailed, Container, Engine, choose_engine, output
from container_sessions import MODEL, check_kill, check_scaled, stream, whole

DEBIAN = "localhost/rnn-service-base:bookworm"
PIP_OPTIONS = {"index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "timeout"}
SOURCES = {"index-url", "extra-index-url", "find-links", "no-index"}
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


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
    """A temporary pip.conf with the options."""
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


def build(engine: Engine, base: str, torch_backend: str | None, torch_index_url: str) -> None:
    """Build the image. torch_backend None: cpu, or, where this machine's pip has sources of its own, from those."""
    options = pip_options()
    if torch_backend is None:
        torch_backend = "" if SOURCES & set(options) else "cpu"
    arguments = {"BASE_IMAGE": base, "TORCH_BACKEND": torch_backend, "TORCH_INDEX_URL": torch_index_url}
    arguments |= {name: os.environ[name] for name in PROXIES if name in os.environ}
    given = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    if engine.mounts_while_building:
        given += [word for path in sorted(local_paths(options)) for word in ("--volume", f"{path}:{path}:ro")]
    began = time.monotonic()
    with pip_configuration(options) as file:
        engine.build(ROOT, "--tag", IMAGE, "--secret", f"id=pip_conf,src={file}", *given)
    print(f"built {IMAGE} with {engine.cli} on {base} in {time.monotonic() - began:.0f} s", flush=True)


def check_model(client: Client, name: str, taken: dict[str, Any], *, steppable: bool) -> None:
    """A sequence run whole gives the same outputs as its steps one by one, to 1e-5. taken: the model's inputs."""
    if taken["dtype"] == "int64":
        inputs: list[Any] = [1, 0, 1]
    else:
        inputs = [[math.sin(step + column) for column in range(taken["shape"][-1])] for step in range(3)]
    whole = client.json("/rnn/forward", {"model": name, "inputs": inputs})["outputs"]
    if not steppable:
        expect(f"{name}: steps that came", len(whole), len(inputs))
        return
    state: dict[str, object] = {}
    steps = []
    for values in inputs:
        reply = client.json("/cell/step", {"model": name, "inputs": values, **state})
        steps.append(reply["outputs"])
        state = {letter: reply[letter] for letter in ("h", "c") if letter in reply}
    pairs = zip(chain.from_iterable(whole), chain.from_iterable(steps), strict=True)
    error = max(abs(one - other) for one, other in pairs)
    expect(f"{name}: steps agree with the whole", error <= 1e-5, True)


def check(engine: Engine, container: Container, client: Client) -> None:
    """Every check of a service that is ready."""
    models = client.json("/models")["models"]
    bundled = sorted(path.parent.name for path in ROOT.glob("models/*/config.json"))
    expect("models", sorted(model["name"] for model in models if model["state"] != "failed"), bundled)
    for model in models:
        check_model(client, model["name"], model["inputs"][0], steppable=model["steppable"])
    paths = {"/": 200, "/docs": 200, "/metrics": 200, "/problems/model-not-found": 200, "/models/none": 404}
    for path, status in paths.items():
        expect(f"GET {path}", client.status(path), status)
    expect("the page at / is whole", client.text("/").rstrip().endswith("</html>"), True)
    session = client.json("/cell/sessions", {"model": MODEL})["session"]
    expect("a session over a WebSocket", stream(container, session, 1) == whole(client), True)
    check_files(engine, container)
    kind, *command = engine.config()["Healthcheck"]["Test"]
    expect("healthcheck", (kind, container.run(*command)), ("CMD", ""))
    expect("exit code after SIGTERM", container.stop(), 0)
    expect("GET /health/live then", client.status("/health/live"), 0)


def check_files(engine: Engine, container: Container) -> None:
    """Versions, the user, and what it may write."""
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    names = ("fastapi", "libvalkey", "llvmlite", "numpy", "uvicorn", "valkey", "websockets")
    lines = "; ".join(f"print(version('{name}'))" for name in names)
    versions = container.run("python", "-c", f"from importlib.metadata import version; {lines}").split()
    expect("versions", dict(zip(names, versions, strict=True)), {name: locked[name] for name in names})
    project = re.search(r'^__version__ = "(.+)"', (ROOT / "service" / "__init__.py").read_text(), re.MULTILINE)
    expect("rnn-service --version", container.run("rnn-service", "--version").split()[-1], project and project[1])
    bom = json.loads(container.run("cat", "/app/sbom.cdx.json"))
    listed = {part["name"]: part["version"] for part in bom["components"]}
    expect("versions in the SBOM", {name: listed.get(name) for name in names}, {name: locked[name] for name in names})
    torch = "from importlib.metadata import version; print(version('torch'))"
    expect("torch", listed["torch"], container.run("python", "-c", torch))
    identity = "import os; print(os.getuid(), os.getgid())"
    expect("user and group", container.run("python", "-c", identity), f"{USER} {USER}")
    expect("/sessions", container.run("stat", "--format=%u %g %a", "/sessions"), f"{USER} {USER} 700")
    places = ("/app", "/venv", "/models", "/usr")
    expect("what it may write there", container.run("find", *places, "-writable", "-not", "-type", "l"), "")
    if engine.confines:
        writable = "import os; print(*(p for p in ('/', '/etc', '/tmp', '/sessions') if os.access(p, os.W_OK)))"
        expect("what it may write elsewhere", container.run("python", "-c", writable), "/tmp")


def main() -> None:
    """Build, start, check, remove."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-image", help="default: the Dockerfile's, else Debian from debootstrap")
    parser.add_argument("--torch-backend", help="which build of torch, as in the Dockerfile")
    parser.add_argument("--torch-index-url", default="", help="where torch alone comes from")
    parser.add_argument("--engine", choices=("docker", "buildah", "podman"), help="default: the first that works here")
    parser.add_argument("--built", action="store_true", help="check the image of the last build")
    options = parser.parse_args()
    engine = choose_engine(options.engine)
    if not options.built:
        build(engine, base_image(engine, options.base_image), options.torch_backend, options.torch_index_url)
    with started(engine, {}) as (container, client):
        check(engine, container, client)
    for workers in (1, 2):
        check_kill(engine, workers)
    check_scaled(engine)
    print(f"size  {engine.size() / 1e6:.0f} MB", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (CheckFailed, subprocess.SubprocessError, OSError) as error:
        sys.exit(f"container check failed: {error}")
