"""The command as a user runs it: a process of its own against a server on loopback."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_server import FakeServer, Seen, Step, error, stream
from sloguard.cli.bench import command
from sloguard.errors import SpecError
from sloguard.metrics import Summary

FIXED = ("--request-rate", "200", "--num-requests", "20", "--input-len", "10", "--output-len", "6")


def bench(server: FakeServer | str, *options: str, key: str | None = None) -> subprocess.CompletedProcess[str]:
    url = server if isinstance(server, str) else server.url
    code = "import sys; from sloguard.cli.app import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, "bench", "--base-url", url, "--model", "m", *options],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", **({"THE_KEY": key} if key else {})},
    )


def test_a_measured_run_ends_in_a_table_and_exit_code_0():
    with FakeServer() as server:
        done = bench(server, *FIXED, "--slo", "ttft=60000", "--slo", "tpot=60000")
    assert (done.returncode, done.stderr) == (0, "")
    for words in (
        "20 of 20 completed",
        "120 out",
        "100.0% met every SLO",
        "TPOT rule: mean",
        "From when a request was due",
        "due within  0.1",
    ):
        assert words in done.stdout
    assert len(server.load) == 20 + 4  # the default warm-up
    assert {seen.asked_tokens for seen in server.load} == {6}
    assert {len(seen.body["prompt"]) for seen in server.load} == {10}


def test_json_holds_settings_summary_notes_and_every_request(tmp_path: Path):
    out, key = tmp_path / "run.json", "sk-very-secret"
    classes = ("--slo-class", "chat:0.5:ttft=60000,tpot=60000", "--slo-class", "code:0.5:ttft=0.001")
    with FakeServer(stream(usage="final"), preflight=stream(usage="final")) as server:
        done = bench(server, *FIXED, *classes, "--json", str(out), "--api-key-env", "THE_KEY", key=key)
    assert done.returncode == 0, done.stderr
    data = json.loads(out.read_text())
    summary = Summary.from_json(data["summary"])
    assert summary.completed == 20
    assert summary.by_class["chat"].attainment == 1.0
    assert summary.by_class["code"].attainment == 0.0
    assert len(data["requests"]) == 20
    row = data["requests"][0]
    assert row.keys() >= {"id", "due_s", "sent_s", "ttft_s", "tpot_s", "e2el_s", "tokens", "end", "error"}
    assert row["due_s"] <= row["sent_s"]
    assert any("final usage" in note for note in data["notes"])
    assert data["settings"]["slo_class"] == list(classes[1::2])
    assert server.load[0].headers["authorization"] == f"Bearer {key}"
    assert key not in out.read_text() + done.stdout + done.stderr
    assert list(tmp_path.iterdir()) == [out]


def test_each_request_can_tell_the_server_its_own_promise():
    classes = ("--slo-class", "chat:0.5:ttft=400,tpot=50", "--slo-class", "rest:0.5")
    with FakeServer() as server:
        done = bench(server, *FIXED, *classes, "--send-slos", "--json", "-")
    data = json.loads(done.stdout)
    assert data["settings"]["send_slos"] is True
    told = [seen.body["vllm_xargs"] for seen in server.load]
    expected = {"chat": {"slo_ttft_ms": 400.0, "slo_tpot_ms": 50.0}, "rest": {"slo_class": "best-effort"}}
    counted = Counter(row["slo_class"] for row in data["requests"])
    for name, fields in expected.items():
        assert told[4:].count(fields) == counted[name] > 0  # after the warm-up, which is told, too
    assert all(fields in expected.values() for fields in told)


def test_nothing_is_told_unless_asked():
    with FakeServer() as server:
        bench(server, *FIXED, "--slo", "ttft=400")
    assert not any("vllm_xargs" in seen.body for seen in server.seen)


def test_json_on_stdout_is_json_alone():
    with FakeServer() as server:
        done = bench(server, *FIXED, "--json", "-")
    assert json.loads(done.stdout)["summary"]["completed"] == 20


def test_vllm_json_on_stdout_is_json_alone():
    with FakeServer() as server:
        done = bench(server, *FIXED, "--save-vllm-json", "-")
    assert json.loads(done.stdout)["completed"] == 20


def test_the_table_is_shown_although_saving_fails(tmp_path: Path, monkeypatch, capsys):
    """The directory went away while the run lasted."""
    place = tmp_path / "results"
    place.mkdir()

    def answer(seen: Seen) -> Iterator[Step]:
        shutil.rmtree(place, ignore_errors=True)
        yield from stream()(seen)

    with FakeServer(answer) as server, pytest.raises(SpecError, match="can't be written"):
        command(server.url, "m", request_rate=200.0, num_requests=5, json_file=place / "run.json")
    assert "5 of 5 completed" in capsys.readouterr().out


def test_an_infinite_rate_offers_all_at_once():
    with FakeServer() as server:
        done = bench(server, "--request-rate", "inf", "--num-requests", "10", "--output-len", "2", "--json", "-")
    data = json.loads(done.stdout)
    assert {row["due_s"] for row in data["requests"]} == {0.0}
    assert data["settings"]["request_rate"] == "inf"


def test_exit_code_1_when_no_request_completed():
    with FakeServer(error(503, "overloaded")) as server:
        done = bench(server, *FIXED, "--warmup", "0")
    assert done.returncode == 1
    assert "0 of 20 completed (20 refused)" in done.stdout
    assert "20 x HTTP 503: overloaded" in done.stdout


def test_a_server_that_is_not_there_is_one_line_and_exit_code_2():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    done = bench(url, *FIXED)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert url in done.stderr


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"slo": ["p99=3"]}, "--slo"),
        ({"slo": ["ttft=fast"]}, "--slo"),
        ({"slo": ["ttft=-1"]}, "--slo"),
        ({"slo": ["ttft=1", "ttft=2"]}, "--slo"),
        ({"slo": ["ttft=1"], "slo_class": ["a:1:ttft=1"]}, "--slo"),
        ({"slo_class": ["a:half:ttft=1"]}, "--slo-class"),
        ({"slo_class": [":1:ttft=1"]}, "--slo-class"),
        ({"slo_class": ["a:0.5:ttft=1"]}, "sum to 1"),
        ({"send_slos": True}, "--send-slos.*promised"),
        ({"send_slos": True, "slo": ["ttft=1", "e2el=9"]}, "--send-slos.*e2el"),
        ({"request_rate": -1.0}, "--request-rate"),
        ({"request_rate": float("nan")}, "--request-rate"),
        ({"num_requests": 0}, "--num-requests"),
        ({"burstiness": 0.5}, "--burstiness"),
        ({"burstiness": -0.5, "request_rate": 1.0}, "burstiness"),
        ({"workload": "no-such-file.csv"}, "--workload"),
        ({"timeout": 0.0}, "--timeout"),
        ({"api": "responses"}, "api"),
        ({"base_url": "localhost:1"}, "--base-url"),
        ({"api_key_env": "NO_SUCH_VARIABLE"}, "--api-key-env"),
        ({"json_file": Path("/no/such/dir/x.json")}, "--json.*directory"),
        ({"json_file": Path("/proc/x.json")}, "--json.*can't be written"),
        ({"json_file": Path("/")}, "--json.*regular file"),
        ({"save_vllm_json": Path("/no/such/dir/x.json")}, "--save-vllm-json.*directory"),
        ({"save_vllm_json": Path("/")}, "--save-vllm-json.*regular file"),
        ({"json_file": Path("x"), "save_vllm_json": Path("x")}, "--save-vllm-json"),
        ({"json_file": Path("x"), "report": Path("x")}, "--report.*is the file of --json"),
        ({"save_vllm_json": Path("x"), "report": Path("x")}, "--report.*is the file of --save-vllm-json"),
        ({"report": Path("-")}, "--report.*a page is a file"),
        ({"base_url": "http://127.0.0.1:9/ü€"}, "--base-url.*not the address"),
        ({"base_url": "http://a..b"}, "--base-url.*not the address"),
        ({"base_url": "http://[::1"}, "--base-url.*not the address"),
        ({"base_url": "http://h/a b"}, "--base-url.*not the address"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(options, word):
    with pytest.raises(SpecError, match=word):
        command(**{"base_url": "http://127.0.0.1:9", "model": "m", **options})
