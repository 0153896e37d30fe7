"""The pydantic models of what clients send; they hold arrays, and every wire format is checked by the same ones."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, WithJsonSchema
from pydantic_core import core_schema

from service.errors import FieldError, InvalidRequest, spell
from service.wire.arrays import Ragged

MAX_ERRORS = 16  # wrong fields that one problem lists
MAX_LISTED = 2**24  # the largest whole number of a list that float32 holds for certain
MAX_NAME = 80  # characters of a client's own words that a problem quotes

NonFinite = Literal["error", "null"]
ForwardReturn = Literal["outputs", "last", "h_n", "c_n", "predictions"]
StepReturn = Literal["outputs", "h", "c", "predictions"]
GenerateReturn = Literal["tokens", "predictions", "outputs", "h_n", "c_n"]


class Numbers:
    """Marks a field that holds an array, of one of the given depths of nesting; axes are its title in OpenAPI.

    A depth of 0 is a number alone, which comes as an array, too.
    """

    def __init__(self, axes: str, *depths: int, **number: Any) -> None:
        shapes = []
        self._kinds: list[Any] = [
            core_schema.is_instance_schema(np.ndarray),
            core_schema.is_instance_schema(Ragged),
        ]
        if 0 in depths:
            alone = core_schema.float_schema(strict=True, ge=-1e38, le=1e38)
            self._kinds.append(core_schema.no_info_after_validator_function(np.float32, alone))
        for depth in sorted(depths):  # as generated clients try one after the other
            schema: dict[str, Any] = number or {"type": "number"}
            for _ in range(depth):
                schema = {"type": "array", "items": schema, "minItems": 1}
            shapes.append(schema)
        self._schema = {"title": axes} | (shapes[0] if len(shapes) == 1 else {"anyOf": shapes})

    def __get_pydantic_core_schema__(self, _: Any, __: Any) -> core_schema.CoreSchema:
        """Let pydantic ask for the type by itself, without a call into Python."""
        return core_schema.custom_error_schema(
            core_schema.union_schema(self._kinds),
            custom_error_type="numbers",
            custom_error_message="expected a list of numbers",
        )

    def __get_pydantic_json_schema__(self, _: Any, __: Any) -> dict[str, Any]:
        return self._schema


def _from_text(value: Any, info: ValidationInfo) -> Any:
    """Safetensors metadata holds strings only: what is no string in the contract is read from JSON text."""
    if not info.context or not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value


def _names(value: Any, info: ValidationInfo) -> Any:
    """A list of names, in safetensors metadata also with commas; an empty list of anything comes as an empty array."""
    value = _from_text(value, info)
    if isinstance(value, str) and info.context:
        return [part.strip() for part in value.split(",") if part.strip()]
    return [] if isinstance(value, np.ndarray) and value.shape == (0,) else value


def _integers(value: Any, info: ValidationInfo) -> Any:
    """Whole numbers, which lists of JSON hold as 32-bit floats, as Python's."""
    value = _from_text(value, info)
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.kind == "f" and not np.abs(value).max(initial=0) <= MAX_LISTED:  # NaN is neither
        raise ValueError(f"in lists whole numbers go up to {MAX_LISTED}")
    items = value.tolist()
    return [int(item) if item == int(item) else item for item in items] if value.ndim == 1 else items


Text = BeforeValidator(_from_text)
Whole = BeforeValidator(_integers)
Name = Annotated[str, Field(max_length=64)]
SessionId = Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9_-]+$")]
Forwarded = Annotated[list[ForwardReturn], Field(max_length=8), BeforeValidator(_names)]
Generated = Annotated[list[GenerateReturn], Field(max_length=8), BeforeValidator(_names)]
Stepped = Annotated[list[StepReturn], Field(max_length=8), BeforeValidator(_names)]

InitialH = Annotated[
    Annotated[Any, Numbers("(L,P) or (P)", 2, 1)] | None,
    Field(description="Hidden state before the first step: (L,P), or (P) if L = 1; zeros if left out."),
]
InitialC = Annotated[
    Annotated[Any, Numbers("(L,H) or (H)", 2, 1)] | None,
    Field(description="LSTM only: cell state before the first step; with h or not at all."),
]


_SCALAR = WithJsonSchema({"type": ["string", "number", "null"]})
Unused = Annotated[Any, Field(description="Of a snapshot; not used."), _SCALAR]


