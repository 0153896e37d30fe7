"""Models of Keras are imported whole, or refused with what is in the way."""

import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from service.cli import build_app
from service.cli.verify import _run
from service.engine.load import EngineFactory
from service.models.importing.keras import layers
from service.models.importing.keras.model import model_from_keras
from service.models.importing.refusal import CheckpointRefused
from tests.models.keras_files import bidirectional, dense, layer, normalization, recurrent, save_model

SUFFIXES = (".keras", ".h5")
IDS = np.float32([[1], [5], [2], [6], [0]])
VECTORS = np.cos(np.arange(10, dtype=np.float32)).reshape(5, 2)
LSTM = recurrent("LSTM", 2, 3)
PER_STEP = recurrent("LSTM", 2, 3, return_sequences=True)

# What Keras 3.15.1 on torch predicts with these arrays.
TAGGER = [
    layer("Embedding", (7, 3), input_dim=7, output_dim=3, mask_zero=False),
    layer("Dropout", rate=0.2),
    bidirectional(recurrent("LSTM", 3, 2, return_sequences=True), merge_mode="concat"),
    bidirectional(recurrent("LSTM", 4, 2, return_sequences=False), merge_mode="concat"),
    dense(4, 3, "relu"),
    dense(3, 2, "softmax"),
]
FORECASTER = [
    normalization("Normalization", 2, axis=[-1], mean=None, variance=None),
    dense(2, 3, "gelu"),
    recurrent("GRU", 3, 3, return_sequences=True, reset_after=True),
    normalization("LayerNormalization", 3, axis=[-1], epsilon=0.001),
    layer("TimeDistributed", (3, 2), (2,), layer={"class_name": "Dense", "config": {"activation": "linear"}}),
    layer("Activation", activation="sigmoid"),
]
POOLED = [
    layer("InputLayer"),
    normalization("BatchNormalization", 2, axis=-1, epsilon=0.001),
    recurrent("SimpleRNN", 2, 2, activation="relu", return_sequences=True),
    layer("GlobalAveragePooling1D"),
    dense(2, 2, "elu"),
    layer("LeakyReLU", negative_slope=0.3),
]
FORECAST = [[0.38812706, 0.39055714], [0.38971785, 0.39433762], [0.3920644, 0.39415294], [0.39322022, 0.39381012]]
FORECAST += [[0.3933576, 0.3938276]]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("entries", "x", "functional", "expected"),
    [
        (TAGGER, IDS, False, [[0.66607606, 0.33392394]]),
        (FORECASTER, VECTORS, False, FORECAST),
        (POOLED, VECTORS, True, [[0.6925508, 0.46407846]]),
    ],
)
def test_predictions_are_those_of_keras(tmp_path, suffix, entries, x, functional, expected):
    path = tmp_path / f"model{suffix}"
    save_model(path, entries, functional=functional)
    model = model_from_keras(path)
    sequence = {"x": x, "h": np.zeros((model.spec.states, model.spec.hidden_size), np.float32)}
    if model.spec.has_cell_state:
        sequence["c"] = sequence["h"].copy()
    [reference] = model.reference([sequence], np.float64)
    arrays = {name: array.numpy() for name, array in model.arrays.items()}
    [served] = _run(EngineFactory.configure("cpu", threads=0).load(model.spec, arrays), [sequence])
    for result in (reference, served):
        np.testing.assert_allclose(result["predictions"], expected, atol=5e-7)


def import_model(path, *options):
    return CliRunner().invoke(build_app(), ["import", str(path), "--name", "m", "--models", str(path.parent), *options])


def test_recipe_of_the_documentation(tmp_path):
    """The file that the recipe of docs/importing.md saves, and what the command says of it."""
    embedding = layer("Embedding", (5000, 32), name="embedding")
    stack = [recurrent("LSTM", 32, 24, return_sequences=True), recurrent("LSTM", 48, 24)]
    stack = [bidirectional(each, name=f"bidirectional{index}") for index, each in zip(("", "_1"), stack, strict=True)]
    head = [dense(48, 16, "relu"), dense(16, 1, "sigmoid")]
    save_model(tmp_path / "sentiment.keras", [embedding, layer("Dropout", name="dropout"), *stack, *head])
    recipe = Path("docs/importing.md").read_text().split("import sentiment.keras --name sentiment\n```\n\n```text\n")[1]
    said = import_model(tmp_path / "sentiment.keras").stdout
    found, _, ignored, verified, *_ = recipe.split("\n")
    assert found in said
    assert ignored in said
    assert verified.partition(" against ")[2] in said


@pytest.mark.parametrize("separator", "/\\")
def test_layout_of_keras_2(tmp_path, separator):
    """On Windows Keras 2.12 to 2.15 wrote backslashes into the names of groups, and numbers have gaps everywhere."""
    for name, layout in (
        ("3.keras", ("layers", "/", 1)),
        ("2.keras", ("_layer_checkpoint_dependencies", separator, 2)),
    ):
        save_model(tmp_path / name, [*TAGGER, dense(2, 2)], layout=layout)
    three, two = (model_from_keras(tmp_path / name).arrays for name in ("3.keras", "2.keras"))
    assert {name: array.tolist() for name, array in two.items()} == {
        name: array.tolist() for name, array in three.items()
    }


