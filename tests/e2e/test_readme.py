"""The calls with curl in the README and on two pages give the replies that are printed there."""

import json
import re

import numpy as np
import pytest

from .running import ROOT

CALL = r"^    curl -s http://127\.0\.0\.1:8000(/\S+)[^\n]* -d '\n([^']*)'\n\n((?:    [^\n]*\n)+)"


def numbers(value):
    return np.array(re.findall(r"-?\d[\d.]*(?:e-?\d+)?", json.dumps(value)), float)


CALLS = [
    call
    for page in ("README.md", "docs/open-inference-protocol.md", "docs/sessions.md")
    for call in re.findall(CALL, (ROOT / page).read_text(), re.MULTILINE)
]


@pytest.mark.parametrize(("path", "body", "reply"), CALLS)
def test_call_gives_the_printed_reply(bundled, path, body, reply):
    actual, printed = bundled.post(path, json.loads(body)).json(), json.loads(reply)
    assert actual.keys() == printed.keys()
    for name, wanted in printed.items():
        np.testing.assert_allclose(numbers(actual[name]), numbers(wanted), 1e-3, 1e-6, err_msg=name)
