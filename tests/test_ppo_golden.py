"""Oracle: TRL's PPO of 0.11.4 and of 1.12.0, as golden/make_trl_ppo.py found them to compute on fixed inputs.

Where TRL does the same, the numbers are the same; where it differs, the test says by what, and takes just that away:

- TRL whitens with the unbiased variance, ours with the biased one.
- 1.12.0 lays the score one step after the last token (where there is one), and trains the value of that step.
- What TRL calls value loss in 0.11.4 is multiplied by its coefficient; the half of the square is in both.
- In 0.11.4, whitened rewards are not masked again, so that padding counts as rewards after the last token.
- Its clip fraction counts a ratio outside the clip only where the clip changes the loss; ours counts all.
- Its approximate KL is k2; ours is k3.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab.ppo import (
    AdaptiveKL,
    entropy,
    gae,
    kl_estimates,
    masked_mean,
    penalized_rewards,
    policy_loss,
    update_metrics,
    value_loss,
    whiten,
)

PAGE = json.loads((Path(__file__).parent / "golden" / "trl_ppo.json").read_text(encoding="utf-8"))
OLD, NEW = PAGE["0.11.4"], PAGE["1.12.0"]
SETTINGS = SimpleNamespace(**PAGE["settings"])
DISCOUNTS = list(enumerate(PAGE["discounts"]))
STEPS = len(PAGE["inputs"]["old_values"][0])

LENGTHS = torch.tensor(PAGE["inputs"]["lengths"])
MASK = torch.arange(STEPS) < LENGTHS[:, None]  # (5, 6)
AFTER = torch.arange(STEPS) <= LENGTHS[:, None]  # and the step after the last token, where there is one


def tensor(numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


IN = SimpleNamespace(**{name: tensor(numbers) for name, numbers in PAGE["inputs"].items()})
LOG_RATIO = IN.old_log_probs - IN.ref_log_probs
REWARDS = penalized_rewards(IN.scores, LOG_RATIO, MASK, SETTINGS.kl_coef)
# One step later, as 1.12.0 has it: that step costs no KL, and is the last of a longer row.
REWARDS_AFTER = penalized_rewards(IN.scores, LOG_RATIO.masked_fill(~MASK, 0), AFTER, SETTINGS.kl_coef)


def same(found: torch.Tensor, expected, mask: torch.Tensor = MASK) -> None:
    """Equal on the mask. What TRL leaves at padding is nobody's business. The tolerance is that of the 1e-8 which both
    add to a variance, each to its own."""
    torch.testing.assert_close(found[mask], tensor(expected)[mask], atol=3e-7, rtol=1e-6)


def unbiased(whitened: torch.Tensor, mask: torch.Tensor = MASK) -> torch.Tensor:
    """Whitened by the biased variance -> by the unbiased one."""
    n = mask.sum()
    return whitened * ((n - 1) / n).sqrt()


# --- whitening ---


def test_whitening_is_trls_but_for_the_unbiased_variance():
    same(unbiased(whiten(IN.old_values, MASK)), OLD["whitened"])


def test_whitening_that_keeps_the_mean_is_trls_but_for_the_unbiased_variance():
    mean = masked_mean(IN.old_values, MASK)
    same(unbiased(whiten(IN.old_values, MASK, shift_mean=False) - mean) + mean, OLD["kept_mean"])


# --- rewards ---


def test_rewards_are_those_of_the_old_trl():
    same(REWARDS, OLD["rewards"]["kl"])


def test_k1_and_k2_are_the_penalties_of_the_old_trl():
    estimates = kl_estimates(LOG_RATIO)
    same(estimates.k1, OLD["penalties"]["kl"])
    same(estimates.k2, OLD["penalties"]["mse"])


def test_rewards_are_those_of_the_new_trl_when_the_score_comes_one_step_later():
    same(REWARDS_AFTER, NEW["k1"][0]["rewards"], AFTER)


def test_the_new_trl_moves_the_score_only_where_there_is_a_later_step():
    theirs = tensor(NEW["k1"][0]["rewards"])
    full = LENGTHS == STEPS
    same(REWARDS[full], theirs[full].tolist(), MASK[full])
    torch.testing.assert_close(theirs[~full, LENGTHS[~full]], IN.scores[~full])
    torch.testing.assert_close(theirs.sum(dim=1), REWARDS.sum(dim=1))


def test_k3_is_the_other_penalty_of_the_new_trl():
    expected = tensor(NEW["k3"]["rewards"])
    scores = REWARDS_AFTER + SETTINGS.kl_coef * LOG_RATIO.masked_fill(~MASK, 0)  # without the penalty
    same(scores - SETTINGS.kl_coef * kl_estimates(LOG_RATIO).k3.masked_fill(~MASK, 0), expected.tolist(), AFTER)


# --- advantages and returns ---


@pytest.mark.parametrize(("number", "discount"), DISCOUNTS)
def test_advantages_and_returns_are_those_of_the_old_trl(number, discount):
    advantages, returns = gae(REWARDS, IN.old_values, MASK, *discount)
    whitened, expected = OLD["advantages"][number]
    same(returns, expected)
    same(unbiased(whiten(advantages, MASK)), whitened)


def test_advantages_of_whitened_rewards_are_those_of_the_old_trl():
    mean = masked_mean(REWARDS, MASK)
    rewards = unbiased(whiten(REWARDS, MASK, shift_mean=False) - mean) + mean
    # The old TRL does not mask what it has whitened: padding, which was zero, counts as rewards after the last token.
    variance = masked_mean((REWARDS - mean).square(), MASK) * MASK.sum() / (MASK.sum() - 1)
    padded = torch.where(MASK, rewards, mean - mean * variance.rsqrt())
    advantages, returns = gae(padded, IN.old_values.masked_fill(~MASK, 0), torch.ones_like(MASK), 1.0, 0.95)
    whitened, expected = OLD["advantages_of_whitened_rewards"]
    same(returns, expected)
    same(unbiased(whiten(advantages, MASK)), whitened)


@pytest.mark.parametrize(("number", "discount"), DISCOUNTS)
def test_advantages_and_returns_are_those_of_the_new_trl_one_step_later(number, discount):
    advantages, returns = gae(REWARDS_AFTER, IN.old_values, AFTER, *discount)
    same(returns, NEW["k1"][number]["returns"], AFTER)
    same(unbiased(whiten(advantages, MASK)), NEW["k1"][number]["advantages"])


@pytest.mark.parametrize(("number", "discount"), DISCOUNTS)
def test_where_the_score_stands_matters_only_if_something_is_discounted(number, discount):
    _, returns = gae(REWARDS, IN.old_values, MASK, *discount)
    theirs = tensor(NEW["k1"][number]["returns"])
    if discount == [1.0, 1.0]:
        same(returns, theirs.tolist())
    else:
        assert (returns - theirs)[MASK].abs().max() > 0.1


def test_advantages_of_whitened_rewards_are_those_of_the_new_trl_one_step_later():
    mean = masked_mean(REWARDS_AFTER, AFTER)
    rewards = unbiased(whiten(REWARDS_AFTER, AFTER, shift_mean=False) - mean, AFTER) + mean
    expected = NEW["whitened_rewards"]
    same(rewards, expected["rewards"], AFTER)
    advantages, returns = gae(rewards, IN.old_values, AFTER, 1.0, 0.95)
    same(returns, expected["returns"], AFTER)
    same(unbiased(whiten(advantages, MASK)), expected["advantages"])


# --- losses and metrics ---


def losses(rewards: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Policy loss and value loss; `mask` is that of the values."""
    advantages, returns = gae(rewards, IN.old_values, mask)
    whitened = unbiased(whiten(advantages, MASK))
    policy = policy_loss(IN.log_probs, IN.old_log_probs, whitened, MASK, SETTINGS.clip)
    return policy, value_loss(IN.values, IN.old_values, returns, mask, SETTINGS.value_clip)


