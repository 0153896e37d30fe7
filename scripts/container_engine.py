"""Programs that build images and run containers: docker and podman, or buildah in a chroot."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGE = "localhost/rnn-service:check"
PREFIX = f"rnn-service-check-{os.getpid()}"
USER = 10001
STOP_SECONDS = 30
NUMBERS = count(1)


class CheckFailed(Exception):
    """A check failed; the message says what was expected and what came."""


def output(*command: str) -> str:
    """Stdout of a command that must succeed."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def works(*command: str) -> bool:
    """Whether the command exists and succeeds."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


class Container(ABC):
    """One run of a container, over read-only models.

    sessions: the volume on /sessions, if any. on_host_network: it listens on 127.0.0.1 of the host and can call the
    host; else it has a network of its own, where the engine supports that.
    """

    def __init__(
        self, port: int, settings: Mapping[str, str], *, sessions: str = "", on_host_network: bool = False
    ) -> None:
        self.name = f"{PREFIX}-{next(NUMBERS)}"
        self.port = port
        self._settings = settings
        self._sessions = sessions
        self._on_host_network = on_host_network
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # kept as long as the container
        self._process = subprocess.Popen(self._command(), stdout=self._log, stderr=subprocess.STDOUT)

    def log(self) -> str:
        """What the service has written so far."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def stop(self) -> int:
        """Send the service SIGTERM and wait for its exit code."""
        self._terminate()
        return self._process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """Send every process in it SIGKILL."""
        self._kill()
        self._process.wait(STOP_SECONDS)

    @abstractmethod
    def run(self, *command: str) -> str:
        """Stdout of a command beside the running service; raises CalledProcessError if it fails."""

    @abstractmethod
    def remove(self) -> None:
        """Remove it, whether it runs or not."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    def _terminate(self) -> None: ...

    @abstractmethod
    def _kill(self) -> None: ...


class Engine(ABC):
    """A program that builds images and runs containers."""

    cli: str
    build_options: tuple[str, ...] = ("--format", "docker")
    mounts_while_building = True
    confines = True  # the root is read-only

    def has(self, image: str) -> bool:
        """Whether the image is here, or can be fetched."""
        return works(self.cli, "inspect", "--type", "image", image) or works(self.cli, "pull", image)

    def build(self, context: Path, *options: str) -> None:
        """Build an image."""
        subprocess.run([self.cli, "build", *self.build_options, *options, str(context)], check=True)

    @abstractmethod
    def start(
        self, port: int, settings: Mapping[str, str], *, sessions: str = "", on_host_network: bool = False
    ) -> Container:
        """Start the image's entry point, to be called on this port of 127.0.0.1."""

    @abstractmethod
    def volume(self) -> Any:
        """Context of a new volume for /sessions: its name."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The image's configuration, in Docker's format."""

    @abstractmethod
    def size(self) -> int:
        """Bytes of the image, unpacked."""


class Docker(Engine):
    """Docker, or podman by the same commands. Containers are confined as in docker-compose.yml."""

    def __init__(self, cli: str) -> None:
        self.cli = cli
        if cli == "docker":
            self.build_options, self.mounts_while_building = (), False

    def start(
        self, port: int, settings: Mapping[str, str], *, sessions: str = "", on_host_network: bool = False
    ) -> Container:
        """By `docker run`."""
        return DockerContainer(self.cli, port, settings, sessions=sessions, on_host_network=on_host_network)

    @contextmanager
    def volume(self) -> Iterator[str]:
        """A named volume, which the engine makes when it is first used, with the owner of the image's folder."""
        name = f"{PREFIX}-sessions"
        yield name
        works(self.cli, "volume", "rm", "--force", name)

    def config(self) -> dict[str, Any]:
        """As `docker inspect` shows it; podman puts the health check beside it."""
        image = json.loads(output(self.cli, "inspect", "--type", "image", IMAGE))[0]
        return {"Healthcheck": image.get("Healthcheck"), **image["Config"]}

    def size(self) -> int:
        """As the engine counts."""
        return int(output(self.cli, "image", "inspect", "--format", "{{.Size}}", IMAGE))


