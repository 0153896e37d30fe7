"""What users could pick instead, each as its own documentation recommends, in an environment of its own.

Mosec alone needs none: it is installed beside the service, in the extra `bench`.
"""

from pathlib import Path

ROOT = Path(__file__).parents[2]
ENVIRONMENTS = ROOT / ".bench"
REQUIREMENTS = Path(__file__).parent / "requirements"
RIVALS = ("litserve", "bentoml", "ray")


def python(rival: str) -> str:
    """The interpreter of a rival's environment, whether it exists or not."""
    return str(ENVIRONMENTS / rival / "bin" / "python")


def stamp(rival: str) -> Path:
    """The file that says that the environment is complete; it holds the requirements that were installed."""
    return ENVIRONMENTS / rival / "installed.txt"


def ready(rival: str) -> bool:
    """Whether the environment has exactly what the requirements file asks for now."""
    requirements = REQUIREMENTS / f"{rival}.txt"
    return stamp(rival).exists() and stamp(rival).read_text() == requirements.read_text()
