"""Create the environments of the rivals, in .bench/: `python -m benchmarks.rivals [litserve] [bentoml] [ray]`."""

import argparse
import subprocess
import venv

from benchmarks.rivals import ENVIRONMENTS, REQUIREMENTS, RIVALS, python, ready, stamp


def create(rival: str) -> None:
    """Make a rival's environment from its pinned requirements; leave one that is already complete alone."""
    if ready(rival):
        print(f"{rival}: ready")
        return
    requirements = REQUIREMENTS / f"{rival}.txt"
    print(f"{rival}: installing {requirements}", flush=True)
    venv.create(ENVIRONMENTS / rival, with_pip=True, clear=True)
    install = [python(rival), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    # torch by itself first: it is then already satisfied, and no requirement of the rival pulls a second build.
    torch = [pin for pin in requirements.read_text().split() if pin.startswith("torch==")]
    subprocess.run([*install, *torch], check=True)
    subprocess.run([*install, "--requirement", str(requirements)], check=True)
    stamp(rival).write_text(requirements.read_text())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("rivals", nargs="*", choices=[*RIVALS, []], metavar="RIVAL", help="default: all")
    for name in parser.parse_args().rivals or RIVALS:
        create(name)
