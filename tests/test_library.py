"""Oracles: the course's own trainers, step by step, from which TRL's must not differ where a batch is all there is;
losses and gradients written out for the answers that a trainer has drawn; counts of what it was seen to generate."""

import copy
import logging
import os
import random
import subprocess
import sys
import tempfile

import datasets
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from huggingface_hub.utils import _telemetry
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging as transformers_logging

from rlhf_lab import dpo, instructions, library, reward_model, sft
from rlhf_lab.language_model import encode, response_log_probabilities, train_tokenizer
from rlhf_lab.rloo import leave_one_out_advantages

ASKED = ["How do I boil an egg?", "Why?", "What is a good name for a small brown dog?", "Who are you?"]
ANSWERS = ["For 10 minutes.", "Nobody knows.", "Toast", "A model of language, and a small one at that."]
EXAMPLES = [(instructions.template(asked), answer) for asked, answer in zip(ASKED, ANSWERS, strict=True)]
PAIRS = [
    {"prompt": prompt, "chosen": answer, "rejected": other}
    for (prompt, answer), other in zip(EXAMPLES, ["Ask mother.", "", "A dog needs no name at all.", "No."], strict=True)
]
ANSWERS_OF = instructions.answers  # before a test looks on
CLOSE = {"rel": 1e-4, "abs": 1e-6}


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer([prompt + response for prompt, response in EXAMPLES], vocabulary=300)
    tokenizer.eos_token = instructions.END
    return tokenizer


@pytest.fixture
def policy():
    return tiny(0)


@pytest.fixture
def reference():
    return tiny(1)


