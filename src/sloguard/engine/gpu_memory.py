"""GPU memory between trials: a trial that starts before the last one's memory is free measures something else."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping

import pynvml

TOLERANCE_BYTES = 512 * 2**20  # what display servers and other contexts take and give back meanwhile
POLL_S = 0.25
SETTLE_S = 1.0  # the driver frees a killed process's memory in steps

Used = Mapping[str, int]


def used_bytes() -> dict[str, int]:
    """Bytes in use on each visible GPU, by its UUID; empty where there is no NVIDIA driver."""
    with _nvml() as works:
        if not works:
            return {}
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        named = [(str(pynvml.nvmlDeviceGetUUID(handle)), handle) for handle in handles]
        used: dict[str, int] = {}
        for index, (uuid, handle) in enumerate(named):
            if _is_visible(index, uuid):
                with contextlib.suppress(pynvml.NVMLError):  # not supported where the GPU shares the host's memory
                    used[uuid] = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        return used


def settled_bytes(timeout_s: float) -> dict[str, int]:
    """`used_bytes` once it has stopped falling: to be asked after processes were killed."""
    deadline_s = time.monotonic() + timeout_s
    used = used_bytes()
    while time.monotonic() < deadline_s:
        time.sleep(SETTLE_S)
        before, used = used, used_bytes()
        if not _excess(before, used):
            break
    return used


def wait_until_free(baseline: Used, timeout_s: float) -> dict[str, int]:
    """Waits for every GPU to be back at `baseline`. Returns the excess in bytes where it isn't: a dirty device."""
    deadline_s = time.monotonic() + timeout_s
    while excess := _excess(used_bytes(), baseline):
        if time.monotonic() > deadline_s:
            return excess
        time.sleep(POLL_S)
    return {}


def _excess(used: Used, baseline: Used) -> dict[str, int]:
    over = {uuid: count - baseline[uuid] for uuid, count in used.items() if uuid in baseline}
    return {uuid: count for uuid, count in over.items() if count > TOLERANCE_BYTES}


def _is_visible(index: int, uuid: str) -> bool:
    """By CUDA_VISIBLE_DEVICES: numbers, or the beginnings of UUIDs. MIG slices are parts of a GPU: all are watched."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None or "MIG" in chosen:
        return True
    names = [name.strip() for name in chosen.split(",") if name.strip()]
    return any(name == str(index) or (name.startswith("GPU-") and uuid.startswith(name)) for name in names)


@contextlib.contextmanager
def _nvml() -> Iterator[bool]:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield False
        return
    try:
        yield True
    finally:
        pynvml.nvmlShutdown()
