"""/cell/sessions: opening, looking at, forking, resetting and ending the sessions whose state the service keeps."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from fastapi import Request as RoutedRequest
from pydantic import BaseModel, Field

from service.api.application import request_of
from service.api.documents import Documents
from service.api.keys import require_admin
from service.api.negotiation import JSON, SAFETENSORS, reply_format
from service.api.request import Reply, Request
from service.api.requests import OpenRequest, parse
from service.api.shapes import Limits, Target, refuse_cell_state, refuse_non_finite, wrong
from service.api.step import state_fields
from service.api.stepping import initial, steppable
from service.serving.registry import ModelVersion, Registry
from service.sessions.exactly_once import SessionSteps
from service.sessions.lifecycle import Sessions
from service.sessions.replay import decode_state
from service.stores.interface import SessionRecord

SHORT_ID = 8
"""Characters of an id that others than its owner may see."""

MAX_PAGE = 1_000


class SessionView(BaseModel):
    """A session. With `state=true` also `h` (L,P) or (P), and `c` (L,H) or (H): a snapshot."""

    session: str = Field(description="Its id: whoever knows it, and has the key that opened it, can step it.")
    model: str = Field(description="The model that it steps.")
    version: str = Field(description="The version that it stays on until it ends.")
    step: int = Field(description="Steps done.")
    ttl_seconds: float = Field(description="Life since the last step.")
    created_at: datetime = Field(description="When it was opened.")
    used_at: datetime = Field(description="Time of the last step or reset.")
    expires_at: datetime = Field(description="When it ends if nobody steps it.")
    replay_steps: int = Field(description="How many of a stream's latest steps can be repeated, at least.")


class ShortView(BaseModel):
    """A session as an admin sees it: its id is shortened, as it is the key to it."""

    session: str = Field(description="The first characters of its id.")
    model: str = Field(description="The model that it steps.")
    version: str = Field(description="The version that it stays on until it ends.")
    step: int = Field(description="Steps done.")
    created_at: datetime = Field(description="When it was opened.")
    used_at: datetime = Field(description="Time of the last step or reset.")
    expires_at: datetime = Field(description="When it ends if nobody steps it.")


class SessionPage(BaseModel):
    """Some of the live sessions, by id."""

    sessions: list[ShortView] = Field(description="The sessions of this page.")
    next: str | None = Field(description="What to send as `after` for the next page; null if there is none.")


class SessionCalls:
    """Translates between HTTP and `Sessions`."""

    def __init__(
        self, sessions: Sessions, steps: SessionSteps, registry: Registry, limits: Limits, documents: Documents
    ) -> None:
        self._sessions = sessions
        self._steps = steps
        self._registry = registry
        self._limits = limits
        self._documents = documents

    async def open(self, request: Request) -> Reply:
        """Open a session from a request's body: from zeros, from a state, or from a snapshot of another session."""
        document, came_as = await self._documents.decode(request)
        model = steppable(self._registry.resolve_fields(document))
        request.model, request.version = model.name, model.version
        target = Target(model.name, model.spec, self._limits, text=came_as == SAFETENSORS)
        asked = parse(OpenRequest, document, target)
        longest = self._sessions.lifetimes.longest_seconds
        if asked.ttl_seconds is not None and asked.ttl_seconds > longest:
            raise wrong(f"ttl_seconds is {asked.ttl_seconds:g}; the longest is {longest:g}", "ttl_seconds")
        spec = model.spec
        refuse_cell_state(asked.c, "c", target)
        h = c = None
        if asked.h is not None:
            h = initial(asked.h, "h", (spec.num_layers, 1, spec.state_size), "P", batched=False)
        if asked.c is not None:
            c = initial(asked.c, "c", (spec.num_layers, 1, spec.hidden_size), "H", batched=False)
        record = await self._sessions.open(model, request.owner, asked.ttl_seconds, h, c)
        return await self._created(request, record, model)

    async def peek(self, request: Request, session: str, *, state: bool, non_finite: str) -> Reply:
        """A session, with its state if that is asked for."""
        found = await self._sessions.use(session, request.session_owner, fresh=True)
        return await self._reply(request, 200, found.record, found.model, state=state, non_finite=non_finite)

    async def fork(self, request: Request, session: str) -> Reply:
        """A new session from the state of another."""
        record = await self._sessions.fork(session, request.session_owner)
        model = (await self._sessions.use(record.id, None)).model
        return await self._created(request, record, model)

    async def reset(self, request: Request, session: str) -> Reply:
        """Back to the initial state."""
        record = await self._sessions.reset(session, request.session_owner)
        found = await self._sessions.use(record.id, None)
        return await self._reply(request, 200, record, found.model)

    async def delete(self, request: Request, session: str, *, state: bool, non_finite: str) -> Reply:
        """End a session; its last state goes with the reply if that is asked for."""
        found = await self._sessions.use(session, request.session_owner, fresh=True)
        if state:  # a reply that cannot be given must not cost the session
            await self._reply(request, 200, found.record, found.model, state=True, non_finite=non_finite)
        record = await self._sessions.delete(session, request.session_owner)
        if not state:
            return Reply(204, JSON.encode(), b"")
        return await self._reply(request, 200, record, found.model, state=True, non_finite="null")

    async def page(self, after: str, limit: int) -> SessionPage:
        """Live sessions, with ids shortened. Cursors are short ids, too: "~" comes after all that an id holds."""
        records = await self._sessions.cache.store.page(f"{after}~" if after else "", limit)
        shown = [
            ShortView(
                session=short(record.id),
                model=record.weights.model,
                version=record.weights.version,
                step=record.position.step,
                **_times(record),
            )
            for record in records
        ]
        return SessionPage(sessions=shown, next=shown[-1].session if len(shown) == limit else None)

    async def _created(self, request: Request, record: SessionRecord, model: ModelVersion) -> Reply:
        reply = await self._reply(request, 201, record, model)
        return reply._replace(headers=[(b"location", f"/cell/sessions/{record.id}".encode())])

    async def _reply(
        self,
        request: Request,
        status: int,
        record: SessionRecord,
        model: ModelVersion,
        *,
        state: bool = False,
        non_finite: str = "error",
    ) -> Reply:
        view = SessionView(
            session=record.id,
            model=model.name,
            version=model.version,
            step=record.position.step,
            ttl_seconds=record.ttl_seconds,
            replay_steps=self._steps.replay_steps(model),
            **_times(record),
        )
        fields: dict[str, Any] = view.model_dump(mode="json")
        kind = JSON
        if state:
            kind = reply_format(request.headers.get(b"accept", b""), JSON)
            arrays = state_fields(*decode_state(model.spec, record.position.state))
            if kind == JSON and non_finite == "error":
                for name, values in arrays.items():
                    refuse_non_finite(name, values.reshape(1, -1))
            fields |= arrays
        return Reply(status, kind.encode(), await self._documents.encode(request, fields, kind))


