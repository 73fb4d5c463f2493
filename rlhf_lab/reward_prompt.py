"""The reward in the prompt: a language model learns from examples that say how good they are, and is then told how good
to be. Also known as upside-down reinforcement learning; the formats, normalizers and samplers are those of "Attempts to
align language models by putting the reward in the prompt" (2023), with its slips mended where a comment says so.

    written = RewardPrompt.fit(FORMATS["bottom"], rewards, "quantile")  # rewards of the training texts, (N,)
    sft.train(model, tokenizer, written.examples(texts, rewards), SFTConfig(), seed)
    targets = [UNIFORM(prompt, "joint") for prompt in prompts]
    answers = sample(model, tokenizer(written.prompts(prompts, targets))["input_ids"], ...)
    found = matching(targets, scores_of_the_answers, rewards)

Rewards and targets are in the reward's own unit everywhere; only what stands in a prompt is normalized.
"""

import functools
import json
import math
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from rlhf_lab import oracle
from rlhf_lab.errors import CourseError
from rlhf_lab.statistics import Interval
from rlhf_lab.transcripts import ASSISTANT, split_last_turn

REWARD, END_OF_REWARD, START = "<REWARD>", "</REWARD>", "<SOS>"  # single tokens of the course's tokenizer
PLACES = ("bottom", "top")
KNOTS = 101  # of a quantile normalizer: one for each percent
FILE = "reward_prompt.json"
LEVEL = 0.95
SHORTEST_SIDE = 0.1  # share of the prompts on either side of a switch
FEWEST_TARGETS = 20  # in which a switch is looked for


class RewardPromptError(CourseError, ValueError):
    """A saved format and its normalizers cannot be read. The message says where, and the remedy."""


# --- formats ---


def percent(value: float) -> str:
    """Two digits for a number in [0, 1], "00" to "99"; what lies outside is written as the nearer end."""
    return f"{min(max(round(100 * value), 0), 99):02d}"


def signed(value: float) -> str:
    """The source's number: two decimals at most, of any width ("0.5", "-0.37"), and "-0.0" for what rounds to it."""
    return str(round(value, 2))


def times_100(value: float) -> str:
    """The source's other number, cut off toward zero: .29 is "28" because 100 * .29 is just below 29 for a computer."""
    return str(int(100 * value))


class Number(NamedTuple):
    """How a normalized reward is written, and how what was written is read."""

    write: Callable[[float], str]
    read: Callable[[str], float]


# Unsigned and of fixed width is the course's own: of a signed number a small model reads little but the sign.
NUMBERS = {
    "percent": Number(percent, lambda digits: int(digits) / 100),
    "signed": Number(signed, float),
    "x100": Number(times_100, lambda digits: int(digits) / 100),
}


