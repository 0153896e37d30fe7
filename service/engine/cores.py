"""How many cores this process really has: what the scheduler allows, and what the container's quota pays for."""

import os
from math import ceil
from pathlib import Path


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """At least 1. Source: sched_getaffinity, and `cpu.max` (cgroup v2) or `cpu.cfs_quota_us` (v1)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota(cgroup)
    return max(1, min(cores, ceil(quota))) if quota else cores


def _quota(cgroup: Path) -> float | None:
    """Cores that the cgroup's CPU bandwidth amounts to; None without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            limit, period = (cgroup / "cpu.max").read_text().split()
        else:
            limit = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return int(limit) / int(period) if limit.strip() != "max" and int(limit) > 0 else None
    except (OSError, ValueError):
        return None
