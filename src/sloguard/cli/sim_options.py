"""The flags that `simulate` and `capacity` share: what is served, by what, and how the two are modelled."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from sloguard import __version__
from sloguard.cli.options import read_slo
from sloguard.errors import SpecError
from sloguard.report.files import write_text_atomic
from sloguard.slo import TpotRule
from sloguard.study.choice import read_choices
from sloguard.study.sim_spec import DISTSERVE, Drafting, Pools, SimSpec
from sloguard.workload.scenarios import SCENARIOS

T = TypeVar("T")
STDOUT = Path("-")
MAX_DRAFT_TOKENS = 10  # the longest draft that SLOs-Serve looks at

Jobs = Annotated[int | None, typer.Option(min=1, help="Processes; one a core of the machine, or cluster, if absent.")]
RayAddress = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="Compute on this Ray cluster: HOST:PORT, or auto.")
]
Report = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of it, as sloguard report.")]


@dataclass(frozen=True, kw_only=True)
class SimOptions:
    policy: Annotated[
        str, typer.Option(metavar="P[,P...]", help="NAME, NAME:key=value or your own package.module:Class; several.")
    ]
    model: Annotated[str, typer.Option(help="A Hugging Face name, or a directory with a config.json.")]
    gpu: Annotated[str, typer.Option(help="E.g. A100-40GB, H100.")]
    scenario: Annotated[
        str | None, typer.Option(metavar="S[,S...]", help=f"{', '.join(SCENARIOS)}; all: those without -s.")
    ] = None
    trace: Annotated[
        Path | None, typer.Option(help="A recorded workload: .csv or .jsonl, or those gzipped.", metavar="FILE")
    ] = None
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=MS", help="Promise every request this, not what a scenario does: ttft, tpot, e2el."
        ),
    ] = None
    replicas: Annotated[int, typer.Option(help="Engines behind the router.")] = 1
    router: Annotated[str, typer.Option(metavar="R[,R...]", help="Who gets a request; several.")] = "round-robin"
    tensor_parallel: Annotated[int, typer.Option(help="GPUs of each engine.")] = 1
    pools: Annotated[
        str, typer.Option(metavar="P:D[,P:D...]", help="Prefill and decode engines of the policy distserve; several.")
    ] = "1:1"
    link_gb_s: Annotated[float, typer.Option(help="Bandwidth between the pools, each way.")] = 300.0
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each row, with seeds 0, 1, ...")] = 1
    num_requests: Annotated[int | None, typer.Option(help="In each run; by rate and replicas if absent.")] = None
    best_effort_share: Annotated[float, typer.Option(help="Share of the requests that is promised nothing.")] = 0.0
    tpot_rule: Annotated[TpotRule, typer.Option(help="How a token pace is judged.")] = TpotRule.DEADLINE
    max_num_batched_tokens: Annotated[int, typer.Option(help="Most tokens of a step.")] = 8192
    max_num_seqs: Annotated[int | None, typer.Option(help="Most sequences of a step; vLLM's own if absent.")] = None
    max_model_len: Annotated[
        int | None, typer.Option(help="Longest request, tokens; the model's if absent, at most 8192.")
    ] = None
    lengths: Annotated[str, typer.Option(help="How policies guess answers' lengths: quantile | oracle | mean.")] = (
        "quantile"
    )
    speculation: Annotated[
        str | None,
        typer.Option(metavar="A[:MAX[:MS]]", help="A drafting model: acceptance, longest draft (at most 10), its ms."),
    ] = None
    stale_ms: Annotated[float, typer.Option(help="How old the router's picture of the replicas may be.")] = 0.0
    async_lag: Annotated[bool, typer.Option(help="Plan a step while the one before runs, as vLLM can.")] = False
    charge_planner: Annotated[bool, typer.Option(help="Add the time a policy takes here to its steps.")] = False
    noise: Annotated[float, typer.Option(help="Spread of step times, e.g. 0.02.")] = 0.0
    batch_time_scale: Annotated[float, typer.Option(help="What policies believe of step times is wrong by this.")] = 1.0
    learn_batch_time: Annotated[bool, typer.Option(help="Whether policies learn from the steps they see.")] = True

    def rows(self) -> list[SimSpec]:
        """One for each workload, policy and router. Raises SpecError, naming the flag."""
        if (here := os.getcwd()) not in sys.path:
            sys.path.insert(0, here)  # so that one's own classes are found where the command is given
        base = SimSpec(
            policy=read_choices(self.policy, "--policy")[0],
            router=read_choices(self.router, "--router")[0],
            model=self.model,
            gpu=self.gpu,
            trace=str(self.trace) if self.trace else None,
            slo=read_slo("--slo", ",".join(self.slo)) if self.slo else None,
            num_requests=self.num_requests,
            best_effort_share=self.best_effort_share,
            tpot_rule=self.tpot_rule,
            tensor_parallel=self.tensor_parallel,
            replicas=self.replicas,
            link_bytes_s=self.link_gb_s * 1e9,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            max_model_len=self.max_model_len,
            lengths=self.lengths,
            speculation=_drafting(self.speculation),
            stale_s=self.stale_ms / 1000,
            async_lag=self.async_lag,
            charge_planner=self.charge_planner,
            noise=self.noise,
            batch_time_scale=self.batch_time_scale,
            learn_batch_time=self.learn_batch_time,
        )
        pools = [_pools(text.strip()) for text in self.pools.split(",")]
        if len(set(pools)) < len(pools):
            raise SpecError("--pools", self.pools, "one is given twice", "Give each once.")
        routers = read_choices(self.router, "--router")
        self._check_use()
        ways = [
            way
            for policy in read_choices(self.policy, "--policy")
            for way in (
                [(policy, routers[0], pool) for pool in pools]
                if policy.name == DISTSERVE
                else [(policy, router, None) for router in routers]
            )
        ]
        return [base.for_row(scenario, *way) for scenario in self._scenarios() for way in ways]

    def _check_use(self) -> None:
        """Raises SpecError for a flag that is set and touches no row."""
        policies = {policy.name for policy in read_choices(self.policy, "--policy")}
        pooled, replicated = DISTSERVE in policies, policies != {DISTSERVE}
        unpooled = ("no policy here has pools", "Drop it, or add the policy distserve.")
        unreplicated = ("distserve has pools, not replicas", "Drop it, or add another policy.")
        unrouted = ("one engine needs no router", "Drop it, or add --replicas 2.") if replicated else unreplicated
        for flag, value, is_used, why in (
            ("--pools", self.pools, pooled, unpooled),
            ("--link-gb-s", self.link_gb_s, pooled, unpooled),
            ("--replicas", self.replicas, replicated, unreplicated),
            ("--router", self.router, replicated and self.replicas != 1, unrouted),
            ("--stale-ms", self.stale_ms, replicated and self.replicas != 1, unrouted),
        ):
            if not is_used and value != getattr(type(self), flag.removeprefix("--").replace("-", "_")):
                raise SpecError(flag, value, *why)

    def _scenarios(self) -> Sequence[str | None]:
        if self.scenario is None:
            return [None]
        base = [name for name in SCENARIOS if f"{name}-s" in SCENARIOS]
        names = base if self.scenario == "all" else [name.strip() for name in self.scenario.split(",")]
        if "all" in names:
            raise SpecError("--scenario", self.scenario, "'all' stands alone", "Give it alone, or name scenarios.")
        for name in names:
            if name not in SCENARIOS:
                fix = f"Choose of {', '.join(SCENARIOS)}, or give a --trace FILE."
                raise SpecError("--scenario", name, "no such scenario", fix)
        if len(set(names)) < len(names) or (self.trace and len(names) > 1):
            problem = "one trace takes the promises of one scenario" if self.trace else "one is named twice"
            raise SpecError("--scenario", self.scenario, problem, "Name each once, and one with a --trace.")
        return names


def _pools(text: str) -> Pools:
    prefill, _, decode = text.partition(":")
    if not (prefill.isdecimal() and decode.isdecimal() and int(prefill) and int(decode)):
        raise SpecError("--pools", text, "is not P:D", "Write e.g. 1:1 or 2:1: engines that prefill, that decode.")
    return Pools(int(prefill), int(decode))


def _drafting(text: str | None) -> Drafting | None:
    if text is None:
        return None
    acceptance, most, step_ms, *more = [*text.split(":"), "", ""][: max(3, text.count(":") + 1)]
    try:
        drafting = Drafting(
            float(acceptance), int(most or MAX_DRAFT_TOKENS), float(step_ms) / 1000 if step_ms else None
        )
    except ValueError:
        more = [text]
        drafting = Drafting(0.0, 0, None)
    in_range = 0 <= drafting.acceptance <= 1 and 1 <= drafting.max_draft_tokens <= MAX_DRAFT_TOKENS
    if more or not in_range or not (drafting.step_s or 0) >= 0:
        fix = f"Write ACCEPTANCE[:MAX[:MS]], e.g. 0.7 or 0.7:5 or 0.7:5:2.8; MAX is at most {MAX_DRAFT_TOKENS}."
        raise SpecError("--speculation", text, "is no drafting model", fix)
    return drafting


def save_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """As JSON that says by itself that nothing in it was measured."""
    data = {"simulated": True, "version": __version__, "rows": rows}
    text = json.dumps(data, allow_nan=False, indent=1)
    if path == STDOUT:
        typer.echo(text)
    else:
        write_text_atomic(path, text + "\n")


def with_options(options: type[T]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Makes the fields of a dataclass flags of a command, which gets the object as its first argument."""

    def decorate(command: Callable[..., int]) -> Callable[..., int]:
        hints = get_type_hints(options, include_extras=True)
        fields = [p.replace(annotation=hints[p.name]) for p in inspect.signature(options).parameters.values()]
        own_hints = get_type_hints(command, include_extras=True)
        own = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=own_hints[p.name])
            for p in list(inspect.signature(command).parameters.values())[1:]
        ]

        def run(**values: Any) -> int:
            chosen = options(**{p.name: values.pop(p.name) for p in fields if p.name in values})
            return command(chosen, **values)

        parameters = [*fields, *own]
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess] - typer reads it
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        run.__doc__, run.__name__ = command.__doc__, command.__name__
        return run

    return decorate
