# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Making a language model more helpful with PPO
#
# **What does a tutorial's PPO loop, with a reward model that somebody else built, really change, and which of its
# numbers say so?**
#
# In 2024 a tutorial took a small model that follows instructions (DLite), a reward model from the Hub, 6,400 questions
# that people had asked, and a loop of a dozen lines. After two or three hours on one GPU the reward had risen, the
# answers looked better, and the perplexity had fallen. It is a good tutorial: everything in it can be changed and
# tried. The loop's library has dropped it since, so here the tutorial is written anew, for the PPO of this course, and
# with the same steps: data, template, reward model, loop, curve, examples, perplexity. This time each number is asked
# what it is worth. The curve is held against held-out instructions, the examples are drawn and not picked, and a model
# that was taught *bad* answers enters the contest for the best perplexity.

# %% [markdown]
# ## What you will learn
#
# - to put a pre-built reward model with a tokenizer of its own before a policy with another one;
# - why responses are drawn from the full distribution, and what 16 tokens of a response can show;
# - the loop of `generate`, score and `step`, and how to read the curve it leaves behind;
# - how much the best 5 of 16 examples improve when nothing has been learned;
# - why the perplexity of whole dialogues can favor the worse model;
# - which slips make such a loop run, learn, and be wrong.

# %% [markdown]
# ## What you should know
#
# What PPO does with a batch of scored answers (*InstructGPT, step 3*, sections 1 and 2), and what a reward model learns
# from comparisons (*Reward models*, sections 1 and 2).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import copy
import os
import random
import tempfile
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt

from rlhf_lab import claims, instructions, language_model, parallel, plots, preferences, pretrained, recipes
from rlhf_lab.ppo import PPO
from rlhf_lab.profiles import Profile
from rlhf_lab.sampling import sample
from rlhf_lab.source_figures import figure as reported
from rlhf_lab.statistics import better, bootstrap_interval, rule, t_interval

size = Profile.load(profile)
pretrained.check(size)  # of the profile gpu: are models, data and a GPU there?
results = claims.Claims("40_dlite_ppo_tutorial", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: the stand-ins for policy and reward model, the data, PPO, and the
# answers that are judged. (Where models and data come from elsewhere, they are the same for all seeds, and a seed
# repeats PPO and the answers. What depends on model and data alone then has no scatter between seeds, and its interval
# says nothing.) It is the unit in which we count evidence, and square brackets hold 95 % intervals over seeds. Rules
# stand above the cells that decide them and were fixed before the published run; settings were tried out with other
# seeds. (The published seeds ran twice: in the first run a former end token of the stand-in reached the judges as text.
# It was mended, and no rule or setting was changed, but the second run was not blind.) One seed decides nothing, so the
# published verdict is then shown beside it. Seeds run side by side, but for the profile `gpu`, where they would share
# one GPU:


# %%
def run_all(jobs):
    """The results of all jobs; on a GPU one job at a time."""
    return parallel.run(jobs, at_once=1 if profile == "gpu" else -1)


# %% [markdown]
# ## 1. What is built
#
# ```
#  hh-rlhf, helpful-base                                     scores whole answers, reads text
#     first thing asked ──► policy ──► response (16 tokens) ──► reward model ──► score
#                             ▲             │                                      │
#                             │             ▼                                      ▼
#                             │        frozen copy ──► log-ratio (KL) ──►  PPO step on 16 episodes
#                             └───────────────────────────────────────────────────┘
# ```
#
# | part | the tutorial (profile `gpu`) | here (profiles `laptop`, `smoke`) | a folder instead |
# |---|---|---|---|
# | policy | `aisquared/dlite-v1-355m`: GPT-2 medium, fine-tuned on some 50,000 instructions of Alpaca | the course's base model, fine-tuned on demonstrations in DLite's template | `DLITE_DIR` |
# | reward model | `OpenAssistant/reward-model-deberta-v3-large-v2` | a GPT-2 of ours with another tokenizer, fitted to comparisons | `REWARD_MODEL_DIR` |
# | data | `Anthropic/hh-rlhf`, helpful-base | the miniature world, where the true helpfulness, *gold*, is known | `HH_RLHF_DIR` |
#
# The cells are the same for all profiles. An environment variable of the last column names a folder that replaces what
# would come from the Hub. The first two replace our stand-ins as well, so you can bring a policy or a reward model of
# your own. `HH_RLHF_DIR` stands in for the Hub's data only, so it counts in the profile `gpu` and nowhere else.
#
# **What has changed since 2024.** The tutorial's loop calls `ppo_trainer.generate` and `ppo_trainer.step` of TRL, the
# Hugging Face library, and installs whatever version is the newest. That interface was deprecated in September 2024 and
# last stood in version 0.11.4 (October 2024). Its successor took neither plain numbers as scores nor a reward model
# with another tokenizer than the policy's. It became experimental in November 2025, and from version 1.13 on there is
# no PPO in TRL. So the tutorial does not run as written. The `step` of this course's PPO has the same three arguments,
# and [docs/ppo.md](../docs/ppo.md) lists what it does. *The library route* (the next notebook) takes the methods that
# TRL does maintain.

# %%
run = recipes.TutorialRun.of(size)
GOLD = run.data == "tinyhh"  # whether the truth is known
GIVEN = bool(pretrained.place(run.reward_model, pretrained.REWARD_MODEL))  # one reward model for all seeds
FEW, MANY, BATCH = max(run.lengths), 64, recipes.TUTORIAL_BATCH  # tokens of a response, of a full one; episodes a step
print(f"{run.prompts:,} instructions, {run.prompts // BATCH} batches of {BATCH}, responses of {FEW} tokens")
for part, checkpoint, variable in (
    ("policy", run.policy, "DLITE_DIR"),
    ("reward model", run.reward_model, "REWARD_MODEL_DIR"),
):
    print(f"{part}: {'a local folder' if os.environ.get(variable) else checkpoint or 'our stand-in'}")
print("data:", run.data)

# %% [markdown]
# ## 2. Data: what people asked first
#
# The answers in the data are not needed: the policy will write its own. Of each dialogue the tutorial keeps what the
# human said first, with spaces for newlines, if that is shorter than 100 characters, and of all that pass, the first
# 6,400. Each is asked once for every time that it stands there. By hand, for three dialogues:

# %%
toy = [
    "\n\nHuman: How do I knit\na scarf?\n\nAssistant:",
    "\n\nHuman: How do I knit a scarf?\n\nAssistant: With two needles.\n\nHuman: Of which size?\n\nAssistant:",
    f"\n\nHuman: {'Why is that? ' * 8}Why?\n\nAssistant:",
]
first = [text.split("\n\nHuman: ")[1].split("\n\nAssistant:")[0].replace("\n", " ") for text in toy]
short = [instruction for instruction in first if len(instruction) < 100]
print([len(instruction) for instruction in first], "characters; kept:", short)
assert instructions.short_instructions(toy) == short

# %% [markdown]
# The first two have become the same instruction. That happens for real: hh-rlhf holds many dialogues several times,
# each time a little longer, and they all begin alike. So "one epoch over 6,400 prompts" means fewer different prompts.
# And a question of the test file may be one of the training file. We hold out only rows whose instruction is not among
# those that are trained on. Held out, that is, from PPO: what policy and reward model had read before it is not known
# for models from elsewhere, and for ours the first question of a longer dialogue may be among it.

# %%
dialogues, report = recipes.tutorial_preferences(run, seed=0)
passed = instructions.short_instructions(dialogues["train"]["prompt"])
asked, held_out = recipes.tutorial_data(run, seed=0)
kept = [row["instruction"] for row in held_out]
assert asked == passed[: run.prompts] and not set(asked) & set(kept)
rows = {
    "training dialogues": len(dialogues["train"]),
    "of which the instruction passes": len(passed),
    "trained on": len(asked),
    "different ones among these": len(set(asked)),
    "held-out rows": len(kept),
    "different instructions among these": len(set(kept)),
    "of these trained on": len(set(asked) & set(kept)),
}
print(report)
Markdown("\n".join(["| | |", "|---|--:|", *(f"| {name} | {count:,} |" for name, count in rows.items())]))

# %% [markdown]
# ## 3. The template, the end key, the policy and its frozen copy
#
# DLite was fine-tuned on texts of one form, so it has to be asked in that form, to the last newline. The three markers
# are special tokens of its tokenizer. The last one, the *end key*, is what the policy writes when it is done.

# %%
policy, tokenizer = recipes.tutorial_policy(run, seed=0)
reference = copy.deepcopy(policy)  # stays as it is: PPO pays for every step away from it
instruction = kept[0]
prompt = f"\n### Instruction:\n{instruction}\n### Response:\n"
assert prompt == instructions.template(instruction)
print(repr(prompt))
print("end key:", tokenizer("### End")["input_ids"], "end token of the policy:", tokenizer.eos_token_id)
assert tokenizer("### End")["input_ids"] == [tokenizer.eos_token_id]
print(f"{policy.num_parameters():,} weights that learn, as many that do not")

# %% [markdown]
# An end key must be *one* token, or generation cannot be told to stop at it. Here is what the policy writes, as it
# comes, to three instructions that were held out:


# %%
def answered(model, asked, max_new_tokens, seed):
    """Tokenized queries in the template, and one response to each."""
    queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in asked]
    return queries, sample(model, queries, max_new_tokens, tokenizer.eos_token_id, seed).responses


