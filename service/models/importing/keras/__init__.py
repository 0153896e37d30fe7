"""Models of Keras, from `.keras` and `.h5` files. All but this file needs h5py, which is an extra."""

import zipfile
from pathlib import Path

from service.models.importing.refusal import refusing


def is_keras(path: Path) -> bool:
    """Whether it is an HDF5 file, or an archive as Keras writes them."""
    with refusing("the file's archive is damaged"), path.open("rb") as file:
        start = file.read(8)
        zipped = start.startswith(b"PK") and zipfile.is_zipfile(file)
        return start == b"\x89HDF\r\n\x1a\n" or (zipped and "config.json" in zipfile.ZipFile(file).namelist())
