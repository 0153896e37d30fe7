"""The calls that `Application` handles itself, as FastAPI routes: the OpenAPI document is made of them."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.api.negotiation import JSON, NDJSON, SAFETENSORS
from service.api.replies import ForwardReply, SessionStepReply, StepReply
from service.api.requests import ForwardRequest, OpenRequest, SessionStepRequest, StepRequest
from service.api.sessions import SessionView

_ARRAYS = {"schema": {"type": "string", "format": "binary", "description": "Arrays by name; others in the metadata."}}
_LINES = {"schema": {"type": "string"}}

_DEADLINE = {
    "name": "X-Request-Timeout-Ms",
    "in": "header",
    "description": "Milliseconds after which the request need not run any more: 504, and it did not run.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999},
}
_REQUEST_ID = {
    "name": "X-Request-Id",
    "in": "header",
    "description": "The reply and the log carry it; one is made if it is left out.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
}
_SESSION_ID = {
    "name": "X-Session-Id",
    "in": "header",
    "description": "The session, instead of `session` in the body or the query.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}
_STREAM_FIELDS = {
    "model": "Streams only: name of the model.",
    "version": "Streams only: version of the model.",
    "returns": "Streams only: what each answer holds, with commas: outputs, h, c, predictions.",
    "non_finite": "Streams only: error, or null.",
    "session": "Streams only: a session that the service keeps; or the header X-Session-Id.",
    "step": "Streams only: number of the first step.",
}
STREAM_PARAMETERS = [
    {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
    for name, text in _STREAM_FIELDS.items()
] + [_DEADLINE, _REQUEST_ID]

# The arrays of PyTorch's tutorial on nn.RNN and nn.RNNCell: they run as they stand on the bundled models.
FORWARD_EXAMPLES: dict[str, Any] = {
    "tutorial": {
        "summary": "Two sequences of three steps, time first",
        "value": {
            "model": "tutorial-rnn",
            "inputs": [
                [[1, 0, 0, 0], [0, 1, 0, 0]],
                [[0, 0, 1, 0], [0, 0, 0, 1]],
                [[1, 1, 0, 0], [0, 0, 1, 1]],
            ],
            "h0": [[[0, 0, 0], [0, 0, 0]]],
            "batch_first": False,
        },
    },
    "ragged": {
        "summary": "Two sequences of unequal length, final states only",
        "value": {
            "model": "tutorial-rnn",
            "inputs": [[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]], [[0, 0, 0, 1]]],
            "returns": ["last", "h_n"],
        },
    },
}
STEP_EXAMPLES: dict[str, Any] = {
    "tutorial": {
        "summary": "One step of one row, from a state of zeros",
        "value": {"model": "tutorial-cell", "inputs": [[1, 0, 0, 0]], "h": [[0, 0]]},
    },
    "unbatched": {"summary": "Without the batch axis", "value": {"model": "tutorial-cell", "inputs": [1, 0, 0, 0]}},
}
OPEN_EXAMPLES: dict[str, Any] = {
    "zeros": {"summary": "From zeros", "value": {"model": "tutorial-cell"}},
    "state": {
        "summary": "From a state, for a minute",
        "value": {"model": "tutorial-cell", "h": [0.5, -0.5], "ttl_seconds": 60},
    },
}


class HotRoute(APIRoute):
    """A route that is documented by FastAPI and called by `Application`, which knows it by its path."""


def hot_router() -> APIRouter:
    """The routes."""
    router = APIRouter(route_class=HotRoute)

    @router.post(
        "/rnn/forward",
        tags=["inference"],
        operation_id="forward",
        summary="Run whole sequences",
        response_model=ForwardReply,
        response_description="What was asked for.",
        responses={200: {"content": {SAFETENSORS: _ARRAYS}}},
        openapi_extra=_extra({SAFETENSORS: _ARRAYS}, FORWARD_EXAMPLES),
    )
    async def forward(body: ForwardRequest) -> None:
        """Sequences through `torch.nn.RNN`, `GRU` or `LSTM` semantics; outputs and final states back."""

    @router.post(
        "/cell/step",
        tags=["inference"],
        operation_id="step",
        summary="Run one time step, or a stream of them",
        response_model=StepReply | SessionStepReply,
        response_description="What was asked for.",
        responses={200: {"content": {SAFETENSORS: _ARRAYS, NDJSON: _LINES}}},
        openapi_extra=_extra(
            {SAFETENSORS: _ARRAYS, NDJSON: _LINES | {"example": '{"model": "tutorial-cell"}\n[1, 0, 0, 0]\n'}},
            STEP_EXAMPLES,
            [_SESSION_ID, *STREAM_PARAMETERS],
        ),
    )
    async def step(body: StepRequest | SessionStepRequest) -> None:
        """One step of `RNNCell`, `GRUCell`, `LSTMCell` or of every layer of a stacked one-directional model.

        The client keeps the state, or, with `session`, the service does, and each step runs exactly once. With
        `application/x-ndjson`, a stream: the first line may be a StreamRequest (or its fields stand in the query),
        every further line is the inputs of one step, and each is answered by one line once it has run.
        """

    @router.post(
        "/cell/sessions",
        status_code=201,
        tags=["sessions"],
        operation_id="open_session",
        summary="Open a session",
        response_model=SessionView,
        openapi_extra=_extra({SAFETENSORS: _ARRAYS}, OPEN_EXAMPLES),
    )
    async def open_session(body: OpenRequest) -> None:
        """From zeros, from a state, or from a snapshot of another session."""

    return router


def _extra(
    content: Mapping[str, Any], examples: Mapping[str, Any], parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """What FastAPI does not know of a call: its other media types, its headers, and examples."""
    return {
        "parameters": parameters or [_DEADLINE, _REQUEST_ID],
        "requestBody": {"required": True, "content": {JSON: {"examples": examples}, **content}},
    }
