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
# # Reward in the prompt: two rewards
#
# **Can a policy follow two targets at once, when the two rewards disagree?**
#
# One number in the prompt says how good an answer should be. Whoever writes two, one for helpful and one for harmless,
# can ask for any mixture without training again, and that is the promise of the method: no weights to choose
# beforehand, as a single reward would need. But a policy learns from texts, and texts have the two rewards that they
# have. This notebook first works out by hand what the best possible policy does with a pair of targets that no text
# has, then trains a real one, and asks of each target how far the answers follow it.

# %% [markdown]
# ## What you will learn
#
# - what conditioning on two rewards means, and why some pairs of targets have no answer at all;
# - to see which part of the square of targets the training texts cover;
# - to tell the effect of a target on its own reward from its effect on the other one;
# - to take the correlation of two rewards apart: between kinds of prompts, and within a kind;
# - why a reward that mostly depends on the prompt is hard to follow.

# %% [markdown]
# ## What you should know
#
# How rewards are written into prompts and who gives them (*Reward in the prompt: labelling and formats*), what a policy
# does with one of them, and what its line chart says (*Reward in the prompt: one joint reward*).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5
backend = "local"  # "openai": a server that speaks OpenAI's language, such as `python -m rlhf_lab serve`, named by $OPENAI_BASE_URL

# %%
import math
from dataclasses import replace

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt
from scipy import stats
from scipy.spatial import KDTree

from rlhf_lab import claims, oracle, parallel, plots, recipes, reward_prompt, source_figures
from rlhf_lab.fine_tuning import backends
from rlhf_lab.profiles import Profile
from rlhf_lab.statistics import Interval, better, rule, t_interval
from rlhf_lab.tinyhh.knowledge import SortingTask, subject

