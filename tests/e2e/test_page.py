"""The page at `/`, in a browser and at a real service: what it draws is what the API gives, and it asks nobody else."""

import json
import re
from datetime import UTC, datetime

import numpy as np
import pytest

from .browser import Browser, assert_clean, needs_browser, table, visit
from .relay import Relay
from .running import ROOT, until

pytestmark = needs_browser
SERIES = json.loads((ROOT / "service" / "api" / "page" / "series.json").read_text())
KEY = "the/api+key?"
END_KEY = "\ue010"


def at_full_speed(browser):
    browser.type("#speed", END_KEY)
    assert browser.text("#speed-text") == "as fast as it goes"


def steps(browser):
    return int(browser.text("#step").replace(",", ""))


def play_to_the_end(browser):
    browser.click("#play")
    until(lambda: browser.text("#play") == "Again", "the series has ended")


def last_steps(browser):
    """The page's table of steps, as dictionaries by its header, in order of time."""
    browser.run("document.getElementById('table-box').open = true")
    head, *rows = until(lambda: table(browser, "#steps")[1:] and table(browser, "#steps"), "the table is there")
    return [dict(zip(head, row, strict=True)) for row in reversed(rows)]


def read_map(browser, points):
    """What the map says under the pointer at each (x, y) of its size's fractions, and the colour it has there."""
    width, height = browser.run(
        "const map = document.getElementById('map'); return [map.clientWidth, map.clientHeight]"
    )
    places = [(round(x * width), round(y * height)) for x, y in points]
    texts: list[str] = []

    def answered() -> str | None:
        now = browser.text("#pointed")
        return now if ":" in now and now not in texts[-1:] else None

    for place in places:
        browser.point("#map", *place)
        texts.append(until(answered, "the map answers"))
    browser.point("h1", 1, 1)  # away: what is pointed at has an outline
    until(lambda: "Point at" in browser.text("#pointed"), "nothing is pointed at")
    colours = browser.run(
        "const map = document.getElementById('map');"
        "const context = new OffscreenCanvas(map.width, map.height).getContext('2d', {willReadFrequently: true});"
        "context.drawImage(map, 0, 0);"
        "return arguments[0].map(([x, y]) => [...context.getImageData(x, y, 1, 1).data])",
        places,
    )
    return list(zip(texts, colours, strict=True))


def assert_value(text, colour, value):
    """The map's word and colour for a value: orange above zero, blue below."""
    assert abs(float(text.rsplit(": ")[1]) - value) < 6e-5
    if abs(value) > 0.1:
        assert (colour[0] > colour[2]) == (value > 0), (text, colour)


def test_sunspots_are_drawn_as_computed(bundled, browser):
    visit(browser, bundled.url)
    names = browser.run("return [...document.querySelectorAll('.model b')].map((name) => name.textContent)")
    assert names == [model["name"] for model in bundled.get("/models").json()["models"]]
    assert "RNN 1 → 32 → 1 · version 1" in browser.text(".model:has([value=sunspots])")
    at_full_speed(browser)
    play_to_the_end(browser)

    inputs = SERIES["sunspots"]["inputs"]
    assert steps(browser) == len(inputs) == 309
    reply = bundled.post("/rnn/forward", {"model": "sunspots", "inputs": inputs, "returns": ["outputs", "predictions"]})
    outputs, predictions = (np.array(reply.json()[name]) for name in ("outputs", "predictions"))
    rows = last_steps(browser)
    assert [row["time"] for row in rows] == [str(year) for year in range(1989, 2009)]
    assert [row["step"] for row in rows] == [str(number) for number in range(290, 310)]
    np.testing.assert_allclose([float(row["forecast +1"]) for row in rows], predictions[-20:, 0], rtol=6e-4)
    np.testing.assert_allclose([float(row["observed"]) for row in rows], [row[0] for row in inputs[-20:]], rtol=6e-4)
    for text, colour in read_map(browser, [(0.2, 0.01), (0.5, 0.5), (0.7, 0.99), (0.9, 0.3), (0.95, 0.62)]):
        year, unit = map(int, re.match(r"(\d{4}), unit (\d+):", text).groups())
        assert_value(text, colour, outputs[year - 1700, unit])
    # The figures that the model's description gives.
    assert table(browser, "#errors")[1] == ["1 year ahead", "15.9", "30.4", "49"]
    assert_clean(browser, bundled)


