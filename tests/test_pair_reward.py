"""Reward models of pairs, ours and DeBERTa's. The oracle is the classifier itself, asked about one pair at a time,
without padding, by ids that are put together by hand."""

import random

import pytest
import torch
from dlite_checkpoints import ANSWERS, INSTRUCTIONS, make_deberta
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2ForSequenceClassification

from rlhf_lab import pair_reward, pretrained, reward_model
from rlhf_lab.language_model import train_tokenizer
from rlhf_lab.pair_reward import PairReward, RewardModelError, joining, load, save

HUMAN, ASSISTANT = "<human>", "<assistant>"


def our_judge(context: int = 64) -> PairReward:
    tokenizer = train_tokenizer(INSTRUCTIONS + ANSWERS, vocabulary=320)
    tokenizer.add_special_tokens({"additional_special_tokens": [HUMAN, ASSISTANT]})
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=context, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    config.num_labels = 1
    return joining(GPT2ForSequenceClassification(config).eval(), tokenizer, HUMAN, ASSISTANT)


@pytest.fixture(scope="module")
def deberta_folder(tmp_path_factory):
    return make_deberta(tmp_path_factory.mktemp("checkpoints") / "deberta")


@pytest.fixture(scope="module", params=["ours", "deberta"])
def judge(request, deberta_folder) -> PairReward:
    return our_judge() if request.param == "ours" else load(deberta_folder)


def by_hand(judge: PairReward, instruction: list[int], answer: list[int]) -> list[int]:
    """The ids of a pair of texts whose own ids are given."""
    before, between, after = "[CLS]", "[SEP]", "[SEP]"
    if judge.model.config.model_type == "gpt2":
        before, between, after = HUMAN, ASSISTANT, "<eos>"
    before, between, after = judge.tokenizer.convert_tokens_to_ids([before, between, after])
    return [before, *instruction, between, *answer, after]


def ids_of(judge: PairReward, text: str) -> list[int]:
    return judge.tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def logit(judge: PairReward, ids: list[int]) -> float:
    return judge.model(input_ids=torch.tensor([ids])).logits.item()


def alone(judge: PairReward, instruction: str, answer: str) -> float:
    return logit(judge, by_hand(judge, ids_of(judge, instruction), ids_of(judge, answer)))


def ragged_pairs(count: int) -> tuple[list[str], list[str]]:
    """Pairs of very different lengths, in no order; one answer is empty."""
    rng = random.Random(0)
    asked = [rng.choice(INSTRUCTIONS) for _ in range(count)]
    said = [" ".join(rng.choice(ANSWERS).split()[: rng.randint(1, 9)]) for _ in range(count - 1)]
    return asked, ["", *said]


def close(scores: list[float]):
    return pytest.approx(scores, abs=1e-4)


def test_a_score_is_the_logit_of_the_pair_alone_whatever_stands_beside_it(judge, monkeypatch):
    monkeypatch.setattr(pair_reward, "BATCH", 4)
    asked, said = ragged_pairs(18)
    scores = judge(asked, said)
    assert scores == close([alone(judge, *pair) for pair in zip(asked, said, strict=True)])
    assert len({round(score, 2) for score in scores}) > 9  # the weights are drawn wide enough to tell pairs apart
    assert judge([], []) == []


def test_the_first_text_is_the_instruction(judge):
    asked, said = INSTRUCTIONS[:4], [ANSWERS[0]] * 4
    swapped = judge(said, asked)
    assert judge(asked, said) != close(swapped)
    assert swapped == close([alone(judge, *pair) for pair in zip(said, asked, strict=True)])


def test_our_judge_scores_as_the_reward_model_that_it_is_made_of():
    judge = our_judge()
    asked, said = ragged_pairs(6)
    prompts = [f"{HUMAN}{instruction}{ASSISTANT}" for instruction in asked]
    assert judge(asked, said) == close(reward_model.score(judge.model, judge.tokenizer, prompts, said).tolist())


