"""What a gateway tells Prometheus: its own figures, and those of its replicas with the replica's name on each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families

DECISION_S = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3)


class GatewayMeters:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._decision = Histogram(
            "sloguard_routing_seconds", "Choosing a replica", registry=registry, buckets=DECISION_S
        )
        self._hops = Counter("sloguard_hops", "Requests that a replica declined", registry=registry)
        self._lost = Counter(
            "sloguard_lost_replicas", "Requests whose replica failed under them", ("when",), registry=registry
        )
        self._given_up = Counter("sloguard_given_up", "Requests that no replica could answer", registry=registry)
        self._up = Gauge("sloguard_replica_up", "Whether it gets requests", ("replica",), registry=registry)

    def decided(self, seconds: float) -> None:
        self._decision.observe(seconds)

    def hopped(self) -> None:
        self._hops.inc()

    def lost(self, begun: bool) -> None:
        """`begun`: the client had part of the answer."""
        self._lost.labels("answering" if begun else "waiting").inc()

    def gave_up(self) -> None:
        self._given_up.inc()

    def are(self, up: Mapping[str, bool]) -> None:
        """The replicas there are, and whether each is up."""
        self._up.clear()
        for replica, is_up in up.items():
            self._up.labels(replica).set(is_up)


class _Families:
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def together(own: CollectorRegistry, of_replicas: Mapping[str, str]) -> bytes:
    """One exposition of all: `of_replicas` holds theirs, by name. What is none is left out."""
    merged: dict[str, Metric] = {}

    def add(families: Iterable[Metric], more: Mapping[str, str]) -> None:
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for name, labels, value, *_ in family.samples:
                into.add_sample(name, {**labels, **more}, value)

    add(own.collect(), {})
    for replica, text in of_replicas.items():
        with suppress(ValueError):
            add(list(text_string_to_metric_families(text)), {"replica": replica})
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(merged.values()))  # pyright: ignore[reportArgumentType] - is a Collector by its shape
    return generate_latest(registry)
