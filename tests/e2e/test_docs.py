"""The documentation: the tutorial works as it is written, every error has its row, and the site builds."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from service.api.problems import STATUS, slug

from .running import ROOT, environment, start

BLOCK = r'```python title="([\w.]+)"\n(.*?)```'
COMMAND = r"^rnn-service (import .*)$"


def run(folder, *command):
    path = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=folder, env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compare(printed, expected):
    """The same words, and numbers that differ as trained ones may."""
    number = r"-?\d+\.\d*"
    assert re.sub(number, "", printed).split() == re.sub(number, "", expected).split()
    figures = [list(map(float, re.findall(number, text))) for text in (printed, expected)]
    np.testing.assert_allclose(*figures, rtol=0.1, atol=0.02)


def test_tutorial_works_as_written(tmp_path):
    page = (ROOT / "docs" / "tutorial.md").read_text()
    scripts = dict(re.findall(BLOCK, page, re.DOTALL))
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
    prints = re.findall(r"It prints\n\n```text\n(.*?)```", page, re.DOTALL)
    printed = run(tmp_path, "train.py")
    compare(printed, prints[0])
    trained, repeated = map(float, re.findall(r"\d+\.\d+", printed))
    assert trained < repeated / 2
    imports = re.findall(COMMAND, page, re.MULTILINE)
    assert "verified" in run(tmp_path, "-m", "service", *imports[0].split())
    service = start(tmp_path / "my-models", tmp_path, admin_keys="secret")
    try:
        compare(run(tmp_path, "call.py", service.url), prints[1])
        run(tmp_path, "-m", "service", *imports[1].split())
        reloaded = service.post("/models/forecaster/reload", headers={"Authorization": "Bearer secret"})
        assert reloaded.json()["default_version"] == "2"
    finally:
        service.stop()


def test_page_of_errors_has_every_status():
    rows = re.findall(r"^\| (\d+) \| \[`([a-z-]+)`\]", (ROOT / "docs" / "errors.md").read_text(), re.MULTILINE)
    assert {(int(status), kind) for status, kind in rows} == {
        *((status, slug(kind)) for kind, status in STATUS.items()),
        (500, "internal-error"),
    }


def test_tests_that_the_pages_name_are_there():
    """A decision's record is not changed later, so what it names may be gone."""
    for page in [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]:
        named = re.findall(r"(?:…|\btests/)([\w/]+\.py)(?:::(test_\w+))?", page.read_text())
        missing = [(file, test) for file, test in named if f"def {test}" not in (ROOT / "tests" / file).read_text()]
        assert not missing, page


@pytest.mark.integration
def test_site_builds_and_loads_nothing_from_elsewhere(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [page for page in Path(tmp_path).rglob("*.html") if page.name != "404.html"]
    assert len(pages) > 60
    loaded = re.compile(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]*)|<link[^>]+href="(https?:[^"]*)')
    assert not [match for page in pages for match in loaded.findall(page.read_text())]
