"""Pictures of a run: latency against throughput, requests/s, time by stage, cost as requests grow, streams."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import matplotlib.ticker
from matplotlib.figure import Figure

from benchmarks.bodies import CELLS
from benchmarks.results import Row
from benchmarks.scaling import AXES, Cost, Line, lines
from benchmarks.stages import REST, STAGES, Breakdown
from benchmarks.streams import Flows
from benchmarks.sweep import Point
from benchmarks.table import ECHO, NAIVE, OURS, OURS_TWICE

if TYPE_CHECKING:
    from benchmarks.report import Report

STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
}
# Okabe and Ito's colours, which the colour-blind can tell apart, and a few shades.
COLORS = {
    OURS: "#D55E00",
    OURS_TWICE: "#E69F00",
    ECHO: "#000000",
    NAIVE[0]: "#56B4E9",
    NAIVE[1]: "#6A7FDB",
    NAIVE[2]: "#0072B2",
    "LitServe": "#009E73",
    "BentoML": "#CC79A7",
    "Ray Serve": "#7A6A00",
}
FORMATS = {"json": ("o", "-", "#0072B2"), "safetensors": ("s", (0, (4, 2)), "#D55E00")}
STAGE_COLORS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#BBBBBB")
COUNT_COLORS = ("#56B4E9", "#0072B2", "#D55E00")
LABELS = {"B": "B, sequences", "T": "T, steps", "H": "H, hidden size", "clients": "clients"}
# An axis that is labelled at powers of ten alone.
WIDE = 1_000
# A share that has room for its number.
ROOM = 0.07


@dataclass(frozen=True, slots=True)
class Picture:
    """A file and what is to be seen in it."""

    title: str
    file: Path


def draw(folder: Path, report: "Report") -> list[Picture]:
    """Every picture whose figures were measured."""
    kinds: list[tuple[Any, Callable[[Any, str], Figure], str, str]] = [
        (report.points, latency, "Latency against throughput at fixed arrival rates", "bench-latency.png"),
        (report.rows, requests, "Requests a second, clients that wait for their reply", "bench-load.png"),
        (report.stages, by_stage, "Time of a request by stage", "bench-stages.png"),
        (report.costs, growth, "CPU time of a request as it grows", "bench-cost.png"),
        (report.streams, steps_of_streams, "Steps a second over streams", "bench-streams.png"),
    ]
    found = []
    with mpl.rc_context(dict(STYLE)):
        for measured, picture, title, name in kinds:
            if measured:
                # No creation date in the file: the same figures give the same bytes.
                picture(measured, title).savefig(folder / name, metadata={"Software": None})
                found.append(Picture(title, folder / name))
    return found


def color(server: str) -> str:
    """A server's colour; that of its family if it has none of its own."""
    return COLORS.get(server) or next((c for name, c in COLORS.items() if server.startswith(name)), "0.5")


def latency(points: Sequence[Point], title: str) -> Figure:
    """p50 (left) and p99 (right) against the answers a second, a row for each cell; each curve's name at its end."""
    cells = [cell.name for cell in CELLS if any(point.cell == cell.name for point in points)]
    figure = Figure(figsize=(12, 4.3 * len(cells) + 0.6), layout="constrained")
    panels = figure.subplots(len(cells), 2, squeeze=False, sharex="row", sharey="row")
    for cell, row in zip(cells, panels, strict=True):
        mine = [point for point in points if point.cell == cell]
        for axes, name in zip(row, ("p50", "p99"), strict=True):
            curves = dict.fromkeys((point.server, point.dialect) for point in mine)
            ends: dict[tuple[str, str], float] = {}
            for server, dialect in curves:
                line = [point for point in mine if (point.server, point.dialect) == (server, dialect)]
                if end := curve(axes, line, f"{name}_ms"):
                    ends[server, dialect] = end
            axes.set(xscale="log", yscale="log", xlabel=f"{cell}: answered a second", ylabel=f"{name}, ms from arrival")
            name_curves(axes, ends)
            say_missing(axes, [key for key in curves if key not in ends])
            plain(axes.xaxis)
        plain(row[0].yaxis)
    figure.suptitle(f"{title}\n(solid, ●: JSON; dashed, ■: safetensors; the last point is past the limit)")
    return figure


def curve(axes: Any, points: Sequence[Point], field: str) -> float | None:
    """One server in one format; returns the most that it answered a second."""
    # A logarithmic axis has no place for a server that answered nothing in time.
    arrivals = [point.arrivals for point in points if point.arrivals.goodput]
    known = [(one.goodput, value) for one in arrivals if (value := getattr(one, field))]
    if not known:
        return None
    server, dialect = points[0].server, points[0].dialect
    marker, style, _ = FORMATS[dialect]
    width = 2.4 if server == OURS else 1.2
    x, y = zip(*known, strict=True)
    axes.plot(x, y, linestyle=style, color=color(server), linewidth=width, marker=marker, markersize=3.5)
    return float(max(x))


