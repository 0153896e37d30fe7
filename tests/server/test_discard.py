"""Bytes that are thrown away in the kernel are exactly those that were asked for."""

import socket
import sys

import pytest

from service.server.discard import discard

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="MSG_TRUNC takes TCP bytes on Linux alone")


@pytest.fixture
def pair():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            yield ours, theirs


def test_no_more_is_taken_than_was_asked_for(pair):
    ours, theirs = pair
    theirs.sendall(b"unwanted" + b"next")
    taken = 0
    while taken < len(b"unwanted"):
        taken += discard(ours.fileno(), len(b"unwanted") - taken)
    assert ours.recv(100) == b"next"


def test_it_does_not_wait(pair):
    ours, _ = pair
    assert discard(ours.fileno(), 100) == 0


def test_an_end_and_an_error_are_nothing(pair):
    ours, theirs = pair
    theirs.close()
    ours.recv(1)
    assert discard(ours.fileno(), 100) == 0
    assert discard(-1, 100) == 0
