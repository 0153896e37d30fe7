"""Load on connections that stay, each a stream of steps or a session's steps one by one. See live.c for the client."""

import base64
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from benchmarks.bodies import Cell, network
from benchmarks.servers import Running

PROGRAM = "live"
TOLERANCE = 1e-5
# Eight characters for a step's number, so that all messages of a connection are equally long.
NUMBER = b"       1"

Protocol = Literal["http", "ndjson", "ws"]


@dataclass(frozen=True, slots=True)
class Talk:
    """What one connection says: once it is open, next, and then again and again; `steps` steps in a message.

    `decode` gives the outputs (k, H) of the first answer. `unit` is the bytes of one step in a binary answer.
    """

    protocol: Protocol
    opening: bytes
    first: bytes
    message: bytes
    decode: Callable[[bytes], NDArray[Any]]
    steps: int = 1
    unit: int = 0


@dataclass(frozen=True, slots=True)
class Flow:
    """One run: steps answered in all, latency of a message in milliseconds, CPU of the server in µs a step.

    `offered` is the rate at which messages arrived, 0 in a closed loop.
    `client_busy` is the part of one core that the client itself took: near 1, it is the client that was measured.
    """

    steps: int
    messages: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    errors: int
    client_busy: float
    cpu_us: float
    resident_bytes: int
    offered: float = 0

    @property
    def rate(self) -> float:
        """Steps a second, all connections together."""
        return self.steps / self.seconds


def vectors(cell: Cell, steps: int) -> NDArray[np.float32]:
    """The inputs (k, I) of a message, the same every time."""
    return np.random.default_rng(7).standard_normal((steps, cell.input_size), dtype=np.float32)


def answers(cell: Cell, steps: int) -> NDArray[np.float64]:
    """The outputs (k, H) of the first message, from a state of zeros, in float64."""
    import torch  # noqa: PLC0415 - costs a second, and only runs that check answers need it

    with torch.inference_mode():
        outputs, _ = network(cell).double()(torch.from_numpy(vectors(cell, steps)).double()[None])
    found: NDArray[np.float64] = outputs[0].numpy()
    return found


def ndjson(cell: Cell, session: str | None = None) -> Talk:
    """A stream of lines on POST /cell/step, one step a line; the first line names the model or the session."""
    head = b"POST /cell/step HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/x-ndjson\r\n"
    opening = orjson.dumps(_opening(cell, session)) + b"\n"
    first = b"%x\r\n%s\r\n" % (len(opening), opening)
    return Talk("ndjson", head + b"Transfer-Encoding: chunked\r\n\r\n", first, _line(cell) + b"\n", _from_json)


def text_frames(cell: Cell, session: str | None = None) -> Talk:
    """A WebSocket with text frames, one step each."""
    return Talk("ws", HANDSHAKE, frame(1, orjson.dumps(_opening(cell, session))), frame(1, _line(cell)), _from_json)


def binary_frames(cell: Cell, steps: int, session: str | None = None) -> Talk:
    """A WebSocket with binary frames of float32 values, `steps` steps each."""
    message = frame(2, vectors(cell, steps).tobytes())
    opening = frame(1, orjson.dumps(_opening(cell, session)))
    width = cell.hidden_size

    def decode(data: bytes) -> NDArray[Any]:
        return np.frombuffer(data, np.float32).reshape(-1, width)

    return Talk("ws", HANDSHAKE, opening, message, decode, steps, 4 * width)


def session_steps(cell: Cell, session: str) -> Talk:
    """Numbered steps of a session, each an HTTP request."""
    inputs = orjson.dumps(vectors(cell, 1)[0], option=orjson.OPT_SERIALIZE_NUMPY)
    body = b'{"session":"%s","inputs":%s,"step":%s}' % (session.encode(), inputs, NUMBER)
    return Talk("http", b"", b"", post("/cell/step", body), _from_json)


