"""Arrival processes against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloguard.errors import SpecError
from sloguard.rng import stream
from sloguard.workload.arrivals import Constant, Gamma, Hyperexponential, OnOff, Poisson, Replay, Scaling

RATES = st.floats(1e-3, 1e6)
SHARES = st.floats(0.01, 0.99)
PROCESSES = st.one_of(
    st.builds(Poisson, RATES),
    st.builds(Gamma, RATES, st.floats(1e-3, 1e3)),
    st.builds(Constant, RATES),
    st.builds(OnOff, RATES, st.floats(0.01, 100), st.floats(0.01, 100)),
    st.builds(lambda rate, p, m: Hyperexponential(rate, ((p, 1.0), (1 - p, m))), RATES, SHARES, st.floats(1e-3, 1e3)),
)


def cv(values: np.ndarray) -> float:
    return float(values.std() / values.mean())


@given(PROCESSES, st.integers(1, 300), st.integers(0, 2**32))
def test_times_are_sorted_counted_finite_and_not_negative(process, n, seed):
    times_s = process.times(stream(seed, "arrivals"), n)
    assert times_s.shape == (n,)
    assert times_s.dtype == np.float64
    assert np.all(np.isfinite(times_s))
    assert times_s[0] >= 0
    assert np.all(np.diff(times_s) >= 0)


@given(PROCESSES, st.integers(1, 100), st.integers(0, 2**32))
def test_the_same_stream_gives_the_same_bytes(process, n, seed):
    a, b = (process.times(stream(seed, "arrivals"), n) for _ in range(2))
    assert a.tobytes() == b.tobytes()


@given(RATES, st.integers(1, 300), st.floats(1e-3, 1e3), st.integers(0, 2**32))
def test_the_rate_asked_for_is_the_rate_offered(rate, n, burstiness, seed):
    mixed = Hyperexponential(rate, ((0.3, 1.0), (0.7, burstiness)))
    for process in (Poisson(rate), Gamma(rate, burstiness), Constant(rate), mixed):
        assert process.times(stream(seed, "arrivals"), n)[-1] == pytest.approx(n / rate, rel=1e-12)


@pytest.mark.parametrize("process", [Poisson(1.0), Gamma(1.0, 0.25), Constant(1.0)])
def test_another_rate_is_the_same_pattern_faster(process):
    faster = type(process)(8.0, *([process.burstiness] if isinstance(process, Gamma) else []))
    slow, fast = (p.times(stream(3, "arrivals"), 500) for p in (process, faster))
    np.testing.assert_allclose(slow, fast * 8, rtol=1e-12)


@pytest.mark.parametrize("process", [Poisson(np.inf), Gamma(np.inf, 0.5), Constant(np.inf), OnOff(np.inf, 1, 1)])
def test_an_infinite_rate_offers_all_at_once(process):
    assert process.times(stream(0, "arrivals"), 7).tolist() == [0.0] * 7


def test_constant_is_one_gap_then_another():
    np.testing.assert_allclose(Constant(4.0).times(stream(0), 4), [0.25, 0.5, 0.75, 1.0])


def test_poisson_counts_and_gaps_are_poisson():
    n, rate = 40_000, 5.0
    times_s = Poisson(rate).times(stream(1, "arrivals"), n)
    gaps_s = np.diff(times_s)
    # The sampling error of a coefficient of variation of 1 is about 1 / sqrt(n); 5 of them.
    assert abs(cv(gaps_s) - 1) < 5 / math.sqrt(n)
    per_second = np.bincount(times_s[times_s < n / rate].astype(int))
    dispersion = per_second.var() / per_second.mean()
    assert abs(dispersion - 1) < 5 * math.sqrt(2 / len(per_second))
    # Memoryless: the share of gaps above t is exp(-rate t).
    assert np.mean(gaps_s > 0.3) == pytest.approx(math.exp(-rate * 0.3), abs=5 * 0.5 / math.sqrt(n))


@pytest.mark.parametrize("burstiness", [0.1, 0.25, 1.0, 4.0, 100.0])
def test_gamma_gaps_have_the_coefficient_of_variation_of_their_burstiness(burstiness):
    gaps_s = np.diff(Gamma(3.0, burstiness).times(stream(2, "arrivals"), 50_000))
    assert cv(gaps_s) == pytest.approx(1 / math.sqrt(burstiness), rel=0.04)


def test_gamma_of_burstiness_one_is_poisson():
    np.testing.assert_array_equal(
        Gamma(3.0, 1.0).times(stream(2, "arrivals"), 100), Poisson(3.0).times(stream(2, "arrivals"), 100)
    )


@given(SHARES, st.floats(0.01, 100))
def test_hyperexponential_gaps_have_the_moments_of_their_mixture(share, mean):
    process = Hyperexponential(1.0, ((share, 1.0), (1 - share, mean)))
    gaps_s = np.diff(process.times(stream(2, "arrivals"), 50_000))
    first, second = (math.factorial(k) * (share + (1 - share) * mean**k) for k in (1, 2))
    assert cv(gaps_s) == pytest.approx(math.sqrt(second / first**2 - 1), rel=0.15)


def test_hyperexponential_of_one_kind_is_memoryless():
    gaps_s = np.diff(Hyperexponential(5.0, ((0.4, 2.0), (0.6, 2.0))).times(stream(1, "arrivals"), 40_000))
    for t in (0.1, 0.3, 0.6):
        assert np.mean(gaps_s > t) == pytest.approx(math.exp(-5 * t), abs=5 * 0.5 / math.sqrt(40_000))


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(0, 1000))
def test_on_off_is_silent_in_its_pauses(on_s, off_s, seed):
    times_s = OnOff(20.0, on_s, off_s).times(stream(seed, "arrivals"), 400)
    phase_s = times_s % (on_s + off_s)
    in_burst = (phase_s <= on_s * (1 + 1e-9)) | (phase_s >= (on_s + off_s) * (1 - 1e-9))
    assert np.all(in_burst)


def test_on_off_keeps_the_average_rate_over_whole_cycles():
    process = OnOff(rate=4.0, on_s=2.0, off_s=6.0)
    times_s = process.times(stream(5, "arrivals"), 32 * 100)
    assert times_s[-1] == pytest.approx(800.0)
    per_cycle = np.bincount((times_s[:-1] // 8).astype(int), minlength=100)
    assert per_cycle.mean() == pytest.approx(32, abs=0.5)
    assert per_cycle.var() / per_cycle.mean() == pytest.approx(1, abs=5 * math.sqrt(2 / 100))


RECORDED = np.array([0.0, 1.0, 1.5, 4.0, 10.0])


def test_replay_without_a_rate_is_as_recorded():
    np.testing.assert_array_equal(Replay(RECORDED).times(stream(0), 5), RECORDED)
    np.testing.assert_array_equal(Replay(RECORDED).times(stream(0), 3), RECORDED[:3])


def test_stretching_keeps_every_request_and_the_shape():
    index, times_s = Replay(RECORDED, rate=2.0).pick(stream(0), None)
    assert index.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(times_s, RECORDED / 4)  # 5 requests at 2 req/s end at 2.5 s, not at 10 s


def test_stretching_of_the_first_requests_gives_them_the_rate():
    np.testing.assert_allclose(Replay(RECORDED, rate=3.0).times(stream(0), 3), [0, 2 / 3, 1.0])


def test_thinning_keeps_real_time_and_drops_requests_at_random():
    recorded_s = np.cumsum(stream(1).standard_exponential(20_000)) / 10.0
    index, times_s = Replay(recorded_s, rate=2.5, scaling=Scaling.THIN).pick(stream(2), None)
    np.testing.assert_array_equal(times_s, recorded_s[index])
    assert len(index) == pytest.approx(5000, abs=5 * math.sqrt(20_000 * 0.25 * 0.75))
    assert np.all(np.diff(index) > 0)
    first, _ = Replay(recorded_s, rate=2.5, scaling=Scaling.THIN).pick(stream(2), 100)
    assert first.tolist() == index[:100].tolist()


def test_thinning_to_the_recorded_rate_keeps_all():
    index, _ = Replay(RECORDED, rate=0.5, scaling=Scaling.THIN).pick(stream(2), None)
    assert index.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Poisson(0.0), "rate"),
        (lambda: Poisson(math.nan), "rate"),
        (lambda: Constant(-1.0), "rate"),
        (lambda: Gamma(1.0, 0.0), "burstiness"),
        (lambda: Gamma(1.0, math.inf), "burstiness"),
        (lambda: Gamma(1.0, math.nan), "burstiness"),
        (lambda: OnOff(1.0, 0.0, 1.0), "on_s"),
        (lambda: OnOff(1.0, 1.0, math.inf), "off_s"),
        (lambda: Hyperexponential(0.0, ((1.0, 1.0),)), "rate"),
        (lambda: Hyperexponential(1.0, ()), "kinds of gaps"),
        (lambda: Hyperexponential(1.0, ((0.5, 1.0), (0.4, 2.0))), "kinds of gaps"),
        (lambda: Hyperexponential(1.0, ((1.5, 1.0), (-0.5, 2.0))), "kinds of gaps"),
        (lambda: Hyperexponential(1.0, ((0.5, 1.0), (0.5, math.nan))), "kinds of gaps"),
        (lambda: Replay(RECORDED, rate=0.0), "rate"),
        (lambda: Replay(RECORDED).times(stream(0), 6), "--num-requests"),
        (lambda: Replay(RECORDED, 0.6, Scaling.THIN).times(stream(0), 1), "--request-rate"),
        (lambda: Replay(RECORDED, 0.1, Scaling.THIN).times(stream(0), 5), "--num-requests"),
        (lambda: Replay(np.zeros(3), 1.0).times(stream(0), 3), "--request-rate"),
    ],
)
def test_what_makes_no_sense_is_named(make, field):
    with pytest.raises(SpecError) as raised:
        make()
    assert raised.value.field == field
