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
# # InstructGPT, step 2: a reward model from rankings
#
# **Why do all comparisons of a prompt belong into one step?**
#
# InstructGPT's labelers do not compare two answers, they rank four to nine of them at once. A ranking of nine holds 36
# comparisons, and the obvious thing to do with comparisons is to shuffle them and train on them as on any others. The
# authors tried that, and report (Ouyang et al. 2022, section 3.5) that their reward model then overfitted within a
# single pass over the data. Their remedy costs nothing, it even saves most of the work. This notebook counts what
# shuffling does, takes it apart, and tests the report. Then it finishes the reward model that step 3 will be trained
# against, which takes one more number: a zero.

# %% [markdown]
# ## What you will learn
#
# - how people rank by columns, how many comparisons and ties the mean of three gives, and how far two of them agree;
# - how often an answer is read, and how often it moves the model, with pairs of a prompt together and apart;
# - that the gradient of a ranking is the mean of its pairs' gradients, and what dropping ties does to it;
# - what overfitting within one pass looks like, and what of it is shuffling, number of steps or learning rate;
# - to put an accuracy between an audit and a ceiling, and to ask labelers whom the model has never met;
# - why a reward model gets a zero, where it is kept, and what it is not good for.

# %% [markdown]
# ## What you should know
#
# *Reward models: three losses, calibration, shortcuts*, sections 1 and 3 (the pairwise and the K-wise loss), and
# *InstructGPT, step 1: supervised fine-tuning*, whose policy writes the answers.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import random
from collections import Counter
from dataclasses import replace
from itertools import combinations
from math import comb

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt

from rlhf_lab import claims, parallel, plots, preferences, recipes, reward_model
from rlhf_lab.profiles import Profile
from rlhf_lab.rloo import RLOOConfig
from rlhf_lab.sampling import sample
from rlhf_lab.source_figures import figure as source_figure
from rlhf_lab.statistics import better, rule, t_interval
from rlhf_lab.tinyhh import annotators, gold