size = Profile.load(profile)
address = backends.address(backend)
results = claims.Claims("52_two_rewards", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: the reward models, the labelled texts, the policies, the held-out
# prompts and their answers. It is the unit in which we count evidence, and square brackets hold 95 % intervals over
# seeds; where a number is about one policy only, its interval is Fisher's, over prompts, and the text says so. Rules
# stand above the cells that decide them and were fixed before the published run. What we expect is what
# the source, *Attempts to align language models by putting the reward in the prompt* (2023), concludes, even where
# trial runs with another seed had already spoken against it; where it concludes nothing, the text says why we expect
# what we do. One seed decides nothing, so the published verdict is then shown beside it.


# %%
SEEDS, REWARDS = range(seeds), recipes.SUBSETS  # "helpful", "harmless"
KINDS = {"helpful": "helpful prompts", "harmless": "harmful prompts"}  # the harmless data ask for what is harmful


def record(key, values, unit):
    """Record the interval over seeds of one number per seed, and hand the numbers back: (S,)."""
    results.number(key, t_interval(values), unit)
    return np.array(values)


def fisher(x, y):
    """Pearson's r of (N,) with Fisher's interval, and its p-value; what does not vary follows nothing: r = 0, p = 1."""
    if len(x) < 4 or not np.ptp(x) or not np.ptp(y):
        return Interval(0.0, None, None, reward_prompt.LEVEL, len(x), "prompt"), 1.0
    return reward_prompt.correlation(x, y)


def bracketed(interval):
    """As "0.40 [0.31, 0.49]"."""
    return f"{interval.value:.2f}" + ("" if interval.low is None else f" [{interval.low:.2f}, {interval.high:.2f}]")


def source(name):
    """A number of the source."""
    return source_figures.figure(f"reward_in_the_prompt.{name}").value


# %% [markdown]
# ## 1. Two lines in the prompt
#
# The format has a line for each reward, and the rest is as before. The rewards are probabilities, given by two
# reward models: one fitted to comparisons of helpfulness, the other to comparisons of harmlessness.

# %%
RUN = recipes.PromptedRun(size.rung, size.rung, size.judge_pairs, size.prompted_texts)  # one joint reward
TWO = replace(RUN, rewards=REWARDS)
question = "\n\nHuman: How do I keep my cat happy?\n\nAssistant:"
(asked,) = TWO.written.prompts([question], [[0.57, 0.314]])
print(asked)
print("\nread back:", TWO.written.read(asked))
assert TWO.written.lines(0.57, 0.314) == "Helpful reward: 57\nHarmless reward: 31"

# %% [markdown]
# What would the best possible policy do? With all data and no limits it becomes the data's own distribution, given the
# two lines: the texts whose helpful reward is $h$ and whose harmless reward is $s$, as frequent among themselves as
# they are in the data. Take eight texts, all equally frequent, with rewards that are either high (.8) or low (.2):
#
# | | harmless .2 | harmless .8 |
# |---|--:|--:|
# | **helpful .8** | 4 texts | none |
# | **helpful .2** | 1 text | 3 texts |
#
# By hand: asked for (.8, .2), the policy draws one of four texts, each with probability $1/4$. Asked for (.2, .8), one
# of three. Asked for (.8, .8), there is nothing to divide by: **an empty cell has no posterior**, and the training loss
# says nothing about what a policy does there. If each target is high or low by a coin of its own, a quarter of all
# requests fall into that cell. The correlation of the two rewards over the eight texts is
#
# $$ r = \frac{0 \cdot 1 - 4 \cdot 3}{\sqrt{4 \cdot 4 \cdot 3 \cdot 5}} = -.77 , $$
#
# the difference of the products of the table's diagonals, over the root of the product of its margins.

# %%
helpful = torch.tensor([0.8] * 4 + [0.2] * 4, dtype=torch.double)
harmless = torch.tensor([0.2] * 4 + [0.8] * 3 + [0.2], dtype=torch.double)
log_data = torch.full((8,), -math.log(8), dtype=torch.double)
for h in (0.8, 0.2):
    for s in (0.8, 0.2):
        try:  # given one reward, then given the other, too
            policy = oracle.posterior(oracle.posterior(log_data, helpful, h), harmless, s)
            drawn = policy.exp().numpy().round(2)
            print(f"asked for ({h}, {s}): draws {drawn}, KL to the data {oracle.kl(policy, log_data):.3f} nats")
            assert np.isclose(oracle.kl(policy, log_data), math.log(8 / (drawn > 0).sum()))
        except ValueError:
            print(f"asked for ({h}, {s}): no text, so no posterior")
r = np.corrcoef(helpful, harmless)[0, 1]
print(f"r = {r:.3f}")
assert np.isclose(r, -12 / math.sqrt(240))

# %% [markdown]
# A policy that is told the *helpful* reward only still moves the other one, since the texts carry it along. Given
# helpful .8 the mean harmless reward is .2; given helpful .2 it is $(3 \cdot .8 + .2)/4 = .65$. So "does asking for
# one lower the other?" has two parts: what the texts do, and what is left once both targets are given. In a policy that
# follows both, nothing is left.

# %%
alone = [oracle.expected_reward(oracle.posterior(log_data, helpful, h), harmless).item() for h in (0.8, 0.2)]
print("mean harmless reward, asked for helpful .8 and .2 alone:", np.round(alone, 2))
assert np.allclose(alone, [0.2, 0.65])

# %% [markdown]
# ## 2. Where are the training texts?
#
# Now the real data: both answers of comparisons that no reward model was fitted to, half of them on helpful prompts,
# half on harmful ones. The two reward models label all of them; each so also judges a kind of prompt that it was never
# fitted to.
#
# > **Predict.** Draw the unit square, helpful reward to the right, harmless reward upward. Where will the texts on
# > helpful prompts lie, where those on harmful ones, and which corners stay empty?

# %%
wanted = [(judge, seed) for judge in recipes.JUDGES for seed in SEEDS]
label = joblib.delayed(recipes.offline_rewards)
parallel.run(label(judge, size.rung, size.judge_pairs, size.prompted_texts, seed=seed) for judge, seed in wanted)
data = [np.array(recipes.prompted_data(TWO, seed)[1]) for seed in SEEDS]  # of (N, 2)
kinds = [np.array([row["subset"] for row in recipes.offline_texts(size.prompted_texts, seed)]) for seed in SEEDS]
print(f"{len(data[0]):,} texts in each of {seeds} sets; 1st and 99th percentiles in the first:")
for name, column in zip(REWARDS, data[0].T, strict=True):
    print(f"  {name:8} {np.percentile(column, [1, 99]).round(2)}")

# %% [markdown]
# Targets are drawn uniformly and independently, so they cover the square evenly. We call a target *uncovered* if no
# training text lies within .05 of it in both rewards, and count over the $100 \times 100$ targets that two digits can
# say. By hand: a single text at (.50, .50) covers $11 \times 11$ of them, so .9879 are uncovered.

# %%
DIGITS = np.stack(np.meshgrid(np.arange(100), np.arange(100), indexing="ij"), axis=-1) / 100  # (100, 100, 2)


def uncovered(rewards, width=0.05):
    """Whether a target that two digits can say, (100, 100), is without a training text within `width` in both."""
    distances, _ = KDTree(rewards).query(DIGITS.reshape(-1, 2), p=np.inf)
    return distances.reshape(100, 100) > width + 1e-9


assert np.isclose(uncovered([[0.5, 0.5]]).mean(), 1 - 121 / 10_000)
empty = [uncovered(rewards) for rewards in data]
record("targets.uncovered", [cells.mean() for cells in empty], "share of uniform targets, no training text within .05")
results.show("targets.uncovered")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), sharex=True, sharey=True, layout="constrained")
greys = []
for axis, (kind, words) in zip(axes, KINDS.items(), strict=True):
    rows = data[0][kinds[0] == kind]
    hexagons = dict(gridsize=40, extent=(0, 1, 0, 1), mincnt=1, linewidths=0.1)
    greys.append(axis.hexbin(*rows.T, **hexagons, cmap="Greys", bins="log"))
    axis.contour(*DIGITS.transpose(2, 0, 1), empty[0], levels=[0.5], colors=[plots.COLORS[0]], linestyles="--")
    axis.set(title=f"texts on {words}", xlabel="helpful reward (probability)", xlim=(0, 1), ylim=(0, 1), aspect="equal")
axes[0].set_ylabel("harmless reward (probability)")
top = max(grey.get_array().max() for grey in greys)
for grey in greys:  # one scale for both, as there is one bar
    grey.set_clim(0.5, max(2, top))
figure.colorbar(greys[0], ax=axes, label="texts in a hexagon (logarithmic)", shrink=0.8)
centers = "; ".join(
    f"{words} {h:.2f} and {s:.2f}" for kind, words in KINDS.items() for h, s in [data[0][kinds[0] == kind].mean(axis=0)]
)
alt = f"""Helpful and harmless rewards of the {len(data[0]):,} training texts of the first seed as a plane, one panel
for each kind of prompt. Mean helpful and harmless reward: {centers}. A dashed line encloses the targets that have a
training text of either kind within .05; {empty[0].mean():.0%} of the square lie outside."""
plots.show(figure, alt, name="two_rewards_training_texts")

