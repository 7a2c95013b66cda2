"""What a crash says of other configs: held against the simulated start, which knows the truth."""

from __future__ import annotations

import numpy as np
import pytest

from optim import planted
from sloguard.crash import Evidence, diagnose
from sloguard.engine.simulated import FLAGS
from sloguard.optim.doomed import dooms, places
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.rng import stream
from sloguard.sim.settings import KNOBS, read_settings
from sloguard.sim.start import start
from sloguard.space.space import Space
from sloguard.space.vllm import space_for, vllm_defaults
from sloguard.trial import Config, Crashed, Trial

GPU, MODEL = GPUS["A100-40GB"], MODELS["meta-llama/Llama-3.1-8B"]
SPACE = space_for("vllm", gpu=GPU, offered=FLAGS)
OTHERS_BYTES = 3 << 30


def crashed(config: Config, seed: int) -> Crashed | None:
    """What becomes of a start on a GPU of which others hold 3 GiB."""
    values = {
        **{name: value for name, value in vllm_defaults((0, 32, 0), GPU).items() if name in KNOBS},
        "max_model_len": 65536,
        "max_cudagraph_capture_size": None,
        "watermark": 0.0,
        "quantization": None,
        **config,
    }
    begun = start(read_settings(values), MODEL, GPU, 1, stream(seed, "start"), others_bytes=OTHERS_BYTES)
    if begun.failure is None:
        return None
    return Crashed(diagnose(Evidence(begun.failure.phase, exit_code=1, log_tail="\n".join(begun.failure.lines))))


def test_who_asks_for_more_of_what_ran_out_crashes_too() -> None:
    rng = np.random.default_rng(0)
    configs = [SPACE.sample(rng) for _ in range(400)]
    outcomes = [crashed(config, n) for n, config in enumerate(configs)]
    trials = [Trial(n, c, c, o, 1.0) for n, (c, o) in enumerate(zip(configs, outcomes, strict=True)) if o is not None]
    assert {t.outcome.crash.cause for t in trials if isinstance(t.outcome, Crashed)} >= {"gpu_memory"}
    hits = [(doom, at) for doom in dooms(trials[:60], SPACE) for at in range(len(configs)) if doom.takes(configs[at])]
    assert len(hits) > 200
    assert np.mean([outcomes[at] is not None for _, at in hits]) > 0.97


@pytest.mark.parametrize(
    ("change", "doomed"),
    [
        ({}, True),
        ({"gpu_memory_utilization": 0.95}, True),
        ({"gpu_memory_utilization": 0.85}, False),
        ({"max_num_batched_tokens": 4096, "max_num_seqs": 128}, True),
    ],
)
def test_memory_that_was_not_free_says_nothing_of_any_other_knob(change: dict[str, float], doomed: bool) -> None:
    line = "ValueError: Free memory on device cuda:0 (36.1/39.4 GiB) on startup is less than desired GPU memory "
    config = SPACE.sample(np.random.default_rng(1)).replace(
        gpu_memory_utilization=0.92, max_num_batched_tokens=8192, max_num_seqs=256
    )
    outcome = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail=f"{line}utilization (0.92, 36.25 GiB).")))
    (doom,) = dooms([Trial(1, config, config, outcome, 1.0)], SPACE)
    assert doom.takes(config.replace(**change)) is doomed


def test_a_crash_without_a_known_reason_or_knob_dooms_nobody() -> None:
    config = SPACE.sample(np.random.default_rng(1))
    unknown = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail="Segmentation fault")))
    assert dooms([Trial(1, config, config, unknown, 1.0)], SPACE) == []
    memory = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail="torch.OutOfMemoryError: CUDA out of memory.")))
    assert dooms([Trial(1, config, config, memory, 1.0)], Space(())) == []


def test_a_crash_lies_where_its_like_ran_but_for_the_knobs_to_blame() -> None:
    line = "ValueError: Free memory on device cuda:0 (36.1/39.4 GiB) on startup is less than desired GPU memory "
    memory = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail=f"{line}utilization (0.92, 36.25 GiB).")))
    near, far = (SPACE.sample(np.random.default_rng(seed)) for seed in (2, 3))
    config = near.replace(gpu_memory_utilization=0.95, max_num_seqs=16)
    trials = [
        Trial(1, far, far, planted.measured(1.0, 0.3), 1.0),
        Trial(2, near, near, planted.measured(1.0, 0.3), 1.0),
        Trial(3, config, config, memory, 1.0),
    ]
    assert places(trials, SPACE) == [far, near, near.replace(gpu_memory_utilization=0.95)]
    assert places(trials[2:], SPACE) == [config], "with nothing that ran everything may be to blame"
