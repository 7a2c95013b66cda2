"""Capacity beside the baselines, over replicas, without single features, and with wrong predictions.

    python benchmarks/capacity_study.py main         six scenarios x all policies, two models, one GPU, and the bound
    python benchmarks/capacity_study.py replicas     4 replicas x routers, beside one replica
    python benchmarks/capacity_study.py ablations    features on and off
    python benchmarks/capacity_study.py sensitivity  batch times believed wrong, lengths guessed otherwise

Writes STUDY.md, STUDY.json and STUDY*.png into --out. Every rate tried is on record in capacity.jsonl there, which the
studies share: the same command goes on where it was stopped, and asks nothing twice. `--again P` forgets what is on
record of policy P, after it has changed; after any other change (batch times, scenarios), take another --out.

Capacity is as `sloguard capacity` has it: the largest rate a GPU at which 90 % of the requests keep every promise and
no backlog builds up. The bound is `sim/oracle.py`'s, what a policy that knows all could serve, on one longer run: in a
short one much of the work may come after the last arrival, which loosens it (OPT-6.7B, chatbot: 11.1 requests/s by 500
requests, 6.3 by 1,500, 5.8 by 4,000; the capacity of `sloguard` falls by 4 % and 8 %).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path

from capacity_rows import (
    MODELS,
    ablation_specs,
    bound_name,
    bounded_specs,
    main_specs,
    replica_specs,
    sensitivity_specs,
)
from capacity_tables import RESULTS

from sloguard.contract import allowed_misses
from sloguard.errors import LogError, SpecError
from sloguard.report.files import write_text_atomic
from sloguard.sim.capacity import TARGET, TOLERANCE, Bracket, search
from sloguard.sim.oracle import upper_bound
from sloguard.study.capacity import Capacity, Probe, Question, find_capacities, to_json
from sloguard.study.jsonl import JsonLog
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import check, first_guess, machine_of, requests_of

STUDIES = {
    "main": lambda: [spec for model in MODELS for spec in main_specs(model)],
    "replicas": replica_specs,
    "ablations": ablation_specs,
    "sensitivity": sensitivity_specs,
}

BOUND_REQUESTS = 1500


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--out", type=Path, default=Path("capacity-studies"), help="directory of record and results")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, help="of a run and engine; by scenario if absent, 500 at least")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="relative width of the bracket")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--again", metavar="P[,P]", default="", help="policies to forget first")
    options = parser.parse_args()
    question = Question(TARGET, options.seeds, options.tolerance)
    try:
        run(options.study, options.out, question, options.requests, options.jobs, options.again)
    except (SpecError, LogError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on ({options.out})", file=sys.stderr)
        return 130
    return 0


def run(study: str, out: Path, question: Question, requests: int | None, jobs: int, again: str) -> None:
    specs = [sized(spec, requests) for spec in {spec.name: spec for spec in STUDIES[study]()}.values()]
    for spec in specs:
        check(spec)
    log = JsonLog(out / "capacity.jsonl")
    with log.writer():
        known, bounds = recorded(log, question, requests, [name for name in again.split(",") if name])
        found = searched(log, specs, question, jobs, known)
        if study == "main":
            add_bounds(
                log, bounds, [sized(spec, requests or BOUND_REQUESTS) for spec in bounded_specs()], question, jobs
            )
    rows = {capacity.spec.name: to_json(capacity, question) for capacity in found}
    write_text_atomic(
        out / f"{study}.json", json.dumps({"rows": list(rows.values()), "bounds": bounds}, indent=1) + "\n"
    )
    seeds = "1 seed" if question.seeds == 1 else f"{question.seeds} seeds"
    how = f"{seeds}, brackets of {question.tolerance:.0%}, requests/s a GPU"
    text, figures = RESULTS[study](rows, bounds)
    write_text_atomic(out / f"{study}.md", f"{text}\n{how}; step times: {'; '.join(sources(specs))}.\n")
    for name, picture in figures.items():
        (out / f"{name}.png").write_bytes(picture)
    print((out / f"{study}.md").read_text())


def sources(specs: Iterable[SimSpec]) -> list[str]:
    """Where the step times come from."""
    return list(dict.fromkeys(f"{spec.model}: {machine_of(spec).source}" for spec in specs))


def sized(spec: SimSpec, requests: int | None) -> SimSpec:
    return replace(spec, num_requests=requests * spec.engines) if requests else spec


def recorded(
    log: JsonLog, question: Question, requests: int | None, again: Sequence[str]
) -> tuple[dict[tuple[str, float], Probe], dict[str, list[float]]]:
    """Rates that were tried, and bounds, less those to forget. Raises LogError where another question was asked."""
    asked = {"seeds": question.seeds, "tolerance": question.tolerance, "target": question.target, "requests": requests}
    if not log.exists():
        log.clear()
        log.append_header({"asked": asked})
    if log.header().get("asked") != asked:
        raise LogError(f"{log.path}: was asked {log.header().get('asked')}, not {asked}. Choose another --out.")
    for policy in again:
        log.append("forget", {"policy": policy})
    probes: dict[tuple[str, float], Probe] = {}
    bounds: dict[str, list[float]] = {}
    for record in log.records():
        if record["kind"] == "forget":
            probes = {key: probe for key, probe in probes.items() if policy_of(key[0]) != record["policy"]}
        elif record["kind"] == "bound":
            bounds[record["of"]] = record["bracket"]
        else:
            probe = Probe.from_json(record)
            probes[probe.row, probe.rate_per_gpu] = probe
    return probes, bounds


def policy_of(row: str) -> str:
    """Of the name of a row: `coder slos-serve:fixed_batch=512, model=... round-robin`."""
    return row.split()[1].rstrip(",").split(":")[0]


def searched(
    log: JsonLog, specs: Sequence[SimSpec], question: Question, jobs: int, known: Mapping[tuple[str, float], Probe]
) -> list[Capacity]:
    began_s, done = time.monotonic(), 0

    def tell(capacity: Capacity) -> None:
        nonlocal done
        done += 1
        passed_s = time.monotonic() - began_s
        rate = f"{capacity.per_gpu:8.3f} req/s a GPU after {len(capacity.probes):2} rates"
        print(f"{done:4}/{len(specs)} {passed_s:6.0f} s {rate}  {capacity.spec.name}", file=sys.stderr, flush=True)

    def write_down(probe: Probe) -> None:
        log.append("probe", asdict(probe))

    return find_capacities(specs, question, jobs=jobs, known=known, on_probe=write_down, on_row=tell)


def add_bounds(
    log: JsonLog, bounds: dict[str, list[float]], specs: Sequence[SimSpec], question: Question, jobs: int
) -> None:
    """Adds what is not on record, by `bound_name`."""
    missing = [spec for spec in specs if bound_name(spec.model, spec.workload) not in bounds]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as executor:
        asked = {executor.submit(bound, spec, question): spec for spec in missing}
        for future in as_completed(asked):
            found, name = future.result(), bound_name(asked[future].model, asked[future].workload)
            bounds[name] = [found.low, found.high]
            log.append("bound", {"of": name, "bracket": bounds[name]})
            print(f"bound {found.high:8.3f} req/s a GPU  {name}", file=sys.stderr, flush=True)


def bound(spec: SimSpec, question: Question) -> Bracket:
    """The rates between which the most of the requests that can attain falls below the target."""
    machine = machine_of(spec)
    kv_tokens, seats = machine.kv_blocks * machine.settings.block_size, machine.settings.max_num_seqs

    def possible(rate: float) -> bool:
        """Whether the target can be met."""
        requests = requests_of(spec, rate, 0).requests
        most = upper_bound(requests, machine.time, kv_tokens=kv_tokens, max_num_seqs=seats)
        return len(requests) - most <= allowed_misses(len(requests), question.target)

    asking = search(first_guess(spec), tolerance=question.tolerance)
    rate = next(asking)
    while True:
        try:
            rate = asking.send(possible(rate))
        except StopIteration as ended:
            return ended.value


if __name__ == "__main__":
    sys.exit(main())
