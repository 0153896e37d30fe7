"""A reply's head and body leave together, and nothing is held for longer than a turn of the loop."""

import asyncio

from service.server.transport import JoinedWrites

HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


class Recorder:
    """What a transport was told."""

    def __init__(self):
        self.calls = []

    def write(self, data):
        self.calls.append(("write", data))

    def writelines(self, parts):
        self.calls.append(("writelines", b"".join(parts)))

    def close(self):
        self.calls.append(("close",))

    def is_closing(self):
        return False

    def get_write_buffer_size(self):
        return 0


def told(*writes, close=False, turns=0):
    async def run():
        recorder = Recorder()
        transport = JoinedWrites(recorder, asyncio.get_running_loop())
        for data in writes:
            transport.write(data)
        for _ in range(turns):
            await asyncio.sleep(0)
        if close:
            transport.close()
        assert not transport.is_closing()
        return list(recorder.calls)

    return asyncio.run(run())


def test_head_and_body_are_one_call():
    assert told(HEAD, b"body", b"more") == [("writelines", HEAD + b"body"), ("write", b"more")]


def test_a_head_alone_leaves_in_the_next_turn():
    assert told(HEAD) == []
    assert told(HEAD, turns=2) == [("write", HEAD)]


def test_a_head_that_was_joined_is_not_sent_again():
    assert told(HEAD, b"body", turns=2) == [("writelines", HEAD + b"body")]


def test_closing_sends_what_is_held():
    assert told(HEAD, close=True) == [("write", HEAD), ("close",)]
