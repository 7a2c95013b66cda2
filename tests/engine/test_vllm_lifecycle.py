"""The vLLM engine's own work - start, judge, stop, record - over a fake server that fails on request."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from procs import alive_with
from sloguard.engine import gpu_memory, vllm, vllm_server
from sloguard.engine.base import EngineSetup, Questions, Timeouts, once
from sloguard.engine.processes import STATE_DIR, Orphan
from sloguard.engine.vllm import VllmEngine, server_environment
from sloguard.engine.vllm_install import find_vllm
from sloguard.errors import EngineCrash, SpecError
from sloguard.perf.gpus import GIB, GPUS
from sloguard.request import End, Request, Stage
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.space import Space
from sloguard.space.vllm import space_for
from sloguard.trial import Answers, Config

FAKE = Path(__file__).with_name("fake_vllm.py")
QUICK = Timeouts(request_s=2, trial_s=20, server_start_s=30, first_start_s=30, preflight_s=1.5)
LOAD = [Request(f"r{i}", i * 0.01, (Stage(4, 5),)) for i in range(10)]

MakeEngine = Callable[..., VllmEngine]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An executable that behaves like a Python with vLLM."""
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    (tmp_path / "trial").mkdir()
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{FAKE}' \"$@\"\n")
    script.chmod(0o755)
    return str(script)


@pytest.fixture
def make_engine(python: str, monkeypatch: pytest.MonkeyPatch) -> MakeEngine:
    def make(fault: str = "", timeouts: Timeouts = QUICK) -> VllmEngine:
        monkeypatch.setenv("FAKE_VLLM_FAULT", fault)
        return VllmEngine("org/model", python=python, fixed={"dtype": "float16"}, warmup=0, timeouts=timeouts)

    return make


def record(tmp_path: Path) -> dict[str, object]:
    return json.loads((tmp_path / "trial" / "run.json").read_text())


def left(tmp_path: Path) -> list[int]:
    return alive_with(record(tmp_path)["run_id"])


def crash(engine: VllmEngine, tmp_path: Path) -> EngineCrash:
    with pytest.raises(EngineCrash) as caught:
        engine.run(Config({"max_num_seqs": 8}), once(LOAD), tmp_path / "trial")
    assert left(tmp_path) == []
    assert record(tmp_path)["crashed_during"] == caught.value.evidence.phase
    assert caught.value.cost_s > 0
    return caught.value


