"""The application: every request is named, authorised, handled, answered if it fails, and accounted for here.

    connection ──────────► Request ─► answer ─► handler ─► Reply ─► connection
    ASGI ─ read the body ─►             │                           ASGI
                                 keys, problems

A POST to one of `handlers` comes by one of two entrances: a connection that has read all of it calls `answer` itself
(`service.server.http`); everything else comes by ASGI, whose application this is. Streams, WebSockets and FastAPI's
routes are ASGI's alone.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple

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
from service.api.request import Reply, Request, given_id, joined
from service.api.sending import LineReply, send_lines, send_whole
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
StreamHandler = Callable[[Request, Receive, Send], Awaitable[None]]
SocketHandler = Callable[[Request, Scope, Receive, Send], Awaitable[None]]

CLIENT_CLOSED_REQUEST = 499
"""What the log and the metrics say of a client that hung up; no such reply is ever sent."""

_REQUEST = "rnn.request"


class Handlers(NamedTuple):
    """What handles requests, by path: whole POSTs, NDJSON POSTs, and WebSockets."""

    posts: Mapping[str, Handler]
    streams: Mapping[str, StreamHandler]
    sockets: Mapping[str, SocketHandler]


class Application:
    """The ASGI application around FastAPI's router; `admissions` bound the requests to some paths."""

    def __init__(
        self,
        router: FastAPI,
        *,
        handlers: Handlers,
        admissions: Mapping[str, Admission],
        bodies: Bodies,
        hosts: HostRules,
        keys: Keys,
        accounting: Accounting,
    ) -> None:
        self._fastapi = router
        self._router = AsyncExitStackMiddleware(router.router)
        self._handlers, self._streams, self._sockets = handlers
        self._admissions = admissions
        self._bodies = bodies
        self.draining = bodies.draining
        self._hosts = hosts
        self._keys = keys
        self._accounting = accounting
        self._log = structlog.get_logger()
        self._direct_paths = frozenset(path.encode() for path in handlers.posts)
        self.unready: Callable[[], list[str]] = list
        """Gives the reasons for not being ready."""

    def request(
        self, method: str, path: str, query: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None
    ) -> Request:
        """A request that has just come."""
        found = joined(headers)
        request_id = given_id(found) or self._accounting.new_id()
        peer = self._hosts.client(client[0] if client else "", found)
        request = Request(method, path, query, found, peer, request_id, route_of(path))
        if self._accounting.traces:
            request.intervals = []
        return request

    def is_direct(self, url: bytes) -> bool:
        """Whether a connection may give a POST to this URL to `answer` itself."""
        return url in self._direct_paths or is_plain_infer(url)

    async def answer(self, request: Request, incoming: Incoming | None = None) -> Reply:
        """The reply to a POST to one of `handlers`; its body is read from `incoming`, if that is given."""
        try:
            self._hosts.check(request)
            self._keys.check(request)
            reply = await self._handle(request, incoming)
        except Exception as error:
            reply = self._reply_to(error, request)
        return await compressed(reply, request)

    async def resume(self, request: Request, running: Awaitable[Reply], _: Scope, __: Receive, send: Send) -> None:
        """Wait for the reply of an `answer` that a connection has begun, and send it by ASGI."""

        async def serve() -> None:
            await self.send(request, await running, send)

        await self._until_finished(request, serve())

    def finish(self, request: Request, path: str | None = None) -> None:
        """The reply was sent, or nobody waits for it any more; path is the route's, if that is not the request's."""
        if admission := self._admissions.get(request.route):
            admission.leave(request)
        self._bodies.budget.release(request)
        self._accounting.finish(request, path or request.route)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI."""
        if scope["type"] == "lifespan":
            await self._fastapi(scope, receive, _briefly(send))
            return
        method = scope.get("method", "WS")
        request = self.request(method, scope["path"], scope["query_string"], scope["headers"], scope.get("client"))
        request.http_version = scope.get("http_version", request.http_version)
        work: Awaitable[str | None]
        if scope["type"] == "websocket":
            work = self._serve_socket(request, scope, receive, send)
        elif method == "POST" and request.route in self._handlers:
            work = self._serve_post(request, receive, send)
        else:
            work = self._serve_route(request, scope, receive, send)
        await self._until_finished(request, work)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, as an ASGI application, bytes that are no HTTP, and read on for a while what follows them."""
        request = self.request("", "other", b"", [(b"transfer-encoding", b"")], scope["client"])
        reply = problem_reply(MalformedRequest("the request cannot be read as HTTP/1.1"), request)
        await self._until_finished(request, self.send(request, reply, send, Incoming(request, receive)))

    async def _until_finished(self, request: Request, work: Awaitable[str | None]) -> None:
        """Account for a request when its work is done; that gives the path of its route, if it has another."""
        path = None
        try:
            path = await work
        except ClientGone:
            request.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # the time to shut down is over
            request.status = request.status or STATUS[ServiceDraining]
            raise
        finally:
            self.finish(request, path)

    async def send(self, request: Request, reply: Reply, send: Send, incoming: Incoming | None = None) -> None:
        """Send a reply by ASGI; nothing, if a reply has begun."""
        if request.status:
            return
        if not isinstance(reply.body, AsyncGenerator):
            await send_whole(request, reply, send, incoming)
        elif error := await send_lines(request, reply.body, send):
            told = self._told(error, request)
            if not request.status:
                await send_whole(request, problem_reply(told, request), send)
            else:
                last = error_line(told, request.request_id)
                await LineReply(request, send).write(last, last=True)

    async def _handle(self, request: Request, incoming: Incoming | None) -> Reply:
        if incoming is not None or len(request.body) > self._bodies.max_bytes:
            self._bodies.refuse_too_large(request)
        if admission := self._admissions.get(request.route):
            admission.enter(request, request.client)
        if incoming is None:
            request.received_bytes = len(request.body)
        else:
            request.body = await self._bodies.read(request, incoming)
        return await self._handlers[request.route](request)

    async def _guarded(self, request: Request, serve: Callable[..., Awaitable[None]], *arguments: Any) -> Reply | None:
        """Let a request be served that sends its own reply; gives one for its failure, or a preflight's.

        Raises ClientGone.
        """
        try:
            self._hosts.check(request)
            if preflight := self._hosts.preflight(request):
                return preflight
            self._keys.check(request)
            await serve(*arguments)
        except Exception as error:
            return self._reply_to(error, request)
        return None

    def _reply_to(self, error: Exception, request: Request) -> Reply:
        """The reply for a failure. Raises ClientGone."""
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
        stream = self._streams.get(request.path)
        if stream and media_type(request.headers.get(b"content-type", b"")) == NDJSON:
            request.streams, request.intervals = True, None
            reply = await self._guarded(request, stream, request, receive, send)
        else:
            request.watch = incoming.hung_up
            reply = await self.answer(request, incoming)
        if reply is not None:
            await self.send(request, reply, send, incoming)

    async def _serve_route(self, request: Request, scope: Scope, receive: Receive, send: Send) -> str:
        """Leave a request to FastAPI's router; returns the route's path: labels must not grow with what comes."""
        scope["app"], scope[_REQUEST] = self._fastapi, request
        if scope["method"] == "HEAD":  # a GET, of whose reply the server sends no body
            scope = {**scope, "method": "GET"}
        route = self._router if request.path not in self._sockets else _upgrade_required
        reply = await self._guarded(request, route, scope, receive, _noting(request, send))
        if reply is not None:
            await self.send(request, reply, send, Incoming(request, receive))
        return getattr(scope.get("route"), "path", "other")

    async def _serve_socket(self, request: Request, scope: Scope, receive: Receive, send: Send) -> str:
        socket = self._sockets.get(request.path)
        request.streams, request.intervals = True, None
        if (authorization := authorization_of(scope)) is not None:
            request.headers = {b"authorization": authorization, **request.headers}

        async def refuse(message: Message) -> None:
            await send({**message, "type": f"websocket.{message['type']}"})

        reply = await self._guarded(request, socket or self._no_socket, request, scope, receive, send)
        if reply is not None:
            await self.send(request, reply, refuse)
        return request.path if socket else "other"

    async def _no_socket(self, request: Request, _: Scope, __: Receive, ___: Send) -> None:
        raise RouteNotFound(f"there is no WebSocket at {request.path:.80}; there is {', '.join(self._sockets)}")

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
            for route in self._fastapi.routes
            if not isinstance(route, Mount)  # which leaves methods to what is behind it
            and route.matches({"type": "http", "path": path, "method": method})[0] == Match.FULL
        }
        return ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods)) or "GET, HEAD"  # files


def request_of(scope: Mapping[str, Any]) -> Request:
    """The request that a scope of FastAPI's router belongs to."""
    request: Request = scope[_REQUEST]
    return request


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
