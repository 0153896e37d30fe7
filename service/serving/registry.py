"""Which models there are, which are loaded, and which one a request means."""

import asyncio
import os
from bisect import bisect
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import structlog

from service.engine.interface import Engine
from service.engine.load import EngineFactory
from service.errors import InvalidRequest, ModelFailed, ModelInUse, ModelNotFound, VersionNotFound
from service.models.config import ModelConfig
from service.models.folder import NAME, ModelFolder, is_folder, is_model, read_folder, scan
from service.models.weights import InitialStates, read_weights
from service.repeats import OnceAMinute
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

State = Literal["loaded", "available", "failed"]


@dataclass(eq=False, slots=True)
class ModelVersion:
    name: str
    version: str
    spec: ModelSpec
    weights: Path
    failure: str | None
    states: InitialStates = field(default_factory=InitialStates)  # what requests that bring none begin from
    engine: Engine | None = None
    scheduler: Scheduler | None = None
    notes: list[str] = field(default_factory=list)
    fingerprint: bytes = b""  # digest of the weights, known once they were loaded
    draining: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    not_loaded: OnceAMinute = field(default_factory=OnceAMinute)

    @property
    def state(self) -> State:
        return "failed" if self.failure else "loaded" if self.engine else "available"

    @property
    def in_doubt(self) -> bool:
        """Whether the last try to load it failed, for a reason that may have passed."""
        return self.not_loaded.logged_at is not None and not self.failure

    def refusal(self, reason: str | None) -> ModelFailed:
        return ModelFailed(f"model {self.name!r} version {self.version} cannot be served: {reason}")


@dataclass(eq=False, slots=True)
class Model:
    """The versions of a model in rising order; config is None, or versions are empty, where failure says why."""

    name: str
    config: ModelConfig | None
    failure: str | None
    versions: dict[str, ModelVersion]

    def serving(self) -> ModelVersion | None:
        """The version of requests that name none: the highest that is sound, else the highest."""
        versions = list(reversed(self.versions.values()))
        return next((one for one in versions if not one.failure), versions[0] if versions else None)


