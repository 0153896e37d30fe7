"""One WebSocket as uvicorn handles it, with the limits that a server in the open needs and uvicorn leaves out."""

import asyncio
import logging
from typing import Any

import structlog
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request

from service.api.streams.websocket import WAITING
from service.server.flow import SLICE_BYTES, Paced

MAX_MESSAGES = 1024  # that wait for the application; the rest of what was read waits as bytes
MAX_FRAGMENTS = 1024  # of a message: empty ones count for nothing in its size
MAX_EMPTY_FRAMES = 4096  # pings, pongs and blank messages (large ones count for more) between two with content
CLOSE_SECONDS = 2.0  # from our close until the connection is cut, if the client does not end it before

BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class GuardedWebSocket(Paced, WebSocketsSansIOProtocol):
    """One connection, with limits: on slow readers, on frames without content, on fragments, on the time to close.

    Nothing is read while bytes wait to be parsed or messages wait for the application.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        # uvicorn logs every path with its query, which may name a session; the application has a log of its own.
        self.logger = self.conn.logger = logging.getLogger("service.server.websocket")
        self.logger.setLevel(logging.WARNING)
        self.close_timeout = CLOSE_SECONDS
        self._cut: asyncio.TimerHandle | None = None
        self._empty_frames = 0

    def connection_lost(self, exc: Exception | None) -> None:
        if self._cut is not None:
            self._cut.cancel()
        super().connection_lost(exc)

    def _parse(self, data: memoryview) -> int:
        if self.conn.parser_exc is None:  # after an error nothing that comes means anything
            WebSocketsSansIOProtocol.data_received(self, bytes(data))
        if self.conn.handshake_exc is not None and not self.close_sent:
            self.close_sent = self.handshake_complete = True
            self.transport.write(b"".join(self.conn.data_to_send()) or BAD_REQUEST)
            self._cut_later()
        return 0

    def _has_room(self) -> bool:
        return self.close_sent or self.queue.qsize() < MAX_MESSAGES

    def _wants_more(self) -> bool:
        return self.close_sent or self.queue.qsize() <= 1

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if hasattr(self, "scope"):
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[WAITING] = self.queue.qsize

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < MAX_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(CloseCode.MESSAGE_TOO_BIG, f"a message has more than {MAX_FRAGMENTS} fragments")

    def send_receive_event_to_app(self) -> None:
        data, self.frames = b"".join(self.frames), []
        if self.close_sent:
            return
        try:
            content = data if self.curr_msg_data_type == "bytes" else data.decode()
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
            return
        message: Any = {"type": "websocket.receive", self.curr_msg_data_type: content}
        self.queue.put_nowait(message)
        if data and not data.isspace():
            self._empty_frames = 0
        else:
            self._count_empty_frame(len(data))

    def handle_ping(self) -> None:
        """Answer, unless the answers to those before are still unread."""
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)
        self._count_empty_frame()

    def handle_pong(self, event: Frame) -> None:
        super().handle_pong(event)
        self._count_empty_frame()

    def _count_empty_frame(self, size: int = 0) -> None:
        before = self._empty_frames
        self._empty_frames += 1 + size // SLICE_BYTES
        if before < MAX_EMPTY_FRAMES <= self._empty_frames:
            self._drop("too_many_empty_frames", f"{MAX_EMPTY_FRAMES} frames without content")

    def handle_parser_exception(self) -> None:
        """Say why, and give the client time to read it: closing over unread data would reset the connection."""
        assert self.conn.close_sent is not None  # noqa: S101  # the parser has failed the connection
        self._fail(self.conn.close_sent.code, self.conn.close_sent.reason)

    def shutdown(self) -> None:
        """Refuse a handshake that is under way; the application closes the others, as it knows how far they are."""
        if self.handshake_complete and not self.close_sent:
            self.stop_keepalive()
        else:
            super().shutdown()

    def keepalive_timeout(self) -> None:
        """A ping was not answered: cut the connection if the client does not."""
        super().keepalive_timeout()
        self._cut_later()

    async def receive(self) -> Any:
        message = await self.queue.get()
        self._go_on()
        return message

    async def send(self, message: Any) -> None:
        """Send what the application says; a close is final after a while. Raises ClientDisconnected."""
        try:
            await super().send(message)
        except RuntimeError:  # uvicorn's if the client closed while this waited to be written
            if not self.close_sent:
                raise
            raise ClientDisconnected from None
        if message["type"] == "websocket.close":
            self._cut_later()
        elif message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # uvicorn takes a refusal for no answer

    def _drop(self, reason: str, text: str = "answers are read too slowly") -> None:
        structlog.get_logger().info("connection_dropped", reason=reason)
        self._fail(CloseCode.POLICY_VIOLATION, text)

    def _fail(self, code: int, reason: str) -> None:
        """Close from here; the application hears of it when it next receives or sends."""
        self.stop_keepalive()
        self.frames = []
        if not self.close_sent:
            self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
            if self.conn.close_sent is None:
                self.conn.fail(code, reason)
        self.close_sent = True
        self.transport.write(b"".join(self.conn.data_to_send()))
        self._cut_later()
        # The application must not wait for this client.
        self.disconnected = True
        self.writable.set()

    def _cut_later(self) -> None:
        if self._cut is None:
            self._cut = self.loop.call_later(CLOSE_SECONDS, self.transport.abort)
        self._go_on()  # what comes after a close is thrown away, however much waits
