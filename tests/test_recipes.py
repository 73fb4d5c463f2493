"""What the recipes' data hold; that the recipes run is shown by the notebooks."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import recipes
from rlhf_lab.tinyhh.knowledge import Request, Topic, subject


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