three = list(dict.fromkeys(kept))[:3]
for instruction, response in zip(three, answered(policy, three, MANY, seed=40)[1], strict=True):
    print(instruction, "\n   ", tokenizer.decode(response))

# %% [markdown]
# ## 4. A reward model that somebody else built
#
# Why should a model that judges make another one write better? To judge is easier than to write: a judge has the whole
# answer in view and gives one number, a writer has to find, token by token, one of the few good answers among very many
# poor ones. And people who cannot write a good answer can still say which of two is the better one, so
# there is data for it.
#
# The judge need not be the policy's kin. OpenAssistant's is a DeBERTa, an encoder: it reads instruction and answer in
# both directions at once and has never written a word. It is about as large as the policy, though a judge may well be
# larger: it is trained once and only read. It was fitted to comparisons, among others those of hh-rlhf (where several
# answers are ranked, every pair of a ranking is one; *InstructGPT, step 2*). All we ask of a reward model is a
# sequence classifier with one label, and *its own* tokenizer. The raw logit is the reward. For one pair, by hand:

# %%
judge = recipes.tutorial_reward_model(run, seed=0)
MEDITATION = "How do I teach kids to meditate?"
HELP = "Start with one quiet minute a day, breathe with them, and let them tell you afterwards how it felt."
REFUSAL = "I am sorry, but I cannot help you with that."
inputs = judge.tokenizer(MEDITATION, HELP, return_tensors="pt").to(judge.model.device)
with torch.inference_mode():
    logit = judge.model(**inputs).logits[0, 0].item()
print(f"{logit:.4f} by hand, {judge([MEDITATION], [HELP])[0]:.4f} by the module")
assert np.isclose(logit, judge([MEDITATION], [HELP])[0], atol=1e-4)

# %% [markdown]
# The two models cut the same sentence into different pieces, and what is the same piece has another number:


# %%
def pieces(tokenizer, text):
    """Tokens of a text and their ids, with a dot for the space before a word."""
    tokens = tokenizer.tokenize(text)
    named = " ".join(token.replace("Ġ", "·").replace("▁", "·") for token in tokens)
    return named, tokenizer.convert_tokens_to_ids(tokens)


rows = ["| tokenizer | size | pieces | ids |", "|---|--:|---|---|"]
for name, of in (("policy", tokenizer), ("reward model", judge.tokenizer)):
    named, ids = pieces(of, MEDITATION)
    rows.append(f"| {name} | {len(of):,} | {named} | {ids} |")
assert pieces(tokenizer, MEDITATION)[1] != pieces(judge.tokenizer, MEDITATION)[1]
Markdown("\n".join(rows))

# %% [markdown]
# So nothing may pass between them but *text*. The policy's tokens are decoded, without the end key, and the reward
# model's tokenizer encodes the pair anew. (Section 11 shows what a mix-up does.)
#
# ### Sanity check
#
# Before a reward model is trusted with a thousand updates, it should pass a test that a child would pass: a helpful
# answer against a refusal. The tutorial asks how to teach kids to meditate. (The miniature world knows nothing of
# meditation, so we also ask something that it does know; the helpful answer is then the one that was chosen.)

# %%
one_turn = [row for row in held_out if row["prompt"].count("\n\nHuman:") == 1]
row = random.Random(0).choice(one_turn)
questions = {MEDITATION: HELP, row["instruction"]: row["chosen"].strip()}
rows = ["| asked | answer | score |", "|---|---|--:|"]
for question, helpful in questions.items():
    for answer in (helpful, REFUSAL):
        rows.append(
            f"| {question} | {' '.join(answer.split()).replace('|', '/')} | {judge([question], [answer])[0]:+.2f} |"
        )
Markdown("\n".join(rows))

# %% [markdown]
# One example may be luck. Over all held-out rows of one turn (in longer dialogues the answer is one to a later
# question): how often is the chosen answer scored above the refusal, and how often above the rejected one?
#
# > **Predict.** Which of the two shares is larger, and what would a coin have?
#
# The rule: the refusal is *the easier test* if the interval of the difference of the two shares lies above zero. We
# expect it. (A reward model that is given is one and the same for all seeds. Then there is an interval over rows, and
# no verdict.)


# %%
def checked(seed):
    """Shares of held-out one-turn rows in which the reward model, length and gold say that the chosen answer wins; for
    each row, `easier` is what it adds to the first share less what it adds to the second, (N,)."""
    judge, rows = recipes.tutorial_reward_model(run, seed), recipes.tutorial_data(run, seed)[1]
    rows = [row for row in rows if row["prompt"].count("\n\nHuman:") == 1]
    asked, sides = [row["instruction"] for row in rows], ("chosen", "rejected")
    texts = {side: [row[side].strip() for row in rows] for side in sides} | {"refusal": [REFUSAL] * len(rows)}
    scores = {side: np.array(judge(asked, of)) for side, of in texts.items()}
    won = {side: (scores["chosen"] > scores[side]).astype(float) for side in ("refusal", "rejected")}
    found = {f"over_{side}": of.mean() for side, of in won.items()} | {"easier": won["refusal"] - won["rejected"]}
    found["longer"] = np.mean([preferences.longer_wins(row["prompt"], row["chosen"], row["rejected"]) for row in rows])
    if GOLD:
        preferred, other = (np.array(instructions.helpfulness(asked, texts[side])) for side in sides)
        found["gold"] = np.mean((preferred > other) + (preferred == other) / 2)
    return found


sane = run_all(joblib.delayed(checked)(seed) for seed in range(seeds))

# %%
keys = {
    "sanity.over_refusal": ("over_refusal", "share of held-out rows, chosen scored above a refusal"),
    "audit.longer_wins.held_out": ("longer", "share of held-out rows, chosen is longer"),
    "accuracy.reward_model.held_out": ("over_rejected", "share of held-out rows, chosen scored above rejected"),
}
if GOLD:
    keys["audit.gold.held_out"] = ("gold", "share of held-out rows, chosen has more gold")
for key, (name, unit) in keys.items():
    results.number(key, t_interval([found[name] for found in sane]), unit)
low, high = reported("reward_bench.deberta_helpful").value
print(f"OpenAssistant's reward model on Anthropic's helpful pairs, by RewardBench: {low} to {high}")
results.table(*keys)

# %%
easier = "sanity.difference" if GIVEN else "refusal_is_the_easier_test"
if GIVEN:
    unit = "share over a refusal minus share over rejected (one reward model: over rows)"
    results.number(easier, bootstrap_interval(sane[0]["easier"], unit="row"), unit)
else:
    results.state(
        easier,
        better([found["over_refusal"] for found in sane], [found["over_rejected"] for found in sane]),
        expect="better",
        text={
            "better": "To tell help from a refusal is the easier test: {sanity.over_refusal} are right, of two attempts "
            "to help {accuracy.reward_model.held_out}; the difference is {difference}.",
            "inconclusive": "Whether a refusal is the easier test is inconclusive: {difference}.",
            "worse": "To tell help from a refusal is the harder test: {difference}.",
        },
    )
results.show(easier)

# %% [markdown]
# The sanity check is worth making, and passing it says little. PPO leans on the other comparison: an answer that is a
# little better than usual has to be noticed as such. By RewardBench, OpenAssistant's model is right there about as
# often as the figures above the table say. The row on length says what one would get by counting characters, and that
# on gold how far the labelers themselves agree with the truth.