def test_a_tokenizer_that_pads_on_the_left_is_told_otherwise():
    judge = our_judge()
    asked, said = ragged_pairs(6)
    expected = judge(asked, said)
    judge.tokenizer.padding_side = "left"
    assert judge(asked, said) == close(expected)


@pytest.mark.parametrize(("instruction", "answer"), [(4, 40), (40, 4), (40, 30), (29, 30), (12, 15)])
def test_what_is_too_long_loses_its_end_the_longer_text_first(judge, instruction, answer):
    """Where both are longer than half of the room, each gets half, and the longer (or the answer) an odd token."""
    model, _ = judge
    asked, said = " ".join(["egg door"] * instruction), " ".join(["rain ice"] * answer)
    first, second = ids_of(judge, asked), ids_of(judge, said)
    room = model.config.max_position_embeddings - 3
    assert len(first) + len(second) > room
    shorter, longer = sorted((first, second), key=len)
    del shorter[room // 2 :]
    del longer[room - len(shorter) :]
    seen = []
    handle = model.base_model.register_forward_pre_hook(
        lambda _, args, inputs: seen.append(args[0] if args else inputs["input_ids"]), with_kwargs=True
    )
    (score,) = judge([asked], [said])
    handle.remove()
    assert seen[0].tolist() == [by_hand(judge, first, second)]
    assert [score] == close([logit(judge, seen[0][0].tolist())])


def test_lists_of_different_lengths_are_refused(judge):
    with pytest.raises(ValueError):
        judge(["Ask?"], [])


def test_a_saved_judge_scores_the_same_to_the_bit(judge, tmp_path):
    save(judge, tmp_path)
    again = load(tmp_path)
    asked, said = ragged_pairs(6)
    assert again(asked, said) == judge(asked, said)
    assert again.model.dtype == torch.float32 and not again.model.training
    assert judge.tokenizer(asked, said)["input_ids"] == again.tokenizer(asked, said)["input_ids"]


def test_single_texts_are_read_as_before_they_could_be_joined():
    judge, plain = our_judge(), train_tokenizer(INSTRUCTIONS + ANSWERS, vocabulary=320)
    assert judge.tokenizer(ANSWERS)["input_ids"] == plain(ANSWERS)["input_ids"]


# --- what is no reward model of pairs ---


def test_two_labels_are_refused(tmp_path):
    with pytest.raises(RewardModelError, match=f"^{tmp_path} has 2 labels, but a reward model has one.$"):
        load(make_deberta(tmp_path, labels=2))


def test_a_model_without_a_head_is_refused(tmp_path, deberta_folder):
    model = AutoModelForSequenceClassification.from_pretrained(deberta_folder)
    model.base_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(deberta_folder).save_pretrained(tmp_path)
    with pytest.raises(RewardModelError, match=r"lacks \d of the weights of a reward model \(classifier.bias\)"):
        load(tmp_path)


@pytest.mark.parametrize("pad", [None, 1])
def test_pads_that_the_model_takes_for_text_are_refused(tmp_path, pad):
    judge = our_judge()
    judge.model.config.pad_token_id = pad
    save(judge, tmp_path)
    with pytest.raises(RewardModelError, match=f"is 0 to its tokenizer and {pad} to its model, so give both"):
        load(tmp_path)


def test_a_tokenizer_without_pads_is_refused(tmp_path):
    judge = our_judge()
    judge.tokenizer.pad_token = None
    judge.model.config.pad_token_id = None
    save(judge, tmp_path)
    with pytest.raises(RewardModelError, match="is None to its tokenizer and None to its model"):
        load(tmp_path)


def test_what_is_wrong_with_a_reward_model_is_said_once(tmp_path):
    """Not inside another sentence about files that cannot be read."""
    with pytest.raises(RewardModelError, match=f"^{tmp_path} has 2 labels"):
        pretrained.load_reward_model(make_deberta(tmp_path, labels=2))
