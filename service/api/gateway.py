"""The door that every request passes: named, authorised, led to its handler, answered if it fails, accounted for.

The hot paths are handled here, ahead of FastAPI's router, which costs more than a small step does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from time import perf_counter

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.exchange import Exchange
from service.api.problems import MEDIA_TYPE, STATUS, encode_problem, headers_of, internal_problem, problem
from service.api.quick import Quick
from service.api.reception import Reception
from service.api.reply import send_reply
from service.api.upgrade import translate
from service.errors import (
    ClientFull,
    ClientGone,
    MethodNotAllowed,
    RouteNotFound,
    ServiceDraining,
    ServiceError,
    ServiceFull,
    UpgradeRequired,
)
from service.serving.admission import Admission

Refusal = tuple[int, list[tuple[bytes, bytes]], bytes]
"""Status, headers and body of a reply."""

Handler = Callable[[Exchange], Awaitable[None]]

CLIENT_CLOSED_REQUEST = 499
"""What the log and the metrics say of a client that hung up; no such reply is ever sent."""


class Gateway:
    """The ASGI application: hot paths here, all others in `app`.

    `hot` maps paths of POST calls to their handlers, `sockets` those of WebSockets, `admissions` those to what bounds
    them, where something does; `quick` is for a server that offers requests to it before it calls the application
    (`service.server.quick`).
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hot: Mapping[str, Handler],
        admissions: Mapping[str, Admission],
        sockets: Mapping[str, Handler],
        quick: Mapping[str, Quick],
        reception: Reception,
    ) -> None:
        self._app = app
        self._hot = hot
        self._admissions = {path.encode(): admission for path, admission in admissions.items()}
        self._bounds = tuple(set(admissions.values()))
        self._sockets = sockets
        self._reception = reception
        self._log = structlog.get_logger()
        self.quick = {path.encode(): answer for path, answer in quick.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection event of ASGI; HTTP requests and WebSockets are ours."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, _briefly(send))
            return
        exchange = Exchange(scope, receive, send, self._reception.new_id())
        try:
            if scope["type"] == "websocket":
                translate(exchange)
            self._reception.keys.check(exchange)
            if exchange.failure is not None:
                raise exchange.failure
            await self._lead(exchange)
        except ServiceError as error:
            headers = headers_of(error)
            await _send_problem(exchange, STATUS[type(error)], problem(error, exchange.request_id), headers)
        except ClientGone:
            exchange.status = CLIENT_CLOSED_REQUEST
        except asyncio.CancelledError:  # the time to shut down is over
            exchange.status = exchange.status or STATUS[ServiceDraining]
            raise
        except Exception:
            self._log.exception("internal_error", request_id=exchange.request_id)
            if exchange.status:  # too late for another reply: uvicorn closes the connection
                return
            await _send_problem(exchange, 500, internal_problem(exchange.request_id), [])
        finally:
            self._account(exchange)

    def begins_at_once(self, scope: Scope) -> bool:
        """Whether a request may begin outside of a task: a plain body for a hot path, and no stream.

        Its handler is done before it waits for anything, or waits for compute; nothing in it needs the task to be its
        own before then.
        """
        if scope["method"] != "POST" or scope["path"] not in self._hot:
            return False
        for name, value in scope["headers"]:
            if name == b"content-encoding" or (name == b"content-type" and b"ndjson" in value.lower()):
                return False
        return True

    @property
    def crowded(self) -> bool:
        """Whether it is worth asking `refuse`: while this is false, hardly any request is refused."""
        for admission in self._bounds:  # noqa: SIM110  # asked at every head, and any() costs more
            if admission.crowded:
                return True
        return False

    def refuse(self, path: bytes, headers: list[tuple[bytes, bytes]], client: tuple[str, int] | None) -> Refusal | None:
        """The reply to a POST for which there is no room, known from its head alone; None if it may begin, and has to.

        For the server, which asks before it makes a task of a request and reads its body: what is refused costs little.
        """
        admission = self._admissions.get(path)
        if admission is None or not admission.crowded:
            return None
        scope = {"method": "POST", "path": path.decode(), "headers": headers, "client": client}
        exchange = Exchange(scope, _nothing, _nowhere, self._reception.new_id())
        try:
            self._reception.keys.check(exchange)
            admission.keep(exchange.client, exchange.declared_bytes)
        except (ServiceFull, ClientFull) as error:
            body = encode_problem(problem(error, exchange.request_id))
            exchange.status, exchange.sent_bytes = STATUS[type(error)], len(body)
            self._account(exchange)
            named = (b"x-request-id", exchange.request_id.encode())
            return exchange.status, [(b"content-type", MEDIA_TYPE), named, *headers_of(error)], body
        except ServiceError:
            pass
        return None

    async def _lead(self, exchange: Exchange) -> None:
        path = exchange.scope["path"]
        if exchange.scope["type"] == "websocket":
            if path not in self._sockets:
                raise RouteNotFound(f"no WebSocket lives at {path:.80}; there is {', '.join(self._sockets)}")
            await self._sockets[path](exchange)
            return
        if path in self._sockets:
            raise UpgradeRequired(f"{path} is a WebSocket; connect with ws:// or wss://")
        handler = self._hot.get(exchange.scope["path"])
        if handler is None:
            await self._route(exchange)
        elif exchange.scope["method"] == "POST":
            await handler(exchange)
        else:
            raise MethodNotAllowed(f"{exchange.scope['path']} takes POST, not {exchange.scope['method']}", "POST")

    async def _route(self, exchange: Exchange) -> None:
        """Leave a request to the router; HEAD is a GET of whose reply the server sends no body."""
        scope = exchange.scope
        scope["exchange"] = exchange
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, exchange.receive, _noting(exchange))
        exchange.scope["route"] = scope.get("route")

    def _account(self, exchange: Exchange) -> None:
        seconds = perf_counter() - exchange.begun
        path = exchange.scope["path"]
        if path not in self._hot and path not in self._sockets:
            # As it was declared: a label must not grow with what clients type.
            path = getattr(exchange.scope.get("route"), "path", "other")
        self._reception.account(exchange, path, seconds)


def exchange_of(scope: Scope) -> Exchange:
    """The exchange of a request that went on to the router."""
    exchange: Exchange = scope["exchange"]
    return exchange


def _briefly(send: Send) -> Send:
    """`send` for the lifespan: why a start failed is the last line of the traceback that the router makes of it."""

    async def brief(message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            message["message"] = message["message"].strip().rpartition("\n")[2].partition(": ")[2]
        await send(message)

    return brief


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def _nowhere(_: Message) -> None:
    pass


def _noting(exchange: Exchange) -> Send:
    """`send` for the router's replies: notes their status and size, and adds the request's id."""

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            exchange.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", exchange.request_id.encode())]
        elif message["type"] == "http.response.body" and exchange.scope["method"] != "HEAD":
            exchange.sent_bytes += len(message.get("body", b""))
        await exchange.send(message)

    return send


async def _send_problem(
    exchange: Exchange, status: int, document: dict[str, object], headers: list[tuple[bytes, bytes]]
) -> None:
    await send_reply(exchange, status, MEDIA_TYPE, encode_problem(document), headers)
