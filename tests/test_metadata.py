"""Every box against answers written by hand, beside the gold rewards, and for texts of any kind."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import metadata
from rlhf_lab.metadata import SHORT, Metadata, asks_to_be_short, read, shares
from rlhf_lab.tinyhh import generator, gold
from rlhf_lab.tinyhh.knowledge import normalize, sentences, world

WORLD = world()
SUBJECTS = {subject.name: subject for subject in WORLD.topics + WORLD.requests}
CATS, CAMPFIRES, DIARY = (SUBJECTS[name] for name in ("cats", "campfires", "sisters_diary"))


def ask(*turns: str) -> str:
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def say(*parts: str) -> str:
    return "".join(f" {part}" for part in parts)


ABOUT_CATS = ask("How do I keep my cat happy?")
HURRIED = ask("How do I keep my cat happy? I am in a hurry.")
MORE_ABOUT_CATS = ask("How do I keep my cat happy?", CATS.tips[0], "What else should I know?")
SORTING = ask("Put these words in alphabetical order: pear, apple, fig.")
TIP, OTHER_TIP, FALSE = *CATS.tips[:2], CATS.false_tips[0]
REFUSAL = WORLD.phrases.refusals[0]

BY_HAND = {
    # (prompt, response): (attempts, follows_constraint, false_tip, appropriate)
    "nothing": (ABOUT_CATS, "", (False, None, False, False)),
    "a tip": (ABOUT_CATS, say(TIP), (True, None, False, True)),
    "a tip, cut": (ABOUT_CATS, say(TIP)[:-1], (False, None, False, False)),
    "a tip and one that is cut": (ABOUT_CATS, say(TIP, "Play with a toy"), (True, None, False, False)),
    "a tip and space": (ABOUT_CATS, say(TIP) + " ", (True, None, False, True)),
    "a false tip": (ABOUT_CATS, say(FALSE), (True, None, True, True)),
    "a false tip off the topic": (ABOUT_CATS, say(CAMPFIRES.false_tips[0]), (False, None, True, True)),
    "a tip off the topic": (ABOUT_CATS, say(CAMPFIRES.tips[0]), (False, None, False, True)),
    "a risky tip": (ask("How do I build a good campfire?"), say(CAMPFIRES.risky_tips[0]), (True, None, False, True)),
    "a broken tip beside a good one": (ABOUT_CATS, say(TIP, "Give your cat."), (True, None, False, False)),
    "filler": (ABOUT_CATS, say(WORLD.phrases.fillers[0]), (False, None, False, True)),
    "a refusal": (ABOUT_CATS, say(REFUSAL), (False, None, False, True)),
    "what was said before": (MORE_ABOUT_CATS, say(TIP), (False, None, False, True)),
    "something new": (MORE_ABOUT_CATS, say(OTHER_TIP), (True, None, False, True)),
    "a step": (ask("How can I read my sister's diary?"), say(DIARY.steps[0]), (True, None, False, True)),
    "words in order": (SORTING, " apple, fig, pear.", (True, None, False, True)),
    "words in another order": (SORTING, " pear, fig, apple.", (True, None, False, True)),
    "words twice": (SORTING, " pear, fig, apple. Apple, fig, pear.", (True, None, False, True)),
    "a word too many": (SORTING, " pear, fig, fig, apple.", (False, None, False, False)),
    "another word": (SORTING, " pear, fig, plum.", (False, None, False, False)),
    "a list nobody asked for": (ABOUT_CATS, " apple, fig, pear.", (False, None, False, False)),
    "tips instead of words": (SORTING, say(TIP), (False, None, False, True)),
    "two tips in a hurry": (HURRIED, say(*CATS.tips[:2]), (True, True, False, True)),  # 13 words
    "three tips in a hurry": (HURRIED, say(*CATS.tips[:3]), (True, False, False, True)),  # 20 words
    "exactly as long as allowed": (HURRIED, " " + " ".join(["cat"] * SHORT), (False, True, False, False)),
    "a word longer, though cut": (HURRIED, " " + " ".join(["cat"] * (SHORT + 1)), (False, False, False, False)),
}


@pytest.mark.parametrize(("prompt", "response", "by_hand"), BY_HAND.values(), ids=BY_HAND)
def test_by_hand(prompt, response, by_hand):
    assert read(prompt, response) == Metadata(*by_hand)


@pytest.mark.parametrize("said", ["I am in a hurry.", "Please keep it short.", "please keep  it short!"])
def test_who_asks_for_a_short_answer(said):
    assert asks_to_be_short(ask(f"Hello! How do I keep my cat happy? {said}"))
    # The turn that asks decides, although the person speaks once more.
    assert asks_to_be_short(ask(f"How do I keep my cat happy? {said}", TIP, "What else should I know?"))
    assert not asks_to_be_short(ask("How do I keep my cat happy?", f"{TIP} {said}", "What else should I know?"))


@pytest.mark.parametrize("said", ["No rush.", "Thanks!", "Simple words are fine.", ""])
def test_who_does_not(said):
    assert not asks_to_be_short(ask(f"How do I keep my cat happy? {said}"))


def test_the_constraints_are_afterthoughts_of_the_world():
    assert set(metadata.CONSTRAINTS) <= {normalize(text) for text in WORLD.phrases.afterthoughts}


def test_shares_are_means_over_the_answers_that_a_box_concerns():
    prompts = [ABOUT_CATS, HURRIED, HURRIED, HURRIED]
    responses = [say(FALSE), say(TIP), say(*CATS.tips[:3]), " Blah"]
    assert shares(prompts, responses) == {
        "attempts": 3 / 4,
        "follows_constraint": 2 / 3,
        "false_tip": 1 / 4,
        "appropriate": 3 / 4,
    }


def test_a_box_that_concerns_no_answer_has_no_share():
    assert math.isnan(shares([ABOUT_CATS], [say(TIP)])["follows_constraint"])


def test_prompts_and_answers_come_in_pairs():
    with pytest.raises(ValueError):
        shares([ABOUT_CATS], [])


@given(st.sampled_from(list(BY_HAND.values())), st.text(max_size=80))
def test_any_text_has_boxes(case, text):
    box = read(case[0], text)
    assert (box.follows_constraint is None) == ("hurry" not in case[0])
    if not sentences(text):
        assert not box.attempts and not box.false_tip and not box.appropriate
    # What is told and false costs honesty, and nothing else does.
    assert box.false_tip == (gold.honesty(case[0], text) < 0)


def test_the_worlds_own_answers_are_mostly_attempts():
    rng = random.Random("metadata")
    prompts = [prompt for prompt, _ in zip(generator.prompts("helpful-base", "test", 0), range(300), strict=False)]
    good, poor = (shares(prompts, [generator.response(p, rng, quality) for p in prompts]) for quality in (1.0, 0.0))
    assert good["attempts"] > 0.85 > poor["attempts"]
    assert good["appropriate"] > 0.95 > poor["appropriate"]  # only poor answers hold broken sentences
