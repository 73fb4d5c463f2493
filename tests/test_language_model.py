"""Oracles: a language model that is a known Markov chain, a plain full forward pass, brute-force perplexity."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from rlhf_lab import language_model
from rlhf_lab.language_model import (
    RESERVED,
    encode,
    length_batches,
    log_probabilities_of_parts,
    new_model,
    next_token_logits,
    pad_right,
    perplexity,
    response_log_probabilities,
    train_tokenizer,
)

TEXTS = [
    "\n\nHuman: How do I boil an egg?\n\nAssistant: Boil it for 10 minutes, then cool it in water.",
    "Add 3 eggs, 250 g of flour and 1-2 spoons of sugar. The oven is at -18 or 180 degrees.",
    "A reward of -1.25 is less than 0.75; the 2nd of 1000 is x-ray.",
] * 20

# Texts in which special tokens, numbers and odd characters are likely.
pieces = st.sampled_from(
    [*RESERVED, "<eos>", "<pad>", " ", "\n\n", "egg", "-12", "3", "Human:", "é", "\u2028", "日本", "🙂", "\x00"]
)
any_text = st.one_of(st.text(max_size=40), st.lists(pieces, max_size=12).map("".join))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, vocabulary=360)


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def tiny_model(vocabulary: int = 360) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    # Larger weights than the default, so that distributions are far from uniform.
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=2, initializer_range=0.2)
    ).eval()


def markov_model(transitions: torch.Tensor, context: int = 16) -> GPT2LMHeadModel:
    """A GPT-2 whose next token follows the row of `transitions` (V, V) that the current token names.

    Attention and MLP add nothing, so the head sees the layer norm of a one-hot vector, scale * (e - 1 / D). Rows of
    head weights that sum to zero turn it into scale * W[:, token], so W = log P / scale, up to a constant a row.
    """
    size = len(transitions)
    config = GPT2Config(
        vocab_size=size, n_positions=context, n_embd=size + 1, n_layer=1, n_head=1, tie_word_embeddings=False
    )
    model = GPT2LMHeadModel(config).eval()
    scale = (1 / (size + 1) * (1 - 1 / (size + 1)) + config.layer_norm_epsilon) ** -0.5
    weights = transitions.log().T / scale  # (next, current)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "c_proj" in name or "wpe" in name:
                parameter.zero_()
        model.transformer.wte.weight.copy_(torch.eye(size, size + 1))
        model.lm_head.weight.copy_(torch.cat([weights, -weights.sum(dim=1, keepdim=True)], dim=1))
    return model


def full_forward(model, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (R,) of one response, alone and unpadded, from the logits of the whole sequence."""
    ids = torch.tensor([prompt + response])
    log_probs = F.log_softmax(model(ids).logits[0] / temperature, dim=-1)
    return torch.stack([log_probs[len(prompt) + t - 1, token] for t, token in enumerate(response)])


def ragged_batch(seed: int = 0, vocabulary: int = 360) -> tuple[list[list[int]], list[list[int]]]:
    rng = random.Random(seed)
    lengths = [(1, 1), (9, 4), (3, 12), (12, 1), (5, 7), (2, 2)]
    draw = [
        ([rng.randrange(vocabulary) for _ in range(p)], [rng.randrange(vocabulary) for _ in range(r)])
        for p, r in lengths
    ]
    return [p for p, _ in draw], [r for _, r in draw]


# --- tokenizer ---


@given(text=any_text)
def test_every_text_comes_back_from_its_tokens(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_round_trip_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = language_model.load_tokenizer(tmp_path)
    text = "### Instruction: boil 12 eggs at -5 , <REWARD>-0.50</REWARD> don't ?  ok<eos>"
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.pad_token, loaded.eos_token) == ("<pad>", "<eos>")


@given(text=any_text)
def test_digits_and_minus_are_never_merged(tokenizer, text):
    tokens = [tokenizer.decode([i]) for i in tokenizer(text)["input_ids"] if i not in tokenizer.all_special_ids]
    for token in tokens:
        assert len(token) == 1 or not set(token) & set("0123456789-")


@pytest.mark.parametrize("context", ["{}", "a{}b", " {}", "{} ", "egg{}", "<REWARD>{}</REWARD>", "\n{}."])
def test_a_number_is_read_digit_by_digit_in_any_context(tokenizer, context):
    number = "-1203"
    ids = tokenizer(context.format(number))["input_ids"]
    digits = [tokenizer.convert_tokens_to_ids(character) for character in number]
    assert any(ids[start : start + len(digits)] == digits for start in range(len(ids)))


