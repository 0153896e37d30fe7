"""What the processes on one port tell each other: how many connections each of them has.

A file of one number for each process, mapped into all of them. A process's place is held by a lock on it, which the
kernel lets go when the process ends, however it does.
"""

import fcntl
import mmap
from pathlib import Path

_WIDTH = 8


class Board:
    """A process's view of the file at a path. One that finds no place tells nothing, and is told of the others."""

    @staticmethod
    def make(path: Path, places: int) -> Path:
        """Make the file, for so many processes at a time; returns its path."""
        path.write_bytes(bytes(places * _WIDTH))
        return path

    def __init__(self, path: Path) -> None:
        # Whoever closes any other descriptor of the same file lets go of its locks: there must be this one alone.
        self._file = path.open("r+b")
        self._numbers = memoryview(mmap.mmap(self._file.fileno(), 0)).cast("Q")
        self._place = next((place for place in range(len(self._numbers)) if self._locked(place)), None)

    def show(self, count: int) -> None:
        """Tell the others how many connections this process has."""
        if self._place is not None:
            self._numbers[self._place] = count + 1  # 0: there is no process

    def leave(self) -> None:
        """Tell them that it takes no more. The place stays its own until it ends."""
        if self._place is not None:
            self._numbers[self._place] = 0
            self._place = None

    def fewest(self) -> int | None:
        """How many the one of the others has that has fewest; None if there are no others."""
        return min((count - 1 for place, count in self._others()), default=None)

    def strike(self) -> None:
        """Forget the processes that have died without a word."""
        for place, _ in self._others():
            if self._locked(place):
                self._numbers[place] = 0
                fcntl.lockf(self._file, fcntl.LOCK_UN, _WIDTH, place * _WIDTH)

    def _others(self) -> list[tuple[int, int]]:
        return [(place, count) for place, count in enumerate(self._numbers) if count and place != self._place]

    def _locked(self, place: int) -> bool:
        """Whether nobody else had the place; now this process has it."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, _WIDTH, place * _WIDTH)
        except OSError:
            return False
        return True
