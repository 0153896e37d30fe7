"""The model that an import finds in a checkpoint, with a way to run it that shares no code with the engines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.spec import ModelSpec

Numbers = NDArray[np.floating[Any]]
Precision = type[np.floating[Any]]

Arrays = Mapping[str, Numbers]
"""One sequence by name. To run: x (T, I), h (L·D, P), and c (L·D, H) for an LSTM. Results: outputs (T, D·P), the final
h and c, and predictions (T, O) with a head."""

Reference = Callable[[Sequence[Arrays], Precision], list[Arrays]]
"""Runs sequences through the checkpoint's own arrays."""


@dataclass(frozen=True, slots=True)
class CheckpointModel:
    """A recurrent layer of a checkpoint, with its head if one was asked for.

    arrays have the names and shapes of `spec.weight_shapes()` and the file's own dtypes; sources says what each is
    called in the file. layer is "" where the names of its arrays have no prefix; ignored and notes are for people.
    """

    layer: str
    spec: ModelSpec
    arrays: Mapping[str, torch.Tensor]
    sources: Mapping[str, str]
    reference: Reference
    reference_name: str
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
