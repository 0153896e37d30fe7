"""One WebSocket as uvicorn handles it, with the limits that a server in the open needs and uvicorn leaves out."""

import asyncio
import logging
from typing import Any

import structlog
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from service.server.readers import ReaderWatch

SLICE_BYTES = 16 * 1024
"""Parsed at a time: a read may hold tens of thousands of the smallest frames, and others wait meanwhile."""

MAX_FRAGMENTS = 1024
"""Of one message: empty ones count for nothing in its size, and could be heaped up."""

CLOSE_SECONDS = 2.0
"""Time for a client to take a last word and to hang up itself, before the connection is cut."""

WAITING = "rnn.waiting"
"""Name of the ASGI extension that says how many messages `receive` would give at once."""


class GuardedWebSocket(WebSocketsSansIOProtocol):
    """One connection, with limits: on slow readers, on pings that are not read, on fragments, on the time to close.

    A process that shuts down leaves the closing to the application, which knows where its stream stands.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # uvicorn logs every path with its query, in which a session may stand; the application logs what may be logged.
        self.logger = logging.getLogger("service.server.websocket")
        self.logger.setLevel(logging.WARNING)
        self.conn = ServerProtocol(max_size=config.ws_max_size, logger=self.logger)
        self.close_timeout = CLOSE_SECONDS
        self._min_bytes_per_second: float = config.min_bytes_per_second
        self._watch: ReaderWatch | None = None
        self._unparsed = b""
        self._cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection over from HTTP."""
        super().connection_made(transport)
        self._watch = ReaderWatch(transport, self.loop, self._min_bytes_per_second, self._stalled)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        if self._watch is not None:
            self._watch.stop()
        if self._cut is not None:
            self._cut.cancel()
        self._unparsed = b""
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse a part of it now and the rest in the loop's next turns."""
        if self._unparsed:
            self._unparsed += data
        else:
            self._unparsed = data
            self._parse()

    def _parse(self) -> None:
        if not self._unparsed:  # the connection was lost meanwhile
            return
        now, self._unparsed = self._unparsed[:SLICE_BYTES], self._unparsed[SLICE_BYTES:]
        if self._unparsed:
            self.loop.call_soon(self._parse)
        if self.conn.parser_exc is None:  # after an error nothing that comes means anything
            super().data_received(now)

    def handle_connect(self, event: Request) -> None:
        """Begin, and let the application see how much has arrived."""
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[WAITING] = self.queue.qsize

    def handle_cont(self, event: Frame) -> None:
        """Go on with a message."""
        if len(self.frames) >= MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message has more than {MAX_FRAGMENTS} fragments")
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on, and read no further while more than one waits: each pause is a system call."""
        data = self.frames[0] if len(self.frames) == 1 else b"".join(self.frames)
        self.frames = []
        if self.close_sent:
            return
        if self.curr_msg_data_type == "text":
            try:
                self.queue.put_nowait({"type": "websocket.receive", "text": data.decode()})
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
                return
        else:
            self.queue.put_nowait({"type": "websocket.receive", "bytes": data})
        if not self.read_paused and self.queue.qsize() > 1:
            self.read_paused = True
            self.transport.pause_reading()

    def handle_ping(self) -> None:
        """Answer, unless the answers to those before are still unread."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)

    def handle_parser_exception(self) -> None:
        """Say why, and give the client time to read that: closing over unread data would reset the connection."""
        assert self.conn.close_sent is not None  # noqa: S101  # the parser has failed the connection
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        if not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self._last_word()

    def pause_writing(self) -> None:
        """The client reads more slowly than answers come: look in a while whether it reads at all."""
        super().pause_writing()
        if self._watch is not None:
            self._watch.start()

    def resume_writing(self) -> None:
        """The client has caught up, for now."""
        super().resume_writing()
        if self._watch is not None:
            self._watch.caught_up()

    def shutdown(self) -> None:
        """The process is going down: what has not begun is refused, the others are closed by the application."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """A ping was not answered: the other end is gone, or will not move."""
        super().keepalive_timeout()
        self._cut_later()

    async def send(self, message: Any) -> None:
        """Send what the application says; a close is final after a while. Raises ClientDisconnected."""
        try:
            await super().send(message)
        except RuntimeError:  # that is what uvicorn calls it if the client closed while this waited to be written
            if not self.close_sent:
                raise
            raise ClientDisconnected from None
        if message["type"] == "websocket.close":
            self._cut_later()
        elif message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # with a refusal; uvicorn would complain that nothing was said

    def _stalled(self) -> None:
        structlog.get_logger().info("connection_dropped", reason="reader_too_slow")
        self._fail(CloseCode.POLICY_VIOLATION, "answers are read too slowly")

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Close from here, whatever the application is doing; it hears of it at its next word."""
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
        self._last_word()

    def _last_word(self) -> None:
        self.stop_keepalive()
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._cut_later()
        # Whoever waits to send must not wait for this client.
        self.disconnected = True
        self.writable.set()

    def _cut_later(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
