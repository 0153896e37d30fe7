"""The application's lifespan where it is not the process's own: in a thread of another server."""

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor

from service.app import create_app
from service.settings import Settings
from tests.e2e.models import write_model

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def test_other_threads_leave_signals_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "models", "tanh")
    sent = []

    async def live():
        app = create_app(Settings(models=tmp_path / "models", preload=("tanh",)))
        messages = asyncio.Queue()
        messages.put_nowait({"type": "lifespan.startup"})

        async def send(message):
            sent.append(message["type"])
            while app.unready():
                await asyncio.sleep(0.01)
            messages.put_nowait({"type": "lifespan.shutdown"})

        await app({"type": "lifespan", "state": {}}, messages.get, send)

    before = [signal.getsignal(number) for number in SIGNALS]
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, live()).result()
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert [signal.getsignal(number) for number in SIGNALS] == before