def tiny(seed: int) -> GPT2LMHeadModel:
    """A random model that ends about one answer in five tokens. Its configuration knows another end token."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 300, "n_positions": 96, "n_embd": 16, "n_layer": 1, "n_head": 1, "initializer_range": 0.2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, pad_token_id=0, bos_token_id=1, eos_token_id=1))
    model.transformer.ln_f.bias.data[0] = 1.0
    model.transformer.wte.weight.data[[8, 1], 0] = torch.tensor([4.5, 3.5])  # the end key's, and the other's
    return model.eval()


def same_weights(model, other) -> bool:
    return all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))


def assert_same_function(model, other) -> None:
    """Weights may differ: where a gradient is zero but for rounding (the keys' bias), Adam moves at random."""
    text = torch.arange(9, 60)[None]
    torch.testing.assert_close(model(text).logits, other(text).logits, rtol=0, atol=1e-3)


# --- learning from data ---


def test_fine_tuning_is_ours_where_a_batch_is_all_there_is(policy, tokenizer):
    ours, config = copy.deepcopy(policy), sft.SFTConfig(epochs=4, batch_size=4, learning_rate=1e-3, weight_decay=0.1)
    expected = sft.train(ours, tokenizer, EXAMPLES, config, seed=0)
    assert library.fine_tune(policy, tokenizer, EXAMPLES, config, seed=0) == pytest.approx(expected, **CLOSE)
    assert_same_function(policy, ours)


def test_the_first_loss_is_the_mean_over_answers_and_one_end_key_each(policy, tokenizer):
    total, count = 0.0, 0
    for prompt, response in EXAMPLES:
        asked, answer = encode(tokenizer, prompt, response)
        assert answer.count(tokenizer.eos_token_id) == 1 and answer[-1] == tokenizer.eos_token_id
        log_probs = policy(torch.tensor([asked + answer])).logits[0].log_softmax(dim=-1)
        total -= sum(log_probs[len(asked) - 1 + i, token].item() for i, token in enumerate(answer))
        count += len(answer)
    losses = library.fine_tune(policy, tokenizer, EXAMPLES, sft.SFTConfig(epochs=1, batch_size=4), seed=0)
    assert losses == [pytest.approx(total / count, **CLOSE)]


def test_fitting_a_reward_model_is_ours_where_a_batch_is_all_there_is(policy, tokenizer):
    model = reward_model.from_language_model(policy, seed=0)
    ours, config = copy.deepcopy(model), reward_model.RewardModelConfig(epochs=4, batch_size=4, learning_rate=1e-3)
    chosen, rejected = (
        reward_model.score(model, tokenizer, [pair["prompt"] for pair in PAIRS], [pair[side] for pair in PAIRS])
        for side in ("chosen", "rejected")
    )
    losses = library.fit_reward_model(model, tokenizer, PAIRS, config, seed=0)
    assert losses[0] == pytest.approx(reward_model.pairwise_loss(chosen, rejected).item(), **CLOSE)
    assert losses == pytest.approx(reward_model.train(ours, tokenizer, PAIRS, config, seed=0), **CLOSE)
    assert_same_function(model, ours)


def test_pairs_that_are_too_long_are_left_out_by_the_reward_trainer(policy, tokenizer):
    model = reward_model.from_language_model(policy, seed=0)
    lengths = [
        max(sum(map(len, encode(tokenizer, pair["prompt"], pair[side]))) for side in ("chosen", "rejected"))
        for pair in PAIRS
    ]
    room = sorted(lengths)[1]
    kept = [pair for pair, length in zip(PAIRS, lengths, strict=True) if length <= room]
    config = reward_model.RewardModelConfig(batch_size=4, max_tokens=room)
    expected = reward_model.train(copy.deepcopy(model), tokenizer, kept, config, seed=0)
    assert len(kept) < len(PAIRS)
    assert library.fit_reward_model(model, tokenizer, PAIRS, config, seed=0) == pytest.approx(expected, **CLOSE)


def test_a_reward_model_cannot_be_fitted_to_nothing(policy, tokenizer):
    model, config = reward_model.from_language_model(policy, seed=0), reward_model.RewardModelConfig(max_tokens=5)
    with pytest.raises(ValueError, match="longer than 5 tokens"):
        library.fit_reward_model(model, tokenizer, PAIRS, config, seed=0)
    with pytest.raises(ValueError, match="nothing to learn from"):
        library.fit_reward_model(model, tokenizer, [], config, seed=0)


def test_an_end_token_that_pads_is_refused(policy, tokenizer):
    padded = copy.deepcopy(tokenizer)
    padded.pad_token = padded.eos_token
    model = reward_model.from_language_model(policy, seed=0)
    with pytest.raises(ValueError, match="pads with its end token"):
        library.fit_reward_model(model, padded, PAIRS, reward_model.RewardModelConfig(), seed=0)


@pytest.mark.parametrize("mean", [False, True])
def test_dpo_is_ours_where_a_batch_is_all_there_is(policy, reference, tokenizer, mean):
    ours, before = copy.deepcopy(policy), copy.deepcopy(reference)
    config = dpo.DPOConfig(beta=0.3, epochs=4, batch_size=4, learning_rate=1e-3, mean=mean)
    expected = dpo.train(ours, reference, tokenizer, PAIRS, config, seed=0)
    logs = library.dpo(policy, reference, tokenizer, PAIRS, config, seed=0)
    assert list(logs) == list(expected)
    for name in ["loss"] if mean else logs:  # TRL logs rewards of sums also where it learns from means
        assert logs[name] == pytest.approx(expected[name], **CLOSE), name
    assert_same_function(policy, ours)
    assert same_weights(reference, before) and "forward" not in vars(reference)


# --- learning from answers ---


class Run:
    """One call of a method, and what was seen of it: the tokens of each step's answers, and what the reward got."""

    def __init__(self, monkeypatch, method, policy, reference, tokenizer, tokens: int, **options):
        self.ids, self.seen, self.rewards = [], [], []
        config = library.OnlineConfig(**{"answers": 8, "group": 4, "max_new_tokens": 8} | options)

        def answers(tokenizer, responses):
            self.ids.append(responses)
            return ANSWERS_OF(tokenizer, responses)

        def reward(asked, texts):
            self.seen.append((asked, texts))
            self.rewards.append(
                [len(text) / 10 - (question == "Why?") for question, text in zip(*self.seen[-1], strict=True)]
            )
            return self.rewards[-1]

        monkeypatch.setattr(library.instructions, "answers", answers)
        self.logs = method(policy, reference, tokenizer, ASKED, reward, config, tokens, 0)


@pytest.fixture
def run(monkeypatch, tokenizer):
    return lambda method, policy, reference, tokens, **options: Run(
        monkeypatch, method, policy, reference, tokenizer, tokens, **options
    )


METHODS = pytest.mark.parametrize("method", [library.rloo, library.grpo])


def forgetful(model):
    """The model with dropout, which every answer and every step has to do without."""
    for part in model.modules():
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.5
    return model


def first_step(run, policy, reference, tokenizer):
    """Log-probabilities (B, R) of the first answers by the policy that drew them, with gradients, and the reference;
    the mask (B, R) and the rewards (B,)."""
    prompts = [tokenizer(instructions.template(asked))["input_ids"] for asked in run.seen[0][0]]
    assert len(set(map(len, prompts))) > 1, "or nothing is padded"
    values, mask = response_log_probabilities(policy, prompts, run.ids[0])
    with torch.no_grad():
        return values, response_log_probabilities(reference, prompts, run.ids[0])[0], mask, torch.tensor(run.rewards[0])


def gradient_norm(loss, model) -> float:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).norm().item()