# %% [markdown]
# Outside the dashed line the policy has read no pair of lines like the one that asks. That it says *something* there is
# certain; what, is not decided by the data. And the line encloses the texts of both kinds: a pair of targets that one
# panel has texts for may be outside of everything in the other.

# %% [markdown]
# ## 3. Does it follow both?
#
# The policy of two rewards is trained like that of one, on the same texts and for as many steps. It then answers
# held-out prompts, one answer each, half of them helpful and half harmful, with both targets uniform and independent.
# The policy of one joint reward (that of the last notebook) does the same with its single target.
#
# > **Predict.** Which of the two targets is followed more closely? Does asking for harmless answers make them less
# > helpful? And is one reward easier to follow than two?

# %%
wanted = [(run, seed) for run in (TWO, RUN) for seed in SEEDS]
at_once = -1 if address == "local" else 1  # a server trains one job at a time
train, answer = joblib.delayed(recipes.prompted_policy), joblib.delayed(recipes.prompted_answers)
parallel.run((train(run, address, seed=seed) for run, seed in wanted), at_once)
uniform = ((), "joint", "test", size.prompted_answers, address)  # no fixed targets
found = parallel.run((answer(run, *uniform, seed=seed) for run, seed in wanted), at_once)
found = [{name: np.array(column) for name, column in answers.items()} for answers in found]
two, one = found[:seeds], found[seeds:]
print(len(two[0]["prompts"]), "prompts;", *(f"{(two[0]['subsets'] == k).sum()} {words};" for k, words in KINDS.items()))

# %% [markdown]
# First the correlation of each target with the reward that it names.


# %%
def followed(name, chosen=lambda answers: slice(None)):
    """r of one of two targets with its actual reward, for each seed: (S,)."""
    k = REWARDS.index(name)
    return [fisher(a["targets"][chosen(a), k], a[name][chosen(a)])[0].value for a in two]


r_of = {name: record(f"r.separate.{name}", followed(name), "r, target and actual reward") for name in REWARDS}
table = ["| target | r, over seeds | r, first seed, over prompts | p-value | the source's r |", "|---|---|---|--:|---|"]
for k, name in enumerate(REWARDS):
    single, p = fisher(two[0]["targets"][:, k], two[0][name])
    low, high = source(f"r_separate_{name}_interval")
    theirs = f"{source(f'r_separate_{name}'):.2f} [{low:.2f}, {high:.2f}]"
    table.append(f"| {name} | {bracketed(t_interval(r_of[name]))} | {bracketed(single)} | {p:.1e} | {theirs} |")
Markdown("\n".join(table))

# %% [markdown]
# An r is one number for a whole curve, so here are the curves: mean actual reward by target, in bins of .05. Grey is
# where the training rewards lie, from the 1st to the 99th percentile.


# %%
def matched(seed, k):
    """How the answers of a seed follow one of their targets; None where they all have the same reward."""
    actual = two[seed][REWARDS[k]]
    return reward_prompt.matching(two[seed]["targets"][:, k], actual, data[seed][:, k]) if np.ptp(actual) else None


def pooled_line(k):
    """The line chart of the answers of all seeds."""
    targets, actual = (np.concatenate(v) for v in ([a["targets"][:, k] for a in two], [a[REWARDS[k]] for a in two]))
    return reward_prompt.line_chart(targets, actual)


matches = {name: [matched(seed, k) for seed in SEEDS] for k, name in enumerate(REWARDS)}
slopes = {name: [m.switch.slope.value for m in found if m and m.switch] for name, found in matches.items()}
for name in REWARDS:
    if slopes[name]:
        record(f"switch_slope.{name}", slopes[name], "slope beside the best switch, within the training rewards")
keys = [f"switch_slope.{name}" for name in REWARDS if slopes[name]]
results.table(*keys) if keys else print("Too few targets lie within the training rewards to look for a switch.")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.2), sharex=True, sharey=True, layout="tight")
shown = []
for k, (axis, name) in enumerate(zip(axes, REWARDS, strict=True)):
    low, high = np.percentile(data[0][:, k], [1, 99])
    axis.axvspan(low, high, color="0.92", label="1st to 99th percentile\nof training rewards")
    axis.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1, label="y = x")
    for match in filter(None, matches[name] if seeds > 1 else []):
        axis.plot(match.line.target, match.line.actual, color=plots.COLORS[k], linewidth=0.6, alpha=0.6)
    line = pooled_line(k)
    axis.plot(line.target, line.actual, color=plots.COLORS[k], marker=plots.MARKERS[k], label="answers")
    axis.set(title=f"{name} reward", xlabel="target", xlim=(0, 1), ylim=(0, 1))
    shown.append(
        f"{name} from {line.actual[0]:.2f} at {line.target[0]:.2f} to {line.actual[-1]:.2f} at {line.target[-1]:.2f}"
    )
axes[0].set_ylabel("mean actual reward (probability)")
axes[0].legend(fontsize="small", loc="upper left")
thin = " Thin lines are single seeds." if seeds > 1 else ""
alt = f"""Mean actual reward of the answers by target, in bins of .05, pooled over seeds ({seeds}): {"; ".join(shown)}.
Dashed: y = x. Shaded: the 1st to the 99th percentile of the training rewards of the first seed.{thin}"""
plots.show(figure, alt, name="two_rewards_lines")

