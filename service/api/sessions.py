"""/cell/sessions: opening, looking at, forking, resetting and ending the sessions whose state the service keeps."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response

from service.api.documents import Documents
from service.api.negotiation import JSON, SAFETENSORS, reply_format
from service.api.replies import SessionPage, SessionView
from service.api.request import Reply, Request
from service.api.requests import OpenRequest, validate
from service.api.routes import ARRAYS, Called, admin_only
from service.api.shapes import ROW, initial_state, invalid, refuse_non_finite
from service.api.step import squeezed
from service.api.stepping import steppable
from service.serving.registry import ModelVersion, Registry
from service.sessions.exactly_once import SessionSteps
from service.sessions.lifecycle import Sessions
from service.sessions.replay import decode_state
from service.stores.interface import SessionRecord

SHORT_ID = 8  # characters of an id that others than its owner may see

MAX_PAGE = 1_000

State = Annotated[bool, Query(description="Send the state, too: a snapshot that POST /cell/sessions takes back.")]
NonFinite = Annotated[Literal["error", "null"], Query(description="What JSON does with NaN and infinity.")]

_VIEW: dict[int | str, dict[str, Any]] = {200: {"model": SessionView, "content": {JSON: {}, SAFETENSORS: ARRAYS}}}


@dataclass(frozen=True, slots=True)
class SessionHandlers:
    """What opens sessions, and describes them."""

    sessions: Sessions
    steps: SessionSteps
    registry: Registry
    documents: Documents

    async def open(self, request: Request) -> Reply:
        """Open a session from a request's body: from zeros, from a state, or from a snapshot of another session."""
        document, came_as = await self.documents.decode(request)
        model = steppable(self.registry.resolve_fields(document))
        request.model, request.version = model.name, model.version
        asked = validate(OpenRequest, document, texts=came_as == SAFETENSORS)
        longest = self.sessions.lifetimes.longest_seconds
        if asked.ttl_seconds is not None and asked.ttl_seconds > longest:
            raise invalid(f"ttl_seconds is {asked.ttl_seconds:g}; the longest is {longest:g}", "ttl_seconds")
        h = c = None
        if asked.h is not None or asked.c is not None:
            h, c = initial_state(asked.h, asked.c, model, 1, ROW)
        record = await self.sessions.open(model, request.owner, asked.ttl_seconds, h, c)
        return await self.created(request, record, model)

    async def created(self, request: Request, record: SessionRecord, model: ModelVersion) -> Reply:
        location = b"location", f"/cell/sessions/{record.id}".encode()
        return (await self.described(request, record, model))._replace(status=201, headers=[location])

    async def described(
        self,
        request: Request,
        record: SessionRecord,
        model: ModelVersion,
        *,
        state: bool = False,
        non_finite: str = "error",
    ) -> Reply:
        """A session as its owner sees it. Raises NonFiniteOutput for a state that JSON is not to print as null."""
        fields: dict[str, Any] = _view(record, record.id)
        fields |= {"replay_steps": self.steps.replay_steps(model), "input_size": model.spec.in_features}
        fields["num_embeddings"] = model.spec.num_embeddings
        kind = JSON
        if state:
            kind = reply_format(request.headers.get(b"accept", b""), JSON)
            for name, values in zip(("h", "c"), decode_state(model.spec, record.position.state), strict=True):
                if values is None:
                    continue
                if kind == JSON and non_finite == "error":
                    refuse_non_finite(name, values)
                fields[name] = squeezed(values, batched=False)
        return Reply(200, kind.encode(), await self.documents.encode(request, fields, kind))


def sessions_router(handlers: SessionHandlers) -> APIRouter:
    """The routes but for opening, which is a hot one."""
    router = APIRouter(prefix="/cell/sessions", tags=["sessions"])
    sessions = handlers.sessions

    @router.get("", summary="Live sessions", dependencies=[Depends(admin_only)], response_model=SessionPage)
    async def list_sessions(
        after: Annotated[str, Query(max_length=64)] = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100
    ) -> Mapping[str, Any]:
        """With an admin key; ids are shortened, as whoever knows one can use the session."""
        # Cursors are short ids, too: "~" comes after all that an id holds.
        records = await sessions.cache.store.page(f"{after}~" if after else "", limit)
        shown = [_view(record, record.id[:SHORT_ID]) for record in records]
        return {"sessions": shown, "next": shown[-1]["session"] if len(shown) == limit else None}

    @router.get("/{session}", summary="Look at a session", responses=_VIEW)
    async def get_session(
        request: Called, session: str, state: State = False, non_finite: NonFinite = "error"
    ) -> Response:
        """Its count of steps and its times; its state on request. Looking does not prolong its life."""
        record, model, _ = await sessions.use(session, request.session_owner, fresh=True)
        return _response(await handlers.described(request, record, model, state=state, non_finite=non_finite))

    @router.post("/{session}/fork", status_code=201, summary="Fork a session", response_model=SessionView)
    async def fork_session(request: Called, session: str) -> Response:
        """A new session at step 0, whose initial state is this one's state now."""
        record = await sessions.fork(session, request.session_owner)
        model = (await sessions.use(record.id, None)).model
        return _response(await handlers.created(request, record, model))

    @router.post("/{session}/reset", summary="Reset a session", response_model=SessionView)
    async def reset_session(request: Called, session: str) -> Response:
        """Back to the initial state; the count of steps goes on."""
        record = await sessions.reset(session, request.session_owner)
        model = (await sessions.use(record.id, None)).model
        return _response(await handlers.described(request, record, model))

    @router.delete("/{session}", status_code=204, summary="End a session", responses=_VIEW)
    async def delete_session(
        request: Called, session: str, state: State = False, non_finite: NonFinite = "error"
    ) -> Response:
        """Its last state comes in the body on request (200 instead of 204)."""
        owner = request.session_owner
        if not state:
            await sessions.delete(session, owner)
            return Response(status_code=204)
        record, model, _ = await sessions.use(session, owner, fresh=True)
        # A reply that cannot be given must not cost the session.
        await handlers.described(request, record, model, state=True, non_finite=non_finite)
        record = await sessions.delete(session, owner)
        return _response(await handlers.described(request, record, model, state=True, non_finite="null"))

    return router


def _response(reply: Reply) -> Response:
    assert not isinstance(reply.body, AsyncGenerator)  # noqa: S101  # it is no stream
    body = reply.body if isinstance(reply.body, bytes) else b"".join(reply.body)
    response = Response(body, reply.status, media_type=reply.media_type.decode())
    response.raw_headers.extend(reply.headers)
    return response


def _view(record: SessionRecord, shown_id: str) -> dict[str, Any]:
    moments = {"created_at": record.created_at, "used_at": record.position.used_at, "expires_at": record.expires_at}
    return {
        "session": shown_id,
        "model": record.weights.model,
        "version": record.weights.version,
        "step": record.position.step,
        "ttl_seconds": record.ttl_seconds,
        **{
            name: datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
            for name, moment in moments.items()
        },
    }
