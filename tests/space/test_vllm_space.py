"""vLLM's knobs, flags, YAML and log, against the real command line and logs of 0.32."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from paths import REPO, SHARED_DATA, needs_shared_data
from sloguard.errors import SpecError
from sloguard.perf.gpus import GPUS
from sloguard.space.flags import count_of, parse_effective, to_flags, to_yaml
from sloguard.space.knobs import Categorical, Float, Int
from sloguard.space.vllm import PAPER8, lossy, offered_flags, space_for, vllm_defaults
from sloguard.trial import Config, Value

HELP = (REPO / "tests" / "golden" / "vllm_0.32_help.txt").read_text()
ENGINE_PYTHON = REPO / ".venv-vllm" / "bin" / "python"


def test_paper8_is_the_table_of_the_paper() -> None:
    assert PAPER8.knobs == (
        Categorical("quantization", ("fp16",)),
        Int("max_num_seqs", 4, 128, log=True),
        Int("max_num_batched_tokens", 512, 8192, log=True),
        Float("gpu_memory_utilization", 0.60, 0.95),
        Int("max_model_len", 512, 4096, log=True),
        Categorical("enforce_eager", (True, False)),
        Categorical("enable_chunked_prefill", (True, False), when=("enforce_eager", False)),
        Categorical("enable_prefix_caching", (True, False)),
    )
    assert space_for("paper8", offered=offered_flags(HELP)) == PAPER8


def test_paper8_stays_below_what_the_model_takes() -> None:
    knob = space_for("paper8", max_len=2048).knob("max_model_len")
    assert (knob.low, knob.high) == (512, 2048)  # pyright: ignore[reportAttributeAccessIssue]
    assert space_for("paper8", max_len=131072) == PAPER8


def test_flags_that_the_real_command_line_offers() -> None:
    offered = offered_flags(HELP)
    assert {"--max-num-seqs", "--no-enable-prefix-caching", "--device-memory-utilization", "--watermark"} <= offered
    assert "--max-num-partial-prefills" not in offered  # gone by 0.32
    assert not any(flag.endswith(",") for flag in offered)
    assert offered_flags("") == frozenset()
    # text that only mentions a flag does not define it
    assert offered_flags("  --real-flag X\n                        see --mentioned-flag\n") == {"--real-flag"}


def test_modern_space_by_device() -> None:
    offered = offered_flags(HELP)
    known = {"version": (0, 32, 0), "offered": offered, "allow_lossy": True}
    gpu = space_for("vllm", gpu=GPUS["H100"], max_len=131072, **known)
    cpu = space_for("vllm", device="cpu", max_len=2048, **known)
    assert {"kv_cache_dtype", "async_scheduling", "max_cudagraph_capture_size"} <= set(gpu.names)
    assert not {"kv_cache_dtype", "async_scheduling", "max_cudagraph_capture_size"} & set(cpu.names)
    assert {"max_num_seqs", "max_num_batched_tokens", "gpu_memory_utilization"} <= set(gpu.names) & set(cpu.names)
    assert "max_model_len" not in {*gpu.names, *cpu.names}  # what users may send is not ours to shorten


def test_fp8_kv_cache_only_where_the_hardware_has_fp8() -> None:
    assert "kv_cache_dtype" not in space_for("vllm", gpu=GPUS["A100-40GB"], allow_lossy=True).names
    assert "kv_cache_dtype" in space_for("vllm", gpu=GPUS["L4"], allow_lossy=True).names
    assert "kv_cache_dtype" not in space_for("vllm", gpu=None, allow_lossy=True).names


def test_what_changes_answers_is_tuned_only_where_that_is_allowed(tmp_path: Path) -> None:
    assert "kv_cache_dtype" not in space_for("vllm", gpu=GPUS["L4"]).names
    file = tmp_path / "mine.toml"
    file.write_text('[quantization]\ntype = "categorical"\nchoices = ["none", "fp8"]\n')
    with pytest.raises(SpecError, match=r"quantization would change.*--allow-lossy"):
        space_for(str(file))
    assert space_for(str(file), allow_lossy=True).names == ("quantization",)
    assert lossy(Config({"quantization": "fp8", "kv_cache_dtype": "auto", "max_num_seqs": 8})) == ("quantization=fp8",)
    assert lossy(Config()) == ()


def test_switching_chunked_prefill_off_is_offered_only_where_a_whole_prompt_fits_a_step() -> None:
    assert "enable_chunked_prefill" in space_for("vllm", max_len=4096).names
    assert "enable_chunked_prefill" not in space_for("vllm", max_len=131072).names
    assert "enable_chunked_prefill" not in space_for("vllm").names


def test_thresholds_above_the_longest_sequence_are_not_offered() -> None:
    knob = space_for("vllm", max_len=600).knob("long_prefill_token_threshold")
    assert knob.values() == (0, 256, 512)


def test_drafts_by_look_up_are_one_argument() -> None:
    offered = offered_flags(HELP)
    for device in ("cuda", "cpu"):
        assert "speculative" in space_for("vllm", version=(0, 32, 0), offered=offered, device=device).names
    assert "speculative" not in space_for("vllm", offered=offered - {"--speculative-config"}).names
    assert to_flags({"speculative": "off"}) == []
    flag, argument = to_flags({"speculative": "ngram-3"})
    assert (flag, json.loads(argument)["num_speculative_tokens"]) == ("--speculative-config", 3)
    assert yaml.safe_load(to_yaml({"speculative": "ngram-3"}, {})) == {"speculative-config": argument}


def test_drafts_that_are_none_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[speculative]\ntype = "categorical"\nchoices = ["eagle"]\n')
    with pytest.raises(SpecError, match="speculative"):
        space_for(str(file), offered=offered_flags(HELP))


def test_versions_and_flags_filter_the_table() -> None:
    assert "watermark" in space_for("vllm", version=(0, 33, 0)).names
    assert "watermark" not in space_for("vllm", version=(0, 19, 1)).names
    few = space_for("vllm", offered=frozenset({"--max-num-seqs", "--max-cudagraph-capture-size"}))
    assert few.names == ("max_num_seqs", "max_cudagraph_capture_size")
    assert few.knob("max_cudagraph_capture_size").when is None


def test_a_space_asked_for_by_its_knobs_is_refused_where_they_are_missing() -> None:
    with pytest.raises(SpecError, match="enforce_eager"):
        space_for("paper8", offered=frozenset({"--dtype", "--max-num-seqs"}))


def test_own_space(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[stream_interval]\ntype = "int"\nlow = 1\nhigh = 8\n')
    assert space_for(str(file), offered=offered_flags(HELP)).names == ("stream_interval",)
    file.write_text('[no_such_flag]\ntype = "int"\nlow = 1\nhigh = 8\n')
    with pytest.raises(SpecError, match="no_such_flag"):
        space_for(str(file), offered=offered_flags(HELP))


@pytest.mark.parametrize(("name", "message"), [("paper9", "no such space"), ("absent.toml", "can't be read")])
def test_unknown_spaces(name: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        space_for(name)


@pytest.mark.parametrize(
    ("gpu", "tokens", "seqs"),
    [
        ("A100-40GB", 2048, 256),
        ("A100-80GB", 2048, 256),
        ("L40S", 2048, 256),
        ("H100", 8192, 1024),
        ("H200", 8192, 1024),
        ("B200", 16384, 1024),
        (None, 2048, 128),
    ],
)
def test_defaults_by_gpu(gpu: str | None, tokens: int, seqs: int) -> None:
    """EngineArgs.get_batch_defaults of vLLM 0.32, API server."""
    defaults = vllm_defaults((0, 32, 0), GPUS[gpu] if gpu else None)
    assert (defaults["max_num_batched_tokens"], defaults["max_num_seqs"]) == (tokens, seqs)
    assert defaults["gpu_memory_utilization"] == 0.92
    assert defaults["enable_prefix_caching"] is True


def test_flags_write_false_out() -> None:
    config = Config({"enable_prefix_caching": False, "enforce_eager": True, "max_num_seqs": 8, "seed": None})
    assert to_flags(config) == ["--no-enable-prefix-caching", "--enforce-eager", "--max-num-seqs", "8"]
    assert to_flags({"quantization": "fp16"}) == ["--dtype", "float16"]
    assert to_flags({"quantization": "awq"}) == ["--quantization", "awq"]


def test_yaml_needs_no_version_to_be_read() -> None:
    text = to_yaml({"enable_prefix_caching": False, "enforce_eager": True}, {"model": "m", "seed": None})
    assert yaml.safe_load(text) == {"model": "m", "no-enable-prefix-caching": True, "enforce-eager": True}
    assert text.startswith("model: m\n")


VALUES = (
    st.none() | st.booleans() | st.integers(0, 10**6) | st.floats(0.01, 1.0) | st.sampled_from(["auto", "fp8", "0.5"])
)


@given(st.dictionaries(st.sampled_from((*PAPER8.names[1:], "kv_cache_dtype")), VALUES))
def test_yaml_and_flags_say_the_same(config: dict[str, Value]) -> None:
    """Read as vLLM's load_config_file reads it: true is the bare flag, anything else flag and text."""
    from_yaml: list[str] = []
    for key, value in (yaml.safe_load(to_yaml(config, {})) or {}).items():
        from_yaml += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    assert from_yaml == to_flags(config)


