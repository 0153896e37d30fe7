"""Small forwards are answered in one go, in memory that the next of their form uses again."""

import asyncio
import gc
import weakref

import numpy as np
import pytest

from service.api.quick_forward import MOST_FORMS
from tests.api.quick_way import QuickWay
from tests.e2e.models import SMALL, SPECS, expected, write_model


@pytest.fixture
def repository(tmp_path):
    for name in (*SMALL, "explodes"):
        write_model(tmp_path, name)
    return tmp_path


def way(repository, **settings):
    return QuickWay(b"/rnn/forward", repository, **settings)


@pytest.mark.parametrize("name", SMALL)
def test_bodies_of_a_form_get_their_own_answers(repository, name):
    spec, quick, random = SPECS[name], way(repository), np.random.default_rng(3)
    quick.load(name)
    for _ in range(3):
        x = random.standard_normal((2, 5, spec.input_size), np.float32)
        h0 = random.standard_normal((spec.states, 2, spec.state_size), np.float32)
        stateful = quick({"model": name, "inputs": x.tolist(), "h0": h0.tolist()})
        fresh = quick({"model": name, "inputs": x.tolist()})
        alone = quick({"model": name, "inputs": x[1].tolist(), "returns": ["last", "h_n"]})
        for row in range(2):
            with_state, without = expected(name, x[row], h0[:, row]), expected(name, x[row])
            np.testing.assert_allclose(stateful["outputs"][row], with_state.outputs, atol=1e-5)
            np.testing.assert_allclose(fresh["outputs"][row], without.outputs, atol=1e-5)
        np.testing.assert_allclose(alone["last"], without.outputs[-1], atol=1e-5)
    assert len(quick.answers._forms) == 3


FORWARD = {"model": "tanh", "inputs": [[[1, 2, 3, 4], [5, 6, 7, 8]]]}


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "nobody", "inputs": [[1]]},
        {"model": "explodes", "inputs": [[1], [1], [1]], "h0": [[3e38, 3e38]]},
        FORWARD | {"inputs": [[1, 2, 3]]},
        FORWARD | {"inputs": [[1, 2, 3, True]]},
        FORWARD | {"inputs": [[1, 2, 3, 1e39]]},
        FORWARD | {"inputs": [[[1, 2, 3, 4], [5, 6, 7, 1e39]]]},
        FORWARD | {"inputs": []},
        FORWARD | {"c0": [[[1] * 6]]},
        FORWARD | {"returns": ["c_n"]},
        FORWARD | {"inputs": [[[0.5] * 4] * 900]},  # more than 3,072 numbers come back
        FORWARD | {"inputs": [[[0.123456789] * 4] * 800]},  # more than 32 KiB come
        [],
        1,
        b"{",
    ],
)
def test_everything_else_is_left_to_the_handler(repository, fields):
    quick = way(repository)
    assert quick(FORWARD) is None  # not loaded
    quick.load("tanh")
    quick.load("explodes")
    for _ in range(2):
        assert quick(FORWARD)
        assert quick(fields) is None
    assert quick(FORWARD)


def test_lengths_are_not_taken_for_numbers_of_a_form(repository):
    quick = way(repository)
    quick.load("tanh")
    two = FORWARD | {"inputs": [[[1, 2, 3, 4], [5, 6, 7, 8]]] * 2}
    for lengths in ([1, 2], [2, 1], [2, 2]):
        outputs = np.array(quick(two | {"lengths": lengths})["outputs"])
        assert [int(row.any(axis=-1).sum()) for row in outputs] == lengths
    assert not quick.answers._forms


def test_an_empty_list_is_not_taken_for_one_with_a_number(repository):
    quick = way(repository)
    quick.load("tanh")
    assert quick(FORWARD | {"returns": []}) == {"model": "tanh", "version": "1"}
    assert quick(FORWARD | {"returns": [1]}) is None


def test_a_model_is_not_held_by_having_run_and_new_weights_are_used(repository):
    quick = way(repository)
    engine = weakref.ref(quick.load("tanh").engine)
    first = quick(FORWARD)
    assert quick(FORWARD) == first
    quick.registry.unload("tanh")
    gc.collect()
    assert engine() is None
    assert quick(FORWARD) is None
    quick.load("tanh")
    assert quick(FORWARD) == first
    (repository / "tanh" / "config.json").unlink()
    write_model(repository, "tanh", version=2)
    asyncio.run(quick.registry.reload("tanh"))
    second = quick(FORWARD)
    assert second["version"] == "2"
    assert second["outputs"] != first["outputs"]
    assert quick(FORWARD | {"version": "1"}) is None  # not loaded
    assert quick(FORWARD) == second


def test_forms_are_not_kept_without_end(repository):
    quick = way(repository)
    quick.load("tanh")
    for steps in range(1, MOST_FORMS + 10):
        assert quick({"model": "tanh", "inputs": [[0] * 4] * steps, "returns": ["h_n"]})
    assert len(quick.answers._forms) == MOST_FORMS


def test_nothing_is_taken_on_where_others_might_be_refused(repository):
    quick = way(repository, max_queued_requests=4)
    quick.load("tanh")
    assert quick(FORWARD)
    admission = quick.way._admission
    with admission.enter("a", 1), admission.enter("b", 1):
        assert quick(FORWARD) is None
    assert quick(FORWARD)


def test_another_engine_runs_them_too(repository):
    native, torch = way(repository), way(repository, engine="torch")
    native.load("gru")
    version = torch.load("gru")
    version.engine.call_seconds = 0.0  # as if it were no trouble
    random = np.random.default_rng(4)
    for _ in range(2):
        fields = {"model": "gru", "inputs": random.standard_normal((3, 4)).tolist()}
        np.testing.assert_allclose(torch(fields)["outputs"], native(fields)["outputs"], atol=1e-5)
