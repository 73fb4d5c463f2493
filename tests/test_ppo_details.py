"""Every switched-off detail really does its wrong thing, shown on models so small that it can be computed by hand; and
the full version, beside it, does the right one."""

import copy
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lab import ppo_details, reward_model
from rlhf_lab.ppo import PPO, PPOConfig, gae
from rlhf_lab.ppo_details import CONTROLS, COOL, DETAILS, DROPOUT, FEW_ROWS, build
from rlhf_lab.sampling import sample

VOCABULARY, EOS, NEW = 20, 1, 6
QUERIES = [[5, 3, 2], [7, 4], [3, 9, 17], [8, 2, 2], [11, 11], [6, 4, 2], [9, 9], [13, 18, 5]]
RESPONSES = [[4, 6, EOS], [EOS], [9, 8, 7, 6, 5, 4], [3, 2, EOS], [12, 13, 14, 15], [2, 16, 9, 9, EOS], [4], [7, 5, 7]]
SCORES = [1.0, -0.5, 2.0, 0.3, -1.2, 0.4, 0.7, 1.6]
LENGTHS = [len(response) for response in RESPONSES]
CUT = sum(response[-1] != EOS for response in RESPONSES) / len(RESPONSES)
CONFIG = PPOConfig(updates=3, batch_size=8, minibatches=2, learning_rate=0.03, warmup=1, max_new_tokens=NEW)
STILL = replace(CONFIG, learning_rate=0.0, epochs=1, minibatches=1)  # an update that moves nothing


def gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": VOCABULARY, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    tokens = {"pad_token_id": 0, "bos_token_id": EOS, "eos_token_id": EOS}
    return GPT2LMHeadModel(GPT2Config(**sizes, **rates, **tokens, initializer_range=0.2)).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<eos>": EOS} | {f"w{i}": i for i in range(2, VOCABULARY)}
    raw = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")


def judge():
    model = reward_model.from_language_model(gpt2(2), seed=0)
    model.config.reward_zero = 0.25
    return model


def trainer(name: str, config: PPOConfig = STILL, same: bool = False, seed: int = 0) -> PPO:
    """The detail on a policy that differs from its reference, or (`same`) does not yet."""
    return build(name, gpt2(0), gpt2(0 if same else 1), config, tokenizer(), seed, judge())


def logs(model, query, response, temperature=1.0) -> torch.Tensor:
    """Log-probabilities (R,) of one response, alone."""
    with torch.no_grad():
        values = F.log_softmax(model(torch.tensor([query + response])).logits[0] / temperature, dim=-1)
    return values[len(query) - 1 : -1].gather(1, torch.tensor(response)[:, None]).squeeze(1)


def rewards_of(built: PPO):
    """The rollout of the fixed episodes, and the rewards of their tokens (B, R)."""
    rollout = built._rollout(QUERIES, RESPONSES)
    log_ratio = rollout.log_probs - built._reference_log_probs(rollout)
    return rollout, log_ratio, built._rewards(rollout, torch.tensor(SCORES), log_ratio)


def weights(built: PPO) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in built.policy.parameters()])


def trained(name: str) -> torch.Tensor:
    """The policy's weights after a few updates on its own samples."""
    built = trainer(name, replace(CONFIG, learning_rate=0.05, epochs=6, minibatches=1))
    prompts = [" ".join(f"w{token}" for token in query) for query in QUERIES]
    built.train(prompts, lambda asked, texts: [2.0 * len(text.split()) - 5 for text in texts])
    return weights(built)


# --- the registry ---


def test_the_full_version_is_ppo_itself():
    plain = PPO(gpt2(0), gpt2(1), CONFIG, tokenizer(), 0)
    built = trainer("full", CONFIG)
    ours, theirs = (one.step(QUERIES, RESPONSES, SCORES) for one in (built, plain))
    assert {k: v for k, v in ours.items() if "seconds" not in k} == {
        k: v for k, v in theirs.items() if "seconds" not in k
    }
    assert torch.equal(weights(built), weights(plain))


