"""What a study came to: derived from its log, honest about noise, overridden knobs and what is unknown."""

from __future__ import annotations

from fakes import served, some_requests
from sloguard.contract import Contract, Limit, Metric
from sloguard.crash import Crash
from sloguard.metrics import summarise
from sloguard.optim.base import Goal
from sloguard.study.results import Results
from sloguard.trial import Avoided, Config, Crashed, Measured, Outcome, Refused, Trial

CONTRACT = Contract((Limit(Metric.TTFT, 99, 0.2),))
OOM = Crashed(Crash("oom", "gpu_memory", "CUDA out of memory", "Use less.", "startup"))


def measured(ttft_s: float, tpot_s: float, **effective: int) -> Measured:
    timelines = served(some_requests(), ttft_s, tpot_s)
    return Measured(summarise(timelines), CONTRACT.judge(timelines), 1.0, dict(effective), ("lengths not forced",))


def trial(number: int, outcome: Outcome, cost_s: float = 10.0, **config: int) -> Trial:
    return Trial(number, Config(config if number > 1 else {}), Config(config), outcome, cost_s)


def test_figures_are_those_of_the_log() -> None:
    avoided = (Avoided(Config({"seqs": 9}), Config({"seqs": 9}), "too big"),)
    trials = [
        trial(1, measured(0.1, 0.05), seqs=1),
        trial(2, OOM, 7.0, seqs=2),
        Trial(3, Config({"seqs": 3}), Config({"seqs": 3}), measured(0.1, 0.01, seqs=4), 10.0, (), avoided),
        trial(4, measured(0.5, 0.001), seqs=5),
        trial(5, Refused("no room"), 0.0, seqs=6),
    ]
    results = Results(trials, Goal(), try_default=True)
    assert results.best is trials[2]
    assert results.default is trials[0]
    assert results.feasible == 2
    assert results.crashes == {"oom/gpu_memory": 1}
    assert results.wasted_s == 7.0
    assert results.avoided == 2
    assert results.not_applied == {"seqs": 1}
    assert results.notes == {"lengths not forced": 3}
    assert results.gain is not None
    assert results.gain > 0
    summary = results.to_json(wall_s=1.0)
    assert (summary["trials"], summary["crashes"], summary["feasible"]) == (5, 1, 2)
    assert summary["cost_s"] == 37.0


def test_the_default_is_trial_1_though_another_may_end_first() -> None:
    default = trial(1, measured(0.1, 0.05))
    trials = [trial(3, OOM, seqs=3), trial(2, measured(0.1, 0.02), seqs=2), default]
    results = Results(trials, Goal(), try_default=True)
    assert results.default is default
    assert results.gain is not None
    assert Results(trials[:2], Goal(), try_default=True).default is None


def test_the_default_needs_no_overrides() -> None:
    assert trial(1, measured(0.1, 0.05), seqs=1).overrides == Config()
    assert trial(2, measured(0.1, 0.05), seqs=1).overrides == Config({"seqs": 1})


def test_there_is_no_gain_over_a_default_that_misses() -> None:
    trials = [trial(1, measured(0.5, 0.01)), trial(2, measured(0.1, 0.01), seqs=2)]
    assert Results(trials, Goal(), True).gain is None


def test_with_nothing_feasible_the_closest_and_what_binds_are_named() -> None:
    trials = [trial(1, measured(0.9, 0.01)), trial(2, measured(0.3, 0.01), seqs=2), trial(3, OOM, seqs=3)]
    summary = Results(trials, Goal(), True).to_json(0.0)
    assert summary["best"] is None
    assert summary["closest"]["number"] == 2
    assert summary["binding"]["slo"] == "p99(TTFT) <= 200 ms"
    assert abs(summary["binding"]["measured_ms"] - 300) < 1e-6


def test_a_paper_knob_that_means_nothing_to_vllm_is_not_called_overridden() -> None:
    outcome = measured(0.1, 0.05)
    ran = Measured(outcome.summary, outcome.verdict, 1.0, {"quantization": None})
    config = Config({"quantization": "fp16"})
    assert Results([Trial(1, config, config, ran, 1.0)], Goal(), False).not_applied == {}
