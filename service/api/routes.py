"""The calls that `Application` handles itself, as FastAPI routes: the OpenAPI document is made of them."""

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi import Request as Routed

from service.api.application import request_of
from service.api.negotiation import JSON, NDJSON, OCTETS, SAFETENSORS
from service.api.paths import INFER, INFER_VERSION
from service.api.replies import ForwardReply, GenerateReply, SessionStepReply, SessionView, StepReply
from service.api.request import Request
from service.api.requests import ForwardRequest, GenerateRequest, OpenRequest, SessionStepRequest, StepRequest
from service.api.v2.requests import InferReply, InferRequest
from service.errors import Forbidden, Unauthorized

ARRAYS = {"schema": {"type": "string", "format": "binary", "description": "Arrays by name; others in the metadata."}}
_TENSORS = {"schema": {"type": "string", "format": "binary", "description": "The JSON, and bytes of tensors after it."}}
_LINES = {"schema": {"type": "string"}}


def _parameter(name: str, where: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": where, "description": description, "schema": {"type": "string"} | schema}


_HEADERS = [
    _parameter(
        "X-Request-Timeout-Ms",
        "header",
        "Milliseconds after which the request need not run any more: 504, and it did not run.",
        type="integer",
        minimum=0,
        maximum=999_999_999,
    ),
    _parameter("X-Request-Id", "header", "The reply and the log carry it, if it is 1 to 64 of A-Z a-z 0-9 . _ -"),
]
_SESSION_ID = _parameter("X-Session-Id", "header", "Instead of `session`.", pattern="^[A-Za-z0-9_-]{1,64}$")
_HEADER_LENGTH = _parameter(
    "Inference-Header-Content-Length",
    "header",
    "Bytes of the JSON that tensors' bytes follow; left out: all is JSON; 0: all are bytes of `inputs`.",
    type="integer",
    minimum=0,
)
STREAM_PARAMETERS = [
    _parameter("model", "query", "Streams only: name of the model."),
    _parameter("version", "query", "Streams only: version of the model."),
    _parameter("returns", "query", "Streams only: what each answer holds, with commas: outputs, h, c, predictions."),
    _parameter("non_finite", "query", "Streams only: what to do with NaN and infinity.", enum=["error", "null"]),
    _parameter("session", "query", "Streams only: a session that the service keeps; or the header X-Session-Id."),
    _parameter("step", "query", "Streams only: number of the first step.", type="integer", minimum=1),
    *_HEADERS,
]


def _request_of(routed: Routed) -> Request:
    return request_of(routed.scope)


Called = Annotated[Request, Depends(_request_of)]  # our request, as an argument of a route


def admin_only(request: Called) -> None:
    """401 asks for a key where one may help; who has another, or calls where there is none, gets 403."""
    if request.admin is False and not request.owner:
        raise Unauthorized("this call needs an admin's key: send Authorization: Bearer <key>")
    if not request.admin:
        raise Forbidden("this call needs one of the keys in RNN_ADMIN_KEYS")


def hot_router() -> APIRouter:
    """Routes that are documented by FastAPI and called by `Application`, which knows them by their paths."""
    router = APIRouter()

    @router.post(
        "/rnn/forward",
        tags=["inference"],
        summary="Run whole sequences",
        response_model=ForwardReply,
        responses={200: {"content": {SAFETENSORS: ARRAYS}}},
        openapi_extra=_extra({SAFETENSORS: ARRAYS}, _HEADERS),
    )
    async def forward(body: ForwardRequest) -> None:
        """Sequences through `torch.nn.RNN`, `GRU` or `LSTM` semantics; outputs and final states back."""

    @router.post(
        "/rnn/generate",
        tags=["inference"],
        summary="Let a model go on by itself",
        response_model=GenerateReply,
        responses={200: {"content": {SAFETENSORS: ARRAYS, NDJSON: _LINES}}},
        openapi_extra=_extra({SAFETENSORS: ARRAYS}, [_SESSION_ID, *_HEADERS]),
    )
    async def generate(body: GenerateRequest) -> None:
        """What the model predicts is its next input: tokens are drawn, other predictions are fed back.

        The first step consumes the last of `inputs`; the last prediction is not consumed. With
        `Accept: application/x-ndjson` each step is a line, sent once it has run: the first says what runs, the last has
        the final states, and rows that have ended are null. With `session` all steps are one commit.
        """

    @router.post(
        "/cell/step",
        tags=["inference"],
        summary="Run one time step, or a stream of them",
        response_model=StepReply | SessionStepReply,
        responses={200: {"content": {SAFETENSORS: ARRAYS, NDJSON: _LINES}}},
        openapi_extra=_extra({SAFETENSORS: ARRAYS, NDJSON: _LINES}, [_SESSION_ID, *STREAM_PARAMETERS]),
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
        summary="Open a session",
        response_model=SessionView,
        openapi_extra=_extra({SAFETENSORS: ARRAYS}, _HEADERS),
    )
    async def open_session(body: OpenRequest) -> None:
        """From zeros, from a state, or from a snapshot of another session."""

    for path, operation in ((INFER, "v2_infer"), (INFER_VERSION, "v2_infer_version")):

        @router.post(
            path,
            tags=["open inference protocol"],
            operation_id=operation,
            summary="Run whole sequences, or steps, as the Open Inference Protocol has it",
            response_model=InferReply,
            responses={200: {"content": {OCTETS: _TENSORS}}},
            openapi_extra=_extra({OCTETS: _TENSORS}, [_HEADER_LENGTH, *_HEADERS]),
        )
        async def infer(model: str, body: InferRequest) -> None:
            """Tensors in, tensors out, batch first; `<model>.step` runs single steps."""

    return router


def _extra(content: Mapping[str, Any], parameters: list[dict[str, Any]]) -> dict[str, Any]:
    """What FastAPI does not know of a call: its other media types and its headers."""
    return {"parameters": parameters, "requestBody": {"required": True, "content": {JSON: {}, **content}}}