def test_a_run_that_works(make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    engine = make_engine()
    phases: list[str] = []
    run = engine.run(Config({"max_num_seqs": 8, "enforce_eager": False}), once(LOAD), tmp_path / "trial", phases.append)
    assert [t.end for t in run.timelines] == [End.COMPLETED] * len(LOAD)
    assert [t.request for t in run.timelines] == LOAD
    assert (phases[0], phases[-1]) == ("starting", "stopping")
    log = (tmp_path / "trial" / "engine.log").read_text()
    assert "serve org/model --dtype float16 --enforce-eager" not in log
    assert "serve org/model --dtype float16" in log
    assert "--no-enforce-eager" in log
    assert "usage stats 1" in log
    assert "secret" not in log + json.dumps(record(tmp_path))
    assert left(tmp_path) == []


def test_the_first_start_of_a_model_is_given_longer(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(timeouts=Timeouts(server_start_s=0.0, first_start_s=30))
    engine.run(Config(), once(LOAD), tmp_path / "trial")
    assert record(tmp_path)["first_start"] is True
    again = crash(engine, tmp_path)
    assert record(tmp_path)["first_start"] is False
    assert again.evidence.timed_out


def test_a_server_that_exits_at_once(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("cannot-start"), tmp_path).evidence
    assert (evidence.phase, evidence.exit_code, evidence.signal, evidence.timed_out) == ("startup", 1, None, False)
    assert "must be greater than or equal to max_num_seqs" in evidence.log_tail


def test_a_server_that_never_gets_ready(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("never-ready", Timeouts(first_start_s=1.0)), tmp_path).evidence
    assert (evidence.phase, evidence.exit_code, evidence.timed_out) == ("startup", None, True)


def test_healthy_is_not_serving(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("healthy-but-dead"), tmp_path).evidence
    assert (evidence.phase, evidence.timed_out) == ("startup", True)
    assert '"GET /health HTTP/1.1" 200' in evidence.log_tail


def test_exit_code_zero_is_not_health(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("engine-dead"), tmp_path).evidence
    assert (evidence.phase, evidence.exit_code, evidence.timed_out) == ("startup", 0, False)


def test_a_server_that_dies_under_load(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("dies-under-load"), tmp_path).evidence
    assert (evidence.phase, evidence.exit_code, evidence.timed_out) == ("load", 0, False)
    assert "EngineDeadError" in evidence.log_tail


def test_a_server_that_hangs_under_load(make_engine: MakeEngine, tmp_path: Path) -> None:
    evidence = crash(make_engine("hangs-under-load"), tmp_path).evidence
    assert (evidence.phase, evidence.exit_code, evidence.timed_out) == ("load", None, True)


def test_a_failed_request_of_a_live_server_is_a_result(make_engine: MakeEngine, tmp_path: Path) -> None:
    run = make_engine("fails-a-request").run(Config(), once(LOAD), tmp_path / "trial")
    assert sum(t.end is End.FAILED for t in run.timelines) == 1
    assert sum(t.end is End.COMPLETED for t in run.timelines) == len(LOAD) - 1


def test_a_model_that_does_not_complete_is_the_users_error(make_engine: MakeEngine, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="this model does not complete"):
        make_engine("refuses").run(Config(), once(LOAD), tmp_path / "trial")
    assert left(tmp_path) == []


def test_an_interrupt_stops_even_a_stubborn_server(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sloguard.engine.vllm.GRACE_S", 0.2)

    def interrupt(phase: str) -> None:
        if phase == "loading":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_engine("stubborn").run(Config(), once(LOAD), tmp_path / "trial", interrupt)
    assert left(tmp_path) == []
    assert record(tmp_path)["signal"] == 9


def test_only_the_end_of_a_long_log_is_evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "LOG_TAIL_BYTES", 20)
    log = tmp_path / "log"
    log.write_bytes(b"early\n" * 100 + "the é cause".encode())
    server = vllm_server.VllmServer(process=None, port=0, log=log, preflight_s=1)  # type: ignore[arg-type]
    assert server.log_tail().endswith("the é cause")
    assert len(server.log_tail().encode()) <= 22


def test_a_free_port_is_outside_the_range_of_outgoing_connections() -> None:
    low, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {vllm_server.free_port() for _ in range(20)}
    assert len(ports) > 1
    assert max(ports) < max(low, 32768)


@pytest.mark.parametrize(
    ("version", "problem"),
    [("", "vLLM is not installed there"), ("0.18.3", "has vLLM 0.18.3"), ("dev", "has vLLM dev")],
)
def test_no_usable_vllm(version: str, problem: str, python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_VERSION", version)
    with pytest.raises(SpecError, match=problem):
        find_vllm(python)


@pytest.mark.parametrize(
    ("version", "release", "device"),
    [
        ("0.19.0", (0, 19, 0), "cuda"),
        ("0.32.0+cpu", (0, 32, 0), "cpu"),
        ("0.33.1rc2.dev5+g0123abc.cu130", (0, 33, 1), "cuda"),
        ("1.0", (1, 0, 0), "cuda"),
    ],
)
def test_versions(
    version: str, release: tuple[int, int, int], device: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_VLLM_VERSION", version)
    install = find_vllm(python)
    assert (install.release, install.device) == (release, device)
    assert install.user_argv("org/model") == ["vllm", "serve", "org/model"]


@pytest.mark.parametrize("program", ["/nonexistent/python", "no-such-python", "/bin/false", "/dev/null"])
def test_a_python_that_is_none(program: str) -> None:
    with pytest.raises(SpecError, match="--engine-python"):
        find_vllm(program)


@pytest.mark.parametrize(
    ("prints", "says"),
    [("", "it answered nothing"), ("hello\\nworld", "'world'"), ("42", "'42'"), ('{"python": 3}', "python")],
)
def test_a_program_that_is_no_python(prints: str, says: str, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nprintf '{prints}'\n")
    program.chmod(0o755)
    with pytest.raises(SpecError, match=f"--engine-python.*is no Python.*{says}"):
        find_vllm(str(program))


def test_a_python_whose_site_prints_at_its_start(python: str, tmp_path: Path) -> None:
    chatty = tmp_path / "chatty"
    chatty.write_text(f"#!/bin/sh\necho welcome\nexec '{python}' \"$@\"\n")
    chatty.chmod(0o755)
    assert find_vllm(str(chatty)).version == "0.32.0"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="this Python has vLLM")
def test_this_python_without_vllm() -> None:
    with pytest.raises(SpecError, match="pip install vllm"):
        find_vllm()


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"model": "./no/such/model"}, "--model"),
        ({"model": "/no/such/model"}, "--model"),
        ({"model": "org/model", "fixed": {"port": 8000}}, "--engine-arg"),
        ({"model": "org/model", "tensor_parallel": 2, "fixed": {"tensor_parallel_size": 4}}, "--engine-arg"),
        ({"model": "org/model", "base_url": "http://127.0.0.1:1"}, "--base-url"),
        ({"model": "org/model", "api_key": "secret"}, "--api-key-env"),
    ],
)
def test_wrong_input_is_named(arguments: dict[str, object], field: str, python: str) -> None:
    with pytest.raises(SpecError) as caught:
        VllmEngine.from_setup(EngineSetup(python=python, **arguments))  # type: ignore[arg-type]
    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_a_directory_without_a_model(python: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"config\.json"):
        VllmEngine(str(tmp_path), python=python)


