"""BentoML: one service, one worker; arrays come as `numpy.ndarray`. Its adaptive batching was slower here, and is off.

Run as `bentoml serve benchmarks.rivals.bentoml_service:Rnn`, with the models' directory in BENCH_MODELS.
"""

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np

from benchmarks.rivals.modules import Models


@bentoml.service(workers=1, traffic={"timeout": 120}, logging={"access": {"enabled": False}})
class Rnn:
    """The models behind both calls."""

    def __init__(self) -> None:
        self._models = Models(Path(os.environ["BENCH_MODELS"]))

    @bentoml.api(route="/rnn/forward")
    def forward(self, model: str, inputs: np.ndarray, h0: np.ndarray) -> dict[str, Any]:
        return self._models.answer({"model": model, "inputs": np.float32(inputs), "h0": np.float32(h0)})

    @bentoml.api(route="/cell/step")
    def step(self, model: str, inputs: np.ndarray, h: np.ndarray) -> dict[str, Any]:
        return self._models.answer({"model": model, "inputs": np.float32(inputs), "h": np.float32(h)})
