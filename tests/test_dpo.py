"""Oracles: the loss and its gradient in closed form, the exact world, where the optimum is known, and steps by hand."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab import dpo, oracle
from rlhf_lab.dpo import DPOConfig, dpo_loss, implicit_rewards
from rlhf_lab.language_model import encode, train_tokenizer
from rlhf_lab.oracle import Language, TabularPolicy

PAIRS = [
    {"prompt": "How do I boil an egg?", "chosen": " Boil it for ten minutes.", "rejected": " No."},
    {"prompt": "And a soft one?", "chosen": " Four.", "rejected": " I do not know, and I do not want to know."},
    {"prompt": "Ask", "chosen": " so, and do not ask me.", "rejected": " so, and do ask me."},
    {"prompt": "Thanks a lot for all of this!", "chosen": " You are welcome.", "rejected": " Eggs are welcome."},
    {"prompt": "Is it ten?", "chosen": " No, four.", "rejected": " Yes, it is ten minutes."},
]
STILL = DPOConfig(learning_rate=0.0, batch_size=2)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([" ".join(pair.values()) for pair in PAIRS], vocabulary=300)


def tiny(seed: int, dropout: float = 0.0, context: int = 64) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "n_positions": context, "n_embd": 16, "n_layer": 1, "n_head": 1}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, initializer_range=0.2)).eval()


@torch.no_grad()
def token_log_probabilities(model, tokenizer, prompt: str, response: str, max_tokens=None) -> torch.Tensor:
    """(R,), read off the logits of the whole text."""
    before, after = encode(tokenizer, prompt, response, max_tokens)
    logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    return -F.cross_entropy(logits, torch.tensor(after), reduction="none")


def rewards_by_hand(policy, reference, tokenizer, beta: float, mean: bool, side: str, max_tokens=None) -> torch.Tensor:
    """beta (log pi - log pi_ref) of one side of each pair: (N,)."""
    both = [
        [token_log_probabilities(model, tokenizer, pair["prompt"], pair[side], max_tokens) for pair in PAIRS]
        for model in (policy, reference)
    ]
    pool = torch.mean if mean else torch.sum
    return beta * torch.stack([pool(ours) - pool(theirs) for ours, theirs in zip(*both, strict=True)])


# --- the loss ---


def test_the_loss_in_closed_form():
    """Margins of log 3 and 0: losses log(4/3) and log 2."""
    chosen, rejected = torch.tensor([-1.0, -4.0]), torch.tensor([-2.0, -6.0])
    reference_chosen, reference_rejected = torch.tensor([-3.0, -5.0]), torch.tensor([-4.0 + 2 * math.log(3), -7.0])
    loss = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
    assert loss.item() == pytest.approx((math.log(4 / 3) + math.log(2)) / 2)
    rewards = implicit_rewards(rejected, reference_rejected, beta=0.5)
    assert rewards.tolist() == pytest.approx([1 - math.log(3), 0.5])


def draws(n: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return list(3 * torch.randn(4, n, generator=generator, dtype=torch.float64) - 8)


def test_the_gradient_is_that_of_the_paper():
    """A pair pushes its responses apart by beta times the probability that its label is wrong (section 4)."""
    chosen, rejected, *fixed = (values.requires_grad_() for values in draws())
    dpo_loss(chosen, rejected, *fixed, beta=0.3).backward()
    margins = 0.3 * (chosen - fixed[0] - rejected + fixed[1])
    push = 0.3 * torch.sigmoid(-margins).detach() / 6
    torch.testing.assert_close(chosen.grad, -push)
    torch.testing.assert_close(rejected.grad, push)
    assert fixed[0].grad is fixed[1].grad is None


def test_pairs_are_independent_and_their_order_does_not_matter():
    values, order = draws(), torch.tensor([4, 2, 5, 0, 3, 1])
    loss = dpo_loss(*values, beta=0.3).item()
    assert dpo_loss(*(part[order] for part in values), beta=0.3).item() == pytest.approx(loss)
    single = [dpo_loss(*(part[i : i + 1] for part in values), beta=0.3).item() for i in range(6)]
    assert sum(single) / 6 == pytest.approx(loss)


def test_exchanging_the_responses_costs_the_margin():
    """-log sigma(-m) is -log sigma(m) + m."""
    chosen, rejected, reference_chosen, reference_rejected = draws()
    margin = (
        implicit_rewards(chosen, reference_chosen, 0.3) - implicit_rewards(rejected, reference_rejected, 0.3)
    ).mean()
    there = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, 0.3)
    back = dpo_loss(rejected, chosen, reference_rejected, reference_chosen, 0.3)
    assert (back - there).item() == pytest.approx(margin.item())


# --- in the exact world ---

WORLD = Language(tokens=3, horizon=2)
STRENGTHS = [1, 2, 4, 1, 4, 2, 2, 1, 4]  # exp(reward) of each text
REWARDS = torch.tensor(STRENGTHS, dtype=torch.float64).log()
OFTEN = 30  # comparisons of any two texts: as many as make all of Bradley-Terry's frequencies whole numbers


def bradley_terry_pairs() -> torch.Tensor:
    """Numbers of chosen and rejected texts (2, N), each as often as Bradley-Terry says."""
    pairs = []
    for one, first in enumerate(STRENGTHS):
        for other, second in enumerate(STRENGTHS):
            times, rest = divmod(OFTEN * first, first + second)
            assert rest == 0
            pairs += [(one, other)] * (times if one != other else 0)
    return torch.tensor(pairs).T


def exact_loss(policy: TabularPolicy, log_ref: torch.Tensor, beta: float) -> torch.Tensor:
    log_probs, (chosen, rejected) = oracle.log_probabilities(policy.tables()), bradley_terry_pairs()
    return dpo_loss(log_probs[chosen], log_probs[rejected], log_ref[chosen], log_ref[rejected], beta)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_best_policy_of_the_reward_has_the_smallest_loss(beta):
    """With comparisons as Bradley-Terry has them, minimizing the loss from the reference on ends at pi_ref exp(r/beta)
    / Z, without a reward ever being seen."""
    policy = TabularPolicy.random(WORLD, seed=0)
    log_ref = oracle.log_probabilities(policy.tables()).detach()
    best = oracle.optimum(log_ref, REWARDS, beta).log_probs
    optimizer = torch.optim.LBFGS(
        policy.parameters(), max_iter=500, tolerance_grad=1e-9, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = exact_loss(policy, log_ref, beta)
        loss.backward()
        return loss

    start = optimizer.step(closure).item()
    found = oracle.log_probabilities(policy.tables()).detach()
    assert start == pytest.approx(math.log(2))
    assert oracle.kl(best, log_ref) > 0.01
    torch.testing.assert_close(found.exp(), best.exp(), atol=1e-5, rtol=0)
    # The smallest loss is the entropy of the labels: no policy knows more than who is better how often.
    chosen, rejected = bradley_terry_pairs()
    entropy = -F.logsigmoid(REWARDS[chosen] - REWARDS[rejected]).mean().item()
    assert exact_loss(policy, log_ref, beta).item() == pytest.approx(entropy, abs=1e-8)


def test_both_rewards_can_fall_while_the_margin_grows():
    """Three responses with logits theta, 2 theta and 0: what parts the first two lowers both, and the third gains."""
    theta = torch.tensor(0.0, requires_grad=True)
    features, reference = torch.tensor([1.0, 2.0, 0.0]), torch.full((3,), 1 / 3).log()
    seen = []
    for _ in range(5):
        log_probs = (theta * features).log_softmax(dim=0)
        rewards = implicit_rewards(log_probs.detach(), reference, beta=1.0)
        seen.append(rewards.tolist())
        (slope,) = torch.autograd.grad(dpo_loss(*log_probs[:2, None], *reference[:2, None], beta=1.0), theta)
        theta = (theta - slope).detach().requires_grad_()
    chosen, rejected, third = zip(*seen, strict=True)
    assert all(a > b for a, b in zip(chosen[:-1], chosen[1:], strict=True))
    assert all(a > b for a, b in zip(rejected[:-1], rejected[1:], strict=True))
    margins = [a - b for a, b in zip(chosen, rejected, strict=True)]
    assert margins == sorted(margins) and margins[0] == 0 < margins[1]
    assert third[-1] > 0.3


# --- training ---


def test_at_the_reference_the_loss_is_log_2_even_of_a_model_with_dropout(tokenizer):
    policy = tiny(0, dropout=0.3).train()
    history = dpo.train(policy, copy.deepcopy(policy), tokenizer, PAIRS, STILL, seed=0)
    assert history["loss"] == pytest.approx([math.log(2)] * 3, abs=1e-5)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        assert history[name] == pytest.approx([0] * 3, abs=1e-5)


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_a_step_by_hand(tokenizer, mean):
    policy, reference = tiny(0), tiny(1)
    chosen, rejected = (
        rewards_by_hand(policy, reference, tokenizer, 0.3, mean, side) for side in ("chosen", "rejected")
    )
    config = DPOConfig(beta=0.3, mean=mean)
    history = dpo.train(policy, reference, tokenizer, PAIRS, config, seed=0)
    margins = chosen - rejected
    assert 0 < (margins > 0).sum() < len(PAIRS)
    assert history == {
        "loss": [pytest.approx(torch.log1p(torch.exp(-margins)).mean().item(), abs=1e-5)],
        "accuracy": [pytest.approx((margins > 0).float().mean().item())],
        "chosen_reward": [pytest.approx(chosen.mean().item(), abs=1e-5)],
        "rejected_reward": [pytest.approx(rejected.mean().item(), abs=1e-5)],
        "margin": [pytest.approx(margins.mean().item(), abs=1e-5)],
    }


def test_sum_and_mean_differ_by_the_lengths(tokenizer):
    """A response of length R counts R times as much in a sum."""
    policy, reference = tiny(0), tiny(1)
    lengths = torch.tensor([len(encode(tokenizer, pair["prompt"], pair["chosen"])[1]) for pair in PAIRS])
    assert len(lengths.unique()) > 2
    (total,), (average,) = (
        dpo.train(tiny(0), reference, tokenizer, PAIRS, DPOConfig(beta=0.3, mean=mean), seed=0)["chosen_reward"]
        for mean in (False, True)
    )
    by_hand = rewards_by_hand(policy, reference, tokenizer, 0.3, False, "chosen")
    assert total == pytest.approx(by_hand.mean().item(), abs=1e-5)
    assert average == pytest.approx((by_hand / lengths).mean().item(), abs=1e-5)


def test_every_pair_is_read_once_an_epoch_beside_its_own_reference(tokenizer):
    policy, reference, read = tiny(0), tiny(1), []
    config = DPOConfig(epochs=2, learning_rate=0.0, batch_size=2, beta=0.3)
    history = dpo.train(policy, reference, tokenizer, PAIRS, config, 0, read.append)
    sizes = [after - before for before, after in zip([0, *read[:-1]], read, strict=True)]
    assert sorted(sizes[:3]) == sorted(sizes[3:]) == [1, 2, 2]
    chosen, rejected = (
        rewards_by_hand(policy, reference, tokenizer, 0.3, False, side) for side in ("chosen", "rejected")
    )
    total = -F.logsigmoid(chosen - rejected).sum().item()
    for epoch in (slice(0, 3), slice(3, 6)):
        found = sum(loss * size for loss, size in zip(history["loss"][epoch], sizes[epoch], strict=True))
        assert found == pytest.approx(total, abs=1e-4)
    assert history["loss"][:3] != history["loss"][3:]  # in batches that differ


def test_a_text_too_long_is_cut_as_in_fine_tuning(tokenizer):
    policy, reference = tiny(0, context=12), tiny(1, context=12)
    config = DPOConfig(beta=0.3, max_tokens=12)
    history = dpo.train(policy, reference, tokenizer, PAIRS, config, seed=0)
    expected = rewards_by_hand(tiny(0, context=12), reference, tokenizer, 0.3, False, "rejected", max_tokens=12)
    assert history["rejected_reward"] == [pytest.approx(expected.mean().item(), abs=1e-5)]


def test_the_policy_learns_the_pairs_and_the_reference_stays_as_it_is(tokenizer):
    policy, reference = tiny(0), tiny(0, dropout=0.3).train()
    frozen = copy.deepcopy(reference.state_dict())
    config = DPOConfig(epochs=30, learning_rate=3e-3)
    history = dpo.train(policy, reference, tokenizer, PAIRS, config, seed=0)
    assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert history["loss"][-1] < 0.4 and history["accuracy"][-1] == 1
    assert history["margin"][-1] == pytest.approx(
        history["chosen_reward"][-1] - history["rejected_reward"][-1], abs=1e-5
    )
    assert all(torch.equal(value, frozen[name]) for name, value in reference.state_dict().items())
    assert all(parameter.grad is None for parameter in reference.parameters())
    # Rewards are measured from the reference, not from the policy of the step before.
    final = [rewards_by_hand(policy, reference, tokenizer, 0.1, False, side).mean() for side in ("chosen", "rejected")]
    assert (final[0] - final[1]).item() == pytest.approx(history["margin"][-1], rel=0.1)


def test_the_seed_decides_a_run(tokenizer):
    config = DPOConfig(batch_size=2, learning_rate=1e-3)
    runs = [dpo.train(tiny(0), tiny(0), tokenizer, PAIRS, config, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_nothing_to_learn_from_and_a_reference_that_would_learn_are_refused(tokenizer):
    policy = tiny(0)
    with pytest.raises(ValueError, match="at least one pair"):
        dpo.train(policy, tiny(0), tokenizer, [], STILL, seed=0)
    with pytest.raises(ValueError, match="pass a copy"):
        dpo.train(policy, policy, tokenizer, PAIRS, STILL, seed=0)
