"""The demo models: the same bytes everywhere, in a layout that other programs read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from paths import REPO
from sloguard.perf.model_shape import ModelShape


def make(out: Path) -> Path:
    tool = str(REPO / "tools" / "make_demo_model.py")
    subprocess.run([sys.executable, tool, "demo-tiny", "--out", str(out)], check=True, capture_output=True)
    return out / "demo-tiny"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("models"))


def test_made_twice_it_is_the_same(model: Path, tmp_path: Path) -> None:
    again = make(tmp_path)
    assert {p.name: p.read_bytes() for p in again.iterdir()} == {p.name: p.read_bytes() for p in model.iterdir()}


def test_what_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "demo-tiny").mkdir()
    assert list(make(tmp_path).iterdir()) == []


def test_weights_fill_the_file_and_are_those_of_the_architecture(model: Path) -> None:
    data = (model / "model.safetensors").read_bytes()
    head_bytes = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + head_bytes])
    tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
    spans = sorted(tuple(tensor["data_offsets"]) for tensor in tensors)
    assert [begin for begin, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == len(data) - 8 - head_bytes
    shape = ModelShape.from_config("demo-tiny", json.loads((model / "config.json").read_text()))
    assert spans[-1][1] == pytest.approx(shape.weight_bytes, rel=0.01)  # it leaves the biases out


def test_every_id_below_a_thousand_is_ordinary_text(model: Path) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["id"] for token in tokenizer["added_tokens"]}
    ids = set(tokenizer["model"]["vocab"].values())
    assert ids | special == set(range(1024))
    assert min(special) >= 1000
    assert all(first + second in tokenizer["model"]["vocab"] for first, second in tokenizer["model"]["merges"])
