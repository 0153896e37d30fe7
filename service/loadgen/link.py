"""A connection: what all traffic has in common."""

import asyncio
import json
import re
from abc import abstractmethod
from collections import deque
from typing import Protocol, cast

import httptools

from service.loadgen.tally import Failure, Tally
from service.loadgen.traffic import Traffic

MAX_PROBLEM_BYTES = 64 * 1024

LOST = Failure(0, "connection lost")
TIMED_OUT = Failure(0, "timed out")
NOT_HTTP = Failure(0, "the reply is not HTTP")

_SLUG = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


class Owner(Protocol):
    """Who is told what happens on a link. `due` is on the clock of `time.perf_counter`."""

    def succeeded(self, link: "Link", due: float) -> None:
        """The oldest request was answered with 2xx; the link has room for one more if it is still open."""

    def failed(self, link: "Link", due: float, failure: Failure) -> None:
        """The oldest request was not."""

    def closed(self, link: "Link") -> None:
        """The link is gone; what was in flight was told as failed before."""


class Link(asyncio.Protocol):
    """One connection; what is in flight on it is answered in order."""

    def __init__(self, traffic: Traffic, tally: Tally, owner: Owner) -> None:
        self.traffic, self.tally, self.owner = traffic, tally, owner
        self.in_flight: deque[float] = deque()
        self.alive = False
        self.broken = False  # something was lost with it
        self.ended = asyncio.get_running_loop().create_future()
        self.parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._problem = b""

    def send(self, due: float) -> None:
        """Send one request that was due at a time."""
        self.in_flight.append(due)
        self.write(self.traffic.unit)

    def write(self, data: bytes) -> None:
        """Send bytes, unless the connection is closing."""
        if self.alive and self._transport is not None:
            self.tally.bytes_sent += len(data)
            self._transport.write(data)

    def abort(self, failure: Failure) -> None:
        """Fail what is in flight, and close."""
        self.alive = False
        self.broken = self.broken or bool(self.in_flight)
        while self.in_flight:
            self.owner.failed(self, self.in_flight.popleft(), failure)
        if self._transport is not None:
            self._transport.abort()

    def close(self) -> None:
        """Nothing more to send; the link ends when what is written has gone out."""
        self.alive = False
        if self._transport is not None:
            self._transport.close()

    def finish(self) -> None:
        """End as a good client does; `ended` says when."""
        self.close()

    @abstractmethod
    def on_message_complete(self) -> None:
        """httptools: the reply is whole."""

    @abstractmethod
    def on_success_body(self, data: bytes) -> None:
        """A part of the body of a reply with 2xx."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection stands."""
        self._transport = cast("asyncio.Transport", transport)
        self.alive = True
        if self.traffic.opening:
            self.write(self.traffic.opening)

    def data_received(self, data: bytes) -> None:
        """asyncio: bytes came."""
        self.tally.bytes_received += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self.abort(NOT_HTTP)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio: the connection is gone."""
        del exc
        self.abort(LOST)
        if not self.ended.done():
            self.ended.set_result(None)
        self.owner.closed(self)

    def on_body(self, data: bytes) -> None:
        """httptools: a part of a body. Of an error it is kept, to name the problem."""
        if self.status < 300:
            self.on_success_body(data)
        elif len(self._problem) < MAX_PROBLEM_BYTES:
            self._problem += data

    @property
    def status(self) -> int:
        """Of the reply that is coming in."""
        return self.parser.get_status_code()

    def take_failure(self) -> Failure:
        """What the whole reply that came in says is wrong."""
        body, self._problem = self._problem, b""
        return failure_of(self.status, body)


def failure_of(status: int, problem: bytes) -> Failure:
    """A reply that is no success: its status, and the slug of its RFC 9457 type if it has one."""
    try:
        document = json.loads(problem)
        slug = str(document["type"]).rsplit("/", 1)[-1]
    except (ValueError, KeyError, TypeError):
        slug = ""
    # What a server sends is shown on a terminal.
    return Failure(status, slug if _SLUG.fullmatch(slug) else "without a problem type")
