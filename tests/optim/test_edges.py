"""Where memory runs out: held against the simulated start, which knows the truth."""

from __future__ import annotations

import numpy as np
import pytest

from optim import planted
from sloguard.crash import Evidence, diagnose
from sloguard.engine.simulated import FLAGS
from sloguard.optim.edges import edges, is_understood, units
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
NOT_FREE = "ValueError: Free memory on device cuda:0 (36.1/39.4 GiB) on startup is less than desired GPU memory "


def trial(config: Config, number: int, others_gib: int) -> Trial:
    """What becomes of a start on a GPU of which others hold so much."""
    values = {
        **{name: value for name, value in vllm_defaults((0, 32, 0), GPU).items() if name in KNOBS},
        "max_model_len": 65536,
        "max_cudagraph_capture_size": None,
        "watermark": 0.0,
        "quantization": None,
        **config,
    }
    rng = stream(number, "start")
    begun = start(read_settings(values), MODEL, GPU, 1, rng, others_bytes=others_gib << 30)
    outcome = planted.measured(1.0, 0.3)
    if begun.failure is not None:
        evidence = Evidence(begun.failure.phase, exit_code=1, log_tail="\n".join(begun.failure.lines))
        outcome = Crashed(diagnose(evidence))
    return Trial(number, config, config, outcome, 1.0)


def study(others_gib: int, seed: int, count: int) -> list[Trial]:
    rng = np.random.default_rng(seed)
    return [trial(SPACE.sample(rng), n, others_gib) for n in range(count)]


def keeps(trials: list[Trial], sources: list[list[Trial]], asked: list[Trial]) -> np.ndarray:
    at = units([t.config for t in asked], SPACE)
    return np.prod([np.ones(len(asked)), *(edge.keeps(at) for edge in edges(trials, sources, SPACE))], axis=0)


def told_apart(chance: np.ndarray, asked: list[Trial]) -> float:
    """How often one that ran is given a better chance than one that ran out of memory."""
    ran = np.array([not isinstance(t.outcome, Crashed) for t in asked])
    return float(np.mean(chance[ran][:, None] > chance[~ran][None, :]))


@pytest.mark.parametrize("others_gib", [3, 6])
def test_a_few_trials_tell_where_memory_runs_out(others_gib: int) -> None:
    asked = study(others_gib, 99, 300)
    apart = [told_apart(keeps(study(others_gib, seed, 12), [], asked), asked) for seed in range(6)]
    assert np.mean(apart) > 0.85


def test_chances_are_what_comes_true() -> None:
    asked = study(3, 99, 300)
    chance = np.mean([keeps(study(3, seed, 12), [], asked) for seed in range(6)], axis=0)
    ran = np.array([not isinstance(t.outcome, Crashed) for t in asked])
    assert abs(chance.mean() - ran.mean()) < 0.12
    assert ran[chance > 0.8].mean() > 0.8
    assert ran[chance < 0.2].mean() < 0.2


def test_another_studys_trials_help_before_the_first_though_its_memory_was_another() -> None:
    asked = study(4, 99, 300)
    assert told_apart(keeps([], [study(1, 5, 160)], asked), asked) > 0.85


def test_a_single_crash_points_to_whoever_asks_for_less() -> None:
    config = SPACE.sample(np.random.default_rng(1)).replace(
        gpu_memory_utilization=0.92, max_num_batched_tokens=8192, max_num_seqs=256, enforce_eager=True
    )
    memory = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail="torch.OutOfMemoryError: CUDA out of memory.")))
    (edge,) = edges([Trial(1, config, config, memory, 1.0)], [], SPACE)
    less = config.replace(gpu_memory_utilization=0.8)
    changes = [config.replace(max_num_batched_tokens=16384), config, config.replace(max_num_batched_tokens=1024), less]
    chances = edge.keeps(units(changes, SPACE))
    assert list(chances) == sorted(chances)
    assert chances[1] < 0.1 < 0.4 < chances[3]


def test_memory_that_was_not_free_says_nothing_of_any_other_knob() -> None:
    config = SPACE.sample(np.random.default_rng(1)).replace(gpu_memory_utilization=0.92)
    crash = diagnose(Evidence("startup", exit_code=1, log_tail=f"{NOT_FREE}utilization (0.92, 36.25 GiB)."))
    (edge,) = edges([Trial(1, config, config, Crashed(crash), 1.0)], [], SPACE)
    same, less = config.replace(max_num_batched_tokens=256, max_num_seqs=8), config.replace(gpu_memory_utilization=0.8)
    known, other, free = edge.keeps(units([config, same, less], SPACE))
    assert known == other < free


def test_a_crash_without_a_known_reason_or_knob_has_no_edge() -> None:
    config = SPACE.sample(np.random.default_rng(1))
    unknown = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail="Segmentation fault")))
    memory = Crashed(diagnose(Evidence("startup", exit_code=1, log_tail="torch.OutOfMemoryError: CUDA out of memory.")))
    for outcome, space in ((unknown, SPACE), (memory, Space(()))):
        made = Trial(1, config, config, outcome, 1.0)
        assert edges([made], [], space) == []
        assert not is_understood(made, space)
    assert is_understood(Trial(1, config, config, memory, 1.0), SPACE)
