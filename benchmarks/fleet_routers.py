"""The same bursts on four replicas behind one router or another: how many promises are kept, up to which rate?

    python benchmarks/fleet_routers.py [--rates 8,10,12,14,16] [--pairs 3] [--plain-ray]

Four emulated replicas (Llama-3.1-8B on L4, sloguard's scheduler in each), in real time and over HTTP: all that differs
is who gets a request. The load is the scenario `coder-s`: lengths and bursts fitted to the Azure code trace of 2023.
Runs alternate; each rate's arrivals are the same for all routers.
`--plain-ray` adds Ray Serve as it is (fleet_plain_ray.py, with its own power of two choices).

    headroom       sloguard's: most room to spare; a replica may decline, and the next is asked
    slos-serve     the paper's: one after the other until one promises
    power-of-two   of two at random the one with fewer requests
    round-robin, least-tokens

Capacity: the largest rate at which 90 % of the promises are kept, between rates by interpolation; 95 % by drawing runs
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fleet_arms import EMULATED, REPO, fleet
from serve_stats import DRAWS, INTERVAL, capacity

from sloguard.contract import judge_request
from sloguard.engine.http_probe import ask
from sloguard.engine.vllm_server import free_port
from sloguard.load.drive import offer
from sloguard.load.promises import promise_fields
from sloguard.load.target import Target
from sloguard.request import Request
from sloguard.rng import stream
from sloguard.slo import NO_SLO, Judgement, TpotRule
from sloguard.study.choice import read_choice
from sloguard.study.sim_spec import SimSpec
from sloguard.study.simulation import requests_of

ROUTERS = ("headroom", "slos-serve", "power-of-two", "round-robin", "least-tokens")
PLAIN = "Ray Serve"
DRAIN_S, TIMEOUT_S = 30.0, 120.0
START_LIMIT_S = 120.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="8,10,12,14,16", help="requests/s over all replicas")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each router at each rate")
    parser.add_argument("--seconds", type=float, default=30.0, help="of arrivals, of each run")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--routers", default=",".join(ROUTERS))
    parser.add_argument("--plain-ray", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("fleet-routers"), help="directory of record and logs")
    options = parser.parse_args()
    rates = [float(rate) for rate in options.rates.split(",")]
    arms = [*options.routers.split(","), *([PLAIN] if options.plain_ray else [])]
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "runs.jsonl"
    known = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    done = {(run["arm"], run["rate"], run["seed"]) for run in known}
    for seed in range(options.pairs):
        for arm in arms if seed % 2 == 0 else arms[::-1]:
            missing = [rate for rate in rates if (arm, rate, seed) not in done]
            if not missing:
                continue
            with _served(arm, options) as target:
                for rate in missing:
                    run = {
                        "arm": arm,
                        "rate": rate,
                        "seed": seed,
                        **_run(target, rate, options.seconds, seed, options.replicas),
                    }
                    known.append(run)
                    with record.open("a") as file:
                        file.write(json.dumps(run) + "\n")
                    print(
                        f"{arm:14} {rate:5.1f} req/s  seed {seed}  {run['kept']:4} of {run['promised']} kept",
                        flush=True,
                    )
    print(tables(known, arms, rates))
    return 0


@contextmanager
def _served(arm: str, options: argparse.Namespace) -> Iterator[Target]:
    if arm != PLAIN:
        words = [*EMULATED, "--backend", "local", "--router", arm]
        with fleet(words, options.replicas, options.out / f"{arm}.log") as served:
            yield Target(served.url, served.model())
        return
    port = free_port()
    argv = [sys.executable, str(REPO / "benchmarks" / "fleet_plain_ray.py")]
    with (options.out / "ray.log").open("wb") as log:
        words = [str(port), str(options.replicas), str(options.out), *EMULATED]
        process = subprocess.Popen([*argv, *words], stdout=log, stderr=log)
    try:
        await_answer(process, port, options.out / "ray.log")
        yield Target(f"http://127.0.0.1:{port}", EMULATED[3])
    finally:
        process.terminate()
        process.wait()


def await_answer(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Raises SystemExit where the server ends before, or takes too long."""
    deadline_s = time.monotonic() + START_LIMIT_S
    while not _answers(port):
        if process.poll() is not None or time.monotonic() > deadline_s:
            sys.exit(f"the server is not up; see {log}")
        time.sleep(0.2)


