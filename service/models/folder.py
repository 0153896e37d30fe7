"""The model repository: `<root>/<name>/config.json` and `<root>/<name>/<version>/model.safetensors`.

The weights of a model of one version may stand beside its config.json; and root itself may be a model's folder.

A folder that is not a model is listed with the reason, so that one broken model never keeps the others from serving.
No path is ever built from a request.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from service.errors import ModelFailed
from service.models.config import ModelConfig, first_error
from service.models.weights import FILE, InitialStates, plain_file, verify
from service.spec import ModelSpec

NAME = re.compile(r"(?!.*\.step\Z)[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = (
    "1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit, "
    "and no '.step' at the end, by which the Open Inference Protocol names a model's single steps"
)
VERSION = re.compile(r"0|[1-9][0-9]{0,17}")
CONFIG = "config.json"
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class VersionFolder:
    """One version on disk: its weights, what they are, why they cannot serve, and the initial states among them."""

    version: str
    weights: Path
    spec: ModelSpec
    failure: str | None
    states: InitialStates


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model on disk, versions in rising order; config is None, or versions are empty, where failure says why."""

    name: str
    config: ModelConfig | None
    versions: tuple[VersionFolder, ...]
    failure: str | None


def is_model(root: Path) -> bool:
    """Whether a folder is itself a model, not a repository of models."""
    return any((root / file).exists() for file in (CONFIG, FILE))


def is_folder(path: Path) -> bool:
    """Also where the system does not say: to read it tells why."""
    try:
        return path.is_dir()
    except OSError:
        return True


def scan(root: Path, model_name: str | None = None) -> dict[str, ModelFolder]:
    """Every model folder under root by name, configs and headers verified. Raises ModelFailed if root is no folder.

    A root that is itself a model is the only one; model_name is its name, or the folder's.
    """
    try:
        if is_model(root):
            folders = [_read(root, model_name or root.resolve().name)]
        else:
            names = sorted(path.name for path in root.iterdir() if is_folder(path) and not path.name.startswith("."))
            folders = [read_folder(root, name) for name in names]
    except OSError as error:
        raise ModelFailed(f"the model repository cannot be listed: {error.strerror}") from None
    return {folder.name: folder for folder in folders}


def read_folder(root: Path, name: str) -> ModelFolder:
    """One model's folder, with the failure in it; nothing is raised. name comes from `scan` or from an operator."""
    return _read(root / name, name)


def _read(folder: Path, name: str) -> ModelFolder:
    config, failure = None, None
    versions: tuple[VersionFolder, ...] = ()
    try:
        if not NAME.fullmatch(name):
            raise ModelFailed(f"the model's name is not what it must be: {NAME_RULE}")
        config = _read_config(folder / CONFIG)
        numbers = [path.name for path in folder.iterdir() if path.is_dir() and VERSION.fullmatch(path.name)]
        spec = config.spec()
        versions = tuple(_read_version(folder / one / FILE, one, config, spec) for one in sorted(numbers, key=int))
        if not versions and (folder / FILE).exists():
            versions = (_read_version(folder / FILE, "1", config, spec),)
        if not versions:
            raise ModelFailed(f"there is no version: expected a folder such as 1/ with {FILE}")
    except ModelFailed as error:
        failure = str(error)
    except OSError as error:
        failure = f"the folder cannot be read: {error.strerror}"
    text = os.fsencode(name).decode(errors="backslashreplace")  # names of files may be any bytes
    return ModelFolder(text, config, versions, failure)


def _read_config(path: Path) -> ModelConfig:
    with plain_file(path) as file:
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise ModelFailed(f"{CONFIG} is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        raise ModelFailed(f"{CONFIG}: {first_error(error)}") from None


def _read_version(path: Path, version: str, config: ModelConfig, spec: ModelSpec) -> VersionFolder:
    states, failure = InitialStates(), None
    try:
        spec, states = verify(path, config)
    except ModelFailed as error:
        failure = str(error)
    return VersionFolder(version, path, spec, failure, states)
