"""The shipped base models: made from this world's text, as good as their provenance says, and fluent in it."""

import hashlib
import json
import random
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab import language_model, pretraining
from rlhf_lab.language_model import BASE, RUNGS
from rlhf_lab.sampling import sample
from rlhf_lab.statistics import t_interval
from rlhf_lab.tinyhh import generator, gold
from rlhf_lab.tinyhh.knowledge import SortingTask, recognize, sentences, subject, world
from rlhf_lab.transcripts import split_last_turn

QUESTIONS = 300
SPEAKS = "\n\nAssistant:"


@pytest.fixture(scope="module")
def provenance():
    return json.loads((BASE / "provenance.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def documents(provenance):
    """The text the models were trained on, written again."""
    return list(generator.pretraining_documents(provenance["documents"], provenance["seed"]))


@pytest.fixture(scope="module")
def held_out(documents):
    """300 documents of another seed, without those that the text happens to hold: a short note may come up twice."""
    known = set(documents)
    return [document for document in generator.pretraining_documents(300, seed=12345) if document not in known]


@pytest.fixture(scope="module")
def answers():
    """Questions of held-out helpful dialogues, the answers that stand there and one sample of the 1M rung each.

    A base model continues a dialogue as its text does, which may be with the person's next turn. So what is compared,
    in the text and in the samples, is the first answer of a dialogue, up to that turn.
    """
    rng, dialogues = random.Random(0), generator.prompts("helpful-base", "test", "base-models")
    texts = [prompt + generator.response(prompt, rng) for prompt in islice(dialogues, QUESTIONS)]
    questions = [text.partition(SPEAKS)[0] + SPEAKS for text in texts]
    model, tokenizer = language_model.load_base("1M")
    samples = sample(model, tokenizer(questions)["input_ids"], 128, tokenizer.eos_token_id, seed=0)
    ended = [response[-1] == tokenizer.eos_token_id for response in samples.responses]
    own = [first_answer(text.partition(SPEAKS)[2]) for text in texts]
    return questions, own, [first_answer(text) for text in samples.texts(tokenizer)], ended


def first_answer(text: str) -> str:
    return text.partition("\n\nHuman:")[0]


# --- files ---


def test_the_whole_ladder_is_there_and_small():
    assert {folder.name for folder in BASE.iterdir() if folder.is_dir()} == set(RUNGS)
    assert sum(file.stat().st_size for file in BASE.rglob("*") if file.is_file()) <= 8_000_000


@pytest.mark.parametrize("rung", RUNGS)
def test_weights_are_float16_on_disk(rung):
    with safe_open(BASE / rung / "model.safetensors", framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}


@pytest.mark.parametrize("rung", RUNGS)
def test_transformers_alone_can_load_and_use_them(rung, provenance):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(BASE / rung), AutoTokenizer.from_pretrained(BASE / rung)
    assert model.num_parameters() == provenance["rungs"][rung]["parameters"]
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.pad_token_id, model.config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    text = "\n\nHuman: How do I store -12.5 spoons of flour?\n\nAssistant:"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_all_rungs_share_a_tokenizer():
    assert len({hashlib.sha256((BASE / rung / "tokenizer.json").read_bytes()).digest() for rung in RUNGS}) == 1


@pytest.mark.parametrize("rung", RUNGS)
def test_the_course_uses_them_in_float32_without_dropout(rung):
    model, tokenizer = language_model.load_base(rung)
    ids = torch.tensor(tokenizer(["\n\nHuman: How do I"])["input_ids"])
    assert model.dtype == torch.float32 and not model.training
    assert torch.equal(model.train()(ids).logits, model(ids).logits)


# --- provenance ---


def test_they_were_made_from_this_world(provenance, documents):
    """The proof: the same text, byte for byte, from the seed."""
    assert provenance["world_version"] == world().version
    digest = hashlib.sha256("\0".join(text for _, text in documents).encode()).hexdigest()
    assert provenance["data_sha256"] == digest
    assert len(provenance["commit"]) >= 7 and int(provenance["commit"], 16) >= 0
    tokenizer = language_model.load_tokenizer(BASE / "1M")
    some = tokenizer([text for _, text in documents[::100]])["input_ids"]
    mean = sum(map(len, some)) / len(some) + 1  # with the end token
    assert provenance["tokens"] == pytest.approx(mean * len(documents), rel=0.03)


def test_no_held_out_prompt_was_trained_on(documents):
    prompts = {split_last_turn(text)[0] for register, text in documents if register == "dialogue"}
    assert len(prompts) > 10_000
    assert not [prompt for prompt in prompts if generator.split_of(prompt) == "test"]


@pytest.mark.parametrize("rung", RUNGS)
def test_held_out_perplexity_is_what_the_provenance_says(rung, provenance, held_out):
    model, tokenizer = language_model.load_base(rung)
    found = pretraining.held_out_perplexity(model, tokenizer, held_out)
    stated = provenance["rungs"][rung]["perplexity"]
    assert found == {register: pytest.approx(value, rel=0.1) for register, value in stated.items()}


def test_a_larger_rung_predicts_better_and_takes_longer(provenance):
    reports = [provenance["rungs"][rung] for rung in RUNGS]
    for smaller, larger in zip(reports, reports[1:], strict=False):
        assert smaller["core_minutes"] < larger["core_minutes"]
        for register in ("dialogue", "note"):
            assert smaller["perplexity"][register] > larger["perplexity"][register] > 1


def test_the_model_card_says_what_the_provenance_says(provenance):
    assert (BASE / "README.md").read_text(encoding="utf-8") == pretraining.model_card(provenance)


# --- what the 1M rung says ---


def known_share(questions, answers) -> float:
    """Share of the finished sentences that the world knows, over questions that ask for advice."""
    asks_for_advice = [not isinstance(subject(question), SortingTask) for question in questions]
    said = [s for answer, advice in zip(answers, asks_for_advice, strict=True) if advice for s in sentences(answer)]
    assert len(said) > QUESTIONS
    return sum(recognize(sentence) is not None for sentence in said) / len(said)


def test_the_largest_rung_is_fluent(answers):
    questions, own, sampled, ended = answers
    assert known_share(questions, sampled) >= 0.9 * known_share(questions, own)
    assert sum(ended) / QUESTIONS > 0.95  # and knows when to stop


def test_its_gold_rewards_match_the_datas_within_the_interval(answers):
    """Paired by question: the 95 % interval of the difference holds zero. No margin is added to it."""
    questions, own, sampled, _ = answers
    theirs, ours = (
        np.array([gold.helpfulness(question, answer) for question, answer in zip(questions, given, strict=True)])
        for given in (own, sampled)
    )
    difference = t_interval(ours - theirs, unit="prompt")
    assert difference.low <= 0 <= difference.high, difference
    assert difference.high - difference.low < 0.5  # narrow enough to notice a missing tip in every fourth answer
