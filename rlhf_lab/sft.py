"""Supervised fine-tuning: the one training loop of the course for next-token prediction. Pre-training is the same loop
on whole texts (prompt ""), cloning and reward-in-the-prompt policies on theirs."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from tqdm.auto import tqdm

from rlhf_lab.language_model import encode, length_batches, response_log_probabilities


@dataclass(frozen=True)
class SFTConfig:
    """How to fine-tune. The loss is the mean over the tokens of the responses; prompts carry none."""

    epochs: int = 2
    batch_size: int = 32
    learning_rate: float = 5e-4  # a million parameters stand a hundred times what a billion does
    final_share: float = 0.1  # cosine to a tenth of it, InstructGPT (arXiv 2203.02155) appendix C.1
    warmup: float = 0.03  # share of the steps
    weight_decay: float = 0.0
    max_gradient_norm: float = 1.0
    max_tokens: int = 256


def train(
    model,
    tokenizer,
    examples: Sequence[tuple[str, str]],
    config: SFTConfig,
    seed: int,
    after_epoch: Callable[[int], None] | None = None,
) -> list[float]:
    """Train `model` in place on (prompt, response) pairs and return the loss of every step, in nats per token.

    `after_epoch(epoch)` is called after each epoch with its number from 1. Raises ValueError for no examples.
    """
    if not examples:
        raise ValueError("There is nothing to train on: `examples` is empty; pass at least one (prompt, response).")
    encoded = [encode(tokenizer, prompt, response, config.max_tokens) for prompt, response in examples]
    rng = random.Random(seed)
    steps = config.epochs * -(-len(encoded) // config.batch_size)
    optimizer, schedule = adamw(
        model, config.learning_rate, steps, config.warmup, config.final_share, config.weight_decay
    )
    model.train()
    losses: list[float] = []
    progress = tqdm(total=steps, desc="fine-tuning", leave=False)
    for epoch in range(1, config.epochs + 1):
        for batch in length_batches(encoded, config.batch_size, rng):
            values, mask = response_log_probabilities(model, *zip(*(encoded[i] for i in batch), strict=True))
            loss = -values.sum() / mask.sum()
            update(model, optimizer, schedule, loss, config.max_gradient_norm)
            losses.append(loss.item())
            progress.update()
        if after_epoch:
            after_epoch(epoch)
    progress.close()
    model.eval()
    return losses


def adamw(model, learning_rate: float, steps: int, warmup: float = 0.0, final_share: float = 0.0, weight_decay=0.0):
    """AdamW (beta2 .95 as in InstructGPT) and its schedule: linear warm-up, then a cosine to `final_share` of the
    learning rate. Returns (optimizer, schedule)."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=weight_decay, fused=True
    )
    rise = max(1, round(warmup * steps))

    def share(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * done))

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, share)


def update(model, optimizer, schedule, loss: torch.Tensor, max_gradient_norm: float) -> None:
    """One step of gradient descent on `loss`, with the gradient's norm clipped."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
    optimizer.step()
    schedule.step()
