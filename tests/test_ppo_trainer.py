"""Oracles: PPO written out in loops for one episode at a time, without batches, padding or caches; exact distributions
of models that say one token; and runs that must agree to the last bit."""

import copy
import functools
import hashlib
import math
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf_lab import ppo, reward_model
from rlhf_lab.ppo import PPO, PPOConfig

VOCABULARY, WIDTH, NEW, EOS = 20, 16, 6, 1
SPECIAL = {"pad_token_id": 0, "bos_token_id": EOS, "eos_token_id": EOS}
QUERIES = [[5, 3, 2], [7], [3, 9, 17, 11, 14, 12], [8, 2], [11, 11], [6, 4, 2, 13], [9], [13, 18, 5]]
RESPONSES = [[4, 6, EOS], [EOS], [9, 8, 7, 6, 5, 4], [3, 2, EOS], [12, 13, 14, 15], [2, 16, 9, 9, EOS], [4], [0, 5, 0]]
SCORES = [1.0, -0.5, 2.0, 0.3, -1.2, 0.0, 0.7, 1.6]
PROMPTS = ["w5 w3 w2", "w7", "w3 w9 w17", "w8 w2", "w11 w11", "w6 w4 w2 w13", "w9", "w13 w18 w5", "w4 w4", "w2"]


def tokenizer(pad: str = "<pad>") -> PreTrainedTokenizerFast:
    """Words as tokens, so that a text can be read off its ids."""
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token=pad, eos_token="<eos>")


def built(kind, config, seed: int):
    """A random model with weights larger than usual, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(5)
    return model


class Unknown(GPT2LMHeadModel):
    """A GPT-2 that no fast path recognizes."""


def gpt2(seed: int = 0, kind=GPT2LMHeadModel, dropout: float = 0.0) -> GPT2LMHeadModel:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 24, "n_embd": WIDTH, "n_layer": 1, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return built(kind, GPT2Config(**sizes, **rates, **SPECIAL), seed)


def modern(kind, config, seed: int):
    sizes = {"hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    return built(kind, config(vocab_size=VOCABULARY, max_position_embeddings=24, **sizes, **SPECIAL), seed)


def bloom(seed: int = 0):
    """A model without a longest text."""
    return built(
        BloomForCausalLM, BloomConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=1, n_head=2, **SPECIAL), seed
    )


MODELS = {
    "gpt2": gpt2,
    "gpt2, no fast path": lambda seed=0: gpt2(seed, Unknown),
    "llama": lambda seed=0: modern(LlamaForCausalLM, LlamaConfig, seed),
    "neox": lambda seed=0: modern(GPTNeoXForCausalLM, GPTNeoXConfig, seed),
}

SMALL = PPOConfig(
    updates=4,
    batch_size=8,
    epochs=2,
    minibatches=2,
    micro_batch=3,
    learning_rate=3e-3,
    value_learning_rate=3e-3,
    warmup=1,
    max_new_tokens=NEW,
)
STILL = replace(  # only writes a gradient
    SMALL, learning_rate=0.0, value_learning_rate=0.0, epochs=1, minibatches=1, max_gradient_norm=1e9
)


def trainer(config: PPOConfig = SMALL, policy=None, reference=None, **options) -> PPO:
    policy = gpt2(0) if policy is None else policy
    reference = gpt2(1) if reference is None else reference
    return PPO(policy, reference, config, options.pop("tokenizer", None) or tokenizer(), **options)


def with_values(config: PPOConfig, critic: str = "head", policy=None, reference=None, **options) -> PPO:
    """A trainer whose values are not zero, and so pass a gradient on."""
    policy = gpt2(0) if policy is None else policy
    if critic == "model":
        options["value_model"] = reward_model.from_language_model(policy, seed=7)
        options["value_model"].config.reward_zero = 0.3
    t = trainer(config, policy, reference, **options)
    torch.nn.init.normal_(t.value_head.weight, generator=torch.Generator().manual_seed(8))
    return t


def fingerprint(model) -> str:
    """A hash of all weights."""
    parts = (name.encode() + value.numpy().tobytes() for name, value in sorted(model.state_dict().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def flat(parameters) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def gradient(t: PPO) -> torch.Tensor:
    return flat(parameter.grad for parameter in t.parameters if parameter.grad is not None)


# --- PPO in loops ---


def prefixes(query: list[int], response: list[int]) -> list[torch.Tensor]:
    """What stands before each token of a response, (1, P + t) each."""
    return [torch.tensor([query + response[:t]]) for t in range(len(response))]


def logs(model, query: list[int], response: list[int], temperature: float = 1.0) -> list[torch.Tensor]:
    """The log-probability of each token, without batches, padding or caches."""
    scaled = [model(prefix).logits[0, -1] / temperature for prefix in prefixes(query, response)]
    return [logits.log_softmax(-1)[token] for logits, token in zip(scaled, response, strict=True)]


def worth(t: PPO, query: list[int], response: list[int]) -> list[torch.Tensor]:
    """The value before each token."""
    if t.value_model is None:
        outputs = [t.policy(prefix, output_hidden_states=True) for prefix in prefixes(query, response)]
        return [t.value_head(output.hidden_states[-1][0, -1])[0] for output in outputs]
    model = t.value_model
    hidden = [model.base_model(prefix).last_hidden_state[0, -1] for prefix in prefixes(query, response)]
    return [model.score(state)[0] - getattr(model.config, "reward_zero", 0.0) for state in hidden]


def mean(numbers) -> float:
    return sum(numbers) / len(numbers)


def deviation(numbers) -> float:
    return math.sqrt(mean([(x - mean(numbers)) ** 2 for x in numbers]))


@dataclass
class Episode:
    """What PPO writes down before its first step, one number a token."""

    query: list[int]
    response: list[int]
    old: list[float]
    values: list[float]
    log_ratio: list[float]
    rewards: list[float]
    advantages: list[float] | None = None
    returns: list[float] | None = None
    raw: list[float] | None = None  # advantages before whitening


def written_down(t: PPO, queries, responses, scores, kl_coef: float) -> list[Episode]:
    c, episodes = t.config, []
    for query, response, score in zip(queries, responses, scores, strict=True):
        with torch.no_grad():
            old = [x.item() for x in logs(t.policy, query, response, c.temperature)]
            reference = [x.item() for x in logs(t.reference, query, response, c.temperature)]
            values = [x.item() for x in worth(t, query, response)]
        log_ratio = [a - b for a, b in zip(old, reference, strict=True)]
        rewards = [-kl_coef * x for x in log_ratio]
        rewards[-1] += score - (c.eos_penalty if response[-1] != EOS else 0)
        episodes.append(Episode(query, response, old, values, log_ratio, rewards))
    if c.whiten_rewards:
        center, spread = mean(every(episodes, "rewards")), deviation(every(episodes, "rewards"))
        for e in episodes:
            e.rewards = [center + (x - center) / spread for x in e.rewards]
    for e in episodes:
        after = [*e.values[1:], 0.0]  # a response that was cut has ended, too
        errors = [r + c.gamma * n - v for r, n, v in zip(e.rewards, after, e.values, strict=True)]
        e.raw = [
            sum((c.gamma * c.lam) ** (s - i) * errors[s] for s in range(i, len(errors))) for i in range(len(errors))
        ]
        e.advantages, e.returns = e.raw, [a + v for a, v in zip(e.raw, e.values, strict=True)]
    if c.whiten_advantages:
        center, spread = mean(every(episodes, "raw")), deviation(every(episodes, "raw"))
        for e in episodes:
            e.advantages = [(x - center) / spread for x in e.raw]
    return episodes


def every(episodes: list[Episode], name: str) -> list[float]:
    """One column of all tokens of all episodes."""
    return [x for episode in episodes for x in getattr(episode, name)]


def losses(t: PPO, episodes: list[Episode]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The mean losses of policy and values over all tokens, and the ratios (N,)."""
    c, of_policy, of_values, ratios = t.config, [], [], []
    for e in episodes:
        new, values = logs(t.policy, e.query, e.response, c.temperature), worth(t, e.query, e.response)
        for i in range(len(e.response)):
            ratio = (new[i] - e.old[i]).exp()
            ratios.append(ratio.detach())
            held = ratio.clamp(1 - c.clip, 1 + c.clip)
            of_policy.append(-torch.minimum(ratio * e.advantages[i], held * e.advantages[i]))
            error = (values[i] - e.returns[i]) ** 2
            if c.value_clip is not None:
                near = e.values[i] + (values[i] - e.values[i]).clamp(-c.value_clip, c.value_clip)
                error = torch.maximum(error, (near - e.returns[i]) ** 2)
            of_values.append(error / 2)
    return torch.stack(of_policy).mean(), torch.stack(of_values).mean(), torch.stack(ratios)


