"""A class with options as one word of a command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from sloguard.errors import SpecError
from sloguard.study.choice import Choice, read_choices


@dataclass
class Fast:
    seed: int
    size: int = 1
    share: float = 0.5
    on: bool = True
    mode: str | None = None
    batch: int | None = None
    order: Literal["most", "least"] = "most"
    whatever: object = None

    def __post_init__(self) -> None:
        if self.share > 1:
            raise ValueError("a share is at most 1")

    def plan(self) -> None: ...


class Vague:
    def __init__(self, rng: NobodyKnows = None, size: int = 1) -> None:  # noqa: F821 # type: ignore[name-defined]
        self.size = size

    def plan(self) -> None: ...


TABLE = {"fast": f"{__name__}:Fast"}


def made(text: str) -> Fast:
    (choice,) = read_choices(text, "--policy")
    return choice.make(TABLE, "--policy", "plan", {"seed": 7, "nobody_takes": 1}, ("limit",))


def test_options_are_typed_as_toml_and_text_needs_no_quotes():
    assert made("fast") == Fast(7)
    assert made("fast:size=3:share=0.25:on=false:mode=dp") == Fast(7, 3, 0.25, False, "dp")
    assert made("fast:share=1") == Fast(7, share=1)
    assert made('fast:mode="8"') == Fast(7, mode="8")
    assert made("fast:batch=8:order=least:whatever=1.5") == Fast(7, batch=8, order="least", whatever=1.5)


def test_a_class_whose_annotations_cannot_be_looked_up_goes_by_its_defaults():
    (choice,) = read_choices(f"{__name__}:Vague:size=2", "--policy")
    assert choice.make({}, "--policy", "plan").size == 2
    (choice,) = read_choices(f"{__name__}:Vague:size=big", "--policy")
    with pytest.raises(SpecError, match="size takes no str"):
        choice.make({}, "--policy", "plan")


def test_ones_own_class_takes_options_too():
    assert made(f"{__name__}:Fast:size=9") == Fast(7, 9)


def test_several_are_read_in_order():
    names = [(c.text, c.name, c.options) for c in read_choices("a, b:k=1 ,m.n:C:k=x", "--policy")]
    assert names == [("a", "a", ()), ("b:k=1", "b", (("k", 1),)), ("m.n:C:k=x", "m.n:C", (("k", "x"),))]


def test_options_can_be_taken_out():
    kept, taken = Choice("t", "n", (("a", 1), ("b", 2))).without({"a", "z"})
    assert kept == Choice("t", "n", (("b", 2),))
    assert taken == {"a": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "can't be read"),
        ("a,,b", "can't be read"),
        ("a::k=1", "can't be read"),
        ("k=1", "can't be read"),
        ("a:b:c", "c has no value. Write c=VALUE."),
        ("a:k=1:b", "b has no value"),
        ("fast:size", "size has no value. Write size=VALUE."),
        ("fast:limit", "limit has no value"),
        ("my_policy.py:Mine", "Leave out .py: my_policy:Mine."),
        ("my_policy.py", "Leave out .py: my_policy:Class."),
        (":k=1", "can't be read"),
        ("a:=1", "is not key=value"),
        ("a:k=", "is not key=value"),
        ("a:k=1:k=2", "given twice"),
        ("a:k=1,a:k=1", "given twice"),
        ("nobody", "Choose one of fast"),
        ("fast:sise=3", "no option 'sise'. It takes: size, share, on, mode, batch, order, whatever, limit."),
        ("fast:seed=3", "no option 'seed'"),
        ("fast:size=big", "size takes no str"),
        ("fast:size=1.5", "size takes no float"),
        ("fast:size=true", "size takes no bool"),
        ("fast:on=1", "on takes no int"),
        ("fast:batch=100.5", "batch takes no float. It takes whole numbers."),
        ("fast:batch=true", "batch takes no bool"),
        ("fast:batch=big", "batch takes no str"),
        ("fast:mode=8", "mode takes no int. It takes text."),
        ("fast:order=1", "order takes no int"),
        ("fast:share=true", "share takes no bool"),
        ("fast:share=2.0", "a share is at most 1"),
        ("no.such_module:Class", "can't be imported"),
    ],
)
def test_what_is_wrong_is_named_with_the_flag(text, says):
    with pytest.raises(SpecError, match="--policy") as error:
        made(text)
    assert says in str(error.value)
