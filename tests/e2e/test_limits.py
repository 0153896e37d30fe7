"""Bodies over the limit, compressed or not; queues that are full; deadlines in a queue; memory after hard work."""

import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save

from .problems import assert_problem
from .raw import Wire, chunk, head, post, zstd
from .running import start, until
from .watching import flooded, memory_returns, others_are_served

BOMB_BYTES = 400 * 2**20
BOMBS = {"gzip": lambda data: gzip.compress(data, 9), "zstd": zstd.compress}


@pytest.fixture(scope="module")
def bombs():
    return {name: compress(bytes(BOMB_BYTES)) for name, compress in BOMBS.items()}


@pytest.mark.parametrize("encoding", BOMBS)
@pytest.mark.parametrize("path", ["/rnn/forward", "/cell/step"])
def test_a_bomb(service, bombs, encoding, path):
    assert len(bombs[encoding]) < 2 * 2**20
    with memory_returns(service), others_are_served(service):
        before = service.rss_mib
        for _ in range(3):
            reply = service.post(path, content=bombs[encoding], headers={"content-encoding": encoding})
            assert_problem(reply, 413, "body-too-large", str(4 * 2**20))
        assert service.rss_mib < before + 100


@pytest.mark.parametrize("encoding", BOMBS)
def test_a_bomb_of_a_stream(service, bombs, encoding):
    with memory_returns(service), others_are_served(service):
        headers = {"content-encoding": encoding, "content-type": "application/x-ndjson"}
        reply = service.post("/cell/step?model=tanh", content=bombs[encoding], headers=headers)
        assert_problem(reply, 413, "body-too-large", "line")


@pytest.mark.parametrize("encoding", BOMBS)
def test_compressed_nothing_without_end(impatient, encoding):
    """Members that are empty when unpacked count as well; unpacking very many takes longer than a body may."""
    nothing = BOMBS[encoding](b"") * 3000
    service = impatient
    with memory_returns(service), others_are_served(service), Wire(service, seconds=5) as wire:
        wire.send(head("POST", "/rnn/forward", {"Transfer-Encoding": "chunked", "Content-Encoding": encoding}))
        try:
            for _ in range(2000):
                wire.send(chunk(nothing))
        except (ConnectionError, TimeoutError):
            return
        assert wire.reply().status in (408, 413)


def test_a_declared_body_over_the_limit_is_not_read(service):
    with Wire(service) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 4 * 2**20 + 1}))
        assert_problem(wire.reply(), 413, "body-too-large", str(4 * 2**20 + 1), str(4 * 2**20))


def test_a_chunked_body_is_not_read_past_the_limit(service):
    with memory_returns(service), others_are_served(service), Wire(service) as wire:
        wire.send(head("POST", "/rnn/forward", {"Transfer-Encoding": "chunked"}))
        said = flooded(wire, chunk(b" " * 2**16))
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"the body has more than 4194304 bytes" in said


def test_a_body_at_the_limit_is_read(service):
    body = b'{"model":"tanh","inputs":[[1,2,3,4]]}'
    assert service.post("/rnn/forward", content=body.ljust(4 * 2**20)).status_code == 200
    assert_problem(service.post("/rnn/forward", content=body.ljust(4 * 2**20 + 1)), 413, "body-too-large")


def wide(steps):
    """A request that takes a while: about 1.7 million multiplications and additions a step."""
    body = save({"inputs": np.full((steps, 64), 0.1, np.float32)}, {"model": "wide", "returns": '["last"]'})
    return {"content": body, "headers": {"content-type": "application/vnd.safetensors"}}


@pytest.fixture(scope="module")
def busy(repository, tmp_path_factory):
    """One compute thread, and two requests at most that wait for it or run on it."""
    running = start(repository, tmp_path_factory.mktemp("busy"), compute_threads=1, max_queued_requests=2)
    running.post("/rnn/forward", **wide(20))
    running.post("/cell/step", {"model": "tanh", "inputs": [1, 2, 3, 4]})  # loaded: what loads first has to queue
    yield running
    running.stop()


