"""Holds a policy of the user's own to the rules of docs/writing-a-policy.md, and says in one line what breaks them.

Policies of the table are held to them by the conformance suite, so they need not be watched as they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import PurePath
from traceback import walk_tb
from typing import Any, cast

from sloguard.errors import PolicyError, SpecError
from sloguard.sched.job import Job
from sloguard.sched.plan import Plan
from sloguard.sched.policy import Kv, Policy, View

NOBODY = "neither runs nor waits"


class Checked:
    """A policy under watch, called `name` in errors. What the policy itself has stays reachable.

    Whoever drives it calls `check` with each plan before following it, beside the clock that times `plan`.
    """

    def __init__(self, inner: Policy, name: str) -> None:
        self.inner, self.name = inner, name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of copies and pickles that have no `inner` yet
            raise AttributeError(name)
        return getattr(self.inner, name)

    def plan(self, now_s: float, view: View) -> Plan:
        try:
            return self.inner.plan(now_s, view)
        except Exception as error:  # the border to the user's own code, which may raise anything
            where = _described(error, type(self.inner).__module__)
            raise PolicyError(self.name, f"at {now_s:.3f} s it raised {where}.") from error

    def check(
        self, now_s: float, plan: object, view: View, running: Mapping[str, Job], waiting: Mapping[str, Job]
    ) -> None:
        """Raises PolicyError for the first rule that `plan` breaks. The jobs are as they were before it."""
        problem = next(_misshapen(plan), None)
        if problem is None:
            assert isinstance(plan, Plan), "_misshapen"
            problem = next(_broken(plan, now_s, view, running, waiting), None)
        if problem is not None:
            raise PolicyError(self.name, f"at {now_s:.3f} s it {problem}. See docs/writing-a-policy.md.")


def make_checked(make: Callable[[], Policy], module: str, name: str) -> Checked:
    """What `make` makes of a class of the user's `module`. Raises PolicyError for what breaks in there."""
    try:
        return Checked(make(), name)
    except SpecError as error:
        cause = error.__cause__
        if isinstance(cause, AttributeError) and _own_frames(cause, module):  # the module was not read to its end
            raise PolicyError(name, f"its module raised {_described(cause, module)}.") from cause
        raise
    except Exception as error:  # the border to the user's own code, which may raise anything
        raise PolicyError(name, f"can't be loaded: {_described(error, module)}.") from error


def _described(error: Exception, module: str) -> str:
    """Type and text of an error, and where the user's own code was."""
    text = (error.msg if isinstance(error, SyntaxError) else str(error)).rstrip(".")
    kind = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{kind} ({error.filename}, line {error.lineno})"
    every = [(frame.f_code.co_filename, line) for frame, line in walk_tb(error.__traceback__)]
    path, line = (_own_frames(error, module) or every)[-1]
    return f"{kind} ({path}, line {line})"


def _own_frames(error: Exception, module: str) -> list[tuple[str, int]]:
    """File and line of the frames in the user's package, or in files beside it; the innermost one last."""
    top = module.partition(".")[0]
    frames = [
        (frame.f_globals.get("__name__", "").partition(".")[0] == top, frame.f_code.co_filename, line)
        for frame, line in walk_tb(error.__traceback__)
    ]
    homes = {PurePath(path).parent for own, path, _ in frames if own}
    return [(path, line) for own, path, line in frames if own or PurePath(path).parent in homes]


def _misshapen(plan: object) -> Iterator[str]:
    if not isinstance(plan, Plan):
        yield f"returned {'None' if plan is None else f'a {type(plan).__name__}'}: return a Plan"
        return
    for field in ("tokens", "admit"):
        counts: Any = getattr(plan, field)
        if not isinstance(counts, dict):
            yield f"made a Plan whose {field} is a {type(counts).__name__}: give a dict from job ids to tokens"
            return
        for job_id, count in cast("dict[Any, object]", counts).items():
            if not isinstance(count, Integral):
                yield f"gave {count!r} in Plan.{field} for {job_id!r}: give a whole number of tokens"
    for field in ("evict", "decline"):
        given: Any = getattr(plan, field)
        if not isinstance(given, tuple | list):
            yield f"made a Plan whose {field} is a {type(given).__name__}: give a tuple of job ids"
            return
    for field in ("tokens", "admit", "evict", "decline"):
        names: list[Any] = list(getattr(plan, field))
        for name in names:
            if not isinstance(name, str):
                yield f"named a {type(name).__name__} in Plan.{field}: name jobs by their id"
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            yield f"named {twice} twice in Plan.{field}"
    held_s: object = plan.holds_until_s
    if not isinstance(held_s, Real):
        yield "made a Plan whose holds_until_s is no number: give seconds, or leave it out"