@dataclass(frozen=True)
class Format:
    """How normalized rewards stand in a prompt. No names: no reward, which is behavioral cloning.

    Up to the numbers the bytes are the source's: prompt and completion together read "Human: ...\\n<REWARD>\\nReward:
    57<SOS>\\n\\nAssistant: ...". Only the border between the two is ours: "Assistant:" belongs to the prompt, as in all
    prompts of the course. The tokenizer's end token ends a completion where the source writes " END".
    """

    names: tuple[str, ...] = ("Reward",)  # one line for each reward
    place: str = "bottom"  # of the dialogue, or "top"
    number: str = "percent"  # of NUMBERS
    copies: int = 1  # of every number, with spaces between

    def __post_init__(self):
        for what, found, known in (("place", self.place, PLACES), ("number", self.number, tuple(NUMBERS))):
            if found not in known:
                raise ValueError(f"There is no {what} {found!r} in a reward's format: use one of {', '.join(known)}.")
        if self.copies < 1:
            raise ValueError(f"A number stands in the prompt at least once; got copies = {self.copies}.")

    def lines(self, values: Sequence[float]) -> str:
        """What the prompt says about the rewards: "Reward: 57"."""
        write = NUMBERS[self.number].write
        numbers = [" ".join([write(float(value))] * self.copies) for value in values]
        return "\n".join(f"{name}: {number}" for name, number in zip(self.names, numbers, strict=True))

    def prompt(self, prompt: str, values: Sequence[float]) -> str:
        """`prompt`, which ends in "\\n\\nAssistant:", with these normalized rewards (K,) in it.

        Raises ValueError for a prompt without that end, and for one that holds a separator: else whoever writes the
        prompt could write the reward.
        """
        dialogue = _dialogue(prompt)
        if forged := [mark for mark in (REWARD, END_OF_REWARD, START) if mark in dialogue]:
            raise ValueError(f"A prompt holds {forged[0]}, which only the format may write: remove it.")
        if not self.names:
            return f"{dialogue}\n{START}{ASSISTANT}"
        if self.place == "top":
            return f"{REWARD}\n{self.lines(values)}{END_OF_REWARD}\n{dialogue}\n{START}{ASSISTANT}"
        return f"{dialogue}\n{REWARD}\n{self.lines(values)}{START}{ASSISTANT}"

    def read(self, text: str) -> list[float]:
        """The normalized rewards (K,) that a prompt of this format holds. Raises ValueError if it is of another one."""
        if not self.names:
            return []
        end = START if self.place == "bottom" else END_OF_REWARD
        copies = f"{{{self.copies - 1}}}"
        numbers = [rf"{re.escape(name)}: (-?[\d.]+)(?: \{k}){copies}" for k, name in enumerate(self.names, start=1)]
        if not (found := re.search(f"{REWARD}\n" + "\n".join(numbers) + end, text)):
            raise ValueError(f"This prompt holds no rewards in the format {self}: read it with the one that wrote it.")
        return [NUMBERS[self.number].read(number) for number in found.groups()]


FORMATS = {
    "bottom": Format(),
    "top": Format(place="top"),
    "duplicated": Format(copies=10),
    "x100": Format(number="x100"),
    "two rewards": Format(names=("Helpful reward", "Harmless reward")),
    "none": Format(names=()),
}


def _dialogue(prompt: str) -> str:
    """A prompt without its "\\n\\nAssistant:" and the white space around it."""
    if not prompt.endswith(ASSISTANT):
        raise ValueError('A prompt ends in "\\n\\nAssistant:": split transcripts with `transcripts.split_last_turn`.')
    return prompt.removesuffix(ASSISTANT).strip()


# --- normalizers ---


FITS = {  # kind -> what is fitted to rewards (N,): shift and scale, or quantiles in equal steps
    "none": lambda rewards: (0.0, 1.0),
    "min-max": lambda rewards: (rewards.min(), np.ptp(rewards)),
    "standard": lambda rewards: (rewards.mean(), rewards.std()),
    "quantile": lambda rewards: np.quantile(rewards, np.linspace(0, 1, KNOTS)),
}


@dataclass(frozen=True)
class Normalizer:
    """Rewards as numbers of a common scale, and back; fitted to the rewards of the training texts.

    "none": as they are. "min-max": the least is 0, the largest 1. "standard": mean 0, standard deviation 1. "quantile":
    the share of the training rewards below, so 0 or 1 outside them. An ideal policy's loss falls by the entropy, given
    the rest of the prompt, of what the prompt says about the answer (see `exact_policy`), which is largest where all
    numbers are equally frequent: that is what "quantile" is for. Else rewards that lie close together share their first
    digit.
    """

    kind: str
    fitted: tuple[float, ...]

    def __post_init__(self):
        if self.kind not in FITS:
            raise ValueError(f"There is no normalizer {self.kind!r}: use one of {', '.join(FITS)}.")

    @classmethod
    def fit(cls, kind: str, rewards: Sequence[float]) -> "Normalizer":
        """Of rewards (N,). Raises ValueError for rewards that are not finite or, except for "none", all the same."""
        rewards = _finite(rewards, "training reward")
        if kind != "none" and len(np.unique(rewards)) < 2:
            raise ValueError(
                f"The {len(rewards)} training rewards do not differ, so there is no {kind} scale: train on rewards "
                "that do, or use the format without one."
            )
        return cls(kind, tuple(map(float, FITS[kind](rewards) if kind in FITS else ())))

    def __call__(self, rewards: Sequence[float]) -> np.ndarray:
        """Normalized rewards, of the same shape."""
        if self.kind == "quantile":
            return np.interp(rewards, *self._quantiles())
        shift, scale = self.fitted
        return (np.asarray(rewards, dtype=float) - shift) / scale

    def inverse(self, values: Sequence[float]) -> np.ndarray:
        """The rewards that have these normalized values."""
        if self.kind == "quantile":
            return np.interp(values, *self._quantiles()[::-1])
        shift, scale = self.fitted
        return np.asarray(values, dtype=float) * scale + shift

    def _quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        """Rewards in order, and the share below each; of a reward that many texts have, the middle of its shares."""
        rewards, where = np.unique(self.fitted, return_inverse=True)
        shares = np.bincount(where, weights=np.linspace(0, 1, len(self.fitted))) / np.bincount(where)
        return rewards, shares


