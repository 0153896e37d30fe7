"""POST /rnn/generate: whole, streamed and in sessions, beside stepping by hand over HTTP."""

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load, save_file

from service.models.config import ModelConfig
from service.models.layer_config import LayerConfig, chain_layers
from service.spec import ModelSpec
from tests.reference import weights_of

from .formats import NDJSON, SAFETENSORS, post_arrays
from .problems import assert_document, assert_problem
from .raw import Wire, post
from .running import start, until
from .sessions import opened, steps_done

IDS = 9
LAST = {"model": "chars", "seed": 3, "steps": 12}


def token_model(out=IDS, last=(), pooling="none"):
    front = chain_layers("front", [LayerConfig(type="embedding", num_embeddings=IDS, embedding_dim=4)], 4)
    head = [LayerConfig(type="linear", out_features=out), *(LayerConfig(type=each) for each in last)]
    return replace(ModelSpec("gru", 4, 8), front=front, head=chain_layers("head", head, 8), pooling=pooling)


SPECS = {
    "chars": token_model(last=["softmax"]),
    "classes": token_model(out=2),
    "pools": token_model(pooling="mean"),
    "series": ModelSpec("lstm", 3, 6).with_linear_head(3),
    "target": ModelSpec("gru", 4, 6).with_linear_head(1),
    "bare": ModelSpec("gru", 3, 3),
    "both-ways": ModelSpec("gru", 3, 3, bidirectional=True).with_linear_head(3),
    "explodes": ModelSpec("rnn", 1, 1, nonlinearity="relu").with_linear_head(1),
    "large": ModelSpec("gru", 64, 512).with_linear_head(64),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, spec in SPECS.items():
        arrays = weights_of(spec, 2)
        if name == "explodes":
            arrays = {key: np.full_like(array, 30 if "weight" in key else 0) for key, array in arrays.items()}
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.json").write_text(ModelConfig.of_spec(spec).model_dump_json())
        save_file(arrays, root / name / "1" / "model.safetensors")
    running = start(root, tmp_path_factory.mktemp("service"), max_generate_steps=5000, max_reply_values=2_000_000)
    yield running
    running.stop()


def generate(service, headers=None, **fields):
    reply = service.post("/rnn/generate", fields, headers=headers or {})
    assert reply.status_code == 200, reply.text
    return reply.json() if headers is None else reply


def lines_of(service, **fields):
    reply = generate(service, {"accept": NDJSON}, **fields)
    assert reply.headers["content-type"] == NDJSON
    return [json.loads(line) for line in reply.text.splitlines()]


def test_most_likely_tokens_equal_steps_by_hand(service):
    written = generate(service, model="chars", inputs=[1, 2, 3], steps=30, temperature=0)
    state, tokens = {}, []
    for token in (1, 2, 3):
        reply = service.post("/cell/step", {"model": "chars", "inputs": token, **state}).json()
        state = {"h": reply["h"]}
    for _ in range(30):
        tokens.append(int(np.argmax(reply["predictions"])))
        state = {"h": reply["h"]}
        reply = service.post("/cell/step", {"model": "chars", "inputs": tokens[-1], **state}).json()
    assert written == {"tokens": tokens, "h_n": [state["h"]], "model": "chars", "version": "1"}


def test_rollout_equals_steps_by_hand(service):
    written = generate(service, model="series", inputs=[[0.1, 0.2, 0.3]], steps=20)
    state, inputs, predictions = {}, [0.1, 0.2, 0.3], []
    for _ in range(20):
        reply = service.post("/cell/step", {"model": "series", "inputs": inputs, **state}).json()
        inputs, state = reply["predictions"], {"h": reply["h"], "c": reply["c"]}
        predictions.append(inputs)
    assert written["predictions"] == predictions
    assert (written["h_n"], written["c_n"]) == ([state["h"]], [state["c"]])


def test_seed_gives_same_tokens_in_every_form(service):
    rows = [[1, 2, 3], [4], [5, 6]]
    alone = [generate(service, **LAST | {"inputs": row, "seed": 3 + index}) for index, row in enumerate(rows)]
    tokens = [each["tokens"] for each in alone]
    together = generate(service, **LAST, inputs=rows)
    assert (together["tokens"], together["seed"]) == (tokens, 3)
    assert [[row] for row in together["h_n"][0]] == [each["h_n"] for each in alone]
    assert generate(service, **LAST | {"inputs": rows, "seed": [3, 4, 5]})["tokens"] == tokens
    again = generate(service, model="chars", inputs=rows, steps=12)
    assert generate(service, model="chars", inputs=rows, steps=12, seed=again["seed"]) == again
    lines = lines_of(service, **LAST, inputs=rows)
    assert [list(row) for row in zip(*(line["tokens"] for line in lines), strict=True)] == tokens
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert (lines[0]["seed"], lines[-1]["h_n"], "h_n" in lines[-2]) == (3, together["h_n"], False)
    padded = np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0]])
    arrays = {"inputs": padded, "lengths": np.array([3, 1, 2])}
    reply = load(post_arrays(service, "/rnn/generate", arrays, model="chars", seed="3", steps="12").content)
    assert reply["tokens"].dtype == np.int64
    assert (reply["tokens"].tolist(), reply["lengths"].tolist()) == (tokens, [12] * 3)
    long = {"model": "chars", "seed": f"[{2**70},1,2]", "steps": "2"}
    assert_problem(post_arrays(service, "/rnn/generate", arrays, **long), 422, "invalid-request", "seed")
    fields = LAST | {"inputs": padded.T.tolist(), "lengths": [3, 1, 2], "batch_first": False}
    assert np.transpose(generate(service, **fields)["tokens"]).tolist() == tokens
    fields = LAST | {"inputs": [[0] * 40_000 + [1, 2], [0] * 40_000 + [3, 4]]}
    assert generate(service, **fields) == generate(service, **fields)


