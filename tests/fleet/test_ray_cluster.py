"""What runs on a Ray cluster that was there before: replicas, trials, simulations."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml

from fleet_servers import CODE, EMULATED, PATIENCE_S, Fleet, free_port, has, until

pytestmark = pytest.mark.ray
BIN = Path(sys.executable).parent
START_S = 180.0
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_kill_child_processes_on_worker_exit": "false",
    "HF_HUB_OFFLINE": "1",
}
ON_A100 = ("--model", "Qwen/Qwen2-1.5B", "--gpu", "A100-40GB")
LIMITS = ("--slo-ttft-p99", "500", "--slo-itl-p99", "100")
TUNE = ("tune", "--engine", "sim", *ON_A100, *LIMITS, "--num-requests", "40", "--budget", "10", "--parallel", "3")
CODER = ("--scenario", "coder", "--policy", "vllm,sloguard", *ON_A100, "--num-requests", "60", "--seeds", "2")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    words = [str(BIN / "ray"), "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}"]
    words += ["--num-cpus=4", "--include-dashboard=false", "--object-store-memory=100000000"]
    log = tmp_path_factory.mktemp("cluster") / "log"
    with running(words, log):
        until(lambda: command("status", program="ray", extra=("--address", f"127.0.0.1:{port}")).returncode == 0)
        yield f"127.0.0.1:{port}"


def command(*words: str, program: str = "", extra: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """sloguard, or a program beside this Python."""
    first = [str(BIN / program)] if program else [sys.executable, "-c", CODE]
    return subprocess.run([*first, *words, *extra], capture_output=True, text=True, env={**os.environ, **ENVIRONMENT})


@contextmanager
def running(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, env={**os.environ, **ENVIRONMENT})
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def servers() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if has(process, "-m sloguard serve")]


def test_it_takes_down_what_it_put_up_and_no_more(address: str, tmp_path: Path):
    port = free_port()
    words = [sys.executable, "-c", CODE, *EMULATED, "--replicas", "2", "--ray-address", address, "--port", str(port)]
    with running(words, tmp_path / "log") as process:
        fleet = Fleet(process, port, tmp_path / "log")
        until(lambda: fleet.up() == 2 or process.poll() is not None, START_S)
        assert len(fleet.stream()[0]) > 0
        second = command(*EMULATED, "--replicas", "2", "--ray-address", address, "--port", str(port))
        assert (second.returncode, "would be replaced" in second.stderr) == (2, True), second.stderr
    assert process.returncode == 0, fleet.said()
    assert command("status", program="ray", extra=("--address", address)).returncode == 0
    assert not servers()


@contextmanager
def deployed(address: str, directory: Path, *options: str, **args: float) -> Iterator[Fleet]:
    """By Ray Serve's own command, from a config that sloguard wrote; `args` are set in it."""
    port, config = free_port(), directory / "serve.yaml"
    written = command(*EMULATED, *options, "--port", str(port), "--emit-serve-config", str(config))
    assert written.returncode == 0, written.stderr
    told = yaml.safe_load(config.read_text())
    told["applications"][0]["args"] |= args
    config.write_text(yaml.safe_dump(told))
    with running([str(BIN / "serve"), "run", "--address", address, str(config)], directory / "log") as process:
        yield Fleet(process, port, directory / "log")
        process.send_signal(signal.SIGINT)  # it takes down what it put up
        process.wait(PATIENCE_S)
    until(lambda: not servers())


def test_pressure_brings_a_second_replica_and_ease_takes_it_away(address: str, tmp_path: Path):
    """From a written config; a replica that is taken away has finished what it served."""
    (tmp_path / "classes.toml").write_text('default = "chat"\n[classes.chat]\nttft_ms = 1000\ntpot_ms = 20\n')
    options = ("--slo-classes", str(tmp_path / "classes.toml"), "--replicas", "1", "--max-replicas", "2")
    with deployed(address, tmp_path, *options, downscale_delay_s=2.0) as fleet:
        until(lambda: fleet.up() == 1, START_S)
        over = False

        def ask(n: int) -> list[int]:
            seen: list[int] = []
            while not over:
                seen.append(
                    fleet.ask("/v1/completions", {"prompt": f"{n} {len(seen)}" + " a" * 15_000, "max_tokens": 100})[0]
                )
            return seen

        with ThreadPoolExecutor(60) as pool:
            coming = [pool.submit(ask, n) for n in range(60)]
            until(lambda: fleet.up() == 2, START_S)
            over = True
            assert {status for one in coming for status in one.result()} <= {200, 429}
        until(lambda: fleet.up() == 1, START_S)


def study(directory: Path) -> bytes:
    return (directory / "study.jsonl").read_bytes()


def test_trials_on_a_cluster_are_those_of_this_machine_whatever_is_killed(address: str, tmp_path: Path):
    here = command(*TUNE, "--out", str(tmp_path / "here"))
    assert here.returncode == 0, here.stderr
    words = [sys.executable, "-c", CODE, *TUNE, "--ray-address", address, "--out", str(tmp_path / "there")]
    log = tmp_path / "there" / "study.jsonl"
    process = subprocess.Popen(words, stderr=subprocess.DEVNULL, env={**os.environ, **ENVIRONMENT})
    until(lambda: log.exists() and log.read_bytes().count(b'"kind":"trial"') >= 2, START_S)
    for actor in [one for one in psutil.process_iter() if has(one, "ray::_Trials")][:1]:
        actor.kill()
    until(lambda: log.read_bytes().count(b'"kind":"trial"') >= 5, START_S)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = command(*TUNE, "--ray-address", address, "--out", str(tmp_path / "there"), "--resume")
    assert again.returncode == 0, again.stderr
    assert study(tmp_path / "there") == study(tmp_path / "here")
    assert all((tmp_path / "there" / "trials" / f"{number:03d}").is_dir() for number in (8, 9, 10))


@pytest.mark.parametrize("name", ["simulate", "capacity"])
def test_simulations_on_a_cluster_are_those_of_this_machine(address: str, name: str):
    options = ("--rate", "3") if name == "simulate" else ("--tolerance", "0.2")
    here, there = (command(name, *CODER, "--json", "-", *options, *extra) for extra in ((), ("--ray-address", address)))
    assert here.returncode == there.returncode == 0, there.stderr
    assert _without_times(here.stdout) == _without_times(there.stdout)


def _without_times(text: str) -> object:
    rows = json.loads(text)["rows"]
    return [{name: value for name, value in row.items() if not name.startswith("planner_p")} for row in rows]
