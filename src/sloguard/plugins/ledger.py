"""The requests inside an engine as jobs: what each was promised, what it has had, and how it ended.

Knows nothing of vLLM: what a scheduler reads of its requests comes in as plain values. All instants are of the
monotonic clock.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Mapping, Sequence

from sloguard.errors import SpecError
from sloguard.plugins.meters import Meters
from sloguard.plugins.options import Options
from sloguard.sched.asked import OF_ROUTERS, ROUTER, Asked, read_asked
from sloguard.sched.job import Job, Tier
from sloguard.sched.lengths import AtMost, Quantile

log = logging.getLogger("vllm.sloguard")  # below vLLM's own logger, so that it is seen

PLANNED_SHARE = 0.97  # of what was promised: a client's clock has its server's and the network's time in it
TICKETS = 64  # of the requests that came last
LATEST_TOKENS = 16  # of which one may end the thoughts: a step yields no more


class Ledger:
    """`jobs` by request id, from when they come to when they end. `started` counts those that had a first token.
    `router_proof` is that of the router before this engine, if there is one.
    """

    def __init__(self, options: Options, meters: Meters, router_proof: str | None = None) -> None:
        self._options, self._meters, self._router_proof = options, meters, router_proof
        self.jobs: dict[str, Job] = {}
        self.lengths = AtMost(Quantile())
        self.started = 0
        self.tickets: deque[str] = deque(maxlen=TICKETS)
        self._thinking: dict[str, Asked] = {}  # whose pace will be another once the thoughts end

    def enter(
        self,
        name: str,
        arrival_s: float,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        """`output_tokens` is the most that it may have, `extra` its `vllm_xargs`."""
        job = self.jobs[name] = Job(name, arrival_s, prompt_tokens, output_tokens, priority=priority)
        asked = self._asked(name, self._believed(extra or {}))
        thinks = asked.think_tpot_s is not None and self._options.think_end_token_id is not None
        if thinks:
            self._thinking[name] = asked
        job.ttft_s = _planned_s(asked.slo.ttft_s)
        job.tpot_s = _planned_s(asked.think_tpot_s if thinks else asked.slo.tpot_s)
        job.app, job.stages_left, job.hops_left = asked.slo_class, asked.stages_left, asked.hops_left
        if asked.ticket:
            self.tickets.append(asked.ticket)
        job.conversation = asked.conversation or name
        job.arrival_s -= asked.waited_s
        job.tier = Tier.BEST_EFFORT if asked.best_effort else Tier.NEW

    def note_tokens(self, name: str, output_tokens: int, ids: Sequence[int], now_s: float) -> None:
        """It has so many tokens of answer, whose last are the last of `ids`."""
        job = self.jobs.get(name)
        if job is None or not output_tokens:
            return
        if job.first_token_s is None:
            job.first_token_s, job.paced_from = now_s, (now_s, 1)
            self.started += 1
        asked = self._thinking.get(name)
        if asked is not None and self._options.think_end_token_id in ids[-LATEST_TOKENS:]:
            del self._thinking[name]
            job.tpot_s = _planned_s(asked.slo.tpot_s)
            job.paced_from = now_s, output_tokens

    def leave(self, name: str, output_tokens: int, completed: bool, now_s: float) -> None:
        self._thinking.pop(name, None)
        job = self.jobs.pop(name, None)
        if job is None:
            return
        job.generated_tokens = output_tokens
        if completed and output_tokens:
            if job.first_token_s is None:
                job.first_token_s = now_s  # it ended with its first token
                self.started += 1
            self.lengths.finished(job)
        self._meters.finished(job, now_s, completed, 1 / PLANNED_SHARE)

    def decline(self, name: str) -> None:
        """Another replica is to serve it."""
        self._thinking.pop(name, None)
        if self.jobs.pop(name, None) is not None:
            self._meters.declined()

    def _believed(self, extra: Mapping[str, object]) -> Mapping[str, object]:
        """Without what only a router may say, where none said it: some ways into an engine pass its door unread."""
        if self._router_proof is not None and extra.get(ROUTER) == self._router_proof:
            return extra
        return {name: value for name, value in extra.items() if name not in OF_ROUTERS}

    def _asked(self, name: str, extra: Mapping[str, object]) -> Asked:
        """What the door has not refused is well-formed; without the door it may be anything, and is served without."""
        options = self._options
        try:
            return read_asked(extra, options.classes, options.default_class)
        except SpecError as error:
            log.warning("sloguard: %s: %s Served with the default class.", name, error)
            self._meters.bad_slo()
            return read_asked({}, options.classes, options.default_class)


def _planned_s(promised_s: float | None) -> float | None:
    return None if promised_s is None else PLANNED_SHARE * promised_s
