"""Single steps of many rows in fixed buffers: on a GPU one captured graph for each power of two of rows.

    rows ─► sent, pinned ─copy─► sent ─ graph: module, head ─► results ─copy─► results, pinned ─► rows

A step is short, and launching its kernels one by one takes longer than they do. A CUDA graph launches them at once,
but has fixed shapes and addresses: hence the buckets, each with its own buffers, which rows fill from the front. What
stands behind them is computed with and never read.
"""

from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import structlog
import torch

from service.engine.interface import Floats
from service.spec import ModelSpec

MAX_BUCKET_ROWS = 4096

WARM_UP_RUNS = 3
"""Before a capture, so that libraries have made their handles and workspaces: making them cannot be captured."""

ALIGNED_FLOATS = 64
"""Every part of a buffer begins at a multiple of so many floats, 256 bytes, as if it had been allocated alone."""


def bucket_rows(rows: int) -> int:
    """The smallest power of two that is not smaller."""
    return 1 << (rows - 1).bit_length()


class Buffer:
    """Named float32 arrays in one block of memory, on the host (pinned if the device is a GPU) and on the device."""

    def __init__(self, shapes: dict[str, tuple[int, ...]], device: torch.device) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes.values()]
        ends = np.cumsum([-(-size // ALIGNED_FLOATS) * ALIGNED_FLOATS for size in sizes])
        self._host = torch.zeros(int(ends[-1]), pin_memory=device.type == "cuda")
        self._device = torch.zeros(int(ends[-1]), device=device)
        places = [(name, int(end), size) for name, end, size in zip(shapes, [0, *ends[:-1]], sizes, strict=True)]
        self.host: dict[str, Floats] = {
            name: self._host[begin : begin + size].view(shapes[name]).numpy() for name, begin, size in places
        }
        self.device = {name: self._device[begin : begin + size].view(shapes[name]) for name, begin, size in places}

    def send(self) -> None:
        """Begin the copy from host to device."""
        self._device.copy_(self._host, non_blocking=True)

    def fetch(self) -> None:
        """Begin the copy from device to host."""
        self._host.copy_(self._device, non_blocking=True)


@dataclass(slots=True)
class StepResults:
    """The new states h (L·D, B, P) and, of an LSTM, c (L·D, B, H); predictions (B, O) if they were asked."""

    h: Floats
    c: Floats | None
    predictions: Floats | None


class Bucket:
    """Buffers for up to `rows` rows, and the step between them, captured if the device is a GPU."""

    def __init__(
        self, spec: ModelSpec, module: torch.nn.RNNBase, head: torch.nn.Linear | None, device: torch.device, rows: int
    ) -> None:
        states = {"h": (spec.states, rows, spec.state_size)}
        if spec.has_cell_state:
            states["c"] = (spec.states, rows, spec.hidden_size)
        predictions = {} if spec.out_features is None else {"predictions": (rows, spec.out_features)}
        self.sent = Buffer({"inputs": (rows, 1, spec.input_size), **states}, device)
        self.results = Buffer({**states, **predictions}, device)
        self._module = module
        self._head = head
        self._stream: torch.cuda.Stream | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._graph = self._captured(self._stream)

    @property
    def captured(self) -> bool:
        """Whether the step is a CUDA graph."""
        return self._graph is not None

    def run(self) -> None:
        """From `sent.host` to `results.host`."""
        with torch.cuda.stream(self._stream):  # does nothing where there is none
            self.sent.send()
            if self._graph is not None:
                self._graph.replay()
            else:
                self._step()
            self.results.fetch()
        if self._stream is not None:
            self._stream.synchronize()

    def _step(self) -> None:
        sent, results = self.sent.device, self.results.device
        initial: Any = (sent["h"], sent["c"]) if "c" in sent else sent["h"]
        outputs, final = self._module(sent["inputs"], initial)
        if "c" in results:
            final, cells = final
            results["c"].copy_(cells)
        results["h"].copy_(final)
        if self._head is not None:
            results["predictions"].copy_(self._head(outputs)[:, 0])

    def _captured(self, stream: torch.cuda.Stream) -> torch.cuda.CUDAGraph | None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))  # for the buffers' zeros, and the weights
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                self._step()
            stream.synchronize()
            try:
                # thread_local: another thread may load a model meanwhile, and what it allocates must not end this.
                with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                    self._step()
            except RuntimeError as error:  # slower without, and right
                structlog.get_logger().warning("step_not_captured", reason=str(error))
                return None
        return graph


class Steps:
    """The buckets of one model, made when rows first need them; one step runs at a time.

    To be used in inference mode.
    """

    def __init__(
        self, spec: ModelSpec, module: torch.nn.RNNBase, head: torch.nn.Linear | None, device: torch.device
    ) -> None:
        self._model = spec, module, head, device
        self._buckets: dict[int, Bucket] = {}
        self._lock = Lock()

    def run(self, inputs: Floats, h: Floats, c: Floats | None, *, predict: bool) -> StepResults:
        """One step of B ≤ MAX_BUCKET_ROWS rows: inputs (B, I), h (L·D, B, P), c (L·D, B, H) for an LSTM."""
        rows = len(inputs)
        with self._lock:
            bucket = self._buckets.get(bucket_rows(rows))
            if bucket is None:
                bucket = self._buckets[bucket_rows(rows)] = Bucket(*self._model, bucket_rows(rows))
            sent, results = bucket.sent.host, bucket.results.host
            sent["inputs"][:rows, 0] = inputs
            sent["h"][:, :rows] = h
            if c is not None:
                sent["c"][:, :rows] = c
            bucket.run()
            return StepResults(
                results["h"][:, :rows].copy(),
                None if c is None else results["c"][:, :rows].copy(),
                results["predictions"][:rows].copy() if predict else None,
            )
