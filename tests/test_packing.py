"""Packed reading gives what reading one text at a time gives, in value and in gradient."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_lab import language_model, packing

PROMPTS = [[5, 6, 7], [5], [8, 9, 10, 11, 12, 13], [3, 4], [14, 2, 2, 2]]
RESPONSES = [[4, 1], [9, 9, 8, 7, 6, 1], [1], [2, 3, 4], [5, 5, 5, 5, 5, 5, 5, 1]]


def gpt2(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, **changes)).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ).eval()


@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_packed_reading_equals_the_model_on_one_text_at_a_time(make, temperature):
    model = make()
    values, mask, states = packing.read_responses(model, PROMPTS, RESPONSES, temperature)
    rows = iter(states)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        output = model(torch.tensor([prompt + response]), output_hidden_states=True)
        log_probs = (output.logits[0] / temperature).log_softmax(-1)
        for t, token in enumerate(response):
            before = len(prompt) - 1 + t
            assert values[i, t].item() == pytest.approx(log_probs[before, token].item(), abs=1e-5)
            assert torch.allclose(next(rows), output.hidden_states[-1][0, before], atol=1e-5)
        assert mask[i].tolist() == [t < len(response) for t in range(8)]
        assert (values[i, len(response) :] == 0).all()
    assert next(rows, None) is None


def test_gradients_are_those_of_padded_reading():
    packed, padded = gpt2(), gpt2()
    weights = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    for model, read in ((packed, packing.read_responses), (padded, language_model.read_responses)):
        values, _, states = read(model, PROMPTS, RESPONSES)
        ((weights * values).sum() + states.square().sum()).backward()
    for a, b in zip(packed.parameters(), padded.parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-4)


def test_what_a_group_is_padded_with_reaches_nothing(monkeypatch):
    model = gpt2()
    alone = packing.read_responses(model, PROMPTS, RESPONSES)[0]
    monkeypatch.setattr(packing, "GROUP", 5)
    assert torch.allclose(packing.read_responses(model, PROMPTS, RESPONSES)[0], alone, atol=1e-5)


def test_a_score_is_the_same_packed_or_read_alone():
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=20, n_positions=32, n_embd=16, n_layer=2, n_head=2, num_labels=1, pad_token_id=0)
    judge = GPT2ForSequenceClassification(config).eval()
    assert packing.supports(judge) and not packing.supports(copy.deepcopy(judge).train())
    texts = [prompt + response for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    states = packing.last_states(judge, texts)
    for text, state in zip(texts, states, strict=True):
        alone = judge(torch.tensor([text])).logits[0]
        assert torch.allclose(judge.score(state), alone, atol=1e-5)


def test_dropout_is_not_lost_on_the_way():
    model = gpt2(resid_pdrop=0.5, embd_pdrop=0.0, attn_pdrop=0.0)
    still = packing.read_responses(model, PROMPTS, RESPONSES)[0]
    assert torch.equal(still, packing.read_responses(model, PROMPTS, RESPONSES)[0])
    dropped = packing.read_responses(copy.deepcopy(model).train(), PROMPTS, RESPONSES)[0]
    assert not torch.allclose(still, dropped, atol=1e-2)
