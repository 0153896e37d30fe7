"""Workers that ask each other over sockets; and what an admin is told if not all did what they were told to."""

import asyncio
import os
import shutil

import pytest

from service.api.administration import Administration
from service.engine.load import EngineFactory
from service.errors import ModelInUse, ModelNotFound, WorkerFailed
from service.server import worker_sockets
from service.server.worker_sockets import WorkerSockets
from service.serving.registry import Registry
from tests.loop import in_loop

CONFIG = {"kind": "rnn", "input_size": 4, "hidden_size": 3}


class Models:
    """A registry that notes what it is told, or raises."""

    def __init__(self, error=None):
        self.error = error
        self.told = []

    def models(self):
        return []

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
            started = WorkerSockets(str(tmp_path), len(registries))
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


@pytest.mark.parametrize("call", ["reload", "unload"])
@pytest.mark.parametrize("removed", [True, False])
@in_loop
async def test_worker_without_an_answer_is_missed(workers, tmp_path, monkeypatch, removed, call):
    """It does not listen, or its socket's file is gone."""
    monkeypatch.setattr(worker_sockets, "ANSWER_SECONDS", 0.05)
    first, *_ = await workers(Models(), Models(), Models(), listening={1, 3} | ({2} if removed else set()))
    if removed:
        (tmp_path / "2.sock").unlink()
    with pytest.raises(WorkerFailed, match=r"^1 of 3 workers gave no answer in 0\.05 s; .* process ids 1, 3$"):
        await getattr(first, call)("m")


@in_loop
async def test_worker_in_the_place_of_one_that_ended_is_waited_for(workers, tmp_path, monkeypatch):
    """Also if that one ends while it is asked; a process id may come again."""
    ended = asyncio.Event()

    def end(_, writer):
        writer.close()
        ended.set()

    server = await asyncio.start_unix_server(end, tmp_path / "2.sock")
    (first,) = await workers(Models())
    first._others._workers = 2
    asked = asyncio.create_task(first.reload("m"))
    await ended.wait()
    server.close()
    monkeypatch.setattr(os, "getpid", lambda: 2)
    second = WorkerSockets(str(tmp_path), 2)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    await second.listen(Administration(Models(), second))
    assert (await asked)[1] == 2
    second._socket.close()


@in_loop
async def test_worker_that_starts_knows_of_drains(workers, tmp_path, write_model):
    write_model("m", CONFIG)
    write_model("n", CONFIG)

    def registry():
        found = Registry(tmp_path, EngineFactory.configure("cpu", 1, "torch", 1), None, 2**30)
        found.scan()
        return found

    def drained():
        late = registry()
        Administration(late, first._others)
        return [model.name for model in late.models() if model.serving().draining]

    first, _ = await workers(registry(), registry())
    assert drained() == []
    await first.drain("m", None)
    await first.drain("n", None)
    assert drained() == ["m", "n"]
    await first.reload("m")
    assert drained() == ["n"]
    shutil.rmtree(tmp_path / "n")
    assert drained() == []
    write_model("n", CONFIG)
    await first.reload_all()
    assert drained() == []


@in_loop
async def test_drain_that_cannot_be_kept_is_said(workers, tmp_path):
    """The folder is gone."""
    (first,) = await workers(Models())
    first._others._drained = tmp_path / "nowhere" / "drained.json"
    with pytest.raises(WorkerFailed, match="will not know of drains: No such file"):
        first._others.keep_drained([("m", "1")])


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
    alone = WorkerSockets(str(folder), 1)
    assert next(folder.iterdir()).is_socket()
    assert await alone.ask("reload", "m") == {}
    alone._socket.close()
