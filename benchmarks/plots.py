"""Pictures of a run: latency against throughput, time by stage, cost as requests grow, steps/s of streams."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.bodies import CELLS
from benchmarks.scaling import AXES, Cost, lines
from benchmarks.stages import REST, STAGES, Breakdown
from benchmarks.streams import Flows
from benchmarks.sweep import Point
from benchmarks.table import OURS

if TYPE_CHECKING:
    from benchmarks.report import Report

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
}
OUR_COLORS = {(OURS, "json"): "black", (OURS, "safetensors"): "crimson"}
LABELS = {"B": "B, sequences", "T": "T, steps", "H": "H, hidden size", "clients": "clients"}


@dataclass(frozen=True, slots=True)
class Picture:
    """A file and what is to be seen in it."""

    title: str
    file: Path


def draw(folder: Path, report: "Report") -> list[Picture]:
    """Every picture whose figures were measured."""
    found = []
    with mpl.rc_context(STYLE):
        if report.points:
            title = "Latency against throughput at fixed arrival rates"
            found.append(saved(latency(report.points, title), title, folder / "bench-latency.png"))
        if report.stages:
            title = "Time of a request by stage"
            found.append(saved(by_stage(report.stages, title), title, folder / "bench-stages.png"))
        if report.costs:
            title = "CPU time of a request as it grows"
            found.append(saved(growth(report.costs, title), title, folder / "bench-cost.png"))
        if report.streams:
            title = "Steps a second over streams"
            found.append(saved(steps_of_streams(report.streams, title), title, folder / "bench-streams.png"))
    return found


def saved(figure: Figure, title: str, file: Path) -> Picture:
    # No creation date in the file: the same figures give the same bytes.
    figure.savefig(file, metadata={"Software": None})
    return Picture(title, file)


def latency(points: Sequence[Point], title: str) -> Figure:
    """p50 (solid) and p99 (dashed) against the answers a second, a panel for each cell."""
    cells = [cell.name for cell in CELLS if any(point.cell == cell.name for point in points)]
    servers = list(dict.fromkeys((point.server, point.dialect) for point in points))
    colors = {server: colormaps["tab20"](index % 20) for index, server in enumerate(servers)}
    colors |= {server: color for server, color in OUR_COLORS.items() if server in colors}
    columns = min(len(cells), 2)
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(5.5 * columns, 3.6 * rows + 1.2), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for index, cell in enumerate(cells):
        axes = panels[index // columns][index % columns]
        for server in servers:
            mine = [point for point in points if (point.cell, point.server, point.dialect) == (cell, *server)]
            curve(axes, mine, colors[server], width=2.2 if server[0] == OURS else 1.1)
        axes.set(title=cell, xlabel="answered a second", ylabel="ms from arrival", xscale="log", yscale="log")
    for index in range(len(cells), rows * columns):
        panels[index // columns][index % columns].remove()
    handles = [mpl.lines.Line2D([], [], color=colors[server], marker="o", markersize=3) for server in servers]
    labels = [f"{name} ({dialect})" for name, dialect in servers]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{title}: p50 solid, p99 dashed")
    return figure


def curve(axes: Any, points: Sequence[Point], color: Any, width: float) -> None:
    styles = (("-", [point.arrivals.p50_ms for point in points]), ("--", [point.arrivals.p99_ms for point in points]))
    for style, values in styles:
        known = [(p.arrivals.goodput, value) for p, value in zip(points, values, strict=True) if value is not None]
        if known:
            axes.plot(*zip(*known, strict=True), style, color=color, linewidth=width, marker="o", markersize=3)


def by_stage(breakdowns: Sequence[Breakdown], title: str) -> Figure:
    """Stacked bars, each as long as the request's mean time; shares on the right, since sizes differ a thousandfold."""
    figure = Figure(figsize=(10, 0.5 * len(breakdowns) + 1.6), layout="constrained")
    milliseconds, shares = figure.subplots(1, 2, sharey=True)
    names = [f"{one.cell} ({one.dialect}), {one.clients} clients" for one in breakdowns]
    totals = [sum(one.milliseconds.values()) for one in breakdowns]
    left = [0.0] * len(breakdowns)
    for stage in (*STAGES, REST):
        widths = [one.milliseconds[stage] / total for one, total in zip(breakdowns, totals, strict=True)]
        shares.barh(names, widths, left=left, label=stage)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    bars = milliseconds.barh(names, totals, color="0.6")
    milliseconds.bar_label(bars, [f"{total:.3g} ms" for total in totals], padding=3)
    milliseconds.set(xscale="log", xlabel="mean ms, headers to reply")
    milliseconds.margins(x=0.2)
    milliseconds.invert_yaxis()
    shares.set(xlabel="share of the time", xlim=(0, 1))
    figure.legend(*shares.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.suptitle(title)
    return figure


def growth(costs: Sequence[Cost], title: str) -> Figure:
    """A panel for each axis, a curve for each format; dotted: the straight line against B·T."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    dialects = list(dict.fromkeys(cost.dialect for cost in costs))
    fits = {line.dialect: line for line in lines(costs)}
    for axes, axis in zip(panels.flat, AXES, strict=True):
        for index, dialect in enumerate(dialects):
            mine = [cost for cost in costs if (cost.axis, cost.dialect) == (axis, dialect)]
            values = [cost.value for cost in mine]
            axes.plot(values, [cost.cpu_ms.median for cost in mine], "o-", color=f"C{index}", label=dialect)
            if axis in {"B", "T"}:
                fit = fits[dialect]
                line = [fit.fixed_ms + fit.per_step_us * c.cell.batch * c.cell.steps / 1e3 for c in mine]
                axes.plot(values, line, ":", color=f"C{index}")
        axes.set(xlabel=LABELS[axis], ylabel="CPU ms a request", xscale="log", yscale="log")
        axes.set_xscale("log", base=2)
    panels[0][0].legend(frameon=False)
    figure.suptitle(f"{title} (B 8, T 64, I 32, H 64, 4 clients unless on the axis; dotted: straight line in B·T)")
    return figure


def steps_of_streams(measured: Sequence[Flows], title: str) -> Figure:
    """A group of bars for each server and way, a bar for each number of streams, all together; whiskers: the rounds."""
    ways = list(dict.fromkeys((flows.server, flows.way) for flows in measured))
    counts = sorted({flows.connections for flows in measured})
    figure = Figure(figsize=(9, 0.75 * len(ways) + 1.6), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(counts)
    for index, count in enumerate(counts):
        mine = [flows for flows in measured if flows.connections == count]
        places = [ways.index((flows.server, flows.way)) + (index - (len(counts) - 1) / 2) * height for flows in mine]
        rates = [flows.rate for flows in mine]
        spread = [[rate.median - rate.low for rate in rates], [rate.high - rate.median for rate in rates]]
        label = f"{count:,} stream{'s' * (count > 1)}"
        middles = [rate.median for rate in rates]
        bars = axes.barh(places, middles, height, xerr=spread, label=label, color=f"C{index}", ecolor="0.3")
        axes.bar_label(bars, [f"{middle:,.0f}" for middle in middles], padding=6, fontsize=8)
    axes.set_yticks(range(len(ways)), [f"{server}\n{way}" for server, way in ways])
    axes.set(xscale="log", xlabel="steps a second, all streams together")
    axes.margins(x=0.15)
    axes.set_xlim(left=10 ** math.floor(math.log10(min(flows.rate.low for flows in measured)) - 0.3))
    axes.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=len(counts), frameon=False)
    figure.suptitle(title)
    return figure
