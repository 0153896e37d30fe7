"""The README's configuration table is the settings, all of them, with their defaults."""

from pathlib import Path

from service.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()


def row_of(name, field):
    empty = field.default is None or field.default == ()
    default = "–" if empty else str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
    return f"| `RNN_{name.upper()}` | {default} | {field.description} |"


def test_every_setting_is_in_the_table():
    rows = [line.replace("\\|", "|") for line in README.splitlines() if line.startswith("| `RNN_")]
    assert rows == [row_of(name, field) for name, field in Settings.model_fields.items()]
