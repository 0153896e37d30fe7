"""Statistics of models by the Open Inference Protocol, from the metrics: with several workers, those of all of them."""

from collections import defaultdict
from typing import Any

from prometheus_client import CollectorRegistry

Figures = dict[tuple[str, str], dict[str, float]]

_PARTS = {"queue": "queue", "compute_input": "decode", "compute_infer": "compute", "compute_output": "encode"}


def figures(metrics: CollectorRegistry) -> Figures:
    """What was counted of each model and version: by outcome and part, and by the metric's name."""
    found: Figures = defaultdict(lambda: defaultdict(float))
    for metric in metrics.collect():
        for sample in metric.samples:
            if metric.name.startswith("rnn_model_") and not sample.name.endswith("_created"):
                labels = sample.labels
                name = metric.name, labels.get("outcome", ""), labels.get("part", "")
                found[labels["model"], labels["version"]]["/".join(name)] = sample.value
    return found


def statistics(found: Figures, model: str, version: str) -> dict[str, Any]:
    """The protocol's entry of a version; this service has no cache of replies, so nothing hits or misses it."""
    counted = found[model, version]

    def times(outcome: str, part: str) -> dict[str, int]:
        seconds = counted[f"rnn_model_seconds/{outcome}/{part}"]
        return {"count": int(counted[f"rnn_model_calls/{outcome}/"]), "ns": round(seconds * 1e9)}

    return {
        "name": model,
        "version": version,
        "last_inference": round(counted["rnn_model_last_call_seconds//"] * 1000),
        "inference_count": int(counted["rnn_model_rows//"]),
        "execution_count": int(counted["rnn_model_calls/success/"]),
        "inference_stats": {
            "success": times("success", "all"),
            "fail": times("fail", "all"),
            **{name: times("success", part) for name, part in _PARTS.items()},
            "cache_hit": {"count": 0, "ns": 0},
            "cache_miss": {"count": 0, "ns": 0},
        },
        "batch_stats": [],
    }
