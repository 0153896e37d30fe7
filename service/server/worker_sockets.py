"""How workers ask each other: each has a Unix socket, in a folder that only their user can enter."""

import asyncio
import os
import socket
from contextlib import closing, suppress
from pathlib import Path

import orjson
import structlog

from service.api.administration import Action, Administration
from service.errors import ServiceError, WorkerFailed

ANSWER_SECONDS = 60.0
RETRY_SECONDS = 0.1


class WorkerSockets:
    """The sockets of all workers. What the others ask before `listen` waits until then.

    What must outlive a worker, for the one that takes its place, is in the same folder.
    """

    def __init__(self, folder: str, workers: int) -> None:
        self._workers = workers
        # A socket's own path may have 107 bytes, whatever the folder's.
        self._folder = Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")
        self._drained = self._folder / "drained.json"
        self._path = self._folder / f"{os.getpid()}.sock"
        self._path.unlink(missing_ok=True)  # of a process that was killed
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()

    async def listen(self, administration: Administration) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            reason = ""
            try:
                if line := await reader.readline():  # else the one who asks was killed
                    await administration.here(*orjson.loads(line))
            except ServiceError as error:
                reason = str(error)
            except Exception:
                reason = "it failed; the log has the reason"
                structlog.get_logger().exception("internal_error")
            writer.write(orjson.dumps(reason))
            writer.close()

        self._server = await asyncio.start_unix_server(answer, sock=self._socket)

    async def ask(self, action: Action, *arguments: str | None) -> dict[str, str]:
        loop, reasons = asyncio.get_running_loop(), dict[str, str]()
        until = loop.time() + ANSWER_SECONDS

        async def ask_one(path: Path) -> None:
            with suppress(OSError):  # such as TimeoutError; or it has ended
                async with asyncio.timeout_at(until):
                    reader, writer = await asyncio.open_unix_connection(str(path))
                    with closing(writer):
                        writer.write(orjson.dumps([action, *arguments]) + b"\n")
                        if answer := await reader.read():
                            reasons[path.stem] = orjson.loads(answer)

        while True:
            silent = [path for path in self._folder.glob("*.sock") if path.stem not in reasons and path != self._path]
            await asyncio.gather(*map(ask_one, silent))
            if (missing := self._workers - 1 - len(reasons)) <= 0:
                return reasons
            if loop.time() >= until:
                told = ", ".join(sorted((*reasons, self._path.stem)))
                message = f"{missing} of {self._workers} workers gave no answer in {ANSWER_SECONDS:g} s"
                raise WorkerFailed(f"{message}; those that did have the process ids {told}")
            await asyncio.sleep(RETRY_SECONDS)  # one may be starting in place of another that has ended

    def drained(self) -> list[tuple[str, str]]:
        return orjson.loads(self._drained.read_bytes()) if self._drained.exists() else []

    def keep_drained(self, versions: list[tuple[str, str]]) -> None:
        new = self._path.with_suffix(".json")
        try:
            new.write_bytes(orjson.dumps(versions))
            new.replace(self._drained)
        except OSError as error:
            raise WorkerFailed(f"a worker that starts will not know of drains: {error.strerror}") from None
