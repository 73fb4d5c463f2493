"""Oracles: brute-force baselines, and a model so small that every response, the exact objective E[R] - beta KL and its
gradient can be written down."""

import copy
import itertools

import pytest
import torch
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.rloo import RLOO, RLOOConfig, leave_one_out_advantages, log_ratios, rloo_losses
from rlhf_lab.sampling import sample

EOS = 1
PROMPT = [2, 3]
EVERY = [[EOS]] + [[a, b] for a, b in itertools.product((0, 2, 3), range(4))]  # the responses of up to two tokens
REWARDS = {tuple(response): float(value) for value, response in enumerate(EVERY)}


def tiny(seed: int, width: int = 8) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 4, "n_positions": 12, "n_embd": width, "n_layer": 1, "n_head": 1}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, initializer_range=0.3, bos_token_id=1, eos_token_id=1)).eval()


@pytest.fixture
def policy():
    return tiny(0)


@pytest.fixture
def reference():
    return tiny(1)


def table_reward(prompts, responses) -> torch.Tensor:
    return torch.tensor([REWARDS[tuple(response)] for response in responses]) / 4


def config(**options) -> RLOOConfig:
    """Steps that only write a gradient: nothing is clipped and nothing moves."""
    return RLOOConfig(**{"learning_rate": 0.0, "max_new_tokens": 2, "max_gradient_norm": 1e9} | options)


def log_probability(model, response: list[int]) -> torch.Tensor:
    log_probs = F.log_softmax(model(torch.tensor([PROMPT + response])).logits[0], dim=-1)
    return sum(log_probs[len(PROMPT) - 1 + t, token] for t, token in enumerate(response))


def exact(policy, reference) -> tuple[torch.Tensor, torch.Tensor]:
    """E[R] and KL(policy || reference) over all responses, with gradients."""
    logs = torch.stack([log_probability(policy, response) for response in EVERY])
    rivals = torch.stack([log_probability(reference, response) for response in EVERY]).detach()
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-5)
    return (logs.exp() * table_reward(None, EVERY)).sum(), (logs.exp() * (logs - rivals)).sum()


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


# --- the baseline ---