def queued(service):
    line = next(row for row in service.get("/metrics").text.splitlines() if row.startswith("rnn_queued_requests "))
    return float(line.split()[1])


def test_a_full_queue(busy):
    with ThreadPoolExecutor(2) as pool:
        long = [pool.submit(busy.post, "/rnn/forward", **wide(50_000)) for _ in range(2)]
        until(lambda: queued(busy) == 2, "the queue is full", every=0.001)
        full = busy.post("/rnn/forward", **wide(500))
        assert_problem(full, 503, "service-full")
        assert int(full.headers["retry-after"]) >= 1
        # What is small enough to run at once needs no queue.
        assert busy.post("/cell/step", {"model": "tanh", "inputs": [1, 2, 3, 4]}).status_code == 200
        assert [request.result().status_code for request in long] == [200, 200]
    assert queued(busy) == 0
    assert busy.post("/rnn/forward", **wide(500)).status_code == 200


def test_a_refusal_comes_before_the_body_and_the_connection_goes_on(busy):
    small = b'{"model":"tanh","inputs":[[1,2,3,4]]}'
    with ThreadPoolExecutor(2) as pool:
        long = [pool.submit(busy.post, "/rnn/forward", **wide(50_000)) for _ in range(2)]
        until(lambda: queued(busy) == 2, "the queue is full", every=0.001)
        with Wire(busy) as wire:
            for _ in range(2):
                wire.send(head("POST", "/rnn/forward", {"Content-Length": len(small)}))
                assert_problem(wire.reply(), 503, "service-full")
                wire.send(small)
            wire.send(post("/rnn/forward", small) * 3)  # at once, one after the other
            assert [wire.reply().status for _ in range(3)] == [503] * 3
            wire.send(head("POST", "/rnn/forward", {"Content-Length": len(small), "Expect": "100-continue"}))
            assert_problem(wire.reply(), 503, "service-full")
        assert [request.result().status_code for request in long] == [200, 200]


