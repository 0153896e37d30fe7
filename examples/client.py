"""The smallest client: next year's sunspot number, and the year after's if that came true.

python examples/client.py [URL], beside a running service: make serve
"""

import sys
from pathlib import Path

import numpy as np

from rnn_client import Client, ConnectionLost

rows = (Path(__file__).parent / "data" / "sunspots.csv").read_text().splitlines()[1:]
years = np.array([[float(row.split(",")[1])] for row in rows])


def forecast(client: Client) -> None:
    # The whole past in one request: a forecast after every year, and the state at the end.
    past = client.forward(years, "sunspots", returns=["predictions", "h_n"])
    expected = past.predictions[-1]
    print(f"2009: {expected[0]:.1f}")

    # From there a year at a time; the service keeps the state.
    with client.session("sunspots", h=past.h_n) as session:
        print(f"2010: {session.step(expected).predictions[0]:.1f}")


try:
    with Client(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000", retry_seconds=2) as client:
        forecast(client)
except ConnectionLost as error:
    sys.exit(f"{error}\nIs the service running? `make serve` starts it.")
