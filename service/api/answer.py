"""The answer to a request that waited for nothing, and what the log and the metrics are to know of it."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """A reply's body, what ran, the seconds that it took by stage, and how many rows and time steps that were."""

    body: bytes
    model: str
    version: str
    stages: dict[str, float]
    rows: int = 1
    steps: int = 1
    commit: Callable[[], Awaitable[bool]] | None = None
    """What has to be done before the reply may be sent; False: it is no answer, and nothing was done."""
