"""Named streams: equal names equal numbers, nothing else equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.rng import stream

NAMES = st.lists(st.text(max_size=5) | st.integers(), max_size=4).map(tuple)


def first(seed: int, *names: str | int) -> list[int]:
    return stream(seed, *names).integers(0, 2**63, size=4).tolist()


@given(st.integers(), NAMES)
def test_the_same_seed_and_names_give_the_same_numbers(seed, names):
    assert first(seed, *names) == first(seed, *names)


@given(st.tuples(st.integers(0, 3), NAMES), st.tuples(st.integers(0, 3), NAMES))
def test_other_seeds_or_names_give_other_numbers(a, b):
    assert (first(a[0], *a[1]) == first(b[0], *b[1])) == (a == b)


@pytest.mark.parametrize(("a", "b"), [(("a", "b"), ("ab",)), ((1,), ("1",)), ((12,), (1, 2)), ((), ("",))])
def test_names_that_join_alike_differ(a, b):
    assert first(0, *a) != first(0, *b)


def test_numpy_integers_are_integers():
    assert first(np.int64(7), "trial", np.int32(3)) == first(7, "trial", 3)


def test_the_numbers_never_change():
    """Recorded studies are replayed by these."""
    assert first(42, "arrivals") == GOLDEN


GOLDEN = [4071744997289453381, 4132750738514996457, 3036256695374748112, 5239897838726633340]


def test_streams_are_independent():
    a, b = stream(0, "arrivals").random(20_000), stream(0, "lengths").random(20_000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(20_000)
