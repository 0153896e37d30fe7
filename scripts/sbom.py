#!/usr/bin/env python3
"""Write an SBOM (CycloneDX, JSON) of rnn-service and of what it needs to run, from where it is installed.

    scripts/sbom.py PYTHON FILE [EXTRA]

PYTHON is the interpreter of the environment, which may hold other packages, too: they are left out. EXTRA is one of the
service's, as `otel`. Every version must be the one in constraints.txt. The interpreter that runs this needs
cyclonedx-bom and packaging.
"""

import json
import re
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = SchemaVersion.V1_6
PRODUCT = "rnn-service"


def needed(installed: dict[str, Distribution], extras: list[str]) -> dict[str, set[str]]:
    """By name, each package that the product needs, with what it needs itself. Raises KeyError if one is not there."""
    found: dict[str, set[str]] = {}
    seen = set()
    waiting = [(PRODUCT, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = pair = waiting.pop()
        if pair in seen:
            continue
        seen.add(pair)
        for text in installed[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                other = canonicalize_name(requirement.name)
                found.setdefault(name, set()).add(other)
                waiting += [(other, each) for each in ("", *requirement.extras)]
        found.setdefault(name, set())
    return found


def check_locked(installed: dict[str, Distribution], names: set[str]) -> None:
    """Raise SystemExit for a version that is not the locked one; what torch alone pins, for CUDA, is not locked."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    locked = {canonicalize_name(name): version for name, version in lines}
    for name in sorted(names & set(locked)):
        version = Version(installed[name].version).public
        if version != locked[name]:
            raise SystemExit(f"{name}: expected the locked version, {locked[name]}, and got {version}")


def document(python: str, needs: dict[str, set[str]], version: str) -> dict[str, Any]:
    """cyclonedx-py's document of the environment, without what the product does not need."""
    command = [sys.executable, "-m", "cyclonedx_py", "environment", python, "--pyproject", str(ROOT / "pyproject.toml")]
    command += ["--output-reproducible", "--spec-version", SCHEMA.to_version(), "--output-format", "JSON"]
    command += ["--no-validate"]  # what is left of it is
    bom: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    product = bom["metadata"]["component"]
    product |= {"version": version, "purl": f"pkg:pypi/{PRODUCT}@{version}"}
    names = {component["bom-ref"]: canonicalize_name(component["name"]) for component in bom["components"]}
    names = {ref: name for ref, name in names.items() if name in needs} | {product["bom-ref"]: PRODUCT}
    refs = {name: ref for ref, name in names.items()}
    bom["components"] = [component for component in bom["components"] if component["bom-ref"] in names]
    bom["dependencies"] = [
        {"ref": ref, "dependsOn": sorted(refs[need] for need in needs[name])} for ref, name in sorted(names.items())
    ]
    return bom


def main() -> None:
    """Write and validate the document."""
    python, file, *extras = sys.argv[1:]
    paths = subprocess.run(
        [python, "-c", "import sys; print(*sys.path[1:], sep='\\n')"], check=True, capture_output=True
    )
    found = Distribution.discover(path=paths.stdout.decode().splitlines())
    # Of two with one name the first is the one that is imported.
    installed = {canonicalize_name(each.name): each for each in reversed([*found])}
    needs = needed(installed, extras)
    check_locked(installed, set(needs))
    text = json.dumps(document(python, needs, installed[PRODUCT].version), indent=2, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(SCHEMA).validate_str(text):
        raise SystemExit(f"not a CycloneDX document: {error}")
    Path(file).write_text(text)
    print(f"{file}: {len(needs) - 1} packages that {PRODUCT} needs")


if __name__ == "__main__":
    main()