def test_a_step_of_rloo_is_the_one_that_its_formula_says(run, policy, reference, tokenizer):
    before = copy.deepcopy(policy)
    result = run(library.rloo, forgetful(policy), forgetful(reference), tokens=1, kl_coef=0.3)
    values, anchors, mask, rewards = first_step(result, before, reference, tokenizer)
    ratios = (values.detach() - anchors).sum(dim=1)  # (B,)
    advantages = leave_one_out_advantages(rewards - 0.3 * ratios, 4)
    norm = gradient_norm(-(advantages * values.sum(dim=1)).mean(), before)
    assert result.logs["kl"] == [pytest.approx(ratios.mean().item(), **CLOSE)]
    assert result.logs["gradient_norm"] == [pytest.approx(norm, rel=1e-3)]
    assert result.logs["reward"] == [pytest.approx(rewards.mean().item(), **CLOSE)]


def test_a_step_of_grpo_is_the_one_that_its_formula_says(run, policy, reference, tokenizer):
    before = copy.deepcopy(policy)
    result = run(library.grpo, forgetful(policy), forgetful(reference), tokens=1, kl_coef=0.3)
    values, anchors, mask, rewards = first_step(result, before, reference, tokenizer)
    groups = rewards.view(-1, 4)
    advantages = ((groups - groups.mean(dim=1, keepdim=True)) / (groups.std(dim=1, keepdim=True) + 1e-4)).view(-1, 1)
    ratio = (values - values.detach()).exp()
    kl = ((anchors - values).exp() - (anchors - values) - 1) * mask  # (B, R), k3
    loss = ((kl * 0.3 - advantages) * ratio * mask).sum() / mask.sum()
    assert result.logs["loss"] == [pytest.approx(loss.item(), rel=1e-3)]
    assert result.logs["gradient_norm"] == [pytest.approx(gradient_norm(loss, before), rel=1e-3)]
    assert result.logs["kl"] == [pytest.approx(kl.sum().item() / len(kl), rel=1e-3)]


@METHODS
def test_a_run_ends_with_the_step_that_exceeds_its_tokens(run, policy, reference, method):
    result = run(method, policy, reference, tokens=100)
    spent = [sum(map(len, step)) for step in result.ids]
    assert result.logs["tokens"] == sum(spent) >= 100 > sum(spent[:-1])
    assert result.logs["answers"] == 8 * len(spent) and {len(step) for step in result.ids} == {8}
    assert len(spent) > 2 and all(len(result.logs[name]) == len(spent) for name in library.SAMPLED.values())
    assert result.logs["length"] == [pytest.approx(tokens / 8) for tokens in spent]


@METHODS
def test_an_answer_ends_at_the_end_key_or_at_the_limit_and_nowhere_else(run, policy, reference, tokenizer, method):
    result, end = run(method, policy, reference, tokens=300), tokenizer.eos_token_id
    answers = [answer for step in result.ids for answer in step]
    assert all(len(answer) == 8 or answer[-1] == end for answer in answers)
    assert all(end not in answer[:-1] for answer in answers)
    assert any(1 in answer[:-1] for answer in answers), "the token that ends texts of the model itself"
    ended = [sum(answer[-1] == end for answer in step) / 8 for step in result.ids]
    assert result.logs["ended"] == pytest.approx(ended) and 0 < sum(ended) < len(ended)


@METHODS
def test_answers_are_drawn_from_the_whole_distribution(run, policy, reference, tokenizer, method):
    result = run(method, policy, copy.deepcopy(policy), tokens=300, learning_rate=0.0)
    drawn = [
        pair for step, (asked, _) in zip(result.ids, result.seen, strict=True) for pair in zip(asked, step, strict=True)
    ]
    ids = tokenizer([instructions.template(asked) for asked, _ in drawn])["input_ids"]
    log_probs, mask = response_log_probabilities(policy, ids, [answer for _, answer in drawn])
    entropy = sum(result.logs["entropy"]) / len(result.logs["entropy"])
    surprise = -log_probs.sum() / mask.sum()  # nats a token; its mean over draws from the policy is the entropy
    error = log_probs[mask.bool()].std() / mask.sum().sqrt()
    assert surprise.item() == pytest.approx(entropy, abs=4 * error.item())


