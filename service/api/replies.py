"""Replies as pydantic models, for the OpenAPI document; of the hot routes encoded arrays are sent.

A field with a default may be left out, and is never null for that; in a `View` every field is there.
"""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

# null is NaN or infinity, where the request says `"non_finite": "null"`.
Vector = list[Annotated[float | None, WithJsonSchema({"type": ["number", "null"]})]]
Matrix = list[Vector]
Cube = list[Matrix]


class View(BaseModel):
    """A reply with all its fields."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)


class ForwardReply(BaseModel):
    """What /rnn/forward answers; fields that were not asked for are left out."""

    outputs: Matrix | Cube = Field([], description="(B,T,D·P): outputs of the last layer; zeros past a row's length.")
    last: Vector | Matrix = Field([], description="(B,D·P): outputs at each row's own last step.")
    h_n: Matrix | Cube = Field([], description="(L·D,B,P): final hidden state of every layer.")
    c_n: Matrix | Cube = Field([], description="(L·D,B,H): final cell state of every layer of an LSTM.")
    predictions: Vector | Matrix | Cube = Field([], description="(B,T,O), or (B,O) if the model pools.")
    lengths: list[int] = Field([], description="safetensors only: true lengths of a ragged reply, which comes padded.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class GenerateReply(BaseModel):
    """What /rnn/generate answers; fields that were not asked for are left out."""

    tokens: list[int] | list[list[int]] = Field([], description="(B,steps): the tokens drawn, with what stopped a row.")
    predictions: Matrix | Cube = Field([], description="(B,steps,O): the head's output at each step.")
    outputs: Matrix | Cube = Field([], description="(B,steps,P): hidden state of the last layer at each step.")
    lengths: list[int] = Field([], description="Steps of each row, where tokens come padded.")
    h_n: Matrix | Cube = Field([], description="(L,B,P): hidden state before the last token or prediction is consumed.")
    c_n: Matrix | Cube = Field([], description="(L,B,H): cell state of an LSTM then.")
    seed: int | list[int] = Field(0, description="What the tokens were drawn with.")
    step: int = Field(0, description="Of a session: number of the last of these steps.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class StepReply(BaseModel):
    """What /cell/step answers; fields that were not asked for are left out."""

    outputs: Vector | Matrix = Field([], description="(B,P): hidden state of the last layer.")
    h: Vector | Matrix | Cube = Field([], description="New hidden state of every layer, in the shape that was sent.")
    c: Vector | Matrix | Cube = Field([], description="New cell state of an LSTM, in the shape that was sent.")
    predictions: Vector | Matrix = Field([], description="(B,O): what the head makes of this step.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class SessionStepReply(BaseModel):
    """What /cell/step answers for a session; fields that were not asked for are left out."""

    outputs: Vector | Matrix = Field([], description="(P) or (k,P): hidden state of the last layer.")
    predictions: Vector | Matrix = Field([], description="(O) or (k,O): what the head makes of each step.")
    h: Vector | Matrix = Field([], description="(L,P), or (P) if L = 1: the state after the last step.")
    c: Vector | Matrix = Field([], description="LSTM only: (L,H), or (H) if L = 1.")
    step: int = Field(description="Number of the last of these steps.")


class ShortView(BaseModel):
    """A session on a page of sessions."""

    session: str = Field(
        description="Its id: whoever knows it, and has the key that opened it, can step it. A page shows its beginning."
    )
    model: str = Field(description="The model that it steps.")
    version: str = Field(description="The version that it stays on until it ends.")
    step: int = Field(description="Steps done.")
    created_at: datetime = Field(description="When it was opened.")
    used_at: datetime = Field(description="Time of the last step or reset.")
    expires_at: datetime = Field(description="When it ends if nobody steps it.")


class SessionView(ShortView):
    """A session; with its state, a snapshot."""

    h: Vector | Matrix = Field([], description="With `state=true`: (L,P), or (P) if L = 1.")
    c: Vector | Matrix = Field([], description="With `state=true`, LSTM only: (L,H), or (H) if L = 1.")
    ttl_seconds: float = Field(description="Life since the last step.")
    replay_steps: int = Field(description="How many of a stream's latest steps can be repeated, at least.")
    input_size: int = Field(description="I of its model.")
    num_embeddings: int | None = Field(description="How many token ids its model has; null if it takes vectors.")


class SessionPage(BaseModel):
    """Some of the live sessions, by id."""

    sessions: list[ShortView] = Field(description="The sessions of this page.")
    next: str | None = Field(description="What to send as `after` for the next page; null if there is none.")


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
    errors: list[Place] = Field([], description="Every field that is wrong, where validation failed.")
    expected: int = Field(0, description="The step that a session expects, where another one came.")
    reason: str = Field("", description="Why a session has ended.")
    step: int = Field(0, description="The last step of a session that has ended.")
    request_id: str = Field(description="X-Request-Id of the reply, which the service's log has too.")
