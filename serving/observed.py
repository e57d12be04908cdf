"""What is known of each request: one line of JSON in the access log, and Prometheus' numbers in /metrics.

    {"time", "id", "key", "path", "model", "policy_version", "status", "prompt_tokens", "completion_tokens", "wait_s", "first_s",
     "total_s", "why"}

No prompt, no reply and no key is written. /metrics are those of the process that answers.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import pathlib
import re
import threading
import time
import uuid
from typing import TYPE_CHECKING

import prometheus_client as prometheus

if TYPE_CHECKING:
    from serving.catalog import Catalog

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
SERVES_ID = re.compile(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)  # Ray Serve's of a request, which it adds to the answer; HAProxy takes a client's own away


def new_id() -> str:
    """The id of a request: in its reply's headers, in the log, and in an error's body."""
    return uuid.uuid4().hex


@dataclasses.dataclass(kw_only=True)
class Record:
    """One request while it is answered. `label` is what /metrics call the version that answers."""

    id: str = dataclasses.field(default_factory=new_id)
    method: str = ""
    path: str = ""
    key: str = ""
    model: str = ""
    label: str = ""
    policy_version: str = ""
    status: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    wait_s: float = 0.0
    first_s: float | None = None
    why: str = ""
    started_at: float = dataclasses.field(default_factory=time.monotonic)

    def since(self) -> float:
        """Seconds since the request came."""
        return time.monotonic() - self.started_at


class Observed:
    """The log and the numbers of one process."""

    def __init__(self, log_folder: str | None = None) -> None:
        self.registry = prometheus.CollectorRegistry()
        self._requests = self._counter("vidalign_requests", "Requests that were answered", "path", "model", "status")
        self._tokens = self._counter("vidalign_tokens", "Tokens of prompts and replies", "model", "kind")
        self._latency = self._histogram(
            "vidalign_request_seconds", "From a request to the end of its answer", "path", "model"
        )
        self._first = self._histogram("vidalign_first_byte_seconds", "From a request to the begin of its answer", "model")
        self._wait = self._histogram("vidalign_wait_seconds", "For a place in the engine", "model")
        self._running = self._gauge("vidalign_running_sequences", "Replies that are being given", "model")
        self._waiting = self._gauge("vidalign_waiting_sequences", "Replies that wait for a place", "model")
        self._up = self._gauge("vidalign_model_up", "1 where the model's engine works", "model")
        self._policies = self._gauge("vidalign_policy_info", "1 for each served policy", "model", "policy_version")
        self._lock = threading.Lock()
        self._log = None
        if log_folder is not None:
            folder = pathlib.Path(log_folder)
            folder.mkdir(parents=True, exist_ok=True)
            self._log = (folder / f"access-{os.getpid()}.jsonl").open("a", encoding="utf-8", buffering=1)

    def _counter(self, name: str, text: str, *labels: str) -> prometheus.Counter:
        return prometheus.Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> prometheus.Gauge:
        return prometheus.Gauge(name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, *labels: str) -> prometheus.Histogram:
        return prometheus.Histogram(name, text, labels, registry=self.registry, buckets=SECONDS)

    def show(self, catalog: Catalog) -> None:
        """Set the numbers of what is behind the gate now."""
        for gauge in (self._running, self._waiting, self._up, self._policies):
            gauge.clear()
        busy = {row.label: catalog.places(row) for row in catalog.rows}
        for label, places in busy.items():
            self._running.labels(label).set(places.running)
            self._waiting.labels(label).set(places.waiting)
        for label, works in catalog.state()[0].items():
            self._up.labels(label).set(works)
        for row in catalog.rows:
            self._policies.labels(row.label, row.version).set(1)

    def finished(self, record: Record) -> None:
        """Count a request and write its line."""
        total_s = record.since()
        self._requests.labels(record.path, record.label, str(record.status)).inc()
        if record.label:
            self._latency.labels(record.path, record.label).observe(total_s)
            self._wait.labels(record.label).observe(record.wait_s)
            self._tokens.labels(record.label, "prompt").inc(record.prompt_tokens)
            self._tokens.labels(record.label, "completion").inc(record.completion_tokens)
            if record.first_s is not None:
                self._first.labels(record.label).observe(record.first_s)
        if self._log is not None:
            row = dataclasses.asdict(record)
            del row["started_at"], row["label"]
            row["time"] = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
            row |= {name: round(row[name], 4) for name in ("wait_s", "first_s") if row[name] is not None} | {
                "total_s": round(total_s, 4)
            }
            with self._lock:
                self._log.write(json.dumps(row) + "\n")

    def metrics(self) -> bytes:
        """Prometheus' text format."""
        return prometheus.generate_latest(self.registry)
