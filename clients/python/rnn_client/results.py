"""What calls give back: arrays by name, descriptions of models, snapshots of sessions.

Letters: B rows, T time steps, L layers, D directions, H hidden size, P width of a hidden state, O outputs of the head.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rnn_client.tensors import Floats, decode, encode

Steps = TypeVar("Steps", Floats, list[Floats])
"""Values of every time step: (B,T,·) or (T,·) for an array of inputs, a list of (T,·) for a list."""


@dataclass(frozen=True)
class Result:
    """Arrays by name, also as attributes, and what ran. An array that was not returned raises AttributeError."""

    arrays: Mapping[str, Any]
    model: str
    version: str

    if not TYPE_CHECKING:  # for type checkers, a misspelt name stays an error

        def __getattr__(self, name: str) -> Any:
            arrays = vars(self).get("arrays", {})
            if name not in arrays:
                raise AttributeError(f"{name} was not returned; the reply holds {', '.join(arrays) or 'no arrays'}")
            return arrays[name]


class ForwardResult(Result, Generic[Steps]):
    """Result of whole sequences.

    - outputs (B,T,D·P): hidden state of the last layer at each step; zeros past a row's length
    - predictions (B,T,O), or (B,O) of a model that pools: what its head makes
    - last (B,D·P): outputs at each row's own last step
    - h_n (L·D,B,P), c_n (L·D,B,H): final hidden state of every layer, and cell state of an LSTM
    """

    outputs: Steps
    predictions: Steps
    last: Floats
    h_n: Floats
    c_n: Floats

    @classmethod
    def read(cls, body: bytes, lengths: list[int] | None) -> "ForwardResult[Any]":
        """From safetensors. lengths: those of the rows if outputs and predictions are to be lists of (T_i,·)."""
        arrays, texts = decode(body)
        arrays.pop("lengths", None)
        if lengths is not None:
            # Predictions (B,O) of a model that pools have no time.
            for name in [name for name in ("outputs", "predictions") if name in arrays and arrays[name].ndim == 3]:
                arrays[name] = [values[:length] for values, length in zip(arrays[name], lengths, strict=True)]
        return ForwardResult(arrays, texts["model"], texts["version"])


class _StepArrays(Result):
    outputs: Floats
    predictions: Floats
    h: Floats
    c: Floats


@dataclass(frozen=True)
class StepResult(_StepArrays):
    """Result of one step, or of k steps together.

    - outputs (P), of a batch (B,P), of k steps (k,P): hidden state of the last layer
    - predictions (O), of a batch (B,O), of k steps (k,O): what the head makes of each step
    - h, c: hidden state of every layer after the last step, and cell state of an LSTM
    - step: number of the last step in its session, 0 without one
    """

    step: int = 0

    @classmethod
    def read(cls, body: bytes) -> "StepResult":
        arrays, texts = decode(body)
        return cls(arrays, texts.get("model", ""), texts.get("version", ""), int(texts.get("step", 0)))


@dataclass(frozen=True)
class Snapshot:
    """State after `step` steps of a model's version: h (L,P), and c (L,H) of an LSTM."""

    model: str
    version: str
    step: int
    h: Floats
    c: Floats | None = None

    def to_bytes(self) -> bytes:
        """As a safetensors file."""
        return encode({"h": self.h, "c": self.c}, {"model": self.model, "version": self.version, "step": self.step})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """From such a file, or from the service's own. Raises ValueError if it is none."""
        arrays, texts = decode(data)
        if "h" not in arrays or not {"model", "version", "step"} <= texts.keys():
            raise ValueError("not a snapshot: expected an array h, and model, version and step in the metadata")
        return cls(texts["model"], texts["version"], int(texts["step"]), arrays["h"], arrays.get("c"))


@dataclass(frozen=True)
class VersionInfo:
    """One version of a model: loaded, available (loaded at first use) or failed, with the reason."""

    version: str
    state: str
    reason: str | None = None
    engine: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """One model; sizes are PyTorch's. A model that failed has a reason and no sizes."""

    name: str
    state: str
    reason: str | None = None
    default_version: str | None = None
    versions: tuple[VersionInfo, ...] = ()
    kind: str | None = None
    input_size: int | None = None
    hidden_size: int | None = None
    num_layers: int | None = None
    nonlinearity: str | None = None
    bias: bool | None = None
    bidirectional: bool | None = None
    proj_size: int | None = None
    out_features: int | None = None
    front: Sequence[str] = ()
    pooling: str | None = None
    head: Sequence[str] = ()
    num_embeddings: int | None = None
    steppable: bool | None = None
    generates: bool | None = None
    weights_dtype: str | None = None
    description: str = ""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "ModelInfo":
        """From the service's document; unknown fields of a newer service are ignored."""
        versions = tuple(VersionInfo(**_known(VersionInfo, item)) for item in document.get("versions", ()))
        return cls(**_known(cls, document) | {"versions": versions})


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}