def short(session: str) -> str:
    """As much of an id as may be shown to others."""
    return session[:SHORT_ID]


def sessions_router(calls: SessionCalls) -> APIRouter:
    """The routes but for opening, which is one of the hot calls."""
    router = APIRouter(prefix="/cell/sessions", tags=["sessions"])
    state = Annotated[bool, Query(description="Send the state, too: a snapshot that POST /cell/sessions takes back.")]
    non_finite = Annotated[Literal["error", "null"], Query(description="What JSON does with NaN and infinity.")]

    @router.get("", summary="Live sessions", dependencies=[Depends(_admin)])
    async def list_sessions(
        after: Annotated[str, Query(max_length=64)] = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100
    ) -> SessionPage:
        """With an admin key; ids are shortened."""
        return await calls.page(after, limit)

    @router.get("/{session}", summary="Look at a session", response_model=SessionView)
    async def peek(
        routed: RoutedRequest, session: str, state: state = False, non_finite: non_finite = "error"
    ) -> Response:
        """Its count of steps and its times; its state on request. Looking does not prolong its life."""
        return _response(await calls.peek(request_of(routed.scope), session, state=state, non_finite=non_finite))

    @router.post("/{session}/fork", status_code=201, summary="Fork a session", response_model=SessionView)
    async def fork(routed: RoutedRequest, session: str) -> Response:
        """A new session at step 0, whose initial state is this one's state now."""
        return _response(await calls.fork(request_of(routed.scope), session))

    @router.post("/{session}/reset", summary="Reset a session", response_model=SessionView)
    async def reset(routed: RoutedRequest, session: str) -> Response:
        """Back to the initial state; the count of steps goes on."""
        return _response(await calls.reset(request_of(routed.scope), session))

    @router.delete("/{session}", status_code=204, summary="End a session", responses={200: {"model": SessionView}})
    async def delete(
        routed: RoutedRequest, session: str, state: state = False, non_finite: non_finite = "error"
    ) -> Response:
        """Its last state comes in the body on request (200 instead of 204)."""
        return _response(await calls.delete(request_of(routed.scope), session, state=state, non_finite=non_finite))

    return router


def _response(reply: Reply) -> Response:
    """A reply for FastAPI's router."""
    if reply.status == 204:
        return Response(status_code=204)
    assert isinstance(reply.body, bytes)  # noqa: S101  # of a session's size
    response = Response(reply.body, reply.status, media_type=reply.media_type.decode())
    response.raw_headers.extend(reply.headers)
    return response


def _admin(routed: RoutedRequest) -> None:
    require_admin(request_of(routed.scope))


def _times(record: SessionRecord) -> dict[str, datetime]:
    moments = {"created_at": record.created_at, "used_at": record.position.used_at, "expires_at": record.expires_at}
    return {name: datetime.fromtimestamp(moment, UTC) for name, moment in moments.items()}
