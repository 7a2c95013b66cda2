"""Does the simulator say what the real engine does? The runs of a serve_pairs.py record, again in virtual time.

    python benchmarks/serve_fidelity.py serve-pairs --profile PROFILE.json

Same arrivals, lengths, promises, policy, KV size and limits, and as in vLLM the policy plans with a little less than
was promised; step times are those of the profile, which `sloguard profile --out` saved. Judged as the runs were: from
when a request was due, TPOT as the mean.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from serve_arms import COMMON, PLUGIN_BUDGET, mixed_requests

from sloguard.contract import judge_request
from sloguard.engine.profiles import Profile, read_profile
from sloguard.perf.online import OnlineTime
from sloguard.plugins.ledger import PLANNED_SHARE
from sloguard.registry import load
from sloguard.request import Timeline
from sloguard.sched.fcfs import Fcfs
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import AtMost, Quantile
from sloguard.sched.policy import POLICIES, Limits, Policy
from sloguard.sim.replica import Replica
from sloguard.sim.serve import simulate
from sloguard.slo import Judgement, TpotRule
from sloguard.study.jsonl import JsonLog

BLOCK_TOKENS = 128  # of vLLM's CPU build
KV_TOKENS = 32768  # of demo-slo in COMMON's memory


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="directory of serve_pairs.py")
    parser.add_argument("--profile", type=Path, required=True)
    parser.add_argument("--kv-tokens", type=int, default=KV_TOKENS)
    options = parser.parse_args()
    profile = read_profile(options.profile)
    log = JsonLog(options.record / "runs.jsonl")
    settings = log.header()["settings"]
    runs: dict[tuple[str, float], list[tuple[dict[str, Any], list[Timeline]]]] = defaultdict(list)
    for run in log.records():
        if run["kind"] == "run" and run["phase"] == "pair" and not run["arm"].startswith("priority"):
            simulated = again(run, settings, profile, options.kv_tokens)
            runs[run["arm"].partition(" ")[0], run["rate"]].append((run, simulated))
    columns = ("attainment", "TTFT p50", "TPOT p50")
    print(f"| engine | req/s | runs | {' | '.join(f'{name}, real | simulated' for name in columns)} |")
    print("|---|---|---|---|---|---|---|---|---|")
    for (arm, rate), pairs in sorted(runs.items()):
        real = [row for run, _ in pairs for row in run["requests"]]
        again_ = [timeline for _, timelines in pairs for timeline in timelines]
        cells = [arm, f"{rate:g}", str(len(pairs)), *figures(real, again_)]
        print(f"| {' | '.join(cells)} |")
    return 0


def figures(real: Sequence[dict[str, Any]], simulated: Sequence[Timeline]) -> list[str]:
    promised = [row["met"]["mean"] for row in real if row["promised"]]
    kept = [judge_request(t, TpotRule.MEAN) is Judgement.MET for t in simulated if t.request.slo_class != "best-effort"]
    cells = [f"{sum(promised) / len(promised):.1%}", f"{sum(kept) / len(kept):.1%}"]
    for name in ("ttft_s", "tpot_s"):
        both = [row[name] for row in real], [getattr(t, name) for t in simulated]
        cells += [f"{1000 * median(v for v in values if v is not None):.0f} ms" for values in both]
    return cells


def again(run: dict[str, Any], settings: dict[str, Any], profile: Profile, kv_tokens: int) -> list[Timeline]:
    kind, _, rest = run["arm"].partition(" ")
    budget = int(rest) if kind == "stock" else PLUGIN_BUDGET
    policy: Policy = Fcfs() if kind == "stock" else load(POLICIES, rest.split()[0], "policy", "plan")()
    limits = Limits(int(COMMON["max_num_seqs"]), budget, int(COMMON["max_model_len"]))
    time = profile.fitted.batch_time
    drawn = run["rate"], settings["seconds"], run["seed"]
    asked = mixed_requests(*drawn, settings["promises"])
    planned = mixed_requests(*drawn, PLANNED_SHARE * settings["promises"])
    timelines = simulate(
        planned,
        lambda kernel, on_tokens, on_decline: Replica(
            kernel,
            policy,
            limits,
            KvCache(kv_tokens // BLOCK_TOKENS, BLOCK_TOKENS, prefix_caching=False),
            time,
            on_tokens,
            on_decline,
            predicted=OnlineTime(time),
            lengths=AtMost(Quantile()),
            pace_from_first=True,
        ),
    )
    return [replace(timeline, request=request) for timeline, request in zip(timelines, asked, strict=True)]


if __name__ == "__main__":
    sys.exit(main())