def test_losses_are_those_of_the_old_trl():
    policy, value = losses(REWARDS, MASK)
    assert policy.item() == pytest.approx(OLD["loss"][0], rel=1e-7)
    assert SETTINGS.vf_coef * value.item() == pytest.approx(OLD["loss"][1], rel=1e-7)


def test_losses_are_those_of_the_new_trl_one_step_later():
    policy, value = losses(REWARDS_AFTER, AFTER)
    expected = NEW["loss"]
    assert policy.item() == pytest.approx(expected["pg_loss"], rel=1e-7)
    assert value.item() == pytest.approx(expected["vf_loss"], rel=1e-7)
    assert (policy + SETTINGS.vf_coef * value).item() == pytest.approx(expected["loss"], rel=1e-7)


def test_the_inputs_reach_the_clips():
    """Else the losses above would not tell a clip from none."""
    ratio = (IN.log_probs - IN.old_log_probs).exp()
    assert (ratio > 1.2)[MASK].any() and (ratio < 0.8)[MASK].any()
    assert ((IN.values - IN.old_values).abs() > SETTINGS.value_clip)[MASK].any()
    without = policy_loss(IN.log_probs, IN.old_log_probs, tensor(OLD["advantages"][0][0]), MASK, clip=1e9)
    assert without.item() != pytest.approx(OLD["loss"][0], rel=0.01)


def test_metrics_are_those_of_the_old_trl_with_its_own_kl_and_clip_fraction():
    metrics, theirs = update_metrics(IN.log_probs, IN.old_log_probs, MASK, SETTINGS.clip), OLD["loss"][2]
    log_ratio = IN.old_log_probs - IN.log_probs  # the old policy has sampled
    ratio, advantages = (-log_ratio).exp(), tensor(OLD["advantages"][0][0])
    same(ratio, theirs["policy/ratio"])
    assert metrics["ratio"] == pytest.approx(masked_mean(tensor(theirs["policy/ratio"]), MASK).item())
    estimates = kl_estimates(log_ratio)
    assert masked_mean(estimates.k2, MASK).item() == pytest.approx(theirs["policy/approxkl"])
    assert masked_mean(estimates.k1, MASK).item() == pytest.approx(theirs["policy/policykl"])
    assert metrics["approx_kl"] == pytest.approx(masked_mean(estimates.k3, MASK).item())
    outside = (ratio - 1).abs() > SETTINGS.clip
    changes = outside & ((ratio > 1) == (advantages > 0))
    assert masked_mean(changes.double(), MASK).item() == pytest.approx(theirs["policy/clipfrac"])
    assert metrics["clip_fraction"] == pytest.approx(masked_mean(outside.double(), MASK).item())


def test_entropy_is_that_of_the_old_trl():
    assert masked_mean(entropy(IN.logits), MASK).item() == pytest.approx(OLD["loss"][2]["policy/entropy"])


def test_the_kl_coefficient_adapts_as_in_the_old_trl():
    controller, found = AdaptiveKL(SETTINGS.kl_coef, SETTINGS.target, SETTINGS.horizon), []
    for kl in PAGE["inputs"]["kls"]:
        controller.update(kl, PAGE["inputs"]["episodes"])
        found.append(controller.coef)
    assert found == pytest.approx(OLD["kl_coefs"], rel=1e-12)