def test_row_goes_on_where_it_stopped(service):
    whole = generate(service, **LAST | {"inputs": [1, 2], "steps": 20})
    first = generate(service, **LAST | {"inputs": [1, 2], "steps": 8})
    by_state = LAST | {"inputs": first["tokens"][-1:], "h0": first["h_n"], "step": 10}
    by_context = LAST | {"inputs": [1, 2, *first["tokens"]]}
    for fields in (by_state, by_context):
        second = generate(service, **fields)
        assert first["tokens"] + second["tokens"] == whole["tokens"]
        assert second["h_n"] == whole["h_n"]
    session = opened(service, "chars")
    service.post("/cell/step", {"session": session, "inputs": 1})
    tokens = [2]
    for steps in (8, 12):
        tokens += generate(service, session=session, inputs=tokens[-1], steps=steps, seed=3)["tokens"]
    assert tokens[1:] == whole["tokens"]


def test_rows_leave_after_their_stop(service):
    free = generate(service, **LAST, inputs=[[1], [4]])["tokens"]
    stop = free[0][4]
    ends = [row.index(stop) + 1 if stop in row else 12 for row in free]
    assert min(ends) < max(ends)
    wanted = [row[:end] for row, end in zip(free, ends, strict=True)]
    fields = LAST | {"inputs": [[1], [4]], "stop": [stop], "returns": ["tokens", "predictions", "outputs", "h_n"]}
    stopped = generate(service, **fields)
    assert stopped["tokens"] == wanted
    assert [len(row) for row in stopped["predictions"]] == [len(row) for row in stopped["outputs"]] == ends
    lines = lines_of(service, **fields)
    assert [line["tokens"][0] for line in lines] == [*wanted[0], *[None] * (len(lines) - ends[0])]
    assert lines[-1]["h_n"] == stopped["h_n"]
    reply = generate(service, {"accept": SAFETENSORS}, **fields)
    arrays = load(reply.content)
    assert arrays["lengths"].tolist() == ends
    assert not arrays["tokens"][0, ends[0] :].any()
    assert not arrays["outputs"][0, ends[0] :].any()


def test_feedback_and_future(service):
    future = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    fields = {"model": "target", "inputs": [[1, 2, 3, 4]], "steps": 6, "feedback": [2], "future": future.tolist()}
    written = generate(service, **fields)["predictions"]
    sequence = np.vstack([[1, 2, 3, 4], future])
    sequence[1:, 2] = np.ravel(written)[:-1]
    whole = service.post("/rnn/forward", {"model": "target", "inputs": sequence.tolist()}).json()
    assert whole["predictions"] == written
    fields |= {"inputs": [[[1, 2, 3, 4]]] * 1, "future": future[:, None].tolist(), "batch_first": False}
    assert generate(service, **fields)["predictions"] == [[row] for row in written]
    fields |= {"feedback": [None], "future": sequence[1:, None].tolist()}
    np.testing.assert_allclose(np.ravel(generate(service, **fields)["predictions"]), np.ravel(written), rtol=1e-6)


