from __future__ import annotations

from pathlib import Path

import pytest

from sloguard.engine.slo_classes import SloClasses, read_slo_classes, to_toml
from sloguard.errors import SpecError
from sloguard.plugins.options import Promise

GOOD = """
default = "chat"
[classes.chat]
ttft_ms = 500
tpot_ms = 50.5
[classes."Batch_2.x-y"]
"""


def read(tmp_path: Path, text: str | bytes) -> SloClasses:
    path = tmp_path / "classes.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_slo_classes(path)


def test_classes_are_read(tmp_path: Path):
    found = read(tmp_path, GOOD)
    assert found.default == "chat"
    assert found.classes == {"chat": Promise(ttft_ms=500, tpot_ms=50.5), "Batch_2.x-y": Promise()}
    assert read(tmp_path, "") == SloClasses()
    assert read(tmp_path, 'default = "best-effort"').default == "best-effort"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[classes.chat", ("is no TOML", "table declaration")),
        (b"\xff", ("is no TOML",)),
        ("[classes.chat]\nttft_ms = 0", ("classes.chat.ttft_ms = 0", "greater than")),
        ("[classes.chat]\nttft_ms = inf", ("classes.chat.ttft_ms = inf", "less than")),
        ("[classes.chat]\nttft_ms = nan", ("classes.chat.ttft_ms = nan",)),
        ("[classes.chat]\nttft_ms = true", ("classes.chat.ttft_ms = True", "number")),
        ('[classes.chat]\ntpot_ms = "50"', ("classes.chat.tpot_ms = '50'", "number")),
        ("[classes.chat]\nttft_s = 1", ("classes.chat.ttft_s", "Extra")),
        ("[chat]\nttft_ms = 1", ("chat", "[classes.NAME]")),
        ("classes = 3", ("classes = 3", "dictionary")),
        ("default = 3", ("default = 3", "string")),
        ('default = "gold"\n[classes.chat]\n[classes.batch]', ("'gold'", "batch, chat")),
        ('default = "gold"', ("'gold'", "none")),
        ('[classes."a b"]', ("classes.a b", "letters")),
        ('[classes.""]', ("letters",)),
        ("[classes.best-effort]", ("best-effort", "can't be used")),
        ("[classes.custom]", ("custom", "can't be used")),
        (f"[classes.{'a' * 65}]", ("64 letters",)),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str | bytes, says: tuple[str, ...]):
    with pytest.raises(SpecError) as raised:
        read(tmp_path, text)
    assert raised.value.field == "--slo-classes"
    for words in ("classes.toml", *says):
        assert words in str(raised.value)


@pytest.mark.parametrize("name", ["none.toml", ""])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str):
    with pytest.raises(SpecError, match="can't be read"):
        read_slo_classes(tmp_path / name)


@pytest.mark.parametrize(
    "classes",
    [
        SloClasses(),
        SloClasses(default="best-effort"),
        SloClasses(default="a.b", classes={"a.b": Promise(ttft_ms=0.001, tpot_ms=86400000.0), "c": Promise()}),
    ],
)
def test_what_is_written_is_read_again(tmp_path: Path, classes: SloClasses):
    assert read(tmp_path, to_toml(classes)) == classes
