"""How far labels can be trusted: how much labelers agree beyond chance, and which of them are right, without an answer
key.

Labels are an array (L, N) of L labelers and N items. A label is a class, 0 to C - 1 with C - 1 the largest that occurs;
nan stands for an item that a labeler has not judged.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

TINY = 1e-10  # added to expected counts, so that no logarithm is infinite and a class nobody met is uniform


def cohen_kappa(first: Sequence[float], second: Sequence[float]) -> float:
    """How much two labelers agree beyond chance, on the items (N,) that both have judged: 1 always, 0 as by chance.

    (p - e) / (1 - e), with p the share of items with equal labels and e that expected if each labeler drew from their
    own shares of classes. Raises ValueError where no item has two labels, or all labels are of one class.
    Source: Cohen, "A coefficient of agreement for nominal scales", Educational and Psychological Measurement 20 (1960).
    """
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if first.ndim != 1 or first.shape != second.shape:
        raise ValueError(f"Kappa needs two labels of each item; got shapes {first.shape} and {second.shape}.")
    both = ~np.isnan(first) & ~np.isnan(second)
    if not both.any():
        raise ValueError("No item has two labels: let both labelers judge the same items.")
    votes = _votes(np.stack([first, second])[:, both])  # (2, N, C)
    observed = (votes[0] * votes[1]).sum(axis=1).mean()
    expected = (votes[0].mean(axis=0) * votes[1].mean(axis=0)).sum()
    if expected == 1:
        raise ValueError("All labels are of one class, so kappa is not defined: add items of another class.")
    return float((observed - expected) / (1 - expected))


def krippendorff_alpha(labels: np.ndarray) -> float:
    """How much any number of labelers agree beyond chance, each on the items they have judged, for labels (L, N).

    1 - observed / expected disagreement, both counted over pairs of labels of an item that two labelers or more have
    judged; 1 always, 0 as by chance. Raises ValueError where no item has two labels, or all labels are of one class.
    Source: Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), nominal data with missing labels.
    """
    counts = _votes(labels).sum(axis=0)  # (N, C)
    counts = counts[counts.sum(axis=1) >= 2]
    if not len(counts):
        raise ValueError("No item has two labels: let several labelers judge the same items.")
    total = counts.sum(axis=0)  # (C,)
    if np.count_nonzero(total) == 1:
        raise ValueError("All labels are of one class, so alpha is not defined: add items of another class.")
    of_item = counts.sum(axis=1, keepdims=True)  # (N, 1)
    observed = (counts * (of_item - counts) / (of_item - 1)).sum()
    expected = (total * (total.sum() - total)).sum() / (total.sum() - 1)
    return float(1 - observed / expected)


def majority(labels: np.ndarray) -> np.ndarray:
    """The most frequent label of each item (N,), from labels (L, N); nan for a tie and where nobody has judged."""
    counts = _votes(labels).sum(axis=0)  # (N, C)
    leads = (counts == counts.max(axis=1, keepdims=True)).sum(axis=1) == 1
    return np.where(leads, counts.argmax(axis=1), np.nan)


@dataclass(frozen=True, eq=False)
class DawidSkene:
    """What the labels say about the items and about the labelers.

    posterior (N, C): the probability that an item is of a class, given all labels of it.
    confusion (L, C, C): confusion[l, j, k] is the probability that labeler l says k of an item of class j.
    prior (C,): the share of each class among the items.
    """

    posterior: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each item (N,)."""
        return self.posterior.argmax(axis=1)

    @property
    def accuracy(self) -> np.ndarray:
        """The probability (L,) that a labeler is right about an item."""
        return np.einsum("j,ljj->l", self.prior, self.confusion)


def dawid_skene(labels: np.ndarray, iterations: int = 1000, tolerance: float = 1e-6) -> DawidSkene:
    """The classes of items and the confusion of labelers from labels (L, N), by maximum likelihood.

    The model: an item has a true class, and each labeler confuses classes in a way of their own, independently of the
    others. EM starts from the share of votes, so it takes for granted that the votes are more often right than wrong;
    it ends when no posterior moves by more than `tolerance`, or after so many `iterations`. An item without labels gets
    the prior. Raises ValueError for labels that are no classes.
    Source: Dawid and Skene, "Maximum likelihood estimation of observer error-rates using the EM algorithm", Applied
    Statistics 28 (1979).
    """
    votes = _votes(labels)  # (L, N, C)
    posterior = votes.sum(axis=0) + TINY
    posterior /= posterior.sum(axis=1, keepdims=True)
    for _ in range(iterations):
        prior, confusion = _maximize(votes, posterior)
        before, posterior = posterior, _expect(votes, prior, confusion)
        if abs(posterior - before).max() < tolerance:
            break
    return DawidSkene(posterior, confusion, prior)


def _maximize(votes: np.ndarray, posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The M step, equations 2.3 and 2.4: the prior (C,) and the confusion (L, C, C) as shares of expected counts."""
    counts = np.einsum("nj,lnk->ljk", posterior, votes) + TINY
    return posterior[votes.any(axis=(0, 2))].mean(axis=0), counts / counts.sum(axis=2, keepdims=True)


def _expect(votes: np.ndarray, prior: np.ndarray, confusion: np.ndarray) -> np.ndarray:
    """The E step, equation 2.5, by logarithms: the posterior (N, C) is prior times likelihood, normalized."""
    return softmax(np.log(prior + TINY) + np.einsum("lnk,ljk->nj", votes, np.log(confusion)), axis=1)


def _votes(labels: np.ndarray) -> np.ndarray:
    """Labels (L, N) as ones and zeros (L, N, C), with zeros only where a labeler has not judged."""
    labels = np.asarray(labels, dtype=float)
    if labels.ndim != 2 or not (~np.isnan(labels)).any():
        raise ValueError(f"Labels are an array of labelers times items, not all nan; got shape {labels.shape}.")
    wrong = ~np.isnan(labels) & ((labels < 0) | (labels != np.floor(labels)) | np.isinf(labels))
    if wrong.any():
        labeler, item = np.argwhere(wrong)[0]
        raise ValueError(
            f"Labeler {labeler} calls item {item} {labels[labeler, item]:g}: a label is 0, 1, 2, ... or nan."
        )
    return (labels[:, :, None] == np.arange(np.nanmax(labels) + 1)).astype(float)
