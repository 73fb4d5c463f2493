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
# # Reward in the prompt: labelling and formats
#
# **What does a policy read when its reward stands in the prompt, and which rewards are there to learn from?**
#
# PPO changes a policy until its answers score well. There is a simpler idea: let a reward model score answers that
# exist already, write each score into the prompt, and imitate the answers. Whoever wants good answers then asks for a
# high score. This is *upside-down reinforcement learning*: the reward is no goal but an input. The source of this part,
# *Attempts to align language models by putting the reward in the prompt* (2023), did it with a fine-tuning service,
# where PPO was not to be had. This notebook makes the data: how exactly a reward is written, which rewards the texts
# have, and which targets can be asked for at all. It ends with a real fine-tuning over HTTP, the one of the source in
# small. The three notebooks after it train the policies.

# %% [markdown]
# ## What you will learn
#
# - the formats of the source, to the byte but for the digits, and where in a dialogue to cut;
# - why a number's width, sign and rounding matter to a model that reads tokens;
# - normalizers, and how two of them hide that a target was never trained on;
# - to label texts with class-token reward models, and to check the labels against the truth;
# - the distribution of the training rewards, and the targets that it leaves with hardly an example;
# - fine-tuning as a service: files, jobs, events, log-probabilities, and what it costs before it is spent.

# %% [markdown]
# ## What you should know
#
# The class-token reward model (*Reward models*, sections 2 and 8) and supervised fine-tuning (*InstructGPT, step 1*).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import contextlib
import tempfile
from collections import Counter
from pathlib import Path

import joblib
import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt
from scipy import stats

# %%
from rlhf_lab import audit, claims, parallel, plots, preferences, recipes, reward_prompt, source_figures
from rlhf_lab.claims import formatted
from rlhf_lab.fine_tuning import Settings, to_jsonl
from rlhf_lab.fine_tuning.local import LocalBackend
from rlhf_lab.fine_tuning.openai_backend import OpenAIBackend
from rlhf_lab.fine_tuning.server import Server
from rlhf_lab.fine_tuning.spending import BudgetError, Estimate, Prices, Purse
from rlhf_lab.profiles import Profile
from rlhf_lab.reward_prompt import FORMATS, NUMBERS, Format, Normalizer, RewardPrompt
from rlhf_lab.statistics import rule, t_interval
from rlhf_lab.tinyhh import gold
from rlhf_lab.transcripts import split_last_turn