size = Profile.load(profile)
results = claims.Claims("31_reward_model_k_wise", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats every experiment with another SFT policy, other answers, other labels and other first heads; it is
# the unit in which we count evidence, and square brackets hold 95 % intervals over seeds. Rules stand above the cells
# that decide them and were fixed before the published run; settings were tried out with one other seed. One seed
# decides nothing, so the published verdict is then shown beside it.

# %% [markdown]
# ## 1. One ranking
#
# A labeler of InstructGPT sees one prompt and $K$ answers, with $K$ between 4 and 9, and sorts them into five columns,
# the best to the left. Several answers may stand in one column: these are tied. Here the SFT policy of step 1 answers,
# and three labelers of the default crowd, drawn for each prompt, sort the answers independently. Like a person, each
# sees the worth of an answer through noise, and spreads what is seen over five equal steps from the best to the worst.
# An answer's rank is the *mean* of its three columns. (Most comparisons of InstructGPT are by one labeler, for reasons
# of cost. We have fewer prompts, and a mean is less noisy. It also hides where people disagree.)

# %%
TESTED = size.test_prompts // 5  # held-out prompts with ranked answers
world = (size.rung, size.demonstrations)
rankings = recipes.ranked_answers(*world, size.compared_rankings, "train", seed=0)
row = min(rankings[:100], key=lambda row: (len(row["responses"]) != 5, sum(map(len, row["responses"]))))  # a short one
print(row["prompt"].strip())
for rank, response in sorted(zip(row["ranks"], row["responses"], strict=True)):
    print(f"mean column {rank:.2f} |{response}   (gold {gold.helpfulness(row['prompt'], response):+.2f})")

# %% [markdown]
# Of $K$ answers there are $\binom K2$ pairs. A tie says nothing about who is better, so only the pairs of different
# rank are *comparisons*:

# %%
K = len(row["responses"])
pairs = [(i, j) for i in range(K) for j in range(K) if row["ranks"][i] < row["ranks"][j]]  # i is the better one
ties = [(i, j) for i, j in combinations(range(K), 2) if row["ranks"][i] == row["ranks"][j]]
print(f"K = {K}: {comb(K, 2)} pairs, {len(pairs)} comparisons, {len(ties)} ties")
assert len(pairs) + len(ties) == comb(K, 2) and len(recipes.ordered_pairs([row])) == len(pairs)


# %%
def counted(seed):
    """Answers, pairs and the share of ties of a seed's rankings, for each prompt on average."""
    rows = recipes.ranked_answers(*world, size.compared_rankings, "train", seed=seed)
    k = np.array([len(row["responses"]) for row in rows])
    possible, ordered = (k * (k - 1) // 2).sum(), len(recipes.ordered_pairs(rows))
    return k.mean(), possible / len(rows), 1 - ordered / possible


units = ("answers to a prompt", "pairs of a prompt", "share of pairs")
found = np.array(parallel.run(joblib.delayed(counted)(seed) for seed in range(seeds))).T  # (3, S)
for name, values, unit in zip(("answers", "pairs", "ties"), found, units, strict=True):
    results.number(f"ranking.{name}", t_interval(values), unit)
results.table()

# %% [markdown]
# ## 2. How often is an answer read?
#
# Now the two ways to use this ranking. *Shuffled*: every comparison becomes an item of its own, and all items of all
# prompts are shuffled. *Together*: the prompt with all of its answers is one item, and its loss is the mean over its
# comparisons. (The mean, so that a prompt with 36 pairs does not weigh six times as much as one with 6.)

# %%
shuffled = Counter(index for pair in pairs for index in pair)
print("answer    mean column    read when shuffled    read together")
for index in range(K):
    print(f"  {index}            {row['ranks'][index]:.2f}              {shuffled[index]}                  1")
assert sum(shuffled.values()) == 2 * len(pairs)
without_ties = Counter(index for pair in combinations(range(K), 2) for index in pair)
assert set(without_ties.values()) == {K - 1}  # in each of the K - 1 pairs with another one

# %% [markdown]
# Without ties it is $K - 1$ times against once, eight times for a ranking of nine. Reading is what training costs,
# since the loss itself is a handful of subtractions. So much for the work that is saved. What about overfitting?

# %% [markdown]
# ## 3. One step or K - 1?
#
# > **Predict.** The loss of a ranking is the mean of its pairs' losses. What is its gradient? And is it then not all
# > the same whether the pairs come together or one after the other?
#
# We take the SFT policy of step 1, give it a head, and let automatic differentiation answer. First all pairs of the
# ranking above in one loss; then every comparison alone, and the mean of these gradients.

# %%
policy, (_, tokenizer) = recipes.instruct_sft(*world, seed=0), recipes.base(size.rung)
judge = reward_model.from_language_model(policy, seed=0)


def score(response):
    """One score, through which gradients flow."""
    ids = reward_model.read(judge, tokenizer, row["prompt"], response, max_tokens=256)
    return judge(torch.tensor([ids])).logits[0, 0]


def gradient(loss):
    """The gradient in all weights, as one vector."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, judge.parameters())])


# %%
scores = torch.stack([score(response) for response in row["responses"]])  # (K,), each answer read once
together = gradient(reward_model.k_wise_loss(scores[None], torch.tensor([row["ranks"]])))
one_by_one = []
for i, j in pairs:  # two answers read for each comparison
    chosen, rejected = score(row["responses"][i])[None], score(row["responses"][j])[None]
    one_by_one.append(gradient(reward_model.pairwise_loss(chosen, rejected)))
print(f"{len(together):,} weights, norm of the gradient {together.norm():.3f}")
assert torch.allclose(together, torch.stack(one_by_one).mean(0), atol=1e-5)

# %% [markdown]
# The gradients agree. So *within one step* it makes no difference. But shuffled comparisons of a prompt do not meet in
# one step: the step that contains this prompt is one in the first case, and up to $\binom K2$ different ones in the
# second. By hand, with nothing but four scores that start at zero, ranked in their order, and steps of size 1:


# %%
def pair_gradient(scores, i, j):
    """Of the loss of one comparison in all scores: minus the doubt for the better one, plus the doubt for the other."""
    doubt = 1 / (1 + np.exp(scores[i] - scores[j]))
    change = np.zeros(len(scores))
    change[i], change[j] = -doubt, doubt
    return change


four = list(combinations(range(4), 2))  # the better one first
one_step = -np.mean([pair_gradient(np.zeros(4), i, j) for i, j in four], axis=0)
one_after_the_other = np.zeros(4)
for i, j in four:
    one_after_the_other -= pair_gradient(one_after_the_other, i, j)
print("one step for the ranking: ", one_step.round(2))
print("a step for each of six:   ", one_after_the_other.round(2))
assert np.allclose(one_step, [0.25, 1 / 12, -1 / 12, -0.25])

# %% [markdown]
# At the same learning rate the shuffled comparisons push these four answers several times as far apart, and always the
# same four. Little new is learned from the later pushes about what makes answers good: that the first answer is better
# than the second, and the second than the fourth, nearly tells that the first is better than the fourth. The
# comparisons of a prompt are *not independent*. A pass over shuffled pairs is one pass over pairs, but about $K - 1$
# passes over answers.

# %% [markdown]
# ## 4. Ties are dropped
#
# The loss has a term for each pair in which one answer is ranked higher, and divides by their number. A tie is in
# neither. By hand, three answers with scores 1, 0 and -0.5, in the columns 1, 3 and 3:

# %%
three, columns = torch.tensor([1.0, 0.0, -0.5], requires_grad=True), torch.tensor([[1.0, 3.0, 3.0]])
by_hand = (np.log1p(np.exp(-1.0)) + np.log1p(np.exp(-1.5))) / 2
loss = reward_model.k_wise_loss(three[None], columns)
loss.backward()
print("loss", round(loss.item(), 4), " gradient", three.grad.numpy().round(3))
assert np.isclose(loss.item(), by_hand)
assert np.allclose(three.grad[1:], [0.5 / (1 + np.exp(1.0)), 0.5 / (1 + np.exp(1.5))])

# %% [markdown]
# Each tied answer is pushed down by the better one, and by nothing else: what the model thinks of *their* order is left
# to it. (Exercises 1 and 2 are about two other ways to treat ties.) A prompt whose answers all stand in one column
# teaches nothing.

# %% [markdown]
# ## 5. The algorithm
#
# The presentation that this part of the course follows prints it as Algorithm 2: for each prompt, score $K$ responses,
# sum $-\log\sigmoid$ of the differences over all pairs, divide by $\binom K2$, update. Spelled out, with what is left
# open there:
#
# > **Input**: the SFT policy without its last layer; prompts, each with $K$ answers of that policy (4 to 9) and the
# > columns into which labelers sorted them (of several labelers, the mean column). > 1. Put a head with one output on
# > the trunk: the reward model $\rmodel$. 2. Pass over all prompts **once**, in random order, $B$ prompts a step:    1.
# > score all answers of the $B$ prompts, each **once**;    2. for each prompt, let $P$ be its pairs $(i, j)$ with
# > answer $i$ **ranked better** than $j$; ties are in no       $P$. Its loss is the mean of $-\log
# > \sigmoid\big(\rmodel(\prompt, \resp_i) - \rmodel(\prompt, \resp_j)\big)$       over $P$, so that without ties one
# > divides by $\binom K2$;    3. **one** step on the mean of the $B$ losses, at a rate that falls along a cosine to a
# > tenth (ours after a short warm-up). 3. Subtract from all scores the mean score of the labelers' demonstrations
# > (section 10).
#
# The paper takes 64 prompts a step, which is up to 2,304 comparisons. Which answer of a pair is the better one has to
# come from the ranking; as printed, over all pairs, the difference has no direction. In code, step 2 is
# `reward_model.train_on_rankings`. One step of it, at a rate of zero, shows the loss of the ranking above:

# %%
still = replace(recipes.RANKING, learning_rate=0.0)
(first_loss,) = reward_model.train_on_rankings(judge, tokenizer, [row], still, seed=0)
values = scores.detach().double().numpy()
by_hand = np.mean([np.log1p(np.exp(values[j] - values[i])) for i, j in pairs])
print(f"module {first_loss:.4f}, by hand {by_hand:.4f}")
assert np.isclose(first_loss, by_hand, atol=1e-4)

# %% [markdown]
# ## 6. The experiment
#
# Reward models on the trunk of the SFT policy, all fitted to the same rankings. They differ in what a step holds:
#
# - *whole prompts*: all pairs of the prompts in it, which is what InstructGPT does;
# - *shuffled pairs*, as many **answers** a step: what fits into the same memory. This is what one would do who has
#   never heard of the matter, and by section 3 it should overfit;
# - *shuffled, large steps*, as many **pairs** a step: the answers are read as often, but in as few steps as whole
#   prompts need;
# - *five passes* over whole prompts: about as many steps and readings as for shuffled pairs, but nothing is shuffled.
#
# These four share a learning rate, that of the book's reward models. In trials with another seed, and rankings by one
# labeler each, twice and four times that rate were no better for whole prompts. Shuffled pairs did better at lower
# rates, so there is a fifth training, *shuffled, lower rate*, at a fifth, the best of three that were tried. A step
# holds few prompts, four, since there are few rankings, and InstructGPT takes some hundreds of steps. All are tested on
# the way: the mean loss of a comparison on *held-out* rankings (other prompts, same policy, same crowd) and on some of
# the rankings they are *trained* on. (One more difference: shuffled pairs weigh a prompt by its number of comparisons,
# as the tested loss does, and whole prompts weigh all prompts alike. If anything, that favors shuffled pairs.)

# %%
RATE, LOWER_RATE = recipes.RANKING.learning_rate, 1e-4
PASSES = {  # name: (what a step is as large as, passes, learning rate)
    "whole prompts": ("prompts", 1, RATE),
    "shuffled pairs": ("answers", 1, RATE),
    "shuffled, large steps": ("pairs", 1, RATE),
    "whole prompts, five passes": ("prompts", 5, RATE),
    "shuffled, lower rate": ("answers", 1, LOWER_RATE),
}
jobs = [
    joblib.delayed(recipes.ranking_pass)(*world, size.compared_rankings, *how, TESTED, seed=seed)
    for how in PASSES.values()
    for seed in range(seeds)
]
finished = iter(parallel.run(jobs))
passes = {name: [next(finished) for _ in range(seeds)] for name in PASSES}


def curve(name, what):
    """One curve for each seed, (S, E)."""
    return np.array([run[what] for run in passes[name]])


# %%
lines = ["| | steps | answers read | seconds of one core |", "|---|--:|--:|--:|"]
for name, runs in passes.items():
    steps, read, seconds = (np.mean([run[what] for run in runs]) for what in ("steps", "read", "seconds"))
    lines.append(f"| {name} | {steps:,.0f} | {read:,.0f} | {seconds:.1f} |")
more = [b["read"] / a["read"] for a, b in zip(passes["whole prompts"], passes["shuffled pairs"], strict=True)]
results.number("cost.reads", t_interval(more), "answers read, shuffled pairs over whole prompts")
more = [b["seconds"] / a["seconds"] for a, b in zip(passes["whole prompts"], passes["shuffled pairs"], strict=True)]
results.number("cost.seconds", t_interval(more), "time of training, shuffled pairs over whole prompts")
Markdown("\n".join(lines) + "\n\n" + results.show("cost.reads", "cost.seconds").data)

# %% [markdown]
# ## 7. One pass, two ways
#
# > **Predict.** Draw the two losses, on rankings trained on and on held-out ones, along a pass over whole prompts. Then
# > along a pass over shuffled pairs. What would overfitting look like?


# %%
def draw_passes(names, alt, name):
    """The loss on held-out rankings and on those trained on, along the passes of these names."""
    figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.9), sharey=True)
    for axis, what, title in zip(axes, ("test", "train"), ("held-out rankings", "rankings trained on"), strict=True):
        for index, label in enumerate(names):
            share = curve(label, "share").mean(axis=0)
            plots.curve_with_band(axis, share, curve(label, what), label, index)
        axis.axhline(np.log(2), color="0.3", linestyle=":", linewidth=1.2, label="equal scores (log 2)")
        axis.set(xlabel="share of the training done", title=title, xlim=(0, 1.02))
    axes[0].set_ylabel("loss per comparison (nats)")
    handles = axes[0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(*handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 0.98), fontsize="small")
    ends = (f"{n}: {curve(n, 'test')[:, -1].mean():.3f} and {curve(n, 'train')[:, -1].mean():.3f}" for n in names)
    plots.show(figure, f"{alt} At the end, held out and trained on: {'; '.join(ends)}.", name=name)


SAME_RATE, OWN_RATE = list(PASSES)[:4], ["whole prompts", "shuffled, lower rate"]
draw_passes(SAME_RATE[:2], "Loss along one pass over whole prompts and over shuffled pairs.", "one_pass_two_ways")

# %% [markdown]
# Both read the same comparisons, each once. *Overfitting within one pass* has two signs: the loss on what was read
# falls far below the loss on what was not (the *gap*), and the held-out loss stops falling and rises again while there
# are still comparisons that the model has never seen. The rules, for the end of the pass, over seeds:
#
# - `shuffling_widens_the_gap`: the gap is wider after shuffled pairs than after whole prompts;
# - `shuffled_pairs_overfit_in_one_pass`: with shuffled pairs the held-out loss is higher at the end than it was in the
#   middle of the pass;
# - `kwise_batching_avoids_overfitting`: at the end both the held-out loss is higher and the gap wider after shuffled
#   pairs than after whole prompts. (Higher loss alone could also come from learning too little.)
#
# We expect all three, as the paper reports it.

# %%
end = {(name, what): curve(name, what)[:, -1] for name in PASSES for what in ("test", "train", "accuracy")}  # (S,)
keys = {name: name.replace(",", "").replace(" ", "_") for name in PASSES}
middle = np.abs(curve("shuffled pairs", "share") - 0.5).argmin(axis=1)  # (S,) which test was in the middle
halfway = curve("shuffled pairs", "test")[np.arange(seeds), middle]
gap = {name: end[name, "test"] - end[name, "train"] for name in PASSES}
for name, key in keys.items():
    results.number(f"loss.{key}", t_interval(end[name, "test"]), "nats per held-out comparison")
    results.number(f"gap.{key}", t_interval(gap[name]), "nats, held out minus trained on")
results.number("loss.shuffled_pairs_halfway", t_interval(halfway), "nats per held-out comparison")

# %%
results.state(
    "shuffling_widens_the_gap",
    better(gap["shuffled pairs"], gap["whole prompts"]),
    expect="better",
    text={
        "better": "After shuffled pairs the gap between held-out and training loss is wider, by {difference} nats.",
        "inconclusive": "Whether shuffled pairs widen the gap is inconclusive: {difference} nats.",
        "worse": "After shuffled pairs the gap is narrower: {difference} nats.",
    },
)
results.state(
    "shuffled_pairs_overfit_in_one_pass",
    better(end["shuffled pairs", "test"], halfway),
    expect="better",
    text={
        "better": "With shuffled pairs the held-out loss rises in the second half of the pass, by {difference} nats.",
        "inconclusive": "Whether with shuffled pairs the held-out loss rises in the second half of the pass is "
        "inconclusive: {difference} nats.",
        "worse": "With shuffled pairs the held-out loss still falls in the second half of the pass: {difference} nats.",
    },
)
results.show("shuffling_widens_the_gap", "shuffled_pairs_overfit_in_one_pass")

# %%
results.state(
    "kwise_batching_avoids_overfitting",
    rule(
        better(end["shuffled pairs", "test"], end["whole prompts", "test"]),
        better(gap["shuffled pairs"], gap["whole prompts"]),
    ),
    expect="holds",
    text={
        "holds": "All pairs of a prompt in one step overfit less: after one pass the held-out loss is "
        "{loss.whole_prompts} nats and the gap {gap.whole_prompts}, after shuffled pairs {loss.shuffled_pairs} and "
        "{gap.shuffled_pairs}.",
        "fails": "That whole prompts overfit less is not established: held-out loss {loss.whole_prompts} nats and gap "
        "{gap.whole_prompts}, after shuffled pairs {loss.shuffled_pairs} and {gap.shuffled_pairs}.",
    },
)
results.show("kwise_batching_avoids_overfitting")

# %% [markdown]
# ## 8. Is it the shuffling?
#
# Two more passes at the same rate take the cause apart. *Large steps* shuffle as well, and read every answer as often,
# but in as few steps as whole prompts need. *Five passes* do not shuffle at all, but take many steps on the same
# answers.
#
# > **Predict.** Which of these two will overfit?

# %%
draw_passes(SAME_RATE, "Loss along four trainings at one rate.", "is_it_the_shuffling")

# %% [markdown]
# The rule for `overfitting_comes_with_steps`: large steps end with a lower held-out loss than small steps over the same
# shuffled pairs, **and** five passes over whole prompts end with a higher one than a single pass. We expect it to hold:
# what overfits is many steps on the same answers, and to shuffle pairs is one way to get there.

# %%
results.state(
    "overfitting_comes_with_steps",
    rule(
        better(end["shuffled pairs", "test"], end["shuffled, large steps", "test"]),
        better(end["whole prompts, five passes", "test"], end["whole prompts", "test"]),
    ),
    expect="holds",
    text={
        "holds": "What overfits is many steps on the same answers. Shuffled pairs: {loss.shuffled_pairs} nats in small "
        "steps, {loss.shuffled_large_steps} in large ones. Whole prompts: {loss.whole_prompts} after one pass, "
        "{loss.whole_prompts_five_passes} after five.",
        "fails": "That it is the number of steps on the same answers is not established. Shuffled pairs: "
        "{loss.shuffled_pairs} nats in small steps, {loss.shuffled_large_steps} in large ones. Whole prompts: "
        "{loss.whole_prompts} after one pass, {loss.whole_prompts_five_passes} after five.",
    },
)
results.show("overfitting_comes_with_steps")

# %% [markdown]
# Can shuffled pairs be made to behave? By steps large enough to average over many prompts, perhaps, at the cost of as
# much reading as before. Or by a lower learning rate? Here they have one, and whole prompts keep theirs. And beside the
# loss stands what one usually looks at, the *accuracy*: on which share of the held-out comparisons is the better
# answer's score higher? For comparison, what "the longer one wins" reaches (the *audit*), and the *ceiling*: all
# labelers of this crowd value the same things (gold reward, and a little length), so on average no model can agree with
# their mean ranking more often than the order of that value does.

# %%
crowd = annotators.crowd("helpful-base")


def bounds(seed):
    """Of a seed's held-out comparisons, the share on which the longer answer won, and the one of more value."""
    pairs = recipes.ordered_pairs(recipes.ranked_answers(*world, TESTED, "test", seed=seed))
    value = crowd[0].utility
    ahead = [value(p["prompt"], p["chosen"]) - value(p["prompt"], p["rejected"]) for p in pairs]
    return np.mean([preferences.longer_wins(**p) for p in pairs]), np.mean((np.sign(ahead) + 1) / 2)


longer, ceiling = np.array(parallel.run(joblib.delayed(bounds)(seed) for seed in range(seeds))).T  # (S,) each
results.number("audit.longer_wins.rankings", t_interval(longer), "share of comparisons")
results.number("ceiling.rankings", t_interval(ceiling), "share of comparisons")
for name, key in keys.items():
    results.number(f"accuracy.{key}.rankings", t_interval(end[name, "accuracy"]), "share of comparisons")
results.table(*(f"accuracy.{key}.rankings" for key in keys.values()), "audit.longer_wins.rankings", "ceiling.rankings")

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8))
for index, name in enumerate(OWN_RATE):
    share = curve(name, "share").mean(axis=0)
    plots.curve_with_band(left, share, curve(name, "test"), name, index)
    plots.curve_with_band(right, share, curve(name, "accuracy"), name, index)
