"""The standard artefacts of the course by name, each trained once and found again. The only place that says how the
course trains them; every recipe's arguments are what a profile may change, and the seed."""

import copy
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets
from tqdm.auto import tqdm

from rlhf_lab import (
    class_token,
    dpo,
    instructions,
    language_model,
    library,
    metadata,
    pair_reward,
    ppo_details,
    preferences,
    pretrained,
    reward_model,
    reward_prompt,
    sft,
    taste,
    transcripts,
)
from rlhf_lab.checkpoints import load_json, reads, recipe, save_json
from rlhf_lab.evaluation import evaluate
from rlhf_lab.fine_tuning import Settings, backends
from rlhf_lab.ppo import PPO, PPOConfig
from rlhf_lab.profiles import Profile
from rlhf_lab.rloo import RLOO, RLOOConfig, log_ratios
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh import annotators, generator, gold
from rlhf_lab.tinyhh.knowledge import SortingTask, subject, world

REAL_FOLDS = 5
REAL_RUNG = "0.2M"  # two thousand pairs of real English teach no more than the smallest model
REAL_LANGUAGE_MODEL = sft.SFTConfig(epochs=1, learning_rate=3e-3)
REAL_REWARD_MODEL = reward_model.RewardModelConfig(epochs=1, learning_rate=3e-3)  # 2 at 1e-3 is no better
REAL_CHECKPOINT = reward_model.RewardModelConfig(epochs=1, learning_rate=1e-5)  # for models that others pre-trained
# Of 0.5, 1, 2 and 4e-3: it first has to learn that there are two answers only. The other losses want the usual 5e-4.
CLASS_TOKEN = reward_model.RewardModelConfig(learning_rate=2e-3)
TASTE = RLOOConfig(kl_coef=0.3)  # a small general model is soon over-optimized, so the policy is held back more
RANKED_RESPONSES = 4  # to a prompt; InstructGPT has 4 to 9
BEST_LABELERS, DRAFTS = 3, 3  # who demonstrates, and how many answers they write before they hand one in
FEWEST_RANKED, MOST_RANKED = 4, 9  # responses to a prompt, InstructGPT section 3.5
RANKING_LABELERS = 3  # of each prompt
RANKING = reward_model.RewardModelConfig(batch_size=16)  # prompts, of about 6.5 answers each
RANKING_EPOCHS = 2  # for the reward model of PPO; InstructGPT has one, and thirteen times as many prompts
KL_COEF, PTX_COEF = 0.1, 0.2  # of PPO, from trial runs
EPISODES_PER_PROMPT = 8  # InstructGPT: 256,000 episodes, 31,144 prompts
ZERO_ANSWERS = 4  # by which a prompt's own zero is found
WATCHED = 4  # times on the way of a run of PPO, after the start
MOST_MIXED = 10_000  # pretraining texts, after which they come again
SHOTS, SHOT_TOKENS = 2, 40  # demonstrations before a prompt, none longer: the base models have read one dialogue a text
DETAILS_RUNG = "0.2M"
DETAILS_CONFIG = PPOConfig(learning_rate=3e-4)  # so that twenty updates show something
TUTORIAL_BATCH, TUTORIAL_READ = 16, 8  # episodes an update; whole dialogues read at once, of a large vocabulary
LIBRARY_BATCH, LIBRARY_ANSWER = 128, 64  # answers an update, and the most tokens of an answer
LIBRARY_EXPECTED = 26  # tokens an answer, by which PPO plans how its learning rate falls
PAIR_RUNG, PAIR_VOCABULARY = "0.5M", 1024  # of the reward model that is not the policy's kin
PAIR_TOKENS = ("<human>", "<assistant>")  # before an instruction and before its answer
PAIR_LANGUAGE_MODEL = sft.SFTConfig(epochs=1, learning_rate=3e-3)  # from nothing, as `REAL_LANGUAGE_MODEL`
COMPARED_PROMPTS = 4  # in a step, where ways to batch rankings are compared: few prompts are to make many steps
RANKING_TESTS = 6  # of a pass over rankings, evenly spread
FIRST_TEST = 256  # comparisons, after which a scaling pass is tested first
SIDES, SUBSETS = ("chosen", "rejected"), ("helpful", "harmless")
JUDGES = (*SUBSETS, "joint")  # the class-token models, by the comparisons that they are fitted to
OFFLINE = 500_000  # added to a seed: texts for policies are other ones than the reward models'
# As many steps as the source's 150,000 texts make in batches of 32. Of the multipliers .1 (the source's), .2, .4 and .8
# the third reads its targets best (trial seed).
PROMPTED = Settings(learning_rate_multiplier=0.4, batch_size=8)
PROMPTED_FORMATS = [reward_prompt.FORMATS[name] for name in ("none", "bottom", "two rewards")]  # by the rewards
PROMPTED_ANSWER = 64  # tokens at most
PURPOSES = ("validation", "test")  # of held-out prompts
NORMALIZING_PROMPTS = 400  # training prompts whose SFT answers fix the zero and the unit of a reward model


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


@recipe(save=save_json, load=load_json)
def compared_answers(rung: str, demonstrations: int, pairs: int, split: str, seed: int) -> list[dict[str, str]]:
    """The SFT policy answers `pairs` helpful prompts of a split twice, and a labeler of the default crowd says which
    answer is better, as in InstructGPT. Rows of prompt, chosen and rejected; two equal answers are not compared."""
    policy, (_, tokenizer) = sft_policy(rung, demonstrations, seed), base(rung)
    prompts = list(islice(generator.prompts("helpful-base", split, f"compared-{seed}"), pairs))
    ids = tokenizer(prompts)["input_ids"]
    texts = sample(policy, ids + ids, RLOOConfig().max_new_tokens, tokenizer.eos_token_id, seed).texts(tokenizer)
    rng, crowd = random.Random(f"labels-{split}-{seed}"), annotators.crowd("helpful-base")
    rows = []
    for prompt, first, second in zip(prompts, texts[:pairs], texts[pairs:], strict=True):
        if first != second:
            preferred = rng.choice(crowd).choose(prompt, first, second, rng)
            chosen, rejected = (first, second) if preferred == "first" else (second, first)
            rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


@recipe(save=language_model.save, load=reward_model.load)
def helpful_reward_model(rung: str, demonstrations: int, pairs: int, seed: int):
    """A reward model on the SFT policy's trunk, fitted to comparisons of that policy's answers.

    Its zero and unit are the mean and the standard deviation of its scores of the SFT policy's own answers.
    """
    policy, (_, tokenizer) = sft_policy(rung, demonstrations, seed), base(rung)
    model = reward_model.from_language_model(policy, seed)
    rows = compared_answers(rung, demonstrations, pairs, "train", seed)
    reward_model.train(model, tokenizer, rows, reward_model.RewardModelConfig(), seed)
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
    held-out `prompts`, and the `responses` (E, N) themselves.
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
            run["responses"].append(result.responses)
            for name in ("gold", "proxy", "kl", "length"):
                run[name].append([round(float(value), 4) for value in result.scores[name]])
        if done < updates:
            trainer.step(list(islice(stream, prompts_per_update)))
    return run


@reads("$HH_RLHF_DIR")
def real_pairs(pairs: int | None, seed: int):
    """Cleaned pairs of hh-rlhf's helpful-base test file (all of them, or a random `pairs`), and the cleaning report."""
    return preferences.load_preferences(preferences.HH_RLHF, "helpful-base", "test", size=pairs, seed=seed)


@recipe(save=save_json, load=load_json)
def real_fold(fold: int, pairs: int | None, max_tokens: int, seed: int) -> dict:
    """One of five folds of real people's preferences, from nothing: a tokenizer and a language model trained on the
    fold's training dialogues, then a reward model on its comparisons, tested on the pairs left out.

    Returns `test`, the indices of the tested pairs; `log_odds`, by how much each chosen response outscored its rival;
    and the `losses` of the reward model's steps.
    """
    data, _ = real_pairs(pairs, seed)
    train, test = preferences.folds_by_prompt(data, REAL_FOLDS, seed)[fold]
    pairs_in, pairs_out = data.select(train).to_list(), data.select(test).to_list()
    dialogues = [(pair["prompt"], pair[side]) for pair in pairs_in for side in ("chosen", "rejected")]
    tokenizer = language_model.train_tokenizer((p + r for p, r in dialogues))
    model = language_model.new_model(REAL_RUNG, len(tokenizer), seed)
    sft.train(model, tokenizer, dialogues, replace(REAL_LANGUAGE_MODEL, max_tokens=max_tokens), seed)
    judge = reward_model.from_language_model(model, seed)
    losses = reward_model.train(judge, tokenizer, pairs_in, replace(REAL_REWARD_MODEL, max_tokens=max_tokens), seed)
    margins = reward_model.margins(judge, tokenizer, pairs_out, max_tokens)
    return {"test": test, "log_odds": [round(m, 4) for m in margins], "losses": [round(loss, 4) for loss in losses]}