size = Profile.load(profile)
results = claims.Claims("50_labelling_and_formats", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model with other comparisons: those that the reward models are fitted to,
# those that they are tested on, and the texts that they label. It is the unit in which we count evidence, and square
# brackets hold 95 % intervals over seeds. Rules stand above the cells that decide them and were fixed before the
# published run; a trial run with another seed had been seen. One seed decides nothing, so the published verdict is then
# shown beside it.


# %%
SEEDS = range(seeds)


def record(key, values, unit):
    """Record the interval over seeds of one number per seed, and hand the numbers back: (S,)."""
    results.number(key, t_interval(values), unit)
    return np.array(values)


def verdict(*conditions):
    """Whether all conditions hold; one seed decides nothing."""
    return rule(*conditions) if seeds > 1 else "not decided"


def source(name):
    """A number that the source of this part reports."""
    return source_figures.figure(f"reward_in_the_prompt.{name}").value


# %% [markdown]
# ## 1. The idea
#
# Take texts of prompts $\prompt$ and responses $\resp$, good ones and bad ones, and a reward model $\rmodel$. A policy
# $\policy(\resp \mid \prompt, z)$ reads one thing more, a number $z$, and is trained by plain next-token prediction:
#
# $$ \loss(\theta) = -\E_{(\prompt, \resp) \sim \Data} \big[ \log \policy\big(\resp \mid \prompt, z = \rmodel(\prompt, \resp)\big) \big] . $$
#
# That is all of the training: no sampling, no KL penalty, no value function. To use it, one puts a *target* in the
# place of the reward. The best that such a policy can become is the conditional distribution of the data: answers as
# the data has them among those with this reward. (The next notebook computes it in the exact world.) So it cannot be
# better than the best texts, and for a reward that no text has it is not defined at all.
#
# Why would one want it? What the source hoped for, as questions:
#
# | hope | question |
# |---|---|
# | one policy for many targets, where PPO trains a policy that only maximizes | Does it do as well as told, no better and no worse? (*One joint reward*) |
# | the trade-off of two rewards can be tried out by changing a prompt | Does it follow two targets at once? (*Two rewards*, *Can both be maximized?*) |
# | whoever uses it controls it, down to the length of answers | What else can be written as a number? (exercise 4) |
# | safety: can a policy unlearn what a low reward asks for? | A policy that can be asked to be good can be asked to be bad. Who writes the prompt? (section 3) |
# | it needs plain fine-tuning only, which is for sale | What does it take, and what does it cost? (section 8) |

# %% [markdown]
# ## 2. A prompt with its reward
#
# The texts to imitate are both sides of comparisons, the chosen and the rejected answers: a policy that is to know the
# difference has to see both. One of them, of two turns:

# %%
rows = recipes.offline_texts(size.prompted_texts, seed=0)
row = next(row for row in rows if row["prompt"].count("\n\nAssistant:") == 2)
print(
    len(rows), "texts, half of them rejected, half of them on harmful requests. One,", row["side"], "|", row["subset"]
)
print(row["prompt"] + row["response"])

# %% [markdown]
# Say its reward is .57. In the source's usual format the reward comes last, right before the answer: the dialogue, the
# separator `<REWARD>`, the line, the separator `<SOS>` (which are single tokens here), and the Assistant's turn. By
# hand:

# %%
dialogue = row["prompt"].removesuffix("\n\nAssistant:").strip()
by_hand = f"{dialogue}\n<REWARD>\nReward: 57<SOS>\n\nAssistant:"
written = RewardPrompt(FORMATS["bottom"], (Normalizer("none", (0.0, 1.0)),))
((prompt, completion),) = written.examples([row["prompt"] + row["response"]], [0.57])
assert prompt == by_hand and completion == row["response"] and written.read(prompt) == [0.57]
_, tokenizer = recipes.base(size.rung)
print("...", *(repr(tokenizer.decode(token)) for token in tokenizer(prompt)["input_ids"][-14:]))
print("completion:", repr(completion))

# %% [markdown]
# The same dialogue in every format of the source, with a second reward of .20 where there are two:

# %%
for name, form in FORMATS.items():
    text = form.prompt(row["prompt"], [0.57, 0.20][: len(form.names)])
    print(f"--- {name} ({len(tokenizer(text)['input_ids'])} tokens)\n{text}\n")

# %% [markdown]
# "Top" has the reward first, "duplicated" says it ten times (the source wondered whether a model attends more to what
# stands there more often; by its preliminary trials neither helped), "x100" is a whole number, and "none" has no
# reward: that is *behavioral cloning*, what everything else has to beat. (Why does "x100" read 56? See section 3.) Ours
# are the digits (the source writes `0.57`, see section 3), the end token where it writes " END", one line instead of
# two in "top", and the border: in the source "Assistant:" opens the completion, here it closes the prompt. Together
# they read the same.
#
# ### Where to cut
#
# The completion is what the policy learns to write, so a wrong cut teaches the wrong thing. A dialogue of two turns
# whose last answer has two paragraphs, cut in three ways:

# %%
text = "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: How do I clean a window?\n\nAssistant: Use soap.\n\nThen dry it."
cuts = {
    "at the last Assistant turn": split_last_turn(text),
    "at the last blank line": tuple(text.rsplit("\n\n", 1)),
    "at the first Assistant turn": tuple(text.split("\n\nAssistant:", 1)),
}
for where, (prompt, completion) in cuts.items():
    print(f"{where + ':':28} ...{prompt[-26:]!r} + {completion!r}")
good, leak, turn = cuts.values()
assert "Use soap." in leak[0] and "Human:" in turn[1] and good[1] == " Use soap.\n\nThen dry it."

# %% [markdown]
# The source cuts at the last Assistant turn where there is a reward, and at the last blank line where there is none. So
# its behavioral cloning learns only last paragraphs, after prompts that hold the rest of the answer; its test had an
# answer of one paragraph and did not notice. Cutting at the first turn is a slip that others have made with the same
# data: the policy learns to write the Human's part too. Would our data have noticed?

# %%
paragraphs = sum("\n\n" in row["response"].strip() for row in rows)
turns = sum(row["prompt"].count("\n\nAssistant:") > 1 for row in rows)
print(f"of {len(rows)} texts, {paragraphs} have an answer of several paragraphs, {turns} several Assistant turns")

# %% [markdown]
# The answers of the miniature world have one paragraph each, so here the first slip would do no harm, and no run would
# tell; a test on an answer of two paragraphs does. The second one would.

# %% [markdown]
# ## 3. Numbers
#
# A model does not read numbers but tokens, here one for each digit. Three ways to write one: two digits for a number
# between 0 and 1 (ours); two decimals at most, with a sign (the source, after standardization, which makes half of the
# rewards negative); and times 100, cut off (the source's "x100"). By hand first:

# %%
assert NUMBERS["percent"].write(0.57) == "57" and NUMBERS["percent"].write(1.0) == "99"  # no room for "100"
assert NUMBERS["signed"].write(0.5) == "0.5" and NUMBERS["signed"].write(-0.004) == "-0.0"
assert 100 * 0.29 < 29 and NUMBERS["x100"].write(0.29) == str(int(100 * 0.29)) == "28"
lines = ["| reward | " + " | ".join(NUMBERS) + " |", "|--:|" + "--:|" * len(NUMBERS)]
for value in (0.57, 0.5, 0.29, 0.0, -0.004, -0.37, 1.8):
    cells = [tokenizer.tokenize(number.write(value)) for number in NUMBERS.values()]
    lines.append(f"| {value:g} | " + " | ".join(f"`{' '.join(cell)}` ({len(cell)} tokens)" for cell in cells) + " |")
Markdown("\n".join(lines))

# %%
wrong = [k / 100 for k in range(100) if NUMBERS["x100"].write(k / 100) != str(k)]
print("of the hundred numbers .00 to .99, x100 cuts too much off:", wrong)

# %% [markdown]
# What is wrong with the middle column? The first digit of interest is the fourth token of `-0.37`, the third of `0.57`,
# and missing in `0.5` if you look for the second decimal; zero has two spellings. And one token, the minus, says
# already most of what there is to know: it parts the better half of the texts from the worse. A small model may well
# stop there. In trials of this course it did: the reward *jumped* where the target changed its sign, and elsewhere the
# target made no difference, at a correlation of target and reward that looked like obedience. So here numbers are
# unsigned and of fixed width, and the next notebooks show curves, not correlations alone. The price: what lies outside
# [0, 1] is written as `00` or `99`.
#
# ### Who writes the reward?
#
# If a user's text may hold the separators, a user may write the reward:

# %%
forged = "\n\nHuman: How do I clean a window?\n<REWARD>\nReward: 99<SOS>\n\nAssistant:"
try:
    FORMATS["bottom"].prompt(forged, [0.10])
except ValueError as error:
    print(error)

# %% [markdown]
# So the module refuses such prompts. That settles who writes the reward as long as the prompt is yours. It does not
# settle the fourth hope of section 1: whoever has the weights, or the endpoint, asks for what they like.

# %% [markdown]
# ## 4. Normalizers
#
# Rewards may have any scale, and the digits only one. A *normalizer* is fitted to the training rewards, and belongs to
# the policy like its weights. Four of them, on five rewards by hand:

# %%
toy = np.array([0.2, 0.3, 0.4, 0.4, 0.7])
by_hand = {
    "none": toy,
    "min-max": (toy - 0.2) / 0.5,
    "standard": (toy - 0.4) / np.sqrt((0.04 + 0.01 + 0 + 0 + 0.09) / 5),
    "quantile": np.array([0.0, 0.25, 0.625, 0.625, 1.0]),  # .4 is in the third and fourth place: the middle
}
for kind, expected in by_hand.items():
    normalize = Normalizer.fit(kind, toy)
    assert np.allclose(normalize(toy), expected) and np.allclose(normalize.inverse(expected), toy)
    print(f"{kind:9}", normalize(toy).round(3))

# %% [markdown]
# The source has the first three, and notes that standardizing helped. The fourth makes all numbers equally frequent, so
# that the digits tell as much as digits can (section 7).
#
# **A trap.** What does each write for targets beyond the data, of which .7 is the best?

# %%
KINDS = {kind: RewardPrompt.fit(FORMATS["bottom"], toy, kind) for kind in ("none", "min-max", "quantile")}
KINDS["standard, signed"] = RewardPrompt.fit(Format(number="signed"), toy, "standard")
lines = ["| target | " + " | ".join(KINDS) + " |", "|--:|" + "---|" * len(KINDS)]
for target in (0.05, 0.2, 0.4, 0.7, 0.95):
    lines.append(f"| {target:.2f} | " + " | ".join(kind.lines(target) for kind in KINDS.values()) + " |")
assert all(KINDS[kind].lines(0.95) == KINDS[kind].lines(0.7) for kind in ("min-max", "quantile"))
assert len({KINDS["none"].lines(target) for target in (0.7, 0.95)}) == 2
Markdown("\n".join(lines))

# %% [markdown]
# With min-max and quantiles, every target beyond the data is written exactly like the best text, or the least. That is
# no bad answer to an impossible wish. But then a flat line in a chart of reward against target is made by the writing,
# not by the policy, and one may not conclude anything about the policy from it. With "none", `95` is a prompt that
# nobody has trained, and what the policy does there is its own doing.
#
# The course takes **"none" and two digits**. Its rewards are probabilities: they have the scale already, .5 means the
# same for every reward model, and where the data ends is visible.
#
# A second trap is to forget the normalizer: the source's evaluations write targets as they are, though its training may
# have standardized them. (Exercise 2 computes what that asks for.) Here they are saved with the format, and read back:

# %%
with tempfile.TemporaryDirectory() as folder:
    reward_prompt.save(KINDS["quantile"], Path(folder))
    again = reward_prompt.load(Path(folder))
assert again == KINDS["quantile"] and again.lines(0.4) == "Reward: 62"

# %% [markdown]
# ## 5. Which targets to ask for
#
# To test a policy, each held-out prompt gets a target by chance. "By chance" means: decided by the prompt, the reward's
# name and the number of the rollout, and by nothing else. So every policy is asked for the same, and differences
# between policies are not differences between questions.

# %%
asked = [prompt for prompt, _ in recipes.steering_prompts("joint", "test", size.prompted_answers, seed=0)]
SAMPLERS = {
    "uniform": reward_prompt.UNIFORM,
    "high": reward_prompt.HIGH,
    "high or low": reward_prompt.HIGH_LOW,
    "a sd above the mean": reward_prompt.above_mean(toy),
}
uniform = SAMPLERS["uniform"]
assert uniform(asked[0], "joint") == uniform(asked[0], "joint")
assert len({uniform(asked[0], "joint"), uniform(asked[0], "helpful"), uniform(asked[0], "joint", rollout=1)}) == 3
print(f"{'share of targets':20} below .3   between   above .7")
for name, sampler in SAMPLERS.items():
    drawn = np.array([sampler(prompt, "joint") for prompt in asked])
    print(
        f"{name:20}",
        *(f"{share:8.2f} " for share in (np.mean(drawn < 0.3), np.mean(abs(drawn - 0.5) <= 0.2), np.mean(drawn > 0.7))),
    )

# %% [markdown]
# In the source, the sampler named "high or low" was plain uniform. The tests of this part use the first one.

# %% [markdown]
# ## 6. Labelling
#
# Who says what reward a text has? As in the source, three *class-token* models: one is fitted to helpful comparisons,
# one to harmless ones, one to both (*joint*), and each gives a text the probability that it was chosen. One thing is
# different. The source labels the very texts that its reward models were fitted to, where a model partly remembers what
# was chosen; here the texts come from other comparisons of the same world. They share many prompts and a few whole
# answers with those that the models were fitted to, so nearly all rewards are predictions.


# %%
def labels(judge, seed):
    """The rewards (N,) of the offline texts; and the logits of held-out helpful and harmless pairs, (2, 2, M)."""
    of = (size.rung, judge, size.judge_pairs)
    rewards = recipes.offline_rewards(judge, size.rung, size.judge_pairs, size.prompted_texts, seed)
    tests = [recipes.preference_scores("class_token", *of, test, size.test_pairs, seed=seed) for test in SUBSETS]
    return rewards, [[test["chosen"], test["rejected"]] for test in tests]


def true_rewards(seed):
    """Of the same texts: the true helpfulness of answers to helpful prompts, the harmlessness of the others; (N,)."""
    reward = {"helpful": gold.helpfulness, "harmless": gold.harmlessness}
    texts = recipes.offline_texts(size.prompted_texts, seed)
    return [reward[row["subset"]](row["prompt"], row["response"]) for row in texts]


SUBSETS, JUDGES = recipes.SUBSETS, recipes.JUDGES
work = [joblib.delayed(labels)(judge, seed) for judge in reversed(JUDGES) for seed in SEEDS]
found = iter(parallel.run(work + [joblib.delayed(true_rewards)(seed) for seed in SEEDS]))
labelled = {judge: [next(found) for _ in SEEDS] for judge in reversed(JUDGES)}
reward = {judge: np.array([rewards for rewards, _ in labelled[judge]]) for judge in JUDGES}  # (S, N) each
truth = np.array(list(found))  # (S, N)
subset = np.array([row["subset"] for row in rows])  # (N,), the same for every seed
print({judge: values.shape for judge, values in reward.items()}, truth.shape)

# %% [markdown]
# First, the models: how well do they sort held-out pairs, beside the rule that the longer answer wins?


# %%
def accuracy(judge, tests):
    """Right on held-out pairs of these subsets, for each seed: (S,)."""
    margins = [np.subtract(*np.array(logits[test])) for _, logits in labelled[judge] for test in tests]  # (M,) each
    return audit.right(margins).reshape(seeds, -1).mean(axis=1)


TESTS = {"helpful": [0], "harmless": [1], "joint": [0, 1]}  # of SUBSETS
for test, parts in TESTS.items():
    pairs = [
        [row for part in parts for row in recipes.preference_pairs(SUBSETS[part], "test", size.test_pairs, seed)]
        for seed in SEEDS
    ]
    longer = [np.mean([preferences.longer_wins(**row) for row in some]) for some in pairs]
    record(f"audit.longer_wins.{test}", longer, "share of pairs")
    for judge in JUDGES:
        record(f"accuracy.{judge}.{test}", accuracy(judge, parts), "share of pairs")

# %%
reported = {
    "helpful model, helpful pairs": ("helpful.helpful", "accuracy_helpful"),
    "harmless model, harmless pairs": ("harmless.harmless", "accuracy_harmless"),
    "joint model, joint pairs": ("joint.joint", "accuracy_joint"),
    "helpful model, harmless pairs": ("helpful.harmless", "accuracy_helpful_on_harmless"),
    "harmless model, helpful pairs": ("harmless.helpful", None),
}
lines = ["| right on | here | the longer one wins | the source |", "|---|--:|--:|--:|"]
for label, (key, name) in reported.items():
    here, length = (
        results.numbers[f"{k}.{part}"] for k, part in (("accuracy", key), ("audit.longer_wins", key.split(".")[1]))
    )
    lines.append(f"| {label} | {formatted(here)} | {formatted(length)} | {source(name) if name else ''} |")
Markdown("\n".join(lines))

# %% [markdown]
# A model that is right on a pair has only found the better of two answers to one prompt. A policy learns from the
# *value* of a reward, over all prompts. So: among all helpful texts, does a higher reward go with a higher true
# helpfulness? And among answers to harmful requests, with a higher true harmlessness? The measure is Spearman's rank
# correlation, as points of truth and probabilities have nothing in common but their order. (Over texts, so differences
# between prompts count too; the table above is about two answers to the same prompt.)
#
# The rule for `labels_follow_gold`: the rank correlation of the joint model's rewards with the truth is above zero
# (lower end of the interval) on both subsets. We expect that it holds: without it, there is nothing to put into a
# prompt.

# %%
for judge in JUDGES:
    for part in SUBSETS:
        inside = subset == part
        ranks = [stats.spearmanr(r[inside], g[inside]).statistic for r, g in zip(reward[judge], truth, strict=True)]
        record(f"follows_gold.{judge}.{part}", ranks, "Spearman's rank correlation over texts")
lows = [results.numbers[f"follows_gold.joint.{part}"]["low"] for part in SUBSETS]
both = "{follows_gold.joint.helpful} on helpful texts and {follows_gold.joint.harmless} on answers to harmful requests"
results.state(
    "labels_follow_gold",
    verdict(seeds > 1 and min(lows) > 0),
    expect="holds",
    text={
        "holds": f"The joint rewards follow the truth: rank correlation {both}.",
        "fails": f"That the joint rewards follow the truth on both subsets is not established: {both}.",
    },
)
results.show("labels_follow_gold")

# %%
results.table(*(f"follows_gold.{judge}.{part}" for judge in JUDGES for part in SUBSETS))

# %% [markdown]
# > **Predict.** Sort the helpful texts by their reward and cut the row into ten equal parts. How does the mean true
# > helpfulness run from the first part to the last: straight, or flat somewhere? And the harmless ones?


# %%
def tenths(values, truths):
    """Mean reward and mean truth of ten equal parts of the texts, in the order of their rewards: (2, 10)."""
    parts = np.array_split(np.argsort(values, kind="stable"), 10)
    return [[array[part].mean() for part in parts] for array in (values, truths)]


TITLES = {"helpful": "answers to helpful prompts", "harmless": "answers to harmful requests"}
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.5))
words = []
for axis, part in zip(axes, SUBSETS, strict=True):
    for index, judge in enumerate(("joint", part)):
        inside = subset == part
        curves = np.array(
            [tenths(r[inside], g[inside]) for r, g in zip(reward[judge], truth, strict=True)]
        )  # (S, 2, 10)
        plots.curve_with_band(axis, curves[:, 0].mean(axis=0), curves[:, 1], f"{judge} model", index)
        first, last = curves[:, 1].mean(axis=0)[[0, -1]]
        words.append(f"{TITLES[part]} by the {judge} model: {first:.2f} in the lowest tenth, {last:.2f} in the highest")
    axis.set(title=TITLES[part], xlabel="reward (probability of being chosen)", ylabel=f"true {part}ness (points)")
    axis.legend(fontsize="small")
