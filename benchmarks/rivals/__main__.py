"""Create the environments of the rivals: `python -m benchmarks.rivals [litserve] [bentoml] [ray]`; default all."""

import argparse
import subprocess
import sys
import venv

from benchmarks.rivals.environments import ENVIRONMENTS, REQUIREMENTS, RIVALS, python, ready, stamp


def create(rival: str) -> None:
    """Make a rival's environment from its pinned requirements; leave one that is already complete alone."""
    if ready(rival):
        print(f"{rival}: ready")
        return
    requirements = REQUIREMENTS / f"{rival}.txt"
    folder = ENVIRONMENTS / rival
    print(f"{rival}: installing {requirements} into {folder}", flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pins = requirements.read_text().split()
    # torch by itself first: it is then already satisfied, and no requirement of the rival pulls a second build.
    install(rival, *(pin for pin in pins if pin.startswith("torch==")))
    install(rival, "--requirement", str(requirements))
    stamp(rival).write_text(requirements.read_text())


def install(rival: str, *arguments: str) -> None:
    command = [python(rival), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rivals", description=__doc__)
    parser.add_argument("rivals", nargs="*", metavar="RIVAL", help=f"{', '.join(RIVALS)}; default: all")
    chosen = parser.parse_args().rivals or RIVALS
    if unknown := set(chosen) - set(RIVALS):
        parser.error(f"no such rival: {', '.join(sorted(unknown))}; choose from {', '.join(RIVALS)}")
    for rival in chosen:
        create(rival)
    return 0


if __name__ == "__main__":
    sys.exit(main())
