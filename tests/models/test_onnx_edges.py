"""What stands between the nodes of an ONNX graph: only what leaves numbers as they are makes layers and a head of one
model, and what an import computes is what the file's own graph computes."""

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from service.models.importing.model import torch_reference
from service.models.importing.onnx.model import model_from_onnx
from service.models.importing.refusal import CheckpointRefused, ChoiceNeeded
from service.spec import ModelSpec
from tests.models.onnx_files import nodes, parameters, save_graph
from tests.reference import numbers, weights_of

LSTM = ModelSpec("lstm", 4, 4)
(W0, R0, B1), (W1, R1, _) = (parameters(LSTM, weights_of(LSTM, seed)) for seed in (0, 1))
WHOLE = {f"i{number}": [number] for number in (-9, -1, 0, 1, 2, 3, 4)} | {"last": -1, "fourth": 4, "far": [2**40]}
WHOLE |= {"state": [1, 1, 4], "mixed": [-1, 1, 4], "unlike": [1, 4, 1], "fixed": [5, 3, 4], "huge": [2**20] * 3}
FLOATS = {"w0": W0, "r0": R0, "w1": W1, "r1": R1, "bias": B1, "wide": np.concatenate([W0, W1], axis=2), "half": [0.5]}
FLOATS |= {"w6": np.ones((1, 24, 4)), "r6": np.ones((1, 24, 6)), "scale": [1, 2, 3, 4], "zeros": np.zeros((1, 1, 4))}
FLOATS |= {"fc.weight": np.ones((4, 2)), "fc.bias": np.array([1, 2]), "fc8.weight": np.ones((8, 2))}
STORED = {name: np.array(value, np.int64) for name, value in WHOLE.items()}
STORED |= {name: np.array(value, np.float32) for name, value in FLOATS.items()}
LOWER = "LSTM x w0 r0 > y0 h0 c0 name=lower hidden_size=4\nSqueeze y0 i1 > s"
UPPER = "LSTM t w1 r1 > y1 h1 c1 name=upper hidden_size=4\nSqueeze y1 i1 > s1"
HEAD = "MatMul top fc.weight > m name=/fc/MatMul\nAdd m fc.bias > y"


@pytest.fixture
def find(tmp_path):
    def of(*texts, head=None, layer=None, x_shape=("seq", "batch", 4), more_inputs=()):
        made = [node for text in texts for node in nodes(text)]
        save_graph(tmp_path / "model.onnx", made, STORED, x_shape=x_shape, more_inputs=more_inputs)
        found = model_from_onnx(tmp_path / "model.onnx", layer=layer, nonlinearity=None, head=head)
        if head:
            check_file(tmp_path / "model.onnx", found, *((5, 3) if x_shape[0] == 5 else (6, 2)))
        return found

    return of


def check_file(path, found, steps, batch):
    """The file's whole graph, the reference of the import and torch.nn with its arrays give the same predictions."""
    x = numbers(np.random.default_rng(0), steps, batch, 4)
    [own] = ReferenceEvaluator(onnx.load(path)).run(None, {"x": x})
    states = {name: np.zeros((found.spec.states, 4), np.float32) for name in "hc"}
    reference, _ = torch_reference(found.spec, found.arrays)
    for row in range(batch):
        [expected] = reference([{"x": x[:, row], **states}], np.float64)
        [result] = found.reference([{"x": x[:, row], **states}], np.float64)
        for predictions, tolerance in ((result["predictions"], 1e-6), (own.reshape(-1, batch, 2)[:, row], 1e-5)):
            np.testing.assert_allclose(predictions, expected["predictions"], atol=tolerance)


OF_X = """Shape x > shape
    Slice shape i0 i1 > steps
    Slice shape i1 i2 > rows"""