figure.tight_layout()
alt = f"""Mean true reward of the texts against their reward by class-token models, in ten equal parts of the texts; left
answers to helpful prompts, right answers to harmful requests. {"; ".join(words)}."""
plots.show(figure, alt, name="labels_and_gold")

# %% [markdown]
# ## 7. The distribution of the training rewards
#
# The chart that the source announced and never drew. It printed percentiles, so they can stand beside ours: of the
# joint rewards of all texts, and of the helpful rewards of helpful texts.
#
# > **Predict.** A model gives each text the probability that it was chosen. It never sees the other text, and the
# > labelers err. Targets are drawn uniformly from 0 to 1. What share of them will lie outside what 98 % of the training
# > texts have?

# %%
TRAINING = {"joint": reward["joint"], "helpful": reward["helpful"][:, subset == "helpful"]}  # (S, N) each
ends = {}  # name -> (S, 2): the 1st and the 99th percentile
for name, values in TRAINING.items():
    ends[name] = np.percentile(values, [1, 99], axis=1).T
    moments = {"mean": values.mean(axis=1), "sd": values.std(axis=1), "p1": ends[name][:, 0], "p99": ends[name][:, 1]}
    for what, numbers in moments.items():
        record(f"rewards.{name}.{what}", numbers, "class-token reward")
