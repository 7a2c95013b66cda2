"""Drives vLLM's real scheduler, without a model, through the cases on stdin; prints its decisions. Not a test itself.

Run by `test_vllm_equivalence.py` with the Python of an environment that has vLLM; its argument is vLLM's scheduling
policy. Each case: limits and requests, which arrive at step numbers; each answer, of the steps that computed something:
[[[request, tokens] in the order they were placed, requests evicted since the answer before], ...].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.update(VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1", VLLM_LOGGING_LEVEL="ERROR")

import torch
from vllm.config import CacheConfig, LoRAConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

BLOCK = 16
TINY = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
    "torch_dtype": "float32",
}


def scheduler(
    policy: str,
    case: dict[str, Any],
    model_dir: str,
    made_by: type[Scheduler] = Scheduler,
    additional_config: dict[str, Any] | None = None,
    asynchronous: bool = False,
    max_loras: int = 0,
) -> Scheduler:
    config = VllmConfig(
        additional_config=additional_config or {},
        model_config=ModelConfig(model=model_dir, skip_tokenizer_init=True, max_model_len=case["max_model_len"]),
        scheduler_config=SchedulerConfig(
            policy=policy,
            max_num_seqs=case["max_num_seqs"],
            max_num_batched_tokens=case["max_num_batched_tokens"],
            max_model_len=case["max_model_len"],
            enable_chunked_prefill=case["enable_chunked_prefill"],
            long_prefill_token_threshold=case["long_prefill_token_threshold"],
            watermark=case["watermark"],
            is_encoder_decoder=False,
            async_scheduling=False,
        ),
        cache_config=CacheConfig(
            block_size=BLOCK, gpu_memory_utilization=0.5, enable_prefix_caching=case["enable_prefix_caching"]
        ),
    )
    config.cache_config.num_gpu_blocks = case["blocks"]
    config.scheduler_config.async_scheduling = asynchronous  # the CPU platform would have switched it off
    if max_loras:
        config.lora_config = LoRAConfig(max_loras=max_loras)
    layer = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return made_by(
        vllm_config=config,
        kv_cache_config=KVCacheConfig(case["blocks"], [], [KVCacheGroupSpec(["layer"], layer)]),
        structured_output_manager=StructuredOutputManager(config),
        block_size=BLOCK,
        log_stats=False,
    )


def request(number: int, row: dict[str, int], hasher: Any) -> Request:
    """Family texts are equal at their start; everything else is unlike anything."""
    shared = [10_000 * (row["family"] + 1) + i for i in range(row["shared_blocks"] * BLOCK)]
    own = [1_000_000 * (number + 1) + i for i in range(row["prompt"] - len(shared))]
    return Request(
        request_id=str(number),
        prompt_token_ids=shared + own,
        sampling_params=SamplingParams(max_tokens=row["output"], ignore_eos=True),
        pooling_params=None,
        block_hasher=hasher,
        arrival_time=float(row["step"]),
        priority=row["priority"],
    )


def decisions(policy: str, case: dict[str, Any], model_dir: str) -> list[Any]:
    engine = scheduler(policy, case, model_dir)
    hasher = get_request_block_hasher(BLOCK, sha256) if case["enable_prefix_caching"] else None
    coming = sorted(enumerate(case["requests"]), key=lambda pair: pair[1]["step"])
    seen: list[Any] = []
    evicted: set[str] = set()
    step = 0
    while coming or engine.has_unfinished_requests():
        while coming and coming[0][1]["step"] <= step:
            engine.add_request(request(*coming.pop(0), hasher))
        made = engine.schedule()
        ids = list(made.num_scheduled_tokens)
        evicted |= made.preempted_req_ids or set()
        if ids:
            seen.append([list(made.num_scheduled_tokens.items()), sorted(evicted)])
            evicted.clear()
        known = {i: engine.requests[i] for i in ids}
        sampled = [
            [900_000_000 + 10_000 * int(i) + r.num_tokens] if r.num_computed_tokens >= r.num_tokens else []
            for i, r in known.items()
        ]
        index = {request_id: position for position, request_id in enumerate(ids)}
        engine.update_from_output(
            made, ModelRunnerOutput(req_ids=ids, req_id_to_index=index, sampled_token_ids=sampled)
        )
        step += not evicted  # a step that only evicts takes no time
    return seen


def main() -> None:
    init_none_hash(sha256)
    with tempfile.TemporaryDirectory() as model_dir:
        (Path(model_dir) / "config.json").write_text(json.dumps(TINY))
        answers = [decisions(sys.argv[1], case, model_dir) for case in json.load(sys.stdin)]
    print("DECISIONS " + json.dumps(answers))


if __name__ == "__main__":
    main()