def test_letters_are_merged_though(tokenizer):
    assert len(tokenizer(TEXTS[0])["input_ids"]) < len(TEXTS[0]) / 2


@pytest.mark.parametrize("token", ["<pad>", "<eos>", *RESERVED])
@pytest.mark.parametrize("context", ["{}", "a{}b", "1{}-", " {} "])
def test_a_reserved_text_is_one_special_token_of_its_own(tokenizer, token, context):
    single = tokenizer.convert_tokens_to_ids(token)
    assert single in tokenizer.all_special_ids
    assert tokenizer(context.format(token))["input_ids"].count(single) == 1
    assert tokenizer.decode([single]) == token


def test_special_tokens_are_distinct_and_fit_the_models(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ["<pad>", "<eos>", *RESERVED]]
    assert len(set(ids)) == len(ids)
    config = new_model("0.2M", len(tokenizer)).config
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_vocabulary_is_as_large_as_asked(tokenizer):
    assert len(tokenizer) == 360


# --- the ladder ---


@pytest.mark.parametrize(("rung", "size"), [("0.2M", 0.2e6), ("0.5M", 0.5e6), ("1M", 1e6)])
def test_rungs_are_as_large_as_their_names(rung, size):
    width, layers = language_model.RUNGS[rung]
    # A block: 4 D^2 of attention, 8 D^2 of MLP, 13 D of biases and norms; then both embeddings and the last norm.
    embeddings = (language_model.VOCABULARY + language_model.CONTEXT) * width
    count = layers * (12 * width**2 + 13 * width) + embeddings + 2 * width
    assert new_model(rung).num_parameters() == count
    assert size / 1.25 < count < size * 1.25


