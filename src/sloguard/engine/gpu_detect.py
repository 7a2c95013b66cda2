"""Which GPU this machine has. Asked in order, the first that knows answers:

1. SLOGUARD_GPU_VRAM_GB   the user's word (GiB, as `nvidia-smi` totals it / 1024)
2. NVML                   the driver's library, through nvidia-ml-py
3. torch                  where it is installed, in a short-lived process: here it would keep a CUDA context on the GPU
4. nvidia-smi             the driver's program

CUDA_VISIBLE_DEVICES is honoured. No GPU is no fault: the answer is then a SpecError that says how to state one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pynvml

from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, MIB, Gpu, known_gpu

VRAM_VARIABLE = "SLOGUARD_GPU_VRAM_GB"
VISIBLE = "CUDA_VISIBLE_DEVICES"
PROBE_TIMEOUT_S = 30.0

_ASK_TORCH = """
import json, torch
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(json.dumps([p.name, p.total_memory, p.major, p.minor, torch.cuda.device_count()]))
"""
_ASK_SMI = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]


@dataclass(frozen=True, slots=True)
class DetectedGpu:
    """The first visible GPU. `source` says who told; `compute_capability` is None where only the memory was stated."""

    name: str
    vram_bytes: int
    compute_capability: tuple[int, int] | None
    count: int
    source: str

    @property
    def known(self) -> Gpu | None:
        """The row of the table it is, with its bandwidth and throughput."""
        return known_gpu(self.name)


Environment = Mapping[str, str]
Probe = Callable[[Environment], DetectedGpu | None]


def detect_gpu(env: Environment = os.environ) -> DetectedGpu:
    """The GPU that engines started from here will use. Raises SpecError where there is none, or it is misstated."""
    for probe in PROBES:
        if (found := probe(env)) is not None:
            return found
    raise SpecError(
        "--gpu",
        None,
        "no GPU was found (asked NVML, torch and nvidia-smi)",
        f"State one with --gpu NAME, or its memory with {VRAM_VARIABLE}=40",
    )


def visible_gpus(env: Environment = os.environ) -> list[str]:
    """The GPUs there are, as CUDA_VISIBLE_DEVICES names them. Raises SpecError where there is none."""
    named = _visible(env)
    return list(named) if named is not None else [str(number) for number in range(detect_gpu(env).count)]


def stated_vram(env: Environment) -> DetectedGpu | None:
    text = env.get(VRAM_VARIABLE)
    if text is None:
        return None
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not 0 < gib < 10_000:
        raise SpecError(VRAM_VARIABLE, text, "not an amount of memory in GiB", f"Write e.g. {VRAM_VARIABLE}=40")
    return DetectedGpu(f"GPU with {gib:g} GiB", int(gib * GIB), None, 1, VRAM_VARIABLE)


def nvml(env: Environment) -> DetectedGpu | None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no driver, or one that doesn't answer
        return None
    try:
        visible = _visible(env)
        count = len(visible) if visible is not None else pynvml.nvmlDeviceGetCount()
        if not count:
            return None
        first = visible[0] if visible else "0"
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(first))
            if first.isdigit()
            else pynvml.nvmlDeviceGetHandleByUUID(first)
        )
        name = pynvml.nvmlDeviceGetName(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        return DetectedGpu(
            name if isinstance(name, str) else name.decode(),
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            (major, minor),
            count,
            "NVML",
        )
    except pynvml.NVMLError:  # e.g. CUDA_VISIBLE_DEVICES names a device that is not there
        return None
    finally:
        pynvml.nvmlShutdown()


def torch_cuda(env: Environment) -> DetectedGpu | None:
    if importlib.util.find_spec("torch") is None:
        return None
    output = _output_of([sys.executable, "-c", _ASK_TORCH], env)
    if not output:
        return None
    name, total, major, minor, count = json.loads(output)
    return DetectedGpu(name, total, (major, minor), count, "torch")


def nvidia_smi(env: Environment) -> DetectedGpu | None:
    return parse_smi(_output_of(_ASK_SMI, env), _visible(env))


def parse_smi(output: str, visible: list[str] | None) -> DetectedGpu | None:
    """The first visible row of `_ASK_SMI`'s output; None where there is none that can be read."""
    rows = [[field.strip() for field in line.split(",")] for line in output.splitlines()]
    rows = [row for row in rows if len(row) == 5 and row[3].isdigit()]
    if visible is not None:
        rows = [row for wanted in visible for row in rows if wanted in row[:2]]
    if not rows:
        return None
    _, _, name, mib, capability = rows[0]
    major, _, minor = capability.partition(".")
    known = (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None  # old drivers don't say
    return DetectedGpu(name, int(mib) * MIB, known, len(rows), "nvidia-smi")


PROBES: tuple[Probe, ...] = (stated_vram, nvml, torch_cuda, nvidia_smi)


def _visible(env: Environment) -> list[str] | None:
    """Indices or UUIDs in CUDA_VISIBLE_DEVICES; None where it is not set (all are visible)."""
    text = env.get(VISIBLE)
    if text is None:
        return None
    devices = [device.strip() for device in text.split(",") if device.strip()]
    hidden = next((i for i, device in enumerate(devices) if device == "-1"), len(devices))  # -1 hides all after it
    return devices[:hidden]


def _output_of(command: list[str], env: Environment) -> str:
    """What the command prints; nothing where it is missing, fails or hangs."""
    try:
        done = subprocess.run(
            command, env=dict(env), capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
