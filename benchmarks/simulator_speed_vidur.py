"""Runs requests through Vidur's simulator, for simulator_speed.py; started with the Python of Vidur's environment.

    PYTHONPATH=src VIDUR_PYTHON benchmarks/simulator_speed_vidur.py < job.json

Vidur (PyPI, 0.0.26) takes its step times from profiles on Hugging Face, which its wheel does not hold. Here it asks
sloguard's batch time instead: what is measured is its event loop and scheduler, with neither metrics nor files.
`sarathi` with the engine's token budget as its chunk is the scheduler closest to vLLM v1: decodes first, then prompts
in chunks, all in one batch. It counts KV blocks and has no prefix cache.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time

import pandas as pd
from vidur._native.entities import ExecutionTime
from vidur.config import (
    CacheConfig,
    ClusterConfig,
    LinearRegressionExecutionTimePredictorConfig,
    MetricsConfig,
    ReplicaConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    TraceRequestGeneratorConfig,
)
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
from vidur.simulator import Simulator
from vidur.types import ExecutionTimePredictorType

from sloguard.perf.batch_time import Batch
from sloguard.perf.coefficients import batch_time
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS

JOB = json.load(sys.stdin)
DATE = "2023-11-16"
NOTHING = {
    "write_metrics": False,
    "enable_chrome_trace": False,
    "store_plots": False,
    "store_request_metrics": False,
    "store_batch_metrics": False,
    "store_utilization_metrics": False,
}


class SloguardTime:
    """Vidur's predictor interface, as far as a replica of one stage asks for it."""

    def __init__(self, predictor_config: object, replica_config: object, cache_config: object) -> None:
        self.time = batch_time(
            MODELS[JOB["model"]], GPUS[JOB["gpu"]], 1, eager=False, graph_sizes=tuple(JOB["graph_sizes"])
        )
        self.steps, self.spent_s = 0, 0.0

    def get_execution_time(self, batch: object, pipeline_stage: int) -> ExecutionTime:
        begun_s = time.process_time()
        chunks, decodes, kv_tokens = [], 0, 0
        for request, tokens, kv in zip(batch.requests, batch.num_q_tokens, batch.num_kv_tokens, strict=True):
            if request.is_prefill_complete:
                decodes += 1
                kv_tokens += kv
            else:
                chunks.append((tokens, kv - tokens))
        step_ms = 1000 * self.time.seconds(Batch(tuple(chunks), decodes, kv_tokens))
        self.steps += 1
        self.spent_s += time.process_time() - begun_s
        return ExecutionTime(1, 0.0, 0.0, step_ms, *[0.0] * 11)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        trace = os.path.join(folder, "trace.csv")
        frame = pd.DataFrame(JOB["requests"], columns=["Time", "PromptTokenCount", "CompletionTokenCount"])
        frame.assign(Date=DATE).to_csv(trace, index=False)
        ExecutionTimePredictorRegistry.unregister(ExecutionTimePredictorType.LINEAR_REGRESSION)
        ExecutionTimePredictorRegistry.register(ExecutionTimePredictorType.LINEAR_REGRESSION, SloguardTime)
        simulator = Simulator(
            SimulationConfig(
                cluster_config=ClusterConfig(
                    replica_config=ReplicaConfig(num_pipeline_stages=1, tensor_parallel_size=1),
                    cache_config=CacheConfig(num_blocks=JOB["kv_blocks"]),
                    replica_scheduler_config=SarathiSchedulerConfig(
                        batch_size_cap=JOB["max_num_seqs"], chunk_size=JOB["max_num_batched_tokens"]
                    ),
                ),
                request_generator_config=TraceRequestGeneratorConfig(
                    trace_file=trace,
                    date=DATE,
                    prefill_scale_factor=1.0,
                    time_scale_factor=1.0,
                    max_tokens=JOB["max_model_len"],
                ),
                execution_time_predictor_config=LinearRegressionExecutionTimePredictorConfig(),
                metrics_config=MetricsConfig(output_dir=folder, **NOTHING),
            )
        )
        simulator._write_output = lambda: None
        wall_s, cpu_s = time.perf_counter(), time.process_time()
        simulator.run()
        wall_s, cpu_s = time.perf_counter() - wall_s, time.process_time() - cpu_s
        (replica,) = simulator.scheduler._replica_schedulers.values()
        predictor = replica._execution_time_predictor
        answer = {"wall_s": wall_s, "cpu_s": cpu_s, "end_s": simulator._time, "steps": predictor.steps}
        print(json.dumps({**answer, "step_times_s": predictor.spent_s}))


if __name__ == "__main__":
    main()
