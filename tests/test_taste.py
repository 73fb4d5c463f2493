"""Oracles: scikit-learn, counts by hand, a prior that must win or lose, and simulated people of known taste."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from rlhf_lab import language_model
from rlhf_lab.taste import FEATURES, STRENGTH, features, fit, reward, ridge
from rlhf_lab.tinyhh import generator, gold
from rlhf_lab.tinyhh.annotators import Annotator
from rlhf_lab.tinyhh.knowledge import Kind

NAMES = list(FEATURES)


def blurred_gold(prompts, responses) -> np.ndarray:
    """A general reward model of the usual quality: the gold reward seen through noise of its own, fixed by the text."""
    noise = [random.Random(p + r).gauss(0, 1.0) for p, r in zip(prompts, responses, strict=True)]
    return np.array([gold.helpfulness(p, r) for p, r in zip(prompts, responses, strict=True)]) + noise


@dataclass(frozen=True)
class Friendly(Annotator):
    """Likes a friendly closing best."""

    def utility(self, prompt: str, response: str) -> float:
        return 0.5 * gold.helpfulness(prompt, response) + 2 * min(1, gold.read(prompt, response).count(Kind.CLOSING))


def judged(person: Annotator, n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for pair in generator.comparisons("helpful-base", "train", n, seed):
        sides = pair.first, pair.second
        chosen, rejected = sides if person.choose(*pair[:3], rng) == "first" else sides[::-1]
        rows.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected})
    return rows


def agreement(person: Annotator, score, n: int = 300) -> float:
    """How often a score and the person, without noise, put two unseen responses in the same order."""
    right = []
    for prompt, first, second, *_ in generator.comparisons("helpful-base", "test", n, 100):
        wanted = person.utility(prompt, first) - person.utility(prompt, second)
        a, b = score([prompt, prompt], [first, second])
        right += [(a > b) == (wanted > 0)] if wanted else []
    return float(np.mean(right))


# --- features ---


def test_features_by_hand():
    responses = [" Plug the sink. I hope this helps. Good luck!", "I can't say; it DEPENDS, maybe.", ""]
    expected = {"words": [9, 6, 0], "friendly words": [1, 0, 0], "careful words": [0, 1, 0]}
    assert features(responses).T.tolist() == [expected[name] for name in NAMES]
    assert features([]).shape == (0, 3)


def test_wording_stands_for_what_the_world_calls_closings_and_hedges():
    kinds = {"friendly words": Kind.CLOSING, "careful words": Kind.HEDGE}
    pairs = list(generator.comparisons("helpful-base", "train", 500, 100))
    for name, kind in kinds.items():
        counted = features([pair.first for pair in pairs])[:, NAMES.index(name)]
        there = np.array([gold.read(pair.prompt, pair.first).count(kind) > 0 for pair in pairs])
        assert there.mean() > 0.03
        assert (counted == there).mean() > 0.95


# --- the fit ---


@pytest.mark.parametrize("strength", [0.1, 3.0, 50.0])
def test_ridge_around_zero_is_scikit_learns(strength):
    rng = np.random.default_rng(0)
    differences = rng.normal(size=(40, 3))
    turned = np.where(rng.random(40) < 0.5, -1, 1)
    peer = LogisticRegression(C=1 / strength, fit_intercept=False, tol=1e-10)
    peer.fit(differences * turned[:, None], turned)
    np.testing.assert_allclose(ridge(differences, np.zeros(3), strength), peer.coef_[0], atol=1e-4)


def test_at_the_fit_what_the_labels_ask_for_and_the_prior_balance():
    rng = np.random.default_rng(1)
    differences, prior = rng.normal(size=(30, 4)), np.array([1.0, 0, 0, 0])
    weights = ridge(differences, prior)
    surprise = expit(-differences @ weights)  # the probability that the model gave to the other choice
    np.testing.assert_allclose(surprise @ differences, STRENGTH * (weights - prior), atol=1e-5)


def test_a_strong_prior_wins_and_an_unseen_feature_keeps_it():
    rng = np.random.default_rng(2)
    differences, prior = rng.normal(size=(30, 2)), np.array([1.0, -2.0])
    np.testing.assert_allclose(ridge(differences, prior, strength=1e7), prior, atol=1e-4)
    differences[:, 1] = 0
    assert ridge(differences, prior)[1] == -2


def test_without_labels_the_taste_is_that_of_most_people():
    pairs = list(generator.comparisons("helpful-base", "test", 20, 0))
    prompts, responses = [pair.prompt for pair in pairs], [pair.first for pair in pairs]
    np.testing.assert_array_equal(fit([], blurred_gold).score(prompts, responses), blurred_gold(prompts, responses))


def test_a_score_is_what_the_weights_say():
    taste = fit(judged(Annotator(length_bias=-0.1), 30, 0), blurred_gold)
    prompt, response = "\n\nHuman: How do I fix a leaky faucet?\n\nAssistant:", " Good luck. Maybe not."
    parts = np.array([4, 1, 1]) / taste.units * taste.weights
    expected = taste.general_weight * blurred_gold([prompt], [response])[0] + parts.sum()
    assert taste.score([prompt], [response])[0] == pytest.approx(expected)
    # The chosen responses are the shorter ones, so a word costs.
    assert taste.weights[NAMES.index("words")] < -0.3


def test_responses_that_all_look_alike_are_no_division_by_zero():
    rows = [{"prompt": "p", "chosen": " same words", "rejected": " other words"}] * 5
    taste = fit(rows, lambda prompts, responses: np.zeros(len(responses)))
    assert taste.weights.tolist() == [0, 0, 0]
    assert np.isfinite(taste.score(["p"], [" anything at all"])).all()


# --- people ---


@pytest.mark.parametrize(
    "person, feature, sign, gain",
    [(Annotator(length_bias=-0.1), "words", -1, 0.1), (Friendly(), "friendly words", 1, 0.05)],
    ids=["short", "friendly"],
)
def test_thirty_labels_move_the_general_model_towards_the_person(person, feature, sign, gain):
    tastes = [fit(judged(person, 30, seed), blurred_gold) for seed in range(6)]
    assert all(sign * taste.weights[NAMES.index(feature)] > 0 for taste in tastes)
    mine = [agreement(person, taste.score) for taste in tastes]
    assert np.mean(mine) > agreement(person, blurred_gold) + gain


def test_thirty_labels_of_an_ordinary_person_cost_little():
    tastes = [fit(judged(Annotator(), 30, seed), blurred_gold) for seed in range(6)]
    mine = [agreement(Annotator(), taste.score) for taste in tastes]
    assert np.mean(mine) > agreement(Annotator(), blurred_gold) - 0.05


# --- as a reward ---


def test_the_reward_of_tokens_is_the_score_of_their_text():
    tokenizer = language_model.load_tokenizer(language_model.BASE / "0.2M")
    taste = fit(judged(Friendly(), 10, 0), blurred_gold)
    pairs = list(generator.comparisons("helpful-base", "test", 8, 0))
    prompts, responses = [pair.prompt for pair in pairs], [pair.first for pair in pairs]
    encoded = (
        tokenizer(prompts)["input_ids"],
        [ids + [tokenizer.eos_token_id] for ids in tokenizer(responses)["input_ids"]],
    )
    found = reward(taste, tokenizer)(*encoded)
    np.testing.assert_allclose(found.numpy(), taste.score(prompts, responses), rtol=1e-5)
