"""The model repository: `<root>/<name>/config.json` and `<root>/<name>/<version>/model.safetensors`.

A folder that is not a model is an entry with its reason, so that one broken model never keeps the others from serving.
Names and versions of requests are looked up in what was listed here; no path is ever built from a request.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.errors import ModelFailed
from service.models.config import ModelConfig
from service.models.weights import FILE, verify_header

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
VERSION = re.compile(r"0|[1-9][0-9]{0,17}")
CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version on disk: where its weights are, or why they cannot serve."""

    version: str
    weights: Path
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model on disk, its versions in rising order; `config` is None where `failure` says why."""

    name: str
    config: ModelConfig | None
    versions: tuple[VersionFolder, ...] = ()
    failure: str | None = None


def scan(root: Path) -> dict[str, ModelFolder]:
    """Every model folder under root by name, configs and headers verified. Raises ModelFailed if root is no folder."""
    try:
        names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise ModelFailed(f"the model repository cannot be listed: {error.strerror}") from None
    return {name: read_folder(root, name) for name in names}


def read_folder(root: Path, name: str) -> ModelFolder:
    """One model's folder; problems are in the entry, not raised. name is one that `scan` or an operator gave."""
    if not NAME.fullmatch(name):
        return ModelFolder(name, None, failure=f"the folder's name does not match {NAME.pattern}")
    try:
        config = _read_config(root / name / CONFIG)
        numbers = sorted(
            (path.name for path in (root / name).iterdir() if path.is_dir() and VERSION.fullmatch(path.name)), key=int
        )
    except ModelFailed as error:
        return ModelFolder(name, None, failure=str(error))
    except OSError as error:
        return ModelFolder(name, None, failure=f"the folder cannot be read: {error.strerror}")
    if not numbers:
        return ModelFolder(name, config, failure=f"there is no version: expected a folder such as 1/ with {FILE}")
    return ModelFolder(name, config, tuple(_read_version(root / name / number, config) for number in numbers))


def _read_config(path: Path) -> ModelConfig:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ModelFailed(f"{CONFIG} is larger than {MAX_CONFIG_BYTES} bytes")
        return ModelConfig.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ModelFailed(f"{CONFIG} is missing") from None
    except OSError as error:
        raise ModelFailed(f"{CONFIG} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ModelFailed(f"{CONFIG}: {place + ': ' if place else ''}{first['msg']}") from None


def _read_version(folder: Path, config: ModelConfig) -> VersionFolder:
    weights = folder / FILE
    try:
        verify_header(weights, config.spec())
    except ModelFailed as error:
        return VersionFolder(folder.name, weights, failure=str(error))
    return VersionFolder(folder.name, weights)
