"""A TCP proxy whose connections break after random, seeded numbers of bytes."""

import asyncio
import random
import threading


class Cutter:
    """Forwards to a port of this machine. A connection breaks after a random number of bytes, both ways counted.

    With `stalling` it stays open then, and nothing passes any more.
    """

    def __init__(self, target):
        self._target = target
        self._random = random.Random(0)
        self._thread = threading.Thread(target=asyncio.run, args=[self._main()])
        self._ready = threading.Event()
        self.fewest, self.most = 100, 4000
        self.cuts = 0
        self.cutting = True
        self.stalling = False

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _main(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._end.wait()
        server.close()

    async def _serve(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        allowance = [self._random.randint(self.fewest, self.most)]
        ways = [
            asyncio.create_task(self._forward(reader, far_writer, allowance)),
            asyncio.create_task(self._forward(far_reader, writer, allowance)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            far_writer.transport.abort()
        await asyncio.gather(*ways, return_exceptions=True)

    async def _forward(self, reader, writer, allowance):
        """Until one side ends, or so many bytes have passed; what is beyond them does not arrive."""
        while data := await reader.read(65536):
            if self.cutting and len(data) > allowance[0]:
                writer.write(data[: allowance[0]])
                await writer.drain()
                self.cuts += 1
                while self.stalling and await reader.read(65536):
                    pass
                return
            allowance[0] -= len(data)
            writer.write(data)
            await writer.drain()
