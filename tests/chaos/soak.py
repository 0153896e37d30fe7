"""`python -m tests.chaos.soak sqlite 60`: sessions that end and expire, for so many minutes, and how memory grows."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from rich.console import Console

from tests.chaos.__main__ import Fault, set_up
from tests.chaos.faults import MODEL, SPEC, Deployment
from tests.e2e.sessions import opened

SETTINGS = {"max_session_bytes": 32 * 2**20, "ended_sessions": 1000}  # so that what is bounded is soon full
CLIENTS = 4


def play(deployment: Deployment, until: float) -> int:
    """Open sessions one after the other, send each step twice, end every second and let the others expire."""
    service, sessions = deployment.service, 0
    while time.monotonic() < until:
        session, step = opened(service, MODEL, ttl_seconds=5), 1
        for count in (1, 1, 64, 512, 1):
            body = {"session": session, "inputs": np.full((count, SPEC.input_size), 0.1).tolist(), "step": step}
            first, again = (service.post("/cell/step", body) for _ in range(2))
            assert first.status_code == 200
            assert first.content == again.content
            step += count
            time.sleep(0.05)
        if sessions % 2:
            service.delete(f"/cell/sessions/{session}")
        sessions += 1
    return sessions


def soak(deployment: Deployment, seconds: float) -> str:
    """The slope of the service's memory after the first third, in which caches and pools fill."""
    begun, samples = time.monotonic(), []
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(play, deployment, begun + seconds) for _ in range(CLIENTS)]
        while time.monotonic() < begun + seconds:
            samples.append((time.monotonic() / 3600, deployment.service.rss_mib))
            time.sleep(1)
    sessions = sum(client.result() for client in clients)
    later = np.array(samples[len(samples) // 3 :])
    slope = np.polyfit(*(later - later[0]).T, 1)[0]
    return f"{slope:+.1f} MiB per hour, {later[0][1]:.1f} to {later[-1][1]:.1f} MiB, {sessions} sessions"


if __name__ == "__main__":
    store, minutes = sys.argv[1], float(sys.argv[2])
    with set_up(Fault("soak", store, SETTINGS, lambda *_: "")) as (deployment, _):
        Console().print(f"{store}: {soak(deployment, 60 * minutes)}")
        deployment.service.stop()
