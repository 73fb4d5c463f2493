"""The generated texts: frozen to the byte, split by prompt, drawn with the stated probabilities, and quickly."""

import hashlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice, product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rlhf_lab import transcripts
from rlhf_lab.tinyhh import annotators, gold
from rlhf_lab.tinyhh.annotators import Annotator
from rlhf_lab.tinyhh.generator import (
    SUBSETS,
    comparisons,
    demonstrations,
    note,
    preference_rows,
    pretraining_documents,
    prompts,
    rankings,
    response,
    split_of,
)
from rlhf_lab.tinyhh.knowledge import (
    Kind,
    Request,
    SortingTask,
    Topic,
    already_said,
    recognize,
    sentences,
    subject,
    world,
)

WORLD = world()
UNLABELLED = [topic for topic in WORLD.topics if topic.unlabelled]
SPLITS, COMPARED = ("train", "test"), ("chosen", "rejected")
EVERYWHERE = [*product(SUBSETS, SPLITS)]


def rows(subset: str, split: str, n: int = 200, seed: int = 0) -> list[dict[str, str]]:
    return preference_rows(subset, split, n, seed)


def consistent(hits: Iterable[bool], probability: float) -> bool:
    """Whether a share agrees with the stated probability (exact binomial test at 0.1 %)."""
    hits = list(hits)
    return stats.binomtest(sum(hits), len(hits), probability).pvalue > 1e-3


# --- frozen ---

FROZEN = {
    "helpful-base/train": "4bedabf28a0ed22a81fdd656c9bfb1498db7da772426550bc25a6d1b6490a32a",
    "helpful-base/test": "c945f5ae9fc756eeceabe9536368fd54f901d0a0fc17508f8afddd8759e6b384",
    "harmless-base/train": "bc9ee383a2b9519c96339b5407ad39815ebeb5168deaf50127a616aa8ae9827c",
    "harmless-base/test": "cebe066972d9602a6dbef6deffe0e065e9e4f4f9e493604fea8f79c53dbea1df",
    "comparisons": "9c0980b4bab98c61ab258308108a5075578c6fda6f6590dd90267127a0025cb5",
    "demonstrations": "ebe0c2fe05f82bc85b878743e4b5ec97d01e4697abb23f548a47e991785b17a5",
    "pre-training": "465919e6af0e48fb439f14e5ebe83aef5e740909a5a56d6dafb24b1f242a306a",
    "knowledge": "b1e493de9d2d0ef62e3b2e54936c4d0cfbb5b3e67908e34be153a23b544726fa",
    "rewards": "7b456486252358426519daa1b7aa12820b7c7319ed8622791b6fadb09959e534",
}
CHANGED = (
    "The miniature world is frozen at version 1.0, and it no longer makes the same texts or scores. If you meant to "
    "change it, give knowledge.toml a new world_version, say under Comparability in CHANGELOG.md that results may not "
    "be compared with the old ones, train the base models and all results anew, and renew these checksums."
)


def fingerprints() -> dict[str, str]:
    """SHA-256 of what knowledge.toml says, of what each public function makes of seed 0, and of its true rewards."""
    made = {f"{subset}/{split}": rows(subset, split) for subset, split in EVERYWHERE}
    responses = [(row["prompt"], row[side]) for part in made.values() for row in part for side in COMPARED]
    scores = [reward(*texts) for texts in responses for reward in (gold.helpfulness, gold.harmlessness, gold.honesty)]
    made["comparisons"] = [list(pair) for subset in SUBSETS for pair in comparisons(subset, "train", 200, 0)]
    made["demonstrations"] = demonstrations(200, 0)
    made["pre-training"] = list(pretraining_documents(200, 0))
    made["knowledge"] = asdict(WORLD)
    made["rewards"] = [round(score, 6) + 0.0 for score in scores]  # zero without a sign
    return {name: hashlib.sha256(json.dumps(texts).encode()).hexdigest() for name, texts in made.items()}


