"""`sloguard watch`: the page renews itself in a browser while trials end, and is shown to nobody else."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from sloguard.cli.app import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TUNE = ["tune", "--engine", "sim", "--gpu", "A100-40GB", "--model", "Qwen/Qwen2-1.5B", "--optimizer", "random"]
TUNE += ["--slo-ttft", "300", "--slo-tpot", "20", "--prior", "none", "--confirm", "0"]


def tune(out: Path, budget: int) -> None:
    more = ["--resume"] if (out / "study.jsonl").exists() else []
    words = [sys.executable, "-m", "sloguard", *TUNE, "--budget", str(budget), "--out", str(out), *more]
    subprocess.run(words, check=True, capture_output=True, timeout=120)


@pytest.fixture
def watched(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    words = [sys.executable, "-m", "sloguard", "watch", str(tmp_path / "study"), "--port", "0"]
    words += getattr(request, "param", [])
    environment = {**os.environ, "WATCH_KEY": "secret"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, process.stderr.read() if process.stderr else ""
        yield found[0], process
        process.kill()


def status_of(url: str, **headers: str) -> int:
    for _ in range(100):
        try:
            return urlopen(Request(url, headers=headers), timeout=20).status
        except HTTPError as error:
            return error.code
        except OSError:
            time.sleep(0.1)  # it says where it will listen before it does
    raise AssertionError(f"nobody answers at {url}")


def test_before_the_first_trial_it_says_so_and_an_interrupt_ends_it(watched: Any) -> None:
    url, process = watched
    assert status_of(url) == 200
    listening = urlopen(f"{url}events", timeout=20)
    assert listening.readline() == b"event: change\n"
    assert "The first trial has not ended." in urlopen(url, timeout=20).read().decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
    assert "Traceback" not in process.stderr.read()


def test_a_page_from_elsewhere_can_not_read_it_by_another_name(watched: Any) -> None:
    url, _ = watched
    assert status_of(url, host="evil.example") == 400
    assert status_of(f"{url}events", host="evil.example") == 400


@pytest.mark.parametrize("watched", [["--api-key-env", "WATCH_KEY"]], indirect=True)
def test_with_a_key_it_is_shown_to_who_has_it(watched: Any) -> None:
    url, _ = watched
    assert status_of(url) == status_of(f"{url}events") == status_of(f"{url}?key=other") == 401
    assert status_of(f"{url}?key=secret") == status_of(url, authorization="Bearer secret") == 200


def test_a_study_that_can_not_be_read_is_said_and_not_a_failure(watched: Any, tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "study.jsonl").write_text("nonsense\n")
    url, _ = watched
    assert status_of(url) == 200
    assert "can&#39;t be read" in urlopen(url, timeout=20).read().decode()


def test_beyond_this_machine_a_key_is_needed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["sloguard", "watch", "study", "--host", "0.0.0.0", "--port", "0"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "--api-key-env" in capsys.readouterr().err


def test_what_is_no_name_of_a_host_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("KEY", "secret")
    monkeypatch.setattr(sys, "argv", ["sloguard", "watch", "study", "--host", "a..b", "--api-key-env", "KEY"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err.count("\n")) == (2, 1)


def test_a_port_that_is_taken_is_one_line(watched: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    port = watched[0].rstrip("/").rpartition(":")[2]
    monkeypatch.setattr(sys, "argv", ["sloguard", "watch", "study", "--port", port])
    with pytest.raises(SystemExit) as stop:
        main()
    told = capsys.readouterr().err
    assert (stop.value.code, told.count("\n")) == (2, 1)
    assert f"--port = {port}" in told


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium, or make test-browser")
def test_it_renews_itself_and_keeps_what_the_reader_chose(watched: Any, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    url, _ = watched
    assert status_of(url) == 200
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(url)
        assert page.locator("#live").inner_text() in {"connecting", "live"}
        tune(tmp_path / "study", 3)
        rows = page.locator("#trials tbody tr")
        playwright.expect(rows).to_have_count(3, timeout=60_000)
        head = page.locator("#trials thead th").first
        for _ in range(2):
            head.get_by_role("button").click()
        assert rows.locator("th").all_inner_texts() == ["3", "2", "1"]
        tune(tmp_path / "study", 5)
        playwright.expect(rows).to_have_count(5, timeout=60_000)
        playwright.expect(rows.locator("th").first).to_have_text("5", timeout=60_000)
        assert head.get_attribute("aria-sort") == "descending"
        assert page.locator("#live").inner_text() == "live"
        assert troubles == []
        browser.close()
