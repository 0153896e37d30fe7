"""Writes a model folder so that it appears whole or not at all: staged under a hidden name, verified, then renamed."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.numpy import save

from service.models.config import ModelConfig, first_error
from service.models.folder import CONFIG, VERSION, read_folder
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.models.weights import FILE
from service.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class StagedModel:
    """A complete model under `root`, a repository of its own, until `publish` moves it to `target`."""

    root: Path
    name: str
    version: str
    target: Path

    def publish(self) -> Path:
        """Move it in one rename; returns the version's folder. Raises CheckpointRefused if the name was taken."""
        source, target = self.root / self.name, self.target
        if target.exists():
            source, target = source / self.version, target / self.version
        try:
            source.rename(target)
        except OSError as error:
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
) -> Iterator[StagedModel]:
    """Write a new model, or a further version of one with the same config, under a hidden folder of root.

    version None is the next number. A model that was not published is deleted at the end. Raises CheckpointRefused, or
    ChoiceNeeded where name or version are taken.
    """
    created = not root.exists()
    if not created and not root.is_dir():
        raise CheckpointRefused(f"{root} is not a folder")
    try:
        root.mkdir(exist_ok=True)
        config, chosen = _placed(root, name, spec, version, description)
        with tempfile.TemporaryDirectory(prefix=".import-", dir=root, ignore_cleanup_errors=True) as staging:
            model = StagedModel(Path(staging), name, chosen, root / name)
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


def _placed(root: Path, name: str, spec: ModelSpec, version: str | None, description: str | None) -> tuple[bytes, str]:
    """The bytes of config.json, and the version's number."""
    try:
        wanted = ModelConfig.of_spec(spec, description or "")
    except ValidationError as error:
        raise CheckpointRefused(first_error(error)) from None
    if not os.path.lexists(root / name):
        return f"{wanted.model_dump_json(indent=2, exclude_defaults=True)}\n".encode(), version or "1"
    there = read_folder(root, name)
    way_out = f"choose another --name, or delete {root / name} first"
    if there.config is None:
        raise ChoiceNeeded(f"model {name!r} exists and is broken ({there.failure}); {way_out}")
    old = asdict(there.config.spec()) | {"description": there.config.description}
    new = asdict(wanted.spec()) | {"description": old["description"] if description is None else description}
    for field, value in old.items():
        if new[field] != value:
            raise ChoiceNeeded(
                f"model {name!r} exists with {field} {value!r:.80}, and this one has {new[field]!r:.80}; "
                f"versions of a model share one config.json: {way_out}"
            )
    taken = {path.name for path in (root / name).iterdir()}
    chosen = version or str(1 + max((int(entry) for entry in taken if VERSION.fullmatch(entry)), default=0))
    if chosen in taken:
        raise ChoiceNeeded(f"model {name!r} has a version {chosen} already; choose another --version or leave it out")
    return (root / name / CONFIG).read_bytes(), chosen


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
