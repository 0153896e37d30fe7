#!/usr/bin/env python3
"""Write the table of docs/metrics.md from the metrics of the code: python scripts/metrics_page.py."""

from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase

from service.api.metrics import Metrics, Sampler

PAGE = Path(__file__).parent.parent / "docs" / "metrics.md"
BEGIN, END = "<!-- written by scripts/metrics_page.py -->\n", "<!-- end -->\n"


def table() -> str:
    """A line for each metric of the service's own, in the order of the code."""
    metrics, nothing = Metrics(), Any
    Sampler(metrics, nothing, nothing, int, list)  # type: ignore[arg-type]  # nothing is sampled
    lines = ["| metric | type | labels | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for collector in metrics.registry._collector_to_names:  # noqa: SLF001  # which has no list of its own
        if not isinstance(collector, MetricWrapperBase):  # of prometheus-client's own, as that of the process
            continue
        (family,) = collector.describe()
        labels = ", ".join(f"`{name}`" for name in collector._labelnames) or "–"  # noqa: SLF001
        unit = next((unit for unit in ("seconds", "bytes") if family.name.endswith(unit)), "–")
        name = family.name + "_total" * (family.type == "counter")
        lines.append(f"| `{name}` | {family.type} | {labels} | {unit} | {family.documentation} |")
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table of now."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
