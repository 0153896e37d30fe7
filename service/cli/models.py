"""`rnn-service models`."""

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from service.cli.options import read_settings, setting
from service.cli.output import FAILED, console, fail
from service.errors import ModelFailed
from service.models.printable import printable


def list_models(models: setting("models") = None) -> None:  # type: ignore[valid-type]  # made from Settings
    """List the models of a repository: what they are, and whether they can be served."""
    from service.models.folder import ModelFolder, scan  # noqa: PLC0415  # torch takes seconds to import

    root = read_settings({"models": models}).models
    try:
        found = scan(root)
    except ModelFailed as error:
        fail(f"{root}: {error}", FAILED)

    def rows(folder: ModelFolder) -> Iterator[list[str]]:
        about = [""] * 6
        if folder.config:
            spec = folder.config.spec()
            width = f"{spec.hidden_size} → {spec.proj_size}" if spec.proj_size else str(spec.hidden_size)
            kind = f"rnn {spec.nonlinearity}" if spec.kind == "rnn" else spec.kind
            head = "–" if spec.out_features is None else str(spec.out_features)
            sizes = [f"{spec.input_size} → {width}", str(spec.num_layers), str(spec.directions)]
            about = [kind, *sizes, head, spec.weights_dtype]
        if folder.failure:
            yield [folder.name, "–", *about, f"failed: {folder.failure}"]
        for number, version in enumerate(folder.versions):
            state = f"failed: {version.failure}" if version.failure else "available"
            yield [folder.name, version.version, *(about if number == 0 else [""] * 6), state]

    table = Table("model", "version", "kind", "sizes", "layers", "directions", "head", "dtype", "state")
    for folder in found.values():
        for name, version, *rest in rows(folder):
            state = printable(rest.pop(), 300)
            table.add_row(Text(name), version, *rest, Text(state, "red" if state.startswith("failed") else "green"))
    console().print(table if found else Text(f"no models in {root}"))
