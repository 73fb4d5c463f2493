"""What the recipes' data hold; that the recipes run is shown by the notebooks."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import language_model, metadata, recipes, reward_model
from rlhf_lab.rloo import RLOOConfig
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh import generator
from rlhf_lab.tinyhh.knowledge import Request, SortingTask, Topic, subject


def subjects(data: str, split: str = "train", pairs: int = 300) -> list:
    return [subject(row["prompt"]) for row in recipes.preference_pairs(data, split, pairs, seed=0)]


def test_the_joint_data_are_both_subsets_in_turn():
    helpful, harmless, joint = (
        recipes.preference_pairs(d, "train", 50, seed=0) for d in ("helpful", "harmless", "joint")
    )
    assert joint[0::2] == helpful and joint[1::2] == harmless
    assert all(isinstance(found, Request) for found in subjects("harmless"))


def test_topics_of_the_data_sets():
    about = {
        data: {s.name for s in subjects(data) if isinstance(s, Topic)} for data in ("helpful", "target", "elsewhere")
    }
    assert about["target"] and about["elsewhere"] and not about["target"] & about["elsewhere"]
    assert about["helpful"] == about["target"] | about["elsewhere"]
    unseen = subjects("unseen")
    assert all(topic.unlabelled for topic in unseen) and not {topic.name for topic in unseen} & about["helpful"]


def test_training_and_test_pairs_share_no_prompt():
    for data in ("joint", "target", "unseen"):
        train, test = ({r["prompt"] for r in recipes.preference_pairs(data, s, 300, 0)} for s in ("train", "test"))
        assert not train & test


@pytest.mark.real_data
def test_real_comparisons_name_their_subset():
    rows = recipes.real_comparisons(("helpful-base", "harmless-base"), 40, seed=0)
    assert rows["subset"] == ["helpful-base"] * 40 + ["harmless-base"] * 40
    assert set(rows.column_names) == {"prompt", "chosen", "rejected", "subset"}


def test_rows_without_prompts_are_otherwise_the_same():
    rows = recipes.preference_pairs("helpful", "test", 5, seed=0)
    blind = recipes.without_prompts(rows)
    assert [row["prompt"] for row in blind] == [""] * 5 and rows[0]["prompt"]
    assert [(r["chosen"], r["rejected"]) for r in blind] == [(r["chosen"], r["rejected"]) for r in rows]


def test_a_ranking_with_a_tie_as_ordered_pairs():
    ranking = {"prompt": "Ask", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
    assert recipes.ordered_pairs([ranking, {"prompt": "Say", "responses": ["a", "d"], "ranks": [1, 5]}]) == [
        {"prompt": "Ask", "chosen": "b", "rejected": "a"},
        {"prompt": "Ask", "chosen": "b", "rejected": "c"},
        {"prompt": "Say", "chosen": "a", "rejected": "d"},
    ]


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=9), max_size=4))
def test_every_pair_of_a_prompt_is_there_once_in_its_order_but_for_ties(columns):
    rankings = [
        {"prompt": str(n), "responses": [str(i) for i in range(len(ranks))], "ranks": ranks}
        for n, ranks in enumerate(columns)
    ]
    pairs = recipes.ordered_pairs(rankings)
    ties = sum(comb(ranks.count(column), 2) for ranks in columns for column in range(1, 6))
    assert len(pairs) == sum(comb(len(ranks), 2) for ranks in columns) - ties
    assert len({(p["prompt"], frozenset((p["chosen"], p["rejected"]))) for p in pairs}) == len(pairs)
    for pair in pairs:
        ranks = columns[int(pair["prompt"])]
        assert ranks[int(pair["chosen"])] < ranks[int(pair["rejected"])]  # column 1 is the best


def test_evaluation_prompts_are_distinct_held_out_and_of_their_kind():
    kinds = recipes.evaluation_prompts(25, 7)
    assert all(len(set(prompts)) == 25 for prompts in kinds.values())
    assert all(generator.split_of(prompt) == "test" for prompts in kinds.values() for prompt in prompts)
    assert all(subject(prompt).unlabelled for prompt in kinds["unseen"])
    assert all(isinstance(subject(prompt), SortingTask) for prompt in kinds["sorting"])
    assert all(metadata.asks_to_be_short(prompt) for prompt in kinds["hurried"])
    assert not any(getattr(subject(p), "unlabelled", False) for kind in ("held_out", "hurried") for p in kinds[kind])
    assert recipes.evaluation_prompts(25, 7) == kinds != recipes.evaluation_prompts(25, 8)


def test_a_few_shot_prompt_is_two_whole_demonstrations_and_the_prompt_and_fits_the_context():
    _, tokenizer = recipes.base("0.2M")
    prompts = recipes.evaluation_prompts(25, 7)["held_out"]
    shown = {prompt + response for prompt, response in recipes.best_demonstrations(60, "train", 7)}
    for prompt, text in zip(prompts, recipes.few_shot(prompts, tokenizer, 60, 7), strict=True):
        examples = text.removesuffix(prompt)
        assert any(examples == a + b for a in shown for b in shown if a != b)
        room = language_model.CONTEXT - RLOOConfig().max_new_tokens
        assert len(tokenizer(text)["input_ids"]) <= room


def test_an_answer_ends_where_the_policy_speaks_for_the_person():
    assert recipes.first_answer(" Be kind.\n\nHuman: What else?\n\nAssistant: No.") == " Be kind."
    assert recipes.first_answer(" Be kind. Human: or so.") == " Be kind. Human: or so."


def test_margins_of_rankings_are_those_of_their_ordered_pairs():
    model, tokenizer = recipes.base("0.2M")
    judge = reward_model.from_language_model(model, seed=0)
    rankings = [
        {"prompt": prompt, "responses": [" Be kind.", " Wait a day.", " Ask a friend."], "ranks": ranks}
        for prompt, ranks in zip(recipes.held_in_prompts(2, 0), ([2.0, 1.0, 2.0], [1.0, 2.0, 3.0]), strict=True)
    ]
    margins = recipes.ranking_margins(judge, tokenizer, rankings)
    expected = reward_model.margins(judge, tokenizer, recipes.ordered_pairs(rankings))
    assert len(margins) == 2 + 3
    assert sorted(margins.tolist()) == pytest.approx(sorted(expected), abs=1e-5)


def test_a_zero_for_each_prompt_keeps_comparisons_and_centers_the_policy():
    """The proxy is a length plus whatever a prompt adds; what the prompt adds is gone, differences of lengths stay."""
    model, tokenizer = recipes.base("0.2M")
    prompts = recipes.training_prompts(40, "test")
    assert len(set(prompts)) == 40 and all(generator.split_of(prompt) == "train" for prompt in prompts)
    extra = {prompt: 100.0 * place for place, prompt in enumerate(prompts)}

    def proxy(asked, answers):
        return [len(answer.split()) + extra[prompt] for prompt, answer in zip(asked, answers, strict=True)]

    def lengths(asked, answers):
        return [float(len(answer.split())) for answer in answers]

    reward, plain = (recipes.above_policy(of, model, tokenizer, prompts, seed=3) for of in (proxy, lengths))
    short, long = reward(prompts, [" one"] * 40), reward(prompts, [" one two three"] * 40)
    assert [b - a for a, b in zip(short, long, strict=True)] == pytest.approx([2.0] * 40, abs=1e-2)
    assert short == pytest.approx(plain(prompts, [" one"] * 40), abs=1e-2)
    four = [prompt for prompt in prompts for _ in range(recipes.ZERO_ANSWERS)]  # of which the zeros were made
    same = sample(model, tokenizer(four)["input_ids"], 80, tokenizer.eos_token_id, seed=3).texts(tokenizer)
    means = np.reshape(plain(four, same), (40, recipes.ZERO_ANSWERS)).mean(axis=1)
    assert means == pytest.approx(np.zeros(40), abs=1e-5)
    answers = sample(model, tokenizer(prompts)["input_ids"], 80, tokenizer.eos_token_id, seed=4).texts(tokenizer)
    assert abs(sum(plain(prompts, answers)) / 40) < 5  # words, of answers that have some 25, give or take 20