@st.composite
def models(draw):
    """Chains of Keras layers, two recurrent ones among them."""
    kind, units, twice = (
        draw(st.sampled_from(("LSTM", "GRU", "SimpleRNN"))),
        draw(st.integers(1, 5)),
        draw(st.booleans()),
    )
    options = {"use_bias": draw(st.booleans()), "activation": "tanh"}
    front = draw(st.sampled_from(([], [normalization("LayerNormalization", 4)], [dense(4, 4, "swish")])))
    sequences, width = draw(st.booleans()), units * (1 + twice)
    stack = [recurrent(kind, 4, units, return_sequences=True, **options)]
    stack += [recurrent(kind, width, units, return_sequences=sequences, **options)]
    stack = [bidirectional(each) for each in stack] if twice else stack
    pool = [layer(draw(st.sampled_from(("GlobalAveragePooling1D", "GlobalMaxPooling1D"))))] if sequences else []
    pool = draw(st.sampled_from(([], pool)))
    activations = ("relu", "leaky_relu", "elu", "silu", "tanh", "softplus", "exponential", "log_softmax")
    head = [normalization("BatchNormalization", width), dense(width, 3, draw(st.sampled_from(activations)))]
    others = (layer("ReLU"), layer("ELU", alpha=0.5), layer("Softmax", axis=-1), layer("Dropout"))
    return [*front, *stack, *pool, *draw(st.sampled_from(([], head, [*head, draw(st.sampled_from(others))])))]


@settings(max_examples=15)
@given(entries=models(), suffix=st.sampled_from(SUFFIXES), functional=st.booleans(), seed=st.integers(0, 99))
def test_every_chain_comes_through(tmp_path_factory, entries, suffix, functional, seed):
    path = tmp_path_factory.mktemp("keras") / f"model{suffix}"
    rng = np.random.default_rng(seed)
    save_model(path, entries, functional=functional, values=lambda shape, _: 0.5 * rng.standard_normal(shape))
    result = import_model(path)
    assert result.exit_code == 0, result.output
    assert "against Keras' formulas (numpy) in float64" in result.stdout


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([layer("Embedding", (7, 2), mask_zero=True), LSTM], "embedding_0 has mask_zero True; served is False"),
        ([layer("Masking"), LSTM], "masking_0 is a Masking, which is not served"),
        ([LSTM, layer("Lambda", function={"class_name": "__lambda__"})], "lambda_1 is a Lambda, which is not served"),
        ([{**LSTM, "class_name": "Mine>LSTM"}], "mine>lstm_0 is a Mine>LSTM, which is not served"),
        ([bidirectional(recurrent("GRU", 2, 3), merge_mode="sum")], "has merge_mode 'sum'; served is 'concat'"),
        ([recurrent("LSTM", 2, 3, recurrent_activation="hard_sigmoid")], "has recurrent_activation 'hard_sigmoid'; se"),
        ([recurrent("LSTM", 2, 3, go_backwards=True)], "lstm_0 has go_backwards True; served is False"),
        ([recurrent("GRU", 2, 3, reset_after=False)], "gru_0 has reset_after False; served is True"),
        ([PER_STEP, recurrent("LSTM", 3, 4)], "LSTM of 4 units, and lstm_0 (LSTM) LSTM of 3 units: a stack has equal"),
        ([PER_STEP, dense(3, 3), recurrent("LSTM", 3, 3)], "dense_1 (Dense) is between recurrent layers, where only"),
        ([LSTM, normalization("BatchNormalization", 3, axis=[2])], "batchnormalization_1 has axis [2]; served is -1"),
        ([LSTM, dense(3, 1, "hard_sigmoid")], "dense_1 has the activation 'hard_sigmoid', which is not served"),
        (
            [PER_STEP, dense(3, 3), layer("GlobalMaxPooling1D")],
            "is served directly after a recurrent layer that returns",
        ),
        (
            [layer("TimeDistributed", layer=layer("LSTM"))],
            "timedistributed_0 is a TimeDistributed of LSTM, which is not",
        ),
        ([dense(2, 2)], "the model has no recurrent layer: no LSTM, GRU or SimpleRNN"),
        (
            [recurrent("LSTM", 2, 3, use_bias=False), layer("Dense", (3, 1), activation="relu")],
            "dense_1 needs 2 arrays",
        ),
        ([layer("Sequential", layers=[]), LSTM], "sequential_0 is a Sequential, which is not served"),
    ],
)
def test_what_is_not_served_is_named(tmp_path, entries, sentence):
    save_model(tmp_path / "model.keras", entries)
    result = import_model(tmp_path / "model.keras")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert sentence in result.stderr