class DockerContainer(Container):
    """A container of docker or podman."""

    def __init__(self, cli: str, port: int, settings: Mapping[str, str], **options: Any) -> None:
        self._cli = cli
        super().__init__(port, settings, **options)

    def run(self, *command: str) -> str:
        """In the running container."""
        return output(self._cli, "exec", self.name, *command)

    def remove(self) -> None:
        """Whether it runs or not."""
        works(self._cli, "rm", "--force", self.name)

    def _command(self) -> list[str]:
        settings = dict(self._settings)
        options = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
        options += ["--volume", f"{ROOT}/models:/models:ro"]
        if self._sessions:
            options += ["--volume", f"{self._sessions}:/sessions"]
        if self._on_host_network:
            settings |= {"RNN_HOST": "127.0.0.1", "RNN_PORT": str(self.port)}
            options += ["--network", "host"]
        else:
            options += ["--publish", f"127.0.0.1:{self.port}:8000"]
        options += [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
        return [self._cli, "run", "--rm", "--name", self.name, *options, IMAGE]

    def _terminate(self) -> None:
        output(self._cli, "stop", "--time", str(STOP_SECONDS), self.name)

    def _kill(self) -> None:
        output(self._cli, "kill", self.name)


class Buildah(Engine):
    """buildah with chroot isolation: no daemon, no namespaces of its own, the network of the host."""

    cli = "buildah"
    build_options = ("--isolation", "chroot", "--format", "docker")
    confines = False

    def start(
        self, port: int, settings: Mapping[str, str], *, sessions: str = "", on_host_network: bool = False
    ) -> Container:
        """By `buildah run`."""
        return BuildahContainer(self.config(), port, settings, sessions=sessions, on_host_network=on_host_network)

    @contextmanager
    def volume(self) -> Iterator[str]:
        """A folder that belongs to the image's user, as a new volume would."""
        with tempfile.TemporaryDirectory() as folder:
            os.chown(folder, USER, USER)
            yield folder

    def config(self) -> dict[str, Any]:
        """As `buildah inspect` shows it, in lower case at the top."""
        image = json.loads(output("buildah", "inspect", "--type", "image", IMAGE))
        config: dict[str, Any] = image["Docker"]["config"]
        return config

    def size(self) -> int:
        """The files' bytes, a hard link counted once."""
        name = output("buildah", "from", "--name", f"{PREFIX}-size", IMAGE)
        try:
            return int(output("du", "--summarize", "--bytes", output("buildah", "mount", name)).split()[0])
        finally:
            works("buildah", "rm", name)


class BuildahContainer(Container):
    """Processes in a chroot."""

    def __init__(self, config: Mapping[str, Any], port: int, settings: Mapping[str, str], **options: Any) -> None:
        self._config = config
        self._options: tuple[str, ...] = ()
        super().__init__(port, settings, **options)

    def run(self, *command: str) -> str:
        """Runs in the same files and as the same user, in a chroot of its own."""
        return output("buildah", "run", *self._options, self.name, "--", *command)

    def remove(self) -> None:
        """Whether it runs or not."""
        if self.running:
            self.kill()
        works("buildah", "rm", self.name)

    def _command(self) -> list[str]:
        output("buildah", "from", "--name", self.name, IMAGE)
        settings = {**self._settings, "RNN_PORT": str(self.port)}
        if self._on_host_network:
            settings["RNN_HOST"] = "127.0.0.1"
        self._options = ("--isolation", "chroot", "--volume", f"{ROOT}/models:/models:ro")
        if self._sessions:
            self._options += ("--volume", f"{self._sessions}:/sessions")
        self._options += tuple(word for name, value in settings.items() for word in ("--env", f"{name}={value}"))
        return ["buildah", "run", *self._options, self.name, "--", *self._config["Entrypoint"], *self._config["Cmd"]]

    def _terminate(self) -> None:
        """Send SIGTERM to the process that started the others."""
        ours = self._ours()
        first = [pid for pid, parent in ours.items() if parent not in ours]
        if len(first) != 1:
            raise CheckFailed(f"expected one process of user {USER} that started the others, and got {len(first)}")
        os.kill(first[0], signal.SIGTERM)

    def _kill(self) -> None:
        for pid in self._ours() or [self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ours(self) -> dict[int, int]:
        """The image's processes, without buildah's own above them, and the parent of each."""
        parents, users = {}, {}
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError):  # it has ended meanwhile
                fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
                pid = int(status.parent.name)
                parents[pid], users[pid] = int(fields["PPid"]), fields["Uid"].split()
                if fields["Name"].startswith("memfd:buildah"):
                    users[pid] = []
        below = [pid for pid in parents if self._process.pid in _ancestors(pid, parents)]
        return {pid: parents[pid] for pid in below if users[pid] == [str(USER)] * 4}


def _ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid in parents:
        pid = parents[pid]
        yield pid


def choose_engine(cli: str | None = None) -> Engine:
    """The engine asked for, or the first that works here. Raises CheckFailed if it does not work, or none does."""
    if cli in (None, "docker") and works("docker", "info"):
        return Docker("docker")
    if cli in (None, "buildah") and works("buildah", "--version"):
        return Buildah()
    if cli in (None, "podman") and works("podman", "info"):
        return Docker("podman")
    raise CheckFailed(f"expected {cli or 'docker, podman or buildah'}, and it does not work here")