@pytest.mark.parametrize("size", [1, 65_536, 300_000, 3_000_000])
def test_a_refused_body_is_forgotten_whatever_its_size_and_pieces(busy, size):
    """It comes after its reply, with it, or in pieces, and may look like a request itself."""
    small = post("/rnn/forward", b'{"model":"tanh","inputs":[[1,2,3,4]]}')
    step = post("/cell/step", b'{"model":"tanh","inputs":[1,2,3,4]}')
    body = (small * (size // len(small) + 1))[:size]
    refused = post("/rnn/forward", body)
    with ThreadPoolExecutor(2) as pool:
        long = [pool.submit(busy.post, "/rnn/forward", **wide(50_000)) for _ in range(2)]
        until(lambda: queued(busy) == 2, "the queue is full", every=0.001)
        with Wire(busy) as wire:
            wire.send(refused + step + refused + refused + step)
            assert [wire.reply().status for _ in range(5)] == [503, 200, 503, 503, 200]
            beginning = len(refused) - size
            wire.send(refused[: beginning - 3])  # in the middle of the empty line
            wire.send(refused[beginning - 3 : beginning])
            assert_problem(wire.reply(), 503, "service-full")
            third = size // 3
            for piece in (body[:third], body[third : 2 * third], body[2 * third :] + step[:20], step[20:]):
                wire.send(piece)
            assert wire.reply().status == 200
        assert [request.result().status_code for request in long] == [200, 200]


def test_who_never_sends_a_refused_body_is_dropped(launch):
    service = launch(compute_threads=1, max_queued_requests=1, header_timeout_seconds=0.5)
    service.post("/rnn/forward", **wide(20))
    with ThreadPoolExecutor(1) as pool, Wire(service) as wire:
        long = pool.submit(service.post, "/rnn/forward", **wide(50_000))
        until(lambda: queued(service) == 1, "the queue is full", every=0.001)
        wire.send(head("POST", "/rnn/forward", {"Content-Length": 100_000}) + b"1" * 1000)
        assert wire.reply().status == 503
        with pytest.raises(ConnectionError):
            wire.reply()
        assert long.result().status_code == 200


def test_a_refused_connection_may_be_idle_as_long_as_any(launch):
    service = launch(compute_threads=1, max_queued_requests=1, header_timeout_seconds=0.5)
    small = post("/rnn/forward", b'{"model":"tanh","inputs":[[1,2,3,4]]}')
    service.post("/rnn/forward", **wide(20))
    with ThreadPoolExecutor(1) as pool, Wire(service) as wire:
        long = pool.submit(service.post, "/rnn/forward", **wide(50_000))
        until(lambda: queued(service) == 1, "the queue is full", every=0.001)
        wire.send(small)
        assert wire.reply().status == 503
        assert long.result().status_code == 200
        time.sleep(1)
        wire.send(small)
        assert wire.reply().status == 200


def test_one_client_may_not_take_every_place(launch):
    service = launch(compute_threads=1, max_queued_requests=8, api_keys="one,other")
    service.post("/rnn/forward", **with_key("one", wide(20)))
    with ThreadPoolExecutor(6) as pool:
        long = [pool.submit(service.post, "/rnn/forward", **with_key("one", wide(20_000))) for _ in range(6)]
        until(lambda: queued(service) == 6, "all its places are taken", every=0.001)
        full = service.post("/rnn/forward", **with_key("one", wide(20)))
        assert_problem(full, 429, "client-full")
        assert int(full.headers["retry-after"]) >= 1
        assert service.post("/rnn/forward", **with_key("other", wide(20))).status_code == 200
        assert [request.result().status_code for request in long] == [200] * 6


def with_key(key, request):
    return request | {"headers": request["headers"] | {"authorization": f"Bearer {key}"}}


def test_a_client_that_hangs_up_leaves_the_queue(busy):
    request = wide(50_000)
    wires = [Wire(busy) for _ in range(2)]
    for wire in wires:
        wire.send(post("/rnn/forward", request["content"], request["headers"]))
    until(lambda: queued(busy) == 2, "the queue is full", every=0.001)
    for wire in wires:
        wire.close()
    until(lambda: queued(busy) == 0, "the queue is empty")
    assert busy.post("/rnn/forward", **wide(500)).status_code == 200


def test_a_deadline_that_passes_before_the_body_is_there(busy):
    body = b'{"model":"tanh","inputs":[[1,2,3,4]]}'
    with Wire(busy) as wire:
        wire.send(head("POST", "/rnn/forward", {"Content-Length": len(body), "X-Request-Timeout-Ms": 100}) + body[:9])
        time.sleep(0.2)
        wire.send(body[9:])
        assert_problem(wire.reply(), 504, "deadline-passed", "did not run")


def test_memory_after_large_requests(launch):
    service = launch()
    steps = 300_000
    inputs = np.full((steps, 4), 0.25, np.float32)
    as_json = json.dumps({"model": "tanh", "inputs": inputs.tolist(), "returns": ["last"]}).encode()
    binary = save({"inputs": inputs}, {"model": "tanh"})
    with memory_returns(service), others_are_served(service):
        for _ in range(2):
            assert service.post("/rnn/forward", content=as_json).status_code == 200
            reply = service.post(
                "/rnn/forward", content=binary, headers={"content-type": "application/vnd.safetensors"}
            )
            assert len(reply.content) > steps * 6 * 4
            bad = as_json.replace(b"]]", b",null]]")
            assert service.post("/rnn/forward", content=bad).status_code in (400, 422)


def test_many_bad_requests_leak_nothing(service):
    bodies = [b"{", b"[" * 100_000, b'{"model":"tanh","inputs":[[1,2,3,null]]}', b'{"model":"nothing","inputs":[1]}']
    requests = b"".join(post("/rnn/forward", body) for body in bodies)
    with Wire(service) as wire, memory_returns(service):
        for _ in range(100):
            wire.send(requests)
            for _ in bodies:
                assert wire.reply().status in (400, 404, 422)
