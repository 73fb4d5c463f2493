"""Oracles: the softmax over the whole vocabulary by hand, enumeration, a separable preference."""

import math

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_lab import class_token
from rlhf_lab.language_model import train_tokenizer
from rlhf_lab.reward_model import RewardModelConfig

CONTEXT = 48
PROMPT = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
PAIRS = [
    {"prompt": PROMPT, "chosen": " For 10 minutes.", "rejected": " I cannot say."},
    {"prompt": "\n\nHuman: And a soft one?\n\nAssistant:", "chosen": " Four.", "rejected": " Boil it for 10 minutes."},
    {"prompt": "Ask", "chosen": " so.", "rejected": ""},
    {"prompt": PROMPT, "chosen": " Four minutes, then cool it in water.", "rejected": " Four."},
]
PROMPTS = [pair["prompt"] for pair in PAIRS]
CHOSEN, REJECTED = ([pair[side] for pair in PAIRS] for side in ("chosen", "rejected"))
ONE_STEP = RewardModelConfig(max_tokens=CONTEXT)  # all of PAIRS in one batch


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p["prompt"] + p["chosen"] + p["rejected"] for p in PAIRS], vocabulary=320)


def gpt2():
    sizes = {"vocab_size": 320, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, initializer_range=0.2, pad_token_id=0, eos_token_id=1))


def llama():
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=320, initializer_range=0.2, pad_token_id=0, eos_token_id=1))


@pytest.fixture(params=[gpt2, llama])
def model(request):
    torch.manual_seed(0)
    return request.param().eval()


@torch.no_grad()
def distribution(model, tokenizer, prompt: str, response: str, max_tokens: int = CONTEXT) -> torch.Tensor:
    """The probabilities (V,) of the token after "text<SOS>", with nothing but the library."""
    ids = tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"]
    assert len(ids) < max_tokens
    ids.append(tokenizer.convert_tokens_to_ids("<SOS>"))
    return model(torch.tensor([ids])).logits[0, -1].double().softmax(dim=-1)


def expected_scores(model, tokenizer, responses) -> list[float]:
    one, zero = tokenizer.convert_tokens_to_ids(["1", "0"])
    given = [distribution(model, tokenizer, p, r) for p, r in zip(PROMPTS, responses, strict=True)]
    return [(p[one] / (p[one] + p[zero])).item() for p in given]


# --- scores ---


@pytest.mark.parametrize("responses", [CHOSEN, REJECTED])
def test_the_score_is_the_share_of_1_in_1_and_0(model, tokenizer, responses):
    scores = class_token.score(model, tokenizer, PROMPTS, responses, CONTEXT)
    assert scores.tolist() == pytest.approx(expected_scores(model, tokenizer, responses), abs=1e-6)
    assert ((scores > 0) & (scores < 1)).all() and scores.std() > 0.01


def test_log_odds_are_the_logit_of_the_score(model, tokenizer):
    odds = class_token.log_odds(model, tokenizer, PROMPTS, CHOSEN, CONTEXT)
    expected = [math.log(p / (1 - p)) for p in expected_scores(model, tokenizer, CHOSEN)]
    assert odds.tolist() == pytest.approx(expected, abs=1e-5)


def test_scores_do_not_depend_on_other_rows(model, tokenizer):
    together = class_token.score(model, tokenizer, PROMPTS * 20, CHOSEN * 20, CONTEXT)  # more than a batch
    alone = [
        class_token.score(model, tokenizer, [p], [c], CONTEXT).item() for p, c in zip(PROMPTS, CHOSEN, strict=True)
    ]
    assert together.tolist() == pytest.approx(alone * 20, abs=1e-6)


def read_by(model, monkeypatch) -> list[list[int]]:
    """Collects the texts that the model is asked about."""
    seen, asked = [], class_token.next_token_logits
    monkeypatch.setattr(class_token, "next_token_logits", lambda m, texts: seen.extend(texts) or asked(m, texts))
    return seen


@pytest.mark.parametrize("max_tokens", [16, 17, CONTEXT])
def test_cut_texts_keep_the_separator_and_lose_their_end_token(model, tokenizer, monkeypatch, max_tokens):
    seen = read_by(model, monkeypatch)
    class_token.score(model, tokenizer, [*PROMPTS, "Ask", PROMPT * 9], [*CHOSEN, " water" * 99, " Four."], max_tokens)
    separator = tokenizer.convert_tokens_to_ids("<SOS>")
    assert [text[-1] for text in seen] == [separator] * 6
    assert max(map(len, seen)) == max_tokens
    assert not any(separator in text[:-1] or tokenizer.eos_token_id in text for text in seen)


def test_a_tokenizer_without_the_separator_spells_it(model, tokenizer, monkeypatch):
    """As those of other people's language models do."""
    plain = train_tokenizer(["<SOS>"], vocabulary=265)  # no merges to speak of
    backend = Tokenizer.from_str(plain._tokenizer.to_str().replace("<SOS>", "<other>"))
    plain = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")
    separator = plain("<SOS>")["input_ids"]
    assert len(separator) > 1
    seen = read_by(model, monkeypatch)
    class_token.score(model, plain, ["Ask", "Ask"], [" so.", " water" * 99], max_tokens=16)
    assert [text[-len(separator) :] for text in seen] == [separator] * 2
    assert sorted(map(len, seen)) == [len(plain("Ask so.")["input_ids"]) + len(separator), 16]