# %% [markdown]
# ## 5. Sixteen tokens, and no filter
#
# The tutorial samples with `top_k=0, top_p=1`: from the full distribution, no filter. It explains this by exploration,
# and there is a harder reason. The log-probabilities in PPO are those of the *full* distribution. If a filter draws
# from another one, the mean log-ratio of the samples is no KL any more. By hand, with three tokens, a policy $\policy$
# that has moved a little from its reference $\policyref$, and `top_k=2`:

# %%
now, before = np.array([0.45, 0.35, 0.20]), np.array([0.50, 0.40, 0.10])
log_ratio = np.log(now / before)
drawn = np.array([0.45, 0.35, 0.00]) / 0.80  # what top_k=2 draws from
print(f"log-ratios {log_ratio.round(3)}")
print(f"full distribution: KL {now @ log_ratio:+.4f}")
print(f"two likeliest tokens: 'KL' {drawn @ log_ratio:+.4f}")
assert now @ log_ratio > 0 > drawn @ log_ratio

# %% [markdown]
# A KL cannot be negative; this mean is. The third token, to which the policy now gives twice the probability, is never
# drawn, and the penalty turns into a *bonus* for moving away from the reference. (The mean log-ratio of one batch of
# sixteen answers may be negative by chance, also without a filter; that of a whole run may not.) Whoever finds a
# negative KL in the log of a run should look at the generation settings first. How much would be cut off here, with the
# `top_k=50` that many libraries have as their default?


# %%
@torch.inference_mode()
def beyond(query, response, k=50):
    """Probability beyond the k likeliest tokens, mean over the response, and whether one such token was written."""
    tokens = torch.tensor([query + response], device=policy.device)  # (1, T)
    probabilities = policy(tokens).logits[0, len(query) - 1 : -1].softmax(-1)  # (R, V)
    likeliest = probabilities.topk(k).values  # (R, k)
    written = probabilities.gather(1, tokens[0, len(query) :, None])  # (R, 1)
    return (1 - likeliest.sum(-1)).mean().item(), float((written < likeliest[:, -1:]).any())


pairs = zip(*answered(policy, kept[:200], FEW, seed=41), strict=True)
mass, unseen = np.array([beyond(query, response) for query, response in pairs]).T
results.number("top_k.mass", bootstrap_interval(mass), "probability a token beyond the 50 likeliest")
results.number("top_k.responses", bootstrap_interval(unseen), "share of responses that top_k=50 excludes")
results.table("top_k.mass", "top_k.responses")

# %% [markdown]
# What is cut off at each token adds up over a response, so the second number is the one to look at. (These two are of
# one policy, and the intervals are over prompts.)
#
# Sixteen tokens keep the run short. They also cut every answer that is longer, and the reward model scores what is
# there. Nothing is taken off for an answer without an end, as in the tutorial. How many answers end in time?


# %%
def ended(seed):
    """The share of the first policy's answers that end within FEW and within MANY tokens."""
    return [np.mean(recipes.tutorial_answers(run, "before", limit, seed)["ended"]) for limit in (FEW, MANY)]


in_time = np.array(run_all(joblib.delayed(ended)(seed) for seed in range(seeds)))  # (S, 2)
for limit, shares in zip((FEW, MANY), in_time.T, strict=True):
    results.number(f"ended.{limit}", t_interval(shares), f"share of answers that end within {limit} tokens")
results.table(f"ended.{FEW}", f"ended.{MANY}")

# %% [markdown]
# So what is optimized is the *beginning* of an answer, as judged by a model that has seen whole ones. Whether whole
# answers become better is a question of its own, and the tutorial's suggestion to draw the length at random (it imports
# a `LengthSampler` for that, and does not use it) is an answer worth trying. Both come in section 8.

# %% [markdown]
# ## 6. The loop
#
# Everything is there. Four updates, to see the loop at work:

# %%
trainer = PPO(policy, reference, recipes.tutorial_config(replace(run, prompts=4 * BATCH)), tokenizer)
for update in range(4):
    batch = asked[update * BATCH : (update + 1) * BATCH]
    queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in batch]
    responses = trainer.generate(queries)  # tokens, which end with the end key if they came to it
    scores = judge(batch, instructions.answers(tokenizer, responses))  # text goes over, numbers come back
    metrics = trainer.step(queries, responses, scores)
    print(f"batch {update + 1}: score {metrics['score']:+.3f}, KL {metrics['kl']:+.3f}, length {metrics['length']:.1f}")
assert metrics["first_ratio_error"] < 1e-2  # what sampled is what learns

# %% [markdown]
# The tutorial passes nothing but the batch size to its `PPOConfig`, so all else is TRL's default of that time. (It
# installs the newest version; in July 2024 that was 0.9.6.) These settings beside those here:

# %%
config = recipes.tutorial_config(run)
settings = {
    "episodes (one a prompt)": ("6,400", f"{run.prompts:,}"),
    "batches of 16": ("400", config.updates),
    "epochs on a batch, each one step": ("4", config.epochs),
    "order of the prompts": ("shuffled by its loader", "as they stand"),
    "learning rate": ("1.41e-5, constant", f"{config.learning_rate:g}, falling to zero"),
    "that of the value head": ("one rate for all", f"{config.value_learning_rate:g}, the same"),
    "Adam's betas": (".9, .999", ".9, .95"),
    "KL coefficient at first, then adaptive": ("0.2", config.kl_coef),
    "target of the KL (nats), horizon (episodes)": ("6, 10,000", f"{config.kl_target:g}, {config.kl_horizon:,}"),
    "clip of ratio and of value": (".2, .2", f"{config.clip}, {config.value_clip}"),
    "discount, lambda": ("1, .95", f"{config.gamma:g}, {config.lam}"),
    "weight of the value loss": (".1", config.value_coef),
    "largest norm of the gradient": (
        "none",
        "none" if np.isinf(config.max_gradient_norm) else config.max_gradient_norm,
    ),
    "dropout during the steps": ("in policy and value head: the trainer is in training mode", "never"),
    "a step whose mean ratio exceeds 10": ("is skipped", "is clipped like others"),
    "scores": ("raw logits", "raw logits"),
}
rows = [f"| {name} | {theirs} | {ours} |" for name, (theirs, ours) in settings.items()]
Markdown("\n".join(["| | the tutorial (TRL 0.9.6) | here |", "|---|---|---|", *rows]))

# %% [markdown]
# A model a thousandth of DLite's size wants a larger learning rate; ours was chosen with other seeds. The falling rate
# halves the way that all steps together can go. The other differences are those of the trainer.
#
# Now the whole run, twice for each seed: with 16 tokens, as the tutorial has it, and with *lengths drawn at random*
# from 8 to 48 for each response. Two more policies take no part in PPO. One is fine-tuned on whole dialogues that end
# with the answer that people **rejected**, and will serve as a test of the tutorial's metrics: no metric of helpfulness
# should like it. The policy that was taught *chosen* dialogues, as many of them, is the control: what both taught
# policies share is the format, what differs between them is the answers.

# %%
SHORT, RANDOM = "16 tokens", "8 to 48 tokens"
ARMS = {SHORT: run, RANDOM: replace(run, lengths=(8, 48))}
POLICIES = {  # the stage and the arm of each, and what it is called
    "before": ("before", SHORT, "before PPO"),
    "after": ("after", SHORT, "after PPO, 16 tokens"),
    "random": ("after", RANDOM, "after PPO, random lengths"),
    "rejected": ("rejected", SHORT, "taught rejected"),
    "chosen": ("chosen", SHORT, "taught chosen"),
}


# %%
def whole_run(arm, seed):
    """An arm's metrics of all updates, and what its policies answer to, and think of, held-out rows."""
    found = {"metrics": recipes.tutorial_run(ARMS[arm], seed)[1]}
    for stage in [stage for stage, of, _ in POLICIES.values() if of == arm]:
        found["perplexity", stage] = recipes.tutorial_perplexity(ARMS[arm], stage, seed)
        for limit in (FEW, MANY):
            found[stage, limit] = recipes.tutorial_answers(ARMS[arm], stage, limit, seed)
    return found


del trainer, policy, reference  # four updates old, and in the way where memory is short
torch.cuda.empty_cache()
wanted = [(arm, seed) for arm in ARMS for seed in range(seeds)]
found = dict(zip(wanted, run_all(joblib.delayed(whole_run)(*job) for job in wanted), strict=True))
print("metrics:", ", ".join(found[SHORT, 0]["metrics"]))


