from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sloguard.crash import classify
from sloguard.engine.base import Engine, EngineSetup, Run, Timeouts, once
from sloguard.engine.simulated import SimulatedEngine
from sloguard.errors import EngineCrash, SpecError
from sloguard.metrics import summarise
from sloguard.perf.gpus import GPUS
from sloguard.perf.models import MODELS
from sloguard.request import End, Request, Stage
from sloguard.rng import stream
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.space import Space
from sloguard.space.vllm import space_for
from sloguard.trial import Config

SMALL = MODELS["Qwen/Qwen2-1.5B"]


def engine(seed: int = 0, noise: float = 0.02, **more) -> SimulatedEngine:
    return SimulatedEngine(SMALL, GPUS["A100-40GB"], 1, seed, fixed={"max_model_len": 4096}, noise=noise, **more)


def requests(n: int = 60, rate: float = 20.0, prompt: int = 300, output: int = 100) -> list[Request]:
    arrivals = np.cumsum(stream(0, "test arrivals").exponential(1 / rate, n))
    return [Request(str(i), float(t), (Stage(prompt, output),)) for i, t in enumerate(arrivals)]


def tokens(run: Run) -> list[list[float]]:
    return [line.token_s.tolist() for line in run.timelines]


def test_equal_seed_and_config_give_an_equal_run_and_another_seed_another(tmp_path: Path):
    config = Config({"max_num_seqs": 32})
    first, second = (engine().run(config, once(requests()), tmp_path) for _ in range(2))
    assert tokens(first) == tokens(second)
    assert (first.startup_s, first.cost_s, first.effective) == (second.startup_s, second.cost_s, second.effective)
    assert tokens(engine(seed=1).run(config, once(requests()), tmp_path)) != tokens(first)


def test_order_of_runs_changes_nothing(tmp_path: Path):
    a, b = Config({"max_num_seqs": 32}), Config({"max_num_seqs": 8})
    one, other = engine(), engine()
    forth = [tokens(one.run(config, once(requests()), tmp_path)) for config in (a, b)]
    back = [tokens(other.run(config, once(requests()), tmp_path)) for config in (b, a)]
    assert forth == back[::-1]


def test_a_default_written_out_is_the_default(tmp_path: Path):
    quiet = engine()
    said = quiet.run(Config({"enforce_eager": False, "max_num_seqs": 256}), once(requests()), tmp_path)
    assert tokens(said) == tokens(quiet.run(Config(), once(requests()), tmp_path))


@pytest.mark.parametrize(
    ("gpu", "batched_tokens", "seqs"),
    [("A100-40GB", 2048, 256), ("A100-80GB", 2048, 256), ("H100", 8192, 1024), ("B200", 16384, 1024)],
)
def test_defaults_are_those_of_vllm_on_that_gpu(gpu: str, batched_tokens: int, seqs: int):
    config = SimulatedEngine(SMALL, GPUS[gpu]).default_config()
    assert (config["max_num_batched_tokens"], config["max_num_seqs"]) == (batched_tokens, seqs)
    assert (config["gpu_memory_utilization"], config["max_model_len"]) == (0.92, 131072)


def test_says_everywhere_that_it_is_simulated(tmp_path: Path):
    described = engine().describe()
    assert (described["engine"], described["simulated"]) == ("sim", "true")
    assert "A100" in described["step_times"]
    with pytest.raises(EngineCrash):
        engine().run(Config({"max_num_seqs": 4096}), once(requests()), tmp_path)
    assert "sloguard simulates" in (tmp_path / "engine.log").read_text()


def test_published_latency_of_the_simulated_pair(tmp_path: Path):
    """SLO-Guard's public sequential trials: 100 tokens in about 431 ms with CUDA graphs, 1980 ms eager."""
    alone = [Request(str(i), 10.0 * i, (Stage(20, 100),)) for i in range(5)]
    for eager, published_s in ((False, 0.431), (True, 1.98)):
        run = engine().run(Config({"enforce_eager": eager}), once(alone), tmp_path)
        assert summarise(run.timelines).e2el_s.mean == pytest.approx(published_s, rel=0.15)


