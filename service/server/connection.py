"""One connection as uvicorn handles it, with the limits that a server in the open needs and uvicorn leaves out."""

import asyncio
from collections.abc import Callable
from typing import Any

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.api.exchange import REST, WHOLE
from service.server import eager
from service.server.flow import PatientFlow
from service.server.h2c import without_h2c
from service.server.landing import Landing, rest_of
from service.server.readers import ReaderWatch
from service.server.transport import JoinedWrites
from service.server.whole import AT_ONCE_BYTES, Whole

MAX_HEADER_BYTES = 64 * 1024
MAX_FRAMING_RATIO = 16  # a chunk of one byte is framed by five


class GuardedProtocol(HttpToolsProtocol):
    """One connection, with limits: on the time that headers take, on what is neither head nor body, on slow readers.

    The header timer runs whenever bytes came and no request is being handled: before headers are complete, but also
    when a body goes on after its reply, or when empty lines are all that follows. The limits stand in uvicorn's
    configuration, of which ours is a subclass: `header_seconds` and `min_bytes_per_second`.

    A request that was read whole begins at once, without a task, if the application's `begins_at_once(scope)` says so,
    and has a `Whole` among its extensions.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._header_seconds: float = config.header_seconds
        self._min_bytes_per_second: float = config.min_bytes_per_second
        self._header_timer: asyncio.TimerHandle | None = None
        self._watch: ReaderWatch | None = None
        self._upgraded = False
        self._in_head = False
        self._just_ended = False
        self._received_bytes = 0
        self._body_bytes = 0
        self._begins_at_once: Callable[[Any], bool] = getattr(self.app, "begins_at_once", _never)
        self._default_headers: object = None
        self._default_lines = b""
        self._in_headers = False
        self._held: tuple[RequestResponseCycle, Any] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start waiting for the first headers."""
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)  # type: ignore[assignment]  # all that uvicorn calls of one
        self.flow = PatientFlow(transport, self.pipeline)
        self._watch = ReaderWatch(self.transport, self.loop, self._min_bytes_per_second, self._stalled)
        self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._cancel_header_timer()
        if self._watch is not None:
            self._watch.stop()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read, and look at how much was neither head nor body (endless headers, trailers, chunk extensions)."""
        self._received_bytes += len(data)
        awaits_head = self._awaits_head()
        self._just_ended = False
        self._parse(without_h2c(data) if awaits_head else data)
        if self._upgraded:
            return
        self._begin_held()  # the rest of its body is still to come
        if self._received_bytes - self._body_bytes > MAX_HEADER_BYTES + MAX_FRAMING_RATIO * self._body_bytes:
            self._drop("headers_too_large")
        elif (
            self._header_timer is None
            and not self._just_ended
            and self.timeout_keep_alive_task is None  # armed by a reply that was sent in this very read
            and self._awaits_head()
        ):
            self._await_headers()

    def on_message_begin(self) -> None:
        """A request line has begun; unless its headers came with it, `data_received` starts to wait for them."""
        super().on_message_begin()
        self._in_head = True
        self._just_ended = False
        self._received_bytes = self._body_bytes = 0

    def on_headers_complete(self) -> None:
        """The headers were in time."""
        self._head_is_complete()
        self._in_headers = True
        super().on_headers_complete()
        self._in_headers = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Trailers mean nothing here; kept, they could grow without end."""
        if self._in_head:
            name = name.lower()
            if name == b"expect" and value.lower() == b"100-continue":
                self.expect_100_continue = True
            self.headers.append((name, value))

    def on_body(self, body: bytes) -> None:
        """Count what is payload."""
        self._body_bytes += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A body that outlasted its reply is over: the connection is idle, as after any reply."""
        super().on_message_complete()
        self._just_ended = True
        if self._held is not None:
            self._begin(*self._release())
        if self._header_timer is not None and self.cycle.response_complete:
            self._cancel_header_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Hold a request until it is known whether all of it has been read."""
        if self._in_headers and self._begins_at_once(cycle.scope):
            self._held = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The reply is written, but perhaps not read: closing, too, would wait for that."""
        super().on_response_complete()
        self._watch_reader()

    def pause_writing(self) -> None:
        """The client reads more slowly than the reply comes: look in a while whether it reads at all."""
        super().pause_writing()
        if self._watch is not None:
            self._watch.start()

    def resume_writing(self) -> None:
        """The client has caught up, for now."""
        super().resume_writing()
        if self._watch is not None:
            self._watch.caught_up()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection over, unless a reply is still being written to it; our own clocks stop."""
        self._upgraded = True
        if self.cycle is not None and not self.cycle.response_complete:
            self._drop("upgrade_while_answering")
            return
        self._cancel_header_timer()
        if self._watch is not None:
            self._watch.stop()
        super().handle_websocket_upgrade()

    def default_lines(self) -> bytes:
        """The headers of every reply (uvicorn makes them anew each second), spelt out."""
        headers = self.server_state.default_headers
        if headers is not self._default_headers:
            self._default_headers = headers
            self._default_lines = b"".join(name + b": " + value + b"\r\n" for name, value in headers)
        return self._default_lines

    def hand_over(self, landing: Landing) -> None:
        """Let the rest of a body be read by another protocol."""
        self.transport.set_protocol(landing)
        self.flow.resume_reading()

    def take_back(self) -> None:
        """Read on as before."""
        self.transport.set_protocol(self)
        self._renew_parser()
        self.on_message_complete()

    def _renew_parser(self) -> None:
        """Begin with the next request, where the parser has not seen the end of a body and would wait for it."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does

    def _parse(self, data: bytes | memoryview) -> None:
        super().data_received(data)  # type: ignore[arg-type]  # it is only handed on

    def _awaits_head(self) -> bool:
        """Whether what comes next is a request's head, or the rest of one."""
        return self._in_head or self.cycle is None or self.cycle.response_complete

    def _head_is_complete(self) -> None:
        self._in_head = False
        self._cancel_header_timer()
        # Armed if the request before this one came in the same read and has been answered.
        self._unset_keepalive_if_required()

    def _watch_reader(self) -> None:
        if self.transport.get_write_buffer_size() and self._watch is not None:
            self._watch.start()

    def _begin_held(self) -> None:
        if self._held is not None:
            cycle, app = self._release()
            if (rest := rest_of(self, cycle)) is not None:
                cycle.scope["extensions"] = {REST: rest}  # type: ignore[dict-item]  # an object of our own
            super()._start_asgi_task(cycle, app)

    def _release(self) -> tuple[RequestResponseCycle, Any]:
        held, self._held = self._held, None
        assert held is not None  # noqa: S101  # asked before
        return held

    def _begin(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Handle a request of which all has been read; in a task only from where it has to wait."""
        if len(cycle.body) > AT_ONCE_BYTES:
            super()._start_asgi_task(cycle, app)
            return
        cycle.scope["extensions"] = {WHOLE: Whole(self, cycle)}  # type: ignore[dict-item]  # an object of our own
        try:
            eager.start(cycle.run_asgi(app), self._keep)
        except Exception:  # uvicorn's own failure: the application's are answered
            structlog.get_logger().exception("internal_error")
            self.transport.abort()

    def _keep(self, running: eager.Running) -> None:
        task = self.loop.create_task(running)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    def _await_headers(self) -> None:
        self._header_timer = self.loop.call_later(self._header_seconds, self._headers_late)

    def _headers_late(self) -> None:
        if self.flow.read_paused:  # by us, while requests before it wait
            self._await_headers()
        else:
            self._drop("headers_too_slow")

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stalled(self) -> None:
        self._drop("reader_too_slow")

    def _drop(self, reason: str) -> None:
        """Cut the connection: closing would wait for the very client that does not move."""
        self._cancel_header_timer()
        structlog.get_logger().info("connection_dropped", reason=reason)
        self.transport.abort()


def _never(_: Any) -> bool:
    return False
