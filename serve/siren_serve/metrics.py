"""What is counted, as Prometheus reads it. No label and no value comes from a text."""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from siren_runtime.scoring.result import UNREADABLE, ScoreResult
from siren_runtime.serving.sharing import Run
from siren_runtime.streaming.result import StreamResult

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_LONG_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of one process; with several, those of all are added up when they are read."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "siren_requests_total", "Requests", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "siren_request_seconds", "From the request's headers to the end of its answer",
            ["route"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.refusals = Counter(
            "siren_refusals_total", "Requests, and texts of a list, that got an error", ["code"],
            registry=registry,
        )  # fmt: skip
        self.verdicts = Counter(
            "siren_verdicts_total", "Texts by verdict and tier", ["guard", "verdict", "tier"],
            registry=registry,
        )  # fmt: skip
        self.exits = Counter(
            "siren_exits_total", "Texts that an exit decided, by the blocks that were run",
            ["guard", "blocks"], registry=registry,
        )  # fmt: skip
        self.tokens = Counter(
            "siren_tokens_total", "Tokens that engines read", ["guard", "kind"], registry=registry
        )
        self.queue_seconds = Histogram(
            "siren_queue_seconds", "Waiting for an engine run", ["guard", "kind"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.run_seconds = Histogram(
            "siren_run_seconds", "Engine runs", ["guard", "kind"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.batch_size = Histogram(
            "siren_batch_size", "Windows or pieces of an engine run", ["guard", "kind"],
            buckets=_SIZES, registry=registry,
        )  # fmt: skip
        self.calls = self._gauge("siren_calls", "Calls under way", ["guard"])
        self.waiting_tokens = self._gauge("siren_waiting_tokens", "Tokens that wait", ["guard"])
        self.waiting_pieces = self._gauge(
            "siren_waiting_pieces", "Pieces of streams that wait", ["guard"]
        )
        self.streams = self._gauge("siren_streams", "Streams that are open", ["guard"])
        self.proxied = Counter(
            "siren_proxied_total", "Requests to the upstream by what came of them", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self.harmful = Counter(
            "siren_proxied_harmful_total", "Prompts and answers found harmful", ["what", "mode"],
            registry=registry,
        )  # fmt: skip
        self.failed_open = Counter(
            "siren_failed_open_total", "Prompts and answers let through without a verdict",
            ["what", "code"], registry=registry,
        )  # fmt: skip
        self.upstream_seconds = Histogram(
            "siren_upstream_seconds", "Until the headers of the upstream's answer",
            buckets=_LONG_SECONDS, registry=registry,
        )  # fmt: skip
        self.first_seconds = Histogram(
            "siren_proxied_first_seconds", "Until the first of an answer goes out",
            buckets=_LONG_SECONDS, registry=registry,
        )  # fmt: skip
        self.connections = self._gauge("siren_connections", "Connections that are open", [])

    def _gauge(self, name: str, text: str, labels: list[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry, multiprocess_mode="livesum")

    def count_run(self, guard: str, run: Run) -> None:
        """Count one engine run of a guard."""
        labels = guard, run.kind
        self.tokens.labels(*labels).inc(run.tokens)
        self.run_seconds.labels(*labels).observe(run.seconds)
        self.batch_size.labels(*labels).observe(run.texts)
        for seconds in run.waited:
            self.queue_seconds.labels(*labels).observe(seconds)

    def count_verdict(self, guard: str, result: ScoreResult | StreamResult) -> None:
        """Count one verdict by its tier, and by its exit where one decided."""
        verdict = {True: "harmful", False: "safe", None: UNREADABLE}[result.is_harmful]
        self.verdicts.labels(guard, verdict, result.tier or "").inc()
        if result.exit is not None:
            self.exits.labels(guard, str(result.exit)).inc()

    def count_unreadable(self, guard: str) -> None:
        """Count a text that was refused since too little of it can be read."""
        self.verdicts.labels(guard, UNREADABLE, UNREADABLE).inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
