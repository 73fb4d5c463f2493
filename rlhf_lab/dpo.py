"""Direct preference optimization (DPO; Rafailov et al. 2023, arXiv 2305.18290): a policy from comparisons alone, with
neither a reward model nor sampling.

The policy that maximizes E[r] - beta KL is pi* = pi_ref exp(r / beta) / Z (eq. 4). So each policy is the best one for
some reward: its *implicit reward* beta log(pi / pi_ref), up to beta log Z (eq. 5). That term depends on the prompt
alone and cancels in the Bradley-Terry probability that one response to a prompt beats another. What is left is the loss
of a reward model, with the policy in its place (eq. 7).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lab import packing
from rlhf_lab.language_model import encode, length_batches
from rlhf_lab.sft import adamw, update

Row = tuple[list[int], list[int]]  # the tokens of a prompt and of a response


@dataclass(frozen=True)
class DPOConfig:
    """How to fit a policy to comparisons."""

    beta: float = 0.1  # reward units per nat
    epochs: int = 1
    batch_size: int = 32  # pairs
    learning_rate: float = 2e-4  # of 1, 2, 3e-4, where a trial run's reward less its KL penalty was best
    final_share: float = 0.1  # cosine to a tenth of it
    warmup: float = 0.03  # share of the steps
    max_gradient_norm: float = 1.0
    max_tokens: int = 256  # of a prompt and a response
    mean: bool = False  # log-probabilities are averaged over a response's tokens, where DPO sums them


def implicit_rewards(log_probs: torch.Tensor, reference_log_probs: torch.Tensor, beta: float) -> torch.Tensor:
    """beta (log pi - log pi_ref) of whole responses: (B,) and (B,) in nats -> (B,) in reward units (section 4)."""
    return beta * (log_probs - reference_log_probs)


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Mean of -log sigma(margin) over pairs, the margin being the implicit reward of the chosen response minus that of
    the rejected one (eq. 7); log 2 where policy and reference agree.

    All (B,): log-probabilities of whole responses, sums over their tokens. Gradients flow to the policy's alone.
    """
    margins = implicit_rewards(chosen, reference_chosen.detach(), beta) - implicit_rewards(
        rejected, reference_rejected.detach(), beta
    )
    return -F.logsigmoid(margins).mean()


def train(
    policy,
    reference,
    tokenizer,
    pairs: Sequence[dict],
    config: DPOConfig,
    seed: int,
    after_step: Callable[[int], None] | None = None,
) -> dict[str, list[float]]:
    """Fit `policy` in place to pairs with prompt, chosen and rejected; `reference` stays as it is.

    Returns of every step, over its batch and before its update: `loss` in nats, `accuracy` (share of the pairs with a
    positive margin), and the mean `chosen_reward`, `rejected_reward` and `margin`, in reward units. `after_step` is
    called after each step with the number of pairs read so far. Raises ValueError for no pairs, and for a reference
    that is the policy itself. A batch in which nothing has been learned yet has margins of zero, up to rounding.
    """
    if not pairs:
        raise ValueError("There is nothing to learn from: pass at least one pair with prompt, chosen and rejected.")
    if reference is policy:
        raise ValueError("The reference is the policy itself and would be trained with it: pass a copy.")
    sides = [
        [encode(tokenizer, pair["prompt"], pair[side], config.max_tokens) for pair in pairs]
        for side in ("chosen", "rejected")
    ]
    anchors = torch.stack([_without_gradient(reference.eval(), rows, config) for rows in sides])  # (2, N)
    policy.eval()  # no dropout: what policy and reference differ by is what was learned
    steps = config.epochs * -(-len(pairs) // config.batch_size)
    optimizer, schedule = adamw(policy, config.learning_rate, steps, config.warmup, config.final_share)
    rng, done = random.Random(seed), 0
    lengths = [tuple(prompt + response for prompt, response in both) for both in zip(*sides, strict=True)]
    history = {name: [] for name in ("loss", "accuracy", "chosen_reward", "rejected_reward", "margin")}
    progress = tqdm(total=steps, desc="DPO", leave=False)
    for _ in range(config.epochs):
        for batch in length_batches(lengths, config.batch_size, rng):
            rows, fixed = [[side[i] for i in batch] for side in sides], anchors[:, batch]  # (2, B)
            values = _log_probabilities(policy, rows[0] + rows[1], config.mean).view(2, -1)  # (2, B)
            loss = dpo_loss(*values, *fixed, config.beta)
            update(policy, optimizer, schedule, loss, config.max_gradient_norm)
            rewards = implicit_rewards(values.detach(), fixed, config.beta)  # (2, B)
            for name, value in zip(history, (loss, *_summary(*rewards)), strict=True):
                history[name].append(value.item())
            progress.update()
            done += len(batch)
            if after_step:
                after_step(done)
    progress.close()
    return history


def _log_probabilities(model, rows: Sequence[Row], mean: bool) -> torch.Tensor:
    """log pi of whole responses (B,), with gradients; of a token on average, if `mean`."""
    values, mask, _ = packing.read_responses(model, *zip(*rows, strict=True))  # (B, R) each
    totals = values.sum(dim=1)
    return totals / mask.sum(dim=1) if mean else totals


@torch.no_grad()
def _without_gradient(model, rows: Sequence[Row], config: DPOConfig) -> torch.Tensor:
    """The same of all rows (N,), batch by batch."""
    found = torch.empty(len(rows), device=model.device)
    for batch in length_batches(rows, 2 * config.batch_size):
        found[batch] = _log_probabilities(model, [rows[i] for i in batch], config.mean)
    return found


def _summary(chosen: torch.Tensor, rejected: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Accuracy, both means and the mean margin of implicit rewards (B,) and (B,)."""
    margins = chosen - rejected
    return (margins > 0).float().mean(), chosen.mean(), rejected.mean(), margins.mean()
