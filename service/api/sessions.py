"""/cell/sessions: opening, looking at, forking, resetting and ending the sessions whose state the service keeps."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, Field

from service.api.body import BodyLimits
from service.api.documents import FORMATS, encode_document, read_document, refuse_non_finite
from service.api.exchange import Exchange
from service.api.gateway import exchange_of
from service.api.keys import require_admin
from service.api.negotiation import JSON, SAFETENSORS, reply_format
from service.api.requests import OpenRequest, parse
from service.api.session_step import state_fields
from service.api.shapes import Limits, Target, wrong
from service.api.stepping import initial, steppable
from service.serving.admission import Admission
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


class SessionRoutes:
    """What the routes share: translating between HTTP and `Sessions`."""

    def __init__(
        self,
        sessions: Sessions,
        steps: SessionSteps,
        registry: Registry,
        limits: Limits,
        body_limits: BodyLimits,
        admission: Admission,
    ) -> None:
        self._sessions = sessions
        self._steps = steps
        self._registry = registry
        self._limits = limits
        self._body_limits = body_limits
        self._admission = admission

    async def open(self, exchange: Exchange) -> Response:
        """A new session from a request's body."""
        document, came_as = await read_document(exchange, self._body_limits, self._admission)
        model = steppable(self._registry.resolve_fields(document))
        exchange.model, exchange.version = model.name, model.version
        target = Target(model.name, model.spec, self._limits, text=came_as == SAFETENSORS)
        request = parse(OpenRequest, document, target)
        longest = self._sessions.lifetimes.longest_seconds
        if request.ttl_seconds is not None and request.ttl_seconds > longest:
            raise wrong(f"ttl_seconds is {request.ttl_seconds:g}; the longest is {longest:g}", "ttl_seconds")
        spec = model.spec
        h = c = None
        if request.h is not None:
            h = initial(request.h, "h", (spec.num_layers, 1, spec.state_size), "P", batched=False)
        if request.c is not None and not spec.has_cell_state:
            raise wrong(f'c is for LSTMs; model "{target.name}" is of kind {spec.kind}', "c")
        if request.c is not None:
            c = initial(request.c, "c", (spec.num_layers, 1, spec.hidden_size), "H", batched=False)
        record = await self._sessions.open(model, exchange.owner, request.ttl_seconds, h, c)
        return self._created(exchange, record, model)

    async def peek(self, exchange: Exchange, session: str, *, state: bool, non_finite: str) -> Response:
        """A session, with its state if that is asked for."""
        found = await self._sessions.use(session, exchange.session_owner, fresh=True)
        return self._answer(exchange, 200, found.record, found.model, state=state, non_finite=non_finite)

    async def fork(self, exchange: Exchange, session: str) -> Response:
        """A new session from the state of another."""
        record = await self._sessions.fork(session, exchange.session_owner)
        model = (await self._sessions.use(record.id, None)).model
        return self._created(exchange, record, model)

    async def reset(self, exchange: Exchange, session: str) -> Response:
        """Back to the initial state."""
        record = await self._sessions.reset(session, exchange.session_owner)
        found = await self._sessions.use(record.id, None)
        return self._answer(exchange, 200, record, found.model)

    async def delete(self, exchange: Exchange, session: str, *, state: bool, non_finite: str) -> Response:
        """End a session; its last state goes with the reply if that is asked for."""
        found = await self._sessions.use(session, exchange.session_owner, fresh=True)
        if state:  # a reply that cannot be given must not cost the session
            self._answer(exchange, 200, found.record, found.model, state=True, non_finite=non_finite)
        record = await self._sessions.delete(session, exchange.session_owner)
        if not state:
            return Response(status_code=204)
        return self._answer(exchange, 200, record, found.model, state=True, non_finite="null")

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

    def _created(self, exchange: Exchange, record: SessionRecord, model: ModelVersion) -> Response:
        response = self._answer(exchange, 201, record, model)
        response.headers["location"] = f"/cell/sessions/{record.id}"
        return response

    def _answer(
        self,
        exchange: Exchange,
        status: int,
        record: SessionRecord,
        model: ModelVersion,
        *,
        state: bool = False,
        non_finite: str = "error",
    ) -> Response:
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
            kind = reply_format(exchange.header(b"accept"), FORMATS, JSON)
            arrays = state_fields(*decode_state(model.spec, record.position.state))
            if kind == JSON and non_finite == "error":
                for name, values in arrays.items():
                    refuse_non_finite(name, values.reshape(1, -1))
            fields |= arrays
        return Response(encode_document(exchange, fields, kind), status, media_type=kind)


def short(session: str) -> str:
    """As much of an id as may be shown to others."""
    return session[:SHORT_ID]


def sessions_router(routes: SessionRoutes) -> APIRouter:
    """The routes as FastAPI sees them."""
    router = APIRouter(prefix="/cell/sessions", tags=["sessions"])
    state = Annotated[bool, Query(description="Send the state, too: a snapshot that POST /cell/sessions takes back.")]
    non_finite = Annotated[Literal["error", "null"], Query(description="What JSON does with NaN and infinity.")]

    @router.post("", status_code=201, summary="Open a session", response_model=SessionView)
    async def open_session(request: Request) -> Response:
        """From zeros, from a state, or from a snapshot of another session."""
        return await routes.open(exchange_of(request.scope))

    @router.get("", summary="Live sessions", dependencies=[Depends(_admin)])
    async def list_sessions(
        after: Annotated[str, Query(max_length=64)] = "", limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100
    ) -> SessionPage:
        """With an admin key; ids are shortened."""
        return await routes.page(after, limit)

    @router.get("/{session}", summary="Look at a session", response_model=SessionView)
    async def peek(request: Request, session: str, state: state = False, non_finite: non_finite = "error") -> Response:
        """Its count of steps and its times; its state on request. Looking does not prolong its life."""
        return await routes.peek(exchange_of(request.scope), session, state=state, non_finite=non_finite)

    @router.post("/{session}/fork", status_code=201, summary="Fork a session", response_model=SessionView)
    async def fork(request: Request, session: str) -> Response:
        """A new session at step 0, whose initial state is this one's state now."""
        return await routes.fork(exchange_of(request.scope), session)

    @router.post("/{session}/reset", summary="Reset a session", response_model=SessionView)
    async def reset(request: Request, session: str) -> Response:
        """Back to the initial state; the count of steps goes on."""
        return await routes.reset(exchange_of(request.scope), session)

    @router.delete("/{session}", status_code=204, summary="End a session", responses={200: {"model": SessionView}})
    async def delete(
        request: Request, session: str, state: state = False, non_finite: non_finite = "error"
    ) -> Response:
        """Its last state comes in the body on request (200 instead of 204)."""
        return await routes.delete(exchange_of(request.scope), session, state=state, non_finite=non_finite)

    return router


def _admin(request: Request) -> None:
    require_admin(exchange_of(request.scope))


def _times(record: SessionRecord) -> dict[str, datetime]:
    moments = {"created_at": record.created_at, "used_at": record.position.used_at, "expires_at": record.expires_at}
    return {name: datetime.fromtimestamp(moment, UTC) for name, moment in moments.items()}
