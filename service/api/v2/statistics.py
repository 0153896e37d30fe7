"""Statistics of models by the Open Inference Protocol, from the metrics: with several workers, those of all of them."""

from collections import defaultdict
from typing import Any

from prometheus_client import CollectorRegistry

Figures = dict[tuple[str, ...], float]

_LABELS = ("model", "version", "outcome", "part")
_PARTS = {"queue": "queue", "compute_input": "decode", "compute_infer": "compute", "compute_output": "encode"}


def figures(metrics: CollectorRegistry) -> Figures:
    """What was counted, by the sample's name and `_LABELS`, which are empty where it has none."""
    found: Figures = defaultdict(float)
    for metric in metrics.collect():
        for sample in metric.samples:
            found[sample.name, *(sample.labels.get(label, "") for label in _LABELS)] = sample.value
    return found


def statistics(found: Figures, model: str, version: str) -> dict[str, Any]:
    """The protocol's entry of a version; this service has no cache of replies, so nothing hits or misses it."""

    def counted(name: str, outcome: str = "", part: str = "") -> float:
        return found[f"rnn_model_{name}", model, version, outcome, part]

    def times(outcome: str, part: str) -> dict[str, int]:
        seconds = counted("seconds_total", outcome, part)
        return {"count": int(counted("calls_total", outcome)), "ns": round(seconds * 1e9)}

    return {
        "name": model,
        "version": version,
        "last_inference": round(counted("last_call_seconds") * 1000),
        "inference_count": int(counted("rows_total")),
        "execution_count": int(counted("calls_total", "success")),
        "inference_stats": {
            "success": times("success", "all"),
            "fail": times("fail", "all"),
            **{name: times("success", part) for name, part in _PARTS.items()},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
