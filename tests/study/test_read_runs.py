"""Studies and published trials are read as what they are, told apart, and not mixed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optim.planted import OOM, measured
from paths import SHARED_DATA, needs_shared_data
from sloguard.errors import LogError, SpecError
from sloguard.study.compare import BEST, CONSISTENCY, FAST_TRIALS, compare
from sloguard.study.log import StudyLog
from sloguard.study.read_runs import read_runs
from sloguard.study.runs import StudyRun
from sloguard.study.spec import StudySpec
from sloguard.trial import Capacity, Config, Crashed, Leg, Outcome, Refused, Trial

SPEC = StudySpec("sim", "m", "random", 4, 1, {"ttft": 0.5}, objective="goodput")
ENGINE = {"engine": "sim", "simulated": "true", "gpu": "A100-40GB", "python": "/a/python"}
OUTCOMES: list[Outcome] = [
    measured(50.0, 0.3),
    Crashed(OOM),
    measured(90.0, 0.9),
    Refused("no room"),
    measured(70.0, 0.2),
]


def write(directory: Path, spec: StudySpec = SPEC, outcomes: list[Outcome] | None = None, **header: Any) -> Path:
    log = StudyLog(directory)
    with log.writer():
        log.append_header({"spec": spec.to_json(), "engine": ENGINE, **header})
        for number, outcome in enumerate(OUTCOMES if outcomes is None else outcomes, start=1):
            config = Config({"seqs": number})
            log.append(Trial(number, config, config, outcome, 10.0 * number))
    return directory


def read(*paths: Path) -> list[StudyRun]:
    return read_runs(paths)[0]


def published(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(trial: int, latency_ms: float = 400.0, **more: Any) -> dict[str, Any]:
    return {
        "trial": trial,
        "seed": 7,
        "optimizer": "random",
        "status": "feasible",
        "avg_latency_ms": latency_ms,
        **more,
    }


def test_a_study_is_its_trials_in_order(tmp_path: Path) -> None:
    (run,) = read(write(tmp_path / "one"))
    assert (run.label, run.seed, run.objective, run.simulated, run.held_out) == ("random", 1, "goodput", True, None)
    assert [trial.kept for trial in run.trials] == [50.0, None, None, None, 70.0]
    assert [trial.crashed for trial in run.trials] == [False, True, False, False, False]
    assert [trial.requests for trial in run.trials] == [10, None, 10, None, 10]
    assert [trial.cost_s for trial in run.trials] == [10.0, 20.0, 30.0, 40.0, 50.0]
    assert run.trials[1].config == Config({"seqs": 2})


def test_what_was_measured_again_is_no_trial_but_the_last_word(tmp_path: Path) -> None:
    log = StudyLog(write(tmp_path / "one", replace(SPEC, try_default=False)))
    original = log.trials()[4]
    for number, (goodput, config) in enumerate([(66.0, original.config), (48.0, log.trials()[0].config)], start=6):
        log.append(Trial(number, config, config, measured(goodput, 0.2), 9.0, recheck=5 if number == 6 else 1))
    (run,) = read(tmp_path / "one")
    assert len(run.trials) == 5
    assert run.best == 70.0
    assert run.held_out == pytest.approx(66.0)


def test_a_config_that_lost_a_race_is_dropped_and_not_feasible(tmp_path: Path) -> None:
    def raced(rate: float, lost: bool) -> Outcome:
        legs = (Leg(rate, not lost, 20, 20, True, 1.0 if lost else -1.0),)
        return replace(measured(1.0, 0.3), capacity=Capacity(legs, 0.05, to_beat=rate if lost else None))

    (run,) = read(write(tmp_path / "one", replace(SPEC, objective="capacity"), [raced(4.0, False), raced(3.6, True)]))
    assert [(t.feasible, t.dropped, t.score, t.requests) for t in run.trials] == [
        (True, False, 4.0, 10),
        (False, True, None, None),
    ]


def test_a_directory_of_studies_is_read_one_level_down(tmp_path: Path) -> None:
    for seed in (2, 1):
        write(tmp_path / "all" / f"r{seed}", replace(SPEC, seed=seed))
    write(tmp_path / "all" / "r1" / "prior", replace(SPEC, seed=9))
    assert [run.seed for run in read(tmp_path / "all")] == [1, 2]
    assert [run.seed for run in read(tmp_path / "all", tmp_path / "all" / "r2")] == [1, 2], "the same study once"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"slo_p99_s": {"ttft": 0.4}}, "slo_p99_s"),
        ({"objective": "capacity"}, "objective"),
        ({"model": "other"}, "model"),
        ({"request_rate": 3.0}, "request_rate"),
        ({"workload": "batch"}, "workload"),
        ({"engine_args": {"dtype": "half"}}, "engine_args"),
    ],
)
def test_studies_of_different_tasks_are_not_mixed(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    write(tmp_path / "all" / "a")
    write(tmp_path / "all" / "b", replace(SPEC, seed=2, **change))
    with pytest.raises(SpecError, match="all/b has that, all/a has") as raised:
        read(tmp_path / "all")
    assert raised.value.field == field


def test_another_gpu_is_another_task_but_another_python_is_not(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", replace(SPEC, seed=2), engine={**ENGINE, "python": "/b/python"})
    assert len(read(tmp_path / "a", tmp_path / "b")) == 2
    write(tmp_path / "c", replace(SPEC, seed=3), engine={**ENGINE, "gpu": "H100"})
    with pytest.raises(SpecError, match="engine gpu = 'H100'"):
        read(tmp_path / "a", tmp_path / "c")


def test_a_file_is_what_it_held_wherever_it_lay(tmp_path: Path) -> None:
    for seed, (path, held) in enumerate([("x/trace.csv", "ab"), ("y/trace.csv", "ab"), ("x/trace.csv", "cd")]):
        write(tmp_path / str(seed), replace(SPEC, seed=seed, workload=path, inputs={path: held}))
    assert len(read(tmp_path / "0", tmp_path / "1")) == 2
    with pytest.raises(SpecError, match="workload"):
        read(tmp_path / "0", tmp_path / "2")


def test_how_a_search_differed_is_part_of_its_label(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", replace(SPEC, optimizer="tpe", race=False))
    write(tmp_path / "c", replace(SPEC, optimizer="tpe", priors=("sim", "../earlier"), try_default=False))
    write(tmp_path / "d", replace(SPEC, budget_s=5400.0, budget=99, rechecks=0), lanes=4)
    labels = [run.label for run in read(*(tmp_path / name for name in "abcd"))]
    assert labels == ["random", "tpe, no race", "tpe, prior sim+study, no default", "random, 90 min, 4 at a time"]
    assert [run.label for run in read(tmp_path / "b")] == ["tpe"], "where there is nothing to tell apart"


def test_one_seed_from_two_places_is_told_apart_and_from_one_place_refused(tmp_path: Path) -> None:
    for machine in ("one", "two"):
        for seed in (1, 2):
            write(tmp_path / machine / f"random.{seed}", replace(SPEC, seed=seed))
    write(tmp_path / "one" / "tpe.1", replace(SPEC, optimizer="tpe"))
    labels = [run.label for run in read(tmp_path / "one", tmp_path / "two")]
    assert labels == ["random (one)", "random (one)", "tpe", "random (two)", "random (two)"]
    write(tmp_path / "one" / "random.1-again")
    with pytest.raises(SpecError, match="hold the same: random with seed 1"):
        read(tmp_path / "one")
    with pytest.raises(SpecError, match="hold the same: random with seed 1"):
        read(tmp_path / "one", tmp_path / "two")


def test_a_study_without_a_trial_is_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", replace(SPEC, seed=2), [])
    runs, notes = read_runs([tmp_path / "a", tmp_path / "b"])
    assert len(runs) == 1
    assert notes == ["b holds no trial and is left out"]
    with pytest.raises(SpecError, match="holds no trial"):
        read(tmp_path / "b")


def test_different_versions_of_the_tuner_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a", sloguard="0.1.0")
    write(tmp_path / "b", replace(SPEC, seed=2), sloguard="0.2.0")
    _, notes = read_runs([tmp_path / "a", tmp_path / "b"])
    assert notes == ["made by different versions of sloguard: 0.1.0, 0.2.0"]
    assert read_runs([tmp_path / "a"])[1] == []


def test_a_study_that_knew_of_earlier_crashes_says_so(tmp_path: Path) -> None:
    write(tmp_path / "a", failures=[{"config": {}}])
    assert read(tmp_path / "a")[0].warned


def test_what_is_no_study_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpecError, match="holds no study"):
        read(tmp_path / "empty")
    with pytest.raises(SpecError, match="is not there"):
        read(tmp_path / "nowhere")
    write(tmp_path / "spec")
    path = tmp_path / "spec" / "study.jsonl"
    path.write_text(path.read_text().replace('"budget":4', '"budget":0'))
    with pytest.raises(LogError, match="line 1: 'spec' can't be read"):
        read(tmp_path / "spec")


def test_published_trials_are_grouped_by_optimizer_and_seed(tmp_path: Path) -> None:
    rows = [
        row(2, 500.0, eval_time_s=9.0),
        row(1, config={"seqs": 4}),
        row(1, seed=8, status="crash"),
        row(1, optimizer="tpe"),
    ]
    rows[2].pop("avg_latency_ms")
    runs, notes = read_runs([published(tmp_path / "t.jsonl", *rows)])
    assert [(run.label, run.seed, len(run.trials)) for run in runs] == [
        ("random", 7, 2),
        ("random", 8, 1),
        ("tpe", 7, 1),
    ]
    assert notes == []
    first, second = runs[0].trials
    assert (first.score, first.config, first.cost_s) == (-0.4, Config({"seqs": 4}), None)
    assert (second.score, second.cost_s) == (-0.5, 9.0)
    assert runs[1].trials[0].crashed


def test_loads_whose_requests_came_one_after_another_are_recognised(tmp_path: Path) -> None:
    alone = [row(n, 400.0 + n, total_tokens=500, goodput_tps=500 / (5 * (400.0 + n) / 1000)) for n in (1, 2)]
    (run,) = read(published(tmp_path / "alone.jsonl", *alone))
    assert run.one_at_a_time
    assert [trial.requests for trial in run.trials] == [5, 5]
    together = [{**one, "goodput_tps": one["goodput_tps"] * 2.3} for one in alone]
    (run,) = read(published(tmp_path / "together.jsonl", *together))
    assert not run.one_at_a_time
    assert [trial.requests for trial in run.trials] == [None, None]
    many = [{**one, "total_tokens": 6400, "goodput_tps": 6400 / (n + 0.4)} for n, one in enumerate(alone, start=67)]
    (run,) = read(published(tmp_path / "many.jsonl", *many))
    assert not run.one_at_a_time, "a large quotient is no nearer to a whole number than a small one"


def test_trials_of_no_optimizer_are_taken_by_the_file_that_they_are_from(tmp_path: Path) -> None:
    rows = [
        {
            "trial": n,
            "seed": 40 + n,
            "status": "feasible",
            "avg_latency_ms": 400,
            "_source_file": f"results/{name}.jsonl",
        }
        for name in ("early", "late")
        for n in (1, 2)
    ]
    runs, notes = read_runs([published(tmp_path / "pilot.jsonl", *rows)])
    assert [(run.label, run.seed, len(run.trials)) for run in runs] == [
        ("results/early.jsonl", None, 2),
        ("results/late.jsonl", None, 2),
    ]
    assert len(notes) == 1
    assert "pilot.jsonl names no optimizer" in notes[0]
    (run,) = read(published(tmp_path / "plain.jsonl", {"trial": 1, "status": "infeasible"}))
    assert (run.label, run.seed) == ("plain.jsonl", None)


def test_two_published_files_of_one_seed_are_told_apart_by_their_names(tmp_path: Path) -> None:
    for name in ("first", "second"):
        rows = [row(n, 400.0, seed=seed, config={"seqs": n}) for seed in (1, 2) for n in (1, 2)]
        for seed in (1, 2):
            published(tmp_path / name / f"random_seed{seed}" / "results.jsonl", *(r for r in rows if r["seed"] == seed))
    runs, notes = read_runs(sorted(tmp_path.rglob("*.jsonl")))
    assert [run.label for run in runs] == ["random (first)", "random (first)", "random (second)", "random (second)"]
    assert "taken on trust" in notes[0]
    said = compare(runs).caveats
    assert any("4 of 4 configs are the same in random (first) and random (second)" in line for line in said)


def test_published_trials_and_studies_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="different tasks"):
        read(published(tmp_path / "t.jsonl", row(1)), write(tmp_path / "a", replace(SPEC, objective="latency")))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "is no trial"),
        ('{"status": "feasible"}', "is no trial"),
        ('{"trial": 2, "status": "fine"}', "status is 'fine'"),
        ('{"trial": 2, "status": "feasible", "avg_latency_ms": "fast"}', "avg_latency_ms is 'fast'"),
        ('{"trial": 2, "status": "feasible", "avg_latency_ms": NaN}', "avg_latency_ms is nan"),
        ('{"trial": 2, "status": "feasible", "seed": "x"}', "seed is 'x'"),
        ('{"trial": 2, "status": "feasible", "config": {"a": [1]}}', "config"),
        ('{"trial": 1, "status": "feasible", "seed": 7, "optimizer": "random"}', "comes twice"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = published(tmp_path / "t.jsonl", row(1))
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(SpecError, match=f"t.jsonl, line 3.*{says}"):
        read(path)


def test_a_file_that_is_no_text_is_said(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="can't be read as text"):
        read(tmp_path / "t.jsonl")


@needs_shared_data
def test_the_published_studies_have_the_published_figures() -> None:
    comparison = compare(read(SHARED_DATA / "tuning" / "sloguard_trials_sequential.jsonl"))
    random, tuned = comparison.groups
    assert (random.label, tuned.label) == ("random", "tba-tpe")
    assert (random.feasible, random.trials, tuned.feasible, tuned.trials) == (75, 75, 75, 75)
    rounded = {
        (group.label, name): (
            round(group.measures[name].mean or 0, digits),
            round(group.measures[name].sd or 0, digits),
        )
        for group in comparison.groups
        for name, digits in ((FAST_TRIALS, 2), (CONSISTENCY, 3), (BEST, 5))
    }
    assert rounded == {
        ("random", FAST_TRIALS): (7.40, 2.51),
        ("tba-tpe", FAST_TRIALS): (10.60, 0.89),
        ("random", CONSISTENCY): (0.539, 0.224),
        ("tba-tpe", CONSISTENCY): (0.876, 0.123),
        ("random", BEST): (0.43111, 0.00174),
        ("tba-tpe", BEST): (0.43157, 0.00190),
    }
    assert [(test.measure, round(test.p, 3)) for test in comparison.tests] == [
        (FAST_TRIALS, 0.008),
        (CONSISTENCY, 0.010),
        (BEST, 0.841),
    ]


@needs_shared_data
def test_the_published_pilot_is_read_as_three_studies() -> None:
    runs, notes = read_runs([SHARED_DATA / "tuning" / "sloguard_trials_pilot.jsonl"])
    assert [(run.seed, len(run.trials), sum(trial.crashed for trial in run.trials)) for run in runs] == [
        (None, 15, 4),
        (None, 15, 1),
        (None, 15, 0),
    ]
    assert "names no optimizer" in notes[0]
