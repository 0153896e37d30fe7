"""The page's document and its headers; tests/e2e/test_page.py has it in a browser."""

import json
import re
import sys
from base64 import b64encode
from hashlib import sha256

import pytest

from service.api.operations import page_document
from tests.e2e.running import ROOT


@pytest.fixture(scope="module")
def page():
    html, headers = page_document()
    return html.decode(), headers


def test_policy_allows_only_own_script_and_style(page):
    html, headers = page
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for element in ("script", "style"):
        blocks = re.findall(rf"<{element}([^>]*)>(.*?)</{element}>", html, re.DOTALL)
        run = [text for attributes, text in blocks if "application/json" not in attributes]
        hashes = [f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'" for text in run]
        assert len(hashes) == 1
        assert policy[f"{element}-src"] == hashes[0]
    assert not re.search(r"\s(?:style|on[a-z]+)=", html)


def test_page_names_no_other_host(page):
    html, _ = page
    assert set(re.findall(r"https?://[^\s'\"]+", html)) <= {"http://www.w3.org/2000/svg"}
    for address in re.findall(r"(?:src|href)=\"([^\"]*)\"", html):
        assert address.startswith(("/", "data:image/svg+xml,")), address


def test_bundled_series_are_the_examples(page, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_page_data  # noqa: PLC0415  # a script among others, found by the path above

    html, _ = page
    (text,) = re.findall(r'<script type="application/json" id="series">(.*?)</script>', html, re.DOTALL)
    assert json.loads(text) == make_page_data.document()
    for name in ("make_page_data", "series"):
        sys.modules.pop(name, None)
