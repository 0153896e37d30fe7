"""One expectation beside what was measured."""

from dataclasses import dataclass

from benchmarks.results import Spread


@dataclass(frozen=True, slots=True)
class Verdict:
    """A figure beside what was expected of it, and how it is defined; if it has rounds, their median counts."""

    what: str
    expected: str
    measured: Spread
    met: bool
    how: str
