"""Reward models: a language model whose head is one number, fitted to comparisons.

The head reads the hidden state of the end token, which every text that is scored gets, whether its author wrote it or
the length limit cut it short. The loss is that of Bradley and Terry (1952), as in Christiano et al. (2017) and
InstructGPT (arXiv 2203.02155, eq. 1): minus log sigma(r_chosen - r_rejected), averaged over all pairs of a prompt's
ranked responses. A comparison is a ranking of two.

The models are those of `AutoModelForSequenceClassification` with one label, so TRL and everything else can load them.
Encoders such as DeBERTa, which have no end token, are read as their own library class reads them.
"""

import copy
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2ForSequenceClassification

from rlhf_lab import packing
from rlhf_lab.language_model import encode, length_batches, pad_right
from rlhf_lab.sft import adamw, update


@dataclass(frozen=True)
class RewardModelConfig:
    """How to fit a reward model."""

    epochs: int = 1  # more overfits: Stiennon et al. (2009.01325), InstructGPT appendix C.2
    batch_size: int = 32  # prompts, each with two responses or more
    learning_rate: float = 5e-4
    final_share: float = 0.1  # cosine to a tenth, InstructGPT appendix C.2
    warmup: float = 0.05
    max_gradient_norm: float = 1.0
    max_tokens: int = 256


def from_language_model(model, seed: int):
    """A reward model on a copy of a causal language model's trunk. The head is drawn from N(0, 1/(d + 1)), so that the
    first scores are about one in size (Huang et al. 2024, "The N+ Implementation Details of RLHF with PPO")."""
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    reward_model = AutoModelForSequenceClassification.from_config(config)
    reward_model.base_model.load_state_dict(model.base_model.state_dict())
    draw_head(reward_model, seed)
    return reward_model.to(model.device).eval()


def from_checkpoint(checkpoint: str | Path, seed: int):
    """A reward model and its tokenizer on any checkpoint of the Hub or a folder, language model or encoder, in float32.

    The head of a language model is drawn anew; an encoder keeps the one it brings along. A tokenizer that has no pad
    token, or uses its end token as one, gets its own: the library looks for the last token that is no pad, and would
    read the score one token too early. That of an encoder is told to cut what is too long at its beginning.
    """
    torch.manual_seed(seed)  # the library draws the head of an encoder that brings none
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, num_labels=1, dtype=torch.float32)
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    if _reads_the_end(model):
        draw_head(model, seed)
    else:
        tokenizer.truncation_side = "left"
    return model.eval(), tokenizer


def draw_head(model, seed: int) -> None:
    """Draw the head of a reward model from N(0, 1/(d + 1))."""
    width = model.score.in_features
    model.score.weight.data.normal_(0.0, (width + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))


def load(folder):
    """Read a reward model from a folder, in float32."""
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()


def pairwise_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """Mean of -log sigma(r_chosen - r_rejected) over scores (B,) and (B,); log 2 where they are equal."""
    return -F.logsigmoid(chosen - rejected).mean()