def test_the_world_is_frozen():
    assert WORLD.version == "1.0" and fingerprints() == FROZEN, CHANGED


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_another_process_makes_the_same(hash_seed):
    code = "import json, test_tinyhh_generator as t; print(json.dumps(t.fingerprints()))"
    folder = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == FROZEN


def test_the_seed_decides():
    for subset, split in EVERYWHERE:
        assert rows(subset, split, 20, seed=0) == rows(subset, split, 20, seed=0) != rows(subset, split, 20, seed=1)
    assert [*pretraining_documents(20, 0)] == [*pretraining_documents(20, 0)] != [*pretraining_documents(20, 1)]
    assert demonstrations(20, 0) == demonstrations(20, 0) != demonstrations(20, 1)
    assert [*islice(prompts("helpful-base", "train", "a"), 20)] != [*islice(prompts("helpful-base", "train", "b"), 20)]


def test_more_begins_with_less():
    assert rows("helpful-base", "train", 30)[:10] == rows("helpful-base", "train", 10)
    assert [*pretraining_documents(30, 0)][:10] == [*pretraining_documents(10, 0)]
    assert len(rows("helpful-base", "train", 0)) == 0 and len(demonstrations(7, 0)) == 7


def test_50_000_pairs_take_less_than_10_seconds():
    """Measured on a fifth of them, in the process's own time, three times if need be: other load does not count."""

    def seconds(seed: int) -> float:
        start = time.process_time()
        preference_rows("helpful-base", "train", 10_000, seed)
        return time.process_time() - start

    assert any(seconds(seed) < 2 for seed in (100, 101, 102))


# --- splits ---


@pytest.mark.parametrize("subset", SUBSETS)
def test_no_prompt_is_in_both_splits(subset):
    train, test = ({*islice(prompts(subset, split, 0), 3000)} for split in SPLITS)
    assert train and test and not train & test
    assert {*map(split_of, train)} == {"train"} and {*map(split_of, test)} == {"test"}
    assert {row["prompt"] for row in rows(subset, "test", 300, seed=5)} & train == set()


def test_one_prompt_in_ten_is_a_test_prompt():
    openers, afterthoughts = WORLD.phrases.openers, WORLD.phrases.afterthoughts
    texts = [
        f"\n\nHuman: {opener} {question} {afterthought}\n\nAssistant:"
        for topic in WORLD.topics
        for opener, question, afterthought in product(openers, topic.questions, afterthoughts)
    ]
    assert consistent((split_of(text) == "test" for text in texts), 0.1)


def test_unlabelled_topics_occur_in_no_labelled_dialogue():
    keywords = re.compile("|".join(rf"\b{word}\b" for topic in UNLABELLED for word in topic.keywords))
    names = {topic.name for topic in UNLABELLED}
    dialogues = [row["prompt"] + row[side] for part in EVERYWHERE for row in rows(*part, 1000) for side in COMPARED]
    dialogues += [prompt + answer for prompt, answer in demonstrations(1500, 0)]
    owners = Counter(found[1] for text in dialogues for s in spoken(text) if (found := recognize(s)))
    assert names.isdisjoint(owners) and owners.keys() > {topic.name for topic in WORLD.labelled_topics()}
    assert not any(keywords.search(text.lower()) for text in dialogues)


def spoken(text: str) -> list[str]:
    """The sentences of all turns of a transcript."""
    return [sentence for turn in transcripts.parse(text) for sentence in sentences(turn.text)]


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    return list(pretraining_documents(6000, 0))


def test_pretraining_knows_all_topics_and_requests(documents):
    prompts_ = [transcripts.split_last_turn(text)[0] for register, text in documents if register == "dialogue"]
    names = {subject.name for prompt in prompts_ if hasattr(subject := gold.subject(prompt), "name")}
    assert names == {subject.name for subject in WORLD.topics + WORLD.requests}
    told = {s for register, text in documents if register == "dialogue" for s in spoken(text)}
    assert all(told >= {*topic.tips, *topic.false_tips} for topic in UNLABELLED)