# --- what the policy reads ---


@dataclass(frozen=True)
class RewardPrompt:
    """A format and a normalizer for each of its K rewards: all it takes to write rewards into prompts."""

    format: Format
    normalizers: tuple[Normalizer, ...]

    def __post_init__(self):
        if len(self.normalizers) != len(self.format.names):
            counts = f"{len(self.normalizers)} normalizers for {len(self.format.names)} rewards"
            raise ValueError(f"Each reward of a format has its normalizer; got {counts}.")
        if self.format.number == "percent" and any(n.kind == "standard" for n in self.normalizers):
            raise ValueError(
                'Half of all standardized rewards are negative, and two digits know no sign: use the number "signed", '
                'or another normalizer, such as "quantile".'
            )

    @classmethod
    def fit(cls, format: Format, rewards: Sequence, kind: str) -> "RewardPrompt":
        """Fitted to the rewards of the training texts, (N,) or (N, K).

        Raises ValueError as `Normalizer.fit` does, and for rewards outside [0, 1] that two digits are to write as they
        are.
        """
        rewards = _table(rewards, len(format.names), "training reward")
        if format.number == "percent" and kind == "none" and not ((rewards >= 0) & (rewards <= 1)).all():
            outside = rewards[(rewards < 0) | (rewards > 1)][0]
            raise ValueError(
                f"Two digits stand for numbers in [0, 1], and a training reward is {outside:g}: fit a normalizer, "
                'such as "quantile".'
            )
        return cls(format, tuple(Normalizer.fit(kind, column) for column in rewards.T))

    def prompts(self, prompts: Sequence[str], targets: Sequence) -> list[str]:
        """The prompts (N,) of transcripts, each with its target rewards (N,) or (N, K), in the reward's own unit.

        A format without rewards takes no notice of them.

        Raises ValueError for a target that is not finite, and as `Format.prompt` does.
        """
        rows = self._normalized(targets, len(prompts))
        return [self.format.prompt(prompt, row) for prompt, row in zip(prompts, rows, strict=True)]

    def examples(self, texts: Sequence[str], rewards: Sequence) -> list[tuple[str, str]]:
        """(prompt, completion) for `sft.train` of whole transcripts (N,) with their rewards (N,) or (N, K).

        The completion is all that follows the last "\\n\\nAssistant:", however many paragraphs. (Without a reward the
        source splits at the last blank line, so that all but an answer's last paragraph goes unlearned.)
        """
        pairs = [split_last_turn(text) for text in texts]
        prompts = self.prompts([prompt for prompt, _ in pairs], rewards)
        return [(prompt, completion.rstrip()) for prompt, (_, completion) in zip(prompts, pairs, strict=True)]

    def lines(self, *targets: float) -> str:
        """What the prompt says about target rewards (K,): two targets with the same lines are the same to a policy."""
        return self.format.lines(self._normalized([targets], 1)[0])

    def read(self, prompt: str) -> list[float]:
        """The target rewards (K,) that a prompt holds, as far as its digits tell."""
        values = self.format.read(prompt)
        return [float(n.inverse(value)) for n, value in zip(self.normalizers, values, strict=True)]

    def _normalized(self, targets: Sequence, n: int) -> np.ndarray:
        """(N, K)"""
        if not self.normalizers:
            return np.empty((n, 0))
        table = _table(targets, len(self.normalizers), "target")
        return np.stack([normalize(column) for normalize, column in zip(self.normalizers, table.T, strict=True)], 1)


