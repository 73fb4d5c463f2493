"""Oracles: losses by hand and by `transformers`, closed forms of the schedule and of AdamW's first step, an entropy."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.language_model import encode, perplexity, train_tokenizer
from rlhf_lab.sft import SFTConfig, adamw, train, update

EXAMPLES = [
    ("\n\nHuman: How do I boil an egg?\n\nAssistant:", " Boil it for 10 minutes."),
    ("\n\nHuman: And a soft one?\n\nAssistant:", " Four minutes, then cool it in water at once."),
    ("", "A text without a prompt."),
    ("Ask", " so."),
    ("\n\nHuman: Thanks!\n\nAssistant:", ""),
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p + r for p, r in EXAMPLES], vocabulary=300)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=300,
            n_positions=64,
            n_embd=32,
            n_layer=1,
            n_head=1,
            initializer_range=0.1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    ).eval()


@torch.no_grad()
def token_losses(model, tokenizer, prompt: str, response: str) -> torch.Tensor:
    """Negative log-probabilities (R,) of a response's tokens, from the logits of the whole sequence."""
    p, r = encode(tokenizer, prompt, response)
    logits = model(torch.tensor([p + r])).logits[0, len(p) - 1 : -1]
    return F.cross_entropy(logits, torch.tensor(r), reduction="none")


def test_the_first_loss_is_the_mean_over_response_tokens(model, tokenizer):
    expected = torch.cat([token_losses(model, tokenizer, p, r) for p, r in EXAMPLES]).mean().item()
    losses = train(model, tokenizer, EXAMPLES, SFTConfig(epochs=1, batch_size=8), seed=0)
    assert losses == [pytest.approx(expected, abs=1e-5)]


