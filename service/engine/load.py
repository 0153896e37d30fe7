"""Which engine a model gets, and how torch is set up for this process."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from service.engine.cores import available_cores
from service.engine.interface import Engine, Floats
from service.engine.torch_engine import TorchEngine, resolve_device
from service.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class EngineFactory:
    """Makes engines for one device. `workers` threads may call them at once."""

    device: torch.device
    workers: int

    @classmethod
    def configure(cls, device: str, threads: int) -> "EngineFactory":
        """Choose the device and set torch's own threads, for the whole process.

        device is `auto`, `cpu` or `cuda:N`; threads is the number of compute threads, 0 for one per available core (and
        one alone on a GPU, which does one thing at a time). Raises ValueError for a device that is not there.
        """
        chosen = resolve_device(device)
        cores = available_cores()
        workers = threads or (cores if chosen.type == "cpu" else 1)
        # Small recurrent models gain little from threads inside an operator; requests side by side gain fully.
        torch.set_num_threads(max(1, cores // workers))
        # cuDNN computes recurrent layers in TF32 unless told otherwise, which is a thousand times coarser than float32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        return cls(chosen, workers)

    def load(self, spec: ModelSpec, weights: Mapping[str, Floats]) -> Engine:
        """An engine that is ready to run."""
        return TorchEngine(spec, weights, device=self.device)
