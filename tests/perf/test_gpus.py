"""GPU names as people and drivers write them."""

from __future__ import annotations

import pytest

from sloguard.errors import SpecError
from sloguard.perf.gpus import GIB, GPUS, gpu_named, known_gpu

SPELLINGS = {
    "A100-40GB": ["a100-40gb", "NVIDIA A100-SXM4-40GB", "NVIDIA A100-PCIE-40GB", "A100 40GB"],
    "A100-80GB": ["NVIDIA A100-SXM4-80GB", "a100_80gb"],
    "A100-80GB-PCIe": ["NVIDIA A100 80GB PCIe"],
    "H100": ["h100", "NVIDIA H100 80GB HBM3"],
    "H100-PCIe": ["NVIDIA H100 PCIe"],
    "H100-NVL": ["NVIDIA H100 NVL"],
    "H200": ["NVIDIA H200"],
    "B200": ["NVIDIA B200"],
    "L4": ["NVIDIA L4"],
    "L40S": ["NVIDIA L40S"],
    "RTX-4090": ["NVIDIA GeForce RTX 4090", "rtx 4090"],
    "RTX-A6000": ["NVIDIA RTX A6000"],
    "RTX-PRO-6000": ["NVIDIA RTX PRO 6000 Blackwell Server Edition"],
    "T4": ["Tesla T4"],
    "V100-16GB": ["Tesla V100-SXM2-16GB"],
}


@pytest.mark.parametrize(("key", "name"), [(key, name) for key, names in SPELLINGS.items() for name in names])
def test_names_of_the_driver_and_of_people(key: str, name: str) -> None:
    assert gpu_named(name).name == key


def test_every_gpu_answers_to_its_own_name() -> None:
    assert all(gpu_named(name) is gpu for name, gpu in GPUS.items())


def test_a_name_that_could_be_several_lists_them() -> None:
    with pytest.raises(SpecError, match=r"A100-40GB.*A100-80GB"):
        gpu_named("A100")


@pytest.mark.parametrize("name", ["", "H800X", "NVIDIA A100-SXM4-40GB MIG 3g.20gb", "cpu"])
def test_an_unknown_name_is_an_error_that_lists_what_is_known(name: str) -> None:
    assert known_gpu(name) is None
    with pytest.raises(SpecError, match="RTX-4090"):
        gpu_named(name)


def test_figures_are_in_bytes_and_operations() -> None:
    a100 = GPUS["A100-40GB"]
    assert a100.vram_bytes == 40 * GIB
    assert (a100.bandwidth_bytes_s, a100.flops, a100.compute_capability) == (1.555e12, 3.12e14, (8, 0))
    for gpu in GPUS.values():
        assert 10 * GIB < gpu.vram_bytes < 300 * GIB
        assert 30 < gpu.flops / gpu.bandwidth_bytes_s < 500  # operations a byte of bandwidth: units agree
