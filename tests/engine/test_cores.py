"""Cores as containers pay for them."""

import os

import pytest

from service.engine.cores import available_cores

ALL = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("150000 100000", min(ALL, 2)), ("max 100000", ALL)]
)
def test_cgroup_v2_quota(tmp_path, quota, expected):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert available_cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("50000", 1), ("-1", ALL)])
def test_cgroup_v1_quota(tmp_path, quota, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text(quota + "\n")
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert available_cores(tmp_path) == expected


def test_no_cgroup_is_no_limit(tmp_path):
    assert available_cores(tmp_path) == ALL
