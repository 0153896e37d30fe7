"""BentoML: one service, one worker; arrays come as `numpy.ndarray`, the batchable call takes a list of requests.

Run as `bentoml serve benchmarks.rivals.bentoml_service:Rnn`, with the models' directory in BENCH_MODELS.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from pydantic import BaseModel

from benchmarks.modules import Models, Reply

MAX_BATCH_SIZE = 16
MAX_LATENCY_MS = 60_000


class AnyRequest(BaseModel):
    """A sequence has h0, a step has h."""

    model: str
    inputs: list[Any]
    h0: list[Any] | None = None
    h: list[Any] | None = None


@bentoml.service(workers=1, traffic={"timeout": 120}, logging={"access": {"enabled": False}})
class Rnn:
    """The models behind three calls."""

    def __init__(self) -> None:
        self._models = Models(Path(os.environ["BENCH_MODELS"]))

    @bentoml.api(route="/rnn/forward")
    def forward(self, model: str, inputs: np.ndarray, h0: np.ndarray) -> dict[str, Any]:
        """Run whole sequences."""
        return self._models.answer({"model": model, "inputs": np.float32(inputs), "h0": np.float32(h0)})

    @bentoml.api(route="/cell/step")
    def step(self, model: str, inputs: np.ndarray, h: np.ndarray) -> dict[str, Any]:
        """Run one step."""
        return self._models.answer({"model": model, "inputs": np.float32(inputs), "h": np.float32(h)})

    @bentoml.api(route="/batch", batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=MAX_LATENCY_MS)
    def together(self, requests: list[AnyRequest]) -> list[dict[str, Any]]:
        """Run requests of either kind as one batch, as far as their shapes agree."""
        replies: list[Reply] = self._models.answer_together(one.model_dump(exclude_none=True) for one in requests)
        return replies
