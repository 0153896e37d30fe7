"""`front` and `head` of a config.json: lists of layers by PyTorch's names, checked from the first width to the last."""

from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.spec import ChainLayer, LayerType

Size = Annotated[int, Field(ge=1, le=65_536)]
Ids = Annotated[int, Field(ge=1, le=2**24)]  # a float32 holds every smaller whole number

MAX_LAYERS = 64  # of a front or a head

# What PyTorch's constructors take besides and serving does not need: it matters in training alone.
_IGNORED = {"p", "inplace", "momentum", "affine", "elementwise_affine", "track_running_stats"}
_IGNORED |= {"padding_idx", "norm_type", "scale_grad_by_freq", "sparse"}

# The arguments of each type that serving needs: their defaults, or ... where one must be given.
_OPTIONS: dict[LayerType, dict[str, Any]] = {
    "embedding": {"num_embeddings": ..., "embedding_dim": ...},
    "linear": {"out_features": ..., "bias": True},
    "layer_norm": {"eps": 1e-5},
    "batch_norm": {"eps": 1e-5},
    "scale": {"inverse": False},
    "normalize": {"eps": 1e-12},
    "leaky_relu": {"negative_slope": 0.01},
    "elu": {"alpha": 1.0},
    "gelu": {"approximate": "none"},
    "softplus": {"beta": 1.0, "threshold": 20.0},
}
# Arguments that say again what is known.
_SAYS_WIDTH: dict[LayerType, str] = {
    "linear": "in_features",
    "layer_norm": "normalized_shape",
    "batch_norm": "num_features",
}
_OVER_FEATURES = ("softmax", "log_softmax", "normalize")

Shapes = Mapping[str, tuple[int, ...]]


class StrictConfig(BaseModel):
    """A part of a config.json, in which only its fields may stand, and what is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    ignored: ClassVar[Collection[str]] = ()

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if k not in cls.ignored} if isinstance(data, dict) else data


class LayerConfig(StrictConfig):
    """A layer: its type, and the arguments that PyTorch's module or function of that name takes."""

    ignored = _IGNORED

    type: LayerType
    num_embeddings: Ids | None = None
    embedding_dim: Size | None = None
    max_norm: float | None = None
    in_features: Size | None = None
    out_features: Size | None = None
    bias: bool | None = None
    normalized_shape: Size | Annotated[list[Size], Field(min_length=1, max_length=1)] | None = None
    num_features: Size | None = None
    eps: Annotated[float, Field(ge=0, le=1e6)] | None = None
    inverse: bool | None = None
    negative_slope: float | None = None
    alpha: float | None = None
    approximate: Literal["none", "tanh"] | None = None
    beta: Annotated[float, Field(gt=0)] | None = None
    threshold: float | None = None
    dim: int | None = None


def chain_layers(
    part: str, entries: Sequence[LayerConfig], width: int, shapes: Shapes | None = None
) -> tuple[ChainLayer, ...]:
    """The layers of a `front` before a stack that takes vectors of `width`, or of a `head` that takes these.

    shapes are those of the file's arrays, for widths that the entries leave out. Raises ValueError with the place.
    """
    layers: list[ChainLayer] = []
    before = _front_width(entries, width, shapes or {}) if part == "front" else width
    for index, entry in enumerate(entries):
        layers.append(_layer(f"{part}[{index}]", f"{part}.{index}", entry, before))
        if entry.type == "embedding" and (index or part != "front"):
            raise ValueError(f"{part}[{index}]: an embedding can only come first in front, where token ids are")
        before = layers[-1].out_features
    if part == "front" and before != width:
        raise ValueError(f"front ends {before} wide, and input_size is {width}")
    return tuple(layers)


def _front_width(entries: Sequence[LayerConfig], input_size: int, shapes: Shapes) -> int:
    """How wide the vectors are that a front takes: what its first linear layer says, else what the file has."""
    for index, entry in enumerate(entries):
        if entry.type == "linear":
            shape = shapes.get(f"front.{index}.weight", ())
            return entry.in_features or (shape[1] if len(shape) == 2 else 0) or input_size
    return input_size


def _layer(place: str, name: str, entry: LayerConfig, width: int) -> ChainLayer:
    given = entry.model_dump(exclude_none=True, exclude={"type"})
    kind: LayerType = entry.type
    if given.pop("max_norm", None) is not None:
        raise ValueError(f"{place}: max_norm is not served; scale the embedding's rows once, and leave it out")
    if kind in _OVER_FEATURES and given.pop("dim", -1) != -1:
        raise ValueError(f"{place}: {kind} is served over the features alone, with dim -1")
    options, says = _OPTIONS.get(kind, {}), _SAYS_WIDTH.get(kind, "")
    stated = given.pop(says, width)
    [stated] = stated if isinstance(stated, list) else [stated]
    if unknown := sorted(given.keys() - options.keys()):
        takes = ", ".join([*options, says] if says else options) or "no arguments"
        raise ValueError(f"{place}: {kind} has no {unknown[0]}; it takes {takes}")
    if missing := [option for option, default in options.items() if default is ... and option not in given]:
        raise ValueError(f"{place}: {kind} needs {missing[0]}")
    if stated != width:
        raise ValueError(f"{place}: {says} is {stated}, and what comes before it is {width} wide")
    values = options | given
    before = 1 if kind == "embedding" else width
    after = values.pop("embedding_dim", None) or values.pop("out_features", None) or width
    return ChainLayer(kind, name, before, after, tuple(values.items()))


def described(layer: ChainLayer) -> dict[str, Any]:
    """The entry of a config.json that gives this layer."""
    entry: dict[str, Any] = {"type": layer.type, **dict(layer.options)}
    if layer.type == "linear":
        entry |= {"in_features": layer.in_features, "out_features": layer.out_features}
    elif layer.type == "embedding":
        entry["embedding_dim"] = layer.out_features
    return entry
