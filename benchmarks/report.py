"""The page of results, docs/benchmarks.md, with its pictures.

What stands between the page's two markers is written here; the rest, how it is measured, is written by hand.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from benchmarks.results import Results, Spread
from benchmarks.rivals import ROOT
from benchmarks.rows import BESIDE, FASTEST_NAIVE, REQUESTS, ROWS, STREAMS, WANTED, Row, Wanted
from benchmarks.servers import OTHER, OURS

BEGIN, END = "<!-- results: written by the benchmark -->", "<!-- end of results -->"
TITLES = {
    "rate": "per second",
    "one_row_rate": "per second, one row a turn",
    "capacity": "closed loop, per second",
    "arrived": "arrived ÷ closed loop",
    "goodput": "answered in time ÷ closed loop",
    "refused": "refused per second",
    "failed": "failed per second",
    "dropped": "not sent per second",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "max_ms": "longest ms",
    "refused_p99_ms": "p99 ms to a refusal",
    "cpu_us": "server's CPU µs each",
    "client": "client's part of a core",
    "mib": "MiB",
    "mib_before": "MiB in closed loop",
    "ready_mib": "MiB when ready",
    "loaded_mib": "MiB after load",
}
PICTURES = {
    "bench-load.png": (REQUESTS, "Requests a second, clients that wait for their reply"),
    "bench-streams.png": (STREAMS, "Steps a second, all streams together"),
    "bench-latency.png": (BESIDE, "p99 of steps at 500 a second beside large requests, ms"),
}


def write(results: Results, samples: Path, folder: Path) -> list[Path]:
    """Write `folder`/benchmarks.md, between its markers if it has them, and its pictures; return the files."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    shown = []
    for name, (section, title) in PICTURES.items():
        if rows := measured(results, section):
            picture(results, rows, title).savefig(images / name, dpi=110)
            shown.append(f"![{title}](images/{name})")
    file = folder / "benchmarks.md"
    text = (file if file.exists() else ROOT / "docs/benchmarks.md").read_text()
    new = f"{BEGIN}\n\n{page(results, os.path.relpath(samples, folder), shown)}\n\n{END}"
    file.write_text(re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: new, text, flags=re.DOTALL))
    return [file, *sorted(images.glob("bench-*.png"))]


def measured(results: Results, section: str) -> list[Row]:
    return [row for row in ROWS if row.section == section and results.samples.get(row.name)]


