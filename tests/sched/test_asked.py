from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.sched.asked import CUSTOM, FIELDS, LONGEST_MS, MOST_STAGES, Asked, read_asked
from sloguard.slo import BEST_EFFORT, NO_SLO, StageSLO

CHAT = StageSLO(0.5, 0.05)
CLASSES = {"chat": CHAT, "batch": NO_SLO}


def read(default: str | None = None, **given: object) -> Asked:
    return read_asked(given, CLASSES, default)


@pytest.mark.parametrize(
    ("given", "default", "expected"),
    [
        ({}, None, Asked(BEST_EFFORT, NO_SLO)),
        ({}, "chat", Asked("chat", CHAT)),
        ({"other": object()}, "chat", Asked("chat", CHAT)),
        ({"slo_class": "chat"}, None, Asked("chat", CHAT)),
        ({"slo_class": "batch"}, "chat", Asked("batch", NO_SLO)),
        ({"slo_class": "best-effort"}, "chat", Asked(BEST_EFFORT, NO_SLO)),
        ({"slo_ttft_ms": 300}, "chat", Asked(CUSTOM, StageSLO(0.3, None))),
        ({"slo_ttft_ms": 300, "slo_class": "chat"}, None, Asked("chat", StageSLO(0.3, 0.05))),
        ({"slo_tpot_ms": "50", "slo_stages_left": "3"}, None, Asked(CUSTOM, StageSLO(None, 0.05), None, 3)),
        ({"slo_stages_left": 2.0}, "chat", Asked("chat", CHAT, None, 2)),
        ({"slo_think_tpot_ms": 20}, "chat", Asked("chat", CHAT, 0.02)),
        ({"slo_think_tpot_ms": 20}, None, Asked(CUSTOM, NO_SLO, 0.02)),
        ({"slo_stages_left": 1, "slo_conversation": "c7"}, "chat", Asked("chat", CHAT, None, 1, "c7")),
    ],
)
def test_what_is_asked(given: dict[str, object], default: str | None, expected: Asked):
    assert read_asked(given, CLASSES, default) == expected


def test_best_effort_is_what_promises_nothing():
    assert read().best_effort
    assert read(slo_class="batch").best_effort
    assert not read(slo_class="batch", slo_tpot_ms=50).best_effort
    assert not read(slo_think_tpot_ms=50).best_effort


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(
            (name, value)
            for name in FIELDS[1:5]
            for value in ("", "soon", None, True, nan, inf, "inf", [5], 10**400, -1)
        ),
        *((name, value) for name in FIELDS[1:4] for value in (0, "0", 5e-324, LONGEST_MS * 1.01)),
        *(("slo_stages_left", value) for value in (0.5, MOST_STAGES + 1)),
        *(("slo_class", value) for value in ("", "gold", None, 3, ["chat"], "Chat", "custom")),
        *(("slo_conversation", value) for value in ("", "x" * 257, None, 3, ["c7"])),
        ("slo_ttft", 5),
    ],
)
def test_what_is_none_of_these_is_named(name: str, value: object):
    with pytest.raises(SpecError) as raised:
        read_asked({name: value}, CLASSES, None)
    assert raised.value.field == name
    assert "Give" in str(raised.value) or "one of" in str(raised.value) or "There are" in str(raised.value)


def test_a_default_class_that_there_is_not_is_said():
    with pytest.raises(SpecError, match="gold"):
        read("gold")


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.floats(0, 2e-3), st.text(max_size=4), st.just("chat")
)
TEXTS = st.one_of(st.floats().map(str), st.integers(-10, 10**6).map(str), st.just("1e400"), st.just("9" * 5000))
ANY = SCALARS | TEXTS | st.lists(SCALARS, max_size=2) | st.dictionaries(st.text(max_size=2), SCALARS, max_size=2)


@given(
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=6).map("slo_".__add__) | st.text(max_size=6), ANY),
    st.sampled_from([None, "chat", "batch", BEST_EFFORT]),
)
def test_whatever_is_given_is_read_or_refused_by_name(given: dict[str, object], default: str | None):
    refused = None
    try:
        asked = read_asked(given, CLASSES, default)
    except SpecError as error:
        asked, refused = None, error.field
    if asked is None:
        assert refused in given
        return
    assert asked.slo_class in {*CLASSES, BEST_EFFORT, CUSTOM}
    assert asked.best_effort == (asked.slo == NO_SLO and asked.think_tpot_s is None)
    assert 0 <= asked.stages_left <= MOST_STAGES
    for seconds in (asked.slo.ttft_s, asked.slo.tpot_s, asked.think_tpot_s):
        assert seconds is None or 0 < seconds <= LONGEST_MS / 1000


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "slo_ttft_ms": st.floats(1e-3, LONGEST_MS),
            "slo_tpot_ms": st.integers(1, 1000),
            "slo_think_tpot_ms": st.floats(1, 99),
            "slo_stages_left": st.integers(0, MOST_STAGES),
            "slo_class": st.sampled_from(["chat", "batch"]),
        },
    )
)
def test_a_header_says_what_a_number_says(given: dict[str, object]):
    text: dict[str, object] = {name: str(value) for name, value in given.items()}
    assert read_asked(text, CLASSES, "chat") == read_asked(given, CLASSES, "chat")
