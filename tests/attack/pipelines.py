"""Random pipelines of requests in all spellings of their framing, and what must be answered to each."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tests.e2e.raw import head, post

STEPS = [json.dumps({"model": "tanh", "inputs": [index, 2, 3, 4]}).encode() for index in range(8)]
INSIDE = "inside"
"""Begins the ids of requests that stand in bodies: nobody ever asked them."""

OFFERS = ("foo", "h2c", "TLS/1.0, h2c", "websocket", "WebSocket", "websocket, foo")
OFFERED_BY = ("Upgrade", "upgrade", "UPGRADE", "keep-alive, Upgrade", "Upgrade,foo", " Upgrade ,")
TRAILERS = (b"", b"Upgrade: foo\r\n", b"X-Request-Id: inside\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")
BROKEN = (
    b"Content-Length: 5\r\nContent-Length: 6\r\n",
    b"Content-Length: 5\r\nContent-Length: 5\r\n",
    b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: chunked, identity\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: foo\r\n",
    b"Content-Length : 5\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b"X: y\r\n Content-Length: 5\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: -5\r\n",
    b"Content-Length: 5, 5\r\n",
    b"Content-Length: 0x5\r\n",
    b"Content-Length: 5\rTransfer-Encoding: chunked\r\n",
    b"\x0bContent-Length: 5\r\n",
)
"""Framings that two parsers may read differently."""
BROKEN_CHUNKS = (
    b"5\r\nabcdefg\r\n",
    b"-1\r\n",
    b"g\r\n",
    b"5 5\r\nabcde\r\n",
    b"f" * 17 + b"\r\n",
    b"5\nabcde\r\n",
    b"0\r\nContent-Length: 7\r\n\r\n",
)


@dataclass(frozen=True)
class Asked:
    """One request: its bytes; of a sound one the status that is due, and the number of the step that it runs."""

    id: str
    data: bytes
    status: int
    step: int | None = None


def pipeline(rng: random.Random, name: str, *, broken: bool, early: bool = True) -> list[Asked]:
    """Sound requests, if need be with a broken one among them; after a sound pipeline the connection closes.

    `early`: some are answered before their bodies, after which nginx may close at any time.
    """
    count = rng.randint(1, 6)
    last = -1 if broken else count - 1
    requests = [_sound(rng, f"{name}-{index}", last=index == last, early=early) for index in range(count)]
    if broken:
        requests.insert(rng.randint(0, count), _broken(rng, f"{name}-broken"))
    return requests


def cuts(rng: random.Random, data: bytes) -> Iterator[bytes]:
    """The same bytes in pieces."""
    places = sorted(rng.choices(range(len(data)), k=rng.choice((0, 0, 1, 2, 5))))
    for begin, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[begin:end]


def _sound(rng: random.Random, name: str, *, last: bool, early: bool) -> Asked:
    method, path, status = rng.choice(
        [("POST", "/cell/step", 200)] * 3
        + [("GET", "/health/live", 200), ("PUT", "/rnn/forward", 405), ("POST", "/nothing", 404)]
    )
    step = rng.randrange(len(STEPS)) if path == "/cell/step" else None
    body = STEPS[step] if step is not None else rng.choice((b"", _inside(rng, name) * early))
    headers = {"X-Request-Id": name}
    if rng.random() < 0.5 and not (method == "GET" and not body):
        offers = [offer for offer in OFFERS if method != "GET" or offer.lower() != "websocket"]
        headers |= {_cased(rng, "Connection"): rng.choice(OFFERED_BY), _cased(rng, "Upgrade"): rng.choice(offers)}
    if last and method != "GET":
        headers["CONNECTION"] = "close"
    if (step is not None or last) and rng.random() < 0.5:  # a reply before such a body is the last
        headers[_cased(rng, "Transfer-Encoding")] = rng.choice(("chunked", "Chunked", "CHUNKED", "  chunked "))
        body = b"".join(_chunks(rng, body)) + rng.choice((b"0", b"000", b"0;x=y")) + b"\r\n"
        body += rng.choice(TRAILERS) + b"\r\n"
    elif body or rng.random() < 0.5:
        spelled = rng.choice(("", " ")) + "0" * rng.choice((0, 0, 1, 30)) + str(len(body))
        headers[_cased(rng, "Content-Length")] = spelled + rng.choice(("", " ", "   "))
    items = list(headers.items())
    rng.shuffle(items)
    return Asked(name, head(method, path, dict(items)) + body, status, step)


def _broken(rng: random.Random, name: str) -> Asked:
    offer = rng.choice((b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"))
    framing, body = rng.choice(BROKEN), b"hello"
    if rng.random() < 0.3:
        framing, body = b"Transfer-Encoding: chunked\r\n", rng.choice(BROKEN_CHUNKS)
    begin = head("POST", rng.choice(("/cell/step", "/rnn/forward?x=y")), {"X-Request-Id": name})[:-2]
    return Asked(name, begin + offer + framing + b"\r\n" + body + _inside(rng, name), 400)


def _chunks(rng: random.Random, body: bytes) -> Iterator[bytes]:
    while body:
        size = rng.randint(1, len(body))
        number = rng.choice((b"%x", b"%X", b"00%x", b"%x;a=b")) % size
        yield number + b"\r\n" + body[:size] + b"\r\n"
        body = body[size:]


def _inside(rng: random.Random, name: str) -> bytes:
    """A body of requests, and of what a parser could trip over."""
    request = post("/cell/step", STEPS[0], {"X-Request-Id": f"{INSIDE}-{name}"})
    pieces = (b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n", b"0\r\n\r\n", request, request, b"x" * rng.choice((1, 1500)))
    return b"".join(rng.choices(pieces, k=5)) + request


def _cased(rng: random.Random, name: str) -> str:
    return rng.choice((name, name.lower(), name.upper(), name.swapcase()))