@pytest.mark.parametrize(
    ("text", "number"),
    [(8192, 8192), ("8192", 8192), ("8k", 8000), ("8K", 8192), ("25.6k", 25600), ("2M", 2 * 1024**2)],
)
def test_counts_as_vllm_reads_them(text: Value, number: int) -> None:
    assert count_of(text) == number


@pytest.mark.parametrize("value", [None, True, "auto", "8q", -0.5, ""])
def test_what_is_no_count(value: Value) -> None:
    assert count_of(value) is None


LOG = """\
(APIServer pid=1) INFO 11-20 23:13:57 [api_utils.py:286] non-default args: {'host': '127.0.0.1', 'port': 8411, \
'model': './tiny', 'api_key': ['secret'], 'max_model_len': 4096, 'gpu_memory_utilization': 0.15, \
'compilation_config': {'cudagraph_mode': 'NONE', 'x': [1, 2]}, 'scheduling_policy': 'priority', 'mode': <Mode.A: 1>}
(APIServer pid=1) INFO 11-20 23:13:57 [model.py:2152] Using max model len 2048
(APIServer pid=1) INFO 11-20 23:13:57 [scheduler.py:307] Chunked prefill is enabled with max_num_batched_tokens=512.
(APIServer pid=1) INFO 11-20 23:13:57 [vllm.py:900] Asynchronous scheduling is enabled.
(EngineCore_DP0 pid=2) INFO 11-20 23:14:02 [core.py:133] Initializing a V1 LLM engine (v0.24.0) with config: \
model='it\\'s, here', dtype=torch.float16, max_seq_len=2048, quantization=None, enforce_eager=False, \
kv_cache_dtype=fp8, decoding_config=DecodingConfig(backend='auto, really', x=[1, {'y': 2}]), seed=7, \
enable_prefix_caching=False, compilation_config={'cudagraph_mode': <CUDAGraphMode.FULL_AND_PIECEWISE: (2, 1)>, \
'max_cudagraph_capture_size': 512}
(EngineCore_DP0 pid=2) INFO 11-20 23:14:09 [kv_cache_utils.py:2327] GPU KV cache size: 3,135,360 tokens
"""


