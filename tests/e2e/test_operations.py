"""Models, health, metrics, documentation, request ids, the log, deadlines, and unknown paths."""

import json
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.api.problems import STATUS, slug

from .formats import NDJSON, SAFETENSORS
from .models import SPECS
from .problems import assert_problem
from .raw import Wire, head, post
from .running import until
from .sockets import opened

GENERATE = {"model": "gru", "inputs": [[1, 2, 3, 4]], "steps": 2, "feedback": [0, 1], "future": [[0] * 4]}
OK = {"model": "tanh", "inputs": [[1, 2, 3, 4]]}


def test_models_are_listed_with_sizes(service):
    models = {model["name"]: model for model in service.get("/models").json()["models"]}
    assert models.keys() == {*SPECS, "gru-two-versions", "broken"}
    projecting = models["lstm-both-ways"]
    sizes = {"kind": "lstm", "input_size": 3, "hidden_size": 5, "num_layers": 1, "proj_size": 2, "out_features": 3}
    assert sizes.items() <= projecting.items()
    assert projecting["bidirectional"]
    assert [version["version"] for version in models["gru-two-versions"]["versions"]] == ["1", "2"]
    assert models["gru-two-versions"]["default_version"] == "2"


def test_failed_model_is_listed_with_reason(service):
    broken = service.get("/models/broken").json()
    assert broken["state"] == "failed"
    assert "weight_ih_l0" in broken["reason"]


def test_used_model_is_loaded(service):
    service.post("/rnn/forward", OK)
    version = service.get("/models/tanh").json()["versions"][0]
    assert version["state"] == "loaded"
    assert version["loaded_bytes"] >= 4 * (6 * 4 + 6 * 6 + 6 + 6)
    assert version["engine"]


@pytest.mark.parametrize("path", ["/models/unknown", "/models/..%2fetc", "/models/%00", "/models/%ff%fe"])
def test_unknown_model(service, path):
    assert_problem(service.get(path), 404, "model-not-found" if "2f" not in path else "route-not-found")


def test_health(service):
    assert service.get("/health/live").json() == {"status": "live", "reasons": []}
    assert service.get("/health/ready").json() == {"status": "ready", "reasons": []}


def test_metrics_are_prometheus_text(service):
    reply = service.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    names = {sample.name for family in text_string_to_metric_families(reply.text) for sample in family.samples}
    assert names == {name.split("{")[0] for name in service.metrics()}


@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_metrics_count_requests_rows_and_steps(service, path):
    """However a request is answered; one that is not JSON reaches the first stage alone."""
    two = {"/rnn/forward": [[[1, 2, 3]] * 4, [[1, 2, 3]] * 2], "/cell/step": [[1, 2, 3]] * 2}[path]
    body = {"model": "relu", "inputs": two}
    assert service.post(path, body).status_code == 200  # the model is loaded
    before = service.metrics()
    for headers in ({}, {"x-request-timeout-ms": "600000"}, {"accept": SAFETENSORS}):
        assert service.post(path, body, headers=headers).status_code == 200
    assert service.post(path, content=b"{").status_code == 400
    after = service.metrics()
    grown = {name: after[name] - before.get(name, 0) for name in after}
    assert grown['rnn_rows_total{model="relu"}'] == 6
    assert grown['rnn_steps_total{model="relu"}'] == (18 if path == "/rnn/forward" else 6)
    assert grown[f'rnn_requests_total{{model="relu",path="{path}",status="200"}}'] == 3
    assert grown[f'rnn_requests_total{{model="",path="{path}",status="400"}}'] == 1
    assert grown['rnn_problems_total{type="malformed-body"}'] == 1
    assert grown[f'rnn_request_seconds_count{{model="relu",path="{path}"}}'] == 3
    assert grown[f'rnn_request_seconds_count{{model="",path="{path}"}}'] == 1
    for stage in ("queue", "compute", "encode"):
        assert grown[f'rnn_stage_seconds_count{{model="relu",stage="{stage}"}}'] == 3
    assert after["rnn_loaded_bytes"] > 0


def test_latencies_leave_out_streams(service):
    before = service.metrics()
    service.post("/cell/step?model=tanh", content=b"[1,2,3,4]\n", headers={"content-type": NDJSON})
    with opened(service, "?model=tanh", "[1,2,3,4]") as socket:
        socket.recv()
    service.post("/rnn/generate", GENERATE, headers={"accept": NDJSON})
    ended = 'rnn_requests_total{model="tanh",path="/cell/stream",status="101"}'
    after = until(lambda: (now := service.metrics()).get(ended, 0) > before.get(ended, 0) and now, "the end is counted")
    grown = {name for name in after if after[name] > before.get(name, 0) and "_seconds_count" in name}
    streams = [("gru", "/rnn/generate"), ("tanh", "/cell/step"), ("tanh", "/cell/stream")]
    lives = {f'rnn_stream_seconds_count{{model="{model}",path="{path}"}}' for model, path in streams}
    assert grown - {'rnn_request_seconds_count{model="",path="/metrics"}'} == lives


