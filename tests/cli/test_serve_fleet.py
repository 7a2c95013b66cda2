"""`sloguard serve --replicas N --backend local`: what an operator, and a fault, do to it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from fleet_servers import CODE, EMULATED, PATIENCE_S, check_orderly_end, free_port, serving, streamed_while, until
from sloguard.plugins.options import CONTROL_TOKEN

LOCAL = "local"
NOT_IN_REPLICAS = f"""
import os
from sloguard.sched.fcfs import Fcfs

class Own(Fcfs):
    def __init__(self):
        if {CONTROL_TOKEN!r} in os.environ:
            raise ValueError("not in a replica")
        super().__init__()
"""


@pytest.mark.parametrize(("how", "most_s"), [(signal.SIGKILL, 2.0), (signal.SIGSTOP, 10.0)])
def test_what_becomes_of_a_replica_costs_no_token(tmp_path: Path, how: signal.Signals, most_s: float):
    with serving(tmp_path, LOCAL) as fleet:
        alone = fleet.stream()[0]
        victim = fleet.processes(" serve ")[0]
        answers = streamed_while(fleet, lambda: victim.send_signal(how), 0.8)
        assert [text for text, _ in answers] == [alone] * 6
        assert max(gap_s for _, gap_s in answers) < most_s
        if how == signal.SIGSTOP:
            until(lambda: ": silent for 2 s\n" in fleet.said())
            assert "; replica-0.1: silent for 2 s\n" in fleet.said() or "; replica-1.1: silent" in fleet.said()
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


def test_a_second_ctrl_c_ends_it_at_once_and_clients_are_told(tmp_path: Path):
    """Far sooner than the 8,000 tokens under way take, which --drain-timeout would leave time for."""
    with serving(tmp_path, LOCAL, "--drain-timeout", "3000") as fleet:
        with closing(http.client.HTTPConnection("127.0.0.1", fleet.port, timeout=PATIENCE_S)) as connection:
            body = json.dumps({"prompt": "Once", "max_tokens": 8000, "stream": True})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.read(1)
            fleet.process.send_signal(signal.SIGINT)
            until(lambda: "draining: 1 request under way" in fleet.said())
            fleet.process.send_signal(signal.SIGINT)
            *_, last, end, _ = response.read().decode().split("\n\n")
        assert (json.loads(last.removeprefix("data: "))["error"]["code"], end) == (503, "data: [DONE]")
        assert fleet.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in fleet.said()


def test_engines_end_when_who_started_them_is_killed(tmp_path: Path):
    with serving(tmp_path, LOCAL) as fleet:
        children = psutil.Process(fleet.process.pid).children(recursive=True)
        fleet.process.kill()
        fleet.process.wait()
        assert not psutil.wait_procs(children, timeout=PATIENCE_S)[1]


def test_a_replica_that_never_serves_ends_it_all_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "not_in_replicas.py").write_text(NOT_IN_REPLICAS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with serving(tmp_path, LOCAL, "--policy", "not_in_replicas:Own") as fleet:
        assert fleet.process.wait(PATIENCE_S) == 2
        said = fleet.said()
    assert "ended before it served" in said
    assert "not in a replica" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--replicas 2 --backend slurm", "--backend = 'slurm': no such backend"),
        ("--replicas 2 --backend local --router nearest", "--router = 'nearest': no such name"),
        ("--replicas 2 --backend local --ray-address auto", "--ray-address = 'auto': is for --backend ray"),
        ("--replicas 2 --backend local --max-replicas 4", "--max-replicas = '4': is for --backend ray"),
        ("--replicas 2 --max-replicas -1", "--max-replicas = '-1': "),
        ("--replicas 2 --backend=", "--backend = '': no such backend"),
        ("--replicas 2 --backend local --gpu Foo", "'Foo'"),
        ("--replicas 2 --backend local --engine-arg foo=1", "foo"),
        ("--replicas 2 --backend local --engine-arg max_model_len=999999999", "max_model_len"),
        ("--replicas 2 --host 192.0.2.1 --api-key-env HOME --backend local", "--host = '192.0.2.1': is no address of"),
        ("--emit-serve-config /", "--emit-serve-config = '/': is no regular file"),
        (f"--emit-serve-config {__file__}", "is there already"),
        ("--replicas 2 --max-replicas 1", "--max-replicas = 1: is less than the 2 of --replicas"),
        ("--replicas 2 --backend local --engine-arg data_parallel_size=2", "--engine-arg = 'data_parallel_size=2'"),
        ("--router round-robin", "--router = 'round-robin': is for several replicas"),
        ("--ray-address auto", "--ray-address = 'auto': is for several replicas"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(options: str, says: str):
    check_one_line(options, says)


def test_a_ray_address_where_nobody_listens_is_one_line():
    address = f"127.0.0.1:{free_port()}"
    check_one_line(f"--replicas 2 --ray-address {address}", f"--ray-address = {address!r}: nobody answers there")


def check_one_line(options: str, says: str):
    words = [sys.executable, "-c", CODE, *EMULATED, *options.split()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert says in done.stderr
