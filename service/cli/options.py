"""What all commands share: settings as options, a console, and how a command fails.

Every flag, its help, its variable and its default come from `Settings` itself. Typer reads the flags and pydantic
checks the values. The command line goes before `RNN_*` variables, these before `.env`, that before the default.
"""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args, get_origin

import typer
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from service.models.importing.refusal import terminal_text
from service.settings import Settings

FAILED = 1
USAGE = 2
DEMO = Path(__file__).parents[1] / "demo"  # links into models/; a wheel has the files themselves


def console() -> Console:
    """Stdout, as wide as the terminal; where there is none, wide enough for a table."""
    stdout = Console(highlight=False)
    return stdout if stdout.is_terminal else Console(highlight=False, width=200)


def fail(message: str, code: int) -> NoReturn:
    """End the command with one line on stderr."""
    # soft_wrap: one line stays one line, however narrow the terminal.
    stderr = Console(stderr=True, soft_wrap=True, highlight=False)
    stderr.print(Text("error: ", "bold red") + Text(terminal_text(message)))
    raise typer.Exit(code)


def setting(name: str) -> Any:
    """The annotation of a command's parameter for one field of Settings."""
    field = Settings.model_fields[name]
    flag, is_switch = flag_of(name), field.annotation is bool
    option = typer.Option(
        f"{flag}/{flag.replace('--', '--no-', 1)}" if is_switch else flag,
        help=f"{field.description} [{_variable(name)}{_default(field)}]",
        metavar=None if is_switch else _metavar(field),
        show_default=False,
    )
    return Annotated[(bool if is_switch else str) | None, option]


def with_settings(command: Callable[[Settings], None]) -> Callable[..., None]:
    """A command that takes Settings, with an option for every field of it, and --demo in place of --models."""

    def run(*, demo: bool, **given: Any) -> None:
        if demo and given["models"]:
            fail("--demo: it serves the bundled models: leave out --models", USAGE)
        command(read_settings(given | {"models": str(DEMO)} if demo else given))

    demo = Annotated[bool, typer.Option("--demo", help="Serve the models that come with the package.")]
    annotations = {"demo": demo} | {name: setting(name) for name in Settings.model_fields}
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in annotations.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # this is how a function gets one
    run.__doc__ = command.__doc__
    return run


def read_settings(given: Mapping[str, Any]) -> Settings:
    """Settings from flags (None: not given), the environment and `.env`; ends the command where a value is wrong."""
    flags = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings(**flags)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if not first["loc"]:  # two settings that do not go together; the message names them
            fail(str(first["ctx"]["error"]), USAGE)
        name = str(first["loc"][0])
        place = flag_of(name) if name in flags else f"{_variable(name)} (environment or .env)"
        field = Settings.model_fields.get(name)
        secret = field is not None and (SecretStr in get_args(field.annotation) or not field.repr)
        value = "" if secret else f", and got {str(first['input'])!r:.120}"
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        if field and first["type"] == "string_pattern_mismatch":  # the help says it in words
            words = str(field.description).rpartition(": ")[2].rstrip(".")
            message = f"expected {words[:1].lower()}{words[1:]}"
        fail(f"{place}: {message}{value}", USAGE)


def flag_of(name: str) -> str:
    """`--max-body-bytes` for `max_body_bytes`."""
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"{Settings.model_config.get('env_prefix', '')}{name}".upper()


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    if get_origin(field.annotation) is tuple:
        return "A,B,…"
    return "N" if field.annotation is int else "SECONDS" if field.annotation is float else "TEXT"


def _default(field: FieldInfo) -> str:
    if isinstance(field.default, bool):
        return f"; default: {'on' if field.default else 'off'}"
    return f"; default: {field.default}" if field.default not in (None, ()) else ""
