"""Workers that ask each other over sockets; and what an admin is told if not all did what they were told to."""

import asyncio
import os

import pytest

from service.api.administration import Administration
from service.errors import ModelFailed, ModelInUse, ModelNotFound, WorkerFailed
from service.server import worker_sockets
from service.server.worker_sockets import WorkerSockets
from tests.loop import in_loop


class Models:
    """A registry that notes what it is told, or raises."""

    def __init__(self, error=None):
        self.error = error
        self.told = []

    def __getattr__(self, action):
        def do(*arguments):
            self.told.append((action, *arguments))
            if self.error:
                raise self.error
            return asyncio.sleep(0, self) if action == "reload" else self

        return do


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Administrations of registries, as those of workers with the process ids 1, 2, …; not all may listen yet."""

    sockets = []

    async def build(*registries, listening=None):
        built = []
        for number, registry in enumerate(registries, 1):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            started = WorkerSockets(str(tmp_path))
            sockets.append(started._socket)
            built.append(Administration(registry, started))
            if listening is None or number in listening:
                await started.listen(built[-1])
        monkeypatch.setattr(os, "getpid", lambda: 1)
        return built

    yield build
    for each in sockets:
        each.close()


@in_loop
async def test_every_worker_does_it(workers):
    registries = [Models(), Models(), Models()]
    first, *_ = await workers(*registries)
    for call in (first.drain("m", "3"), first.drain("m", None), first.reload("m"), first.unload("m")):
        assert await call == (registries[0], 3)
    calls = [("drain", "m", "3"), ("drain", "m", None), ("reload", "m"), ("check_unused", "m"), ("unload", "m")]
    assert [one.told for one in registries] == [calls] * 3
    assert (await Administration(registries[0], None).reload("m"))[1] == 1


@pytest.mark.parametrize("failing", [{1}, {2}, {1, 2, 3}])
@in_loop
async def test_workers_that_fail_are_named(workers, failing):
    """Unless all do: then it is the models' own error."""
    registries = [Models(ModelNotFound("gone") if number in failing else None) for number in (1, 2, 3)]
    first, *_ = await workers(*registries)
    wanted = r"^gone$" if len(failing) == 3 else rf"^1 of 3 workers refused: worker {failing.pop()}: gone$"
    with pytest.raises(ModelNotFound if wanted == r"^gone$" else WorkerFailed, match=wanted):
        await first.reload("m")


@in_loop
async def test_failure_of_the_service_is_not_told(workers):
    first, *_ = await workers(Models(), Models(ZeroDivisionError("secret")))
    with pytest.raises(WorkerFailed, match=r"worker 2: it failed; the log has the reason$"):
        await first.reload("m")


@pytest.mark.parametrize("using", [0, 1])
@in_loop
async def test_model_in_use_anywhere_stays_loaded_everywhere(workers, using):
    registries = [Models(), Models(), Models()]
    registries[using].error = ModelInUse("sessions on it: 1")
    first, *_ = await workers(*registries)
    with pytest.raises(ModelInUse, match=f"worker {1 + using}: sessions on it: 1"):
        await first.unload("m")
    assert [one.told for one in registries] == [[("check_unused", "m")]] * 3


@in_loop
async def test_call_waits_for_a_worker_that_starts(workers, monkeypatch):
    first, second = await workers(Models(), Models(), listening={1})
    asked = asyncio.create_task(first.reload("m"))
    await asyncio.sleep(0.05)
    assert not asked.done()
    await second._others.listen(second)
    assert (await asked)[1] == 2


@in_loop
async def test_silent_worker_has_failed(workers, monkeypatch):
    monkeypatch.setattr(worker_sockets, "ANSWER_SECONDS", 0.05)
    first, _ = await workers(Models(), Models(), listening={1})
    with pytest.raises(WorkerFailed, match=r"worker 2: no answer in 0\.05 s"):
        await first.reload("m")


@in_loop
async def test_worker_that_ended_is_left_out(workers, tmp_path):
    """Also if it ends while it is asked; its process id may come again."""
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), tmp_path / "7.sock")
    first, second = await workers(Models(), Models(ModelFailed("broken")))
    second._others._server.close()
    assert (await first.reload("m"))[1] == 1
    first, _ = await workers(Models(), Models())
    assert (await first.reload("m"))[1] == 2
    server.close()


@in_loop
async def test_worker_that_ends_before_it_asks_is_no_failure(workers, tmp_path, capfd):
    registry = Models()
    await workers(registry)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "1.sock")
    writer.write_eof()
    assert await reader.read() == b'""'
    writer.close()
    assert registry.told == []
    assert "internal_error" not in "".join(capfd.readouterr())


@in_loop
async def test_folder_may_have_a_long_name(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    alone = WorkerSockets(str(folder))
    assert next(folder.iterdir()).is_socket()
    assert await alone.ask("reload", "m") == {}
    alone._socket.close()