@pytest.mark.parametrize(("name", "inputs"), [("chars", 4), ("series", [0.1, 0.2, 0.3])])
def test_session_repeats_what_it_generated(service, name, inputs):
    session = opened(service, name)
    fields = {"session": session, "inputs": inputs, "steps": 7, "step": 1}
    first = service.post("/rnn/generate", fields)
    assert first.json()["step"] == steps_done(service, session) == 7
    assert service.post("/rnn/generate", fields).content == first.content
    lines = lines_of(service, **fields)
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert (lines[-1]["h_n"], lines[0].get("seed")) == (first.json()["h_n"], first.json().get("seed"))
    for other in ({"steps": 6}, {"inputs": 5 if name == "chars" else [1, 2, 3]}, {"returns": ["h_n"]}):
        assert_problem(service.post("/rnn/generate", fields | other), 409, "step-conflict", "expects 8")
    for step in (2, 9):
        assert_problem(service.post("/rnn/generate", fields | {"step": step}), 409, "step-out-of-order")
    assert_problem(
        service.post("/cell/step", {"session": session, "inputs": inputs, "step": 7}), 409, "step-out-of-order"
    )
    assert steps_done(service, session) == 7
    again = service.post("/rnn/generate", fields | {"step": 8}).json()
    assert again["step"] == 14
    service.post("/cell/step", {"session": session, "inputs": inputs})
    assert_problem(service.post("/rnn/generate", fields | {"step": 15}), 409, "step-conflict")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "bare"}, ("bare", "has no head")),
        ({"model": "both-ways"}, ("both-ways", "bidirectional")),
        ({"model": "pools", "inputs": [1]}, ("pools", "the mean of whole sequences")),
        ({"model": "classes", "inputs": [1]}, ("9 token ids", "predicts 2 values")),
        ({"model": "target", "inputs": [[1, 2, 3, 4]]}, ("takes 4 values", "predicts 1", "feedback")),
        ({"temperature": 1}, ("temperature", "series", "takes vectors")),
        ({"stop": [1]}, ("stop", "takes vectors")),
        ({"returns": ["tokens"]}, ("tokens", "takes vectors")),
        ({"steps": 0}, ("steps", "0")),
        ({"steps": 5001}, ("steps", "5001", "5000")),
        ({"steps": 2.5}, ("steps",)),
        ({"steps": None}, ("steps",)),
        ({"steps": 5000, "inputs": [[[1, 2, 3]]] * 200}, ("3002400", "2000000")),
        ({"feedback": [0, 1]}, ("feedback has 2 entries", "3 predictions")),
        ({"feedback": [0, 1, 3]}, ("feedback[2] is 3", "0 to 2")),
        ({"feedback": [0, None, 0]}, ("feedback[0] is 0", "twice")),
        ({"feedback": [0, None, "a"]}, ("feedback[2]", "integer")),
        ({"feedback": [0, None, 1]}, ("input 2", "neither in feedback nor in future")),
        ({"future": [[1, 2, 3]]}, ("future has (1, 3)", "(4, 3)")),
        ({"future": [[1], [2, 3]]}, ("future has unequal lengths",)),
        ({"model": "chars", "inputs": [1], "future": [[1]]}, ("future", "token ids")),
        ({"model": "chars", "inputs": [1], "temperature": -1}, ("temperature", "-1")),
        ({"model": "chars", "inputs": [1], "top_k": 0}, ("top_k", "0")),
        ({"model": "chars", "inputs": [1], "top_p": 1.5}, ("top_p", "1.5")),
        ({"model": "chars", "inputs": [1], "seed": "x"}, ("seed", "integer")),
        ({"model": "chars", "inputs": [1], "seed": [1, 2]}, ("seed has 2 numbers", "1")),
        ({"model": "chars", "inputs": [[1], [2]], "seed": [1, 2**40]}, ("seed", "16777216")),
        ({"model": "chars", "inputs": [1], "seed": 2**64}, ("seed", "64 bits")),
        ({"model": "chars", "inputs": [1], "stop": [IDS]}, ("stop[0] is 9", "0 to 8")),
        ({"model": "chars", "inputs": [1], "stop": [1.5]}, ("stop[0]", "1.5")),
        ({"model": "chars", "inputs": [1, 9]}, ("inputs[1] is 9",)),
        ({"model": "chars", "inputs": 1}, ("inputs", "axes")),
    ],
)
def test_refusals_say_why(service, fields, words):
    fields = {"model": "series", "inputs": [[1, 2, 3]], "steps": 5} | fields
    for accept in ("application/json", NDJSON):
        reply = service.post("/rnn/generate", fields, headers={"accept": accept})
        assert_problem(reply, 422, "not-steppable" if "both-ways" in words else "invalid-request", *words)