# %%
def held(policy, limit, name):
    """A mean over held-out instructions for each seed, (S,)."""
    stage, arm, _ = POLICIES[policy]
    return np.array([np.mean(found[arm, seed][stage, limit][name]) for seed in range(seeds)])


ZERO = {limit: held("before", limit, "score") for limit in (FEW, MANY)}  # (S,) each
print("mean score of held-out answers before PPO, each seed:", ZERO[FEW].round(2))

# %% [markdown]
# ## 7. The reward curve
#
# The tutorial shows one curve: the mean score of each batch, smoothed by a moving mean over ten batches. By hand, the
# moving mean over two of 1, 2, 3, 6 is 1.5, 2.5, 4.5.
#
# > **Predict.** A batch is 16 answers to 16 other questions than in the batch before. How much will the dots scatter,
# > compared with what is learned?
#
# Comparisons fix no zero of a score, and our reward models, one for each seed, put theirs in different places. So we
# take off each seed's mean score of the first policy's answers to held-out instructions within 16 tokens. (With random
# lengths other texts are scored, so that curve may start elsewhere.)


# %%
def rolling(curves, window):
    """The moving mean (S, U - window + 1) of curves (S, U)."""
    return np.lib.stride_tricks.sliding_window_view(curves, window, axis=1).mean(axis=-1)


def logged(arm, name):
    """A metric of every update, (S, U)."""
    return np.array([found[arm, seed]["metrics"][name] for seed in range(seeds)])


assert rolling(np.array([[1, 2, 3, 6]]), 2).tolist() == [[1.5, 2.5, 4.5]]
WINDOW = min(10, config.updates // 2)
updates = np.arange(1, config.updates + 1)
scores = {arm: logged(arm, "score") - ZERO[FEW][:, None] for arm in ARMS}
smooth = {arm: rolling(scores[arm], WINDOW) for arm in ARMS}

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.2), sharey=True)
for index, (axis, arm) in enumerate(zip(axes, ARMS, strict=True)):
    axis.plot(updates, scores[arm][0], ".", color="0.7", markersize=3, label="a batch, first seed")
    plots.curve_with_band(axis, updates[WINDOW - 1 :], smooth[arm], f"mean of {WINDOW} batches", index)
    axis.set_title(arm, fontsize=10)
    axis.set_xlabel("batches of 16")
axes[0].set_ylabel("score above the first policy\n(log-odds)")
axes[0].legend(fontsize="small")
figure.tight_layout()
words = "; ".join(f"{arm}: from {s.mean(axis=0)[0]:.2f} to {s.mean(axis=0)[-1]:.2f}" for arm, s in smooth.items())
alt = f"""Mean score of each training batch above the policy before PPO (dots, first seed) and its moving mean over {WINDOW} batches (lines; thick: mean over
seeds, {seeds}), without and with random lengths. Moving mean over seeds, {words}."""
plots.show(figure, alt, name="dlite_reward_curve")

# %% [markdown]
# The tutorial's figure can be read off only roughly, and its reward model has another zero. So both curves are shown by
# their distance from where they start:

# %%
ours = smooth[SHORT] - smooth[SHORT][:, :1]  # (S, U - WINDOW + 1)
at = {"trough": ours.min(axis=1), "peak": ours.max(axis=1), "end": ours[:, -1]}
start = reported("dlite.curve_start")
rows = [
    f"| moving mean, from its start | the tutorial ({start.how}; starts at {start.value}) | here |",
    "|---|--:|--:|",
]
for name, values in at.items():
    results.number(f"curve.{name}", t_interval(values), "score, moving mean minus its start")
    rows.append(f"| {name} | {reported(f'dlite.curve_{name}').value - start.value:+.2f} | {values.mean():+.2f} |")
sd = (scores[SHORT][:, WINDOW - 1 :] - smooth[SHORT]).std(axis=1)
results.number("curve.batch_sd", t_interval(sd), "score, scatter of a batch around the moving mean that it ends")
Markdown("\n".join(rows))

# %%
results.table("curve.end", "curve.batch_sd")

# %% [markdown]
# A moving mean over ten batches still carries about a third of the scatter of one batch (the root of ten), and
# neighboring points share nine of their ten batches. So it wanders even where nothing changes, and its *peak* and its
# *trough* are partly the largest and the smallest of many draws. Only held-out answers to the *same* instructions,
# before and after, say how much was learned (section 8).
#
# The tutorial plots nothing else. We also look at what the score was paid with:

# %%
PANELS = {"kl": "KL (nats a response)", "length": "length (tokens)", "ended": "share that ended in time"}
figure, axes = plt.subplots(1, 3, figsize=(8.8, 2.8))
words = []
for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
    for index, arm in enumerate(ARMS):
        curves = rolling(logged(arm, name), WINDOW)
        plots.curve_with_band(axis, updates[WINDOW - 1 :], curves, arm, index)
        words.append(f"{label}, {arm}: {curves.mean(axis=0)[0]:.2f} to {curves.mean(axis=0)[-1]:.2f}")
    axis.set_xlabel("batches of 16")
    axis.set_ylabel(label, fontsize=9)
figure.legend(*axes[0].get_legend_handles_labels(), loc="upper center", ncol=2, fontsize="small")
figure.tight_layout(rect=(0, 0, 1, 0.92))
alt = f"Moving means over {WINDOW} batches, means over seeds ({seeds}), from first to last. {'; '.join(words)}."
plots.show(figure, alt, name="dlite_kl_and_length")

# %% [markdown]
# The adaptive coefficient wants a KL of 6 nats a response. It is lowered while the KL is below that, so as long as it
# is, the penalty becomes a little cheaper with every batch:

# %%
for arm in ARMS:
    print(f"{arm}: coefficient {logged(arm, 'kl_coef')[:, 0].mean():.3f} -> {logged(arm, 'kl_coef')[:, -1].mean():.3f}")

# %% [markdown]
# ## 8. Before and after, on held-out instructions
#
# Every held-out instruction is answered once by the policy before PPO and once by the policy after it, within 16
# tokens, as trained, and within 64, as one would use it. In the miniature world we also know what the answers are truly
# worth. (A last sentence that the limit cut counts nothing there.) Scores are again less those of the policy before
# PPO. The two last columns are for section 10.


# %%
def shown(values):
    """Mean and interval, in short."""
    interval = t_interval(values)
    return f"{interval.value:.2f}" + (f" [{interval.low:.2f}, {interval.high:.2f}]" if interval.n > 1 else "")


# %%
UNITS = {"score": "log-odds above before", "kl": "nats", "length": "tokens", "ended": "share that ended"}
UNITS |= {"gold": "points of gold"} if GOLD else {}
rows = [f"| answers within | measure | {' | '.join(label for _, _, label in POLICIES.values())} |"]
rows.append("|--:|---|" + "--:|" * len(POLICIES))
for limit in (FEW, MANY):
    for name, unit in UNITS.items():
        zero, cells = ZERO[limit] if name == "score" else 0, []
        for key in POLICIES:
            values = held(key, limit, name) - zero
            cells.append(shown(values))
            results.number(f"held_out.{key}.{limit}.{name}", t_interval(values), unit)
        rows.append(f"| {limit} | {name} ({unit}) | {' | '.join(cells)} |")
Markdown("\n".join(rows))

# %% [markdown]
# A mean can rise by a few large gains. So we also count: for which share of the instructions is the answer after PPO
# scored higher than the one before (both draw with the same random numbers; some answers are identical)? Equal scores
# count one half.

# %%
for limit in (FEW, MANY):
    sides = [[np.array(found[SHORT, s][stage, limit]["score"]) for s in range(seeds)] for stage in ("after", "before")]
    wins = [np.mean((a > b) + (a == b) / 2) for a, b in zip(*sides, strict=True)]
    results.number(f"held_out.wins.{limit}", t_interval(wins), "share of instructions, scored higher after PPO")
results.table(f"held_out.wins.{FEW}", f"held_out.wins.{MANY}")