def name_curves(axes: Any, ends: Mapping[tuple[str, str], float]) -> None:
    """Names above the panel, each where its curve ends, moved apart so far that they can be read."""
    if not ends:
        return
    low, high = (math.log(limit) for limit in axes.get_xlim())
    ordered = sorted(ends, key=lambda key: ends[key])
    wanted = [(math.log(ends[key]) - low) / (high - low) for key in ordered]
    for (server, dialect), place in zip(ordered, apart(wanted, 0.052), strict=True):
        name = server if dialect == "json" else f"{server}, {dialect}"
        weight = "bold" if server == OURS else "normal"
        style = {"rotation": 40, "rotation_mode": "anchor", "fontsize": 7.5, "fontweight": weight}
        axes.text(place, 1.01, name, transform=axes.transAxes, color=color(server), **style)


def say_missing(axes: Any, keys: Sequence[tuple[str, str]]) -> None:
    """Whose percentile is not known, at the foot of the panel."""
    if keys:
        names = ", ".join(server if dialect == "json" else f"{server} ({dialect})" for server, dialect in keys)
        text = "\n".join(wrap(f"too few answers: {names}", 80))
        axes.text(0.01, 0.01, text, transform=axes.transAxes, fontsize=7, color="0.4", va="bottom")


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places, moved as little to the left as keeps a gap between neighbours and the last at most at 1."""
    found: list[float] = []
    for place in places:
        found.append(max(place, found[-1] + gap) if found else place)
    limit = 1.0
    for index in reversed(range(len(found))):
        found[index] = min(found[index], limit)
        limit = found[index] - gap
    return found


def plain(axis: Any) -> None:
    """Numbers on a logarithmic axis as people write them, 0.5, 20, 3,000, and enough of them."""
    low, high = axis.get_view_interval()
    between = (1.0,) if high / low > WIDE else (1.0, 2.0, 5.0)
    axis.set_major_locator(mpl.ticker.LogLocator(subs=between))
    axis.set_major_formatter(mpl.ticker.FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(mpl.ticker.NullFormatter())


def requests(rows: Sequence[Row], title: str) -> Figure:
    """A panel for each cell: every server, the fastest first; whiskers from the slowest to the fastest round."""
    cells = [cell for cell in CELLS if any(row.cell == cell.name for row in rows)]
    most = max(sum(row.cell == cell.name for row in rows) for cell in cells)
    lines_of_panels = -(-len(cells) // 2)
    figure = Figure(figsize=(12, (0.24 * most + 0.7) * lines_of_panels + 0.5), layout="constrained")
    panels = list(figure.subplots(lines_of_panels, 2, squeeze=False).flat)
    for axes, cell in zip(panels, cells, strict=False):
        mine = sorted((row for row in rows if row.cell == cell.name), key=lambda row: -row.rate.median)
        rates = [row.rate for row in mine]
        names = [f"{row.server}, {row.dialect}" if row.dialect != "json" else row.server for row in mine]
        spread = [[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]]
        middles = [rate.median for rate in rates]
        fill = [color(row.server) for row in mine]
        bars = axes.barh(names, middles, color=fill, xerr=spread, ecolor="0.35", height=0.7)
        axes.bar_label(bars, [f"{middle:,.3g}" if middle < 100 else f"{middle:,.0f}" for middle in middles], padding=6)
        for label, row in zip(axes.get_yticklabels(), mine, strict=True):
            label.set_fontweight("bold" if row.server == OURS else "normal")
        axes.set(xscale="log", xlabel="requests a second", xlim=(min(rate.low for rate in rates) / 2, None))
        axes.set_title(f"{cell.name}: {cell.connections} client{'s' * (cell.connections > 1)}", fontsize=9, loc="left")
        axes.margins(x=0.18)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        plain(axes.xaxis)
    for axes in panels[len(cells) :]:
        axes.remove()
    figure.suptitle(f"{title} (JSON unless said)")
    return figure


def by_stage(breakdowns: Sequence[Breakdown], title: str) -> Figure:
    """Stacked bars, each as long as the request's mean time; shares on the right, since sizes differ a thousandfold."""
    figure = Figure(figsize=(11, 0.45 * len(breakdowns) + 1.7), layout="constrained")
    milliseconds, shares = figure.subplots(1, 2, sharey=True, width_ratios=(2, 3))
    names = [f"{one.cell} ({one.dialect}), {one.clients} client{'s' * (one.clients > 1)}" for one in breakdowns]
    totals = [sum(one.milliseconds.values()) for one in breakdowns]
    left = [0.0] * len(breakdowns)
    for stage, fill in zip((*STAGES, REST), STAGE_COLORS, strict=True):
        widths = [one.milliseconds[stage] / total for one, total in zip(breakdowns, totals, strict=True)]
        bars = shares.barh(names, widths, left=left, label=stage, color=fill, edgecolor="white", linewidth=0.8)
        texts = [f"{width:.0%}" if width >= ROOM else "" for width in widths]
        shares.bar_label(bars, texts, label_type="center", fontsize=8)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    bars = milliseconds.barh(names, totals, color="0.7")
    milliseconds.bar_label(bars, [f"{total:.3g} ms" for total in totals], padding=3)
    milliseconds.set(xscale="log", xlabel="mean ms from headers to reply")
    milliseconds.margins(x=0.25)
    milliseconds.invert_yaxis()
    plain(milliseconds.xaxis)
    shares.set(xlabel="share of the time", xlim=(0, 1))
    shares.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    for axes in (milliseconds, shares):
        axes.grid(visible=False, axis="y")
    figure.legend(*shares.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(f"{title} (rest: reading the body, waiting for the event loop, writing)")
    return figure


def growth(costs: Sequence[Cost], title: str) -> Figure:
    """A panel for each axis, a curve for each format; dotted: the straight line against B·T, and where it bends."""
    figure = Figure(figsize=(11, 7.6), layout="constrained")
    panels = figure.subplots(2, 2)
    fits = {line.dialect: line for line in lines(costs)} if any(cost.axis == "B" for cost in costs) else {}
    for axes, axis in zip(panels.flat, AXES, strict=True):
        for dialect, (marker, _, fill) in FORMATS.items():
            mine = [cost for cost in costs if (cost.axis, cost.dialect) == (axis, dialect)]
            if not mine:
                continue
            values, found = [cost.value for cost in mine], [cost.cpu_ms for cost in mine]
            spread = [[cost.median - cost.low for cost in found], [cost.high - cost.median for cost in found]]
            middles = [cost.median for cost in found]
            axes.errorbar(values, middles, spread, fmt=f"{marker}-", color=fill, markersize=4.5, capsize=2)
            axes.annotate(
                dialect, (values[-1], middles[-1]), (6, 0), textcoords="offset points", color=fill, va="center"
            )
            if axis in {"B", "T"} and dialect in fits:
                fit = fits[dialect]
                straight = [fit.fixed_ms + fit.per_step_us * c.cell.batch * c.cell.steps / 1e3 for c in mine]
                axes.plot(values, straight, ":", color=fill, linewidth=2)
        axes.set(xlabel=LABELS[axis], ylabel="CPU ms a request", yscale="log")
        axes.set_xscale("log", base=2)
        ticks = sorted({cost.value for cost in costs if cost.axis == axis})
        axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axes.margins(x=0.14)
        plain(axes.yaxis)
    told = "; ".join(in_words(fit) for fit in fits.values())
    figure.suptitle(
        f"{title} (B 8, T 64, I 32, H 64, 4 clients unless on the axis)\ndotted: straight line in B·T. {told}",
        fontsize=10,
    )
    return figure


def in_words(fit: Line) -> str:
    """The line, and where it bends."""
    bend = f"bends at {fit.bend_at:,}" if fit.bends else "no bend"
    return f"{fit.dialect}: {fit.fixed_ms:.2f} ms + {fit.per_step_us:.2f} µs · B·T, {bend}"


def steps_of_streams(measured: Sequence[Flows], title: str) -> Figure:
    """A group of bars for each server and way, a bar for each number of streams, all together; whiskers: the rounds."""
    ways = list(dict.fromkeys((flows.server, flows.way) for flows in measured))
    counts = sorted({flows.connections for flows in measured})
    figure = Figure(figsize=(10, 0.62 * len(ways) + 1.6), layout="constrained")
    axes = figure.subplots()
    height = 0.84 / len(counts)
    for index, count in enumerate(counts):
        mine = [flows for flows in measured if flows.connections == count]
        places = []
        for flows in mine:
            key = (flows.server, flows.way)
            together = [c for c in counts if any((f.server, f.way, f.connections) == (*key, c) for f in measured)]
            places.append(ways.index(key) + (together.index(count) - (len(together) - 1) / 2) * height)
        rates = [flows.rate for flows in mine]
        spread = [[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]]
        label = f"{count:,} stream{'s' * (count > 1)}"
        middles = [rate.median for rate in rates]
        fill = COUNT_COLORS[index % len(COUNT_COLORS)]
        bars = axes.barh(places, middles, height, xerr=spread, label=label, color=fill, ecolor="0.3")
        axes.bar_label(bars, [f"{middle:,.0f}" for middle in middles], padding=6, fontsize=8)
    axes.set_yticks(range(len(ways)), [f"{way}\n{server}" for server, way in ways])
    axes.set(xscale="log", xlabel="steps a second, all streams together")
    axes.margins(x=0.15)
    axes.set_xlim(left=10 ** math.floor(math.log10(min(flows.rate.low for flows in measured)) - 0.3))
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    plain(axes.xaxis)
    figure.legend(loc="outside lower center", ncols=len(counts), frameon=False)
    figure.suptitle(title)
    return figure
