"""Are answers the same? Greedy decoding of the same prompts by stock vLLM and by vLLM with sloguard's scheduler, while
requests are preempted and drafts are verified.

    python benchmarks/serve_outputs.py [--model models/demo-tiny] [--prompts 200]

Prompts come all at once to a KV cache that can't hold them, with promises of several kinds, and with ngram drafts. The
size of a batch changes the order in which floats are added, so an argmax between two near-equal logits may fall either
way: stock is therefore asked twice, the second time in another order, and what differs there is no scheduler's doing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from serve_arms import REPO, Arm, Servers, serving, why

from sloguard.engine.http_probe import ask
from sloguard.engine.lend import scheduler_arguments
from sloguard.engine.vllm_server import Died
from sloguard.rng import stream

DRAFTS = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
PROMISES = ({"slo_ttft_ms": 400, "slo_tpot_ms": 50}, {"slo_ttft_ms": 4000, "slo_tpot_ms": 120}, {})
TIGHT = {"kv_cache_memory_bytes": "4M", "max_num_batched_tokens": 256, "speculative_config": json.dumps(DRAFTS)}
OUTPUT_TOKENS = 64
TIMEOUT_S = 600.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", default=str(REPO / ".venv-vllm" / "bin" / "python"))
    parser.add_argument("--model", default=str(REPO / "models" / "demo-tiny"))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--logs", type=Path, default=Path("serve-outputs"))
    options = parser.parse_args()
    stock, plugin = Arm("stock", TIGHT), Arm("plugin", {**TIGHT, **scheduler_arguments({"policy": "sloguard"})})
    rng = stream(0, "prompts")
    prompts = [rng.integers(5, 900, int(rng.integers(20, 400))).tolist() for _ in range(options.prompts)]
    try:
        with serving(options.vllm_python, options.model, options.logs) as servers:
            servers.start([stock, plugin])
            first = answers(servers, stock, prompts, list(range(len(prompts))))
            again = answers(servers, stock, prompts, rng.permutation(len(prompts)).tolist())
            ours = answers(servers, plugin, prompts, list(range(len(prompts))))
            counts = {arm.name: counted(servers, arm) for arm in (stock, plugin)}
    except Died as error:
        print(why(error), file=sys.stderr)
        return 1
    print(f"{len(prompts)} prompts of 20 to 400 tokens, {OUTPUT_TOKENS} tokens each")
    print(f"stock twice: {same(first, again)} answers equal; plugin and stock: {same(first, ours)} equal")
    for name, found in counts.items():
        print(f"{name}: {found}")
    return 0 if same(first, ours) >= same(first, again) - 2 else 1


def answers(servers: Servers, arm: Arm, prompts: Sequence[list[int]], order: Sequence[int]) -> dict[int, list[int]]:
    """Token ids by prompt, all asked for at once."""
    url, model = servers.address(arm)

    def one(at: int) -> tuple[int, list[int]]:
        body: dict[str, Any] = {
            "model": model,
            "prompt": prompts[at],
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "vllm_xargs": PROMISES[at % len(PROMISES)],
        }
        return at, ask(url, "/v1/completions", timeout_s=TIMEOUT_S, body=body).body["choices"][0]["token_ids"]

    with ThreadPoolExecutor(len(prompts)) as pool:
        return dict(pool.map(one, order))


def same(some: dict[int, list[int]], others: dict[int, list[int]]) -> int:
    return int(np.sum([some[at] == others[at] for at in some]))


def counted(servers: Servers, arm: Arm) -> dict[str, float]:
    kept = (
        "vllm:num_preemptions_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
    )
    found = servers.samples(arm)
    return {name: sum(value for key, value in found.items() if key.startswith(name)) for name in kept}


if __name__ == "__main__":
    sys.exit(main())
