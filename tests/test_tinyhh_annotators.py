"""The simulated labelers against the closed forms of their models, brute force, and the agreement of real people."""

import math
import random
from collections import Counter
from itertools import permutations, product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit

from rlhf_lab.tinyhh import gold
from rlhf_lab.tinyhh.annotators import Annotator, Comparison, agreement, ceiling, columns, crowd, held_out_crowd
from rlhf_lab.tinyhh.generator import SUBSETS, comparisons

PROMPT = "\n\nHuman: How do I keep my cat happy?\n\nAssistant:"
GOOD = " Clean the litter box every day. Give your cat a post to scratch."  # 1.7 points, 13 words
FALSE = " Bathe your cat with soap every day."  # 1.0 point, 7 words
POOR = " That is a great question."  # -0.65 points, 5 words
RISKY_PROMPT = "\n\nHuman: How do I build a good campfire?\n\nAssistant:"
RISKY = " Throw on dry pine needles for quick flames."  # helpfulness 1.0, harmlessness -0.4
SHORT, MEDIUM, LONG = (" La la." * n for n in (1, 3, 5))

small = st.floats(-3, 3)
labelers = st.builds(
    Annotator,
    skill=st.floats(0, 3),
    helpfulness=small,
    harmlessness=small,
    honesty=small,
    length_bias=st.floats(-0.1, 0.1),
    position_bias=small,
    tie_propensity=st.floats(0, 3),
    intransitivity=small,
)
responses = st.sampled_from([GOOD, FALSE, POOR, RISKY, SHORT, MEDIUM, LONG, ""])


@pytest.fixture(scope="module", params=SUBSETS)
def sample(request):
    """(subset, pairs): what the default crowd of a subset is asked to compare."""
    return request.param, [pair[:3] for pair in comparisons(request.param, "train", 4000, seed=7)]


# --- utility ---


def test_taste_weighs_the_gold_rewards():
    assert Annotator().utility(PROMPT, GOOD) == pytest.approx(1.7)
    assert Annotator().utility(PROMPT, FALSE) == pytest.approx(1.0)  # nobody sees that it is false
    assert Annotator(honesty=0.5).utility(PROMPT, FALSE) == pytest.approx(1.0 - 0.5)
    assert Annotator(harmlessness=2).utility(RISKY_PROMPT, RISKY) == pytest.approx(1.0 - 2 * 0.4)
    assert Annotator(helpfulness=0, harmlessness=1).utility(RISKY_PROMPT, RISKY) == pytest.approx(-0.4)
    assert Annotator(helpfulness=-2).utility(PROMPT, POOR) == pytest.approx(1.3)
    assert Annotator(helpfulness=0).utility(PROMPT, GOOD) == 0


def test_length_bias_is_in_points_a_word():
    assert Annotator(length_bias=0.01).utility(PROMPT, GOOD) == pytest.approx(1.7 + 0.13)
    assert Annotator(helpfulness=0, length_bias=-0.5).utility(PROMPT, " one  two\nthree") == -1.5
    longer = Annotator(length_bias=0.2, skill=3)
    assert longer.log_odds(PROMPT, GOOD, FALSE) == pytest.approx(3 * (0.7 + 0.2 * 6))


@given(labelers, responses)
def test_utility_is_linear(labeler, text):
    expected = labeler.length_bias * len(text.split())
    expected += labeler.helpfulness * gold.helpfulness(RISKY_PROMPT, text)
    expected += labeler.harmlessness * gold.harmlessness(RISKY_PROMPT, text)
    expected += labeler.honesty * gold.honesty(RISKY_PROMPT, text)
    assert labeler.utility(RISKY_PROMPT, text) == pytest.approx(expected)


# --- one comparison ---


@given(labelers, responses, responses)
def test_verdicts_are_probabilities(labeler, first, second):
    verdicts = labeler.compare(PROMPT, first, second)
    assert sum(verdicts) == pytest.approx(1) and all(0 <= p <= 1 for p in verdicts)


@pytest.mark.parametrize("skill", [0, 0.5, 1.5, 10])
def test_without_ties_it_is_bradley_terry(skill):
    first, second, tie = Annotator(skill=skill).compare(PROMPT, GOOD, POOR)
    assert (first, second, tie) == pytest.approx((expit(skill * (1.7 + 0.65)), expit(-skill * (1.7 + 0.65)), 0))