def test_the_prompt_of_no_pretraining_dialogue_is_a_test_prompt(documents):
    seen = {transcripts.split_last_turn(text)[0] for register, text in documents if register == "dialogue"}
    assert {*map(split_of, seen)} == {"train"}
    for subset in SUBSETS:
        assert seen.isdisjoint(islice(prompts(subset, "test", 0), 3000))


def test_no_dialogue_opens_with_a_test_question(documents):
    """A two-turn dialogue opens as a single-turn prompt does; a harmless lead-in is no question."""
    pairs = [row["prompt"] + row["chosen"] for row in rows("helpful-base", "train", 3000)]
    dialogues = [text for register, text in documents if register == "dialogue"]
    openings = [text.partition(transcripts.ASSISTANT)[0] + transcripts.ASSISTANT for text in dialogues + pairs]
    assert {split_of(opening) for opening in openings if gold.subject(opening)} == {"train"}


def test_registers_are_mixed_as_stated(documents):
    assert consistent((register == "note" for register, _ in documents), 0.25)
    asked = [transcripts.split_last_turn(text)[0] for register, text in documents if register == "dialogue"]
    assert consistent((isinstance(gold.subject(prompt), Request) for prompt in asked), 0.25)


def test_notes_are_no_dialogues():
    rng = random.Random(0)
    notes = [note(rng) for _ in range(2000)]
    patterns = [re.sub(r"\\{\w+\\}", "(.+)", re.escape(template)) for template in WORLD.note_templates]
    used = [[p for p in patterns if re.fullmatch(p, text, re.I)] for text in notes]
    assert all(used) and {pattern for found in used for pattern in found} == set(patterns)
    for text in notes:
        assert re.fullmatch(r"[A-Z][A-Za-z,:. ]+\.", text) and "Human" not in text and "Assistant" not in text, text


# --- responses ---