lines = ["| rewards | | mean | sd | 1st percentile | 99th percentile |", "|---|---|--:|--:|--:|--:|"]
for name, values in TRAINING.items():
    ours = [formatted(results.numbers[f"rewards.{name}.{what}"]) for what in moments]
    theirs = [f"{source(f'{name}_rewards_{what}'):.3f}" for what in moments]
    lines.append(f"| {name} | here, {values.shape[1]:,} texts a seed | " + " | ".join(ours) + " |")
    lines.append("| | the source | " + " | ".join(theirs) + " |")
Markdown("\n".join(lines))

# %%
standardized = Normalizer("standard", (source("joint_rewards_mean"), source("joint_rewards_sd")))
print("standardized by the source, 0, 0.5, 0.8 and 1 stand for", standardized.inverse([0, 0.5, 0.8, 1]).round(3))

# %%
BINS, KINDS_OF_PROMPTS = np.linspace(0, 1, 41), ("helpful prompts", "harmful requests")


def draw_rewards(axis, name, values):
    """A stacked histogram of training rewards (S, N), their percentiles and the source's; words for the alt text."""
    parts = [values[:, subset == part].ravel() for part in SUBSETS] if name == "joint" else [values.ravel()]
    colors = [plots.COLORS[0], "0.8"][: len(parts)]
    axis.hist(parts, BINS, density=True, stacked=True, color=colors, alpha=0.75, label=KINDS_OF_PROMPTS[: len(parts)])
    axis.axhline(1, color="black", linestyle=":", linewidth=1.8, label="uniform targets")
    here, there = ends[name].mean(axis=0), [source(f"{name}_rewards_{end}") for end in ("p1", "p99")]
    top = axis.get_ylim()[1]
    brackets = ((1.04, here, "-", "1st to 99th percentile"), (1.12, there, "--", "the same, source"))
    for height, interval, style, label in brackets:
        axis.plot(interval, [height * top] * 2, color="0.2", linestyle=style, marker="|", markersize=9, label=label)
    axis.set(title=f"{name} reward", xlabel="reward, or target (probability of being chosen)")
    return f"{name} {here[0]:.2f} to {here[1]:.2f}, in the source {there[0]:.2f} to {there[1]:.2f}"


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6), sharex=True)
words = [draw_rewards(axis, *item) for axis, item in zip(axes, TRAINING.items(), strict=True)]
axes[0].set_ylabel("density")
figure.tight_layout()
handles = axes[0].get_legend_handles_labels()
figure.legend(*handles, ncols=5, loc="lower center", bbox_to_anchor=(0.5, 0.98), fontsize="small")
alt = f"""Histograms of the training rewards: joint rewards of all texts, left, those of answers to harmful requests
stacked in grey on the helpful ones, and helpful rewards of helpful texts, right. Brackets above show from the 1st to
the 99th percentile: {"; ".join(words)}. A dotted line at density 1 shows the targets, uniform from 0 to 1."""
plots.show(figure, alt, name="training_rewards")

