"""What an import finds in a checkpoint: a recurrent layer, its arrays, and a way to run it without this service."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from service.models.printable import printable
from service.spec import ModelSpec

Numbers = NDArray[np.floating[Any]]


class CheckpointRefused(Exception):
    """The file is not a checkpoint that can be imported; the message is one sentence for the user."""


class ChoiceNeeded(CheckpointRefused):
    """The file is sound, and the user must say, or say otherwise, what is meant: which layer, which nonlinearity."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One sequence to run: x (T, I), h (L·D, P), and c (L·D, H) for an LSTM; float64."""

    x: Numbers
    h: Numbers
    c: Numbers | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """What one sequence gives: outputs (T, D·P), final h and c like the probe's, predictions (T, O) with a head."""

    outputs: Numbers
    h: Numbers
    c: Numbers | None = None
    predictions: Numbers | None = None


Precision = type[np.floating[Any]]
Reference = Callable[[Sequence[Probe], Precision], list[Results]]
"""Runs the layer from the checkpoint's own arrays, by code that serving does not use."""


@dataclass(frozen=True, slots=True)
class Found:
    """A recurrent layer of a checkpoint, with its head if one was asked for.

    arrays have the names and shapes of `spec.weight_shapes()` and the file's own dtypes; sources says what each is
    called in the file. ignored and notes are sentences and names for people.
    """

    layer: str
    spec: ModelSpec
    arrays: Mapping[str, torch.Tensor]
    sources: Mapping[str, str]
    reference: Reference
    reference_name: str
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose(names: Sequence[str], wanted: str | None, *, option: str, what: str) -> str:
    """The one of names that is meant: the only one, `wanted` itself, or the only one that ends in `.wanted`.

    Raises ChoiceNeeded that lists the names.
    """
    listed = ", ".join(printable(name) for name in names[:8]) + (f" and {len(names) - 8} more" if names[8:] else "")
    if wanted is None:
        if len(names) == 1:
            return names[0]
        raise ChoiceNeeded(f"the file has {len(names)} {what}s: {listed}; say which with {option}")
    if wanted in names:
        return wanted
    matches = [name for name in names if name.endswith(f".{wanted}")]
    if len(matches) == 1:
        return matches[0]
    shown = printable(wanted)
    if matches:
        raise ChoiceNeeded(f"{option} {shown} fits {', '.join(map(printable, matches[:8]))}; give the whole name")
    raise ChoiceNeeded(f"{option} {shown} is not in the file; it has {listed or f'no {what}'}")