REARRANGED = {
    "squeeze": "Squeeze y0 i1 > t",
    "cast": "Cast s > d to=11\nCast d > t to=1",
    "unsqueeze": "Unsqueeze s i0 > u\nSqueeze u i0 > t",
    "squeeze of another axis": "Transpose y0 > u perm=[1,2,0,3]\nSqueeze u i0 > v\nTranspose v > t perm=[1,0,2]",
    "shape of x": f"{OF_X}\nConcat steps rows i4 > to axis=0\nReshape y0 to > t",
    # As torch.onnx.export(dynamo=True) writes it for open axes.
    "shape of y": """Transpose y0 > u perm=[0,2,1,3]
        Shape u > of start=0
        Slice of i0 i1 > of0
        Slice of i1 i2 > of1
        Slice of i2 i3 > of2
        Slice of i3 i4 > of3
        Mul of2 of3 > product
        Reshape product i-1 > width
        Concat of0 of1 width > to axis=0
        Reshape u to > t""",
}


@pytest.mark.parametrize("between", REARRANGED)
def test_rearranged_axes_join_layers_and_head(find, between):
    found = find(LOWER, REARRANGED[between], UPPER, "Identity s1 > top", HEAD, head="fc")
    assert (found.spec.num_layers, found.spec.out_features) == (2, 2)
    assert find(LOWER, REARRANGED[between], "Identity t > top", HEAD, head="fc").spec.num_layers == 1


RESHAPED = {
    "swapped": f"{OF_X}\nConcat rows steps i4 > to axis=0\nReshape y0 to > t",
    "rows among steps": "Reshape y0 mixed > t",
}
CHANGED = {
    "whole numbers": "Cast s > d to=7\nCast d > t to=1",
    "half": "Cast s > d to=10\nCast d > t to=1",
    "residual": "Add s x > t",
    "scaled": "Mul s half > t",
    "relu": "Relu s > t",
    "norm": "LayerNormalization s scale > t",
    "reversed": "Slice s i-1 i-9 i0 i-1 > t",
}


@pytest.mark.parametrize("between", [*RESHAPED, *CHANGED])
def test_changed_numbers_join_no_layers(find, between):
    with pytest.raises(ChoiceNeeded, match="2 recurrent layers: lower, upper; say which with --layer"):
        find(LOWER, (RESHAPED | CHANGED)[between], UPPER, "Identity y1 > y")


LAYERS = {"scaled": "scale", "relu": "relu", "norm": "layer_norm"}


@pytest.mark.parametrize("between", CHANGED)
def test_changed_numbers_are_a_layer_or_no_head(find, between):
    texts = LOWER, CHANGED[between], "Identity t > top", HEAD
    if between in LAYERS:
        assert [layer.type for layer in find(*texts, head="fc").spec.head] == [LAYERS[between], "linear"]
        return
    node = {"residual": "Add t", "reversed": "Slice t"}.get(between, "Cast d")
    with pytest.raises(ChoiceNeeded, match=f"--head fc: {node} is none of the layers that are served"):
        find(*texts, head="fc")
    found = find(*texts)
    assert (found.spec.head, found.left_out) == ((), [node])
    assert found.notes[0] == (
        f"behind the recurrent layers, {node} is none of the layers that are served: the model has no predictions"
    )


NEITHER = "MatMul /fc/MatMul reads neither the outputs of upper nor what pools them"


@pytest.mark.parametrize(
    ("top", "reason"),
    [
        ("Identity c1 > top", NEITHER),
        ("Identity s > top", NEITHER),
        ("Squeeze h0 i0 > top", NEITHER),
        ("Gather s1 i0 > top axis=0", "Gather top is none of the layers that are served"),
        ("Identity x > top", "y reads neither the outputs of upper nor what pools them"),
    ],
)
def test_head_over_something_else_is_refused(find, top, reason):
    with pytest.raises(ChoiceNeeded, match=f"--head.*: {reason}"):
        find(LOWER, "Identity s > t", UPPER, top, HEAD, head="fc")


@pytest.mark.parametrize("top", ["Gather s1 last > top axis=0", "Squeeze h1 i0 > top", "Slice s1 i-1 far i0 > top"])
def test_head_over_the_last_step(find, top):
    found = find(LOWER, "Identity s > t", UPPER, top, HEAD, head="fc")
    assert found.spec.pooling == "last"


