"""Content types and encodings: what a body is, and what the client wants back."""

import re
from collections.abc import Sequence

from service.errors import NotAcceptable, UnsupportedMediaType

JSON = "application/json"
NDJSON = "application/x-ndjson"
SAFETENSORS = "application/vnd.safetensors"


_WEIGHT = re.compile(r"0(\.[0-9]{0,3})?|1(\.0{0,3})?")


def media_type(content_type: str) -> str:
    """A content type without its parameters; JSON if nothing is said."""
    return content_type.split(";", 1)[0].strip().lower() or JSON


def request_format(content_type: str, offered: Sequence[str]) -> str:
    """The format of a request body; JSON if nothing is said. Raises UnsupportedMediaType."""
    if not content_type or content_type == JSON:
        return JSON
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    charset = next((item.split("=", 1)[1].strip('"') for item in parameters if item.startswith("charset=")), "utf-8")
    if kind not in offered or charset not in ("utf-8", "utf8", "us-ascii"):
        raise UnsupportedMediaType(f"Content-Type is {content_type!r:.80}; this call takes {', '.join(offered)}")
    return kind


def reply_format(accept: str, offered: Sequence[str], default: str) -> str:
    """The format of the reply: the best of `Accept` that is offered; the default if it says nothing or anything.

    Raises NotAcceptable.
    """
    if not accept or accept == "*/*":
        return default
    weights = preferences(accept)
    ranked = {kind: _weight(kind, weights) for kind in (default, *offered)}
    best = max(ranked, key=lambda kind: ranked[kind])
    if not ranked[best]:
        raise NotAcceptable(f"Accept is {accept!r:.80}; this call answers in {', '.join(offered)}")
    return best


def reply_encoding(accept_encoding: str) -> str | None:
    """`zstd` or `gzip`, if the client takes one of them; zstd at equal weight, it is several times quicker."""
    if not accept_encoding:
        return None
    weights = preferences(accept_encoding)
    zstd, gzip = (weights.get(name, weights.get("*", 0.0)) for name in ("zstd", "gzip"))
    return None if not zstd and not gzip else "zstd" if zstd >= gzip else "gzip"


def preferences(header: str) -> dict[str, float]:
    """The items of an `Accept…` header and their weights (RFC 9110, 12.4.2); an unreadable weight counts as 0."""
    weights = {}
    for item in header.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        weight = next((part[2:] for part in parameters if part.startswith("q=")), "1")
        weights[name] = float(weight) if _WEIGHT.fullmatch(weight) else 0.0
    return weights


def _weight(kind: str, weights: dict[str, float]) -> float:
    family = kind.split("/", 1)[0] + "/*"
    return weights.get(kind, weights.get(family, weights.get("*/*", 0.0)))
