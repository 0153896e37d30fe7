"""What was measured on, and with what: the machine and the versions, and the file that results go to."""

import importlib.metadata
import os
import platform
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.rivals.environments import RIVALS, pinned, ready

RESULTS = Path("benchmarks/results")
PACKAGES = (
    "torch",
    "numpy",
    "fastapi",
    "starlette",
    "uvicorn",
    "uvloop",
    "httptools",
    "pydantic",
    "orjson",
    "pysimdjson",
)


def default_file(when: datetime) -> Path:
    """The results of a whole run, by day and machine."""
    on = machine()
    slug = re.sub(r"[^a-z0-9]+", "-", f"{on['processor']} {on['cores']} cores".lower()).strip("-")
    return RESULTS / f"{when:%Y-%m-%d}-{slug}.json"


def machine() -> dict[str, Any]:
    """Processor, cores, memory, system."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def commit() -> str:
    """The commit, and whether the code differs from it; results do not count."""
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    same = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "service", "benchmarks/*.[pc]*"], check=False)
    return (found.stdout.strip() or "unknown") + ("" if same.returncode == 0 else "-dirty")


def versions() -> dict[str, str]:
    """The commit, Python, the packages and the rivals."""
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.split()
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "commit": commit(),
        "python": platform.python_version(),
        **packages,
        **{name: pinned(name) for name in RIVALS if ready(name)},
        "wrk": wrk[1] if len(wrk) > 1 else "unknown",
    }
