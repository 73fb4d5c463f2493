"""The audit: how far shortcuts get on the pairs that a reward model is tested on.

A reward model that is right on 70 % of the pairs has learned little if the longer response wins in 68 % of them. So
beside every accuracy stand those of models that cannot understand a thing: one that sees the first word alone, one
that sees the format and no word, one that sees which words occur and not their order, or the prompt. Length alone is
`preferences.longer_wins`.

Each is a Bradley-Terry model whose score is linear in a few features, fitted by logistic regression. All take pairs
with prompt, chosen and rejected, and return one value for each test pair, (N,): 1 for right, 0 for wrong, 1/2 for
undecided. What they know, words and their weights, they know from the training pairs.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import FunctionTransformer

WORD = r"\w+(?:['’]\w+)*"  # "can't" is one word, and so is "I"
# What `format` counts in a response. None of it is a word or a meaning.
FORMAT = {
    "characters": r"(?s).",
    "words": WORD,
    "sentences": r"[.!?]+(?=\s|$)",
    "lines": r"(?m)^.*\S",
    "list items": r"(?m)^\s*(?:[-*•]|\d+[.)])\s",
    "commas and colons": r"[,;:]",
    "question marks": r"\?",
    "exclamation marks": r"!",
    "digits": r"\d",
}
MATCHED_LENGTH = 0.1  # the lengths of a matched pair differ by at most this share of the longer one


def right(margins: Sequence[float]) -> np.ndarray:
    """1, 0 or 1/2 (N,) for margins (N,), by how much each chosen response outscores the other, that are positive,
    negative or zero."""
    return (np.sign(np.asarray(margins, dtype=float)) + 1) / 2


def gold_order(margins: Sequence[float], differences: Sequence[float]) -> np.ndarray:
    """Whether a model puts two responses in their true order: 1, 0, or 1/2 where it has no order (M,).

    margins (N,) as above; differences (N,) of the gold rewards, chosen minus rejected, so negative where the labeler
    erred. The pairs whose responses are equally good have no true order and are left out, hence M <= N.
    """
    margins, differences = np.asarray(margins, dtype=float), np.asarray(differences, dtype=float)
    return right(margins * np.sign(differences))[differences != 0]


def first_token(train: Iterable[dict], test: Iterable[dict]) -> np.ndarray:
    """Right or wrong (N,) with the first word of each response alone, in lower case. A word that was never first in
    training counts as every other such word. Raises ValueError for fewer than two training pairs."""
    return _bradley_terry(CountVectorizer(analyzer=_first_word), train, test)


def format(train: Iterable[dict], test: Iterable[dict]) -> np.ndarray:
    """Right or wrong (N,) with the format alone: the counts of `FORMAT`, as log(1 + count), since lengths have long
    tails. Raises ValueError for fewer than two training pairs."""
    return _bradley_terry(FunctionTransformer(_formats), train, test)


def bag_of_words(train: Iterable[dict], test: Iterable[dict]) -> np.ndarray:
    """Right or wrong (N,) with the words of the responses, in any order, weighted by TF-IDF: the linear baseline.

    It is blind to the prompt, and would be if it read it: what is linear in the words of prompt and response gives
    both responses of a pair the same points for the prompt. Raises ValueError for fewer than two training pairs.
    """
    return _bradley_terry(TfidfVectorizer(token_pattern=WORD, sublinear_tf=True), train, test)


def format_matched(pairs: Iterable[dict]) -> np.ndarray:
    """Which pairs (N,) are of two responses that look alike, so that format can hardly decide: lengths in characters
    within 10 % of the longer one, any number of words, and all other counts of `FORMAT` the same."""
    return np.array([_look_alike(pair["chosen"], pair["rejected"]) for pair in pairs], dtype=bool)


def _bradley_terry(features, train: Iterable[dict], test: Iterable[dict]) -> np.ndarray:
    """Right or wrong (N,) with a score linear in `features`, a transformer of scikit-learn that is fitted here."""
    train, test = list(train), list(test)
    if len(train) < 2:
        raise ValueError(f"The audit learns its weights from training pairs; {len(train)} is too few.")
    features.fit([pair[side] for pair in train for side in ("chosen", "rejected")])

    def differences(pairs: Sequence[dict]):
        chosen, rejected = (features.transform([pair[side] for pair in pairs]) for side in ("chosen", "rejected"))
        return chosen - rejected  # (N, F)

    # The library wants both outcomes. To turn a pair round changes the sign of its difference and its outcome, and so,
    # without an intercept, nothing about the fit.
    first = np.where(np.arange(len(train)) % 2, -1, 1)  # (N,) whether the chosen one comes first
    x = differences(train)
    x = x.multiply(first[:, None]).tocsr() if hasattr(x, "multiply") else x * first[:, None]
    model = LogisticRegression(fit_intercept=False, max_iter=1000).fit(x, first)
    return right(differences(test) @ model.coef_[0])


def _first_word(response: str) -> list[str]:
    return re.findall(WORD, response.lower())[:1]


def _counts(response: str) -> dict[str, int]:
    return {name: len(re.findall(pattern, response.strip())) for name, pattern in FORMAT.items()}


def _formats(responses: Sequence[str]) -> np.ndarray:
    """The features of `format` (N, F)."""
    return np.log1p([list(_counts(response).values()) for response in responses])


def _look_alike(response: str, other: str) -> bool:
    counts, others = _counts(response), _counts(other)
    short, long = sorted((counts["characters"], others["characters"]))
    same = all(counts[name] == others[name] for name in FORMAT.keys() - {"characters", "words"})
    return same and long - short <= MATCHED_LENGTH * long
