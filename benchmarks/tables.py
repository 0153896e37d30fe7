"""The tables of a report."""

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table

from benchmarks.batching import Gain
from benchmarks.beside import Beside
from benchmarks.idle import Idle, Restarts
from benchmarks.memory import Peak
from benchmarks.results import Resident, Row, Spread, best_naive
from benchmarks.scaling import Cost, lines
from benchmarks.sessions import CROWD, STATELESS
from benchmarks.stages import REST, STAGES, Breakdown
from benchmarks.streams import Flows
from benchmarks.sweep import Point
from benchmarks.verdict import Verdict

MIB = 2**20
LEFT = frozenset({"how", "server", "path", "format", "expected", "way", "beside"})


def load_table(rows: Sequence[Row]) -> Table:
    """Closed loop: every server on every cell."""
    table = new_table("Load", "cell", "server", "requests/s", "p50 ms", "p99 ms", "CPU ms", "× naive", "errors")
    for row in rows:
        naive = best_naive(rows, row.cell)
        table.add_row(
            row.cell,
            f"{row.server} ({row.dialect})",
            figure(row.rate),
            figure(Spread.of(sample.p50_ms for sample in row.samples)),
            figure(Spread.of(sample.p99_ms for sample in row.samples)),
            number(Spread.of(sample.cpu_ms for sample in row.samples).median),
            figure(row.over(naive)) if naive else "",
            str(row.errors) + (" (short run)" if row.too_short else ""),
        )
    return table


def cell_table(cell: str, rows: Sequence[Row]) -> Table:
    """Closed loop: every server on one cell, the fastest first."""
    table = new_table(cell, "server", "format", "requests/s", "× naive", "p50 ms", "p99 ms", "CPU ms", "errors")
    mine, naive = [row for row in rows if row.cell == cell], best_naive(rows, cell)
    for row in sorted(mine, key=lambda row: -row.rate.median):
        table.add_row(
            row.server,
            row.dialect,
            figure(row.rate),
            figure(row.over(naive)) if naive else "",
            figure(Spread.of(sample.p50_ms for sample in row.samples)),
            figure(Spread.of(sample.p99_ms for sample in row.samples)),
            number(Spread.of(sample.cpu_ms for sample in row.samples).median),
            str(row.errors) + (" (short run)" if row.too_short else ""),
        )
    return table


def arrivals_table(points: Sequence[Point]) -> Table:
    """Open loop: every server at every arrival rate."""
    columns = ("arrivals/s", "in time/s", "answers", "p50 ms", "p99 ms", "p99.9 ms", "refused", "failed")
    more = ("refusal p99 ms", "CPU ms", "peak MiB")
    table = new_table("Fixed arrival rates", "cell", "server", *columns, *more)
    for point in points:
        taken = point.arrivals
        table.add_row(
            point.cell,
            f"{point.server} ({point.dialect})",
            number(taken.offered),
            number(taken.goodput),
            f"{taken.answered:,}",
            *map(optional, (taken.p50_ms, taken.p99_ms, taken.p999_ms)),
            str(taken.refused),
            str(taken.failed),
            optional(taken.refusal_p99_ms),
            number(taken.cpu_ms),
            number(point.peak_bytes / MIB),
        )
    return table


def beside_table(measured: Iterable[Beside]) -> Table:
    """Steps while large requests run."""
    table = new_table("Steps beside large requests", "server", "beside", "steps/s", "p50 ms", "p99 ms", "× alone")
    alone: dict[str, Beside] = {}
    for one in measured:
        first = alone.setdefault(one.server, one)
        p50 = [sample.p50_ms for sample in one.samples if sample.p50_ms is not None]
        ratio = one.over(first)
        table.add_row(
            one.server,
            one.beside,
            number(one.rate),
            figure(Spread.of(p50)) if p50 else "",
            figure(one.p99_ms) if one.p99_ms else "",
            figure(ratio) if ratio else "",
        )
    return table


def streams_table(measured: Sequence[Flows]) -> Table:
    """Steps a second over streams."""
    columns = ("streams", "in flight on each", "steps/s", "p50 ms", "p99 ms", "CPU µs a step", "client busy", "errors")
    table = new_table("Streams", "server", "way", *columns)
    for flows in measured:
        table.add_row(flows.server, flows.way, f"{flows.connections:,}", str(flows.window), *flow_figures(flows))
    return table


def sessions_table(measured: Sequence[Flows]) -> Table:
    """Steps of sessions, one a request."""
    columns = ("clients", "steps/s", "p50 ms", "p99 ms", "CPU µs a step", "client busy", "errors", "× stateless")
    table = new_table("Sessions, one step a request", "way", *columns)
    stateless = {flows.connections: flows for flows in measured if flows.way == STATELESS}
    for flows in measured:
        base = stateless.get(flows.connections) if flows.way != CROWD else None
        ratio = figure(flows.over(base)) if base else ""
        table.add_row(flows.way, f"{flows.connections:,}", *flow_figures(flows), ratio)
    return table


def flow_figures(flows: Flows) -> list[str]:
    """Steps a second, p50, p99, CPU, how busy the client was, errors."""
    percentiles = [
        figure(Spread.of(getattr(flow, name) for flow in flows.samples)) if flows.settled else ""
        for name in ("p50_ms", "p99_ms")
    ]
    cpu = number(Spread.of(flow.cpu_us for flow in flows.samples).median)
    busy = f"{Spread.of(flow.client_busy for flow in flows.samples).median:.0%}"
    return [figure(flows.rate), *percentiles, cpu, busy, str(flows.errors)]


