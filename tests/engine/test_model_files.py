"""Where a model's architecture is found: directory, Hugging Face cache, built-in table, in that order."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sloguard.engine.model_files import cache_dir, find_model_shape, known_model_shape
from sloguard.errors import SpecError
from sloguard.perf.models import MODELS

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 32768,
}


def snapshot(hub: Path, model: str, revision: str, layers: int, *, main: bool = False) -> Path:
    repository = hub / f"models--{model.replace('/', '--')}"
    directory = repository / "snapshots" / revision
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    if main:
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(revision)
    return directory


def test_a_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    shape = find_model_shape(str(tmp_path), {})
    assert (shape.layers, shape.head_dim, shape.kv_bytes_per_token_per_rank(1)) == (2, 32, 512)


def test_the_cache_wins_over_the_table_and_main_over_newer_snapshots(tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(tmp_path)}
    assert find_model_shape("Qwen/Qwen2-1.5B", env).layers == 28
    newer = snapshot(tmp_path, "Qwen/Qwen2-1.5B", "bbb", layers=5)
    older = snapshot(tmp_path, "Qwen/Qwen2-1.5B", "ccc", layers=6)
    os.utime(older, (1, 1))
    os.utime(newer, (2, 2))
    assert find_model_shape("Qwen/Qwen2-1.5B", env).layers == 5
    snapshot(tmp_path, "Qwen/Qwen2-1.5B", "aaa", layers=3, main=True)
    assert find_model_shape("Qwen/Qwen2-1.5B", env).layers == 3


def test_a_cache_without_the_config_is_passed_over(tmp_path: Path) -> None:
    (snapshot(tmp_path, "Qwen/Qwen2-1.5B", "aaa", layers=3, main=True) / "config.json").unlink()
    assert find_model_shape("Qwen/Qwen2-1.5B", {"HF_HUB_CACHE": str(tmp_path)}) == MODELS["Qwen/Qwen2-1.5B"]


@pytest.mark.parametrize(
    ("env", "where"),
    [
        ({"HF_HUB_CACHE": "/a", "HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/b", "HF_HOME": "/c"}, "/b"),
        ({"HF_HOME": "/c", "XDG_CACHE_HOME": "/d"}, "/c/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
    ],
)
def test_where_the_cache_is(env: dict[str, str], where: str) -> None:
    assert cache_dir(env) == Path(where)


def test_the_cache_is_at_home_by_default() -> None:
    assert cache_dir({}) == Path.home() / ".cache" / "huggingface" / "hub"


def test_the_table_minds_no_case(tmp_path: Path) -> None:
    assert find_model_shape("qwen/qwen2-1.5b", {"HF_HOME": str(tmp_path)}) == MODELS["Qwen/Qwen2-1.5B"]


def test_an_unknown_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="hf download nobody/nothing"):
        find_model_shape("nobody/nothing", {"HF_HOME": str(tmp_path)})


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no config.json"), ("{", "can't be read"), ("[]", "no JSON object")]
)
def test_a_broken_directory(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(SpecError, match=message):
        find_model_shape(str(tmp_path), {})


def test_the_users_figures_win(tmp_path: Path) -> None:
    env = {"HF_HOME": str(tmp_path), "SLOGUARD_KV_BYTES_PER_TOKEN": "1000", "SLOGUARD_MODEL_FOOTPRINT_GB": "2.5"}
    shape = find_model_shape("Qwen/Qwen2-1.5B", env)
    assert (shape.kv_bytes(1), shape.kv_bytes(7, tp=2), shape.weight_bytes) == (1000, 3500, 2_500_000_000)


@pytest.mark.parametrize("variable", ["SLOGUARD_KV_BYTES_PER_TOKEN", "SLOGUARD_MODEL_FOOTPRINT_GB"])
@pytest.mark.parametrize("text", ["", "much", "-1", "0", "nan", "inf"])
def test_a_wrong_figure_is_an_error(tmp_path: Path, variable: str, text: str) -> None:
    with pytest.raises(SpecError, match=variable):
        find_model_shape("Qwen/Qwen2-1.5B", {"HF_HOME": str(tmp_path), variable: text})


UNKNOWN_BITS = {**CONFIG, "quantization_config": {"quant_method": "modelopt"}}


def test_the_stated_size_stands_in_for_bits_that_the_checkpoint_does_not_say(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(UNKNOWN_BITS))
    with pytest.raises(SpecError, match="SLOGUARD_MODEL_FOOTPRINT_GB"):
        find_model_shape(str(tmp_path), {})
    shape = find_model_shape(str(tmp_path), {"SLOGUARD_MODEL_FOOTPRINT_GB": "0.0005"})
    assert shape.weight_bytes == 500_000
    assert shape.weight_bits == pytest.approx(8 * 500_000 / shape.parameters)  # quantised: nothing to quantise again


@pytest.mark.parametrize(
    "config",
    [UNKNOWN_BITS, {"model_type": "mamba2"}, {**CONFIG, "first_k_dense_replace": [1, 2], "num_experts": 8}],
    ids=["unknown bits", "no transformer", "a list for a number"],
)
def test_a_shape_that_cannot_be_told_is_unknown_to_an_engine_that_may_know_it(
    config: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert known_model_shape(str(tmp_path), {}) is None
    with pytest.raises(SpecError, match="--model"):
        find_model_shape(str(tmp_path), {})
    with pytest.raises(SpecError, match="SLOGUARD_MODEL_FOOTPRINT_GB"):
        known_model_shape(str(tmp_path), {"SLOGUARD_MODEL_FOOTPRINT_GB": "much"})


def test_kv_bytes_given_in_gb_are_noticed(tmp_path: Path) -> None:
    """Another tool reads a variable of this kind as GB; 0.000028672 would make every config fit."""
    with pytest.raises(SpecError, match="bytes per token"):
        find_model_shape("Qwen/Qwen2-1.5B", {"HF_HOME": str(tmp_path), "SLOGUARD_KV_BYTES_PER_TOKEN": "0.000028672"})
