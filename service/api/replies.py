"""Replies as pydantic models, for the OpenAPI document; of the hot routes encoded arrays are sent."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

Nested = list[Any]


class ForwardReply(BaseModel):
    """What /rnn/forward answers; fields that were not asked for are left out."""

    outputs: Nested = Field([], description="(B,T,D·P): outputs of the last layer; zeros past a row's length.")
    last: Nested = Field([], description="(B,D·P): outputs at each row's own last step.")
    h_n: Nested = Field([], description="(L·D,B,P): final hidden state of every layer.")
    c_n: Nested = Field([], description="(L·D,B,H): final cell state of every layer of an LSTM.")
    predictions: Nested = Field([], description="(B,T,O), or (B,O) if the model pools: what its head makes.")
    lengths: Nested = Field([], description="safetensors only: true lengths of a ragged reply, which comes padded.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class GenerateReply(BaseModel):
    """What /rnn/generate answers; fields that were not asked for are left out."""

    tokens: Nested = Field([], description="(B,steps): the tokens drawn; a row ends with the one that stopped it.")
    predictions: Nested = Field([], description="(B,steps,O): the head's output at each step.")
    outputs: Nested = Field([], description="(B,steps,P): hidden state of the last layer at each step.")
    lengths: Nested = Field([], description="Steps of each row, where tokens come padded.")
    h_n: Nested = Field([], description="(L,B,P): hidden state before the last token or prediction is consumed.")
    c_n: Nested = Field([], description="(L,B,H): cell state of an LSTM then.")
    seed: int | list[int] | None = Field(None, description="What the tokens were drawn with.")
    step: int | None = Field(None, description="Of a session: number of the last of these steps.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class StepReply(BaseModel):
    """What /cell/step answers; fields that were not asked for are left out."""

    outputs: Nested = Field([], description="(B,P): hidden state of the last layer.")
    h: Nested = Field([], description="The new hidden state of every layer, in the shape that was sent.")
    c: Nested = Field([], description="The new cell state of an LSTM, in the shape that was sent.")
    predictions: Nested = Field([], description="(B,O): what the head makes of this step.")
    model: str = Field(description="The model that ran.")
    version: str = Field(description="The version that ran.")


class SessionStepReply(BaseModel):
    """What /cell/step answers for a session; fields that were not asked for are left out."""

    outputs: Nested = Field([], description="(P) or (k,P): hidden state of the last layer.")
    predictions: Nested = Field([], description="(O) or (k,O): what the head makes of each step.")
    h: Nested = Field([], description="(L,P), or (P) if L = 1: the state after the last step.")
    c: Nested = Field([], description="LSTM only: (L,H), or (H) if L = 1.")
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
    """A session. With `state=true` also `h` (L,P) or (P), and `c` (L,H) or (H): a snapshot."""

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
    errors: list[Place] | None = Field(None, description="Every field that is wrong, where validation failed.")
    expected: int | None = Field(None, description="The step that a session expects, where another one came.")
    reason: str | None = Field(None, description="Why a session has ended.")
    step: int | None = Field(None, description="The last step of a session that has ended.")
    request_id: str = Field(description="X-Request-Id of the reply, which the service's log has too.")