@pytest.mark.parametrize("call", ["train", "score"])
def test_a_tokenizer_that_splits_a_class_is_an_error(model, call):
    with_prefix = train_tokenizer(["so"], vocabulary=265)
    with_prefix._tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert len(with_prefix("1")["input_ids"]) == 2  # a space and the digit
    with pytest.raises(ValueError, match='splits "1" or "0"'):
        if call == "train":
            class_token.train(model, with_prefix, PAIRS, ONE_STEP, seed=0)
        else:
            class_token.score(model, with_prefix, PROMPTS, CHOSEN)


# --- margins ---


def test_margins_are_differences_of_log_odds(model, tokenizer):
    chosen, rejected = (class_token.log_odds(model, tokenizer, PROMPTS, side, CONTEXT) for side in (CHOSEN, REJECTED))
    assert class_token.margins(model, tokenizer, PAIRS, CONTEXT) == pytest.approx(
        (chosen - rejected).tolist(), abs=1e-6
    )


def test_a_margin_is_the_log_odds_given_that_exactly_one_was_chosen(model, tokenizer):
    """Enumerating whether each of two texts was chosen, independently, and striking out both and neither."""
    margins = class_token.margins(model, tokenizer, PAIRS, CONTEXT)
    pairs = zip(*(expected_scores(model, tokenizer, side) for side in (CHOSEN, REJECTED)), strict=True)
    for margin, shares in zip(margins, pairs, strict=True):
        weight = {
            (a, b): (shares[0] if a else 1 - shares[0]) * (shares[1] if b else 1 - shares[1])
            for a in (True, False)
            for b in (True, False)
        }
        given_one = weight[True, False] / (weight[True, False] + weight[False, True])
        assert 1 / (1 + math.exp(-margin)) == pytest.approx(given_one, abs=1e-6)


# --- training ---


def surprise(model, tokenizer) -> list[float]:
    """-log of the probability, among all tokens, of "1" after each chosen and of "0" after each rejected text."""
    one, zero = tokenizer.convert_tokens_to_ids(["1", "0"])
    return [
        -distribution(model, tokenizer, pair["prompt"], pair[side])[token].log().item()
        for pair in PAIRS
        for side, token in (("chosen", one), ("rejected", zero))
    ]


def test_the_loss_is_the_cross_entropy_over_the_vocabulary(model, tokenizer):
    expected = surprise(model, tokenizer)
    losses = class_token.train(model, tokenizer, PAIRS, ONE_STEP, seed=0)
    assert losses == [pytest.approx(sum(expected) / 8, abs=1e-5)]
    assert not model.training


def test_every_text_is_read_once_an_epoch_two_for_each_pair_of_the_batch(model, tokenizer):
    config = RewardModelConfig(epochs=2, batch_size=1, learning_rate=0.0, max_tokens=CONTEXT)
    losses = class_token.train(model, tokenizer, PAIRS, config, seed=0)
    assert len(losses) == 2 * len(PAIRS)
    for epoch in (losses[:4], losses[4:]):
        assert sum(epoch) * 2 == pytest.approx(sum(surprise(model, tokenizer)), abs=1e-4)


def test_the_two_texts_of_a_pair_are_strangers():
    """Who is paired with whom makes no difference: the same texts with the same labels teach the same."""
    others = [PAIRS[0] | {"rejected": " Four."}, *PAIRS[1:3], PAIRS[3] | {"rejected": " I cannot say."}]
    tokenizer, weights = train_tokenizer([PROMPT], vocabulary=320), []
    for pairs in (PAIRS, others):
        torch.manual_seed(0)
        model = gpt2()
        class_token.train(model, tokenizer, pairs, ONE_STEP, seed=0)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.manual_seed(0)
    before = torch.cat([p.detach().flatten() for p in gpt2().parameters()])
    assert (weights[0] - weights[1]).abs().max() < 0.01 * (weights[0] - before).abs().max()


def test_nothing_to_learn_from_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="nothing to learn from"):
        class_token.train(model, tokenizer, [], ONE_STEP, seed=0)


def separable_pairs(topics: str) -> list[dict]:
    """Whoever says "Four" is preferred, whatever else is said."""
    others = [" minutes", " water", " boil", " egg", " say"]
    return [
        {"prompt": f"Ask {topic}:", "chosen": f"{other} Four{another}.", "rejected": f"{other} soft{another}."}
        for topic in topics
        for other in others
        for another in others
    ]


def test_a_separable_preference_is_learned(model, tokenizer):
    held_out = separable_pairs("xyz")
    config = RewardModelConfig(epochs=6, batch_size=8, learning_rate=3e-3)
    losses = class_token.train(model, tokenizer, separable_pairs("abcdef"), config, seed=0)
    assert sum(losses[-5:]) / 5 < 0.1  # sure of the class, and that it is a class: log 2 for half of either
    margins = class_token.margins(model, tokenizer, held_out)
    assert sum(margin > 0 for margin in margins) / len(margins) > 0.95
    scores = class_token.score(model, tokenizer, *([p[key] for p in held_out] for key in ("prompt", "chosen")))
    assert scores.mean() > 0.9


def test_the_seed_decides_training(tokenizer):
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(0)
        model = gpt2()
        torch.manual_seed(len(runs))
        runs.append(class_token.train(model, tokenizer, separable_pairs("ab"), RewardModelConfig(batch_size=4), seed))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
