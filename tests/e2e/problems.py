"""What every refusal must look like."""

import json

import httpx

from .raw import Reply
from .running import ROOT

# What a client must never be shown: Python's own words, and where the service lives.
LEAKS = ("Traceback", " object at 0x", "array(", "Ragged(", "dtype", "site-packages", str(ROOT))


def assert_problem(reply: httpx.Response | Reply, status: int, slug: str, *words: str) -> dict:
    """A problem document of a kind, whose detail has these words; gives the document."""
    body = reply.content if isinstance(reply, httpx.Response) else reply.body
    code = reply.status_code if isinstance(reply, httpx.Response) else reply.status
    assert code == status, body[:500]
    assert reply.headers["content-type"] == "application/problem+json"
    document = json.loads(body)
    assert_document(document, status, slug, *words)
    assert document["request_id"] == reply.headers["x-request-id"]
    return document


def assert_document(document: dict, status: int, slug: str, *words: str) -> None:
    """The document alone: the last line of a stream carries one without a reply of its own."""
    assert document["type"] == f"/problems/{slug}", document
    assert document["status"] == status
    assert document["title"]
    for word in words:
        assert word in document["detail"], f"{word!r} is not in {document['detail']!r}"
    assert len(document["detail"]) < 1000
    for item in document.get("errors", ()):
        assert item.keys() == {"loc", "msg"}
    text = json.dumps(document, ensure_ascii=False)
    assert not any(leak in text for leak in LEAKS), text
