"""`rnn-service bench`."""

import json
import signal
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from service.cli.output import FAILED, USAGE, console, fail

if TYPE_CHECKING:
    from service.loadgen.run import Plan, Run
    from service.loadgen.traffic import Shape

MAX_RATE = 100_000
MAX_CONNECTIONS = 4096
MAX_SECONDS = 3600
MAX_WINDOW = 1024

CLOSED_CONNECTIONS = 16
OPEN_CONNECTIONS = 256


def bench(  # noqa: PLR0913  # each is an option of the command
    url: Annotated[str, typer.Argument(metavar="URL", help="The deployment, such as http://127.0.0.1:8000.")],
    *,
    call: Annotated[
        Literal["forward", "step", "stream"],
        typer.Option(help="Whole sequences, single steps, or steps as lines of streams."),
    ] = "forward",
    model: Annotated[str | None, typer.Option(help="Which model; may be left out if there is one.")] = None,
    version: Annotated[str | None, typer.Option(help="Its version; left out: the one that serves.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="B: sequences, or states, in a request.")] = 1,
    steps: Annotated[int | None, typer.Option(min=1, help="T: time steps of a sequence.  [default: 32]")] = None,
    body: Annotated[Literal["json", "safetensors"], typer.Option("--format", help="Of requests and replies.")] = "json",
    returns: Annotated[str, typer.Option(metavar="A,B,…", help="What to ask for, such as h_n,last.")] = "",
    rate: Annotated[
        float | None,
        typer.Option(help=f"Requests a second, at most {MAX_RATE}, however fast the replies come (open loop)."),
    ] = None,
    arrivals: Annotated[
        Literal["poisson", "constant"], typer.Option(help="With --rate: as from independent clients, or evenly.")
    ] = "poisson",
    connections: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_CONNECTIONS,
            help="Without --rate, clients that each wait for the reply before they send again (closed loop; "
            f"{CLOSED_CONNECTIONS}). With it, connections to spread over ({OPEN_CONNECTIONS}; streams: "
            f"{CLOSED_CONNECTIONS}).",
        ),
    ] = None,
    window: Annotated[int, typer.Option(min=1, max=MAX_WINDOW, help="Lines in flight on a stream.")] = 1,
    seconds: Annotated[float, typer.Option(help=f"For how long, at most {MAX_SECONDS}.")] = 10,
    requests: Annotated[int | None, typer.Option(min=1, help="At most so many.  [default: no limit]")] = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", help="When a request has failed.")] = 10,
    key: Annotated[
        str | None,
        typer.Option(envvar="RNN_BENCH_KEY", help="Bearer token; better in the variable, which others cannot see."),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", dir_okay=False, help="Write the summary as JSON, too.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="A line on stderr while it runs, if that is a terminal.")] = True,
) -> None:
    """Send a deployment requests of one kind, and say how fast it answered.

    It asks for the model once, and then sends what the options say and no more: no retries, no redirects. Latency
    counts from the time when a request was due, and so includes any wait for a busy connection. Ctrl-C ends the run
    with the summary so far.

    Exit code: 0 if every request succeeded, 1 if one was refused or failed or the deployment cannot be reached,
    2 if an option is wrong.
    """
    _check_range("--rate", rate, MAX_RATE)
    _check_range("--seconds", seconds, MAX_SECONDS)
    _check_range("--timeout", timeout, MAX_SECONDS)
    _check_combination(call, rows, steps, body, window)
    # numpy and the event loop's libraries take a while to import
    from service.loadgen.run import Plan  # noqa: PLC0415
    from service.loadgen.traffic import Shape  # noqa: PLC0415

    shape = Shape(
        call=call,
        format=body,
        rows=rows,
        steps=(steps or 32) if call == "forward" else 1,
        version=version,
        returns=[name.strip() for name in returns.split(",") if name.strip()],
    )
    default = CLOSED_CONNECTIONS if rate is None or call == "stream" else OPEN_CONNECTIONS
    plan = Plan(
        rate=rate,
        process=arrivals,
        connections=connections or default,
        window=window,
        seconds=seconds,
        requests=requests,
        timeout_seconds=timeout,
    )
    if summary is not None and not summary.absolute().parent.is_dir():
        fail(f"--json: there is no folder {summary.absolute().parent}", USAGE)
    name, run = _prepared(url, key, model, shape, plan)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    _drive(run, progress)
    asked = {"url": run.target.url, "started_at": started, "model": name} | asdict(shape) | asdict(plan)
    _report(run, asked, summary)


def _check_range(option: str, value: float | None, largest: float) -> None:
    # Written so that NaN fails.
    if value is not None and not 0 < value <= largest:
        fail(f"{option} is {value:g}; expected more than 0 and at most {largest:g}", USAGE)


def _check_combination(call: str, rows: int, steps: int | None, body: str, window: int) -> None:
    if call != "forward" and steps is not None:
        fail(f"--steps is for --call forward; a {call} sends one step at a time", USAGE)
    if call == "stream" and (rows != 1 or body != "json"):
        fail("a stream is one row, in JSON: leave --rows and --format out", USAGE)
    if call != "stream" and window != 1:
        fail("--window is for --call stream", USAGE)


def _prepared(url: str, key: str | None, model: str | None, shape: "Shape", plan: "Plan") -> tuple[str, "Run"]:
    """Ask for the model; give its name and a run that can start. Ends the command where something is wrong."""
    from service.loadgen.lookup import LookupFailed, NoSuchModel, look_up  # noqa: PLC0415
    from service.loadgen.run import Run  # noqa: PLC0415
    from service.loadgen.target import BadTarget, Target  # noqa: PLC0415
    from service.loadgen.traffic import CannotCall, build_traffic  # noqa: PLC0415

    try:
        target = Target.parse(url, key)
        found = look_up(target, model, shape.version, plan.timeout_seconds)
        return found.name, Run(target, build_traffic(target, found, shape), plan, model_loaded=found.loaded)
    except (BadTarget, NoSuchModel, CannotCall) as error:
        fail(str(error), USAGE)
    except LookupFailed as error:
        fail(str(error), FAILED)


def _drive(run: "Run", progress: bool) -> None:
    """Run to the end, or to Ctrl-C."""
    import asyncio  # noqa: PLC0415

    import uvloop  # noqa: PLC0415

    from service.loadgen.display import Progress, live_line  # noqa: PLC0415

    stderr = Console(stderr=True, highlight=False)
    with live_line(stderr) as live:
        watch = Progress(run, live).draw if progress and stderr.is_terminal else None

        async def main() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, run.interrupt)
            await run.run(watch)

        uvloop.run(main())


def _report(run: "Run", asked: dict[str, Any], file: Path | None) -> None:
    """Print the summary, write it if a file is named, and end with the exit code."""
    from service.loadgen.display import tables  # noqa: PLC0415
    from service.loadgen.summary import Summary  # noqa: PLC0415

    summary = Summary.of(run)
    console().print(tables(summary))
    if file is not None:
        try:
            file.write_text(json.dumps({"asked": asked} | summary.document(), indent=2) + "\n")
        except OSError as error:
            fail(f"--json: {file}: {error.strerror}", FAILED)
    raise typer.Exit(0 if summary.clean else FAILED)
