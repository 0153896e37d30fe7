"""The page with data of one's own: whole sequences, generation, and the curl lines, beside the API's own answers."""

import json
import string
import subprocess

import numpy as np
import pytest

from .browser import assert_clean, needs_browser, table, visit
from .models import write_model
from .running import start, until
from .test_generate import SPECS

pytestmark = needs_browser

LETTERS = "." + string.ascii_lowercase
DROP = """
const data = new DataTransfer();
data.items.add(new File([arguments[0]], "series.csv"));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""


@pytest.fixture
def page(bundled, browser):
    """The bundled models' page with its tables open; it must have been clean."""

    def opened(model):
        visit(browser, bundled.url, model)
        browser.run("for (const box of document.querySelectorAll('details')) box.open = true")
        return browser

    yield opened
    assert_clean(browser, bundled)


def put(browser, field, text):
    browser.run(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event('input'))",
        field,
        text,
    )


def click(browser, button):
    """Press it, and wait for the answer."""
    browser.click(f"#{button}")
    until(lambda: not browser.run("return document.body.ariaBusy == 'true'"), "it has been answered")
    until(lambda: browser.run("return new Promise((done) => requestAnimationFrame(() => done(true)))"), "it is drawn")
    assert not browser.shown("#problem"), browser.text("#problem")


def by_curl(browser):
    """What the page's line prints in a shell."""
    printed = subprocess.run(["sh", "-c", browser.text("#curl")], capture_output=True, check=True, timeout=30)
    return [json.loads(line) for line in printed.stdout.splitlines()]


def test_names_are_written_as_the_api_draws_them(page, bundled):
    browser = page("names")
    assert browser.run("return document.getElementById('stop').value") == "."
    put(browser, "data", ".Ka")
    put(browser, "seed", "7")
    put(browser, "temperature", "0.5")
    click(browser, "generate")
    call = {"model": "names", "inputs": [0, 11, 1], "steps": 10, "temperature": 0.5, "stop": [0], "seed": 7}
    tokens = bundled.post("/rnn/generate", call).json()["tokens"]
    assert browser.text("#given") == ".ka"
    assert browser.text("#written") == "".join(LETTERS[token] for token in tokens)
    assert by_curl(browser)[0]["tokens"] == tokens
    # Other tokens: words of a vocabulary, and ids without one.
    put(browser, "vocabulary", '{"mary": 13, "ann": 1}')
    put(browser, "data", "mary ann")
    assert browser.text("#data-note") == "2 tokens: 13 1"
    put(browser, "data", "mary bob")
    assert browser.text("#data-note") == '"bob" is not in the vocabulary.'
    put(browser, "vocabulary", "")
    put(browser, "data", "[0, 13, 99]")
    browser.click("#whole")
    until(lambda: "inputs[2]" in browser.text("#problem"), "the service says which id is out of range")
    assert "422" in browser.console()[0]


@pytest.mark.parametrize(
    "form", ["years,spots\n1999,93.3\n2000,119.6\n2001,111\n", "[[93.3],\n[119.6],[111]]", "93.3\n119.6\n111"]
)
def test_dropped_data_runs_whole_and_as_a_stream(page, bundled, form):
    browser = page("sunspots")
    browser.run(DROP, form)
    until(lambda: browser.text("#data-note") == "3 steps", "the file is read")
    wanted = bundled.post("/rnn/forward", {"model": "sunspots", "inputs": [[93.3], [119.6], [111]]}).json()
    for button in ("whole", "play"):
        click(browser, button)
        rows = until(lambda: len(table(browser, "#steps")) == 4 and table(browser, "#steps")[:0:-1], "three steps")
        np.testing.assert_allclose([float(row[3]) for row in rows], np.ravel(wanted["predictions"]), rtol=6e-4)
        lines = by_curl(browser)
        given = lines[0]["predictions"] if button == "whole" else [line["predictions"] for line in lines]
        np.testing.assert_allclose(given, wanted["predictions"], rtol=1e-6)
    put(browser, "data", "1,2\n3\n4,5")
    assert browser.text("#data-note") == "Row 2 has nothing where a number belongs."
    browser.click("#whole")
    until(lambda: "Row 2" in browser.text("#problem"), "the problem is shown")


def test_rollout_of_sunspots_is_drawn_beside_truth(page, bundled):
    browser = page("sunspots")
    click(browser, "generate")
    (reply,) = by_curl(browser)
    rows = table(browser, "#steps")[1:]
    assert [row[1] for row in rows[:10:9]] == ["2007", "1998"]
    np.testing.assert_allclose([float(row[4]) for row in rows[9::-1]], np.ravel(reply["predictions"]), rtol=6e-4)
    assert table(browser, "#errors")[1] == ["1 year ahead", "16.5", "32.4", "40"]  # none of its own forecasts is judged


def test_bidirectional_classifier_runs_whole(page, bundled):
    browser = page("digits")
    assert browser.run("return document.getElementById('play').disabled")
    click(browser, "whole")
    (reply,) = by_curl(browser)
    shares = table(browser, "#shares")
    assert [float(row[-1]) for row in shares] == [round(share, 3) for share in reply["predictions"]]
    assert int(np.argmax(reply["predictions"])) == 4  # as the model's description says of its example
    assert "both directions" in browser.text("#map-sizes")


def test_models_that_pool_and_generate(tmp_path, browser):
    for name, spec in SPECS.items():
        write_model(tmp_path / "models", name, 1, spec)
    running = start(tmp_path / "models", tmp_path)
    try:
        visit(browser, running.url)
        for name in SPECS:
            browser.run("document.querySelector(`[value='${arguments[0]}']`).click()", name)
            if SPECS[name].num_embeddings:
                put(browser, "data", "0 1 2 1")
            for button in ("whole", "generate"):
                if browser.shown(f"#{button}"):
                    click(browser, button)
        assert_clean(browser, running)
    finally:
        running.stop()
