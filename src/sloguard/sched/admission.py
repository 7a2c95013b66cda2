"""Which of the new jobs can be promised what they ask (SLOs-Serve, arXiv 2504.08784, algorithm 1).

    i          demands by deadline: ddl_i from now, p_i prefill tokens, m_i KV blocks, v_i value, tier_i of its decodes
    n          decodes of each tier; one more of tier_i from ddl_i on
    PB(t, n)   prefill tokens that fit until t beside n decodes (pb_star)
    s          surplus of a choice: the tokens that fit by ddl_i less what it must have computed by then

A choice holds if no chosen demand has s < 0, the chosen fit the memory and the decodes keep their pace. Demands already
promised are in every choice. Where one of those is late whatever is chosen, no choice may make it later.

With PB(t, n) - PB(t', n) as the tokens between two deadlines, rather than PB(t - t', n) as in the paper, deadlines that
lie close together share their batches instead of paying for one each; and a choice's future then depends on n and s
alone, so that beside (value up, memory down) one number orders the choices of equal n, where the paper needs two.

`best_choice` is exact. `in_order` tries one demand after the other and keeps what still holds: by density (value per
token), or by deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

Counts = tuple[int, ...]


class Ahead(Protocol):
    def tokens(self, t_s: float, n: Counts) -> float:
        """Prefill tokens until `t_s` beside `n` decodes of each tier; -inf where those alone are too many."""
        ...


@dataclass(frozen=True, slots=True)
class Demand:
    """What promising one job takes. `promised`: it has been promised already."""

    due_s: float
    tokens: int
    tier: int
    blocks: int = 0
    value: float = 1.0
    promised: bool = False
    id: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """Demands in order of deadline, beside `n` decodes, with `blocks` of memory for those not yet promised."""

    demands: tuple[Demand, ...]
    n: Counts
    blocks: int
    ahead: Ahead

    @classmethod
    def of(cls, demands: Iterable[Demand], n: Counts, blocks: int, ahead: Ahead) -> Problem:
        return cls(tuple(sorted(demands, key=lambda d: (d.due_s, not d.promised))), n, blocks, ahead)

    @property
    def free(self) -> list[int]:
        """Indices of the demands to choose from."""
        return [i for i, demand in enumerate(self.demands) if not demand.promised]


class _Floors:
    """The least surplus each demand may be left with: 0, or what a promised one has when nothing new is chosen."""

    def __init__(self, problem: Problem) -> None:
        surplus, n, tokens = 0.0, problem.n, problem.ahead.tokens
        self.feasible = tokens(0.0, n) > -inf
        self.of: list[float] = [0.0] * len(problem.demands)
        for i, demand in enumerate(problem.demands):
            if not demand.promised or not self.feasible:
                continue
            at_due = surplus + (tokens(demand.due_s, n) - demand.tokens)
            self.of[i] = min(0.0, at_due)
            n = grown(n, demand.tier)
            after = tokens(demand.due_s, n)
            self.feasible = after > -inf
            surplus = at_due - after


def holds(problem: Problem, chosen: set[int], floors: _Floors | None = None) -> bool:
    """Whether all of `chosen` (indices) can be promised beside what has been."""
    floors = floors or _Floors(problem)
    if not floors.feasible:
        return not chosen
    if chosen and sum(problem.demands[i].blocks for i in chosen) > problem.blocks:
        return False
    surplus, n, tokens = 0.0, problem.n, problem.ahead.tokens
    for i, demand in enumerate(problem.demands):
        if not demand.promised and i not in chosen:
            continue
        due_s = demand.due_s
        surplus += tokens(due_s, n) - demand.tokens  # the order of operations is the same throughout, so ties are exact
        if surplus < floors.of[i]:
            return False
        n = grown(n, demand.tier)
        surplus -= tokens(due_s, n)
        if surplus == inf:
            return False
    return True


def in_order(problem: Problem, order: Iterable[int]) -> set[int]:
    """Takes each of `order` (indices) that the ones taken before leave room for."""
    floors = _Floors(problem)
    chosen: set[int] = set()
    blocks = problem.blocks if floors.feasible else -1
    for i in order:
        demand = problem.demands[i]
        if demand.blocks <= blocks and demand.tokens <= problem.ahead.tokens(demand.due_s, problem.n):
            chosen.add(i)
            if holds(problem, chosen, floors):
                blocks -= demand.blocks
            else:
                chosen.discard(i)
    return chosen


def by_density(problem: Problem) -> list[int]:
    """Value per token, most first."""
    demands = problem.demands
    return sorted(problem.free, key=lambda i: (-demands[i].value / max(demands[i].tokens, 1), i))


# A choice so far: value, blocks, surplus, and the indices chosen as bits.
_Choice = tuple[float, int, float, int]


def best_choice(problem: Problem, max_states: int | None = None) -> set[int] | None:
    """The choice of most value, of those the one of least memory; None where more than `max_states` are to be seen."""
    floors = _Floors(problem)
    if not floors.feasible:
        return set()
    tokens = problem.ahead.tokens
    seen = 0
    states: dict[Counts, list[_Choice]] = {problem.n: [(0.0, 0, 0.0, 0)]}
    for i, demand in enumerate(problem.demands):
        due_s, floor, need, bit = demand.due_s, floors.of[i], demand.tokens, 1 << i
        # The demand's own blocks count only if it is new: what is promised is not part of `blocks` any more.
        blocks, value = (0, 0.0) if demand.promised else (demand.blocks, demand.value)
        after: dict[Counts, list[_Choice]] = {} if demand.promised else {n: list(some) for n, some in states.items()}
        for n, some in states.items():
            seen += len(some)
            more = grown(n, demand.tier)
            fits, later = tokens(due_s, n) - need, tokens(due_s, more)
            if later == -inf:
                continue
            bucket = after.setdefault(more, [])
            for v, m, surplus, chosen in some:
                at_due = surplus + fits
                if at_due >= floor and (demand.promised or m + blocks <= problem.blocks):
                    bucket.append((v + value, m + blocks, at_due - later, chosen | (0 if demand.promised else bit)))
        if max_states is not None and seen > max_states:
            return None
        states = {n: _undominated(some) for n, some in after.items() if some}
    value, blocks, _, chosen = max((c for some in states.values() for c in some), key=lambda c: (c[0], -c[1], c[2]))
    del value, blocks
    return {i for i in range(len(problem.demands)) if chosen >> i & 1}


def grown(n: Counts, tier: int) -> Counts:
    return (*n[:tier], n[tier] + 1, *n[tier + 1 :])


def _undominated(choices: Sequence[_Choice]) -> list[_Choice]:
    """Without those that another equals or betters in value, memory and surplus."""
    if len(choices) < 2:
        return list(choices)
    kept: list[_Choice] = []
    for choice in sorted(choices, key=lambda c: (-c[0], c[1], -c[2])):
        _, m, surplus, _ = choice  # every one kept so far has at least this value
        if not any(k[1] <= m and k[2] >= surplus for k in kept):
            kept.append(choice)
    return kept
