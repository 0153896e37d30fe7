"""Log lines: JSON for machines, readable on a terminal; uvicorn's own go the same way.

The log never holds up the service: what its reader does not take is dropped and counted.
"""

import asyncio
import logging
import os
import select
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import orjson
import structlog

from service.settings import Settings

PIPE_BYTES = 4096  # what a pipe takes without waiting once it is writable at all (POSIX's PIPE_BUF on Linux)


class LogFile:
    """Standard output for log lines; writing neither waits nor fails. `dropped` counts lines that nobody took."""

    def __init__(self, descriptor: int) -> None:
        # A write to a plain file does not wait for a reader.
        is_plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self._at_once = 2**20 if is_plain else PIPE_BYTES
        self._poll: select.poll | None = None
        if not is_plain:
            try:
                # Opened anew, as whoever shares the descriptor may not expect that it does not wait.
                descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:  # a socket, or a pipe that belongs to another user
                self._poll = select.poll()
                self._poll.register(descriptor, select.POLLOUT)
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self.dropped = 0

    def write(self, text: str) -> None:
        self.flush()
        self._put(text.encode("utf-8", "replace"))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        data = b""
        for line in lines:
            if data and len(data) + len(line) > self._at_once:
                self._put(data)
                data = b""
            data += line
        self._put(data)

    def later(self, entry: dict[str, Any]) -> None:
        """Write an entry as a line of JSON, with others at the end of this turn of the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        entry["event"], entry["level"], entry["timestamp"] = "request", "info", datetime.now(UTC)
        self._lines.append(orjson.dumps(entry, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE))

    def _put(self, data: bytes) -> None:
        while data:
            written = 0
            with suppress(OSError):  # the reader is gone or too slow, or the disk is full
                if self._poll is None or self._poll.poll(0):
                    written = os.write(self._descriptor, data[: self._at_once])
            if not written:
                self.dropped += data.count(b"\n")
                return
            data = data[written:]


def configure_logging(settings: Settings) -> tuple[LogFile, Callable[[dict[str, Any]], None] | None]:
    """Set up structlog, the standard library's logging and warnings for the whole process, to standard output.

    Returns the log, and what logs a request's entry: None if requests are not logged.
    """
    descriptor = sys.stdout.fileno() if sys.stdout else os.open(os.devnull, os.O_WRONLY)  # None: started without one
    is_terminal = os.isatty(descriptor)
    console = settings.log_format == "console" or (settings.log_format == "auto" and is_terminal)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    file = LogFile(descriptor)
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    as_json: list[Any] = [structlog.processors.format_exc_info, _json_line]
    tail = [structlog.dev.ConsoleRenderer(colors=is_terminal)] if console else as_json
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file),  # type: ignore[arg-type]  # all that it asks of a file
        cache_logger_on_first_use=True,
    )
    formatter = structlog.stdlib.ProcessorFormatter
    handler = logging.StreamHandler(file)
    handler.setFormatter(formatter(foreign_pre_chain=shared, processors=[formatter.remove_processors_meta, *tail]))
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)
    logging.captureWarnings(True)
    if not settings.request_log or level > logging.INFO:
        return file, None
    return file, (lambda entry: structlog.get_logger().info("request", **entry)) if console else file.later


def _json_line(_: Any, __: str, event: Any) -> str:
    return orjson.dumps(event, default=str).decode()
