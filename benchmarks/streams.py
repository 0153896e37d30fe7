"""Steps over streams: clients of NDJSON and of WebSockets that keep a number of messages unanswered."""

import asyncio
import re
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import orjson
import torch
import uvloop
from numpy.typing import NDArray
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.cases import STEP, check, network
from benchmarks.loads import Figures, open_sessions
from benchmarks.servers import Running

FRAME_STEPS = 64
WARM_UP_SECONDS = 1
OPEN_SECONDS = 60
TOGETHER = 50


@dataclass(slots=True)
class Tally:
    """What all streams of a run have in common: steps answered, broken streams, and the first stream's first answer."""

    steps: int = 0
    broken: int = 0
    ended: bool = False
    first: bytes = b""
    answered: asyncio.Event = field(default_factory=asyncio.Event)


def inputs(steps: int) -> NDArray[np.float32]:
    """The inputs (k,I) of a message, the same every time."""
    return np.random.default_rng(7).standard_normal((steps, STEP.input_size), dtype=np.float32)


def opening(session: str | None) -> bytes:
    return orjson.dumps({"session": session} if session else {"model": STEP.model})


class Lines(asyncio.Protocol):
    """One NDJSON stream over HTTP/1.1, a step a line; answered lines are replaced as they come, in one chunk."""

    def __init__(self, tally: Tally, session: str | None, window: int) -> None:
        self._tally = tally
        self._opening = opening(session) + b"\n"
        self._line = orjson.dumps(inputs(1)[0], option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"
        self._window = window
        self._cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def begin(self) -> None:
        self._transport.write(
            b"POST /cell/step HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n"
        )
        self._send(self._opening + self._window * self._line)

    def _send(self, lines: bytes) -> None:
        self._transport.write(b"%x\r\n%s\r\n" % (len(lines), lines))

    def data_received(self, data: bytes) -> None:
        """Count the lines, which end in `}` and a line feed, and send as many."""
        tally = self._tally
        if not tally.answered.is_set():
            tally.first += data
            if line := re.search(rb'^{"outputs".*}$', tally.first, re.MULTILINE):
                tally.first = line[0]
                tally.answered.set()
        count = data.count(b"}\n") + (self._cut and data[0] == ord("\n"))
        self._cut = data.endswith(b"}")
        tally.steps += count
        if count:
            self._send(count * self._line)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._tally.broken += not self._tally.ended

    def close(self) -> None:
        self._transport.abort()


class Frames(WSListener):  # type: ignore[misc]
    """One WebSocket with binary frames of 64 steps; each answered frame is replaced."""

    def __init__(self, tally: Tally, session: str | None, window: int) -> None:
        super().__init__()
        self._window = window
        self._tally = tally
        self._opening = opening(session)
        self._message = inputs(FRAME_STEPS).tobytes()

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport

    def begin(self) -> None:
        self._transport.send(WSMsgType.TEXT, self._opening)
        for _ in range(self._window):
            self._transport.send(WSMsgType.BINARY, self._message)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Count the steps and send as many. A frame of text is an error, after which the stream ends."""
        if frame.msg_type != WSMsgType.BINARY:
            return
        tally = self._tally
        if not tally.answered.is_set():
            tally.first = frame.get_payload_as_bytes()
            tally.answered.set()
        tally.steps += FRAME_STEPS
        transport.send(WSMsgType.BINARY, self._message)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002
        self._tally.broken += not self._tally.ended

    def close(self) -> None:
        self._transport.disconnect(graceful=False)


async def connect(kind: type[Lines | Frames], server: Running, tally: Tally, session: str | None, window: int) -> Any:
    if issubclass(kind, Lines):
        loop = asyncio.get_running_loop()
        opened = await loop.create_connection(lambda: kind(tally, session, window), "127.0.0.1", server.port)
    else:
        url = f"ws://127.0.0.1:{server.port}/cell/stream"
        opened = await ws_connect(lambda: kind(tally, session, window), url, websocket_handshake_timeout=OPEN_SECONDS)
    return opened[1]


def streams(
    server: Running, kind: type[Lines | Frames], window: int, count: int, seconds: float, *, in_sessions: bool = False
) -> Figures:
    """So many streams at once, each with so many messages unanswered and a state or a session of its own.

    rate: steps a second; cpu_us: of the server, a step; client: part of a core that this process took. Raises
    ValueError if the first answer is wrong, RuntimeError if a stream breaks.
    """
    names: Sequence[str | None] = open_sessions(server, count) if in_sessions else [None] * count
    tally = Tally()
    opening = [connect(kind, server, tally, name, window) for name in names]
    figures = uvloop.run(measure(server, opening, tally, seconds))
    server.settle()
    if tally.broken:
        raise RuntimeError(f"{tally.broken} of {count} streams broke")
    check_first(tally.first)
    return figures


async def measure(server: Running, opening: Sequence[Awaitable[Any]], tally: Tally, seconds: float) -> Figures:
    """Open all streams before the first begins, and count."""
    opened: list[Lines | Frames] = []
    try:
        async with asyncio.timeout(OPEN_SECONDS):
            for start in range(0, len(opening), TOGETHER):
                opened += await asyncio.gather(*opening[start : start + TOGETHER])
            for stream in opened:
                stream.begin()
            await tally.answered.wait()
        await asyncio.sleep(WARM_UP_SECONDS)
        steps, begun, cpu, client = tally.steps, time.monotonic(), server.cpu_seconds(), time.process_time()
        await asyncio.sleep(seconds)
        steps, lasted = tally.steps - steps, time.monotonic() - begun
        cpu, client = server.cpu_seconds() - cpu, time.process_time() - client
    finally:
        tally.ended = True
        for stream in opened:
            stream.close()
    return {"rate": steps / lasted, "cpu_us": 1e6 * cpu / max(steps, 1), "client": client / lasted}


def check_first(answer: bytes) -> None:
    """Raises ValueError if a stream's first answer is not what PyTorch computes in float64 from a state of zeros."""
    if answer.startswith(b"{"):
        found = np.array([orjson.loads(answer)["outputs"]])
    else:
        found = np.frombuffer(answer, np.float32).reshape(-1, STEP.hidden_size)
    with torch.inference_mode():
        outputs, _ = network(STEP).double()(torch.from_numpy(inputs(len(found))).double()[None])
    check("the first answer of a stream", found, outputs[0].numpy())
