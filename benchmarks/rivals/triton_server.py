"""NVIDIA's Triton by PyTriton: a Python function for each model, requests that wait joined up to 16 rows.

Run as `python -m benchmarks.rivals.triton_server MODELS PORT`; it serves whole sequences.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.rivals.modules import MAX_BATCH_SIZE, Modules

Floats = NDArray[np.float32]


def function(modules: Modules) -> Callable[..., dict[str, Floats]]:
    @batch
    @torch.inference_mode()
    def infer(inputs: Floats, h0: Floats) -> dict[str, Floats]:
        """Run inputs (B,T,I) from h0 (B,1,H), as the protocol has the batch first."""
        outputs, h_n = modules.rnn(torch.from_numpy(inputs), torch.from_numpy(h0.swapaxes(0, 1).copy()))
        return {"outputs": outputs.numpy(), "h_n": h_n.numpy().swapaxes(0, 1).copy()}

    return infer


def tensor(name: str, *shape: int) -> Tensor:
    return Tensor(name=name, dtype=np.float32, shape=shape)


if __name__ == "__main__":
    here = {"http_address": "127.0.0.1", "http_port": int(sys.argv[2]), "allow_grpc": False, "allow_metrics": False}
    with Triton(config=TritonConfig(**here)) as triton:
        for folder in sorted(Path(sys.argv[1]).iterdir()):  # the last of them is asked whether it is ready
            modules = Modules(folder)
            size, width = modules.rnn.input_size, modules.rnn.hidden_size
            triton.bind(
                model_name=folder.name,
                infer_func=function(modules),
                inputs=[tensor("inputs", -1, size), tensor("h0", 1, width)],
                outputs=[tensor("outputs", -1, width), tensor("h_n", 1, width)],
                config=ModelConfig(max_batch_size=MAX_BATCH_SIZE, batcher=DynamicBatcher()),
            )
        triton.serve()
