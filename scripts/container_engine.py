"""Programs that build images and run a container: docker and podman, or buildah in a chroot."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/rnn-service:check"
CONTAINER = f"rnn-service-check-{os.getpid()}"
USER = 10001
STOP_SECONDS = 30


class CheckFailed(Exception):
    """Something is not as it should be; the message says what was expected and what came."""


def output(*command: str) -> str:
    """Stdout of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def works(*command: str) -> bool:
    """Whether the command exists and succeeds."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Engine(ABC):
    """A program that builds images and runs a container of ours."""

    cli: str
    build_options: tuple[str, ...] = ("--format", "docker")
    mounts_while_building = True

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # kept as long as the engine

    def has(self, image: str) -> bool:
        """Whether the image is here, or can be fetched."""
        return works(self.cli, "inspect", "--type", "image", image) or works(self.cli, "pull", image)

    def build(self, context: Path, *options: str) -> None:
        """Build an image."""
        subprocess.run([self.cli, "build", *self.build_options, *options, str(context)], check=True)

    def start(self, port: int) -> None:
        """Start the image's entry point, to be called on this port of 127.0.0.1."""
        self._process = subprocess.Popen(self._command(port), stdout=self._log, stderr=subprocess.STDOUT)

    def log(self) -> str:
        """What the service has written so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def running(self) -> bool:
        """Whether the service was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Send the service SIGTERM and wait for its exit code."""
        if self._process is None:
            raise CheckFailed("nothing was started")
        self._terminate(self._process.pid)
        return self._process.wait(STOP_SECONDS)

    @abstractmethod
    def run(self, *command: str) -> str:
        """Stdout of a command beside the running service; raises CalledProcessError if it fails."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The image's configuration, in Docker's format."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of the image, unpacked."""

    @abstractmethod
    def remove(self) -> None:
        """Leave nothing of the container."""

    @abstractmethod
    def _command(self, port: int) -> list[str]: ...

    @abstractmethod
    def _terminate(self, started: int) -> None: ...


class Docker(Engine):
    """Docker, or podman by the same words. The container is confined as in docker-compose.yml."""

    def __init__(self, cli: str) -> None:
        super().__init__()
        self.cli = cli
        if cli == "docker":
            self.build_options, self.mounts_while_building = (), False

    def run(self, *command: str) -> str:
        """In the running container."""
        return output(self.cli, "exec", CONTAINER, *command)

    def config(self) -> dict[str, Any]:
        """As `docker inspect` shows it."""
        config: dict[str, Any] = json.loads(output(self.cli, "inspect", "--type", "image", IMAGE))[0]["Config"]
        return config

    def size(self) -> int:
        """As the engine counts."""
        return int(output(self.cli, "image", "inspect", "--format", "{{.Size}}", IMAGE))

    def remove(self) -> None:
        """Whether it runs or not."""
        works(self.cli, "rm", "--force", CONTAINER)

    def _command(self, port: int) -> list[str]:
        confined = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        mounts = ["--volume", f"{ROOT}/models:/models:ro", "--publish", f"127.0.0.1:{port}:8000"]
        return [self.cli, "run", "--rm", "--name", CONTAINER, *confined, *mounts, IMAGE]

    def _terminate(self, started: int) -> None:  # noqa: ARG002  # the engine knows the container by its name
        output(self.cli, "stop", "--time", str(STOP_SECONDS), CONTAINER)


class Buildah(Engine):
    """buildah with chroot isolation: no daemon, no namespaces of its own, the network of the host."""

    cli = "buildah"
    build_options = ("--isolation", "chroot", "--format", "docker")
    options: tuple[str, ...] = ()

    def run(self, *command: str) -> str:
        """In the same files and with the same user, each command in a chroot of its own."""
        return output("buildah", "run", *self.options, CONTAINER, "--", *command)

    def config(self) -> dict[str, Any]:
        """As `buildah inspect` shows it, in lower case at the top."""
        image = json.loads(output("buildah", "inspect", "--type", "image", IMAGE))
        config: dict[str, Any] = image["Docker"]["config"]
        return config

    def size(self) -> int:
        """The files' bytes, a hard link counted once."""
        size = output("du", "--summarize", "--bytes", output("buildah", "mount", CONTAINER)).split()[0]
        output("buildah", "umount", CONTAINER)
        return int(size)

    def remove(self) -> None:
        """Whether it runs or not."""
        if self.running and self._process is not None:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
        works("buildah", "rm", CONTAINER)

    def _command(self, port: int) -> list[str]:
        output("buildah", "from", "--name", CONTAINER, IMAGE)
        config = self.config()
        models = f"{ROOT}/models:/models:ro"
        self.options = ("--isolation", "chroot", "--env", f"RNN_PORT={port}", "--volume", models)
        return ["buildah", "run", *self.options, CONTAINER, "--", *config["Entrypoint"], *config["Cmd"]]

    def _terminate(self, started: int) -> None:
        """To the last of the processes below the one that was started; buildah has some of its own in between."""
        parents, users = {}, {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it has ended meanwhile
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                pid = int(status.parent.name)
                parents[pid], users[pid] = int(fields["PPid"]), fields["Uid"].split()
        last = [pid for pid in parents if started in _ancestors(pid, parents) and pid not in parents.values()]
        if [users[pid] for pid in last] != [[str(USER)] * 4]:
            raise CheckFailed(f"expected one process, of user {USER}, and got {[users[pid] for pid in last]}")
        os.kill(last[0], signal.SIGTERM)


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def choose_engine() -> Engine:
    """The best that works here. Raises CheckFailed if there is none."""
    if works("docker", "info"):
        return Docker("docker")
    if works("buildah", "--version"):
        return Buildah()
    if works("podman", "info"):
        return Docker("podman")
    raise CheckFailed("expected docker, podman or buildah, and none of them works")