def test_layers_of_unlike_sizes_are_two_models(find):
    texts = LOWER, "LSTM s w6 r6 > y name=upper hidden_size=6"
    assert find(*texts, layer="upper").spec == ModelSpec("lstm", 4, 6, bias=False)
    with pytest.raises(ChoiceNeeded, match="--layer other is not in the file; it has lower, upper"):
        find(*texts, layer="other")


def pair(x, place, forward, backward):
    """A forward and a reverse node, their outputs beside each other as t0 or t1."""
    return f"""LSTM {x} {forward} > yf{place} name=forward{place} hidden_size=4
        LSTM {x} {backward} > yb{place} name=backward{place} hidden_size=4 direction=reverse
        Squeeze yf{place} i1 > sf{place}
        Squeeze yb{place} i1 > sb{place}
        Concat sf{place} sb{place} > t{place} axis=2"""


def test_forward_and_reverse_nodes_are_one_layer(find):
    layers = pair("x", 0, "w0 r0", "w1 r1 bias"), pair("t0", 1, "wide r1 bias", "wide r0")
    found = find(*layers, "MatMul t1 fc8.weight > m\nAdd m fc.bias > y", head="fc8")
    assert (found.spec.num_layers, found.spec.bidirectional, found.layer) == (2, True, "forward0")
    assert (found.stored["weight_ih_l0_reverse"].source, found.stored["bias_ih_l0"].source) == ("w1", "(zeros)")


START = "n starts from a computed h0 that is not zero: requests must send it"


@pytest.mark.parametrize(
    ("start", "h0", "notes"),
    [
        ("Expand half state > h", 0.5, []),
        ("Tile half i4 > q\nReshape q state > h", 0.5, []),
        ("ConstantOfShape state > k\nAdd k half > h", 0.5, []),
        ("Expand zeros state > h", None, []),
        ("Slice given i1 i2 i0 > h", None, []),
        ("Relu given > h", None, [START]),
        ("Add given given > h", None, [START]),
        ("Expand half huge > h", None, [START]),  # too large to look at
        ("Tile zeros huge > h", None, [START]),
        ("ConstantOfShape huge > h", None, [START]),
        ("Reshape scale unlike > h", None, [START]),  # rows start unlike each other
    ],
)
def test_initial_state_is_kept_or_said(find, start, h0, notes):
    given = {"given": (2, "batch", 4)}
    found = find(start, "LSTM x w0 r0 - - h > y name=n hidden_size=4", more_inputs=given)
    assert found.notes == notes
    kept = found.arrays.get("h0")
    assert (kept is None) if h0 is None else torch.equal(kept, torch.full((1, 4), h0))


def test_lengths_of_rows_are_said(find):
    found = find("LSTM x w0 r0 - i4 > y name=n hidden_size=4")
    assert found.notes == ["n has lengths of its rows (sequence_lens): requests must send rows cut to them"]


def test_layer_that_starts_from_the_state_of_another(find):
    texts = LOWER, "Identity h0 > h", "LSTM s w1 r1 - - h > y name=upper hidden_size=4"
    with pytest.raises(ChoiceNeeded, match="2 recurrent layers: lower, upper"):
        find(*texts)
    assert find(*texts, layer="upper").notes[0] == START.replace("n starts", "upper starts")


def test_file_of_one_length_is_followed_at_that_length(find):
    upper = UPPER.replace("Squeeze y1 i1", "Reshape y1 fixed")
    texts = LOWER, "Reshape y0 fixed > t", upper, "Gather s1 fourth > top axis=0", HEAD
    found = find(*texts, head="fc", x_shape=(5, 3, 4))
    assert found.spec.num_layers == 2


def test_constants_that_double_are_bounded(find):
    doubled = "\n".join(f"Concat d{place} d{place} > d{place + 1} axis=0" for place in range(60))
    with pytest.raises(CheckpointRefused, match=r"W \(d60\) is computed by the graph"):
        find("Identity w0 > d0", doubled, "LSTM x d60 r0 > y hidden_size=4")
