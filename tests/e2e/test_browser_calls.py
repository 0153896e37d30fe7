"""A web page of another origin calls the service, with a key, in a real browser: HTTP, streams and WebSockets."""

import json
import re
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain

import numpy as np
import pytest

from .browser import needs_browser
from .formats import NDJSON, SAFETENSORS, post_arrays
from .running import ROOT, start

pytestmark = needs_browser
KEY = "the/page's+key?"
STEPS = [[1, 2, 3, 4], [0, 1, 0, 1], [0.5, 0, 0, -1]]
FORWARD = {"model": "lstm", "inputs": [[[1, 2, 3, 4, 5], [0, 0, 1, 0, 0]], [[1, 0, 0, 0, 0]]]}

# Functions that stand in the page: a call of the service, and safetensors from and to arrays.
PAGE = (
    f"<!doctype html><title>Another origin</title><script>const KEY = {json.dumps(KEY)}"
    + """
async function call(url, method = "GET", body = undefined, headers = {}) {
  const asked = {method, body, headers: {authorization: `Bearer ${KEY}`, ...headers}}
  if (typeof body === "object" && body.constructor === Object) {
    asked.body = JSON.stringify(body)
    asked.headers["content-type"] ??= "application/json"
  }
  return fetch(url, asked)
}
async function answer(...asked) {
  const reply = await call(...asked), text = await reply.text()
  return {status: reply.status, headers: Object.fromEntries(reply.headers), body: text && JSON.parse(text)}
}
function packed(name, shape, values, metadata) {
  const data = new Float32Array(values)
  const head = {__metadata__: metadata, [name]: {dtype: "F32", shape, data_offsets: [0, data.byteLength]}}
  const text = new TextEncoder().encode(JSON.stringify(head).padEnd(512))
  return new Blob([new BigUint64Array([BigInt(text.length)]), text, data])
}
function unpacked(buffer, name) {
  const size = Number(new DataView(buffer).getBigUint64(0, true))
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, size)))
  const [begin, end] = head[name].data_offsets
  return Array.from(new Float32Array(buffer.slice(8 + size + begin, 8 + size + end)))
}
</script>"""
)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("content-type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def sites():
    """Two web servers: of a page that may call, and of one that may not."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _Page) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    yield [f"http://localhost:{server.server_port}" for server in servers]
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def keyed(repository, sites, tmp_path_factory):
    folder = tmp_path_factory.mktemp("keyed")
    running = start(repository, folder, api_keys=KEY, allowed_origins=sites[0], max_body_bytes=100_000, max_sessions=2)
    yield running
    running.stop()


@pytest.fixture
def page(browser, sites):
    """The page that may call; runs a function's body in it, whose `answer` and `call` are above."""
    browser.open(sites[0])
    return browser.run


@pytest.fixture
def post(keyed):
    return partial(keyed.post, headers={"authorization": f"Bearer {KEY}"})


def test_page_runs_a_forward(page, keyed, post):
    wanted = post("/rnn/forward", FORWARD)
    sent = {
        "x-request-id": "from-a-page",
        "x-request-timeout-ms": "60000",
        "traceparent": f"00-{'1' * 32}-{'2' * 16}-01",
    }
    reply = page("return answer(...arguments)", f"{keyed.url}/rnn/forward", "POST", FORWARD, sent)
    assert (reply["status"], reply["body"]) == (200, wanted.json())
    assert reply["headers"]["x-request-id"] == "from-a-page"
    reply = page("return answer(...arguments)", f"{keyed.url}/models")
    assert {model["name"] for model in reply["body"]["models"]} > {"tanh", "lstm"}


def test_page_sends_and_reads_safetensors(page, keyed):
    inputs = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    key = {"authorization": f"Bearer {KEY}"}
    wanted = post_arrays(keyed, "/rnn/forward", {"inputs": inputs}, headers=key, model="tanh")
    script = """
      const [url, shape, values, type] = arguments
      const body = packed("inputs", shape, values, {model: "tanh"}).stream()
      const zipped = await new Response(body.pipeThrough(new CompressionStream("gzip"))).arrayBuffer()
      const headers = {"content-type": type, accept: type, "content-encoding": "gzip"}
      const reply = await call(url, "POST", zipped, headers)
      return [reply.status, unpacked(await reply.arrayBuffer(), "outputs")]"""
    status, outputs = page(script, f"{keyed.url}/rnn/forward", inputs.shape, inputs.ravel().tolist(), SAFETENSORS)
    assert status == 200
    size = int.from_bytes(wanted.content[:8], "little")
    begin, end = json.loads(wanted.content[8 : 8 + size])["outputs"]["data_offsets"]
    assert np.array(outputs, np.float32).tobytes() == wanted.content[8 + size + begin : 8 + size + end]


def test_page_steps_with_and_without_a_session(page, keyed):
    script = """
      const [url, steps] = arguments, path = `${url}/cell/sessions`
      const outputs = []
      let h
      for (const inputs of steps) {
        const {body} = await answer(`${url}/cell/step`, "POST", {model: "tanh", inputs, h})
        h = body.h
        outputs.push(body.outputs)
      }
      const opened = await answer(path, "POST", {model: "tanh"})
      const at = new URL(opened.headers.location, url)
      const kept = []
      for (const [n, inputs] of steps.entries()) {
        const head = {"x-session-id": opened.body.session}
        kept.push((await answer(`${url}/cell/step`, "POST", {inputs, step: n + 1}, head)).body.outputs)
      }
      const ended = await answer(`${at}?state=true`, "DELETE")
      const gone = await answer(at)
      return [outputs, kept, h, ended, gone]"""
    outputs, kept, h, ended, gone = page(script, keyed.url, STEPS)
    assert outputs == kept
    assert ended["status"] == 200
    assert (ended["body"]["step"], ended["body"]["h"]) == (3, h)
    assert (gone["status"], gone["body"]["type"], gone["body"]["step"]) == (410, "/problems/session-gone", 3)


def test_page_reads_a_stream(page, keyed, post):
    """The lines of a POST, and frames of a WebSocket."""
    lines = "".join(f"{json.dumps(step)}\n" for step in STEPS)
    script = """
      const [url, body, type] = arguments
      const reply = await call(url, "POST", body, {"content-type": type})
      let text = ""
      for await (const piece of reply.body.pipeThrough(new TextDecoderStream())) text += piece
      return text"""
    text = page(script, f"{keyed.url}/cell/step?model=tanh", lines, NDJSON)
    wanted = post("/rnn/forward", {"model": "tanh", "inputs": STEPS}).json()["outputs"]
    assert [json.loads(line)["outputs"] for line in text.splitlines()] == wanted
    outputs = page(SOCKET, keyed.url.replace("http", "ws") + "/cell/stream?model=tanh", KEY, [*chain(*STEPS)])
    np.testing.assert_array_equal(np.float32(outputs).reshape(3, 6), np.float32(wanted))


SOCKET = """
  const [url, key, values] = arguments
  const coded = btoa(key).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")
  const socket = new WebSocket(url, ["rnn-service", `bearer.${coded}`])
  socket.binaryType = "arraybuffer"
  return new Promise((resolve) => {
    socket.onopen = () => socket.send(new Float32Array(values))
    socket.onmessage = ({data}) => { socket.close(); resolve(Array.from(new Float32Array(data))) }
    socket.onerror = () => resolve("refused")
  })"""


def test_page_reads_what_went_wrong(page, keyed):
    forward, sessions = f"{keyed.url}/rnn/forward", f"{keyed.url}/cell/sessions"
    wrong = {"model": "tanh", "inputs": [[1, 2]]}
    for status, asked in {
        401: (forward, "POST", FORWARD, {"authorization": "Bearer wrong"}),
        404: (f"{keyed.url}/nothing",),
        405: (forward, "DELETE"),
        413: (forward, "POST", "[" * 200_000),
        415: (forward, "POST", "x", {"content-type": "text/plain"}),
        422: (forward, "POST", wrong),
    }.items():
        reply = page("return answer(...arguments)", *asked)
        assert reply["status"] == reply["body"]["status"] == status
        assert reply["headers"]["content-type"] == "application/problem+json"
        assert reply["headers"]["x-request-id"] == reply["body"]["request_id"]
        assert ("allow" in reply["headers"]) == (status == 405)
        assert ("www-authenticate" in reply["headers"]) == (status == 401)
    assert "inputs[0] has 2 values" in reply["body"]["detail"]
    *_, full = (page("return answer(...arguments)", sessions, "POST", {"model": "tanh"}) for _ in range(3))
    assert (full["status"], full["headers"]["retry-after"]) == (503, "1")


def test_example_of_the_docs_runs(page, sites, launch):
    bundled = launch(ROOT / "models", api_keys="secret", allowed_origins=sites[0])
    example = re.search(r"```js\n(.*?)```", (ROOT / "docs" / "browsers.md").read_text(), re.DOTALL)[1]
    example = example.replace("http://127.0.0.1:8000", bundled.url)
    predictions, first, years = page(example + "return [predictions, first, years]")
    assert [len(predictions), first["step"], len(years)] == [3, 1, 10]
    assert (first["predictions"], years[0]) == (predictions[0], predictions[-1])


def test_page_that_is_not_allowed_gets_nothing(browser, sites, keyed, service):
    browser.open(sites[1])
    script = "return answer(...arguments).catch((error) => error.name)"
    for running in (keyed, service):  # with keys, and without
        for asked in (("/rnn/forward", "POST", FORWARD), ("/models",), ("/nothing",)):
            assert browser.run(script, running.url + asked[0], *asked[1:]) == "TypeError"
        socket = running.url.replace("http", "ws") + "/cell/stream?model=tanh"
        assert browser.run(SOCKET, socket, KEY, [1, 2, 3, 4]) == "refused"
    assert any("blocked by CORS policy" in line for line in browser.console())