def test_a_new_model_depends_on_its_seed_alone():
    a, b, c = (new_model("0.2M", 300, seed) for seed in (1, 1, 2))
    same = [torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(a.transformer.wte.weight, c.transformer.wte.weight)


def test_training_mode_has_no_dropout():
    model, ids = new_model("0.2M", 300).train(), torch.arange(20)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_unknown_rung_lists_the_ladder():
    with pytest.raises(ValueError, match="no rung '7B': it has 0.2M, 0.5M, 1M"):
        new_model("7B")


def test_a_saved_model_comes_back_in_float32(tmp_path):
    model = tiny_model()
    language_model.save(model, tmp_path)
    loaded = language_model.load(tmp_path)
    assert loaded.dtype == torch.float32
    assert torch.equal(loaded(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits)
    language_model.save(model.half(), tmp_path)
    assert language_model.load(tmp_path).dtype == torch.float32


# --- log-probabilities ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_a_plain_forward_pass(model, temperature):
    prompts, responses = ragged_batch()
    values, mask = response_log_probabilities(model, prompts, responses, temperature)
    assert values.shape == mask.shape == (6, 12)
    assert mask.sum(dim=1).tolist() == [len(r) for r in responses]
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = full_forward(model, prompt, response, temperature)
        torch.testing.assert_close(values[row, : len(response)], expected, atol=1e-5, rtol=0)
        assert not values[row, len(response) :].any() and not mask[row, len(response) :].any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_their_gradient_is_that_of_a_plain_forward_pass(temperature):
    model, (prompts, responses) = tiny_model(), ragged_batch()
    weights = torch.randn(6, 12, generator=torch.Generator().manual_seed(1))
    values, _ = response_log_probabilities(model, prompts, responses, temperature)
    ours = torch.autograd.grad((weights * values).sum(), list(model.parameters()))
    plain = sum(
        (weights[row, : len(r)] * full_forward(model, p, r, temperature)).sum()
        for row, (p, r) in enumerate(zip(prompts, responses, strict=True))
    )
    for a, b in zip(ours, torch.autograd.grad(plain, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "cohere, scaled logits", "gemma2, capped logits"])
def test_log_probabilities_of_other_architectures(architecture):
    kind, config = {
        "llama": (LlamaForCausalLM, LlamaConfig),
        "cohere, scaled logits": (CohereForCausalLM, CohereConfig),
        "gemma2, capped logits": (Gemma2ForCausalLM, Gemma2Config),
    }[architecture]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    model = kind(config(vocab_size=360, **sizes, **tokens, num_key_value_heads=2, initializer_range=0.5)).eval()
    prompts, responses = ragged_batch()
    values, _ = response_log_probabilities(model, prompts, responses)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = full_forward(model, prompt, response)
        torch.testing.assert_close(values[row, : len(response)], expected, atol=1e-4, rtol=0)


def test_other_rows_and_their_padding_change_nothing(model):
    prompts, responses = ragged_batch()
    batch, _ = response_log_probabilities(model, prompts, responses)
    for row in range(len(prompts)):
        alone, _ = response_log_probabilities(model, prompts[row : row + 1], responses[row : row + 1])
        torch.testing.assert_close(batch[row, : alone.shape[1]], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("token", [0, 1])  # <pad>, <eos>
def test_the_mask_comes_from_lengths_not_from_token_values(model, token):
    response = [7, token, token]
    values, mask = response_log_probabilities(model, [[5, token], [3]], [response, [4]])
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    torch.testing.assert_close(values[0], full_forward(model, [5, token], response), atol=1e-5, rtol=0)


def test_they_sum_to_the_log_probability_of_a_known_chain():
    transitions = torch.rand(5, 5, generator=torch.Generator().manual_seed(2)) + 0.05
    transitions /= transitions.sum(dim=1, keepdim=True)
    prompts, responses = [[2, 0], [4]], [[1, 3, 3, 0], [4, 2]]
    values, _ = response_log_probabilities(markov_model(transitions), prompts, responses)
    joint = [
        transitions[0, 1] * transitions[1, 3] * transitions[3, 3] * transitions[3, 0],
        transitions[4, 4] * transitions[4, 2],
    ]
    torch.testing.assert_close(values.sum(dim=1).exp(), torch.stack(joint), atol=0, rtol=1e-5)


def test_probabilities_of_all_responses_sum_to_one():
    transitions = torch.rand(3, 3, generator=torch.Generator().manual_seed(3)) + 0.05
    responses = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
    for model in (markov_model(transitions / transitions.sum(dim=1, keepdim=True)), tiny_model(vocabulary=3)):
        values, _ = response_log_probabilities(model, [[1, 2]] * 27, responses)
        assert values.sum(dim=1).exp().sum().item() == pytest.approx(1, abs=1e-5)


# --- perplexity ---


def test_perplexity_by_brute_force(model, tokenizer):
    examples = [("How do I boil", " an egg?"), ("", TEXTS[1][:60]), ("Add 3", " eggs, 250 g of flour and"), ("x", "")]
    losses = []
    for prompt, response in examples:
        ids = tokenizer(prompt + response)["input_ids"] + [tokenizer.eos_token_id]
        # No token spans the boundary here, so the whole text's tokens are the prompt's and then the response's.
        first = len(tokenizer(prompt)["input_ids"]) or 1
        losses += [-value.item() for value in full_forward(model, ids[:first], ids[first:])]
    expected = math.exp(sum(losses) / len(losses))
    assert perplexity(model, tokenizer, examples) == pytest.approx(expected, rel=1e-5)
    assert perplexity(model, tokenizer, examples, batch_size=1) == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary(tokenizer):
    model = tiny_model()
    torch.nn.init.zeros_(model.lm_head.weight)
    assert perplexity(model, tokenizer, [("", TEXTS[1][:40]), ("Add", " 3 eggs")]) == pytest.approx(360, rel=1e-5)


# --- the parts of a text ---


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_parts_of_texts_by_brute_force(model, tokenizer, batch_size):
    """Token by token: all but a text's first are predicted, by whatever stands before; the second text loses its end,
    and the third all of its second part."""
    texts = [
        ("Add", " 3 eggs and 250 g of flour."),
        ("Boil it. " * 8, 2 * TEXTS[0]),
        (3 * TEXTS[2], " Yes."),
        ("", "No end."),
    ]
    expected = [[0.0, 0], [0.0, 0]]
    lengths = []
    for prompt, response in texts:
        first = tokenizer(prompt)["input_ids"]
        ids = first + tokenizer(response)["input_ids"]
        lengths.append((len(first), len(ids)))
        kept = ids[: model.config.n_positions]
        for place, value in enumerate(full_forward(model, kept[:1], kept[1:]).tolist(), start=1):
            part = expected[place >= len(first)]
            part[0] += value
            part[1] += 1
    context = model.config.n_positions
    assert lengths[1][0] < context < lengths[1][1] and lengths[2][0] > context and lengths[3][0] == 0
    found = log_probabilities_of_parts(model, tokenizer, texts, batch_size)
    for (total, count), (its_sum, its_count) in zip(found, expected, strict=True):
        assert total == pytest.approx(its_sum, rel=1e-5) and count == its_count > 20


def test_the_parts_of_a_text_and_its_end_token_make_up_its_perplexity(model, tokenizer):
    text = "Add 3 eggs and 1-2 spoons of sugar."
    (_, none), (total, count) = log_probabilities_of_parts(model, tokenizer, [("", text)])
    end = full_forward(model, tokenizer(text)["input_ids"], [tokenizer.eos_token_id]).item()
    expected = perplexity(model, tokenizer, [("", text)])
    assert none == 0 and math.exp(-(total + end) / (count + 1)) == pytest.approx(expected, rel=1e-5)


# --- encode ---


@given(st.text("abc 12", max_size=30), st.text("abc 12", max_size=30), st.integers(2, 40))
def test_encode_never_exceeds_its_limit_and_cuts_only_the_outer_ends(tokenizer, prompt, response, limit):
    prompt_ids, response_ids = encode(tokenizer, prompt, response)
    whole = prompt_ids + response_ids
    assert whole == tokenizer(prompt)["input_ids"] + tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
    assert prompt_ids and (not prompt or prompt_ids == tokenizer(prompt)["input_ids"])
    cut_prompt, cut_response = encode(tokenizer, prompt, response, limit)
    assert len(cut_prompt) + len(cut_response) <= limit
    assert cut_prompt == prompt_ids[len(prompt_ids) - len(cut_prompt) :]  # from the left
    assert cut_response == response_ids[: len(cut_response)]  # from the right
    assert len(cut_prompt) >= 1
    # No room is wasted, and neither side is cut below half of it to spare the other.
    assert len(cut_prompt) + len(cut_response) == min(limit, len(whole))
    assert len(cut_response) >= min(len(response_ids), limit // 2)
    assert len(cut_prompt) >= min(len(prompt_ids), limit - limit // 2)


def test_a_long_prompt_is_cut_before_a_response_that_fits(tokenizer):
    prompt_ids, response_ids = encode(tokenizer, "1234567890", "123", max_tokens=8)
    assert tokenizer.decode(prompt_ids) == "7890"
    assert tokenizer.decode(response_ids) == "123<eos>"


def test_a_long_response_loses_its_end(tokenizer):
    prompt_ids, response_ids = encode(tokenizer, "12", "1234567890", max_tokens=8)
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(response_ids)) == ("12", "123456")


def test_without_a_prompt_the_first_token_serves_as_one(tokenizer):
    prompt_ids, response_ids = encode(tokenizer, "", "123")
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(response_ids)) == ("1", "23<eos>")


# --- the next token ---


def other_models():
    sizes = {"vocab_size": 360, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
    }
    torch.manual_seed(1)
    yield LlamaForCausalLM(LlamaConfig(**sizes, **heads)).eval()
    yield Gemma2ForCausalLM(Gemma2Config(**sizes, **heads, head_dim=16, final_logit_softcapping=2.0)).eval()


def test_next_token_logits_are_those_of_the_full_pass(model):
    sequences = [[5, 9, 7], [8], [3, 2, 4, 6, 1]]
    for other in (model, *other_models()):
        with torch.no_grad():
            expected = torch.stack([other(torch.tensor([sequence])).logits[0, -1] for sequence in sequences])
            torch.testing.assert_close(next_token_logits(other, sequences), expected, atol=1e-5, rtol=0)


def test_model_and_tokenizer_are_saved_side_by_side(model, tokenizer, tmp_path):
    language_model.save_with_tokenizer((model, tokenizer), tmp_path)
    again, its_tokenizer = language_model.load_with_tokenizer(tmp_path)
    assert its_tokenizer(TEXTS[0]) == tokenizer(TEXTS[0])
    torch.testing.assert_close(next_token_logits(again, [[5, 9]]), next_token_logits(model, [[5, 9]]))


# --- batches ---


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=50), st.integers(1, 8), st.booleans())
def test_length_batches_hold_every_index_once_and_similar_lengths(sizes, batch_size, shuffled):
    encoded = [([0] * p, [0] * r) for p, r in sizes]
    batches = length_batches(encoded, batch_size, random.Random(0) if shuffled else None)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert len(batches) == math.ceil(len(sizes) / batch_size)
    # Sorted by length: no batch reaches into the range of another.
    spans = sorted((min(sum(sizes[i]) for i in batch), max(sum(sizes[i]) for i in batch)) for batch in batches)
    assert all(low[1] <= high[0] for low, high in zip(spans, spans[1:], strict=False))


def test_shuffled_batches_differ_from_epoch_to_epoch_and_return_with_the_seed():
    encoded, rng = [([0], [0] * (1 + i // 10)) for i in range(100)], random.Random(5)
    first, second = length_batches(encoded, 4, rng), length_batches(encoded, 4, rng)
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}
    assert first == length_batches(encoded, 4, random.Random(5))


def test_pad_right():
    assert pad_right([[1], [2, 3, 4], [5, 6]]).tolist() == [[1, 1, 1], [2, 3, 4], [5, 6, 6]]