def test_models_say_whether_they_generate(service):
    models = {model["name"]: model["generates"] for model in service.get("/models").json()["models"]}
    unable = {"bare", "both-ways", "classes", "pools"}
    assert models == {name: name not in unable for name in SPECS}


def test_sessions_refuse_what_they_have_or_cannot_keep(service):
    session = opened(service, "large")
    fields = {"session": session, "inputs": [0] * 64, "steps": 5}
    for other, word in (({"h0": [[0]]}, "h0"), ({"inputs": [[0] * 64] * 2}, "2 steps"), ({"model": "series"}, "large")):
        assert_problem(service.post("/rnn/generate", fields | other), 422, "invalid-request", word)
    fields |= {"steps": 1900, "returns": ["predictions", "outputs"]}
    assert_problem(service.post("/rnn/generate", fields), 422, "invalid-request", "1900", "takes 1820")
    assert steps_done(service, session) == 0


def test_overflow_is_the_last_line(service):
    fields = {"model": "explodes", "inputs": [[1.0]], "steps": 200}
    assert_problem(service.post("/rnn/generate", fields), 422, "non-finite-output", "predictions of row 0")
    *lines, last = lines_of(service, **fields)
    assert_document(last["error"], 422, "non-finite-output", f"step {len(lines) + 1}")
    assert all(line["predictions"][0] < 3.5e38 for line in lines)
    assert None in generate(service, **fields, non_finite="null")["predictions"][-1]
    session = opened(service, "explodes")
    reply = service.post("/rnn/generate", {"session": session, "inputs": [1.0], "steps": 200})
    assert_problem(reply, 422, "non-finite-output")
    assert steps_done(service, session) == 0


def large(steps, **headers):
    body = {"model": "large", "inputs": [[[0.1] * 64]] * 6, "steps": steps, "returns": ["predictions"]}
    return post("/rnn/generate", json.dumps(body).encode(), {"X-Request-Id": f"large-{steps}"} | headers)


def test_deadline_and_a_client_that_hangs_up(service):
    with Wire(service) as wire:
        wire.send(large(4000, **{"X-Request-Timeout-Ms": "0"}))
        assert wire.reply().status == 504
    for number, headers in enumerate(({}, {"Accept": NDJSON})):
        with Wire(service) as wire:
            wire.send(large(5000 - number, **headers))
            until(lambda: service.metric("rnn_queued_requests"), "it runs")
        until(lambda: not service.metric("rnn_queued_requests"), "it has left")
        (entry,) = until(lambda n=number: service.logged(f"large-{5000 - n}"), "the log line")
        assert entry["status"] == 499


def test_stream_that_nobody_reads_waits(service):
    with Wire(service, receive_buffer=4096) as wire:
        wire.send(large(4000, Accept=NDJSON))
        assert wire.status_and_headers()[0] == 200
        until(lambda: service.metric("rnn_queued_requests"), "it runs")
        assert generate(service, **LAST, inputs=[1])["tokens"]
        text = b"".join(iter(wire.chunk, b""))
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 4001))


def test_requests_are_accounted_for(service):
    generate(service, {"x-request-id": "counted"}, **LAST, inputs=[[1, 2, 3], [4]])
    generate(service, {"x-request-id": "counted-lines", "accept": NDJSON}, **LAST, inputs=[[1, 2, 3], [4]])
    for name in ("counted", "counted-lines"):
        (entry,) = until(lambda name=name: service.logged(f'"{name}"'), "the log line")
        assert (entry["model"], entry["rows"], entry["steps"]) == ("chars", 2, 2 + 24)
        assert {"decode", "compute", "total"} <= entry["ms"].keys()