def test_knobs_move_what_they_move_on_a_gpu(tmp_path: Path):
    def run(load: list[Request], **changes) -> Run:
        return engine(noise=0.0).run(Config(changes), once(load), tmp_path)

    busy = requests(400, rate=200.0, prompt=600)
    few, many = (summarise(run(busy, max_num_seqs=n).timelines) for n in (32, 256))
    assert few.ttft_s.p99 > many.ttft_s.p99  # type: ignore[operator]
    assert few.itl_s.p50 < many.itl_s.p50  # type: ignore[operator]
    assert few.output_throughput < many.output_throughput

    long = [Request(str(i), 0.2 * i, (Stage(3500, 50),)) for i in range(30)]
    small, large = (summarise(run(long, max_num_batched_tokens=n).timelines) for n in (512, 8192))
    assert small.itl_s.p99 < large.itl_s.p99  # type: ignore[operator]

    eager, synchronous, base = (
        run(requests(), **k) for k in ({"enforce_eager": True}, {"async_scheduling": False}, {})
    )
    assert eager.startup_s < base.startup_s
    for slow in (eager, synchronous):
        assert summarise(slow.timelines).tpot_s.mean > summarise(base.timelines).tpot_s.mean  # type: ignore[operator]

    assert run([], gpu_memory_utilization=0.7).effective["kv_cache_tokens"] < base.effective["kv_cache_tokens"]  # type: ignore[operator]


def test_fp8_kv_doubles_the_cache_and_is_read_faster(tmp_path: Path):
    h100 = SimulatedEngine(MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"], noise=0.0)
    wide, narrow = (h100.run(Config({"kv_cache_dtype": k}), once(requests()), tmp_path) for k in ("auto", "fp8"))
    assert narrow.effective["kv_cache_tokens"] == pytest.approx(2 * wide.effective["kv_cache_tokens"], rel=0.001)  # type: ignore[operator]
    assert summarise(narrow.timelines).tpot_s.mean < summarise(wide.timelines).tpot_s.mean  # type: ignore[operator]


def test_too_long_requests_are_refused_and_slow_ones_time_out(tmp_path: Path):
    too_long = Request("long", 0.0, (Stage(4090, 20),))
    slow = Request("slow", 0.0, (Stage(10, 2000),))
    impatient = engine(timeouts=Timeouts(request_s=2.0))
    ends = [line.end for line in impatient.run(Config(), once([too_long, slow]), tmp_path).timelines]
    assert ends == [End.REFUSED, End.TIMED_OUT]


def test_a_crash_costs_the_time_it_took_and_is_classified_like_a_real_one(tmp_path: Path):
    crashed = SimulatedEngine(MODELS["meta-llama/Llama-3.1-8B"], GPUS["L4"])
    with pytest.raises(EngineCrash) as raised:
        crashed.run(crashed.default_config(), once(requests()), tmp_path)
    crash = classify(raised.value.evidence)
    assert (crash.category, crash.phase, crash.environment) == ("oom", "startup", False)
    assert "GiB" in crash.line
    assert 10 < raised.value.cost_s < 120


@pytest.mark.parametrize(
    ("model", "gpu", "max_model_len"),
    [("Qwen/Qwen2-1.5B", "A100-40GB", 4096), ("meta-llama/Llama-3.1-8B", "A100-40GB", 131072)],
)
def test_a_fifth_to_three_fifths_of_random_configs_fail(model: str, gpu: str, max_model_len: int, tmp_path: Path):
    simulated = SimulatedEngine(MODELS[model], GPUS[gpu], fixed={"max_model_len": max_model_len})
    offered = simulated.facts().offered
    space = space_for("vllm", version=(0, 32, 0), offered=offered, gpu=GPUS[gpu], max_len=max_model_len)
    rng = stream(0, "random configs")
    crashes = 0
    for _ in range(200):
        try:
            simulated.run(space.sample(rng), once([]), tmp_path)
        except EngineCrash:
            crashes += 1
    assert 40 <= crashes <= 120


@pytest.mark.parametrize(
    ("setup", "field"),
    [
        (EngineSetup("Qwen/Qwen2-1.5B"), "--gpu"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="A100"), "--gpu"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", fixed={"max_num_sequences": 3}), "max_num_sequences"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", tensor_parallel=0), "tensor_parallel"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", base_url="http://127.0.0.1:8000"), "--base-url"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", python="/usr/bin/python3"), "--engine-python"),
        (EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", api_key="hush"), "--api-key-env"),
    ],
)
def test_what_cannot_be_simulated_is_the_users_error(setup: EngineSetup, field: str):
    with pytest.raises(SpecError) as raised:
        SimulatedEngine.from_setup(setup)
    assert raised.value.field == field
    assert "hush" not in str(raised.value)


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        (Float("gpu_memory_utilization", 0.5, 2.5), "2.5"),
        (Float("gpu_memory_utilization", 0.0, 0.9), "0.0"),
        (Float("max_num_seqs", 4, 8), "4.0"),
        (Int("max_num_batched_tokens", 0, 8192), "0"),
        (Categorical("kv_cache_dtype", ("auto", "int3")), "int3"),
        (Int("warp_speed", 1, 9), "warp_speed"),
    ],
    ids=lambda part: getattr(part, "name", part),
)
def test_a_space_it_cannot_run_is_refused_before_any_trial(knob: Knob, value: str):
    with pytest.raises(SpecError, match=value) as raised:
        engine().check_space(Space((Int("block_size", 16, 64), knob)))
    assert raised.value.field == knob.name


