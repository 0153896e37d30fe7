"""The paths that `Application` handles itself are those that FastAPI documents as such."""

from service.api.routes import hot_router
from service.app import create_app
from service.settings import Settings


def test_every_handler_is_a_hot_route(write_model, tmp_path):
    write_model("m", {"kind": "rnn", "input_size": 4, "hidden_size": 3})
    application = create_app(Settings(models=tmp_path, device="cpu"))
    hot = {route.path for route in hot_router().routes}
    assert hot == application.posts.keys() == {path.decode() for path in application._direct_paths}
    assert application.streams.keys() | application.admissions.keys() <= hot
    documented = application.router.openapi()["paths"]
    assert hot <= {path for path, calls in documented.items() if "post" in calls}
    assert hot.isdisjoint(application.sockets)
