"""How workers ask each other: each has a Unix socket, in a folder that only their user can enter."""

import asyncio
import os
import socket
from contextlib import closing
from pathlib import Path

import orjson
import structlog

from service.api.administration import Action, Administration
from service.errors import ServiceError

ANSWER_SECONDS = 60.0


class WorkerSockets:
    """The sockets of all workers. What the others ask before `listen` waits until then."""

    def __init__(self, folder: str) -> None:
        # A socket's own path may have 107 bytes, whatever the folder's.
        self._folder = Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")
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
        async def reason(path: Path) -> str | None:
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    reader, writer = await asyncio.open_unix_connection(str(path))
                    with closing(writer):
                        writer.write(orjson.dumps([action, *arguments]) + b"\n")
                        answer = await reader.read()
            except (ConnectionError, FileNotFoundError):
                answer = b""
            except OSError as error:  # such as TimeoutError, which has no text
                return str(error) or f"no answer in {ANSWER_SECONDS:g} s"
            return orjson.loads(answer) if answer else None  # it has ended

        others = [path for path in self._folder.glob("*.sock") if path != self._path]
        reasons = zip(others, await asyncio.gather(*map(reason, others)), strict=True)
        return {path.stem: found for path, found in reasons if found is not None}
