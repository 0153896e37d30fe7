"""The one request before a run: what the model is."""

import json
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import quote

from service.loadgen.target import Target

MAX_DOCUMENT_BYTES = 16 * 2**20


class LookupFailed(Exception):
    """The deployment did not say what the model is."""


class NoSuchModel(LookupFailed):
    """The model or its version is not there, or several are and none was named."""


@dataclass(frozen=True, slots=True)
class Model:
    """What request bodies depend on, sizes as in PyTorch; and whether the version that will run is in memory."""

    name: str
    kind: str
    input_size: int
    hidden_size: int
    num_layers: int
    proj_size: int
    bidirectional: bool
    loaded: bool

    @property
    def state_size(self) -> int:
        """P: the width of a hidden state."""
        return self.proj_size or self.hidden_size


def look_up(target: Target, name: str | None, version: str | None, timeout_seconds: float) -> Model:
    """Ask for one model by name; without a name for all, of which there must be one.

    Raises LookupFailed where the deployment cannot be asked, NoSuchModel where the answer is no.
    """
    document = _get(target, "/models" if name is None else f"/models/{quote(name, safe='')}", timeout_seconds)
    try:
        if name is None:
            document = _only(document["models"])
        return _model(document, version)
    except (KeyError, TypeError, ValueError):
        raise LookupFailed(f"{target.url} answered something else than a model; is it an rnn-service?") from None


def _only(models: list[dict[str, Any]]) -> dict[str, Any]:
    if len(models) != 1:
        names = ", ".join(str(model["name"]) for model in models) or "none"
        raise NoSuchModel(f"name a model with --model; there are: {names}")
    return models[0]


def _model(document: dict[str, Any], version: str | None) -> Model:
    name = str(document["name"])
    states = {str(entry["version"]): entry["state"] for entry in document["versions"]}
    if version is not None and version not in states:
        raise NoSuchModel(f'model "{name}" has no version {version}; there are: {", ".join(states) or "none"}')
    if document["kind"] is None:
        raise NoSuchModel(f'model "{name}" cannot be served: {document["reason"]}')
    return Model(
        name,
        str(document["kind"]),
        int(document["input_size"]),
        int(document["hidden_size"]),
        int(document["num_layers"]),
        int(document["proj_size"] or 0),
        bool(document["bidirectional"]),
        (document["state"] if version is None else states[version]) == "loaded",
    )


def _get(target: Target, path: str, timeout_seconds: float) -> dict[str, Any]:
    """The JSON object at a path. Raises LookupFailed, or NoSuchModel for 404."""
    context = target.ssl_context
    connection = (
        HTTPConnection(target.host, target.port, timeout_seconds)
        if context is None
        else HTTPSConnection(target.host, target.port, timeout=timeout_seconds, context=context)
    )
    try:
        headers = dict(line.split(": ", 1) for line in target.headers)
        connection.request("GET", target.prefix + path, headers=headers | {"Accept": "application/json"})
        reply = connection.getresponse()
        status, body = reply.status, reply.read(MAX_DOCUMENT_BYTES)
    except (OSError, HTTPException) as error:
        raise LookupFailed(f"{target.url}: {error}") from None
    finally:
        connection.close()
    try:
        document = json.loads(body)
    except ValueError:
        document = None
    if status != 200:
        detail = document.get("detail") if isinstance(document, dict) else None
        message = f"{target.url}{path} answered {status}{f': {detail}' if detail else ''}"
        raise NoSuchModel(message) if status == 404 and detail else LookupFailed(message)
    if not isinstance(document, dict):
        raise LookupFailed(f"{target.url}{path} answered no JSON object; is it an rnn-service?")
    return document
