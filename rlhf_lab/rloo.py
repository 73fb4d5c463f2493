"""A policy gradient with a KL penalty: REINFORCE with the leave-one-out baseline (Kool et al. 2019; "RLOO" in Ahmadian
et al. 2024, arXiv 2402.14740).

A response is one action. Its return is the reward minus `kl_coef` times the log-ratio of policy and reference over the
whole response (k1, whose mean is KL(pi || pi_ref)); its baseline is the mean return of the other responses to the same
prompt. Each batch is used for one step, so the policy that learns is the policy that sampled: the ratio of the two in
the loss is one, and only its gradient counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rlhf_lab.language_model import length_batches, response_log_probabilities
from rlhf_lab.sampling import sample

Reward = Callable[[Sequence[list[int]], Sequence[list[int]]], torch.Tensor]  # prompts, responses -> (N,)


@dataclass(frozen=True)
class RLOOConfig:
    """How to improve a policy."""

    kl_coef: float = 0.05  # beta, reward units per nat
    learning_rate: float = 3e-4  # leaves the SFT policy by about a nat within ten steps
    samples_per_prompt: int = 4
    max_new_tokens: int = 80  # longer than 99 in 100 responses of the miniature world
    max_gradient_norm: float = 1.0
    micro_batch: int = 32  # rows a forward pass; the gradient does not depend on it


class RLOO:
    """The policy, its frozen reference and the optimizer between two steps."""

    def __init__(self, policy, reference, reward: Reward, eos: int, config: RLOOConfig, seed: int):
        self.policy, self.reference, self.reward, self.eos, self.config = policy, reference, reward, eos, config
        self.seed = seed * 1_000_003  # every step draws from a stream of its own
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )

    def step(self, prompts: Sequence[list[int]]) -> dict[str, float]:
        """Sample, score and take one gradient step on tokenized prompts.

        Returns means over the batch: `reward`, `kl` (nats a response, of k1), `length` (tokens), `ended` (share of the
        responses that ended by themselves) and `gradient_norm` (before clipping).
        """
        self.seed += 1
        group = self.config.samples_per_prompt
        repeated = [prompt for prompt in prompts for _ in range(group)]
        responses = sample(self.policy, repeated, self.config.max_new_tokens, self.eos, self.seed).responses
        rewards = self.reward(repeated, responses)  # (B,)
        log_ratios = self._log_ratios(repeated, responses)  # (B,)
        returns = rewards - self.config.kl_coef * log_ratios
        norm = self._ascend(repeated, responses, leave_one_out_advantages(returns, group))
        return {
            "reward": rewards.mean().item(),
            "kl": log_ratios.mean().item(),
            "length": sum(map(len, responses)) / len(responses),
            "ended": sum(response[-1] == self.eos for response in responses) / len(responses),
            "gradient_norm": norm,
        }

    @torch.no_grad()
    def _log_ratios(self, prompts, responses) -> torch.Tensor:
        return log_ratios(self.policy, self.reference, prompts, responses, self.config.micro_batch)

    def _ascend(self, prompts, responses, advantages: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        for batch in length_batches(list(zip(prompts, responses, strict=True)), self.config.micro_batch):
            values, _ = response_log_probabilities(
                self.policy, [prompts[i] for i in batch], [responses[i] for i in batch]
            )
            log_probs = values.sum(dim=1)
            losses = rloo_losses(log_probs, log_probs.detach(), advantages[batch].to(values.device))
            (losses.sum() / len(responses)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_gradient_norm)
        self.optimizer.step()
        return norm.item()


def rloo_losses(log_probs: torch.Tensor, old_log_probs: torch.Tensor, advantages: torch.Tensor) -> torch.Tensor:
    """-(pi / pi_old) A of whole responses: all (B,), log pi and log pi_old being sums over a response's tokens.

    Their mean is the loss, as in TRL's RLOOTrainer, which clips the ratio too: that never bites in one step a batch.
    Where pi_old is the policy itself, the loss is minus the mean advantage, so zero with a leave-one-out baseline, and
    its gradient that of -mean(A log pi).
    """
    return -torch.exp(log_probs - old_log_probs) * advantages


def leave_one_out_advantages(returns: torch.Tensor, group: int) -> torch.Tensor:
    """Each return (B,) minus the mean of the others of its group; groups of `group` stand side by side.

    Equal to group / (group - 1) times the return minus its group's mean. Raises ValueError for a group of one: it has
    no others.
    """
    if group < 2:
        raise ValueError(f"A leave-one-out baseline needs at least 2 responses per prompt, not {group}.")
    grouped = returns.view(-1, group)  # (P, G)
    return ((grouped - grouped.mean(dim=1, keepdim=True)) * group / (group - 1)).flatten()


@torch.no_grad()
def log_ratios(policy, reference, prompts, responses, micro_batch: int = 64) -> torch.Tensor:
    """log pi(y | x) - log pi_ref(y | x) of whole responses (N,), in nats. Over samples of the policy its mean is an
    unbiased estimate of KL(pi || pi_ref) (k1 of Schulman 2020)."""
    ratios = torch.empty(len(responses))
    for batch in length_batches(list(zip(prompts, responses, strict=True)), micro_batch):
        rows = [prompts[i] for i in batch], [responses[i] for i in batch]
        difference = response_log_probabilities(policy, *rows)[0] - response_log_probabilities(reference, *rows)[0]
        ratios[batch] = difference.sum(dim=1).cpu()
    return ratios
