"""A session's state at one step, to be kept and restored from."""

from dataclasses import dataclass

from rnn_client.tensors import Floats, decode, encode


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
        return encode(vars(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> "Snapshot":
        """From such a file, or from the service's own. Raises ValueError if it is none."""
        arrays, texts = decode(data)
        if "h" not in arrays or not {"model", "version", "step"} <= texts.keys():
            raise ValueError("not a snapshot: expected an array h, and model, version and step in the metadata")
        return cls(texts["model"], texts["version"], int(texts["step"]), arrays["h"], arrays.get("c"))
