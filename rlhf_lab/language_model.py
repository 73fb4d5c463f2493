"""The course's language models: a tokenizer trained on its own text, GPT-2 models on a ladder of sizes,
log-probabilities and perplexity. Everything is a `transformers` class, so any Hugging Face causal language model can
take their place."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lab import ROOT

BASE = ROOT / "models" / "base"

# Parameters -> width, layers. Heads are 32 wide.
RUNGS = {"0.2M": (64, 2), "0.5M": (96, 3), "1M": (128, 4)}
CONTEXT = 256  # tokens: more than any dialogue of the miniature world has
VOCABULARY = 2048  # most words of the miniature world are one token

PAD, EOS = "<pad>", "<eos>"  # distinct, so that a mask made of pads never hides an end
RESERVED = ["<REWARD>", "</REWARD>", "<SOS>", "<MASKED>", "### Instruction:", "### Response:", "### End"]


def train_tokenizer(texts: Iterable[str], vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer (Radford et al. 2019, section 2.2). Digits and the minus sign are never merged with
    anything, so a number in a prompt is read digit by digit; `RESERVED` are special tokens for later parts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[0-9]|-"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, EOS, *RESERVED],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        additional_special_tokens=RESERVED,
        clean_up_tokenization_spaces=False,
    )


def new_model(rung: str, vocabulary: int = VOCABULARY, seed: int = 0, context: int = CONTEXT) -> GPT2LMHeadModel:
    """An untrained GPT-2 of the ladder. Dropout is zero everywhere: the policy that samples is the one that learns.
    Raises ValueError for an unknown rung."""
    width, layers = _rung(rung)
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=vocabulary,
            n_positions=context,
            n_embd=width,
            n_layer=layers,
            n_head=width // 32,
            activation_function="gelu_pytorch_tanh",  # GPT-2's own "gelu_new", but in one operation: a tenth faster
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=1,
        )
    ).eval()


def load_base(rung: str):
    """The shipped pre-trained model of a rung and its tokenizer, in float32."""
    _rung(rung)
    return load(BASE / rung), load_tokenizer(BASE / rung)


def save(model, folder: Path) -> None:
    """Write a model to a folder: config and safetensors."""
    model.save_pretrained(folder)


def load(folder: Path):
    """Read a causal language model from a folder, in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def save_with_tokenizer(both: tuple, folder: Path) -> None:
    """Write a model and its tokenizer to a folder."""
    for part in both:
        part.save_pretrained(folder)


def load_with_tokenizer(folder: Path) -> tuple:
    """Read a causal language model, in float32, and its tokenizer from a folder."""
    return load(folder), load_tokenizer(folder)


def load_tokenizer(folder: Path):
    """Read the tokenizer beside a model."""
    return AutoTokenizer.from_pretrained(folder)


