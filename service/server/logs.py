"""Log lines: JSON for machines, readable on a terminal; uvicorn's own go the same way."""

import logging
import sys
from typing import Any

import orjson
import structlog

from service.settings import Settings


def configure_logging(settings: Settings) -> None:
    """Set up structlog and the standard library's logging for the whole process, to standard output."""
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stdout.isatty())
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    tail: list[Any] = [structlog.processors.format_exc_info, _json_line]
    if console:
        tail = [structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())]
    structlog.configure(
        processors=[*shared, *tail],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *tail]
        )
    )
    logging.basicConfig(handlers=[handler], level=max(level, logging.INFO), force=True)


def _json_line(_: Any, __: str, event: Any) -> str:
    return orjson.dumps(event, default=str).decode()
