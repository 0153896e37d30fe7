"""docker-compose.yml passes on every setting but those that the image or a service of the file fixes."""

import re
from pathlib import Path

from service.settings import Settings

COMPOSE = (Path(__file__).parents[1] / "docker-compose.yml").read_text()
FIXED = {"RNN_HOST", "RNN_PORT", "RNN_MODELS", "RNN_DEVICE"}


def test_every_setting_is_passed_on():
    passed = re.findall(r"^  (RNN_\w+):", COMPOSE, re.MULTILINE)
    assert passed == [name for field in Settings.model_fields if (name := f"RNN_{field.upper()}") not in FIXED]
