"""The pydantic models of an infer call, and the tensors that a model takes and gives by it."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from service.spec import ModelSpec
from service.wire.arrays import MAX_FIELDS

Datatype = Literal["FP32", "FP16", "FP64", "INT64", "INT32"]
Axis = Annotated[int, Field(ge=1, le=2**31)]
Name = Annotated[str, Field(max_length=64)]

STEP = ".step"
"""What follows a model's name where single steps are meant."""

STEP_STATES = ("h", "c")
STATES = (*STEP_STATES, "h_n", "c_n")


class Strict(BaseModel):
    """Fields of which none else may stand in a body."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())


class _Parameters(BaseModel):
    """What is said beside the numbers; names that this service does not know have no effect, as the protocol has it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)


class InputParameters(_Parameters):
    binary_data_size: Annotated[int, Field(ge=0)] | None = Field(None, description="Its bytes after the JSON.")


class OutputParameters(_Parameters):
    binary_data: bool | None = Field(None, description="Whether it comes as raw bytes after the JSON.")


class RequestParameters(_Parameters):
    timeout: Annotated[int, Field(ge=0, le=10**15)] = Field(
        0, description="Microseconds after which the call need not run any more: 504; 0 is none."
    )
    sequence_id: int | str = Field(0, description="0 and the empty string are none.")
    sequence_start: bool = Field(False, description="Whether this is a sequence's first step.")
    sequence_end: bool = Field(False, description="Whether this is its last.")
    binary_data_output: bool = Field(False, description="What `binary_data` of outputs is, where they do not say it.")


class InferInput(Strict):
    """A tensor that comes in the JSON, or as raw little-endian bytes after it."""

    name: Name = Field(description="One of the model's inputs.")
    shape: list[Axis] = Field(max_length=3, description="Its axes, batch first.")
    datatype: Datatype = Field(description="FP16 and FP64 become FP32; INT32 becomes INT64.")
    parameters: InputParameters = InputParameters()
    data: list[Any] | None = Field(None, description="Its numbers, flat or nested as its shape; NaN and Infinity too.")

    @property
    def binary_data_size(self) -> int | None:
        return self.parameters.binary_data_size


class InferOutput(Strict):
    """A tensor that is asked for."""

    name: Name = Field(description="One of the model's outputs.")
    parameters: OutputParameters = OutputParameters()


class InferRequest(Strict):
    """Inputs of a model, and which outputs are wanted."""

    inputs: list[InferInput] = Field(min_length=1, max_length=MAX_FIELDS)
    outputs: list[InferOutput] = Field([], max_length=MAX_FIELDS, description="As /rnn/forward if left out.")
    id: str = Field("", max_length=1024, description="The reply has it, too.")
    parameters: RequestParameters = RequestParameters()
    model_name: str | None = Field(None, description="Not used; KServe's client sends it.")
    model_version: str | None = Field(None, description="Not used.")


class TensorSpec(NamedTuple):
    """A tensor that a model takes or gives; -1 stands for an axis of any size."""

    name: str
    datatype: Literal["FP32", "INT64"]
    shape: tuple[int, ...]
    optional: bool = False


class Signature(NamedTuple):
    """The tensors of a model: all axes with the batch first."""

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]


@lru_cache(256)
def signature(spec: ModelSpec, *, by_step: bool) -> Signature:
    """What a model takes and gives for whole sequences, or for single steps."""
    time = () if by_step else (-1,)
    takes_ids = spec.num_embeddings is not None
    x = TensorSpec(
        "inputs", "INT64" if takes_ids else "FP32", (-1, *time) if takes_ids else (-1, *time, spec.in_features)
    )
    before, after = (STEP_STATES,) * 2 if by_step else (("h0", "c0"), ("h_n", "c_n"))
    sizes = (spec.state_size, spec.hidden_size)[: 1 + spec.has_cell_state]
    inputs = [
        x,
        *(TensorSpec(name, "FP32", (-1, spec.states, size), True) for name, size in zip(before, sizes, strict=False)),
    ]
    outputs = [TensorSpec("outputs", "FP32", (-1, *time, spec.output_size))]
    if not by_step:
        inputs.append(TensorSpec("lengths", "INT64", (-1,), True))
        outputs.append(TensorSpec("last", "FP32", (-1, spec.output_size)))
    outputs += [TensorSpec(name, "FP32", (-1, spec.states, size)) for name, size in zip(after, sizes, strict=False)]
    if predicts := spec.step_predictions if by_step else spec.out_features:
        per_step = time if spec.pooling == "none" else ()
        outputs.append(TensorSpec("predictions", "FP32", (-1, *per_step, predicts)))
    return Signature({one.name: one for one in inputs}, {one.name: one for one in outputs})