left.set(xlabel="share of the pass", ylabel="held-out loss (nats per comparison)", xlim=(0, 1.02))
left.legend(fontsize="small")
right.axhline(longer.mean(), color="0.3", linestyle="--", linewidth=1.2, label="the longer one wins")
right.axhline(ceiling.mean(), color="0.3", linestyle=":", linewidth=1.5, label="ceiling")
right.set(xlabel="share of the pass", ylabel="accuracy (share of comparisons)", xlim=(0, 1.02))
right.legend(*(items[2:] for items in right.get_legend_handles_labels()), fontsize="small")
figure.tight_layout()
words = "; ".join(f"{n}: {end[n, 'test'].mean():.3f} nats, {end[n, 'accuracy'].mean():.3f}" for n in OWN_RATE)
alt = f"""Held-out loss (left) and accuracy (right) along a pass over whole prompts and one over shuffled pairs at a
lower rate. At the end: {words}. The longer one wins {longer.mean():.3f} (dashed), the ceiling is {ceiling.mean():.3f}
(dotted)."""
plots.show(figure, alt, name="lower_rate")

# %% [markdown]
# The rules: whole prompts *end with a lower loss* than shuffled pairs at the lower rate, and *are more accurate*, over
# seeds. The paper reports much better validation accuracy and log loss, so we expect both, the second with some doubt:
# a model that overfits is first of all too sure of itself, which costs loss before it costs accuracy.

