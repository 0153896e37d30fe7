"""`config.json` of a model folder, as a pydantic model."""

from dataclasses import asdict
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.spec import Kind, ModelSpec, Nonlinearity, WeightsDtype

Size = Annotated[int, Field(ge=1, le=65_536)]

# Arguments of PyTorch's constructors that serving does not need: requests say whether they are batch-first, and dropout
# does nothing outside training.
IGNORED = ("dropout", "batch_first")


class HeadConfig(BaseModel):
    """A linear layer over `outputs`; its weights are `head.weight` (O, D·P) and `head.bias` (O)."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    out_features: Size = Field(description="O: width of `predictions`.")


class ModelConfig(BaseModel):
    """The architecture of a model, by the argument names of torch.nn.RNN, GRU and LSTM."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

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
    head: HeadConfig | None = Field(None, description="A linear layer over the outputs, if the model has one.")
    description: str = Field("", max_length=4000, description="For people: what it models, and how well.")

    @model_validator(mode="before")
    @classmethod
    def _drop_ignored(cls, data: Any) -> Any:
        return {k: v for k, v in data.items() if k not in IGNORED} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _check_projection(self) -> Self:
        if self.proj_size and self.kind != "lstm":
            raise ValueError(f"proj_size is for lstm only, and this model's kind is {self.kind}")
        if self.proj_size and self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size {self.proj_size} must be smaller than hidden_size {self.hidden_size}")
        return self

    @classmethod
    def of_spec(cls, spec: ModelSpec, description: str = "") -> Self:
        """The config of a spec. Raises ValidationError where a size is larger than the service takes."""
        values = asdict(spec)
        out_features = values.pop("out_features")
        head = None if out_features is None else {"out_features": out_features}
        return cls.model_validate(values | {"head": head, "description": description})

    def spec(self) -> ModelSpec:
        values = self.model_dump(exclude={"head", "description"})
        if self.kind != "rnn":
            values["nonlinearity"] = "tanh"  # only an RNN has a choice
        return ModelSpec(**values, out_features=self.head.out_features if self.head else None)


def first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(step) for step in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]
