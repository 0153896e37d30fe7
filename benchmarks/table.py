"""The servers that are compared: the service, the endpoint that most people write, the rivals, and a bare echo."""

import sys
from dataclasses import replace

from benchmarks.bodies import at, json_call, json_double_call, listed, safetensors_call
from benchmarks.rivals.environments import python, ready
from benchmarks.servers import Dialect, Server

BULK = ("medium", "large")
# Where rivals with batching differ most from those without: many clients, each with a single row.
MANY_CLIENTS = ("batch",)

JSON = Dialect("json", json_call)
SAFETENSORS = Dialect("safetensors", safetensors_call, BULK)

NAIVE = ("naive sync", "naive async", "naive async, 1 thread")
OURS = "rnn-service"
OURS_TWICE = "rnn-service, 2 workers"
ECHO = "bare ASGI echo"

# torch's default, a thread a core, collapses when the load shares the cores: its barriers spin.
ONE_THREAD = ("OMP_NUM_THREADS", "1")


def naive(name: str, variant: str, *env: tuple[str, str]) -> Server:
    """The hand-written endpoint in one of its variants."""
    command = (sys.executable, "-m", "benchmarks.naive", variant, "--models={models}", "--port={port}")
    return Server(name, command, (JSON,), env)


def service(name: str, *options: str) -> Server:
    """Our own service, with its request log off as the others' is."""
    command = (sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port={port}", "--models={models}")
    return Server(name, (*command, *options), (JSON, SAFETENSORS), (("RNN_REQUEST_LOG", "false"),))


def rival(name: str, environment: str, command: tuple[str, ...], dialect: Dialect, **more: str) -> Server:
    """A rival in its own environment, one thread for torch, nothing reported to its makers."""
    quiet = {"BENTOML_DO_NOT_TRACK": "True", "RAY_USAGE_STATS_ENABLED": "0"}
    env = (ONE_THREAD, ("PYTHONPATH", "{root}"), *quiet.items(), *(item for item in more.items() if item[0] != "ready"))
    return Server(name, (python(environment), *command), (dialect,), env, more["ready"], alone=True)


def rivals() -> dict[str, list[Server]]:
    """Every rival in its variants, by the environment that it needs."""
    place = ("--models={models}", "--port={port}")
    lit = ("-m", "benchmarks.rivals.litserve_server", *place)
    predict = Dialect("json", at("/predict", json_call))
    bento = ("-m", "bentoml", "serve", "benchmarks.rivals.bentoml_service:Rnn", "--host=127.0.0.1", "--port={port}")
    one_of_many = Dialect("json", listed("/batch", json_call), MANY_CLIENTS)
    predict_many = replace(predict, cells=MANY_CLIENTS)
    home = {"ready": "/readyz", "BENCH_MODELS": "{models}", "BENTOML_HOME": "{models}/../bentoml"}
    ray = ("-m", "benchmarks.rivals.ray_server", *place)
    health = {"ready": "/-/healthz"}
    proxy = {**health, "RAY_SERVE_ENABLE_HA_PROXY": "1"}
    return {
        "litserve": [
            rival("LitServe", "litserve", lit, predict, ready="/health"),
            rival("LitServe, batching", "litserve", (*lit, "--batch"), predict_many, ready="/health"),
        ],
        "bentoml": [
            rival("BentoML", "bentoml", bento, JSON, **home),
            rival("BentoML, batching", "bentoml", bento, one_of_many, **home),
        ],
        "ray": [
            rival("Ray Serve, HAProxy", "ray", ray, JSON, **proxy),
            rival("Ray Serve, HAProxy, batching", "ray", (*ray, "--batch"), replace(JSON, cells=MANY_CLIENTS), **proxy),
            replace(rival("Ray Serve", "ray", ray, JSON, **health), on_request=True),
        ],
    }


def echo() -> Server:
    """The floor of the web layer: reads the same bytes and writes as many, without looking at them."""
    command = (sys.executable, "-m", "benchmarks.rivals.echo", "--replies={replies}", "--port={port}")
    text = Dialect("json", at("/{cell}.json", json_call))
    binary = Dialect("safetensors", at("/{cell}.safetensors", safetensors_call), BULK)
    return Server(ECHO, command, (text, binary))


def servers() -> list[Server]:
    """All that could be compared on any machine."""
    return [
        naive(NAIVE[0], "sync"),
        naive(NAIVE[1], "async"),
        naive(NAIVE[2], "async", ONE_THREAD),
        service(OURS),
        service(OURS_TWICE, "--workers", "2", "--session-store", "sqlite:///{replies}-{port}.db"),
        echo(),
        *(server for group in rivals().values() for server in group),
    ]


def missing() -> dict[str, list[str]]:
    """Environments that are not there, and the servers that need them."""
    return {name: [server.name for server in group] for name, group in rivals().items() if not ready(name)}


def with_doubles(server: Server) -> Server:
    """The same server, sent numbers with the 17 digits of a float64 in JSON, where it takes the plain body."""
    double = Dialect("json", json_double_call)
    return replace(server, dialects=tuple(double if dialect == JSON else dialect for dialect in server.dialects))