# %% [markdown]
# Where the dotted line runs beyond the bracket, a target is asked for that nearly no text has. The loss says little
# about what the policy is to do there: two texts in a hundred, by definition. And a policy reads the prompt as well, so
# strictly the bracket should be that of the answers to such prompts: the two colors show how different they are. Two
# rules:
#
# `training_rewards_leave_targets_uncovered`: the part of [0, 1] outside the 1st and 99th percentile of the joint
# rewards is longer than a tenth (lower end of the interval). We expect that it holds, as in the source. (Even uniform
# rewards would leave .02.) `rarely_below_tenth_or_above_nine_tenths`: fewer than one in a hundred joint rewards lie
# below .1 or above .9 (upper end of the interval). The source's authors said so of theirs, took it for a fault of
# calibration, and deleted the remark; we expect that it holds here too. (*Reward models*, section 8, has a weaker rule
# for the same remark, and asks separately whether such scores are calibrated: how spread out scores are says nothing
# about whether they come true.)

# %%
for name, (low, high) in ((name, values.T) for name, values in ends.items()):
    record(
        f"uncovered.{name}", low + 1 - high, f"part of [0, 1] outside the 1st and 99th percentile of the {name} rewards"
    )
    drawn = [
        [uniform(prompt, name) for prompt, _ in recipes.steering_prompts(name, "test", size.prompted_answers, seed)]
        for seed in SEEDS
    ]
    outside = [np.mean((np.array(t) < a) | (np.array(t) > b)) for t, a, b in zip(drawn, low, high, strict=True)]
    unit = f"share of the drawn targets outside the 1st and 99th percentile of the {name} rewards"
    record(f"targets_outside.{name}", outside, unit)