@pytest.mark.parametrize("name", ["vllm", "paper8"])
def test_the_offered_spaces_pass(name: str):
    offered = engine().facts().offered
    space = space_for(name, version=(0, 32, 0), offered=offered, gpu=GPUS["H100"], max_len=4096)
    engine().check_space(space)
    assert "speculative" not in space.names


def test_tensor_parallel_comes_from_the_setup():
    made = SimulatedEngine.from_setup(EngineSetup("Qwen/Qwen2-1.5B", gpu="H100", tensor_parallel=2))
    assert made.tp == 2
    assert "--tensor-parallel-size" in made.command_for(Config())


def test_it_is_an_engine():
    made: Engine = SimulatedEngine.from_setup(EngineSetup("Qwen/Qwen2-1.5B", gpu="A100-40GB"))
    facts = made.facts()
    assert (facts.device, facts.model, facts.gpu) == ("cuda", SMALL, GPUS["A100-40GB"])


GPU_LAYOUTS = {"gpus": 4, "fixed": {"max_model_len": 4096}, "noise": 0.0}


def test_layouts_are_tensor_parallelism_and_replicas(tmp_path: Path):
    laid_out = SimulatedEngine(MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"], **GPU_LAYOUTS)
    assert laid_out.facts().layouts == ("tp4", "tp2-dp2", "dp4")  # no pipelines: they are not simulated
    split = SimulatedEngine(
        MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"], 4, fixed={"max_model_len": 4096}, noise=0.0
    )
    alone = SimulatedEngine(
        MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"], 1, fixed={"max_model_len": 4096}, noise=0.0
    )
    load = requests(64, rate=1e6)
    assert tokens(laid_out.run(Config(), once(load), tmp_path)) == tokens(split.run(Config(), once(load), tmp_path))
    assert laid_out.default_config()["layout"] == "tp4"
    four = laid_out.run(Config({"layout": "dp4"}), once(load), tmp_path)
    assert four.effective["layout"] == "dp4"
    # requests that all come at once go to the engines in turn, each of which serves its quarter alone
    assert tokens(four)[::4] == tokens(alone.run(Config(), once(load[::4]), tmp_path))


def test_the_default_of_several_gpus_uses_them_all():
    laid_out = SimulatedEngine(MODELS["meta-llama/Llama-3.1-8B"], GPUS["H100"], **GPU_LAYOUTS)
    assert "--tensor-parallel-size 4" in " ".join(laid_out.command_for(Config()))
    other = laid_out.command_for(Config({"layout": "tp2-dp2", "max_num_seqs": 8}))
    assert "--tensor-parallel-size 2 --data-parallel-size 2 --max-model-len" in " ".join(other)


def test_engines_that_share_experts_are_not_simulated():
    mixture = SimulatedEngine(MODELS["mistralai/Mixtral-8x7B-v0.1"], GPUS["H100"], gpus=4)
    assert mixture.facts().layouts == ("tp4",)