# %%
texts = {
    "better": "Also against shuffled pairs at a lower rate, whole prompts {0}: the difference is {{difference}}.",
    "inconclusive": "Whether whole prompts {0} than shuffled pairs at a lower rate is inconclusive: {{difference}}.",
    "worse": "Against shuffled pairs at a lower rate it is not whole prompts that {0}: {{difference}}.",
}
whole, apart = OWN_RATE
verdicts = {
    "kwise_lower_loss_than_at_lower_rate": (
        better(end[apart, "test"], end[whole, "test"]),
        "end with a lower held-out loss",
    ),
    "kwise_more_accurate_than_at_lower_rate": (
        better(end[whole, "accuracy"], end[apart, "accuracy"]),
        "end with a higher accuracy",
    ),
}
for key, (found, words) in verdicts.items():
    results.state(key, found, expect="better", text={name: text.format(words) for name, text in texts.items()})
results.show(*verdicts)

# %% [markdown]
# ## 9. The reward model of step 3, and people it has never met
#
# From here on all is about one reward model a seed, the one that step 3 will use: whole prompts, more of them, and two
# passes. (InstructGPT takes one pass, over some 33,000 prompts. We have far fewer, which is why we look at them twice;
# section 8 shows what many more passes do.) The labelers who ranked its training data agree only in part with one
# another, and other people might agree with it less. InstructGPT's authors tested both, and so do we. From here on
# verdicts are those of *single* labelers, so accuracies are not comparable with section 8's, where the mean of three
# had the word: *every* labeler of the training crowd ranks the held-out answers anew, and so does everyone of a second
# group, the *held-out* labelers, none of whose rankings any model is trained on. They have the same taste, a little
# less skill, and no weakness for long answers.


