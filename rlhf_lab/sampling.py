"""Batched sampling with a preallocated key/value cache, and the log-probability of every token drawn.

GPT-2 models have a decoder of their own, of plain matrix products; any other Hugging Face causal language model is
decoded through its own cache object. Both are the same loop over `prefill`, `step` and `keep`: finished rows leave the
batch. Prompts are padded on the left, in batches of similar length.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel


@dataclass(frozen=True)
class Samples:
    """Responses in the order of the prompts. A response ends with the end token unless the length limit cut it."""

    responses: list[list[int]]
    log_probabilities: list[torch.Tensor]  # one (R,) a response, of the temperature-scaled full distribution

    def texts(self, tokenizer) -> list[str]:
        """The responses as text, without the end token; a reserved token that the policy wrote stays to be seen."""
        eos = tokenizer.eos_token_id
        return tokenizer.batch_decode([r[:-1] if r[-1] == eos else r for r in self.responses])


@torch.inference_mode()
def sample(
    model,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eos: int,
    seed: int,
    temperature: float = 1.0,
    greedy: bool = False,
    batch_size: int = 128,
) -> Samples:
    """Continue every prompt until the end token or `max_new_tokens`, by inverse-CDF sampling from the full distribution
    at `temperature` (no top-k, no top-p: either would bias the KL), or by the most likely token if `greedy`.

    The same seed, prompts and batch size give the same samples. Raises ValueError for an empty prompt and where prompt
    and response do not fit the model's context.
    """
    _check(model, prompts, max_new_tokens)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in prompts]
    log_probabilities: list[torch.Tensor] = [torch.empty(0) for _ in prompts]
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens, values, lengths = _decode(
            model, [prompts[i] for i in rows], max_new_tokens, eos, generator, temperature, greedy
        )
        for row, i in enumerate(rows):
            responses[i] = tokens[row, : lengths[row]].tolist()
            log_probabilities[i] = values[row, : lengths[row]].clone()
    return Samples(responses, log_probabilities)


def _check(model, prompts, max_new_tokens: int) -> None:
    longest = max(map(len, prompts), default=1)
    if min(map(len, prompts), default=1) == 0:
        raise ValueError("A prompt is empty: begin it with at least one token, for example the end token.")
    context = getattr(model.config, "max_position_embeddings", None)
    if context and longest + max_new_tokens > context:
        raise ValueError(
            f"A prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {context}: "
            "shorten the prompt or lower max_new_tokens."
        )


def _decode(model, prompts, max_new_tokens, eos, generator, temperature, greedy):
    """One batch: tokens (B, N), their log-probabilities (B, N) and how many of each row count (B,)."""
    width = max(map(len, prompts))
    ids = torch.tensor([[eos] * (width - len(p)) + list(p) for p in prompts], device=model.device)  # (B, P)
    real = torch.tensor([[False] * (width - len(p)) + [True] * len(p) for p in prompts], device=model.device)
    decoder = (GPT2Decoder if GPT2Decoder.supports(model) else CacheDecoder)(model, max_new_tokens)
    tokens = torch.full((len(prompts), max_new_tokens), eos, device=model.device)
    values = torch.zeros(tokens.shape, device=model.device)
    lengths = torch.full((len(prompts),), max_new_tokens, device=model.device)
    active = torch.arange(len(prompts), device=model.device)  # the rows still in the batch
    logits = decoder.prefill(ids, real)  # (B, V)
    for step in range(max_new_tokens):
        chosen, value = _choose(logits, generator, temperature, greedy)
        tokens[active, step], values[active, step] = chosen, value
        alive = chosen != eos
        lengths[active[~alive]] = step + 1
        if step + 1 == max_new_tokens or not alive.any():
            break
        if not alive.all():
            active, chosen = active[alive], chosen[alive]
            decoder.keep(alive)
        logits = decoder.step(chosen)
    return tokens, values, lengths


def _choose(logits: torch.Tensor, generator, temperature: float, greedy: bool):
    """One token a row of logits (B, V), and its log-probability."""
    log_probs = F.log_softmax(logits.float() / temperature, dim=-1)
    if greedy:
        chosen = log_probs.argmax(dim=-1)
    else:
        # Inverse CDF: a third of the time of torch.multinomial. Scaled by the last entry, so that rounding cannot push
        # a draw past the end.
        cdf = log_probs.exp().cumsum(dim=-1)
        draw = torch.rand((len(cdf), 1), generator=generator, device=cdf.device) * cdf[:, -1:]
        chosen = torch.searchsorted(cdf, draw, right=True).squeeze(1).clamp(max=cdf.shape[1] - 1)
    return chosen, log_probs.gather(1, chosen[:, None]).squeeze(1)


class CacheDecoder:
    """Any causal language model, through its own key/value cache."""

    def __init__(self, model, max_new_tokens: int):
        self.model, self.cache = model, DynamicCache(config=model.config)

    def prefill(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Read left-padded prompts (B, P), of which `real` (B, P) marks the tokens; logits of the next token (B, V)."""
        self.mask = real.long()
        self.position = self.mask.sum(dim=1)  # (B,) where the next token stands
        return self._forward(ids, (self.mask.cumsum(dim=1) - 1).clamp(min=0))

    def step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Append one token a row (B,); logits of the next one (B, V)."""
        self.mask = F.pad(self.mask, (0, 1), value=1)
        logits = self._forward(chosen[:, None], self.position[:, None])
        self.position = self.position + 1
        return logits

    def keep(self, alive: torch.Tensor) -> None:
        """Only the rows where `alive` (B,) is true stay."""
        self.mask, self.position = self.mask[alive], self.position[alive]
        self.cache.batch_select_indices(alive.nonzero().squeeze(1))

    def _forward(self, ids, positions):
        output = self.model(
            input_ids=ids, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return output.logits[:, -1]


class GPT2Decoder:
    """GPT-2 by plain matrix products; single queries go through `bmm`, which beats fused attention there."""

    @staticmethod
    def supports(model) -> bool:
        """Whether the model is a GPT-2 as published; its config knows variants that compute something else."""
        if type(model) is not GPT2LMHeadModel or model.config.activation_function != "gelu_new":
            return False
        return model.config.scale_attn_weights and not model.config.scale_attn_by_inverse_layer_idx

    def __init__(self, model: GPT2LMHeadModel, max_new_tokens: int):
        config, self.room = model.config, max_new_tokens
        self.heads, self.head_width = config.n_head, config.n_embd // config.n_head
        self.epsilon = config.layer_norm_epsilon
        self.token_embedding, self.position_embedding = model.transformer.wte.weight, model.transformer.wpe.weight
        self.final_norm, self.blocks = model.transformer.ln_f, model.transformer.h
        self.head = model.lm_head.weight

    def prefill(self, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Read left-padded prompts (B, P), of which `real` (B, P) marks the tokens; logits of the next token (B, V)."""
        batch, width = ids.shape
        shape = (len(self.blocks), batch, self.heads, width + self.room, self.head_width)
        self.keys, self.values = ids.new_zeros(shape, dtype=torch.float32), ids.new_zeros(shape, dtype=torch.float32)
        # Added to attention scores: pads are never looked at.
        self.bias = F.pad(torch.where(real, 0.0, -torch.inf), (0, self.room))[:, None]  # (B, 1, P + N)
        self.position, self.filled = real.sum(dim=1), width
        causal = torch.ones(width, width, dtype=torch.bool, device=ids.device).tril()
        # A pad may look at itself, or its softmax would be empty.
        mask = (causal & real[:, None]) | torch.eye(width, dtype=torch.bool, device=ids.device)  # (B, P, P)
        x = self.token_embedding[ids] + self.position_embedding[(real.cumsum(dim=1) - 1).clamp(min=0)]  # (B, P, D)
        for layer, block in enumerate(self.blocks):
            q, k, v = self._project(block, x).view(batch, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            self.keys[layer, :, :, :width], self.values[layer, :, :, :width] = k, v
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None])  # (B, H, P, D / H)
            x = self._finish(block, x, attended.transpose(1, 2).reshape(batch, width, -1))
        return self._logits(x[:, -1])

    def step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Append one token a row (B,); logits of the next one (B, V)."""
        batch, at = len(chosen), self.filled
        x = self.token_embedding[chosen] + self.position_embedding[self.position]  # (B, D)
        for layer, block in enumerate(self.blocks):
            q, k, v = self._project(block, x).view(batch, 3, self.heads, -1).unbind(1)  # (B, H, D / H)
            keys, values = self.keys[layer], self.values[layer]
            keys[:, :, at], values[:, :, at] = k, v
            q = q.reshape(batch * self.heads, 1, -1) * self.head_width**-0.5
            scores = torch.bmm(q, keys[:, :, : at + 1].flatten(0, 1).transpose(1, 2))  # (B * H, 1, T)
            weights = (scores.view(batch, self.heads, -1) + self.bias[:, :, : at + 1]).softmax(dim=-1)
            attended = torch.bmm(weights.view(batch * self.heads, 1, -1), values[:, :, : at + 1].flatten(0, 1))
            x = self._finish(block, x, attended.view(batch, -1))
        self.position, self.filled = self.position + 1, at + 1
        return self._logits(x)

    def keep(self, alive: torch.Tensor) -> None:
        """Only the rows where `alive` (B,) is true stay."""
        self.keys, self.values, self.bias = self.keys[:, alive], self.values[:, alive], self.bias[alive]
        self.position = self.position[alive]

    def _project(self, block, x):
        normal = F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias, self.epsilon)
        return F.linear(normal, block.attn.c_attn.weight.T, block.attn.c_attn.bias)

    def _finish(self, block, x, attended):
        x = x + F.linear(attended, block.attn.c_proj.weight.T, block.attn.c_proj.bias)
        normal = F.layer_norm(x, x.shape[-1:], block.ln_2.weight, block.ln_2.bias, self.epsilon)
        inner = F.gelu(F.linear(normal, block.mlp.c_fc.weight.T, block.mlp.c_fc.bias), approximate="tanh")
        return x + F.linear(inner, block.mlp.c_proj.weight.T, block.mlp.c_proj.bias)

    def _logits(self, x):
        return F.linear(
            F.layer_norm(x, x.shape[-1:], self.final_norm.weight, self.final_norm.bias, self.epsilon), self.head
        )
