"""The command line: `rnn-service serve | import | models`.

What is slow to import (torch, onnx, the server) is imported by the command that needs it, so that `--help` is quick.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from service.cli.importing import import_checkpoint
from service.cli.models import list_models
from service.cli.options import with_settings
from service.settings import Settings


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
    return app


def main() -> None:
    """Entry point of `rnn-service` and of `python -m service`."""
    build_app()(prog_name="rnn-service")


def serve(settings: Settings) -> None:
    """Serve the models of a repository over HTTP until SIGTERM or Ctrl-C.

    Every option is also an RNN_* variable and a line of a .env file: the command line goes first, then the environment,
    then .env.
    """
    from service.server.process import serve as run  # noqa: PLC0415  # uvicorn is not needed for --help

    run(settings)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("rnn-service"))
        raise typer.Exit


def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
