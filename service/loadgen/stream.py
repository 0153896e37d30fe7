"""A stream of steps: one request whose lines are answered while it is still being sent."""

import json

from service.loadgen.link import Link, failure_of
from service.loadgen.tally import Failure
from service.loadgen.traffic import chunk

ERROR = b'{"error":'
ENDED_EARLY = Failure(0, "stream ended early")


class Stream(Link):
    """A line out is a request, a line back its answer. An error fails every line in flight and ends the stream."""

    _line = b""

    def on_success_body(self, data: bytes) -> None:
        """Answer as many lines as came whole."""
        lines = (self._line + data).split(b"\n")
        self._line = lines.pop()
        for line in lines:
            if line.startswith(ERROR):
                self.abort(_failure(line))
            elif self.in_flight:
                self.owner.succeeded(self, self.in_flight.popleft())

    def on_message_complete(self) -> None:
        """The service has ended the stream: refused it, or had the empty chunk from us."""
        if self.status >= 200:
            self.abort(self.take_failure() if self.status >= 300 else ENDED_EARLY)

    def finish(self) -> None:
        """Send the empty chunk that ends the body; the service then ends its own."""
        self.write(chunk(b""))
        self.alive = False


def _failure(line: bytes) -> Failure:
    """The problem in the last line of a stream."""
    try:
        problem = json.loads(line)["error"]
        status = int(problem["status"])
    except (ValueError, KeyError, TypeError):
        return ENDED_EARLY
    return failure_of(status, json.dumps(problem).encode())
