"""Why an engine failed: evidence in, cause and remedy out.

`classify` reads the log (`crash_log.py`) against a table of rules (`crash_rules.py`). Root causes outweigh the text
that wraps them, and the earliest of equal causes decides, because one process's death is echoed by all others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from sloguard.crash_log import Reading, read_log
from sloguard.crash_rules import Rule, Weight

Phase = Literal["startup", "load"]

SIGKILL, SIGTERM, SIGINT = 9, 15, 2
_STALLS_OF_A_HANG = 3  # stall lines that make a hang of a log which ends with others; a single last one does too
_CAPTURE_LINES = 120  # a traceback through graph capture is shorter than this
# How vLLM refuses an option: 352 of the 383 messages raised in 0.32's config, argument and platform modules are these.
_VALIDATION = re.compile(r"(?:\w+\.)*(?:ValueError|NotImplementedError|VLLMValidationError)\b")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was seen of a failed engine. `log_tail` is the end of its output (both streams), newest last.

    `exit_code` is None while the process runs or was not ours; `signal` is the number that ended it, if one did.
    """

    phase: Phase
    exit_code: int | None = None
    signal: int | None = None
    timed_out: bool = False
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class Crash:
    """`category` is one of four (oom, cuda_error, timeout, startup_failure), or `other` for an engine that died under
    load of none of them. `cause` is finer; `line` is quoted from the log and `hint` is one sentence of remedy. An
    `environment` fault (port, network, disk, missing package) is not the config's and must not teach the optimizer.
    """

    category: str
    cause: str
    line: str
    hint: str
    phase: Phase
    environment: bool = False


def classify(evidence: Evidence) -> Crash | None:
    """Why the engine failed, or None where nothing failed: a healthy log, errors it survived, a clean shutdown."""
    reading = read_log(evidence.log_tail)
    signal = _signal(evidence)
    found = reading.decisive
    if evidence.timed_out and (found is None or found.weight < Weight.FAMILY):
        return _timeout(evidence, found.text if found else reading.stall or reading.last_text)
    if found is not None and not _survived(evidence, reading, signal):
        if found.rule is None or (found.rule.startup_only and evidence.phase == "load"):
            return _unexplained(evidence, found.text)
        return _explained(evidence, reading, found.rule, found.text, found.index)
    if signal == SIGKILL:
        return _killed(evidence, reading, reading.last_text)
    if reading.stop_index is not None:
        return _stopped(evidence, reading)
    if reading.ends_stalled or reading.stall_lines >= _STALLS_OF_A_HANG:
        return _timeout(evidence, reading.stall)
    if signal not in (None, SIGTERM, SIGINT):
        hint = f"Signal {signal} ended the engine: look in dmesg, and reinstall matching builds of PyTorch and vLLM."
        return Crash(_by_phase(evidence.phase), "native_crash", reading.last_text, hint, evidence.phase)
    if signal is None and evidence.exit_code:
        return _unexplained(evidence, reading.last_text)
    return None


def diagnose(evidence: Evidence) -> Crash:
    """`classify` for an engine that is known to have failed: where the log shows nothing, the cause is unknown."""
    return classify(evidence) or _unexplained(evidence, read_log(evidence.log_tail).last_text)


def infer_phase(log: str) -> Phase:
    """The phase in which a log's engine failed, for callers who were not there: load once it was ready or has served,
    or where only a running engine could have written what it did.
    """
    reading = read_log(log)
    if reading.alive_index is not None:
        return "load"
    return "load" if reading.under_load and not reading.starting else "startup"


def _signal(evidence: Evidence) -> int | None:
    """The signal that ended the process: as stated, or as the exit code tells it (-9 of Python, 137 of a shell)."""
    code = evidence.exit_code
    if evidence.signal is not None or code is None:
        return evidence.signal
    if code < 0:
        return -code
    return code - 128 if 128 < code < 160 else None


def _by_phase(phase: Phase) -> str:
    return "startup_failure" if phase == "startup" else "other"


def _survived(evidence: Evidence, reading: Reading, signal: int | None) -> bool:
    """Whether the server outlived its errors: it was up, nothing says that it died, and it worked or stopped cleanly
    after them, or none of them is of a kind that ends an engine.
    """
    found = reading.decisive
    ended_badly = bool(evidence.exit_code) and signal not in (SIGTERM, SIGINT)
    if found is None or reading.alive_index is None or reading.engine_died or ended_badly or evidence.timed_out:
        return False
    deadly = found.rule is not None and found.rule.category in ("oom", "cuda_error", "timeout")
    return not deadly or found.index < reading.alive_index or reading.stop_index is not None


def _explained(evidence: Evidence, reading: Reading, rule: Rule, line: str, index: int) -> Crash:
    if rule.cause == "killed":
        return _killed(evidence, reading, line)
    cause, hint = rule.cause, rule.hint
    capturing = reading.capturing_index
    if cause == "gpu_memory" and capturing is not None and abs(index - capturing) <= _CAPTURE_LINES:
        cause = "graph_capture"
        hint = "Lower --gpu-memory-utilization or --max-cudagraph-capture-size, or start with --enforce-eager."
    return Crash(rule.category or _by_phase(evidence.phase), cause, line, hint, evidence.phase, rule.environment)


def _unexplained(evidence: Evidence, line: str) -> Crash:
    if evidence.phase == "startup" and _VALIDATION.match(line):
        hint = "vLLM refuses options with this kind of error: change what the message names."
        return Crash("startup_failure", "config_invalid", line, hint, evidence.phase)
    hint = "No known cause: read the traceback that ends in this line, and report it to vLLM if it repeats."
    return Crash(_by_phase(evidence.phase), "unknown", line, hint, evidence.phase)


def _killed(evidence: Evidence, reading: Reading, line: str) -> Crash:
    """SIGKILL while weights are read is the kernel's OOM killer; elsewhere anybody may have sent it."""
    if reading.loading and reading.alive_index is None:
        hint = "The kernel's OOM killer is the likely sender: free host memory or raise the container's memory limit."
        return Crash("oom", "host_memory", line, hint, evidence.phase)
    hint = "Something killed the engine (SIGKILL): look in dmesg and at the container's memory limit."
    return Crash(_by_phase(evidence.phase), "killed", line, hint, evidence.phase)


def _timeout(evidence: Evidence, line: str) -> Crash:
    hint = (
        "The engine was not ready in time: allow a longer start, or look for a stuck worker or download."
        if evidence.phase == "startup"
        else "The engine stopped answering: lower the load per step (--max-num-batched-tokens, --max-num-seqs)."
    )
    return Crash("timeout", "hang", line, hint, evidence.phase)


def _stopped(evidence: Evidence, reading: Reading) -> Crash | None:
    """Asked to stop while still loading, and not known to have ended well: whoever asked had waited too long."""
    gave_up = reading.loading and (reading.ready_index is None or reading.ready_index > (reading.stop_index or 0))
    if gave_up and evidence.exit_code is None and evidence.signal is None:
        return _timeout(evidence, reading.last_text)
    return None