# classic_control is imported by those who need it: gymnasium and stable-baselines3 would make all others wait seconds.


@recipe(save=save_json, load=load_json)
def cartpole_ppo(steps: int, epochs: int, learning_rate: float, clip: float, seed: int) -> dict:
    """Our PPO on CartPole, with this many epochs on each batch: curves and final returns of `classic_control`."""
    from rlhf_lab import classic_control

    config = classic_control.PPOConfig(epochs=epochs, learning_rate=learning_rate, clip=clip)
    return classic_control.train_ppo(steps, seed, config)


@recipe(save=save_json, load=load_json)
def cartpole_sb3(steps: int, epochs: int, learning_rate: float, clip: float, seed: int) -> dict:
    """The PPO of stable-baselines3 in the same way, with the same settings."""
    from rlhf_lab import classic_control

    config = classic_control.PPOConfig(epochs=epochs, learning_rate=learning_rate, clip=clip)
    return classic_control.train_sb3(steps, seed, config)


@recipe(save=save_json, load=load_json)
def cartpole_reinforce(steps: int, episodes: int, learning_rate: float, seed: int) -> dict:
    """REINFORCE on CartPole, with this many episodes a gradient step."""
    from rlhf_lab import classic_control

    config = classic_control.ReinforceConfig(episodes=episodes, learning_rate=learning_rate)
    return classic_control.train_reinforce(steps, seed, config)


# Part 2: preferences and reward models


def preference_pairs(data: str, split: str, pairs: int, seed: int) -> list[dict[str, str]]:
    """Comparisons of the miniature world, `pairs` of each of its subsets that the data set has: "helpful", "harmless",
    "joint" (both, in turn). "unseen" are helpful ones about topics that occur in no other comparison, "target" about
    one in four of the others, "elsewhere" about the rest."""
    labelled, unlabelled = world().labelled_topics(), [topic for topic in world().topics if topic.unlabelled]
    target = labelled[::4]
    topics = {"unseen": unlabelled, "target": target, "elsewhere": [t for t in labelled if t not in target]}
    subsets = {"harmless": ("harmless-base",), "joint": ("helpful-base", "harmless-base")}.get(data, ("helpful-base",))
    sides = [generator.preference_rows(s, split, pairs, seed, topics=topics.get(data, ())) for s in subsets]
    return [row for rows in zip(*sides, strict=True) for row in rows]


@recipe(save=language_model.save, load=reward_model.load)
def pairwise_model(rung: str, data: str, pairs: int, seed: int):
    """The base model with a head, fitted to comparisons by the pairwise loss."""
    return _fitted_to_pairs(rung, preference_pairs(data, "train", pairs, seed), seed)


@recipe(save=language_model.save, load=reward_model.load)
def prompt_blind_model(rung: str, data: str, pairs: int, seed: int):
    """The same, but it never sees a prompt, only responses."""
    return _fitted_to_pairs(rung, without_prompts(preference_pairs(data, "train", pairs, seed)), seed)


@recipe(save=language_model.save, load=language_model.load)
def class_token_model(rung: str, data: str, pairs: int, seed: int):
    """The base model as a class-token reward model, fitted to the same comparisons."""
    model, tokenizer = base(rung)
    rows = preference_pairs(data, "train", pairs, seed)
    class_token.train(model, tokenizer, rows, CLASS_TOKEN, seed)
    return model


