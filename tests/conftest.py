"""What all tests share: no time limits on examples, and GPU tests skipped, with the reason, where there is no GPU."""

import json

import pytest
import torch
from hypothesis import settings
from safetensors.numpy import save_file

from service.models.config import ModelConfig
from tests.reference import weights_of

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA device"))


@pytest.fixture
def write_model(tmp_path):
    """Write `<tmp_path>/<name>/config.json` and a version of seeded weights; returns the arrays."""

    def write(name, config, version="1", arrays=None):
        folder = tmp_path / name / version
        folder.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        if arrays is None:
            arrays = weights_of(ModelConfig.model_validate(config).spec(), seed=int(version))
        save_file(arrays, folder / "model.safetensors")
        return arrays

    return write
