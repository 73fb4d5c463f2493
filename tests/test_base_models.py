"""The shipped base models: made from this world's text, as good as their provenance says, and fluent in it."""

import hashlib
import json
import re

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lab import language_model, pretraining
from rlhf_lab.language_model import BASE, RUNGS
from rlhf_lab.tinyhh import generator
from rlhf_lab.tinyhh.knowledge import world
from rlhf_lab.transcripts import split_last_turn


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
def samples():
    return pretraining.samples_against_text("1M")


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


# --- what the 1M rung says ---


def test_the_largest_rung_is_fluent(samples):
    assert samples.known_in_text > 0.9
    assert samples.known >= 0.9 * samples.known_in_text


def test_the_model_card_says_what_the_provenance_and_the_samples_say(provenance, samples):
    """Every sentence but the one about the samples is the same to the letter. That one was measured on one machine, and
    another may round differently and so draw other samples: its interval has to hold what is measured here, and its
    verdict has to be the interval's."""
    card = (BASE / "README.md").read_text(encoding="utf-8")
    fresh = pretraining.model_card(provenance, samples)
    stated, measured = (re.search(r"\*\*Their samples.\*\*(.*)", text)[1] for text in (card, fresh))
    assert card.replace(stated, "") == fresh.replace(measured, "")
    value, low, high = map(float, re.search(r"is ([+-][.\d]+) \[(-?[.\d]+), (-?[.\d]+)\] points", stated).groups())
    assert low <= samples.gold_difference.value <= high and low <= value <= high
    assert ("does **not** match" in stated) == (not low <= 0 <= high)
