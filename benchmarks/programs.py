"""The load generators that are written in C, compiled when they are needed."""

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).parent


@contextmanager
def compiled(name: str) -> Iterator[Path]:
    """benchmarks/<name>.c as a program in a folder of its own. Raises CalledProcessError if `cc` cannot compile it."""
    with tempfile.TemporaryDirectory(prefix=f"rnn-{name}-") as directory:
        program = Path(directory, name)
        subprocess.run(["cc", "-O2", "-o", str(program), str(SOURCES / f"{name}.c"), "-lm"], check=True)
        yield program
