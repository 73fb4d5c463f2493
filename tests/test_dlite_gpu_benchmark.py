"""Oracles: the published sizes in closed form, numbers by hand, a clock that is told what to say."""

import itertools
import os
import subprocess
import sys
from statistics import median

import pytest
import torch
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, GPT2Config, GPT2LMHeadModel

from benchmarks import dlite_gpu
from rlhf_lab import ROOT
from rlhf_lab.pair_reward import PairReward
from rlhf_lab.ppo import PPO

SMALL = {"vocab_size": 203, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 200, "eos_token_id": 200}
SMALL_JUDGE = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL_JUDGE |= {"intermediate_size": 32, "pooler_hidden_size": 16}
MINUTE = 60.0


def measure(steps: int, batch: int, **options) -> dlite_gpu.Report:
    """On the CPU, with models that are shrunken and otherwise the same."""
    policy = GPT2Config(**dlite_gpu.POLICY.to_dict() | SMALL)
    judge = DebertaV2Config(**dlite_gpu.JUDGE.to_dict() | SMALL_JUDGE)
    return dlite_gpu.measure(steps, batch, "cpu", policy, judge, **options)


def report(**other) -> dlite_gpu.Report:
    given = {"device": "a GPU", "dtype": "float32", "parameters": (3, 4), "batch": 16, "length": 15.5}
    given |= {"tutorial_steps": 400, "generate": [1.0, 2.0, 3.0], "score": [0.5, 0.1, 0.1], "step": [5.0, 2.0, 1.0]}
    given |= {"allocated": 3 * 2**30, "reserved": 7 * 2**29}
    return dlite_gpu.Report(**given | other)


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


# --- sizes ---


