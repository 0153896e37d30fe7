"""The form of a JSON body: all of it but its numbers. What was found out about one body holds for all of its form.

Bodies of one form have the same names and texts, and the same nesting, but that an empty list looks like one with a
single number. So if one has no empty list, all with as many numbers are nested as it is.
"""

from typing import Any

import numpy as np
import simdjson

from service.wire.arrays import Floats
from service.wire.json import Suspicious, as_float32

Form = tuple[bytes, ...]

_OF_NUMBERS = b"0123456789.+-eE \t\r\n"


def form_of(body: bytes) -> Form | None:
    """The form of a small body, whose names and texts stand in it as they are; None if some are escaped.

    Texts lose what could belong to a number in the first part, and stand whole in the others.
    """
    return None if b"\\" in body else (body.translate(None, _OF_NUMBERS), *body.split(b'"')[1::2])


class Reader:
    """Parses documents one after the other in memory that it keeps: a new parser's is not in any cache."""

    def __init__(self) -> None:
        self._parser = simdjson.Parser()

    def parse(self, body: bytes) -> Any:
        """A document, which must be gone before the next is parsed. Raises ValueError, RuntimeError."""
        return self._parser.parse(body)


def read_numbers(numbers: Any, into: Floats) -> None:
    """The numbers of a parsed list, however nested, in order.

    Raises Suspicious if there are more or fewer, or one is too large; TypeError if there is anything else in it.
    """
    doubles = np.frombuffer(numbers.as_buffer(of_type="d"))
    if doubles.size != into.size:
        raise Suspicious
    into[:] = as_float32(doubles)