def pad_right(sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Token lists as one tensor (B, T), each filled up with its own last token. A causal model needs no mask for that:
    nothing looks at what stands to the right."""
    longest = max(map(len, sequences))
    return torch.tensor([list(sequence) + [sequence[-1]] * (longest - len(sequence)) for sequence in sequences])


def response_log_probabilities(
    model, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every response token under the temperature-scaled full distribution.

    Returns the log-probabilities (B, R) and a mask (B, R) that is one on response tokens, R being the longest response;
    elsewhere both are zero. The mask comes from the lengths, never from token values. Gradients flow.
    """
    values, mask, _ = read_responses(model, prompts, responses, temperature)
    return values, mask.to(values.dtype)


def read_responses(
    model, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same log-probabilities (B, R), the mask (B, R) as booleans, and the last layer's hidden states (N, D) from
    which the N response tokens are predicted, row after row."""
    sequences = [list(p) + list(r) for p, r in zip(prompts, responses, strict=True)]
    ids = pad_right(sequences).to(model.device)  # (B, T)
    offsets = torch.arange(max(map(len, responses)), device=model.device)  # (R,)
    lengths = torch.tensor([[len(p), len(r)] for p, r in zip(prompts, responses, strict=True)], device=model.device)
    mask = offsets < lengths[:, 1:]  # (B, R)
    # Token t of a response is predicted from the position before it.
    before = (lengths[:, :1] - 1 + offsets).clamp(max=ids.shape[1] - 2)  # (B, R)
    rows = torch.arange(len(sequences), device=model.device)[:, None].expand_as(before)[mask]  # (N,)
    before = before[mask]  # (N,)
    if type(model) is GPT2LMHeadModel:  # logits only where the loss needs them: a fifth of a small model's work
        states = model.transformer(ids).last_hidden_state[rows, before]  # (N, D)
        logits = model.lm_head(states)  # (N, V)
    else:  # other models may scale or cap their logits
        output = model(ids, output_hidden_states=True)
        states, logits = output.hidden_states[-1][rows, before], output.logits[rows, before]
    values = -F.cross_entropy(logits / temperature, ids[rows, before + 1], reduction="none")
    return values.new_zeros(mask.shape).masked_scatter(mask, values), mask, states


def next_token_logits(model, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits (B, V) of the token that follows each sequence. Gradients flow."""
    ids = pad_right(sequences).to(model.device)  # (B, T)
    rows = torch.arange(len(sequences), device=model.device)
    last = torch.tensor([len(sequence) - 1 for sequence in sequences], device=model.device)
    if type(model) is GPT2LMHeadModel:  # as in `response_log_probabilities`
        return model.lm_head(model.transformer(ids).last_hidden_state[rows, last])
    return model(ids).logits[rows, last]


@torch.inference_mode()
def perplexity(model, tokenizer, examples: Sequence[tuple[str, str]], batch_size: int = 64) -> float:
    """exp of the mean negative log-probability per token of the responses (their end token included) given their
    prompts. A whole text's perplexity is that of the response to an empty prompt: ("", text)."""
    encoded = [encode(tokenizer, prompt, response) for prompt, response in examples]
    total, count = 0.0, 0.0
    for batch in length_batches(encoded, batch_size):
        values, mask = response_log_probabilities(model, [encoded[i][0] for i in batch], [encoded[i][1] for i in batch])
        total, count = total - values.sum().item(), count + mask.sum().item()
    return math.exp(total / count)


@torch.inference_mode()
def log_probabilities_of_parts(
    model, tokenizer, examples: Sequence[tuple[str, str]], batch_size: int = 64
) -> tuple[tuple[float, int], tuple[float, int]]:
    """Texts of two parts, prompt and response, read from their second token on and without an end token: the summed
    log-probability and the number of tokens of the prompts, and both of the responses. What does not fit the model's
    context is cut at its end."""
    room = getattr(model.config, "max_position_embeddings", None)
    encoded = [encode(tokenizer, prompt, response) for prompt, response in examples]
    texts = [(prompt[:1], (prompt[1:] + response[:-1])[: room - 1 if room else None]) for prompt, response in encoded]
    sums, counts = torch.zeros(2, dtype=torch.double), torch.zeros(2, dtype=torch.long)
    for batch in length_batches(texts, batch_size):
        values, mask = response_log_probabilities(model, *zip(*(texts[i] for i in batch), strict=True))
        firsts = torch.tensor([len(encoded[i][0]) - 1 for i in batch], device=values.device)[:, None]
        answering = torch.arange(values.shape[1], device=values.device) >= firsts  # (B, R)
        for part, of_part in enumerate((~answering, answering)):
            sums[part] += values[of_part].double().sum().cpu()
            counts[part] += int((mask.bool() & of_part).sum())
    return tuple(zip(sums.tolist(), counts.tolist(), strict=True))


def encode(tokenizer, prompt: str, response: str, max_tokens: int | None = None) -> tuple[list[int], list[int]]:
    """Token ids of a prompt and of a response with its end token. A text without a prompt is predicted from its second
    token on: the first one serves as the prompt. A tokenizer that begins texts with a token of its own (as Llama's)
    does so once. What exceeds `max_tokens` is cut: the beginning of the prompt and the end of the response, each
    keeping at least half of the room."""
    prompt_ids = tokenizer(prompt)["input_ids"] if prompt else []
    response_ids = tokenizer(response, add_special_tokens=not prompt)["input_ids"] + [tokenizer.eos_token_id]
    if not prompt_ids:
        prompt_ids, response_ids = response_ids[:1], response_ids[1:]
    if max_tokens is not None:
        response_ids = response_ids[: max(max_tokens - len(prompt_ids), max_tokens // 2)]
        prompt_ids = prompt_ids[-(max_tokens - len(response_ids)) :]
    return prompt_ids, response_ids


def length_batches(encoded: Sequence[tuple[list[int], list[int]]], batch_size: int, rng=None) -> list[list[int]]:
    """Indices of (prompt, response) pairs in batches of similar length, so that little is padding. With a
    `random.Random` the batches differ and come in random order; without one they are sorted by length."""
    order = list(range(len(encoded)))
    if rng:
        rng.shuffle(order)
    order.sort(key=lambda i: len(encoded[i][0]) + len(encoded[i][1]))  # stable: equal lengths stay shuffled
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if rng:
        rng.shuffle(batches)
    return batches


def _rung(name: str) -> tuple[int, int]:
    if name not in RUNGS:
        raise ValueError(f"The ladder has no rung {name!r}: it has {', '.join(RUNGS)}.")
    return RUNGS[name]