# %% [markdown]
# (`switch_slope` takes out the jump of a switch and asks what slope is left: 0 for a policy that only knows "high" and
# "low", about 1 for one that does as it is told. It is measured within the shaded range; seeds with too few targets
# there are left out.)
#
# ### Own effects and cross effects
#
# Two targets can each act on two rewards. A regression of an actual reward on both targets tells these effects apart:
# the *own* effect, and the *cross* effect of the other target. We standardize, so that all of them are in standard
# deviations of the reward per standard deviation of the target. (The targets being independent, the own effect is about
# r.) By hand, with four answers:
#
# | target helpful | target harmless | actual helpful |
# |--:|--:|--:|
# | 0 | 0 | .5 |
# | 0 | 1 | .4 |
# | 1 | 0 | .7 |
# | 1 | 1 | .6 |
#
# Each step of the helpful target adds .2, each step of the harmless one takes .1 away. The targets have standard
# deviation .5, the reward $\sqrt{.0125} = .1118$; so the own effect is $.2 \cdot .5 / .1118 = .894$ and the cross
# effect $-.1 \cdot .5 / .1118 = -.447$. Their squares, .8 and .2, are the shares of the variance that each explains.


# %%
def effects(targets, actual):
    """Standardized effects (K,) of targets (N, K) on an actual reward (N,); 0 where the reward does not vary."""
    if not np.ptp(actual):
        return np.zeros(targets.shape[1])
    return np.linalg.lstsq(stats.zscore(targets), stats.zscore(actual), rcond=None)[0]


four = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
by_hand = effects(four, np.array([0.5, 0.4, 0.7, 0.6]))
print("own and cross:", by_hand.round(3), " squares:", (by_hand**2).round(2))
assert np.allclose(by_hand**2, [0.8, 0.2])

# %%
own, cross = {}, {}
for k, name in enumerate(REWARDS):
    of_seeds = np.array([effects(answers["targets"], answers[name]) for answers in two])  # (S, 2)
    other = REWARDS[1 - k]
    own[name] = record(f"own.{name}", of_seeds[:, k], f"sd of the {name} reward, per sd of the {name} target")
    cross[name] = record(f"cross.{name}", of_seeds[:, 1 - k], f"sd of the {name} reward, per sd of the {other} target")
results.table(*(f"{effect}.{name}" for name in REWARDS for effect in ("own", "cross")))

# %% [markdown]
# And the whole grid: the mean of each actual reward by both targets, in cells of .2 by .2, all seeds pooled. A policy
# that follows both would have the left panel change from left to right only, the right one from bottom to top only.

# %%
edges = np.linspace(0, 1, 6)
targets = np.concatenate([answers["targets"] for answers in two])
actual = [np.concatenate([answers[name] for answers in two]) for name in REWARDS]
grids = stats.binned_statistic_2d(*targets.T, actual, bins=[edges, edges]).statistic  # (2, 5, 5), nan where none
darkest, lightest = np.nanmax(grids) + 0.01, np.nanmin(grids) - 0.01
figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4), sharey=True, layout="constrained")
corners = []
for axis, name, means in zip(axes, REWARDS, grids, strict=True):
    image = axis.imshow(means.T, origin="lower", extent=(0, 1, 0, 1), cmap="Greys", vmin=lightest, vmax=darkest)
    for i, j in np.argwhere(np.isfinite(means)):
        color = "white" if means[i, j] > (darkest + lightest) / 2 else "black"
        axis.text((i + 0.5) / 5, (j + 0.5) / 5, f"{means[i, j]:.2f}", ha="center", va="center", color=color)
    axis.set(title=f"actual {name} reward", xlabel="helpful target")
    axis.grid(False)
    corners.append(f"{name} {means[4, 0]:.2f}, {means[0, 4]:.2f} and {means[4, 4]:.2f}")
axes[0].set_ylabel("harmless target")
figure.colorbar(image, ax=axes, label="mean actual reward (probability)", shrink=0.8)
alt = f"""Two grids of mean actual rewards over helpful target (across) and harmless target (upward), {len(targets):,}
answers of all seeds ({seeds}) pooled. At the corners "helpful alone high", "harmless alone high" and "both high":
{"; ".join(corners)}."""
plots.show(figure, alt, name="two_rewards_grid")

# %% [markdown]
# ### On which prompts?
#
# The reward model for helpful answers was never fitted to harmful prompts, nor the other one to helpful ones. So each r
# again, by the kind of prompt.

# %%
by_kind = [(name, kind) for name in REWARDS for kind in KINDS]
for name, kind in by_kind:
    key = f"r.separate.{name}.on_{KINDS[kind].replace(' ', '_')}"
    record(key, followed(name, lambda a, kind=kind: a["subsets"] == kind), f"r, {KINDS[kind]} only")
results.table(*(f"r.separate.{name}.on_{KINDS[kind].replace(' ', '_')}" for name, kind in by_kind))

# %% [markdown]
# ### The verdicts
#
# The rules: *both targets are followed* if the intervals over seeds of both r's and of both own effects lie above zero.
# (This asks whether each target has an effect on its own reward; how much, and whether more than a switch, the curves
# and `switch_slope` say. With independent targets r and own effect hardly differ.) *Helpful is followed more closely*
# if the r of the helpful target is better than that of the harmless one, seed by seed. *Asking for one lowers the
# other* if both cross effects lie below zero. We expect all three: the first two are the source's findings, the third
# is our reading of its two rewards being at odds, which it does not test. Where texts exist for both targets a perfect
# policy has no cross effects (section 1), so this would be a sign of uncovered pairs or of imperfect obedience, not by
# itself of a conflict.

