"""Intervals and verdicts: how sure a number is, and when one thing may be called better than another, or the same.

The unit of replication decides which interval is right. A claim about a *method* is replicated by seeds, of which
there are few: use `t_interval`, `better` and `equivalent`. A number of *one* policy or model is replicated by prompts
or pairs, of which there are many: use `bootstrap_interval` or `proportion_interval`. A percentile bootstrap of 5 seeds
would cover the truth in about 84 % of runs, not 95 %; the tests of this module measure it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval.

    `level` is the share of repetitions in which [low, high] covers the truth; `n` counts the replications and `unit`
    says what they are ("seed", "prompt", "pair"). One replication gives no interval: `low` and `high` are then None.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    n: int
    unit: str


@dataclass(frozen=True)
class Comparison:
    """A verdict and the paired difference it rests on.

    Of `better` the verdict is "better", "worse", "inconclusive" or "not decided"; of `equivalent`, which has a margin,
    it is "equivalent", "different", "inconclusive" or "not decided".
    """

    verdict: str
    difference: Interval
    margin: float | None = None  # differences smaller than this count as none


def t_interval(values: Sequence[float], unit: str = "seed", level: float = 0.95) -> Interval:
    """Student's t interval of the mean of `values`, shape (n,), with n - 1 degrees of freedom.

    Exact for normal values, however few. Raises ValueError if `values` is empty, not flat or not finite.
    Source: Student, "The probable error of a mean", Biometrika 6 (1908).
    """
    values = _checked(values, level)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, None, None, level, n, unit)
    half = float(stats.t.ppf((1 + level) / 2, df=n - 1) * stats.sem(values))
    return Interval(mean, mean - half, mean + half, level, n, unit)


def bootstrap_interval(
    values: Sequence[float], unit: str = "prompt", level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean of `values`, shape (n,), for some dozens of replications or more.

    Raises ValueError if `values` is empty, not flat or not finite.
    Source: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), section 13.3.
    """
    values = _checked(values, level)
    n, mean = len(values), float(values.mean())
    if n == 1:
        return Interval(mean, None, None, level, n, unit)
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        batch=100,  # resamples held in memory at a time: 100 x n floats
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Interval(mean, float(low), float(high), level, n, unit)


def proportion_interval(successes: int, n: int, unit: str = "pair", level: float = 0.95) -> Interval:
    """Wilson's score interval of a share of `n` independent trials; it stays inside [0, 1], also at 0 and at n.

    Raises ValueError unless 0 <= successes <= n and n >= 1.
    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"A share needs 0 <= successes <= n and n >= 1; got successes={successes}, n={n}.")
    _check_level(level)
    low, high = stats.binomtest(int(successes), int(n)).proportion_ci(confidence_level=level, method="wilson")
    return Interval(successes / n, float(low), float(high), level, int(n), unit)


def better(a: Sequence[float], b: Sequence[float], level: float = 0.95) -> Comparison:
    """Is `a` larger than `b`? Both hold one number per seed, shape (S,), in the same order of seeds.

    The verdict is "better" or "worse" if the t interval of the paired differences a - b leaves out zero, else
    "inconclusive"; if there is no difference in truth, 1 - level of the comparisons are still called better or worse.
    One seed gives "not decided". Raises ValueError if the lengths differ or a value is not finite.
    """
    difference = _paired_difference(a, b, level)
    if difference.n == 1:
        return Comparison("not decided", difference)
    if difference.low > 0:
        return Comparison("better", difference)
    return Comparison("worse" if difference.high < 0 else "inconclusive", difference)


def equivalent(a: Sequence[float], b: Sequence[float], margin: float, level: float = 0.95) -> Comparison:
    """Are `a` and `b` the same, but for less than `margin`? Both hold one number per seed, shape (S,), as in `better`.

    The margin is fixed beforehand, in the unit of a and b. The verdict is "equivalent" if the t interval of the paired
    differences a - b lies between -margin and margin, "different" if it lies wholly beyond one of them, else
    "inconclusive": that no difference was found does not make two things the same. If the true difference is as large
    as the margin, at most (1 - level) / 2 of the comparisons are called equivalent. One seed gives "not decided".
    Raises ValueError as `better` does, and for a margin that is not a positive number.
    Source: Schuirmann, "A comparison of the two one-sided tests procedure ...", J. Pharmacokin. Biopharm. 15 (1987).
    """
    if not 0 < margin < np.inf:
        raise ValueError(f"A margin of equivalence is a positive number; got {margin}.")
    difference = _paired_difference(a, b, level)
    if difference.n == 1:
        return Comparison("not decided", difference, margin)
    if -margin < difference.low and difference.high < margin:
        return Comparison("equivalent", difference, margin)
    beyond = difference.low >= margin or difference.high <= -margin
    return Comparison("different" if beyond else "inconclusive", difference, margin)


def rule(*conditions: Comparison | bool) -> str:
    """The verdict of a conjunction: "holds" if every condition is true, else "fails".

    A Comparison is true if its verdict is "better" or "equivalent". If any condition is "not decided", so is the rule.
    Raises ValueError for a condition of another kind, or for none.
    """
    for condition in conditions:
        if not isinstance(condition, Comparison | bool | np.bool_):
            raise ValueError(f"A rule is made of comparisons and booleans, not of {condition!r}.")
    if not conditions:
        raise ValueError("A rule needs at least one condition.")
    verdicts = [c.verdict if isinstance(c, Comparison) else bool(c) for c in conditions]
    if "not decided" in verdicts:
        return "not decided"
    return "holds" if all(verdict in ("better", "equivalent", True) for verdict in verdicts) else "fails"


def _paired_difference(a: Sequence[float], b: Sequence[float], level: float) -> Interval:
    """The t interval of the differences a - b, seed by seed."""
    a, b = _checked(a, level), _checked(b, level)
    if len(a) != len(b):
        raise ValueError(
            f"A paired comparison needs one value per seed on both sides, but got {len(a)} and {len(b)}: "
            "run both with the same seeds."
        )
    return t_interval(a - b, unit="seed", level=level)


def _checked(values: Sequence[float], level: float) -> np.ndarray:
    """The values as a flat array of finite floats, shape (n,)."""
    _check_level(level)
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or not len(array):
        raise ValueError(f"Expected a flat, non-empty sequence of numbers, but got one of shape {array.shape}.")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"Value {where} of {len(array)} is {array[where]}: an interval needs finite numbers.")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"A confidence level lies between 0 and 1; got {level}.")