@recipe(save=language_model.save, load=reward_model.load)
def k_wise_model(rung: str, pairs: int, k: int, seed: int):
    """The base model with a head, fitted to joint rankings of `k` responses. It reads as many responses in as many
    steps as the others do in `pairs` pairs of each subset."""
    model, tokenizer = base(rung)
    judge = reward_model.from_language_model(model, seed)
    sides = [generator.rankings(subset, "train", 2 * pairs // k, k, seed) for subset in generator.SUBSETS]
    rankings = [row for rows in zip(*sides, strict=True) for row in rows]
    config = reward_model.RewardModelConfig()
    config = replace(config, batch_size=2 * config.batch_size // k)
    reward_model.train_on_rankings(judge, tokenizer, rankings, config, seed)
    return judge


@recipe(save=save_json, load=load_json)
def preference_scores(kind: str, rung: str, data: str, pairs: int, test_data: str, test_pairs: int, seed: int) -> dict:
    """How a model trained on `data` scores the held-out pairs of `test_data`: lists `chosen` and `rejected`.

    kind: "pairwise", "prompt_blind" or "k_wise", in log-odds; "class_token", the logits of its scores.
    """
    _, tokenizer = base(rung)
    rows = preference_pairs(test_data, "test", test_pairs, seed)
    if kind == "class_token":
        return scored(class_token.log_odds, class_token_model(rung, data, pairs, seed), tokenizer, rows)
    if kind == "k_wise":
        return scored(reward_model.score, k_wise_model(rung, pairs, RANKED_RESPONSES, seed), tokenizer, rows)
    if kind == "prompt_blind":
        judge = prompt_blind_model(rung, data, pairs, seed)
        return scored(reward_model.score, judge, tokenizer, without_prompts(rows))
    return scored(reward_model.score, pairwise_model(rung, data, pairs, seed), tokenizer, rows)


@recipe(save=save_json, load=load_json)
def varied_scores(
    rung: str, pairs: int, config: reward_model.RewardModelConfig, head: float, test_pairs: int, seed: int
) -> dict:
    """A pairwise model of the joint data trained in another way, its first head `head` times as large as usual: its
    `losses`, and its scores of the joint held-out pairs, `chosen` and `rejected`."""
    model, tokenizer = base(rung)
    judge = reward_model.from_language_model(model, seed)
    judge.score.weight.data *= head
    losses = reward_model.train(judge, tokenizer, preference_pairs("joint", "train", pairs, seed), config, seed)
    rows = preference_pairs("joint", "test", test_pairs, seed)
    return {"losses": [round(loss, 4) for loss in losses]} | scored(reward_model.score, judge, tokenizer, rows)


@recipe(save=save_json, load=load_json)
def judged_by(
    rung: str, labelers: tuple[annotators.Annotator, ...], pairs: int, votes: int, test_pairs: int, seed: int
) -> dict:
    """A pairwise model of helpful pairs that these labelers judged, each pair by `votes` of them, drawn at random,
    whose majority counts: its scores `chosen` and `rejected` of the held-out pairs that `preference_pairs` gives.

    The responses and which of them is shown first are the same for all labelers.
    """
    rng, rows = random.Random(f"votes-{seed}"), []
    for pair in generator.comparisons("helpful-base", "train", pairs, seed):
        verdicts = [rng.choice(labelers).choose(pair.prompt, pair.first, pair.second, rng) for _ in range(votes)]
        lead = verdicts.count("first") - verdicts.count("second")
        if lead:
            chosen, rejected = (pair.first, pair.second) if lead > 0 else (pair.second, pair.first)
            rows.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected})
    _, tokenizer = base(rung)
    rows_out = preference_pairs("helpful", "test", test_pairs, seed)
    return scored(reward_model.score, _fitted_to_pairs(rung, rows, seed), tokenizer, rows_out)


@recipe(save=save_json, load=load_json)
def taste_run(
    rung: str,
    demonstrations: int,
    pairs: int,
    labels: tuple[tuple[str, str, str], ...],
    updates: int,
    prompts_per_update: int,
    test_prompts: int,
    seed: int,
) -> dict:
    """The SFT policy improved against one person's taste: the reward model of helpful `pairs`, corrected by that
    person's labels (prompt, chosen, rejected). Without labels it is the reward model alone.

    Returns held-out `prompts`, the answers `before` and `after` (N,) and the mean `kl` of those after.
    """
    policy, (_, tokenizer) = sft_policy(rung, demonstrations, seed), base(rung)
    judge, reference = pairwise_model(rung, "helpful", pairs, seed), copy.deepcopy(policy)
    rows = [dict(zip(("prompt", "chosen", "rejected"), label, strict=True)) for label in labels]
    mine = taste.fit(rows, lambda prompts, responses: reward_model.score(judge, tokenizer, prompts, responses).numpy())
    watched = held_out_prompts(test_prompts, seed)
    before = evaluate(reference, reference, tokenizer, watched, {}, seed)
    trainer = RLOO(policy, reference, taste.reward(mine, tokenizer), tokenizer.eos_token_id, TASTE, seed)
    stream = (tokenizer(p)["input_ids"] for p in generator.prompts("helpful-base", "train", f"taste-{seed}"))
    for _ in range(updates):
        trainer.step(list(islice(stream, prompts_per_update)))
    after = evaluate(policy, reference, tokenizer, watched, {}, seed)
    return {"prompts": watched, "before": before.responses, "after": after.responses, "kl": round(after.mean("kl"), 4)}


@recipe(save=save_json, load=load_json)
def scaling_pass(rung: str, wrong: float, pairs: int, test_pairs: int, seed: int) -> dict:
    """One pass over helpful comparisons at a constant rate, stopped for a test after 256, 512, 1,024, ... of them. A
    share `wrong` of the training labels is turned round.

    Returns `pairs` (E,), and lists of the scores `chosen` and `rejected` (E, N) of the same held-out pairs.
    """
    model, tokenizer = base(rung)
    judge, rows_out = (
        reward_model.from_language_model(model, seed),
        preference_pairs("helpful", "test", test_pairs, seed),
    )
    rng, rows = random.Random(f"wrong-{seed}"), preference_pairs("helpful", "train", pairs, seed)
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    rows = [bad if rng.random() < wrong else good for good, bad in zip(rows, turned, strict=True)]
    run: dict[str, list] = {"pairs": [], "chosen": [], "rejected": []}

    def watch(done: int) -> None:
        if done == FIRST_TEST * 2 ** len(run["pairs"]):
            result = scored(reward_model.score, judge.eval(), tokenizer, rows_out)
            judge.train()
            for name, value in ({"pairs": done} | result).items():
                run[name].append(value)

    config = replace(reward_model.RewardModelConfig(), final_share=1.0)
    reward_model.train(judge, tokenizer, rows, config, seed, watch)
    return run


@recipe(save=save_json, load=load_json)
def target_scores(rung: str, elsewhere: int, learning_rate: float, pairs: int, test_pairs: int, seed: int) -> dict:
    """What `pairs` comparisons about the target topics teach a model that read `elsewhere` comparisons about other
    topics before, none if 0: its scores `chosen` and `rejected` of held-out pairs about the target topics."""
    model, tokenizer = base(rung)
    judge = reward_model.from_language_model(model, seed)
    if elsewhere:
        judge = pairwise_model(rung, "elsewhere", elsewhere, seed)
    if pairs:
        config = replace(reward_model.RewardModelConfig(), learning_rate=learning_rate)
        reward_model.train(judge, tokenizer, preference_pairs("target", "train", pairs, seed), config, seed)
    return scored(reward_model.score, judge, tokenizer, preference_pairs("target", "test", test_pairs, seed))


@reads("$HH_RLHF_DIR")
def real_comparisons(subsets: tuple[str, ...], pairs: int | None, seed: int) -> Dataset:
    """Cleaned pairs of hh-rlhf's test files, `pairs` of each subset or all, with their `subset` as a further column."""
    parts = [preferences.load_preferences(preferences.HH_RLHF, s, "test", size=pairs, seed=seed)[0] for s in subsets]
    named = [part.add_column("subset", [s] * len(part)) for s, part in zip(subsets, parts, strict=True)]
    return concatenate_datasets(named)


@recipe(save=language_model.save_with_tokenizer, load=language_model.load_with_tokenizer)
def real_language_model(subsets: tuple[str, ...], pairs: int | None, fold: int, max_tokens: int, seed: int):
    """A language model and its tokenizer, from nothing, on the training dialogues of a fold."""
    data = real_comparisons(subsets, pairs, seed)
    train, _ = preferences.folds_by_prompt(data, REAL_FOLDS, seed)[fold]
    dialogues = [(row["prompt"], row[side]) for row in data.select(train) for side in ("chosen", "rejected")]
    tokenizer = language_model.train_tokenizer(p + r for p, r in dialogues)
    model = language_model.new_model(REAL_RUNG, len(tokenizer), seed)
    sft.train(model, tokenizer, dialogues, replace(REAL_LANGUAGE_MODEL, max_tokens=max_tokens), seed)
    return model, tokenizer


@recipe(save=save_json, load=load_json)
def real_scores(
    kind: str,
    trained_on: tuple[str, ...],
    subsets: tuple[str, ...],
    pairs: int | None,
    fold: int,
    max_tokens: int,
    checkpoint: str | None,
    seed: int,
) -> dict:
    """A reward model, "pairwise" or "class_token", fitted to some subsets' training pairs of a fold and tested on all
    pairs that the fold leaves out. It starts from `checkpoint`, or from the fold's own language model.

    Returns `test`, the indices of the tested pairs in `real_comparisons`, and their scores `chosen` and `rejected`.
    """
    data = real_comparisons(subsets, pairs, seed)
    train, test = preferences.folds_by_prompt(data, REAL_FOLDS, seed)[fold]
    rows_in = [row for row in data.select(train) if row["subset"] in trained_on]
    rows_out = data.select(test).to_list()
    config = replace(REAL_CHECKPOINT if checkpoint else REAL_REWARD_MODEL, max_tokens=max_tokens)
    if kind == "class_token" and checkpoint:
        model, tokenizer = language_model.load(checkpoint), language_model.load_tokenizer(checkpoint)
    elif checkpoint:
        model, tokenizer = reward_model.from_checkpoint(checkpoint, seed)
    else:
        model, tokenizer = real_language_model(subsets, pairs, fold, max_tokens, seed)
    if kind == "class_token":
        class_token.train(model, tokenizer, rows_in, config, seed)
        return {"test": test} | scored(class_token.log_odds, model, tokenizer, rows_out, max_tokens)
    judge = model if checkpoint else reward_model.from_language_model(model, seed)
    reward_model.train(judge, tokenizer, rows_in, config, seed)
    return {"test": test} | scored(reward_model.score, judge, tokenizer, rows_out, max_tokens)


# Part 3: InstructGPT


def save_watched(value: tuple, folder: Path) -> None:
    """Write a policy and its history to a folder."""
    policy, history = value
    language_model.save(policy, folder)
    save_json(history, folder)


def load_watched(folder: Path) -> tuple:
    """Read a policy and its history from a folder."""
    return language_model.load(folder), load_json(folder)


def load_tutorial(folder: Path) -> tuple:
    """The same, the policy where it learns."""
    return pretrained.load_model(folder), load_json(folder)


def best_demonstrations(n: int, split: str, seed: int) -> list[tuple[str, str]]:
    """`n` helpful prompts of a split, each answered by one of the crowd's three best labelers, who writes three drafts
    and hands in the one that he or she likes best."""
    rng, crowd = random.Random(f"best-{split}-{seed}"), annotators.crowd("helpful-base")
    best = sorted(crowd, key=lambda labeler: -labeler.skill)[:BEST_LABELERS]
    rows = []
    for prompt in islice(generator.prompts("helpful-base", split, f"best-{seed}"), n):
        drafts = [generator.response(prompt, rng) for _ in range(DRAFTS)]
        rows.append((prompt, drafts[rng.choice(best).rank(prompt, drafts, rng).index(1)]))
    return rows


def pretraining_texts(n: int, seed: int | str) -> list[str]:
    """`n` new texts of the kinds that the base models were trained on, dialogues and notes."""
    return [text for _, text in generator.pretraining_documents(n, f"more-{seed}")]


def held_out_notes(n: int) -> list[tuple[str, str]]:
    """`n` notes, the second register of the base models' training, as ("", text) for `language_model.perplexity`."""
    rng = random.Random("held-out-notes")
    return [("", generator.note(rng)) for _ in range(n)]


@recipe(save=language_model.save, load=language_model.load)
def instruct_sft(rung: str, demonstrations: int, seed: int):
    """The base model fine-tuned on the best labelers' demonstrations, two epochs, with a tenth as many texts of its
    first training mixed in: the policy that InstructGPT's reinforcement learning starts from (appendix C.3)."""
    model, tokenizer = base(rung)
    texts = [("", text) for text in pretraining_texts(demonstrations // 10, f"sft-{seed}")]
    sft.train(model, tokenizer, best_demonstrations(demonstrations, "train", seed) + texts, sft.SFTConfig(), seed)
    return model


@recipe(save=save_json, load=load_json)
def sft_epochs(
    rung: str, shown: int, epochs: int, demonstrations: int, ranking_prompts: int, test_prompts: int, seed: int
) -> dict:
    """Fine-tuning on `shown` demonstrations and nothing else, watched before the first epoch and after each.

    Returns lists over E = epochs + 1 points: the response perplexity of (some of) the demonstrations trained on,
    `train`, and of held-out ones, `test`; and the `gold` and `proxy` rewards (E, N) of one answer to each of the same N
    held-out prompts. The proxy is `instruct_reward_model(rung, demonstrations, ranking_prompts, seed)`.
    """
    model, tokenizer = base(rung)
    rows, held_out = best_demonstrations(shown, "train", seed), best_demonstrations(test_prompts, "test", seed)
    prompts, reference = [prompt for prompt, _ in held_out], copy.deepcopy(model)
    proxy = proxy_of(instruct_reward_model(rung, demonstrations, ranking_prompts, seed), tokenizer)
    scorers = {"gold": gold_helpfulness, "proxy": proxy}
    run: dict[str, list] = {"train": [], "test": [], "gold": [], "proxy": []}

    def watch(_epoch: int) -> None:
        model.eval()
        run["train"].append(round(language_model.perplexity(model, tokenizer, rows[:test_prompts]), 4))
        run["test"].append(round(language_model.perplexity(model, tokenizer, held_out), 4))
        result = evaluate(model, reference, tokenizer, prompts, scorers, seed)
        for name in scorers:
            run[name].append([round(float(value), 4) for value in result.scores[name]])
        model.train()

    watch(0)
    sft.train(model, tokenizer, rows, replace(sft.SFTConfig(), epochs=epochs), seed, watch)
    return run


@recipe(save=save_json, load=load_json)
def ranked_answers(rung: str, demonstrations: int, prompts: int, split: str, seed: int) -> list[dict]:
    """The SFT policy answers each of `prompts` helpful prompts 4 to 9 times, and three labelers of the crowd, drawn for
    each prompt, sort the answers into five columns. Rows of prompt, responses and ranks: the mean columns."""
    policy, (_, tokenizer) = instruct_sft(rung, demonstrations, seed), base(rung)
    rng, crowd = random.Random(f"ranked-{split}-{seed}"), annotators.crowd("helpful-base")
    asked = list(islice(generator.prompts("helpful-base", split, f"ranked-{seed}"), prompts))
    counts = [rng.randint(FEWEST_RANKED, MOST_RANKED) for _ in asked]
    ids = [tokenizer(prompt)["input_ids"] for prompt, k in zip(asked, counts, strict=True) for _ in range(k)]
    texts = iter(sample(policy, ids, RLOOConfig().max_new_tokens, tokenizer.eos_token_id, seed).texts(tokenizer))
    rows = []
    for prompt, k in zip(asked, counts, strict=True):
        answers = list(islice(texts, k))
        columns = [annotators.columns(labeler, prompt, answers, rng) for labeler in rng.sample(crowd, RANKING_LABELERS)]
        ranks = [sum(of_answer) / RANKING_LABELERS for of_answer in zip(*columns, strict=True)]
        rows.append({"prompt": prompt, "responses": answers, "ranks": ranks})
    return rows


@recipe(save=language_model.save, load=reward_model.load)
def instruct_reward_model(rung: str, demonstrations: int, prompts: int, seed: int):
    """A reward model on the SFT policy's trunk, fitted to rankings of that policy's answers, all pairs of a prompt in
    one step. Its zero is the mean score of the labelers' demonstrations."""
    policy, (_, tokenizer) = instruct_sft(rung, demonstrations, seed), base(rung)
    model = reward_model.from_language_model(policy, seed)
    rankings = ranked_answers(rung, demonstrations, prompts, "train", seed)
    reward_model.train_on_rankings(model, tokenizer, rankings, replace(RANKING, epochs=RANKING_EPOCHS), seed)
    shown = best_demonstrations(NORMALIZING_PROMPTS, "train", seed)
    reward_model.center(model, tokenizer, *zip(*shown, strict=True))
    return model


@recipe(save=save_json, load=load_json)
def ranking_pass(
    rung: str,
    demonstrations: int,
    prompts: int,
    steps_of: str,
    epochs: int,
    learning_rate: float,
    test_prompts: int,
    seed: int,
) -> dict:
    """A reward model fitted to rankings, batched in one of three ways. In steps of "prompts" all pairs of a prompt are
    in one step. Else every pair is an item of its own, shuffled, and a step is of as many "answers" as those are, or
    of as many "pairs".

    Returns lists over the points at which it was tested: the `share` of the training that was done, the mean loss per
    pair of held-out rankings, `test`, and of some of those it is trained on, `train`, and the held-out `accuracy`; and
    the number of `steps`, of answers `read`, and the `seconds` of one core that training took.
    """
    policy, (_, tokenizer) = instruct_sft(rung, demonstrations, seed), base(rung)
    judge = reward_model.from_language_model(policy, seed)
    rankings = ranked_answers(rung, demonstrations, prompts, "train", seed)
    rows = {
        "train": rankings[: test_prompts // 3],
        "test": ranked_answers(rung, demonstrations, test_prompts, "test", seed),
    }
    pairs, answers = ordered_pairs(rankings), sum(len(row["responses"]) for row in rankings)
    data = rankings if steps_of == "prompts" else pairs
    items = {"prompts": len(rankings), "answers": answers / 2, "pairs": len(pairs)}[steps_of]
    batch_size = round(COMPARED_PROMPTS * items / len(rankings))
    config = replace(RANKING, epochs=epochs, learning_rate=learning_rate, batch_size=batch_size)
    run: dict[str, list] = {"share": [], "train": [], "test": [], "accuracy": []}
    testing = 0.0  # seconds

    def watch(done: int) -> None:
        nonlocal testing
        if done < (len(run["share"]) + 1) * epochs * len(data) / RANKING_TESTS:
            return
        began = time.process_time()
        run["share"].append(round(done / (epochs * len(data)), 4))
        for name in ("train", "test"):
            margins = ranking_margins(judge.eval(), tokenizer, rows[name])
            run[name].append(round(-torch.nn.functional.logsigmoid(margins).mean().item(), 4))
        run["accuracy"].append(round((margins > 0).float().mean().item(), 4))
        judge.train()
        testing += time.process_time() - began

    began = time.process_time()
    fit = reward_model.train_on_rankings if data is rankings else reward_model.train
    losses = fit(judge, tokenizer, data, config, seed, watch)
    seconds = time.process_time() - began - testing
    read = epochs * (answers if data is rankings else 2 * len(pairs))
    return run | {"steps": len(losses), "read": read, "seconds": round(seconds, 1)}


def ranking_margins(judge, tokenizer, rankings: Sequence[dict]) -> torch.Tensor:
    """By how much the better response outscores the other, in all ordered pairs of all rankings, (P,). Each response
    is scored once."""
    prompts = [row["prompt"] for row in rankings for _ in row["responses"]]
    texts = [response for row in rankings for response in row["responses"]]
    scores = reward_model.score(judge, tokenizer, prompts, texts).split([len(row["responses"]) for row in rankings])
    ranks = [torch.tensor(row["ranks"]) for row in rankings]
    return torch.cat([(s[:, None] - s)[r[:, None] < r] for s, r in zip(scores, ranks, strict=True)])


def training_prompts(n: int, seed: int | str) -> list[str]:
    """Distinct helpful prompts of the training split."""
    return list(dict.fromkeys(islice(generator.prompts("helpful-base", "train", seed), 4 * n)))[:n]


def above_policy(proxy: Callable, policy, tokenizer, prompts: Sequence[str], seed: int) -> Callable:
    """A reward for answers to these prompts: by how much `proxy` scores them above the mean of four answers of `policy`
    to the same prompt.

    Comparisons of answers to one prompt leave the zero of every prompt free, so scores differ between prompts for no
    reason. A constant for each prompt changes nothing about which policy is best, and takes that noise off.
    """
    asked = [prompt for prompt in prompts for _ in range(ZERO_ANSWERS)]
    ids = tokenizer(asked)["input_ids"]
    texts = sample(policy, ids, PPOConfig().max_new_tokens, tokenizer.eos_token_id, seed).texts(tokenizer)
    return above_answers(proxy, asked, texts)


def above_answers(proxy: Callable, asked: Sequence[str], answers: Sequence[str]) -> Callable:
    """The same, above the mean score of these answers, four to a prompt, one after another."""
    means = torch.tensor(proxy(asked, answers)).view(-1, ZERO_ANSWERS).mean(dim=1).tolist()
    zero = dict(zip(dict.fromkeys(asked), means, strict=True))
    return lambda prompts, answers: [s - zero[p] for s, p in zip(proxy(prompts, answers), prompts, strict=True)]


@dataclass(frozen=True)
class PPORun:
    """All that a run of PPO in part 3 depends on, beside its seed."""

    rung: str  # of the policy
    judge: str  # the reward model's rung; InstructGPT has one reward model for policies of all sizes
    demonstrations: int  # for the SFT policy
    ranking_prompts: int  # for the reward model
    updates: int
    batch: int
    kl_coef: float = KL_COEF
    ptx_coef: float = 0.0
    reward: str = "model"  # "raw": its scores without a zero for each prompt; "gold": the true helpfulness


@recipe(save=save_watched, load=load_watched)
def ppo_run(run: PPORun, validation_prompts: int, seed: int):
    """The SFT policy improved by PPO, watched on held-out prompts on the way.

    Returns the policy and the run's history: `metrics`, {name: (U,)} of `PPO.step`; and of the watching, at the start
    and after each quarter, `updates` (E,), the lists `gold`, `proxy`, `kl` and `length` (E, N) over the same N
    `prompts`, and the `responses` (E, N).
    """
    policy, (_, tokenizer) = instruct_sft(run.rung, run.demonstrations, seed), base(run.rung)
    reference = copy.deepcopy(policy)
    proxy = proxy_of(instruct_reward_model(run.judge, run.demonstrations, run.ranking_prompts, seed), tokenizer)
    config = PPOConfig(updates=run.updates, batch_size=run.batch, kl_coef=run.kl_coef, ptx_coef=run.ptx_coef)
    mixed = run.updates * config.epochs * config.minibatches * config.ptx_batch if run.ptx_coef else 0
    texts = pretraining_texts(min(mixed, MOST_MIXED), f"ptx-{seed}")
    trainer = PPO(policy, reference, config, tokenizer, seed, pretraining=texts)
    watched, scorers = (
        held_out_prompts(validation_prompts, seed, "validation"),
        {"gold": gold_helpfulness, "proxy": proxy},
    )
    history: dict = {name: [] for name in ("updates", "gold", "proxy", "kl", "length", "responses")}

    def watch(_metrics: dict | None = None) -> None:
        if trainer.done * WATCHED >= len(history["updates"]) * run.updates:
            result = evaluate(policy, reference, tokenizer, watched, scorers, seed, config.max_new_tokens)
            history["updates"].append(trainer.done)
            history["responses"].append(result.responses)
            for name in ("gold", "proxy", "kl", "length"):
                history[name].append([round(float(value), 4) for value in result.scores[name]])

    watch()
    asked = training_prompts(run.updates * run.batch // EPISODES_PER_PROMPT, f"ppo-{seed}")
    rewards = {"gold": gold_helpfulness, "raw": proxy}
    reward = rewards.get(run.reward) or above_policy(proxy, reference, tokenizer, asked, seed)
    steps = trainer.train(asked, reward, watch)
    metrics = {name: [float(f"{step[name]:.4g}") for step in steps] for name in steps[0]}
    return policy, {"metrics": metrics, "prompts": watched} | history


@recipe(save=save_json, load=load_json)
def policy_answers(policy: str, run: PPORun, validation_prompts: int, prompts: int, seed: int) -> dict:
    """One answer of a policy to each of `prompts` prompts of each kind of `evaluation_prompts`.

    policy: "base", "prompted" (the base model after two demonstrations), "sft" or "ppo", the one that `run` ends with.
    Returns for each kind its `prompts` and `responses`, and as `notes` the policy's perplexity of held-out notes.
    """
    model, tokenizer = base(run.rung)
    if policy == "sft":
        model = instruct_sft(run.rung, run.demonstrations, seed)
    elif policy == "ppo":
        model, _ = ppo_run(run, validation_prompts, seed)
    result: dict = {"notes": round(language_model.perplexity(model, tokenizer, held_out_notes(2 * prompts)), 4)}
    for kind, asked in evaluation_prompts(prompts, seed).items():
        shown = few_shot(asked, tokenizer, run.demonstrations, seed) if policy == "prompted" else asked
        answers = sample(
            model, tokenizer(shown)["input_ids"], RLOOConfig().max_new_tokens, tokenizer.eos_token_id, seed
        )
        texts = [first_answer(text) for text in answers.texts(tokenizer)]
        result[kind] = {"prompts": asked, "responses": texts}
    return result


def evaluation_prompts(n: int, seed: int) -> dict[str, list[str]]:
    """`n` distinct helpful prompts of the test split of each kind: `held_out` as they come; `unseen` about topics that
    occur in no demonstration, comparison or prompt of reinforcement learning; `sorting`, the skill; `hurried`, which
    ask for a short answer."""
    stream = generator.prompts("helpful-base", "test", f"kinds-{seed}")
    unlabelled = [topic for topic in world().topics if topic.unlabelled]
    return {
        "held_out": held_out_prompts(n, seed),
        "unseen": _distinct(generator.prompts("helpful-base", "test", f"unseen-{seed}", unlabelled), n),
        "sorting": _distinct((p for p in stream if isinstance(subject(p), SortingTask)), n),
        "hurried": _distinct((p for p in stream if metadata.asks_to_be_short(p)), n),
    }


def few_shot(prompts: list[str], tokenizer, demonstrations: int, seed: int) -> list[str]:
    """Each prompt after two of the best labelers' demonstrations, drawn for it from the short ones."""
    rng = random.Random(f"few-shot-{seed}")
    texts = [prompt + response for prompt, response in best_demonstrations(demonstrations, "train", seed)]
    lengths = map(len, tokenizer(texts)["input_ids"])
    short = [text for text, length in zip(texts, lengths, strict=True) if length <= SHOT_TOKENS]
    return ["".join(rng.sample(short, SHOTS)) + prompt for prompt in prompts]


def first_answer(text: str) -> str:
    """What the assistant says before it begins to speak for the person, too, as a base model does."""
    return text.partition("\n\nHuman:")[0]


def _distinct(stream: Iterable[str], n: int) -> list[str]:
    """The first `n` distinct texts of an endless stream."""
    seen: dict[str, None] = {}
    return list(islice((text for text in stream if not (text in seen or seen.update({text: None}))), n))


@recipe(save=save_json, load=load_json)
def detail_run(
    detail: str, updates: int, batch: int, demonstrations: int, ranking_prompts: int, test_prompts: int, seed: int
) -> dict:
    """PPO on the smallest rung with one detail of `ppo_details` switched off, or with nothing ("full", "full_cool").

    Returns the `metrics` of all updates, a list (U,) for each, and of one answer to each of the same N held-out prompts
    at the end the `gold` and `proxy` rewards, the `kl` and the `length` (N,). Answers are drawn at the temperature that
    the run samples at, and the KL is that of the distributions at this temperature. Zero updates: the policy as it was.
    """
    policy, (_, tokenizer) = instruct_sft(DETAILS_RUNG, demonstrations, seed), base(DETAILS_RUNG)
    reference, judge = copy.deepcopy(policy), instruct_reward_model(DETAILS_RUNG, demonstrations, ranking_prompts, seed)
    proxy = proxy_of(judge, tokenizer)
    config = replace(DETAILS_CONFIG, updates=updates, batch_size=batch)
    trainer = ppo_details.build(detail, policy, reference, config, tokenizer, seed, judge)
    asked = list(islice(generator.prompts("helpful-base", "train", f"details-{seed}"), max(1, updates * batch)))
    rows = trainer.train(asked, proxy)

    prompts, temperature = held_out_prompts(test_prompts, seed), ppo_details.sampling_temperature(detail)
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    samples = sample(policy, ids, config.max_new_tokens, tokenizer.eos_token_id, seed, temperature)
    texts = samples.texts(tokenizer)
    measured = {
        "gold": gold_helpfulness(prompts, texts),
        "proxy": proxy(prompts, texts),
        "kl": ppo_details.log_ratios(reference, ids, samples, temperature).tolist(),
        "length": [len(r) - (r[-1] == tokenizer.eos_token_id) for r in samples.responses],
    }
    metrics = {name: [float(f"{row[name]:.4g}") for row in rows] for name in (rows[0] if rows else {})}
    return {"metrics": metrics} | {name: [round(float(x), 4) for x in values] for name, values in measured.items()}


# Part 4: the DLite tutorial


@dataclass(frozen=True)
class TutorialRun:
    """All that a run of the tutorial's PPO depends on, beside its seed."""

    policy: str  # a checkpoint; "": a stand-in of our own
    reward_model: str  # the same
    data: str  # of the prompts, and of the dialogues whose perplexity is measured
    rung: str  # of the stand-in
    demonstrations: int  # for the stand-in
    documents: int  # for the language model beneath our reward model
    pairs: int  # for our reward model
    prompts: int  # one episode each
    test_prompts: int
    learning_rate: float
    lengths: tuple[int, int] = (16, 16)  # of responses, in tokens: for each the limit is drawn from here

    @classmethod
    def of(cls, size: Profile) -> "TutorialRun":
        """As the tutorial has it, in the sizes of a profile."""
        return cls(
            size.tutorial_policy,
            size.tutorial_reward_model,
            size.tutorial_data,
            size.rung,
            size.demonstrations,
            size.tutorial_documents,
            size.tutorial_pairs,
            size.tutorial_prompts,
            size.test_prompts,
            size.tutorial_learning_rate,
        )


def tutorial_config(run: TutorialRun) -> PPOConfig:
    """The settings of TRL 0.9.6, all of whose defaults the tutorial took, in the sizes of this run. The trainer's own
    are the learning rate's linear fall and Adam's second beta."""
    return PPOConfig(
        updates=run.prompts // TUTORIAL_BATCH,
        batch_size=TUTORIAL_BATCH,
        epochs=4,
        minibatches=1,
        learning_rate=run.learning_rate,
        value_learning_rate=run.learning_rate,
        warmup=0,
        adam_epsilon=1e-8,
        max_gradient_norm=math.inf,
        kl_coef=0.2,
        kl_target=6.0,
        max_new_tokens=max(run.lengths),
        eos_penalty=0.0,
    )


@recipe(save=language_model.save_with_tokenizer, load=pretrained.load_policy)
def instruction_policy(rung: str, demonstrations: int, seed: int):
    """The stand-in for DLite: the base model fine-tuned on the best labelers' demonstrations in DLite's template; its
    end token is the end key."""
    model, tokenizer = base(rung)
    tokenizer.eos_token = instructions.END
    rows = instructions.demonstrations(best_demonstrations(demonstrations, "train", seed))
    sft.train(model, tokenizer, rows, sft.SFTConfig(), seed)
    return model, tokenizer


@recipe(save=pair_reward.save, load=pretrained.load_reward_model)
def pair_reward_model(documents: int, pairs: int, seed: int):
    """The stand-in for a reward model that somebody else has built: a tokenizer of its own, a language model of its own
    trained on `documents` texts, and on top of it a head fitted to `pairs` comparisons, those of one turn."""
    human, assistant = PAIR_TOKENS
    texts = [text.replace("\n\nHuman: ", human) for text in pretraining_texts(documents, f"pairs-{seed}")]
    texts = [text.replace("\n\nAssistant: ", assistant) for text in texts]
    tokenizer = language_model.train_tokenizer(texts, PAIR_VOCABULARY)
    tokenizer.add_special_tokens({"additional_special_tokens": list(PAIR_TOKENS)})
    model = language_model.new_model(PAIR_RUNG, len(tokenizer), seed)
    sft.train(model, tokenizer, [("", text) for text in texts], PAIR_LANGUAGE_MODEL, seed)
    judge = reward_model.from_language_model(model, seed)
    rows = [
        {"prompt": human + instructions.first_instruction(row["prompt"]) + assistant}
        | {side: row[side].strip() for side in ("chosen", "rejected")}
        for row in generator.preference_rows("helpful-base", "train", pairs, seed)
        if len(transcripts.parse(row["prompt"])) == 2
    ]
    reward_model.train(judge, tokenizer, rows, reward_model.RewardModelConfig(), seed)
    return pair_reward.joining(judge, tokenizer, human, assistant)


@reads("$DLITE_DIR")
def tutorial_policy(run: TutorialRun, seed: int):
    """The policy that the tutorial begins with, and its tokenizer, whose end token is the end key."""
    checkpoint = pretrained.place(run.policy, pretrained.POLICY)
    if not checkpoint:
        return instruction_policy(run.rung, run.demonstrations, seed)
    policy, tokenizer = pretrained.load_policy(checkpoint)
    return policy.to(pretrained.device()), tokenizer


@reads("$REWARD_MODEL_DIR")
def tutorial_reward_model(run: TutorialRun, seed: int) -> pair_reward.PairReward:
    """The tutorial's reward model, which reads with a tokenizer of its own."""
    checkpoint = pretrained.place(run.reward_model, pretrained.REWARD_MODEL)
    if not checkpoint:
        return pair_reward_model(run.documents, run.pairs, seed)
    judge = pretrained.load_reward_model(checkpoint)
    judge.model.to(pretrained.device())
    return judge


@reads("$HH_RLHF_DIR")
def tutorial_preferences(run: TutorialRun, seed: int):
    """The tutorial's dialogues, `train` and `test`, and the cleaning report: all there are, or, of the miniature world,
    enough."""
    wanted = max(run.prompts / (1 - preferences.TEST_FRACTION), run.test_prompts / preferences.TEST_FRACTION)
    size = math.ceil(1.2 * wanted) if run.data == "tinyhh" else None
    return preferences.load_preferences(run.data, "helpful-base", None, size=size, seed=seed)


def tutorial_data(run: TutorialRun, seed: int) -> tuple[list[str], list[dict]]:
    """The instructions to train on, and held-out rows: instruction, prompt, chosen and rejected.

    Of each dialogue the tutorial takes what the Human said first, if it is short, and of all dialogues the first that
    pass; there may be fewer than were asked for. An instruction that is trained on is not held out.
    """
    data, _ = tutorial_preferences(run, seed)
    asked = instructions.short_instructions(data["train"]["prompt"])[: run.prompts]
    known = set(asked)
    rows = [row | {"instruction": instructions.first_instruction(row["prompt"])} for row in data["test"]]
    rows = [row for row in rows if instructions.is_short(row["instruction"]) and row["instruction"] not in known]
    return asked, rows[: run.test_prompts]


@recipe(save=save_watched, load=load_tutorial)
def tutorial_run(run: TutorialRun, seed: int):
    """The tutorial's PPO: the policy it ends with, and the metrics of `PPO.step`, {name: (U,)}."""
    policy, tokenizer = tutorial_policy(run, seed)
    asked, _ = tutorial_data(run, seed)
    reward, rng = tutorial_reward_model(run, seed), random.Random(f"lengths-{seed}")
    config = replace(tutorial_config(run), updates=len(asked) // TUTORIAL_BATCH)
    trainer = PPO(policy, copy.deepcopy(policy), config, tokenizer, seed)
    steps = []
    for update in tqdm(range(config.updates), desc="PPO", leave=False):
        batch = asked[update * TUTORIAL_BATCH : (update + 1) * TUTORIAL_BATCH]
        queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in batch]
        responses = [response[: rng.randint(*run.lengths)] for response in trainer.generate(queries)]
        scores = reward(batch, instructions.answers(tokenizer, responses))
        steps.append(trainer.step(queries, responses, scores))
    return policy, {name: [float(f"{step[name]:.4g}") for step in steps] for name in steps[0]}


@recipe(save=save_json, load=load_json)
def tutorial_answers(run: TutorialRun, policy: str, max_new_tokens: int, seed: int) -> dict:
    """One answer to each held-out instruction, by the policy "before" PPO, "after" it, or instead `taught` whole
    dialogues with "chosen" or "rejected" answers.

    Returns lists (N,): the `answers`, their `score` by the reward model, `kl`, the log-ratio to the policy before in
    nats, `length` in tokens without the end key, `ended`, whether the end key came in time, and in the miniature world
    `gold`, the true helpfulness.
    """
    reference, tokenizer = tutorial_policy(run, seed)
    model = _tutorial_stage(run, policy, seed).to(reference.device)
    return _judged(model, reference, tokenizer, tutorial_reward_model(run, seed), run, max_new_tokens, seed)


def _judged(policy, reference, tokenizer, judge: Callable, run: TutorialRun, max_new_tokens: int, seed: int) -> dict:
    """See `tutorial_answers`."""
    asked = [row["instruction"] for row in tutorial_data(run, seed)[1]]
    ids = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in asked]
    responses = sample(policy, ids, max_new_tokens, tokenizer.eos_token_id, seed).responses
    answers = instructions.answers(tokenizer, responses)
    ended = [response[-1] == tokenizer.eos_token_id for response in responses]
    found = {
        "score": judge(asked, answers),
        "kl": log_ratios(policy, reference, ids, responses).tolist(),
        "length": [len(response) - end for response, end in zip(responses, ended, strict=True)],
        "ended": ended,
    }
    if run.data == "tinyhh":
        found["gold"] = instructions.helpfulness(asked, answers)
    return {"answers": answers} | {name: [round(float(x), 4) for x in values] for name, values in found.items()}


@recipe(save=save_json, load=load_json)
def tutorial_perplexity(run: TutorialRun, policy: str, seed: int) -> dict[str, float]:
    """Nats a token that a policy (see `tutorial_answers`) needs for the `chosen` held-out dialogues: for the `whole`
    text as the tutorial has it, for the part up to the last "Assistant:" (`asking`) and for the answer after it
    (`answering`); and for the answers of one-turn dialogues in the template that it was trained on (`template`)."""
    before, tokenizer = tutorial_policy(run, seed)
    model, (_, rows) = _tutorial_stage(run, policy, seed).to(before.device), tutorial_data(run, seed)
    dialogues = [(row["prompt"], row["chosen"]) for row in rows]
    parts = language_model.log_probabilities_of_parts(model, tokenizer, dialogues, TUTORIAL_READ)
    (asking, asked), (answering, answered) = parts
    shown = instructions.demonstrations(dialogues)
    return {
        "whole": -(asking + answering) / (asked + answered),
        "asking": -asking / asked,
        "answering": -answering / answered,
        "template": math.log(language_model.perplexity(model, tokenizer, shown, TUTORIAL_READ)),
    }


@recipe(save=language_model.save, load=pretrained.load_model)
def taught(run: TutorialRun, side: str, seed: int):
    """The tutorial's first policy fine-tuned on whole dialogues that end with the "chosen" or the "rejected" answer, a
    sixth as many as PPO has prompts."""
    policy, tokenizer = tutorial_policy(run, seed)
    data, _ = tutorial_preferences(run, seed)
    texts = [("", row["prompt"] + row[side]) for row in islice(data["train"], run.prompts // 6)]
    config = sft.SFTConfig(epochs=1, batch_size=TUTORIAL_READ, learning_rate=run.learning_rate)
    sft.train(policy, tokenizer, texts, config, seed)
    return policy


def _tutorial_stage(run: TutorialRun, policy: str, seed: int):
    """The policy "before" PPO, "after" it, or `taught` "chosen" or "rejected" answers."""
    if policy == "after":
        return tutorial_run(run, seed)[0]
    return tutorial_policy(run, seed)[0] if policy == "before" else taught(run, policy, seed)


@recipe(save=save_json, load=load_json)
def fine_tuned_by(trainer: str, rung: str, demonstrations: int, seed: int) -> dict:
    """The base model fine-tuned on the best labelers' demonstrations in DLite's template by "ours" or by "trl".

    Returns the `losses` of its steps, and `nats`, what a token of held-out demonstrations costs it.
    """
    model, tokenizer = base(rung)
    tokenizer.eos_token = instructions.END
    rows, held_out = (
        instructions.demonstrations(best_demonstrations(demonstrations, split, seed)) for split in ("train", "test")
    )
    learn = {"ours": sft.train, "trl": library.fine_tune}[trainer]
    losses = learn(model, tokenizer, rows, sft.SFTConfig(), seed)
    nats = math.log(language_model.perplexity(model, tokenizer, held_out))
    return {"losses": [round(loss, 4) for loss in losses], "nats": nats}


@recipe(save=save_json, load=load_json)
def fitted_by(trainer: str, rung: str, pairs: int, test_pairs: int, seed: int) -> dict:
    """The base model with a head, fitted to helpful comparisons by "ours" or by "trl".

    Returns the `losses` of its steps, and `right`, whether it orders each held-out pair as the labeler did.
    """
    model, tokenizer = base(rung)
    judge = reward_model.from_language_model(model, seed)
    learn = {"ours": reward_model.train, "trl": library.fit_reward_model}[trainer]
    rows = preference_pairs("helpful", "train", pairs, seed)
    losses = learn(judge, tokenizer, rows, reward_model.RewardModelConfig(), seed)
    margins = reward_model.margins(judge, tokenizer, preference_pairs("helpful", "test", test_pairs, seed))
    return {"losses": [round(loss, 4) for loss in losses], "right": [margin > 0 for margin in margins]}


@recipe(save=save_json, load=load_json)
def library_pairs(run: TutorialRun, tokens: int, seed: int) -> dict:
    """Two answers of the first policy to each instruction, until `tokens` are written, and which of them the reward
    model prefers, with the probability that its scores stand for. Returns `pairs`, rows of prompt, chosen and rejected
    in the template, and the `tokens` that all answers have."""
    (policy, tokenizer), judge = tutorial_policy(run, seed), tutorial_reward_model(run, seed)
    asked, rng, pairs, spent = tutorial_data(run, seed)[0], random.Random(f"library-pairs-{seed}"), [], 0
    for start in range(0, len(asked), LIBRARY_BATCH // 2):
        batch = asked[start : start + LIBRARY_BATCH // 2] * 2
        ids = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in batch]
        draw = seed * 1_000_003 + start
        responses = sample(policy, ids, LIBRARY_ANSWER, tokenizer.eos_token_id, draw).responses
        answers = instructions.answers(tokenizer, responses)
        scored, half = list(zip(answers, judge(batch, answers), strict=True)), len(batch) // 2
        for instruction, first, second in zip(batch, scored[:half], scored[half:], strict=False):
            if first[0] != second[0]:
                wins = rng.random() < 1 / (1 + math.exp(second[1] - first[1]))
                chosen, rejected = (first, second) if wins else (second, first)
                sides = {"chosen": f" {chosen[0]}", "rejected": f" {rejected[0]}"}
                pairs.append({"prompt": instructions.template(instruction)} | sides)
        spent += sum(map(len, responses))
        if spent >= tokens:
            break
    return {"pairs": pairs, "tokens": spent}


@recipe(save=save_json, load=load_json)
def library_run(method: str, run: TutorialRun, tokens: int, seed: int) -> dict:
    """The tutorial's first policy improved by one method that may generate `tokens` tokens, asked in whole answers.

    method: "ppo", ours; "ppo_zero", ours with a zero for each prompt (see `above_policy`); "rloo", "grpo" and "dpo",
    TRL's; "dpo_mean", ours with mean log-probabilities, and "dpo_mean_scaled" with the coefficient times the tokens of
    a usual answer besides; "start", nothing. Returns what `tutorial_answers` does, with `log`, lists over the method's
    steps, and the `tokens` that it generated.
    """
    (policy, tokenizer), judge = tutorial_policy(run, seed), tutorial_reward_model(run, seed)
    reference, (asked, _) = copy.deepcopy(policy), tutorial_data(run, seed)
    log, spent = {}, 0
    if method in ("rloo", "grpo"):
        learn, config = {"rloo": (library.rloo, library.OnlineConfig()), "grpo": (library.grpo, library.GRPO)}[method]
        log = learn(policy, reference, tokenizer, asked, judge, replace(config, kl_coef=KL_COEF), tokens, seed)
        spent = log.pop("tokens")
    elif method in ("dpo", "dpo_mean", "dpo_mean_scaled"):
        found, scale = library_pairs(run, tokens, seed), LIBRARY_EXPECTED if method == "dpo_mean_scaled" else 1
        config, spent = dpo.DPOConfig(beta=KL_COEF * scale, mean=method != "dpo"), found["tokens"]
        learn = dpo.train if config.mean else library.dpo
        log = learn(policy, reference, tokenizer, found["pairs"], config, seed)
    elif method != "start":
        log, spent = _ppo_within(tokens, policy, reference, tokenizer, asked, judge, method == "ppo_zero", seed)
    return _judged(policy, reference, tokenizer, judge, run, LIBRARY_ANSWER, seed) | {"log": log, "tokens": spent}


def _ppo_within(
    tokens: int, policy, reference, tokenizer, asked: Sequence[str], judge: Callable, zero: bool, seed: int
) -> tuple[dict, int]:
    """Our PPO until it has generated so many tokens, those that find the zeros included (or until the end of its plan,
    where answers are shorter than that expects): its metrics, {name: (U,)}, and the tokens."""
    asked, episodes, spent, reward = list(dict.fromkeys(asked)), tokens // LIBRARY_EXPECTED, 0, judge
    if zero:
        episodes = round(episodes * EPISODES_PER_PROMPT / (EPISODES_PER_PROMPT + ZERO_ANSWERS))
        asked = asked[: max(1, episodes // EPISODES_PER_PROMPT)]
        repeated = [instruction for instruction in asked for _ in range(ZERO_ANSWERS)]
        queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in repeated]
        responses = sample(reference, queries, LIBRARY_ANSWER, tokenizer.eos_token_id, seed).responses
        reward = above_answers(judge, repeated, instructions.answers(tokenizer, responses))
        spent = sum(map(len, responses))
    config = PPOConfig(
        updates=max(1, round(episodes / LIBRARY_BATCH)),
        batch_size=LIBRARY_BATCH,
        kl_coef=KL_COEF,
        max_new_tokens=LIBRARY_ANSWER,
        eos_penalty=0.0,
    )
    trainer, stream, steps = PPO(policy, reference, config, tokenizer, seed), _rounds(asked, seed), []
    while not steps or (spent < tokens and trainer.done < config.updates):
        batch = list(islice(stream, LIBRARY_BATCH))
        queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in batch]
        responses = trainer.generate(queries)
        steps.append(trainer.step(queries, responses, reward(batch, instructions.answers(tokenizer, responses))))
        spent += sum(map(len, responses))
    return {name: [float(f"{step[name]:.4g}") for step in steps] for name in steps[0]}, spent


def _rounds(items: Sequence[str], seed: int) -> Iterator[str]:
    """All items in random order, and again in another one, without end."""
    rng = random.Random(f"rounds-{seed}")
    while True:
        yield from rng.sample(items, len(items))


# Part 5: the reward in the prompt


def offline_texts(texts: int, seed: int) -> list[dict[str, str]]:
    """Both sides of comparisons that no reward model is fitted to: rows of `prompt`, `response`, `side` and `subset`,
    those of the two subsets in turn. So rewards are predictions, but for short answers that occur in both."""
    rows = preference_pairs("joint", "train", texts // 4, OFFLINE + seed)
    return [
        {"prompt": row["prompt"], "response": row[side], "side": side, "subset": SUBSETS[i % 2]}
        for i, row in enumerate(rows)
        for side in SIDES
    ]


def class_token_rewards(judge: str, rung: str, pairs: int, prompts, responses, seed: int) -> list[float]:
    """The probabilities (N,) that texts were chosen, by the class-token model fitted to the data `judge`; rounded, so
    that files stay small."""
    (_, tokenizer), model = base(rung), class_token_model(rung, judge, pairs, seed)
    return [round(value, 4) for value in class_token.score(model, tokenizer, prompts, responses).tolist()]


@recipe(save=save_json, load=load_json)
def offline_rewards(judge: str, rung: str, pairs: int, texts: int, seed: int) -> list[float]:
    """The `class_token_rewards` of all `offline_texts`."""
    rows = offline_texts(texts, seed)
    prompts, responses = [row["prompt"] for row in rows], [row["response"] for row in rows]
    return class_token_rewards(judge, rung, pairs, prompts, responses, seed)


@dataclass(frozen=True)
class PromptedRun:
    """A policy that imitates offline texts, with or without their rewards in the prompts."""

    rung: str
    judge_rung: str  # of the class-token models
    pairs: int  # of each subset, that they are fitted to
    texts: int  # of both subsets together, see `offline_texts`
    rewards: tuple[str, ...] = ("joint",)  # of JUDGES, in the order of the prompt's lines; none: behavioral cloning
    subsets: tuple[str, ...] = SUBSETS  # whose texts are imitated
    sides: tuple[str, ...] = SIDES  # of the comparisons
    settings: Settings | None = PROMPTED  # None: the base model, asked in plain prompts

    @property
    def written(self) -> reward_prompt.RewardPrompt:
        """How its prompts say rewards: as they are, since two digits can say probabilities; then targets beyond the
        data are written as nothing in the data is."""
        plain = reward_prompt.Normalizer("none", (0.0, 1.0))
        return reward_prompt.RewardPrompt(PROMPTED_FORMATS[len(self.rewards)], (plain,) * len(self.rewards))


def prompted_data(run: PromptedRun, seed: int) -> tuple[list[str], list[list[float]]]:
    """The transcripts (N,) that a policy imitates and their rewards (N, K)."""
    rows = offline_texts(run.texts, seed)
    columns = [offline_rewards(judge, run.judge_rung, run.pairs, run.texts, seed) for judge in run.rewards]
    kept = [i for i, row in enumerate(rows) if row["side"] in run.sides and row["subset"] in run.subsets]
    return [rows[i]["prompt"] + rows[i]["response"] for i in kept], [[column[i] for column in columns] for i in kept]


@recipe(save=save_json, load=load_json)
def prompted_policy(run: PromptedRun, backend: str, seed: int) -> str:
    """The name that a backend (see `backends.connect`) gives the policy, which it fine-tunes unless it has done so."""
    if run.settings is None:
        return f"base-{run.rung}"
    service = backends.connect(backend)
    file = service.upload(run.written.examples(*prompted_data(run, seed)))
    job = service.fine_tune(file, f"base-{run.rung}", run.settings, seed, "-".join(run.rewards) or "cloned")
    return service.wait(job.id).fine_tuned_model


@recipe(save=save_json, load=load_json)
def prompted_answers(
    run: PromptedRun, asked: tuple[float, ...], subset: str, purpose: str, prompts: int, backend: str, seed: int
) -> dict:
    """A policy's answers to distinct held-out prompts, one a prompt, judged by the models that label its texts and by
    the true rewards.

    asked: the target of each of its rewards; empty for uniform ones, drawn independently. subset: "helpful",
    "harmless", or "joint", both in turn. purpose: "test", or "validation", where something is chosen by it. Returns
    lists over the prompts: `prompts`, `subsets`, `targets` (N, K), `responses`, their `tokens`, the scores `helpful`,
    `harmless` and `joint`, `gold_helpful` and `gold_harmless`.
    """
    rows = steering_prompts(subset, purpose, prompts, seed)
    questions = [prompt for prompt, _ in rows]
    targets = [list(asked) or [reward_prompt.UNIFORM(p, name) for name in run.rewards] for p in questions]
    written = questions if run.settings is None else run.written.prompts(questions, targets)
    service, policy = backends.connect(backend), prompted_policy(run, backend, seed)
    answers = service.complete(policy, written, max_tokens=PROMPTED_ANSWER, seed=seed)
    responses = [answer.text for answer in answers]
    scores = {
        judge: class_token_rewards(judge, run.judge_rung, run.pairs, questions, responses, seed) for judge in JUDGES
    }
    return {
        "prompts": questions,
        "subsets": [subset for _, subset in rows],
        "targets": [[round(target, 4) for target in row] for row in targets],
        "responses": responses,
        "tokens": [len(answer.tokens) for answer in answers],
        "gold_helpful": gold_helpfulness(questions, responses),
        "gold_harmless": [gold.harmlessness(p, r) for p, r in zip(questions, responses, strict=True)],
    } | scores


def steering_prompts(subset: str, purpose: str, n: int, seed: int) -> list[tuple[str, str]]:
    """`n` distinct prompts of the test split with the subset of each; "joint" takes the subsets in turn. No prompt
    serves two purposes."""
    sides = SUBSETS if subset == "joint" else (subset,)
    half, each = PURPOSES.index(purpose), -(-n // len(sides))
    columns = [
        [
            (prompt, side)
            for prompt in _distinct(generator.prompts(f"{side}-base", "test", f"steering-{seed}"), 2 * each)
        ]
        for side in sides
    ]
    rows = [row for turn in zip(*(column[half::2] for column in columns), strict=True) for row in turn]
    return rows[:n]


def ordered_pairs(rankings: Sequence[dict]) -> list[dict[str, str]]:
    """Every pair of a prompt's responses that its ranking orders, as prompt, chosen and rejected; ties are dropped."""
    return [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for row in rankings
        for better, high in zip(row["responses"], row["ranks"], strict=True)
        for worse, low in zip(row["responses"], row["ranks"], strict=True)
        if high < low
    ]


def without_prompts(rows: Sequence[dict]) -> list[dict]:
    """The same pairs, as one sees them who is not told what was asked."""
    return [row | {"prompt": ""} for row in rows]


def scored(score: Callable, model, tokenizer, rows: Sequence[dict], max_tokens: int = 256) -> dict[str, list[float]]:
    """The scores of both sides of pairs, `chosen` and `rejected`."""
    prompts = [row["prompt"] for row in rows]
    scores = {s: score(model, tokenizer, prompts, [row[s] for row in rows], max_tokens) for s in ("chosen", "rejected")}
    return {side: [round(value, 4) for value in values.tolist()] for side, values in scores.items()}


def _fitted_to_pairs(rung: str, rows: Sequence[dict], seed: int):
    model, tokenizer = base(rung)
    judge = reward_model.from_language_model(model, seed)
    reward_model.train(judge, tokenizer, rows, reward_model.RewardModelConfig(), seed)
    return judge


def held_in_prompts(n: int, seed: int) -> list[str]:
    """Helpful prompts of the training split."""
    return list(islice(generator.prompts("helpful-base", "train", f"held-in-{seed}"), n))


def held_out_prompts(n: int, seed: int, purpose: str = "held-out") -> list[str]:
    """Distinct helpful prompts of the test split: no model has met them. Another purpose draws anew, so some of its
    prompts may be the same."""
    distinct = dict.fromkeys(islice(generator.prompts("helpful-base", "test", f"{purpose}-{seed}"), 4 * n))
    return list(distinct)[:n]


def proxy_of(judge, tokenizer) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """A reward model as a function of prompts and responses."""
    return lambda prompts, responses: reward_model.score(judge, tokenizer, prompts, responses).tolist()


def gold_helpfulness(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The true helpfulness of each response, in points."""
    return [gold.helpfulness(prompt, response) for prompt, response in zip(prompts, responses, strict=True)]