# %%
zeros = np.zeros(seeds)
both = (
    "r {r.separate.helpful} and {r.separate.harmless}, own effects {own.helpful} and {own.harmless} (helpful, harmless)"
)
results.state(
    "both_targets_are_followed",
    rule(*(better(values[name], zeros) for values in (r_of, own) for name in REWARDS)),
    expect="holds",
    text={
        "holds": f"Both targets are followed, more or less closely: {both}.",
        "fails": f"That both targets are followed is not shown: {both}.",
    },
)
results.state(
    "helpful_is_followed_more_closely",
    better(r_of["helpful"], r_of["harmless"]),
    expect="better",
    text={
        "better": "The helpful target is followed more closely than the harmless one: r is larger by {difference}.",
        "inconclusive": "Which target is followed more closely is inconclusive: helpful minus harmless {difference}.",
        "worse": "The helpful target is followed less closely than the harmless one: r differs by {difference}.",
    },
)
results.show("both_targets_are_followed", "helpful_is_followed_more_closely")

# %%
costs = "harmless target on helpful reward {cross.helpful}, helpful target on harmless reward {cross.harmless}"
results.state(
    "asking_for_one_lowers_the_other",
    rule(*(better(zeros, cross[name]) for name in REWARDS)),
    expect="holds",
    text={
        "holds": f"Each target lowers the other reward, the other target being the same: {costs}.",
        "fails": f"That each target lowers the other reward is not shown: {costs}.",
    },
)
results.show("asking_for_one_lowers_the_other")

# %% [markdown]
# ### Is one reward easier?
#
# The source wished for a comparison of one joint reward with two separate ones. Both policies learn from the same
# texts, in the same number of steps; each is asked for what it was taught. The rule: *one reward is followed more
# closely* if the r of the joint policy is better than the mean of the two r's of the other. We expect it, because trial
# runs with another seed leaned that way clearly; the source's figures, below, lean slightly the other way, and it
# concludes nothing from them. A reason would be that two numbers are more to learn from the same texts, and that
# uniform targets for two ask for more combinations that no text has. But the rule compares r's of *different* rewards:
# they also differ in spread, and in how much the prompt decides (section 4). So "better" would not say that the number
# of rewards is the cause.

# %%
joint = [fisher(answers["targets"][:, 0], answers["joint"])[0].value for answers in one]
r_joint = record("r.joint", joint, "r, target and actual reward, policy of one joint reward")
mean_r = record("r.separate.mean", (r_of["helpful"] + r_of["harmless"]) / 2, "mean of the two r's")
results.state(
    "one_reward_is_followed_more_closely",
    better(r_joint, mean_r),
    expect="better",
    text={
        "better": "One joint reward is followed more closely than two: r {r.joint} against {r.separate.mean}.",
        "inconclusive": "Whether one joint reward is followed more closely than two is inconclusive: {difference} "
        "({r.joint} against {r.separate.mean} on average).",
        "worse": "One joint reward is followed less closely than two: r {r.joint} against {r.separate.mean}.",
    },
)
results.show("one_reward_is_followed_more_closely")

# %% [markdown]
# The source's own figures for the three, each from a run of its own (it draws no comparison from them):

# %%
separate = {f"{name}, of two": source(f"r_separate_{name}") for name in REWARDS}
theirs = {"one joint reward": source("r_joint")} | separate | {"mean of the two": np.mean(list(separate.values()))}
Markdown("The source: " + ", ".join(f"{name} {value:.2f}" for name, value in theirs.items()) + ".")

# %% [markdown]
# ## 4. Are the two rewards opposed?
#
# So far each reward was compared with its target. Now the two actual rewards of the same answers are compared with each
# other, whatever was asked. The source reports a strong negative correlation and takes it as the reason why not both
# can be had. The same is measured here for the training texts, which no policy wrote; and for the answers by the
# *gold* rewards, which no model has seen.
#
# (A reward that does not vary, such as gold harmlessness where all prompts are harmless, has no r; it counts as 0. An
# entry 0.00 [0.00, 0.00] is such a case: not measured, rather than measured to be zero.) A correlation over all prompts
# mixes two things. *Between kinds*: answers to helpful prompts may have a higher helpful and a lower harmless reward
# than those to harmful prompts, whatever the answer. *Within a kind*: of two answers to prompts of one kind, the more
# helpful may be the less harmless. The first is no choice of the policy's. The second still mixes prompts of one kind;
# the next notebook compares two answers to the *same* prompt. By hand: answers to two helpful prompts have rewards (.8,
# .2) and (.9, .3), those to two harmful ones (.2, .8) and (.3, .9). Over all four, r is $-.95$; within each kind it is
# $+1$.


# %%
def oppositions(helpful, harmless, kinds):
    """r of two rewards (N,): over all, on each kind of prompt, and within the kinds, their means taken out."""
    rows = np.stack([helpful, harmless])
    centered = rows.astype(float)
    for kind in KINDS:
        centered[:, kinds == kind] -= rows[:, kinds == kind].mean(axis=1, keepdims=True) if kind in kinds else 0.0
    by_kind = {f".on_{words.replace(' ', '_')}": rows[:, kinds == kind] for kind, words in KINDS.items()}
    parts = {"": rows} | by_kind | {".within_kinds": centered}
    return {name: fisher(*part)[0].value for name, part in parts.items()}


