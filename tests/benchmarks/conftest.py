"""The benchmark's tests need what the extra `bench` installs."""

from importlib.util import find_spec

collect_ignore = [] if find_spec("picows") and find_spec("matplotlib") else ["test_results.py"]
