"""Calibration: does what a model says with 80 % probability come true in 80 % of the cases?

A Bradley-Terry reward model says by its scores how sure it is: the chosen of two responses is ahead with probability
sigma(difference of the scores). Bai et al. (2022, arXiv 2204.05862, section 3.3) check a preference model in this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: for each bin the mean probability, the mean outcome, and how many cases it holds."""

    predicted: np.ndarray  # (B,)
    observed: np.ndarray  # (B,)
    count: np.ndarray  # (B,)


def confidence(log_odds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """What a model that orders pairs says of itself: how sure it is of its pick, and whether the pick was right.

    log_odds (N,): by how much the chosen response of each pair outscores the other. Returns the probabilities (N,),
    sigma of the absolute values, so from 1/2 to 1; and the outcomes (N,), 1 for a positive one, 0 for a negative one,
    and 1/2 for zero: the model has no pick, and a coin that picked for it would be right half the time.
    Raises ValueError for log-odds that are no flat sequence of finite numbers.
    """
    log_odds = _flat(log_odds, "log-odds")
    return expit(np.abs(log_odds)), (np.sign(log_odds) + 1) / 2


def reliability(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> Reliability:
    """The reliability diagram of `probabilities` (N,) against `outcomes` (N,) of 0 or 1 (or 1/2, see `confidence`).

    The bins are of equal mass: they end at quantiles of the probabilities. Equal probabilities share a bin, so where
    there are many of them, there are fewer bins than `bins` (B <= bins). Raises ValueError for numbers outside [0, 1]
    or of another length.
    """
    probabilities, outcomes = _checked(probabilities, outcomes)
    bin_of = _equal_mass(probabilities, bins)  # (N,)
    count = np.bincount(bin_of)
    mean = [np.bincount(bin_of, weights=values) / count for values in (probabilities, outcomes)]
    return Reliability(*mean, count)


def expected_error(probabilities: Sequence[float], outcomes: Sequence[float], bins: int = 10) -> float:
    """The expected calibration error, sum_b count_b / N |observed_b - predicted_b|, over bins of equal mass.

    Source: Guo et al. (2017, arXiv 1706.04599), section 2, there with bins of equal width. Even a perfect model has an
    error above zero on finitely many cases: compare with `error_by_chance`. Raises as `reliability` does.
    """
    probabilities, outcomes = _checked(probabilities, outcomes)
    return _error(_equal_mass(probabilities, bins), outcomes - probabilities)


def error_by_chance(probabilities: Sequence[float], bins: int = 10, repeats: int = 200, seed: int = 0) -> float:
    """The floor of `expected_error`: its mean for a perfectly calibrated model that says just these `probabilities`
    (N,), found by drawing the outcomes from them `repeats` times. Raises as `reliability` does.
    """
    probabilities, _ = _checked(probabilities, probabilities)
    bin_of, rng = _equal_mass(probabilities, bins), np.random.default_rng(seed)
    drawn = ((rng.random(len(probabilities)) < probabilities) - probabilities for _ in range(repeats))
    return float(np.mean([_error(bin_of, surplus) for surplus in drawn]))


def slope(log_odds: Sequence[float]) -> float:
    """By what the log-odds (N,) of `confidence` should be multiplied to make what happened most likely.

    1 is calibrated, above 1 underconfident, below 1 overconfident, below 0 worse than no model at all. It is Cox's
    calibration slope (Biometrika 45, 1958), without an intercept because a pair has no first and second; its
    reciprocal is the temperature of Guo et al. (2017, section 4.2). Raises ValueError where it is infinite: if the
    model is right on all pairs, or wrong on all.
    """
    log_odds = _flat(log_odds, "log-odds")
    if not (log_odds.min() < 0 < log_odds.max()):
        raise ValueError(
            "No finite slope fits a model that is right on all pairs or wrong on all: test it on more pairs."
        )

    def gradient(factor: float) -> float:
        """Of the mean of log sigma(factor * log-odds); it falls with the factor."""
        return float((log_odds * expit(-factor * log_odds)).mean())

    far = 1.0
    while gradient(far) > 0 or gradient(-far) < 0:
        far *= 2
    return float(brentq(gradient, -far, far))


def _equal_mass(probabilities: np.ndarray, bins: int) -> np.ndarray:
    """The bin (N,) of each probability; numbers without gaps, smallest probabilities first."""
    if bins < 1:
        raise ValueError(f"A reliability diagram needs at least one bin; got {bins}.")
    ends = np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1])
    return np.unique(np.searchsorted(ends, probabilities), return_inverse=True)[1]


def _error(bin_of: np.ndarray, surplus: np.ndarray) -> float:
    """The expected calibration error from outcome minus probability (N,)."""
    return float(np.abs(np.bincount(bin_of, weights=surplus)).sum() / len(surplus))


def _checked(probabilities: Sequence[float], outcomes: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    checked = _flat(probabilities, "probabilities"), _flat(outcomes, "outcomes")
    if len(checked[0]) != len(checked[1]):
        raise ValueError(f"Each probability needs its outcome, but there are {len(checked[0])} and {len(checked[1])}.")
    for name, values in zip(("Probability", "Outcome"), checked, strict=True):
        if values.min() < 0 or values.max() > 1:
            where = int(np.flatnonzero((values < 0) | (values > 1))[0])
            raise ValueError(
                f"{name} {where} is {values[where]:g}, outside [0, 1]: log-odds go through `confidence` first."
            )
    return checked


def _flat(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"The {name} must be a flat, non-empty sequence of finite numbers; got shape {array.shape}.")
    return array
