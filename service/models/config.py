"""`config.json` of a model folder, as a pydantic model."""

from dataclasses import fields, replace
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from service.errors import ModelFailed, spell
from service.models.layer_config import MAX_LAYERS, LayerConfig, Shapes, Size, StrictConfig, chain_layers, described
from service.spec import Kind, ModelSpec, Nonlinearity, Pooling, WeightsDtype

# Arguments of PyTorch's constructors that serving does not need: requests say whether they are batch-first, and dropout
# does nothing outside training.
IGNORED = ("dropout", "batch_first")

_OF_STACK = [field.name for field in fields(ModelSpec) if field.name not in ("front", "pooling", "head")]


Layers = Annotated[tuple[LayerConfig, ...], Field(max_length=MAX_LAYERS, strict=False)]


class HeadConfig(StrictConfig):
    """Short for one linear layer; its weights are `head.weight` (O, D·P) and `head.bias` (O)."""

    out_features: Size = Field(description="O: width of `predictions`.")


Head = Annotated[
    Annotated[HeadConfig, Tag("short")] | Annotated[Layers, Tag("list")],
    Discriminator(lambda given: "list" if isinstance(given, list | tuple) else "short"),
]


class ModelConfig(StrictConfig):
    """The architecture of a model, by the argument names of torch.nn.RNN, GRU and LSTM."""

    ignored = IGNORED

    kind: Kind = Field(description="Which of torch.nn.RNN, GRU or LSTM the weights belong to.")
    input_size: Size = Field(description="I: values per time step.")
    hidden_size: Size = Field(description="H: values per hidden state.")
    num_layers: Annotated[int, Field(ge=1, le=256)] = Field(1, description="L: stacked layers.")
    nonlinearity: Nonlinearity = Field("tanh", description="Activation of an rnn; ignored for gru and lstm.")
    bias: bool = Field(True, description="Whether the layers have bias_ih and bias_hh.")
    bidirectional: bool = Field(False, description="Whether each layer also runs backwards in time.")
    proj_size: Annotated[int, Field(ge=0, le=65_536)] = Field(
        0, description="LSTM only: project each hidden state to this width; 0 for none."
    )
    weights_dtype: WeightsDtype = Field("f32", description="Precision in which the engine keeps the weights.")
    front: Layers = Field((), description="What each step's input passes before the stack.")
    pooling: Pooling = Field("none", description="What the head reads: each step's output, or one vector of each row.")
    head: Head | None = Field(None, description="What makes predictions of the outputs.")
    description: str = Field("", max_length=4000, description="For people: what it models, and how well.")

    @model_validator(mode="after")
    def _check_projection(self) -> Self:
        if self.proj_size and self.kind != "lstm":
            raise ValueError(f"proj_size is for lstm only, and this model's kind is {self.kind}")
        if self.proj_size and self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size {self.proj_size} must be smaller than hidden_size {self.hidden_size}")
        return self

    @model_validator(mode="after")
    def _check_pooling(self) -> Self:
        if self.pooling != "none" and not self.head:
            raise ValueError(f"pooling is {self.pooling}, and there is no head that would read it")
        return self

    @classmethod
    def of_spec(cls, spec: ModelSpec, description: str = "") -> Self:
        """The config of a spec. Raises ValidationError where a size is larger than the service takes."""
        values: dict[str, Any] = {name: getattr(spec, name) for name in _OF_STACK}
        if spec.head and spec.head[0].name == "head":
            values["head"] = {"out_features": spec.out_features}
        else:
            values["head"] = [described(layer) for layer in spec.head]
        values["front"] = [described(layer) for layer in spec.front]
        return cls.model_validate(values | {"pooling": spec.pooling, "description": description})

    def stack(self) -> ModelSpec:
        """The recurrent stack alone."""
        values = {name: getattr(self, name) for name in _OF_STACK}
        if self.kind != "rnn":
            values["nonlinearity"] = "tanh"  # only an RNN has a choice
        return ModelSpec(**values, pooling=self.pooling)

    def spec(self, shapes: Shapes | None = None) -> ModelSpec:
        """What the config describes; shapes are those of the file's arrays, for widths that the config leaves out.

        Raises ModelFailed where the widths do not fit.
        """
        spec = self.stack()
        try:
            spec = replace(spec, front=chain_layers("front", self.front, self.input_size, shapes))
            if isinstance(self.head, HeadConfig):
                return spec.with_linear_head(self.head.out_features)
            return replace(spec, head=chain_layers("head", self.head or (), spec.output_size))
        except ValueError as error:
            raise ModelFailed(f"config.json: {error}") from None


def first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = spell(tuple(step for step in first["loc"] if step not in ("short", "list")))
    return f"{place}: {first['msg']}" if place else first["msg"]
