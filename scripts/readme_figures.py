#!/usr/bin/env python3
"""Write the README's table of speed from docs/benchmarks.md: python scripts/readme_figures.py."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- written by scripts/readme_figures.py -->\n", "<!-- end -->\n"
COLUMNS = {
    "step": "one step, H = 32",
    "small": "32 steps, H = 32",
    "medium": "8 rows of 64 steps, H = 64",
    "large": "8 rows of 256 steps, H = 256",
}
SERVERS = {
    "rnn-service": "**rnn-service**",
    "Mosec": "Mosec",
    "Triton": "Triton (its own JSON)",
    "naive async, 1 thread": "FastAPI and torch by hand",
    "Ray Serve, HAProxy": "Ray Serve",
    "LitServe": "LitServe",
    "BentoML": "BentoML",
}


def table(results: str) -> str:
    """Requests a second of each server that was measured; a case that it has not run is a dash."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in results.splitlines() if line.startswith("| ")]
    header = next(row for row in cells if row[:2] == ["row", "server"])
    rates = {(row[0], row[1]): row[header.index("per second")] for row in cells if len(row) == len(header)}
    lines = [["requests a second, JSON", *COLUMNS.values()], ["---", *("---:" for _ in COLUMNS)]]
    for server, shown in SERVERS.items():
        form = "v2 JSON" if server == "Triton" else "JSON"
        found = [rates.get((f"{case}, {form}", server), "–").partition(" ")[0] for case in COLUMNS]
        if set(found) != {"–"}:
            lines.append([shown, *found])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def page(text: str, results: str) -> str:
    """The README with the figures of these results."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(page(README.read_text(), RESULTS.read_text()))
