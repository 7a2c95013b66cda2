"""Layouts of a model on GPUs: which there are, how vLLM is told, and what each GPU has to hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.space.flags import flag_names, to_flags, to_yaml
from sloguard.space.knobs import Categorical, Int
from sloguard.space.layout import LAYOUT, Layout, layouts
from sloguard.space.memory import fits
from sloguard.space.repair import RepairContext, refusal, repair
from sloguard.space.space import Space
from sloguard.trial import Config

LLAMA_8B, LLAMA_70B = MODELS["meta-llama/Llama-3.1-8B"], MODELS["meta-llama/Llama-3.1-70B"]  # 32 and 64 heads, 8 KV
MIXTRAL = MODELS["mistralai/Mixtral-8x7B-v0.1"]
QWEN = MODELS["Qwen/Qwen2-1.5B"]  # 12 heads, 2 KV heads
A100 = GPUS["A100-80GB"]


def test_every_way_to_use_all_gpus_those_that_split_layers_most_first() -> None:
    every = layouts(4, LLAMA_8B, pipeline=True, data=True)
    assert every == ("tp4", "tp2-dp2", "tp2-pp2", "dp4", "pp2-dp2", "pp4")
    assert layouts(4, LLAMA_8B, pipeline=False, data=True) == ("tp4", "tp2-dp2", "dp4")
    assert layouts(4, LLAMA_8B, pipeline=False, data=False) == ("tp4",)
    assert layouts(1, LLAMA_8B, pipeline=True, data=True) == ("tp1",)


def test_heads_that_do_not_divide_are_not_split() -> None:
    assert layouts(8, QWEN, pipeline=False, data=True) == ("tp4-dp2", "tp2-dp4", "dp8")  # 12 heads: not over 8
    assert layouts(3, QWEN, pipeline=False, data=True) == ("dp3",)  # 2 KV heads can't lie evenly on 3 GPUs
    with pytest.raises(SpecError, match="12 attention heads and 2 KV heads"):
        layouts(8, QWEN, pipeline=False, data=False)
    with pytest.raises(SpecError, match="not known"):
        layouts(8, None, pipeline=True, data=True)


@given(st.integers(1, 64), st.sampled_from([LLAMA_8B, QWEN, MIXTRAL]))
def test_each_uses_all_gpus_and_reads_back(gpus: int, model) -> None:
    for name in layouts(gpus, model, pipeline=True, data=True):
        layout = Layout.named(name)
        assert layout.tp * layout.pp * layout.dp == gpus
        assert str(layout) == name


def test_one_value_is_several_flags() -> None:
    assert to_flags({LAYOUT: "tp2-pp3-dp4", "max_num_seqs": 8}) == [
        *("--tensor-parallel-size", "2", "--pipeline-parallel-size", "3", "--data-parallel-size", "4"),
        *("--max-num-seqs", "8"),
    ]
    assert to_flags({LAYOUT: "tp1"}) == []
    assert flag_names(LAYOUT, "tp2-dp2") == ("--tensor-parallel-size", "--data-parallel-size")
    # another layout replaces the default's altogether
    assert yaml.safe_load(to_yaml({LAYOUT: "dp4"}, {"model": "m", LAYOUT: "tp4"})) == {
        "model": "m",
        "data-parallel-size": 4,
    }


def test_what_a_gpu_holds_of_a_model() -> None:
    whole, *parts = (fits({LAYOUT: name}, LLAMA_8B, A100) for name in ("tp1", "tp4", "pp4", "tp2-pp2", "dp4"))
    tp4, pp4, both, dp4 = (part.needed_bytes for part in parts)
    assert tp4["weights"] == pp4["weights"] == both["weights"] == whole.needed_bytes["weights"] // 4
    assert tp4["kv_cache"] == pp4["kv_cache"] == both["kv_cache"] == whole.needed_bytes["kv_cache"] // 4
    assert dp4 == whole.needed_bytes
    # experts are shared by the engines of data parallelism, so nothing is certain but that share
    assert fits({LAYOUT: "dp2"}, MIXTRAL, A100).needed_bytes["weights"] == MIXTRAL.weight_bytes // 2


SPACE = Space((Int("max_num_seqs", 8, 64), Categorical(LAYOUT, layouts(4, LLAMA_70B, pipeline=True, data=True))))


def test_repair_splits_what_does_not_fit_over_the_fewest_gpus_on_which_it_does() -> None:
    context = RepairContext((0, 32, 0), LLAMA_70B, A100, fixed=Config({"max_model_len": 8192}))

    def repaired(context: RepairContext, layout: str) -> str:
        return str(repair(Config({"max_num_seqs": 16, LAYOUT: layout}), SPACE, context).config[LAYOUT])

    stays = ("tp4", "pp4", "tp2-dp2", "pp2-dp2")
    assert [repaired(context, name) for name in (*stays, "dp4")] == [*stays, "tp2-dp2"]
    small = replace(context, gpu=GPUS["L4"])
    assert repaired(small, "dp4") == "dp4"
    assert "weights" in (refusal(Config({"max_num_seqs": 16, LAYOUT: "dp4"}), SPACE, small) or "")
