"""Oracles: `generate` of transformers, the full forward pass, and the enumerated distribution of a tiny model."""

import itertools

import pytest
import torch
from scipy import stats
from torch.nn import functional as F
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from rlhf_lab import sampling
from rlhf_lab.language_model import train_tokenizer
from rlhf_lab.sampling import Samples, sample

VOCABULARY, NEW = 50, 12
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
PROMPTS = [[7], [3, 9, 27, 31, 44, 12, 5], [8, 2, 40], [11] * 9, [6, 4, 2, 30, 17], [21, 5, 33, 2, 9, 10, 48], [13, 20]]


def gpt2(vocabulary: int = VOCABULARY, spread: float = 8, **options) -> GPT2LMHeadModel:
    sizes = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return built(GPT2LMHeadModel, GPT2Config(vocab_size=vocabulary, **sizes, **options, **SPECIAL), spread)


def built(kind, config, spread: float = 8):
    """A random model with weights `spread` times the usual ones, so that its distributions are far from uniform."""
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(spread)
    return model


def modern(kind, config, **options):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return built(kind, config(vocab_size=VOCABULARY, **sizes, **options, **SPECIAL))


MODELS = {
    "gpt2": gpt2,
    "gpt2, untied head": lambda: gpt2(tie_word_embeddings=False),
    "gpt2, gelu in one operation": lambda: gpt2(activation_function="gelu_pytorch_tanh"),
    "gpt2, relu": lambda: gpt2(activation_function="relu"),
    "gpt2, scaled by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "llama": lambda: modern(LlamaForCausalLM, LlamaConfig),
    "neox": lambda: modern(GPTNeoXForCausalLM, GPTNeoXConfig),
    "mistral, sliding window": lambda: modern(
        MistralForCausalLM, MistralConfig, num_key_value_heads=1, sliding_window=4
    ),
    "bloom": lambda: built(
        BloomForCausalLM, BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=2, **SPECIAL)
    ),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    return MODELS[request.param]()


