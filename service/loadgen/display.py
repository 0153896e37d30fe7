"""What a person sees: one line while a run goes on, tables at its end."""

from dataclasses import dataclass
from math import isnan

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from service.loadgen.run import Run
from service.loadgen.summary import Summary

MAX_ERRORS_SHOWN = 4


@dataclass
class Progress:
    """The line of a run that goes on: rates since it was last drawn, the rest since the start."""

    run: Run
    live: Live
    seconds: float = 0.0
    succeeded: int = 0

    def draw(self) -> None:
        """Draw it anew."""
        tally, now = self.run.tally, self.run.running_seconds
        rate = (tally.succeeded - self.succeeded) / max(now - self.seconds, 1e-9)
        self.seconds, self.succeeded = now, tally.succeeded
        p50, p99 = (_ms(value * 1e3) for value in tally.latency.quantiles([500, 990]))
        asked = "" if self.run.plan.rate is None else f" of {self.run.plan.rate:,.6g}"
        errors = ", ".join(f"{count:,} × {failure}" for failure, count in tally.reasons.most_common(MAX_ERRORS_SHOWN))
        line = f"{now:5.1f} s  {rate:,.0f}{asked}/s  in flight {self.run.in_flight}  p50 {p50}  p99 {p99}"
        self.live.update(Text(line) + Text(f"  {errors}" if errors else "", "red"), refresh=True)


def live_line(console: Console) -> Live:
    """The place of the progress line; it goes when the run ends."""
    return Live(console=console, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)


def tables(summary: Summary) -> Group:
    """The summary for people."""
    counts = Table.grid(padding=(0, 2))
    asked = "" if summary.asked_rate is None else f", asked for {summary.asked_rate:,.6g}/s"
    megabytes = 1e6 * summary.seconds
    cut_off = f", {summary.cut_off:,} cut off" if summary.cut_off else ""
    for name, value in (
        ("requests", f"{summary.due:,} in {summary.seconds:.2f} s ({summary.due_rate:,.1f}/s{asked})"),
        ("succeeded", f"{summary.succeeded:,} ({summary.succeeded_rate:,.1f}/s)"),
        ("refused", f"{summary.refused:,}"),
        ("failed", f"{summary.failed:,}{cut_off}"),
        ("sent", f"{summary.bytes_sent / megabytes:,.2f} MB/s"),
        ("received", f"{summary.bytes_received / megabytes:,.2f} MB/s"),
        ("this generator", f"{summary.generator_cpu_share:.0%} of a core"),
    ):
        counts.add_row(name, value)
    latencies = Table("milliseconds", *(name.replace("_", ".") for name in summary.latency_ms))
    for name, values, wanted in (
        ("latency of success", summary.latency_ms, True),
        ("latency of refusal", summary.refusal_latency_ms, summary.refused),
        ("lateness of the generator", summary.generator_lag_ms, summary.asked_rate is not None),
    ):
        if wanted:
            latencies.add_row(name, *(_number(value) for value in values.values()))
    errors = [Text(f"{count:,} × {reason}", "red") for reason, count in summary.errors.items()]
    return Group(counts, latencies, *errors, *(Text(f"note: {warning}", "yellow") for warning in summary.warnings))


def _ms(value: float) -> str:
    return "–" if isnan(value) else f"{_number(value)} ms"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value < 10 else f"{value:,.1f}"
