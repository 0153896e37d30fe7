"""Paths with names in them: which route a request's path is one of."""

import re
from functools import lru_cache

V2 = "/v2"
INFER = f"{V2}/models/{{model}}/infer"
INFER_VERSION = f"{V2}/models/{{model}}/versions/{{version}}/infer"

_INFER = re.compile(rf"{V2}/models/([^/]+)(?:/versions/([^/]+))?/infer")
_PLAIN_INFER = re.compile(rb"/v2/models/[A-Za-z0-9._-]+(?:/versions/[0-9]+)?/infer")


@lru_cache(256)
def infer_names(path: str) -> tuple[str, str | None] | None:
    """The model and the version that a path of the Open Inference Protocol names; None for other paths."""
    match = _INFER.fullmatch(path)
    return (match[1], match[2]) if match else None


def route_of(path: str) -> str:
    """The path, or the route that a path with names in it is one of: metrics must not grow with what comes."""
    if not path.startswith("/v2/models/"):
        return path
    names = infer_names(path)
    return path if names is None else INFER if names[1] is None else INFER_VERSION


def is_plain_infer(url: bytes) -> bool:
    """Whether a URL is that of an infer call, with no escapes and no query."""
    return _PLAIN_INFER.fullmatch(url) is not None


def is_v2(path: str) -> bool:
    """Whether the Open Inference Protocol says what errors look like."""
    return path == V2 or path.startswith(f"{V2}/")