def test_a_knob_is_pinned_or_tuned(make_engine: MakeEngine) -> None:
    with pytest.raises(SpecError, match="pinned and tuned"):
        make_engine().command_for(Config({"dtype": "bfloat16"}))


@pytest.mark.parametrize(
    "knob",
    [
        Float("gpu_memory_utilization", 0.5, 2.5),
        Float("gpu_memory_utilization", 0.0, 0.9),
        Categorical("max_num_seqs", (8, "many")),
        Int("max_num_batched_tokens", 0, 8192),
        Int("port", 8000, 9000),
    ],
    ids=lambda knob: f"{knob.name} {knob.outermost()}",
)
def test_a_space_that_vllm_refuses_is_refused_first(knob: Knob, make_engine: MakeEngine) -> None:
    with pytest.raises(SpecError, match=knob.name):
        make_engine().check_space(Space((knob,)))


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_offered_spaces_pass(device: Literal["cuda", "cpu"], make_engine: MakeEngine) -> None:
    make_engine().check_space(space_for("vllm", device=device, gpu=GPUS["H100"]))
    make_engine().check_space(Space((Categorical("max_num_seqs", ("1k", 64)), Int("anything", -5, 5))))


def test_what_a_killed_sloguard_held_is_no_part_of_a_clean_gpu(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {"GPU-aaaa": 40 * GIB}

    def reap() -> list[Orphan]:
        held, used["GPU-aaaa"] = used["GPU-aaaa"], 0
        return [Orphan("id", "trials/007", ())] if held else []

    monkeypatch.setattr(vllm, "reap_orphans", reap)
    monkeypatch.setattr(gpu_memory, "used_bytes", lambda: dict(used))
    monkeypatch.setattr(gpu_memory, "SETTLE_S", 0.0)
    monkeypatch.setattr(vllm, "GPU_RELEASE_S", 0.1)
    engine = make_engine()
    used["GPU-aaaa"] = 4 * GIB
    monkeypatch.setattr(vllm, "reap_orphans", list[Orphan])
    run = engine.run(Config(), once(LOAD), tmp_path / "trial")
    assert any(str(4 * GIB) in note for note in run.notes)
    assert record(tmp_path)["orphans_ended"] == ["trials/007"]


def test_the_command_a_person_types(make_engine: MakeEngine) -> None:
    command = make_engine().command_for(Config({"enable_prefix_caching": False, "max_num_seqs": 8}))
    flags = ["--dtype", "float16", "--no-enable-prefix-caching", "--max-num-seqs", "8"]
    assert command == ["vllm", "serve", "org/model", *flags]


@pytest.fixture
def on_four(python: str) -> VllmEngine:
    return VllmEngine("meta-llama/Llama-3.1-8B", python=python, gpus=4, gpu="H100", warmup=0, timeouts=QUICK)


def test_the_model_is_laid_out_on_all_gpus(on_four: VllmEngine, tmp_path: Path) -> None:
    assert on_four.facts().layouts == ("tp4", "tp2-dp2", "dp4")  # that vLLM has no flag for pipelines
    assert on_four.default_config()["layout"] == "tp4"
    assert on_four.command_for(Config())[3:] == ["--tensor-parallel-size", "4"]
    assert on_four.command_for(Config({"layout": "dp4"}))[3:] == ["--data-parallel-size", "4"]
    run = on_four.run(Config({"layout": "tp2-dp2"}), once(LOAD), tmp_path / "trial")
    assert [t.end for t in run.timelines] == [End.COMPLETED] * len(LOAD)
    argv = " ".join(record(tmp_path)["argv"])  # type: ignore[arg-type]
    assert argv.endswith("--tensor-parallel-size 2 --data-parallel-size 2")


def test_each_layout_is_started_for_a_first_time(on_four: VllmEngine, tmp_path: Path) -> None:
    firsts: list[object] = []
    for layout in ("tp4", "dp4", "tp4"):
        on_four.run(Config({"layout": layout}), once([]), tmp_path / "trial")
        firsts.append(record(tmp_path)["first_start"])
    assert firsts == [True, True, False]


def test_gpus_for_a_vllm_without_any(python: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_VLLM_VERSION", "0.32.0+cpu")
    with pytest.raises(SpecError, match=r"--gpus = 4.*CPU"):
        VllmEngine("meta-llama/Llama-3.1-8B", python=python, gpus=4).facts()


def test_what_was_looked_up_in_random_prompts_is_said(make_engine: MakeEngine, tmp_path: Path) -> None:
    run = make_engine().run(Config({"speculative": "ngram-3"}), once(LOAD), tmp_path / "trial")
    assert any("confirm it on your own traffic" in note for note in run.notes)
    assert '"num_speculative_tokens": 3' in str(record(tmp_path)["argv"])


@pytest.mark.parametrize(("passes", "served"), [(True, 1), (False, 0)])
def test_questions_come_before_the_load(passes: bool, served: int, make_engine: MakeEngine, tmp_path: Path) -> None:
    heard: list[Answers] = []

    def judge(answers: Answers) -> bool:
        heard.append(answers)
        return passes

    plan = replace(once(LOAD), questions=Questions(("one", "two"), 2, judge))
    run = make_engine().run(Config(), plan, tmp_path / "trial")
    assert heard == [run.answers] == [((120, 121), (120, 121))]
    assert len(run.served) == served


def test_a_server_that_dies_over_a_question_has_crashed(make_engine: MakeEngine, tmp_path: Path) -> None:
    plan = replace(once(LOAD), questions=Questions(("die",), 2, lambda answers: True))
    with pytest.raises(EngineCrash):
        make_engine().run(Config(), plan, tmp_path / "trial")
    assert record(tmp_path)["crashed_during"] == "load"


def test_tools_beside_the_python_come_first_in_its_path(make_engine: MakeEngine, python: str) -> None:
    assert server_environment(make_engine().install)["PATH"].split(os.pathsep)[0] == str(Path(python).parent)
