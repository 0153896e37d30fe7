"""The README and pages with calls by curl: they give what is printed there."""

import json
import re

import numpy as np
import pytest

from scripts.readme_figures import README, RESULTS, page
from service import __version__

from .running import ROOT

CALL = r"^curl -s http://127\.0\.0\.1:8000(/\S+)[^\n]* -d '\n([^']*)'\n```\n+```json\n(.*?)```"


def numbers(value):
    return np.array(re.findall(r"-?\d[\d.]*(?:e-?\d+)?", json.dumps(value)), float)


CALLS = [
    call
    for page in ("README.md", "docs/open-inference-protocol.md", "docs/sessions.md", "docs/models.md")
    for call in re.findall(CALL, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize(("path", "body", "reply"), CALLS)
def test_call_gives_the_printed_reply(bundled, path, body, reply):
    actual, printed = bundled.post(path, json.loads(body)).json(), json.loads(reply)
    assert actual.keys() == printed.keys()
    for name, wanted in printed.items():
        np.testing.assert_allclose(numbers(actual[name]), numbers(wanted), 1e-3, 1e-6, err_msg=name)


def test_all_calls_are_tried():
    assert len(CALLS) == 8


def test_figures_are_those_of_the_benchmarks():
    """`python scripts/readme_figures.py` writes them."""
    assert README.read_text() == page(README.read_text(), RESULTS.read_text())
    assert f"version {__version__} " in README.read_text()
