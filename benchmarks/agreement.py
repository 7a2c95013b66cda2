"""Do `sloguard bench` and `vllm bench serve` measure the same server alike?

    python benchmarks/agreement.py [--vllm-python P] [--model models/demo-slo] [--rate 2] [--requests 60] [--pairs 3]

One real vLLM on the CPU; the two clients take turns at the same load (even gaps, prompts of 128 random tokens, 32
output tokens, prefix caching off). Prints the mean over the pairs of mean TTFT, mean TPOT and output throughput, and
ours over theirs. Bar: within 5 %.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from sloguard.engine.vllm_install import find_vllm
from sloguard.engine.vllm_server import VllmServer, free_port
from sloguard.space.flags import to_flags

REPO = Path(__file__).resolve().parents[1]
PROMPT_TOKENS, OUTPUT_TOKENS = 128, 32
ARGUMENTS = {
    "enforce_eager": True,
    "max_model_len": 2048,
    "gpu_memory_utilization": 0.1,
    "kv_cache_memory_bytes": "512M",
    "enable_prefix_caching": False,
}
FIGURES = ("mean_ttft_ms", "mean_tpot_ms", "output_throughput")


def sloguard(url: str, model: str, rate: float, n: int, seed: int, out: Path) -> None:
    load = ["--input-len", str(PROMPT_TOKENS), "--output-len", str(OUTPUT_TOKENS), "--burstiness", "1e6"]
    command = [sys.executable, "-m", "sloguard", "bench", "--base-url", url, "--model", model, *load]
    command += [
        "--request-rate",
        str(rate),
        "--num-requests",
        str(n),
        "--seed",
        str(seed),
        "--save-vllm-json",
        str(out),
    ]
    subprocess.run(command, check=True, capture_output=True)


def vllm(python: str, url: str, model: str, rate: float, n: int, seed: int, out: Path) -> None:
    load = f"--dataset-name random --random-input-len {PROMPT_TOKENS} --random-output-len {OUTPUT_TOKENS} --ignore-eos"
    load += f" --burstiness inf --num-prompts {n} --request-rate {rate} --seed {seed} --disable-tqdm --num-warmups 0"
    where = f"--backend openai --base-url {url} --endpoint /v1/completions --model {model} --tokenizer {model}"
    save = f"--save-result --result-dir {out.parent} --result-filename {out.name}"
    command = [python, str(REPO / "benchmarks" / "vllm_bench.py"), *f"{where} {load} {save}".split()]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


@contextmanager
def serving(python: str, model: str, directory: str) -> Iterator[str]:
    install = find_vllm(python)
    argv = [*install.server_argv(model), *to_flags(ARGUMENTS)]
    server = VllmServer.start(argv, dict(os.environ), free_port(), Path(directory, "engine.log"), 60)
    try:
        server.await_ready(300)
        yield server.base_url
    finally:
        server.process.stop(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-slo"))
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {"sloguard bench": [], "vllm bench serve": []}
    with tempfile.TemporaryDirectory() as directory, serving(options.vllm_python, options.model, directory) as url:
        for pair in range(-1, options.pairs):  # the first pair warms the server and both clients up
            for name in sorted(found, reverse=pair % 2 == 1):
                out = Path(directory, f"{name.split()[0]}-{pair}.json")
                if name == "sloguard bench":
                    sloguard(url, options.model, options.rate, options.requests, pair + 1, out)
                else:
                    vllm(options.vllm_python, url, options.model, options.rate, options.requests, pair + 1, out)
                result = json.loads(out.read_text())
                if pair >= 0:
                    found[name].append([result[figure] for figure in FIGURES])
                time.sleep(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores; {options.pairs} pairs")
    print(f"{'':<18}" + "".join(f"{figure:>20}" for figure in FIGURES))
    for name, rows in found.items():
        print(f"{name:<18}" + "".join(f"{value:>20.2f}" for value in np.mean(rows, axis=0)))
    ours, theirs = (np.mean(found[name], axis=0) for name in found)
    print(f"{'ours / theirs':<18}" + "".join(f"{value:>20.3f}" for value in ours / theirs))


if __name__ == "__main__":
    main()
