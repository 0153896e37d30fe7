"""What runs during a part of the benchmark: servers that are kept, and the compiled load generators."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from benchmarks.programs import compiled
from benchmarks.servers import Running, Server, running

Value = TypeVar("Value")


class Fleet:
    """Servers, programs and what else is needed, by name: entered when first asked for, and left with the part."""

    def __init__(self, models: Path, scratch: Path) -> None:
        self.models = models
        self.scratch = scratch
        self._stack = ExitStack()
        self._kept: dict[str, Any] = {}

    def __enter__(self) -> "Fleet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kept.clear()
        self._stack.close()

    def keep(self, name: str, context: AbstractContextManager[Value]) -> Value:
        """What the context gives; it is entered once for each name."""
        if name not in self._kept:
            self._kept[name] = self._stack.enter_context(context)
        value: Value = self._kept[name]
        return value

    def server(self, server: Server) -> Running:
        """The server. Raises RuntimeError if it does not become ready."""
        return self.keep(f"server {server.name}", running(server, self.models, self.scratch))

    def program(self, name: str) -> Path:
        """benchmarks/<name>.c, compiled. Raises CalledProcessError if `cc` cannot."""
        return self.keep(f"program {name}", compiled(name))
