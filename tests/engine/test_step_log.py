from __future__ import annotations

import json
from pathlib import Path

import pytest

from sloguard.engine.step_log import read_step_log
from sloguard.errors import LogError
from sloguard.perf.batch_time import Batch
from sloguard.perf.fit import Sample

STEP = {"chunks": [[512, 0], [3, 128]], "decodes": 2, "kv_tokens": 90, "draft_tokens": 0, "draft_steps": 0}
LINE = json.dumps({**STEP, "seconds": 0.25})
SAMPLE = Sample(Batch(((512, 0), (3, 128)), 2, 90), 0.25)


def log(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "steps.jsonl"
    path.write_text(text)
    return path


def test_steps_are_samples_in_order(tmp_path: Path) -> None:
    decode = json.dumps({**STEP, "chunks": [], "seconds": 1})
    assert read_step_log(log(tmp_path, f"{LINE}\n{decode}\n")) == [SAMPLE, Sample(Batch((), 2, 90), 1.0)]


@pytest.mark.parametrize("end", [LINE[:40], LINE, ""], ids=["cut short", "without a newline", "none"])
def test_an_unfinished_last_line_is_dropped(end: str, tmp_path: Path) -> None:
    assert read_step_log(log(tmp_path, f"{LINE}\n{end}")) == [SAMPLE]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("{", "no step"),
        ("[1]", "fields"),
        (json.dumps(STEP), "fields"),
        (json.dumps({**STEP, "seconds": 1, "more": 1}), "fields"),
        (json.dumps({**STEP, "seconds": 0}), "seconds = 0"),
        (json.dumps({**STEP, "seconds": "1"}), "seconds = '1'"),
        (json.dumps({**STEP, "seconds": 1}).replace(": 1}", ": NaN}"), "seconds = nan"),
        (json.dumps({**STEP, "seconds": 1, "decodes": -1}), "decodes = -1"),
        (json.dumps({**STEP, "seconds": 1, "kv_tokens": 1.5}), "kv_tokens = 1.5"),
        (json.dumps({**STEP, "seconds": 1, "chunks": [[0, 4]]}), "tokens of a chunk = 0"),
        (json.dumps({**STEP, "seconds": 1, "chunks": [[4]]}), "pairs"),
        (json.dumps({**STEP, "seconds": 1, "chunks": [], "decodes": 0}), "neither"),
    ],
)
def test_any_other_wrong_line_is_named(wrong: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"steps\.jsonl, line 2: .*" + says.replace(".", r"\.")):
        read_step_log(log(tmp_path, f"{LINE}\n{wrong}\n{LINE}\n"))


def test_a_log_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="No such file"):
        read_step_log(tmp_path / "none.jsonl")
