"""A program that reads a Keras file: the HDF5 library crashes on some damaged files, and never ends on others.

It prints a safetensors document: the arrays by their paths in the file, and as JSON `:config`, what Keras says of the
model, and `:paths`, where each layer has its arrays. An error is one line on stderr, and the exit code 1.

Layouts: Keras 3, `src/saving/saving_lib.py` (.keras) and `src/legacy/saving/legacy_h5_format.py` (.h5).
"""

import io
import json
import re
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from safetensors.numpy import save

MAX_CHILDREN = 10_000
MEMORY_BYTES = 4 * 2**30  # and a few times the file

Paths = dict[str, list[list[str]]]
"""The paths of the arrays of each layer, in Keras' order: in .h5 by `/` and its name; an archive names layers by their
class and number (`dense_2`), so they stand by their class (`dense`) in their order there, those without arrays not."""


class Refused(Exception):
    """Says in one sentence why the file is not read."""


def read(path: Path) -> bytes:
    size = path.stat().st_size
    if zipped := zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            config, weights = (_entry(archive, name, size) for name in ("config.json", "model.weights.h5"))
    with h5py.File(io.BytesIO(weights) if zipped else path, "r") as file:
        if not zipped and (config := file.attrs.get("model_config")) is None:
            raise Refused("the file has weights and no model; save both in Keras: model.save('model.keras')")
        paths = _paths_by_class(file) if zipped else _paths_by_name(file)
        arrays = {name: _array(file, name, size) for layers in paths.values() for layer in layers for name in layer}
    if sum(array.nbytes for array in arrays.values()) > size:
        raise Refused("the file's arrays claim to be larger than the file")
    texts = {
        ":config": config if isinstance(config, bytes) else str(config).encode(),
        ":paths": json.dumps(paths).encode(),
    }
    return save(arrays | {name: np.frombuffer(text, np.uint8) for name, text in texts.items()})


def _entry(archive: zipfile.ZipFile, name: str, size: int) -> bytes:
    entry = archive.getinfo(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
        raise Refused(f"{name} is compressed, and Keras does not compress it")
    return archive.read(entry)


def _paths_by_class(file: Any) -> Paths:
    # Keras 2.12 to 2.15 have the second name; on Windows they wrote backslashes, which in HDF5 are letters of a name.
    roots = ("layers", "_layer_checkpoint_dependencies")
    names = {(root, "/", layer) for root in roots for layer in _children(file, root)}
    names |= {(*name.split("\\")[:1], "\\", name.split("\\")[1]) for name in file if name.startswith(f"{roots[1]}\\")}
    # A recurrent layer has its arrays in its cell, a wrapper in the layers that it wraps.
    parts = ((), ("cell",), ("layer",), ("forward_layer", "cell"), ("backward_layer", "cell"))
    paths: Paths = {}
    for root, separator, layer in sorted(names, key=lambda name: [int(end) for end in re.findall(r"_(\d+)$", name[2])]):
        places = [f"{separator.join([root, layer, *part])}/vars" for part in parts]
        if found := [f"{place}/{index}" for place in places for index in range(len(_children(file, place)))]:
            paths.setdefault(re.sub(r"_(\d+$)?", "", layer), []).append(found)
    return paths


def _paths_by_name(file: Any) -> Paths:
    paths: Paths = {}
    for layer in _children(file, "model_weights"):
        place = f"model_weights/{layer}"
        names = np.asarray(_item(file, place).attrs.get("weight_names", ())).astype(str).tolist()
        paths[f"/{layer}"] = [[f"{place}/{name}" for name in names]]
    return paths


def _children(file: Any, path: str) -> list[str]:
    group = _item(file, path)
    if group is not None and len(group) > MAX_CHILDREN:
        raise Refused(f"{path} has more than {MAX_CHILDREN} entries")
    return list(group or ())


def _item(group: Any, path: str) -> Any:
    """What is at a path, None if nothing is. A link, which may lead out of the file, is refused."""
    for part in path.split("/"):
        link = group.get(part, getlink=True) if isinstance(group, h5py.Group) else None
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise Refused(f"{path} is a link to another place, and links are not followed")
        group = group[part]
    return group


def _array(file: Any, path: str, size: int) -> Any:
    data = _item(file, path)
    if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiu" or data.is_virtual or data.external:
        raise Refused(f"{path} is no array of numbers in the file")
    if data.nbytes > size:
        raise Refused(f"{path} claims shape {data.shape}, more than the file holds")
    return np.asarray(data[()])


def main() -> None:
    path = Path(sys.argv[1])
    for which, limit in ((resource.RLIMIT_AS, MEMORY_BYTES + 8 * path.stat().st_size), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(which, (limit, limit))
    try:
        sys.stdout.buffer.write(read(path))
    except Refused as error:
        sys.exit(str(error))
    except MemoryError:
        sys.exit("the file asks for more memory than there is")
    except Exception as error:  # the libraries can raise anything for a damaged file
        sys.exit(f"the file is not one of Keras, or is damaged: {' '.join(str(error).split()):.120}")


if __name__ == "__main__":
    main()
