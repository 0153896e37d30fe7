"""A connection without a network: what a protocol writes, and whether it reads and is open."""

import asyncio


class Transport(asyncio.Transport):
    def __init__(self, own):
        super().__init__({"socket": own})
        self.writes = []
        self.reading, self.closed = True, False

    @property
    def written(self):
        return b"".join(self.writes)

    def get_write_buffer_size(self):
        return 0

    def write(self, data):
        if not self.closed:
            self.writes.append(data)

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True

    abort = close


async def turns(count):
    for _ in range(count):
        await asyncio.sleep(0)