def test_metrics_have_no_label_of_clients_text(service):
    for index in range(20):
        service.get(f"/nothing-{index}")
        service.get(f"/models/nothing-{index}")
    assert not [name for name in service.metrics() if "nothing" in name]


def test_every_problem_has_a_page(service):
    for kind in STATUS:
        page = service.get(f"/problems/{slug(kind)}")
        assert page.status_code == 200, slug(kind)
        assert len(page.text) > 50
    assert service.get("/problems/internal-error").status_code == 200
    assert_problem(service.get("/problems/..%2f..%2fpyproject"), 404, "route-not-found")
    assert_problem(service.get("/problems/nothing"), 404, "route-not-found")


def test_documentation_needs_no_other_host(service):
    page = service.get("/docs")
    assert page.status_code == 200
    assert "SwaggerUIBundle" in page.text
    assets = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert assets
    for asset in assets:
        assert asset.startswith("/"), asset
        assert service.get(asset).status_code == 200


def test_request_id_is_taken_or_made(service):
    given = service.post("/rnn/forward", OK, headers={"x-request-id": "mine-1.2_3"})
    assert given.headers["x-request-id"] == "mine-1.2_3"
    minted = {service.post("/rnn/forward", OK).headers["x-request-id"] for _ in range(3)}
    assert len(minted) == 3
    for strange in ("a b", "x" * 65, "{}", '"', "é"):
        with Wire(service) as wire:
            wire.send(post("/rnn/forward", json.dumps(OK).encode(), {"X-Request-Id": strange}))
            assert re.fullmatch("[0-9a-f]{16}", wire.reply().headers["x-request-id"])
    assert service.get("/health/live", headers={"x-request-id": "probe"}).headers["x-request-id"] == "probe"


def test_request_is_one_line_of_the_log(service):
    service.post("/rnn/forward", OK | {"version": "1"}, headers={"x-request-id": "look-for-me"})
    (entry,) = until(lambda: service.logged("look-for-me"), "the log line")
    wanted = {"event": "request", "status": 200, "model": "tanh", "version": "1", "rows": 1, "steps": 1}
    wanted["client"] = "127.0.0.1"
    assert wanted.items() <= entry.items()
    assert entry["ms"].keys() >= {"decode", "compute", "encode", "total"}


@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_passed_deadline_does_not_run(service, path):
    body = {"model": "relu", "inputs": [[1, 2, 3]]}
    assert service.post(path, body).status_code == 200
    steps = service.metrics()['rnn_steps_total{model="relu"}']
    assert_problem(service.post(path, body, headers={"x-request-timeout-ms": "0"}), 504, "deadline-passed", "not run")
    assert service.metrics()['rnn_steps_total{model="relu"}'] == steps
    assert service.post(path, body, headers={"x-request-timeout-ms": "60000"}).status_code == 200


@pytest.mark.parametrize("value", ["-1", "1e3", "soon", "", "9" * 30])
def test_deadline_that_is_no_number(service, value):
    reply = service.post("/rnn/forward", OK, headers={"x-request-timeout-ms": value})
    assert_problem(reply, 422, "invalid-request", "X-Request-Timeout-Ms")


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "route-not-found"),
        ("POST", "/rnn/forward/", 404, "route-not-found"),
        ("GET", "//models", 404, "route-not-found"),
        ("GET", "/static-offline-docs/../../../../etc/passwd", 404, "route-not-found"),
        ("GET", "/static-offline-docs/%2e%2e/%2e%2e/etc/passwd", 404, "route-not-found"),
        ("GET", "/" + "a" * 60_000, 404, "route-not-found"),
        ("OPTIONS", "*", 404, "route-not-found"),
        ("GET", "/rnn/forward", 405, "method-not-allowed"),
        ("PUT", "/cell/step", 405, "method-not-allowed"),
        ("DELETE", "/models", 405, "method-not-allowed"),
        ("PUT", "/cell/sessions", 405, "method-not-allowed"),
        ("PUT", "/cell/sessions/none", 405, "method-not-allowed"),
        ("POST", "/static-offline-docs/favicon.png", 405, "method-not-allowed"),
    ],
)
def test_unknown_path_or_method(service, method, path, status, kind):
    with Wire(service) as wire:
        wire.send(head(method, path))
        reply = wire.reply()
    assert_problem(reply, status, kind)
    if status == 405:
        allowed = {
            "/models": "GET, HEAD",
            "/cell/sessions": "GET, HEAD, POST",
            "/cell/sessions/none": "DELETE, GET, HEAD",
        }
        assert reply.headers["allow"] == allowed.get(path, "GET, HEAD" if path.startswith("/static") else "POST")


@pytest.mark.parametrize("path", ["/", "/docs", "/models", "/metrics", "/openapi.json", "/problems/invalid-request"])
def test_head_is_get_without_a_body(service, path):
    with Wire(service) as wire:
        wire.send(head("HEAD", path))
        wire.send(head("GET", path))
        status, headers = wire.status_and_headers()
        reply = wire.reply()
    assert (status, reply.status) == (200, 200)
    assert headers["content-type"] == reply.headers["content-type"]
    assert reply.body