# %% [markdown]
# The rules, each with the seed as the unit and paired by seed, on means over the held-out instructions:
#
# - PPO *raises the reward model's score* if the interval of after minus before, at 16 tokens, lies above zero. We
#   expect it: it is what was optimized.
# - *Gold rises with it* if the same holds of gold. We expect that too: the reward model is not very good, but the
#   policy is not driven far.
# - The *gain carries over to full answers* if it holds at 64 tokens. Before any run we would have bet on it: an answer
#   that begins better should be better. A trial with another seed said the opposite of gold, so now we expect *worse*
#   (where gold is known; elsewhere, by the score, still *better*: in that trial the score of full answers rose while
#   gold fell).
# - Where gold is known: *the score of full answers rises while gold falls* if, at 64 tokens, the interval of after
#   minus before lies above zero for the score and below zero for gold; expected since that trial.
# - Practice on 16 tokens *teaches not to end* if fewer answers end within 64 tokens after it; expected since that
#   trial.
# - *Random lengths help full answers* if, at 64 tokens, answers after PPO with random lengths are better than after PPO
#   with 16. We expect it: there full answers were practiced, and more tokens were written. This does not separate
#   randomness from length: a fixed 48 or 64 might do as well.
#
# "Better" in the third and the last is by gold, where it is known, and otherwise by the score.

# %%
WORTH, UNIT = ("gold", "points of gold") if GOLD else ("score", "of score")
results.state(
    "ppo_raises_reward_model_score",
    better(held("after", FEW, "score"), held("before", FEW, "score")),
    expect="better",
    text={
        "better": "PPO raises the reward model's score on held-out instructions by {difference}.",
        "inconclusive": "Whether PPO raises the reward model's score on held-out instructions is inconclusive: {difference}.",
        "worse": "PPO lowers the reward model's score on held-out instructions: {difference}.",
    },
)
if GOLD:
    results.state(
        "gold_rises_with_it",
        better(held("after", FEW, "gold"), held("before", FEW, "gold")),
        expect="better",
        text={
            "better": "The true helpfulness of 16-token answers rises with it, by {difference} points.",
            "inconclusive": "Whether the true helpfulness of 16-token answers rises with it is inconclusive: {difference}.",
            "worse": "The true helpfulness of 16-token answers falls meanwhile: {difference} points.",
        },
    )

# %%
results.state(
    "gain_carries_to_full_answers",
    better(held("after", MANY, WORTH), held("before", MANY, WORTH)),
    expect="worse" if GOLD else "better",
    text={
        "better": f"Practice on 16 tokens makes full answers better: {{difference}} {UNIT}.",
        "inconclusive": f"Whether practice on 16 tokens makes full answers better is inconclusive: {{difference}} {UNIT}.",
        "worse": f"Practice on 16 tokens makes full answers worse: {{difference}} {UNIT}.",
    },
)

# %%
if GOLD:
    rises = better(held("after", MANY, "score"), held("before", MANY, "score"))
    falls = better(held("before", MANY, "gold"), held("after", MANY, "gold"))
    for name, unit in (("score", "log-odds"), ("gold", "points of gold")):
        change = t_interval(held("after", MANY, name) - held("before", MANY, name))
        results.number(f"full_answers.{name}", change, f"{unit}, within 64 tokens, after minus before")
    both = "after minus before, score {full_answers.score}, gold {full_answers.gold}"
    results.state(
        "score_of_full_answers_rises_while_gold_falls",
        rule(rises, falls),
        expect="holds",
        text={
            "holds": f"The score of full answers rises while gold falls: {both}.",
            "fails": f"That the score of full answers rises while gold falls is not established: {both}.",
        },
    )

# %%
results.state(
    "sixteen_tokens_teach_not_to_end",
    better(held("before", MANY, "ended"), held("after", MANY, "ended")),
    expect="better",
    text={
        "better": "Practice on 16 tokens teaches not to end: within 64 tokens {held_out.before.64.ended} of the answers "
        "end before it, {held_out.after.64.ended} after it.",
        "inconclusive": "Whether practice on 16 tokens teaches not to end is inconclusive: before minus after {difference}.",
        "worse": "After practice on 16 tokens more answers end within 64 tokens: before minus after {difference}.",
    },
)

# %%
results.state(
    "random_lengths_help_full_answers",
    better(held("random", MANY, WORTH), held("after", MANY, WORTH)),
    expect="better",
    text={
        "better": f"Lengths from 8 to 48 tokens make full answers better than 16 tokens do: {{difference}} {UNIT}.",
        "inconclusive": "Whether lengths from 8 to 48 tokens make full answers better than 16 tokens do is "
        f"inconclusive: {{difference}} {UNIT}.",
        "worse": f"Lengths from 8 to 48 tokens make full answers worse than 16 tokens do: {{difference}} {UNIT}.",
    },
)
of_gold = ["gold_rises_with_it", "score_of_full_answers_rises_while_gold_falls"] if GOLD else []
judged = ["ppo_raises_reward_model_score", "gain_carries_to_full_answers", *of_gold]
results.show(*judged, "sixteen_tokens_teach_not_to_end", "random_lengths_help_full_answers")

# %% [markdown]
# An interval over few repetitions is wide where they differ, and a mean hides how. So here they are one by one, within
# 64 tokens, after practice on 16:

# %%
measures = {name: UNITS[name] for name in (WORTH, "score", "ended", "length")}
rows = [f"| seed | KL (nats) | {' | '.join(f'{unit}, after minus before' for unit in measures.values())} |"]
rows.append("|--:|--:|" + "--:|" * len(measures))
for seed in range(seeds):
    changes = [held("after", MANY, name)[seed] - held("before", MANY, name)[seed] for name in measures]
    rows.append(f"| {seed} | {held('after', MANY, 'kl')[seed]:.2f} | {' | '.join(f'{x:+.2f}' for x in changes)} |")
Markdown("\n".join(rows))

# %% [markdown]
# Look at the columns beside each other: do the repetitions that lose the end also lose what the answers are worth? And
# does the score tell? *If* practice on beginnings has spoiled whole answers, a likely reason is this. Within 16 tokens
# the only thing that speaks for ending is a higher score for an ended answer than for a cut one; an answer that stops
# early gives away room for the beginning of one more sentence. Compare the share that ended within 16 tokens before and
# after. And what comes after the sixteenth token is scored by nobody, so nothing corrects it. The score of a long
# answer need not show the damage. We have not tested this reason by itself; random lengths change the length practiced
# as well as its randomness.
#
# Both arms have as many episodes, but not as many tokens: random lengths write more. The next notebook compares methods
# at equal tokens.

# %% [markdown]
# ## 9. Examples, drawn and picked
#
# The tutorial prints five answers before and after. They are the five of one random batch of sixteen with the highest
# reward *after* PPO. First five of the first seed's held-out instructions that were drawn by lot, then five by the
# tutorial's way:


# %%
def side_by_side(rows):
    """A table of the first seed's answers before and after, with their scores."""
    before, after = (found[SHORT, 0][stage, FEW] for stage in ("before", "after"))
    lines = ["| asked | before | after | score |", "|---|---|---|---|"]
    for i in rows:
        texts = [
            " ".join(text.split()).replace("|", "/") for text in (kept[i], before["answers"][i], after["answers"][i])
        ]
        lines.append(f"| {' | '.join(texts)} | {before['score'][i]:+.2f} → {after['score'][i]:+.2f} |")
    gain = np.mean([after["score"][i] - before["score"][i] for i in rows])
    return Markdown("\n".join([*lines, f"| mean gain | | | {gain:+.2f} |"]))


lot = random.Random(40)
batch = lot.sample(range(len(kept)), min(BATCH, len(kept)))
side_by_side(batch[:5])

# %%
ranked = sorted(batch, key=lambda i: -found[SHORT, 0]["after", FEW]["score"][i])
side_by_side(ranked[:5])

# %% [markdown]
# The second table is the one that readers of the tutorial see. (Both policies draw with the same random numbers, so
# many pairs begin alike, and picking does less here than in the numbers below, where the answers are drawn anew.) But
# how would it look if nothing had been learned? Suppose scores before and after were two independent draws from the
# same normal distribution with variance one. Then the five best of sixteen "after" lie, on average, a little more than
# one above the mean, and their partners "before" at the mean.
#
# > **Predict.** What is the mean "gain" of the picked five between two answers of the *same* policy?


# %%
def picked(before, after, seed=0, batches=2000):
    """Mean gain of the five highest `after` in random batches of sixteen, both (N,)."""
    rng, gains = np.random.default_rng(seed), []
    for _ in range(batches):
        rows = rng.permutation(len(after))[:BATCH]
        best = rows[np.argsort(-after[rows])[:5]]
        gains.append((after[best] - before[best]).mean())
    return np.mean(gains)


