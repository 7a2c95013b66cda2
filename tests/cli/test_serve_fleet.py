"""`sloguard serve --replicas N --backend local`: what an operator, and a fault, do to it."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fleet_servers import CODE, EMULATED, PATIENCE_S, check_orderly_end, serving, streamed_while, until

LOCAL = "local"


@pytest.mark.parametrize(("how", "most_s"), [(signal.SIGKILL, 2.0), (signal.SIGSTOP, 10.0)])
def test_what_becomes_of_a_replica_costs_no_token(tmp_path: Path, how: signal.Signals, most_s: float):
    with serving(tmp_path, LOCAL) as fleet:
        alone = fleet.stream()[0]
        victim = fleet.processes(" serve ")[0]
        answers = streamed_while(fleet, lambda: victim.send_signal(how), 0.8)
        assert [text for text, _ in answers] == [alone] * 6
        assert max(gap_s for _, gap_s in answers) < most_s
        if how == signal.SIGSTOP:
            victim.send_signal(signal.SIGCONT)
        until(lambda: fleet.up() == 2)
        assert fleet.stream()[0] == alone


def test_a_gateway_that_is_killed_is_replaced_and_the_engines_stay(tmp_path: Path):
    with serving(tmp_path, LOCAL) as fleet:
        engines = [process.pid for process in fleet.processes(" serve ")]
        (gateway,) = fleet.processes("sloguard.fleet.server")
        gateway.kill()
        assert fleet.ask("/v1/models")[0] in (200, 503)  # it waited for the new one
        until(lambda: fleet.up() == 2)
        assert fleet.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
        assert [process.pid for process in fleet.processes(" serve ")] == engines


def test_an_orderly_end_lets_answers_finish(tmp_path: Path):
    with serving(tmp_path, LOCAL) as fleet:
        check_orderly_end(fleet)


def test_engines_end_when_who_started_them_is_killed(tmp_path: Path):
    with serving(tmp_path, LOCAL) as fleet:
        children = psutil.Process(fleet.process.pid).children(recursive=True)
        fleet.process.kill()
        fleet.process.wait()
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]


def test_a_replica_that_never_serves_ends_it_all_with_the_reason(tmp_path: Path):
    with serving(tmp_path, LOCAL, "--engine-arg", "max_model_len=999999999") as fleet:
        assert fleet.process.wait(PATIENCE_S) == 2
        said = fleet.said()
    assert "ended before it served" in said
    assert "max_model_len" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--replicas 2 --backend slurm", "--backend = 'slurm': no such backend"),
        ("--replicas 2 --backend local --router nearest", "--router = 'nearest': no such name"),
        ("--replicas 2 --backend local --ray-address auto", "--ray-address = 'auto': is for --backend ray"),
        ("--replicas 2 --backend local --max-replicas 4", "--max-replicas = '4': is for --backend ray"),
        ("--replicas 2 --max-replicas 1", "--max-replicas = 1: is less than the 2 of --replicas"),
        ("--replicas 2 --backend local --engine-arg data_parallel_size=2", "--engine-arg = 'data_parallel_size=2'"),
        ("--router round-robin", "--router = 'round-robin': is for several replicas"),
        ("--ray-address auto", "--ray-address = 'auto': is for several replicas"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(options: str, says: str):
    words = [sys.executable, "-c", CODE, *EMULATED, *options.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