def test_the_policy_is_gpt2_medium_with_three_tokens_more():
    with torch.device("meta"):
        model = GPT2LMHeadModel(dlite_gpu.POLICY)
    d, layers, context = 1024, 24, 1024
    layer = (3 * d * d + 3 * d) + (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 4 * d
    medium = 50257 * d + context * d + layers * layer + 2 * d
    assert medium == 354_823_168  # as published
    assert parameters(model) == medium + 3 * d
    assert model.config.n_head == 16


def test_the_reward_model_has_the_shape_of_deberta_v3_large_with_one_label():
    with torch.device("meta"):
        model = DebertaV2ForSequenceClassification(dlite_gpu.JUDGE)
    d, inner = 1024, 4096
    layer = 4 * (d * d + d) + 2 * d + (d * inner + inner) + (inner * d + d) + 2 * d  # keys of positions are shared
    trunk = 128100 * d + 2 * d + 24 * layer + 2 * 256 * d + 2 * d  # no absolute positions, no token types
    assert parameters(model) == trunk + (d * d + d) + (d + 1)
    assert model.config.pos_att_type == ["p2c", "c2p"]
    assert model.config.num_attention_heads == 16


# --- the report ---


def test_a_step_takes_the_median_of_the_sums_of_its_parts():
    # 6.5, 4.1 and 4.1 seconds; the sum of the medians would be 2.0 + 0.1 + 2.0.
    assert report().seconds == pytest.approx(4.1)
    assert report(step=[5.0, 2.5, 1.0]).seconds == pytest.approx(4.6)
    assert report().episodes_per_second == pytest.approx(16 / 4.1)
    assert report().tutorial_seconds == pytest.approx(400 * 4.1)


def test_what_is_printed():
    lines = str(report()).splitlines()
    assert lines[1:] == [
        "policy              3 parameters, and as many of the reference, float32",
        "reward model        4 parameters",
        "episodes a step     16, with responses of 15.5 tokens on average",
        "timed steps         3, after 3 that do not count",
        "seconds a step      4.100 (medians: generate 2.000, score 0.100, step 2.000)",
        "episodes a second   3.9",
        "400 steps           would take 27.3 minutes",
        "peak GPU memory     3.00 GiB allocated, 3.50 GiB reserved",
        "The weights are random: hardly a response ends by itself, which is the worst case.",
    ]
    assert lines[0] == f"device              a GPU, PyTorch {torch.__version__}"
    assert "peak GPU memory     not measured: no GPU" in str(report(allocated=None, reserved=None))


# --- measuring ---


def test_a_run_has_its_steps_and_no_memory_without_a_gpu():
    found = measure(steps=4, batch=3)
    assert [len(part) for part in (found.generate, found.score, found.step)] == [4, 4, 4]
    assert min(*found.generate, *found.score, *found.step) > 0
    totals = [sum(parts) for parts in zip(found.generate, found.score, found.step, strict=True)]
    assert found.tutorial_seconds == 400 * median(totals)
    assert found.episodes_per_second == 3 / median(totals)
    assert (found.device, found.allocated, found.reserved) == ("cpu", None, None)
    assert found.dtype.startswith("float32")
    assert 0 < found.length <= 16


def test_each_part_has_its_own_time_and_the_warm_up_counts_nowhere():
    warm_up = [1000.0] * (3 * dlite_gpu.WARM_UP)
    lasts = iter([*warm_up, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    ticks = itertools.chain.from_iterable((MINUTE, MINUTE + seconds) for seconds in lasts)
    found = measure(steps=2, batch=2, clock=lambda: next(ticks))
    assert (found.generate, found.score, found.step) == ([1.0, 4.0], [2.0, 5.0], [3.0, 6.0])
    assert next(ticks, None) is None


def test_the_settings_are_those_of_the_tutorial(monkeypatch):
    trainers, judged = [], []
    learn, score = PPO.step, PairReward.__call__
    monkeypatch.setattr(PPO, "step", lambda self, *rows: (trainers.append((self, rows)), learn(self, *rows))[1])
    monkeypatch.setattr(PairReward, "__call__", lambda self, *rows: (judged.append(rows), score(self, *rows))[1])
    measure(steps=1, batch=16)
    config = trainers[0][0].config
    assert (config.updates, config.batch_size, config.epochs, config.max_new_tokens) == (400, 16, 4, 16)
    assert (config.kl_coef, config.kl_target, config.learning_rate) == (0.2, 6.0, 1.41e-5)
    assert trainers[0][0].tokenizer.eos_token_id == 200
    assert len(trainers) == dlite_gpu.WARM_UP + 1
    for (_, (queries, responses, _)), (asked, answers) in zip(trainers, judged, strict=True):
        assert all(20 <= len(query) <= 32 for query in queries)
        assert [len(query) - len(words) for query, words in zip(queries, asked, strict=True)] == [6] * 16
        assert answers == responses
        assert all(response[-1] == 200 or len(response) == 16 for response in responses)
        assert max(token for query in queries for token in query) < 200  # no special token


def test_pairs_are_joined_and_padded_behind_a_mask():
    found = dlite_gpu.joined([[7, 8], [9]], [[5], [0, 0, 6]], padding=True)
    assert found["input_ids"].tolist() == [[1, 7, 8, 2, 5, 2, 0], [1, 9, 2, 0, 0, 6, 2]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1, 1]]


def test_the_clock_waits_for_the_gpu(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(f"wait for {device}"))
    monkeypatch.setattr(dlite_gpu.time, "perf_counter", lambda: calls.append("look") or 5.0)
    assert dlite_gpu.clock_of(torch.device("cuda"))() == 5.0
    assert calls == ["wait for cuda", "look"]
    assert dlite_gpu.clock_of(torch.device("cpu"))() == 5.0
    assert calls == ["wait for cuda", "look", "look"]


@pytest.mark.parametrize(("steps", "batch"), [(0, 16), (3, 0)])
def test_numbers_that_make_no_sense_are_refused(steps, batch):
    with pytest.raises(ValueError, match=f"at least 1, not {steps} and {batch}"):
        measure(steps, batch)


# --- the command ---


def test_without_a_gpu_the_script_says_so_in_one_sentence_and_fails(tmp_path):
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    script = [sys.executable, str(ROOT / "benchmarks" / "dlite_gpu.py")]
    done = subprocess.run(script, cwd=tmp_path, env=hidden, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "This benchmark needs a GPU, and PyTorch finds none, so nothing was measured.\n"


def test_with_a_gpu_the_report_is_printed(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(dlite_gpu, "measure", lambda steps, batch: f"{steps} steps of {batch}")
    assert dlite_gpu.main([]) == 0
    assert dlite_gpu.main(["--steps", "5", "--batch", "4"]) == 0
    assert capsys.readouterr().out == "20 steps of 16\n5 steps of 4\n"


def test_a_command_that_cannot_be_meant_is_answered_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dlite_gpu.main(["--steps", "0"]) == 2
    assert capsys.readouterr().err == "Steps and batch must be at least 1, not 0 and 16.\n"
