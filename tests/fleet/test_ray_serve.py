"""`sloguard serve --replicas N --backend ray` on a real Ray. `make test-ray` gives it a network of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fleet_servers import Fleet, check_orderly_end, serving, streamed_while, until

pytestmark = pytest.mark.ray
START_S = 180.0


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    directory = tmp_path_factory.mktemp("ray")
    (directory / "classes.toml").write_text('default = "chat"\n[classes.chat]\nttft_ms = 60000\ntpot_ms = 5000\n')
    with serving(directory, "ray", "--slo-classes", str(directory / "classes.toml")) as fleet:
        yield fleet


def test_it_answers_as_one_replica_does(fleet: Fleet):
    assert fleet.ask("/health")[0] == fleet.ask("/ready")[0] == 200
    assert json.loads(fleet.ask("/v1/models")[1])["data"][0]["id"] == "Qwen/Qwen2-1.5B"
    status, said = fleet.ask("/v1/completions", {"prompt": "a", "max_tokens": 4}, {"x-slo-ttft-ms": "soon"})
    assert (status, json.loads(said)["error"]["param"]) == (400, "slo_ttft_ms")
    whole = json.loads(fleet.ask("/v1/completions", {"prompt": "Once", "max_tokens": 1200})[1])
    assert whole["choices"][0]["text"] == fleet.stream()[0]
    with ThreadPoolExecutor(8) as pool:
        assert len({text for text, _ in pool.map(fleet.stream, range(8))}) == 1
    metrics = fleet.ask("/metrics")[1].decode()
    served = [line for line in metrics.splitlines() if line.startswith('sloguard_requests_total{outcome="met",')]
    assert len(served) == 2  # one a replica
    assert sum(float(line.split()[-1]) for line in served) == 10


@pytest.mark.parametrize(
    ("word", "how", "most_s"),
    [
        ("sloguard serve", signal.SIGKILL, 2.0),
        ("sloguard serve", signal.SIGSTOP, 10.0),
        ("ray::ServeReplica:sloguard:Replica", signal.SIGKILL, 4.0),
    ],
)
def test_what_becomes_of_a_replica_costs_no_token(fleet: Fleet, word: str, how: signal.Signals, most_s: float):
    alone = fleet.stream()[0]
    victim = fleet.processes(word)[0]
    answers = streamed_while(fleet, lambda: victim.send_signal(how), 0.8)
    assert [text for text, _ in answers] == [alone] * 6
    assert max(gap_s for _, gap_s in answers) < most_s
    until(lambda: not victim.is_running(), START_S)
    until(lambda: fleet.up() == 2, START_S)
    assert fleet.stream()[0] == alone


def test_a_gateway_that_is_killed_is_replaced_and_the_engines_stay(fleet: Fleet):
    engines = {process.pid for process in fleet.processes("sloguard serve")}
    fleet.processes("ray::ServeReplica:sloguard:Gateway")[0].kill()
    until(lambda: fleet.up() == 2)
    assert fleet.ask("/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    assert {process.pid for process in fleet.processes("sloguard serve")} == engines


def test_an_orderly_end_lets_answers_finish(tmp_path: Path):
    with serving(tmp_path, "ray") as fleet:
        check_orderly_end(fleet)