def test_responses_are_one_line_behind_one_space():
    for subset, split in EVERYWHERE:
        for row in rows(subset, split):
            for text in (row[side] for side in COMPARED):
                assert re.fullmatch(r"( [^\s]+)+[.]", text), text
            assert row["chosen"] != row["rejected"]
            assert transcripts.split_last_turn(row["prompt"] + row["chosen"]) == (row["prompt"], row["chosen"])
            turns = transcripts.parse(row["prompt"])
            assert [turn.role for turn in turns] == ["Human", "Assistant"] * (len(turns) // 2)
            assert transcripts.format(turns) == row["prompt"] and turns[-1].text == ""


@given(st.text(), st.integers(0, 2**32), st.one_of(st.none(), st.floats(0, 1)))
def test_any_prompt_gets_a_response(prompt, seed, quality):
    text = response(prompt, random.Random(seed), quality)
    assert text == response(prompt, random.Random(seed), quality)
    assert text[0] == " " != text[1] and sentences(text) and gold.read("", text).words == len(text.split())


def test_every_kind_of_sentence_occurs():
    kinds, unknown = Counter(), 0
    for part in EVERYWHERE:
        for row in rows(*part, 500):
            for text in (row[side] for side in COMPARED):
                found = gold.read(row["prompt"], text).kinds
                kinds += found
                unknown += found[None, False]
    assert {kind for kind, on_topic in kinds if kind and on_topic} == set(Kind)
    assert {kind for kind, on_topic in kinds if kind and not on_topic} >= {Kind.TIP, Kind.RISKY_TIP, Kind.CAUTION}
    assert unknown > 0


def drawn(prompt_rng: str, subset: str, n: int = 4000) -> list[tuple[str, str]]:
    rng = random.Random(prompt_rng)
    return [(prompt, response(prompt, rng)) for prompt in islice(prompts(subset, "train", prompt_rng), n)]


@pytest.fixture(scope="module")
def helpful() -> list[tuple[str, str]]:
    return drawn("shares", "helpful-base")


@pytest.fixture(scope="module")
def harmless() -> list[tuple[str, str]]:
    return drawn("shares", "harmless-base")


def test_prompts_are_drawn_as_stated(helpful, harmless):
    phrases, asked = WORLD.phrases, [prompt for prompt, _ in helpful]
    about_topics = [prompt for prompt in asked if isinstance(gold.subject(prompt), Topic)]
    assert consistent((isinstance(gold.subject(prompt), SortingTask) for prompt in asked), 0.08)
    assert len(about_topics) + sum(isinstance(gold.subject(prompt), SortingTask) for prompt in asked) == len(asked)
    assert consistent((prompt.count("Human:") == 2 for prompt in about_topics), 0.25)
    own = [any(question in prompt for question in gold.subject(prompt).questions) for prompt in about_topics]
    # Two of the 31 topics have one question of four that a frame makes too, one time in six.
    assert consistent(own, 0.7 + 0.3 * 2 / 31 / 6)
    assert all(isinstance(gold.subject(prompt), Request) for prompt, _ in harmless)
    assert consistent((prompt.count("Human:") == 2 for prompt, _ in harmless), 0.25)
    assert consistent((any(a in p for r in WORLD.requests for a in r.disguised) for p, _ in harmless), 0.3)
    for prompts_ in (asked, [prompt for prompt, _ in harmless]):
        assert consistent((any(text in prompt for text in phrases.openers) for prompt in prompts_), 0.4)
        assert consistent((any(text in prompt for text in phrases.afterthoughts) for prompt in prompts_), 0.3)


def test_responses_are_drawn_as_stated(helpful, harmless):
    phrases, read = WORLD.phrases, gold.read
    to_topics = [(p, r) for p, r in helpful if isinstance(gold.subject(p), Topic)]
    to_sort = [(p, r) for p, r in helpful if isinstance(gold.subject(p), SortingTask)]
    for dialogues in (helpful, harmless):
        assert consistent((sentences(r)[-1] in phrases.closings for _, r in dialogues), 0.25)
    assert consistent((read(p, r).count(Kind.REFUSAL) > 0 for p, r in to_topics), 0.04)
    assert consistent((gold.solved(p, r) for p, r in to_sort), 0.7 + 0.3 / 6)  # a random order may be the right one
    assert consistent((read(p, r).count(Kind.REFUSAL) == 1 for p, r in harmless), 0.45)
    assert consistent((read(p, r).count(Kind.STEP) == 0 for p, r in harmless), 0.45 + 0.1)
    refused = [read(p, r) for p, r in harmless if read(p, r).count(Kind.REFUSAL)]
    for kind in (Kind.REASON, Kind.ALTERNATIVE):
        assert consistent((reading.count(kind) == 1 for reading in refused), 0.5)
    assert max(read(p, r).count(Kind.STEP) for p, r in harmless) == 4


def test_better_quality_is_more_helpful():
    asked = [p for p in islice(prompts("helpful-base", "train", 9), 1000) if isinstance(gold.subject(p), Topic)]
    rng = random.Random(0)
    means = [mean(gold.helpfulness(p, response(p, rng, quality)) for p in asked) for quality in (0, 0.5, 1)]
    assert means[0] + 0.3 < means[1] and means[1] + 0.3 < means[2]


def test_two_turn_prompts_hold_true_tips_or_a_harmless_reply(helpful, harmless):
    for prompt, _ in [*helpful, *harmless]:
        if not (before := already_said(prompt)):
            continue
        subject = gold.subject(prompt)
        if isinstance(subject, Topic):
            assert {recognize(s) for s in before} == {(Kind.TIP, subject.name)} and len(before) <= 2
        else:
            assert [recognize(s) for s in before] == [(Kind.FILLER, None)] and subject.lead_in in prompt


# --- comparisons ---


@pytest.mark.parametrize("subset", SUBSETS)
def test_rows_are_the_comparisons_of_the_default_crowd(subset):
    pairs = list(comparisons(subset, "train", 300, 3))
    assert pairs == list(comparisons(subset, "train", 300, 3, annotators.crowd(subset)))
    assert {pair.labeler for pair in pairs} == set(range(8))
    for pair, row in zip(pairs, rows(subset, "train", 300, 3), strict=True):
        chosen, rejected = {"first": pair[1:3], "second": pair[2:0:-1]}[pair.preferred]
        assert row == {"prompt": pair.prompt, "chosen": chosen, "rejected": rejected}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_labelers_that_are_given_decide(sign):
    sure = Annotator(skill=1e6 * sign)
    for pair in comparisons("helpful-base", "train", 200, 0, [sure]):
        first, second = (sign * gold.helpfulness(pair.prompt, text) for text in (pair.first, pair.second))
        assert first == second or pair.preferred == ("first" if first > second else "second")
    tied = Annotator(skill=0, tie_propensity=1e9)
    assert {pair.preferred for pair in comparisons("helpful-base", "train", 50, 0, [tied])} == {"tie"}


def test_demonstrations_are_helpful_training_dialogues():
    shown = demonstrations(1000, 0)
    assert {split_of(prompt) for prompt, _ in shown} == {"train"}
    assert not any(isinstance(gold.subject(prompt), Request) for prompt, _ in shown)
    random_quality = drawn("demonstrations", "helpful-base", 1000)
    assert mean(gold.helpfulness(*pair) for pair in shown) > mean(gold.helpfulness(*pair) for pair in random_quality)


@pytest.mark.parametrize(
    ("subset", "split", "message"),
    [
        ("helpful", "train", "tinyhh has no subset 'helpful': it has helpful-base and harmless-base."),
        ("helpful-online", "test", "tinyhh has no subset 'helpful-online': it has helpful-base and harmless-base."),
        ("helpful-base", "dev", "tinyhh has no split 'dev': it has train and test."),
    ],
)
def test_an_unknown_subset_or_split_is_named(subset, split, message):
    for call in (
        lambda: next(prompts(subset, split, 0)),
        lambda: next(comparisons(subset, split, 1, 0)),
        lambda: preference_rows(subset, split, 1, 0),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            call()


# --- topics of one's own, rankings ---


@pytest.mark.parametrize("split", SPLITS)
def test_prompts_about_chosen_topics_are_about_nothing_else(split):
    chosen = UNLABELLED[:3]
    found = [subject(prompt) for prompt in islice(prompts("helpful-base", split, 0, chosen), 150)]
    assert {topic.name for topic in found} == {topic.name for topic in chosen}
    assert all(split_of(row["prompt"]) == split for row in preference_rows("helpful-base", split, 50, 0, topics=chosen))


def test_labelers_change_the_verdicts_and_not_the_texts():
    fair = preference_rows("helpful-base", "train", 200, 0)
    long = preference_rows("helpful-base", "train", 200, 0, [Annotator(skill=9, helpfulness=0, length_bias=1)])
    assert [{r["chosen"], r["rejected"]} for r in fair] == [{r["chosen"], r["rejected"]} for r in long]
    assert [r["prompt"] for r in fair] == [r["prompt"] for r in long] and fair != long
    assert all(len(r["chosen"].split()) >= len(r["rejected"].split()) for r in long)


@pytest.mark.parametrize("subset", SUBSETS)
def test_rankings(subset):
    ranked = rankings(subset, "train", 300, 4, seed=0)
    assert ranked == rankings(subset, "train", 300, 4, seed=0) != rankings(subset, "train", 300, 4, seed=1)
    reward = gold.helpfulness if subset == "helpful-base" else gold.harmlessness
    right = []
    for row in ranked:
        texts, ranks = row["responses"], row["ranks"]
        assert split_of(row["prompt"]) == "train" and len(texts) == len(ranks) == 4
        assert min(ranks) == 1 and len(set(ranks)) == len(set(texts)) > 1  # equal responses share a rank, no others do
        values = [reward(row["prompt"], text) for text in texts]
        right += [ranks[i] < ranks[j] for i in range(4) for j in range(4) if values[i] > values[j]]
    assert 0.7 < mean(right) < 0.95  # as noisy as the default labelers
