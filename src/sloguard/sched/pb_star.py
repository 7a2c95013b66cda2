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
        self._known: dict[tuple[float, tuple[int, ...]], float] = {}

    def tokens(self, t_s: float, n: tuple[int, ...]) -> float:
        """Up to `t_s` from now; -inf where the decodes alone can't keep their pace."""
        key = (t_s, n)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._share * self._tokens(t_s, n)
        return known

    def _tokens(self, t_s: float, n: tuple[int, ...]) -> float:
        curve = self._curves.get(n)
        if curve is None:
            tau_s = min((tau for tau, count in zip(self._tiers.tau_s, n, strict=True) if count), default=inf)
            curve = self._curves[n] = _Curve(min(tau_s, self._longest_s))
            curve.feasible = not sum(n) or self._decodes_s(n, self._due(0.0, curve.tau_s, n)) <= curve.tau_s
        if not curve.feasible:
            return -inf
        if t_s <= 0:
            return 0.0
        tau_s, upto = curve.tau_s, curve.upto
        if tau_s == inf:
            return self._fill(t_s, 0, 0)
        whole = int(t_s / tau_s + EPS)
        while len(upto) <= whole:
            k = len(upto)
            due = self._due((k - 1) * tau_s, k * tau_s, n)
            filled = curve.filled.get(due)
            if filled is None:
                filled = curve.filled[due] = self._fill(tau_s, *self._counts(n, due))
            upto.append(upto[-1] + filled)
        rest_s = t_s - whole * tau_s
        if rest_s <= EPS * tau_s:
            return upto[whole]
        return upto[whole] + self._fill(rest_s, *self._counts(n, self._due(whole * tau_s, t_s, n)))

    def _due(self, begin_s: float, end_s: float, n: tuple[int, ...]) -> tuple[int, ...]:
        """Tiers whose window opens in a batch: the count of windows opened before an instant t is ceil(t/tau_l)."""
        return tuple(
            tier
            for tier, (tau_s, count) in enumerate(zip(self._tiers.tau_s, n, strict=True))
            if count and ceil(end_s / tau_s - EPS) > ceil(begin_s / tau_s - EPS)
        )

    def _counts(self, n: tuple[int, ...], due: tuple[int, ...]) -> tuple[int, int, int]:
        """Decodes, drafted tokens and the longest draft."""
        verified = self._tiers.verified
        decodes = sum(n[tier] for tier in due)
        drafted = sum(n[tier] * verified[tier] for tier in due) - decodes
        return decodes, drafted, max((verified[tier] - 1 for tier in due), default=0)

    def _decodes_s(self, n: tuple[int, ...], due: tuple[int, ...]) -> float:
        decodes, drafted, steps = self._counts(n, due)
        return self._time.seconds(Batch((), decodes, int(decodes * self._kv_tokens), drafted, steps))

    def _fill(self, seconds: float, decodes: int, drafted: int, steps: int = 0) -> float:
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
    """PB* of one n: `upto[k]` tokens by the end of batch k."""

    __slots__ = ("feasible", "filled", "tau_s", "upto")

    def __init__(self, tau_s: float) -> None:
        self.tau_s = tau_s
        self.upto: list[float] = [0.0]
        self.filled: dict[tuple[int, ...], float] = {}  # by the tiers due
        self.feasible = True
