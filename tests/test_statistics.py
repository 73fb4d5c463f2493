"""Oracles: scipy's own tests, closed forms, exact sums over the binomial, and error rates measured in simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from rlhf_lab.statistics import (
    Comparison,
    Interval,
    better,
    bootstrap_interval,
    equivalent,
    proportion_interval,
    rule,
    t_interval,
)


def consistent(hits: int, trials: int, rate: float) -> bool:
    """Whether a simulated rate agrees with the stated one (exact binomial test at 0.1 %)."""
    return stats.binomtest(hits, trials, rate).pvalue > 1e-3


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


# --- t interval ---


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize("n", [2, 5, 30])
def test_t_interval_equals_scipy(n, level):
    values = np.random.default_rng(n).normal(3, 2, n)
    interval = t_interval(values, unit="fold", level=level)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert interval.value == pytest.approx(values.mean())
    assert (interval.n, interval.unit, interval.level) == (n, "fold", level)


def test_t_interval_by_hand():
    # mean 2, sd 1, sem 1/sqrt(3), t(.975; 2) = 4.302653 (any table of Student's t)
    interval = t_interval([1, 2, 3])
    assert interval.high - 2 == pytest.approx(4.302653 / math.sqrt(3), abs=1e-6)


def test_one_value_has_no_interval():
    assert t_interval([0.7]) == Interval(0.7, None, None, 0.95, 1, "seed")
    assert bootstrap_interval([0.7]) == Interval(0.7, None, None, 0.95, 1, "prompt")


def test_t_interval_of_five_seeds_covers_95_percent():
    samples = np.random.default_rng(1).normal(1.0, 0.3, (4000, 5))
    assert consistent(sum(covers(t_interval(s), 1.0) for s in samples), len(samples), 0.95)


def test_percentile_bootstrap_of_five_seeds_covers_only_84_percent():
    samples = np.random.default_rng(2).normal(1.0, 0.3, (1000, 5))
    coverage = np.mean([covers(bootstrap_interval(s, resamples=500), 1.0) for s in samples])
    assert 0.80 < coverage < 0.88


# --- bootstrap over prompts ---


def test_bootstrap_of_200_prompts_covers_95_percent():
    samples = np.random.default_rng(3).exponential(1.0, (800, 200))  # skewed, as rewards are
    hits = sum(covers(bootstrap_interval(s, resamples=500), 1.0) for s in samples)
    assert consistent(hits, len(samples), 0.945)  # the percentile bootstrap is a little short on skewed data


def test_bootstrap_nears_the_normal_interval_and_repeats_itself():
    values = np.random.default_rng(4).normal(0, 1, 2000)
    interval = bootstrap_interval(values, resamples=4000)
    half = 1.959964 * values.std() / math.sqrt(2000)
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.06)
    assert interval.value == pytest.approx(values.mean())
    assert (interval.n, interval.unit) == (2000, "prompt")
    assert interval == bootstrap_interval(values, resamples=4000)
    assert interval != bootstrap_interval(values, resamples=4000, seed=1)


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([2.0] * 10) == Interval(2.0, 2.0, 2.0, 0.95, 10, "prompt")


# --- Wilson ---


@pytest.mark.parametrize("successes, n", [(0, 10), (1, 10), (7, 10), (10, 10), (378, 600)])
def test_proportion_interval_equals_wilsons_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    center = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    interval = proportion_interval(successes, n)
    assert (interval.low, interval.high) == pytest.approx((center - half, center + half), abs=1e-12)
    assert (interval.value, interval.n, interval.unit) == (p, n, "pair")


def test_proportion_interval_covers_95_percent_exactly_summed():
    # Coverage is a sum over the binomial, so no simulation is needed; Wilson's averages 95 % over p.
    n, shares = 100, np.linspace(0.05, 0.95, 91)
    intervals = [proportion_interval(k, n) for k in range(n + 1)]
    low, high = (np.array([getattr(i, end) for i in intervals]) for end in ("low", "high"))
    inside = (low <= shares[:, None]) & (shares[:, None] <= high)  # (91, n + 1)
    coverage = (inside * stats.binom.pmf(np.arange(n + 1), n, shares[:, None])).sum(axis=1)
    assert coverage.mean() == pytest.approx(0.95, abs=0.005)
    assert coverage.min() > 0.91


@pytest.mark.parametrize("successes, n", [(-1, 10), (11, 10), (0, 0)])
def test_impossible_shares_are_refused(successes, n):
    with pytest.raises(ValueError, match=f"successes={successes}, n={n}"):
        proportion_interval(successes, n)


# --- better ---


def test_better_is_the_paired_t_test():
    rng = np.random.default_rng(5)
    seed_effect = rng.normal(0, 10, 5)  # shared by both sides: pairing removes it
    a, b = seed_effect + 1 + rng.normal(0, 0.2, 5), seed_effect + rng.normal(0, 0.2, 5)
    comparison = better(a, b)
    paired = stats.ttest_rel(a, b)
    assert comparison.verdict == "better"
    assert (comparison.difference.low, comparison.difference.high) == pytest.approx(tuple(paired.confidence_interval()))
    assert stats.ttest_ind(a, b).pvalue > 0.5  # unpaired, nothing would be seen


@pytest.mark.parametrize(
    "a, b, verdict",
    [
        ([2.0, 2.1, 1.9], [1.0, 1.0, 1.0], "better"),
        ([1.0, 1.0, 1.0], [2.0, 2.1, 1.9], "worse"),
        ([1.0, 2.0, 3.0], [3.0, 2.0, 1.0], "inconclusive"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "inconclusive"),  # no difference and no spread: zero is not left out
        ([2.0], [1.0], "not decided"),
    ],
)
def test_verdicts(a, b, verdict):
    comparison = better(a, b)
    assert comparison.verdict == verdict
    assert comparison.difference.value == pytest.approx(np.mean(a) - np.mean(b))
    assert comparison.difference.unit == "seed"
    assert (comparison.difference.low is None) == (verdict == "not decided")


def test_better_is_wrong_in_5_percent_under_the_null():
    a, b = np.random.default_rng(6).normal(0.7, 0.2, (2, 6000, 5))
    verdicts = [better(x, y).verdict for x, y in zip(a, b, strict=True)]
    assert consistent(verdicts.count("better"), len(verdicts), 0.025)
    assert consistent(verdicts.count("worse"), len(verdicts), 0.025)
    assert consistent(verdicts.count("inconclusive"), len(verdicts), 0.95)


@pytest.mark.parametrize("effect, least", [(1.0, 0.3), (3.0, 0.99)])
def test_power_of_better_equals_the_noncentral_t(effect, least):
    # Differences of mean `effect` and sd 1, five seeds.
    differences = np.random.default_rng(7).normal(effect, 1, (3000, 5))
    found = sum(better(d, np.zeros(5)).verdict == "better" for d in differences)
    power = stats.nct.sf(stats.t.ppf(0.975, 4), 4, effect * math.sqrt(5))
    assert consistent(found, len(differences), power)
    assert power > least


@pytest.mark.parametrize("compare", [better, lambda a, b: equivalent(a, b, margin=1)])
def test_seeds_must_match(compare):
    with pytest.raises(ValueError, match="got 3 and 2: run both with the same seeds"):
        compare([1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    "interval", [t_interval, bootstrap_interval, lambda v: better(v, v), lambda v: equivalent(v, v, margin=1)]
)
@pytest.mark.parametrize(
    "values, message",
    [
        ([1.0, float("nan")], "Value 1 of 2 is nan"),
        ([float("inf"), 1.0], "Value 0 of 2 is inf"),
        ([], r"shape \(0,\)"),
        ([[1.0, 2.0]], r"shape \(1, 2\)"),
    ],
)
def test_bad_values_are_refused(interval, values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_bad_levels_are_refused(level):
    with pytest.raises(ValueError, match=f"got {level}"):
        t_interval([1, 2], level=level)
    with pytest.raises(ValueError, match=f"got {level}"):
        proportion_interval(1, 2, level=level)


# --- equivalent ---


@pytest.mark.parametrize(
    "a, margin, verdict",
    [  # differences by hand: mean d, sd .1, so the interval is d +- .248 (t(.975; 2) = 4.303, sem .1 / sqrt(3))
        ([-0.1, 0.0, 0.1], 0.25, "equivalent"),
        ([-0.1, 0.0, 0.1], 0.248, "inconclusive"),  # nothing found, and still not the same
        ([0.2, 0.3, 0.4], 0.25, "inconclusive"),  # better than b, by more than the margin or less
        ([0.2, 0.3, 0.4], 0.55, "equivalent"),  # better than b, but by less than the margin for sure
        ([0.2, 0.3, 0.4], 0.05, "different"),
        ([-0.2, -0.3, -0.4], 0.05, "different"),
        ([-0.2, -0.3, -0.4], 0.25, "inconclusive"),
        ([0.25, 0.25, 0.25], 0.25, "different"),  # exactly the margin is not less than the margin
        ([0.3], 10.0, "not decided"),
    ],
)
def test_verdicts_of_equivalence(a, margin, verdict):
    b = [7.0] * len(a)
    comparison = equivalent(np.add(a, b), b, margin)
    assert (comparison.verdict, comparison.margin) == (verdict, margin)
    assert comparison.difference == t_interval(np.add(a, b) - b)


def test_equivalence_is_two_one_sided_t_tests():
    rng, margin, level = np.random.default_rng(8), 1.0, 0.95
    verdicts = []
    for differences in rng.normal(0.4, 0.6, (300, 5)):
        above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
        verdicts.append(equivalent(differences, np.zeros(5), margin, level).verdict == "equivalent")
        assert verdicts[-1] == (max(above, below) < (1 - level) / 2)
    assert 30 < sum(verdicts) < 270


@pytest.mark.parametrize("truth, sd", [(1.0, 0.1), (-1.0, 0.1), (1.0, 0.5), (-1.0, 2.0)])
def test_a_difference_as_large_as_the_margin_passes_for_none_in_2_5_percent_at_most(truth, sd):
    # With little noise the other side never matters, and the rate is 2.5 % exactly; with more it is below.
    differences = np.random.default_rng(9).normal(truth, sd, (4000, 5))
    wrong = sum(equivalent(d, np.zeros(5), margin=1.0).verdict == "equivalent" for d in differences)
    assert stats.binomtest(wrong, len(differences), 0.025, alternative="greater").pvalue > 1e-3
    if sd < 0.2:
        assert consistent(wrong, len(differences), 0.025)


def test_a_difference_as_large_as_the_margin_passes_for_larger_in_2_5_percent():
    differences = np.random.default_rng(10).normal(1.0, 0.1, (4000, 5))
    wrong = sum(equivalent(d, np.zeros(5), margin=1.0).verdict == "different" for d in differences)
    assert consistent(wrong, len(differences), 0.025)


@pytest.mark.parametrize("margin", [0, -0.1, float("nan"), float("inf")])
def test_bad_margins_are_refused(margin):
    with pytest.raises(ValueError, match=f"a positive number; got {margin}"):
        equivalent([1, 2], [1, 2], margin)


# --- rule ---


def test_rule_is_a_conjunction():
    up, down, open_, undecided = (
        Comparison(verdict, t_interval([0.0])) for verdict in ("better", "worse", "inconclusive", "not decided")
    )
    assert rule(up, True) == rule(up, up) == rule(np.bool_(True)) == "holds"
    assert rule(up, down) == rule(up, open_) == rule(up, False) == rule(np.bool_(False)) == "fails"
    assert rule(up, undecided) == rule(undecided, False) == "not decided"


def test_an_equivalence_is_a_condition():
    same, open_, different = (equivalent([d, d + 0.1, d - 0.1], [0, 0, 0], margin=0.3) for d in (0.0, 0.1, 1.0))
    assert (same.verdict, open_.verdict, different.verdict) == ("equivalent", "inconclusive", "different")
    assert rule(same) == rule(same, True) == "holds"
    assert rule(same, False) == rule(open_) == rule(different) == "fails"
    assert rule(same, equivalent([1], [1], margin=1)) == "not decided"


@pytest.mark.parametrize(
    "conditions, message", [((), "at least one"), (("better",), "not of 'better'"), ((1,), "not of 1")]
)
def test_bad_rules_are_refused(conditions, message):
    with pytest.raises(ValueError, match=message):
        rule(*conditions)