@torch.no_grad()
def full_forward(model, prompt: list[int], response: list[int], temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities (R,) of one response, alone and without a cache."""
    log_probs = F.log_softmax(model(torch.tensor([prompt + response])).logits[0] / temperature, dim=-1)
    return log_probs[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None]).squeeze(1)


@torch.no_grad()
def generated(model, prompt: list[int], eos: int) -> list[int]:
    """What `generate` says, without its own ideas about pads."""
    options = {"max_new_tokens": NEW, "eos_token_id": eos, "pad_token_id": 0, "do_sample": False}
    ids = torch.tensor([prompt])
    return model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()


def ending_at_different_times(model) -> int:
    """The token that, taken for the end token, ends greedy responses after as many different lengths as possible."""
    never = VOCABULARY - 1
    responses = sample(model, PROMPTS, NEW, never, seed=0, greedy=True).responses
    candidates = set(itertools.chain(*responses)) - {never}
    return max(candidates, key=lambda eos: len({r.index(eos) if eos in r else NEW for r in responses}))


# --- decoding ---


def test_greedy_equals_generate(model):
    eos = ending_at_different_times(model)
    ours = sample(model, PROMPTS, NEW, eos, seed=0, greedy=True).responses
    assert ours == [generated(model, prompt, eos) for prompt in PROMPTS]
    assert len({len(response) for response in ours}) > 1  # finished rows did leave the batch


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_the_full_forward_pass(model, temperature):
    eos = 3
    samples = sample(model, PROMPTS * 6, NEW, eos, seed=1, temperature=temperature)
    assert any(len(response) < NEW for response in samples.responses)
    for prompt, response, values in zip(PROMPTS * 6, samples.responses, samples.log_probabilities, strict=True):
        expected = full_forward(model, prompt, response, temperature)
        torch.testing.assert_close(values, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_both_decoders_draw_the_same(monkeypatch, temperature):
    fast = sample(gpt2(), PROMPTS * 6, NEW, 3, seed=2, temperature=temperature)
    monkeypatch.setattr(sampling.GPT2Decoder, "supports", lambda model: False)
    general = sample(gpt2(), PROMPTS * 6, NEW, 3, seed=2, temperature=temperature)
    assert fast.responses == general.responses
    for a, b in zip(fast.log_probabilities, general.log_probabilities, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_gpt2_has_a_decoder_of_its_own(monkeypatch):
    monkeypatch.delattr(sampling, "CacheDecoder")
    assert len(sample(gpt2(), PROMPTS, 3, 1, seed=0).responses) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 3, 20, 128])
def test_batches_and_rows_that_finish_change_nothing(batch_size):
    model = gpt2()
    eos = ending_at_different_times(model)
    together = sample(model, PROMPTS * 6, NEW, eos, seed=0, greedy=True, batch_size=batch_size)
    for i, prompt in enumerate(PROMPTS * 6):
        alone = sample(model, [prompt], NEW, eos, seed=0, greedy=True)
        assert together.responses[i] == alone.responses[0]
        torch.testing.assert_close(together.log_probabilities[i], alone.log_probabilities[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_draws_do_not_depend_on_the_batch(name):
    """With small batches, a row of GPT-2's decoder answers many prompts in turn, longer and shorter ones."""
    model = MODELS[name]()
    runs = [sample(model, PROMPTS * 6, NEW, 3, seed=2, batch_size=batch_size) for batch_size in (128, 1, 5, 16)]
    assert 0 < sum(len(response) < NEW for response in runs[0].responses) < len(PROMPTS * 6)
    for run in runs[1:]:
        assert run.responses == runs[0].responses
        for a, b in zip(run.log_probabilities, runs[0].log_probabilities, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_a_full_batch_takes_fewer_steps(monkeypatch):
    """A row that is done begins another prompt: as many steps as the tokens need, and a few more for the last ones."""
    steps = []
    step = sampling.GPT2Decoder.step
    monkeypatch.setattr(
        sampling.GPT2Decoder, "step", lambda self, chosen: steps.append(len(chosen)) or step(self, chosen)
    )
    responses = sample(gpt2(), PROMPTS * 30, NEW, 3, seed=2, batch_size=20).responses
    tokens = sum(map(len, responses))
    assert tokens - len(responses) <= sum(steps) < 1.25 * tokens and max(steps) == 20


def test_a_response_ends_with_the_end_token_or_is_as_long_as_allowed():
    for eos in range(5):
        responses = sample(gpt2(), PROMPTS * 20, NEW, eos, seed=3).responses
        for response in responses:
            assert eos not in response[:-1]
            assert response[-1] == eos or len(response) == NEW
        assert {len(response) == NEW for response in responses} == {True, False}


def test_one_new_token():
    samples = sample(gpt2(), PROMPTS, 1, 1, seed=0)
    assert [len(response) for response in samples.responses] == [1] * len(PROMPTS)
    assert [len(values) for values in samples.log_probabilities] == [1] * len(PROMPTS)


def test_no_prompts_no_samples():
    assert sample(gpt2(), [], NEW, 1, seed=0) == Samples([], [], [])


# --- the distribution ---


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_responses_come_with_the_probabilities_of_the_model(temperature):
    """A chi-square test of whole responses, for two prompts of different lengths side by side."""
    model, eos, draws = gpt2(vocabulary=5, spread=3), 0, 3000
    prompts = [[2, 3, 1, 4], [1]]
    every = [[eos]] + [[a, b] for a, b in itertools.product(range(1, 5), range(5))]
    responses = sample(model, prompts * draws, 2, eos, seed=4, temperature=temperature, batch_size=1000).responses
    for which, prompt in enumerate(prompts):
        observed = [responses[which::2].count(response) for response in every]
        expected = (
            torch.stack([full_forward(model, prompt, r, temperature).double().sum().exp() for r in every]) * draws
        )
        assert expected.min() > 5  # enough for the approximation
        assert expected.max() > 4 * expected.min()  # and far from uniform
        assert expected.sum().item() == pytest.approx(draws, rel=1e-5)
        assert stats.chisquare(observed, expected * (draws / expected.sum())).pvalue > 1e-3


@pytest.mark.parametrize("vocabulary", [5, 64, 65, 2048, 2100])
def test_inverse_cdf_equals_the_plain_sum(vocabulary):
    """In double precision, but for draws so close to an edge that rounding decides."""
    torch.manual_seed(0)
    p = torch.randn(4000, vocabulary).mul(3).softmax(dim=-1)
    draw = torch.rand(4000)
    ends = p.double().cumsum(dim=-1) / p.double().sum(dim=-1, keepdim=True)
    expected = torch.searchsorted(ends, draw.double()[:, None], right=True).squeeze(1)
    ours = sampling._inverse_cdf(p, draw)
    edge = (ends - draw[:, None]).abs().min(dim=-1).values < 1e-6
    assert torch.equal(ours[~edge], expected[~edge]) and edge.float().mean() < 0.05


def test_inverse_cdf_never_takes_what_has_no_probability():
    torch.manual_seed(0)
    p = torch.rand(2000, 300) * (torch.rand(2000, 300) < 0.02)
    p[:, 7] += 1e-30 * (p.sum(dim=-1) == 0)
    p = p / p.sum(dim=-1, keepdim=True)
    for draw in (0.0, 0.5, 1 - 2**-24):
        chosen = sampling._inverse_cdf(p, torch.full((2000,), draw))
        assert (p[torch.arange(2000), chosen] > 0).all()
    first, last = (p > 0).float().argmax(dim=-1), 299 - (p > 0).flip(1).float().argmax(dim=-1)
    assert torch.equal(sampling._inverse_cdf(p, torch.zeros(2000)), first)
    assert torch.equal(chosen, last)


def test_without_temperature_left_a_draw_is_the_most_likely_token():
    cold = sample(gpt2(), PROMPTS, NEW, 3, seed=5, temperature=1e-5)
    assert cold.responses == sample(gpt2(), PROMPTS, NEW, 3, seed=0, greedy=True).responses
    assert all((values > -1e-3).all() for values in cold.log_probabilities)


def test_greedy_log_probabilities_are_those_of_the_distribution():
    samples = sample(gpt2(), PROMPTS, NEW, 3, seed=0, greedy=True)
    for prompt, response, values in zip(PROMPTS, samples.responses, samples.log_probabilities, strict=True):
        torch.testing.assert_close(values, full_forward(gpt2(), prompt, response), atol=1e-4, rtol=0)


# --- seeds ---


def test_the_seed_decides_the_draws_and_nothing_else_does():
    model, runs = gpt2(), []
    for seed in (6, 6, 7):
        torch.manual_seed(len(runs))
        state = torch.get_rng_state()
        runs.append(sample(model, PROMPTS, NEW, 1, seed).responses)
        assert torch.equal(torch.get_rng_state(), state)
    assert runs[0] == runs[1]
    assert all(a != b for a, b in zip(runs[0], runs[2], strict=True))


def test_copies_of_a_prompt_get_draws_of_their_own():
    responses = sample(gpt2(), [PROMPTS[1]] * 40, NEW, eos=-1, seed=0, batch_size=10).responses
    assert len(set(map(tuple, responses))) == 40


# --- input and output ---


def test_an_empty_prompt_is_an_error():
    with pytest.raises(ValueError, match="prompt is empty"):
        sample(gpt2(), [[3], []], NEW, 1, seed=0)


def test_prompt_and_response_must_fit_the_context():
    fits = [[5] * (32 - NEW)]
    assert len(sample(gpt2(), fits, NEW, 49, seed=0, greedy=True).responses) == 1
    with pytest.raises(ValueError, match="prompt of 21 tokens and 12 new ones do not fit the model's context of 32"):
        sample(gpt2(), [[2], [5] * (33 - NEW)], NEW, 1, seed=0)


@pytest.mark.parametrize("numbers", [{"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": 0.0}])
def test_numbers_that_make_no_sense(numbers):
    with pytest.raises(ValueError, match="must be at least 1, and temperature"):
        sample(gpt2(), PROMPTS, **{"max_new_tokens": NEW} | numbers, eos=1, seed=0)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("greedy", [True, False])
def test_a_diverged_model_is_named(name, greedy):
    model = MODELS[name]()
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="logits are not numbers"):
        sample(model, PROMPTS, NEW, 1, seed=0, greedy=greedy)


def test_a_sum_that_rises_where_nothing_is_added_gives_the_likeliest_token(monkeypatch):
    monkeypatch.setattr(sampling, "_inverse_cdf", lambda p, draw: torch.zeros(len(p), dtype=torch.long))
    logits = torch.tensor([[-torch.inf, 0.0, 1.0], [0.0, 1.0, 2.0]])
    chosen, value = sampling._choose(logits, torch.rand(2), 1.0, greedy=False)
    assert chosen.tolist() == [2, 0]
    torch.testing.assert_close(value, logits.log_softmax(-1)[[0, 1], [2, 0]])


def test_autocast_is_left_to_the_model():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        samples = sample(gpt2(), PROMPTS, NEW, 1, seed=0)
    assert [len(v) for v in samples.log_probabilities] == [len(r) for r in samples.responses]


def test_texts_come_without_the_end_token():
    tokenizer = train_tokenizer(["boil an egg"], vocabulary=280)
    ids = [tokenizer(text)["input_ids"] for text in (" Boil it.", " An egg", "")]
    samples = Samples([ids[0] + [tokenizer.eos_token_id], ids[1], [tokenizer.eos_token_id]], [], [])
    assert samples.texts(tokenizer) == [" Boil it.", " An egg", ""]
