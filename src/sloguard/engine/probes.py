"""Which requests show how long an engine's steps take: a plan without an end, of which a profile runs as much as it
has time for.

    prefill   one prompt, two or four at once, on an idle engine; lengths from a few tokens to the longest
    decode    a batch of 1 to max_num_seqs requests that end one after another, so that it drains through all sizes
    mixed     a batch that decodes while prompts of many lengths arrive, one by one

Lengths, batch sizes and contexts are points of a low-discrepancy sequence (Halton, 1960) on logarithmic scales: any
beginning of the plan covers the range evenly, and a longer one covers it more densely. The next probe is of the kind
that has had the least time. No probe takes longer than `most_s` by what is known of the engine so far, nor more KV than
there is.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import ceil

from sloguard.errors import SpecError
from sloguard.perf.batch_time import Batch, StepTime
from sloguard.perf.fit import STRATA
from sloguard.space.flags import count_of
from sloguard.trial import Value

LEAST_MODEL_LEN = 64
SHORTEST_TOKENS = 4  # of a prompt
DRAIN_TOKENS = 16  # requests of a decode probe put out from so many to twice as many tokens
ARRIVALS = 4  # prompts that arrive in a mixed probe
GAP_STEPS = 3  # decode steps between them
DECODING_TOKENS = 128  # room for the batch that decodes meanwhile, each
SLACK = 1.25  # of predicted time: steps of two probes must not meet
LEAST_STEP_S = 1e-4  # a rough prediction may be nothing at all
PAUSE_S = 0.02  # a request on its way through the server, beside its steps
KV_SHARE = 0.8  # of the KV cache, at most: full, it makes the engine preempt
EDGE = 0.06  # of the sequence at either end stands for the end of the range itself
WARM_PROMPTS = (8, 32, 128, 512)
WARM_BATCH, WARM_PASSES, WARM_GAP_S = 16, 2, 0.05


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """Of the engine that is probed. `kv_tokens` fit its KV cache."""

    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int

    @classmethod
    def read(cls, effective: Mapping[str, Value], defaults: Mapping[str, Value]) -> EngineLimits:
        """From what the engine said it runs with, and its defaults where it said nothing. Raises SpecError where that
        leaves something unknown, or no room for a probe.
        """
        known = {**defaults, **effective}
        found = [count_of(known.get(name)) for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens")]
        length, seqs, tokens = found
        if length is None or seqs is None or tokens is None:
            fix = "Give --engine-arg max_model_len=..., max_num_seqs=... and max_num_batched_tokens=..."
            raise SpecError("--model", None, "the engine does not say how long its requests may be", fix)
        if length < LEAST_MODEL_LEN:
            raise SpecError("max_model_len", length, "is too short for a profile", f"Give at least {LEAST_MODEL_LEN}.")
        return cls(length, seqs, tokens, count_of(known.get("kv_cache_tokens")) or length)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request of a probe, due so long after the probe's start."""

    due_s: float
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Probe:
    """`cost_s` is the predicted time until its last request is answered."""

    kind: str
    requests: tuple[Asked, ...]
    cost_s: float


def warm_up(limits: EngineLimits) -> list[Asked]:
    """Small prompts and a small batch, twice: the first pass compiles, the second says what a step costs about."""
    longest = limits.max_model_len - 2 * DRAIN_TOKENS
    batch = min(WARM_BATCH, limits.max_num_seqs)
    passes: list[Asked] = []
    for _ in range(WARM_PASSES):
        sizes = [(n, 1) for n in WARM_PROMPTS if n <= longest]
        sizes += [(WARM_BATCH, DRAIN_TOKENS + i) for i in range(batch)]
        passes += [Asked((len(passes) + i) * WARM_GAP_S, n, out) for i, (n, out) in enumerate(sizes)]
    return passes


def probe_plan(limits: EngineLimits, time: StepTime, most_s: float) -> Iterator[Probe]:
    """Probes without end. `time` may learn meanwhile: each probe is sized by what it says when it is made."""
    spent_s = dict.fromkeys(STRATA, 0.0)
    numbers = {kind: count(1) for kind in STRATA}
    makers = {"prefill": _prefill, "decode": _decode, "mixed": _mixed}
    while True:
        kind = min(spent_s, key=spent_s.__getitem__)
        requests, cost_s = makers[kind](next(numbers[kind]), _Costs(limits, time), most_s)
        spent_s[kind] += cost_s + PAUSE_S
        yield Probe(kind, tuple(requests), cost_s)


