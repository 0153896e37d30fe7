"""Mosec: a worker process for calls alone, and one on /batch that joins up to 16 requests which wait within 2 ms.

Run as `python -m benchmarks.rivals.mosec_server --address 127.0.0.1 --port P`, with the models' directory in
BENCH_MODELS. JSON is read and printed by pydantic, since the standard library takes many times as long.
"""

import os
from pathlib import Path
from typing import Any

from mosec import Server, Worker
from pydantic_core import from_json, to_json

from benchmarks.rivals.modules import BATCH_WAIT_SECONDS, MAX_BATCH_SIZE, Models


class Alone(Worker):
    """One request at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.models = Models(Path(os.environ["BENCH_MODELS"]))

    def deserialize(self, data: bytes) -> Any:
        return from_json(data)

    def serialize(self, data: Any) -> bytes:
        return to_json(data)

    def forward(self, data: Any) -> Any:
        return self.models.answer(data)


class Together(Alone):
    """A list of requests, joined as far as their shapes agree."""

    def forward(self, data: Any) -> Any:
        return self.models.answer_together(data)


if __name__ == "__main__":
    server = Server()
    server.append_worker(Alone, route=["/rnn/forward", "/cell/step"])
    batching = {"max_batch_size": MAX_BATCH_SIZE, "max_wait_time": round(1e3 * BATCH_WAIT_SECONDS)}
    server.append_worker(Together, route="/batch", **batching)
    server.run()
