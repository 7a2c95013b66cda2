"""Random workloads for vLLM's real scheduler class, and the Python that has it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from paths import REPO

VLLM_PYTHON = Path(os.environ.get("SLOGUARD_TEST_VLLM_PYTHON", REPO / ".venv-vllm" / "bin" / "python"))
OLDEST_PYTHON = REPO / ".venv-vllm-oldest" / "bin" / "python"  # the oldest vLLM that the scheduler plugin supports
BLOCK = 16


def random_case(rng: np.random.Generator) -> dict[str, Any]:
    """Small enough that memory, budget and sequence limits all bind now and then; steps at which many arrive."""
    blocks = int(rng.integers(20, 80))
    longest = min(512, (blocks - 1) * BLOCK)
    chunked = bool(rng.random() < 0.7)
    seqs = int(rng.integers(1, 12))
    tokens = int(rng.integers(max(seqs, 16), 256)) if chunked else max(longest, int(rng.integers(longest, 1024)))
    requests = []
    for _ in range(int(rng.integers(5, 40))):
        prompt = int(min(rng.lognormal(4, 1) + 1, longest - 2))
        requests.append(
            {
                "step": int(rng.integers(0, 60)),
                "prompt": prompt,
                "output": int(rng.integers(1, max(2, min(80, longest - prompt)))),
                "family": int(rng.integers(0, 3)),
                "shared_blocks": int(rng.integers(0, 5)) if prompt >= 5 * BLOCK else 0,
                "priority": int(rng.integers(0, 3)),
            }
        )
    return {
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "max_model_len": longest,
        "blocks": blocks,
        "enable_chunked_prefill": chunked,
        "enable_prefix_caching": bool(rng.random() < 0.7),
        "long_prefill_token_threshold": int(rng.choice([0, 0, 24])),
        "watermark": float(rng.choice([0.0, 0.0, 0.1])),
        "requests": requests,
    }
