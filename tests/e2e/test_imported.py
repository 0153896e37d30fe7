"""A whole model, from the file that its author has to predictions over HTTP; replaced and removed while it serves."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from service.cli import build_app

from .running import start

ADMIN = {"authorization": "Bearer secret"}


class Classifier(torch.nn.Module):
    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.embedding = torch.nn.Embedding(20, 6)
        self.lstm = torch.nn.LSTM(6, 8, bidirectional=True, batch_first=True)
        self.head = torch.nn.Sequential(torch.nn.Linear(16, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3))

    def forward(self, ids):
        return torch.softmax(self.head(self.lstm(self.embedding(ids))[0].mean(1)), dim=1)


def command(*arguments):
    result = CliRunner().invoke(build_app(), [*map(str, arguments)])
    assert result.exit_code == 0, result.output


def import_whole(folder, seed, *options):
    model = Classifier(seed).eval()
    torch.save(model, folder / "model.pt")
    words = ["--front", "embedding", "--pooling", "mean", "--head", "head,softmax"]
    command("import", folder / "model.pt", "--name", "m", "--models", folder / "models", *words, *options)
    return model


@pytest.fixture
def service(tmp_path):
    import_whole(tmp_path, 0)
    running = start(tmp_path / "models", tmp_path, admin_keys="secret")
    yield running
    running.stop()


def assert_serves(service, model):
    ids = [[3, 19, 0, 7], [1, 1, 2, 5]]
    reply = service.post("/rnn/forward", {"model": "m", "inputs": ids})
    assert reply.status_code == 200, reply.text
    with torch.no_grad():
        np.testing.assert_allclose(reply.json()["predictions"], model.double()(torch.tensor(ids)), atol=1e-6)


def test_imported_replaced_and_removed(service, tmp_path):
    assert_serves(service, Classifier(0))
    model = import_whole(tmp_path, 1, "--replace")
    assert_serves(service, Classifier(0))
    assert service.post("/models/m/reload", {}, headers=ADMIN).status_code == 200
    assert_serves(service, model)
    command("remove", "m", "--models", tmp_path / "models")
    assert service.post("/models/m/reload", {}, headers=ADMIN).status_code in (200, 404)
    reply = service.post("/rnn/forward", {"model": "m", "inputs": [[1]]})
    assert reply.status_code == 404
