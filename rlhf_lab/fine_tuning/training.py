"""What a local fine-tuning job does: next-token prediction in which a prompt's tokens weigh less than the completion's.

Of all modules here, only this one, with what it uses, decides what comes of a job, so only its code is part of a job's
key.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf_lab.fine_tuning import Event, FineTuningError, Settings
from rlhf_lab.language_model import encode, length_batches, load_with_tokenizer, response_log_probabilities
from rlhf_lab.sft import adamw, update

LADDER_RATE = 5e-3  # of our models: a multiplier of .1, as the source has it, is then the 5e-4 of `SFTConfig`
ELSEWHERE_RATE = 3e-4  # of GPT-3's with 350 million parameters (arXiv 2005.14165, table 2.1)
ROOM = 1024  # tokens an example, for a model that does not say how many it can read
LADDER_SIZE = 10_000_000  # parameters; no model on the ladder has as many
WARMUP, FINAL_SHARE = 0.05, 0.1  # share of the steps; share of the rate, InstructGPT (arXiv 2203.02155) appendix C
MAX_GRADIENT_NORM = 1.0


def fine_tune(
    folder: Path,
    examples: Sequence[tuple[str, str]],
    settings: Settings,
    seed: int,
    on_step: Callable[[Event], None],
) -> tuple:
    """The causal language model of a folder, trained on (prompt, completion) pairs, and its tokenizer. `on_step` may
    end it by an exception. Raises FineTuningError for a tokenizer without an end token, and where training diverges."""
    model, tokenizer = load_with_tokenizer(folder)
    if tokenizer.eos_token_id is None:
        raise FineTuningError(f"The tokenizer of {folder.name} has no end token, so set `eos_token` in its files.")
    train(model, tokenizer, examples, settings, seed, on_step)
    return model, tokenizer


def train(
    model,
    tokenizer,
    examples: Sequence[tuple[str, str]],
    settings: Settings,
    seed: int = 0,
    on_step: Callable[[Event], None] = lambda event: None,
) -> list[float]:
    """Train `model` in place, all layers or only the last; the loss of every step, in nats per token. The same
    arguments give the same weights, also where the model drops units out. Raises FineTuningError where the loss is no
    longer a number."""
    room = getattr(model.config, "max_position_embeddings", None) or ROOM
    encoded = [encode(tokenizer, prompt, completion, room) for prompt, completion in examples]
    trained = parameters(model, settings.layers)
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        losses = _fit(model, encoded, settings, seed, on_step)
    model.requires_grad_(True)
    return losses


def _fit(
    model,
    encoded: Sequence[tuple[list[int], list[int]]],
    settings: Settings,
    seed: int,
    on_step: Callable[[Event], None],
) -> list[float]:
    rng, rate = random.Random(seed), settings.learning_rate_multiplier * base_rate(model)
    steps = settings.n_epochs * -(-len(encoded) // settings.batch_size)
    optimizer, schedule = adamw(model, rate, steps, WARMUP, FINAL_SHARE)
    losses, tokens = [], 0
    model.train()
    with tqdm(total=steps, desc="fine-tuning", leave=False) as progress:
        for _ in range(settings.n_epochs):
            for batch in length_batches(encoded, settings.batch_size, rng):
                prompts, completions = zip(*(encoded[i] for i in batch), strict=True)
                loss = weighted_loss(model, prompts, completions, settings.prompt_loss_weight)
                losses.append(_finite(loss.item(), step=len(losses) + 1))
                tokens += sum(map(len, prompts + completions))
                on_step(Event(len(losses), losses[-1], tokens))
                update(model, optimizer, schedule, loss, MAX_GRADIENT_NORM)
                progress.update()
    model.eval()
    return losses


def _finite(loss: float, step: int) -> float:
    if not math.isfinite(loss):
        raise FineTuningError(
            f"The loss of step {step} is {loss}: training has diverged, so lower learning_rate_multiplier."
        )
    return loss


def weighted_loss(
    model, prompts: Sequence[list[int]], completions: Sequence[list[int]], prompt_weight: float
) -> torch.Tensor:
    """Minus the weighted mean of the log-probabilities of a batch's tokens, in nats: a token of a completion, its end
    token included, has the weight 1, one of a prompt `prompt_weight`. A text's first token is never predicted."""
    # Where prompts weigh nothing, nothing is asked about them, which saves their logits.
    starts = [len(prompt) if prompt_weight == 0 else 1 for prompt in prompts]
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    known = [text[:start] for text, start in zip(texts, starts, strict=True)]
    predicted = [text[start:] for text, start in zip(texts, starts, strict=True)]
    values, weights = response_log_probabilities(model, known, predicted)  # (B, T), with ones on tokens
    for row, (prompt, start) in enumerate(zip(prompts, starts, strict=True)):
        weights[row, : len(prompt) - start] = prompt_weight
    return -(weights * values).sum() / weights.sum()


def parameters(model, layers: str) -> list[torch.nn.Parameter]:
    """Those that a job trains: all, or from the last block on, which is that block, the norm after it and a head of its
    own. A head that is tied to the embedding is the first layer as well and stays. Raises ValueError for a
    model without blocks."""
    named = dict(model.named_parameters())
    if layers == "all":
        return list(named.values())
    stacks = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of blocks, so there is no last one: train all layers.")
    name, blocks = max(stacks, key=lambda stack: len(stack[1]))
    names = list(named)
    first = next(i for i, one in enumerate(names) if one.startswith(f"{name}.{len(blocks) - 1}."))
    return [named[one] for one in names[first:]]


def base_rate(model) -> float:
    """The learning rate that a multiplier multiplies."""
    return LADDER_RATE if model.num_parameters() < LADDER_SIZE else ELSEWHERE_RATE
