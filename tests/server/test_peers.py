"""Workers that ask each other over sockets; and what an admin is told if not all did what they were told to."""

import asyncio
import os
import stat
from contextlib import contextmanager

import pytest

from service.api.administration import Administration, Call, Failure
from service.errors import ModelFailed, ModelInUse, ModelNotFound, VersionNotFound, WorkerFailed
from service.server import peers
from service.server.peers import Peers
from tests.loop import in_loop


class Models:
    """A registry that says what it was told, or raises."""

    def __init__(self, error=None):
        self.error = error
        self.told = []

    def drain(self, *arguments, call="drain"):
        self.told.append((call, *arguments))
        if self.error:
            raise self.error
        return self

    def refuse_in_use(self, name):
        return self.drain(name, call="refuse_in_use")

    def unload(self, name):
        return self.drain(name, call="unload")

    async def reload(self, name):
        return self.drain(name, call="reload")


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Workers of these registries, by the process ids 1, 2, …; the first one's administration."""

    @contextmanager
    def build(*registries):
        started = []
        for number in range(1, 1 + len(registries)):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            started.append(Peers(str(tmp_path)))
        monkeypatch.setattr(os, "getpid", lambda: 1)
        administrations = [Administration(*pair) for pair in zip(registries, started, strict=True)]
        yield administrations, started
        for one in started:
            one.close()

    return build


async def served(administrations, started):
    for administration, one in zip(administrations, started, strict=True):
        await one.serve(administration)
    return administrations[0]


@in_loop
async def test_every_worker_does_it(workers):
    registries = [Models(), Models(), Models()]
    with workers(*registries) as built:
        first = await served(*built)
        assert await first.drain("m", "3") == (registries[0], 3)
        assert await first.reload("m") == (registries[0], 3)
        assert await first.unload("m") == (registries[0], 3)
    calls = [("drain", "m", "3"), ("reload", "m"), ("refuse_in_use", "m"), ("unload", "m")]
    assert [one.told for one in registries] == [calls] * 3


@in_loop
async def test_one_process_asks_nobody():
    assert (await Administration(Models(), None).reload("m"))[1] == 1
    with pytest.raises(ModelFailed, match=r"^broken$"):
        await Administration(Models(ModelFailed("broken")), None).reload("m")


@in_loop
async def test_error_of_all_is_the_error(workers):
    with workers(*(Models(ModelNotFound("gone")) for _ in range(3))) as built:
        first = await served(*built)
        with pytest.raises(ModelNotFound, match=r"^gone$"):
            await first.reload("m")


@pytest.mark.parametrize("failing", [0, 1])
@in_loop
async def test_worker_that_fails_is_named(workers, failing):
    registries = [Models(), Models(), Models()]
    registries[failing].error = ModelFailed("no memory")
    with workers(*registries) as built:
        first = await served(*built)
        wanted = f"^1 of 3 workers failed to reload model 'm': {failing + 1}: no memory$"
        with pytest.raises(WorkerFailed, match=wanted):
            await first.reload("m")
        registries[failing].error = ZeroDivisionError("secret")
        if failing:
            with pytest.raises(WorkerFailed, match="2: it failed; the log has the reason"):
                await first.drain("m", None)


@pytest.mark.parametrize("using", [0, 1])
@in_loop
async def test_model_in_use_anywhere_stays_loaded_everywhere(workers, using):
    registries = [Models(), Models(), Models()]
    registries[using].error = ModelInUse("sessions on it: 1")
    with workers(*registries) as built:
        first = await served(*built)
        with pytest.raises(ModelInUse, match="sessions on it: 1"):
            await first.unload("m")
    assert not any(("unload", "m") in one.told for one in registries)


@in_loop
async def test_call_waits_for_a_worker_that_starts(workers):
    registries = [Models(), Models()]
    with workers(*registries) as (administrations, started):
        await started[0].serve(administrations[0])
        asked = asyncio.create_task(administrations[0].reload("m"))
        await asyncio.sleep(0.05)
        assert not asked.done()
        await started[1].serve(administrations[1])
        assert (await asked)[1] == 2


@in_loop
async def test_worker_without_an_answer_has_failed(workers, monkeypatch):
    monkeypatch.setattr(peers, "ANSWER_SECONDS", 0.05)
    with workers(Models(), Models()) as (administrations, started):
        await started[0].serve(administrations[0])
        with pytest.raises(WorkerFailed, match=r"2: no answer in 0\.05 s"):
            await administrations[0].reload("m")
        await started[1].serve(administrations[1])


@in_loop
async def test_dead_worker_is_forgotten(workers, tmp_path):
    with workers(Models(), Models(VersionNotFound("none"))) as built:
        first = await served(*built)
        built[1][1]._server.close()
        await built[1][1]._server.wait_closed()
        assert (await first.reload("m"))[1] == 1
        assert [path.name for path in tmp_path.iterdir()] == ["1.sock"]


@in_loop
async def test_worker_that_ends_while_asked_is_left_out(workers, tmp_path):
    async def hang_up(_, writer):
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "7.sock")
    with workers(Models()) as built:
        first = await served(*built)
        assert (await first.reload("m"))[1] == 1
    server.close()


@in_loop
async def test_id_of_a_killed_worker_may_come_again(workers, tmp_path, monkeypatch):
    for _ in range(2):
        with workers(Models(), Models()) as built:
            first = await served(*built)
            assert (await first.reload("m"))[1] == 2
            built[1][1]._server.close()  # it was killed
            monkeypatch.setattr(built[1][1], "close", (tmp_path / "2.new").touch)


@in_loop
async def test_folder_may_have_a_long_name(tmp_path):
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    peer = Peers(str(folder))
    await peer.serve(Administration(Models(), None))
    assert stat.S_ISSOCK(next(folder.iterdir()).stat().st_mode)
    assert await peer.ask(Call("reload", "m")) == {}
    peer.close()


@in_loop
async def test_lack_of_descriptors_is_said(workers, monkeypatch):
    async def none_free(_):
        raise OSError(24, "Too many open files")

    with workers(Models(), Models()) as built:
        await served(*built)
        monkeypatch.setattr(asyncio, "open_unix_connection", none_free)
        answers = await built[1][0].ask(Call("reload", "m"))
    assert answers == {2: Failure("", "it cannot be asked: Too many open files")}
