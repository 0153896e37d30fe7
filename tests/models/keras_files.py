"""Files as Keras 3.15 lays them out: its own have the same groups, names and attributes where the import looks."""

import io
import json
import re
import zipfile

import h5py
import numpy as np

GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1}


def layer(kind, *shapes, **config):
    """A layer as Keras describes it, and the shapes of its arrays."""
    return {"class_name": kind, "config": config, "shapes": shapes}


def dense(width, units, activation="linear", **config):
    return layer("Dense", (width, units), (units,), units=units, activation=activation, **config)


def recurrent(kind, width, units, **config):
    gates = units * GATES[kind]
    shapes = [(width, gates), (units, gates), (2, gates) if kind == "GRU" else (gates,)]
    return layer(kind, *shapes[: 2 + config.get("use_bias", True)], units=units, **{"reset_after": True, **config})


def bidirectional(inner, **config):
    return layer("Bidirectional", *2 * inner.pop("shapes"), layer=inner, **config)


def normalization(kind, width, **config):
    shapes = {"BatchNormalization": [(width,)] * 4, "LayerNormalization": [(width,)] * 2}
    return layer(kind, *shapes.get(kind, [(width,), (width,), ()]), **config)


def sines(shape, place):
    return 0.7 * np.sin(np.arange(np.prod(shape)) * 0.7 + place).reshape(shape)


def save_model(path, layers, *, values=sines, functional=False, layout=("layers", "/", 1)):
    """Write a model of these layers; values(shape, place) makes the arrays.

    layout is what an archive's groups begin with, what separates their names, and how far their numbers are apart.
    """
    entries = [
        {"class_name": each["class_name"], "config": {"name": f"{each['class_name'].lower()}_{index}"} | each["config"]}
        for index, each in enumerate(layers)
    ]
    config = {"layers": entries}
    if functional:
        for entry, before in zip(entries, [None, *entries], strict=False):
            tensor = {"class_name": "__keras_tensor__", "config": {"keras_history": [before and before["name"], 0, 0]}}
            entry |= {"name": entry["config"]["name"], "inbound_nodes": [{"args": [tensor]}] if before else []}
        config["output_layers"] = [entries[-1]["name"], 0, 0]
    model = json.dumps({"class_name": "Functional" if functional else "Sequential", "config": config})
    weights, archived = io.BytesIO(), path.suffix == ".keras"
    with h5py.File(weights, "w") as file:
        file.attrs["model_config"] = model
        place = 0
        for each, entry in zip(layers, entries, strict=True):
            arrays = [values(shape, place + index) for index, shape in enumerate(each["shapes"])]
            place += len(arrays)
            if variance := {"BatchNormalization": -1, "Normalization": -2}.get(each["class_name"]):
                arrays[variance] = abs(arrays[variance]) + 0.5
            _write(file, entry, [np.float32(array) for array in arrays], layout if archived else None)
    if not archived:
        path.write_bytes(weights.getvalue())
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", model)
        archive.writestr("model.weights.h5", weights.getvalue())


def _write(file, entry, arrays, layout):
    kind, name = entry["class_name"], entry["config"]["name"]
    if not layout:
        group = file.create_group(f"model_weights/{name}")
        names = [f"sequential/{name}/array_{index}" for index in range(len(arrays))]
        group.attrs["weight_names"] = names
        group.update(dict(zip(names, arrays, strict=True)))
        return
    snake = re.sub("([a-z])([A-Z])", r"\1_\2", kind.replace("RNN", "Rnn")).lower()
    root, separator, step = layout
    seen = file.attrs.get(f"of {snake}", 0)
    file.attrs[f"of {snake}"] = seen + 1
    half = len(arrays) // 2
    places = {
        "Bidirectional": [(["forward_layer", "cell"], arrays[:half]), (["backward_layer", "cell"], arrays[half:])],
        "TimeDistributed": [(["layer"], arrays)],
        **{cell: [(["cell"], arrays)] for cell in GATES},
    }
    for where, own in places.get(kind, [([], arrays)]):
        place = separator.join([root, f"{snake}{f'_{seen * step}' if seen else ''}", *where])
        file.create_group(f"{place}/vars").update({str(index): array for index, array in enumerate(own)})
