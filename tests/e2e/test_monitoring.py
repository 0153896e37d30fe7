"""What watches the service: docs/metrics.md, the dashboard, the alert rules, and a Prometheus that reads a service."""

import json
import re
import shutil
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from scripts.metrics_page import PAGE, page
from tests.stores.servers import free_port

from .formats import NDJSON
from .running import ROOT, until
from .test_workers import workers_of

DASHBOARD = ROOT / "deploy" / "grafana" / "rnn-service.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"
NAME = re.compile(r"(?<![\w:])(?:rnn_\w+|up)\b(?=[{\[)\s]|$)")

needs_promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no prometheus")


def expressions():
    """Every expression of the dashboard, by the panel's title."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", ())]


def promtool(*arguments, check=True, **options):
    ran = subprocess.run(["promtool", *arguments], capture_output=True, check=False, **options)
    assert ran.returncode == 0 or not check, (ran.stdout + ran.stderr).decode()
    return (ran.stdout + ran.stderr).decode().strip()


def use(service):
    """A request of each kind that has metrics of its own."""
    service.post("/rnn/forward", {"model": "wide", "inputs": [[[0.5] * 64] * 64]})
    session = service.post("/cell/sessions", {"model": "tanh"}).json()["session"]
    for step in (1, 1, 2, 7):
        service.post("/cell/step", {"session": session, "inputs": [1, 2, 3, 4], "step": step})
    service.delete(f"/cell/sessions/{session}")
    service.post("/cell/step?model=tanh", content=b"[1,2,3,4]\n", headers={"content-type": NDJSON})


def test_page_lists_the_metrics_of_the_code():
    """`python scripts/metrics_page.py` writes it."""
    assert PAGE.read_text() == page(PAGE.read_text())


def test_dashboard_and_rules_name_metrics_of_a_service(service):
    use(service)
    families = text_string_to_metric_families(service.get("/metrics").text)
    exported = {sample.name for family in families for sample in family.samples} | {"up"}
    rules = (PROMETHEUS / "rules.yml").read_text()
    named = {name for text in (rules, *(expr for _, expr in expressions())) for name in NAME.findall(text)}
    assert len(named) > 20
    assert named <= exported


@needs_promtool
def test_metrics_and_rules_are_clean(service):
    use(service)
    assert not promtool("check", "metrics", input=service.get("/metrics").content)
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    promtool("test", "rules", str(PROMETHEUS / "rules_test.yml"))


@pytest.mark.integration
@needs_promtool
def test_prometheus_answers_each_panel(launch, tmp_path):
    """Each has data, but for those of what did not happen."""
    service, port = launch(), free_port()
    config = (PROMETHEUS / "prometheus.yml").read_text().replace("15s", "1s").replace(":8000", f":{service.port}")
    (tmp_path / "prometheus.yml").write_text(config)
    shutil.copy(PROMETHEUS / "rules.yml", tmp_path)
    options = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data")
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(["prometheus", *options, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)

    def ask(expr, **options):
        for name, value in {"$job": ".*", "$instance": ".*", "$model": ".*", "$__rate_interval": "30s"}.items():
            expr = expr.replace(name, value)
        return promtool("query", "instant", f"http://127.0.0.1:{port}", expr, **options)

    try:
        until(lambda: "=> 1" in ask("rnn_ready", check=False), "a scrape")
        for _ in range(4):
            use(service)
            time.sleep(1.2)
        recorded = re.findall(r"record: (\S+)", (PROMETHEUS / "rules.yml").read_text())
        assert len(recorded) == 4
        silent = [what for what, expr in (*expressions(), *zip(recorded, recorded, strict=True)) if not ask(expr)]
        assert silent == ["job:rnn_requests_failed:ratio_rate5m"]  # none had failed
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.integration
def test_killed_worker_is_not_counted(launch, tmp_path):
    service = launch(workers=2, session_store=f"sqlite:///{tmp_path}/sessions.db")
    until(lambda: service.metric("rnn_workers") == 2, "both workers")
    started = service.metric("rnn_start_time_seconds")
    victim = workers_of(service)[0]
    memory = victim.memory_info().rss
    victim.kill()
    until(lambda: service.metric("rnn_start_time_seconds") > started, "a new worker")
    until(lambda: service.metric("rnn_workers") == 2, "two workers")
    resident = sum(worker.memory_info().rss for worker in workers_of(service))
    assert service.metric("rnn_memory_bytes") == pytest.approx(resident, abs=memory / 2)
    assert service.metric("rnn_ready") == 1
