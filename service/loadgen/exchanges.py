"""Requests one after the other on a connection that is kept alive."""

from service.loadgen.link import Link


class Exchanges(Link):
    """A whole request, its whole reply, the next request."""

    def on_message_complete(self) -> None:
        """Tell the outcome. A server that says `Connection: close`, or answers unasked, gets no further request."""
        status = self.status
        if status < 200:
            return
        if not self.parser.should_keep_alive() or not self.in_flight:
            self.alive = False
        if self.in_flight:
            due = self.in_flight.popleft()
            if status < 300:
                self.owner.succeeded(self, due)
            else:
                self.owner.failed(self, due, self.take_failure())
        if not self.alive:
            self.close()

    def on_success_body(self, data: bytes) -> None:
        """Read and forget."""