@METHODS
def test_the_learning_rate_falls_with_the_tokens_that_are_left(run, policy, reference, method):
    result = run(method, policy, reference, tokens=100, learning_rate=1e-3)
    spent = [sum(map(len, step)) for step in result.ids]
    left = [1 - sum(spent[:done]) / 100 for done in range(len(spent))]
    logged = result.logs["learning_rate"]  # TRL logs what a step was taken with, or what the next one will be
    assert logged == pytest.approx([1e-3 * share for share in left], **CLOSE)


@METHODS
def test_the_reward_gets_instructions_and_answers_alone(run, policy, reference, tokenizer, method):
    result = run(method, policy, reference, tokens=100)
    for (asked, texts), ids in zip(result.seen, result.ids, strict=True):
        assert [len(set(asked[start : start + 4])) for start in (0, 4)] == [1, 1] and set(asked) <= set(ASKED)
        assert sorted(tokenizer.added_tokens_decoder) == list(range(9))  # special ones, the end key among them
        assert texts == [tokenizer.decode([token for token in answer if token > 8]).strip() for answer in ids]


@METHODS
def test_only_the_weights_of_the_policy_change(run, policy, reference, method):
    policy.train(), reference.eval()
    before, anchor, config = copy.deepcopy(policy), copy.deepcopy(reference), policy.config.to_dict()
    run(method, policy, reference, tokens=1, learning_rate=1e-2)
    assert not same_weights(policy, before) and same_weights(reference, anchor)
    assert policy.config.to_dict() == config and policy.generation_config.eos_token_id == 1
    for model in (policy, reference):
        assert "forward" not in vars(model) and not model.base_model._forward_pre_hooks
    assert policy.training and not reference.training


def test_the_seed_decides_what_is_drawn(run, policy, reference):
    first = run(library.rloo, copy.deepcopy(policy), reference, tokens=1)
    torch.rand(7)
    assert run(library.rloo, copy.deepcopy(policy), reference, tokens=1).ids == first.ids


def test_too_few_instructions_for_a_step_are_refused(policy, reference, tokenizer):
    with pytest.raises(ValueError, match="4 instructions with 4 answers each do not fill a step of 128"):
        library.rloo(policy, reference, tokenizer, ASKED, lambda *_: [], library.OnlineConfig(), 100, 0)


def test_a_run_without_a_reference_is_refused(policy, reference, tokenizer):
    config = library.OnlineConfig(kl_coef=0.0, answers=8)
    with pytest.raises(ValueError, match="kl_coef = 0.0 must be above 0"):
        library.grpo(policy, reference, tokenizer, ASKED, lambda *_: [], config, 100, 0)


# --- traces ---


LOGGERS = "trl", "transformers", "accelerate", "datasets"


class Heard(logging.Handler):
    """Remembers what is logged."""

    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())


@pytest.fixture
def heard():
    handler = Heard()
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    yield handler.messages
    for name in LOGGERS:
        logging.getLogger(name).removeHandler(handler)


def state() -> dict:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [part.tolist() if hasattr(part, "tolist") else part for part in np.random.get_state()],
        "python": random.getstate(),
        "environment": dict(os.environ),
        "levels": [logging.getLogger(name).level for name in LOGGERS],
        "bars": (datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()),
        "threads": torch.get_num_threads(),
    }


def test_nothing_is_left_behind_and_nobody_is_told(
    run, policy, reference, tokenizer, heard, tmp_path, monkeypatch, capfd
):
    import trl  # noqa: F401 (what its import changes is not what a run changes)

    places = [tmp_path / name for name in ("here", "temporary")]
    for place in places:
        place.mkdir()
    monkeypatch.chdir(places[0])
    monkeypatch.setattr(tempfile, "tempdir", str(places[1]))
    told = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    monkeypatch.setattr(_telemetry, "_TELEMETRY_QUEUE", type("Queue", (), {"put": staticmethod(told.append)}))
    judge = reward_model.from_language_model(policy, seed=0)
    before = state()
    capfd.readouterr()
    library.fine_tune(copy.deepcopy(policy), tokenizer, EXAMPLES, sft.SFTConfig(epochs=1), seed=3)
    library.fit_reward_model(judge, tokenizer, PAIRS, reward_model.RewardModelConfig(), seed=3)
    library.dpo(copy.deepcopy(policy), reference, tokenizer, PAIRS, dpo.DPOConfig(), seed=3)
    run(library.rloo, policy, reference, tokens=1)
    assert capfd.readouterr() == ("", "") and not heard
    assert state() == before
    assert [list(place.rglob("*")) for place in places] == [[], []] and not told


def test_the_library_is_imported_when_it_is_needed():
    code = "import sys, rlhf_lab.library; sys.exit('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
