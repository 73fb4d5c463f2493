"""The class-token reward model: a language model that says in one more token whether a text was chosen.

After the text comes the separator `<SOS>`, and the model learns to say "1" for a chosen text and "0" for a rejected
one; the score is p("1") / (p("1") + p("0")). So a reward model can be had from a service that only fine-tunes language
models ("Attempts to align language models by putting the reward in the prompt", 2023). It never sees the two texts of
a comparison side by side, and its loss is that of ordinary next-token prediction.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F

from rlhf_lab.language_model import encode, length_batches, next_token_logits
from rlhf_lab.reward_model import RewardModelConfig, fit

SEPARATOR = "<SOS>"
CHOSEN, REJECTED = "1", "0"


def train(model, tokenizer, pairs: Sequence[dict], config: RewardModelConfig, seed: int) -> list[float]:
    """Fit a causal language model in place to pairs with prompt, chosen and rejected: two texts a pair, each on its
    own. `batch_size` counts pairs. Returns the loss of every step, in nats per text.

    Raises ValueError for no pairs, and for a tokenizer to which "1" or "0" is more than one token.
    """
    classes = dict(zip(("chosen", "rejected"), _class_tokens(tokenizer), strict=True))
    texts = [_read(tokenizer, p["prompt"], p[side], config.max_tokens) for p in pairs for side in classes]
    labels = torch.tensor([token for _ in pairs for token in classes.values()], device=model.device)

    def loss(batch: Sequence[int]) -> torch.Tensor:
        return F.cross_entropy(next_token_logits(model, [texts[i] for i in batch]), labels[batch])

    return fit(model, texts, loss, replace(config, batch_size=2 * config.batch_size), seed)


def score(model, tokenizer, prompts: Sequence[str], responses: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """p("1") / (p("1") + p("0")) (N,): the probability that a text was chosen."""
    return torch.sigmoid(log_odds(model, tokenizer, prompts, responses, max_tokens))


@torch.inference_mode()
def log_odds(model, tokenizer, prompts: Sequence[str], responses: Sequence[str], max_tokens: int = 256) -> torch.Tensor:
    """log p("1") / p("0") (N,), in nats: the logit of `score`."""
    chosen, rejected = _class_tokens(tokenizer)
    texts = [_read(tokenizer, p, r, max_tokens) for p, r in zip(prompts, responses, strict=True)]
    odds = torch.empty(len(texts))
    for batch in length_batches([(text, []) for text in texts], batch_size=64):
        logits = next_token_logits(model, [texts[i] for i in batch])  # (B, V)
        odds[batch] = (logits[:, chosen] - logits[:, rejected]).cpu()
    return odds


def margins(model, tokenizer, pairs: Sequence[dict], max_tokens: int = 256) -> list[float]:
    """The log-odds that the chosen text of each pair was chosen, given that one of the two was.

    From p1 = P(first was chosen), p2 likewise and independence: odds p1 (1 - p2) / (p2 (1 - p1)), so the difference of
    the two logits. The model is right where it is positive.
    """
    prompts = [pair["prompt"] for pair in pairs]
    chosen = log_odds(model, tokenizer, prompts, [pair["chosen"] for pair in pairs], max_tokens)
    rejected = log_odds(model, tokenizer, prompts, [pair["rejected"] for pair in pairs], max_tokens)
    return (chosen - rejected).tolist()


def _read(tokenizer, prompt: str, response: str, max_tokens: int) -> list[int]:
    """The tokens of a text without its end token, cut so that the separator still fits, and the separator."""
    separator = tokenizer(SEPARATOR, add_special_tokens=False)["input_ids"]
    prompt_ids, response_ids = encode(tokenizer, prompt, response, max_tokens - len(separator))
    text = prompt_ids + response_ids
    return (text[:-1] if text[-1] == tokenizer.eos_token_id else text) + separator


def _class_tokens(tokenizer) -> tuple[int, int]:
    ids = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in (CHOSEN, REJECTED)]
    if any(len(tokens) != 1 for tokens in ids):
        raise ValueError(
            'This tokenizer splits "1" or "0" into several tokens: take one to which each is a single one.'
        )
    return ids[0][0], ids[1][0]