@dataclass(frozen=True, slots=True)
class _Costs:
    """What probes take, as predicted."""

    limits: EngineLimits
    time: StepTime

    @property
    def longest(self) -> int:
        return self.limits.max_model_len - 1

    def prefill_s(self, prompts: Sequence[int], decodes: int = 0, kv_tokens: int = 0) -> float:
        """Steps of these prompts, chunked by the token budget, beside `decodes`."""
        return sum(
            self.time.seconds(Batch(tuple(chunks), decodes, kv_tokens)) for chunks in self.chunked(prompts, decodes)
        )

    def chunked(self, prompts: Sequence[int], decodes: int = 0) -> Iterator[list[tuple[int, int]]]:
        """The chunks of each step."""
        budget = max(1, self.limits.max_num_batched_tokens - decodes)
        step: list[tuple[int, int]] = []
        room = budget
        for prompt in prompts:
            done = 0
            while done < prompt:
                tokens = min(prompt - done, room)
                step.append((tokens, done))
                done, room = done + tokens, room - tokens
                if not room:
                    yield step
                    step, room = [], budget
        if step:
            yield step

    def decode_s(self, decodes: int, kv_tokens: int) -> float:
        return max(LEAST_STEP_S, self.time.seconds(Batch((), decodes, kv_tokens)))

    def affordable(self, most: int, prompts: int, most_s: float) -> int:
        """The length up to `most` at which so many prompts take `most_s`; never below the shortest."""
        if self.prefill_s([most] * prompts) <= most_s:
            return most
        lengths = range(SHORTEST_TOKENS, most + 1)
        return lengths[max(0, bisect_right(lengths, most_s, key=lambda n: self.prefill_s([n] * prompts)) - 1)]


def _prefill(number: int, costs: _Costs, most_s: float) -> tuple[list[Asked], float]:
    size = (1, 1, 2, 4)[int(4 * _halton(number, 3))]
    size = min(size, costs.limits.max_num_seqs)
    longest = min(costs.longest, int(KV_SHARE * costs.limits.kv_tokens / size))
    longest = costs.affordable(max(SHORTEST_TOKENS, longest), size, most_s)
    prompts = [_between(_turned(number, 2, i / size), SHORTEST_TOKENS, longest) for i in range(size)]
    return [Asked(0.0, prompt, 1) for prompt in prompts], costs.prefill_s(prompts)


def _batch(number: int, most: int, output: int, costs: _Costs, most_s: float) -> list[int]:
    """The prompts of a batch: between half and one and a half times one length, as far as they and `output` fit."""
    size = _between(_turned(number, 2), 1, most)
    longest = 0
    while True:
        kv = int(KV_SHARE * costs.limits.kv_tokens / size)
        longest = min(costs.longest, kv) - output
        if longest >= SHORTEST_TOKENS or size == 1:
            break
        size = max(1, size // 2)
    longest = costs.affordable(max(SHORTEST_TOKENS, longest), size, most_s)
    middle = _between(_turned(number, 3), SHORTEST_TOKENS, longest)
    return [min(longest, max(1, round(middle * (0.5 + (i + 0.5) / size)))) for i in range(size)]


def _decode(number: int, costs: _Costs, most_s: float) -> tuple[list[Asked], float]:
    output = min(2 * DRAIN_TOKENS, max(1, costs.limits.max_model_len // 4))
    prompts = _batch(number, costs.limits.max_num_seqs, output, costs, most_s)
    size = len(prompts)
    outputs = [ceil(output / 2 * (1 + (i + 1) / size)) for i in range(size)]
    cost_s = costs.prefill_s(prompts) + output * costs.decode_s(size, sum(prompts) + size * output // 2)
    return [Asked(0.0, prompt, out) for prompt, out in zip(prompts, outputs, strict=True)], cost_s


def _mixed(number: int, costs: _Costs, most_s: float) -> tuple[list[Asked], float]:
    seats = max(1, costs.limits.max_num_seqs - ARRIVALS)
    reserve = min(DECODING_TOKENS, costs.limits.max_model_len // 2)
    prompts = _batch(number, seats, reserve, costs, most_s / 2)
    size, kv = len(prompts), sum(prompts)
    decode_s = costs.decode_s(size, kv)
    at_s = costs.prefill_s(prompts) + GAP_STEPS * decode_s + PAUSE_S
    free = int(KV_SHARE * costs.limits.kv_tokens) - kv - size * reserve
    longest = min(costs.longest, max(SHORTEST_TOKENS, free))
    longest = costs.affordable(longest, 1, most_s / 2 / ARRIVALS)
    steps, arriving = GAP_STEPS, list[Asked]()
    for i in range(ARRIVALS):
        arrival = _between(_turned(number, 5, i / ARRIVALS), SHORTEST_TOKENS, longest)
        takes_s = costs.prefill_s([arrival], size, kv)
        gap_s = SLACK * takes_s + GAP_STEPS * decode_s + PAUSE_S
        arriving.append(Asked(at_s, arrival, 1))
        at_s += gap_s
        steps += len(list(costs.chunked([arrival], size))) + ceil((gap_s - takes_s) / decode_s)
    decoding = [Asked(0.0, prompt, min(reserve, steps)) for prompt in prompts]
    return [*decoding, *arriving], at_s


def _halton(number: int, base: int) -> float:
    """The radical inverse of `number`: evenly spread over 0 to 1."""
    value, scale = 0.0, 1.0
    while number:
        scale /= base
        number, digit = divmod(number, base)
        value += scale * digit
    return value


def _turned(number: int, base: int, by: float = 0.0) -> float:
    """A point of the sequence moved round by a share of the range, with both ends of the range drawn in."""
    point = (_halton(number, base) + by) % 1.0
    return min(1.0, max(0.0, (point - EDGE) / (1 - 2 * EDGE)))


def _between(share: float, low: int, high: int) -> int:
    """At a share of the way, on a logarithmic scale."""
    return max(low, min(high, round(low * (high / low) ** share))) if high > low else low
