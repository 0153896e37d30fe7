"""What the service says of a model."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class VersionInfo:
    """One version: state is loaded, available (loaded at first use) or failed, with the reason."""

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
    weights_dtype: str | None = None
    description: str = ""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "ModelInfo":
        """From the service's document; what a newer service says beyond this is passed over."""
        versions = tuple(VersionInfo(**_known(VersionInfo, item)) for item in document.get("versions", ()))
        return cls(**_known(cls, document) | {"versions": versions})


def _known(kind: type[Any], document: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}
