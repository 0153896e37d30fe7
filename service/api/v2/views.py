"""Replies and small bodies of the Open Inference Protocol as pydantic models, for the OpenAPI document."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.v2.requests import InputParameters, Strict

NAME = "rnn-service"


class ServerMetadata(BaseModel):
    """What answers here."""

    name: str
    version: str
    extensions: list[str] = Field(description="What it offers beside the protocol itself.")


class Live(BaseModel):
    """Whether the process is alive."""

    live: bool


class Ready(BaseModel):
    """Whether requests should come here, or to this model."""

    ready: bool
    name: str | None = Field(None, description="The model.")


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str = Field(description="FP32 or INT64.")
    shape: list[int] = Field(description="Its axes, batch first; -1 is any size.")


class ModelMetadata(BaseModel):
    """A model as the protocol describes it."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ConfigTensor(BaseModel):
    """A tensor as Triton's model configuration has it."""

    name: str
    data_type: str
    dims: list[int]


class ConfigInput(ConfigTensor):
    """An input as Triton's model configuration has it."""

    optional: bool


class InferConfig(BaseModel):
    """A model as Triton's model configuration describes it: the batch is an axis of each tensor."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    platform: str = ""
    backend: str = NAME
    max_batch_size: int = 0
    input: list[ConfigInput]
    output: list[ConfigTensor]


class IndexEntry(BaseModel):
    """A version of a model."""

    name: str
    version: str
    state: Literal["READY", "UNAVAILABLE"]
    reason: str = Field(description="Why it cannot serve.")


class IndexRequest(Strict):
    """What is wanted of the index."""

    ready: bool = Field(False, description="Only those that can serve.")


class LoadRequest(Strict):
    """A model is loaded as its folder has it."""

    parameters: dict[str, Any] = Field({}, max_length=0, description="None: neither config nor files are taken.")


class UnloadRequest(Strict):
    """A model has no dependents."""

    parameters: dict[Literal["unload_dependents"], bool] = Field({}, description="It has no effect.")


class Loaded(BaseModel):
    """What was done to a model."""

    name: str
    load: bool


class OutputTensor(BaseModel):
    """A tensor of a reply."""

    name: str
    datatype: str = Field(description="FP32.")
    shape: list[int] = Field(description="Its axes, batch first.")
    data: list[Any] = Field([], description="Its numbers, flat; NaN and Infinity too.")
    parameters: InputParameters = Field(InputParameters(), description="Of one that follows the JSON.")


class InferReply(BaseModel):
    """What an infer call answers."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str = Field("", description="The request's.")
    outputs: list[OutputTensor]
