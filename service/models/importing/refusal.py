"""Why an import is refused, in one line that is safe for a terminal.

Names and parsers' messages in it come from untrusted files: they may hold control characters or be very long.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


def terminal_text(text: object, limit: int = 1000) -> str:
    """The text in one line, control characters escaped, cut to `limit` characters."""
    line = str(text)
    line = line if line.isprintable() else ascii(line)[1:-1]
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


class CheckpointRefused(Exception):
    """The file is not a checkpoint that can be imported."""

    def __init__(self, message: str) -> None:
        super().__init__(terminal_text(message))


class ChoiceNeeded(CheckpointRefused):
    """The file is sound, but the command's options leave open what is meant, or do not fit it."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Make a CheckpointRefused that says `what` of any error: a parser can raise anything for a damaged file."""
    try:
        yield
    except CheckpointRefused:
        raise
    except OSError as error:
        raise CheckpointRefused(f"the file cannot be read: {error.strerror or 'I/O error'}") from None
    except MemoryError:
        raise CheckpointRefused("the file asks for more memory than there is") from None
    except Exception as error:
        sentence = re.split(r"\.\s|\n", str(error).strip())[0] or type(error).__name__
        raise CheckpointRefused(f"{what}: {sentence:.120}") from None


def choose(names: Sequence[str], wanted: str | None, *, option: str, what: str) -> str:
    """The only one of names, or `wanted`, or the only one that ends in `.wanted`. Raises ChoiceNeeded."""
    matches = [name for name in names if wanted in (None, name)]
    matches = matches or [name for name in names if name.endswith(f".{wanted}")]
    if len(matches) == 1:
        return matches[0]
    there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")
    if wanted is None:
        raise ChoiceNeeded(f"the file has {len(names)} {what}s: {there}; say which with {option}")
    if matches:
        raise ChoiceNeeded(f"{option} {wanted} fits {', '.join(matches[:8])}; give the whole name")
    raise ChoiceNeeded(f"{option} {wanted} is not in the file; it has {there or f'no {what}'}")
