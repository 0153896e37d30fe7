#!/usr/bin/env python3
"""Build the packages of the service and of its client, check them, and write the SBOM beside them.

    scripts/build_dist.py [FOLDER]

FOLDER, dist/ by default, is emptied first. Each wheel is built from its source distribution. The interpreter that runs
this needs the extra `dist`, and the service as it is locked.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Build, check, list."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    for project in (ROOT, ROOT / "clients" / "python"):
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project], check=True)
    archives = sorted(folder.iterdir())
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *archives], check=True)
    service = next(path for path in archives if path.name.startswith("rnn_service") and path.suffix == ".gz")
    bom = folder / f"{service.name.removesuffix('.tar.gz')}.cdx.json"
    subprocess.run([sys.executable, ROOT / "scripts" / "sbom.py", sys.executable, bom], check=True)
    for path in sorted(folder.iterdir()):
        print(f"{path.stat().st_size:9,} bytes  {path}")


if __name__ == "__main__":
    main()