def test_weather_forecasts_are_drawn(bundled, browser):
    visit(browser, bundled.url, "weather")
    at_full_speed(browser)
    play_to_the_end(browser)
    inputs = np.array(SERIES["weather"]["inputs"])
    reply = bundled.post("/rnn/forward", {"model": "weather", "inputs": inputs.tolist(), "returns": ["predictions"]})
    level = inputs[:, SERIES["weather"]["level"]]
    forecasts = np.array(reply.json()["predictions"]) + level[:, None]
    rows = last_steps(browser)
    assert datetime.strptime(rows[-1]["time"], "%d %b, %H:%M %Z").replace(year=2013, tzinfo=UTC).day == 27
    errors = table(browser, "#errors")[1:]
    for column, horizon in enumerate((1, 3, 6)):
        shown = [float(row[f"forecast +{horizon}"]) for row in rows]
        np.testing.assert_allclose(shown, forecasts[-20:, column], rtol=6e-4)
        judged = slice(SERIES["weather"]["warmup"], len(level) - horizon)
        truth = level[judged.start + horizon :]
        for cell, given in zip(errors[column][1:3], (forecasts[judged, column], level[judged]), strict=True):
            assert cell == f"{np.sqrt(np.mean((given - truth) ** 2)):#.3g} °C"
        assert errors[column][3] == str(len(truth))
    assert_clean(browser, bundled)


def test_other_model_gets_made_up_inputs(service, browser):
    visit(browser, service.url, "lstm")
    assert "made-up" in browser.text("#input")
    assert "made up, not data" in browser.text("#chart-caption")
    browser.click("#play")
    until(lambda: steps(browser) >= 40, "40 steps")
    browser.click("#play")
    until(lambda: browser.text("#play") == "Play", "it stands still")
    until(lambda: last_steps(browser)[-1]["step"] == browser.text("#step"), "all answers are there")
    done = steps(browser)
    waves = np.array([[np.sin(2 * np.pi * t / (24 + 7 * i) + i) for i in range(5)] for t in range(done)], np.float32)
    layers_seen = set()
    for text, colour in read_map(browser, [(0.1, 0.1), (0.15, 0.3), (0.12, 0.6), (0.2, 0.95)]):
        step, layer, unit = map(int, re.match(r"step (\d+), layer (\d), unit (\d+):", text).groups())
        reply = service.post("/rnn/forward", {"model": "lstm", "inputs": waves[:step].tolist(), "returns": ["h_n"]})
        assert_value(text, colour, reply.json()["h_n"][layer][unit])
        layers_seen.add(layer)
    assert layers_seen == {0, 1}
    assert_clean(browser, service)


def test_model_that_cannot_run_says_why(service, browser):
    visit(browser, service.url)
    assert "whole sequences only" in browser.text(".model:has([value=both-ways])")
    assert "weight_ih_l0" in browser.text(".model:has([value=broken])")
    disabled = browser.run("return [...document.querySelectorAll('.model input:disabled')].map((input) => input.value)")
    assert disabled == ["broken"]
    browser.click(".model:has([value=both-ways])")
    assert browser.run("return document.getElementById('play').disabled")


def test_cut_stream_resumes(bundled, browser):
    relay = Relay(bundled.port)
    try:
        visit(browser, f"http://127.0.0.1:{relay.port}", "sunspots")
        browser.run("const s = document.getElementById('speed'); s.value = 6; s.dispatchEvent(new Event('input'))")
        browser.click("#play")
        for reached in (20, 90, 160):
            until(lambda reached=reached: steps(browser) >= reached, f"{reached} steps")
            relay.cut()
        until(lambda: browser.text("#play") == "Again", "the series has ended")
        assert relay.cuts == 3
        assert "nothing is lost, no step ran twice" in browser.text("#note")
        assert steps(browser) == 309
        assert table(browser, "#errors")[1] == ["1 year ahead", "15.9", "30.4", "49"]
    finally:
        relay.close()


INK = """const canvas = document.getElementById(arguments[0]), middle = canvas.width / 2;
const pixels = canvas.getContext('2d').getImageData(middle - 60, 0, 120, canvas.height).data;
return new Set(new Uint32Array(pixels.buffer)).size"""