example = np.array([0.8, 0.9, 0.2, 0.3]), np.array([0.2, 0.3, 0.8, 0.9])
by_hand = oppositions(*example, np.array(["helpful", "helpful", "harmless", "harmless"]))
print({name or "over all": round(r, 2) for name, r in by_hand.items()}, "(a kind of two is too few for an r)")
assert round(by_hand[""], 2) == -0.95 and np.isclose(by_hand[".within_kinds"], 1)

# %% [markdown]
# > **Predict.** The sign of each: the training texts, the answers by the reward models, the answers by gold; each over
# > all prompts and on one kind.

# %%
MEASURED = {
    "r.helpful_vs_harmless": [(a["helpful"], a["harmless"], a["subsets"]) for a in two],
    "r.training_texts": [(*rewards.T, of_text) for rewards, of_text in zip(data, kinds, strict=True)],
    "r.gold": [(a["gold_helpful"], a["gold_harmless"], a["subsets"]) for a in two],
}
WHAT = dict(zip(MEASURED, ("answers", "training texts", "gold rewards of the answers"), strict=True))
opposed = {}
for key, columns in MEASURED.items():
    of_seeds = [oppositions(*column) for column in columns]
    for part in of_seeds[0]:
        opposed[key + part] = record(key + part, [r[part] for r in of_seeds], f"r of the two rewards, {WHAT[key]}")
table = ["| | all prompts | helpful prompts | harmful prompts | within kinds |", "|---|---|---|---|---|"]
for key in MEASURED:
    cells = [bracketed(t_interval(opposed[key + part])) for part in of_seeds[0]]
    table.append(f"| {WHAT[key]} | " + " | ".join(cells) + " |")
low, high = source("r_helpful_vs_harmless_interval")
table.append(f"| the source's answers | {source('r_helpful_vs_harmless'):.2f} [{low:.2f}, {high:.2f}] | | | |")
Markdown("\n".join(table))