def test_the_first_loss_equals_that_of_transformers(model, tokenizer):
    encoded = [encode(tokenizer, p, r) for p, r in EXAMPLES]
    longest = max(len(p) + len(r) for p, r in encoded)
    ids = torch.tensor([p + r + [tokenizer.pad_token_id] * (longest - len(p + r)) for p, r in encoded])
    labels = torch.tensor([[-100] * len(p) + r + [-100] * (longest - len(p + r)) for p, r in encoded])
    with torch.no_grad():
        expected = model(ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss.item()
    losses = train(model, tokenizer, EXAMPLES, SFTConfig(epochs=1, batch_size=8), seed=0)
    assert losses == [pytest.approx(expected, abs=1e-5)]


def test_prompts_carry_no_loss(model, tokenizer):
    """In a model whose attention and MLP add nothing, only a prompt's last token could tell a response apart; what
    the other tokens are, and whether the model could predict them, must not matter."""
    with torch.no_grad():
        for block in model.transformer.h:
            for layer in (block.attn.c_proj, block.mlp.c_proj):
                layer.weight.zero_()
                layer.bias.zero_()
        model.transformer.wpe.weight.zero_()
    frozen = SFTConfig(epochs=1, learning_rate=0.0)
    prompts = ["Ask", "How do I boil an egg? Ask", "1234567890 soft soft Ask"]
    losses = [train(model, tokenizer, [(prompt, " so.")], frozen, seed=0)[0] for prompt in prompts]
    assert losses == pytest.approx(losses[:1] * 3, abs=1e-6)
    assert train(model, tokenizer, [("As", " so.")], frozen, seed=0)[0] != pytest.approx(losses[0], abs=1e-3)


def test_every_example_is_used_once_an_epoch(model, tokenizer):
    own = sorted(token_losses(model, tokenizer, p, r).mean().item() for p, r in EXAMPLES)
    config = SFTConfig(epochs=3, batch_size=1, learning_rate=0.0)
    losses = train(model, tokenizer, EXAMPLES, config, seed=0)
    assert len(losses) == 15
    for epoch in range(3):
        assert sorted(losses[5 * epoch : 5 * epoch + 5]) == pytest.approx(own, abs=1e-5)
    assert losses[:5] != losses[5:10]  # in an order of its own


def test_the_last_batch_of_an_epoch_may_be_smaller(model, tokenizer):
    epochs = []
    losses = train(model, tokenizer, EXAMPLES, SFTConfig(epochs=2, batch_size=2), seed=0, after_epoch=epochs.append)
    assert len(losses) == 2 * math.ceil(len(EXAMPLES) / 2)
    assert epochs == [1, 2]


def test_long_examples_are_cut(model, tokenizer):
    long = [("egg " * 200, " water" * 200)]
    limited = encode(tokenizer, *long[0], max_tokens=20)
    with torch.no_grad():
        logits = model(torch.tensor([limited[0] + limited[1]])).logits[0, len(limited[0]) - 1 : -1]
        expected = F.cross_entropy(logits, torch.tensor(limited[1])).item()
    losses = train(model, tokenizer, long, SFTConfig(epochs=1, max_tokens=20), seed=0)
    assert losses == [pytest.approx(expected, abs=1e-5)]


def test_one_example_can_be_learned_by_heart(model, tokenizer):
    losses = train(model, tokenizer, EXAMPLES[:1], SFTConfig(epochs=60, learning_rate=1e-2), seed=0)
    assert losses[0] > 3
    assert losses[-1] < 0.01
    assert perplexity(model, tokenizer, EXAMPLES[:1]) == pytest.approx(1, abs=0.01)


def test_a_coin_is_learned_to_its_entropy(model, tokenizer):
    # Seven heads in ten; after the coin the text ends for certain. No model does better than the coin's entropy.
    tosses = [("Ask", "a")] * 70 + [("Ask", "b")] * 30
    train(model, tokenizer, tosses, SFTConfig(epochs=80, batch_size=100, learning_rate=1e-2), seed=0)
    entropy = -0.7 * math.log(0.7) - 0.3 * math.log(0.3)
    assert 2 * math.log(perplexity(model, tokenizer, tosses)) == pytest.approx(entropy, abs=0.01)


def test_the_seed_decides_everything(model, tokenizer):
    start, config = {k: v.clone() for k, v in model.state_dict().items()}, SFTConfig(epochs=2, batch_size=2)
    runs = []
    for seed in (1, 1, 2):
        model.load_state_dict(start)
        torch.manual_seed(len(runs))  # the global generator has no say
        losses = train(model, tokenizer, EXAMPLES, config, seed)
        runs.append((losses, [p.detach().clone() for p in model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(a, b) for a, b in zip(runs[0][1], runs[1][1], strict=True))
    assert runs[0][0] != runs[2][0]


def test_no_examples_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="`examples` is empty"):
        train(model, tokenizer, [], SFTConfig(), seed=0)


def test_the_model_comes_back_in_evaluation_mode(model, tokenizer):
    modes = []
    train(model, tokenizer, EXAMPLES, SFTConfig(epochs=1), seed=0, after_epoch=lambda _: modes.append(model.training))
    assert modes == [True]
    assert not model.training


# --- optimizer and schedule ---


def rates(steps: int, **options) -> list[float]:
    """The learning rate of every step, and the one that would follow."""
    parameter = torch.nn.Linear(1, 1)
    optimizer, schedule = adamw(parameter, 0.01, steps, **options)
    found = []
    for _ in range(steps + 1):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_schedule_rises_linearly_and_falls_by_a_cosine_to_its_final_share():
    found = rates(100, warmup=0.1, final_share=0.1)
    assert found[:10] == pytest.approx([0.001 * (step + 1) for step in range(10)])
    assert found[10] == pytest.approx(0.01)
    assert found[55] == pytest.approx(0.01 * (0.1 + 0.9 / 2))  # half-way down
    assert found[100] == pytest.approx(0.001)
    assert all(a > b for a, b in zip(found[10:], found[11:], strict=False))


def test_by_default_it_ends_at_zero():
    found = rates(50)
    assert found[0] == pytest.approx(0.01)
    assert found[50] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_schedules_never_leave_their_range(steps):
    assert all(0.001 - 1e-12 <= rate <= 0.01 + 1e-12 for rate in rates(steps, warmup=0.03, final_share=0.1))


def test_the_first_step_of_adamw_in_closed_form():
    # m / (1 - beta1) = g and sqrt(v / (1 - beta2)) = |g|: the parameter moves by the learning rate against the sign.
    line = torch.nn.Linear(3, 1, bias=False)
    before = line.weight.detach().clone()
    optimizer, schedule = adamw(line, 0.01, steps=10, weight_decay=0.1)
    gradient = torch.tensor([[2.0, -0.5, 1e-3]])
    update(line, optimizer, schedule, (line.weight * gradient).sum(), max_gradient_norm=1e9)
    expected = before * (1 - 0.01 * 0.1) - 0.01 * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(line.weight.detach(), expected)


def test_the_gradient_is_clipped_to_its_norm():
    line = torch.nn.Linear(2, 1, bias=False)
    optimizer, schedule = adamw(line, 0.01, steps=10)
    for scale, norm in ((1.0, 0.5), (0.01, 0.05)):  # (3, 4) has norm 5
        gradient = scale * torch.tensor([[3.0, 4.0]])
        update(line, optimizer, schedule, (line.weight * gradient).sum(), max_gradient_norm=0.5)
        torch.testing.assert_close(line.weight.grad, torch.tensor([[0.6, 0.8]]) * norm, atol=1e-5, rtol=0)
