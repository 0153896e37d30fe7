"""Requests that go the short way and the long one: a deadline that is far away makes a request take the latter."""

import json

from hypothesis import strategies as st

from .raw import post

FAR = {"X-Request-Timeout-Ms": "600000"}
ID = {"X-Request-Id": "the-same"}

NUMBERS = st.one_of(
    st.floats(-3, 3, width=32),
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
    st.sampled_from([True, None, "1", -0.0, 3.4028236e38, 1e-46, [1.0]]),
)
PLAIN = st.floats(-3, 3, width=32)


def arrays(shape, numbers):
    if not shape:
        return numbers
    return st.lists(arrays(shape[1:], numbers), min_size=shape[0], max_size=shape[0])


@st.composite
def spelt(draw, documents):
    """A document as a client may spell it, sometimes wrong."""
    body = json.dumps(draw(documents), separators=draw(st.sampled_from([(",", ":"), (" , ", " : ")])))
    change = draw(st.integers(0, 12))
    if change == 0:  # a name twice
        body = body[:-1] + ',"inputs":[1]}'
    elif change == 1:
        body = body.replace('"model"', '"m\\u006fdel"')
    elif change == 2:
        body = body[: draw(st.integers(0, len(body)))]
    return body


def exchanged(wire, path, body, headers):
    """Status, headers but for the date, and body of the reply."""
    wire.send(post(path, body, ID | headers))
    reply = wire.reply()
    return reply.status, {name: value for name, value in reply.headers.items() if name != "date"}, reply.body