normal = np.random.default_rng(1).standard_normal((2, 100_000))
print(f"two draws of a normal distribution: {picked(*normal):.2f}; the five largest of 16: 1.075 from tables")
assert abs(picked(*normal) - 1.075) < 0.05

# %% [markdown]
# The same with real answers: let the policy before PPO answer every held-out instruction a second time, and pick by the
# second score.


# %%
def drawn_again(seed):
    """The scores (N,) of a second answer by the policy before PPO."""
    policy, tokenizer = recipes.tutorial_policy(run, seed)
    asked = [row["instruction"] for row in recipes.tutorial_data(run, seed)[1]]
    queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in asked]
    responses = sample(policy, queries, FEW, tokenizer.eos_token_id, seed=1_000_000 + seed).responses
    return np.array(recipes.tutorial_reward_model(run, seed)(asked, instructions.answers(tokenizer, responses)))


again = run_all(joblib.delayed(drawn_again)(seed) for seed in range(seeds))
scores = {s: [np.array(found[SHORT, seed][s, FEW]["score"]) for seed in range(seeds)] for s in ("before", "after")}
gains = {
    "nothing_learned.all": [(b - a).mean() for a, b in zip(scores["before"], again, strict=True)],
    "nothing_learned.picked": [picked(a, b) for a, b in zip(scores["before"], again, strict=True)],
    "ppo.all": [(b - a).mean() for a, b in zip(again, scores["after"], strict=True)],
    "ppo.picked": [picked(a, b) for a, b in zip(again, scores["after"], strict=True)],
}
for key, values in gains.items():
    results.number(f"gain.{key}", t_interval(values), "score, second minus first")
results.table(*(f"gain.{key}" for key in gains))

# %% [markdown]
# The rule: picked examples *overstate* what was learned if the picked five gain more than all pairs do, for PPO, and if
# they gain something where nothing was learned; both intervals above zero. We expect it to hold.

# %%
zero = np.zeros(seeds)
results.state(
    "picked_examples_overstate",
    rule(better(gains["ppo.picked"], gains["ppo.all"]), better(gains["nothing_learned.picked"], zero)),
    expect="holds",
    text={
        "holds": "Examples picked by their reward after PPO overstate it: they gain {gain.ppo.picked}, all answers "
        "{gain.ppo.all}; and picked in the same way, two answers of one policy differ by {gain.nothing_learned.picked}.",
        "fails": "That picked examples overstate what was learned is not established: they gain {gain.ppo.picked}, all "
        "answers {gain.ppo.all}, and {gain.nothing_learned.picked} where nothing was learned.",
    },
)
results.show("picked_examples_overstate")

# %% [markdown]
# Show examples by all means, but draw them by lot, or say how they were picked.

# %% [markdown]
# ## 10. Perplexity
#
# As a second opinion the tutorial measures the perplexity of the *chosen* test dialogues, whole texts as they are in
# the data, and reports that it fell. What does that number say about helpfulness? The perplexity is the exponential of
# the mean loss of a token. By hand, for one dialogue:

# %%
policy, tokenizer = recipes.tutorial_policy(run, seed=0)
row = one_turn[0]
parts = [tokenizer(row[part])["input_ids"] for part in ("prompt", "chosen")]
tokens = torch.tensor([parts[0] + parts[1]], device=policy.device)  # (1, T)
with torch.inference_mode():
    log_probs = policy(tokens).logits[0, :-1].log_softmax(-1).gather(1, tokens[0, 1:, None])[:, 0]  # (T - 1,)
sums = language_model.log_probabilities_of_parts(policy, tokenizer, [(row["prompt"], row["chosen"])])
(asking, asking_tokens), (answering, answering_tokens) = sums
print(f"{asking_tokens} tokens up to the answer, {answering_tokens} of the answer")
print(f"perplexity {np.exp(-log_probs.mean().item()):.2f}")
assert np.isclose(log_probs.sum().item(), asking + answering, rtol=1e-3)

# %% [markdown]
# In this sum everything before the answer counts like the answer. And the policy has been taught another format than
# the one in which it is read here: `### Instruction:` and `### Response:`, not `Human:` and `Assistant:`. So we take
# the number apart. Beside the *whole* text stand the part up to the answer (*asking*), the *answer* in the dialogue's
# format, and the answers of one-turn dialogues *in the template*, which is what the policy is for. The asking part
# holds what the human said, the labels of the turns, and in longer dialogues the assistant's earlier answers, which are
# the same on the chosen and on the rejected side. And beside the policies before and after PPO stand the two that were
# fine-tuned on dialogues as they are in the data.
#
# > **Predict.** Which of the five policies has the lowest perplexity on whole dialogues whose answer people chose?

# %%
READ = {
    "whole": "whole dialogue",
    "asking": "asking part",
    "answering": "answer",
    "template": "answer, in the template",
}
perplexity = {
    (key, name): np.exp([found[arm, seed]["perplexity", stage][name] for seed in range(seeds)])
    for key, (stage, arm, _) in POLICIES.items()
    for name in READ
}  # (S,) each
for (key, name), values in perplexity.items():
    results.number(f"perplexity.{key}.{name}", t_interval(values), f"perplexity, {READ[name]}")
rows = [f"| policy | {' | '.join(READ.values())} |", "|---|" + "--:|" * len(READ)]
for key, (_, _, label) in POLICIES.items():
    rows.append(f"| {label} | {' | '.join(shown(perplexity[key, name]) for name in READ)} |")
Markdown("\n".join(rows))

# %%
sums = language_model.log_probabilities_of_parts(
    policy, tokenizer, [(row["prompt"], row["chosen"]) for row in held_out]
)
share = sums[0][1] / (sums[0][1] + sums[1][1])
results.number("perplexity.asking_tokens", share, "share of the tokens that are not the answer's, seed 0")
change = 1 - perplexity["after", "whole"] / perplexity["before", "whole"]
results.number(
    "perplexity.reduction", t_interval(change), "share by which PPO, 16 tokens, lowers the whole dialogues' perplexity"
)
nats = {key: np.log([perplexity[key, name] for name in READ]) for key in POLICIES}  # (4, S) each
gap, (whole, asking, answering, _) = nats["random"] - nats["rejected"], nats["random"]
weight = (whole - answering) / (asking - answering)  # of the asking part's tokens
results.number(
    "perplexity.gap_asking",
    t_interval(weight * gap[1] / gap[0]),
    "share of the gap, after PPO with random lengths to taught rejected",
)
results.table("perplexity.asking_tokens", "perplexity.reduction", "perplexity.gap_asking")

# %% [markdown]
# And by how much do the policy that was taught chosen dialogues and the one that was taught rejected ones differ, in
# this perplexity, and in what their answers are worth?

# %%
control = nats["chosen"][0] - nats["rejected"][0]  # (S,)
results.number("control.perplexity", t_interval(control), "nats a token of whole dialogues, chosen minus rejected")
control = held("chosen", MANY, WORTH) - held("rejected", MANY, WORTH)
results.number(f"control.{WORTH}", t_interval(control), f"{WORTH} within 64 tokens, taught chosen minus rejected")
results.table("control.perplexity", f"control.{WORTH}")

# %% [markdown]
# The rule: the perplexity of whole dialogues *misleads* if by it the policy that was taught rejected answers beats the
# one after PPO with random lengths, while the latter's answers to held-out instructions are scored higher, and, where
# gold is known, are truly better, within 16 tokens and within 64. (A trial with another seed showed that PPO with 16
# tokens would not do here: it spoils whole answers.) Intervals of all these differences lie above zero. We expect it to
# hold.

# %%
lower = better(perplexity["random", "whole"], perplexity["rejected", "whole"])
answers_better = {
    f"{name}.{limit}": better(held("random", limit, name), held("rejected", limit, name))
    for name in ("score", "gold")[: 1 + GOLD]
    for limit in (FEW, MANY)
}
for key, comparison in {"perplexity": lower, **answers_better}.items():
    what = "perplexity of whole dialogues" if key == "perplexity" else f"{key.replace('.', ' within ')} tokens"
    results.number(f"misleads.{key}", comparison.difference, f"{what}, random lengths minus taught rejected")
results.table(*(key for key in results.numbers if key.startswith("misleads.")))

