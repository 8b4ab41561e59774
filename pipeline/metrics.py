"""What Prometheus is told of a job's last run, by way of a file that the node exporter reads."""

from __future__ import annotations

from datetime import datetime
from typing import Any

COUNTS = {
    "rows": "Rows of the output.",
    "bytes": "Bytes of the output.",
    "quarantined": "Inputs that could not be used.",
    "shards_written": "Shards that were written.",
    "shards_reused": "Shards of the output that an earlier run had written.",
}


def exposition(job: str, records: list[dict[str, Any]]) -> bytes:
    """The text of NAME.prom, of the records of all runs, the last of which has just ended."""
    from prometheus_client import CollectorRegistry, Gauge, generate_latest

    registry, last = CollectorRegistry(), records[-1]

    def tell(name: str, text: str, value: float, **labels: str) -> None:
        gauge = gauges.get(name)
        if gauge is None:
            gauge = Gauge(f"pipeline_{name}", text, ["job_name", *labels], registry=registry)
            gauges[name] = gauge
        gauge.labels(job, *labels.values()).set(value)

    gauges: dict[str, Gauge] = {}
    tell("last_run_exit_code", "Exit code of the last run.", last["exit_code"])
    tell("last_run_start_timestamp_seconds", "Start of the last run.", seconds(last["start"]))
    if last.get("end"):
        tell("last_run_end_timestamp_seconds", "End of the last run.", seconds(last["end"]))
    if ends := [one["end"] for one in records if one.get("exit_code") == 0 and one.get("end")]:
        tell("last_success_timestamp_seconds", "End of the last good run.", seconds(ends[-1]))
    for number, step in enumerate(last["steps"], 1):
        labels = {"step": str(number), "command": step["command"][0]}
        tell("step_seconds", "Seconds that a step took.", step["seconds"], **labels)
        for name, text in COUNTS.items():
            if name in step:
                tell(f"step_{name}", text, step[name], **labels)
    return generate_latest(registry)


def seconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp()