def _answers(port: int) -> bool:
    try:
        return ask(f"http://127.0.0.1:{port}", "/v1/models", timeout_s=2.0).status == 200
    except OSError:
        return False


def bursts(rate: float, seconds: float, seed: int, replicas: int = 4) -> list[Request]:
    """With every promise in seconds, as the emulated GPU's own step times make them."""
    policy, router = read_choice("sloguard", "--policy"), read_choice("headroom", "--router")
    spec = SimSpec(policy, router, EMULATED[3], EMULATED[5], scenario="coder-s", replicas=replicas)
    return requests_of(replace(spec, num_requests=round(rate * seconds)), rate, seed).requests


def _run(target: Target, rate: float, seconds: float, seed: int, replicas: int) -> dict[str, Any]:
    requests = bursts(rate, seconds, seed, replicas)
    deadline_s = requests[-1].arrival_s + DRAIN_S
    offered = offer(
        target, requests, seed=seed, request_timeout_s=TIMEOUT_S, deadline_s=deadline_s, extra=promise_fields
    )
    promised = [one for one in offered.timelines if one.request.stages[0].slo != NO_SLO]
    met = [judge_request(one, TpotRule.MEAN) is Judgement.MET for one in promised]
    everybody = [judge_request(one, TpotRule.MEAN) is Judgement.MET for one in offered.timelines]
    ttft_s = sorted(one.ttft_s for one in promised if one.ttft_s is not None)
    return {
        "kept": sum(met),
        "promised": len(met),
        "kept_of_all": sum(everybody),
        "all": len(everybody),
        "ttft_p99_s": float(np.percentile(ttft_s, 99)) if ttft_s else None,
        "notes": list(offered.notes),
    }


def tables(runs: Sequence[dict[str, Any]], arms: Sequence[str], rates: Sequence[float]) -> str:
    lines = ["| router | " + " | ".join(f"{rate:g} req/s" for rate in rates) + " | capacity | headroom over it |"]
    lines.append("| --- |" + " ---: |" * (len(rates) + 2))
    capacities = {arm: _capacities(runs, arm, rates) for arm in arms}
    ours = capacities[arms[0]]
    for arm in arms:
        cells = [f"{np.mean(_shares(runs, arm, rate)):.0%}" for rate in rates]
        ratio = "" if arm == arms[0] else _interval(ours / capacities[arm], "x")
        lines.append(f"| {arm} | " + " | ".join(cells) + f" | {_interval(capacities[arm])} | {ratio} |")
    return "\n".join(lines)


def _shares(runs: Sequence[dict[str, Any]], arm: str, rate: float) -> list[float]:
    mine = sorted(
        (run["seed"], run["kept"] / run["promised"]) for run in runs if (run["arm"], run["rate"]) == (arm, rate)
    )
    return [share for _, share in mine]


def _capacities(runs: Sequence[dict[str, Any]], arm: str, rates: Sequence[float]) -> np.ndarray:
    """First of the runs as they are, then of seeds drawn again, the same for every arm."""
    shares = np.array([_shares(runs, arm, rate) for rate in rates])  # rates x seeds
    rng = stream(0, "draws")
    picks = [np.arange(shares.shape[1]), *(rng.integers(0, shares.shape[1], shares.shape[1]) for _ in range(DRAWS))]
    offered = np.array(rates)
    return np.array([capacity(offered, shares[:, pick].mean(axis=1), offered) for pick in picks])


def _interval(values: np.ndarray, unit: str = "") -> str:
    low, high = np.percentile(values[1:], INTERVAL)
    return f"{values[0]:.2f}{unit} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    sys.exit(main())
