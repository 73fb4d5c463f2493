"""Oracles: pairs which exactly one shortcut decides, a bag of words fitted by hand, the frozen miniature world."""

import random
import re
from collections import Counter

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_expit

from rlhf_lab import audit, preferences
from rlhf_lab.audit import bag_of_words, first_token, format, format_matched, gold_order, right

WORDS = "amber basil cedar delta ember fable grove haven inlet jolly kayak lemon".split()  # all of one length
AUDITS = (first_token, format, bag_of_words)


def rows(n: int, seed: int, write) -> list[dict]:
    """n pairs by `write(rng, words)`, which returns the chosen and the rejected response, from the same six words."""
    rng = random.Random(seed)
    pairs = (write(rng, rng.sample(WORDS, 6)) for _ in range(n))
    return [{"prompt": "Say:", "chosen": " " + chosen, "rejected": " " + rejected} for chosen, rejected in pairs]


def shuffled(rng: random.Random, words: list[str]) -> list[str]:
    return rng.sample(words, len(words))


def first_word_decides(rng, words):
    """The same words and one of two signal words, which comes first or last: only the place tells."""
    said = " ".join(words)
    return f"Great {said} awful.", f"Awful {said} great."


def sentences_decide(rng, words):
    """The same words, of which two sentences are made or one."""
    one, two = shuffled(rng, words), shuffled(rng, words)
    return " ".join(two[:3]) + ". " + " ".join(two[3:]) + ".", " ".join(one) + "."


def a_word_decides(rng, words):
    """A word in the middle, the same otherwise but for the order."""
    good, bad = shuffled(rng, words), shuffled(rng, words)
    return " ".join([*good[:3], "tasty", *good[3:]]) + ".", " ".join([*bad[:3], "nasty", *bad[3:]]) + "."


@pytest.mark.parametrize(
    ("write", "finder"), [(first_word_decides, first_token), (sentences_decide, format), (a_word_decides, bag_of_words)]
)
def test_each_audit_finds_its_shortcut_and_no_other(write, finder):
    train, test = rows(600, 0, write), rows(600, 1, write)
    for audited in AUDITS:
        found = audited(train, test)
        assert found.shape == (600,) and set(found) <= {0, 0.5, 1}
        if audited is finder:
            assert found.mean() > 0.99
        else:
            assert found.mean() == pytest.approx(0.5, abs=0.07)  # 3.4 standard errors


