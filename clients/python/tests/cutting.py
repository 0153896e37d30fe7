"""A TCP proxy whose connections break after random, seeded numbers of bytes."""

import asyncio
import random
import threading


class Cutter:
    """Forwards to a port of this machine. A connection breaks after a random number of bytes, both ways counted.

    With `stalling` it stays open then, and nothing passes any more.
    """

    def __init__(self, target, seed=0, fewest=100, most=4000):
        self._target = target
        self._random = random.Random(seed)
        self.fewest, self.most = fewest, most
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._tasks = set()
        self.cuts = 0
        self.cutting = True
        self.stalling = False

    @property
    def url(self):
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self):
        self._thread.start()
        self._server = self._wait(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *error):
        self._wait(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _stop(self):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        far_writer = None
        try:
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
                await asyncio.gather(*ways, return_exceptions=True)
        except asyncio.CancelledError:
            pass  # the end of the test
        finally:
            self._tasks.discard(task)
            for each in (writer, far_writer):
                if each is not None:
                    each.transport.abort()

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
