"""The README's examples run as they stand, one after the other."""

import re
from pathlib import Path

from tests.e2e.running import ROOT, start

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_examples_run(tmp_path, capsys):
    running, names = start(ROOT / "models", tmp_path), {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block.replace("http://127.0.0.1:8000", running.url), names)
    names["client"].close()
    running.stop()
    assert "15.706757" in capsys.readouterr().out
