"""API keys, and the calls that need an admin key."""

import shutil

import pytest

from .conftest import ADMIN_KEY
from .models import BROKEN, SPECS, write_model
from .problems import assert_problem
from .running import start

KEY = "the-api-key"


def bearer(key):
    return {"authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A repository of one model, which these tests change."""
    root = tmp_path_factory.mktemp("own-models")
    write_model(root, "tanh")
    return root


@pytest.fixture(scope="module")
def locked(own, tmp_path_factory):
    running = start(
        own, tmp_path_factory.mktemp("locked"), api_keys=f"{KEY},another", admin_keys=ADMIN_KEY, preload="tanh"
    )
    yield running
    running.stop()


@pytest.mark.parametrize(
    "headers",
    [{}, bearer("wrong"), {"authorization": "Bearer"}, {"authorization": KEY}, {"authorization": f"Basic {KEY}"}],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/rnn/forward"), ("POST", "/cell/step"), ("GET", "/models"), ("GET", "/nothing")]
)
def test_call_needs_a_key(locked, method, path, headers):
    with locked.client() as client:
        reply = client.request(method, path, json={"inputs": [[1, 2, 3, 4]]}, headers=headers)
    assert_problem(reply, 401, "unauthorized")
    assert reply.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("key", [KEY, "another", ADMIN_KEY])
def test_key_opens_the_service(locked, key):
    reply = locked.post("/rnn/forward", {"inputs": [[1, 2, 3, 4]]}, headers=bearer(key))
    assert reply.json()["model"] == "tanh"
    assert locked.get("/models", headers={"authorization": f"bearer {key}"}).status_code == 200


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/", "/docs", "/openapi.json"])
def test_health_and_documents_need_no_key(locked, path):
    assert locked.get(path).status_code == 200


def test_document_says_which_calls_need_a_key(locked):
    for path, operations in locked.get("/openapi.json").json()["paths"].items():
        if path == "/cell/stream":
            continue  # a WebSocket
        for method, operation in operations.items():
            with locked.client() as client:
                refused = client.request(method, path).status_code == 401
            assert refused == (operation.get("security") != []) == ("401" in operation["responses"]), (method, path)


@pytest.mark.parametrize("call", ["reload", "unload"])
def test_admin_call_needs_an_admin_key(locked, call):
    assert_problem(locked.post(f"/models/tanh/{call}", headers=bearer(KEY)), 403, "forbidden", "RNN_ADMIN_KEYS")
    assert locked.post(f"/models/tanh/{call}", headers=bearer(ADMIN_KEY)).status_code == 200


def test_service_without_keys_has_no_admin(short_timeouts):
    assert short_timeouts.post("/rnn/forward", {"model": "tanh", "inputs": [[1, 2, 3, 4]]}).status_code == 200
    for headers in ({}, {"authorization": "Bearer"}, bearer("x")):
        assert_problem(short_timeouts.post("/models/tanh/unload", headers=headers), 403, "forbidden")


def test_service_with_admin_key_alone_is_open(service):
    assert service.post("/rnn/forward", {"model": "tanh", "inputs": [[1, 2, 3, 4]]}).status_code == 200
    assert_problem(service.post("/models/tanh/unload"), 401, "unauthorized", "admin")
    assert_problem(service.get("/cell/sessions", headers=bearer("wrong")), 401, "unauthorized")
    assert service.post("/models/broken/unload", headers=bearer(ADMIN_KEY)).status_code == 200


def run(locked, **fields):
    return locked.post("/rnn/forward", {"inputs": [[1, 2, 3, 4]]} | fields, headers=bearer(KEY))


def admin(locked, path):
    return locked.post(path, headers=bearer(ADMIN_KEY))


def test_unloaded_model_loads_again_on_use(locked):
    assert run(locked).status_code == 200
    assert admin(locked, "/models/tanh/unload").json()["state"] == "available"
    before = run(locked).json()
    assert locked.get("/models/tanh", headers=bearer(KEY)).json()["state"] == "loaded"
    assert run(locked).json() == before


def test_reload_finds_and_forgets_models(locked, own):
    before = run(locked).json()
    write_model(own, "tanh-new", 1, SPECS["tanh"])
    assert_problem(run(locked, model="tanh-new"), 404, "model-not-found", "tanh")
    assert admin(locked, "/models/tanh-new/reload").json()["state"] == "available"
    assert run(locked, model="tanh-new").json()["outputs"] == before["outputs"]
    shutil.rmtree(own / "tanh-new")
    assert_problem(admin(locked, "/models/tanh-new/reload"), 404, "model-not-found")
    assert_problem(run(locked, model="tanh-new"), 404, "model-not-found")


@pytest.mark.parametrize("name", ["..%2f..", "%00", ".hidden", "a" * 65, "tanh%0a", BROKEN])
def test_name_that_no_model_can_have(locked, name):
    for call in ("reload", "unload"):
        assert admin(locked, f"/models/{name}/{call}").status_code == 404
