"""Write the series that the page at `/` streams: sunspots whole, and two weeks of weather that its model never saw.

python examples/make_page_data.py
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from series import Series, sunspots, weather

FILE = Path(__file__).parents[1] / "service" / "api" / "page" / "series.json"
WEEKS = slice(np.datetime64("2013-11-14T00"), np.datetime64("2013-11-28T00"))


def document() -> dict[str, dict[str, Any]]:
    """By model: the inputs (T, I), and what the page must know to label and to judge the forecasts.

    `warmup` is the number of steps after which the model's description lets one rely on it.
    """
    years = sunspots()
    hours = weather()
    cut = slice(*(int(np.searchsorted(hours.times, moment)) for moment in (WEEKS.start, WEEKS.stop)))
    return {
        "sunspots": {
            "title": "Sunspots, yearly, 1700-2008",
            "quantity": "sunspot number",
            "unit": "",
            "every": "year",
            "first": str(years.times[0]),
            "warmup": 11,
            "sections": {
                "training": 0,
                "validation": years.validation_from,
                "test": years.test_from,
            },
            **_numbers(years, slice(None)),
        },
        "weather": {
            "title": "JFK weather, hourly, November 2013",
            "quantity": "temperature",
            "unit": "°C",
            "every": "hour",
            "first": f"{hours.times[cut.start]}",
            "warmup": 24,
            "sections": {"test": 0},
            **_numbers(hours, cut),
        },
    }


def _numbers(series: Series, cut: slice) -> dict[str, Any]:
    inputs = series.inputs[cut]
    # Python's float of the shortest text: the same float32 when it is parsed, in the fewest digits.
    rows = [[float(str(value)) for value in row] for row in inputs]
    (level,) = np.flatnonzero((inputs == series.level[cut, None]).all(axis=0))
    return {"level": int(level), "horizons": list(series.horizons), "relative": series.relative, "inputs": rows}


def main() -> None:
    FILE.write_text(json.dumps(document(), ensure_ascii=False, separators=(",", ":")) + "\n")
    print(f"{FILE.name}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
