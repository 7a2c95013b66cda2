"""A climber: each proposal is the best config so far with one knob moved a little."""

from sloguard.optim.base import Problem, best, place
from sloguard.optim.fresh import first_fresh


class Mine:
    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    def propose(self, history, rng):
        space, leader = self.problem.space, best(history, self.problem.goal)
        draws = ()
        if leader is not None:
            start = space.complete(place(leader, space), rng)
            draws = (space.neighbour(start, rng, sigma=0.2, p_struct=0.3) for _ in range(50))
        return first_fresh(self.problem, history, rng, draws)
