"""A connection on which requests are refused as soon as their head is known, and their bodies thrown away."""

from typing import Any

from service.server.discard import discard
from service.server.quick import QuickProtocol
from service.server.refusals import Refusals, Refuses, spelt

FORGET_BYTES = 8 * 2**20
"""Bodies of refused requests up to this are taken in to no purpose, so that the connection can be used again. Larger
ones are refused by the application, which closes the connection."""

_END_OF_HEAD = b"\r\n\r\n"


class RefusingProtocol(QuickProtocol):
    """One connection, whose requests the application may refuse from their heads alone: see `Refuses`.

    While it might, a head is parsed before the bytes that came after it. Those of a refused request are then never
    parsed, and what comes later is not even copied out of the kernel.
    """

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._refusals: Refusals = config.refusals
        self._refuses: Refuses = self.app
        self._crowded = False
        self._in_message = False
        self._refused = False
        self._unwanted_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Read, after what is left of a refused body."""
        if self._unwanted_bytes:
            skipped = self._skip(len(data))
            self._received_bytes += skipped
            if skipped == len(data):
                self._discard()
                return
            data = data[skipped:]
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A request line has begun."""
        self._in_message = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Refuse the request, if there is no room for it."""
        if not (self._crowded and self._is_plain() and self._refuse()):
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Forget it, if it is that of a refused request."""
        if self._refused:
            self._unwanted_bytes -= len(body)
            self._body_bytes += len(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has seen all of the request."""
        self._in_message = False
        if self._refused:
            self._refused_is_over()
        else:
            super().on_message_complete()

    def _parse(self, data: bytes | memoryview) -> None:
        self._crowded = self._refuses.crowded
        if not self._crowded:
            super()._parse(data)
            return
        at, size = 0, len(data)
        while isinstance(data, bytes) and at < size and not self._in_message:
            end = data.find(_END_OF_HEAD, at) + len(_END_OF_HEAD)
            if end < len(_END_OF_HEAD) or self.transport.is_closing():
                break
            super()._parse(data[at:end])
            if self._upgraded:
                return
            at = end + self._skip(size - end)
        if at < size:
            super()._parse(memoryview(data)[at:] if at else data)
        self._discard()

    def _refuse(self) -> bool:
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        if not length.isdigit() or int(length) > FORGET_BYTES:
            return False
        refusal = self._refuses.refuse(self.url, self.headers, self.client)
        if refusal is None:
            return False
        self._head_is_complete()
        self.transport.send(spelt(refusal, self.default_lines()))  # type: ignore[attr-defined]  # JoinedWrites
        self._watch_reader()
        self.server_state.total_requests += 1
        self._refused, self._unwanted_bytes = True, int(length)
        self._refusals.pause(self._unwanted_bytes, self.flow, self.transport)
        return True

    def _skip(self, size: int) -> int:
        """Leave out up to `size` bytes of a refused body, ahead of the parser; returns how many."""
        skipped = min(size, self._unwanted_bytes)
        self._unwanted_bytes -= skipped
        self._body_bytes += skipped
        if skipped and not self._unwanted_bytes:
            self._renew_parser()
            self._in_message = False
            self._refused_is_over()
        return skipped

    def _discard(self) -> None:
        if self._unwanted_bytes and self.scheme == "http" and not self.transport.is_closing():
            descriptor = self.transport.get_extra_info("socket").fileno()
            while (size := discard(descriptor, self._unwanted_bytes)) and self._unwanted_bytes:
                self._received_bytes += self._skip(size)

    def _refused_is_over(self) -> None:
        self._refused = False
        self._just_ended = True
        self._cancel_header_timer()
        self._rest_until_next()