@dataclass(eq=False)
class Registry:
    """The models of one repository.

    cache_bytes bounds the loaded weights: the least recently used are dropped. name is that of a root that is a model.
    """

    root: Path
    factory: EngineFactory
    default_model: str | None
    cache_bytes: int
    name: str = ""

    def __post_init__(self) -> None:
        self._models: dict[str, Model] = {}
        self._loaded: OrderedDict[ModelVersion, None] = OrderedDict()
        self._retired: list[ModelVersion] = []  # replaced while sessions run on them
        # How many live sessions run on a version, which is then not unloaded; out of date if other processes have some.
        self.sessions_on: Callable[[ModelVersion], int] = lambda _: 0
        self.sessions_elsewhere = False
        self._adopting = asyncio.Lock()
        self._log = structlog.get_logger()

    def scan(self) -> None:
        """Read the whole repository. Raises ModelFailed if there is none."""
        self._models = {name: self._model(folder) for name, folder in self._scan().items()}
        self._log.info("models_found", models=sorted(self._models), device=str(self.factory.device))

    def models(self) -> list[Model]:
        return [self._models[name] for name in sorted(self._models)]

    @property
    def loaded_bytes(self) -> int:
        return sum(version.engine.nbytes for version in (*self._loaded, *self._retired) if version.engine)

    def model(self, name: str) -> Model:
        """Raises ModelNotFound."""
        if found := self._models.get(name):
            return found
        # A comparison takes some 20 µs, and a repository may hold thousands of names.
        names = sorted(self._models)
        place = bisect(names, name)
        near = get_close_matches(name[:64], names[max(0, place - 50) : place + 50], 1)
        hint = f"did you mean {near[0]!r}?" if near else f"GET /models lists the {len(self._models)} that there are"
        raise ModelNotFound(f"there is no model {name!r:.80}; {hint}")

    def resolve(self, name: str | None, version: str | None) -> ModelVersion:
        """The version that a request means. Raises ModelNotFound, VersionNotFound, ModelFailed, InvalidRequest."""
        name = self.default_model if name is None else name
        if name is None and len(self._models) == 1:
            [name] = self._models
        if name is None:
            there = f"there are {len(self._models)} and no default (RNN_DEFAULT_MODEL)"
            raise InvalidRequest.at(f"the request must name a model: {there}", "model")
        model = self.model(name)
        if model.failure:
            raise ModelFailed(f"model {name!r} cannot be served: {model.failure}")
        found = model.serving() if version is None else model.versions.get(version)
        if found is None:
            raise VersionNotFound(f"model {name!r} has no version {version!r:.80}; it has {', '.join(model.versions)}")
        if found.failure:
            raise found.refusal(found.failure)
        return found

    def resolve_fields(self, fields: Mapping[str, Any]) -> ModelVersion:
        """`resolve` by a request's fields `model` and `version`, before they are validated. Raises as it does."""
        for name in ("model", "version"):
            if not isinstance(fields.get(name), str | None):
                raise InvalidRequest.at(f"{name} must be a string", name)
        return self.resolve(fields.get("model"), fields.get("version"))

    def loaded(self, version: ModelVersion) -> Engine | None:
        """The engine of a version if it is loaded; it counts as used now."""
        if version in self._loaded:
            self._loaded.move_to_end(version)
        return version.engine

    async def engine(self, version: ModelVersion) -> Engine:
        """The engine of a version, loaded now if it is not. Raises ModelFailed; faults of the files are kept."""
        if version.engine is None:
            async with version.loading:
                if version.engine is None:
                    await self._load(version)
        return self.loaded(version)  # type: ignore[return-value]  # _load has set it or raised

    async def pinned(self, name: str, version: str, fingerprint: bytes) -> ModelVersion | None:
        """The version with a session's weights; None if its files hold others. Raises ModelFailed if it cannot say."""
        if found := self.pinned_loaded(name, version, fingerprint):
            return found
        current = self._current(name, version)
        if current and not current.failure and (await self.engine(current)) and current.fingerprint == fingerprint:
            return current
        async with self._adopting:
            if found := self.pinned_loaded(name, version, fingerprint):
                return found
            # For sessions alone: another process has reloaded the model, and this one has not.
            folder = await asyncio.to_thread(self._read, name)
            model = self._model(folder or ModelFolder(name, None, (), "its folder is missing"))
            if version not in model.versions:
                reason = model.failure or "it has no such version"
                raise ModelFailed(f"version {version} of model {name!r} cannot be served: {reason}")
            found = model.versions[version]
            await self._load(found)
            if found.fingerprint != fingerprint:
                return None
            self._retired.append(found)
            return found

    def pinned_loaded(self, name: str, version: str, fingerprint: bytes) -> ModelVersion | None:
        """As `pinned`, if the weights are loaded."""
        for one in (self._current(name, version), *self._retired):
            if one and one.fingerprint == fingerprint and one.engine and one.name == name and one.version == version:
                return one
        return None

    def drain(self, name: str, version: str | None) -> Model:
        """Let a version open no new sessions until its model is reloaded. Raises as `resolve` does."""
        self.resolve(name, version).draining = True
        return self.model(name)

    def release(self) -> None:
        """Drop replaced versions that no session uses any more, or whose weights serve again."""
        for version in list(self._retired):
            current = self._current(version.name, version.version)
            serves = current and current.engine and current.fingerprint == version.fingerprint
            if serves or not self.sessions_on(version):
                self._retired.remove(version)
                self._log.info("model_released", model=version.name, version=version.version)

    def retired(self, name: str) -> list[ModelVersion]:
        return [version for version in self._retired if version.name == name]

    async def reload(self, name: str) -> Model:
        """Read a model's folder again, or a new one; a loaded model is replaced when the new weights are loaded.

        Raises ModelNotFound (a folder that is gone leaves the registry), ModelFailed (the old one goes on serving).
        """
        if not NAME.fullmatch(name):
            raise ModelNotFound(f"there is no model {name!r:.80}")
        folder = await asyncio.to_thread(self._read, name)
        if folder is None:
            if gone := self._models.pop(name, None):
                self._retire(gone)
            raise ModelNotFound(f"there is no model {name!r} in the repository")
        new = self._model(folder)
        serving = new.serving()
        if serving is None or serving.failure:
            there = self._models.setdefault(name, new).serving()
            if there is None or there.failure:
                self._models[name] = new  # which says what is wrong now
            raise ModelFailed(f"model {name!r} was not reloaded: {serving.failure if serving else new.failure}")
        if (old := self._models.get(name)) and any(version.engine for version in old.versions.values()):
            await self.engine(serving)
            self._loaded[serving] = None
        old, self._models[name] = self._models.get(name), new  # another reload may have come in between
        if old:
            self._retire(old)
        return new

    async def reload_all(self) -> None:
        """Reload every model, also those that are new or gone; failures are in the log."""
        try:
            names = self._models.keys() | await asyncio.to_thread(self._scan)
        except ModelFailed as error:
            self._log.error("models_not_reloaded", reason=str(error))
            return
        not_reloaded = {}
        for name in sorted(names):
            try:
                await self.reload(name)
            except (ModelFailed, ModelNotFound) as error:
                not_reloaded[name] = str(error)
        self._log.info("models_reloaded", models=sorted(self._models), not_reloaded=not_reloaded, process=os.getpid())

    def check_unused(self, name: str) -> Model:
        """Raise ModelInUse if sessions run on a model; ModelNotFound."""
        model = self.model(name)
        for version in model.versions.values():
            if sessions := self.sessions_on(version):
                raise ModelInUse(f"version {version.version} of model {name!r} is in use: sessions on it: {sessions}")
        return model

    def unload(self, name: str) -> Model:
        """Drop a model's engines. Raises as `check_unused` does."""
        model = self.check_unused(name)
        for version in model.versions.values():
            self._drop(version)
        return model

    async def _load(self, version: ModelVersion) -> None:
        if version.failure:
            raise version.refusal(version.failure)
        try:
            weights = await asyncio.to_thread(read_weights, version.weights, version.spec)
            version.engine = await asyncio.to_thread(self.factory.load, version.spec, weights.arrays)
        except (ModelFailed, RuntimeError, MemoryError, OSError) as error:
            if version.not_loaded.is_due():
                self._log.error("model_failed", model=version.name, version=version.version, reason=str(error))
            # An engine's own message is for the log: it may name what is none of a client's business.
            reason = str(error) if isinstance(error, ModelFailed) else "its engine could not be made"
            # What only this process lacked, such as memory or file descriptors, may be there next time.
            if isinstance(error, ModelFailed) and error.__cause__ is None:
                version.failure = reason
            raise version.refusal(reason) from None
        version.notes, version.fingerprint = weights.notes, weights.fingerprint
        version.not_loaded.logged_at = None
        if self._current(version.name, version.version) is not version:
            return  # replaced meanwhile: it lives as long as the requests that wait for it
        self._loaded[version] = None
        self._log.info("model_loaded", model=version.name, version=version.version, bytes=version.engine.nbytes)
        for old in [old for old in self._loaded if old is not version]:
            if self.loaded_bytes > self.cache_bytes and not self.sessions_on(old):
                self._drop(old)
                self._log.info("model_evicted", model=old.name, version=old.version)

    def _retire(self, model: Model) -> None:
        """Drop a model that was replaced; versions that sessions use stay until these end."""
        for version in model.versions.values():
            # Its engine stays with the requests that are under way: the files may hold something else by now.
            self._loaded.pop(version, None)
            is_used = version.engine and (self.sessions_elsewhere or self.sessions_on(version))
            if is_used and not self.pinned_loaded(version.name, version.version, version.fingerprint):
                self._retired.append(version)

    def _drop(self, version: ModelVersion) -> None:
        self._loaded.pop(version, None)
        version.engine = version.scheduler = None

    def _current(self, name: str, version: str) -> ModelVersion | None:
        return model.versions.get(version) if (model := self._models.get(name)) else None

    def _scan(self) -> dict[str, ModelFolder]:
        return scan(self.root, self.name)

    def _read(self, name: str) -> ModelFolder | None:
        if is_model(self.root):
            return self._scan().get(name)
        return read_folder(self.root, name) if is_folder(self.root / name) else None

    def _model(self, folder: ModelFolder) -> Model:
        if folder.failure:
            self._log.warning("model_failed", model=folder.name, reason=folder.failure)
        versions = {}
        for entry in folder.versions:
            version = ModelVersion(folder.name, entry.version, entry.spec, entry.weights, entry.failure, entry.states)
            versions[entry.version] = version
            if entry.failure:
                self._log.warning("model_failed", model=folder.name, version=entry.version, reason=entry.failure)
        return Model(folder.name, folder.config, folder.failure, versions)
