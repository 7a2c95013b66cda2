"""A real vLLM, made to work and to fail in the ways it really fails. Needs a vLLM build: `make test-vllm`.

Each start takes 10 to 30 s on an idle machine; the whole file about 4 minutes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from demo_model import VLLM_PYTHON, needs_vllm
from procs import alive_with
from sloguard.crash import diagnose
from sloguard.engine.base import Run, Timeouts, once
from sloguard.engine.processes import RUN_ID, STATE_DIR, reap_orphans
from sloguard.engine.vllm import VllmEngine
from sloguard.errors import EngineCrash
from sloguard.request import End, Request, Stage
from sloguard.trial import Config, Value

pytestmark = [pytest.mark.vllm, needs_vllm]

# The share of memory that --gpu-memory-utilization means changes between starts on a virtual machine; bytes don't.
SMALL: dict[str, Value] = {
    "enforce_eager": True,
    "max_model_len": 512,
    "gpu_memory_utilization": 0.05,
    "kv_cache_memory_bytes": "64M",
}
PATIENT = Timeouts(server_start_s=300, first_start_s=300, preflight_s=60)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STATE_DIR, str(tmp_path / "state"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "trial").mkdir()


def requests(count: int, gap_s: float, output_tokens: int) -> list[Request]:
    return [Request(f"r{i}", i * gap_s, (Stage(20, output_tokens),)) for i in range(count)]


def left_of(trial: Path) -> list[int]:
    return alive_with(json.loads((trial / "run.json").read_text())["run_id"])


def shared_memory() -> set[str]:
    """Blocks of the kind that vLLM passes messages through."""
    return {path.name for path in Path("/dev/shm").glob("psm_*")}


def server_processes() -> dict[str, psutil.Process]:
    """Of the one server that runs: its processes by name; the API server is the one without a name of vLLM's."""
    (api,) = [p for p in psutil.Process().children() if RUN_ID in p.environ()]
    return {"api": api} | {p.name().split("::")[-1]: p for p in api.children(recursive=True) if "::" in p.name()}


def during_load(action: Callable[[], None]) -> Callable[[str], None]:
    """An `on_phase` that acts once, when the load is under way."""
    done: list[str] = []

    def on_phase(phase: str) -> None:
        if phase.startswith("loading:") and not done:
            done.append(phase)
            action()

    return on_phase


def test_a_healthy_run(demo_tiny: Path, tmp_path: Path) -> None:
    shared_before = shared_memory()
    engine = VllmEngine(str(demo_tiny), python=str(VLLM_PYTHON), fixed=SMALL, timeouts=PATIENT, warmup=2)
    phases: list[str] = []
    run = engine.run(Config({"max_num_seqs": 16}), once(requests(10, 0.05, 8)), tmp_path / "trial", phases.append)
    assert isinstance(run, Run)
    assert [t.end for t in run.timelines] == [End.COMPLETED] * 10
    assert [t.output_tokens for t in run.timelines] == [8] * 10
    assert 0 < run.startup_s < run.cost_s
    expected = {"max_num_seqs": 16, "max_model_len": 512, "enforce_eager": True}
    assert expected.items() <= run.effective.items()
    assert phases[0] == "starting"
    assert phases[-1] == "stopping"
    record = json.loads((tmp_path / "trial" / "run.json").read_text())
    assert record["exited_by_itself"] is False
    assert record["exit_code"] == 0
    assert record["first_start"] is True
    assert left_of(tmp_path / "trial") == []
    assert shared_memory() <= shared_before
    log = (tmp_path / "trial" / "engine.log").read_text()
    assert "Application startup complete" in log


def test_what_is_installed_is_known(demo_tiny: Path) -> None:
    engine = VllmEngine(str(demo_tiny), python=str(VLLM_PYTHON), fixed=SMALL)
    facts = engine.facts()
    assert facts.version is not None
    assert facts.version >= (0, 19, 0)
    assert facts.offered is not None
    assert {"--max-num-seqs", "--enforce-eager", "--gpu-memory-utilization"} <= facts.offered
    assert facts.model is not None
    assert facts.model.layers == 2
    command = engine.command_for(Config({"enable_prefix_caching": False}))
    assert str(demo_tiny) in command
    assert command[-1] == "--no-enable-prefix-caching"


