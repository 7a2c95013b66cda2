"""Tunes a real vLLM on this machine's CPU with several optimizers, and says what their winners keep under new arrivals.

    python benchmarks/tuning/real.py --out DIR [--optimizers guided,tpe,tba-tpe] [--seeds 3] [--budget 10]

Every study is `sloguard tune` as a user runs it, one after the other, since two would measure each other. The requests
are prompts of 50 to 1,000 tokens with answers of 8 to 64, drawn once; tools/make_demo_model.py makes the model. A study
ends with its two best and the default measured again from fresh starts, under arrivals that no trial has seen: `held
out` is what the recommended config keeps there, `default` what vLLM's own does. The same command goes on where it was
stopped; --tables only prints what is on record.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from stats import mean_and_sd

from sloguard.report.files import write_text_atomic
from sloguard.rng import stream

REPO = Path(__file__).resolve().parents[2]
MODEL = REPO / "models" / "demo-slo-24"
REQUESTS, TRACE_REQUESTS = 40, 400  # of a load; and of the trace, of which held-out loads are other parts
PROMPT_TOKENS, OUTPUT_TOKENS = (50, 1000), (8, 64)
PROMISES = ("--slo-ttft", "2000", "--slo-tpot", "60", "--attainment", "0.9")
LOAD_S = 12.0
NOTHING_FEASIBLE = 3  # exit code of a study that ended without a config to deploy
# Without compiling a start is short; and vLLM's default share of the memory is more than a shared machine has left.
PINNED = ("enforce_eager=true", "max_model_len=2048", "gpu_memory_utilization=0.4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--optimizers", type=lambda text: text.split(","), default=["guided", "tpe", "tba-tpe"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=10)
    parser.add_argument("--confirm", type=int, default=2)
    parser.add_argument("--vllm-python", type=Path, default=REPO / ".venv-vllm" / "bin" / "python")
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    studies = [(optimizer, seed) for seed in range(1, options.seeds + 1) for optimizer in options.optimizers]
    if not options.tables:
        subprocess.run(
            [sys.executable, REPO / "tools" / "make_demo_model.py", MODEL.name, "--out", MODEL.parent], check=True
        )
        options.out.mkdir(parents=True, exist_ok=True)
        trace = write_trace(options.out / "trace.csv")
        for optimizer, seed in studies:
            tune(options, trace, optimizer, seed)
    print(table(options.out, studies))
    return 0


def write_trace(path: Path) -> Path:
    rng = stream(0, "real requests")
    at_s = np.cumsum(rng.exponential(1.0, TRACE_REQUESTS))
    lengths = [
        np.exp(rng.uniform(np.log(low), np.log(high), TRACE_REQUESTS)) for low, high in (PROMPT_TOKENS, OUTPUT_TOKENS)
    ]
    rows = [f"{at:.3f},{prompt:.0f},{output:.0f}" for at, prompt, output in zip(at_s, *lengths, strict=True)]
    write_text_atomic(path, "\n".join(["arrival_s,input_tokens,output_tokens", *rows, ""]))
    return path


def study_dir(out: Path, optimizer: str, seed: int) -> Path:
    return out / f"{optimizer}.{seed}"


def tune(options: argparse.Namespace, trace: Path, optimizer: str, seed: int) -> None:
    out = study_dir(options.out, optimizer, seed)
    if (out / "done").exists():
        return
    command = [sys.executable, "-m", "sloguard", "tune", "--engine", "vllm", "--engine-python", options.vllm_python]
    command += ["--model", MODEL, "--workload", trace, "--num-requests", REQUESTS, "--load-seconds", LOAD_S, *PROMISES]
    command += ["--optimizer", optimizer, "--seed", seed, "--budget", options.budget, "--confirm", options.confirm]
    command += [word for pair in PINNED for word in ("--engine-arg", pair)]
    command += ["--request-rate", 2, "--retry-failures", "--out", out, *(["--resume"] if out.exists() else [])]
    ended = subprocess.run([str(word) for word in command], check=False)
    if ended.returncode not in (0, NOTHING_FEASIBLE):
        sys.exit(f"{optimizer}, seed {seed}: exit code {ended.returncode}; the same command goes on ({options.out})")
    (out / "done").touch()


def table(out: Path, studies: Sequence[tuple[str, int]]) -> str:
    head = ["optimizer", "seed", "found", "held out", "default", "gain", "crashed", "dropped", "minutes"]
    lines = [head, ["---"] * len(head)]
    held_out: dict[str, list[float]] = {}
    for optimizer, seed in studies:
        if not (study_dir(out, optimizer, seed) / "done").exists():
            continue
        told = json.loads((study_dir(out, optimizer, seed) / "summary.json").read_text(encoding="utf-8"))
        best, default = told["best"], told["default"]
        held_out.setdefault(optimizer, []).append(best["score"] if best else 0.0)
        gain = "-" if told["gain_over_default"] is None else f"{told['gain_over_default']:+.0%}"
        if told["gain_interval"] is not None:
            gain += " ({:+.0%} to {:+.0%})".format(*told["gain_interval"])
        rates = [_rate(best and best["capacity"]["estimate"]), _rate(best and best["score"]), _rate(default["score"])]
        counts = [str(told[name]) for name in ("crashes", "dropped")]
        lines.append([optimizer, str(seed), *rates, gain, *counts, f"{told['cost_s'] / 60:.0f}"])
    means = [f"{name}: {mean_and_sd(rates)} req/s held out" for name, rates in held_out.items()]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", *means])


def _rate(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.2f}"


if __name__ == "__main__":
    sys.exit(main())