def stateless_steps(cell: Cell) -> Talk:
    """The same step with its state sent along, each an HTTP request."""
    option = orjson.OPT_SERIALIZE_NUMPY
    fields = {"model": cell.name, "inputs": vectors(cell, 1)[0], "h": np.zeros(cell.hidden_size, np.float32)}
    return Talk("http", b"", b"", post("/cell/step", orjson.dumps(fields, option=option)), _from_json)


def openings(cell: Cell, ttl_seconds: float) -> Talk:
    """Sessions that are opened, one a request."""
    body = orjson.dumps({"model": cell.name, "ttl_seconds": ttl_seconds})
    return Talk("http", b"", b"", post("/cell/sessions", body), lambda _: np.empty(0))


def post(path: str, body: bytes) -> bytes:
    """A JSON request as its bytes."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's WebSocket frame; masked, as it must be, with a key of zeros: the server's work is the same."""
    size = len(payload)
    if size < 126:
        length = bytes([0x80 | size])
    elif size < 2**16:
        length = bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        length = bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return bytes([0x80 | opcode]) + length + bytes(4) + payload


HANDSHAKE = (
    b"GET /cell/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(bytes(16)) + b"\r\n\r\n"
)


class Client:
    """The compiled client, and where its files go."""

    def __init__(self, program: Path, scratch: Path) -> None:
        self._program = program
        self._scratch = scratch

    def run(
        self, server: Running, talks: Sequence[Talk], seconds: float, *, window: int = 1, rate: float = 0
    ) -> tuple[Flow, bytes]:
        """One connection for each of `talks`, which differ in nothing but names; also the first one's first answer.

        Keeps `window` messages unanswered on each connection; or with a `rate`, messages arrive at so many a second.
        Raises RuntimeError if a connection does not open.
        """
        one, place = talks[0], self._scratch
        for name in ("opening", "first", "message"):
            (place / name).write_bytes(b"".join(getattr(talk, name) for talk in talks))
        number_at = one.message.find(b'"step":' + NUMBER)
        number_at = number_at if number_at < 0 else number_at + len(b'"step":')
        numbers = (len(talks), window, seconds, rate, one.steps, one.unit, number_at)
        files = [str(place / name) for name in ("opening", "first", "message", "answer")]
        command = [str(self._program), server.url.rpartition(":")[2], one.protocol, *map(str, numbers), *files]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
            try:
                if child.stdout.readline() != "begin\n":
                    raise RuntimeError(f"{server.server.name}: {child.stderr.read().strip()}")
                before = server.cpu_seconds()
                output = child.stdout.readline()
                cpu = server.cpu_seconds() - before
                resident = server.resident_bytes()
            finally:
                child.kill()
        if not output:
            raise RuntimeError(f"{server.server.name}: the client ended early")
        server.settle()
        result = orjson.loads(output)
        done = result["steps"] if rate == 0 else result["messages"] * one.steps
        flow = Flow(**{**result, "steps": done}, cpu_us=1e6 * cpu / max(done, 1), resident_bytes=resident, offered=rate)
        return flow, (place / "answer").read_bytes()


def check(cell: Cell, talk: Talk, answer: bytes) -> None:
    """Raises ValueError if the first answer is not what PyTorch computes."""
    found, expected = talk.decode(answer), answers(cell, talk.steps)
    if found.shape != expected.shape:
        raise ValueError(f"{talk.protocol}: the first answer has shape {found.shape}; expected {expected.shape}")
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE:
        raise ValueError(f"{talk.protocol}: the first answer is off by {difference:.2g}; at most {TOLERANCE:g}")


def _opening(cell: Cell, session: str | None) -> dict[str, str]:
    return {"session": session} if session else {"model": cell.name}


def _line(cell: Cell) -> bytes:
    return orjson.dumps(vectors(cell, 1)[0], option=orjson.OPT_SERIALIZE_NUMPY)


def _from_json(data: bytes) -> NDArray[Any]:
    """Outputs of the first line, (1, H) whatever they came as."""
    outputs = np.asarray(orjson.loads(data.split(b"\n", 1)[0])["outputs"], np.float64)
    return outputs.reshape(1, -1)