# %%
def ranked_by(labelers, rows, seed):
    """For each prompt the verdicts of all labelers on all its pairs, (L, P): 1 if the first answer is in the better
    column, -1 if the second is, 0 for a tie."""
    rng, verdicts = random.Random(f"again-{seed}"), []
    for row in rows:
        first, second = np.triu_indices(len(row["responses"]), 1)
        ranks = [annotators.columns(labeler, row["prompt"], row["responses"], rng) for labeler in labelers]
        verdicts.append(np.sign(np.array(ranks)[:, second] - np.array(ranks)[:, first]))
    return verdicts


def agreed(verdicts, others):
    """The share of comparisons on which two sides agree, where both have an order; each a list of (L, P) or (P,)."""
    products = np.concatenate([np.ravel(mine * theirs) for mine, theirs in zip(verdicts, others, strict=True)])
    return (products[products != 0] > 0).mean()


def with_one_another(verdicts):
    """The same for every two labelers of a group."""
    two = list(combinations(range(len(verdicts[0])), 2))
    return np.mean([agreed([v[a] for v in verdicts], [v[b] for v in verdicts]) for a, b in two])


# %%
def differences(rows, of_response):
    """For each prompt the sign of the difference of some value in all its pairs, (P,)."""
    found = []
    for row in rows:
        values = np.array([of_response(row["prompt"], response) for response in row["responses"]])
        first, second = np.triu_indices(len(values), 1)
        found.append(np.sign(values[first] - values[second]))
    return found


def by_model(judge, rows):
    """The scores of all answers, as a function of prompt and response."""
    texts = [(row["prompt"], response) for row in rows for response in row["responses"]]
    scores = reward_model.score(judge, tokenizer, *zip(*texts, strict=True)).tolist()
    known = dict(zip(texts, scores, strict=True))
    return lambda prompt, response: known[prompt, response]


# %%
GROUPS = {"training_labelers": crowd, "held_out_labelers": annotators.held_out_crowd()}


def judged(seed):
    """For each group: how often the model, length and the group's own values are right, and its labelers agree."""
    rows = recipes.ranked_answers(*world, TESTED, "test", seed=seed)
    judge = recipes.instruct_reward_model(*world, size.ranking_prompts, seed=seed)
    model, longer = differences(rows, by_model(judge, rows)), differences(rows, lambda _, response: len(response))
    found = {"gold": agreed(model, differences(rows, gold.helpfulness))}
    for name, group in GROUPS.items():
        verdicts = ranked_by(group, rows, seed)
        value = differences(rows, group[0].utility)
        found[name] = [agreed(verdicts, side) for side in (model, longer, value)] + [with_one_another(verdicts)]
    return found


judgments = parallel.run(joblib.delayed(judged)(seed) for seed in range(seeds))
right = {name: np.array([found[name] for found in judgments]).T for name in GROUPS}  # (4, S) each

# %%
for name, (model, longer_right, ceilings, agreement) in right.items():
    results.number(f"audit.longer_wins.{name}", t_interval(longer_right), "share of comparisons")
    results.number(f"accuracy.instruct.{name}", t_interval(model), "share of comparisons")
    results.number(f"ceiling.{name}", t_interval(ceilings), "share of comparisons")
    results.number(f"agreement.{name}", t_interval(agreement), "share of comparisons, of two labelers")
