"""What a serving process tells Prometheus. The names are those of dashboards/sloguard.json.

In vLLM the scheduler and the HTTP server are processes of their own; prometheus_client merges what they count where
PROMETHEUS_MULTIPROC_DIR is set, as `sloguard serve` does. Labels are few: the classes that the operator named, and what
is written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from sloguard.perf.online import OnlineTime
from sloguard.sched.job import Job, Tier
from sloguard.slo import BEST_EFFORT

TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 7.5, 10, 20, 40, 80)
TPOT_S = (0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1)
PLANNER_S = (50e-6, 100e-6, 200e-6, 350e-6, 500e-6, 750e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 10e-3, 20e-3, 50e-3)
OfSeveral = Literal["mostrecent", "livesum", "livemin"]  # what a gauge of several processes (data parallelism) is
GAUGES_EVERY_STEPS = 16  # those that look at every job


@cache
def refusals(registry: CollectorRegistry = REGISTRY) -> Counter:
    """What doors turned away, by "reason": key, bad_request, overload, max_requests or draining."""
    return Counter("sloguard_refused", "Requests turned away at the door", ("reason",), registry=registry)


def outcome(job: Job, last_token_s: float, completed: bool, scale: float = 1.0) -> str:
    """Whether the engine kept the promise: TTFT from the arrival, TPOT as the mean after the first token. What was
    promised is `scale` times what the job was planned with.

    "met" | "missed" | "best-effort" (nothing was promised) | "aborted" (the client hung up).
    """
    if not completed:
        return "aborted"
    if job.ttft_s is None and job.tpot_s is None:
        return BEST_EFFORT
    if job.first_token_s is None or (job.ttft_s is not None and job.first_token_s - job.arrival_s > scale * job.ttft_s):
        return "missed"
    pace_s = _mean_pace_s(job, last_token_s)
    return "missed" if job.tpot_s is not None and pace_s is not None and pace_s > scale * job.tpot_s else "met"


def _mean_pace_s(job: Job, last_token_s: float) -> float | None:
    """Of the tokens that `tpot_s` was promised for; None where there are none."""
    if job.first_token_s is None:
        return None
    from_s, tokens = job.paced_from or (job.first_token_s, 1)
    return (last_token_s - from_s) / (job.generated_tokens - tokens) if job.generated_tokens > tokens else None


class Meters:
    """One a process: names are taken once in a registry, which is the process's own unless another is given."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"sloguard_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, of_several: OfSeveral = "mostrecent") -> Gauge:
            return Gauge(f"sloguard_{name}", text, labels, registry=registry, multiprocess_mode=of_several)

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(f"sloguard_{name}", text, labels, registry=registry, buckets=tuple(buckets))

        self._requests = counter(
            "requests", "Requests that ended, and whether their promise was kept", "slo_class", "outcome"
        )
        self._tiers = counter("tiers", "Requests that ended, by what the scheduler had decided of them", "tier")
        self._ttft = histogram("ttft_seconds", "Arrival at the scheduler to the first token", TTFT_S, "slo_class")
        self._tpot = histogram("tpot_seconds", "Mean time of a token after the first", TPOT_S, "slo_class")
        self._preempted = counter("preemptions", "Requests that lost their KV memory to others")
        self._jobs = gauge("jobs", "Requests in the engine", "state", "tier", of_several="livesum")
        self._tracked = gauge("tracked_requests", "Requests that the scheduler keeps records of", of_several="livesum")
        self._headroom = gauge("headroom_seconds", "Until the most urgent promised token is due", of_several="livemin")
        self._steps = counter("steps", "Engine steps, and whose order they kept", "order")
        self._planner = histogram("planner_seconds", "Deciding a step", PLANNER_S)
        self._step_s = counter("step_seconds", "Measured time of steps")
        self._error_s = counter("step_error_seconds", "Sum of |measured - predicted| time of steps")
        self._bias = gauge("batch_time_bias", "Measured time of a step over what the profile says, as learnt")
        self._acceptance = gauge("draft_acceptance", "Share of tried draft tokens that were accepted, as learnt")
        self._declined = counter("declined", "Requests left to another replica")
        self._bad_slos = counter("bad_slos", "Requests whose SLO fields could not be read, and were served without")

    def finished(self, job: Job, last_token_s: float, completed: bool, scale: float = 1.0) -> None:
        """See `outcome`."""
        self._requests.labels(job.app, outcome(job, last_token_s, completed, scale)).inc()
        self._tiers.labels(job.tier.value).inc()
        if job.evictions:
            self._preempted.inc(job.evictions)
        if not completed or job.first_token_s is None:
            return
        self._ttft.labels(job.app).observe(job.first_token_s - job.arrival_s)
        pace_s = _mean_pace_s(job, last_token_s)
        if pace_s is not None:
            self._tpot.labels(job.app).observe(pace_s)

    def planned(self, seconds: float) -> None:
        self.kept_order(1)
        self._planner.observe(seconds)

    def kept_order(self, steps: int) -> None:
        """Steps in the policy's order."""
        self._steps.labels("policy").inc(steps)

    def fell_back(self, why: str) -> None:
        """A step that kept the engine's own order: after a "fault" of the policy, an "overrun" of its time, or in the
        "rest" that follows overruns.
        """
        self._steps.labels(why).inc()

    def stepped(self, measured_s: float, predicted_s: float, time: OnlineTime) -> None:
        self._step_s.inc(measured_s)
        self._error_s.inc(abs(measured_s - predicted_s))
        self._bias.set(time.bias)

    def holds(self, now_s: float, running: Iterable[Job], waiting: Iterable[Job], acceptance: float | None) -> None:
        """Looks at every job: not for every step."""
        urgent_s = float("inf")
        for state, jobs in (("running", running), ("waiting", waiting)):
            count = dict.fromkeys(Tier, 0)
            for job in jobs:
                count[job.tier] += 1
                if job.tier is Tier.PROMISED:
                    urgent_s = min(urgent_s, job.token_due_s)
            for tier, jobs_of in count.items():
                self._jobs.labels(state, tier.value).set(jobs_of)
        self._headroom.set(urgent_s - now_s)
        if acceptance is not None:
            self._acceptance.set(acceptance)

    def tracks(self, requests: int) -> None:
        """More than are in the engine would be a leak."""
        self._tracked.set(requests)

    def declined(self) -> None:
        self._declined.inc()

    def bad_slo(self) -> None:
        self._bad_slos.inc()
