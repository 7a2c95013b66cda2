"""Spaces: sampling, placing, encoding, conditions and the TOML of users."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.rng import stream
from sloguard.space.knobs import Categorical, Float, Int, Knob
from sloguard.space.space import Space
from sloguard.trial import Config

NESTED = Space(
    (
        Categorical("eager", (False, True)),
        Categorical("spec", ("none", "ngram"), when=("eager", False)),
        Int("drafts", 1, 8, when=("spec", "ngram")),
        Float("util", 0.6, 0.95),
        Int("seqs", 4, 128, log=True),
    )
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to six knobs, some under a condition on an earlier choice."""
    knobs: list[Knob] = []
    for i in range(draw(st.integers(0, 6))):
        parents = [k for k in knobs if isinstance(k, Categorical)]
        parent = draw(st.sampled_from([None, *parents]))
        when = None if parent is None else (parent.name, draw(st.sampled_from(parent.choices)))
        name, low, span, log = f"k{i}", draw(st.integers(1, 50)), draw(st.integers(0, 40)), draw(st.booleans())
        match draw(st.sampled_from(["int", "float", "choice"])):
            case "int":
                knobs.append(Int(name, low, low + span, log, when))
            case "float":
                knobs.append(Float(name, low / 7, low / 7 + span / 3, log, when))
            case _:
                choices = st.lists(st.sampled_from([True, False, 1, 0, "a", "b"]), min_size=1, max_size=4)
                unique = {(isinstance(c, bool), c): c for c in draw(choices)}
                knobs.append(Categorical(name, tuple(unique.values()), when))
    return Space(tuple(knobs))


seeds = st.integers(0, 2**32 - 1)
values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5000), st.floats(), st.text(max_size=3))


@given(spaces(), seeds)
def test_what_is_drawn_lies_inside_and_survives_the_encoder(space: Space, seed: int) -> None:
    rng = stream(seed, "space")
    config = space.sample(rng)
    assert space.contains(config)
    unit, active = space.encode(config)
    assert unit.shape == active.shape == (len(space.knobs),)
    assert np.all((unit >= 0) & (unit <= 1))
    assert [n for n, a in zip(space.names, active, strict=True) if a] == [n for n in space.names if n in config]
    back = space.decode(unit)
    assert back.keys() == config.keys()
    for name, value in config.items():
        assert back[name] == (pytest.approx(value, rel=2e-3) if isinstance(value, float) else value)


@given(spaces(), seeds, st.floats(0, 2), st.floats(0, 1))
def test_a_neighbour_lies_inside_and_differs_in_one_free_knob(space: Space, seed: int, sigma: float, p: float) -> None:
    rng = stream(seed, "space")
    config = space.sample(rng)
    near = space.neighbour(config, rng, sigma, p)
    assert space.contains(near)
    moved = {n for n in config.keys() & near.keys() if config[n] is not near[n] and config[n] != near[n]}
    assert len(moved) <= 1 or all(space.knob(n).when for n in moved)  # what hangs on a moved choice is drawn anew


@given(spaces(), st.dictionaries(st.sampled_from([f"k{i}" for i in range(8)]), values), seeds)
def test_any_config_is_placed_deterministically_idempotently_and_completed(
    space: Space, config: dict[str, object], seed: int
) -> None:
    placed = space.activate(Config(config))  # type: ignore[arg-type]
    assert space.activate(placed) == placed
    full = space.complete(placed, stream(seed, "complete"))
    assert space.contains(full)
    assert placed.items() <= full.items()


@given(spaces())
def test_size_counts_what_configs_lists(space: Space) -> None:
    if space.size is not None and space.size <= 3000:
        listed = list(space.configs())
        assert len(listed) == len(set(listed)) == space.size
        assert all(space.contains(config) for config in listed)


@given(spaces(), seeds)
def test_pinning_a_knob_leaves_the_rest_of_a_config_inside(space: Space, seed: int) -> None:
    config = space.sample(stream(seed, "space"))
    for name in config:
        rest = {k: v for k, v in config.items() if k != name}
        assert space.without({name: config[name]}).contains(rest)


def test_a_knob_whose_condition_can_no_longer_hold_leaves_with_all_that_hangs_on_it() -> None:
    assert NESTED.without({"eager": True}).names == ("util", "seqs")
    assert NESTED.without({"eager": False, "elsewhere": 1}).names == ("spec", "drafts", "util", "seqs")
    assert NESTED.without({"spec": "none"}).names == ("eager", "util", "seqs")


