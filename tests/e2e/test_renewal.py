"""Models change under load, by SIGHUP and by reload: no request fails, and no stream ends."""

import shutil
import signal
import threading
from contextlib import ExitStack, contextmanager
from itertools import count

import numpy as np
import pytest

from service.spec import ModelSpec
from tests.reference import TOLERANCE, run_reference, weights_of

from .models import write_model
from .running import until
from .sessions import opened as session_of
from .step_streams import StepStream

ADMIN = {"authorization": "Bearer admin"}
ROW = np.linspace(-1, 1, 4, dtype=np.float32)
LONG = np.tile(ROW, (3000, 1))  # waits for the engine


def spec_of(version):
    """Each version has sizes of its own, so that weights of one never pass for another's."""
    return ModelSpec("gru", 4, 5 + version)


def assert_outputs(outputs, version, *, steps=None):
    """The outputs of all steps, or of the last of so many."""
    wanted = run_reference(
        spec_of(version), weights_of(spec_of(version), version), np.tile(ROW, (steps or len(outputs), 1))
    )
    np.testing.assert_allclose(outputs, wanted.outputs[-1] if steps else wanted.outputs, atol=TOLERANCE, rtol=0)


class Load:
    """Clients that call again and again, each in its thread."""

    def __init__(self, service):
        self.service = service
        self.kinds = (self.steps, self.forwards, self.session, self.socket, self.lines)
        self.counts = [0] * len(self.kinds)
        self.wrong, self._checks = [], []
        self._stopping = threading.Event()

    @contextmanager
    def running(self):
        threads = [threading.Thread(target=self._call, args=place) for place in enumerate(self.kinds)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in threads:
                thread.join()
        assert not self.wrong
        for check in self._checks:
            check()

    def go_on(self):
        """Wait until each client was answered twice: once at least by calls that began now."""
        before = list(self.counts)
        until(lambda: self.wrong or min(np.subtract(self.counts, before)) >= 2, "all are answered")
        assert not self.wrong

    def _call(self, place, kind):
        try:
            with ExitStack() as stack:
                call, check = kind(stack)
                self._checks.append(check)  # for the end: PyTorch has one random generator for all threads
                while not self._stopping.is_set():
                    call()
                    self.counts[place] += 1
        except BaseException as error:
            self.wrong.append((kind.__name__, error))

    def _posting(self, stack, path, body, name):
        """Over one connection; each reply is right for the version that it names."""
        client, seen = stack.enter_context(self.service.client()), {}

        def call():
            reply = client.post(path, json={"model": "m"} | body)
            assert reply.status_code == 200, reply.text
            outputs = seen.setdefault(reply.json()["version"], reply.json()[name])
            assert reply.json()[name] == outputs

        def check():
            assert len(seen) > 1
            for version, outputs in seen.items():
                assert_outputs(np.ravel(outputs), int(version), steps=len(np.atleast_2d(body["inputs"])))

        return call, check

    def steps(self, stack):
        return self._posting(stack, "/cell/step", {"inputs": ROW.tolist()}, "outputs")

    def forwards(self, stack):
        return self._posting(stack, "/rnn/forward", {"inputs": LONG.tolist(), "returns": ["last"]}, "last")

    def session(self, _):
        """Over a connection for each step, so that every worker has some."""
        session, numbers, outputs = session_of(self.service, "m"), count(1), []

        def call():
            body = {"session": session, "step": next(numbers), "inputs": ROW.tolist()}
            reply = self.service.post("/cell/step", body)
            assert reply.status_code == 200, reply.text
            outputs.append(reply.json()["outputs"])

        return call, lambda: assert_outputs(outputs, 1)

    def _stream(self, stack, kind):
        stream, outputs = stack.enter_context(StepStream(self.service, kind, "model=m")), {}

        def call():
            stream.send(ROW[None])
            outputs.update(stream.receive(spec_of(1).hidden_size))

        return call, lambda: assert_outputs(list(outputs.values()), 1)

    def socket(self, stack):
        return self._stream(stack, "text")

    def lines(self, stack):
        return self._stream(stack, "ndjson")


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.integration)])
def test_models_change_under_load(launch, tmp_path, workers):
    models = tmp_path / "models"
    write_model(models, "m", 1, spec_of(1))
    store = "memory://" if workers == 1 else f"sqlite:///{tmp_path}/sessions.db"
    service = launch(models=models, workers=workers, session_store=store, preload="m", admin_keys="admin")
    until(lambda: len(service.logged('"model_loaded"')) == workers, "every worker has loaded it")

    def renew(version):
        write_model(models, "m", version, spec_of(version))
        shutil.rmtree(models / "m" / str(version - 1))
        if version % 2:
            reply = service.post("/models/m/reload", headers=ADMIN)
            assert (reply.status_code, reply.json()["workers"]) == (200, workers)
        else:
            service.process.send_signal(signal.SIGHUP)
            until(lambda: len(service.logged("models_reloaded")) == workers * version // 2, "all have reloaded")

    def known():
        return service.get("/models/m").json()["versions"][0]["sessions"] == 1

    with Load(service).running() as load:
        load.go_on()
        until(lambda: all(known() for _ in range(16)), "every worker has the session's weights", every=0.2)
        for version in range(2, 8):
            renew(version)
            load.go_on()
            assert {service.get("/models/m").json()["default_version"] for _ in range(8)} == {str(version)}
    assert not service.logged('"status":5')
