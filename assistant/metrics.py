"""Prometheus metrics of the assistant, in a registry of their own, so that tests can have several."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_GAPS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Every metric the assistant exports; names carry the prefix `thumbwise_`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.replies = Counter(
            "thumbwise_replies",
            "Replies by version (`draft`: of comparisons, which are blind) and how they ended",
            ["version", "state"],
            registry=self.registry,
        )
        self.tokens = Counter("thumbwise_tokens", "Tokens generated, by version", ["version"], registry=self.registry)
        self.first_token = Histogram(
            "thumbwise_first_token_seconds", "From request to first token", ["version"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.token_gap = Histogram(
            "thumbwise_token_gap_seconds", "From one piece of a reply to the next", ["version"],
            buckets=_GAPS, registry=self.registry,
        )  # fmt: skip
        self.refused = Counter(
            "thumbwise_refused", "Requests turned away, by whose limit: user, all, stopping", ["limit"],
            registry=self.registry,
        )  # fmt: skip
        self.feedback = Counter("thumbwise_feedback", "Votes stored, by kind", ["kind"], registry=self.registry)
        self.swaps = Counter("thumbwise_swaps", "Versions made stable", registry=self.registry)
        self.probes = Counter("thumbwise_probes", "Probes by result", ["result"], registry=self.registry)
        self.rejections = Counter("thumbwise_rejections", "Versions rejected", registry=self.registry)
        self.rollbacks = Counter("thumbwise_rollbacks", "Rollbacks", registry=self.registry)
        self.in_flight = Gauge("thumbwise_in_flight", "Replies being generated", registry=self.registry)
        self.ready = Gauge("thumbwise_engine_ready", "1 while the engine answers", registry=self.registry)
        self.engines = Gauge("thumbwise_engines", "vLLM servers that answer people", registry=self.registry)
