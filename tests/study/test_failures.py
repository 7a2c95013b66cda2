"""What never started is not started again: kept across studies, apart by engine, and nothing else is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optim.planted import OOM, PORT, measured
from sloguard.engine.processes import STATE_DIR
from sloguard.errors import LogError
from sloguard.study.failures import from_json, guarded, recalled, remember, to_json
from sloguard.trial import Config, Crashed, Outcome, Trial

HERE = {"engine": "vllm", "version": "0.32.0", "device": "A100-40GB", "model": "m", "python": "/one/python"}
CONFIG = Config({"max_num_seqs": 512, "enforce_eager": False, "watermark": 0.02})


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(STATE_DIR, str(tmp_path))
    return tmp_path


def trial(outcome: Outcome, config: Config = CONFIG) -> Trial:
    return Trial(2, config, config, outcome, 30.0)


def test_a_later_study_on_the_same_engine_knows_why() -> None:
    remember(HERE, trial(Crashed(OOM)))
    remember(HERE, trial(Crashed(OOM)))
    assert recalled({**HERE, "python": "/another/python"}) == {CONFIG: "oom/kv_cache: CUDA out of memory"}
    for name in ("version", "device", "model"):
        assert recalled({**HERE, name: "another"}) == {}


@pytest.mark.parametrize(
    "outcome",
    [
        measured(1.0, 0.3),
        Crashed(PORT),
        Crashed(replace(OOM, phase="load")),
        Crashed(replace(OOM, category="timeout", cause="startup")),
    ],
    ids=["measured", "the machine's fault", "under a load", "too slow"],
)
def test_what_may_go_well_another_time_is_not_kept(outcome: Outcome) -> None:
    remember(HERE, trial(outcome))
    assert recalled(HERE) == {}


@pytest.mark.parametrize(
    "failed",
    [replace(trial(Crashed(OOM)), proposed=Config()), replace(trial(Crashed(OOM)), recheck=1)],
    ids=["the default, of which nothing was asked", "measured again, so it did start once"],
)
def test_what_says_nothing_of_its_config_is_not_kept(failed: Trial) -> None:
    remember(HERE, failed)
    assert recalled(HERE) == {}


def test_what_ran_is_kept_and_not_what_was_proposed() -> None:
    remember(HERE, replace(trial(Crashed(OOM)), proposed=CONFIG.replace(max_num_seqs=4096)))
    assert list(recalled(HERE)) == [CONFIG]


def test_the_guard_turns_down_what_is_known_and_asks_on_about_the_rest() -> None:
    remember(HERE, trial(Crashed(OOM)))
    known = from_json(to_json(recalled(HERE)))
    guard = guarded(lambda config: "too large" if config["max_num_seqs"] == 9 else None, known)
    assert guard(CONFIG) == "it did not start in an earlier study: oom/kv_cache: CUDA out of memory"
    assert guard(CONFIG.replace(max_num_seqs=256)) is None
    assert guard(CONFIG.replace(max_num_seqs=9)) == "too large"


def test_a_file_that_is_no_record_is_named(state: Path) -> None:
    remember(HERE, trial(Crashed(OOM)))
    (path,) = state.glob("failures/*/*.json")
    path.write_text("{")
    with pytest.raises(LogError, match=path.name):
        recalled(HERE)
