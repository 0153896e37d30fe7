"""The two real series as arrays: what a model is given at each step, and what it should say. Needs only numpy.

Letters: T time steps, I inputs per step, O forecasts per step. Everything is in the units of the CSV files: the models
carry their normalisation in their weights.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Series:
    """One real series, cut by time into three sections: training, validation, test.

    - times (T,): when each step was observed
    - level (T,): the variable that is forecast
    - inputs (T, I): what the model is given at each step
    - targets (T, O): what it should say then, `level` later or its change until then; NaN past the end of the data
    - horizons (O,): how many steps ahead each target lies
    - relative: whether targets are changes of `level` rather than values of it
    - validation_from, test_from: first steps of those sections
    """

    model: str
    times: NDArray[np.datetime64]
    level: Floats
    inputs: Floats
    targets: Floats
    horizons: tuple[int, ...]
    relative: bool
    validation_from: int
    test_from: int

    def section(self, name: str) -> slice:
        """The steps of `training`, `validation` or `test` whose targets all lie in that section too."""
        cuts = (0, self.validation_from, self.test_from, len(self.times))
        first = ("training", "validation", "test").index(name)
        return slice(cuts[first], cuts[first + 1] - max(self.horizons))

    def test_rmse(self, predictions: Floats) -> Floats:
        """(O,): root mean square error of predictions (T, O) over the test section, in the unit of `level`."""
        test = self.section("test")
        error = (predictions - self.targets)[test].astype(np.float64)
        return np.asarray(np.sqrt(np.mean(error**2, axis=0)), np.float32)


def sunspots() -> Series:
    """Yearly sunspot numbers; the target is next year's. Forecasts for 1920-1958 validate, those for 1960-2008 test."""
    years, columns = _read("sunspots")
    level = columns["sunspots"]
    return Series(
        model="sunspots",
        times=years.astype("datetime64[Y]"),
        level=level,
        inputs=level[:, None],
        targets=_ahead(level, (1,)),
        horizons=(1,),
        relative=False,
        validation_from=_first(years, "1919"),
        test_from=_first(years, "1959"),
    )


def weather() -> Series:
    """Hourly weather of 2013 at New York's JFK; targets are the changes of temperature over 1, 3 and 6 hours, in °C.

    Inputs: temperature (°C), dew point (°C), wind to the east and to the north (m/s), pressure - 1013.25 (hPa),
    sine and cosine of the hour of the day (UTC). September and October validate, November and December test.
    """
    hours, columns = _read("weather")
    level = columns["temperature"]
    angle = 2 * np.pi / 24 * (hours - hours.astype("datetime64[D]")).astype(np.float32)
    observed = [columns[name] for name in ("temperature", "dew_point", "wind_east", "wind_north")]
    pressure = columns["pressure"] - np.float32(1013.25)
    horizons = (1, 3, 6)
    return Series(
        model="weather",
        times=hours,
        level=level,
        inputs=np.column_stack([*observed, pressure, np.sin(angle), np.cos(angle)]).astype(np.float32),
        targets=_ahead(level, horizons) - level[:, None],
        horizons=horizons,
        relative=True,
        validation_from=_first(hours, "2013-09-01T00"),
        test_from=_first(hours, "2013-11-01T00"),
    )


def rollout_rmse(series: Series, rolled: dict[int, Floats]) -> Floats:
    """(steps,): root mean square error of rollouts, each (steps,) by the index of the step after which it begins."""
    errors = [values - series.level[start + 1 :][: len(values)] for start, values in rolled.items()]
    return np.asarray(np.sqrt(np.mean(np.square(errors, dtype=np.float64), axis=0)), np.float32)


def rollout_starts(series: Series, steps: int) -> range:
    """Indices of the test section after which so many steps are known."""
    return range(series.test_from, len(series.level) - steps)


def baselines(series: Series, period: int, lags: int, *, roots: bool = False) -> dict[str, Floats]:
    """Forecasts (T, O) that need no network, as predictions of `series.targets`; NaN where they reach before the start.

    Persistence: it stays as it is. Earlier: it does what it did `period` steps before. Autoregression: least
    squares on the last `lags` steps of every input, fitted on all that lies before the test section; with `roots`
    also on square roots, which suit counts whose spread grows with their size.
    """
    level, now = series.level, series.level[:, None]
    persistence = np.repeat(now, len(series.horizons), axis=1)
    cycle = np.column_stack([np.roll(level, period - steps) for steps in series.horizons])
    cycle[:period] = np.nan
    origin = now if series.relative else np.zeros_like(now)
    forecasts = {
        "persistence": persistence - origin,
        f"{period} steps earlier": cycle - origin,
        f"linear autoregression ({lags} lags)": _autoregression(series, lags),
    }
    if roots:
        rooted = replace(series, inputs=np.sqrt(series.inputs), targets=np.sqrt(series.targets))
        forecasts["the same on square roots"] = np.square(_autoregression(rooted, lags))
    return forecasts


def _autoregression(series: Series, lags: int) -> Floats:
    """(T, O): a linear function of the last `lags` steps, fitted before the test section; NaN in the first steps."""
    width = series.inputs.shape[1]
    past = np.lib.stride_tricks.sliding_window_view(series.inputs.astype(np.float64), lags, axis=0)
    design = np.column_stack([past.reshape(-1, width * lags), np.ones(len(past))])
    known = series.section("validation").stop - lags + 1
    weights = np.linalg.lstsq(design[:known], series.targets[lags - 1 :][:known].astype(np.float64))[0]
    return np.concatenate([np.full((lags - 1, len(series.horizons)), np.nan), design @ weights]).astype(np.float32)


def _ahead(level: Floats, horizons: tuple[int, ...]) -> Floats:
    """(T, O): the value so many steps later, NaN past the end."""
    future = np.full((len(level), len(horizons)), np.nan, np.float32)
    for column, steps in enumerate(horizons):
        future[:-steps, column] = level[steps:]
    return future


def _first(times: NDArray[np.datetime64], moment: str) -> int:
    return int(np.searchsorted(times, np.datetime64(moment)))


def _read(name: str) -> tuple[NDArray[np.datetime64], dict[str, Floats]]:
    """The times in a CSV file's first column, and the other columns by name."""
    header, *rows = (line.split(",") for line in (DATA / f"{name}.csv").read_text().splitlines())
    times, *columns = zip(*rows, strict=True)
    return np.array(times, dtype=np.datetime64), dict(zip(header[1:], map(_floats, columns), strict=True))


def _floats(cells: Iterable[str]) -> Floats:
    return np.array(list(cells), np.float32)
