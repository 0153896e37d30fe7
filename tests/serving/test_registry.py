"""Which models there are, which one a request means, and what is loaded."""

import asyncio
import shutil
import weakref
from difflib import get_close_matches

import numpy as np
import pytest
import torch

from service.api.administration import Administration
from service.engine.interface import Engine
from service.engine.load import EngineFactory
from service.errors import InvalidRequest, ModelFailed, ModelNotFound, VersionNotFound
from service.serving.registry import Registry

CONFIG = {"kind": "rnn", "input_size": 4, "hidden_size": 3}
BYTES = 4 * (3 * 4 + 3 * 3 + 3 + 3)


class CountingFactory(EngineFactory):
    """The real factory, counting."""

    loads = 0

    def load(self, spec, weights) -> Engine:
        type(self).loads += 1
        return super().load(spec, weights)


@pytest.fixture
def registry_of(tmp_path):
    def build(default_model=None, cache_bytes=2**30):
        CountingFactory.loads = 0
        factory = CountingFactory(torch.device("cpu"), 1, "torch")
        registry = Registry(tmp_path, factory, default_model=default_model, cache_bytes=cache_bytes)
        registry.scan()
        return registry

    return build


def load(registry, name, version=None):
    return asyncio.run(registry.engine(registry.resolve(name, version)))


def test_only_or_default_model_needs_no_name(write_model, registry_of):
    write_model("a", CONFIG)
    assert registry_of().resolve(None, None).name == "a"
    write_model("b", CONFIG)
    with pytest.raises(InvalidRequest, match="there are 2 and no default"):
        registry_of().resolve(None, None)
    assert registry_of(default_model="b").resolve(None, None).name == "b"


def test_highest_sound_version_serves(write_model, registry_of, tmp_path):
    for version in ("2", "10", "11"):
        write_model("m", CONFIG, version)
    (tmp_path / "m/11/model.safetensors").write_bytes(b"broken")
    registry = registry_of()
    assert registry.resolve("m", None).version == "10"
    assert registry.resolve("m", "2").version == "2"
    with pytest.raises(ModelFailed, match=r"version 11 cannot be served: model\.safetensors is not"):
        registry.resolve("m", "11")


@pytest.mark.parametrize("name", ["../m", "./m", "m/1", "..", "m\x00", "m\n", "m\u200b", "", "M", "ⅿ", "m" * 1000])
def test_other_names_are_unknown(write_model, registry_of, name):
    write_model("m", CONFIG)
    with pytest.raises(ModelNotFound):
        registry_of().resolve(name, None)


@pytest.mark.parametrize("version", ["2", "01", "1.0", "-1", "1\x00", "١", "latest", "../1", ""])
def test_other_versions_are_unknown(write_model, registry_of, version):
    write_model("m", CONFIG)
    with pytest.raises(VersionNotFound, match="it has 1"):
        registry_of().resolve("m", version)


@pytest.mark.parametrize("field", ["model", "version"])
def test_fields_that_are_no_strings(write_model, registry_of, field):
    write_model("m", CONFIG)
    registry = registry_of()
    assert registry.resolve_fields({"model": "m", "version": "1"}) is registry.resolve_fields({})
    with pytest.raises(InvalidRequest) as refusal:
        registry.resolve_fields({field: 1})
    assert refusal.value.errors[0].loc == (field,)


@pytest.mark.parametrize("others", [0, 10_000])
def test_misspelt_name_gets_a_hint(write_model, registry_of, monkeypatch, others):
    write_model("sunspots", CONFIG)
    registry = registry_of()
    registry._models |= {f"model-{number}": registry.model("sunspots") for number in range(others)}
    compared = []
    monkeypatch.setattr(
        "service.serving.registry.get_close_matches",
        lambda name, names, count: compared.extend(names) or get_close_matches(name, names, count),
    )
    with pytest.raises(ModelNotFound, match="did you mean 'sunspots'"):
        registry.resolve("sunspot", None)
    assert len(compared) <= 100


def test_requests_at_once_load_once(write_model, registry_of):
    write_model("m", CONFIG)
    registry = registry_of()

    async def run():
        return await asyncio.gather(*(registry.engine(registry.resolve("m", None)) for _ in range(20)))

    assert len(set(map(id, asyncio.run(run())))) == 1
    assert CountingFactory.loads == 1


def test_least_recently_used_goes_first(write_model, registry_of):
    for name in "abc":
        write_model(name, CONFIG)
    registry = registry_of(cache_bytes=2 * BYTES)
    for name in "abac":  # b was used longest ago when c comes
        load(registry, name)
    states = {model.name: model.serving().state for model in registry.models()}
    assert states == {"a": "loaded", "b": "available", "c": "loaded"}
    assert registry.loaded_bytes == 2 * BYTES


def test_model_larger_than_the_cache_serves(write_model, registry_of):
    write_model("m", CONFIG)
    registry = registry_of(cache_bytes=1)
    load(registry, "m")
    assert registry.resolve("m", None).state == "loaded"


