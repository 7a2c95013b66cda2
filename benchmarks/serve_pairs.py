"""sloguard's scheduler inside vLLM beside vLLM's own: how many requests keep their promises, at which rate?

    python benchmarks/serve_pairs.py [--quick] [--model models/demo-slo] [--rates 1,1.5,...] [--policies sloguard]

Real vLLM servers, an open loop of Poisson arrivals, three classes of requests (`CLASSES` of serve_arms.py). Arms:

    plugin POLICY     vLLM with sloguard's scheduler class
    stock BUDGET      vLLM's own scheduler with that many tokens a step: few pace decodes, many prefill fast
    priority BUDGET   the same with --scheduling-policy priority, each request's deadline its priority

First each rate is offered to every stock budget (`--screens` runs); the one that kept most promises there is the best
stock arm of that rate. A budget that was far behind at a lower rate is not tried further. Then come the pairs: the
plugin, the best stock arm and the same budget by priority get the same arrivals one after the other, in turns A B C,
C B A. Only these count, so luck in the screening favours nobody.

A run ends `DRAIN_S` after its last arrival was due; what is unfinished then has missed, and its wait is shown as
endless. Every run is a line of runs.jsonl in --out: the same command goes on where it was stopped. The plugin logs its
steps beside it, for `sloguard profile --step-log`. Then serve.md and serve.png are written; `--tables` does only that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_arms import (
    CLASSES,
    OUTPUT_TOKENS,
    PLUGIN_BUDGET,
    REPO,
    STOCK_BUDGETS,
    Arm,
    Servers,
    mixed_requests,
    plugin,
    priority,
    scaled,
    serving,
    stock,
    why,
)
from serve_stats import Runs, best_budgets
from serve_tables import figure, tables

from sloguard.contract import judge_request
from sloguard.engine.vllm_server import Died
from sloguard.errors import LogError, SpecError
from sloguard.metrics import summarise
from sloguard.report.files import write_text_atomic
from sloguard.request import Timeline
from sloguard.slo import Judgement, TpotRule
from sloguard.study.jsonl import JsonLog

DRAIN_S = 30.0  # the longest promise (4 s, then 63 tokens of 120 ms) ends well within; best effort may take longer
SCREEN_SEED = 1000  # of the first screening run; pairs count from 0
FAR_BEHIND = 0.5  # of the requests with a promise: a budget that loses by so much is screened no further
COUNTED = ("sloguard_planner_seconds_bucket", "sloguard_steps_total", "vllm:num_preemptions_total")


@dataclass(frozen=True, slots=True)
class Ask:
    """One run to make."""

    phase: str  # "screen" | "pair"
    rate: float
    seed: int
    arm: Arm

    @property
    def key(self) -> tuple[str, float, int, str]:
        return self.phase, self.rate, self.seed, self.arm.name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-slo"))
    parser.add_argument("--compiled", action="store_true", help="without --enforce-eager")
    parser.add_argument("--profile", type=Path, help="what `sloguard profile --out` saved of this engine")
    parser.add_argument("--policies", default="sloguard", help="of the plugin; the first is compared with the others")
    parser.add_argument("--budgets", default=",".join(map(str, STOCK_BUDGETS)), help="tokens a step of the stock arms")
    parser.add_argument("--rates", default="0.75,1.25,2,2.75,3.5,4.5", help="requests/s")
    parser.add_argument("--pairs", type=int, default=5, help="at each rate")
    parser.add_argument("--screens", type=int, default=1, help="runs of each budget at each rate before")
    parser.add_argument("--seconds", type=float, default=20.0, help="of arrivals, of each run")
    parser.add_argument("--promises", type=float, default=1.0, help="factor of all limits: a slow machine needs more")
    parser.add_argument("--tpot-rule", type=TpotRule, default=TpotRule.MEAN, choices=TpotRule)
    parser.add_argument("--out", type=Path, default=Path("serve-pairs"), help="directory of record and results")
    parser.add_argument("--quick", action="store_true", help="one pair of 15 s at two rates: does it work?")
    parser.add_argument("--tables", action="store_true", help="of what is on record, without running anything")
    options = parser.parse_args()
    if options.quick:
        options.rates, options.pairs, options.screens, options.seconds = "1,2", 1, 1, 15.0
    log = JsonLog(options.out / "runs.jsonl")
    try:
        if not options.tables:
            measure(log, options)
        report(log, options.out, options.tpot_rule)
    except (SpecError, LogError) as error:
        print(error, file=sys.stderr)
        return 2
    except Died as error:
        print(f"{why(error)}\nlogs: {options.out / 'logs'}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on ({options.out})", file=sys.stderr)
        return 130
    return 0


def measure(log: JsonLog, options: argparse.Namespace) -> None:
    """Makes the runs that are not on record."""
    rates = sorted(map(float, options.rates.split(",")))
    policies = options.policies.split(",")
    stocks = {budget: stock(budget) for budget in map(int, options.budgets.split(","))}
    with log.writer(), serving(options.vllm_python, options.model, options.out / "logs", options.compiled) as servers:
        begin(log, settings(options, servers))
        runs = Runs([record for record in log.records() if record["kind"] == "run"])

        def run(asks: Iterable[Ask]) -> None:
            missing = [ask for ask in asks if ask.key not in runs]
            servers.start(list({ask.arm.name: ask.arm for ask in missing}.values()))
            for ask in missing:
                record = one_run(servers, ask, options.seconds, options.promises)
                log.append("run", record)
                runs.add(record)
                say(record, options.tpot_rule)

        screen(run, runs, rates, stocks, options)
        best = best_budgets(runs, rates, options.tpot_rule)
        pairs: list[Ask] = []
        for turn in range(options.pairs):
            for rate in rates:
                arms = [
                    *(
                        plugin(policy, profile=options.profile, step_log=options.out / f"steps-{policy}.jsonl")
                        for policy in policies
                    ),
                    stocks[best[rate]],
                    priority(best[rate]),
                ]
                pairs += [Ask("pair", rate, turn, arm) for arm in (arms if turn % 2 == 0 else reversed(arms))]
        run(pairs)


def screen(
    run: Callable[[Iterable[Ask]], None],
    runs: Runs,
    rates: Sequence[float],
    stocks: dict[int, Arm],
    options: argparse.Namespace,
) -> None:
    """From the lowest rate up, with the budgets that may still be the best."""
    left = dict(stocks)
    for rate in rates:
        seeds = range(SCREEN_SEED, SCREEN_SEED + options.screens)
        run(Ask("screen", rate, seed, arm) for seed in seeds for arm in left.values())
        kept = {budget: runs.attainment("screen", rate, arm.name, options.tpot_rule) for budget, arm in left.items()}
        left = {budget: arm for budget, arm in left.items() if kept[budget] > max(kept.values()) - FAR_BEHIND}


def settings(options: argparse.Namespace, servers: Servers) -> dict[str, Any]:
    """What must be the same in all runs of one record."""
    return {
        "model": Path(options.model).name,
        "vllm": servers.install.version,
        "seconds": options.seconds,
        "drain_s": DRAIN_S,
        "promises": options.promises,
        "plugin_budget": PLUGIN_BUDGET,
        "budgets": options.budgets,
        "screens": options.screens,
        "flags": dict(servers.flags),
        "profile": options.profile is not None,
        "output_tokens": list(OUTPUT_TOKENS),
        "classes": [
            [kind.name, kind.share, kind.prompt_tokens, slo.ttft_s, slo.tpot_s]
            for kind in CLASSES
            for slo in (scaled(kind.slo, options.promises),)
        ],
    }


def begin(log: JsonLog, asked: dict[str, Any]) -> None:
    """Raises LogError where the record is of something else."""
    if not log.exists():
        log.clear()
        log.append_header({"settings": asked})
    if log.header().get("settings") != asked:
        raise LogError(f"{log.path}: is of other settings ({log.header().get('settings')}). Choose another --out.")


def one_run(servers: Servers, ask: Ask, seconds: float, promises: float) -> dict[str, Any]:
    """Raises Died."""
    requests = mixed_requests(ask.rate, seconds, ask.seed, promises)
    before = servers.samples(ask.arm)
    began_s = time.monotonic()
    offered = servers.offer(ask.arm, requests, ask.seed, ask.arm.extra, seconds + DRAIN_S)
    took_s = time.monotonic() - began_s
    after = servers.samples(ask.arm)
    summary = summarise(offered.timelines)
    return {
        "phase": ask.phase,
        "rate": ask.rate,
        "seed": ask.seed,
        "arm": ask.arm.name,
        "took_s": round(took_s, 1),
        "output_throughput": summary.output_throughput,
        "lag_p99_s": summary.queue_delay_s.p99,
        "client_limited": summary.client_limited,
        "counts": {name: after[name] - before.get(name, 0.0) for name in after if name.startswith(COUNTED)},
        "notes": list(offered.notes),
        "requests": [row(timeline) for timeline in offered.timelines],
    }


def row(timeline: Timeline) -> dict[str, Any]:
    """`e2el_s` None: it did not complete."""
    completed = timeline.end == "completed"
    return {
        "class": timeline.request.slo_class,
        "promised": any(stage.slo.ttft_s or stage.slo.tpot_s for stage in timeline.request.stages),
        "end": timeline.end.value,
        "error": timeline.error,
        "due_s": timeline.due_s,
        "tokens": timeline.output_tokens,
        "ttft_s": timeline.ttft_s,
        "tpot_s": timeline.tpot_s if completed else None,
        "e2el_s": timeline.e2el_s if completed else None,
        "met": {rule.value: judge_request(timeline, rule) is Judgement.MET for rule in TpotRule},
    }


def say(record: dict[str, Any], rule: TpotRule) -> None:
    promised = [row for row in record["requests"] if row["promised"]]
    met = sum(row["met"][rule.value] for row in promised)
    limited = "  CLIENT-LIMITED" if record["client_limited"] else ""
    print(
        f"{record['phase']:6} {record['rate']:5.2f} req/s  seed {record['seed']:4}  {record['arm']:18} "
        f"{met:3} of {len(promised):3} kept, {record['took_s']:5.1f} s{limited}",
        flush=True,
    )


def report(log: JsonLog, out: Path, rule: TpotRule) -> None:
    if not log.exists():
        raise LogError(f"{log.path}: nothing is on record. Run it without --tables first.")
    runs = Runs([record for record in log.records() if record["kind"] == "run"])
    text = tables(runs, log.header()["settings"], rule)
    write_text_atomic(out / "serve.md", text)
    (out / "serve.png").write_bytes(figure(runs, log.header()["settings"], rule))
    print(text)


if __name__ == "__main__":
    sys.exit(main())
