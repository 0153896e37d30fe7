"""What users could pick instead, each as its own documentation recommends; `make rivals` creates their environments."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
RIVALS = ("litserve", "bentoml", "ray", "triton")


def python(rival: str) -> Path:
    return ROOT / ".bench" / rival / "bin" / "python"


def ready(rival: str) -> bool:
    return (ROOT / ".bench" / rival / "installed").exists()