def gradients(t: PPO, episodes: list[Episode]) -> list[torch.Tensor]:
    of_policy, of_values, _ = losses(t, episodes)
    return torch.autograd.grad(of_policy + t.config.value_coef * of_values, t.parameters, allow_unused=True)


def same_gradient(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert any(x is not None and x.abs().max() > 1e-3 for x in expected)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a if a is not None else b, b if b is not None else a, atol=1e-5, rtol=1e-4)


VARIANTS = {
    "defaults": {},
    "temperature": {"temperature": 0.7},
    "no whitening": {"whiten_advantages": False},
    "whitened rewards": {"whiten_rewards": True, "whiten_advantages": False},
    "discount": {"gamma": 0.9, "lam": 0.5},
    "values alone": {"lam": 0.0, "value_coef": 3.0, "value_clip": None},
    "no penalty for no end": {"eos_penalty": 0.0},
    "strong KL": {"kl_coef": 2.0, "whiten_advantages": False},
}


@pytest.mark.parametrize("critic", ["head", "model"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_the_gradient_is_that_of_ppo_written_out_in_loops(options, critic):
    t = with_values(replace(STILL, **options), critic)
    episodes = written_down(t, QUERIES, RESPONSES, SCORES, t.kl_coef)
    expected = gradients(t, episodes)
    t.step(QUERIES, RESPONSES, SCORES)
    same_gradient([p.grad for p in t.parameters], expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("critic", ["head", "model"])
def test_any_causal_language_model_gets_that_gradient(name, critic):
    t = with_values(replace(STILL, temperature=0.7), critic, MODELS[name](0), MODELS[name](1))
    episodes = written_down(t, QUERIES, RESPONSES, SCORES, t.kl_coef)
    expected = gradients(t, episodes)
    t.step(QUERIES, RESPONSES, SCORES)
    same_gradient([p.grad for p in t.parameters], expected)


@pytest.mark.parametrize("critic", ["head", "model"])
def test_two_updates_of_several_epochs_end_at_the_weights_of_the_loops(critic):
    """Here ratios leave the clip, values theirs, Adam has a memory and beta moves."""
    config = replace(
        SMALL, epochs=3, minibatches=1, learning_rate=0.02, value_learning_rate=0.05, updates=3, warmup=2,
        temperature=0.8, kl_target=0.3, kl_horizon=50, max_gradient_norm=0.5, value_clip=0.1, clip=0.1,
    )  # fmt: skip
    t, plain = with_values(config, critic), with_values(config, critic)
    rates = [0.02] * len(list(t.policy.parameters()))
    rates += [0.05 if critic == "head" else 0.02] * (len(t.parameters) - len(rates))
    optimizer = torch.optim.Adam([{"params": [p]} for p in plain.parameters], betas=(0.9, 0.95), eps=1e-5)
    kl_coef = config.kl_coef
    for update, share in enumerate([1 / 2, 2 / 3]):
        scores = [score + update for score in SCORES]
        metrics = t.step(QUERIES, RESPONSES, scores)
        episodes = written_down(plain, QUERIES, RESPONSES, scores, kl_coef)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        ratios = []
        for _ in range(config.epochs):
            of_policy, of_values, now = losses(plain, episodes)
            ratios.append(now)
            derivatives = torch.autograd.grad(of_policy + config.value_coef * of_values, plain.parameters)
            for parameter, derivative in zip(plain.parameters, derivatives, strict=True):
                parameter.grad = derivative
            torch.nn.utils.clip_grad_norm_(plain.parameters, config.max_gradient_norm)
            optimizer.step()
        ratios = torch.stack(ratios)
        outside = ((ratios - 1).abs() > config.clip).float().mean().item()
        assert metrics["clip_fraction"] == pytest.approx(outside, abs=1e-3) and outside > 0.2
        assert metrics["ratio"] == pytest.approx(ratios.mean().item(), rel=1e-2)
        assert metrics["approx_kl"] == pytest.approx((ratios - 1 - ratios.log()).mean().item(), rel=1e-2)
        assert metrics["kl_coef"] == pytest.approx(kl_coef, rel=1e-6)
        kl = mean([sum(e.log_ratio) for e in episodes])
        assert update or abs(kl / 0.3 - 1) < 0.2  # within what the controller distinguishes
        kl_coef *= 1 + max(-0.2, min(0.2, kl / 0.3 - 1)) * 8 / 50
    torch.testing.assert_close(flat(t.parameters), flat(plain.parameters), atol=1e-3, rtol=1e-3)


def test_the_metrics_are_those_of_the_loops():
    t = with_values(replace(STILL, temperature=0.7, kl_coef=0.3))
    metrics = t.step(QUERIES, RESPONSES, SCORES)
    episodes = written_down(t, QUERIES, RESPONSES, SCORES, 0.3)
    of_policy, of_values, _ = losses(t, episodes)
    left = [a - b for a, b in zip(every(episodes, "returns"), every(episodes, "values"), strict=True)]
    kl, reward = mean([sum(e.log_ratio) for e in episodes]), mean(SCORES) - 4 / 8
    expected = {
        "score": mean(SCORES),
        "reward": reward,  # four of eight have no end
        "kl": kl,
        "kl_coef": 0.3,
        "objective": reward - 0.3 * kl,
        "length": mean([len(r) for r in RESPONSES]),
        "ended": 4 / 8,
        "entropy": -mean(every(episodes, "old")),
        "policy_loss": of_policy.item(),
        "value_loss": of_values.item(),
        "ratio": 1.0,
        "clip_fraction": 0.0,
        "approx_kl": 0.0,
        "first_ratio_error": 0.0,
        "advantage_std": deviation(every(episodes, "raw")),
        "value": mean(every(episodes, "values")),
        "return": mean(every(episodes, "returns")),
        "explained_variance": 1 - deviation(left) ** 2 / deviation(every(episodes, "returns")) ** 2,
        "gradient_norm": flat(p.grad for p in t.parameters).norm().item(),
        "learning_rate": 0.0,
    }
    times = {name: metrics.pop(name) for name in ("reference_seconds", "update_seconds")}
    assert metrics == pytest.approx(expected, abs=1e-5, rel=1e-4)
    assert all(seconds > 0 for seconds in times.values())


def test_every_metric_is_explained():
    t = trainer(replace(SMALL, ptx_coef=1.0), pretraining=PROMPTS)
    metrics = t.step(QUERIES, RESPONSES, SCORES)
    assert [name for name in metrics if f"`{name}`" not in PPO.step.__doc__] == []
    assert all(isinstance(value, float) and math.isfinite(value) for value in metrics.values())


# --- before the first step, nothing has moved ---


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("source", ["generated", "given"])
def test_before_the_first_step_every_ratio_is_one(name, temperature, source):
    config = replace(SMALL, temperature=temperature, updates=1, epochs=1, minibatches=1)
    t = trainer(config, MODELS[name](0), MODELS[name](1))
    responses = t.generate(QUERIES) if source == "generated" else RESPONSES
    metrics = t.step(QUERIES, responses, SCORES)
    assert metrics["first_ratio_error"] == pytest.approx(0, abs=1e-4)
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5)
    assert metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("source", ["generated", "given"])
def test_a_learning_rate_of_zero_keeps_it_so_for_epochs(source):
    t = trainer(replace(SMALL, learning_rate=0.0, value_learning_rate=0.0, epochs=3, minibatches=4))
    before = fingerprint(t.policy), fingerprint(t.value_head)
    responses = t.generate(QUERIES) if source == "generated" else RESPONSES
    metrics = t.step(QUERIES, responses, SCORES)
    assert (fingerprint(t.policy), fingerprint(t.value_head)) == before
    assert metrics["ratio"] == pytest.approx(1, abs=1e-5) and metrics["clip_fraction"] == 0
    assert metrics["approx_kl"] == pytest.approx(0, abs=1e-6)


def test_the_first_ratio_error_would_show_a_wrong_temperature(monkeypatch):
    t = trainer(replace(SMALL, temperature=0.7))
    responses = t.generate(QUERIES)
    read = ppo.read_responses
    monkeypatch.setattr(ppo, "read_responses", lambda *rows: read(*rows[:3]))
    assert t.step(QUERIES, responses, SCORES)["first_ratio_error"] > 0.1


def test_dropout_is_off_even_in_models_that_have_it():
    policy, reference = gpt2(0, dropout=0.1).train(), gpt2(1, dropout=0.1).train()
    critic = reward_model.from_language_model(gpt2(2, dropout=0.1), seed=0).train()
    runs = []
    for _ in range(2):
        t = trainer(replace(SMALL, epochs=1), *copy.deepcopy((policy, reference)), value_model=copy.deepcopy(critic))
        metrics = t.step(QUERIES, t.generate(QUERIES), SCORES)
        assert metrics["first_ratio_error"] == pytest.approx(0, abs=1e-4)
        runs.append((fingerprint(t.policy), fingerprint(t.value_model)))
    assert runs[0] == runs[1]


def test_a_caller_who_switches_training_mode_on_does_not_switch_dropout_on():
    t = trainer(SMALL, gpt2(0, dropout=0.1), gpt2(1, dropout=0.1))
    t.train(PROMPTS, count_of_sevens, after_update=lambda metrics: (t.policy.train(), t.reference.train()))
    assert t.step(QUERIES, t.generate(QUERIES), SCORES)["first_ratio_error"] == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_policy_of_another_precision_learns(dtype):
    t = trainer(replace(SMALL, updates=2), gpt2(0).to(dtype), gpt2(1).to(dtype))
    before = fingerprint(t.policy.float())
    t.policy.to(dtype)
    history = t.train(PROMPTS, count_of_sevens)
    assert history[0]["first_ratio_error"] < (1e-4 if dtype == torch.float64 else 0.3)  # bfloat16 has three digits
    assert fingerprint(t.policy.float()) != before


def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        t = trainer(STILL)
        if checkpointing:
            t.policy.gradient_checkpointing_enable()
        t.step(QUERIES, RESPONSES, SCORES)
        found.append(gradient(t))
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


# --- what was sampled ---


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_what_generate_keeps_is_what_the_full_forward_pass_says(name, temperature):
    config = replace(STILL, temperature=temperature)
    t, other = (with_values(config, "head", MODELS[name](0), MODELS[name](1)) for _ in range(2))
    responses = t.generate(QUERIES)
    assert len({len(response) for response in responses}) > 1
    kept, read = t.step(QUERIES, responses, SCORES), other.step(QUERIES, responses, SCORES)
    for metric in ("entropy", "kl", "value", "return", "advantage_std", "value_loss"):
        assert kept[metric] == pytest.approx(read[metric], abs=1e-4)
    torch.testing.assert_close(gradient(t), gradient(other), atol=1e-4, rtol=1e-3)


def reads_of_the_policy(monkeypatch, t: PPO) -> list[tuple[bool, list]]:
    """From now on, of each forward pass of the policy: whether a gradient is wanted, and the queries and responses."""
    seen, read = [], ppo.read_responses

    def spy(model, queries, responses, *rest):
        if model is t.policy:
            seen.append((torch.is_grad_enabled(), list(zip(queries, responses, strict=True))))
        return read(model, queries, responses, *rest)

    monkeypatch.setattr(ppo, "read_responses", spy)
    return seen


def test_the_policy_does_not_read_again_what_it_has_just_written(monkeypatch):
    t = trainer()
    seen = reads_of_the_policy(monkeypatch, t)
    t.step(QUERIES, t.generate(QUERIES), SCORES)
    assert seen and all(learns for learns, _ in seen)


def test_other_responses_and_those_of_an_older_policy_are_read(monkeypatch):
    t = trainer()
    responses = t.generate(QUERIES)
    assert t.step(QUERIES, responses, SCORES)["first_ratio_error"] < 1e-4
    seen = reads_of_the_policy(monkeypatch, t)
    assert t.step(QUERIES, responses, SCORES)["first_ratio_error"] < 1e-4  # the policy has moved since
    assert not seen[0][0]
    responses = t.generate(QUERIES)
    responses = [response[:-1] + [response[-1] ^ 1] for response in responses]
    assert t.step(QUERIES, responses, SCORES)["first_ratio_error"] < 1e-4
    responses = t.generate(QUERIES)
    assert t.step([[2, *query] for query in QUERIES], responses, SCORES)["first_ratio_error"] < 1e-4


def test_tensors_are_tokens_too():
    results = []
    for kind in (list, torch.tensor):
        t = trainer()
        numbers = t.step([kind(q) for q in QUERIES], [kind(r) for r in RESPONSES], torch.tensor(SCORES).tolist())
        results.append((numbers["kl"], fingerprint(t.policy)))
    assert results[0] == results[1]


def test_generation_settings_of_a_checkpoint_do_not_reach_the_samples():
    plain, tampered = trainer(), trainer()
    settings = tampered.policy.generation_config
    settings.eos_token_id, settings.top_k, settings.min_new_tokens, settings.temperature = 5, 1, 4, 0.1
    assert tampered.generate(QUERIES) == plain.generate(QUERIES)


def test_draws_are_new_each_time_and_come_again_with_the_seed():
    t, twin, other = trainer(seed=3), trainer(seed=3), trainer(seed=4)
    first, second = t.generate(QUERIES), t.generate(QUERIES)
    assert first != second
    assert [first, second] == [twin.generate(QUERIES), twin.generate(QUERIES)]
    assert other.generate(QUERIES) not in (first, second)


def test_a_pad_token_that_is_the_end_token_changes_nothing():
    """Masks come from lengths. The responses hold pads that the policy wrote: they are tokens like others."""
    results = []
    for pad in ("<pad>", "<eos>", None):
        t = trainer(tokenizer=tokenizer(pad))
        results.append((t.generate(QUERIES), t.step(QUERIES, RESPONSES, SCORES)["kl"], fingerprint(t.policy)))
    assert results[0] == results[1] == results[2]


def test_a_fast_path_is_fast_and_nothing_else():
    runs = []
    for kind in (GPT2LMHeadModel, Unknown):
        t = trainer(replace(SMALL, updates=3), gpt2(0, kind), gpt2(1, kind))
        runs.append(([m["kl"] for m in t.train(PROMPTS, count_of_sevens)], flat(t.parameters), t.generate(QUERIES)))
    assert runs[0][0] == pytest.approx(runs[1][0], abs=1e-3)
    torch.testing.assert_close(runs[0][1], runs[1][1], atol=1e-3, rtol=1e-3)
    assert runs[0][2] == runs[1][2]


# --- rewards ---


def test_the_kl_of_a_policy_that_is_its_reference_is_exactly_zero():
    t = trainer(STILL, gpt2(0), gpt2(0))
    assert t.step(QUERIES, RESPONSES, SCORES)["kl"] == 0
    assert t.step(QUERIES, t.generate(QUERIES), SCORES)["kl"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_kl_of_samples_estimates_the_exact_kl(temperature):
    """Of models that say one token, at the temperature at which they say it."""
    t = trainer(replace(STILL, max_new_tokens=1, temperature=temperature, micro_batch=500))
    found = t.step([[5, 3]] * 2000, t.generate([[5, 3]] * 2000), [0.0] * 2000)["kl"]
    with torch.no_grad():
        p, q = (
            (m(torch.tensor([[5, 3]])).logits[0, -1] / temperature).log_softmax(-1) for m in (t.policy, t.reference)
        )
    exact = (p.exp() * (p - q)).sum().item()
    spread = (p.exp() * (p - q - exact) ** 2).sum().sqrt().item()
    assert exact > 0.1 and found == pytest.approx(exact, abs=4 * spread / 2000**0.5)


def test_a_response_without_an_end_pays_the_penalty_wherever_the_limit_was():
    at_the_limit = [2, 3, 4, 5, 6, EOS]
    t = trainer(replace(STILL, eos_penalty=2.5))
    assert len(at_the_limit) == NEW
    metrics = t.step(QUERIES[:3], [at_the_limit, [2, 3, 4, 5, 6, 7], [EOS]], [1.0, 1.0, 1.0])
    assert metrics["score"] == 1
    assert metrics["reward"] == pytest.approx(1 - 2.5 / 3)
    assert metrics["ended"] == pytest.approx(2 / 3)


def test_the_score_is_a_reward_of_the_last_token_and_of_no_other():
    """With gamma lam = 0, the returns of values of zero are the rewards themselves."""
    options = {"gamma": 0.0, "kl_coef": 0.0, "eos_penalty": 0.0, "whiten_advantages": False, "value_coef": 1.0}
    t = trainer(replace(STILL, **options))
    metrics = t.step([[5, 3]], [[4, 6, 2, EOS]], [8.0])
    assert metrics["return"] == pytest.approx(8 / 4)
    t.policy.zero_grad()
    loss = -8 / 4 * logs(t.policy, [5, 3], [4, 6, 2, EOS])[-1]
    expected = torch.autograd.grad(loss, list(t.policy.parameters()), allow_unused=True)
    t.step([[5, 3]], [[4, 6, 2, EOS]], [8.0])
    same_gradient([p.grad for p in t.policy.parameters()], expected)


@pytest.mark.parametrize(("target", "factor"), [(1e9, 1 - 0.2 * 8 / 100), (1e-9, 1 + 0.2 * 8 / 100)])
def test_an_adaptive_coefficient_moves_towards_its_target(target, factor):
    t = trainer(replace(SMALL, kl_coef=0.3, kl_target=target, kl_horizon=100))
    coefs = [t.step(QUERIES, RESPONSES, SCORES)["kl_coef"] for _ in range(3)]
    assert coefs == pytest.approx([0.3, 0.3 * factor, 0.3 * factor**2], rel=1e-6)


def test_a_fixed_coefficient_does_not_move():
    t = trainer(replace(SMALL, kl_coef=0.3))
    assert [t.step(QUERIES, RESPONSES, SCORES)["kl_coef"] for _ in range(2)] == pytest.approx([0.3, 0.3], rel=1e-6)


def test_whitened_rewards_keep_their_mean_and_lose_their_scale():
    options = {"gamma": 0.0, "kl_coef": 0.0, "eos_penalty": 0.0, "whiten_rewards": True}
    scores = [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]
    one_token = [[5]] * 8
    numbers = trainer(replace(STILL, **options)).step(QUERIES, one_token, scores)
    assert numbers["return"] == pytest.approx(2.5)
    assert numbers["advantage_std"] == pytest.approx(1, abs=1e-6)
    numbers = trainer(replace(STILL, **options)).step(QUERIES, one_token, [10 * s for s in scores])
    assert numbers["return"] == pytest.approx(25)
    assert numbers["advantage_std"] == pytest.approx(1, abs=1e-6)


# --- values ---


def test_a_value_head_begins_at_zero_and_learns():
    t = trainer()
    first = t.step(QUERIES, RESPONSES, SCORES)
    assert first["value"] == 0 and first["explained_variance"] == pytest.approx(0, abs=1e-6)
    assert t.step(QUERIES, RESPONSES, SCORES)["value"] != 0


def test_a_value_model_from_the_reward_model_begins_with_its_scores():
    """The value before the first token is the score of the query, where it ends as the reward model's texts do."""
    rewards = reward_model.from_language_model(gpt2(2), seed=0)
    rewards.config.reward_zero = 0.7
    t = trainer(STILL, value_model=copy.deepcopy(rewards))
    expected = reward_model.score_tokens(rewards, [[5, 3]], [[EOS]], EOS).item()
    assert abs(expected) > 0.1
    assert t.step([[5, 3, EOS]], [[4]], [0.0])["value"] == pytest.approx(expected, abs=1e-5)


def test_a_value_model_learns_and_the_policys_layers_learn_nothing_from_values():
    critic = reward_model.from_language_model(gpt2(2), seed=0)
    options = {"kl_coef": 0.0, "whiten_advantages": False, "clip": 0.0}
    before, t = fingerprint(critic), trainer(replace(SMALL, **options), value_model=critic)
    t.step(QUERIES, RESPONSES, SCORES)
    assert fingerprint(critic) != before
    found = []
    for value_coef in (0.1, 10.0):
        t = with_values(replace(STILL, value_coef=value_coef), "model")
        t.step(QUERIES, RESPONSES, SCORES)
        found.append(flat(p.grad for p in t.policy.parameters()))
    assert torch.equal(*found)


def test_a_response_that_was_cut_has_no_future():
    """The value after the last token plays no part: an answer that was cut is taken for one that ended."""
    t = with_values(replace(STILL, gamma=1.0, lam=0.0, kl_coef=0.0, eos_penalty=0.0))
    with torch.no_grad():
        t.value_head.bias.fill_(100.0)  # what a bootstrap would add
    metrics = t.step([[5, 3]], [[4]], [2.0])
    assert metrics["return"] == pytest.approx(2.0, abs=1e-4)


# --- minibatches ---


def test_each_episode_is_used_once_an_epoch_in_minibatches_drawn_anew(monkeypatch):
    t = trainer(replace(SMALL, epochs=3, minibatches=4, micro_batch=99))
    seen = reads_of_the_policy(monkeypatch, t)
    orders = []
    for _ in range(2):
        seen.clear()
        t.step(QUERIES, RESPONSES, SCORES)
        steps = [sorted(RESPONSES.index(response) for _, response in rows) for learns, rows in seen if learns]
        assert [len(step) for step in steps] == [2] * 12
        epochs = [steps[:4], steps[4:8], steps[8:]]
        assert all(sorted(sum(epoch, [])) == list(range(8)) for epoch in epochs)
        orders += [str(sorted(epoch)) for epoch in epochs]
    assert len(set(orders)) == 6


@pytest.mark.parametrize("critic", ["head", "model"])
def test_the_gradient_does_not_depend_on_the_micro_batches(critic):
    found, numbers = [], []
    for micro_batch in (8, 1, 3):
        options = {"micro_batch": micro_batch, "ptx_coef": 0.5, "ptx_batch": 4}
        t = with_values(replace(STILL, **options), critic, pretraining=PROMPTS)
        numbers.append(t.step(QUERIES, RESPONSES, SCORES))
        found.append(gradient(t))
    for other, values in zip(found[1:], numbers[1:], strict=True):
        torch.testing.assert_close(other, found[0], atol=1e-6, rtol=1e-4)
        same = {name: value for name, value in values.items() if "seconds" not in name}
        assert same == pytest.approx({name: numbers[0][name] for name in same}, abs=1e-5)


def test_advantages_are_whitened_over_the_batch_and_not_over_a_minibatch(monkeypatch):
    t = with_values(replace(STILL, minibatches=4, micro_batch=99))
    episodes = written_down(t, QUERIES, RESPONSES, SCORES, t.kl_coef)
    seen = reads_of_the_policy(monkeypatch, t)
    t.step(QUERIES, RESPONSES, SCORES)
    last = [RESPONSES.index(response) for _, response in seen[-1][1]]
    assert len(last) == 2
    same_gradient([p.grad for p in t.parameters], gradients(t, [episodes[i] for i in last]))


# --- the optimizer ---


def test_the_first_step_of_adam_in_closed_form():
    """g / (|g| + eps), in PyTorch's reading of eps, after the norm was clipped, and after a quarter of the warm-up."""
    options = {"learning_rate": 0.01, "value_learning_rate": 0.03, "warmup": 4, "updates": 10}
    t = with_values(replace(STILL, **options, max_gradient_norm=1e-3))
    before = flat(t.parameters)
    metrics = t.step(QUERIES, RESPONSES, SCORES)
    slope = gradient(t)
    assert slope.norm().item() == pytest.approx(1e-3, rel=1e-3) and metrics["gradient_norm"] > 0.1
    share = slope / (slope.abs() + 1e-5)
    assert (share.abs() < 0.9).float().mean() > 0.3  # where eps counts
    rates = torch.full_like(share, 0.01 / 4)
    rates[-WIDTH - 1 :] = 0.03 / 4  # of the value head
    step = rates * share
    torch.testing.assert_close(flat(t.parameters), before - step, atol=1e-6, rtol=0)


def test_the_learning_rate_rises_over_the_warm_up_and_falls_towards_zero():
    t = trainer(replace(SMALL, updates=6, warmup=3, learning_rate=0.6))
    rates = [metrics["learning_rate"] for metrics in t.train(PROMPTS, count_of_sevens)]
    assert rates == pytest.approx([0.6 * s for s in (1 / 3, 2 / 3 * 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)], rel=1e-5)
    assert t.step(QUERIES, RESPONSES, SCORES)["learning_rate"] == 0  # the run is over


def test_only_policy_and_critic_are_in_the_optimizer():
    for options in ({}, {"value_model": reward_model.from_language_model(gpt2(2), seed=0)}):
        t = trainer(**options)
        held = {id(p) for group in t.optimizer.param_groups for p in group["params"]}
        critic = t.value_model or t.value_head
        assert held == {id(p) for part in (t.policy, critic) for p in part.parameters()}
        assert not any(p.requires_grad for p in t.reference.parameters())


def test_reference_and_reward_model_stay_as_they_were():
    rewards = reward_model.from_language_model(gpt2(2), seed=0)
    reference = gpt2(1)
    critic = copy.deepcopy(rewards)
    before = [fingerprint(model) for model in (reference, rewards)]
    started = [fingerprint(model) for model in (gpt2(0), critic)]

    def reward(prompts, responses):
        return reward_model.score(rewards, tokenizer(), prompts, responses, max_tokens=24)

    t = trainer(SMALL, gpt2(0), reference, value_model=critic)
    t.train(PROMPTS, reward)
    assert [fingerprint(model) for model in (reference, rewards)] == before
    assert all(now != then for now, then in zip(map(fingerprint, (t.policy, critic)), started, strict=True))
    assert all(p.grad is None for model in (reference, rewards) for p in model.parameters())


# --- PPO-ptx ---

LONG_AND_SHORT = ["w2 w3 w4 w5 w6 w7 w8", "w9", "w3 w3 w12", "w4 w2"]


def test_a_ptx_coefficient_of_zero_is_plain_ppo_to_the_last_bit():
    plain, zero = trainer(), trainer(pretraining=PROMPTS)
    history = [t.train(PROMPTS, count_of_sevens) for t in (plain, zero)]
    assert "ptx_loss" not in history[0][0] and "ptx_loss" not in history[1][0]
    assert fingerprint(plain.policy) == fingerprint(zero.policy)


def test_the_gradient_of_ppo_ptx_is_the_sum_of_both():
    coef, found = 0.7, []
    for ptx_coef in (0.0, coef):
        t = with_values(replace(STILL, ptx_coef=ptx_coef, ptx_batch=4), pretraining=LONG_AND_SHORT)
        metrics = t.step(QUERIES, RESPONSES, SCORES)
        found.append([p.grad.clone() for p in t.policy.parameters()])
    ids = [tokenizer()(text)["input_ids"] + [EOS] for text in LONG_AND_SHORT]
    terms = [-x for text in ids for x in logs(t.policy, text[:1], text[1:])]  # all but the first token
    loss = sum(terms) / len(terms)
    assert metrics["ptx_loss"] == pytest.approx(loss.item(), rel=1e-5)
    expected = torch.autograd.grad(coef * loss, list(t.policy.parameters()))
    same_gradient([b - a for a, b in zip(*found, strict=True)], expected)


def test_a_model_without_a_longest_text_takes_texts_too():
    t = trainer(replace(SMALL, updates=2, ptx_coef=0.1), bloom(0), bloom(1), pretraining=LONG_AND_SHORT)
    assert [math.isfinite(metrics["ptx_loss"]) for metrics in t.train(PROMPTS, count_of_sevens)] == [True, True]


def test_the_pretraining_loss_knows_no_temperature():
    losses = []
    for temperature in (1.0, 0.5):
        t = trainer(replace(STILL, temperature=temperature, ptx_coef=1.0, ptx_batch=4), pretraining=LONG_AND_SHORT)
        losses.append(t.step(QUERIES, RESPONSES, SCORES)["ptx_loss"])
    assert losses[0] == losses[1]


def test_every_pretraining_text_comes_before_one_comes_again(monkeypatch):
    config = replace(SMALL, ptx_coef=1.0, ptx_batch=3, epochs=1, minibatches=2, micro_batch=99, learning_rate=0.0)
    t = trainer(config, pretraining=[f"w{i} w{i} w{i}" for i in range(2, 11)])
    seen = reads_of_the_policy(monkeypatch, t)
    for _ in range(3):
        t.step(QUERIES, RESPONSES, SCORES)
    texts = [str(row) for learns, rows in seen if learns for row in rows if row[1] not in RESPONSES]
    assert len(texts) == 18 and len(set(texts[:9])) == len(set(texts[9:])) == 9


def test_ppo_ptx_keeps_what_the_policy_knew():
    """The same run with and without: with it, the texts stay likelier."""
    lost = {}
    for ptx_coef in (0.0, 5.0):
        config = replace(SMALL, updates=12, learning_rate=0.01, ptx_coef=ptx_coef, ptx_batch=4, kl_coef=0.0)
        t = trainer(config, gpt2(0), gpt2(0), pretraining=LONG_AND_SHORT)
        history = t.train(PROMPTS, count_of_sevens)
        assert history[-1]["score"] > history[0]["score"]
        with torch.no_grad():
            ids = [tokenizer()(text)["input_ids"] + [EOS] for text in LONG_AND_SHORT]
            lost[ptx_coef] = -sum(sum(logs(t.policy, text[:1], text[1:])) for text in ids).item()
    assert lost[5.0] < lost[0.0] - 5


# --- runs ---


def count_of_sevens(prompts, responses) -> list[float]:
    return [float(response.split().count("w7")) for response in responses]


def test_a_run_learns_what_is_rewarded():
    config = replace(SMALL, updates=16, batch_size=32, micro_batch=32, learning_rate=0.01, kl_coef=0.01)
    history = trainer(config, gpt2(0), gpt2(0)).train(PROMPTS, count_of_sevens)
    assert len(history) == 16 and history[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert mean([m["score"] for m in history[-3:]]) > mean([m["score"] for m in history[:3]]) + 1
    assert history[-1]["kl"] > 0.5


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_a_policy_of_one_token_ends_at_the_exact_optimum(beta):
    """pi* is proportional to pi_ref exp(r / beta), and the objective's value there is beta log Z."""
    rewards = torch.linspace(-1, 2, VOCABULARY)[torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))]
    words = {text: i for i, text in enumerate(["<pad>", "", *(f"w{i}" for i in range(2, VOCABULARY))])}
    config = PPOConfig(
        updates=30, batch_size=64, epochs=4, minibatches=2, micro_batch=128, learning_rate=0.01, warmup=2,
        kl_coef=beta, max_new_tokens=1, eos_penalty=0.0, temperature=1.0,
    )  # fmt: skip
    t = trainer(config, gpt2(0), gpt2(0))
    history = t.train(["w5 w3"], lambda prompts, responses: rewards[[words[r] for r in responses]])
    with torch.no_grad():
        policy, reference = (m(torch.tensor([[5, 3]])).logits[0, -1].log_softmax(-1) for m in (t.policy, t.reference))
    best = beta * (reference + rewards / beta).logsumexp(-1)
    start = (reference.exp() * rewards).sum()
    reached = (policy.exp() * (rewards - beta * (policy - reference))).sum()
    optimum = (reference + rewards / beta).softmax(-1)
    assert best - start > 0.2 and reached < best + 1e-5
    assert best - reached < 0.02 * (best - start)
    assert 0.5 * (optimum - policy.exp()).abs().sum() < 0.05  # total variation
    assert mean([m["objective"] for m in history[-10:]]) == pytest.approx(best.item(), abs=0.05)


class Lengths:
    def __call__(self, prompts, responses):
        return np.array([len(r) for r in responses], dtype=np.float32)


REWARDS = {
    "a function": count_of_sevens,
    "an object, numpy": Lengths(),
    "a lambda, tensor": lambda prompts, responses: torch.tensor([float(len(p)) for p in prompts]),
    "a partial, integers": functools.partial(lambda n, prompts, responses: [n] * len(responses), 3),
}


@pytest.mark.parametrize("reward", REWARDS.values(), ids=REWARDS)
def test_any_callable_on_texts_is_a_reward(reward):
    heard = []

    def listening(prompts, responses):
        heard.append((list(prompts), list(responses)))
        return reward(prompts, responses)

    t = trainer(replace(SMALL, updates=2))
    history = t.train(PROMPTS, listening)
    for metrics, (prompts, responses) in zip(history, heard, strict=True):
        assert all(prompt in PROMPTS for prompt in prompts)
        assert all(isinstance(response, str) and "<eos>" not in response for response in responses)
        scores = [float(score) for score in reward(prompts, responses)]
        assert metrics["score"] == pytest.approx(mean(scores), abs=1e-5)


def test_the_tokens_that_are_learned_from_are_the_tokens_that_were_drawn(monkeypatch):
    """No way through texts and back: a pad that the policy writes is lost there."""
    t = trainer(replace(SMALL, updates=3))
    drawn, stepped, generate, step = [], [], t.generate, t.step
    monkeypatch.setattr(t, "generate", lambda queries: drawn.append((queries, generate(queries))) or drawn[-1][1])
    monkeypatch.setattr(t, "step", lambda q, r, s: stepped.append((q, r)) or step(q, r, s))
    heard = []
    t.train(PROMPTS, lambda prompts, responses: heard.append((prompts, responses)) or [0.0] * len(responses))
    assert drawn == stepped
    for (queries, responses), (prompts, texts) in zip(drawn, heard, strict=True):
        assert queries == [tokenizer()(prompt)["input_ids"] for prompt in prompts]
        words = [" ".join(tokenizer().convert_ids_to_tokens([i for i in r if i != EOS])) for r in responses]
        assert texts == words
    assert any(0 in response for _, responses in drawn for response in responses)


def test_every_prompt_is_asked_before_one_is_asked_again_in_an_order_of_the_seed():
    orders = []
    for seed in (0, 0, 1):
        asked = []
        t = trainer(replace(SMALL, updates=5, learning_rate=0.0), seed=seed)
        t.train(PROMPTS, lambda prompts, responses, asked=asked: asked.extend(prompts) or [0.0] * len(prompts))
        assert len(asked) == 40
        rounds = [asked[start : start + 10] for start in range(0, 40, 10)]
        assert all(sorted(part) == sorted(PROMPTS) for part in rounds)
        assert len({tuple(part) for part in rounds}) == 4
        orders.append(asked)
    assert orders[0] == orders[1] != orders[2]


class Stop(Exception):
    """The power is cut."""


@pytest.mark.parametrize("critic", ["head", "model"])
def test_a_run_that_was_resumed_ends_at_the_same_bits(critic, tmp_path):
    config = replace(SMALL, kl_target=0.5, kl_horizon=50, ptx_coef=0.1, ptx_batch=3, warmup=3)
    fresh = lambda: with_values(config, critic, seed=5, pretraining=PROMPTS)  # noqa: E731
    whole, first, second = fresh(), fresh(), fresh()
    expected = whole.train(PROMPTS, count_of_sevens)

    def save(metrics):
        first.save(tmp_path / "run.pt")
        if first.done == 2:
            raise Stop

    with pytest.raises(Stop):
        first.train(PROMPTS, count_of_sevens, after_update=save)
    with torch.no_grad():  # nothing but the file may count
        for parameter in second.parameters:
            parameter.add_(1.0)
    second.resume(tmp_path / "run.pt")
    history = second.train(PROMPTS, count_of_sevens)
    assert without_times(history) == without_times(expected[2:])
    assert [fingerprint(part) for part in parts(second)] == [fingerprint(part) for part in parts(whole)]
    assert second.kl_coef == whole.kl_coef != config.kl_coef
    assert second.generate(QUERIES) == whole.generate(QUERIES)
    assert second.train(PROMPTS, count_of_sevens) == []  # it is done


def parts(t: PPO) -> list:
    return [t.policy, t.value_model or t.value_head]


def without_times(history: list[dict]) -> list[dict]:
    return [{name: value for name, value in m.items() if "seconds" not in name} for m in history]


def test_samples_of_before_a_resume_are_forgotten(tmp_path):
    t = trainer()
    t.save(tmp_path / "run.pt")
    t.step(QUERIES, RESPONSES, SCORES)
    responses = t.generate(QUERIES)
    t.resume(tmp_path / "run.pt")
    assert t.step(QUERIES, responses, SCORES)["first_ratio_error"] < 1e-4


def test_after_each_update_the_caller_hears_its_metrics():
    heard = []
    history = trainer().train(PROMPTS, count_of_sevens, after_update=heard.append)
    assert heard == history and len(history) == SMALL.updates


# --- several processes ---

ACROSS = replace(STILL, minibatches=1, micro_batch=2, ptx_coef=0.5, ptx_batch=2, temperature=0.7, whiten_rewards=True)


def one_of_two(folder: str) -> None:
    """What one of two processes does: it brings every other episode."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    t = with_values(ACROSS, pretraining=LONG_AND_SHORT, accelerator=accelerator)
    metrics = t.step(QUERIES[rank::2], RESPONSES[rank::2], SCORES[rank::2])
    config = replace(ACROSS, learning_rate=0.01, kl_target=0.5, kl_horizon=100)
    moving = with_values(config, pretraining=LONG_AND_SHORT, accelerator=accelerator)
    asked = []
    history = moving.train(PROMPTS, lambda prompts, texts: asked.extend(prompts) or count_of_sevens(prompts, texts))
    found = {"gradient": gradient(t), "metrics": metrics, "generated": t.generate(QUERIES), "asked": asked}
    found |= {"kl": [m["kl"] for m in history], "kl_coef": [m["kl_coef"] for m in history]}
    torch.save(found | {"weights": flat(moving.parameters)}, Path(folder) / f"{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> list[dict]:
    """What two processes on this machine found."""
    folder = tmp_path_factory.mktemp("processes")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def alone() -> tuple[PPO, dict]:
    t = with_values(replace(ACROSS, ptx_batch=4), pretraining=LONG_AND_SHORT)
    return t, t.step(QUERIES, RESPONSES, SCORES)


def test_two_processes_have_the_gradient_of_one(both):
    t, _ = alone()
    for found in both:
        torch.testing.assert_close(found["gradient"], gradient(t), atol=1e-5, rtol=1e-4)


def test_two_processes_report_what_one_does(both):
    _, expected = alone()
    names = ["score", "reward", "kl", "objective", "length", "ended", "ratio", "clip_fraction", "gradient_norm"]
    names += ["policy_loss", "value_loss", "ptx_loss"]
    for found in both:
        assert [found["metrics"][n] for n in names] == pytest.approx([expected[n] for n in names], abs=1e-5)


def test_two_processes_adapt_beta_to_the_episodes_of_both(both):
    coefs = [ACROSS.kl_coef]
    for kl in both[0]["kl"][:-1]:
        coefs.append(coefs[-1] * (1 + max(-0.2, min(0.2, kl / 0.5 - 1)) * 8 / 100))
    assert both[0]["kl_coef"] == pytest.approx(coefs, rel=1e-5) and len(set(coefs)) == SMALL.updates
    assert both[1]["kl_coef"] == both[0]["kl_coef"]


def test_two_processes_stay_one_policy_and_share_the_work(both):
    assert torch.equal(both[0]["weights"], both[1]["weights"])
    assert both[0]["generated"] != both[1]["generated"]
    asked = [[both[rank]["asked"][start : start + 4] for start in range(0, 16, 4)] for rank in range(2)]
    together = sum((a + b for a, b in zip(*asked, strict=True)), [])
    assert len(together) == 32 and sorted(together[:10]) == sorted(PROMPTS)


# --- bad input ---


BAD = {
    "scores": (lambda t: t.step(QUERIES, RESPONSES, SCORES[:-1]), "not 8, 8 and 7"),
    "responses": (lambda t: t.step(QUERIES, RESPONSES[1:], SCORES), "not 8, 7 and 8"),
    "nothing": (lambda t: t.step([], [], []), "not 0, 0 and 0"),
    "empty response": (lambda t: t.step(QUERIES, [*RESPONSES[:-1], []], SCORES), "response of episode 7 is empty"),
    "empty query": (lambda t: t.step([[], *QUERIES[1:]], RESPONSES, SCORES), "query of episode 0 is empty"),
    "nan": (lambda t: t.step(QUERIES, RESPONSES, [*SCORES[:-1], math.nan]), "score of episode 7 is nan"),
    "inf": (lambda t: t.step(QUERIES, RESPONSES, [-math.inf, *SCORES[1:]]), "score of episode 0 is -inf"),
    "no prompts": (lambda t: t.train([], count_of_sevens), "at least one prompt"),
    "few rewards": (lambda t: t.train(PROMPTS, lambda p, r: [0.0]), "not 8, 8 and 1"),
    "too long": (lambda t: t.step([[2] * 20] * 8, [[3] * 5] * 8, SCORES), "context of 24"),
    "few episodes": (lambda t: t.step(QUERIES[:1], RESPONSES[:1], SCORES[:1]), "1 episodes cannot make 2 minibatches"),
    "reference": (lambda t: trainer(SMALL, t.policy, t.policy), "reference is the policy itself"),
    "ptx": (lambda t: trainer(replace(SMALL, ptx_coef=0.1)), "there are no texts"),
    "target": (lambda t: trainer(replace(SMALL, kl_target=0.0)), "must be positive"),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(trainer())


def test_a_file_of_another_run_is_refused(tmp_path):
    trainer().save(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another config"):
        trainer(replace(SMALL, clip=0.3)).resume(tmp_path / "run.pt")
    with pytest.raises(ValueError, match="another seed"):
        trainer(seed=1).resume(tmp_path / "run.pt")


if __name__ == "__main__":
    from accelerate import debug_launcher

    debug_launcher(one_of_two, (sys.argv[1],), num_processes=2)