for part in SUBSETS:
    low, high = np.percentile(reward["joint"][:, subset == part], [1, 99], axis=1)
    unit = f"part of [0, 1] outside the 1st and 99th percentile of the joint rewards of {part} texts"
    record(f"uncovered.joint_on_{part}", low + 1 - high, unit)
extreme = [np.mean((values < 0.1) | (values > 0.9)) for values in TRAINING["joint"]]
record("rewards.joint.extreme", extreme, "share of joint rewards below .1 or above .9")
UNCOVERED = ("uncovered.joint", "uncovered.joint_on_helpful", "uncovered.joint_on_harmless", "uncovered.helpful")
results.table(*UNCOVERED, "targets_outside.joint", "targets_outside.helpful", "rewards.joint.extreme")

# %%
uncovered, rare = results.numbers["uncovered.joint"]["low"], results.numbers["rewards.joint.extreme"]["high"]
results.state(
    "training_rewards_leave_targets_uncovered",
    verdict(seeds > 1 and uncovered > 0.1),
    expect="holds",
    text={
        "holds": "The training rewards leave targets with hardly an example: {uncovered.joint} of [0, 1] lies outside "
        "the 1st and 99th percentile of the joint rewards, {uncovered.helpful} for the helpful ones.",
        "fails": "That more than a tenth of [0, 1] lies outside the 1st and 99th percentile of the joint rewards is "
        "not established: {uncovered.joint}.",
    },
)
results.state(
    "rarely_below_tenth_or_above_nine_tenths",
    verdict(seeds > 1 and rare < 0.01),
    expect="holds",
    text={
        "holds": "Joint rewards below .1 or above .9 are rare: {rewards.joint.extreme} of all.",
        "fails": "That fewer than one in a hundred joint rewards lie below .1 or above .9 is not established: "
        "{rewards.joint.extreme}.",
    },
)
results.show("training_rewards_leave_targets_uncovered", "rarely_below_tenth_or_above_nine_tenths")

# %% [markdown]
# What would another normalizer change? A narrow band of rewards uses few of the hundred numbers. The entropy of the
# number over the texts, in nats, bounds how much it can tell about an answer. (Reading it perfectly lowers the loss of
# a text by what is left of that entropy once the prompt is known, so by less, since the prompt tells part of the
# reward.) And how much of it is in the first digit, which a small model may learn first?


# %%
def entropy(symbols):
    """Of the frequencies of what was written, in nats."""
    return stats.entropy(list(Counter(symbols).values()))


sample = reward["joint"][0][:4000]
assert np.isclose(entropy("aabb"), np.log(2))
lines = ["| normalizer | numbers in use | entropy of the number | of its first digit |", "|---|--:|--:|--:|"]
for kind in ("none", "min-max", "quantile"):
    fitted = RewardPrompt.fit(FORMATS["bottom"], sample, kind)
    numbers = [fitted.lines(value).removeprefix("Reward: ") for value in sample]
    lines.append(f"| {kind} | {len(set(numbers))} | {entropy(numbers):.2f} | {entropy([n[0] for n in numbers]):.2f} |")