def test_every_detail_has_a_sentence_a_row_and_a_control():
    assert len(DETAILS) >= 10
    for detail in DETAILS.values():
        assert detail.what.endswith(".") and 1 <= detail.row <= 40 and detail.control in CONTROLS


@pytest.mark.parametrize("name", DETAILS)
def test_every_detail_changes_what_is_learned(name):
    assert not torch.equal(trained(name), trained(DETAILS[name].control))


def test_unknown_details_and_a_missing_judge_are_named():
    with pytest.raises(ValueError, match="no detail 'dropuot': choose one of full, full_cool, no_kl"):
        trainer("dropuot")
    with pytest.raises(ValueError, match="pass `judge`"):
        build("separate_value_model", gpt2(0), gpt2(1), CONFIG, tokenizer(), 0)


def test_the_temperature_of_use_is_that_of_sampling():
    cool = {name for name in (*CONTROLS, *DETAILS) if ppo_details.sampling_temperature(name) != 1.0}
    assert cool == {"full_cool", "wrong_temperature"} and ppo_details.sampling_temperature("full_cool") == COOL


# --- one by one ---


def test_without_the_penalty_a_row_is_worth_its_score():
    _, log_ratio, right = rewards_of(trainer("full"))
    _, _, wrong = rewards_of(trainer("no_kl"))
    assert log_ratio.sum(dim=1).abs().min() > 0.01
    assert torch.allclose(wrong.sum(dim=1), torch.tensor(SCORES), atol=1e-6)
    assert torch.allclose(right.sum(dim=1), torch.tensor(SCORES) - CONFIG.kl_coef * log_ratio.sum(dim=1), atol=1e-5)


def test_without_whitening_advantages_are_those_of_gae():
    rollout, _, rewards = rewards_of(trainer("full"))
    raw = gae(rewards, rollout.values, rollout.mask)[0]
    wrong, right = (trainer(name)._advantages(rollout, rewards)[0] for name in ("no_whitening", "full"))
    assert torch.equal(wrong, raw)
    assert right[rollout.mask].mean().abs() < 1e-6
    assert right[rollout.mask].std(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_dropout_moves_the_ratio_before_the_first_step_and_leaves_no_trace():
    first = {n: trainer(n).step(QUERIES, RESPONSES, SCORES)["first_ratio_error"] for n in ("full", "dropout")}
    assert first["full"] < 1e-4 and first["dropout"] > 0.05
    built = trainer("dropout", same=True)
    metrics = built.step(QUERIES, RESPONSES, SCORES)
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)  # neither sampling nor the reference has any
    assert not built.policy.training and all(
        module.p == 0 for module in built.policy.modules() if isinstance(module, torch.nn.Dropout)
    )


def test_dropout_has_the_rate_it_says():
    built = trainer("dropout")
    with ppo_details._dropout(built.policy):
        layers = [module for module in built.policy.modules() if isinstance(module, torch.nn.Dropout)]
        assert layers and all(layer.p == DROPOUT and layer.training for layer in layers)
        dropped = layers[0](torch.ones(100_000)) == 0
    assert dropped.float().mean().item() == pytest.approx(DROPOUT, abs=0.005)


def test_the_forgotten_temperature_logs_a_kl_where_there_is_none():
    built = trainer("wrong_temperature", same=True)
    responses = built.generate(QUERIES)
    by_hand = [
        (logs(built.policy, q, r, COOL) - logs(built.policy, q, r)).sum().item()
        for q, r in zip(QUERIES, responses, strict=True)
    ]
    metrics = built.step(QUERIES, responses, SCORES)
    assert metrics["kl"] == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-4) and abs(metrics["kl"]) > 0.01
    assert metrics["first_ratio_error"] > 0.1


@pytest.mark.parametrize("name", ["full", "full_cool"])
def test_the_right_temperature_logs_none(name):
    built = trainer(name, same=True)
    metrics = built.step(QUERIES, built.generate(QUERIES), SCORES)
    assert abs(metrics["kl"]) < 1e-4 and metrics["first_ratio_error"] < 1e-4


