"""The answer to a request that waited for nothing, and what the log and the metrics are to know of it."""

from typing import NamedTuple


class Answer(NamedTuple):
    """A reply's body, what ran, the seconds that it took by stage, and how many rows and time steps that were."""

    body: bytes
    model: str
    version: str
    stages: dict[str, float]
    rows: int = 1
    steps: int = 1
