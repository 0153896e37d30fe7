"""Writes a model folder so that it appears whole or not at all: staged under a hidden name, verified, then renamed."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.numpy import save

from service.models.config import ModelConfig, first_error
from service.models.folder import CONFIG, VERSION, read_folder
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.models.layer_config import described
from service.models.weights import FILE
from service.spec import ChainLayer, ModelSpec


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A complete model under `root`, a repository of its own, until `publish` moves it to `target`.

    replaced is the folder, of a version or of the whole model, whose place it takes.
    """

    root: Path
    name: str
    version: str
    target: Path
    replaced: Path | None = None

    def publish(self) -> Path:
        """Move it in one rename; returns the version's folder. Raises CheckpointRefused if the name was taken."""
        source, target = self.root / self.name, self.target
        if target.exists() and self.replaced != target:
            source, target = source / self.version, target / self.version
        away = self.root / "replaced"
        try:
            if self.replaced:
                self.replaced.rename(away)
            source.rename(target)
        except OSError as error:
            if self.replaced and away.exists():
                away.rename(self.replaced)
            raise CheckpointRefused(f"{target} cannot be written: {error.strerror}") from None
        return self.target / self.version


@contextmanager
def staged(
    root: Path,
    name: str,
    spec: ModelSpec,
    arrays: Mapping[str, torch.Tensor],
    *,
    version: str | None,
    description: str | None,
    replace: bool = False,
) -> Iterator[StagedModel]:
    """Write a new model, or a further version of one with the same config, under a hidden folder of root.

    version None is the next number, or with replace the highest. A model that was not published is deleted at the end.
    Raises CheckpointRefused, or ChoiceNeeded where name or version are taken.
    """
    created = not root.exists()
    if not created and not root.is_dir():
        raise CheckpointRefused(f"{root} is not a folder")
    try:
        root.mkdir(exist_ok=True)
        config, chosen, replaced = _placed(root, name, spec, version, description, replace=replace)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=root, ignore_cleanup_errors=True) as staging:
            model = StagedModel(Path(staging), name, chosen, root / name, replaced)
            folder = model.root / name / chosen
            folder.mkdir(parents=True)
            _write(model.root / name / CONFIG, config)
            # Not save_file(), which makes the file readable to its owner alone: a service has its own user.
            _write(folder / FILE, save({key: array.float().contiguous().numpy() for key, array in arrays.items()}))
            yield model
    except OSError as error:
        raise CheckpointRefused(f"{root} cannot be written: {error.strerror}") from None
    finally:
        if created:
            with suppress(OSError):  # not empty: the import succeeded
                root.rmdir()


def _placed(
    root: Path, name: str, spec: ModelSpec, version: str | None, description: str | None, *, replace: bool
) -> tuple[bytes, str, Path | None]:
    """The bytes of config.json, the version's number, and the folder that it replaces."""
    try:
        wanted = ModelConfig.of_spec(spec, description or "")
    except ValidationError as error:
        raise CheckpointRefused(first_error(error)) from None
    if not os.path.lexists(root / name):
        return _bytes(wanted), version or "1", None
    there = read_folder(root, name)
    taken = sorted((path.name for path in (root / name).iterdir() if VERSION.fullmatch(path.name)), key=int)
    highest = int(taken[-1]) if taken else 0
    chosen = version or str(highest if replace and taken else highest + 1)
    if replace and taken in ([chosen], []):
        if there.config and description is None:
            wanted = wanted.model_copy(update={"description": there.config.description})
        return _bytes(wanted), chosen, root / name
    way_out = f"choose another --name, or remove it first: rnn-service remove {name}"
    if there.config is None:
        raise ChoiceNeeded(f"model {name!r} exists and is broken ({there.failure}); {way_out}")
    old = asdict(there.config.spec()) | {"description": there.config.description}
    new = asdict(wanted.spec()) | {"description": old["description"] if description is None else description}
    for field, value in old.items():
        if new[field] != value:
            said = value, new[field]
            if isinstance(value, tuple):  # of layers: the first that differs
                first, second = next(pair for pair in zip_longest(*said) if pair[0] != pair[1])
                said = first and described(ChainLayer(**first)), second and described(ChainLayer(**second))
            raise ChoiceNeeded(
                f"model {name!r} exists with {field} {said[0]!r:.200}, and this one has {said[1]!r:.200}; "
                f"versions of a model share one config.json: {'' if taken[1:] else '--replace it, '}{way_out}"
            )
    if chosen in taken and not replace:
        raise ChoiceNeeded(
            f"model {name!r} has a version {chosen} already; choose another --version, leave it out, or --replace it"
        )
    return (root / name / CONFIG).read_bytes(), chosen, root / name / chosen if chosen in taken else None


def _bytes(config: ModelConfig) -> bytes:
    return f"{config.model_dump_json(indent=2, exclude_defaults=True)}\n".encode()


def remove(root: Path, name: str, version: str | None) -> Path:
    """Delete a model, or one version of it; the last one goes with its model. Raises ChoiceNeeded if it is not there.

    It disappears in one rename: a service that reads the repository finds all of it or nothing.
    """
    folder = root / name
    versions = [path.name for path in folder.iterdir() if VERSION.fullmatch(path.name)] if folder.is_dir() else []
    if not folder.is_dir():
        raise ChoiceNeeded(f"there is no model {name!r} in {root}")
    if version is not None and version not in versions:
        raise ChoiceNeeded(f"model {name!r} has no version {version}; it has {', '.join(versions) or 'none'}")
    target = folder / version if version is not None and versions != [version] else folder
    try:
        with tempfile.TemporaryDirectory(prefix=".remove-", dir=root, ignore_cleanup_errors=True) as away:
            target.rename(Path(away) / "removed")
    except OSError as error:
        raise CheckpointRefused(f"{target} cannot be removed: {error.strerror}") from None
    return target


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
