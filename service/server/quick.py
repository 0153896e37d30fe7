"""Requests that are answered where they were read: no ASGI scope, no cycle, no task, one timer for many of them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from service.api.exchange import FAILURE
from service.server.connection import GuardedProtocol
from service.server.whole import AT_ONCE_BYTES

Later = Callable[[], Awaitable[bytes | None]]
"""A call that gives the headers and body of a 200 when they may be sent; None: nothing was done."""


class Reply(Protocol):
    """What answers requests to one path at once; `api.quick.Quick` is one."""

    def listens(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether these headers are of a request that it may answer; no name stands twice in them."""

    def __call__(self, headers: Mapping[bytes, bytes], body: bytes) -> bytes | Later | None:
        """Headers and body of a 200, now or later; None: nothing was done, ASGI is to handle the request."""


REST_SECONDS = 0.02
"""How long the rest of a body is waited for here: most clients send head and body one right after the other."""

_OK = STATUS_LINE[200]


class QuickProtocol(GuardedProtocol):
    """One connection, on which POSTs to the application's `quick` paths are first offered to their `Reply`.

    What uvicorn does at the end of a request's headers is put off until the body is there, and left out if there is a
    reply by then. If there is none, it is made up for, and the request goes on as any other. So does one whose reply
    comes later, but in place of the application it has `_answer_later`: its order on the connection, a client that
    hangs up, and the end of the process are uvicorn's matter as ever.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._replies: Mapping[bytes, Reply] = getattr(self.app, "quick", {})
        self._reply: Reply | None = None
        self._quick_headers: Mapping[bytes, bytes] = {}
        self._body = b""
        self._rest_timer: asyncio.TimerHandle | None = None
        self._idle_timer: asyncio.TimerHandle | None = None
        self._idle_since = 0.0
        self._later: Later | None = None

    def data_received(self, data: bytes) -> None:
        """Read; if that ends within the body of a request that may be quick, wait a moment."""
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        super().data_received(data)
        if self._reply is not None and not self.transport.is_closing():
            self._rest_timer = self.loop.call_later(REST_SECONDS, self._stop_waiting)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._reply = None
        for timer in (self._rest_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """A request of which a part has come is answered; an idle connection is closed."""
        self._stop_waiting()
        super().shutdown()

    def on_headers_complete(self) -> None:
        """Put off what is to be done if the request may be quick."""
        reply = self._replies.get(self.url)
        if reply is not None and self._is_plain():
            headers = dict(self.headers)
            if len(headers) == len(self.headers) and reply.listens(headers):
                self._head_is_complete()
                self._reply, self._quick_headers, self._body = reply, headers, b""
                return
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Keep what comes, up to a limit."""
        if self._reply is None:
            super().on_body(body)
            return
        self._body += body
        if len(self._body) > AT_ONCE_BYTES:
            self._go_the_long_way()

    def on_message_complete(self) -> None:
        """Reply, or go the long way."""
        if self._reply is not None:
            if self._answer(self._reply):
                return
            self._go_the_long_way()
        super().on_message_complete()
        self._later = None

    def _is_plain(self) -> bool:
        """Whether nothing about a request or its connection is out of the ordinary."""
        parser = self.parser
        return (
            parser.get_method() == b"POST"
            and parser.get_http_version() == "1.1"
            and parser.should_keep_alive()
            and not parser.should_upgrade()
            and not self.expect_100_continue
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused
            and not self.transport.is_closing()
        )

    def _answer(self, reply: Reply) -> bool:
        try:
            answer = reply(self._quick_headers, self._body)
        except Exception:
            structlog.get_logger().exception("internal_error")
            self.transport.abort()
            return True
        if answer is None:
            return False
        if not isinstance(answer, bytes):
            self._later = answer
            return False
        self._reply, self._body = None, b""
        self.transport.send(b"".join((_OK, self.default_lines(), answer)))  # type: ignore[attr-defined]  # JoinedWrites
        self._just_ended = True
        self.server_state.total_requests += 1
        self._watch_reader()
        self._rest_until_next()
        return True

    def _begin(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Handle a request that was not answered at once; one that will be answered later is not the application's."""
        later, self._later = self._later, None
        super()._begin(cycle, app if later is None else partial(self._answer_later, later, cycle, app))

    async def _answer_later(
        self, later: Later, cycle: RequestResponseCycle, app: Any, scope: Any, receive: Any, send: Any
    ) -> None:
        """In place of the application, which has its turn if there is no answer."""
        try:
            answer = await later()
        except Exception as error:
            scope["extensions"][FAILURE] = error
            answer = None
        if answer is None:
            await app(scope, receive, send)
            return
        cycle.response_started = cycle.response_complete = True
        del scope["extensions"]
        if cycle.disconnected or self.transport.is_closing():
            return
        closing = b"" if cycle.keep_alive else b"connection: close\r\n"
        self.transport.send(b"".join((_OK, self.default_lines(), closing, answer)))  # type: ignore[attr-defined]
        cycle.message_event.set()
        if not cycle.keep_alive:
            self.transport.close()
        self.on_response_complete()

    def _go_the_long_way(self) -> None:
        """Make up for what was put off."""
        self._reply, body, self._body = None, self._body, b""
        super().on_headers_complete()
        if body:
            super().on_body(body)

    def _stop_waiting(self) -> None:
        if self._rest_timer is not None:
            self._rest_timer.cancel()
            self._rest_timer = None
        if self._reply is not None:
            self._go_the_long_way()
            self._begin_held()

    def _rest_until_next(self) -> None:
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_idle)

    def _awaits_head(self) -> bool:
        return self._reply is None and super()._awaits_head()

    def _close_if_idle(self) -> None:
        """One timer for many replies: it looks whether the last is long ago, and if not, when to look again.

        It ends where a request that was not quick has come since: uvicorn's own timer begins after that.
        """
        self._idle_timer = None
        waits = self._header_timer or self.timeout_keep_alive_task  # for a head or a body; for its own end
        if self._reply is not None or self._in_head or not self._awaits_head() or waits:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._idle_timer = self.loop.call_later(left, self._close_if_idle)
        else:
            self.timeout_keep_alive_handler()