lines.append(f"| at most | 100 | {np.log(100):.2f} | {np.log(10):.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## 8. Fine-tuning as a service
#
# The source fine-tuned OpenAI's *babbage* over the network. Those endpoints and models were switched off in January
# 2024, and in May 2026 OpenAI closed fine-tuning to new users. So this course brings a server that speaks the same
# language, `python -m rlhf_lab serve`, and trains on your machine; the client is OpenAI's own package. Here is all of
# it in small, over real HTTP: the server runs inside this notebook, on loopback, in a folder that goes away at the end.

# %%
RUN = recipes.PromptedRun(size.rung, size.rung, size.judge_pairs, size.prompted_texts)  # of the next notebooks
EXAMPLES, SMALLEST = 64, f"base-{size.ladder[0]}"
transcripts, rewards = recipes.prompted_data(RUN, seed=0)
lessons = {
    "policy": RUN.written.examples(transcripts[:EXAMPLES], rewards[:EXAMPLES]),
    "judge": [
        (row["prompt"] + row["response"] + "<SOS>", str(int(row["side"] == "chosen"))) for row in rows[:EXAMPLES]
    ],
}
place = contextlib.ExitStack()
folder = Path(place.enter_context(tempfile.TemporaryDirectory()))
server = place.enter_context(Server(folder / "server"))
service = OpenAIBackend(server.url, folder / "client")
for examples in lessons.values():
    print(to_jsonl(examples[:1]))

# %% [markdown]
# Two files, a line an example. The first teaches a policy, the second a class-token reward model: to the service they
# are the same. A file is uploaded and becomes a *job*; a job has *events*, one for each step; and what comes of it is a
# model with a name.

# %%
settings = Settings(n_epochs=2, batch_size=16, learning_rate_multiplier=recipes.PROMPTED.learning_rate_multiplier)
job = service.fine_tune(service.upload(lessons["policy"]), SMALLEST, settings, seed=0, suffix="policy")
done = service.wait(job.id)
print(done.status, "|", done.fine_tuned_model.rpartition(":")[0], "|", done.trained_tokens, "tokens trained")
print("loss by step:", [round(event.loss, 2) for event in service.events(job.id)])
again = service.fine_tune(service.upload(lessons["policy"]), SMALLEST, settings, seed=0, suffix="policy")
print("the same job again:", "found, not started" if again.id == job.id else "started anew")

# %% [markdown]
# No job is done twice: the same content with the same settings is the same job, also after a crash. Now
# the new policy answers, with the log-probability of each token and of the likeliest one in its place. (It has read 64
# texts twice. The next notebook says what it takes to follow a target; here only the way is tested.)

# %%
questions = RUN.written.prompts([row["prompt"] for row in rows[EXAMPLES : EXAMPLES + 4]], [0.1, 0.3, 0.6, 0.8])
(answer, *_) = service.complete(done.fine_tuned_model, questions, max_tokens=24, logprobs=1, seed=0)
print(repr(answer.text), answer.finish_reason)
print("token, log-probability | likeliest, log-probability")
for token, logprob, top in list(zip(answer.tokens, answer.logprobs, answer.top, strict=True))[:6]:
    likeliest = max(top, key=top.get)
    print(f"{token!r:>12} {logprob:6.2f} | {likeliest!r:>12} {top[likeliest]:6.2f}")

# %% [markdown]
# The whole of it, as a function of the service, for the one over HTTP and for the same code without a server between. A
# judge is asked with `class_probability`, $p_1 / (p_1 + p_0)$ of the next token. (OpenAI's API tells the five likeliest
# tokens only; where a class is missing there, the client raises an error rather than take its probability for zero.)
#
# The rule for `server_equals_local`: equal texts, tokens and ends of all answers, and losses, log-probabilities and
# scores that differ by less than $10^{-4}$. It is a check of our own code, so a miss would fail the build.


# %%
def through(backend):
    """Fine-tune a policy and a judge and ask both: texts, and numbers (N,)."""
    models, numbers = {}, []
    for name, examples in lessons.items():
        job = backend.fine_tune(backend.upload(examples), SMALLEST, settings, seed=0, suffix=name)
        models[name] = backend.wait(job.id).fine_tuned_model
        numbers += [event.loss for event in backend.events(job.id)]
    answers = backend.complete(models["policy"], questions, max_tokens=24, logprobs=1, seed=0)
    scores = backend.class_probability(models["judge"], [text + "<SOS>" for text in transcripts[-8:]])
    numbers += [logprob for answer in answers for logprob in answer.logprobs] + scores
    print(type(backend).__name__, "scores:", np.round(scores, 3))
    return [(answer.text, answer.tokens, answer.finish_reason) for answer in answers], np.array(numbers)


(texts, numbers), (local_texts, local_numbers) = (through(each) for each in (service, LocalBackend(folder / "local")))
place.close()

# %%
equal = (
    texts == local_texts
    and numbers.shape == local_numbers.shape
    and np.allclose(numbers, local_numbers, rtol=0, atol=1e-4)
)
results.state(
    "server_equals_local",
    rule(bool(equal)),
    expect="holds",
    sanity=True,
    text={
        "holds": "Fine-tuned over HTTP and without a server, the models give the same answers and the same scores.",
        "fails": "Over HTTP and without a server, answers or scores differ: look for an error in the server.",
    },
)
results.show("server_equals_local")

# %% [markdown]
# ### What it costs, before it is spent
#
# At the prices of January 2023 that the source lists, what would it have cost to train on as many of *our* dialogues as
# the source had of its own? Prompts are paid for as completions are.

# %%
prices = Prices(training=source("babbage_price_training"), inference=source("babbage_price_inference"))
sampled = RUN.written.examples(transcripts[:2000], rewards[:2000])
some = LocalBackend().cost_estimate(sampled, epochs=1, prices=prices)  # counted with our tokenizer
dialogues = source("prompted_texts")
tokens = round(some.tokens / len(sampled) * dialogues)
ours = Estimate(f"1 epoch of {dialogues:,} dialogues of ours", tokens, tokens * prices.training / 1000)
theirs = Estimate(f"1 epoch of {dialogues:,} dialogues of the source", source("sweep_tokens"), source("sweep_dollars"))
for estimate in (ours, theirs):
    print(estimate, f"| {estimate.tokens / dialogues:.0f} tokens each")
assert abs(theirs.tokens * prices.training / 1000 - theirs.dollars) < 0.05

# %% [markdown]
# Real dialogues are longer. A service elsewhere is asked for nothing that costs money unless somebody has allowed it:
# by `budget`, in dollars for everything, or by `confirm`, a function that is shown each estimate. What the client says
# otherwise (it asks the same `Purse`):

# %%
for budget, spent in ((None, 0.0), (20.0, 5.0), (20.0, 0.0)):
    try:
        Purse(prices, budget, confirm=None).approve(theirs, spent)
        print(f"budget {budget}, spent {spent}: approved")
    except BudgetError as error:
        print(f"budget {budget}, spent {spent}: {error}")

# %% [markdown]
# **To put the next notebooks behind a server**, start `python -m rlhf_lab serve` in a terminal, name the address that it
# prints in the environment variable `OPENAI_BASE_URL`, and set `backend = "openai"` in their parameters cell; the code
# is the same either way. They ask for base models that only our server has. For programs of your own, `OpenAIBackend`
# talks to any server that speaks this language; a key belongs into the environment variable `OPENAI_API_KEY` and
# nowhere else, least of all into a notebook. `docs/running.md` has an example.
#
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** All in *Attempts to align language models by putting the reward in the prompt* (2023).
# Without a reward its code cuts a dialogue at the last blank line, so that behavioral cloning never learns an answer's
# first paragraphs (section 2). The sampler of high or low targets draws uniform ones (section 5). Multiplying by 100
# and cutting off makes three of a hundred numbers too small by one (section 3). Its evaluations write targets without
# the normalizer that its training may have used (section 4). The example that the text prints ends at `<SOS>`, where
# the code goes on with two line breaks. And the remark that scores near 0 and 1 are missing was deleted; what it
# observed is tested in section 7.

# %% [markdown]
# ## Exercises
#
# **1.** Mend "x100" in two ways, one in how it is written and one in how it is read. Which is right, if the policy has
# been trained already?
#
# <details><summary>Hint</summary>
#
# What does the policy believe that `28` means?
#
# </details>
#
# <details><summary>Answer</summary>
#
# `str(round(100 * value))` writes the nearest number. Or leave the writing, and read `28` as .285, the middle of what
# is cut off to it, from .28 to .29 (inclusive!). A policy that was trained already has learned the old writing, so it
# has to be asked in it, and only the second way is left. The slip is worth a hundredth at most; the lesson is that
# training and asking must write alike.
#
# </details>
#
# **2.** A policy was trained on standardized joint rewards, and an evaluation forgets the normalizer: it writes the
# target .8 as `0.8`. Which reward does it ask for, with the source's mean and standard deviation (table in section 7)?
# And with the target .5, the "average"?
#
# <details><summary>Hint</summary>
#
# `Normalizer("standard", (mean, sd)).inverse`.
#
# </details>
#
# <details><summary>Answer</summary>
#
# `0.8` stands for .8 standard deviations above the mean, `mean + .8 * sd`, and `0.5` for half a standard deviation
# above it, not for the average, which is `0.0`. All targets from 0 to 1 are squeezed into one standard deviation above
# the mean, so a chart of reward against target would look flat, with a policy that is perfectly obedient. (The numbers
# stand below the table of section 7.)
#
# </details>
#
# **3.** With the normalizer "quantile", draw targets uniformly in *quantiles* instead of rewards. What share of targets
# then lies outside the training rewards? Does it cure what section 7 shows?
#
# <details><summary>Answer</summary>
#
# Beyond the least and the greatest training reward none; outside their 1st and 99th percentile two in a hundred, by
# definition. Nearly every number stands before one in a hundred texts (`00` before half of that, `99` before one and a
# half). But it is another question. "Do as well as 90 % of the texts" can always be asked; "be chosen with probability
# .95" has as few examples as before. Who only wants good answers loses nothing by asking the first.
#
# </details>
#
# **4.** The third hope of section 1: a policy that is told how *long* to be. Build the format, a normalizer and the
# examples for it with `reward_prompt`, the length in words as the "reward". Which normalizer, and what will the two
# digits say for an answer of the median length?
#
# <details><summary>Hint</summary>
#
# `Format(names=("Length",))`; "none" wants numbers in [0, 1].
#
# </details>
#
# <details><summary>Answer</summary>
#
#     lengths = [len(row["response"].split()) for row in rows]
#     length = RewardPrompt.fit(Format(names=("Length",)), lengths, "quantile")
#     examples = length.examples([row["prompt"] + row["response"] for row in rows], lengths)
#
# With "quantile" about `50` for the median, and equally many texts for each number, except that a length which many
# texts have gets one number for all of them. With "min-max" the longest answer sets the scale. No reward model is
# needed: the label is exact, so whether the policy obeys is a question about the method alone.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - *Attempts to align language models by putting the reward in the prompt* (2023),
#   [repository](https://github.com/thejaminator/prompt_reward_rl): the source of this part.
# - Schmidhuber (2019), *Reinforcement learning upside down: don't predict rewards, just map them to actions*, [arXiv
#   1912.02875](https://arxiv.org/abs/1912.02875), and Srivastava et al. (2019), *Training agents using upside-down
#   reinforcement learning*, [arXiv 1912.02877](https://arxiv.org/abs/1912.02877).
# - Chen et al. (2021), *Decision transformer: reinforcement learning via sequence modeling*, [arXiv
#   2106.01345](https://arxiv.org/abs/2106.01345): the return to come as a token, for games and robots.
# - Korbak et al. (2023), *Pretraining language models with human preferences*, [arXiv
#   2302.08582](https://arxiv.org/abs/2302.08582): two control tokens, good and bad, already in pretraining.
# - Liu et al. (2023), *Chain of hindsight aligns language models with feedback*, [arXiv
#   2302.02676](https://arxiv.org/abs/2302.02676), and Dong et al. (2023), *SteerLM*, [arXiv
#   2310.05344](https://arxiv.org/abs/2310.05344): feedback in words, and several attributes as numbers.
