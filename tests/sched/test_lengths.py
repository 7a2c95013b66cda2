from __future__ import annotations

import csv
import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paths import SHARED_DATA, needs_shared_data
from sloguard.sched.job import Job
from sloguard.sched.lengths import ENOUGH, KEPT, PRIOR_TOKENS, AtMost, Mean, Oracle, Quantile


def job(generated: int = 0, prompt: int = 100, app: str = "chat", output: int = 10**6) -> Job:
    return Job("j", 0.0, prompt, output, app=app, generated_tokens=generated)


def seen(lengths: Quantile | Mean, outputs: list[int], prompt: int = 100, app: str = "chat") -> None:
    for tokens in outputs:
        lengths.finished(job(tokens, prompt, app))


def test_before_anything_was_seen_the_prior_holds():
    assert Quantile().output_tokens(job()) == PRIOR_TOKENS
    assert Mean().output_tokens(job(PRIOR_TOKENS)) == 2 * PRIOR_TOKENS


@given(st.lists(st.integers(1, 5000), min_size=ENOUGH, max_size=60), st.floats(0.05, 0.95))
def test_the_quantile_is_one_of_what_was_seen_with_its_share_below(outputs: list[int], q: float):
    lengths = Quantile(q)
    seen(lengths, outputs)
    guess = lengths.output_tokens(job())
    assert guess in outputs
    assert sum(tokens < guess for tokens in outputs) <= q * len(outputs)
    assert sum(tokens <= guess for tokens in outputs) > q * len(outputs) - 1


@given(st.lists(st.integers(1, 5000), max_size=60), st.integers(0, 20_000))
def test_a_guess_exceeds_what_is_there_already(outputs: list[int], generated: int):
    for lengths in (Quantile(), Mean()):
        seen(lengths, outputs)
        assert lengths.output_tokens(job(generated)) > generated


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60))
def test_a_guess_changes_only_when_it_is_reached_and_then_doubles_at_least(outputs: list[int]):
    lengths = Quantile(0.5)
    seen(lengths, outputs)
    guesses = [lengths.output_tokens(job(generated)) for generated in range(2000)]
    for generated in range(1, 2000):
        if guesses[generated] != guesses[generated - 1]:
            assert guesses[generated - 1] == generated
            assert guesses[generated] >= 2 * generated


def test_an_outgrown_guess_is_made_among_the_longer_answers():
    lengths = Quantile(0.5)
    seen(lengths, [10] * 20 + [100] * 5)
    assert lengths.output_tokens(job(9)) == 10
    assert lengths.output_tokens(job(10)) == 100
    assert lengths.output_tokens(job(100)) == 200


def test_groups_are_applications_and_prompt_sizes_and_fall_back_to_wider_ones():
    lengths = Mean()
    seen(lengths, [10] * ENOUGH, prompt=100)
    seen(lengths, [40] * ENOUGH, prompt=1000)
    assert lengths.output_tokens(job(prompt=100)) == 10
    assert lengths.output_tokens(job(prompt=1000)) == 40
    assert lengths.output_tokens(job(prompt=5)) == 25  # of the application
    assert lengths.output_tokens(job(app="code")) == 25  # of everything


def test_only_the_latest_answers_count():
    lengths = Quantile()
    seen(lengths, [1000] * KEPT)
    seen(lengths, [10] * KEPT)
    assert lengths.output_tokens(job()) == 10


def test_the_oracle_knows():
    assert Oracle().output_tokens(job(output=77)) == 77


def test_a_quantile_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        Quantile(1.0)


@needs_shared_data
@pytest.mark.parametrize("name", ["sharegpt_8k_llama2tok", "arxiv_summarization_llama2tok"])
def test_on_public_lengths_nine_of_ten_answers_stay_below_the_quantile(name: str):
    with gzip.open(SHARED_DATA / "lengths" / f"{name}.csv.gz", "rt") as file:
        rows = [(int(row["input_tokens"]), int(row["output_tokens"])) for row in csv.DictReader(file)]
    order = np.random.default_rng(0).permutation(len(rows))[:6000]
    lengths, below = Quantile(), 0
    for count, index in enumerate(order):
        prompt, output = rows[index]
        below += count >= 1000 and output <= lengths.output_tokens(job(prompt=max(prompt, 1)))
        lengths.finished(job(output, max(prompt, 1)))
    assert below / 5000 == pytest.approx(0.9, abs=0.02)


@given(st.lists(st.integers(1, 5000), max_size=40), st.integers(1, 3000), st.integers(0, 4000))
def test_no_answer_is_guessed_longer_than_it_may_be(outputs: list[int], limit: int, generated: int):
    plain, capped = Quantile(), AtMost(Quantile())
    for tokens in outputs:
        plain.finished(job(tokens))
        capped.finished(job(tokens))
    asked = job(generated, output=limit)
    for guess, free in (
        (capped.output_tokens(asked), plain.output_tokens(asked)),
        (capped.mean_tokens(asked), plain.mean_tokens(asked)),
    ):
        assert guess == min(free, max(limit, generated + 1))
        assert guess > generated
