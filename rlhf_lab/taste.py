"""One person's taste from a few dozen labels: a general reward model, corrected by features that people can read.

A reward model has more parameters than thirty labels can fix. So the score here has four: a weight for the score of a
reward model that knows what most people prefer, and one for each of three things that people differ in and that can be
counted. The weights are fitted to the labels by the Bradley-Terry model and drawn towards "like most people", as one
fine-tunes a pre-trained preference model (Askell et al., arXiv 2112.00861, section 4).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit

from rlhf_lab.rloo import Reward

General = Callable[[Sequence[str], Sequence[str]], np.ndarray]  # prompts, responses -> log-odds (N,)

# How often each pattern occurs in a response, at most so many times.
FEATURES = {
    "words": (r"\w+(?:['’]\w+)*", np.inf),
    "friendly words": (r"\b(hope|let me know|feel free|good luck|happy to|have a|enjoy|thank\w*|welcome)\b", 1),
    "careful words": (r"\b(may|might|maybe|perhaps|depends|not sure|sure about|I think|do not know|careful)\b", 1),
}
STRENGTH = 3.0  # of the ridge: 1 and 6 did a little worse for simulated people with 30 labels


@dataclass(frozen=True, eq=False)
class Taste:
    """A reward: general score times `general_weight`, plus features over `units` (F,) times `weights` (F,).

    Weights are in log-odds of a choice: per log-odds of the general model, and per unit of a feature, which is its
    standard deviation among the responses that were judged.
    """

    general: General
    general_weight: float
    weights: np.ndarray
    units: np.ndarray

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """What the responses are worth to this person (N,), in log-odds; only differences at one prompt mean much."""
        counted = features(responses) / self.units  # (N, F)
        return self.general_weight * self.general(prompts, responses) + counted @ self.weights


def features(responses: Sequence[str]) -> np.ndarray:
    """The `FEATURES` of each response (N, F)."""
    counts = [[min(len(re.findall(p, r, re.IGNORECASE)), most) for p, most in FEATURES.values()] for r in responses]
    return np.array(counts, dtype=float).reshape(len(responses), len(FEATURES))


def fit(rows: Sequence[dict], general: General) -> Taste:
    """The taste behind rows of prompt, chosen and rejected. Without rows it is that of most people: the general score.

    The weights maximize sum log sigma(score_chosen - score_rejected) - STRENGTH / 2 |weights - prior|^2, the posterior
    of a normal prior around 1 for the general score and 0 for every feature.
    """
    prompts, chosen, rejected = ([row[column] for row in rows] for column in ("prompt", "chosen", "rejected"))
    counted = features(chosen), features(rejected)
    units = np.concatenate(counted).std(axis=0) if rows else np.ones(len(FEATURES))
    units = np.where(units > 0, units, 1)
    by_general = general(prompts, chosen) - general(prompts, rejected) if rows else np.zeros(0)
    differences = np.column_stack([by_general, (counted[0] - counted[1]) / units])  # (N, 1 + F)
    weights = ridge(differences, prior=np.eye(1 + len(FEATURES))[0])
    return Taste(general, float(weights[0]), weights[1:], units)


def ridge(differences: np.ndarray, prior: np.ndarray, strength: float = STRENGTH) -> np.ndarray:
    """Weights (F,) of a linear Bradley-Terry model, drawn towards `prior` (F,); differences (N, F), chosen minus
    rejected. Where a feature never differs, its weight is the prior's."""

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins, away = differences @ weights, weights - prior
        gradient = strength * away - expit(-margins) @ differences
        return np.logaddexp(0, -margins).sum() + strength / 2 * away @ away, gradient

    return minimize(loss, prior, jac=True, method="L-BFGS-B", options={"ftol": 1e-14, "gtol": 1e-9}).x


def reward(taste: Taste, tokenizer) -> Reward:
    """The taste as a reward of tokenized prompts and responses, for a policy gradient."""

    def score(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> torch.Tensor:
        texts = (tokenizer.batch_decode(side, skip_special_tokens=True) for side in (prompts, responses))
        return torch.from_numpy(taste.score(*texts)).float()

    return score