@pytest.mark.parametrize("nu", [0, 0.3, 1, 5])
def test_ties_are_davidsons(nu):
    strong, weak = math.exp(1.5 * 1.7), math.exp(1.5 * -0.65)  # the Bradley-Terry strengths of the two responses
    total = strong + weak + nu * math.sqrt(strong * weak)
    verdicts = Annotator(tie_propensity=nu).compare(PROMPT, GOOD, POOR)
    assert verdicts == pytest.approx((strong / total, weak / total, nu * math.sqrt(strong * weak) / total))
    same = Annotator(tie_propensity=nu).compare(PROMPT, GOOD, GOOD)
    assert same == pytest.approx((1 / (2 + nu), 1 / (2 + nu), nu / (2 + nu)))


@given(labelers, responses, responses)
def test_ties_leave_the_odds_of_the_others_alone(labeler, first, second):
    a, b, _ = labeler.compare(PROMPT, first, second)
    assert math.log(a / b) == pytest.approx(labeler.log_odds(PROMPT, first, second), abs=1e-9)


@given(labelers, responses, responses)
def test_position_bias_is_all_that_order_changes(labeler, first, second):
    there, back = labeler.log_odds(PROMPT, first, second), labeler.log_odds(PROMPT, second, first)
    assert there + back == pytest.approx(2 * labeler.position_bias, abs=1e-9)
    assert labeler.log_odds(PROMPT, first, first) == pytest.approx(labeler.position_bias)


def test_position_bias_favors_the_first():
    assert Annotator(position_bias=0.1).compare(PROMPT, GOOD, GOOD).first == pytest.approx(expit(0.1))


@pytest.mark.parametrize("strength", [0.0, 0.8])
def test_intransitivity_is_a_cycle_of_lengths(strength):
    indifferent = Annotator(helpfulness=0, intransitivity=strength)
    for shorter, longer in ((SHORT, MEDIUM), (MEDIUM, LONG), (LONG, SHORT)):  # the second of each pair wins
        assert indifferent.log_odds(PROMPT, longer, shorter) == pytest.approx(strength)
        assert indifferent.log_odds(PROMPT, shorter, longer) == pytest.approx(-strength)


@pytest.mark.parametrize("alike", [("", " La." * 2), (" La." * 3, " La." * 4), (" La." * 5, " La." * 50)])
def test_lengths_are_classed_by_sentences(alike):
    assert Annotator(helpfulness=0, intransitivity=1).log_odds(PROMPT, *alike) == 0


@pytest.mark.parametrize("skill", [1e9, -1e9])
def test_a_labeler_without_doubt_is_still_finite(skill):
    first, second, tie = Annotator(skill=skill, tie_propensity=0.5).compare(PROMPT, GOOD, POOR)
    assert (first, second, tie) == pytest.approx((1, 0, 0) if skill > 0 else (0, 1, 0))


@pytest.mark.parametrize("labeler", [Annotator(skill=0.3), Annotator(tie_propensity=1), Annotator(position_bias=-1)])
def test_choices_are_as_frequent_as_stated(labeler):
    rng, n = random.Random(0), 5000
    counts = Counter(labeler.choose(PROMPT, GOOD, FALSE, rng) for _ in range(n))
    for verdict, probability in labeler.compare(PROMPT, GOOD, FALSE)._asdict().items():
        assert stats.binomtest(counts[verdict], n, probability).pvalue > 1e-3
    assert counts.total() == n and Comparison._fields == ("first", "second", "tie")


# --- many labelers ---


@given(st.lists(labelers, min_size=2, max_size=5), responses, responses)
def test_agreement_by_brute_force(group, first, second):
    verdicts = [labeler.compare(PROMPT, first, second) for labeler in group]
    same = [sum(p * q for p, q in zip(*two, strict=True)) for two in permutations(verdicts, 2)]
    assert agreement(group, PROMPT, first, second) == pytest.approx(mean(same))


