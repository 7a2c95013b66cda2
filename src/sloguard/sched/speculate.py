"""How much each tier should draft (SLOs-Serve, arXiv 2504.08784): the lengths that leave most room for prefill.

    alpha      probability that a drafted token is accepted if all before it were
    sl_l       tokens that a decode of tier l verifies in a batch: 1 is sure, sl_l - 1 are drafted; 1 to 10
    Acc(sl)    (1 - alpha^sl)/(1 - alpha): the tokens it yields, expected
    T(sl)      min over tiers of TPOT_l*Acc(sl_l): how long a batch may take

    maximise   (inv(T(sl)) - sum of n_l*sl_l) / T(sl)

Some tier i sets T(sl) with its length j; a tier k that must not be tighter then needs

    TPOT_k*Acc(sl_k) >= TPOT_i*Acc(j)   <=>   alpha^sl_k <= ((TPOT_k - TPOT_i) + alpha^j*TPOT_i)/TPOT_k

and no more than that, so all candidates are L*10. Where the right side is not positive no length suffices.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log

from sloguard.perf.batch_time import Batch, StepTime
from sloguard.sched.pb_star import Tiers
from sloguard.sched.policy import Speculation

LONGEST = 10
ROUNDING = 1e-9  # ceil(log ratio) of an exact power must not jump to the next length; so near, alpha is 1


def accepted(verified: int, alpha: float) -> float:
    """Acc: expected tokens of a verification of `verified` tokens."""
    return float(verified) if alpha >= 1 - ROUNDING else (1 - alpha**verified) / (1 - alpha)


def draft_tiers(
    time: StepTime, tpots_s: Sequence[float], n: Sequence[int], offered: Speculation, kv_tokens: float = 0.0
) -> Tiers:
    """The best lengths for `n` decodes of each tier that read `kv_tokens` each; tiers without decodes follow."""
    alpha = min(max(offered.acceptance, 0.0), 1.0)
    longest = min(LONGEST, offered.max_draft_tokens + 1)
    counts = list(n) if any(n) else [1] * len(n)
    decodes = sum(counts)
    best: tuple[tuple[bool, float], list[int]] | None = None
    for i, count in enumerate(counts):
        for j in range(1, longest + 1):
            verified = [_needed(tpot, tpots_s[i], j, alpha) for tpot in tpots_s]
            if not count or any(c and v > longest for c, v in zip(counts, verified, strict=True)):
                continue
            verified = [min(v, longest) for v in verified]
            active = [tier for tier, c in enumerate(counts) if c]
            step_s = min(tpots_s[tier] * accepted(verified[tier], alpha) for tier in active)
            drafted = sum(c * (v - 1) for c, v in zip(counts, verified, strict=True))
            steps = max(verified[tier] for tier in active) - 1
            kv = int(decodes * kv_tokens)
            decode_s = time.seconds(Batch((), decodes, kv, drafted, steps))
            fits = decode_s <= step_s
            room = time.inverse(step_s, decodes=decodes, kv_tokens=kv, draft_tokens=drafted, draft_steps=steps)
            rank = (fits, room / step_s if fits else step_s / decode_s)  # nothing fits: least behind its pace
            if best is None or rank > best[0]:
                best = rank, verified
    verified = best[1] if best else [1] * len(counts)
    tau_s = tuple(tpot * accepted(v, alpha) for tpot, v in zip(tpots_s, verified, strict=True))
    return Tiers(tau_s, tuple(verified))


def spare_draft(
    time: StepTime, batch: Batch, decodes: int, kv_tokens: int, offered: Speculation, longest_s: float
) -> int:
    """Tokens that each of `decodes` without a pace verifies beside a `batch`: those by which the engine yields most a
    second; 1 where no draft ends within `longest_s`. Together they read `kv_tokens`.
    """
    alpha = min(max(offered.acceptance, 0.0), 1.0)
    others = batch.decodes + sum(tokens for tokens, _ in batch.chunks)
    best = 0.0, 1
    for verified in range(1, min(LONGEST, offered.max_draft_tokens + 1) + 1):
        seconds = time.seconds(
            Batch(
                batch.chunks,
                batch.decodes + decodes,
                batch.kv_tokens + kv_tokens,
                batch.draft_tokens + decodes * (verified - 1),
                max(batch.draft_steps, verified - 1),
            )
        )
        if verified > 1 and seconds > longest_s:
            break
        yielded = (others + decodes * accepted(verified, alpha)) / seconds
        if yielded > best[0]:
            best = yielded, verified
    return best[1]


def _needed(tpot_s: float, bottleneck_tpot_s: float, length: int, alpha: float) -> int:
    """sl_k that keeps up with a bottleneck of this length; more than `LONGEST` where none does."""
    if alpha >= 1 - ROUNDING:
        return max(1, ceil(length * bottleneck_tpot_s / tpot_s - ROUNDING))
    power = (tpot_s - bottleneck_tpot_s + alpha**length * bottleneck_tpot_s) / tpot_s
    if power >= alpha:
        return 1
    return LONGEST + 1 if power <= 0 else ceil(log(power) / log(alpha) - ROUNDING)
