"""The pages that show a run: docs/benchmarks.md with its pictures, and docs/rivals.md.

`python -m benchmarks.pages RESULTS.json` writes them anew without measuring anything.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import tables
from benchmarks.bodies import CELLS
from benchmarks.method import METHOD, REPRODUCE, RIVALS
from benchmarks.plots import Picture, draw
from benchmarks.report import Report
from benchmarks.verdicts import verdicts

PAGE, RIVALS_PAGE = Path("docs/benchmarks.md"), Path("docs/rivals.md")
IMAGES = Path("docs/images")
RIVALS_PICTURE = "bench-load.png"


def all_tables(report: Report) -> list[Table]:
    """All tables that have a line, in the order to be read."""
    found = [
        tables.verdicts_table(verdicts(report)),
        tables.load_table(report.rows),
        tables.arrivals_table(report.points),
        tables.beside_table(report.beside),
        tables.streams_table(report.streams),
        tables.gains_table(report.gains),
        tables.stages_table(report.stages),
        tables.costs_table(report.costs),
        tables.lines_table(report.costs),
        tables.resident_table(report.resident),
        tables.peaks_table(report.peaks),
        tables.sessions_table(report.sessions),
        tables.idle_table(report.idle),
        tables.restarts_table(report.restarts),
    ]
    return [table for table in found if table.row_count]


def show(report: Report) -> None:
    """Print all tables."""
    console = Console(width=max(Console().width, 150))
    for table in all_tables(report):
        console.print(table)


def write(report: Report, folder: Path, samples: Path) -> list[Path]:
    """Write tables and pictures to their places under the folder; return the files. `samples` is linked to."""
    page, rivals, images = folder / PAGE, folder / RIVALS_PAGE, folder / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    pictures = draw(images, report)
    if samples.is_relative_to(folder):
        samples = samples.relative_to(folder)
    page.write_text(benchmarks_page(report, samples, pictures))
    rivals.write_text(rivals_page(report, samples, [one for one in pictures if one.file.name == RIVALS_PICTURE]))
    return [page, rivals, *(picture.file for picture in pictures)]


def benchmarks_page(report: Report, samples: Path, pictures: Sequence[Picture]) -> str:
    """docs/benchmarks.md."""
    cells = tables.new_table("Cells", "cell", "path", "B", "T", "I", "H", "connections")
    for cell in CELLS:
        sizes = (cell.batch, cell.steps, cell.input_size, cell.hidden_size, cell.connections)
        cells.add_row(cell.name, cell.path, *map(str, sizes))
    sections = [
        "# Benchmarks",
        where(report),
        f"Numbers in JSON bodies: {report.numbers}. Every sample of this run: {link(samples)}.",
        "Machines differ and are noisy: only ratios taken in one run count. Beside LitServe, BentoML and Ray Serve: "
        f"[{RIVALS_PAGE.name}]({RIVALS_PAGE.name}).",
        *left_out(report),
        *map(shown, pictures),
        *map(tables.markdown, all_tables(report)),
        METHOD,
        tables.markdown(cells),
        REPRODUCE.format(samples=samples),
    ]
    return "\n\n".join(sections) + "\n"


def rivals_page(report: Report, samples: Path, pictures: Sequence[Picture]) -> str:
    """docs/rivals.md: every server on every cell."""
    sections = [
        "# Beside the rivals",
        where(report),
        f"Every sample: {link(samples)}. Pictures, our own figures and how they were taken: "
        f"[{PAGE.name}]({PAGE.name}). Again: `make rivals bench`.",
        *map(shown, pictures),
        RIVALS,
        *(
            tables.markdown(tables.cell_table(cell.name, report.rows))
            for cell in CELLS
            if any(row.cell == cell.name for row in report.rows)
        ),
        *(tables.markdown(table) for table in [tables.resident_table(report.resident)] if table.row_count),
    ]
    return "\n\n".join(sections) + "\n"


def where(report: Report) -> str:
    """When, on what, with what."""
    on = report.machine
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"{report.when:%Y-%m-%d}, {on['processor']}, {on['cores']} cores, {on['memory_gib']} GiB of memory; "
        f"{report.rounds} rounds; load average {report.load_before:.2f} before it began. {versions}."
    )


def shown(picture: Picture) -> str:
    """The picture on a page in docs/."""
    return f"![{picture.title}](images/{picture.file.name})"


def link(samples: Path) -> str:
    return samples.name if samples.is_absolute() else f"[{samples.name}](../{samples})"


def left_out(report: Report) -> list[str]:
    """What was not measured, as a list."""
    lines = [line for part in report.left_out.values() for line in part]
    return ["Not measured:\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("results", type=Path, help="what `python -m benchmarks.bench` wrote")
    parser.add_argument("--output", type=Path, default=Path(), help="folder under which docs/ is; default: this one")
    given = parser.parse_args()
    report = Report.read(given.results)
    show(report)
    for file in write(report, given.output, given.results):
        print(f"written: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
