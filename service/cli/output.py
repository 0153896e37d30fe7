"""What a command prints: tables and lines to stdout, one line to stderr where it fails."""

from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text

from service.models.importing.refusal import terminal_text

FAILED = 1
USAGE = 2


def console() -> Console:
    """Stdout, as wide as the terminal; where there is none, wide enough for a table."""
    stdout = Console(highlight=False)
    return stdout if stdout.is_terminal else Console(highlight=False, width=200)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line on stderr."""
    # soft_wrap: one line stays one line, however narrow the terminal.
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print(Text("error: ", "bold red") + Text(terminal_text(message)))
    raise typer.Exit(code)
