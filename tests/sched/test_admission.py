from __future__ import annotations

from itertools import combinations
from math import inf

import numpy as np
import pytest

from sloguard.perf.batch_time import BatchTime, Piece
from sloguard.sched.admission import Demand, Problem, by_density
from sloguard.sched.pb_star import PbStar, Tiers

TIME = BatchTime((Piece(5e-3, 80e-6, 300e-6, 0.0, 0.0),))
INSTANCES = 2000


def random_problem(rng: np.random.Generator, most: int = 8, values: bool = True) -> Problem:
    """Up to 8 new demands beside up to 4 promised ones, from easy to hopeless in time, memory and pace."""
    tiers = int(rng.integers(1, 3))
    tpots_s = sorted(rng.choice([0.03, 0.05, 0.08, 0.1], tiers, replace=False).tolist())
    n = tuple(rng.integers(0, [60, 150][:tiers]).tolist())
    hurry = float(rng.choice([0.05, 0.3, 1.0]))
    demands = [
        Demand(
            due_s=float(rng.choice([0.0, 0.01, 0.1, 0.1, 0.2, 0.3, 0.5])) + float(rng.random() * hurry),
            tokens=int(rng.integers(0, 3000)),
            tier=int(rng.integers(tiers)),
            blocks=int(rng.integers(0, 40)),
            value=float(rng.integers(1, 4)) if values else 1.0,
        )
        for _ in range(int(rng.integers(1, most + 1)))
    ]
    promised = [
        Demand(float(rng.random() * hurry), int(rng.integers(0, 1500)), int(rng.integers(tiers)), 5, promised=True)
        for _ in range(int(rng.integers(0, 5)))
    ]
    ahead = PbStar(TIME, Tiers.plain(tpots_s))
    return Problem([*demands, *promised], n, int(rng.integers(-5, 160)), ahead)


def surpluses(problem: Problem, chosen: set[int]) -> list[tuple[int, float]]:
    """Of each demand served, by its deadline: tokens that fit in all intervals up to it, less what they are for.

    `problem.n` counts the decodes of what is promised from now on.
    """
    served = [(i, d) for i, d in enumerate(problem.demands) if d.promised or i in chosen]
    found: list[tuple[int, float]] = []
    for upto in range(1, len(served) + 1):
        n, room, since = list(problem.n), 0.0, 0.0
        for _, demand in served[:upto]:
            room += problem.ahead.tokens(demand.due_s, tuple(n)) - problem.ahead.tokens(since, tuple(n))
            since = demand.due_s
            n[demand.tier] += not demand.promised
        pace_kept = problem.ahead.tokens(0.0, tuple(n)) > -inf
        left = room - sum(demand.tokens for _, demand in served[:upto])
        found.append((served[upto - 1][0], left if pace_kept else -inf))
    return found


def possible(problem: Problem, chosen: set[int], alone: dict[int, float]) -> bool:
    """By the definition: `alone` are the surpluses of what is promised when nothing is chosen."""
    if not chosen:
        return True
    if problem.ahead.tokens(0.0, problem.n) == -inf or -inf in alone.values():
        return False
    if sum(problem.demands[i].blocks for i in chosen) > problem.blocks:
        return False
    return all(left >= min(0.0, alone.get(i, 0.0)) for i, left in surpluses(problem, chosen))


def brute_force(problem: Problem) -> float:
    """The most value of any subset that is possible."""
    alone = dict(surpluses(problem, set())) if problem.ahead.tokens(0.0, problem.n) > -inf else {}
    free = problem.free
    subsets = (set(some) for size in range(len(free) + 1) for some in combinations(free, size))
    return max(value(problem, some) for some in subsets if possible(problem, some, alone))


def value(problem: Problem, chosen: set[int]) -> float:
    return sum(problem.demands[i].value for i in chosen)


def test_the_exact_choice_is_that_of_brute_force_on_2000_instances():
    rng = np.random.default_rng(7)
    partly = 0
    for _ in range(INSTANCES):
        problem = random_problem(rng)
        best = problem.best_choice()
        assert best is not None
        assert best <= set(problem.free)
        assert problem.holds(best)
        assert value(problem, best) == brute_force(problem)
        partly += 0 < len(best) < len(problem.free)
    assert partly > INSTANCES / 5  # a choice had to be made


def test_what_holds_is_what_the_definition_allows():
    rng = np.random.default_rng(8)
    for _ in range(300):
        problem = random_problem(rng, most=5)
        feasible = problem.ahead.tokens(0.0, problem.n) > -inf
        alone = dict(surpluses(problem, set())) if feasible else {}
        for size in range(len(problem.free) + 1):
            for some in combinations(problem.free, size):
                assert problem.holds(set(some)) == possible(problem, set(some), alone)


@pytest.mark.parametrize("order", [by_density, lambda problem: problem.free], ids=["density", "deadline"])
def test_one_by_one_never_beats_the_exact_choice_and_holds(order):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(9)
    got = best = 0.0
    for _ in range(500):
        problem = random_problem(rng, values=False)
        some = problem.in_order(order(problem))
        exact = problem.best_choice()
        assert problem.holds(some)
        assert exact is not None
        assert len(some) <= len(exact)
        got, best = got + len(some), best + len(exact)
    assert got / best > 0.85


def test_deadlines_that_lie_together_share_their_batches():
    ahead = PbStar(TIME, Tiers.plain([0.05]))
    room = TIME.inverse(0.05)
    demands = [Demand(0.05 + i * 1e-6, room // 20, 0) for i in range(8)]
    assert Problem(demands, (1,), 100, ahead).best_choice() == set(range(8))


def test_a_promise_that_is_late_anyway_may_not_become_later():
    ahead = PbStar(TIME, Tiers.plain([0.1]))
    late = Demand(0.1, 5000, 0, promised=True)
    before, after, much_later = Demand(0.09, 10, 0), Demand(0.2, 100, 0), Demand(2.0, 100, 0)
    problem = Problem([late, before, after, much_later], (1,), 100, ahead)
    chosen = problem.best_choice()
    assert chosen is not None
    assert [problem.demands[i] for i in chosen] == [much_later]


def test_memory_that_is_overdrawn_admits_nothing_and_keeps_what_is_promised():
    ahead = PbStar(TIME, Tiers.plain([0.1]))
    problem = Problem([Demand(1.0, 10, 0, blocks=1), Demand(1.0, 10, 0, promised=True)], (1,), -3, ahead)
    assert problem.best_choice() == problem.in_order(problem.free) == set()


def test_too_many_states_are_left_to_others():
    ahead = PbStar(TIME, Tiers.plain([0.05, 0.1]))
    demands = [Demand(1.0 + i, 10, i % 2, blocks=i) for i in range(30)]
    problem = Problem(demands, (0, 0), 10**6, ahead)
    assert problem.best_choice(max_states=100) is None
    assert problem.best_choice() == set(range(30))