@pytest.mark.parametrize("group", [2, 3, 4, 8])
def test_advantage_is_the_return_minus_the_mean_of_the_others(group):
    returns = torch.randn(24, generator=torch.Generator().manual_seed(group))
    expected = []
    for i in range(24):
        first = i - i % group
        others = [returns[j].item() for j in range(first, first + group) if j != i]
        expected.append(returns[i].item() - sum(others) / len(others))
    advantages = leave_one_out_advantages(returns, group)
    torch.testing.assert_close(advantages, torch.tensor(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(advantages.view(-1, group).sum(dim=1), torch.zeros(24 // group), atol=1e-5, rtol=0)


def test_prompts_do_not_mix():
    # What is added to all returns of one prompt is no advantage, to that prompt or to others.
    returns = torch.tensor([1.0, 2.0, 100.0, 103.0])
    assert leave_one_out_advantages(returns, 2).tolist() == [-1.0, 1.0, -3.0, 3.0]


@pytest.mark.parametrize("group", [1, 0])
def test_a_group_of_one_has_no_others(group):
    with pytest.raises(ValueError, match="at least 2 responses"):
        leave_one_out_advantages(torch.ones(4), group)


# --- the log-ratio ---


def test_log_ratios_against_enumeration(policy, reference):
    found = log_ratios(policy, reference, [PROMPT] * len(EVERY), EVERY, micro_batch=4)
    expected = [(log_probability(policy, r) - log_probability(reference, r)).item() for r in EVERY]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_log_ratios_of_a_policy_to_itself_are_exactly_zero(policy):
    assert not log_ratios(policy, copy.deepcopy(policy), [PROMPT] * len(EVERY), EVERY).any()


def test_their_mean_over_samples_estimates_the_kl(policy, reference):
    responses = sample(policy, [PROMPT] * 4000, 2, EOS, seed=0, batch_size=1000).responses
    ratios = log_ratios(policy, reference, [PROMPT] * 4000, responses, micro_batch=1000)
    kl = exact(policy, reference)[1].item()
    assert kl > 0.2
    assert ratios.mean().item() == pytest.approx(kl, abs=4 * ratios.std().item() / 4000**0.5)


# --- the loss ---


def test_a_response_costs_minus_its_advantage_times_the_ratio_of_new_and_old():
    old = torch.tensor([-5.0, -3.0, -9.0])
    new = old + torch.tensor([2.0, 0.5, 1.0]).log()
    assert rloo_losses(new, old, torch.tensor([1.0, -4.0, 3.0])).tolist() == pytest.approx([-2, 2, -3], abs=1e-5)


def test_on_its_own_responses_the_loss_is_zero_and_its_gradient_is_not():
    """Advantages of a group sum to zero; the gradient is minus theirs, whatever the log-probabilities are."""
    log_probs = torch.tensor([-5.0, -50.0, -3.0, -9.0], requires_grad=True)
    advantages = leave_one_out_advantages(torch.tensor([1.0, 2.0, 4.0, 9.0]), group=2)
    losses = rloo_losses(log_probs, log_probs.detach(), advantages)
    losses.mean().backward()
    assert losses.mean().item() == 0
    assert torch.equal(log_probs.grad, -advantages / 4)


# --- the gradient ---


@pytest.mark.parametrize(("kl_coef", "scale"), [(0.0, 1.0), (1.0, 0.0), (0.5, 1.0)], ids=["reward", "kl", "both"])
def test_the_gradient_is_an_unbiased_estimate_of_the_exact_one(policy, reference, kl_coef, scale):
    """The mean of many estimates against the gradient of E[R] - beta KL, parameter by parameter and along it."""
    reward, kl = exact(policy, reference)
    (scale * reward - kl_coef * kl).backward()
    truth = flat_gradient(policy)
    trainer = RLOO(
        policy,
        reference,
        lambda p, r: scale * table_reward(p, r),
        EOS,
        config(kl_coef=kl_coef, samples_per_prompt=2, micro_batch=512),
        seed=0,
    )
    estimates = []
    for _ in range(60):
        trainer.step([PROMPT] * 128)
        estimates.append(-flat_gradient(policy))  # the optimizer descends
    estimates = torch.stack(estimates)  # (60, parameters)
    error = estimates.mean(dim=0) - truth
    standard_error = estimates.std(dim=0) / 60**0.5
    moving = standard_error > 1e-5
    assert moving.sum() > 500
    z = (error / standard_error)[moving]
    assert z.abs().max() < 6
    assert z.square().mean() < 2  # parameters are correlated: far from a chi-square, but one on average
    along = estimates @ truth / truth.square().sum()  # one on average, if the gradient has the right size and sign
    assert along.mean().item() == pytest.approx(1, abs=4 * along.std().item() / 60**0.5)
    assert along.std().item() / 60**0.5 < 0.1  # and the test could tell


def test_the_gradient_does_not_depend_on_the_micro_batches(reference):
    gradients = []
    for micro_batch in (1, 5, 64):
        policy = tiny(0)
        step = config(kl_coef=0.3, micro_batch=micro_batch, max_new_tokens=6)
        rewards = lambda p, r: torch.tensor([float(len(x) + x.count(3)) for x in r])  # noqa: E731
        RLOO(policy, reference, rewards, EOS, step, seed=0).step([[2], PROMPT, [3, 3, 0], [2, 0]])
        gradients.append(flat_gradient(policy))
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=1e-4)


def test_a_return_is_the_reward_minus_beta_times_the_log_ratio(policy, reference):
    """One step by hand: sample with the trainer's own numbers, then loss = -mean of advantage times log-probability."""
    drawn = []

    def reward(prompts, responses):
        drawn.extend(responses)
        return table_reward(prompts, responses)

    trainer = RLOO(policy, reference, reward, EOS, config(kl_coef=0.7, samples_per_prompt=4), seed=3)
    numbers = trainer.step([PROMPT, PROMPT])
    ours = flat_gradient(policy)
    policy.zero_grad()
    logs = torch.stack([log_probability(policy, r) for r in drawn])
    ratios = logs.detach() - torch.stack([log_probability(reference, r) for r in drawn]).detach()
    returns = table_reward(None, drawn) - 0.7 * ratios
    baseline = torch.stack([(returns[i - i % 4 : i - i % 4 + 4].sum() - returns[i]) / 3 for i in range(8)])
    (-(returns - baseline) * logs).mean().backward()
    torch.testing.assert_close(ours, flat_gradient(policy), atol=1e-5, rtol=1e-4)
    assert numbers == {
        "reward": pytest.approx(table_reward(None, drawn).mean().item()),
        "kl": pytest.approx(ratios.mean().item(), abs=1e-6),
        "length": pytest.approx(sum(map(len, drawn)) / 8),
        "ended": pytest.approx(sum(r[-1] == EOS for r in drawn) / 8),
        "gradient_norm": pytest.approx(flat_gradient(policy).norm().item(), rel=1e-4),
    }


def test_each_prompt_gets_its_group_side_by_side(policy, reference):
    seen = []

    def reward(prompts, responses):
        seen.extend(prompts)
        return torch.zeros(len(responses))

    RLOO(policy, reference, reward, EOS, config(samples_per_prompt=3), seed=0).step([[2], [3, 0]])
    assert seen == [[2]] * 3 + [[3, 0]] * 3


def test_equal_returns_teach_nothing(policy):
    before = [parameter.clone() for parameter in policy.parameters()]
    options = config(kl_coef=0.0, learning_rate=0.1)
    numbers = RLOO(policy, tiny(1), lambda p, r: torch.full((len(r),), 7.0), EOS, options, seed=0).step([PROMPT] * 4)
    assert numbers["gradient_norm"] == pytest.approx(0, abs=1e-6)
    assert numbers["reward"] == pytest.approx(7)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_the_gradient_is_clipped_after_its_norm_is_taken(policy, reference):
    options = config(max_gradient_norm=0.01)
    numbers = RLOO(policy, reference, table_reward, EOS, options, seed=0).step([PROMPT] * 8)
    assert numbers["gradient_norm"] > 0.1
    assert flat_gradient(policy).norm().item() == pytest.approx(0.01, rel=1e-3)


# --- learning ---


def share_of_threes(prompts, responses) -> torch.Tensor:
    return torch.tensor([response.count(3) / len(response) for response in responses])


def learned(kl_coef: float, steps: int = 30, seed: int = 0):
    policy, reference = tiny(0), tiny(0)
    frozen = [parameter.clone() for parameter in reference.parameters()]
    options = config(kl_coef=kl_coef, learning_rate=1e-2, max_new_tokens=6, max_gradient_norm=1.0, micro_batch=128)
    trainer = RLOO(policy, reference, share_of_threes, EOS, options, seed)
    numbers = [trainer.step([PROMPT, [2]] * 8) for _ in range(steps)]
    assert all(torch.equal(a, b) for a, b in zip(frozen, reference.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in reference.parameters())
    return numbers, policy


def test_a_simple_reward_is_learned_and_the_reference_stays_as_it_was():
    numbers, _ = learned(kl_coef=0.0)
    assert numbers[0]["reward"] < 0.5
    assert numbers[0]["kl"] == 0
    assert sum(step["reward"] for step in numbers[-5:]) / 5 > 0.9
    assert numbers[-1]["kl"] > 0.5


def test_a_huge_penalty_keeps_the_policy_near_the_reference():
    # Measured exactly: 5.0 nats without a penalty, 0.0025 with one (Adam's first steps are as long as any).
    free, held = (exact(learned(kl_coef)[1], tiny(0))[1].item() for kl_coef in (0.0, 100.0))
    assert free > 2
    assert held < 0.02


def test_the_optimum_of_the_penalized_objective_is_reached():
    """pi* is proportional to pi_ref exp(R / beta), and the objective's value there is beta log Z."""
    policy, reference, beta = tiny(0), tiny(0), 0.5
    options = config(kl_coef=beta, learning_rate=1e-2, max_gradient_norm=1.0, micro_batch=256)
    trainer = RLOO(policy, reference, table_reward, EOS, options, seed=0)
    for _ in range(120):
        trainer.step([PROMPT] * 32)
    reward, kl = exact(policy, reference)
    logs = torch.stack([log_probability(reference, response) for response in EVERY]).detach()
    best = beta * torch.logsumexp(logs + table_reward(None, EVERY) / beta, dim=0).item()
    start = exact(reference, reference)[0].item()
    reached = (reward - beta * kl).item()
    assert best - start > 0.5
    assert best - reached < 0.05 * (best - start)
    assert reached < best + 1e-5


def test_the_seed_decides_a_run_and_steps_draw_anew():
    runs = [learned(kl_coef=0.1, steps=3, seed=seed)[0] for seed in (1, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    drawn = []

    def reward(prompts, responses):
        drawn.append(responses)
        return torch.zeros(len(responses))

    trainer = RLOO(tiny(0), tiny(0), reward, EOS, config(max_new_tokens=6), seed=0)
    for _ in range(3):
        trainer.step([PROMPT] * 4)  # nothing moves, so only the draws can differ
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
