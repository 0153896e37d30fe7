"""The command line: `rnn-service serve | import | models | remove`.

What is slow to import (torch, onnx, the server) is imported by the command that needs it, so that `--help` is quick.
"""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from service import __version__
from service.cli.importing import import_checkpoint
from service.cli.options import FAILED, USAGE, console, fail, read_settings, setting, with_settings
from service.errors import ModelFailed
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded, terminal_text
from service.settings import Settings
from service.spec import ModelSpec


def build_app() -> typer.Typer:
    app = typer.Typer(
        name="rnn-service",
        help="Inference for recurrent networks: POST sequences, get outputs and final states.",
        no_args_is_help=True,
        add_completion=False,
        # Rich's help cuts long flags and variables off in a narrow terminal.
        rich_markup_mode=None,
        # Locals in a traceback may hold keys and clients' data.
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    example = "Example: rnn-service"
    app.command("serve", epilog=f"{example} serve --models models --port 8000")(with_settings(serve))
    app.command("import", epilog=f"{example} import checkpoint.pt --name weather --head fc")(import_checkpoint)
    app.command("models", epilog=f"{example} models --models models")(list_models)
    app.command("remove", epilog=f"{example} remove weather --version 1")(remove_model)
    return app


def main() -> None:
    build_app()(prog_name="rnn-service")


def serve(settings: Settings) -> None:
    """Serve the models of a repository over HTTP until SIGTERM or Ctrl-C.

    Every option is also an RNN_* variable and a line of a .env file: the command line goes first, then the environment,
    then .env.
    """
    from service.server.process import serve as run  # noqa: PLC0415  # uvicorn is not needed for --help

    run(settings)


def list_models(models: setting("models") = None) -> None:  # type: ignore[valid-type]  # made from Settings
    """List the models of a repository: what they are, and whether they can be served."""
    from service.models.folder import scan  # noqa: PLC0415  # torch takes seconds to import

    settings = read_settings({"models": models})
    root = settings.models
    try:
        found = scan(root, settings.model_name)
    except ModelFailed as error:
        fail(f"{root}: {error}", FAILED)
    table = Table("model", "version", "kind", "sizes", "layers", "directions", "head", "dtype", "state")
    for folder in found.values():
        about = _about(folder.versions[0].spec if folder.versions else None)
        versions = [(entry.version, entry.failure) for entry in folder.versions] or [("–", folder.failure)]
        for number, failure in versions:
            state = f"failed: {failure}" if failure else "available"
            style = "red" if failure else "green"
            table.add_row(terminal_text(folder.name), number, *about, Text(terminal_text(state, 300), style))
            about = [""] * len(about)
    console().print(table if found else Text(f"no models in {root}"))


def remove_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the model is called.")],
    *,
    models: setting("models") = None,  # type: ignore[valid-type]  # made from Settings
    version: Annotated[str | None, typer.Option(metavar="N", help="This version alone; default: the model.")] = None,
) -> None:
    """Remove a model, or one version of it, from a repository. A running service has it until it is reloaded."""
    from service.models.folder import NAME, NAME_RULE  # noqa: PLC0415  # torch takes seconds to import
    from service.models.importing.staging import remove  # noqa: PLC0415

    if not NAME.fullmatch(name):
        fail(f"NAME: expected {NAME_RULE}, and got {name!r:.120}", USAGE)
    try:
        removed = remove(read_settings({"models": models}).models, name, version)
    except CheckpointRefused as error:
        fail(str(error), USAGE if isinstance(error, ChoiceNeeded) else FAILED)
    console().print(Text(f"removed: {removed}"), soft_wrap=True)


def _about(spec: ModelSpec | None) -> list[str]:
    if spec is None:
        return [""] * 6
    kind = f"rnn {spec.nonlinearity}" if spec.kind == "rnn" else spec.kind
    width = f"{spec.hidden_size} → {spec.proj_size}" if spec.proj_size else str(spec.hidden_size)
    head = "–" if spec.out_features is None else str(spec.out_features)
    return [kind, f"{spec.input_size} → {width}", str(spec.num_layers), str(spec.directions), head, spec.weights_dtype]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