def idle_table(measured: Iterable[Idle]) -> Table:
    """Memory of sessions that nobody uses."""
    columns = ("sessions", "opened in s", "before, MiB", "with them, MiB", "bytes each", "state alone", "expired, MiB")
    table = new_table("Idle sessions, store memory", "H", *columns)
    for one in measured:
        table.add_row(
            str(one.hidden_size),
            f"{one.count:,}",
            number(one.seconds),
            number(one.before_bytes / MIB),
            number(one.with_bytes / MIB),
            number(one.bytes_each),
            number(one.state_bytes),
            optional(None if one.expired_bytes is None else one.expired_bytes / MIB),
        )
    return table


def restarts_table(measured: Restarts | None) -> Table:
    """How long a start takes with many sessions in the store."""
    table = new_table("Restart, store sqlite", "sessions", "ready after s", "with none, s", "later by s")
    if measured:
        figures = Spread.of(measured.stored), Spread.of(measured.empty), measured.later
        table.add_row(f"{measured.count:,}", *map(figure, figures))
    return table


def gains_table(measured: Iterable[Gain]) -> Table:
    """Rows of 64 clients together and one at a time."""
    columns = ("together, rows/s", "one at a time, rows/s", "gain")
    table = new_table("Batching, 64 clients, each a row of 64 steps, I 128, H 256", "where", *columns)
    for gain in measured:
        table.add_row(gain.where, *map(figure, (Spread.of(gain.together), Spread.of(gain.alone), gain.ratio)))
    return table


def stages_table(breakdowns: Sequence[Breakdown]) -> Table:
    """Where a request's time goes in our service."""
    table = new_table("Time by stage, mean ms", "cell", "clients", *STAGES, REST)
    for one in breakdowns:
        times = [number(one.milliseconds[stage]) for stage in (*STAGES, REST)]
        table.add_row(f"{one.cell} ({one.dialect})", str(one.clients), *times)
    return table


def costs_table(costs: Sequence[Cost]) -> Table:
    """What a request costs our service as it grows."""
    table = new_table("Cost as requests grow", "axis", "value", "format", "CPU ms", "requests/s", "p50 ms")
    for cost in costs:
        rates, p50 = (Spread.of(getattr(sample, name) for sample in cost.samples) for name in ("rate", "p50_ms"))
        table.add_row(
            cost.axis, str(cost.value), cost.dialect, figure(cost.cpu_ms), number(rates.median), number(p50.median)
        )
    return table


def lines_table(costs: Sequence[Cost]) -> Table:
    """The straight line through cost against B·T."""
    columns = ("fixed ms", "µs a step", "furthest off", "at B·T", "error", "bends at B·T", "µs a step before, after")
    table = new_table("CPU time against B·T: straight line", "format", *columns, "error of the two")
    for line in lines(costs) if any(cost.axis == "B" for cost in costs) else []:
        table.add_row(
            line.dialect,
            number(line.fixed_ms),
            number(line.per_step_us),
            f"{line.worst:+.0%}",
            f"{line.worst_at:,}",
            f"{line.error:.1%}",
            f"{line.bend_at:,}" if line.bends else f"no bend (best: {line.bend_at:,})",
            f"{number(line.before_us)}, {number(line.after_us)}",
            f"{line.bent_error:.1%}",
        )
    return table


def resident_table(residents: Iterable[Resident]) -> Table:
    """Memory at rest and after load."""
    table = new_table("Resident memory", "server", "ready, MiB", "at most after a run, MiB")
    for line in residents:
        table.add_row(line.server, number(line.ready_bytes / MIB), number(line.loaded_bytes / MIB))
    return table


def peaks_table(peaks: Iterable[Peak]) -> Table:
    """Memory of one large request."""
    columns = ("body MiB", "reply MiB", "peak MiB", "× body + reply")
    table = new_table("Peak memory of one large request", "server", *columns)
    for peak in peaks:
        sizes = (peak.body_bytes, peak.reply_bytes, peak.peak_bytes)
        table.add_row(f"{peak.server} ({peak.dialect})", *(number(n / MIB) for n in sizes), number(peak.ratio))
    return table


def verdicts_table(found: Iterable[Verdict]) -> Table:
    """What was expected, and whether it was met."""
    table = new_table("Expected", "what", "expected", "measured", "met", "how")
    for verdict in found:
        table.add_row(
            verdict.what, verdict.expected, figure(verdict.measured), "yes" if verdict.met else "no", verdict.how
        )
    return table


def new_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 or column in LEFT else "right")
    return table


def markdown(table: Table) -> str:
    columns = [list(column.cells) for column in table.columns]
    lines = [
        [str(column.header) for column in table.columns],
        ["---:" if column.justify == "right" else "---" for column in table.columns],
        *zip(*columns, strict=True),
    ]
    return "\n".join([f"## {table.title}", "", *("| " + " | ".join(map(str, line)) + " |" for line in lines)])


def number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def figure(spread: Spread) -> str:
    if spread.low == spread.high:
        return number(spread.median)
    return f"{number(spread.median)} ({number(spread.low)}–{number(spread.high)})"


def optional(value: float | None) -> str:
    return "" if value is None else number(value)