results.number("audit.gold_order.instruct", t_interval([found["gold"] for found in judgments]), "share of pairs")
lines = ["| | training labelers | held-out labelers |", "|---|--:|--:|"]
WHAT = {
    "two labelers agree": "agreement",
    "the longer one wins": "audit.longer_wins",
    "**reward model is right**": "accuracy.instruct",
    "ceiling": "ceiling",
}
for label, what in WHAT.items():
    lines.append(f"| {label} | " + " | ".join(f"{results.numbers[f'{what}.{g}']['value']:.3f}" for g in GROUPS) + " |")
for label, what in (("two labelers of InstructGPT agree", "agreement"), ("its reward model is right", "accuracy")):
    theirs = (f"{source_figure(f'instructgpt.{what}_{g}').value:.3f}" for g in GROUPS)
    lines.append(f"| {label} | " + " | ".join(theirs) + " |")
Markdown(
    "\n".join(lines)
    + "\n\n"
    + results.table(
        "accuracy.instruct.training_labelers", "agreement.training_labelers", "audit.gold_order.instruct"
    ).data
)

# %%
figure, axis = plt.subplots(figsize=(7.2, 3.8))
for offset, (group, (model, longer_right, ceilings, agreement)) in zip((-0.12, 0.12), right.items(), strict=True):
    for position, values in enumerate((longer_right, agreement, model, ceilings)):
        interval = t_interval(values)
        marker, face = ("o", "black") if offset < 0 else ("s", "white")
        label = group.replace("_", " ").replace("held out", "held-out") if not position else None
        axis.plot(position + offset, interval.value, marker, color="black", markerfacecolor=face, label=label)
        if interval.low is not None:
            axis.vlines(position + offset, interval.low, interval.high, color="black")
axis.axhline(0.5, color="0.3", linewidth=0.8)
axis.set_xticks(range(4), ["the longer\none wins", "two labelers\nagree", "reward model\nis right", "ceiling"])
axis.set(ylabel="share of comparisons")
axis.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
words = "; ".join(
    f"{g.replace('_', ' ')}: " + ", ".join(f"{v.mean():.3f}" for v in right[g][[1, 3, 0, 2]]) for g in right
)
alt = f"""Share of comparisons on which the longer answer wins, two labelers agree, the reward model is right, and the
ceiling, for training labelers (filled circles) and held-out labelers (open squares), with 95 % intervals where there
are several seeds. In this order, {words}. A thin line marks chance."""
plots.show(figure, alt, name="held_out_labelers")

# %% [markdown]
# (A ceiling above the agreement is no contradiction: two labelers both err, and a model need not.) The rule: the reward
# model is *better at the labelers it was trained by* if its accuracy on their comparisons is better than on those of
# held-out labelers. We expect so. InstructGPT's reward model loses about three points. Two causes are possible here:
# the training crowd has a weakness for long answers, which the model may have learned and held-out labelers do not
# share; and held-out labelers are a little less skilled, so that *every* judge agrees with them less. The second lowers
# the ceiling as well. So a second rule takes it out: the model *stays closer to the ceiling* of the labelers it was
# trained by, if its accuracy falls short of the ceiling by less there. We expect that too, with some doubt.

# %%
trained_by, others = (right[name][0] for name in GROUPS)
results.state(
    "better_at_training_labelers",
    better(trained_by, others),
    expect="better",
    text={
        "better": "The reward model is right about the labelers it was trained by more often than about others: "
        "{accuracy.instruct.training_labelers} against {accuracy.instruct.held_out_labelers}, by {difference}.",
        "inconclusive": "Whether the reward model is right about the labelers it was trained by more often than about "
        "others is inconclusive: {difference}.",
        "worse": "The reward model is right about held-out labelers more often than about those it was trained by: "
        "{difference}.",
    },
)
results.show("better_at_training_labelers")

# %%
short_of = [right[name][2] - right[name][0] for name in GROUPS]  # ceiling less accuracy, (S,) each
results.state(
    "closer_to_ceiling_of_training_labelers",
    better(short_of[1], short_of[0]),
    expect="better",
    text={
        "better": "It also falls further short of the ceiling with held-out labelers, by {difference}: noise alone "
        "does not explain the loss.",
        "inconclusive": "Whether it falls further short of the ceiling with held-out labelers is inconclusive: "
        "{difference}. Their noise alone may explain the loss.",
        "worse": "It falls less short of the ceiling with held-out labelers: {difference}.",
    },
)
results.show("closer_to_ceiling_of_training_labelers")

# %% [markdown]
# ## 10. The zero
#
# No comparison depends on the zero of the scores (*Reward models*, section 1), so training leaves it anywhere.
# InstructGPT adds a bias such that the labelers' *demonstrations* have mean 0. `reward_model.center` does that. Here it
# is done to the model of section 3, with its untrained head:

# %%
shown = recipes.best_demonstrations(50, "train", 0)
some = recipes.ordered_pairs(rankings[:20])
margins = np.array(reward_model.margins(judge, tokenizer, some))
before = reward_model.score(judge, tokenizer, *zip(*shown, strict=True))
reward_model.center(judge, tokenizer, *zip(*shown, strict=True))
after = reward_model.score(judge, tokenizer, *zip(*shown, strict=True))
print(f"mean before {before.mean():+.3f}, after {after.mean():+.3f}; the zero is at {judge.config.reward_zero:+.3f}")
results.state(
    "centering_changes_no_comparison",
    rule(
        bool(abs(after.mean()) < 1e-4),
        bool(np.allclose(margins, reward_model.margins(judge, tokenizer, some), atol=1e-4)),
        bool(torch.allclose(after, before - before.mean(), atol=1e-4)),
    ),
    expect="holds",
    sanity=True,
    text={
        "holds": "Centering takes the same number from every score: demonstrations average 0, no margin changes.",
        "fails": "Centering has changed a margin, or the demonstrations do not average 0.",
    },
)
results.show("centering_changes_no_comparison")