def k_wise_loss(scores: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """The mean over prompts of the mean pairwise loss over the C(K, 2) pairs of a prompt's K responses.

    scores (B, K); ranks (B, K), smaller is better. Ties are dropped, as in InstructGPT (appendix C.2), and nan stands
    for a response that is not there. A prompt without an ordered pair costs nothing, and counts.
    """
    first_wins = ranks[:, :, None] < ranks[:, None, :]  # (B, K, K)
    losses = -F.logsigmoid(scores[:, :, None] - scores[:, None, :]) * first_wins
    return (losses.sum((1, 2)) / first_wins.sum((1, 2)).clamp(min=1)).mean()


def train(
    model,
    tokenizer,
    pairs: Sequence[dict],
    config: RewardModelConfig,
    seed: int,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Fit `model` in place to pairs with prompt, chosen and rejected; returns the loss of every step, in nats.

    `after_step` is called after each step with the number of pairs read so far. Raises ValueError for no pairs.
    """
    rankings = [
        {"prompt": pair["prompt"], "responses": [pair["chosen"], pair["rejected"]], "ranks": [1, 2]} for pair in pairs
    ]
    return train_on_rankings(model, tokenizer, rankings, config, seed, after_step)


def train_on_rankings(
    model,
    tokenizer,
    rankings: Sequence[dict],
    config: RewardModelConfig,
    seed: int,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Fit `model` in place to rankings: a prompt, its `responses` and their `ranks`, 1 for the best, ties allowed.

    All pairs of a prompt are in one step, so each response is read once for K - 1 comparisons (InstructGPT section
    3.5). Returns and calls as `train` does. Raises ValueError for no rankings, and for one that does not have a rank
    for each response.
    """
    for number, ranking in enumerate(rankings, start=1):
        responses, ranks = len(ranking["responses"]), len(ranking["ranks"])
        if not responses == ranks > 0:
            raise ValueError(
                f"Ranking {number} has {responses} responses and {ranks} ranks: give each response a rank."
            )
    groups = [
        [read(model, tokenizer, ranking["prompt"], response, config.max_tokens) for response in ranking["responses"]]
        for ranking in rankings
    ]
    rows = [_row(group) for group in groups]

    def loss(batch: Sequence[int]) -> torch.Tensor:
        if type(model) is GPT2ForSequenceClassification:
            flat = _scores_of_rows(model, [rows[i] for i in batch])  # (sum of all K,)
        else:  # other models may not know masks of their own, or not count positions
            flat = _scores(model, [text for i in batch for text in groups[i]])
        most = max(len(groups[i]) for i in batch)
        there = torch.tensor([[k < len(groups[i]) for k in range(most)] for i in batch])  # (B, K)
        scores = flat.new_zeros(there.shape).masked_scatter(there.to(flat.device), flat)
        ranks = [list(rankings[i]["ranks"]) + [float("nan")] * (most - len(groups[i])) for i in batch]
        return k_wise_loss(scores, torch.tensor(ranks, dtype=torch.float32, device=flat.device))

    return fit(model, [row.ids for row in rows], loss, config, seed, after_step)


def fit(
    model,
    texts: Sequence[list[int]],
    loss: Callable[[Sequence[int]], torch.Tensor],
    config: RewardModelConfig,
    seed: int,
    after_step: Callable[[int], None] | None = None,
) -> list[float]:
    """Minimize `loss`, a function of the indices of a batch. `texts` are the items' tokens: similar lengths go
    together.

    Returns the loss of every step. Raises ValueError for no items.
    """
    if not texts:
        raise ValueError("There is nothing to learn from: pass at least one comparison.")
    items, rng, done = [(text, []) for text in texts], random.Random(seed), 0
    steps = config.epochs * -(-len(texts) // config.batch_size)
    optimizer, schedule = adamw(model, config.learning_rate, steps, config.warmup, config.final_share)
    model.train()
    losses: list[float] = []
    progress = tqdm(total=steps, desc="reward model", leave=False)
    for _ in range(config.epochs):
        for batch in length_batches(items, config.batch_size, rng):
            value = loss(batch)
            update(model, optimizer, schedule, value, config.max_gradient_norm)
            losses.append(value.item())
            progress.update()
            done += len(batch)
            if after_step:
                after_step(done)
    progress.close()
    model.eval()
    return losses


def score_tokens(
    model, prompts: Sequence[list[int]], responses: Sequence[list[int]], eos: int, batch_size: int = 64
) -> torch.Tensor:
    """Scores (N,) of tokenized responses, less the zero if there is one (`normalize`). A response that was cut before
    its end token gets one, in the place of its last token where the model's context is full."""
    room = model.config.max_position_embeddings
    return _score(model, [_ended(p + r, eos, room) for p, r in zip(prompts, responses, strict=True)], batch_size)


def score(model, tokenizer, prompts: Sequence[str], responses: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """Scores (N,) of responses given as text; see `score_tokens`."""
    return _score(model, [read(model, tokenizer, p, r, max_tokens) for p, r in zip(prompts, responses, strict=True)])


@torch.inference_mode()
def _score(model, sequences: Sequence[list[int]], batch_size: int = 64) -> torch.Tensor:
    scores = torch.empty(len(sequences))
    for batch in length_batches([([], s) for s in sequences], batch_size):
        scores[batch] = _scores(model, [sequences[i] for i in batch]).cpu()
    return scores - getattr(model.config, "reward_zero", 0.0)


def normalize(model, tokenizer, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> None:
    """Fix the zero and the unit of the scores: from now on these responses have mean 0 and standard deviation 1.

    A Bradley-Terry loss leaves the zero free (Ziegler et al. 2019, section 2.1, fix it likewise). The unit goes into
    the head's weights, for every library to see. Heads of language models have no bias, so the zero goes into the
    model's config, is saved with it, and is subtracted here alone.
    """
    scores = score_tokens(model, prompts, responses, tokenizer.eos_token_id)
    zero, unit = getattr(model.config, "reward_zero", 0.0) + scores.mean().item(), scores.std().item()
    model.score.weight.data /= unit
    model.config.reward_zero = zero / unit


def center(model, tokenizer, prompts: Sequence[str], responses: Sequence[str]) -> None:
    """Fix the zero of the scores alone: from now on these responses have mean 0 (InstructGPT, section 3.5, of the
    labelers' demonstrations). No comparison of two answers changes."""
    model.config.reward_zero = getattr(model.config, "reward_zero", 0.0) + (
        score(model, tokenizer, prompts, responses).mean().item()
    )


def margins(model, tokenizer, pairs: Sequence[dict], max_tokens: int = 256) -> list[float]:
    """By how much each chosen response outscores the rejected one; the model is right where it is positive."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen = score(model, tokenizer, prompts, [pair["chosen"] for pair in pairs], max_tokens)
    rejected = score(model, tokenizer, prompts, [pair["rejected"] for pair in pairs], max_tokens)
    return (chosen - rejected).tolist()


def read(model, tokenizer, prompt: str, response: str, max_tokens: int) -> list[int]:
    """What `model` reads of a text: its tokens, cut to `max_tokens`, the last of which is always the end token. For an
    encoder, what its own tokenizer makes of the text."""
    if not _reads_the_end(model):
        return tokenizer(prompt + response, truncation=True, max_length=max_tokens)["input_ids"]
    prompt_ids, response_ids = encode(tokenizer, prompt, response, max_tokens)
    return _ended(prompt_ids + response_ids, tokenizer.eos_token_id, max_tokens)


def _ended(sequence: list[int], eos: int, room: int) -> list[int]:
    return sequence if sequence[-1] == eos else sequence[: room - 1] + [eos]


def _scores(model, sequences: Sequence[list[int]]) -> torch.Tensor:
    """Raw scores (B,): of a causal model read at the last token of each sequence, of an encoder as its class has it."""
    if packing.supports(model):
        return model.score(packing.last_states(model, sequences)).squeeze(-1)
    ids = pad_right(sequences).to(model.device)  # (B, T)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=model.device)
    if not _reads_the_end(model):
        mask = torch.arange(ids.shape[1], device=model.device) <= last[:, None]
        return model(ids, attention_mask=mask.long()).logits.squeeze(-1)
    hidden = model.base_model(ids).last_hidden_state[torch.arange(len(ids), device=model.device), last]  # (B, D)
    return model.score(hidden).squeeze(-1)


@dataclass(frozen=True)
class _Row:
    """Several texts in one row of tokens, what they have in common at their beginning standing there once."""

    ids: list[int]
    positions: list[int]  # of each token in its own text
    owners: list[int]  # which text a token belongs to, from 1; 0 for all
    ends: list[int]  # where in the row the texts have their last tokens


def _row(texts: Sequence[list[int]]) -> _Row:
    """The texts as one row. Each keeps at least its last token to itself, also where two are equal."""
    common = min(len(os.path.commonprefix(texts)), min(map(len, texts)) - 1)
    row = _Row(texts[0][:common], list(range(common)), [0] * common, [])
    for owner, text in enumerate(texts, start=1):
        row.ids.extend(text[common:])
        row.positions.extend(range(common, len(text)))
        row.owners.extend([owner] * (len(text) - common))
        row.ends.append(len(row.ids) - 1)
    return row


def _scores_of_rows(model, rows: Sequence[_Row]) -> torch.Tensor:
    """Raw scores of all texts of all rows, the same numbers as `_scores`, but a prompt is read once for all responses.
    A token sees those before it that are its own text's or everyone's, and counts its position in its own text."""
    ids, positions, owners = (
        pad_right([getattr(row, name) for row in rows]).to(model.device) for name in ("ids", "positions", "owners")
    )  # (B, T) each
    before = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
    sees = before & ((owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None]))  # (B, T, T)
    mask = torch.zeros(sees.shape, device=ids.device).masked_fill(~sees, torch.finfo(torch.float32).min)
    hidden = model.base_model(ids, position_ids=positions, attention_mask=mask[:, None]).last_hidden_state  # (B, T, D)
    in_row = [number for number, row in enumerate(rows) for _ in row.ends]
    return model.score(hidden[in_row, [end for row in rows for end in row.ends]]).squeeze(-1)


def _reads_the_end(model) -> bool:
    """Whether this is a causal language model with a head: the library calls it `score`, and those of encoders not."""
    return isinstance(getattr(model, "score", None), torch.nn.Linear)
