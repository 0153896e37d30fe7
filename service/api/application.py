"""The application: every request is named, authorised, handled, answered if it fails, and accounted for here.

    connection ──────────► Request ─► answer ─► handler ─► Reply ─► connection
    ASGI ─ read the body ─►             │                           ASGI
                                 keys, problems

A POST to one of `posts` comes by one of two entrances: a connection that has read all of it calls `answer` itself
(`service.server.http`); everything else comes by ASGI, whose application this is. Streams, WebSockets and FastAPI's
routes are ASGI's alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount
from starlette.types import Message, Receive, Scope, Send

from service.api.accounting import Accounting
from service.api.bodies import Bodies, Incoming
from service.api.encodings import compressed
from service.api.hosts import HostRules
from service.api.keys import Keys
from service.api.negotiation import NDJSON, media_type
from service.api.paths import is_plain_infer, route_of
from service.api.problems import STATUS, problem_reply
from service.api.proxies import TrustedProxies
from service.api.readiness import Readiness
from service.api.request import Reply, Request, given_id, joined
from service.api.sending import send_line, send_lines, send_whole
from service.api.streams.step_stream import error_line
from service.api.streams.websocket import authorization_of
from service.errors import (
    ClientGone,
    FieldError,
    InvalidRequest,
    MalformedRequest,
    MethodNotAllowed,
    RouteNotFound,
    ServiceDraining,
    ServiceError,
    UpgradeRequired,
)
from service.serving.inference import Admission

Handler = Callable[[Request], Awaitable[Reply]]
StreamHandler = Callable[[Request, Incoming], Awaitable[Reply]]
SocketHandler = Callable[[Request, Scope, Receive, Send], Awaitable[None]]

CLIENT_CLOSED_REQUEST = 499  # what the log and the metrics say of a client that hung up; no such reply is ever sent

_INCOMING = "rnn.incoming"


@dataclass(eq=False)
class Application:
    """The ASGI application around FastAPI's router.

    - posts, streams, sockets: what handles requests, by path: whole POSTs, NDJSON POSTs, and WebSockets
    - admissions: bound the requests to some paths
    """

    router: FastAPI
    posts: Mapping[str, Handler]
    streams: Mapping[str, StreamHandler]
    sockets: Mapping[str, SocketHandler]
    admissions: Mapping[str, Admission]
    bodies: Bodies
    proxies: TrustedProxies
    hosts: HostRules
    keys: Keys
    accounting: Accounting
    readiness: Readiness

    def __post_init__(self) -> None:
        self._router = AsyncExitStackMiddleware(self.router.router)
        self._log = structlog.get_logger()
        self._direct_paths = frozenset(path.encode() for path in self.posts)

    def request(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None
    ) -> Request:
        """A request that has just come."""
        found = joined(headers)
        request_id = given_id(found) or self.accounting.new_id()
        address = self.proxies.client_address(client[0] if client else "", found)
        request = Request(method, path, query, found, address, request_id, route_of(path))
        if self.accounting.is_traced:
            request.intervals = []
        return request

    def is_direct(self, url: bytes) -> bool:
        """Whether a connection may give a POST to this URL to `answer` itself."""
        return url in self._direct_paths or is_plain_infer(url)

    async def answer(self, request: Request, incoming: Incoming | None = None) -> Reply:
        """The reply to a POST to one of `posts`; its body is read from `incoming`, if that is given."""
        try:
            self.hosts.check(request)
            self.keys.check(request)
            reply = await self._handle(request, incoming)
        except Exception as error:
            reply = problem_reply(self._told(error, request), request)
        return await compressed(reply, request)

    async def resume(self, request: Request, running: Awaitable[Reply], _: Scope, __: Receive, send: Send) -> None:
        """Wait for the reply of an `answer` that a connection has begun, and send it by ASGI."""

        async def serve() -> None:
            await self.send(request, await running, send)

        await self._until_finished(request, serve())

    def finish(self, request: Request) -> None:
        """The reply was sent, or nobody waits for it any more."""
        if admission := self.admissions.get(request.route):
            admission.leave(request)
        self.bodies.budget.release(request)
        self.accounting.finish(request)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI."""
        if scope["type"] == "lifespan":
            await self.router(scope, receive, _briefly(send))
            return
        method = scope.get("method", "WS")
        request = self.request(method, scope["path"], scope["query_string"], scope["headers"], scope.get("client"))
        request.http_version = scope.get("http_version", request.http_version)
        if scope["type"] == "websocket":
            work = self._serve_socket(request, scope, receive, send)
        elif method == "POST" and request.route in self.posts:
            work = self._serve_post(request, receive, send)
        else:
            work = self._serve_route(request, scope, receive, send)
        await self._until_finished(request, work)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI application, bytes that are no HTTP, and read on for a while what follows them."""
        request = self.request("", "other", b"", [(b"transfer-encoding", b"")], scope["client"])
        reply = problem_reply(MalformedRequest("the request cannot be read as HTTP/1.1"), request)
        await self._until_finished(request, self.send(request, reply, send, Incoming(request, receive)))

    async def _until_finished(self, request: Request, work: Awaitable[None]) -> None:
        """Account for a request when its work is done."""
        try:
            await work
        except ClientGone:
            request.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # the time to shut down is over
            request.status = request.status or STATUS[ServiceDraining]
            raise
        finally:
            self.finish(request)

    async def send(self, request: Request, reply: Reply, send: Send, incoming: Incoming | None = None) -> None:
        """Send a reply by ASGI; nothing, if a reply has begun."""
        if request.status:
            return
        if not isinstance(reply.body, AsyncGenerator):
            await send_whole(request, reply, send, incoming)
        elif error := await send_lines(request, reply.body, send):
            told = self._told(error, request)
            if not request.status:
                await send_whole(request, problem_reply(told, request), send, incoming)
            else:
                await send_line(request, error_line(told, request.request_id), send)
                if incoming is not None:  # closing at once could cost the client the error line
                    await incoming.linger()
                await send_line(request, b"", send, last=True)

    async def _handle(self, request: Request, incoming: Incoming | None) -> Reply:
        if incoming is not None or len(request.body) > self.bodies.max_bytes:
            self.bodies.refuse_too_large(request)
        if admission := self.admissions.get(request.route):
            admission.enter(request, request.client)
        if incoming is None:
            request.received_bytes = len(request.body)
        else:
            request.body = await self.bodies.read(request, incoming)
        return await self.posts[request.route](request)

    async def _guarded(
        self, request: Request, serve: Callable[..., Awaitable[Reply | None]], *arguments: Any
    ) -> Reply | None:
        """The reply of `serve`, None where that has sent it itself; or to its failure, or a preflight's.

        Raises ClientGone.
        """
        try:
            self.hosts.check(request)
            if preflight := self.hosts.preflight(request):
                return preflight
            self.keys.check(request)
            return await serve(*arguments)
        except Exception as error:
            return problem_reply(self._told(error, request), request)

    def _told(self, error: Exception, request: Request) -> Exception:
        """What the client is told of a failure: the one place where errors become problems. Raises ClientGone."""
        if isinstance(error, ClientGone):
            raise error
        if isinstance(error, RequestValidationError):
            error = InvalidRequest([FieldError(tuple(item["loc"]), item["msg"]) for item in error.errors()])
        elif isinstance(error, HTTPException):  # of the router
            error = self._not_routed(request, error)
        request.failure = type(error)
        if not isinstance(error, ServiceError):
            self._log.error("internal_error", request_id=request.request_id, exc_info=error)
        return error

    async def _serve_post(self, request: Request, receive: Receive, send: Send) -> None:
        incoming = Incoming(request, receive)
        stream = self.streams.get(request.path)
        if stream and media_type(request.headers.get(b"content-type", b"")) == NDJSON:
            request.streams, request.intervals = True, None
            reply = await self._guarded(request, stream, request, incoming)
        else:
            request.watch = incoming.hung_up
            reply = await self.answer(request, incoming)
        if reply is not None:
            await self.send(request, reply, send, incoming)

    async def _serve_route(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Leave a request to FastAPI's router, which knows its route."""
        request.route = "other"
        incoming = Incoming(request, receive)
        scope["app"], scope[_INCOMING] = self.router, incoming
        if scope["method"] == "HEAD":  # a GET, of whose reply the server sends no body
            scope = {**scope, "method": "GET"}
        route = self._router if request.path not in self.sockets else _upgrade_required
        try:
            reply = await self._guarded(request, route, scope, receive, _noting(request, send))
        finally:
            request.route = getattr(scope.get("route"), "path", "other")
        if reply is not None:
            await self.send(request, reply, send, incoming)

    async def _serve_socket(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        socket = self.sockets.get(request.path)
        request.route = request.path if socket else "other"
        request.streams, request.intervals = True, None
        if (authorization := authorization_of(scope)) is not None:
            request.headers = {b"authorization": authorization, **request.headers}

        async def refuse(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        reply = await self._guarded(request, socket or self._no_socket, request, scope, receive, send)
        if reply is not None:
            await self.send(request, reply, refuse)

    async def _no_socket(self, request: Request, _: Scope, __: Receive, ___: Send) -> None:
        raise RouteNotFound(f"there is no WebSocket at {request.path:.80}; there is {', '.join(self.sockets)}")

    def _not_routed(self, request: Request, error: HTTPException) -> ServiceError:
        if error.status_code == 405:
            allowed = self._allowed(request.path)
            return MethodNotAllowed(f"{request.path:.80} takes {allowed}, not {request.method:.20}", allowed)
        return RouteNotFound(f"there is nothing at {request.path:.80}; /docs lists all calls")

    def _allowed(self, path: str) -> str:
        """The methods of all routes at a path; Starlette names those of the first alone."""
        methods = {
            method
            for method in ("DELETE", "GET", "PATCH", "POST", "PUT")
            for route in self.router.routes
            if not isinstance(route, Mount)  # which leaves methods to what is behind it
            and route.matches({"type": "http", "path": path, "method": method})[0] == Match.FULL
        }
        return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods)) or "GET, HEAD"  # files