# %% [markdown]
# (The heads of language models have no bias, in the library that we use as in others, so the zero is kept in the
# model's configuration, is saved with it, and is subtracted by `reward_model.score`.)
#
# What is a zero good for, if it changes no comparison? In step 3 scores are no longer compared, they are *added up*:
#
# - The value function learns what score to expect. In our PPO its head starts at zero (InstructGPT's starts as a copy
#   of the reward model, so the two share a zero anyway), and a policy that starts near   demonstrations then starts
#   near the right value, instead of first having to learn a constant.
# - Many implementations replace the score of a response that was cut off at the length limit by a fixed number, such as
#   -1. Whether that is a punishment depends on the zero. (Ours subtracts a penalty instead, which does not.)
# - A score can be read: above zero is better than what people demonstrated, on average over prompts.
#
# It is *not* needed for the direction of the policy gradient: a constant that every response gets drops out of the
# advantages. And *one* zero cannot be right for every prompt. The loss leaves each prompt a zero of its own, and the
# bias shifts all of them alike.
#
# > **Predict.** Three kinds of answers to held-out prompts: demonstrations, the SFT policy's, the base model's. Where
# > will their mean scores lie, relative to zero?


# %%
def kinds(seed):
    """(score, gold reward) of demonstrations, SFT answers and base answers to held-out prompts, (N, 2) each; and the
    mean score of the demonstrations by which the zero was fixed."""
    judge = recipes.instruct_reward_model(*world, size.ranking_prompts, seed=seed)
    base, tokenizer = recipes.base(size.rung)
    demonstrations = recipes.best_demonstrations(TESTED, "test", seed)
    rows = recipes.ranked_answers(*world, TESTED, "test", seed=seed)
    prompts = [row["prompt"] for row in rows]
    ids = tokenizer(prompts)["input_ids"]
    texts = sample(base, ids, RLOOConfig().max_new_tokens, tokenizer.eos_token_id, seed).texts(tokenizer)
    of = {"demonstrations": demonstrations, "sft": [(row["prompt"], row["responses"][0]) for row in rows]}
    of["base"] = list(zip(prompts, texts, strict=True))
    fixed = recipes.best_demonstrations(recipes.NORMALIZING_PROMPTS, "train", seed)
    zero = reward_model.score(judge, tokenizer, *zip(*fixed, strict=True)).mean().item()
    scored = {
        kind: reward_model.score(judge, tokenizer, *zip(*pairs, strict=True)).numpy() for kind, pairs in of.items()
    }
    true = {kind: [gold.helpfulness(*pair) for pair in pairs] for kind, pairs in of.items()}
    return {kind: np.array([scored[kind], true[kind]]).T for kind in of}, zero


three_kinds, zeros = zip(*parallel.run(joblib.delayed(kinds)(seed) for seed in range(seeds)), strict=True)

# %%
KINDS = {"demonstrations": "demonstrations", "sft": "SFT policy", "base": "base model"}
means = {kind: np.array([found[kind].mean(axis=0) for found in three_kinds]) for kind in KINDS}  # (S, 2) each
for kind, values in means.items():
    results.number(f"score.{kind}", t_interval(values[:, 0]), "reward model's score, held-out prompts")
    results.number(f"gold.{kind}", t_interval(values[:, 1]), "gold reward, held-out prompts")
figure, axis = plt.subplots(figsize=(7.2, 3.8))
pooled = {kind: np.concatenate([found[kind][:, 0] for found in three_kinds]) for kind in KINDS}
bins = np.linspace(*np.percentile(np.concatenate(list(pooled.values())), [0.5, 99.5]), 31)
for index, (kind, label) in enumerate(KINDS.items()):
    weights = np.full(len(pooled[kind]), 1 / len(pooled[kind]))
    style = {"linestyle": plots.LINES[index], "color": plots.COLORS[index], "linewidth": 1.8}
    axis.hist(pooled[kind].clip(bins[0], bins[-1]), bins, weights=weights, histtype="step", label=label, **style)
axis.axvline(0, color="black", linewidth=1.2)
axis.set(xlabel="score (nats; 0 is the mean of the demonstrations trained with)", ylabel="share of answers")
axis.legend(fontsize="small")
words = ", ".join(f"{label} {means[kind][:, 0].mean():+.2f}" for kind, label in KINDS.items())
alt = f"""Histograms of the reward model's scores of three kinds of answers to held-out prompts; what lies beyond the
axis is shown at its ends. Mean scores: {words}. A line marks zero, the mean score of the training demonstrations."""
plots.show(figure, alt, name="the_zero")

# %% [markdown]
# (The SFT policy, from which the reward model starts, was trained on the very demonstrations that fix the zero, so new
# ones need not average exactly 0.) The rules. The zero *is where it should be* if the demonstrations by which it was
# fixed average 0 to three decimals (sanity). The reward model *puts the three kinds in order* if demonstrations score
# higher than SFT answers and these higher than base answers, over seeds. We expect that: by gold reward they come in
# this order, although no ranking held a demonstration or a base answer, and answers to different prompts are comparable
# only by chance of where each prompt's zero lies.

# %%
results.state(
    "demonstrations_average_zero",
    rule(max(map(abs, zeros)) < 1e-3),
    expect="holds",
    sanity=True,
    text={
        "holds": "The demonstrations by which the zero was fixed average 0.",
        "fails": "The demonstrations by which the zero was fixed do not average 0.",
    },
)
ordered = [better(means[a][:, 0], means[b][:, 0]) for a, b in (("demonstrations", "sft"), ("sft", "base"))]
results.state(
    "scores_in_order_of_kinds",
    rule(*ordered),
    expect="holds",
    text={
        "holds": "The reward model puts demonstrations ({score.demonstrations}) above SFT answers ({score.sft}), and "
        "these above base answers ({score.base}).",
        "fails": "That the reward model puts demonstrations ({score.demonstrations}) above SFT answers ({score.sft}), "
        "and these above base answers ({score.base}), is not established.",
    },
)
results.show("demonstrations_average_zero", "scores_in_order_of_kinds")

# %% [markdown]
# Last, the agreement with what the scores stand for. *Within prompts*: the correlation of score and gold reward among
# answers to the same prompt, each less its prompt's mean. *Between prompts*: the correlation of these means. The loss
# asks for the first. Nothing asks for the second.