def test_effective_values_are_read_back() -> None:
    assert parse_effective(LOG) == {
        "async_scheduling": True,
        "cudagraph_mode": "FULL_AND_PIECEWISE",
        "dtype": "float16",
        "enable_prefix_caching": False,
        "enforce_eager": False,
        "gpu_memory_utilization": 0.15,
        "kv_cache_dtype": "fp8",
        "kv_cache_tokens": 3135360,
        "max_cudagraph_capture_size": 512,
        "max_model_len": 2048,
        "max_num_batched_tokens": 512,
        "quantization": None,
        "scheduling_policy": "priority",
        "seed": 7,
        "vllm_version": "0.24.0",
    }


@given(st.integers(0, len(LOG)), st.integers(0, len(LOG)))
def test_a_log_cut_anywhere_still_reads(start: int, end: int) -> None:
    whole = parse_effective(LOG)
    assert set(parse_effective(LOG[start:end])) <= {*whole, "mode", "x", "port", "host", "model"}


@needs_shared_data
def test_a_real_log() -> None:
    text = (SHARED_DATA / "crashes" / "vllm_cpu_0.32" / "sigterm_normal.log").read_text()
    found = parse_effective(text)
    asked = {"max_model_len": 2048, "enforce_eager": True, "gpu_memory_utilization": 0.15}
    assert asked.items() <= found.items()
    assert found["kv_cache_tokens"] == 3_135_360
    assert found["vllm_version"] == "0.32.0"
    assert found["enable_prefix_caching"] is True


