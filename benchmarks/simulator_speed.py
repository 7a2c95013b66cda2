"""How much faster than real time does the simulator run, and where does its time go?

    python benchmarks/simulator_speed.py hour    --trace FILE [--policies vllm,sloguard]
    python benchmarks/simulator_speed.py fleet   --trace FILE [--replicas 100] [--minutes 3]
    python benchmarks/simulator_speed.py profile --trace FILE [--requests 5000]
    python benchmarks/simulator_speed.py peer    --trace FILE --vidur-python PYTHON_WITH_VIDUR [--requests 2000]

`hour` serves a trace on one replica (Llama-3.1-8B on an H100, vLLM's defaults), for each policy, and tells the memory
of the process at each quarter: timelines are handed out as requests end and not kept. `fleet` serves the trace once
for each replica, each copy begun at another point of it, behind a round-robin router. `profile` says which functions
take the time. `peer` serves the same requests with the same step times by Vidur (simulator_speed_vidur.py).

"CPU" is processor time of the process, which other load on the machine disturbs less than it does the clock.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from sloguard.request import Request, Timeline
from sloguard.sched.job import Tier
from sloguard.sched.kv import KvCache
from sloguard.sched.lengths import Quantile
from sloguard.sched.policy import POLICIES
from sloguard.sim.cluster import MakeReplica
from sloguard.sim.kernel import Kernel
from sloguard.sim.replica import OnDecline, OnTokens, Replica
from sloguard.sim.serve import simulate_cluster
from sloguard.study.choice import Choice, read_choices
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import Machine, machine_of, requests_of

HERE = Path(__file__).resolve().parent
MIB = 1 << 20
PROFILED = 15  # functions listed
SAMPLE_S = 0.001


@dataclass(slots=True)
class Served:
    """One run, and what it cost."""

    wall_s: float
    cpu_s: float
    end_s: float
    requests: int
    output_tokens: int
    steps: int
    memory_mib: list[float]

    @property
    def times_real(self) -> float:
        return self.end_s / self.cpu_s


def spec_of(policy: Choice, trace: str, scenario: str) -> SimSpec:
    router = Choice("round-robin", "round-robin")
    return SimSpec(
        policy, router, "meta-llama/Llama-3.1-8B", "H100", scenario=scenario, trace=trace, max_model_len=16384
    )


def replica_of(policy: Choice, machine: Machine) -> MakeReplica:
    def make(kernel: Kernel, on_tokens: OnTokens, on_decline: OnDecline) -> Replica:
        kv = KvCache(machine.kv_blocks, machine.settings.block_size)
        made = policy.make(POLICIES, "--policies", "plan")
        limits = machine.settings.limits(machine.kv_blocks)
        return Replica(kernel, made, limits, kv, machine.time, on_tokens, on_decline, lengths=Quantile())

    return make


def serve(requests: Iterable[Request], make: Sequence[MakeReplica], quarters_s: Sequence[float] = ()) -> Served:
    """Serves them; memory is read when the first request ends after each of `quarters_s`."""
    ahead = list(quarters_s)
    served = Served(0.0, 0.0, 0.0, 0, 0, 0, [])

    def on_done(timeline: Timeline, _: Tier) -> None:
        served.requests += 1
        served.output_tokens += len(timeline.token_s)
        while ahead and timeline.ended_s is not None and timeline.ended_s >= ahead[0]:
            ahead.pop(0)
            served.memory_mib.append(resident_mib())

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    run = simulate_cluster(requests, make, on_done=on_done)
    served.wall_s, served.cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
    served.end_s = run.end_s
    served.steps = sum(replica.stats.steps for replica in run.replicas)
    served.memory_mib += [resident_mib()] * bool(ahead)
    return served


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MIB


def hour(options: argparse.Namespace, console: Console) -> None:
    table = Table(title="One replica", title_justify="left")
    for name in ("policy", "requests", "output tokens", "steps", "virtual s", "CPU s", "wall s", "x real time (CPU)"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    table.add_column("resident MiB before; at each quarter")
    for policy in read_choices(options.policies, "--policies"):
        spec = spec_of(policy, options.trace, options.scenario)
        requests = requests_of(spec, None, 0).requests
        last_s = requests[-1].arrival_s
        before = resident_mib()
        run = serve(requests, [replica_of(policy, machine_of(spec))], [last_s * k / 4 for k in (1, 2, 3, 4)])
        check(run, requests)
        memory = f"{before:.0f}; " + ", ".join(f"{mib:.0f}" for mib in run.memory_mib)
        cells = (run.requests, run.output_tokens, run.steps, round(run.end_s))
        times = (f"{run.cpu_s:.2f}", f"{run.wall_s:.2f}", f"{run.times_real:.0f}")
        table.add_row(policy.text, *map(str, cells), *times, memory)
    console.print(table)


def check(run: Served, requests: Sequence[Request]) -> None:
    """Speed counts only if all was served."""
    wanted = sum(stage.output_tokens for request in requests for stage in request.stages)
    assert (run.requests, run.output_tokens) == (len(requests), wanted), "not every token was served"


def fleet(options: argparse.Namespace, console: Console) -> None:
    (policy,) = read_choices(options.policies, "--policies")
    spec = spec_of(policy, options.trace, options.scenario)
    recorded = requests_of(spec, None, 0).requests
    limit_s = 60.0 * options.minutes
    before = resident_mib()
    load = copies(recorded, options.replicas, limit_s)
    make = [replica_of(policy, machine_of(spec))] * options.replicas
    run = serve(load, make, [limit_s * k / 4 for k in (1, 2, 3, 4)])
    replica_s = run.end_s * options.replicas
    console.print(
        f"{options.replicas} replicas, {policy.text}, {run.requests} requests in {run.end_s:.0f} virtual s: "
        f"{run.cpu_s:.1f} CPU s, {run.wall_s:.1f} wall s; {replica_s / run.cpu_s:.0f} replica seconds a CPU second; "
        f"{run.cpu_s / run.steps * 1e6:.1f} us a step ({run.steps} steps)\n"
        f"an hour of {options.replicas} replicas, in proportion: {run.cpu_s / run.end_s * 60:.1f} CPU minutes\n"
        f"resident MiB: {before:.0f} before, {', '.join(f'{mib:.0f}' for mib in run.memory_mib)} at each quarter"
    )


def copies(recorded: Sequence[Request], count: int, limit_s: float) -> Iterator[Request]:
    """The requests of `count` traces that were begun at even distances into this one, up to `limit_s`, by arrival."""
    length_s = recorded[-1].arrival_s

    def begun_at(number: int) -> Iterator[Request]:
        start_s = length_s * number / count
        after = [request for request in recorded if start_s <= request.arrival_s < start_s + limit_s]
        wrapped = [request for request in recorded if request.arrival_s < start_s + limit_s - length_s]
        for offset_s, requests in ((start_s, after), (start_s - length_s, wrapped)):
            for request in requests:
                yield replace(request, id=f"{number}-{request.id}-{offset_s:g}", arrival_s=request.arrival_s - offset_s)

    return heapq.merge(*map(begun_at, range(count)), key=lambda request: request.arrival_s)


def profile(options: argparse.Namespace, console: Console) -> None:
    """By samples: instruments that count calls would make small functions look large."""
    (policy,) = read_choices(options.policies, "--policies")
    spec = spec_of(policy, options.trace, options.scenario)
    requests = requests_of(spec, None, 0).requests[: options.requests]
    make = [replica_of(policy, machine_of(spec))]
    samples: Counter[str] = Counter()

    def sample(_: int, frame: FrameType | None) -> None:
        if frame:
            samples[f"{Path(frame.f_code.co_filename).name} {frame.f_code.co_qualname}"] += 1

    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
    serve(requests, make)
    signal.setitimer(signal.ITIMER_PROF, 0)
    table = Table(title=f"{policy.text}, {len(requests)} requests, {samples.total()} samples", title_justify="left")
    table.add_column("function, with the built-ins it calls")
    table.add_column("CPU, %", justify="right")
    for function, count in samples.most_common(PROFILED):
        table.add_row(function, f"{100 * count / samples.total():.1f}")
    console.print(table)


def peer(options: argparse.Namespace, console: Console) -> None:
    (policy,) = read_choices(options.policies, "--policies")
    spec = spec_of(policy, options.trace, options.scenario)
    requests = requests_of(spec, None, 0).requests[: options.requests]
    machine = machine_of(spec)
    ours = serve(requests, [replica_of(policy, machine)])
    theirs = vidur(options.vidur_python, spec, machine, requests)
    again = serve(requests, [replica_of(policy, machine)])
    table = Table(title=f"{len(requests)} requests, one replica, the same step times", title_justify="left")
    for name in ("simulator", "steps", "virtual s", "CPU s", "x real time (CPU)"):
        table.add_column(name, justify="left" if name == "simulator" else "right")
    for name, run in ((f"sloguard, {policy.text}", ours), ("sloguard, again", again)):
        table.add_row(name, str(run.steps), f"{run.end_s:.1f}", f"{run.cpu_s:.2f}", f"{run.times_real:.0f}")
    rate = theirs["end_s"] / theirs["cpu_s"]
    row = (str(theirs["steps"]), f"{theirs['end_s']:.1f}", f"{theirs['cpu_s']:.2f}", f"{rate:.0f}")
    table.add_row("Vidur, sarathi", *row)
    console.print(table)
    ratios = sorted(run.times_real / rate for run in (ours, again))
    share = theirs["step_times_s"] / theirs["cpu_s"]
    console.print(
        f"sloguard is {ratios[0]:.1f} to {ratios[1]:.1f} times as fast; {share:.0%} of Vidur's are step times"
    )


def vidur(python: str, spec: SimSpec, machine: Machine, requests: Sequence[Request]) -> dict[str, float]:
    settings = machine.settings
    job = {
        "model": spec.model,
        "gpu": spec.gpu,
        "kv_blocks": machine.kv_blocks,
        "graph_sizes": settings.graph_sizes,
        "max_num_seqs": settings.max_num_seqs,
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "max_model_len": settings.max_model_len,
        "requests": [
            (request.arrival_s, request.prompt_tokens, sum(stage.output_tokens for stage in request.stages))
            for request in requests
        ],
    }
    ended = subprocess.run(
        [python, HERE / "simulator_speed_vidur.py"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH") or str(HERE.parent / "src")},
    )
    if ended.returncode:
        sys.exit(f"Vidur failed:\n{ended.stderr[-2000:]}")
    return json.loads(ended.stdout.splitlines()[-1])


PROGRAMS = {"hour": hour, "fleet": fleet, "profile": profile, "peer": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument(
        "--trace", required=True, help="a recorded trace; figures here are of Azure's 2023 conversation"
    )
    parser.add_argument("--scenario", default="chatbot", help="whose promises the requests get")
    parser.add_argument("--policies", default="vllm", help="by comma; one except for `hour`")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--replicas", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=3.0, help="of the fleet's virtual time")
    parser.add_argument("--vidur-python", help="Python of an environment with Vidur 0.0.26")
    options = parser.parse_args()
    if options.program == "peer" and not options.vidur_python:
        parser.error("peer needs --vidur-python")
    console = Console(width=140)
    console.print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    PROGRAMS[options.program](options, console)


if __name__ == "__main__":
    main()
