"""Where the rivals' virtual environments are, and what is missing."""

from pathlib import Path

# Relative to the repository, and ignored by git.
ENVIRONMENTS = Path(".bench")
REQUIREMENTS = Path("benchmarks/rivals/requirements")
RIVALS = ("litserve", "bentoml", "ray")


def python(rival: str) -> str:
    """The interpreter of a rival's environment, whether it exists or not."""
    return str(ENVIRONMENTS.absolute() / rival / "bin" / "python")


def stamp(rival: str) -> Path:
    """The file that says that the environment is complete; it holds the requirements that were installed."""
    return ENVIRONMENTS / rival / "installed.txt"


def ready(rival: str) -> bool:
    """Whether the environment has exactly what the requirements file asks for now."""
    requirements = REQUIREMENTS / f"{rival}.txt"
    return stamp(rival).exists() and stamp(rival).read_text() == requirements.read_text()


def pinned(package: str) -> str:
    """The version of a rival that its requirements ask for."""
    lines = (REQUIREMENTS / f"{package}.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"{package}==")).removeprefix(f"{package}==")
