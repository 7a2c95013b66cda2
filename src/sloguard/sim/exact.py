"""The most requests that one replica can serve in time, exactly: a mixed-integer program over single steps.

For a handful of requests of one stage and at most 11 tokens, so that only the first and the last token are judged
(`TpotRule.DEADLINE`), with memory for all of them. It is exact where a step's time is a maximum of linear functions of
tokens, decodes and KV tokens; attention, context, padding and a curve that is not convex are left out or bounded from
below, and then it is an upper bound, as it is for policies that place whole tokens: here a chunk may be any share.

    x_r             request r attains; of the others nothing is computed
    a_j             step j computes something; s_j, e_j are when it begins and ends
    w_rj, c_rj      r has a chunk in step j, of so many tokens; f_rj: its first token comes at the end of the step
    d_rj, k_rj      r decodes in step j, and reads so many KV tokens

How many steps are enough: two steps in a row of which the first yields no token, with no arrival between their starts,
may be one that ends when the second did and takes no longer, since a maximum of linear functions of positive base is
subadditive. So one step for each token, and one before each arrival but the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np

from sloguard.contract import DEADLINE_CHECK_TOKENS
from sloguard.perf.batch_time import BatchTime
from sloguard.request import Request
from sloguard.sim.oracle import demands_of, lines_of
from sloguard.sim.program import Ints, Program


def most_attained(requests: Sequence[Request], time: BatchTime) -> int:
    """The most of `requests` that attain under any schedule. Raises ValueError where they are not as said above."""
    if any(len(r.stages) > 1 or r.output_tokens > DEADLINE_CHECK_TOKENS + 1 or r.prefix for r in requests):
        raise ValueError(f"only requests of one stage, {DEADLINE_CHECK_TOKENS + 1} tokens and no shared prefix")
    lines = lines_of(time)
    demands, hopeless = demands_of(requests, lines)
    free = len(requests) - len(hopeless) - len(demands)  # promised nothing
    if not demands:
        return free
    start_s = min(d.opens_s for d in demands)
    end_s = max(d.decodes[-1][1] if d.decodes else d.due_s for d in demands) - start_s
    decodes = [d.decodes[-1][0] if d.decodes else 0 for d in demands]
    steps = sum(decodes) + 2 * len(demands) - 1
    shape = (len(demands), steps)

    program = Program()
    x = program.columns(np.ones(shape[0]), integer=True)
    a = program.columns(np.ones(steps), integer=True)
    s, e = (program.columns(np.full(steps, end_s)) for _ in range(2))
    w, f, d = (program.columns(np.ones(shape), integer=True) for _ in range(3))
    c, k = (program.columns(np.full(shape, inf)) for _ in range(2))

    _at_most(program, e[:-1], s[1:])
    _at_most(program, a[1:], a[:-1])
    for used in (w, d):
        _at_most(program, used, np.broadcast_to(a, shape))
    for line in lines:  # base*a + work <= e - s
        row = program.rows(np.zeros(steps))
        program.add(row, s, 1.0)
        program.add(row, e, -1.0)
        program.add(row, a, line.base_s)
        for columns, cost_s in ((c, line.token_s), (w, line.chunk_s), (d, line.decode_s), (k, line.kv_token_s)):
            program.add(row, columns, cost_s)

    later, earlier = np.tril_indices(steps)
    for r, demand in enumerate(demands):
        _equal(program, f[r], x[r], 1.0)
        _equal(program, d[r], x[r], float(decodes[r]))
        _equal(program, c[r], x[r], float(demand.tokens))
        _at_most(program, c[r], w[r], float(demand.tokens))
        # A step is after the arrival if a chunk, or the first token, was in it or before.
        chunk_begins, first_begins, first_ends, decode_ends = program.rows(
            np.outer((0.0, 0.0, end_s, end_s), np.ones(steps))
        )
        for rows, flags in ((chunk_begins, w[r]), (first_begins[later], f[r, earlier])):
            program.add(rows, flags, demand.opens_s - start_s)
        for rows in (chunk_begins, first_begins):
            program.add(rows, s, -1.0)
        # It ends by the due time of a decode in it, or of the first token if that is still to come.
        last_s = demand.decodes[-1][1] if demand.decodes else demand.due_s
        program.add(first_ends[earlier], f[r, later], end_s - (demand.due_s - start_s))
        program.add(decode_ends, d[r], end_s - (last_s - start_s))
        for rows in (first_ends, decode_ends):
            program.add(rows, e, 1.0)
        longest = demand.tokens + decodes[r] + 1.0
        for j in range(steps):
            whole, after = program.rows(np.zeros((2, 1)))
            program.add(whole, f[r, j], float(demand.tokens))  # all of the prompt comes before the first token
            program.add(whole, c[r, : j + 1], -1.0)
            program.add(after, d[r, j], 1.0)  # and that before a decode
            program.add(after, f[r, :j], -1.0)
            reading = program.rows(np.array([longest - demand.tokens - 1.0]))
            program.add(reading, d[r, :j], 1.0)  # prompt + 1 + decodes before - longest*(1 - d) <= k
            program.add(reading, d[r, j], longest)
            program.add(reading, k[r, j], -1.0)
    return free + round(program.maximum(x))


def _at_most(program: Program, left: Ints, right: Ints, scale: float = 1.0) -> None:
    """left <= scale*right, one by one."""
    rows = program.rows(np.zeros(left.shape))
    program.add(rows, left, 1.0)
    program.add(rows, right, -scale)


def _equal(program: Program, columns: Ints, x: np.int64, scale: float) -> None:
    """sum of columns = scale*x"""
    for sign in (1.0, -1.0):
        row = program.rows(np.zeros(1))
        program.add(row, columns, sign)
        program.add(row, x, -sign * scale)
