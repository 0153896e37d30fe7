"""Which engine a model gets, how torch is set up for this process, and how many cores there are."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Literal

import structlog
import torch

from service.engine.interface import Engine, Floats
from service.engine.native.engine import NativeEngine
from service.engine.torch_engine import TorchEngine, resolve_device
from service.spec import ModelSpec

EngineChoice = Literal["auto", "native", "torch"]


@dataclass(frozen=True, slots=True)
class EngineFactory:
    """Makes engines for one device; `workers` threads may call them at once, and the native one uses as many."""

    device: torch.device
    workers: int
    choice: EngineChoice  # auto: native, or torch on a GPU and on a processor that LLVM cannot generate code for

    @classmethod
    def configure(cls, device: str, threads: int, choice: EngineChoice = "auto", processes: int = 1) -> "EngineFactory":
        """Choose the device (`auto`, `cpu`, `cuda:N`) and set torch's own threads, for the whole process.

        threads 0: one per core of this one of `processes`, or one on a GPU. Raises ValueError for a device that is not
        there, or for the native engine on a GPU.
        """
        chosen = torch.device("cpu") if choice == "native" and device == "auto" else resolve_device(device)
        if choice == "native" and chosen.type != "cpu":
            raise ValueError(f"the native engine runs on the CPU, and the device is {chosen}")
        cores = max(1, available_cores() // processes)
        workers = threads or (cores if chosen.type == "cpu" else 1)
        # Small recurrent models gain little from threads inside an operator; models side by side gain fully.
        torch.set_num_threads(max(1, cores // workers))
        # cuDNN computes recurrent layers in TF32 unless told otherwise, which is a thousand times coarser than float32.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        return cls(chosen, workers, choice)

    def load(self, spec: ModelSpec, weights: Mapping[str, Floats]) -> Engine:
        if self.device.type == "cpu" and self.choice != "torch":
            try:
                return NativeEngine(spec, weights, threads=self.workers)
            except (RuntimeError, OSError) as error:  # LLVM's own words for a processor that it does not know
                if self.choice == "native":
                    raise
                structlog.get_logger().warning("native_engine_unavailable", reason=str(error))
        return TorchEngine(spec, weights, device=self.device)


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that the operating system allows and the container's quota pays for, at least 1.

    Source: sched_getaffinity, and `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` (v1).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        if (cgroup / "cpu.max").exists():
            limit, period = (cgroup / "cpu.max").read_text().split()
        else:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        quota = ceil(int(limit) / int(period))
    except (OSError, ValueError):  # no cgroup, or no limit: "max"
        return cores
    return min(cores, quota) if quota > 0 else cores  # -1: no limit
