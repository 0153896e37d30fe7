"""Writes a model folder so that it appears whole or not at all: staged under a hidden name, verified, then renamed."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.numpy import save

from service.models.config import HeadConfig, ModelConfig
from service.models.folder import CONFIG, VERSION, read_folder
from service.models.importing.found import CheckpointRefused, ChoiceNeeded
from service.models.weights import FILE
from service.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A model that lies complete under `root`, a repository of its own, until `publish` moves it to its place."""

    root: Path
    name: str
    version: str
    target: Path

    def publish(self) -> Path:
        """Make it visible in one rename; gives the version's folder. Raises CheckpointRefused if another was faster."""
        new = not self.target.exists()
        source, target = self.root / self.name, self.target
        if not new:
            source, target = source / self.version, target / self.version
        try:
            source.rename(target)
        except OSError as error:
            raise CheckpointRefused(f"{target} cannot be written: {error.strerror}") from None
        return self.target / self.version


def config_of(spec: ModelSpec, description: str) -> ModelConfig:
    """The config.json of a spec. Raises CheckpointRefused where a size is over what the service takes."""
    head = None if spec.out_features is None else {"out_features": spec.out_features}
    given = {name: getattr(spec, name) for name in ModelConfig.model_fields if hasattr(spec, name)}
    try:
        return ModelConfig.model_validate(
            given | {"head": head and HeadConfig.model_validate(head), "description": description}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise CheckpointRefused(f"{place}: {first['msg']}") from None


@contextmanager
def staged(
    root: Path,
    name: str,
    spec: ModelSpec,
    arrays: Mapping[str, torch.Tensor],
    *,
    version: str | None,
    description: str | None,
) -> Iterator[StagedModel]:
    """Write a new model, or a further version of one with the same config, under a hidden folder of root.

    Weights are written as float32. version None is the next number. What was not published is gone at the end. Raises
    CheckpointRefused, or ChoiceNeeded where name or version are taken.
    """
    created = _ensure(root)
    staging = None
    try:
        config, chosen = _placed(root, name, spec, version, description)
        staging = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
        folder = staging / name / chosen
        folder.mkdir(parents=True)
        _write(staging / name / CONFIG, config)
        # save(), not save_file(): that one makes the file readable to its owner alone, and a service has its own user.
        _write(
            folder / FILE, save({key: array.to(torch.float32).contiguous().numpy() for key, array in arrays.items()})
        )
        yield StagedModel(staging, name, chosen, root / name)
    except OSError as error:
        raise CheckpointRefused(f"{root} cannot be written: {error.strerror}") from None
    finally:
        if staging:
            shutil.rmtree(staging, ignore_errors=True)
        if created:
            with suppress(OSError):  # not empty: the import succeeded
                root.rmdir()


def _placed(root: Path, name: str, spec: ModelSpec, version: str | None, description: str | None) -> tuple[bytes, str]:
    """The bytes of config.json, and the version's number."""
    if not os.path.lexists(root / name):
        text = config_of(spec, description or "").model_dump_json(indent=2, exclude_defaults=True)
        return f"{text}\n".encode(), version or "1"
    folder = read_folder(root, name)
    if folder.config is None:
        raise ChoiceNeeded(f"model {name!r} exists and is broken ({folder.failure}); choose another --name")
    wanted = config_of(spec, folder.config.description if description is None else description)
    _refuse_difference(name, folder.config, wanted)
    taken = {path.name for path in (root / name).iterdir()}
    chosen = version or str(1 + max((int(entry) for entry in taken if VERSION.fullmatch(entry)), default=0))
    if chosen in taken:
        raise ChoiceNeeded(f"model {name!r} has a version {chosen} already; choose another --version or leave it out")
    return (root / name / CONFIG).read_bytes(), chosen


def _refuse_difference(name: str, there: ModelConfig, wanted: ModelConfig) -> None:
    pairs = [
        (field.name, getattr(there.spec(), field.name), getattr(wanted.spec(), field.name))
        for field in fields(ModelSpec)
    ]
    pairs.append(("description", there.description, wanted.description))
    for field, old, new in pairs:
        if old != new:
            raise ChoiceNeeded(
                f"model {name!r} exists with {field} {old!r:.80}, and this one has {new!r:.80}; "
                "versions of a model share one config.json: choose another --name"
            )


def _ensure(root: Path) -> bool:
    """Whether the repository had to be made."""
    try:
        root.mkdir()
    except FileExistsError:
        if root.is_dir():
            return False
        raise CheckpointRefused(f"{root} is not a folder") from None
    except OSError as error:
        raise CheckpointRefused(f"{root} cannot be made: {error.strerror}") from None
    return True


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