@pytest.mark.parametrize(
    ("config", "cause_in_log", "category"),
    [
        ({"kv_cache_memory_bytes": "128K"}, "KV cache is needed", "oom"),
        ({"max_num_batched_tokens": 64, "max_num_seqs": 256}, "must be greater than or equal to", "startup_failure"),
        ({"gpu_memory_utilization": 0.999}, "is less than desired", "oom"),
    ],
    ids=["kv-cache-too-small", "tokens-below-sequences", "memory-share-too-high"],
)
def test_a_config_that_cannot_start(
    config: dict[str, Value], cause_in_log: str, category: str, demo_tiny: Path, tmp_path: Path
) -> None:
    fixed = {name: value for name, value in SMALL.items() if name not in config}
    if "gpu_memory_utilization" in config:
        del fixed["kv_cache_memory_bytes"]
    engine = VllmEngine(str(demo_tiny), python=str(VLLM_PYTHON), fixed=fixed, timeouts=PATIENT)
    with pytest.raises(EngineCrash) as crash:
        engine.run(Config(config), once(requests(1, 0, 1)), tmp_path / "trial")
    evidence = crash.value.evidence
    assert (evidence.phase, evidence.exit_code, evidence.timed_out) == ("startup", 1, False)
    assert cause_in_log in evidence.log_tail
    assert crash.value.cost_s > 0
    found = diagnose(evidence)
    assert found.category == category
    assert not found.environment
    assert left_of(tmp_path / "trial") == []


@pytest.mark.parametrize(
    ("victim", "number", "timed_out"),
    [
        ("api", signal.SIGKILL, False),
        ("EngineCore", signal.SIGKILL, False),
        ("Worker", signal.SIGSTOP, True),  # a worker that hangs: /health goes on to say 200
    ],
    ids=["api-server-killed", "engine-core-killed", "worker-hangs"],
)
def test_an_engine_that_fails_under_load(
    victim: str, number: signal.Signals, timed_out: bool, demo_tiny: Path, tmp_path: Path
) -> None:
    shared_before = shared_memory()
    timeouts = Timeouts(server_start_s=300, first_start_s=300, preflight_s=5, request_s=5)
    engine = VllmEngine(str(demo_tiny), python=str(VLLM_PYTHON), fixed=SMALL, timeouts=timeouts)
    strike = during_load(lambda: server_processes()[victim].send_signal(number))
    with pytest.raises(EngineCrash) as crash:
        engine.run(Config(), once(requests(100, 0.05, 200)), tmp_path / "trial", strike)
    evidence = crash.value.evidence
    assert (evidence.phase, evidence.timed_out) == ("load", timed_out)
    if victim == "api":
        assert evidence.signal == signal.SIGKILL
    if victim == "EngineCore":
        assert evidence.exit_code == 0  # vLLM's own word, which is why it is not taken for health
        assert "EngineDeadError" in evidence.log_tail
    assert left_of(tmp_path / "trial") == []
    assert diagnose(evidence).category == ("timeout" if timed_out else "other")
    assert shared_memory() <= shared_before


OWNER = """
import sys
from pathlib import Path
from sloguard.engine.base import Timeouts, once
from sloguard.engine.vllm import VllmEngine
from sloguard.request import Request, Stage
from sloguard.trial import Config
python, model, trial = sys.argv[1:]
fixed = {"enforce_eager": True, "max_model_len": 512, "gpu_memory_utilization": 0.05, "kv_cache_memory_bytes": "64M"}
engine = VllmEngine(model, python=python, fixed=fixed, timeouts=Timeouts(first_start_s=300))
load = [Request(f"r{i}", i * 0.1, (Stage(20, 50),)) for i in range(600)]
engine.run(Config(), once(load), Path(trial), lambda phase: print(phase, flush=True))
"""


def test_a_killed_sloguard_leaves_nothing_after_the_next_start(demo_tiny: Path, tmp_path: Path) -> None:
    arguments = [str(VLLM_PYTHON), str(demo_tiny), str(tmp_path / "trial")]
    with subprocess.Popen([sys.executable, "-c", OWNER, *arguments], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        for line in owner.stdout:
            if line.startswith("loading:"):
                break
        owner.kill()
    (record,) = (tmp_path / "state" / "processes").glob("*.jsonl")
    run_id = json.loads(record.read_text().splitlines()[0])["run_id"]
    time.sleep(1)
    assert len(alive_with(run_id)) >= 3  # the API server, the engine core and its worker live on
    (orphan,) = reap_orphans()
    assert orphan.trial_dir == str(tmp_path / "trial")
    assert alive_with(run_id) == []