def test_both_cool_runs_draw_the_same_samples():
    drawn = {name: trainer(name).generate(QUERIES) for name in ("full", "full_cool", "wrong_temperature")}
    assert drawn["wrong_temperature"] == drawn["full_cool"] != drawn["full"]


def test_the_drawn_head_gives_values_of_the_size_that_it_should():
    zero, drawn = (trainer(name)._rollout(QUERIES, RESPONSES).values for name in ("full", "drawn_value_head"))
    assert (zero == 0).all() and drawn.abs().max() > 0.1
    heads = torch.cat([trainer("drawn_value_head", seed=seed).value_head.weight.detach() for seed in range(100)])
    assert heads.std().item() == pytest.approx(17**-0.5, rel=0.05)


def test_the_separate_value_model_begins_as_the_judge_and_learns_alone():
    rating, policy = judge(), gpt2(0)
    built = build("separate_value_model", policy, gpt2(1), CONFIG, tokenizer(), 0, rating)
    values = built._rollout(QUERIES, RESPONSES).values
    for row, query, response in zip(values, QUERIES, RESPONSES, strict=True):
        prefixes = [query + response[:t] for t in range(len(response))]
        by_hand = torch.cat([reward_model._score(rating, [prefix]) for prefix in prefixes])
        assert torch.allclose(row[: len(response)], by_hand, atol=1e-5)
    before = copy.deepcopy(rating.state_dict())
    built.step(QUERIES, RESPONSES, SCORES)
    assert all(torch.equal(value, before[name]) for name, value in rating.state_dict().items())
    assert not torch.equal(built.value_model.score.weight, rating.score.weight)


def test_without_the_value_clip_a_value_far_away_still_learns():
    mask, old, returns = torch.ones(1, 2, dtype=torch.bool), torch.zeros(1, 2), torch.full((1, 2), 3.0)
    gradients = {}
    for name in ("full", "no_value_clip"):
        values = torch.tensor([[0.1, 1.0]], requires_grad=True)  # within the clip and beyond it
        policy_part = (torch.zeros(1, 2), torch.zeros(1, 2), torch.zeros(1, 2))
        loss = trainer(name)._losses(policy_part, (values, old, returns), mask, mask.sum())[1]
        (gradients[name],) = torch.autograd.grad(loss, values)
    assert torch.allclose(gradients["no_value_clip"], torch.tensor([[-1.45, -1.0]]))  # (value - return) / 2
    assert torch.allclose(gradients["full"], torch.tensor([[-1.45, 0.0]]))


def test_without_the_penalty_for_no_end_a_cut_response_keeps_its_score():
    right, wrong = (trainer(name).step(QUERIES, RESPONSES, SCORES) for name in ("full", "no_eos_penalty"))
    assert wrong["reward"] == pytest.approx(wrong["score"]) and 0 < CUT < 1
    assert right["reward"] == pytest.approx(right["score"] - CUT)


def test_in_the_last_column_only_the_longest_response_gets_its_score():
    rollout, log_ratio, wrong = rewards_of(trainer("score_in_last_column"))
    gained = (wrong + CONFIG.kl_coef * log_ratio).sum(dim=1)
    longest = torch.tensor(LENGTHS) == max(LENGTHS)
    assert longest.sum() == 1
    assert torch.allclose(gained, torch.where(longest, torch.tensor(SCORES), 0.0), atol=1e-6)
    _, _, right = rewards_of(trainer("full"))
    last = right.gather(1, torch.tensor(LENGTHS)[:, None] - 1).squeeze(1)
    ratios = log_ratio.gather(1, torch.tensor(LENGTHS)[:, None] - 1).squeeze(1)
    assert torch.allclose(last, torch.tensor(SCORES) - CONFIG.kl_coef * ratios, atol=1e-6)


