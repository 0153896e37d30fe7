"""Tools of others that `make integration` installs into .tools/, each in a folder of its name."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def tool(name):
    """The folder of a tool; without it the test is skipped."""
    folder = ROOT / ".tools" / name
    if not (folder / "installed").exists():
        pytest.skip(f"needs `make .tools/{name}/installed`")
    return folder
