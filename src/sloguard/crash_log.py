"""One pass over an engine's log: which lines explain a failure, and how far the engine had come.

Line by line and linear in the log, so that a few megabytes take well under a second.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from sloguard.crash_rules import Rule, Weight, match

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_PREFIX = re.compile(
    r"""(?xi)
      \(\w[^()|]{0,80}?\b(?:pid|rank)=[^()]{1,80}\)[ ]?                            # (EngineCore_DP0 pid=17)
    | \[rank\d+\]:[ ]?                                                             # [rank0]:
    | \[(?P<glog>[EFWI])\d*[ ][^\]]{1,80}\][ ]?                                    # [E ProcessGroupNCCL.cpp:563]
    | \[?\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,\d]*(?:Z|[+-]\d\d:?\d\d)?\]?[ ]?      # 2024-04-27 10:13:05
    | \w{3}[ ]+\d{1,2}[ ]\d\d:\d\d:\d\d[ ]\S+[ ][\w.\-/]+\[\d+\]:[ ]               # journald
    | std(?:out|err)[ ][FP][ ]                                                     # Kubernetes
    | (?P<relay>W-\d+-\S+[ ]MODEL_LOG[ ]-[ ]?|vLLM[ ]STD(?:OUT|ERR):[ ])           # TorchServe, Unsloth
    | [\w.\-/]{1,80}[ ]*\|[ ]                                                      # vllm-1  |, and the | of loguru
    | \|[ ]
    | \[?\b(?P<level>debug|info|warning|warn|error|critical|fatal)\b
      (?: [ ]?\][ ] | :[ ]{2,} | [ ]+(?=\||\d|\[|[\w./\-]+\.py:\d))                # ERROR 04-05, INFO:     , [INFO ]
    | \d\d-\d\d[ ]\d\d:\d\d:\d\d[.\d]*[ ]                                          # 04-05 01:12:55
    | \d{1,8}[ ](?=\[\w+\.py:\d)                                                   # a process id before [core.py:390]
    | \[?[\w./\\\-]+\.py:\d+\][ ]?                                                 # [core.py:390], core.py:390]
    """
)
_QUIET = frozenset({"debug", "info", "i"})
_LOW = frozenset({"warning", "warn", "w"})

_NOISE = re.compile(
    r"namespace\(|non-default args|with config: |samplingparams\(|dumping (?:input|scheduler)|^args:"
    r"|has not been destroyed|kernel errors might be asynchronously|for debugging consider"
    r"|enable device-side assertions|^\[--"
)
_CODE = re.compile(
    r"^(?:file \"|[\^~]+|raise\b|return\b|self\.|from \w|import \w|if |elif |with |for |async |await |\.\.\.<|#)"
    r"|^frame #|^[a-z_][\w.\[\]]* = |^[a-z_][\w.]*\($"
)
_MARKS = {
    "ready": r"application startup complete",
    "served": r"\"post /\S* http/[\d.]+\" 200|generation throughput: (?!0\.0 )",
    "stop_asked": r"shutdown triggered|trigger received signal=sig(?:term|int)|received sig(?:term|int)\b"
    r"|keyboardinterrupt|received signal (?:2|15)\b|shutting down fastapi|^shutting down$",
    "stalled": r"no available shared memory broadcast block"
    r"|waiting for \d+ (?:local, \d+ remote )?(?:core )?engine (?:core )?proc"
    r"|still waiting for .{0,60}(?:engine|worker|server)",
    "loading": r"loading (?:safetensors|pt|weights|model|checkpoint)|starting to load model",
    "capturing": r"capture_model|_capture_cudagraph|torch\.cuda\.graph\(|cuda/graphs\.py"
    r"|capturing (?:the model|cuda ?graph|batch)",
    "under_load": r"run_busy_loop|dumping (?:input|scheduler)|encountered a fatal error|engine\w*deaderror"
    r"|in output_handler|engine iteration|background (?:loop|task)|engine_step|serving_\w+\.py|\"post /v1"
    r"|rpc call to (?:execute_model|sample_tokens)|api_router\.py|error in model execution"
    r"|in execute_model|in generate_tokens",
    "starting": r"initialization failed|failed to start|in init_device|in load_model|determine_(?:num_)?available"
    r"|in profile_run|_dummy_run|wait_for_engine_startup|capture_model|from_engine_args|create_engine_config"
    r"|compile_or_warm|init_worker",
}
_MARK_PATTERNS = tuple((name, re.compile(pattern)) for name, pattern in _MARKS.items())
_ID = re.compile(r"\d[\d.]{3,}|\b(?=[a-f]*\d)[0-9a-f-]{8,}\b")  # long numbers and ids: no rule depends on them
_LONG = 4000  # characters; of a longer line, as config dumps are, both ends are kept
_EXCEPTION = re.compile(r"^(?:[a-z_]\w*\.)*[a-z_]*(?:error|exception|failure|failed|timeout|unavailable)(?:[:(].*)?$")
_ASSERTION = re.compile(r"^assert [^:]{3,}$")
_UNINFORMATIVE = re.compile(r"cancellederror|^systemexit|queue\.empty|zmq\.error|^error:?$|^exception:?$|server error$")


@dataclass(frozen=True, slots=True)
class Finding:
    """A line (`text`, without its log prefix) that says something about the failure. `rule` is None for an exception
    that no row of the table knows.
    """

    index: int
    text: str
    rule: Rule | None

    @property
    def weight(self) -> Weight:
        return self.rule.weight if self.rule else Weight.AFTERMATH


@dataclass(frozen=True, slots=True)
class _Sense:
    """What a message means wherever it stands; lines that differ in ids only share it, so floods cost little."""

    marks: frozenset[str]
    rule: Rule | None
    unexplained: bool  # an exception that no row knows


@dataclass(slots=True)
class Reading:
    """What a log says. Indices count lines; None where it never happened."""

    findings: list[Finding] = field(default_factory=list[Finding])
    ready_index: int | None = None
    alive_index: int | None = None  # the last proof of a working server: it was ready, or answered
    stop_index: int | None = None  # somebody asked the engine to stop, before anything had failed
    stall_lines: int = 0
    stall: str = ""
    ends_stalled: bool = False
    loading: bool = False  # weights were being read
    capturing_index: int | None = None  # the last sign of CUDA graphs being captured
    under_load: bool = False
    starting: bool = False
    last_text: str = ""

    @property
    def engine_died(self) -> bool:
        return any(finding.weight is Weight.WRAPPER for finding in self.findings)

    @property
    def decisive(self) -> Finding | None:
        """The heaviest finding, the earliest of equals."""
        return min(self.findings, key=lambda finding: (-finding.weight, finding.index), default=None)


def strip_prefix(line: str) -> tuple[str, str]:
    """(level, message): the line without colours, timestamps, process names, levels and source positions.

    Level is in lower case, empty where the line names none. The message keeps its indentation.
    """
    text = _ANSI.sub("", line) if "\x1b" in line else line
    level = ""
    position = 0
    while found := _PREFIX.match(text, position):
        # The innermost level counts; one that a relay wrote before the line it relays says nothing.
        level = "" if found["relay"] else (found["level"] or found["glog"] or level).lower()
        position = found.end()
    return level, text[position:].rstrip()


def read_log(log: str) -> Reading:
    """Reads a log once, oldest line first. Stops where the engine was asked to stop before anything failed: what it
    logs on its way out is no evidence.
    """
    reading = Reading()
    known: dict[str, _Sense] = {}
    for index, line in enumerate(log.splitlines()):
        level, text = strip_prefix(line)
        message = text.strip()
        if not message:
            continue
        if len(message) > _LONG:
            message = f"{message[: _LONG // 2]} ... {message[-_LONG // 2 :]}"
        reading.last_text = message
        sense = known.get(message)
        if sense is None:
            shape = _ID.sub("#", message)
            sense = known[message] = known[shape] = known.get(shape) or _make_sense(message)
        _note_progress(reading, index, sense, message)
        if reading.stop_index is not None:
            break
        if level in _QUIET or not (sense.rule or sense.unexplained):
            continue
        if level not in _LOW or (sense.rule and sense.rule.weight is Weight.WRAPPER):
            reading.findings.append(Finding(index, message, sense.rule))
    return reading


def _make_sense(message: str) -> _Sense:
    lowered = message.lower()
    marks = frozenset(name for name, pattern in _MARK_PATTERNS if pattern.search(lowered))
    if _NOISE.search(lowered) or _CODE.search(lowered):
        return _Sense(marks, None, False)
    rule = match(message)
    exception = bool(_EXCEPTION.match(lowered) or _ASSERTION.match(lowered)) and not _UNINFORMATIVE.search(lowered)
    return _Sense(marks, rule, exception and rule is None)


def _note_progress(reading: Reading, index: int, sense: _Sense, message: str) -> None:
    marks = sense.marks
    reading.ends_stalled = "stalled" in marks
    if not marks:
        return
    if "stalled" in marks:
        reading.stall_lines += 1
        reading.stall = message
    elif "ready" in marks:  # a fresh start: whatever failed before belongs to another process, or was survived
        reading.findings.clear()
        reading.ready_index = reading.alive_index = index
        reading.stall_lines = 0
    elif "served" in marks and not reading.engine_died:
        reading.alive_index = index
        reading.stall_lines = 0
    elif (
        "stop_asked" in marks and not reading.engine_died and (reading.alive_index is not None or not reading.findings)
    ):
        reading.stop_index = index
    reading.loading = reading.loading or "loading" in marks
    reading.under_load = reading.under_load or "under_load" in marks or "served" in marks
    reading.starting = reading.starting or "starting" in marks
    if "capturing" in marks:
        reading.capturing_index = index
