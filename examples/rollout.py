"""Let `models/sunspots` go on by itself for ten years, through a running service, and plot that beside persistence.

    make serve                     # in one terminal
    python examples/rollout.py     # in another: writes docs/images/rollout.png

Above: rollouts from six of the years that the model never saw. Below: the error of all rollouts by how far they reach.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from series import Floats, Series, rollout_rmse, rollout_starts, sunspots

from rnn_client import Client

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "rollout.png"
TRUTH, ROLLOUT, QUIET = "#30343b", "#d9480f", "#868e96"
YEARS, CYCLE, SHOWN = 10, 11, slice(0, None, 7)


def rollouts(client: Client, series: Series) -> dict[int, Floats]:
    """By the index of the last known year: the ten years after it. All of them are rows of one request."""
    starts = list(rollout_starts(series, YEARS))
    result = client.generate([series.inputs[: start + 1] for start in starts], steps=YEARS, model=series.model)
    return dict(zip(starts, np.asarray(result.predictions)[..., 0], strict=True))


def draw(axes: Axes, series: Series, rolled: dict[int, Floats]) -> None:
    """Truth, and some rollouts, each with the persistence of its last known year."""
    years = series.times.astype(int) + 1970
    axes.plot(years, series.level, color=TRUTH, lw=1.4, label="observed")
    for row, start in enumerate(list(rolled)[SHOWN]):
        ahead = years[start] + np.arange(YEARS + 1)
        line = np.concatenate([series.level[start : start + 1], rolled[start]])
        axes.plot(ahead, line, color=ROLLOUT, lw=1.6, label="rollout" if row == 0 else None)
        axes.plot(ahead[[0, -1]], [line[0]] * 2, color=QUIET, ls=":", label="persistence" if row == 0 else None)
        axes.plot(ahead[0], line[0], "o", color=ROLLOUT, ms=4)
    axes.set_xlim(1940, 2010)
    axes.set_title("Sunspot number, ten years on (tanh RNN, each forecast is the next input)", loc="left")


def draw_errors(axes: Axes, series: Series, errors: dict[str, Floats]) -> None:
    """Test error by years ahead."""
    styles = {"rollout": (ROLLOUT, "-"), "persistence": (QUIET, ":"), f"{CYCLE} years earlier": (QUIET, "--")}
    for name, values in errors.items():
        colour, dashes = styles[name]
        axes.plot(np.arange(1, YEARS + 1), values, dashes, color=colour, marker="o", ms=4, label=name)
    axes.set_ylim(0)
    axes.set_xlabel("years ahead")
    count = len(rollout_starts(series, YEARS))
    axes.set_title(f"Root mean square error of {count} rollouts, 1959 to 2008", loc="left")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    series = sunspots()
    with Client(arguments.url) as client:
        rolled = rollouts(client, series)
    rivals = {
        "rollout": rolled,
        "persistence": {start: np.repeat(series.level[start], YEARS) for start in rolled},
        f"{CYCLE} years earlier": {start: series.level[start + 1 - CYCLE :][:YEARS] for start in rolled},
    }
    errors = {name: rollout_rmse(series, values) for name, values in rivals.items()}
    for name, values in errors.items():
        print(f"{name}: RMSE 1 to {YEARS} years ahead", *(f"{value:.1f}" for value in values))
    figure, panels = plt.subplots(2, figsize=(12, 8), layout="constrained", gridspec_kw={"hspace": 0.08})
    draw(panels[0], series, rolled)
    draw_errors(panels[1], series, errors)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e9ecef")
        axes.legend(frameon=False, ncols=3, loc="upper left")
    figure.savefig(arguments.picture, dpi=100)


if __name__ == "__main__":
    main()
