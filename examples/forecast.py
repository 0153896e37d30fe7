"""Feed the real series through a running service in three ways, see that they agree, and plot forecast against truth.

    make serve                      # in one terminal
    python examples/forecast.py     # in another: writes docs/images/forecast.png

Letters: T time steps, S of them in the test section, I inputs and O forecasts per step, P values of state.
"""

import argparse
from pathlib import Path

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from series import Floats, Series, baselines, sunspots, weather

from rnn_client import Client

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "forecast.png"
TRUTH, FORECAST, QUIET = "#30343b", "#d9480f", "#868e96"


def whole(client: Client, model: str, inputs: Floats) -> tuple[Floats, Floats]:
    """The sequence (T, I) in one request: predictions (T, O) and the final state (L, P)."""
    result = client.forward(inputs, model, returns=["predictions", "h_n"])
    return result.predictions, result.h_n


def stepwise(client: Client, model: str, inputs: Floats, h: Floats) -> Floats:
    """One request a step, the state kept here: predictions (S, O) from inputs (S, I) and the state (L, P) before."""
    predictions = []
    h = h[:, None]  # one row
    for step in inputs[:, None]:
        result = client.step(step, h, model=model)
        h = result.h
        predictions.append(result.predictions[0])
    return np.array(predictions)


def streamed(client: Client, model: str, inputs: Floats, h: Floats) -> Floats:
    """A stream over a WebSocket, the state kept by the service: predictions (S, O) from inputs (S, I)."""
    with client.session(model, h=h) as session:
        return np.array([result.predictions for result in session.stream(inputs, returns="predictions")])


def forecast(client: Client, series: Series) -> Floats:
    """Predictions (T, O) for the whole series. Raises if the test section, run live, gives anything else."""
    predictions, _ = whole(client, series.model, series.inputs)
    history, live = np.split(series.inputs, [series.test_from])
    _, h = whole(client, series.model, history)
    for way in (stepwise, streamed):
        difference = np.abs(way(client, series.model, live, h) - predictions[series.test_from :]).max()
        relative = float(difference / np.abs(predictions).max())
        print(f"{series.model}: {way.__name__} and whole agree to {relative:.1e} of the largest prediction")
        if relative > 1e-5:
            raise ValueError(f"{series.model}: {way.__name__} and whole differ by {relative} of the largest prediction")
    return predictions


def draw(axes: Axes, series: Series, predictions: Floats, rivals: dict[str, Floats]) -> None:
    """Truth and the forecast of the longest horizon, each at its own time; test section shaded, test errors above."""
    ahead = series.horizons[-1]
    forecasts = predictions[:, -1] + (series.level if series.relative else 0)
    step = series.times[1] - series.times[0]
    axes.axvspan(series.times[series.test_from] + step, series.times[-1] + ahead * step, color="#fff3e6", lw=0)
    axes.plot(series.times, series.level, color=TRUTH, lw=1.4, label="observed")
    axes.plot(series.times + ahead * step, forecasts, color=FORECAST, lw=1.4, label="forecast")
    errors = {"model": predictions, **rivals}
    figures = "  ·  ".join(f"{name} {series.test_rmse(values)[-1]:#.3g}" for name, values in errors.items())
    axes.annotate(f"Test RMSE:  {figures}", (0, 1.02), xycoords="axes fraction", color=QUIET, fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e9ecef")
    axes.set_axisbelow(True)
    axes.legend(frameon=False, ncols=2, loc="upper left", borderaxespad=0.2)


def plot(results: dict[str, tuple[Series, Floats]], picture: Path) -> None:
    """Both series, one above the other, 1200 by 800 pixels."""
    figure, (upper, lower) = plt.subplots(2, figsize=(12, 8), layout="constrained", gridspec_kw={"hspace": 0.08})
    draw(upper, *results["sunspots"], baselines(results["sunspots"][0], period=11, lags=9, roots=True))
    upper.set_title("Sunspot number, one year ahead (tanh RNN)\n", loc="left", fontweight="bold")
    upper.set_xlim(np.datetime64("1850"), np.datetime64("2010"))
    upper.set_ylim(-10, 240)
    draw(lower, *results["weather"], baselines(results["weather"][0], period=24, lags=24))
    lower.set_title("Temperature at JFK airport in °C, six hours ahead (GRU)\n", loc="left", fontweight="bold")
    lower.set_xlim(np.datetime64("2013-10-25"), np.datetime64("2013-11-28T18"))
    lower.set_ylim(-8, 26)
    lower.xaxis.set_major_formatter(mdates.DateFormatter("%-d %b"))
    for axes, text in ((upper, "test: 1960-2008"), (lower, "test: November and December 2013")):
        axes.annotate(text, (0.99, 0.94), xycoords="axes fraction", ha="right", color=FORECAST, fontsize=10)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--picture", type=Path, default=PICTURE)
    arguments = parser.parse_args()
    with Client(arguments.url) as client:
        results = {series.model: (series, forecast(client, series)) for series in (sunspots(), weather())}
    plot(results, arguments.picture)


if __name__ == "__main__":
    main()
