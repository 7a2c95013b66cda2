"""Which GPU is there: the order of asking, and what each source says."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pynvml
import pytest

from sloguard.engine import gpu_detect
from sloguard.engine.gpu_detect import DetectedGpu, detect_gpu, nvidia_smi, nvml, parse_smi, stated_vram
from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, GPUS, MIB

SMI = """\
0, GPU-aaaa, NVIDIA A100-SXM4-40GB, 40960, 8.0
1, GPU-bbbb, NVIDIA H100 80GB HBM3, 81559, 9.0
"""


class FakeNvml:
    """Two GPUs behind pynvml's functions."""

    gpus = (("GPU-aaaa", "NVIDIA A100-SXM4-40GB", 40960, (8, 0)), ("GPU-bbbb", b"NVIDIA H100 80GB HBM3", 81559, (9, 0)))

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = 0
        for name in (n for n in dir(self) if n.startswith("nvml")):
            monkeypatch.setattr(pynvml, name, getattr(self, name))

    def nvmlInit(self) -> None:  # noqa: N802
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        if index >= len(self.gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> int:  # noqa: N802
        return [gpu[0] for gpu in self.gpus].index(uuid)

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:  # noqa: N802
        return self.gpus[handle][1]

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> object:  # noqa: N802
        return type("Memory", (), {"total": self.gpus[handle][2] * MIB})()

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return self.gpus[handle][3]


def test_the_users_word_comes_first_and_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeNvml(monkeypatch)
    found = detect_gpu({"SLOGUARD_GPU_VRAM_GB": "40"})
    assert (found.vram_bytes, found.compute_capability, found.source) == (40 * GIB, None, "SLOGUARD_GPU_VRAM_GB")
    assert found.known is None


@pytest.mark.parametrize("text", ["", "lots", "-4", "0", "nan", "1e9"])
def test_a_wrong_statement_is_an_error_not_a_fallback(text: str) -> None:
    with pytest.raises(SpecError, match="SLOGUARD_GPU_VRAM_GB"):
        detect_gpu({"SLOGUARD_GPU_VRAM_GB": text})


def test_nvml_tells_the_first_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml(monkeypatch)
    found = detect_gpu({})
    assert found == DetectedGpu("NVIDIA A100-SXM4-40GB", 40 * GIB, (8, 0), 2, "NVML")
    assert found.known is GPUS["A100-40GB"]
    assert fake.open == 0


@pytest.mark.parametrize("visible", ["1", "GPU-bbbb", "1,0", "GPU-bbbb,-1,GPU-aaaa"])
def test_visible_devices_are_honoured(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    FakeNvml(monkeypatch)
    found = nvml({"CUDA_VISIBLE_DEVICES": visible})
    assert found is not None
    assert found.known is GPUS["H100"]
    assert parse_smi(SMI, ["1"]) == DetectedGpu("NVIDIA H100 80GB HBM3", 81559 * MIB, (9, 0), 1, "nvidia-smi")


@pytest.mark.parametrize("visible", ["", "-1", "7"])
def test_hidden_devices_are_not_there(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    fake = FakeNvml(monkeypatch)
    assert nvml({"CUDA_VISIBLE_DEVICES": visible}) is None
    assert fake.open == 0


def test_nvidia_smi_output() -> None:
    assert parse_smi(SMI, None) == DetectedGpu("NVIDIA A100-SXM4-40GB", 40 * GIB, (8, 0), 2, "nvidia-smi")
    assert parse_smi(SMI, ["GPU-bbbb", "0"]) == DetectedGpu(
        "NVIDIA H100 80GB HBM3", 81559 * MIB, (9, 0), 2, "nvidia-smi"
    )
    old_driver = parse_smi("0, GPU-a, Tesla T4, 15360, [N/A]", None)
    assert old_driver == DetectedGpu("Tesla T4", 15360 * MIB, None, 1, "nvidia-smi")
    for nothing in ("", "No devices were found", "NVIDIA-SMI has failed, because, it, could, not"):
        assert parse_smi(nothing, None) is None
    assert parse_smi(SMI, []) is None


def test_nvidia_smi_is_asked_and_may_fail(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    for script, found in ((f"#!/bin/sh\ncat <<E\n{SMI}E\n", True), ("#!/bin/sh\necho broken >&2; exit 9\n", False)):
        program.write_text(script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        assert (nvidia_smi({"PATH": f"{tmp_path}:/usr/bin:/bin"}) is not None) is found
    assert nvidia_smi({"PATH": str(tmp_path / "empty")}) is None


def test_asked_in_order_and_none_is_an_error_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def silent(name: str) -> Callable[[object], None]:
        return lambda env: asked.append(name)

    assert [probe.__name__ for probe in gpu_detect.PROBES] == ["stated_vram", "nvml", "torch_cuda", "nvidia_smi"]
    monkeypatch.setattr(gpu_detect, "PROBES", (stated_vram, silent("first"), silent("second")))
    with pytest.raises(SpecError, match=r"--gpu NAME.*SLOGUARD_GPU_VRAM_GB"):
        detect_gpu({})
    assert asked == ["first", "second"]
