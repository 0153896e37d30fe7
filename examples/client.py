"""The smallest client: next year's sunspot number, and the year after's if that came true."""

from pathlib import Path

import httpx

SERVICE = "http://127.0.0.1:8000"

rows = (Path(__file__).parent / "data" / "sunspots.csv").read_text().splitlines()[1:]
years = [[float(row.split(",")[1])] for row in rows]

# The whole past in one request: a forecast after every year, and the state at the end.
request = {"model": "sunspots", "inputs": years, "returns": ["predictions", "h_n"]}
past = httpx.post(f"{SERVICE}/rnn/forward", json=request).raise_for_status().json()
expected = past["predictions"][-1]
print(f"2009: {expected[0]:.1f}")

# From there a year at a time; the state travels with the request.
step = {"model": "sunspots", "inputs": expected, "h": past["h_n"][0]}
print(f"2010: {httpx.post(f'{SERVICE}/cell/step', json=step).raise_for_status().json()['predictions'][0]:.1f}")
