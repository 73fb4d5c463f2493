"""Reading many texts at once without reading padding.

All of a GPT-2's operations but attention treat every token alike, so texts of unequal length need no common width: here
their tokens stand one after another, (N, D), and only the attention of `GROUP` neighbors of similar length is padded.
The last layer is finished only where something is asked of it. Other models, and models that are to drop units out,
are read in the usual way.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional as F
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from rlhf_lab import language_model

GROUP = 2  # rows that share a width; with more of them the padding costs more than the fewer calls save


class Packed(NamedTuple):
    """Texts as one row of tokens (N,), group by group."""

    ids: torch.Tensor
    positions: torch.Tensor  # (N,) in their own text
    groups: list[tuple[int, int]]  # rows and width of each group
    wanted: torch.Tensor  # (R,) where in the row something is asked, text after text


def supports(model) -> bool:
    """Whether the model is a GPT-2 as published, which is not to drop units out; its config knows variants that compute
    something else."""
    if type(model) not in (GPT2LMHeadModel, GPT2ForSequenceClassification) or model.training:
        return False
    return model.config.scale_attn_weights and not model.config.scale_attn_by_inverse_layer_idx


def read_responses(
    model, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `language_model.read_responses` returns, the same numbers but for rounding. Gradients flow."""
    if not supports(model):
        return language_model.read_responses(model, prompts, responses, temperature)
    # The last token predicts nothing and is left out.
    texts = [[*prompt, *response[:-1]] for prompt, response in zip(prompts, responses, strict=True)]
    predicting = [range(len(prompt) - 1, len(text)) for prompt, text in zip(prompts, texts, strict=True)]
    states = _states(model.transformer, _pack(texts, predicting, model.device))  # (R, D)
    tokens = torch.tensor([token for response in responses for token in response], device=model.device)
    values = -F.cross_entropy(model.lm_head(states) / temperature, tokens, reduction="none")
    lengths = torch.tensor([len(response) for response in responses], device=model.device)
    mask = torch.arange(int(lengths.max()), device=model.device) < lengths[:, None]  # (B, R)
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask, states


def last_states(model, texts: Sequence[Sequence[int]]) -> torch.Tensor:
    """The last layer's hidden states (B, D) at the last token of each text, for a model that `supports` packing."""
    return _states(model.transformer, _pack(texts, [range(len(text) - 1, len(text)) for text in texts], model.device))


def _pack(texts: Sequence[Sequence[int]], wanted: Sequence[range], device) -> Packed:
    """`wanted`: the positions of each text at which something is asked."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    ids, positions, groups, starts = [], [], [], [0] * len(texts)
    for start in range(0, len(order), GROUP):
        rows = order[start : start + GROUP]
        width = len(texts[rows[-1]])
        groups.append((len(rows), width))
        for i in rows:
            starts[i] = len(ids)
            ids += [*texts[i], *[0] * (width - len(texts[i]))]
            positions += range(width)
    flat = [start + position for start, places in zip(starts, wanted, strict=True) for position in places]
    return Packed(
        *(torch.tensor(x, device=device) for x in (ids, positions)), groups, torch.tensor(flat, device=device)
    )


def _states(transformer, packed: Packed) -> torch.Tensor:
    """Hidden states (R, D) after the last layer and its norm, where something is asked."""
    x = transformer.wte(packed.ids) + transformer.wpe(packed.positions)  # (N, D)
    heads = transformer.config.n_head
    for block in transformer.h:
        attended = _attend(block.attn.c_attn(block.ln_1(x)), packed.groups, heads)  # (N, D)
        if block is transformer.h[-1]:
            x, attended = x[packed.wanted], attended[packed.wanted]
        x = x + block.attn.c_proj(attended)
        x = x + block.mlp(block.ln_2(x))
    return transformer.ln_f(x)


def _attend(projected: torch.Tensor, groups: list[tuple[int, int]], heads: int) -> torch.Tensor:
    """Causal attention of each text to itself: queries, keys and values side by side (N, 3 D) -> (N, D)."""
    parts = []
    for part, (rows, width) in zip(projected.split([b * t for b, t in groups]), groups, strict=True):
        q, k, v = part.view(rows, width, 3, heads, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D / H)
        parts.append(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(parts)