def test_with_padding_counted_more_padding_changes_the_advantages():
    rollout, _, rewards = rewards_of(trainer("full"))
    wide = rollout._replace(**{name: F.pad(getattr(rollout, name), (0, 7)) for name in ("log_probs", "values", "mask")})
    for name, unchanged in (("full", True), ("padding_counts", False)):
        narrow = trainer(name)._advantages(rollout, rewards)[0][rollout.mask]
        wider = trainer(name)._advantages(wide, F.pad(rewards, (0, 7)))[0][wide.mask]
        assert torch.allclose(narrow, wider, atol=1e-6) == unchanged, name


def test_with_padding_counted_a_loss_is_a_mean_over_cells():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 0]], dtype=torch.bool)  # 4 of 8 cells
    advantages = torch.tensor([[4.0, 9.0, 9.0, 9.0], [0.0, 4.0, 0.0, 9.0]])
    policy_part, value_part = (torch.zeros(2, 4), torch.zeros(2, 4), advantages), (torch.zeros(2, 4),) * 3
    found = {n: trainer(n)._losses(policy_part, value_part, mask, mask.sum())[0] for n in ("full", "padding_counts")}
    assert found["full"].item() == pytest.approx(-2) and found["padding_counts"].item() == pytest.approx(-1)


def test_a_mean_of_means_depends_on_the_micro_batches():
    """At ratio one the policy loss is minus the mean advantage: of all tokens, or of the means of two halves."""
    built = trainer("mean_of_means", replace(STILL, whiten_advantages=False))
    rollout, _, rewards = rewards_of(trainer("full"))
    advantages, returns, _ = built._advantages(rollout, rewards)
    order = sorted(range(8), key=lambda i: len(QUERIES[i]) + len(RESPONSES[i]))
    halves = [order[:FEW_ROWS], order[FEW_ROWS:]]
    means = [advantages[half][rollout.mask[half]].mean() for half in halves]
    wrong = built._minibatch(rollout, advantages, returns, list(range(8)))["policy_loss"]
    assert wrong == pytest.approx(-sum(means).item() / 2, abs=1e-5)
    for rows in (FEW_ROWS, 8):
        full = trainer("full", replace(STILL, whiten_advantages=False, micro_batch=rows))
        right = full._minibatch(rollout, advantages, returns, list(range(8)))["policy_loss"]
        assert right == pytest.approx(-advantages[rollout.mask].mean().item(), abs=1e-5)
    assert abs(wrong - right) > 0.01


def test_whitened_targets_are_whitened_advantages_plus_values():
    built = trainer("whitened_targets")
    rollout, _, rewards = rewards_of(built)
    rollout = rollout._replace(values=torch.randn(rollout.mask.shape, generator=torch.Generator().manual_seed(0)))
    right, wrong = (trainer(name)._advantages(rollout, rewards) for name in ("full", "whitened_targets"))
    assert torch.equal(right[0], wrong[0])
    assert torch.allclose(wrong[1][rollout.mask], (right[0] + rollout.values)[rollout.mask])
    assert (wrong[1][~rollout.mask] == 0).all() and not torch.allclose(right[1], wrong[1], atol=0.05)


def test_epsilon_is_what_adam_gets():
    assert trainer("adam_epsilon").optimizer.defaults["eps"] == 1e-8
    assert trainer("full").optimizer.defaults["eps"] == 1e-5


# --- the true KL ---


@pytest.mark.parametrize("temperature", [1.0, COOL])
def test_log_ratios_are_those_of_the_distributions_that_are_sampled(temperature):
    policy, reference = gpt2(0), gpt2(1)
    samples = sample(policy, QUERIES, NEW, EOS, 3, temperature)
    found = ppo_details.log_ratios(reference, QUERIES, samples, temperature)
    for value, query, response in zip(found, QUERIES, samples.responses, strict=True):
        by_hand = logs(policy, query, response, temperature) - logs(reference, query, response, temperature)
        assert value.item() == pytest.approx(by_hand.sum().item(), abs=1e-4)
