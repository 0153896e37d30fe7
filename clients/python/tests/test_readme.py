"""The README's examples run as they stand, one after the other."""

import re
from pathlib import Path

import pytest

from tests.e2e.running import ROOT, start

README = (Path(__file__).parents[1] / "README.md").read_text()


@pytest.fixture
def bundled(tmp_path):
    running = start(ROOT / "models", tmp_path)
    yield running
    running.stop()


def test_examples_run(bundled, capsys):
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", bundled.url), names)
    names["client"].close()
    assert "15.706757" in capsys.readouterr().out
