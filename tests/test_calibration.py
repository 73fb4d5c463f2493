"""Oracles: closed forms, simulations whose probabilities are true by construction, and scikit-learn."""

import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression

from rlhf_lab.calibration import confidence, error_by_chance, expected_error, reliability, slope


def simulated(n: int, factor: float = 1.0, seed: int = 0) -> np.ndarray:
    """Log-odds (n,) of pairs from a model that overstates the true ones by `factor`; a positive one was right."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, n)
    chosen_first = rng.random(n) < expit(truth)
    return factor * np.where(chosen_first, truth, -truth)


# --- confidence ---


def test_confidence_by_hand():
    probabilities, outcomes = confidence([math.log(3), -math.log(3), 0.0])
    assert probabilities.tolist() == pytest.approx([0.75, 0.75, 0.5])
    assert outcomes.tolist() == [1, 0, 0.5]


def test_a_model_without_opinions_is_calibrated():
    assert expected_error(*confidence(np.zeros(7))) == 0


# --- the reliability diagram ---


def test_reliability_by_hand():
    # Four cases in two bins: the lower two say .1 and .3 and none comes true, the upper two say .6 and .8 and one does.
    found = reliability([0.8, 0.1, 0.6, 0.3], [1, 0, 0, 0], bins=2)
    assert found.predicted.tolist() == pytest.approx([0.2, 0.7])
    assert found.observed.tolist() == [0, 0.5]
    assert found.count.tolist() == [2, 2]
    assert expected_error([0.8, 0.1, 0.6, 0.3], [1, 0, 0, 0], bins=2) == pytest.approx((0.2 + 0.2) / 2)


def test_the_error_is_weighted_by_the_cases_of_a_bin():
    # Quantiles of tied values give one bin of three cases and one of one: (3 |1/3 - .2| + |1 - .9|) / 4.
    found = reliability([0.2, 0.2, 0.2, 0.9], [1, 0, 0, 1], bins=2)
    assert found.count.tolist() == [3, 1]
    assert expected_error([0.2, 0.2, 0.2, 0.9], [1, 0, 0, 1], bins=2) == pytest.approx((3 * (1 / 3 - 0.2) + 0.1) / 4)


def test_misses_on_both_sides_do_not_cancel_out():
    assert expected_error([0.3] * 10 + [0.7] * 10, [1] * 10 + [0] * 10, bins=2) == pytest.approx(0.7)
    assert expected_error([0.3] * 10 + [0.7] * 10, [1] * 10 + [0] * 10, bins=1) == pytest.approx(0)


def test_certain_and_right_is_no_error_certain_and_wrong_is_the_whole():
    assert expected_error([0.0, 1.0, 1.0], [0, 1, 1]) == 0
    assert expected_error([0.0, 1.0, 1.0], [1, 0, 0]) == 1


@pytest.mark.parametrize("decimals", [1, 2, 16])  # rounded probabilities are tied
@pytest.mark.parametrize("bins", [1, 4, 10, 25])
def test_reliability_is_that_of_scikit_learn(bins, decimals):
    rng = np.random.default_rng(bins)
    probabilities = rng.beta(2, 1, 500).round(decimals)
    outcomes = (rng.random(500) < probabilities**2).astype(int)
    observed, predicted = calibration_curve(outcomes, probabilities, n_bins=bins, strategy="quantile")
    found = reliability(probabilities, outcomes, bins)
    assert found.observed.tolist() == pytest.approx(observed.tolist())
    assert found.predicted.tolist() == pytest.approx(predicted.tolist())
    by_bins = (found.count * np.abs(observed - predicted)).sum() / 500
    assert expected_error(probabilities, outcomes, bins) == pytest.approx(by_bins)
    if decimals == 16:
        assert len(found.count) == bins and np.ptp(found.count) <= 1  # equal mass


# --- the floor ---


def test_a_calibrated_model_errs_as_much_as_chance():
    # 40 models, each calibrated by construction: their errors scatter around their floors.
    runs = [confidence(simulated(400, seed=seed)) for seed in range(40)]
    surplus = [expected_error(p, o) - error_by_chance(p, seed=seed) for seed, (p, o) in enumerate(runs)]
    assert abs(np.mean(surplus)) < 3.5 * stats.sem(surplus)
    assert stats.sem(surplus) < 0.003 < min(error_by_chance(p) for p, _ in runs) / 5  # and the test could tell


def test_the_floor_of_one_bin_in_closed_form():
    # The mean absolute deviation of a share of n fair coins (n even) is C(n, n/2) / 2^(n + 1).
    floor = error_by_chance([0.5] * 100, bins=1, repeats=20000)
    assert floor == pytest.approx(math.comb(100, 50) / 2**101, rel=0.02)


def test_the_floor_halves_with_four_times_the_cases():
    floors = [error_by_chance(confidence(simulated(n))[0], repeats=400) for n in (500, 2000, 8000)]
    assert floors[0] / floors[1] == pytest.approx(2, rel=0.1)
    assert floors[1] / floors[2] == pytest.approx(2, rel=0.1)


def test_the_floor_repeats_itself_and_its_seed_matters():
    probabilities = confidence(simulated(200))[0]
    assert error_by_chance(probabilities) == error_by_chance(probabilities) != error_by_chance(probabilities, seed=1)


# --- over- and underconfidence ---


@pytest.mark.parametrize(("factor", "sign"), [(2.0, 1), (0.5, -1)])
def test_a_factor_of_two_is_found_with_its_sign(factor, sign):
    log_odds = simulated(20000, factor)
    probabilities, outcomes = confidence(log_odds)
    found = reliability(probabilities, outcomes)
    assert (sign * (found.predicted - found.observed) > 0).all()  # says more (less) than comes true, in every bin
    assert expected_error(probabilities, outcomes) > 5 * error_by_chance(probabilities)
    assert slope(log_odds) == pytest.approx(1 / factor, rel=0.05)
    mended = confidence(slope(log_odds) * log_odds)
    assert expected_error(*mended) < 2 * error_by_chance(mended[0])


def test_the_slope_is_logistic_regression_on_the_log_odds():
    log_odds = simulated(300, 3.0)
    turned = np.where(np.arange(300) % 2, -1, 1)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    theirs.fit((log_odds * turned)[:, None], turned)
    assert slope(log_odds) == pytest.approx(theirs.coef_[0, 0], rel=1e-4)


def test_the_slope_in_closed_form():
    # Always sure by 1 nat and right in three of four: sigma(slope) = 3/4. Wrong in three of four: the negative.
    assert slope([1, 1, 1, -1]) == pytest.approx(math.log(3))
    assert slope([-1, -1, 1, -1]) == pytest.approx(-math.log(3))
    assert slope([1e-3, 1e-3, 1e-3, -1e-3]) == pytest.approx(1e3 * math.log(3))


def test_a_model_worse_than_chance_has_a_negative_slope():
    assert slope(-simulated(2000)) == pytest.approx(-slope(simulated(2000)))
    assert slope(-simulated(2000)) < -0.8


# --- bad input ---


@pytest.mark.parametrize("log_odds", [[1.0, 2.0], [-1.0, 0.0], [0.0]])
def test_an_infinite_slope_is_refused(log_odds):
    with pytest.raises(ValueError, match="test it on more pairs"):
        slope(log_odds)


@pytest.mark.parametrize(
    ("probabilities", "outcomes", "message"),
    [
        ([0.5, 1.5], [0, 1], "Probability 1 is 1.5, outside"),
        ([0.5, 0.6], [-1, 1], "Outcome 0 is -1, outside"),
        ([0.5], [0, 1], "there are 1 and 2"),
        ([], [], r"probabilities must be .* shape \(0,\)"),
        ([0.5, float("nan")], [0, 1], "probabilities must be a flat, non-empty sequence of finite numbers"),
    ],
)
def test_bad_input_gets_one_sentence(probabilities, outcomes, message):
    with pytest.raises(ValueError, match=message):
        reliability(probabilities, outcomes)
    with pytest.raises(ValueError, match=message):
        expected_error(probabilities, outcomes)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="at least one bin; got 0"):
        error_by_chance([0.5, 0.6], bins=0)
