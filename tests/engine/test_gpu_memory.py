"""GPU memory between trials, over a driver that is a table."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sloguard.engine import gpu_memory
from sloguard.engine.gpu_memory import TOLERANCE_BYTES, settled_bytes, used_bytes, wait_until_free

GIB = 2**30
UUIDS = ("GPU-aaaa", "GPU-bbbb")


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes in use on two GPUs; the test changes them."""
    bytes_used = [GIB, 2 * GIB]
    driver = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetUUID": lambda index: UUIDS[index],
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(used=bytes_used[index]),
    }
    for name, function in driver.items():
        monkeypatch.setattr(gpu_memory.pynvml, name, function)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return bytes_used


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, set(UUIDS)),
        ("1", {"GPU-bbbb"}),
        ("1, 0", set(UUIDS)),
        ("GPU-aa", {"GPU-aaaa"}),
        ("", set()),
        ("-1", set()),
        ("MIG-1234", set(UUIDS)),
    ],
)
def test_only_visible_gpus_are_watched(
    visible: str | None, expected: set[str], used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert set(used_bytes()) == expected


def test_a_gpu_back_at_its_baseline_is_clean(used: list[int]) -> None:
    baseline = used_bytes()
    used[0] += TOLERANCE_BYTES
    used[1] -= GIB
    assert wait_until_free(baseline, timeout_s=0) == {}


def test_a_gpu_that_stays_full_is_named(used: list[int]) -> None:
    baseline = used_bytes()
    used[1] += 3 * GIB
    assert wait_until_free(baseline, timeout_s=0) == {"GPU-bbbb": 3 * GIB}


def test_memory_that_comes_free_meanwhile_is_waited_for(used: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = used_bytes()
    used[0] += GIB

    def free(seconds: float) -> None:
        used[0] -= GIB

    monkeypatch.setattr(gpu_memory.time, "sleep", free)
    assert wait_until_free(baseline, timeout_s=60) == {}


def test_memory_of_killed_processes_is_waited_for_until_it_stops_falling(
    used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    used[1] = 40 * GIB
    steps = iter((20 * GIB, 5 * GIB, 5 * GIB, 0))

    def fall(seconds: float) -> None:
        used[1] = next(steps)

    monkeypatch.setattr(gpu_memory.time, "sleep", fall)
    assert settled_bytes(timeout_s=60) == {"GPU-aaaa": GIB, "GPU-bbbb": 5 * GIB}


def test_without_a_driver_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise gpu_memory.pynvml.NVMLError(gpu_memory.pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(gpu_memory.pynvml, "nvmlInit", missing)
    assert used_bytes() == {}
    assert wait_until_free({}, timeout_s=0) == {}
