"""Bodies of 60 MiB of the Open Inference Protocol that are no requests: others are served, and memory is bounded."""

import threading

import pytest

from tests.e2e.open_inference import assert_error
from tests.e2e.watching import others_are_served

SIZE = 60 * 2**20
BEFORE = b'{"inputs":[{"name":"inputs","shape":[1,15728640,1],"datatype":"FP32","data":['


def filled(before, piece, after=b""):
    return before + piece * ((SIZE - len(before) - len(after)) // len(piece)) + after


BODIES = {
    "lists that begin": (b'{"inputs":[', b'"data":[', b""),
    "quotes": (b'{"inputs":[', b'"', b""),
    "blanks": (b'{"inputs":["data":', b" ", b""),
    "names": (b'{"inputs":[', b'{"name":"a"},', b"{}]}"),
    "NaN": (BEFORE, b"NaN,", b"0]}]}"),
    "N": (BEFORE, b"N", b"]}]}"),
    "commas": (BEFORE, b",", b"NaN]}]}"),
    "brackets": (BEFORE, b"[", b"]}]}"),
}


@pytest.mark.parametrize("kind", BODIES)
def test_large_body_holds_nobody_up(short_timeouts, kind):
    service, body = short_timeouts, filled(*BODIES[kind])
    with others_are_served(service) as served:
        before, over, top = service.rss_mib, threading.Event(), 0.0

        def watch():
            nonlocal top
            while not over.wait(0.02):
                top = max(top, service.rss_mib)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            assert_error(service.post("/v2/models/tanh/infer", content=body), 400)
            assert_error(service.post("/v2/repository/index", content=body), 400)
        finally:
            over.set()
            watching.join()
        assert served() > 0
        assert top < before + 800  # of which the body is 60, and its numbers and their places 180
