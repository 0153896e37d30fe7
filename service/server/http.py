"""One HTTP connection: uvicorn's, with a direct way to the application, and with limits that uvicorn leaves out.

A POST that may be answered directly is read whole and given to `Application.answer` in the call that read its last
byte. If that has to wait, the request goes on as uvicorn's requests do, with the rest of `answer` for an application:
the order of replies, clients that hang up and the end of the process are uvicorn's matter. Everything else comes to the
application by ASGI. tests/server/test_http.py holds this to the uvicorn that it is written for.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from functools import partial
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.application import Application
from service.api.request import Reply, Request
from service.server.eager import start
from service.server.flow import Paced, PipelineFlow, Timer
from service.server.heads import KnownHead, content_length, is_plain, parse_on_within_body, reply_head

DIRECT_BYTES = 64 * 1024  # the largest body of a request that is answered directly
REST_SECONDS = 0.02  # how long the rest of it is waited for: most clients send it right after the head

MAX_HEADER_BYTES = 64 * 1024
MAX_FRAMING_RATIO = 16  # a chunk of one byte is framed by five


class HttpConnection(Paced, HttpToolsProtocol):
    # Its head timer runs whenever bytes came and no request is being handled: before a head is complete, but also when
    # a body goes on after its reply, or when only empty lines follow.
    cycle: Any

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._application: Application = config.loaded_app
        self._draining = self._application.readiness.draining
        self._head_timer = Timer(self.loop, config.header_seconds, self._head_is_late)
        self._rest_timer = Timer(self.loop, REST_SECONDS, self._use_asgi)
        self._in_head = False
        self._in_body = False
        self._is_handshake = False
        self._received_bytes = 0
        self._body_bytes = 0
        # What has come of the body of a request that may be answered directly.
        self._body: bytes | None = None
        self._under_way: RequestResponseCycle | None = None
        self._running: tuple[Request, Coroutine[Any, None, Reply]] | None = None
        self._lost = asyncio.Event()
        self._refused = False
        self._known_head: KnownHead | None = None
        self._whole = b""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.flow = PipelineFlow(transport, self.pipeline, self._go_on)
        self._head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._body = None
        self._lost.set()
        self._leave()
        self._head_timer.cancel()
        self._rest_timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        is_idle = not (self._in_head or self._in_body) and self._is_ready()
        known = self._known_head if is_idle and len(data) <= DIRECT_BYTES else None
        if known and (body := known.body(data)) is not None:
            self._head_timer.cancel()
            self._answer(body)
            return
        self._whole = data if is_idle else b""
        super().data_received(data)

    def _parse(self, data: memoryview) -> int:
        """Look also at how much was neither head nor body (endless headers, trailers, chunk extensions)."""
        if self._refused:  # what comes now is thrown away, as a body is
            self.on_body(bytes(data))
            return 0
        self._unset_keepalive_if_required()
        self._rest_timer.cancel()
        self._received_bytes += len(data)
        if not self._feed_parser(data):
            return 0
        if self._received_bytes - self._body_bytes > MAX_HEADER_BYTES + MAX_FRAMING_RATIO * self._body_bytes:
            self._drop("headers_too_large")
        elif self._body is not None:
            self._rest_timer.start()
        elif (self._in_head or self._has_answered()) and not (self._head_timer.runs or self.timeout_keep_alive_task):
            self._head_timer.start()
        return content_length(self.headers) - self._body_bytes if self._in_body else 0

    def on_message_begin(self) -> None:
        if self._in_body:  # this head has been read before: see `_feed_parser`
            return
        if self.transport.is_closing():  # the reply before this request was the last
            raise ConnectionError
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        # URL and headers are another request's from here on, and so may be what comes next: its body.
        self._known_head = None
        self._received_bytes = self._body_bytes = 0

    def on_url(self, url: bytes) -> None:
        if self._in_head:
            super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers mean nothing here; kept, they could grow without end."""
        if self._in_head:
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        self._in_head = False
        self._head_timer.cancel()
        # Armed if the request before this one came in the same read and has been answered.
        self._unset_keepalive_if_required()
        if self.parser.should_upgrade():
            offer = self._get_upgrade(), self.parser.get_method(), self.parser.get_http_version()
            self._is_handshake = offer == (b"websocket", b"GET", "1.1") and self._has_answered()
            if self._is_handshake:
                self._begin_asgi()  # which leaves the rest to `_upgrade`
                return
        if self._is_direct():
            self._body = b""
        else:
            self._begin_asgi()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > DIRECT_BYTES:
            self._use_asgi()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser takes what follows for another protocol: see `_feed_parser`
        self._in_body = False
        if self._body is not None:
            # The head of a request that came whole, in a read of its own, may come again.
            self._known_head = KnownHead.of(self._whole, len(self._body)) if self._whole else None
            self._answer(self._body)
            return
        super().on_message_complete()
        if self._head_timer.runs and self._has_answered():
            # A body that outlasted its reply is over: the connection is idle, as after any reply.
            self._head_timer.cancel()
            self._await_next()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch.start()
        if self._in_body and self.timeout_keep_alive_task is not None:  # the rest of it must come, too
            self._unset_keepalive_if_required()
            self._head_timer.start()

    def shutdown(self) -> None:
        if self._body is not None:
            self._use_asgi()
        super().shutdown()

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._under_way = cycle
        if self._running is not None:
            request, running = self._running
            self._running = None
            app = partial(self._application.resume, request, running)
        super()._start_asgi_task(cycle, app)

    def _is_direct(self) -> bool:
        """Whether the request whose head is complete may be answered directly."""
        return (
            self._application.is_direct(self.url)
            and self.parser.get_method() == b"POST"
            and not self.expect_100_continue
            and self._is_ready()
            and is_plain(self.headers, DIRECT_BYTES)
        )

    def _answer(self, body: bytes) -> None:
        application = self._application
        request = application.request("POST", self.url.decode(), b"", self.headers, self.client)
        # In place before the handler waits for anything: what it starts then may run before ASGI's `receive` is there.
        request.body, request.watch = body, self._lost.wait
        reply, running = start(application.answer(request))
        if reply is not None and (isinstance(reply.body, bytes) or not isinstance(reply.body, AsyncGenerator)):
            self._body = None
            self._write(request, reply, reply.body)
            return
        # The rest of it, or a reply whose lines are still to be made.
        self._running = request, running or asyncio.sleep(0, reply)  # type: ignore[arg-type]  # one of both
        self._use_asgi()
        super().on_message_complete()

    def _write(self, request: Request, reply: Reply, pieces: bytes | Sequence[bytes | memoryview]) -> None:
        body = pieces if isinstance(pieces, bytes) else b"".join(pieces)
        keeps = self.parser.should_keep_alive() and self.parser.get_http_version() != "1.0"
        keeps = keeps and not self._draining.announced
        head = reply_head(reply, len(body), request, self.server_state.default_headers, keeps=keeps)
        self.transport.write(head + body)
        request.status, request.sent_bytes = reply.status, len(body)
        self._application.finish(request)
        self.server_state.total_requests += 1
        self._watch.start()
        if keeps:
            self._await_next()
        else:
            self.transport.close()

    def _begin_asgi(self) -> None:
        """What uvicorn does when a head has come; its scope is made no sooner."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.url, self.expect_100_continue = url, expects
        self.headers.extend(headers)
        super().on_headers_complete()
        if self._draining.announced and not self._is_handshake:
            self.cycle.keep_alive = False

    def _use_asgi(self) -> None:
        body, self._body = self._body, None
        self._rest_timer.cancel()
        self._begin_asgi()
        if body and not self.cycle.response_complete:
            super().on_body(body)

    def _feed_parser(self, data: memoryview) -> bool:
        """Says whether the connection goes on as it was."""
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                except httptools.HttpParserUpgrade as upgrade:
                    data = data[upgrade.args[0] :]
                    if self._is_handshake:
                        self._upgrade(early=bool(data or self._unparsed))
                        return False
                    # Go on without the offered protocol, as RFC 9110 (7.8) allows.
                    parse_on_within_body(self, self.headers)
                else:
                    return True
        except httptools.HttpParserError as error:
            ours = isinstance(error, httptools.HttpParserCallbackError)
            if ours and not isinstance(error.__context__, httptools.HttpParserInvalidURLError | ConnectionError):
                structlog.get_logger().exception("internal_error")
                self.transport.abort()
            elif not self.transport.is_closing():
                self._refuse()
            return False

    def _refuse(self) -> None:
        """Answer 400 in its turn; to a request whose body is no HTTP, only if its own reply has not begun."""
        self._refused = True
        self._head_timer.cancel()
        if self._in_body and self._body is None:
            if self.pipeline:
                self.pipeline[0] = self.cycle, self._application.refuse  # type: ignore[assignment]
                return
            self._leave()
            if self.cycle.response_started:
                self.transport.close()
                return
            self.cycle = None
        self._body = None
        self.url, self.headers, self.app = b"/", [], self._application.refuse
        self._begin_asgi()

    def _upgrade(self, early: int) -> None:
        if early:  # a client must wait for our part of the handshake
            self._is_handshake = False
            self._refuse()
        else:
            self._head_timer.cancel()
            self._watch.stop()
            self.handle_websocket_upgrade()

    def _is_ready(self) -> bool:
        return self._has_answered() and not self.flow.write_paused and not self.transport.is_closing()

    def _has_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _head_is_late(self) -> None:
        if self.flow.read_paused:  # by us, while requests before it wait
            self._head_timer.start()
        else:
            self._drop("headers_too_slow")

    def _await_next(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _drop(self, reason: str) -> None:
        """Cut the connection: closing would wait for the very client that does not move."""
        self._head_timer.cancel()
        structlog.get_logger().info("connection_dropped", reason=reason)
        self.transport.abort()

    def _leave(self) -> None:
        """Let the request under way know that its client has gone; uvicorn tells only the last of a pipeline."""
        self.pipeline.clear()
        if self._under_way is not None and not self._under_way.response_complete:
            self._under_way.disconnected = True
            self._under_way.message_event.set()
