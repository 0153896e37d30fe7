"""The packages from outside: what is in them, and that the wheel serves its models with nothing of the tree."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import BytesParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import service
from service.models.config import ModelConfig
from tests.e2e.running import environment, start_command
from tests.reference import run_reference

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[1]
PACKAGES = {"rnn_service": (ROOT, "service"), "rnn_client": (ROOT / "clients" / "python", "rnn_client")}
VARIABLES = environment() | {"PYTHONPATH": ""}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The folder that `make dist` has filled, or one filled here in the same way."""
    if made := os.environ.get("RNN_TEST_DIST"):
        return Path(made)
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, ROOT / "scripts" / "build_dist.py", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """An environment with both wheels, and what they need from this one, whose own copy of the service is not seen."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(f"{Path(np.__file__).parents[1]}\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--ignore-installed", *dist.glob("*.whl")], check=True)
    return folder / "bin"


def run(*command, cwd):
    return subprocess.run(command, cwd=cwd, env=VARIABLES, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def demo(installed, tmp_path_factory):
    """`rnn-service serve --demo` in an empty folder."""
    folder = tmp_path_factory.mktemp("empty")
    running = start_command([str(installed / "rnn-service"), "serve", "--demo", "--port", "0"], folder, VARIABLES)
    yield running
    running.stop()
    assert [path.name for path in folder.iterdir()] == ["service.log"]


def files_of(folder, name):
    """Every file of an import package that git knows, links followed."""
    known = {ROOT / file for file in run("git", "ls-files", "-z", cwd=ROOT).split("\0")}
    found = (Path(root, file) for root, _, files in os.walk(folder / name, followlinks=True) for file in files)
    return {str(path.relative_to(folder)) for path in found if path.resolve() in known}


@pytest.mark.parametrize("name", PACKAGES)
def test_archives_hold_every_file_and_agree(dist, name, tmp_path):
    folder, package = PACKAGES[name]
    service_only = name == "rnn_service"
    files = files_of(folder, package)
    about = f"{name}-{service.__version__}"
    info = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"} | ({"entry_points.txt"} if service_only else set())
    with zipfile.ZipFile(dist / f"{about}-py3-none-any.whl") as wheel:
        assert sorted(wheel.namelist()) == sorted(files | {f"{about}.dist-info/{part}" for part in info})
        metadata = BytesParser().parsebytes(wheel.read(f"{about}.dist-info/METADATA"))
    assert (metadata["Version"], metadata["License-Expression"]) == (service.__version__, "Apache-2.0")
    assert "Private" not in str(metadata.get_all("Classifier"))
    beside = {"LICENSE", "README.md", "pyproject.toml", "PKG-INFO", ".gitignore"}
    beside |= {"CHANGELOG.md", "constraints.txt"} if service_only else set()
    with tarfile.open(dist / f"{about}.tar.gz") as source:
        members = source.getmembers()
    assert all(member.isfile() for member in members)
    assert sorted(member.name for member in members) == sorted(f"{about}/{part}" for part in files | beside)
    assert (folder / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    # The wheel was built from the source distribution; from the tree it is the same.
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path, folder], check=True
    )
    (own,) = tmp_path.iterdir()
    assert own.read_bytes() == (dist / own.name).read_bytes()


def test_models_of_users_stay_out_of_the_packages(tmp_path):
    """They are in models/ beside the bundled ones, as `rnn-service import` writes them."""
    tree, built = tmp_path / "tree", tmp_path / "built"
    shutil.copytree(ROOT, tree, symlinks=True, ignore=shutil.ignore_patterns(".*", "clients", "tests"))
    (tree / "models" / "mine").mkdir()
    shutil.copy(tree / "models" / "sunspots" / "config.json", tree / "models" / "mine")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, tree, cwd=tmp_path)
    (wheel,), (source,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as packed, tarfile.open(source) as unpacked:
        names = [*packed.namelist(), *unpacked.getnames()]
    assert len([name for name in names if "demo/sunspots/config.json" in name]) == 2
    assert not [name for name in names if "mine" in name.split("/")]


def test_sbom_lists_what_the_service_needs_and_no_more(dist):
    bom = json.loads((dist / f"rnn_service-{service.__version__}.cdx.json").read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["version"]) == ("CycloneDX", service.__version__)
    names = {part["name"] for part in bom["components"]}
    assert {"torch", "llvmlite", "uvicorn", "libvalkey", "markdown-it-py"} <= names
    assert not {"pytest", "ray", "mypy", "onnx", "aiohttp", "rnn-client", "rnn-service"} & names
    graph = {entry["ref"]: set(entry.get("dependsOn", [])) for entry in bom["dependencies"]}
    assert set().union(*graph.values()) == {part["bom-ref"] for part in bom["components"]}


def test_installed_wheel_serves_the_demo(demo, installed, tmp_path):
    assert run(installed / "rnn-service", "--version", cwd=tmp_path) == f"{service.__version__}\n"
    place = run(installed / "python", "-c", "import service, rnn_client; print(*service.__path__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(installed.parent)
    for path in ("/", "/problems/model-not-found", "/docs", "/openapi.json", "/metrics"):
        assert demo.get(path).status_code == 200, path
    assets = {word for word in demo.get("/docs").text.split('"') if word.startswith("/static-offline-docs/")}
    assert len(assets) > 1
    assert all(demo.get(path).status_code == 200 for path in assets)


def test_installed_client_gets_torch_values_of_the_demo(demo, installed, tmp_path):
    years = np.array([[4.2], [21.5], [40.0]], np.float32)
    lines = f"""import json, numpy, rnn_client
years = numpy.array({years.tolist()}, numpy.float32)
with rnn_client.Client({demo.url!r}) as client:
    whole = client.forward(years, "sunspots")
    with client.session("sunspots") as session:
        steps = [session.step(year).outputs.tolist() for year in years]
print(json.dumps([whole.outputs.tolist(), steps]))"""
    whole, steps = json.loads(run(installed / "python", "-c", lines, cwd=tmp_path))
    folder = ROOT / "models" / "sunspots"
    spec = ModelConfig.model_validate_json((folder / "config.json").read_text()).spec()
    expected = run_reference(spec, load_file(folder / "1" / "model.safetensors"), years).outputs
    np.testing.assert_allclose(np.squeeze(whole), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(np.squeeze(steps), expected, rtol=0, atol=1e-5)
