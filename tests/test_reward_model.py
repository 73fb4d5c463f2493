"""Oracles: closed forms, TRL's own loss, `GPT2ForSequenceClassification`'s own forward pass, a separable preference."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab import language_model, reward_model
from rlhf_lab.language_model import encode, train_tokenizer
from rlhf_lab.reward_model import RewardModelConfig, pairwise_loss, score, score_tokens

CONTEXT = 48
PROMPT = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
PAIRS = [
    {"prompt": PROMPT, "chosen": " For 10 minutes.", "rejected": " I cannot say."},
    {"prompt": "\n\nHuman: And a soft one?\n\nAssistant:", "chosen": " Four.", "rejected": " Boil it for 10 minutes."},
    {"prompt": "Ask", "chosen": " so.", "rejected": ""},
    {"prompt": PROMPT, "chosen": " Four minutes, then cool it in water.", "rejected": " Four."},
]
PROMPTS = [pair["prompt"] for pair in PAIRS]
RESPONSES = [pair["chosen"] for pair in PAIRS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p["prompt"] + p["chosen"] + p["rejected"] for p in PAIRS], vocabulary=320)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, initializer_range=0.2, pad_token_id=0, eos_token_id=1))


@pytest.fixture
def model(policy):
    return reward_model.from_language_model(policy, seed=0)


def encoded(tokenizer, prompts=PROMPTS, responses=RESPONSES) -> tuple[list[list[int]], list[list[int]]]:
    both = [encode(tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
    return [p for p, _ in both], [r for _, r in both]


# --- the loss ---


def test_equal_scores_cost_log_2():
    assert pairwise_loss(torch.tensor([3.0, -1.0]), torch.tensor([3.0, -1.0])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("difference", [-30.0, -2.0, 0.0, 0.5, 200.0])
def test_loss_and_gradient_in_closed_form(difference):
    chosen = torch.tensor([1.0 + difference], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    loss = pairwise_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-difference)))
    # The better response gains by as much as the model doubts it.
    assert chosen.grad.item() == pytest.approx(-1 / (1 + math.exp(difference)))
    assert rejected.grad.item() == pytest.approx(1 / (1 + math.exp(difference)))


def test_the_loss_is_a_mean_over_pairs():
    chosen, rejected = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])
    expected = sum(math.log1p(math.exp(-d)) for d in (-1.0, 2.0, 0.0)) / 3
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(expected)


def test_gradcheck():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: pairwise_loss(s[0], s[1]), scores)


def test_the_loss_is_that_of_trl():
    from trl.trainer.reward_trainer import RewardTrainer  # takes seconds to import

    scores = 3 * torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather=lambda x: x, gather_for_metrics=lambda x: x),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
    )
    theirs = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores.view(-1, 1)), {})
    assert pairwise_loss(scores[0], scores[1]).item() == pytest.approx(theirs.item(), abs=1e-6)


# --- scores ---


def test_scores_are_those_of_the_library(model, tokenizer):
    prompts, responses = encoded(tokenizer)
    texts = [p + r for p, r in zip(prompts, responses, strict=True)]
    ids = torch.tensor([text + [tokenizer.pad_token_id] * (max(map(len, texts)) - len(text)) for text in texts])
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits.squeeze(-1)
    torch.testing.assert_close(score(model, tokenizer, PROMPTS, RESPONSES), expected, atol=1e-5, rtol=0)


def test_scores_come_in_order_and_do_not_depend_on_other_rows(model, tokenizer):
    prompts, responses = encoded(tokenizer)
    together = score_tokens(model, prompts, responses, tokenizer.eos_token_id)
    assert together.std() > 0.1
    for batch_size in (1, 3):
        apart = score_tokens(model, prompts, responses, tokenizer.eos_token_id, batch_size)
        torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


def test_scores_are_read_at_the_end_token_and_never_at_pads(model, tokenizer):
    before = score(model, tokenizer, PROMPTS, RESPONSES)
    other = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.pad_token_id] = other
    assert torch.equal(score(model, tokenizer, PROMPTS, RESPONSES), before)
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.eos_token_id] = other
    assert ((score(model, tokenizer, PROMPTS, RESPONSES) - before).abs() > 1e-3).all()


def test_a_cut_response_gets_an_end_token(model, tokenizer):
    eos = tokenizer.eos_token_id
    scores = score_tokens(model, [[5, 9]] * 3, [[7, 8], [7, 8, eos], [7, 8, eos, eos]], eos)
    assert scores[0] == pytest.approx(scores[1].item(), abs=1e-6)
    assert scores[2] != pytest.approx(scores[1].item(), abs=1e-3)


def test_an_empty_response_is_scored_at_its_end_token(model, tokenizer):
    eos = tokenizer.eos_token_id
    assert score_tokens(model, [[5, 9]], [[]], eos).item() == pytest.approx(
        score_tokens(model, [[5, 9]], [[eos]], eos).item()
    )


def test_a_text_cut_by_max_tokens_still_fits_the_context(model, tokenizer):
    # Cut to the whole context, it has to leave room for the end token at which it is read.
    long = " water" * 100
    scores = score(model, tokenizer, [PROMPT, "Ask"], [long, long], max_tokens=CONTEXT)
    assert scores.isfinite().all()


def test_a_response_that_fills_the_context_can_be_scored(model, tokenizer):
    # As `sampling.sample` may return it: prompt and response fill the context and no end token came.
    assert score_tokens(model, [[5] * 8], [[7] * (CONTEXT - 8)], tokenizer.eos_token_id).isfinite().all()


# --- the head ---


def test_the_head_starts_at_one_over_the_root_of_width_plus_one(policy):
    heads = [reward_model.from_language_model(policy, seed).score for seed in range(20)]
    weights = torch.stack([head.weight.flatten() for head in heads])  # (20, 32)
    # The relative standard error of the standard deviation of n normal draws is 1 / sqrt(2 n); three of them are 8 %.
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.08)
    assert weights.mean().item() == pytest.approx(0, abs=3 * (33 * 640) ** -0.5)
    assert all(head.bias is None for head in heads)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(reward_model.from_language_model(policy, 0).score.weight.flatten(), weights[0])


def test_the_trunk_is_the_policys_own_and_the_policy_stays_as_it_was(policy, model, tokenizer):
    with torch.no_grad():
        ids = torch.arange(20)[None]
        torch.testing.assert_close(
            model.base_model(ids).last_hidden_state, policy.base_model(ids).last_hidden_state, atol=1e-6, rtol=0
        )
    before = [parameter.clone() for parameter in policy.parameters()]
    reward_model.train(model, tokenizer, PAIRS, RewardModelConfig(learning_rate=0.1), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_training_mode_has_no_dropout(model):
    ids = torch.arange(20)[None]
    assert torch.equal(model.train()(ids).logits, model(ids).logits)


# --- training ---


@pytest.mark.parametrize("max_tokens", [CONTEXT, 24])
def test_what_is_trained_is_what_is_scored(model, tokenizer, max_tokens):
    """The first loss is the pairwise loss of the scores, also of texts that are cut."""
    lengths = [len(p) + len(r) for p, r in zip(*encoded(tokenizer), strict=True)]
    assert (max(lengths) > max_tokens) == (max_tokens < CONTEXT)
    chosen = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens)
    rejected = score(model, tokenizer, PROMPTS, [pair["rejected"] for pair in PAIRS], max_tokens)
    losses = reward_model.train(model, tokenizer, PAIRS, RewardModelConfig(max_tokens=max_tokens), seed=0)
    assert losses == [pytest.approx(pairwise_loss(chosen, rejected).item(), abs=1e-5)]


def test_every_pair_is_used_once_an_epoch(model, tokenizer):
    chosen = score(model, tokenizer, PROMPTS, RESPONSES)
    rejected = score(model, tokenizer, PROMPTS, [pair["rejected"] for pair in PAIRS])
    own = sorted(pairwise_loss(c, r).item() for c, r in zip(chosen, rejected, strict=True))
    config = RewardModelConfig(epochs=2, batch_size=1, learning_rate=0.0)
    losses = reward_model.train(model, tokenizer, PAIRS, config, seed=0)
    assert sorted(losses[:4]) == pytest.approx(own, abs=1e-5)
    assert sorted(losses[4:]) == pytest.approx(own, abs=1e-5)


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
    config = RewardModelConfig(epochs=4, batch_size=16, learning_rate=3e-3)
    losses = reward_model.train(model, tokenizer, separable_pairs("abcdef"), config, seed=0)
    assert sum(losses[-5:]) / 5 < 0.1 < math.log(2) < sum(losses[:3])
    margins = reward_model.margins(model, tokenizer, held_out)
    assert sum(margin > 0 for margin in margins) / len(margins) > 0.95
    assert not model.training


def test_the_seed_decides_training(policy, tokenizer):
    runs = []
    for seed in (0, 0, 1):
        model = reward_model.from_language_model(policy, seed=0)
        torch.manual_seed(len(runs))
        config = RewardModelConfig(batch_size=8)
        runs.append(reward_model.train(model, tokenizer, separable_pairs("ab"), config, seed))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_margins_are_differences_of_scores(model, tokenizer):
    rejected = [pair["rejected"] for pair in PAIRS]
    expected = score(model, tokenizer, PROMPTS, RESPONSES) - score(model, tokenizer, PROMPTS, rejected)
    mirrored = [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    same = {"prompt": PROMPT, "chosen": " Four.", "rejected": " Four."}
    assert reward_model.margins(model, tokenizer, PAIRS) == pytest.approx(expected.tolist(), abs=1e-5)
    assert reward_model.margins(model, tokenizer, mirrored) == pytest.approx((-expected).tolist(), abs=1e-5)
    assert reward_model.margins(model, tokenizer, [same, *PAIRS])[0] == 0


# --- normalization ---


def test_normalized_scores_have_mean_0_and_standard_deviation_1(model, tokenizer):
    ids = encoded(tokenizer)
    raw = score(model, tokenizer, PROMPTS, RESPONSES)
    margins = torch.tensor(reward_model.margins(model, tokenizer, PAIRS))
    reward_model.normalize(model, tokenizer, *ids)
    scores = score(model, tokenizer, PROMPTS, RESPONSES)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std())  # hence the same order
    torch.testing.assert_close(torch.tensor(reward_model.margins(model, tokenizer, PAIRS)), margins / raw.std())
    reward_model.normalize(model, tokenizer, *ids)  # once more changes nothing
    torch.testing.assert_close(score(model, tokenizer, PROMPTS, RESPONSES), scores)


def test_normalization_survives_saving(model, tokenizer, tmp_path):
    reward_model.normalize(model, tokenizer, *encoded(tokenizer))
    language_model.save(model, tmp_path / "saved")
    loaded = reward_model.load(tmp_path / "saved")
    texts = PROMPTS, [pair["rejected"] for pair in PAIRS]
    torch.testing.assert_close(score(loaded, tokenizer, *texts), score(model, tokenizer, *texts), atol=1e-6, rtol=0)
