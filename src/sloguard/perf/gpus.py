"""GPUs by name. Memory as `nvidia-smi` totals it, bandwidth and dense bf16 throughput from NVIDIA's datasheets.

Volta and Turing have no bf16: their figure is fp16's. Compute capability: NVIDIA's CUDA GPU list. Interconnect: NVLink
of SXM boards and of the NVL pair, half of the datasheet's total, which counts both directions; else PCIe x16.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from sloguard.errors import SpecError

MIB = 1024**2
GIB = 1024**3


class GpuFacts(Protocol):
    """What memory and compatibility rules ask of a GPU: a `Gpu` of the table, or one detected but not in it."""

    @property
    def name(self) -> str: ...

    @property
    def vram_bytes(self) -> int: ...

    @property
    def compute_capability(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `bandwidth_bytes_s` and `flops` (dense, 1/s) are peaks; `interconnect_bytes_s` is the peak of what it
    sends to the other GPUs of its node while it receives as much.
    """

    name: str
    vram_bytes: int
    bandwidth_bytes_s: float
    flops: float
    interconnect_bytes_s: float
    compute_capability: tuple[int, int]


# name: (MiB, GB/s, TFLOP/s dense, GB/s to other GPUs, compute capability, normalised NVML names)
_TABLE: dict[str, tuple[int, float, float, float, tuple[int, int], tuple[str, ...]]] = {
    "T4": (15360, 320, 65, 16, (7, 5), ()),
    "V100-16GB": (16384, 900, 125, 150, (7, 0), ("v100 sxm2 16gb", "v100 pcie 16gb")),
    "V100-32GB": (32768, 900, 125, 150, (7, 0), ("v100 sxm2 32gb", "v100 pcie 32gb")),
    "RTX-3090": (24576, 936, 71, 32, (8, 6), ()),
    "RTX-A6000": (49140, 768, 154.8, 32, (8, 6), ("a6000",)),
    "A10": (23028, 600, 125, 32, (8, 6), ()),
    "A10G": (23028, 600, 70, 32, (8, 6), ()),
    "A40": (46068, 696, 149.7, 32, (8, 6), ()),
    "A100-40GB": (40960, 1555, 312, 300, (8, 0), ("a100 sxm4 40gb", "a100 pcie 40gb")),
    "A100-80GB": (81920, 2039, 312, 300, (8, 0), ("a100 sxm4 80gb",)),
    "A100-80GB-PCIe": (81920, 1935, 312, 32, (8, 0), ()),
    "L4": (23034, 300, 121, 32, (8, 9), ()),
    "L40": (46068, 864, 181, 32, (8, 9), ()),
    "L40S": (46068, 864, 362, 32, (8, 9), ()),
    "RTX-4090": (24564, 1008, 165.2, 32, (8, 9), ()),
    "RTX-6000-Ada": (49140, 960, 364.2, 32, (8, 9), ("rtx 6000 ada generation",)),
    "H100": (81559, 3350, 989.4, 450, (9, 0), ("h100 80gb hbm3", "h100 sxm", "h100 sxm5", "h100 80gb")),
    "H100-PCIe": (81559, 2000, 756, 64, (9, 0), ()),
    "H100-NVL": (95830, 3900, 835, 300, (9, 0), ()),
    "H20": (97871, 4000, 148, 450, (9, 0), ()),
    "H200": (143771, 4800, 989.4, 450, (9, 0), ("h200 sxm", "h200 141gb")),
    "B200": (183359, 8000, 2250, 900, (10, 0), ()),
    "RTX-5090": (32607, 1792, 209.5, 64, (12, 0), ()),
    "RTX-PRO-6000": (
        97887,
        1792,
        503.8,
        64,
        (12, 0),
        ("rtx pro 6000 blackwell server edition", "rtx pro 6000 blackwell workstation edition"),
    ),
}
GPUS: dict[str, Gpu] = {
    name: Gpu(name, mib * MIB, gb_s * 1e9, tflops * 1e12, link_gb_s * 1e9, capability)
    for name, (mib, gb_s, tflops, link_gb_s, capability, _) in _TABLE.items()
}


def _normalised(name: str) -> str:
    """ "NVIDIA A100-SXM4-40GB" -> "a100 sxm4 40gb"; the maker and product line say nothing about the chip."""
    words = re.findall(r"[a-z0-9.]+", name.lower())
    return " ".join(w for w in words if w not in ("nvidia", "tesla", "geforce"))


_BY_NAME = {spelling: name for name, row in _TABLE.items() for spelling in (_normalised(name), *row[-1])}


def known_gpu(name: str) -> Gpu | None:
    """The GPU of that name as NVIDIA's driver or a user spells it, whatever the case; None if it is not known."""
    found = _BY_NAME.get(_normalised(name))
    return None if found is None else GPUS[found]


def gpu_named(name: str) -> Gpu:
    """`known_gpu`, or a SpecError that lists the names. "A100" alone is refused: it comes with 40 or 80 GB."""
    gpu = known_gpu(name)
    if gpu is None:
        word = _normalised(name)
        close = [known for known in GPUS if word and _normalised(known).startswith(word)]
        raise SpecError(
            "--gpu",
            name,
            f"could be any of {', '.join(close)}" if close else "no GPU of that name is known",
            f"Name one of: {', '.join(close or GPUS)}",
        )
    return gpu
