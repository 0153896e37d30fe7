"""Which models there are, which are loaded, and which one a request means."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import structlog

from service.engine.interface import Engine
from service.engine.load import EngineFactory
from service.errors import FieldError, InvalidRequest, ModelFailed, ModelNotFound, VersionNotFound
from service.models.folder import NAME, ModelFolder, VersionFolder, read_folder, scan
from service.models.weights import read_weights
from service.serving.scheduler import Scheduler
from service.spec import ModelSpec

State = Literal["loaded", "available", "failed"]


@dataclass(eq=False, slots=True)
class ModelVersion:
    """One version of a model as requests see it: its spec from the start, its engine and its turns once loaded.

    fingerprint is a digest of the weights, known once they were loaded; a draining version opens no new sessions.
    """

    name: str
    version: str
    spec: ModelSpec
    folder: VersionFolder
    failure: str | None
    engine: Engine | None = None
    scheduler: Scheduler | None = None
    notes: list[str] = field(default_factory=list)
    fingerprint: bytes = b""
    draining: bool = False
    loading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def state(self) -> State:
        """Failed with a reason, loaded, or available: it will be loaded at first use."""
        return "failed" if self.failure else "loaded" if self.engine else "available"


@dataclass(eq=False, slots=True)
class Model:
    """A model folder and its versions, in rising order."""

    folder: ModelFolder
    versions: dict[str, ModelVersion]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def failure(self) -> str | None:
        """Why nothing of this model can serve."""
        return self.folder.failure

    def serving(self) -> ModelVersion | None:
        """The version of requests that name none: the highest that is sound, else the highest."""
        for version in reversed(self.versions.values()):
            if not version.failure:
                return version
        return next(reversed(self.versions.values()), None)


class Registry:
    """The models of one repository. Lookups touch no disk; weights are loaded off the event loop, once.

    cache_bytes bounds the loaded weights together; the least recently used are dropped, never the one just loaded.
    """

    def __init__(self, root: Path, factory: EngineFactory, *, default_model: str | None, cache_bytes: int) -> None:
        self._root = root
        self._factory = factory
        self._default_model = default_model
        self._cache_bytes = cache_bytes
        self._models: dict[str, Model] = {}
        self._loaded: OrderedDict[ModelVersion, None] = OrderedDict()
        # Replaced, and in use by sessions that were opened with them.
        self._retired: list[ModelVersion] = []
        self.sessions_on: Callable[[ModelVersion], int] = lambda _: 0
        """How many live sessions run on a version: such a version is not unloaded."""
        self.sessions_elsewhere = False
        """Whether other processes open sessions that this one steps: then that count is not the newest."""
        self._adopting = asyncio.Lock()
        self._log = structlog.get_logger()

    def scan(self) -> None:
        """Read the whole repository. Raises ModelFailed if there is none."""
        self._models = {name: self._model(folder) for name, folder in scan(self._root).items()}
        self._log.info("models_found", models=sorted(self._models), device=str(self._factory.device))

    def models(self) -> list[Model]:
        """Every model, sound or not, by name."""
        return [self._models[name] for name in sorted(self._models)]

    @property
    def loaded_bytes(self) -> int:
        """Memory that the loaded weights take."""
        versions = (*self._loaded, *self._retired)
        return sum(version.engine.nbytes for version in versions if version.engine)

    def model(self, name: str) -> Model:
        """A model by name. Raises ModelNotFound."""
        if found := self._models.get(name):
            return found
        near = get_close_matches(name[:64], self._models, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"GET /models lists the {len(self._models)} that there are"
        raise ModelNotFound(f"there is no model {name!r:.80}; {hint}")

    def resolve(self, name: str | None, version: str | None) -> ModelVersion:
        """The version that a request means; both may be left out.

        Raises ModelNotFound, VersionNotFound, ModelFailed, or InvalidRequest when the request must name a model.
        """
        model = self.model(name if name is not None else self._default_name())
        if model.failure:
            raise ModelFailed(f"model {model.name!r} cannot be served: {model.failure}")
        found = model.serving() if version is None else model.versions.get(version)
        if found is None:
            there = ", ".join(model.versions)
            raise VersionNotFound(f"model {model.name!r} has no version {version!r:.80}; it has {there}")
        if found.failure:
            raise ModelFailed(f"model {model.name!r} version {found.version} cannot be served: {found.failure}")
        return found

    def resolve_fields(self, fields: Mapping[str, Any]) -> ModelVersion:
        """`resolve` by a request's fields `model` and `version`, before they are validated. Raises as it does."""
        for name in ("model", "version"):
            if not isinstance(fields.get(name), str | None):
                raise InvalidRequest([FieldError((name,), f"{name} is no string; expected the name of one")])
        return self.resolve(fields.get("model"), fields.get("version"))

    def loaded(self, version: ModelVersion) -> Engine | None:
        """The engine of a version if it is there; it counts as used now."""
        if version in self._loaded:
            self._loaded.move_to_end(version)
        return version.engine

    async def engine(self, version: ModelVersion) -> Engine:
        """The engine of a version, loaded now if it is not. Raises ModelFailed, with the reason kept for /models."""
        if version.engine is None:
            async with version.loading:
                if version.engine is None:
                    await self._load(version)
        return self.loaded(version)  # type: ignore[return-value]  # _load has set it or raised

    async def pinned(self, name: str, version: str, fingerprint: bytes) -> ModelVersion | None:
        """The version with these very weights, as a session was opened with, or None if they are not there any more.

        Raises ModelFailed if that cannot be known, as the files cannot be read.
        """
        if found := self.pinned_loaded(name, version, fingerprint):
            return found
        model = self._models.get(name)
        current = model.versions.get(version) if model else None
        if current and not current.failure and (await self.engine(current)) and current.fingerprint == fingerprint:
            return current
        async with self._adopting:
            found = self.pinned_loaded(name, version, fingerprint)
            return found or await self._adopted(name, version, fingerprint)

    def pinned_loaded(self, name: str, version: str, fingerprint: bytes) -> ModelVersion | None:
        """The version with these very weights if they are loaded."""
        model = self._models.get(name)
        current = model.versions.get(version) if model else None
        kept = (current, *self._retired) if current else self._retired
        for one in kept:
            if one.fingerprint == fingerprint and one.engine and one.name == name and one.version == version:
                return one
        return None

    def drain(self, name: str, version: str | None) -> Model:
        """Let a version (the serving one, if none is named) open no new sessions, until its model is reloaded.

        Raises ModelNotFound, VersionNotFound, ModelFailed.
        """
        self.resolve(name, version).draining = True
        return self.model(name)

    def release(self) -> None:
        """Drop versions kept for sessions that no session uses any more, or that have come to serve after all."""
        for version in [version for version in self._retired if not self.sessions_on(version) or self._serves(version)]:
            self._retired.remove(version)
            version.engine = version.scheduler = None
            self._log.info("model_released", model=version.name, version=version.version)

    def retired(self, name: str) -> list[ModelVersion]:
        """Replaced versions of a model that sessions still use."""
        return [version for version in self._retired if version.name == name]

    async def reload(self, name: str) -> Model:
        """Read a model's folder again, or a new one. What was loaded is loaded anew before it replaces the old.

        Raises ModelNotFound (a folder that is gone leaves the registry), or ModelFailed (the old one serves on).
        """
        old = self._models.get(name)
        if not NAME.fullmatch(name):
            raise ModelNotFound(f"there is no model {name!r:.80}")
        folder = await asyncio.to_thread(self._read, name)
        if folder is None:
            if old:
                self._forget(self._models.pop(name))
            raise ModelNotFound(f"there is no model {name!r} in the repository")
        new = self._model(folder)
        serving = new.serving()
        if new.failure or serving is None or serving.failure:
            if old is None:
                self._models[name] = new
            reason = new.failure or (serving.failure if serving else None)
            raise ModelFailed(f"model {name!r} was not reloaded: {reason}")
        if old and serving and any(version.engine for version in old.versions.values()):
            await self.engine(serving)
        old = self._models.get(name)  # another reload may have come in between
        self._models[name] = new
        self._loaded |= {version: None for version in new.versions.values() if version.engine}
        if old:
            self._forget(old)
        return new

    def unload(self, name: str) -> Model:
        """Drop a model's engines, but for versions that sessions use; the next request loads it again.

        Raises ModelNotFound.
        """
        model = self.model(name)
        for version in model.versions.values():
            if not self.sessions_on(version):
                self._drop(version)
        return model

    async def _load(self, version: ModelVersion) -> None:
        try:
            weights = await asyncio.to_thread(read_weights, version.folder.weights, version.spec)
            version.engine = await asyncio.to_thread(self._factory.load, version.spec, weights.arrays)
        except (ModelFailed, RuntimeError, MemoryError, OSError) as error:
            self._log.error("model_failed", model=version.name, version=version.version, reason=str(error))
            # An engine's own words are for the log: they may name what is none of a client's business.
            version.failure = str(error) if isinstance(error, ModelFailed) else "its engine could not be made"
            raise ModelFailed(f"model {version.name!r} cannot be served: {version.failure}") from None
        version.notes, version.fingerprint = weights.notes, weights.fingerprint
        if not self._holds(version):
            return  # replaced meanwhile: it lives as long as whoever waits for it
        self._loaded[version] = None
        self._log.info("model_loaded", model=version.name, version=version.version, bytes=version.engine.nbytes)
        for old in [old for old in self._loaded if old is not version]:
            if self.loaded_bytes <= self._cache_bytes:
                break
            if not self.sessions_on(old):
                self._drop(old)
                self._log.info("model_evicted", model=old.name, version=old.version)

    def _forget(self, model: Model) -> None:
        """Let go of a model that was replaced; what sessions use stays until they end."""
        for version in model.versions.values():
            if version.engine and (self.sessions_elsewhere or self.sessions_on(version)):
                self._loaded.pop(version, None)
                self._retired.append(version)
            else:
                self._drop(version)

    async def _adopted(self, name: str, version: str, fingerprint: bytes) -> ModelVersion | None:
        """The weights as they are in the repository now, for sessions alone: another process has reloaded the model."""
        folder = await asyncio.to_thread(self._read, name)
        found = self._model(folder).versions.get(version) if folder else None
        if found is None:
            return None
        if found.failure:
            raise ModelFailed(f"model {name!r} version {version} cannot be served: {found.failure}")
        await self._load(found)
        if found.fingerprint != fingerprint:
            return None
        self._retired.append(found)
        return found

    def _serves(self, version: ModelVersion) -> bool:
        model = self._models.get(version.name)
        current = model.versions.get(version.version) if model else None
        return current is not None and current.engine is not None and current.fingerprint == version.fingerprint

    def _drop(self, version: ModelVersion) -> None:
        self._loaded.pop(version, None)
        version.engine = version.scheduler = None

    def _holds(self, version: ModelVersion) -> bool:
        model = self._models.get(version.name)
        return model is not None and model.versions.get(version.version) is version

    def _read(self, name: str) -> ModelFolder | None:
        return read_folder(self._root, name) if (self._root / name).is_dir() else None

    def _model(self, folder: ModelFolder) -> Model:
        if folder.failure:
            self._log.warning("model_failed", model=folder.name, reason=folder.failure)
        if folder.config is None:
            return Model(folder, {})
        spec = folder.config.spec()
        versions = {}
        for entry in folder.versions:
            versions[entry.version] = ModelVersion(folder.name, entry.version, spec, entry, entry.failure)
            if entry.failure:
                self._log.warning("model_failed", model=folder.name, version=entry.version, reason=entry.failure)
        return Model(folder, versions)

    def _default_name(self) -> str:
        if self._default_model is not None:
            return self._default_model
        if len(self._models) == 1:
            return next(iter(self._models))
        message = f"the request must name a model: there are {len(self._models)} and no default (RNN_DEFAULT_MODEL)"
        raise InvalidRequest([FieldError(("model",), message)])
