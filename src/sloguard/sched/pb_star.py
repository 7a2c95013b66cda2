"""PB*: how many prefill tokens fit beside the decodes until an instant (SLOs-Serve, arXiv 2504.08784).

    n_l        decodes of tier l; a tier is a TPOT
    sl_l       tokens a decode of tier l verifies in a batch: 1, or 1 + its draft
    tau_l      TPOT_l*Acc(sl_l), how often a decode of tier l must be in a batch; TPOT_l without drafts
    tau        the least tau_l of a tier with decodes: how long a batch may take

Batch k ends at k*tau. A decode is in a batch if its window is open by then, that is, if its next token is due less
than tau_l later; so a looser tier skips batches. What the decodes of a batch leave of its tau seconds is filled with
prefill tokens, by the batch time's inverse. This is the paper's heap of deadlines, which always has the tightest tier
on top, solved for one tier at a time. Where the paper knows only tokens, decodes have their own price here, KV reads
included, and a batch ends when it is due instead of a rounded token earlier.

An instant within a batch is given what lies on the chord from the end of that batch's decodes to its own end: a batch
time is convex in tokens, so a batch that ended there would hold no less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

from sloguard.perf.batch_time import Batch, StepTime

EPS = 1e-9  # of a period: what rounding may move a boundary by


@dataclass(frozen=True, slots=True)
class Tiers:
    """[L] of each tier, tightest first: `tau_s`, and `verified` (sl) of a decode's batch."""

    tau_s: tuple[float, ...]
    verified: tuple[int, ...]

    @classmethod
    def plain(cls, tpots_s: Sequence[float]) -> Tiers:
        """Without drafts."""
        return cls(tuple(tpots_s), (1,) * len(tpots_s))


class PbStar:
    """`tokens(t_s, n)` for one moment: its memory of what it has worked out lasts as long as the object.

    `kv_tokens` is what one decode reads, `context_tokens` the middle of a prompt (attention to what lies before it),
    `max_tokens` the engine's bound on a batch, `longest_s` the policy's, `share` the part of the prefill tokens that
    is not kept for others.
    """

    def __init__(
        self,
        time: StepTime,
        tiers: Tiers,
        *,
        kv_tokens: float = 0.0,
        context_tokens: int = 0,
        max_tokens: int = 1 << 20,
        longest_s: float = inf,
        share: float = 1.0,
    ) -> None:
        self._time, self._tiers = time, tiers
        self._kv_tokens, self._context_tokens = kv_tokens, context_tokens
        self._max_tokens, self._longest_s, self._share = max_tokens, longest_s, share
        self._curves: dict[tuple[int, ...], _Curve] = {}
        self._due: dict[tuple[bool, ...], list[int]] = {}  # tiers (as bits) in batch k + 1, by the tiers with decodes

    def tokens(self, t_s: float, n: tuple[int, ...]) -> float:
        """Up to `t_s` from now, a whole number; -inf where the decodes alone can't keep their pace."""
        curve = self._curves.get(n)
        if curve is None:
            curve = self._curves[n] = self._curve(n)
        if not curve.feasible:
            return -inf
        tau_s = curve.tau_s
        if tau_s == inf:
            return int(self._share * self._fill(t_s, 0, 0, 0)) if t_s > 0 else 0
        whole = int(t_s / tau_s + EPS) if t_s > 0 else 0
        upto, due, filled = curve.upto, curve.due, curve.filled
        while len(upto) <= whole + 1:
            if len(due) < len(upto):
                due.append(self._due_in(len(upto), tau_s, n))
            tiers = due[len(upto) - 1]
            if tiers not in filled:
                filled[tiers] = self._filled(tiers, tau_s, n)
            upto.append(upto[-1] + filled[tiers][0])
        tokens, decodes_s = filled[due[whole]]
        beyond_s = t_s - whole * tau_s - decodes_s
        partly = tokens * beyond_s / (tau_s - decodes_s) if beyond_s > 0 and tokens else 0.0
        return int(self._share * (upto[whole] + partly))

    def _curve(self, n: tuple[int, ...]) -> _Curve:
        tau_s = min((tau for tau, count in zip(self._tiers.tau_s, n, strict=True) if count), default=inf)
        curve = _Curve(min(tau_s, self._longest_s), self._due.setdefault(tuple(map(bool, n)), []))
        if any(n):  # in the first batch all tiers are due
            tiers = self._due_in(1, curve.tau_s, n)
            curve.filled[tiers] = self._filled(tiers, curve.tau_s, n)
            curve.feasible = curve.filled[tiers][1] <= curve.tau_s
        return curve

    def _due_in(self, batch: int, tau_s: float, n: tuple[int, ...]) -> int:
        """Tiers whose window opens in a batch: those opened before an instant t are ceil(t/tau_l)."""
        begin_s, end_s = (batch - 1) * tau_s, batch * tau_s
        return sum(
            1 << tier
            for tier, (tau, count) in enumerate(zip(self._tiers.tau_s, n, strict=True))
            if count and ceil(end_s / tau - EPS) > ceil(begin_s / tau - EPS)
        )

    def _filled(self, tiers: int, tau_s: float, n: tuple[int, ...]) -> tuple[float, float]:
        """Prefill tokens of a batch in which these tiers are due, and the seconds of its decodes alone."""
        decodes = drafted = steps = 0
        for tier, count in enumerate(n):
            if tiers >> tier & 1:
                draft = self._tiers.verified[tier] - 1
                decodes, drafted, steps = decodes + count, drafted + count * draft, max(steps, draft)
        kv_tokens = int(decodes * self._kv_tokens)
        decodes_s = self._time.seconds(Batch((), decodes, kv_tokens, drafted, steps))
        return (self._fill(tau_s, decodes, drafted, steps) if decodes_s < tau_s < inf else 0), decodes_s

    def _fill(self, seconds: float, decodes: int, drafted: int, steps: int) -> float:
        """Prefill tokens in `seconds` beside decodes that are served once, in as many batches as `max_tokens` asks."""
        time, context = self._time, self._context_tokens
        kv = int(decodes * self._kv_tokens)
        room = max(0, self._max_tokens - decodes - drafted)
        tokens = time.inverse(
            seconds,
            decodes=decodes,
            kv_tokens=kv,
            context_tokens=context,
            draft_tokens=drafted,
            draft_steps=steps,
        )
        if tokens <= room:
            return tokens
        full = self._max_tokens
        chunks = ((room, context),) if room else ()
        left_s = seconds - time.seconds(Batch(chunks, decodes, kv, drafted, steps))
        full_s = time.seconds(Batch(((full, context),)))
        batches = int(left_s / full_s) if full_s > 0 else 0
        last = time.inverse(left_s - batches * full_s, context_tokens=context) if left_s > 0 else 0
        return room + batches * full + min(last, full)


class _Curve:
    """PB* of one n: `upto[k]` tokens by the end of batch k, `due` the tiers in batch k + 1, and of a batch with such
    tiers what is `filled`, and the seconds of its decodes.
    """

    __slots__ = ("due", "feasible", "filled", "tau_s", "upto")

    def __init__(self, tau_s: float, due: list[int]) -> None:
        self.tau_s, self.due = tau_s, due
        self.upto: list[float] = [0.0]
        self.filled: dict[int, tuple[float, float]] = {}
        self.feasible = True