def _broken(
    plan: Plan, now_s: float, view: View, running: Mapping[str, Job], waiting: Mapping[str, Job]
) -> Iterator[str]:
    """The rules in the order in which a plan is followed, the memory that it needs, and what it leaves."""
    limits = view.limits
    gone = {name: running[name] for name in plan.evict if name in running}
    stay = {name: job for name, job in running.items() if name not in gone}
    queue = {**gone, **waiting}  # a job may be admitted again in the plan that evicts it

    for name in plan.evict:
        if name not in running:
            yield f"evicted {name}, which {'waits' if name in waiting else NOBODY}: evict running jobs only"
    for name, cached in plan.admit.items():
        if name not in queue:
            yield f"admitted {name}, which {'runs already' if name in stay else NOBODY}: admit waiting jobs only"
        elif name not in plan.tokens:
            yield f"admitted {name} without any token: give it some in Plan.tokens"
        elif not 0 <= cached < queue[name].known_tokens:
            known = _tokens(queue[name].known_tokens)
            yield f"admitted {name}, of {known}, with {cached} found in the cache: use view.kv.cached_tokens"
    if plan.admit and len(stay) + len(plan.admit) > limits.max_num_seqs:
        beyond = list(plan.admit)[limits.max_num_seqs - len(stay)]
        yield f"admitted {beyond} beyond the {limits.max_num_seqs} seats of view.limits.max_num_seqs"
    for name in plan.decline:
        if name not in waiting or name in plan.admit:
            state = "it admits too" if name in plan.admit else "runs" if name in running else NOBODY
            yield f"declined {name}, which {state}: decline waiting jobs only"
        elif waiting[name].hops_left <= 0:
            yield f"declined {name}, which no other replica can serve: decline only with hops_left"

    yield from _wrong_tokens(plan, view, stay, queue)
    yield from _wrong_memory(plan, view.kv, stay, gone, waiting)

    left = [*stay, *gone, *(name for name in waiting if name not in plan.decline)]
    if left and not plan.tokens:
        state = "runs" if left[0] in stay else "waits"
        yield f"planned no token although {left[0]} {state}: each step must compute something while there is work"
    if plan.holds_until_s > now_s and (
        plan.admit or plan.tokens != dict.fromkeys(running, 1) or not all(job.decoding for job in running.values())
    ):
        yield "held a plan that does not decode each running job and nothing else: leave holds_until_s out"


def _wrong_tokens(plan: Plan, view: View, stay: Mapping[str, Job], queue: Mapping[str, Job]) -> Iterator[str]:
    limits, total = view.limits, 0
    drafts = view.speculation.max_draft_tokens if view.speculation else 0
    for name, tokens in plan.tokens.items():
        planned = f"planned {_tokens(tokens)} of {name}"
        job = queue.get(name) if name in plan.admit else stay.get(name)
        if job is None:
            why = "waits: admit it first (view.kv.admit and Plan.admit)" if name in queue else NOBODY
            yield f"{planned}, which {why}"
            continue
        if tokens <= 0:
            yield f"{planned}: leave out what gets none"
        left = job.known_tokens - plan.admit.get(name, job.computed_tokens)
        decoding = job.generated_tokens > 0 and left == 1
        if tokens > left + (drafts if decoding else 0):
            yield f"{planned}, which has {left} left to compute" + (f" and {drafts} to draft" if decoding else "")
        if tokens < left and not limits.enable_chunked_prefill:
            yield f"{planned}, which has {left} left to compute, and this engine takes no prompt in chunks"
        total += tokens
        if total > limits.max_num_batched_tokens:
            most = limits.max_num_batched_tokens
            yield f"{planned}, which makes {total} in one step: view.limits.max_num_batched_tokens is {most}"


def _wrong_memory(
    plan: Plan, kv: Kv, stay: Mapping[str, Job], gone: Mapping[str, Job], waiting: Mapping[str, Job]
) -> Iterator[str]:
    """Who runs holds KV room for what was computed and what is planned; nobody else holds any."""
    for name, job in stay.items():
        held = _held(kv, job)
        if not held:
            yield f"released the KV room of {name}, which goes on running: name it in Plan.evict"
        elif held * kv.block_tokens < job.computed_tokens + plan.tokens.get(name, 0):
            planned = f"planned {_tokens(plan.tokens[name])} of {name}"
            yield f"{planned}, for which no KV room was taken: call view.kv.grow first"
    for name, job in (*gone.items(), *waiting.items()):
        held = _held(kv, job)
        if name in plan.admit:
            if held * kv.block_tokens < plan.admit[name] + plan.tokens[name]:
                planned = f"planned {_tokens(plan.tokens[name])} of {name}"
                yield f"{planned}, for which no KV room was taken: call view.kv.admit first"
        elif held and name in gone:
            yield f"evicted {name}, which keeps its KV room: call view.kv.release first"
        elif held:
            yield f"took KV room for {name}, which stays in the queue: name it in Plan.admit"


def _held(kv: Kv, job: Job) -> int:
    try:
        return kv.held_blocks(job)
    except KeyError:
        return 0


def _tokens(count: int) -> str:
    return f"{count} token{'' if count == 1 else 's'}"