def test_values_outside_the_ranges_are_clipped_and_impossible_ones_dropped() -> None:
    given_ = Config({"eager": True, "spec": "ngram", "util": 2, "seqs": 1024, "other": 1})
    assert NESTED.activate(given_) == Config({"eager": True, "util": 0.95, "seqs": 128})
    assert NESTED.activate(Config({"eager": 1, "util": True, "seqs": "many", "drafts": 3})) == Config()
    unit, active = NESTED.encode(Config({"seqs": 1024}))
    assert active.tolist() == [False, False, False, False, True]
    assert unit[:4].tolist() == [0.5] * 4
    assert unit[4] == pytest.approx(NESTED.knob("seqs").encode(128))


def test_true_is_not_one() -> None:
    space = Space((Categorical("k", (1, True)),))
    assert space.contains(Config({"k": True}))
    assert not Space((Categorical("k", (1, 2)),)).contains(Config({"k": True}))
    assert not Space((Int("k", 0, 2),)).contains(Config({"k": True}))
    assert space.size == 2


@pytest.mark.parametrize("knob", [Int("n", 1, 4), Int("n", 1, 4, log=True)])
def test_every_integer_is_reached_and_linear_ones_equally_often(knob: Int) -> None:
    drawn = [knob.decode(u) for u in np.linspace(0, 1, 4001)]
    counts = [drawn.count(v) for v in range(knob.low, knob.high + 1)]
    assert min(counts) > 0
    if not knob.log:
        assert max(counts) - min(counts) <= 2
    else:
        assert counts == sorted(counts, reverse=True)


def test_a_step_of_an_integer_is_never_lost_in_rounding() -> None:
    space = Space((Int("n", 1, 3),))
    moved = {space.neighbour(Config({"n": n}), stream(s, "step"), 1e-9, 0.5)["n"] for n in (1, 3) for s in range(20)}
    assert moved == {2}


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Int("n", 5, 4), "n.low"),
        (lambda: Int("n", 0, 4, log=True), "n.low"),
        (lambda: Float("n", 0.0, 4.0, log=True), "n.low"),
        (lambda: Float("n", 0.0, float("inf")), "n.high"),
        (lambda: Categorical("n", ()), "n.choices"),
        (lambda: Categorical("n", ("a", "a")), "n.choices"),
        (lambda: Space((Int("n", 1, 2), Int("n", 1, 3))), "n"),
        (lambda: Space((Int("m", 1, 2, when=("n", 1)), Categorical("n", (1, 2)))), "m.when"),
        (lambda: Space((Categorical("n", (1, 2)), Int("m", 1, 2, when=("n", 3)))), "m.when"),
    ],
)
def test_an_impossible_knob_is_refused_by_name(build, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        build()
    assert caught.value.field == field


TOML = """
[enforce_eager]
type = "bool"
[enable_chunked_prefill]
type = "bool"
when = { enforce_eager = false }
[max_num_seqs]
type = "int"
low = 4
high = 128
log = true
[gpu_memory_utilization]
type = "float"
low = 0.6
high = 0.95
[kv_cache_dtype]
type = "categorical"
choices = ["auto", "fp8"]
"""


def test_a_space_is_read_from_toml() -> None:
    assert Space.from_toml(TOML, "my.toml") == Space(
        (
            Categorical("enforce_eager", (False, True)),
            Categorical("enable_chunked_prefill", (False, True), when=("enforce_eager", False)),
            Int("max_num_seqs", 4, 128, log=True),
            Float("gpu_memory_utilization", 0.6, 0.95),
            Categorical("kv_cache_dtype", ("auto", "fp8")),
        )
    )


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[n\n", "TOML"),
        ("", "knobs"),
        ("n = 3", "n"),
        ("[n]\nlow = 3", "n.type"),
        ('[n]\ntype = "log"', "n.type"),
        ('[n]\ntype = ["int"]', "n.type"),
        ('[n]\ntype = "int"\nlow = 3', "n.high"),
        ('[n]\ntype = "int"\nlow = 3\nhigh = 2.5', "n.high"),
        ('[n]\ntype = "int"\nlow = 3\nhigh = 4\nstep = 2', "n.step"),
        ('[n]\ntype = "int"\nlow = 3\nhigh = 4\nlog = "yes"', "n.log"),
        ('[n]\ntype = "int"\nlow = true\nhigh = 4', "n.low"),
        ('[n]\ntype = "float"\nlow = "a"\nhigh = 4', "n.low"),
        ('[n]\ntype = "categorical"\nchoices = "fp8"', "n.choices"),
        ('[n]\ntype = "categorical"\nchoices = [[1]]', "n.choices"),
        ('[n]\ntype = "bool"\nwhen = { a = 1, b = 2 }', "n.when"),
        ('[n]\ntype = "bool"\nwhen = { a = 1 }', "n.when"),
    ],
)
def test_toml_that_describes_no_space_names_source_knob_and_field(text: str, field: str) -> None:
    with pytest.raises(SpecError) as caught:
        Space.from_toml(text, "my.toml")
    assert caught.value.field == f"my.toml: {field}"
    assert "\n" not in str(caught.value)
