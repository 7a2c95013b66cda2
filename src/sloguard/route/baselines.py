"""Routers that know nothing of promises. Where they send a job it stays: they give it no hops.

round-robin       each replica in turn
power-of-two      of two drawn at random, the one with fewer jobs (Mitzenmacher 2001)
least-jobs        the one with the fewest jobs, of equals in turn: what vLLM does with its data-parallel engines
least-tokens      the one with the fewest tokens to compute or in its decodes' memory
prefix-affinity   the one that was sent the longest beginning of this prompt, unless it has much more to do than others
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sloguard.route.base import ReplicaState, Route
from sloguard.route.prefixes import PrefixMap
from sloguard.sched.job import Job


class RoundRobin:
    def __init__(self) -> None:
        self._next = 0

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        self._next += 1
        return Route((self._next - 1) % len(replicas))


class PowerOfTwo:
    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        if len(replicas) == 1:
            return Route(0)
        one, other = map(int, self._rng.choice(len(replicas), 2, replace=False))
        return Route(one if replicas[one].jobs <= replicas[other].jobs else other)


class LeastJobs:
    """As DPLBAsyncMPClient of vLLM 0.32 (v1/engine/core_client.py): what waits counts up to four times as the KV cache
    fills.
    """

    def __init__(self) -> None:
        self._first = 0

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        order = [(self._first + at) % len(replicas) for at in range(len(replicas))]
        self._first += 1
        return Route(min(order, key=lambda at: self._score(replicas[at])))

    @staticmethod
    def _score(state: ReplicaState) -> float:
        used = 1 - state.free_blocks / state.blocks
        return state.jobs + 6 * state.waiting * max(0.0, used - 0.5)


class LeastTokens:
    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        return Route(min(range(len(replicas)), key=lambda at: replicas[at].tokens))


class PrefixAffinity:
    """`slack_tokens` and `slack_share` say how much more than the least a replica may have to do and still be favoured:
    this many tokens, or this share.
    """

    def __init__(self, slack_tokens: int = 8192, slack_share: float = 0.5) -> None:
        for name, slack in (("slack_tokens", slack_tokens), ("slack_share", slack_share)):
            if not slack >= 0:
                raise ValueError(f"{name} is 0 or more, not {slack}")
        self._slack_tokens, self._slack_share = slack_tokens, slack_share
        self._prefixes = PrefixMap()

    def choose(self, now_s: float, job: Job, replicas: Sequence[ReplicaState], tried: Sequence[int]) -> Route:
        tokens = [state.tokens for state in replicas]
        least = min(tokens)
        chosen = tokens.index(least)
        if found := self._prefixes.find(job):
            replica, _ = found
            if tokens[replica] - least <= max(self._slack_tokens, self._slack_share * least):
                chosen = replica
        self._prefixes.sent(job, chosen)
        return Route(chosen)