class Request(BaseModel):
    """What every request may say. Nothing else may stand in it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    model: Name | None = Field(
        None, description="Name of the model; may be left out if there is only one or a default."
    )
    version: Name | None = Field(
        None, description="Version of the model, a whole number as a string; the highest if left out."
    )
    non_finite: NonFinite = Field(
        "error",
        description="What a JSON reply does with NaN and infinity: refuse with 422, or print null; default: error.",
    )


class ForwardRequest(Request):
    """Whole sequences for `torch.nn.RNN`, `GRU` or `LSTM`; numbers are 32-bit floats."""

    inputs: Annotated[Any, Numbers("(B,T,I) or (T,I)", 3, 2, 1)] = Field(
        description="Sequences: (B,T,I), or (T,I) for one unbatched sequence; rows of unequal length are allowed. "
        "Token ids: (B,T) or (T)."
    )
    h0: Annotated[Any, Numbers("(L·D,B,P) or (L·D,P)", 3, 2)] | None = Field(
        None, description="Initial hidden state; (L·D,P) if inputs are unbatched; zeros if left out."
    )
    c0: Annotated[Any, Numbers("(L·D,B,H) or (L·D,H)", 3, 2)] | None = Field(
        None, description="LSTM only: initial cell state; (L·D,H) if inputs are unbatched; with h0 or not at all."
    )
    lengths: Annotated[Any, Numbers("(B)", 1, type="integer", minimum=1)] | None = Field(
        None, description="True lengths of padded inputs: B whole numbers from 1 to T."
    )
    batch_first: Annotated[bool, Text] = Field(
        True, description="Default true. false: inputs and outputs are (T,B,·), as in PyTorch; not for ragged lists."
    )
    returns: Forwarded | None = Field(
        None, description="What to send back; default: outputs, h_n, c_n of an LSTM, predictions if there is a head."
    )


class StepRequest(Request):
    """One time step of `RNNCell`, `GRUCell`, `LSTMCell` or of every layer of a stacked one-directional model."""

    inputs: Annotated[Any, Numbers("(B,I) or (I)", 2, 1, 0)] = Field(
        description="One step of each row: (B,I), or (I) for one row. Token ids: (B), or one number."
    )
    h: Annotated[Any, Numbers("(L,B,P), (B,P) or (P)", 3, 2, 1)] | None = Field(
        None, description="Hidden state before the step: (L,B,P), or (B,P) if L = 1, or (P); zeros if left out."
    )
    c: Annotated[Any, Numbers("(L,B,H), (B,H) or (H)", 3, 2, 1)] | None = Field(
        None, description="LSTM only: cell state before the step, in the form of h; with h or not at all."
    )
    returns: Stepped | None = Field(
        None, description="What to send back; default: outputs, h, c of an LSTM, predictions if there is a head."
    )


class SessionStepRequest(Request):
    """Steps of a session, whose state the service keeps."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema["required"].remove("session"))  # or in the header

    session: SessionId = Field(description="The session; X-Session-Id may name it instead.")
    inputs: Annotated[Any, Numbers("(I) or (k,I)", 1, 2, 0)] = Field(
        description="One step (I), or k steps (k,I) that are run and kept together. Token ids: one number, or (k)."
    )
    step: Annotated[int, Field(ge=1), Text] | None = Field(
        None,
        description="Number of the first step, from 1; the next if left out. A repeated number gets its reply again.",
    )
    returns: Stepped | None = Field(
        None, description="What to send back; default: outputs, predictions if there is a head."
    )