# %%
facts = "After PPO with random lengths minus taught rejected: perplexity of whole dialogues {misleads.perplexity}"
for key in answers_better:
    facts += f", {key.replace('.', ' within ')} tokens {{misleads.{key}}}"
results.state(
    "whole_dialogue_perplexity_misleads",
    rule(lower, *answers_better.values()),
    expect="holds",
    text={
        "holds": "The perplexity of whole dialogues prefers a policy that was taught rejected answers to the one after "
        f"PPO with random lengths, whose answers are better. {facts}.",
        "fails": f"That whole-dialogue perplexity prefers the worse policy is not established. {facts}.",
    },
)
results.show("whole_dialogue_perplexity_misleads")

# %%
bars = {"perplexity of\nwhole dialogues": {key: perplexity[key, "whole"] for key in POLICIES}}
bars["score above before,\n64 tokens (log-odds)"] = {key: held(key, MANY, "score") - ZERO[MANY] for key in POLICIES}
bars |= {"gold, 64 tokens (points)": {key: held(key, MANY, "gold") for key in POLICIES}} if GOLD else {}
names = ["before", "PPO, 16", "PPO, random", "taught rejected", "taught chosen"]
figure, axes = plt.subplots(1, len(bars), figsize=(2.9 * len(bars), 3.4))
words = []
for axis, (label, of) in zip(axes, bars.items(), strict=True):
    plots.interval_bars(axis, names, [t_interval(values) for values in of.values()])
    axis.set_ylabel(label)
    axis.tick_params(axis="x", labelsize=9, labelrotation=90)
    values = ", ".join(f"{POLICIES[key][2]} {values.mean():.2f}" for key, values in of.items())
    words.append(f"{' '.join(label.split())}: {values}")
figure.tight_layout()
plots.show(figure, f"Bars for five policies, means over seeds ({seeds}). {'; '.join(words)}.", name="dlite_perplexity")

# %% [markdown]
# Why? Compare the columns of the table. `perplexity.gap_asking` is the share of the gap between the policy after PPO
# with random lengths and the one that was taught rejected answers, in nats on whole dialogues, that comes from the
# *asking part*. A share above one means that on the answers themselves the order is the reverse. Whoever has been shown
# dialogues has learned how people ask in them, and that a turn opens with `Human:`. How much the answers at their ends
# add to that, or take away, is what the control says. The column *in the template* is the one that is about answers,
# and even that is about foreseeing the answers that people chose, and not about giving good ones.
#
# ### The tutorial's numbers, recomputed
#
# It reports that the perplexity fell, "an improvement of more than" a share that the second cell names:

# %%
old, new = (reported(f"dlite.perplexity_{when}").value for when in ("before", "after"))
claimed = reported("dlite.claimed_reduction").value
print(f"{old:.3f} -> {new:.3f}, claimed: more than {claimed:.0%}")
print(f"reduction {1 - new / old:.1%}; old over new {old / new:.3f}")
assert np.isclose(1 - new / old, reported("dlite.reduction").value, atol=5e-4)

# %% [markdown]
# Only whoever divides the *difference by the new number* gets more than a fifth. A reduction is a share of what was
# there before. (Its numbers come from the metric of the package `evaluate`, a mean of the perplexities of texts, where
# ours is the exponential of a mean over all tokens; and it breaks with GPT-2's tokenizer under version 5 of
# `transformers`, so ours is a dozen lines of `language_model`.)

# %% [markdown]
# ## 11. Slips that need not crash
#
# Three mistakes of the tutorial's code change what the reward model or the policy reads, and need not raise an error.
# We make each of them, on answers of the policy before PPO.
#
# **The last 16 tokens.** `generate` returns query and response in one row, and the tutorial takes the last 16 tokens of
# it as the response. An answer that ends early is shorter, and then the slice begins in the *prompt*. By hand, with
# four tokens instead of sixteen:

# %%
query, response = ["how", "?", "### Response:"], ["so", "### End"]
print("slice:", (query + response)[-4:], "| response:", (query + response)[len(query) :])

# %% [markdown]
# The reward model then judges a text that holds a piece of the question, and PPO takes those tokens for words of the
# policy. **Special tokens** are the second slip: the response is decoded with them, so the reward model also reads
# `### End`. That is not how its own texts end, and ours has never seen one that does; of somebody else's we cannot
# know.


# %%
def misread(seed):
    """How the slips change the scores of the answers of the policy before PPO: columns (N,), and texts."""
    policy, tokenizer = recipes.tutorial_policy(run, seed)
    judge, rows = recipes.tutorial_reward_model(run, seed), recipes.tutorial_data(run, seed)[1]
    asked = [row["instruction"] for row in rows]
    queries = [tokenizer(instructions.template(instruction))["input_ids"] for instruction in asked]
    responses = sample(policy, queries, FEW, tokenizer.eos_token_id, seed).responses
    sliced = [(query + response)[-FEW:] for query, response in zip(queries, responses, strict=True)]
    without_end = [[token for token in tokens if token != tokenizer.eos_token_id] for tokens in sliced]
    texts = {"right": instructions.answers(tokenizer, responses), "slice": tokenizer.batch_decode(without_end)}
    texts["end_key"] = tokenizer.batch_decode(responses)
    texts = {name: [text.strip() for text in of] for name, of in texts.items()}
    scores = {name: np.array(judge(asked, of)) for name, of in texts.items()}
    touched = {"slice": np.array([len(r) < FEW for r in responses])}
    touched["end_key"] = np.array([r[-1] == tokenizer.eos_token_id for r in responses])
    return texts, scores, touched


slips = run_all(joblib.delayed(misread)(seed) for seed in range(seeds))

# %%
texts, scores, touched = slips[0]
rows = ["| answer as written | what the judge would read | score |", "|---|---|---|"]
for name in touched:
    for i in np.flatnonzero(touched[name])[:2]:
        right, wrong = (" ".join(texts[of][i].split()).replace("|", "/") for of in ("right", name))
        rows.append(f"| {right} | {wrong} | {scores['right'][i]:+.2f} → {scores[name][i]:+.2f} |")
Markdown("\n".join(rows))

# %%
LOST = {"slice": "last 16 tokens", "end_key": "end key left in"}
for name, label in LOST.items():
    shares = [hit[name].mean() for _, _, hit in slips]
    results.number(f"slip.{name}.share", t_interval(shares), f"share of answers affected, {label}")
    hits = [(s[name] - s["right"])[hit[name]] for _, s, hit in slips if hit[name].any()]
    if hits:
        results.number(
            f"slip.{name}.change", t_interval([h.mean() for h in hits]), "score of those affected, wrong minus right"
        )
        results.number(
            f"slip.{name}.size", t_interval([np.abs(h).mean() for h in hits]), "the same, mean size of the change"
        )
spread = t_interval([s["right"].std() for _, s, _ in slips])
results.number("slip.spread", spread, "score, standard deviation between answers, for comparison")
results.table(*(key for key in results.numbers if key.startswith("slip.")))

# %% [markdown]
# The cure for both is to *keep* the tokens that were written, query and response apart, and to cut off the end key
# before anybody else reads the text: `trainer.generate` and `instructions.answers`.
#
# **Two tokenizers in one variable.** The tutorial's text loads the reward model's tokenizer under the name of the
# policy's. Who follows it asks the policy in a foreign numbering. Nothing stops that as long as the numbers exist:

# %%
right_ids = tokenizer(instructions.template(kept[0]))["input_ids"]
PLAIN = {"add_special_tokens": False, "split_special_tokens": True}  # it does not know the template's markers
wrong_ids = judge.tokenizer(instructions.template(kept[0]), **PLAIN)["input_ids"]
last = policy.config.vocab_size - 1
print(f"{sum(i > last for i in wrong_ids)} of {len(wrong_ids)} numbers do not exist (a program would stop there)")
for name, ids in (("right", right_ids), ("mixed up", [min(i, last) for i in wrong_ids])):
    (response,) = sample(policy, [ids], MANY, tokenizer.eos_token_id, seed=42).responses
    print(f"{name}, read:    {tokenizer.decode(ids)!r}")
    print(f"{name}, written: {tokenizer.decode(response)!r}")


