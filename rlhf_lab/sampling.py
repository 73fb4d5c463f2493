"""Batched sampling with key/value caches, and the log-probability of every token drawn.

GPT-2 models have a decoder of their own, of plain matrix products; any other Hugging Face causal language model is
decoded through its own cache object. Both are the same loop over `read`, `step` and `keep`, and leave the hidden states
that they drew from in `states`. GPT-2's decoder keeps its
batch full: a row that has finished its response begins another prompt while its neighbors go on with theirs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import DynamicCache, GPT2LMHeadModel

from rlhf_lab.language_model import pad_right

GPT2_GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of one function
BLOCK = 64  # tokens
BELOW_ONE = 1 - 2**-23  # so that no rounding leads past the last token that has a probability
IDLE = 1 / 8  # share of the rows that may idle: to begin prompts in them, or to drop them, costs much even for a few


@dataclass(frozen=True)
class Samples:
    """Responses in the order of the prompts. A response ends with the end token unless the length limit cut it."""

    responses: list[list[int]]
    log_probabilities: list[torch.Tensor]  # one (R,) a response, of the temperature-scaled full distribution
    values: list[torch.Tensor]  # one (R,) a response: what the critic says before each token; empty without one

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
    batch_size: int = 64,  # the keys and values of more rows leave the processor's cache; a GPU wants more
    critic: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Samples:
    """Continue every prompt until the end token or `max_new_tokens`, by inverse-CDF sampling from the full distribution
    at `temperature` (no top-k, no top-p: either would bias the KL), or by the most likely token if `greedy`.

    `critic` maps hidden states of the last layer (B, D), those from which the next token is drawn, to values (B,). The
    same seed and prompts give the same samples whatever the batch size, but for rounding. Raises ValueError for an
    empty prompt, numbers that make no sense, where prompt and response do not fit the model's context, and for a model
    whose logits are not numbers.
    """
    _check(model, prompts, max_new_tokens, batch_size, temperature)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    draws = torch.rand((len(prompts), max_new_tokens), generator=generator, device=model.device)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # neighbors are of similar length
    decoder = GPT2Decoder if GPT2Decoder.supports(model) else CacheDecoder
    together = len(order) if decoder.refills else batch_size  # prompts that one decoder answers
    responses: list[list[int]] = [[] for _ in prompts]
    log_probabilities: list[torch.Tensor] = [torch.empty(0) for _ in prompts]
    values: list[torch.Tensor] = [torch.empty(0) for _ in prompts]
    for start in range(0, len(order), max(1, together)):
        rows = order[start : start + together]
        queued, size = [prompts[i] for i in rows], min(batch_size, len(rows))
        reader = decoder(model, size, len(queued[-1]) + max_new_tokens)
        answers = _decode(reader, queued, draws[rows], size, eos, temperature, greedy, critic)
        for i, (tokens, logs, *worth) in zip(rows, answers, strict=True):
            responses[i], log_probabilities[i] = tokens.tolist(), logs.clone()
            values[i] = worth[0].clone() if worth else values[i]
    return Samples(responses, log_probabilities, values)


def _check(model, prompts, max_new_tokens: int, batch_size: int, temperature: float) -> None:
    if min(max_new_tokens, batch_size) < 1 or temperature <= 0:
        raise ValueError(
            f"max_new_tokens = {max_new_tokens} and batch_size = {batch_size} must be at least 1, and temperature = "
            f"{temperature} above 0 (for the most likely token, pass greedy=True)."
        )
    longest = max(map(len, prompts), default=1)
    if min(map(len, prompts), default=1) == 0:
        raise ValueError("A prompt is empty: begin it with at least one token, for example the end token.")
    context = getattr(model.config, "max_position_embeddings", None)
    if context and longest + max_new_tokens > context:
        raise ValueError(
            f"A prompt of {longest} tokens and {max_new_tokens} new ones do not fit the model's context of {context}: "
            "shorten the prompt or lower max_new_tokens."
        )


def _decode(decoder, prompts, draws, size, eos, temperature, greedy, critic):
    """Answer prompts in order, `size` at a time: for each, its tokens (R,), their log-probabilities (R,) and, if there
    is a critic, its values (R,). Token t of prompt i is chosen by the number draws[i, t]."""
    owner = torch.full((size,), -1, device=draws.device)  # (B,) which prompt a row of the batch answers; -1: it idles
    age = torch.zeros_like(owner)  # (B,) how many tokens it has written
    begun, logits, states, history = 0, None, None, []
    while True:
        idle = owner < 0
        if idle.sum() >= IDLE * len(owner):
            if begun < len(prompts):
                rows = idle.nonzero().squeeze(1)[: len(prompts) - begun]
                fresh = decoder.read(prompts[begun : begun + len(rows)], rows)  # (rows, V)
                logits = fresh if logits is None else logits.index_copy_(0, rows, fresh)  # (B, V)
                states = decoder.states if states is None else states.index_copy(0, rows, decoder.states)  # (B, D)
                owner[rows] = torch.arange(begun, begun + len(rows), device=owner.device)
                age[rows], begun = 0, begun + len(rows)
            else:
                decoder.keep(~idle)
                owner, age, logits, states = owner[~idle], age[~idle], logits[~idle], states[~idle]
        chosen, value = _choose(logits, draws[owner, age], temperature, greedy)
        history.append((owner, chosen, value, *([critic(states)] if critic else [])))
        owner = torch.where((chosen == eos) | (age + 1 == draws.shape[1]), -1, owner)
        if begun == len(prompts) and (owner < 0).all():
            return _by_owner(history, len(prompts))
        age = (age + 1) % draws.shape[1]  # idle rows run on, but not out
        logits = decoder.step(chosen)
        states = decoder.states


def _by_owner(history, count: int):
    """Of (owners, tokens, values, ...) step by step, the tokens, values, ... of each owner, in the order of steps."""
    owners, *columns = (torch.cat(column) for column in zip(*history, strict=True))
    order = owners.argsort(stable=True)[(owners < 0).sum() :]
    lengths = owners[order].bincount(minlength=count).tolist()
    return zip(*(column[order].split(lengths) for column in columns), strict=True)


def _choose(logits: torch.Tensor, draw: torch.Tensor, temperature: float, greedy: bool):
    """One token a row of logits (B, V), by a number (B,) from 0 to 1, and its log-probability (B,)."""
    logits = logits.float() if temperature == 1 else logits.float() / temperature
    probabilities = F.softmax(logits, dim=-1)
    chosen = probabilities.argmax(dim=-1) if greedy else _inverse_cdf(probabilities, draw)
    value = probabilities.gather(1, chosen[:, None]).squeeze(1)
    if not (value > 0).all():
        if value.isnan().any():
            raise ValueError(
                "The model's logits are not numbers (nan): its training has diverged, or its weights are bad."
            )
        # Sums that a GPU cumulates in parallel may rise where nothing is added.
        chosen = torch.where(value > 0, chosen, probabilities.argmax(dim=-1))
        value = probabilities.gather(1, chosen[:, None]).squeeze(1)
    return chosen, value.log()


def _inverse_cdf(probabilities: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """The first token (B,) at which the sum of the probabilities (B, V) up to it exceeds the number (B,).

    First the block it is in, then the token: sums over all tokens would take most of the time of a draw, and
    `torch.multinomial` takes longer still.
    """
    spare = -probabilities.shape[1] % BLOCK
    blocks = (F.pad(probabilities, (0, spare)) if spare else probabilities).unflatten(1, (-1, BLOCK))
    ends = blocks.sum(dim=-1).cumsum(dim=-1)  # (B, V / BLOCK)
    goal = draw[:, None] * (ends[:, -1:] * BELOW_ONE)
    block = torch.searchsorted(ends, goal, right=True).clamp(max=blocks.shape[1] - 1)  # (B, 1)
    goal = goal - F.pad(ends, (1, 0)).gather(1, block)
    sums = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].cumsum(dim=-1)  # (B, BLOCK)
    token = torch.searchsorted(sums, torch.minimum(goal, sums[:, -1:] * BELOW_ONE), right=True)
    return (block * BLOCK + token).squeeze(1).clamp(max=probabilities.shape[1] - 1)


class CacheDecoder:
    """Any causal language model, through its own key/value cache. Prompts are padded on the left."""

    refills = False  # its cache has one length for all rows

    def __init__(self, model, size: int, capacity: int):
        self.model, self.cache = model, DynamicCache(config=model.config)

    def read(self, prompts: Sequence[Sequence[int]], rows: torch.Tensor) -> torch.Tensor:
        """Begin these prompts, in all rows; logits of the next token (B, V)."""
        width, device = max(map(len, prompts)), self.model.device
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts], device=device)  # (B, P)
        self.mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
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
            input_ids=ids,
            attention_mask=self.mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            output_hidden_states=True,
        )
        self.states = output.hidden_states[-1][:, -1]  # (B, D)
        return output.logits[:, -1]


class GPT2Decoder:
    """GPT-2 by plain matrix products; single queries go through `bmm`, which beats fused attention there.

    The text of a row fills its part of the cache from the left, so that rows may be of any length, and what a former
    text left behind lies to the right of a row's position, where nothing looks.
    """

    refills = True

    @staticmethod
    def supports(model) -> bool:
        """Whether the model is a GPT-2 as published; its config knows variants that compute something else."""
        if type(model) is not GPT2LMHeadModel or model.config.activation_function not in GPT2_GELU:
            return False
        if torch.is_autocast_enabled(model.device.type):  # which knows the model's operations, not ours
            return False
        return model.config.scale_attn_weights and not model.config.scale_attn_by_inverse_layer_idx

    def __init__(self, model: GPT2LMHeadModel, size: int, capacity: int):
        config, self.capacity = model.config, capacity
        self.heads, self.head_width = config.n_head, config.n_embd // config.n_head
        self.epsilon = config.layer_norm_epsilon
        self.token_embedding, self.position_embedding = model.transformer.wte.weight, model.transformer.wpe.weight
        self.final_norm, self.head = model.transformer.ln_f, model.lm_head.weight
        self.layers = [  # as tensors: to look a weight up in its module costs as much as some of the products
            [
                (part.weight, part.bias)
                for part in (b.ln_1, b.attn.c_attn, b.attn.c_proj, b.ln_2, b.mlp.c_fc, b.mlp.c_proj)
            ]
            for b in model.transformer.h
        ]
        # Zeros: attention weighs what lies beyond a row's position with 0, and 0 times whatever memory held may be nan.
        shape = (len(self.layers), size, self.heads, capacity, self.head_width)  # (L, B, H, C, D / H)
        self.values = self.head.new_zeros(shape)
        self.keys = self.head.new_zeros(shape).transpose(3, 4).contiguous()  # (L, B, H, D / H, C): as `step` reads them
        self.position = torch.zeros(size, dtype=torch.long, device=model.device)  # (B,) where the next token stands

    def read(self, prompts: Sequence[Sequence[int]], rows: torch.Tensor) -> torch.Tensor:
        """Begin these prompts in these rows (N,) of the batch; logits of the next token (N, V)."""
        ids = pad_right(prompts).to(rows.device)  # (N, P)
        count, width = ids.shape
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=rows.device)
        last = torch.arange(count, device=rows.device) * width + lengths - 1  # (N,) of N * P tokens
        x = (self.token_embedding[ids] + self.position_embedding[:width]).flatten(0, 1)  # (N * P, D)
        for keys, values, layer in zip(self.keys, self.values, self.layers, strict=True):
            q, k, v = self._project(layer, x).view(count, width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            keys[rows, ..., :width], values[rows, :, :width] = k.transpose(2, 3), v
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # (N, H, P, D / H)
            attended = attended.transpose(1, 2).reshape(x.shape)
            if layer is self.layers[-1]:  # from here on, only the last tokens matter
                x, attended = x[last], attended[last]  # (N, D)
            x = self._finish(layer, x, attended)
        self.position[rows] = lengths
        return self._logits(x)

    def step(self, chosen: torch.Tensor) -> torch.Tensor:
        """Append one token a row (B,); logits of the next one (B, V)."""
        batch, at, width = len(chosen), self.position, int(self.position.max()) + 1
        every = torch.arange(batch, device=chosen.device)
        unseen = torch.arange(width, device=chosen.device) > at[:, None]  # (B, T)
        bias = torch.zeros_like(unseen, dtype=self.head.dtype).masked_fill(unseen, -torch.inf)
        bias = bias.repeat_interleave(self.heads, dim=0)[:, None]  # (B * H, 1, T)
        x = self.token_embedding[chosen] + self.position_embedding[at]  # (B, D)
        for keys, values, layer in zip(self.keys, self.values, self.layers, strict=True):
            q, k, v = self._project(layer, x).view(batch, 3, self.heads, -1).unbind(1)  # (B, H, D / H)
            keys[every, ..., at], values[every, :, at] = k, v
            q, keys, values = (
                q.flatten(0, 1)[:, None],
                keys[..., :width].flatten(0, 1),
                values[:, :, :width].flatten(0, 1),
            )
            scores = torch.baddbmm(bias, q, keys, alpha=self.head_width**-0.5)  # (B * H, 1, T)
            x = self._finish(layer, x, torch.bmm(scores.softmax(dim=-1), values).view(batch, -1))
        self.position = (at + 1).clamp(max=self.capacity - 1)  # idle rows run on, but not out
        return self._logits(x)

    def keep(self, alive: torch.Tensor) -> None:
        """Only the rows where `alive` (B,) is true stay."""
        self.keys, self.values, self.position = self.keys[:, alive], self.values[:, alive], self.position[alive]

    def _project(self, layer, x: torch.Tensor) -> torch.Tensor:
        """Queries, keys and values side by side (N, 3 D) of hidden states (N, D)."""
        norm, (weight, bias), *_ = layer
        return torch.addmm(bias, F.layer_norm(x, x.shape[-1:], *norm, self.epsilon), weight)

    def _finish(self, layer, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's output (N, D), of its input (N, D) and what the heads have read (N, D)."""
        _, _, (weight, bias), norm, (weight_in, bias_in), (weight_out, bias_out) = layer
        x = x + torch.addmm(bias, attended, weight)
        inner = torch.addmm(bias_in, F.layer_norm(x, x.shape[-1:], *norm, self.epsilon), weight_in)
        return x + torch.addmm(bias_out, F.gelu(inner, approximate="tanh"), weight_out)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.final_norm
        self.states = F.layer_norm(x, x.shape[-1:], norm.weight, norm.bias, self.epsilon)  # (B, D)
        return F.linear(self.states, self.head)
