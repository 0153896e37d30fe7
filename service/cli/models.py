"""`rnn-service models`."""

from rich.table import Table
from rich.text import Text

from service.cli.options import read_settings, setting
from service.cli.output import FAILED, console, fail
from service.errors import ModelFailed
from service.models.config import ModelConfig
from service.models.importing.refusal import terminal_text


def list_models(models: setting("models") = None) -> None:  # type: ignore[valid-type]  # made from Settings
    """List the models of a repository: what they are, and whether they can be served."""
    from service.models.folder import VersionFolder, scan  # noqa: PLC0415  # torch takes seconds to import

    root = read_settings({"models": models}).models
    try:
        found = scan(root)
    except ModelFailed as error:
        fail(f"{root}: {error}", FAILED)
    table = Table("model", "version", "kind", "sizes", "layers", "directions", "head", "dtype", "state")
    for folder in found.values():
        about = _about(folder.config)
        for entry in folder.versions or [VersionFolder("–", root, folder.failure)]:
            state = f"failed: {entry.failure}" if entry.failure else "available"
            style = "red" if entry.failure else "green"
            table.add_row(terminal_text(folder.name), entry.version, *about, Text(terminal_text(state, 300), style))
            about = [""] * len(about)
    console().print(table if found else Text(f"no models in {root}"))


def _about(config: ModelConfig | None) -> list[str]:
    """A model's columns between version and state."""
    if config is None:
        return [""] * 6
    spec = config.spec()
    kind = f"rnn {spec.nonlinearity}" if spec.kind == "rnn" else spec.kind
    width = f"{spec.hidden_size} → {spec.proj_size}" if spec.proj_size else str(spec.hidden_size)
    head = "–" if spec.out_features is None else str(spec.out_features)
    return [kind, f"{spec.input_size} → {width}", str(spec.num_layers), str(spec.directions), head, spec.weights_dtype]
