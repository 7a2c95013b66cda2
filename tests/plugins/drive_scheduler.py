"""Drives sloguard's scheduler inside vLLM, without a model, through the cases on stdin. Not a test itself.

Run by `test_vllm_scheduler.py` with the Python of an environment that has vLLM; its argument is a JSON list of
{"policy": one of vLLM's or ours, "plugin": whether ours is to decide, "async": a step is scheduled before the one
before it has ended, "hang_ups": every third client hangs up some steps after it came, "adapters": so many LoRA
adapters, of which one at a time may run}. Prints for each of them and each case the decisions, as `vllm_decisions.py`
has them, the tokens that each request got, and what is left behind: KV blocks, jobs, and how many steps went without a
plan.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter, deque
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "sched"))

import vllm_decisions as stock
from vllm.lora.request import LoRARequest
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from sloguard.plugins.vllm_scheduler import SloScheduler

MOST_STEPS = 20_000


def scheduler(asked: dict[str, Any], case: dict[str, Any], model_dir: str) -> Scheduler:
    if asked["plugin"]:
        options = {"sloguard": {"policy": asked["policy"], "planner_budget_ms": 1e6, **asked.get("options", {})}}
        return stock.scheduler("fcfs", case, model_dir, SloScheduler, options, asked["async"], max_loras(asked))
    made_by = AsyncScheduler if asked["async"] else Scheduler
    return stock.scheduler(asked["policy"], case, model_dir, made_by, {}, asked["async"], max_loras(asked))


def max_loras(asked: dict[str, Any]) -> int:
    return 1 if "adapters" in asked else 0


def come(asked: dict[str, Any], number: int, row: dict[str, int], hasher: Any) -> Request:
    request = stock.request(number, row, hasher)
    if adapters := asked.get("adapters"):
        number = number % (adapters + 1)  # some do without
        request.lora_request = LoRARequest(f"a{number}", number, "/nowhere") if number else None
    return request


def answer(engine: Scheduler, made: Any) -> ModelRunnerOutput:
    """A token for whoever has its whole prompt; texts are unlike each other."""
    ids = list(made.num_scheduled_tokens)
    known = [engine.requests[i] for i in ids]
    sampled = [[] if r.is_prefill_chunk else [900_000_000 + 10_000 * int(r.request_id) + r.num_tokens] for r in known]
    return ModelRunnerOutput(req_ids=ids, req_id_to_index={i: n for n, i in enumerate(ids)}, sampled_token_ids=sampled)


def serve(asked: dict[str, Any], case: dict[str, Any], model_dir: str) -> dict[str, Any]:
    engine = scheduler(asked, case, model_dir)
    hasher = get_request_block_hasher(stock.BLOCK, sha256) if case["enable_prefix_caching"] else None
    coming = deque(sorted(enumerate(case["requests"]), key=lambda pair: pair[1]["step"]))
    seen: list[Any] = []
    got: Counter[str] = Counter()
    in_flight: deque[tuple[Any, ModelRunnerOutput]] = deque()
    leaving: list[tuple[int, str]] = []
    evicted: set[str] = set()
    step = turns = 0
    while coming or in_flight or engine.has_unfinished_requests():
        turns += 1
        assert turns < MOST_STEPS, f"nothing happens: {case}"
        while coming and coming[0][1]["step"] <= step:
            number, row = coming.popleft()
            engine.add_request(come(asked, number, row, hasher))
            if asked.get("hang_ups") and number % 3 == 0:
                leaving.append((step + number % 7, str(number)))
        for name in [name for at, name in leaving if at == step]:
            engine.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        made = engine.schedule()
        evicted |= made.preempted_req_ids or set()
        if made.num_scheduled_tokens:
            seen.append([list(made.num_scheduled_tokens.items()), sorted(evicted)])
            evicted.clear()
        in_flight.append((made, answer(engine, made)))
        behind = asked["async"] and bool(made.num_scheduled_tokens)
        while len(in_flight) > behind:
            for outputs in engine.update_from_output(*in_flight.popleft()).values():
                got.update({one.request_id: len(one.new_token_ids) for one in outputs.outputs})
        step += not evicted  # a step that only evicts takes no time
    left = {"blocks": case["blocks"] - 1 - engine.kv_cache_manager.block_pool.get_num_free_blocks()}
    if asked["plugin"]:
        counts = engine.slo_counts
        left |= {"jobs": len(engine.slo_ledger.jobs), "steps in flight": len(engine.slo_steps._begun)}
        left |= {
            "planned": counts.planned,
            "faults": counts.faults,
            "overruns": counts.overruns,
            "rested": counts.rested,
        }
    return {"decisions": seen, "tokens": got, "left": left}


def main() -> None:
    init_none_hash(sha256)
    cases = json.load(sys.stdin)
    with tempfile.TemporaryDirectory() as model_dir:
        (Path(model_dir) / "config.json").write_text(json.dumps(stock.TINY))
        for asked in json.loads(sys.argv[1]):
            print("ANSWERS " + json.dumps([serve(asked, case, model_dir) for case in cases]), flush=True)


if __name__ == "__main__":
    main()
