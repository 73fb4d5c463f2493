"""Reward models: a language model whose head is one number, fitted to comparisons.

The head reads the hidden state of the end token, which every text that is scored gets, whether its author wrote it or
the length limit cut it short. The loss is that of Bradley and Terry (1952), as in Christiano et al. (2017) and
InstructGPT (arXiv 2203.02155, eq. 1): minus log sigma(r_chosen - r_rejected).
"""

import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification

from rlhf_lab.language_model import encode, length_batches, pad_right
from rlhf_lab.sft import adamw, update


@dataclass(frozen=True)
class RewardModelConfig:
    """How to fit a reward model."""

    epochs: int = 1  # more overfits: Stiennon et al. (2009.01325), InstructGPT appendix C.2
    batch_size: int = 32  # pairs
    learning_rate: float = 5e-4
    final_share: float = 0.1  # cosine to a tenth, InstructGPT appendix C.2
    warmup: float = 0.05
    max_gradient_norm: float = 1.0
    max_tokens: int = 256


def from_language_model(model, seed: int):
    """A reward model on a copy of a language model's trunk. The head is drawn from N(0, 1/(d + 1)), so that the first
    scores are about one in size (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO")."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    reward_model = AutoModelForSequenceClassification.from_config(config)
    reward_model.base_model.load_state_dict(model.base_model.state_dict())
    width = reward_model.score.in_features
    generator = torch.Generator().manual_seed(seed)
    reward_model.score.weight.data.normal_(0.0, (width + 1) ** -0.5, generator=generator)
    return reward_model.to(model.device).eval()


def load(folder):
    """Read a reward model from a folder, in float32."""
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def pairwise_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigma(r_chosen - r_rejected) over scores (B,) and (B,); log 2 where they are equal."""
    return -F.logsigmoid(chosen - rejected).mean()


def train(model, tokenizer, pairs: Sequence[dict], config: RewardModelConfig, seed: int) -> list[float]:
    """Fit `model` in place to pairs with prompt, chosen and rejected; returns the loss of every step, in nats.

    Raises ValueError for no pairs.
    """
    if not pairs:
        raise ValueError("There is nothing to learn from: `pairs` is empty; pass at least one comparison.")
    chosen = [_read(tokenizer, pair["prompt"], pair["chosen"], config.max_tokens) for pair in pairs]
    rejected = [_read(tokenizer, pair["prompt"], pair["rejected"], config.max_tokens) for pair in pairs]
    rng = random.Random(seed)
    steps = config.epochs * -(-len(pairs) // config.batch_size)
    optimizer, schedule = adamw(model, config.learning_rate, steps, config.warmup, config.final_share)
    model.train()
    losses: list[float] = []
    progress = tqdm(total=steps, desc="reward model", leave=False)
    for _ in range(config.epochs):
        for batch in length_batches(list(zip(chosen, rejected, strict=True)), config.batch_size, rng):
            scores = _scores(model, [chosen[i] for i in batch] + [rejected[i] for i in batch])  # (2B,)
            loss = pairwise_loss(scores[: len(batch)], scores[len(batch) :])
            update(model, optimizer, schedule, loss, config.max_gradient_norm)
            losses.append(loss.item())
            progress.update()
    progress.close()
    model.eval()
    return losses


def score_tokens(
    model, prompts: Sequence[list[int]], responses: Sequence[list[int]], eos: int, batch_size: int = 64
) -> torch.Tensor:
    """Scores (N,) of tokenized responses, in units of the normalization if there is one (`normalize`). A response that
    was cut before its end token gets one, in the place of its last token where the model's context is full."""
    room = model.config.max_position_embeddings
    return _score(model, [_ended(p + r, eos, room) for p, r in zip(prompts, responses, strict=True)], batch_size)


def score(model, tokenizer, prompts: Sequence[str], responses: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """Scores (N,) of responses given as text; see `score_tokens`."""
    return _score(model, [_read(tokenizer, p, r, max_tokens) for p, r in zip(prompts, responses, strict=True)])


@torch.inference_mode()
def _score(model, sequences: Sequence[list[int]], batch_size: int = 64) -> torch.Tensor:
    scores = torch.empty(len(sequences))
    for batch in length_batches([([], s) for s in sequences], batch_size):
        scores[batch] = _scores(model, [sequences[i] for i in batch]).cpu()
    return (scores - getattr(model.config, "reward_mean", 0.0)) / getattr(model.config, "reward_sd", 1.0)


def normalize(model, tokenizer, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> None:
    """Fix the zero and the unit of the scores: from now on these responses have mean 0 and standard deviation 1.

    A Bradley-Terry loss leaves the zero of the scores free (Ziegler et al. 2019, section 2.1, fix it likewise). Both
    numbers live in the model's config, so that they are saved and loaded with it.
    """
    model.config.reward_mean, model.config.reward_sd = 0.0, 1.0
    scores = score_tokens(model, prompts, responses, tokenizer.eos_token_id)
    model.config.reward_mean, model.config.reward_sd = scores.mean().item(), scores.std().item()


def margins(model, tokenizer, pairs: Sequence[dict], max_tokens: int = 256) -> list[float]:
    """By how much each chosen response outscores the rejected one; the model is right where it is positive."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = score(model, tokenizer, prompts, [pair["chosen"] for pair in pairs], max_tokens)
    rejected = score(model, tokenizer, prompts, [pair["rejected"] for pair in pairs], max_tokens)
    return (chosen - rejected).tolist()


def _read(tokenizer, prompt: str, response: str, max_tokens: int) -> list[int]:
    """What is read of a text: its tokens, cut to `max_tokens`, the last of which is always the end token."""
    prompt_ids, response_ids = encode(tokenizer, prompt, response, max_tokens)
    return _ended(prompt_ids + response_ids, tokenizer.eos_token_id, max_tokens)


def _ended(sequence: list[int], eos: int, room: int) -> list[int]:
    return sequence if sequence[-1] == eos else sequence[: room - 1] + [eos]


def _scores(model, sequences: Sequence[list[int]]) -> torch.Tensor:
    """Raw scores (B,) read at the last token of each sequence."""
    ids = pad_right(sequences).to(model.device)  # (B, T)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=model.device)
    hidden = model.base_model(ids).last_hidden_state[torch.arange(len(ids), device=model.device), last]  # (B, D)
    return model.score(hidden).squeeze(-1)