def page(results: Results, samples: str, pictures: Sequence[str]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    other = f" “{OTHER}” is commit {results.other}, measured in the same rounds." if results.other else ""
    rounds = max((len(taken) for row in results.samples.values() for taken in row.values()), default=0)
    parts = [
        f"{results.when}, {results.machine}; {rounds} rounds; load average {results.load_before} before. "
        f"{versions}.{other}",
        f"Every sample: [{Path(samples).name}]({samples}). A figure is the median of the rounds (smallest–largest); "
        "a ratio is taken within each round.",
        f"## Wanted and measured\n\n{wanted_table(results)}",
        *pictures,
    ]
    if results.other:
        parts.append(f"## Beside the other checkout\n\n{both_table(results)}")
    sections = {row.section: measured(results, row.section) for row in ROWS}
    parts += [f"## {section}\n\n{section_table(results, rows)}" for section, rows in sections.items() if rows]
    if results.left_out:
        lines = (f"- {what}: {(why.splitlines() or ['failed'])[0]}" for what, why in results.left_out.items())
        parts.append("## Left out\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def wanted_table(results: Results) -> str:
    """Every figure that something was wanted of, if it was measured."""
    lines = []
    for wanted in WANTED:
        if mine := results.measured(wanted):
            others = [told(results.measured(wanted, OTHER))] if results.other else []
            limit = f"≤ {wanted.most:,g}" if wanted.least is None else f"≥ {wanted.least:,g}"
            lines.append([about(wanted), limit, told(mine), *others, "yes" if wanted.met(mine.median) else "**no**"])
    return markdown(["what", "wanted", "measured", *([OTHER] if results.other else []), "met"], lines)


def about(wanted: Wanted) -> str:
    what = f"{wanted.row}{f' ({wanted.variant})' if wanted.variant else ''}: {TITLES[wanted.figure]}"
    if not wanted.over:
        return what
    row, server, figure = wanted.over
    server = "the fastest naive variant" if server == FASTEST_NAIVE else server
    base = ", ".join(filter(None, [server, row, TITLES.get(figure)]))
    return f"{what} {'minus' if wanted.minus else '÷'} {base}"


def both_table(results: Results) -> str:
    lines = []
    for row in ROWS:
        for server in (name for name in results.samples.get(row.name, {}) if name.startswith(OURS)):
            pair = [(row.name, name, row.figure) for name in (server, server.replace(OURS, OTHER))]
            both = [told(results.spread(*one)) for one in pair]
            lines.append([f"{row.name}: {server}", TITLES[row.figure], *both, told(results.ratio(*pair))])
    return markdown(["row", "figure", "this checkout", OTHER, "ratio"], lines)


def section_table(results: Results, rows: Sequence[Row]) -> str:
    taken = [one for row in rows for samples in results.samples[row.name].values() for one in samples]
    figures = [figure for figure in TITLES if any(figure in one for one in taken)]
    naive = rows[0].section == REQUESTS
    lines = []
    for row in rows:
        for server in results.samples[row.name]:
            base = (re.sub("safetensors|v2 JSON|v2 binary", "JSON", row.name), FASTEST_NAIVE, "rate")
            over = [told(results.ratio((row.name, server, "rate"), base))] if naive else []
            values = [told(results.spread(row.name, server, figure)) for figure in figures]
            lines.append([row.name, server, *over, *values])
    titles = [TITLES[figure] for figure in figures]
    return markdown(["row", "server", *(["× naive"] if naive else []), *titles], lines)


def markdown(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---", "---", *(["---:"] * (len(titles) - 2))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [titles, rule, *lines])


def told(spread: Spread | None) -> str:
    if spread is None:
        return "–"
    middle, low, high = map(rounded, spread)
    return middle if low == high else f"{middle} ({low}–{high})"


def rounded(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def picture(results: Results, rows: Sequence[Row], title: str) -> Figure:
    """A panel for each row, a bar for each server, whiskers from the smallest round to the largest."""
    lines = -(-len(rows) // 2)
    most = max(len(results.samples[row.name]) for row in rows)
    figure = Figure(figsize=(12, lines * (0.24 * most + 0.9) + 0.4), layout="constrained")
    panels = list(figure.subplots(lines, 2, squeeze=False).flat)
    for axes in panels[len(rows) :]:
        axes.remove()
    for axes, row in zip(panels, rows, strict=False):
        spreads = {name: results.spread(row.name, name, row.figure) for name in results.samples[row.name]}
        found = {name: spread for name, spread in spreads.items() if spread}
        middles = [spread.median for spread in found.values()]
        whiskers = [[one.median - one.low for one in found.values()], [one.high - one.median for one in found.values()]]
        colors = {OURS: "#1f6f8b", OTHER: "#99c1c9"}
        fill = [colors.get(name.partition(",")[0], "0.72") for name in found]
        bars = axes.barh(list(found), middles, xerr=whiskers, color=fill, ecolor="0.35", height=0.7)
        axes.bar_label(bars, [rounded(middle) for middle in middles], padding=6, fontsize=8)
        axes.set_title(row.name, fontsize=9, loc="left")
        axes.set(xscale="log", xlim=(min(middles, default=1) / 3, 4 * max(middles, default=1)))
        axes.xaxis.set_minor_formatter(NullFormatter())  # they would lie over each other
        axes.tick_params(labelsize=8)
        axes.invert_yaxis()
    figure.suptitle(title)
    return figure
