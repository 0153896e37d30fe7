"""The replies of the hot routes as pydantic models, for the OpenAPI document; what is sent is encoded arrays."""

from typing import Any

from pydantic import BaseModel, Field

Nested = list[Any]


class ForwardReply(BaseModel):
    """What /rnn/forward answers; fields that were not asked for are left out."""

    outputs: Nested = Field(
        default_factory=list,
        description="(B,T,D·P): hidden state of the last layer at each step; zeros past a row's length.",
    )
    last: Nested = Field(default_factory=list, description="(B,D·P): outputs at each row's own last step.")
    h_n: Nested = Field(default_factory=list, description="(L·D,B,P): final hidden state of every layer.")
    c_n: Nested = Field(default_factory=list, description="(L·D,B,H): final cell state of every layer of an LSTM.")
    predictions: Nested = Field(default_factory=list, description="(B,T,O): the linear head over outputs.")
    lengths: Nested = Field(
        default_factory=list, description="safetensors only: the true lengths of a ragged reply, which comes padded."
    )
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class StepReply(BaseModel):
    """What /cell/step answers; fields that were not asked for are left out."""

    outputs: Nested = Field(default_factory=list, description="(B,P): hidden state of the last layer.")
    h: Nested = Field(
        default_factory=list, description="The new hidden state of every layer, in the shape that was sent."
    )
    c: Nested = Field(default_factory=list, description="The new cell state of an LSTM, in the shape that was sent.")
    predictions: Nested = Field(default_factory=list, description="(B,O): the linear head over outputs.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class SessionStepReply(BaseModel):
    """What /cell/step answers for a session; fields that were not asked for are left out."""

    outputs: Nested = Field(default_factory=list, description="(P) or (k,P): hidden state of the last layer.")
    predictions: Nested = Field(default_factory=list, description="(O) or (k,O): the linear head over outputs.")
    h: Nested = Field(default_factory=list, description="(L,P), or (P) if L = 1: the state after the last step.")
    c: Nested = Field(default_factory=list, description="LSTM only: (L,H), or (H) if L = 1.")
    step: int = Field(description="Number of the last of these steps.")


class Place(BaseModel):
    """One field that is wrong."""

    loc: list[str | int] = Field(description="Where: names and indices from the outside in.")
    msg: str = Field(description="What was expected, and what came.")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    type: str = Field(description="A page about this kind of problem.")
    title: str = Field(description="The kind of problem in a few words.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="One sentence that names the field, what was expected and what came.")
    errors: list[Place] | None = Field(None, description="Every field that is wrong, where validation failed.")
    expected: int | None = Field(None, description="The step that a session expects, where another one came.")
    reason: str | None = Field(None, description="Why a session has ended.")
    step: int | None = Field(None, description="The last step of a session that has ended.")
    request_id: str = Field(description="X-Request-Id of the reply, which the service's log has too.")