def test_failure_to_load_is_kept(write_model, registry_of):
    arrays = write_model("m", CONFIG)
    arrays["bias_ih_l0"][0] = np.nan
    write_model("m", CONFIG, arrays=arrays)
    registry = registry_of()
    version = registry.resolve("m", None)
    for _ in range(2):
        with pytest.raises(ModelFailed, match="version 1 cannot be served: bias_ih_l0 holds NaN"):
            asyncio.run(registry.engine(version))
    assert registry.model("m").versions["1"].state == "failed"


def test_reload_replaces_the_loaded_version(write_model, registry_of, tmp_path):
    write_model("m", CONFIG)
    registry = registry_of()
    engine = weakref.ref(load(registry, "m"))
    old = registry.resolve("m", None)  # by a request that is under way
    write_model("m", CONFIG, "2")
    shutil.rmtree(tmp_path / "m/1")
    asyncio.run(registry.reload("m"))
    new = registry.resolve("m", None)
    assert (new.version, new.state) == ("2", "loaded")
    assert registry.loaded(old) is engine()
    del old
    assert engine() is None
    assert registry.loaded_bytes == BYTES
    write_model("m", CONFIG)
    (tmp_path / "m/2").rename(tmp_path / ".gone")
    asyncio.run(registry.reload("m"))
    assert registry.resolve("m", None).version == "1"


def test_broken_reload_keeps_the_old_model(write_model, registry_of, tmp_path):
    write_model("m", CONFIG)
    registry = registry_of()
    engine = load(registry, "m")
    (tmp_path / "m/config.json").write_text("{}")
    with pytest.raises(ModelFailed, match="was not reloaded"):
        asyncio.run(registry.reload("m"))
    assert load(registry, "m") is engine


def test_broken_model_has_the_reason_of_today(write_model, registry_of, tmp_path):
    write_model("m", CONFIG)
    config = tmp_path / "m/config.json"
    config.write_text("{}")
    registry = registry_of()
    for text, reason in (("[]", "should be an object"), ('{"kind": "cnn"}', "kind: Input should be")):
        config.write_text(text)
        with pytest.raises(ModelFailed, match=reason):
            asyncio.run(registry.reload("m"))
        assert reason in registry.model("m").failure


def test_engine_that_cannot_be_made_is_tried_again(write_model, registry_of, monkeypatch):
    write_model("m", CONFIG)
    registry = registry_of()
    with monkeypatch.context() as patch:
        patch.setattr(EngineFactory, "load", lambda *_: bytes(2**62))
        with pytest.raises(ModelFailed, match="its engine could not be made"):
            load(registry, "m")
    assert registry.resolve("m", None).state == "available"
    load(registry, "m")


def test_reload_adds_and_removes_models(write_model, registry_of, tmp_path):
    write_model("old", CONFIG)
    registry = registry_of()
    write_model("new", CONFIG)
    asyncio.run(registry.reload("new"))
    assert registry.resolve("new", None).state == "available"
    (tmp_path / "old").rename(tmp_path / ".gone")
    with pytest.raises(ModelNotFound):
        asyncio.run(registry.reload("old"))
    with pytest.raises(ModelNotFound):
        registry.resolve("old", None)


def test_sessions_keep_their_weights(write_model, registry_of):
    write_model("m", CONFIG)
    registry = registry_of()
    load(registry, "m")
    old = registry.resolve("m", None)
    pin = (old.name, old.version, old.fingerprint)
    registry.sessions_on = lambda version: int(version is old)
    write_model("m", CONFIG, arrays=write_model("other", CONFIG, "2"))
    asyncio.run(registry.reload("m"))
    assert registry.resolve("m", None).fingerprint != old.fingerprint
    assert registry.pinned_loaded(*pin) is old
    assert registry.retired("m") == [old]
    registry.sessions_on = lambda version: 0
    registry.release()
    assert registry.retired("m") == []
    assert asyncio.run(registry.pinned(*pin)) is None


def test_reloads_at_once_hold_the_weights_twice(write_model, registry_of, monkeypatch):
    """Sessions of other processes may use the weights that are replaced; these are the same."""
    write_model("m", CONFIG)
    registry = registry_of()
    registry.sessions_elsewhere = True
    administration = Administration(registry, None)
    engines = weakref.WeakSet([load(registry, "m")])
    most = 0

    def counted(self, spec, weights):
        nonlocal most
        engine = EngineFactory.load(self, spec, weights)
        engines.add(engine)
        most = max(most, len(engines))
        return engine

    async def reload():
        await administration.here("reload", "m")  # and let go of what it gives

    async def reload_at_once():
        await asyncio.gather(*(reload() for _ in range(20)))

    monkeypatch.setattr(CountingFactory, "load", counted)
    asyncio.run(reload_at_once())
    assert most <= 3
    assert registry.retired("m") == []


@pytest.mark.parametrize("name", ["../x", "", "a/b", "nothing"])
def test_reload_reads_the_repository_alone(write_model, registry_of, name):
    write_model("m", CONFIG)
    with pytest.raises(ModelNotFound):
        asyncio.run(registry_of().reload(name))


def test_next_use_after_unload_loads_again(write_model, registry_of):
    write_model("m", CONFIG)
    registry = registry_of()
    load(registry, "m")
    registry.unload("m")
    assert registry.loaded_bytes == 0
    load(registry, "m")
    assert CountingFactory.loads == 2
