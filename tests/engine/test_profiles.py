from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sloguard.engine.profiles import (
    DATA_DIR,
    Profile,
    cpu_name,
    device_name,
    find,
    fit_steps,
    profile_key,
    profiles_dir,
    read_profile,
)
from sloguard.errors import LogError, SpecError
from sloguard.perf.batch_time import Batch, BatchTime, Piece
from sloguard.perf.fit import Sample
from sloguard.report.files import write_text_atomic
from sloguard.rng import stream

TRUE = BatchTime((Piece(10e-3, 370e-6, 400e-6, 1e-6, 50e-9),))


def steps(count: int = 600, noise: float = 0.03, stalls: int = 0) -> list[Sample]:
    """Of an engine with that time, and now and then a step of a second."""
    rng = stream(0, "steps")
    made: list[Sample] = []
    for i in range(count):
        decodes = int(rng.integers(0, 64)) if i % 3 else 0
        chunks = ((int(2 ** rng.uniform(2, 11)), 0),) if i % 3 != 1 or not decodes else ()
        batch = Batch(chunks, decodes, decodes * int(rng.integers(8, 500)))
        made.append(Sample(batch, TRUE.seconds(batch) * float(rng.lognormal(0.0, noise))))
    for i in rng.permutation(count)[:stalls]:
        made[i] = replace(made[i], seconds=made[i].seconds + 1.0)
    return made


def profile(model: str = "org/model") -> Profile:
    key = profile_key(model, "H100", "0.32.0", {"enforce_eager": True, "max_num_seqs": 8, "dtype": "bfloat16"})
    return Profile(key, fit_steps(steps()), {"max_model_len": 4096}, "2030-01-02T03:04:05+00:00")


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_DIR, str(tmp_path / "data"))


def save(what: Profile) -> Path:
    profiles_dir().mkdir(parents=True, exist_ok=True)
    path = profiles_dir() / what.key.file_name
    write_text_atomic(path, what.to_text())
    return path


def test_what_was_saved_is_found_again() -> None:
    saved = profile()
    assert find(saved.key) is None
    save(saved)
    assert find(saved.key) == saved


def test_a_profile_is_of_the_arguments_that_step_times_depend_on() -> None:
    def key(**arguments: bool | int | str) -> object:
        return profile_key("org/model", "H100", "0.32.0", arguments)

    assert key(max_num_seqs=8, max_model_len=512) == key(max_num_batched_tokens=256, enable_prefix_caching=False)
    assert key(enforce_eager=True) != key()
    assert key(quantization="fp8") != key(quantization="awq")
    assert key(an_argument_of_the_future=1) != key()
    assert profile_key("org/model", "A100-80GB", "0.32.0", {}) != key()
    assert profile_key("org/model", "H100", "0.33.0", {}) != key()


def test_a_model_directory_is_known_by_its_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    with pytest.raises(SpecError, match=r"config\.json"):
        profile_key(str(directory), "H100", "0.32.0", {})
    (directory / "config.json").write_text('{"hidden_size": 384}')
    monkeypatch.chdir(tmp_path)
    before = profile_key(str(directory), "H100", "0.32.0", {})
    assert profile_key("model", "H100", "0.32.0", {}) == before
    (directory / "config.json").write_text('{"hidden_size": 512}')
    assert profile_key("model", "H100", "0.32.0", {}) != before


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:200],
        lambda text: "[]",
        lambda text: text.replace('"schema": 1', '"schema": 2'),
        lambda text: text.replace('"pieces"', '"piece"'),
        lambda text: json.dumps({**json.loads(text), "batch_time": {**json.loads(text)["batch_time"], "pieces": []}}),
        lambda text: json.dumps({**json.loads(text), "held_out": {"decode": {"n": 1}}}),
    ],
    ids=["cut short", "a list", "another schema", "a field gone", "no piece", "figures gone"],
)
def test_a_corrupt_profile_is_an_error(damage) -> None:
    saved = profile()
    path = save(saved)
    path.write_text(damage(path.read_text()))
    with pytest.raises(LogError, match=r"is no profile .* Make it again with `sloguard profile`, or delete it"):
        find(saved.key)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="No such file"):
        read_profile(tmp_path / "none.json")


def test_one_name_for_one_gpu() -> None:
    assert device_name("h100", "cuda") == device_name("NVIDIA H100 80GB HBM3", "cuda") == "H100"
    assert device_name("Weird-9000", "cuda") == "Weird-9000"
    assert device_name("H100", "cpu") == cpu_name()
    assert "cores" in cpu_name()


def test_the_fit_generalises_and_says_so() -> None:
    found = fit_steps(steps())
    assert found.samples == 600
    assert found.slow_steps == 0
    assert set(found.held_out) == {"decode", "prefill", "mixed"}
    for figures in found.held_out.values():
        assert figures.n > 10
        assert figures.mape < 0.05
        assert figures.r2 > 0.95


def test_stalls_are_counted_and_do_not_bend_the_fit() -> None:
    calm, troubled = fit_steps(steps()), fit_steps(steps(stalls=12))
    assert 5 <= troubled.slow_steps <= 12  # a stall of a second is not twice as slow for the longest prompts
    for batch in (Batch((), 16, 2000), Batch(((512, 0),)), Batch(((512, 0),), 16, 2000)):
        assert troubled.batch_time.seconds(batch) == pytest.approx(calm.batch_time.seconds(batch), rel=0.1)


def test_too_few_steps() -> None:
    with pytest.raises(ValueError, match="too few"):
        fit_steps(steps(8))
    with pytest.raises(ValueError, match="too few"):
        fit_steps([Sample(Batch((), 4, 100), 0.01)] * 500)
