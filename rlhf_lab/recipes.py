"""The standard artefacts of the course by name, each trained once and found again. The only place that says how the
course trains them; every recipe's arguments are what a profile may change, and the seed."""

import copy
import json
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm

from rlhf_lab import language_model, preferences, reward_model, sft
from rlhf_lab.checkpoints import load_json, reads, recipe, save_json
from rlhf_lab.evaluation import evaluate
from rlhf_lab.rloo import RLOO, RLOOConfig
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh import generator, gold

NORMALIZING_PROMPTS = 400  # training prompts whose SFT answers fix the zero and the unit of a reward model
SHOWN = 40  # answers kept of each evaluation, to be read beside the curves


@reads("models/base")
def base(rung: str):
    """The shipped pre-trained model of a rung of the ladder and its tokenizer."""
    return language_model.load_base(rung)


@recipe(save=language_model.save, load=language_model.load)
def sft_policy(rung: str, demonstrations: int, seed: int):
    """The base model fine-tuned on demonstrations of good, not perfect, answers to helpful prompts."""
    model, tokenizer = base(rung)
    sft.train(model, tokenizer, generator.demonstrations(demonstrations, seed), sft.SFTConfig(), seed)
    return model


@recipe(save=language_model.save, load=reward_model.load)
def helpful_reward_model(rung: str, demonstrations: int, pairs: int, seed: int):
    """A reward model on the SFT policy's trunk, fitted to comparisons of the default labelers on helpful prompts.

    Its zero and unit are the mean and the standard deviation of its scores of the SFT policy's own answers.
    """
    policy, (_, tokenizer) = sft_policy(rung, demonstrations, seed), base(rung)
    with tempfile.TemporaryDirectory() as scratch:
        model = reward_model.from_language_model(policy, scratch, seed)
    data, _ = preferences.load_preferences("tinyhh", "helpful-base", "train", size=pairs, seed=seed)
    reward_model.train(model, tokenizer, data.to_list(), reward_model.RewardModelConfig(), seed)
    prompts = [tokenizer(p)["input_ids"] for p in held_in_prompts(NORMALIZING_PROMPTS, seed)]
    answers = sample(policy, prompts, RLOOConfig().max_new_tokens, tokenizer.eos_token_id, seed).responses
    reward_model.normalize(model, tokenizer, prompts, answers)
    return model


@recipe(save=save_json, load=load_json)
def policy_gradient_run(
    rung: str,
    demonstrations: int,
    pairs: int,
    kl_coef: float,
    updates: int,
    evaluate_every: int,
    prompts_per_update: int,
    test_prompts: int,
    seed: int,
) -> dict:
    """The SFT policy improved against the reward model, watched on held-out prompts on the way.

    Returns `updates` (E,), for each evaluation the lists `gold`, `proxy`, `kl` and `length` (E, N) over the same N
    held-out prompts, `prompts` and, of the first `SHOWN` of them, the `responses` (E, SHOWN).
    """
    policy, (_, tokenizer) = sft_policy(rung, demonstrations, seed), base(rung)
    reference, judge = copy.deepcopy(policy), helpful_reward_model(rung, demonstrations, pairs, seed)

    def reward(prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> torch.Tensor:
        return reward_model.score_tokens(judge, prompts, responses, tokenizer.eos_token_id)

    trainer = RLOO(policy, reference, reward, tokenizer.eos_token_id, RLOOConfig(kl_coef=kl_coef), seed)
    stream = (tokenizer(p)["input_ids"] for p in generator.prompts("helpful-base", "train", f"rl-{seed}"))
    watched = held_out_prompts(test_prompts, seed)
    scorers = {"gold": gold_helpfulness, "proxy": lambda p, r: reward_model.score(judge, tokenizer, p, r).tolist()}
    run = {"updates": [], "gold": [], "proxy": [], "kl": [], "length": [], "prompts": watched, "responses": []}
    for done in tqdm(range(updates + 1), desc="policy gradient", leave=False):
        if done % evaluate_every == 0 or done == updates:
            result = evaluate(policy, reference, tokenizer, watched, scorers, seed=seed)
            run["updates"].append(done)
            run["responses"].append(result.responses[:SHOWN])
            for name in ("gold", "proxy", "kl", "length"):
                run[name].append([round(float(value), 4) for value in result.scores[name]])
        if done < updates:
            trainer.step(list(islice(stream, prompts_per_update)))
    return run


def held_in_prompts(n: int, seed: int) -> list[str]:
    """Helpful prompts of the training split."""
    return list(islice(generator.prompts("helpful-base", "train", f"held-in-{seed}"), n))


def held_out_prompts(n: int, seed: int) -> list[str]:
    """Distinct helpful prompts of the test split: no model has met them."""
    distinct = dict.fromkeys(islice(generator.prompts("helpful-base", "test", f"held-out-{seed}"), 4 * n))
    return list(distinct)[:n]


def gold_helpfulness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The true helpfulness of each response, in points."""
    return [gold.helpfulness(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