def damaged(path):
    """Files that lead the reader astray, by what is said of them."""
    save_model(path, [LSTM])
    whole = path.read_bytes()

    def edit(change):
        path.write_bytes(whole)
        with h5py.File(path, "r+") as file:
            group = file["model_weights/lstm_0/sequential/lstm_0"]
            del group["array_0"]
            change(file, group)

    with h5py.File(path.with_name("other.h5"), "w") as file:
        file["secret"] = np.ones((2, 12), np.float32)
    large = {"shape": (2**20, 2**20), "dtype": "f4"}
    other = h5py.ExternalLink("other.h5", "secret")
    layout = h5py.VirtualLayout((2, 12), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "secret", (2, 12))
    edit(lambda file, group: group.update({"array_0": other}))
    yield "array_0 is a link to another place, and links are not followed"
    edit(lambda file, group: group.update({"array_0": h5py.SoftLink("/model_weights")}))
    yield "array_0 is a link to another place, and links are not followed"
    edit(lambda file, group: group.create_dataset("array_0", (2, 12), "f4", external=[("/etc/hostname", 0, 96)]))
    yield "array_0 is no array of numbers in the file"
    edit(lambda file, group: group.create_virtual_dataset("array_0", layout))
    yield "array_0 is no array of numbers in the file"
    edit(lambda file, group: group.create_dataset("array_0", **large))
    yield "array_0 claims shape (1048576, 1048576), more than the file holds"
    edit(lambda file, group: group.create_dataset("array_0", **large, chunks=(9, 9), compression="gzip"))
    yield "array_0 claims shape (1048576, 1048576), more than the file holds"
    edit(lambda file, group: group.create_dataset("array_0", data=[b"text"]))
    yield "array_0 is no array of numbers in the file"
    path.write_bytes(whole[:3000])
    yield "the file is not one of Keras, or is damaged: Unable to synchronously open file (truncated file"
    with h5py.File(path, "w") as file:
        file["layers/lstm/vars/0"] = 1
    yield "the file has weights and no model; save both in Keras: model.save('model.keras')"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = "[" * 60_000
        file.create_group("model_weights")
    yield "the file's model makes no sense: maximum recursion depth exceeded"
    for compression, text in ((zipfile.ZIP_DEFLATED, "is compressed"), (zipfile.ZIP_STORED, "no item named 'model.we")):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("config.json", bytes(10**7))
        yield text


def test_hostile_files_end_in_one_sentence(tmp_path):
    for sentence in damaged(tmp_path / "model.h5"):
        result = import_model(tmp_path / "model.h5")
        assert (result.exit_code, result.stderr.count("\n")) == (1, 1), result.output
        assert sentence in result.stderr


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import os; os.kill(os.getpid(), 11)", "the file is damaged: the HDF5 library crashes on it"),
        ("while True: pass", "the file is damaged: the HDF5 library does not come to an end with it"),
    ],
)
def test_library_may_crash_or_hang(tmp_path, monkeypatch, program, sentence):
    """As HDF5 2.0 does on some damaged files."""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setattr(layers.hdf5, "__file__", str(tmp_path / "program.py"))
    monkeypatch.setattr(layers, "SECONDS", 2)
    save_model(tmp_path / "model.h5", [LSTM])
    result = import_model(tmp_path / "model.h5")
    assert (result.exit_code, result.stderr) == (1, f"error: model.h5: {sentence}\n")


def test_options_and_missing_package(tmp_path, monkeypatch):
    save_model(tmp_path / "model.keras", [LSTM])
    result = import_model(tmp_path / "model.keras", "--head", "dense")
    assert result.exit_code == 2
    assert "a Keras file says what its layers are: leave out --head" in result.stderr
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert import_model(tmp_path / "model.keras").stderr == (
        "error: model.keras: reading .keras and .h5 files needs the h5py package: pip install h5py\n"
    )


def test_stateful_is_noted(tmp_path):
    path = tmp_path / "model.keras"
    save_model(path, [recurrent("LSTM", 2, 3, stateful=True)])
    assert model_from_keras(path).notes == ["lstm_0 (LSTM) is stateful: a session keeps its state"]


@pytest.mark.parametrize(
    "node", [["a", 0, 0, {}], {"args": [{"config": {"keras_history": ["a", 0, 0]}}], "kwargs": {}}]
)
def test_functional_model_must_be_a_chain(node):
    first, second = {"name": "a", "inbound_nodes": []}, {"name": "b", "inbound_nodes": [[node]]}
    layers._check_chain([first, second], [["b", 0, 0]])
    third = {"name": "c", "inbound_nodes": [[node, ["b", 0, 0]]]}
    for entries, ends, sentence in (
        ([first, second, third], ["c", 0, 0], "c reads a, b"),
        ([first, second, {"name": "c", "inbound_nodes": [["b", 0, 1]]}], ["c", 0, 0], "c reads call 0, output 1 of b"),
        ([first, second], ["a", 0, 0], "it does not end with its last layer, b"),
        ([second], ["b", 0, 0], "b reads a"),
    ):
        with pytest.raises(CheckpointRefused, match=f"the model is no chain: {sentence}"):
            layers._check_chain(entries, ends)
