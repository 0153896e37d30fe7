"""One WebSocket under attack: what is read and not parsed is bounded, and others have their turns."""

import asyncio
import socket
import struct

import pytest
import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from service.api.streams.websocket import WAITING
from service.server import flow
from service.server.websocket import MAX_EMPTY_FRAMES, MAX_MESSAGES, GuardedWebSocket

from .transport import Transport, turns

HANDSHAKE = (
    b"GET /cell/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
TEXT, BINARY, PING, PONG = 1, 2, 9, 10


def frame(opcode, data=b""):
    """A client's frame, masked with zeros."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xff" + struct.pack("!Q", len(data))
    return bytes([0x80 | opcode]) + size + bytes(4) + data


class App:
    """An application that accepts and takes messages when it is told to."""

    def __init__(self):
        self.messages = []
        self.goes_on = asyncio.Event()

    async def __call__(self, scope, receive, send):
        self.waiting = scope["extensions"][WAITING]
        await receive()
        await send({"type": "websocket.accept"})
        await self.goes_on.wait()
        while not self.messages or self.messages[-1]["type"] != "websocket.disconnect":
            self.messages.append(await receive())


def attacked(attack):
    """Run attack(protocol, app, transport) on a connection that has been accepted."""

    async def run():
        own, other = socket.socketpair()
        app, transport = App(), Transport(own)
        config = uvicorn.Config(app, log_config=None, ws_per_message_deflate=False, ws_max_size=2**20)
        config.min_bytes_per_second = 1000.0
        protocol = GuardedWebSocket(config, ServerState(), {})
        protocol.connection_made(transport)
        protocol.data_received(HANDSHAKE)
        await turns(5)
        await attack(protocol, app, transport)
        if not transport.closed:
            protocol.connection_lost(None)
        app.goes_on.set()
        await asyncio.gather(*protocol.tasks)
        own.close()
        other.close()

    asyncio.run(run())


@pytest.fixture
def slow_clock(monkeypatch):
    """A clock by which each slice takes a whole turn."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(flow, "perf_counter", lambda: next(ticks))


def test_overridden_names_exist_in_uvicorn():
    overridden = {name for name in vars(GuardedWebSocket) if not name.startswith("_")}
    assert overridden <= set(dir(WebSocketsSansIOProtocol))
    protocol = WebSocketsSansIOProtocol(
        uvicorn.Config(App, log_config=None), ServerState(), {}, asyncio.new_event_loop()
    )
    protocol.loop.close()
    used = {"close_sent", "close_timeout", "conn", "curr_msg_data_type", "disconnected", "frames", "handshake_complete"}
    assert used | {"logger", "loop", "queue", "transport", "writable"} <= vars(protocol).keys()


def test_messages_arrive_whole_and_in_order(slow_clock):
    sizes = [1, 0, 125, 70_000, 3, 1_000_000]
    data = b"".join(frame(BINARY, bytes([index]) * size) for index, size in enumerate(sizes))

    async def attack(protocol, app, transport):
        app.goes_on.set()
        for begin in range(0, len(data), 65_536):
            protocol.data_received(data[begin : begin + 65_536])
            while not transport.reading:
                await turns(1)
        await turns(5)
        assert [message["bytes"] for message in app.messages] == [bytes([i]) * size for i, size in enumerate(sizes)]

    attacked(attack)


def test_reading_pauses_while_bytes_are_unparsed(slow_clock):
    async def attack(protocol, app, transport):
        app.goes_on.set()
        protocol.data_received(frame(BINARY, bytes(250_000)))
        for _ in range(100):
            assert not transport.reading
            assert not app.messages
            await turns(1)
        while not app.messages:
            await turns(1)
        await turns(2)
        assert transport.reading

    attacked(attack)


def test_untaken_messages_wait_as_bytes():
    count = 20_000

    async def attack(protocol, app, transport):
        protocol.data_received(frame(TEXT, b"1") * count)
        await turns(1000)
        assert MAX_MESSAGES <= app.waiting() < 2 * MAX_MESSAGES
        assert not transport.reading
        app.goes_on.set()
        while len(app.messages) < count:
            await turns(1)
        await turns(1)
        assert transport.reading

    attacked(attack)


@pytest.mark.parametrize("empty", [frame(PING, b"x"), frame(PONG), frame(TEXT), frame(TEXT, b"\n"), frame(BINARY)])
def test_frames_without_content_have_a_limit(empty):
    async def attack(protocol, app, transport):
        app.goes_on.set()
        for _ in range(2):
            protocol.data_received(empty * (MAX_EMPTY_FRAMES - 1) + frame(TEXT, b"[1]"))
            while not transport.reading:
                await turns(1)
        assert not protocol.close_sent
        protocol.data_received(empty * MAX_EMPTY_FRAMES)
        while not protocol.close_sent:
            await turns(1)
        assert b"frames without content" in transport.written

    attacked(attack)


def test_pings_wait_while_answers_are_unread():
    async def attack(protocol, app, transport):
        protocol.pause_writing()
        before = transport.written
        protocol.data_received(frame(PING, b"x") * 100)
        assert transport.written == before
        protocol.resume_writing()
        protocol.data_received(frame(PING, b"x"))
        assert transport.written == before + b"\x8a\x01x"

    attacked(attack)