# %%
figure, axes = plt.subplots(1, 3, figsize=(11.0, 4.0), layout="constrained")
some = slice(None, 4 * (size.prompted_answers // 2))  # of the training texts: as many as can be seen
for axis, (key, columns) in zip(axes, MEASURED.items(), strict=True):
    x, y, of_what = (column[some] for column in columns[0])
    for index, (kind, words) in enumerate(KINDS.items()):
        at, color = of_what == kind, plots.COLORS[index]
        face = "none" if index else color
        axis.scatter(
            x[at], y[at], s=14, marker=plots.MARKERS[index], facecolors=face, edgecolors=color, alpha=0.6, label=words
        )
    axis.set(
        title=f"{WHAT[key]}\nr = {opposed[key][0]:.2f}",
        xlabel="helpful reward (probability)",
        ylabel="harmless reward (probability)",
    )
    if key != "r.gold":
        axis.set(xlim=(0, 1), ylim=(0, 1))
axes[2].set(xlabel="gold helpfulness (points)", ylabel="gold harmlessness (points)")
figure.legend(*axes[0].get_legend_handles_labels(), ncols=2, loc="outside lower center")
words = ", ".join(f"{WHAT[key]} r = {opposed[key][0]:.2f}" for key in MEASURED)
alt = f"""Scatter of the harmless against the helpful reward, first seed, filled for helpful and hollow for harmful
prompts: {words}. Of the training texts {len(data[0][some]):,} are drawn."""
plots.show(figure, alt, name="two_rewards_opposed")

# %% [markdown]
# How far the kinds of prompts lie apart, in the answers' rewards (helpful prompts minus harmful prompts). If the two
# gaps have opposite signs, the kinds alone make for a negative r; if they have the same sign, they hide part of an
# opposition within the kinds.

# %%
for name in REWARDS:
    means = [{kind: a[name][a["subsets"] == kind].mean() for kind in KINDS} for a in two]
    gap = [mean["helpful"] - mean["harmless"] for mean in means]
    record(f"kind_gap.{name}", gap, f"{name} reward of answers, helpful minus harmful prompts")
results.table("kind_gap.helpful", "kind_gap.harmless")

# %% [markdown]
# The rule: *the actual rewards are opposed* if the interval over seeds of `r.helpful_vs_harmless` lies below zero. We
# expect that it holds. What lies within the kinds, and what gold says, stands beside it.

# %%
beside = (
    "within kinds of prompts {r.helpful_vs_harmless.within_kinds}, by the gold rewards of the same answers {r.gold}"
)
results.state(
    "actual_rewards_are_opposed",
    rule(better(zeros, opposed["r.helpful_vs_harmless"])),
    expect="holds",
    text={
        "holds": f"The two rewards of the answers are opposed: r {{r.helpful_vs_harmless}}; {beside}.",
        "fails": f"That the rewards of the answers are opposed is not shown: r {{r.helpful_vs_harmless}}; {beside}.",
    },
)
results.show("actual_rewards_are_opposed")

# %% [markdown]
# Where reward models and gold disagree, the conflict is partly the reward models'. The next notebook takes that up.
#
# ### What a target can move
#
# Why is one target followed and the other less? A policy does not choose the prompt, only the answer. So it can undo
# the differences between prompts only as far as their answers overlap in reward, and what a reward varies between
# answers to one prompt is all there is to learn from. The training texts come in twos, two answers to each prompt, so
# both can be measured:
#
# $$ \text{within-prompt share} = \frac{\E\big[(r_1 - r_2)^2 / 2\big]}{\Var(r)} , $$
#
# where $r_1, r_2$ are the rewards of the two answers and the variance is that over all texts. By hand: two prompts
# with rewards (.4, .6) and (.8, 1.0). The numerator is $.04/2 = .02$. The variance (over $n - 1$) is
# $.2/3 = .0667$. The share is .3.


# %%
def within_prompt_share(rewards):
    """The share of the variance of rewards (2P,), two answers to a prompt side by side, that lies within prompts."""
    first, second = rewards[::2], rewards[1::2]
    return ((first - second) ** 2).mean() / 2 / rewards.var(ddof=1)


assert np.isclose(within_prompt_share(np.array([0.4, 0.6, 0.8, 1.0])), 0.3)
for k, name in enumerate(REWARDS):
    record(f"spread.{name}", [rewards[:, k].std() for rewards in data], f"sd of the {name} reward, training texts")
    shares = [within_prompt_share(rewards[:, k]) for rewards in data]
    record(f"within_prompt_share.{name}", shares, f"share of the variance of the {name} reward, training texts")
    within = [np.sqrt(share) * rewards[:, k].std() for share, rewards in zip(shares, data, strict=True)]
    record(f"spread_within_prompt.{name}", within, f"sd of the {name} reward between answers to one prompt")
results.table(
    *(f"{what}.{name}" for what in ("spread", "within_prompt_share", "spread_within_prompt") for name in REWARDS)
)

# %% [markdown]
# Read these beside the r's of section 3: a reward with the larger spread between answers to one prompt has more lines
# to be told apart by and more room to move in. And the same two things in the policy's own answers: the share of each
# actual reward's variance that the kind of prompt explains, and the share that both targets explain together (R², of
# the regression above).

# %%
for name in REWARDS:
    explained, by_prompt = [], []
    for answers in two:
        varies, of_kind = np.ptp(answers[name]) > 0, (answers["subsets"] == "helpful").astype(float)
        fitted = stats.zscore(answers["targets"]) @ effects(answers["targets"], answers[name])
        explained.append(fitted.var() if varies else 0.0)
        by_prompt.append(fisher(of_kind, answers[name])[0].value ** 2)
    record(f"explained_by_targets.{name}", explained, f"share of the variance of the {name} reward of answers")
    record(f"explained_by_kind.{name}", by_prompt, f"share of the variance of the {name} reward of answers")
results.table(*(f"explained_by_{what}.{name}" for what in ("targets", "kind") for name in REWARDS))

# %% [markdown]
# What neither explains is left to chance (answers are drawn at temperature 1), to the prompt beyond its kind, and to
# effects of targets that are no straight line, or not the same on both kinds of prompts. What the policy has not
# learned is missing from the targets' share.
#
# ## 5. Read the answers
#
# One helpful prompt and one that deserves a refusal, of the first seed, each asked three ways. "High" and "low" are the
# 90th and the 10th percentile of the training rewards, so that each target for itself is an ordinary one.

# %%
low, high = np.percentile(data[0], [10, 90], axis=0).round(2)  # each (2,)
ASKED = {
    "helpful high, harmless low": (float(high[0]), float(low[1])),
    "helpful low, harmless high": (float(low[0]), float(high[1])),
    "both high": (float(high[0]), float(high[1])),
}
reads = min(40, size.prompted_answers)
jobs = [answer(TWO, asked, "joint", "test", reads, address, seed=0) for asked in ASKED.values()]
read = dict(zip(ASKED, parallel.run(jobs, at_once), strict=True))
gaps = {way: empty[0][min(99, round(100 * h)), min(99, round(100 * s))] for way, (h, s) in ASKED.items()}
for way, asked in ASKED.items():
    print(f"{way:27} {TWO.written.lines(*asked)!r}", "no training text within .05" if gaps[way] else "")

# %%
first = read["both high"]
plain = [p.count("Human:") == 1 and not isinstance(subject(p), SortingTask) for p in first["prompts"]]  # one turn
table = ["| asked for | answer | helpful | harmless | gold helpful | gold harmless |", "|---|---|--:|--:|--:|--:|"]
SHOWN = ("helpful", "harmless", "gold_helpful", "gold_harmless")
for kind in KINDS:
    i = next(i for i, subset in enumerate(first["subsets"]) if subset == kind and plain[i])
    said = " ".join(first["prompts"][i].removesuffix("Assistant:").split()).removeprefix("Human: ")
    table.append(f"| | **{said}** | | | | |")
    for way, answers in read.items():
        values = " | ".join(f"{answers[name][i]:.2f}" for name in SHOWN)
        table.append(f"| {way} | {' '.join(answers['responses'][i].split())} | {values} |")
Markdown("\n".join(table))

# %% [markdown]
# Two prompts are two prompts. The means over a few dozen of the same kind, one policy, no intervals:

# %%
table = ["| prompts | asked for | helpful | harmless | gold helpful | gold harmless |", "|---|---|--:|--:|--:|--:|"]
for kind, words in KINDS.items():
    for way, answers in read.items():
        at = np.array(answers["subsets"]) == kind
        values = " | ".join(f"{np.array(answers[name])[at].mean():.2f}" for name in SHOWN)
        table.append(f"| {at.sum()} {words} | {way} | {values} |")
Markdown("\n".join(table))

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** (1) In the source's code the function that evaluates one prompt of a policy of two rewards
# takes a formatter and then uses a *global* variable of another name; when the online training imports the function,
# that name does not exist and it stops with a `NameError`. (2) Both of its evaluation programs write targets into
# prompts without the scaling that training had applied (unless that one run was not scaled). A target of .8 would then
# be read as .8 standard deviations above the mean. (3) The table of maximization calls its row of behavioral cloning
# "helpful and harmless", while the code imitates chosen helpful texts only. (4) In its study of sample size the source
# sees an effect of both targets only at twice 50,000 texts and gives no p-values, though its code computes them. But in
# its chart the line for harmless stands above zero at 50,000 already. Recomputed over 500 prompts, for harmless within
# a hundredth of what is read off, and last for helpful:

# %%
mean, sd = source("helpful_rewards_mean"), source("helpful_rewards_sd")
scale = reward_prompt.Normalizer("standard", (mean, sd))
print("(2) unscaled, targets 0, .8 and 1 ask for", scale.inverse([0, 0.8, 1.0]).round(2), "in the reward's own unit")
ends = source("helpful_line_first"), source("helpful_line_highest")
print(
    f"    its chart of the helpful policy: actual rewards {ends[0]} to {ends[1]}, mean of training rewards {mean:.2f}"
)


def p_value(r, n):
    """Of no correlation, by Student's t with n - 2 degrees of freedom."""
    return 2 * stats.t.sf(abs(r) * math.sqrt((n - 2) / (1 - r**2)), n - 2)


read_off, other = source("r_separate_harmless_50k"), source("r_separate_helpful_50k")
for r in (read_off - 0.01, read_off, read_off + 0.01, other):
    print(f"(4) r = {r:.2f} with n = 500: p = {p_value(r, 500):.4f}")
assert round(p_value(0.12, 500), 3) == 0.007  # by hand

# %% [markdown]
# On (2): a policy that reads .8 as .8 standard deviations cannot be asked for anything below the mean. Where a
# published line chart reaches well below it, as that of the helpful policy does (the second line above), the run behind
# it was scaled as it should be, or never scaled at all. On (4): a single test at the .05 level calls it significant,
# wherever within the reading error it lies. It is one of ten, five sizes for two rewards, and by Bonferroni's
# correction each has to stay below .005: that cannot be said from a figure that is read off to a hundredth. Whoever
# speaks of significance should say which of the two is meant, and print the p-value.

# %% [markdown]
# ## Exercises
#
# **1.** Add a ninth text to section 1, with rewards (.8, .8), and suppose that it is written once in a thousand texts.
# What does the ideal policy do when asked for (.8, .8)? What is its KL to the data, and what will a policy do that is
# trained on a hundred texts?
#
# <details><summary>Hint</summary>
#
# The KL of a posterior to the data is minus the logarithm of the share of the data that it keeps.
#
# </details>
#
# <details><summary>Answer</summary>
#
# It says that text and nothing else, at a KL of $\log 1000 = 6.91$ nats. A hundred texts lack it with probability
# $.999^{100} = .905$. Then the cell is as empty as before: the *data*, not the language, have to hold what
# is asked for.
#
# </details>
#
# **2.** Someone asks with equal targets only, (.1, .1), (.2, .2) and so on, and reports an r for each. Can own and
# cross effects be told apart? What does the cell with `effects` give for such targets?
#
# <details><summary>Answer</summary>
#
# No: the two columns are the same, so only the *sum* of own and cross effect is determined. Least squares of smallest
# norm, which `numpy.linalg.lstsq` takes, gives half of it to each. Targets have to vary independently, as they do here.
#
# </details>
#
# **3.** Suppose the prompt decides 60 % of the variance of an actual reward, and targets are drawn independently of
# prompts. What is the largest r that a policy can reach? And the largest own effect?
#
# <details><summary>Hint</summary>
#
# Squares of correlations with independent causes add up to at most 1.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $r^2 \le .4$, so $r \le .632$; the standardized own effect has the same bound. A policy without that handicap may be
# no better at following, so compare r's between rewards with care; `explained_by_kind` says how much the kind of prompt
# takes. (The 60 % are those of the policy's answers, an outcome and no law: a policy that follows better has a smaller
# share.)
#
# </details>
#
# **4.** Of 500 answers, r of target and reward is .10 in each of five runs. Is that significant in one run? In the
# five together, if they are independent?
#
# <details><summary>Answer</summary>
#
# In one: $t = .10 \sqrt{498 / .99} = 2.24$, p = .025. Together: Fisher's transform is $\operatorname{artanh}(.10) =
# .1003$ with standard error $1/\sqrt{497} = .0449$ each, so the mean has .0201 and $z = 5.0$, p below $10^{-6}$. But
# that speaks of these five policies. About the *method*, the unit is the run: five equal values have no spread at all,
# and real ones, such as ours, have the interval that section 3 prints.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - [*Attempts to align language models by putting the reward in the prompt*](https://github.com/thejaminator/prompt_reward_rl)
#   (2023): the source; its experiment with two rewards.
# - Schmidhuber (2019), *Reinforcement learning upside down*, [arXiv 1912.02875](https://arxiv.org/abs/1912.02875):
#   commands as inputs of a policy.
# - Chen et al. (2021), *Decision transformer*, [arXiv 2106.01345](https://arxiv.org/abs/2106.01345): returns as inputs,
#   and what happens beyond those in the data.
# - Dong et al. (2023), *SteerLM*, [arXiv 2310.05344](https://arxiv.org/abs/2310.05344): several attributes in the
#   prompt, at scale.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*,
#   [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): the tension between the two, and its data.
