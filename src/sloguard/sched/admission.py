"""Which of the new jobs can be promised what they ask (SLOs-Serve, arXiv 2504.08784, algorithm 1).

    i          demands by deadline: ddl_i from now, p_i prefill tokens, m_i KV blocks, v_i value, tier_i of its decodes
    n          decodes of each tier, those of what is promised already from now on; a new one of tier_i from ddl_i on
    PB(t, n)   prefill tokens that fit until t beside n decodes (pb_star)
    s          surplus of a choice: the tokens that fit by ddl_i less what it must have computed by then

A choice holds if no chosen demand has s < 0, the chosen fit the memory and the decodes keep their pace. Demands already
promised are in every choice. Where one of those is late whatever is chosen, no choice may make it later.

With PB(t, n) - PB(t', n) as the tokens between two deadlines, rather than PB(t - t', n) as in the paper, deadlines that
lie close together share their batches instead of paying for one each; and a choice's future then depends on n and one
number alone (what it has computed less what n would have let it), where the paper keeps two.

`best_choice` is exact. `in_order` tries one demand after the other and keeps what still holds: by density (value per
token), or by deadline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Protocol

Counts = tuple[int, ...]
_Choice = tuple[float, int, float, int]  # value, blocks, tokens ahead, indices chosen as bits


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


class Problem:
    """Demands in order of deadline, beside `n` decodes, with `blocks` of memory for those that are new."""

    def __init__(self, demands: Iterable[Demand], n: Counts, blocks: int, ahead: Ahead) -> None:
        self.demands = sorted(demands, key=lambda d: (d.due_s, not d.promised))
        self.free = [i for i, demand in enumerate(self.demands) if not demand.promised]
        self.blocks, self.ahead = blocks, ahead
        for demand in self.demands:
            if demand.promised:
                n = grown(n, demand.tier)
        self.n = n
        self.feasible = ahead.tokens(0.0, n) > -inf
        self.floors = [0.0] * len(self.demands)  # the least surplus of each: 0, or what a late promise has at best
        alone = self.margins(set())
        if alone:
            for i, demand in enumerate(self.demands):
                if demand.promised:
                    self.floors[i] = min(0.0, alone[i])

    def margins(self, chosen: set[int]) -> list[float] | None:
        """How far each surplus is above its floor; of a demand that is neither chosen nor promised, would be if it
        were and its decodes cost nothing. None where the decodes can't keep their pace.
        """
        if not self.feasible:
            return None
        found: list[float] = []
        n, ahead, tokens = self.n, 0.0, self.ahead.tokens
        for i, demand in enumerate(self.demands):
            room = tokens(demand.due_s, n)
            found.append(ahead + room - demand.tokens - self.floors[i])
            if i in chosen:
                n = grown(n, demand.tier)
                ahead += room - tokens(demand.due_s, n)
                if ahead == inf:
                    return None
            if demand.promised or i in chosen:
                ahead -= demand.tokens
        return found

    def holds(self, chosen: set[int]) -> bool:
        """Whether all of `chosen` (indices) can be promised beside what has been."""
        return not chosen or (self._fits(chosen) and self._in_time(chosen, self.margins(chosen)))

    def _fits(self, chosen: set[int]) -> bool:
        return sum(self.demands[i].blocks for i in chosen) <= self.blocks

    def _in_time(self, chosen: set[int], margins: list[float] | None) -> bool:
        return margins is not None and all(
            margin >= 0 for i, margin in enumerate(margins) if i in chosen or self.demands[i].promised
        )

    def in_order(self, order: Iterable[int]) -> set[int]:
        """Takes each of `order` (indices) that the ones taken before leave room for."""
        chosen: set[int] = set()
        margins = self.margins(chosen)
        if margins is None:
            return chosen
        least = self._least_from(margins, chosen)
        blocks = self.blocks
        for i in order:
            demand = self.demands[i]
            if demand.blocks > blocks or margins[i] < 0 or least[i + 1] < demand.tokens:
                continue  # it is late itself, or makes another late, even if its decodes cost nothing
            chosen.add(i)
            found = self.margins(chosen)
            if found is not None and self._in_time(chosen, found):
                margins, least, blocks = found, self._least_from(found, chosen), blocks - demand.blocks
            else:
                chosen.discard(i)
        return chosen

    def _least_from(self, margins: list[float], chosen: set[int]) -> list[float]:
        """[demands + 1] the smallest margin of a chosen or promised demand from each index on."""
        least = [inf] * (len(margins) + 1)
        for i in range(len(margins) - 1, -1, -1):
            binding = i in chosen or self.demands[i].promised
            least[i] = min(least[i + 1], margins[i]) if binding else least[i + 1]
        return least

    def best_choice(self, max_states: int | None = None) -> set[int] | None:
        """The choice of most value, of those the one of least memory; None where more than `max_states` are seen."""
        if not self.feasible:
            return set()
        tokens = self.ahead.tokens
        seen = 0
        states: dict[Counts, list[_Choice]] = {self.n: [(0.0, 0, 0.0, 0)]}
        for i, demand in enumerate(self.demands):
            due_s, floor, need, tier = demand.due_s, self.floors[i], demand.tokens, demand.tier
            if demand.promised:
                for n, some in states.items():
                    least = floor + need - tokens(due_s, n)
                    states[n] = [(v, m, ahead - need, bits) for v, m, ahead, bits in some if ahead >= least]
                    seen += len(some)
                continue
            added: dict[Counts, list[_Choice]] = {}
            room_of: dict[Counts, float] = {n: tokens(due_s, n) for n in states}
            bit = 1 << i
            for n, some in states.items():
                room, more = room_of[n], grown(n, tier)
                later = room_of[more] if more in room_of else tokens(due_s, more)
                seen += len(some)
                if later == -inf:
                    continue
                least, change = need - room, room - later - need
                most = self.blocks - demand.blocks
                added[more] = [
                    (v + demand.value, m + demand.blocks, ahead + change, bits | bit)
                    for v, m, ahead, bits in some
                    if ahead >= least and m <= most
                ]
            if max_states is not None and seen > max_states:
                return None
            for n, some in added.items():
                if some:
                    states[n] = _undominated([*states.get(n, ()), *some])
        best = max((c for some in states.values() for c in some), key=lambda c: (c[0], -c[1], c[2]))
        return {i for i in self.free if best[3] >> i & 1}


def by_density(problem: Problem) -> list[int]:
    """Value per token, most first."""
    demands = problem.demands
    return sorted(problem.free, key=lambda i: (-demands[i].value / max(demands[i].tokens, 1), i))


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
