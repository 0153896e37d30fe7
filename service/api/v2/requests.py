"""What an infer call may say, and the tensors that a model takes and gives by it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, NotRequired

from pydantic import BaseModel, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from service.spec import ModelSpec
from service.wire.arrays import MAX_FIELDS

STEP = ".step"
"""What follows a model's name where single steps are meant."""

Size = Annotated[int, Field(ge=1, le=2**31)]
Name = Annotated[str, Field(max_length=64)]


# Dictionaries, where a request has several: models take pydantic twice the time.
@with_config(ConfigDict(extra="allow", strict=True))
class Parameters(TypedDict, total=False):
    """What is said beside the numbers; names that are not known have no effect, as the protocol has it."""

    shared_memory_region: Annotated[None, Field(description="Not offered.")]
    classification: Annotated[None, Field(description="Not offered.")]
    binary_data_size: Annotated[int | None, Field(ge=0, description="Bytes of a tensor after the JSON.")]
    binary_data: Annotated[bool | None, Field(description="Of an output: whether it is to follow the JSON as bytes.")]


class RequestParameters(BaseModel, extra="allow", strict=True, frozen=True):
    """What is said of the whole request; names that are not known have no effect, as the protocol has it."""

    timeout: Annotated[int, Field(ge=0, le=10**15)] = Field(0, description="Its deadline in microseconds; 0 is none.")
    binary_data_output: bool = Field(False, description="What holds for outputs that do not say binary_data.")
    sequence_id: int | Annotated[str, Field(max_length=1024)] = Field(
        0, description="The sequence of a step; 0 and the empty string are none."
    )
    sequence_start: bool = Field(False, description="Whether this is a sequence's first step.")
    sequence_end: bool = Field(False, description="Whether this is its last.")
    step: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The step's number in its sequence, so that it can be sent again; an extension."
    )


@with_config(ConfigDict(extra="forbid", strict=True))
class InferOutput(TypedDict):
    """A tensor that is wanted."""

    name: Annotated[Name, Field(description="One of the model's.")]
    parameters: NotRequired[Annotated[Parameters, Field(description="binary_data_size of a tensor, or binary_data.")]]


@with_config(ConfigDict(extra="forbid", strict=True))
class InferTensor(InferOutput):
    """A tensor, whose numbers stand here, flat or nested, or follow the JSON as little-endian bytes."""

    datatype: Annotated[Literal["FP32", "FP16", "FP64", "INT64", "INT32"], Field(description="Of its numbers.")]
    shape: Annotated[list[Size], Field(max_length=3, description="Its axes, batch first.")]
    data: NotRequired[Annotated[list[Any] | None, Field(description="Numbers; NaN and Infinity, too.")]]


class InferRequest(BaseModel, extra="forbid", strict=True, frozen=True, protected_namespaces=()):
    """Inputs of a model, and which outputs are wanted: those of /rnn/forward or /cell/step if that is left out."""

    inputs: list[InferTensor] = Field(min_length=1, max_length=MAX_FIELDS, description="What it takes.")
    outputs: list[InferOutput] = Field(default_factory=list, max_length=MAX_FIELDS, description="What is wanted.")
    id: str = Field("", max_length=1024, description="The reply has it, too.")
    parameters: RequestParameters = Field(RequestParameters(), description="timeout, binary_data_output …")
    model_name: str | None = Field(None, description="Of KServe's client; not used.")


class InferReply(BaseModel, protected_namespaces=()):
    """What an infer call answers."""

    model_name: str = Field(description="The model that ran.")
    model_version: str = Field(description="The version that ran.")
    id: str = Field("", description="The request's.")
    parameters: dict[str, int | str] = Field({}, description="Of a sequence: sequence_id and step, the last's number.")
    outputs: list[InferTensor] = Field(description="What was wanted, in FP32.")


class Tensor(NamedTuple):
    """A tensor of a model, batch first; -1 stands for an axis of any size."""

    datatype: Literal["FP32", "INT64"]
    shape: tuple[int, ...]


class Signature(NamedTuple):
    inputs: Mapping[str, Tensor]
    outputs: Mapping[str, Tensor]


ONE_EACH = Tensor("INT64", (-1, 1))
"""A number of each row. (B) is taken, too: people write that, and Triton has no tensor with only a batch axis."""


@lru_cache(256)
def signature(spec: ModelSpec, *, by_step: bool) -> Signature:
    """What a model takes and gives for whole sequences, or for single steps; inputs but the first are optional."""
    time = () if by_step else (-1,)
    inputs = {"inputs": Tensor("FP32", (-1, *time, spec.in_features))}
    if spec.num_embeddings is not None:
        inputs["inputs"] = ONE_EACH if by_step else Tensor("INT64", (-1, -1))
    outputs = {"outputs": Tensor("FP32", (-1, *time, spec.output_size))}
    names = {"h": "h", "c": "c"} if by_step else {"h0": "h_n", "c0": "c_n"}
    for (before, after), size in zip(names.items(), (spec.state_size, spec.hidden_size), strict=True):
        if spec.has_cell_state or before[0] == "h":
            inputs[before] = outputs[after] = Tensor("FP32", (-1, spec.states, size))
    if not by_step:
        inputs["lengths"] = ONE_EACH
        outputs["last"] = Tensor("FP32", (-1, spec.output_size))
    if predicts := spec.step_predictions if by_step else spec.out_features:
        outputs["predictions"] = Tensor("FP32", (-1, *(time if spec.pooling == "none" else ()), predicts))
    return Signature(inputs, outputs)