def test_shortcuts_are_learned_in_either_direction():
    train, test = rows(300, 0, sentences_decide), rows(300, 1, sentences_decide)
    turned = [pair | {"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in train]
    assert format(turned, test).mean() < 0.01


@pytest.mark.parametrize("audited", AUDITS)
def test_an_audit_does_not_know_which_response_was_chosen(audited):
    """Turned round in the test set, right becomes wrong; turned round everywhere, nothing changes."""
    train, _ = preferences.load_preferences("tinyhh", "helpful-base", "train", size=300, seed=100)
    test, _ = preferences.load_preferences("tinyhh", "helpful-base", "test", size=200, seed=100)
    turn = lambda pairs: [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in pairs]  # noqa: E731
    found = audited(train, test)
    assert 0 < found.mean() < 1
    assert (audited(train, turn(test)) == 1 - found).all()
    assert (audited(turn(train), turn(test)) == found).all()


@pytest.mark.parametrize("audited", AUDITS)
def test_all_that_is_known_is_known_from_training(audited):
    """A test pair is judged alike whatever stands beside it, however long or strange."""
    train, test = rows(60, 0, lambda r, w: _noise(r)), rows(100, 1, lambda r, w: _noise(r))
    strange = {"prompt": "", "chosen": " 1. " + "amber?! " * 3000, "rejected": "\n\n".join(WORDS * 50)}
    alone = np.concatenate([audited(train, [pair]) for pair in test])
    assert 0.2 < alone.mean() < 0.8
    assert (audited(train, [strange] * 50 + test)[50:] == alone).all()


def _noise(rng: random.Random) -> tuple[str, str]:
    return tuple(" ".join(rng.choices([*WORDS, "no.", "yes!"], k=rng.randrange(1, 9))) for _ in range(2))


@pytest.mark.parametrize("audited", AUDITS)
def test_prompts_are_not_read(audited):
    train, test = rows(100, 0, lambda r, w: _noise(r)), rows(100, 1, lambda r, w: _noise(r))
    asked = [[pair | {"prompt": f"{i} why?"} for i, pair in enumerate(pairs)] for pairs in (train, test)]
    assert (audited(*asked) == audited(train, test)).all()


@pytest.mark.parametrize("audited", AUDITS)
def test_it_takes_two_pairs_to_learn(audited):
    pairs = rows(2, 0, a_word_decides)
    assert audited(pairs, pairs).shape == (2,)
    with pytest.raises(ValueError, match="1 is too few"):
        audited(pairs[:1], pairs)


# --- the first word ---


def test_an_unknown_first_word_decides_nothing():
    train = rows(50, 0, first_word_decides)
    test = [
        {"prompt": "", "chosen": " Lilac great.", "rejected": " Mauve awful."},
        {"prompt": "", "chosen": " GREAT!", "rejected": "\n\nawful..."},  # case, space and what follows do not matter
        {"prompt": "", "chosen": " Great.", "rejected": " Great, of course."},
        {"prompt": "", "chosen": " Lilac.", "rejected": " Great."},
    ]
    assert first_token(train, test).tolist() == [0.5, 1, 0.5, 0]


def test_an_apostrophe_is_part_of_a_word():
    train = [{"prompt": "", "chosen": " I can do it.", "rejected": " I'm not able to."}] * 4
    assert first_token(train, train[:1]).tolist() == [1]


# --- format ---


def masked(pairs: list[dict]) -> list[dict]:
    """Every letter an x: whoever still sees a word has looked at more than format."""
    return [{side: re.sub("[A-Z]", "X", re.sub("[a-z]", "x", text)) for side, text in pair.items()} for pair in pairs]


def test_format_sees_no_words():
    train, _ = preferences.load_preferences("tinyhh", "harmless-base", "train", size=600, seed=100)
    test, _ = preferences.load_preferences("tinyhh", "harmless-base", "test", size=400, seed=100)
    assert (format(masked(train), masked(test)) == format(train, test)).all()
    assert (bag_of_words(masked(train), masked(test)) != bag_of_words(train, test)).any()


def test_counts_by_hand():
    response = " First, e.g. this: isn't it?!\n\n- one 12\n* two...\n \n 3. three!\n"
    assert audit._counts(response) == {
        "characters": 60,
        "words": 11,  # First e g this isn't it one 12 two 3 three
        "sentences": 5,
        "lines": 4,
        "list items": 3,
        "commas and colons": 2,
        "question marks": 1,
        "exclamation marks": 2,
        "digits": 3,
    }


@pytest.mark.parametrize(
    ("chosen", "rejected", "alike"),
    [
        (" One two. Three!", " Ten six. Seven!", True),
        (" One two. Three!", " Ten six. Seven.", False),
        (" One two. Three.", " One two three.", False),
        (" One two three.", "\n\nOne two three.  ", True),  # outer space is no format
        (" One\n\ntwo three.", " One two three...", False),
        (" Yes, of course.", " Yes of course...", False),
        (" aaaaaaaaa.", " aaaaaaaa.", True),  # 10 and 9 characters
        (" aaaaaaaaa.", " aaaaaaa.", False),
    ],
)
def test_matched_pairs_look_alike(chosen, rejected, alike):
    pair = {"prompt": "", "chosen": chosen, "rejected": rejected}
    turned = {"prompt": "", "chosen": rejected, "rejected": chosen}
    assert format_matched([pair, turned]).tolist() == [alike, alike]


def test_among_matched_pairs_format_is_at_a_loss():
    train, _ = preferences.load_preferences("tinyhh", "helpful-base", "train", size=3000, seed=100)
    test, _ = preferences.load_preferences("tinyhh", "helpful-base", "test", size=6000, seed=100)
    matched, found = format_matched(test), format(train, test)
    assert 400 < matched.sum() < 1200
    assert found.mean() > 0.6
    assert found[matched].mean() == pytest.approx(0.5, abs=0.06)


# --- the bag of words ---


def tf_idf(texts: list[str], vocabulary: list[str], idf: dict[str, float]) -> np.ndarray:
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    rows = np.array([[(1 + np.log(c[w])) * idf[w] if c[w] else 0.0 for w in vocabulary] for c in counts])
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def test_a_bag_of_words_by_hand():
    """TF-IDF (smooth idf, logarithmic counts, rows of length 1), and the mode of the posterior under a normal prior."""
    train, test = rows(40, 0, lambda r, w: _noise(r)), rows(200, 1, lambda r, w: _noise(r))
    documents = [pair[side] for pair in train for side in ("chosen", "rejected")]
    vocabulary = sorted({word for text in documents for word in re.findall(r"\w+", text.lower())})
    frequency = {word: sum(bool(re.search(rf"\b{word}\b", text)) for text in documents) for word in vocabulary}
    idf = {word: np.log((1 + len(documents)) / (1 + frequency[word])) + 1 for word in vocabulary}

    def differences(pairs):
        sides = [tf_idf([pair[side] for pair in pairs], vocabulary, idf) for side in ("chosen", "rejected")]
        return sides[0] - sides[1]  # (N, V)

    x = differences(train)
    fit = minimize(lambda w: w @ w / 2 - log_expit(x @ w).sum(), np.zeros(len(vocabulary)), tol=1e-9)
    margins = differences(test) @ fit.x
    clear = np.abs(margins) > 1e-3  # what rounding cannot turn round
    assert clear.mean() > 0.9
    assert (bag_of_words(train, test) == right(margins))[clear].all()


# --- margins ---


def test_right_by_hand():
    assert right([2.0, -0.1, 0.0]).tolist() == [1, 0, 0.5]


def test_gold_order_by_hand():
    # Right label, found; wrong label, followed; wrong label, resisted; no true order; no opinion.
    margins, differences = [1.0, 2.0, -3.0, 1.0, 0.0], [0.5, -0.5, -1.0, 0.0, 2.0]
    assert gold_order(margins, differences).tolist() == [1, 0, 1, 0.5]


def test_gold_order_does_not_depend_on_the_labels():
    rng = np.random.default_rng(0)
    margins, differences, label = rng.normal(size=(2, 100))[0], rng.normal(size=100), rng.choice([-1, 1], 100)
    assert (gold_order(margins, differences) == gold_order(label * margins, label * differences)).all()


# --- the miniature world, seed 100 ---


def world(subset: str) -> tuple[list[dict], list[dict]]:
    sizes = {"train": 4000, "test": 2000}
    return tuple(
        preferences.load_preferences("tinyhh", subset, s, size=n, seed=100)[0].to_list() for s, n in sizes.items()
    )


@pytest.mark.parametrize(("subset", "expected"), [("helpful-base", 0.56), ("harmless-base", 0.73)])
def test_the_first_word_of_tinyhh_against_a_count(subset, expected):
    """By counting alone: of two first words, the one that won the larger share of its comparisons."""
    train, test = world(subset)
    first = {side: [pair[side].split()[0].strip(".,").lower() for pair in train] for side in ("chosen", "rejected")}
    won, met = Counter(first["chosen"]), Counter(first["chosen"] + first["rejected"])
    rate = lambda text: won[w] / met[w] if met[w := text.split()[0].strip(".,").lower()] else 0.5  # noqa: E731
    counted = right([rate(pair["chosen"]) - rate(pair["rejected"]) for pair in test])
    found = first_token(train, test)
    assert found.mean() == pytest.approx(counted.mean(), abs=0.02)
    assert found.mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("subset", "form", "words"), [("helpful-base", 0.62, 0.61), ("harmless-base", 0.67, 0.79)])
def test_shortcuts_of_tinyhh(subset, form, words):
    train, test = world(subset)
    assert format(train, test).mean() == pytest.approx(form, abs=0.02)
    assert bag_of_words(train, test).mean() == pytest.approx(words, abs=0.02)