def incoming_of(scope: Mapping[str, Any]) -> Incoming:
    """The body of the request that a scope of FastAPI's router belongs to."""
    incoming: Incoming = scope[_INCOMING]
    return incoming


def request_of(scope: Mapping[str, Any]) -> Request:
    """That request."""
    return incoming_of(scope).request


async def _upgrade_required(scope: Scope, _: Receive, __: Send) -> None:
    if scope["method"] != "GET":
        raise MethodNotAllowed(f"{scope['path']} is a WebSocket, which a GET opens, not {scope['method']:.20}", "GET")
    raise UpgradeRequired(f"{scope['path']} is a WebSocket; connect with ws:// or wss://")


def _briefly(send: Send) -> Send:
    """`send` for the lifespan: why a start failed is the last line of the traceback that the router makes of it."""

    async def brief(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            message["message"] = message["message"].strip().rpartition("\n")[2].partition(": ")[2]
        await send(message)

    return brief


def _noting(request: Request, send: Send) -> Send:
    """`send` for the router's replies: notes their status and size, and adds the request's id and CORS headers."""

    async def noting(message: Message) -> None:
        if message["type"] == "http.response.start":
            request.status = message["status"]
            headers = message.get("headers", ())
            message["headers"] = [*headers, (b"x-request-id", request.request_id.encode()), *request.cors]
        elif message["type"] == "http.response.body" and request.method != "HEAD":
            request.sent_bytes += len(message.get("body", b""))
        await send(message)

    return noting
