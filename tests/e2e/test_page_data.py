"""The page with data of one's own: whole sequences, generation, and the curl lines, beside the API's own answers."""

import json
import string
import subprocess

import numpy as np
import pytest

from .browser import assert_clean, needs_browser, table, visit
from .models import write_model
from .running import until
from .test_generate import SPECS

pytestmark = needs_browser

LETTERS = "." + string.ascii_lowercase
DROP = """
const data = new DataTransfer();
data.items.add(new File([arguments[0]], "series.csv"));
document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true, cancelable: true}));
"""
PUT = "const field = document.querySelector(arguments[0]); field.value = arguments[1];"
PUT += "field.dispatchEvent(new Event('input'))"


@pytest.fixture
def page(bundled, browser):
    visit(browser, bundled.url)
    browser.run("for (const box of document.querySelectorAll('details')) box.open = true")
    return browser


def choose(page, model):
    page.run("document.querySelector(`[value='${arguments[0]}']`).click()", model)


def click(page, button):
    """Press it, and wait until the answer is drawn."""
    page.click(button)
    until(lambda: page.run("return document.body.ariaBusy == 'false'"), "it has been answered")
    page.run("return new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert not page.shown("#problem"), page.text("#problem")


def by_curl(page):
    """What the page's line prints in a shell."""
    printed = subprocess.run(["sh", "-c", page.text("#curl")], capture_output=True, check=True, timeout=30)
    return [json.loads(line) for line in printed.stdout.splitlines()]


def predicted(page, column, count):
    """A column of the table's last steps, in order of time."""
    rows = until(lambda: len(table(page, "#steps")) > count and table(page, "#steps"), "all steps are there")
    return [float(row[column]) for row in rows[count:0:-1]]


def test_names_are_written_as_the_api_draws_them(bundled, page):
    choose(page, "names")
    for field, text in (("#data", ".Ka"), ("#seed", "7"), ("#temperature", "0.5")):
        page.run(PUT, field, text)
    click(page, "#generate")
    call = {"model": "names", "inputs": [0, 11, 1], "steps": 10, "temperature": 0.5, "stop": [0], "seed": 7}
    tokens = bundled.post("/rnn/generate", call).json()["tokens"]
    assert page.text("#given") == ".ka"
    assert page.text("#written") == "".join(LETTERS[token] for token in tokens)
    assert by_curl(page)[0]["tokens"] == tokens
    page.run(PUT, "#vocabulary", '{"mary": 13, "ann": 1}')
    page.run(PUT, "#data", "mary ann")
    assert page.text("#data-note") == "2 tokens: 13 1"
    page.run(PUT, "#data", "mary bob")
    assert page.text("#data-note") == '"bob" is not in the vocabulary.'
    assert_clean(page, bundled)


@pytest.mark.parametrize("text", ["years,spots\n1999,93.3\n2000,119.6\n2001,111\n", "[[93.3],\n[119.6],[111]]"])
def test_dropped_data_runs_whole_and_as_a_stream(bundled, page, text):
    page.run(DROP, text)
    until(lambda: page.text("#data-note") == "3 steps", "the file is read")
    call = {"model": "sunspots", "inputs": [[93.3], [119.6], [111]]}
    wanted = np.ravel(bundled.post("/rnn/forward", call).json()["predictions"])
    for button in ("#whole", "#play"):
        click(page, button)
        np.testing.assert_allclose(predicted(page, 3, 3), wanted, rtol=6e-4)
        given = np.concatenate([np.ravel(line["predictions"]) for line in by_curl(page)])
        np.testing.assert_allclose(given, wanted, rtol=1e-6)
    page.run(PUT, "#data", "1,2\n3\n4,5")
    assert page.text("#data-note") == "Row 2 has nothing where a number belongs."
    assert_clean(page, bundled)


def test_rollout_is_drawn_beside_truth(page):
    click(page, "#generate")
    np.testing.assert_allclose(predicted(page, 4, 10), np.ravel(by_curl(page)[0]["predictions"]), rtol=6e-4)
    assert table(page, "#errors")[1] == ["1 year ahead", "16.5", "32.4", "40"]  # none of what follows its own forecasts


def test_bidirectional_classifier_runs_whole(page):
    choose(page, "digits")
    click(page, "#whole")
    shares = by_curl(page)[0]["predictions"]
    np.testing.assert_allclose([float(row[-1]) for row in table(page, "#shares")], shares, atol=6e-4)
    assert np.argmax(shares) == 4  # as the model's description says of its example


def test_models_that_pool_and_generate(tmp_path, launch, browser):
    for name, spec in SPECS.items():
        write_model(tmp_path / "models", name, 1, spec)
    running = launch(tmp_path / "models")
    visit(browser, running.url)
    for name, spec in SPECS.items():
        choose(browser, name)
        if spec.num_embeddings:
            browser.run(PUT, "#data", "0 1 2 1")
        for button in ("#whole", "#generate"):
            if browser.shown(button):
                click(browser, button)
    assert_clean(browser, running)