# %%
def correlations(seed):
    """Of score and gold reward, within prompts and between the prompts' means."""
    rows = recipes.ranked_answers(*world, TESTED, "test", seed=seed)
    score = by_model(recipes.instruct_reward_model(*world, size.ranking_prompts, seed=seed), rows)
    means, rest = [], []
    for row in rows:
        both = np.array([[score(row["prompt"], r), gold.helpfulness(row["prompt"], r)] for r in row["responses"]])
        means.append(both.mean(axis=0))
        rest.append(both - both.mean(axis=0))
    return [np.corrcoef(np.array(values).T)[0, 1] for values in (np.concatenate(rest), means)]


# %%
found = np.array(parallel.run(joblib.delayed(correlations)(seed) for seed in range(seeds))).T  # (2, S)
for name, values in zip(("within", "between"), found, strict=True):
    results.number(f"correlation.{name}_prompts", t_interval(values), "correlation of score and gold reward")
results.state(
    "agrees_within_rather_than_between_prompts",
    better(*found),
    expect="better",
    text={
        "better": "Scores follow the gold reward within prompts ({correlation.within_prompts}) more closely than "
        "between prompts ({correlation.between_prompts}).",
        "inconclusive": "Whether scores follow the gold reward more closely within prompts "
        "({correlation.within_prompts}) than between ({correlation.between_prompts}) is inconclusive: {difference}.",
        "worse": "Scores follow the gold reward between prompts ({correlation.between_prompts}) more closely than "
        "within ({correlation.within_prompts}).",
    },
)
results.show("agrees_within_rather_than_between_prompts")

# %% [markdown]
# This matters in step 3: a policy cannot choose its prompts, so what a prompt adds to all of its answers is noise in
# the policy gradient and nothing else. A value function that has read the prompt takes it out again.

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The presentation *Training language models to follow instructions with human feedback*
# (2024) prints the loss of its Algorithm 2 over all pairs of responses, without saying which of two is the better one,
# and divides by $\binom K2$ whatever the ties. Section 5 restates it; a pair has a direction by its ranking, ties are
# left out of the sum, and of the number by which it is divided. The bias that fixes the zero is missing there.

# %% [markdown]
# ## Exercises
#
# **1.** Somebody codes a tie as a win of one of the two, drawn at random. What does that do to the gradient on average,
# when the model scores the two equally, and when it does not? What does it do in a single step?
#
# <details><summary>Hint</summary>
#
# The gradient in the better one's score is minus the doubt. Average it over the two winners.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With margin $d$ the gradient in the first score is $-\sigmoid(-d)$ or $+\sigmoid(d)$, on average
# $\sigmoid(d) - \tfrac12$. It vanishes at $d = 0$ and otherwise pulls the two scores together. In a single step it is
# never zero, though: about $\pm\tfrac12$ at $d = 0$, noise that dropping the tie would have spared. And if all pairs of
# a prompt come shuffled, the drawn winner is fixed once, and an overfitting model learns it by heart.
#
# </details>
#
# **2.** Instead, a tie counts one half for either side: $-\tfrac12 \log \sigmoid(d) - \tfrac12 \log \sigmoid(-d)$. Find
# its minimum. Is it better than dropping ties?
#
# <details><summary>Answer</summary>
#
# The minimum is at $d = 0$, with value $\log 2$, and the gradient is the average of exercise 1 without its noise. It
# uses what a tie tells: that the two seem close. Whether it helps depends on what a tie *is*. For one labeler, two
# answers in a column seem closer than a fifth of the range on that prompt. For three, equal means may also hide
# opposite opinions. In both cases the loss shrinks true differences towards zero, and differently on every prompt.
# Dropping ties loses information, but claims no equality. Davidson's model (1970), with a probability for ties, is the
# principled way; InstructGPT dropped them.
#
# </details>
#
# **3.** Nine answers, no ties, 64 prompts a step. How many comparisons is that, how many answers are read, and how many
# would be read if the pairs were taken one by one?
#
# <details><summary>Answer</summary>
#
# $64 \cdot 36 = 2304$ comparisons, the number in the paper. Read are $64 \cdot 9 = 576$ answers; one by one it would be
# 4,608, eight times as many.
#
# </details>
#
# **4.** Section 3 lets four scores move by six steps of size 1. Let the six comparisons come in another order. Do the
# scores end in the same place? Which sum stays the same whatever the order?
#
# <details><summary>Hint</summary>
#
# `four[::-1]`. What does one comparison add to one score, and take from the other?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Not in the same place: the doubt in each step depends on the steps before. The sum of the four scores stays zero,
# since what one comparison gives to the better answer it takes from the other. That is the free zero of section 10
# again.
#
# </details>
#
# **5.** Suppose that large steps over shuffled pairs did not overfit (section 8 shows whether). Someone concludes that
# to keep a prompt's pairs together is pointless. What is the answer to that, and how would you test whether anything
# but cost is left of the difference?
#
# <details><summary>Answer</summary>
#
# The table in section 6 is one answer: they read several times as many answers for the same comparisons. For the other
# question give both ways as many *seconds*: whole prompts then see several times as many prompts, and new prompts teach
# more than further looks at old answers. `size.compared_rankings` is the number to change, for one of them.
#
# </details>
#
# **6.** A reward model with its zero at the demonstrations gives an answer +0.4. Is it better than a demonstration?
#
# <details><summary>Answer</summary>
#
# Better than demonstrations are *on average over prompts*, in the eyes of this model. This prompt's own zero may lie
# elsewhere: the correlation between prompts shows how far to trust that. To know whether it is better than the
# demonstration for *its* prompt, score that demonstration too, and compare the two.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. (2022), *Training language models to follow instructions with human feedback* (InstructGPT), [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): sections 3.4 and 3.5, figure 12 for the columns, appendix C.2 for the settings.
# - Stiennon et al. (2020), *Learning to summarize from human feedback*, [arXiv 2009.01325](https://arxiv.org/abs/2009.01325): one pass over comparisons, and agreement of labelers.
# - Plackett (1975), *The analysis of permutations*, Applied Statistics 24: the model of rankings behind our labelers.
# - Davidson (1970), *On extending the Bradley-Terry model to accommodate ties in paired comparison experiments*, JASA
#   65.
# - Zhu et al. (2023), *Principled reinforcement learning with human feedback from pairwise or K-wise comparisons*, [arXiv 2301.11270](https://arxiv.org/abs/2301.11270): what all pairs of a ranking lose against its full likelihood.