def test_socket_of_the_readme_opens_in_the_console(bundled, browser):
    visit(browser, bundled.url, "sunspots")
    (script,) = re.findall(r"```js\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    heard = "socket.addEventListener('message', ({ data }) => heard([...new Float32Array(data)]))"
    answer = browser.run(f"{script}; return new Promise((heard) => {heard})")
    np.testing.assert_allclose(answer, [-0.749719, -0.6134633], rtol=1e-5)


@pytest.mark.parametrize("model", ["sunspots", "digits"])
def test_charts_say_what_to_press(bundled, browser, model):
    visit(browser, bundled.url, model)
    for chart in ("chart", "map"):
        assert browser.run(INK, chart) > 1, chart


def test_fork_reset_and_end(bundled, browser):
    visit(browser, bundled.url, "sunspots")
    browser.click("#play")
    until(lambda: steps(browser) >= 15, "15 steps")
    browser.click("#fork")
    until(lambda: len(table_of_runs(browser)) == 2, "the fork is listed")
    forked = until(lambda: steps(browser) >= 5 and browser.text("#session"), "the fork goes on")
    browser.click("#play")
    rows = last_steps(browser)
    # The fork counts its own steps, and its years go on from where it left.
    assert int(rows[-1]["time"]) > 1700 + int(rows[-1]["step"]) + 13
    predictions = bundled.post(
        "/rnn/forward",
        {"model": "sunspots", "inputs": SERIES["sunspots"]["inputs"][: int(rows[-1]["time"]) - 1699]},
    ).json()["predictions"]
    assert float(rows[-1]["forecast +1"]) == pytest.approx(predictions[-1][0], rel=6e-4)

    browser.click("#runs li:first-child button")
    until(lambda: browser.text("#session") != forked, "the first session is shown")
    assert steps(browser) >= 15
    browser.click("#reset")
    until(lambda: len(table(browser, "#steps")) == 1, "the drawing is empty")
    count = steps(browser)
    browser.click("#play")
    until(lambda: steps(browser) > count, "it goes on")
    first = until(lambda: last_steps(browser)[0], "a step")
    assert first["time"] == "1700"
    assert int(first["step"]) == count + 1  # the session's count goes on, so that a late retry cannot run
    browser.click("#end")
    until(lambda: browser.text("#session") == forked, "the other session is left")
    assert_clean(browser, bundled)


def table_of_runs(browser):
    return browser.run("return [...document.querySelectorAll('#runs button')].map((button) => button.textContent)")


def test_gone_session_shows_the_problem(bundled, browser):
    visit(browser, bundled.url, "sunspots")
    browser.click("#play")
    until(lambda: steps(browser) >= 5, "5 steps")
    session = next(url.rsplit("/", 1)[1] for url in browser.requests() if re.search(r"/cell/sessions/[^/]{20,}$", url))
    bundled.delete(f"/cell/sessions/{session}")
    until(lambda: browser.shown("#problem"), "the problem is shown")
    assert "delete" in browser.text("#problem").lower()
    assert browser.text("#play") == "Start"
    browser.click("#play")
    until(lambda: not browser.shown("#problem") and steps(browser) > 0, "a new session")


def test_page_asks_for_a_key(bundled, browser, launch):
    locked = launch(models=ROOT / "models", api_keys=KEY)
    browser.open(locked.url)
    until(lambda: browser.shown("#key-form"), "the key is asked for")
    browser.type("#key", "wrong\n")
    until(lambda: browser.shown("#problem"), "the key is refused")
    assert "not one of this service's" in browser.text("#problem")
    browser.run("document.getElementById('key').value = ''")
    browser.type("#key", f"{KEY}\n")
    until(lambda: browser.run("return document.querySelectorAll('.model').length"), "the models are listed")
    assert not browser.shown("#key-form")
    browser.click("#play")
    until(lambda: steps(browser) >= 5, "5 steps")
    assert KEY not in locked.log()


def test_page_on_a_phone(bundled, tmp_path):
    phone = Browser(tmp_path, width=390, height=844, dark=True)
    try:
        visit(phone, bundled.url, "weather")
        phone.click("#play")
        until(lambda: steps(phone) >= 30, "30 steps")
        assert phone.run("return document.documentElement.scrollWidth <= innerWidth")
        rows = phone.run("return [...document.querySelectorAll('#errors tr')].filter((row) => row.offsetParent).length")
        assert rows == 4  # a head, and a line for each horizon
        assert phone.run("return matchMedia('(prefers-color-scheme: dark)').matches")
        assert_clean(phone, bundled)
    finally:
        phone.close()
