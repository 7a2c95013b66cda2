"""What does sloguard's scheduler cost where nothing is promised? Tokens/s at saturation, beside vLLM's own.

    python benchmarks/serve_saturation.py [--quick] [--model models/demo-slo] [--budgets 256,2048] [--pairs 6]

Two vLLM servers with the same settings, one with the plugin. All requests come at once (so the engine is never short of
work), the same to both, in turns A B, B A. A pair gives a ratio of output tokens/s, plugin over stock; shown is the
geometric mean over the pairs, with the 95 % interval of drawing the pairs again. Bar: within 2 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from serve_arms import REPO, REQUEST_TIMEOUT_S, Arm, Servers, plugin, serving, stock, why

from sloguard.engine.vllm_server import Died
from sloguard.errors import SpecError
from sloguard.load.prompts import no_extra
from sloguard.metrics import summarise
from sloguard.request import End, Request, Stage
from sloguard.rng import stream

DRAWS = 10_000
PROMPT_TOKENS, OUTPUT_TOKENS = (64, 192), (48, 80)  # the least and the most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-slo"))
    parser.add_argument("--policies", default="sloguard")
    parser.add_argument("--budgets", default="256,2048", help="--max-num-batched-tokens, of both servers")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--logs", type=Path, default=Path("serve-saturation"), help="directory of the servers' logs")
    parser.add_argument("--quick", action="store_true", help="one pair of 24 requests: does it work?")
    options = parser.parse_args()
    if options.quick:
        options.requests, options.pairs = 24, 1
    policies, budgets = options.policies.split(","), list(map(int, options.budgets.split(",")))
    try:
        with serving(options.vllm_python, options.model, options.logs) as servers:
            for budget in budgets:
                for policy in policies:
                    compare(servers, plugin(policy, budget), stock(budget), options.pairs, options.requests)
    except SpecError as error:
        print(error, file=sys.stderr)
        return 2
    except Died as error:
        print(f"{why(error)}\nlogs: {options.logs}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def compare(servers: Servers, ours: Arm, theirs: Arm, pairs: int, n: int) -> None:
    servers.start([ours, theirs])
    speeds: dict[str, list[float]] = {ours.name: [], theirs.name: []}
    for turn in range(pairs):
        requests = all_at_once(n, turn)
        for arm in (ours, theirs) if turn % 2 == 0 else (theirs, ours):
            speeds[arm.name].append(tokens_s(servers, arm, requests, turn))
    ratios = np.array(speeds[ours.name]) / np.array(speeds[theirs.name])
    low, high = interval(ratios)
    means = ", ".join(f"{name} {np.mean(values):.1f} tokens/s" for name, values in speeds.items())
    ratio = f"ratio {geometric_mean(ratios):.3f} [{low:.3f}, {high:.3f}]"
    print(f"{means}; {ratio}; {pairs} pairs of {n} requests; {' '.join(f'{r:.3f}' for r in ratios)}", flush=True)


def all_at_once(n: int, seed: int) -> list[Request]:
    prompts = stream(seed, "prompts").integers(*PROMPT_TOKENS, n, endpoint=True).tolist()
    outputs = stream(seed, "outputs").integers(*OUTPUT_TOKENS, n, endpoint=True).tolist()
    return [Request(f"r{i}", 0.0, (Stage(*tokens),)) for i, tokens in enumerate(zip(prompts, outputs, strict=True))]


def tokens_s(servers: Servers, arm: Arm, requests: Sequence[Request], seed: int) -> float:
    """Raises RuntimeError where a request was lost: then there is no speed to compare."""
    timelines = servers.offer(arm, requests, seed, no_extra, REQUEST_TIMEOUT_S).timelines
    lost = [t.error for t in timelines if t.end is not End.COMPLETED]
    if lost:
        raise RuntimeError(f"{arm.name}: {len(lost)} of {len(requests)} requests were lost: {lost[0]}")
    return summarise(timelines).output_throughput


def geometric_mean(ratios: NDArray[np.float64]) -> float:
    return float(np.exp(np.mean(np.log(ratios))))


def interval(ratios: NDArray[np.float64]) -> tuple[float, float]:
    logs = np.log(ratios)
    drawn = logs[stream(0, "ratios").integers(len(logs), size=(DRAWS, len(logs)))].mean(axis=1)
    low, high = np.exp(np.percentile(drawn, (2.5, 97.5))).tolist()
    return low, high


if __name__ == "__main__":
    sys.exit(main())