@pytest.mark.vllm
@pytest.mark.skipif(not ENGINE_PYTHON.exists(), reason=f"no real vLLM at {ENGINE_PYTHON}")
def test_the_real_parser_reads_what_is_written(tmp_path: Path) -> None:
    config = Config({"enable_prefix_caching": False, "enable_chunked_prefill": False, "enforce_eager": True})
    numbers = Config({**config, "max_num_seqs": 8, "gpu_memory_utilization": 0.15, "quantization": "fp16"})
    numbers = numbers.replace(layout="tp2-dp2", speculative="ngram-3")
    file = tmp_path / "best.yaml"
    file.write_text(to_yaml(numbers, {"model": "some/model", "max_model_len": 2048}))
    script = """
import json, sys
try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:  # before 0.32
    from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
def read(args):
    found = vars(make_arg_parser(FlexibleArgumentParser()).parse_args(args))
    names = ("model", "dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "quantization",
             "enforce_eager", "enable_prefix_caching", "enable_chunked_prefill", "tensor_parallel_size",
             "data_parallel_size", "speculative_config")
    return {name: found[name] for name in names}
print(json.dumps([read(["--config", sys.argv[1]]), read(sys.argv[2:])]))
"""
    flags = ["--model", "some/model", "--max-model-len", "2048", *to_flags(numbers)]
    done = subprocess.run(
        [str(ENGINE_PYTHON), "-c", script, str(file), *flags], capture_output=True, text=True, check=True
    )
    from_yaml, from_flags = json.loads(done.stdout.splitlines()[-1])
    assert from_yaml == from_flags
    assert from_yaml == {
        "model": "some/model",
        "dtype": "float16",
        "max_model_len": 2048,
        "max_num_seqs": 8,
        "gpu_memory_utilization": 0.15,
        "quantization": None,
        "enforce_eager": True,
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "tensor_parallel_size": 2,
        "data_parallel_size": 2,
        "speculative_config": {
            "method": "ngram",
            "num_speculative_tokens": 3,
            "prompt_lookup_max": 4,
            "prompt_lookup_min": 2,
        },
    }


@pytest.mark.parametrize(
    ("lines", "cache"),
    [
        (["INFO [backends.py:383] Cache the graph of compile range (1, 2048) for later use"], "miss"),
        (["INFO [backends.py:399] Compiling a graph for compile range (1, 2048) takes 4.21 s"], "miss"),
        (["INFO Directly load the compiled graph(s) for compile range (1, 2048) from the cache, took 0.512 s"], "hit"),
        (["INFO Directly load AOT compilation from path /root/.cache/vllm/torch_compile_cache/x"], "hit"),
        (["INFO Directly load the compiled graph(s) for", "INFO Cache the graph of compile range (1, 8) for"], "miss"),
        (["INFO Cudagraph is disabled under eager mode"], None),
    ],
)
def test_whether_kernels_came_from_the_cache_is_part_of_what_ran(lines: list[str], cache: str | None) -> None:
    assert parse_effective("\n".join(lines)).get("compile_cache") == cache