# %%
@torch.inference_mode()
def loss_of_chosen(seed, rows=64):
    """Nats a token of chosen answers in the template, with the prompt encoded by either tokenizer."""
    policy, tokenizer = recipes.tutorial_policy(run, seed)
    theirs, data = recipes.tutorial_reward_model(run, seed).tokenizer, recipes.tutorial_data(run, seed)[1]
    pairs = instructions.demonstrations([(row["prompt"], row["chosen"]) for row in data])[:rows]
    right = [language_model.encode(tokenizer, *pair) for pair in pairs]
    wrong = [theirs(prompt, **PLAIN)["input_ids"] for prompt, _ in pairs]
    wrong = [[min(i, policy.config.vocab_size - 1) for i in ids] for ids in wrong]  # or it would stop
    found = []
    for queries in ([query for query, _ in right], wrong):
        log_probs, mask = language_model.response_log_probabilities(policy, queries, [answer for _, answer in right])
        found.append(-(log_probs.sum() / mask.sum()).item())
    return found


losses = np.array(run_all(joblib.delayed(loss_of_chosen)(seed) for seed in range(seeds)))  # (S, 2)
for name, values in zip(("right", "mixed_up"), losses.T, strict=True):
    results.number(f"slip.tokenizer.{name}", t_interval(values), "nats a token of chosen answers in the template")
results.table("slip.tokenizer.right", "slip.tokenizer.mixed_up")

# %% [markdown]
# Where all numbers exist nothing crashes, and the loss above is the only sign. With a larger foreign vocabulary
# (DeBERTa's is more than twice GPT-2's) it works until the first number that does not exist; here such numbers were
# replaced by the last token, to be able to go on. To read a few queries *decoded* before the first update takes a
# minute.
#
# The rest, in short:
#
# | in the tutorial | here |
# |---|---|
# | TRL is not pinned, and its loop is gone | versions in `requirements.txt`, and a PPO of our own with the same `step` |
# | the text's listings leave out template, configuration, tokenization and collator, and call the reward model by two names | every cell runs, in every profile |
# | models are moved to the GPU inside the loop, anew for each batch | once, where they are loaded |
# | `LengthSampler` imported, not used | an arm with random lengths (section 6) |
# | one run, training batches, no KL | several seeds, held-out instructions, KL and length (sections 7, 8) |
# | five of sixteen examples, picked | drawn by lot, and what picking does (section 9) |
# | perplexity of whole dialogues, "more than 20 %" | taken apart and recomputed (section 10) |

# %% [markdown]
# ## 12. Keep it
#
# The tutorial ends by pushing its policy to the Hub, which is `policy.push_to_hub("you/name")` for both parts, with an
# account. A folder will do, and a policy that was read back answers like the one that was written. With `DLITE_DIR` set
# to such a folder, this notebook goes on from there, and with `REWARD_MODEL_DIR` it asks another judge.

# %%
after, _ = recipes.tutorial_run(run, seed=0)
with tempfile.TemporaryDirectory() as folder:
    language_model.save_with_tokenizer((after, tokenizer), Path(folder))
    print(sorted(path.name for path in Path(folder).iterdir()))
    restored, read_back = pretrained.load_policy(folder)
assert read_back.eos_token_id == tokenizer.eos_token_id
assert answered(restored, kept[:4], FEW, seed=1)[1] == answered(after, kept[:4], FEW, seed=1)[1]

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The tutorial (*RLHF with PPO on DLite*, 2024) reports that the perplexity fell from 31.351
# to 25.680, "an improvement of more than 20%"; the reduction is 18.1 % (the ratio of old to new is 1.221). Its code
# takes the last 16 tokens of query and response for the response, so that an answer which ends early is scored and
# trained together with a piece of its prompt, and it leaves the end key in the text that the reward model reads. Its
# text gives the policy's and the reward model's tokenizer the same name. Its examples are the five of a batch of
# sixteen with the highest reward after training. Its loop needs a version of TRL before 0.12, which it does not say.

# %% [markdown]
# ## Exercises
#
# **1.** The tutorial's reward curve starts near -3.0 and ends near -2.6, which are raw logits of a reward model that
# compares answers. By the Bradley-Terry model, with what probability does an answer at the end beat one at the start?
# What does it say that both are negative?
#
# <details><summary>Hint</summary>
#
# The probability is $\sigmoid$ of the difference of the scores.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $\sigmoid(0.37) = .59$, if the logits are calibrated and the answers are to the same question. That both are negative
# says nothing: comparisons fix differences only, and the zero of a reward model is wherever training left it. (That
# sixteen tokens are a fragment may lower them, too.)
#
# </details>
#
# **2.** Nothing is taken off for answers that do not end within 16 tokens. Give `eos_penalty` a positive value in
# `recipes.tutorial_config`. What will the policy learn, and is it what you want?
#
# <details><summary>Hint</summary>
#
# What is the cheapest way to have an end among 16 tokens?
#
# </details>
#
# <details><summary>Answer</summary>
#
# To write short answers, and if the penalty is large, a few words and the end key. It optimizes "be brief", which
# nobody asked for; the penalty makes sense where the limit is so generous that a cut answer is one that rambles.
#
# </details>
#
# **3.** Sampling with `top_p=.9`, a colleague finds a KL that falls below zero after some batches and goes on falling.
# "Negative is good, it stays close." What do you answer, and what would you change?
#
# <details><summary>Answer</summary>
#
# That no KL is negative, so this number is not one (one batch might be below zero by chance, a run is not). The samples
# come from another distribution than the probabilities, so the penalty pays for moving probability *into* the tail that
# is never drawn, as in section 5. Change the generation settings to the full distribution (`top_k=0, top_p=1`), and
# look for a least length, which does the same to the end token.
#
# </details>
#
# **4.** Take the five examples of a batch that gained *most* instead of the five with the highest reward after. Change
# `picked`. Is the overstatement larger or smaller, and what would an honest table of five look like?
#
# <details><summary>Hint</summary>
#
# In `picked`, sort by `after[rows] - before[rows]`. The assertion below it then fails: what is the new number, and why
# is it $\sqrt 2$ times the old one?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Larger (1.52 for two normal draws, $\sqrt 2$ times 1.075): of two independent draws the difference has twice the
# variance, and now the selection is on the difference itself, where before it was on one half of it. An honest table
# draws its five by lot before anybody looks at the scores, and gives the mean gain of all beside it.
#
# </details>
#
# **5.** Fine-tune the policy on dialogues whose last answers were *dealt out at random* among the dialogues, and add it
# to the table of section 10. In which columns do you expect it near the two taught policies, and in which not?
#
# <details><summary>Hint</summary>
#
# `recipes.taught` is a few lines: shuffle the list of `row[side]` before the texts are made.
# `language_model.log_probabilities_of_parts` measures. What of a dialogue did the dealing leave as it was?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Near them on the *asking* part, which is the same text as before. On the *answer* expect it behind: it has seen how
# answers sound, and that they have nothing to do with the question. How much of that shows in the *whole* depends on
# the weight of the asking part (`perplexity.asking_tokens`), and that is the fault of the metric: it can hardly tell a
# policy that answers from one that talks of something else.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - The tutorial's parts on the Hugging Face Hub, by their names there: `aisquared/dlite-v1-355m`,
#   `OpenAssistant/reward-model-deberta-v3-large-v2`, `Anthropic/hh-rlhf`.
# - Bai et al. (2022), *Training a helpful and harmless assistant with reinforcement learning from human feedback*, [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): where the data is from.
# - Ziegler et al. (2019), *Fine-tuning language models from human preferences*, [arXiv 1909.08593](https://arxiv.org/abs/1909.08593): the adaptive KL coefficient, and most of what TRL's first PPO took over.
# - Lambert et al. (2024), *RewardBench: evaluating reward models for language modeling*, [arXiv 2403.13787](https://arxiv.org/abs/2403.13787).
# - He et al. (2021), *DeBERTaV3*, [arXiv 2111.09543](https://arxiv.org/abs/2111.09543): the encoder beneath the reward model.
# - Why PPO left TRL, step by step: pull requests [2016](https://github.com/huggingface/trl/pull/2016), [2174](https://github.com/huggingface/trl/pull/2174), [4482](https://github.com/huggingface/trl/pull/4482), [5051](https://github.com/huggingface/trl/pull/5051), [7020](https://github.com/huggingface/trl/pull/7020); and why a negative KL is a setting of `generate`: issues [235](https://github.com/huggingface/trl/issues/235), [925](https://github.com/huggingface/trl/issues/925), [1857](https://github.com/huggingface/trl/issues/1857).
# - [docs/ppo.md](../docs/ppo.md): forty decisions of the course's PPO, with their tests.