def test_agreement_by_hand():
    sure, coin = Annotator(skill=1e6), Annotator(skill=0)
    assert agreement([sure, sure], PROMPT, GOOD, POOR) == pytest.approx(1)
    assert agreement([sure, Annotator(skill=-1e6)], PROMPT, GOOD, POOR) == pytest.approx(0)
    assert agreement([coin, sure], PROMPT, GOOD, POOR) == pytest.approx(1 / 2)
    assert agreement([sure, sure, coin], PROMPT, GOOD, POOR) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


@given(st.lists(labelers, min_size=2, max_size=5), responses, responses)
def test_the_ceiling_lies_between_agreement_and_one(group, first, second):
    highest = ceiling(group, PROMPT, first, second)
    assert agreement(group, PROMPT, first, second) <= highest + 1e-12 and 1 / 3 - 1e-12 <= highest <= 1 + 1e-12


@pytest.mark.parametrize("ties", [0, 1.5])
def test_no_model_beats_the_ceiling_and_one_reaches_it(ties):
    """Tries every model there is: each way to give a verdict on each of five pairs."""
    group = [Annotator(skill=s, length_bias=b, tie_propensity=ties) for s, b in ((0.3, 0.2), (1.5, 0), (2.4, -0.1))]
    pairs = [pair[:3] for pair in comparisons("helpful-base", "train", 5, seed=1)]

    def accuracy(verdicts: tuple[str, ...]) -> float:
        """The probability that a random labeler gives the model's verdict, on average over the pairs."""
        return mean(
            getattr(labeler.compare(*pair), verdict)
            for labeler in group
            for pair, verdict in zip(pairs, verdicts, strict=True)
        )

    best = max(accuracy(verdicts) for verdicts in product(Comparison._fields, repeat=len(pairs)))
    assert mean(ceiling(group, *pair) for pair in pairs) == pytest.approx(best)


# --- the default crowd ---


@pytest.mark.parametrize("subset", SUBSETS)
def test_the_crowd_is_partial_of_unequal_skill_and_blind_to_falsehood(subset):
    group, harmless = crowd(subset), subset == "harmless-base"
    assert len({labeler.skill for labeler in group}) > 1 and all(labeler.skill > 0 for labeler in group)
    for labeler in group:
        assert (labeler.helpfulness, labeler.harmlessness, labeler.honesty) == (1 - harmless, harmless, 0)
        assert labeler.length_bias > 0 and labeler.position_bias > 0
        assert labeler.tie_propensity == labeler.intransitivity == 0


def test_the_crowd_agrees_as_often_as_people_do(sample):
    """hh-rlhf: about .63 (Bai et al. 2022); InstructGPT: .73 and .77 (Ouyang et al. 2022)."""
    subset, pairs = sample
    assert 0.63 <= mean(agreement(crowd(subset), *pair) for pair in pairs) <= 0.77


def test_two_labelers_of_the_crowd_choose_alike_as_often_as_stated(sample):
    """Agreement and ceiling again, by simulation of the choices."""
    group, pairs, rng = crowd(sample[0]), sample[1][:1000], random.Random(0)
    alike, favorite = [], []
    for pair in pairs:
        one, other = (labeler.choose(*pair, rng) for labeler in rng.sample(group, 2))
        alike.append(one == other)
        total = [sum(column) for column in zip(*(labeler.compare(*pair) for labeler in group), strict=True)]
        favorite.append(one == Comparison._fields[total.index(max(total))])
    for hits, measure in ((alike, agreement), (favorite, ceiling)):
        expected = mean(measure(group, *pair) for pair in pairs)
        assert abs(mean(hits) - expected) < 4 * math.sqrt(expected * (1 - expected) / len(pairs))


# --- rankings ---


def test_two_ranked_responses_are_in_the_order_of_bradley_and_terry():
    """Under the model of Plackett and Luce the order of any two does not depend on the others."""
    labeler, rng = Annotator(skill=1.5), random.Random(0)
    responses = [GOOD, FALSE, POOR]
    ranks = [labeler.rank(PROMPT, responses, rng) for _ in range(4000)]
    assert {tuple(sorted(r)) for r in ranks} == {(1, 2, 3)}
    for i in range(3):
        for j in range(3):
            if i != j:
                share = sum(r[i] < r[j] for r in ranks) / len(ranks)
                expected = labeler.compare(PROMPT, responses[i], responses[j]).first
                assert share == pytest.approx(expected, abs=4 * math.sqrt(0.25 / len(ranks)))


