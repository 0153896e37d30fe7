"""How workers ask each other: a Unix socket of each, in a folder that only their user can enter.

Each connection has one call and one answer, a line of JSON both.
"""

import asyncio
import os
import socket
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import orjson

from service.api.administration import Administration, Call, Failure

ANSWER_SECONDS = 60.0


class Peers:
    """The workers whose sockets are in a folder. What they ask of this one waits until it serves."""

    def __init__(self, folder: str) -> None:
        # A socket's own path may have 107 bytes, whatever the folder's.
        self._folder = Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")
        self._own = self._folder / f"{os.getpid()}.sock"
        self._socket = socket.socket(socket.AF_UNIX)
        new = self._own.with_suffix(".new")
        new.unlink(missing_ok=True)
        self._socket.bind(str(new))
        self._socket.listen()
        new.replace(self._own)  # others see it once it listens: one that does not is a worker's that has ended

    async def serve(self, administration: Administration) -> None:
        """Do what the others ask for, from now on."""
        self._server = await asyncio.start_unix_server(partial(self._obey, administration), sock=self._socket)

    def close(self) -> None:
        self._own.unlink(missing_ok=True)
        self._server.close()

    async def ask(self, call: Call) -> dict[int, Failure | None]:
        """As `Others.ask`; who does not answer within `ANSWER_SECONDS` has failed."""
        others = [path for path in self._folder.glob("*.sock") if path != self._own]
        answers = await asyncio.gather(*(self._ask(path, call) for path in others))
        return {int(path.stem): answer[0] for path, answer in zip(others, answers, strict=True) if answer}

    async def _ask(self, path: Path, call: Call) -> list[Failure | None]:
        """The answer; none of a worker that has ended."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(str(path))
                with closing(writer):
                    writer.write(orjson.dumps([*call]) + b"\n")
                    line = await reader.readline()
        except TimeoutError:
            return [Failure("", f"no answer in {ANSWER_SECONDS:g} s")]
        except (ConnectionError, FileNotFoundError) as error:
            if isinstance(error, ConnectionRefusedError):  # it was killed
                path.unlink(missing_ok=True)  # noqa: ASYNC240  # in memory
            line = b""
        except OSError as error:
            return [Failure("", f"it cannot be asked: {error.strerror}")]
        return [failure and Failure(*failure) for failure in orjson.loads(line or b"[]")]

    async def _obey(
        self, administration: Administration, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        with closing(writer), suppress(ConnectionError):
            if line := await reader.readline():
                failure = await administration.obey(Call(*orjson.loads(line)))
                writer.write(orjson.dumps([failure and [*failure]]) + b"\n")
                await writer.drain()
