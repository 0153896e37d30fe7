"""Log lines that nobody reads are dropped and counted: they neither block nor fail."""

import asyncio
import os
import socket
from contextlib import suppress

import orjson
import pytest

from service.server.logs import PIPE_BYTES, LogFile
from tests.loop import in_loop


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    yield reader, LogFile(writer)
    for end in (reader, writer):
        with suppress(OSError):  # closed by the test
            os.close(end)


@in_loop
async def test_lines_of_a_turn_are_one_write(pipe, monkeypatch):
    reader, log = pipe
    writes = []
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: writes.append(data) or write(descriptor, data))
    for number in range(3):
        log.later({"number": number})
    assert not writes
    await asyncio.sleep(0)
    log.later({"number": 3})
    log.write("after\n")
    assert [data.count(b"\n") for data in writes] == [3, 1, 1]
    *entries, last = os.read(reader, 9999).splitlines()
    entries = [orjson.loads(entry) for entry in entries]
    assert [(entry["number"], entry["event"], entry["level"]) for entry in entries] == [
        (number, "request", "info") for number in range(4)
    ]
    assert (last, log.dropped) == (b"after", 0)


@in_loop
async def test_no_write_is_larger_than_a_pipe(pipe):
    reader, log = pipe
    for number in range(100):
        log.later({"number": number, "text": "x" * 100})
    log.write("y" * (3 * PIPE_BYTES) + "\n")
    lines = os.read(reader, 10**6).splitlines()
    assert [orjson.loads(line)["number"] for line in lines[:-1]] == list(range(100))
    assert lines[-1] == b"y" * (3 * PIPE_BYTES)


@pytest.mark.parametrize("make", [os.pipe, os.openpty, lambda: [end.detach() for end in socket.socketpair()]])
def test_unread_line_is_dropped_and_counted(make):
    """Lines longer than what is left of a terminal's buffer, too."""
    reader, writer = make()
    log = LogFile(writer)
    for _ in range(500):
        log.write("x" * (PIPE_BYTES - 100) + "\n")
    assert log.dropped > 100
    os.close(reader)
    os.close(writer)


def test_full_pipe_drops_and_counts_lines(pipe):
    reader, log = pipe
    line = "x" * 1023 + "\n"
    for _ in range(200):
        log.write(line)
    taken = os.read(reader, 10**6).decode()
    assert taken == line * (200 - log.dropped)
    assert log.dropped > 100
    log.write("again\n")
    assert os.read(reader, 99) == b"again\n"


@in_loop
async def test_reader_that_is_gone(pipe):
    reader, log = pipe
    os.close(reader)
    log.write("one\n")
    log.later({"number": 2})
    log.later({"number": 3})
    await asyncio.sleep(0)
    assert log.dropped == 3