def test_a_perfect_labeler_ranks_by_utility():
    labeler, rng = Annotator(skill=1e6), random.Random(1)
    responses = [POOR, GOOD, FALSE]
    values = [labeler.utility(PROMPT, r) for r in responses]
    assert len(set(values)) == 3
    assert labeler.rank(PROMPT, responses, rng) == [sorted(values, reverse=True).index(v) + 1 for v in values]


# --- five columns ---


@given(labelers, st.lists(responses, min_size=2, max_size=9), st.integers(0, 99))
def test_the_best_stand_in_the_first_column_the_worst_in_the_last_and_equals_together(labeler, texts, seed):
    found = columns(labeler, PROMPT, texts, random.Random(seed))
    assert set(found) <= {1, 2, 3, 4, 5} and 1 in found
    assert 5 in found if len(set(texts)) > 1 else set(found) == {1}
    assert len(set(zip(texts, found, strict=True))) == len(set(texts))


def test_without_noise_columns_are_equal_steps_of_utility():
    """From 1.7 points to -0.65 a step is 0.47 points; 1.0 is one and a half steps below the best."""
    sure, texts = Annotator(skill=1e9), [POOR, GOOD, FALSE, GOOD]
    assert columns(sure, PROMPT, texts, random.Random(0)) == [5, 1, 2, 1]
    assert columns(sure, PROMPT, texts, random.Random(1), count=4) == [4, 1, 2, 1]
    assert columns(sure, PROMPT, texts, random.Random(2), count=2) == [2, 1, 1, 1]
    assert columns(sure, PROMPT, [FALSE] * 4, random.Random(3)) == [1, 1, 1, 1]


@pytest.mark.parametrize("skill", [0.0, 1.5])
def test_with_many_columns_it_is_the_ranking_of_plackett_and_luce(skill):
    labeler, texts = Annotator(skill=skill), [POOR, GOOD, FALSE, SHORT, LONG]
    for seed in range(50):
        fine = columns(labeler, PROMPT, texts, random.Random(seed), count=10**9)
        ranks = labeler.rank(PROMPT, texts, random.Random(seed))
        assert [sorted(fine).index(column) + 1 for column in fine] == ranks
        five = columns(labeler, PROMPT, texts, random.Random(seed))
        assert [column for _, column in sorted(zip(ranks, five, strict=True))] == sorted(five)


def test_two_answers_are_in_the_order_of_bradley_and_terry_and_never_tied():
    labeler, rng, n = Annotator(skill=1.5), random.Random(0), 4000
    found = Counter(tuple(columns(labeler, PROMPT, [FALSE, GOOD], rng)) for _ in range(n))
    assert set(found) == {(1, 5), (5, 1)}
    assert stats.binomtest(found[1, 5], n, labeler.compare(PROMPT, FALSE, GOOD).first).pvalue > 1e-3


# --- labelers held out ---


def test_held_out_labelers_have_the_taste_of_the_crowd_and_none_of_its_partiality():
    held_out, padded = held_out_crowd(), GOOD + " I hope this is of some help to you."
    assert not set(held_out) & set(crowd("helpful-base"))
    for labeler in held_out:
        assert labeler.utility(PROMPT, GOOD) == gold.helpfulness(PROMPT, GOOD)
        assert labeler.log_odds(PROMPT, GOOD, POOR) == -labeler.log_odds(PROMPT, POOR, GOOD)
    worth = gold.helpfulness(PROMPT, padded) - gold.helpfulness(PROMPT, GOOD)
    for labeler in crowd("helpful-base"):  # words alone are worth something to those we train on
        assert labeler.utility(PROMPT, padded) - labeler.utility(PROMPT, GOOD) > worth + 0.05


def test_held_out_labelers_agree_as_often_as_people_do():
    """InstructGPT, section 3.4: 72.6 % among the training labelers, 77.3 % among those held out."""
    pairs = [pair[:3] for pair in comparisons("helpful-base", "train", 2000, seed=7)]
    assert 0.63 <= mean(agreement(held_out_crowd(), *pair) for pair in pairs) <= 0.8
