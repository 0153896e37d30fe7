"""deploy/kubernetes and deploy/kserve: their schemas, and what must agree with the service and with each other."""

import importlib
import re
import shutil

import pytest
import yaml

from service import __version__
from service.settings import Settings
from tests.e2e.running import ROOT

from .manifests import OVERLAYS, container, kserve, one, render, rendered

pytestmark = pytest.mark.integration

# The fields in use of what the operators define, by their documentation. Containers are checked as a pod's.
KNOWN = {
    "PodMonitor": "selector.matchLabels podMetricsEndpoints.port podMetricsEndpoints.path podMetricsEndpoints.interval",
    "ServingRuntime": "annotations protocolVersions containers volumes supportedModelFormats",
    "InferenceService": "predictor.minReplicas predictor.maxReplicas predictor.automountServiceAccountToken "
    "predictor.terminationGracePeriodSeconds predictor.model.modelFormat.name predictor.model.runtime "
    "predictor.model.storageUri",
}
CONFINED = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
AS_USER = {"runAsUser": 10001, "runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
HEADROOM = 512 * 2**20  # of an idle process, and for replies
CACHES = ("model_cache_bytes", "max_session_bytes", "max_queued_bytes", "max_underway_bytes")


def names(value, known, path=""):
    """Dotted names of the fields in a value, as far as they are not known."""
    if path in known:
        return set()
    if isinstance(value, dict):
        return set().union(*(names(item, known, f"{path}.{key}".lstrip(".")) for key, item in value.items()))
    return set().union(*(names(item, known, path) for item in value)) if isinstance(value, list) else {path}


@pytest.mark.parametrize("version", ["1.25", "1.37"])
@pytest.mark.parametrize("overlay", [*OVERLAYS, "kserve"])
def test_schemas(overlay, version):
    validate = importlib.import_module("kubernetes_validate").validate
    for manifest in kserve() if overlay == "kserve" else rendered(overlay):
        if manifest["kind"] in KNOWN:
            assert not names(manifest["spec"], KNOWN[manifest["kind"]].split())
        else:
            validate(manifest, version, strict=True)
        if manifest["kind"] == "ServingRuntime":
            spec = {name: manifest["spec"][name] for name in ("containers", "volumes")}
            validate({"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec}, version, strict=True)


def settings_of(variables):
    fields = {name.removeprefix("RNN_").lower(): value for name, value in variables.items()}
    assert fields.keys() <= Settings.model_fields.keys()
    return Settings(_env_file=None, **fields)


def check_pod(pod, settings, grace):
    """It is confined, has time to end by itself, and has the memory that the settings let the service take."""
    assert grace > settings.drain_seconds + settings.shutdown_seconds + 1
    memory = int(pod["resources"]["limits"]["memory"].removesuffix("Gi")) * 2**30
    assert memory >= sum(getattr(settings, name) for name in CACHES) + HEADROOM
    assert pod["image"].split(":")[1].removesuffix("-cuda") == __version__
    assert CONFINED.items() <= pod["securityContext"].items()
    assert {"name": "tmp", "mountPath": "/tmp"} in pod["volumeMounts"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_deployment_agrees_with_its_settings(overlay):
    manifests = rendered(overlay)
    deployment, config = one(manifests, "Deployment"), one(manifests, "ConfigMap")
    settings = settings_of(config["data"])
    spec, pod = deployment["spec"]["template"]["spec"], container(deployment)
    command, seconds = pod["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    check_pod(pod, settings, spec["terminationGracePeriodSeconds"] - int(seconds))
    assert pod["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    assert AS_USER.items() <= spec["securityContext"].items()
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    if overlay != "trial":
        memory = pod["resources"]["limits"]["memory"]
        assert pod["resources"]["requests"] == {"cpu": str(settings.compute_threads), "memory": memory}
        assert {item["name"] for item in pod["env"] if "value" not in item} == {"RNN_API_KEYS", "RNN_ADMIN_KEYS"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_labels_and_ports_meet(overlay):
    manifests = rendered(overlay)
    specs = {one["kind"]: one["spec"] for one in manifests if one["metadata"]["name"] == "rnn-service"}
    labels = specs["Deployment"]["template"]["metadata"]["labels"]
    assert specs["Service"]["selector"] == specs["NetworkPolicy"]["podSelector"]["matchLabels"] == labels
    for kind in ["PodDisruptionBudget"] + ["PodMonitor"] * (overlay != "trial"):
        assert specs[kind]["selector"]["matchLabels"] == labels
    used = [specs["Service"]["ports"][0]["targetPort"], specs["NetworkPolicy"]["ingress"][0]["ports"][0]["port"]]
    used += [one["port"] for one in specs.get("PodMonitor", {}).get("podMetricsEndpoints", [])]
    assert set(used) == {port["name"] for port in container(one(manifests, "Deployment"))["ports"]}
    assert ("HorizontalPodAutoscaler" in specs) is ("replicas" not in specs["Deployment"])


def test_kserve_agrees_with_its_settings():
    runtime, *services = kserve()
    pod = container(runtime)
    settings = settings_of({item["name"]: item["value"] for item in pod["env"]})
    assert (settings.port, str(settings.models), settings.model_name) == (8080, "/mnt/models", "{{.Name}}")
    assert (pod["name"], pod["ports"][0]["containerPort"]) == ("kserve-container", 8080)
    for predictor in (service["spec"]["predictor"] for service in services):
        check_pod(pod, settings, predictor["terminationGracePeriodSeconds"])
        assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
        assert predictor["model"]["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]


def test_yaml_of_the_page(tmp_path):
    """The overlay of one's own renders beside deploy/, and the loader fills the claim that the service's pods read."""
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert set(re.findall(r"rnn-service:(\d[\w.]*)", page)) == {__version__}
    blocks = {found["kind"]: found for found in map(yaml.safe_load, re.findall(r"```yaml\n(.*?)```", page, re.DOTALL))}
    loader = blocks["Pod"]
    shutil.copytree(ROOT / "deploy" / "kubernetes", tmp_path / "deploy" / "kubernetes")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kustomization.yaml").write_text(yaml.safe_dump(blocks["Kustomization"]))
    manifests = render(tmp_path / "mine")
    validate = importlib.import_module("kubernetes_validate").validate
    for manifest in [loader, *(found for found in manifests if found["kind"] not in KNOWN)]:
        validate(manifest, "1.37", strict=True)
    image = container(one(manifests, "Deployment"))["image"]
    assert image == container(loader)["image"] == f"registry.example/rnn-service:{__version__}"
    (volume,) = loader["spec"]["volumes"]
    assert one(manifests, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
    assert {volume["name"]} == {mount["name"] for mount in container(loader)["volumeMounts"]}