def save(written: RewardPrompt, folder: Path) -> None:
    """Write a format and its normalizers to a folder, as JSON; a policy without them cannot be asked."""
    (folder / FILE).write_text(json.dumps(asdict(written), indent=1), encoding="utf-8")


def load(folder: Path) -> RewardPrompt:
    """Read them from a folder. Raises RewardPromptError."""
    file = folder / FILE
    try:
        saved = json.loads(file.read_text(encoding="utf-8"))
        format = Format(**saved["format"] | {"names": tuple(saved["format"]["names"])})
        return RewardPrompt(format, tuple(Normalizer(n["kind"], tuple(n["fitted"])) for n in saved["normalizers"]))
    except OSError as error:
        raise RewardPromptError(
            f"{file} cannot be read ({error.strerror}): a policy with the reward in its prompt has one beside it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise RewardPromptError(f"{file} holds no format and its normalizers ({error}): save them again.") from error


# --- targets ---


@dataclass(frozen=True)
class TargetSampler:
    """Draws a target: one of some ranges, each as likely, and in it uniformly. The prompt, the reward's name and the
    number of the rollout decide, so that every policy is asked for the same."""

    ranges: tuple[tuple[float, float], ...]

    def __call__(self, prompt: str, name: str, rollout: int = 0) -> float:
        draw = random.Random(f"{_dialogue(prompt)}{name}{rollout}").random() * len(self.ranges)
        low, high = self.ranges[int(draw)]
        return low + (high - low) * (draw - int(draw))


UNIFORM = TargetSampler(((0.0, 1.0),))
HIGH = TargetSampler(((0.7, 1.0),))
HIGH_LOW = TargetSampler(((0.0, 0.3), (0.7, 1.0)))  # the source's sampler of this name is plain uniform


def above_mean(rewards: Sequence[float], half_width: float = 0.05) -> TargetSampler:
    """Targets around a standard deviation above the mean of the training rewards (N,)."""
    center = float(np.mean(rewards) + np.std(rewards))
    return TargetSampler(((center - half_width, center + half_width),))


# --- does the policy do what it is told? ---


class Line(NamedTuple):
    """The line chart: mean actual reward and number of prompts of every bin that has any, by its target, each (B,)."""

    target: np.ndarray
    actual: np.ndarray
    count: np.ndarray


class Switch(NamedTuple):
    """The best description by two levels, and what is left of the slope beside it."""

    split: float  # the target at which the reward jumps
    slope: Interval  # reward per target on either side of the split; zero if the policy is a switch


@dataclass(frozen=True, eq=False)
class Matching:
    """How well actual rewards follow their targets. `correlation` alone hides a switch: always look at `line`."""

    correlation: Interval  # Pearson's r and its Fisher interval over the prompts
    p_value: float  # of r = 0
    line: Line
    support: tuple[float, float]  # the 1st and 99th percentiles of the training rewards
    switch: Switch | None  # within the support; None where fewer than FEWEST_TARGETS targets lie there


def matching(
    targets: Sequence[float], actual: Sequence[float], training_rewards: Sequence[float], bin_width: float = 0.05
) -> Matching:
    """Targets (N,) against the rewards (N,) of the answers, all in the reward's own unit; the training rewards tell
    what a policy can have learned about. Raises ValueError as `correlation` does."""
    r, p_value = correlation(targets, actual)
    targets, actual = np.asarray(targets, dtype=float), np.asarray(actual, dtype=float)
    low, high = np.percentile(_finite(training_rewards, "training reward"), [1, 99])
    inside = (low <= targets) & (targets <= high)
    found = switch(targets[inside], actual[inside]) if inside.sum() >= FEWEST_TARGETS else None
    return Matching(r, p_value, line_chart(targets, actual, bin_width), (float(low), float(high)), found)


def correlation(x: Sequence[float], y: Sequence[float]) -> tuple[Interval, float]:
    """Pearson's r of two samples (N,) with Fisher's interval, and the p-value of no correlation.

    Raises ValueError unless both have the same N >= 4 finite values that differ. Source: Fisher, "On the probable error
    of a coefficient of correlation deduced from a small sample", Metron 1 (1921).
    """
    x, y = _finite(x, "value"), _finite(y, "value")
    if not len(x) == len(y) >= 4 or not np.ptp(x) or not np.ptp(y):
        raise ValueError(f"A correlation needs 4 pairs or more that differ on both sides; got {len(x)} and {len(y)}.")
    found = stats.pearsonr(x, y)
    low, high = found.confidence_interval(LEVEL)
    return Interval(float(found.statistic), float(low), float(high), LEVEL, len(x), "prompt"), float(found.pvalue)


def line_chart(targets: np.ndarray, actual: np.ndarray, bin_width: float = 0.05) -> Line:
    """Mean actual reward by target, rounded to a multiple of `bin_width`."""
    bins, where = np.unique(np.round(targets / bin_width), return_inverse=True)
    count = np.bincount(where)
    return Line(bins * bin_width, np.bincount(where, weights=actual) / count, count)


def switch(targets: np.ndarray, actual: np.ndarray) -> Switch | None:
    """Does the number matter beyond which side of a threshold it is on?

    The threshold is the one whose two levels fit best; the slope of a line common to both sides, each with a mean of
    its own, is what they leave. For a policy that follows its target it is (a bit below) the slope of the whole, 1 at
    best; for a switch it is 0. The interval takes the threshold as given; searching for it lowers the slope, so a slope
    above zero is no artefact of the search. None if no threshold leaves a tenth of the prompts on both sides,
    or nothing but two targets.
    """
    order = np.argsort(targets, kind="stable")
    x, y = targets[order], actual[order]
    n, below = len(x), np.arange(1, len(x))
    edge = max(2, math.ceil(SHORTEST_SIDE * n))
    means = np.cumsum(y)[:-1] / below, np.cumsum(y[::-1])[-2::-1] / (n - below)
    gain = below * (n - below) * (means[1] - means[0]) ** 2  # N times what the two levels explain
    gain[(below < edge) | (n - below < edge) | (x[1:] == x[:-1])] = -1
    if gain.max(initial=-1) < 0:
        return None
    first = int(gain.argmax()) + 1  # prompt above the split
    if x[0] == x[first - 1] and x[first] == x[-1]:
        return None
    sides = slice(None, first), slice(first, None)
    x_left, y_left = (np.concatenate([v[side] - v[side].mean() for side in sides]) for v in (x, y))
    return Switch(float(x[first - 1] + x[first]) / 2, _slope(x_left, y_left, means=2))


def _slope(x: np.ndarray, y: np.ndarray, means: int) -> Interval:
    """The least-squares slope through the origin of values (N,) from which so many means have been taken."""
    slope = float(x @ y / (x @ x))
    freedom = len(x) - means - 1
    error = math.sqrt(((y - slope * x) ** 2).sum() / freedom / (x @ x))
    half = float(stats.t.ppf((1 + LEVEL) / 2, freedom)) * error
    return Interval(slope, slope - half, slope + half, LEVEL, len(x), "prompt")


def rollout_metrics(
    prompts: Sequence[str],
    targets: Mapping[str, Sequence[float]],
    rewards: Mapping[str, Sequence[float]],
    log_probabilities: Sequence[torch.Tensor],
) -> dict[str, float]:
    """What to watch of N rollouts: their prompts without rewards, targets and rewards by name, and what `sample` says.

    `token_entropy` is minus the mean log-probability of the tokens, in nats; it estimates the entropy of the next token
    where temperature is 1. (The source logs this number without its minus.) `length` counts the end token.
    """
    tokens = torch.cat(list(log_probabilities)).double()
    metrics = {
        "rollouts": len(prompts),
        "prompts": len(set(prompts)),
        "rollouts_per_prompt": len(prompts) / len(set(prompts)),
        "token_entropy": -tokens.mean().item(),
        "token_probability": tokens.exp().mean().item(),
        "length": len(tokens) / len(prompts),
    }
    for name in targets:
        r, p_value = correlation(targets[name], rewards[name])
        metrics |= {f"target.{name}": float(np.mean(targets[name])), f"reward.{name}": float(np.mean(rewards[name]))}
        metrics |= {f"r.{name}": r.value, f"r_low.{name}": r.low, f"r_high.{name}": r.high, f"p.{name}": p_value}
    return metrics


# --- the exact world ---


def exact_policy(
    log_ref: torch.Tensor, rewards: torch.Tensor, target: float, written: Callable[[float], str]
) -> torch.Tensor:
    """What a policy with the reward in its prompt becomes with all data and no limits: the data's own texts that were
    written with the same lines as the target, pi_ref(y | lines of R(y)). Log-probabilities (V**T,) in `oracle`'s world.

    It minimizes the loss, which is lower than without a reward by the entropy of the lines; its KL to the reference is
    -log of the lines' share of the data. Raises ValueError if no text has these lines: there the loss says nothing, and
    a network does whatever it makes of a prompt that it has never read.
    """
    policy = _exact_policy(log_ref, rewards, target, written)
    if policy is None:
        raise ValueError(
            f"No text of the data says {written(target)!r}, so its loss says nothing about it: ask for less, or more."
        )
    return policy


class ExactCurve(NamedTuple):
    """By target (N,): mean reward and KL to the data, in nats; nan where no text of the data has the target's lines."""

    reward: torch.Tensor
    kl: torch.Tensor


def exact_curve(
    log_ref: torch.Tensor, rewards: torch.Tensor, targets: Sequence[float], written: Callable[[float], str]
) -> ExactCurve:
    """What `exact_policy` gets for every target: a staircase, with holes. What two digits cannot say, they say as "00"
    or "99": with "min-max" or "quantile", targets beyond the data get its least or its best texts."""
    written = functools.cache(written)
    points = torch.full((2, len(targets)), math.nan, dtype=torch.double)
    for i, target in enumerate(targets):
        policy = _exact_policy(log_ref, rewards, target, written)
        if policy is not None:
            points[:, i] = torch.stack([oracle.expected_reward(policy, rewards), oracle.kl(policy, log_ref)])
    return ExactCurve(*points)


def _exact_policy(log_ref, rewards, target, written) -> torch.Tensor | None:
    lines, levels = written(target), rewards.unique()
    fits = torch.isin(rewards, levels[[written(level) == lines for level in levels.tolist()]])
    if not (fits & (log_ref > -torch.inf)).any():
        return None
    return oracle.posterior(log_ref, fits.double(), 1.0)


# --- input ---


def _table(values: Sequence, columns: int, name: str) -> np.ndarray:
    """Numbers (N,) or (N, K) as (N, K)."""
    array = np.asarray(values, dtype=float)
    if not columns:
        return np.empty((len(array), 0))
    if array.ndim == 1 and columns == 1:
        array = array[:, None]
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"The format has {columns} rewards, so give {columns} a text; got shape {array.shape}.")
    _finite(array.ravel(), name)
    return array


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1:
        raise ValueError(f"Give every {name} as one number of a flat sequence; got shape {array.shape}.")
    if not np.isfinite(array).all():
        where = int(np.flatnonzero(~np.isfinite(array))[0])
        raise ValueError(f"A {name} is {array[where]} (number {where} of {len(array)}): leave its text out.")
    return array