class GenerateRequest(ForwardRequest):
    """A context, or a session, from which the model goes on by itself: what it predicts is its next input."""

    inputs: Annotated[Any, Numbers("(B,T,I) or (T,I)", 3, 2, 1, 0)] = Field(
        description="The context, as for /rnn/forward; with a session one step, (I). Token ids: (B,T) or (T)."
    )
    session: SessionId | None = Field(
        None, description="A session to go on with, all steps or none; X-Session-Id may name it instead."
    )
    step: Annotated[int, Field(ge=1, le=2**62), Text] | None = Field(
        None,
        description="Number of the first step of inputs: a session's next one, or 1, if left out. A session answers a "
        "repeated number again; without one, it says where in its random numbers a sequence goes on.",
    )
    steps: Annotated[int, Field(ge=1), Text] = Field(
        description="How many steps to run, and predictions to give; 4,096 at most unless set otherwise."
    )
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False), Text] | None = Field(
        None, description="Of token models: what logits are divided by, 1 if left out; 0 takes the most likely token."
    )
    top_k: Annotated[int, Field(ge=1), Text] | None = Field(
        None, description="Of token models: draw one of the k most likely tokens, and those as likely as the k-th."
    )
    top_p: Annotated[float, Field(gt=0, le=1), Text] | None = Field(
        None, description="Of token models: draw one of the most likely tokens that together have this probability."
    )
    seed: Annotated[int | list[int], Whole] | None = Field(
        None, description="Row b draws with seed + b, or with its own of B; if left out, one is drawn and returned."
    )
    stop: Annotated[list[int], Whole] | None = Field(
        None, description="Of token models: a row ends after one of these token ids."
    )
    feedback: Annotated[list[int | None], Whole] | None = Field(
        None,
        description="Of other models: for each prediction the input that it replaces, or null; all in order if left "
        "out, where there are as many.",
    )
    future: Annotated[Any, Numbers("(B,steps-1,I) or (steps-1,I)", 3, 2, 1)] | None = Field(
        None, description="Of other models: the inputs of later steps that are known; feedback overwrites its own."
    )
    returns: Generated | None = Field(  # type: ignore[assignment]  # other names than a forward's
        None, description="What to send back; default: tokens or predictions, h_n, and c_n of an LSTM."
    )


class OpenRequest(Request):
    """What a session is opened with; a snapshot of another session will do."""

    h: InitialH = None
    c: InitialC = None
    ttl_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False), Text] | None = Field(
        None, description="Life since the last step, in seconds; RNN_SESSION_TTL_SECONDS if left out."
    )
    session: Unused = None
    step: Unused = None
    created_at: Unused = None
    used_at: Unused = None
    expires_at: Unused = None
    replay_steps: Unused = None
    input_size: Unused = None
    num_embeddings: Unused = None


class StreamRequest(Request):
    """First line of a stream of steps, or its query parameters: which model, from which state; or which session."""

    session: SessionId | None = Field(
        None, description="A session that the service keeps; it brings its model and its state. Or X-Session-Id."
    )
    step: Annotated[int, Field(ge=1)] | None = Field(
        None,
        description="Number of the first step, for steps that bring none; a session's next one, or 1, if left out.",
    )
    h: InitialH = None
    c: InitialC = None
    returns: Stepped | None = Field(
        None, description="What each answer holds; default: outputs, and predictions if there is a head."
    )


class StepLine(BaseModel):
    """A line of a stream that is more than the inputs alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    inputs: Annotated[Any, Numbers("(I)", 1, 0)]
    step: int | None = None


Fields = TypeVar("Fields", bound=BaseModel)


def validate(kind: type[Fields], fields: Mapping[str, Any], *, texts: bool = False) -> Fields:
    """Check fields by a pydantic model; `texts` says that plain values came as strings, as safetensors metadata does.

    Raises InvalidRequest with every field that is wrong.
    """
    try:
        return kind.model_validate(fields, context=texts)
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False)[:MAX_ERRORS]
        raise InvalidRequest([_field_error(kind, item) for item in errors]) from None


def _field_error(kind: type[BaseModel], item: Any) -> FieldError:
    is_unknown = item["type"] == "extra_forbidden"
    # Of a field of several types pydantic also says which it has tried; an unknown field may be called so.
    named = (part for part in item["loc"] if is_unknown or part not in ("int", "str", "constrained-str", "list[int]"))
    loc = tuple(part[:MAX_NAME] if isinstance(part, str) else part for part in named)
    name = spell(loc) or "the body"
    if is_unknown:
        if len(loc) > 1:
            return FieldError(loc, f"{name} is not a field of this request")
        near = get_close_matches(str(loc[0]), kind.model_fields, 1)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(kind.model_fields)}"
        return FieldError(loc, f"{name} is not a field of this request; {hint}")
    if item["type"] == "missing":
        return FieldError(loc, f"{name} is required")
    message = item["msg"][:1].lower() + item["msg"][1:]
    came = "" if isinstance(item["input"], np.ndarray | Ragged) else f", got {item['input']!r:.60}"
    return FieldError(loc, f"{name}: {message}{came}")
