"""Manifests as a cluster gets them."""

import re
import subprocess
from functools import cache

import yaml

from tests.e2e.running import ROOT
from tests.tools import tool

OVERLAYS = ["base", "valkey", "gpu", "trial"]


@cache
def rendered(overlay):
    return render(ROOT / "deploy/kubernetes" / ("base" if overlay == "base" else f"overlays/{overlay}"))


def render(folder):
    done = subprocess.run(
        [tool("kubectl") / "kubectl", "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr  # nor is anything deprecated
    return list(yaml.safe_load_all(done.stdout))


def kserve():
    files = ("serving-runtime.yaml", "inference-service.yaml", "inference-service-repository.yaml")
    return [yaml.safe_load((ROOT / "deploy/kserve" / file).read_text()) for file in files]


def one(manifests, kind, name="rnn-service"):
    """A name that was generated has a digest at its end."""
    found = {(one["kind"], re.sub("-[a-z0-9]{10}$", "", one["metadata"]["name"])): one for one in manifests}
    return found[kind, name]


def container(manifest):
    """The only container of a Deployment, StatefulSet or ServingRuntime."""
    spec = manifest["spec"]
    (found,) = spec.get("template", {}).get("spec", spec)["containers"]
    return found
