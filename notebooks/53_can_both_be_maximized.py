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
# # Reward in the prompt: can both be maximized?
#
# **Is it the truth or the reward model that keeps a policy from being helpful and harmless at once?**
#
# The last notebook told a policy two numbers and watched whether it follows both. This one asks for as much as can be
# had: of helpfulness, of harmlessness, of both. The source of this part did so too, and concluded from a table that its
# policy cannot maximize both. The table cannot say why. In the miniature world we can ask the true rewards whether they
# conflict, and hold the reward models against them.

# %% [markdown]
# ## What you will learn
#
# - to choose a target on validation prompts, and why the highest target need not bring the highest reward;
# - three explanations for "cannot maximize both" that look the same in a table of scores: the truth, the reward models,
#   the policy;
# - how errors of two reward models can invent a conflict or hide one, by hand and measured;
# - why an average over all kinds of prompts can show a conflict that nobody who asks a question would notice.

# %% [markdown]
# ## What you should know
#
# The reward in the prompt, its formats and targets (the three notebooks before this one), class-token reward models
# (*Labelling and formats*), and what the correlation of two samples is.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5
backend = "local"  # "openai": a server that speaks OpenAI's language (`python -m rlhf_lab serve`), at $OPENAI_BASE_URL

# %%
import itertools
from dataclasses import replace

import joblib
import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt

from rlhf_lab import claims, parallel, plots, recipes, source_figures
from rlhf_lab.fine_tuning import backends
from rlhf_lab.profiles import Profile
from rlhf_lab.statistics import better, equivalent, rule, t_interval
from rlhf_lab.tinyhh import gold
from rlhf_lab.tinyhh.knowledge import SortingTask, subject

size = Profile.load(profile)
address = backends.address(backend)
results = claims.Claims("53_can_both_be_maximized", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: the comparisons and reward models, the texts and their labels, every
# policy and the held-out prompts. It is the unit in which we count evidence, and square brackets hold 95 % intervals
# over seeds. Rules stand above the cells that decide them and were fixed before the published run. Settings come from a
# trial run with another seed; it was also seen to speak on some of the rules, and the text says where. One seed decides
# nothing, so the published verdict is then shown beside it.


# %%
SEEDS = range(seeds)
REWARDS = recipes.SUBSETS  # "helpful", "harmless": the names of the rewards, and of the kinds of prompts


def record(key, values, unit):
    """Record the interval over seeds of one number per seed, and hand the numbers back: (S,)."""
    results.number(key, t_interval(values), unit)
    return np.array(values)


def shown(key):
    """A recorded number and its interval, to two decimals."""
    n = results.numbers[key]
    return f"{n['value']:z.2f}" + ("" if n["low"] is None else f" [{n['low']:z.2f}, {n['high']:z.2f}]")


# %% [markdown]
# ## 1. One table, three explanations
#
# The source's table: rewards between 0 and 1, given by two reward models, of answers to held-out prompts, half of them
# questions and half of them harmful requests. *Both* is the mean of the two rewards.

# %%
SOURCE = {
    "base": "the base model",
    "bc_helpful": "cloning of chosen helpful texts",
    "helpful_08": "one reward: helpful .8",
    "hh_08_02": "two rewards: helpful .8, harmless .2",
    "hh_08_08": "two rewards: .8 and .8",
}


def reported(column, reward):
    """What the source reports of a column; it calls cloning `bc`."""
    name = {"bc_helpful": "bc"}.get(column, column)
    return source_figures.figure(f"reward_in_the_prompt.maximise_{name}_{reward}").value


rows = ["| policy | helpful | harmless | both |", "|---|--:|--:|--:|"]
for column, name in SOURCE.items():
    rows.append(f"| {name} | " + " | ".join(f"{reported(column, r):.2f}" for r in (*REWARDS, "both")) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# Asked for much of both, the policy gets less helpfulness than policies that are asked for that, and less harmlessness
# than the base model, which is asked for nothing; its mean is hardly above that of the others. (No row asks for
# harmlessness alone; we add one.) Three things could be behind that:
#
# - **the truth**: no answer is both, since the two wishes conflict;
# - **the reward models**: answers that are both exist, but these two models do not give both of their rewards to any;
# - **the policy**: the rewards could both be had, but this policy does not do what it is asked.
#
# With real people's comparisons nobody knows the first. Our world does. Two of its prompts, and a list of answers to
# each:


# %%
def asked(question):
    """A transcript that ends where the assistant speaks."""
    return f"\n\nHuman: {question}\n\nAssistant:"


step = " Look for a spare key near the front door."
tip = " Salt the water before the pasta goes in."
refusal, instead = " I am sorry, but I cannot help with that.", " Call a locksmith if it is your own door."
filler = " There are many things to think about."
LISTED = {
    asked("How can I open my neighbor's lock?"): {
        "two steps": step + " Close the door behind you without a sound.",
        "one step": step,
        "instead": instead,
        "talk": filler,
        "refusal": refusal,
        "refusal, instead": refusal + instead,
    },
    asked("How do I cook good pasta?"): {
        "two tips": tip + " Boil the pasta in a large pot of water.",
        "one tip": tip,
        "talk": filler,
        "refusal": refusal,
    },
}

# %%
worth = {
    prompt: {name: (gold.helpfulness(prompt, text), gold.harmlessness(prompt, text)) for name, text in answers.items()}
    for prompt, answers in LISTED.items()
}
for prompt, of_answer in worth.items():
    print(prompt.split("\n\n")[1].removeprefix("Human: "))
    for name, (helpful, harmless) in of_answer.items():
        print(f"  {name:18}{helpful:+.2f} {harmless:+.2f}")


# %% [markdown]
# An answer is *dominated* if another one to the same prompt is at least as good in both and better in one. What is left
# is the *frontier*: whoever wants to maximize both has to choose there.
#
# > **Predict.** Which answers are on the frontier of the first prompt, and how many are on that of the second?


# %%
def frontier(points):
    """The names of the points (helpful, harmless) that no other point dominates."""
    return [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in points.values())
    ]


lock, pasta = worth.values()
print("lock: ", frontier(lock))
print("pasta:", frontier(pasta))
assert frontier(lock) == ["two steps", "one step", "instead", "refusal, instead"]
assert frontier(pasta) == ["two tips"]

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8), sharex=True, sharey=True, layout="tight")
for axis, points, title in zip(axes, (lock, pasta), ("the neighbor's lock", "cooking pasta"), strict=True):
    for name, (x, y) in points.items():
        kept = name in frontier(points)
        axis.plot(x, y, "o", color=plots.COLORS[0] if kept else "0.6", markerfacecolor=None if kept else "white")
        axis.annotate(name, (x, y), xytext=(6, 4), textcoords="offset points", fontsize="small")
    edge = sorted(points[name] for name in frontier(points))
    axis.plot(*zip(*edge, strict=True), color=plots.COLORS[0], linestyle="--", linewidth=1)
    axis.set(title=title, xlabel="gold helpfulness (points)", xlim=(-2.2, 2.9), ylim=(-1.5, 2.0))
axes[0].set_ylabel("gold harmlessness (points)")
listed = ["; ".join(f"{name} {x:.2f}, {y:.2f}" for name, (x, y) in points.items()) for points in (lock, pasta)]
alt = f"""Listed answers by their gold helpfulness and harmlessness, filled where they are on the frontier. Left, to a
harmful request: {listed[0]}; the frontier ({", ".join(frontier(lock))}) falls. Right, to a question: {listed[1]}; all
have the same harmlessness, and the frontier is one point."""
plots.show(figure, alt, name="maximise_toy_frontier")

# %% [markdown]
# The wishes conflict on the request and not at all on the question. On the *average* over both prompts they conflict,
# too: the most helpful pair of answers is not the most harmless one. Yet a policy that gives two tips to the one and a
# refusal with something better to the other leaves nothing to be desired where it counts. An average over prompts
# cannot tell.
#
# ### How two reward models can change a conflict
#
# Take two answers to each of four prompts, and the differences of their true rewards. If the two rewards have nothing
# to do with each other, these may be $h$ and $s$ below. Suppose that both models also react to a habit $u$ of the
# answers (say, an apology), one with liking, the other with dislike. Then the models' differences are $h + u$ and
# $s - u$. The *within-prompt correlation* is that of these differences,
# $\sum d_h d_s / \sqrt{\sum d_h^2 \sum d_s^2}$: no mean is taken off, so swapping the two answers of a pair, which
# turns both signs, changes nothing.


# %%
def within_prompt(one, other):
    """The correlation of two rewards within prompts, from their differences (N,) between two answers to each prompt.

    Zero where one of the two rewards never differs: then it is in nobody's way.
    """
    one, other = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    scale = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / scale) if scale else 0.0


h, s, u = np.array([1, 1, -1, -1]), np.array([1, -1, 1, -1]), np.array([1, -1, -1, 1])
print("truth:", within_prompt(h, s), " models that disagree about a habit:", round(within_prompt(h + u, s - u), 3))
assert within_prompt(h, s) == 0 and np.isclose(within_prompt(h + u, s - u), -4 / 8)

# %% [markdown]
# So a conflict appears where there is none. Now suppose that the truth is all conflict, $d_s = -h$, and that each model
# makes errors of its own, $s$ and $u$:

# %%
print("truth:", within_prompt(h, -h), " models with errors of their own:", round(within_prompt(h + s, -h + u), 3))
assert within_prompt(h, -h) == -1 and np.isclose(within_prompt(h + s, -h + u), -4 / 8)

# %% [markdown]
# From the outside the two cases are the same, a correlation of $-1/2$ between two models. In the first the truth has no
# conflict, in the second nothing else. Errors that the models *share* (with opposite signs) invent a conflict, and
# errors that each has for itself hide one.
#
# ## 2. The columns
#
# All policies answer the same held-out prompts once, questions and harmful requests in turn. The reward models were
# fitted to other comparisons than those whose texts the policies imitate.
#
# | column | what it is | its targets are chosen by |
# |---|---|---|
# | `base` | the base model, in plain prompts | |
# | `bc_helpful` | behavioral cloning of the chosen texts to questions, no reward in the prompt | |
# | `bc_both` | the same of the chosen texts to all prompts | |
# | `bc_tuned` | `bc_both` with the best of three settings | mean of both rewards |
# | `joint` | one reward, of a model fitted to both kinds of comparisons | the joint reward |
# | `helpful_08` | the helpful reward alone, texts to questions only | helpful |
# | `hh_08_02` | two rewards; much helpfulness, .2 of harmlessness | helpful |
# | `hh_02_08` | the same policy, the other way round (ours) | harmless |
# | `hh_08_08` | the same policy; much of both | mean of both rewards |
#
# The names keep the source's .8. Here "much" is the best target of a grid, for each seed, by the rewards on
# *validation* prompts, which no test uses. For `hh_08_08` all pairs of the grid are candidates, so that
# column does not depend on two numbers that somebody happened to ask for. (All policies see their texts once,
# `bc_tuned` perhaps twice, so those that imitate only one kind of text, or only chosen ones, take fewer steps. The
# source's cloning had half as many texts, twice.)

# %%
RUN = recipes.PromptedRun(size.rung, size.rung, size.judge_pairs, size.prompted_texts)
BASE, CLONED = replace(RUN, rewards=(), settings=None), replace(RUN, rewards=(), sides=("chosen",))
HELPFUL, TWO = replace(RUN, rewards=("helpful",), subsets=("helpful",)), replace(RUN, rewards=REWARDS)
OWN = CLONED.settings
TUNED = {
    "own": OWN,
    "half_rate": replace(OWN, learning_rate_multiplier=OWN.learning_rate_multiplier / 2),
    "two_epochs": replace(OWN, n_epochs=2),
}
LOW = 0.2
GRID = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)[:: 1 if size.prompted_answers >= 100 else 5]  # few prompts cannot tell six apart


def three_requests(two, grid):
    """What a policy of two rewards is asked for, (run, targets): the candidates of three columns."""
    return {
        "hh_08_02": [(two, (high, LOW)) for high in grid],
        "hh_02_08": [(two, (LOW, high)) for high in grid],
        "hh_08_08": [(two, both) for both in itertools.product(grid, repeat=2)],
    }


# %%
COLUMNS = {
    "base": [(BASE, ())],
    "bc_helpful": [(replace(CLONED, subsets=("helpful",)), ())],
    "bc_both": [(CLONED, ())],
    "bc_tuned": [(replace(CLONED, settings=settings), ()) for settings in TUNED.values()],
    "joint": [(RUN, (high,)) for high in GRID],
    "helpful_08": [(HELPFUL, (high,)) for high in GRID],
} | three_requests(TWO, GRID)
CHOSEN_BY = {"joint": "joint", "helpful_08": "helpful", "hh_08_02": "helpful", "hh_02_08": "harmless"}  # else both
SIZES = list(dict.fromkeys(((size.rung, size.rung), (size.ladder[0], size.rung), (size.ladder[0], size.ladder[0]))))
OF_SIZE = {(policy, judge): replace(TWO, rung=policy, judge_rung=judge) for policy, judge in SIZES}  # for section 6
ASKED = [candidate for candidates in COLUMNS.values() for candidate in candidates]
POLICIES = list(dict.fromkeys([run for run, _ in ASKED if run.settings] + list(OF_SIZE.values())))
print(len(POLICIES), "policies to train for each seed; targets", GRID)


# %% [markdown]
# What has to be trained is trained here, side by side on all cores: reward models, labels, policies.


# %%
def for_all(function, jobs):
    """`function(*job)` of all different jobs, side by side, as a dict by job; a server is asked one thing at a time."""
    jobs = list(dict.fromkeys(jobs))
    found = parallel.run((joblib.delayed(function)(*job) for job in jobs), at_once=-1 if backend == "local" else 1)
    return dict(zip(jobs, found, strict=True))


judges = itertools.product({judge for _, judge in SIZES}, recipes.JUDGES, [size.judge_pairs], SEEDS)
for_all(recipes.class_token_model, judges)
labels = for_all(
    recipes.offline_rewards,
    [(judge, run.judge_rung, run.pairs, run.texts, s) for run in POLICIES for judge in run.rewards for s in SEEDS],
)
trained = for_all(recipes.prompted_policy, [(run, address, seed) for run in POLICIES for seed in SEEDS])
print(len(labels), "sets of labels,", len(trained), "policies")


# %% [markdown]
# Now the choice of targets. (One candidate is no choice, so its column waits for the test prompts.)


# %%
def answers_to(requests, purpose, prompts):
    """Answers to mixed held-out prompts by (run, targets, seed)."""
    jobs = [(*request, "joint", purpose, prompts, address, seed) for request in requests for seed in SEEDS]
    return {(job[0], job[1], job[-1]): found for job, found in for_all(recipes.prompted_answers, jobs).items()}


def score(answers, reward):
    """The mean reward of answers; of "both" the mean of helpful and harmless."""
    return float(np.mean([answers[name] for name in (REWARDS if reward == "both" else (reward,))]))


def best(candidates, by, seed):
    """The candidate (run, targets) with the highest reward on validation prompts; the first of those that tie."""
    return max(candidates, key=lambda candidate: score(validated[*candidate, seed], by))


# %%
validated = answers_to(
    [candidate for candidates in COLUMNS.values() if len(candidates) > 1 for candidate in candidates],
    "validation",
    size.prompted_answers // 4,
)
chosen = {
    (column, s): best(candidates, CHOSEN_BY.get(column, "both"), s) if len(candidates) > 1 else candidates[0]
    for column, candidates in COLUMNS.items()
    for s in SEEDS
}

# %%
for name, settings in TUNED.items():
    share = float(np.mean([chosen["bc_tuned", s][0].settings == settings for s in SEEDS]))
    results.number(f"tuned.{name}", share, "share of seeds")
for column in ("joint", "helpful_08"):
    record(f"target.{column}", [chosen[column, s][1][0] for s in SEEDS], "target of the highest reward")
for column, rewards in (("hh_08_02", ("helpful",)), ("hh_02_08", ("harmless",)), ("hh_08_08", REWARDS)):
    for reward in rewards:
        targets = [chosen[column, s][1][REWARDS.index(reward)] for s in SEEDS]
        record(f"target.{column}.{reward}", targets, f"target of the {reward} reward")
results.table(*(key for key in results.numbers if key.startswith(("tuned", "target"))))

# %% [markdown]
# And the test prompts. The source's numbers stand beside ours: other reward models with other scales, so what can be
# compared is which column is above which.
#
# > **Predict.** By the proxies, will `hh_08_08` come near `hh_08_02` in helpfulness and near `hh_02_08` in
# > harmlessness? And which column has the highest mean?

# %%
most = (RUN, (1.0,))
tested = answers_to([*chosen.values(), most], "test", size.prompted_answers)
final = {(column, s): tested[*chosen[column, s], s] for column in COLUMNS for s in SEEDS}
proxy = {
    (column, reward): record(
        f"maximise.{column}.{reward}", [score(final[column, s], reward) for s in SEEDS], f"{reward} reward (proxy)"
    )
    for column in COLUMNS
    for reward in (*REWARDS, "both")
}
true = {
    (column, reward): record(
        f"gold.{column}.{reward}",
        [score(final[column, s], f"gold_{reward}") for s in SEEDS],
        f"points of gold {reward}",
    )
    for column in COLUMNS
    for reward in REWARDS
}

# %%
rows = ["| column | helpful | source | harmless | source | both | source |", "|---|" + "--:|" * 6]
for column in COLUMNS:
    cells = [
        cell
        for reward in (*REWARDS, "both")
        for cell in (
            shown(f"maximise.{column}.{reward}"),
            f"{reported(column, reward):.2f}" if column in SOURCE else "",
        )
    ]
    rows.append(f"| `{column}` | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))


# %%
def plane(axis, columns, key):
    """Columns as their numbers in a plane, `key % (column, reward)`, with intervals on both sides."""
    for index, column in enumerate(columns):
        x, y = (results.numbers[key % (column, reward)] for reward in REWARDS)
        color = plots.COLORS[index % len(plots.COLORS)]
        if x["low"] is not None:
            axis.hlines(y["value"], x["low"], x["high"], color=color, linewidth=1)
            axis.vlines(x["value"], y["low"], y["high"], color=color, linewidth=1)
        axis.plot(x["value"], y["value"], plots.MARKERS[index % len(plots.MARKERS)], color=color, markersize=6)
        angle = 2 * np.pi * index / len(columns)  # columns that coincide have their numbers around them
        place = 12 * np.cos(angle), 12 * np.sin(angle)
        style = {"ha": "center", "va": "center", "fontsize": "small"}
        axis.annotate(index + 1, (x["value"], y["value"]), xytext=place, textcoords="offset points", **style)


# %%
def legend_of(figure, columns):
    """What the numbers in the plane mean, below the figure."""
    names = [f"{index} {column}" for index, column in enumerate(columns, start=1)]
    lines = "\n".join("    ".join(names[first : first + 5]) for first in range(0, len(names), 5))
    figure.text(0.5, 0, lines, ha="center", va="top", fontsize="small")


def places(columns, key):
    """The points of a plane in words."""
    pairs = [[results.numbers[key % (column, reward)]["value"] for reward in REWARDS] for column in columns]
    return "; ".join(f"{column} {x:.2f}, {y:.2f}" for column, (x, y) in zip(columns, pairs, strict=True))


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.2), layout="tight")
for axis, key, title in zip(axes, ("maximise.%s.%s", "gold.%s.%s"), ("by the reward models", "in truth"), strict=True):
    plane(axis, COLUMNS, key)
    unit = "mean proxy" if key.startswith("maximise") else "mean gold points"
    axis.set(title=title, xlabel=f"helpful ({unit})", ylabel=f"harmless ({unit})")
    axis.margins(0.12)
legend_of(figure, COLUMNS)
by_models, by_gold = (places(COLUMNS, key) for key in ("maximise.%s.%s", "gold.%s.%s"))
alt = f"""Columns in the plane of mean helpful and mean harmless reward over the same {size.prompted_answers} test
prompts, with 95 % intervals over seeds ({seeds}) where there are several. Left, by the reward models: {by_models}.
Right, in gold points: {by_gold}."""
plots.show(figure, alt, name="maximise_planes")

# %% [markdown]
# ### Asking for the most
#
# The source found that a target of .8 brings more than .99 or 1.0. It was a policy of two rewards; its line charts of
# one reward fall at the end, too, and that is what we test. An ideal policy knows nothing about targets that no text of
# its data has (*One joint reward*, the exact world), and what a network makes of them is anybody's guess. The rule:
# asking for the most *is worse* if the joint policy, on test prompts, gets more joint reward at its chosen target than
# at 1.0. (Where 1.0 itself is chosen, the difference is zero.)

# %%
at_best = record("joint.at_best", [score(final["joint", s], "joint") for s in SEEDS], "joint reward, chosen target")
at_most = record("joint.at_most", [score(tested[*most, s], "joint") for s in SEEDS], "joint reward, target 1.0")
sides = "{joint.at_best} at the chosen target ({target.joint}), {joint.at_most} at 1.0"
results.state(
    "asking_for_the_most_is_worse",
    better(at_best, at_most),
    expect="better",
    text={
        "better": f"Whoever asks for the most gets less than whoever asks for the right amount: {sides}.",
        "inconclusive": f"Whether asking for the most brings less is inconclusive: {sides}.",
        "worse": f"Asking for the most brings more than the target that validation prompts chose: {sides}.",
    },
)
results.show("asking_for_the_most_is_worse")

# %% [markdown]
# ## 3. The conclusion
#
# The rule: a policy *cannot maximize both* if the mean of both rewards, asked for both (`hh_08_08`), is below the mean
# of what it gives of each when asked for that one (helpful of `hh_08_02`, harmless of `hh_02_08`). Less of *each* is a
# second claim: where the conflict is total, the best mean is to have all of one, and then only the other is less. All
# are paired comparisons over seeds, by the proxies. Note what the rule does not ask: by how much, and why.


# %%
def prices(rewards_of):
    """What asking for both costs, for each reward: a comparison of being asked for it alone with being asked for both.

    rewards_of(column, reward): one number per seed.
    """
    alone = zip(REWARDS, ("hh_08_02", "hh_02_08"), strict=True)
    return {reward: better(rewards_of(column, reward), rewards_of("hh_08_08", reward)) for reward, column in alone}


def price(rewards_of):
    """What asking for both costs in all: the mean of each reward where it is asked for alone, against the mean where
    both are asked for."""
    alone = np.mean([rewards_of("hh_08_02", "helpful"), rewards_of("hh_02_08", "harmless")], axis=0)
    return better(alone, np.mean([rewards_of("hh_08_08", reward) for reward in REWARDS], axis=0))


# %%
in_all, of_each = (cost(lambda column, reward: proxy[column, reward]) for cost in (price, prices))
results.number("price", in_all.difference, "mean of both rewards (proxy), each asked for alone minus asked for both")
sides = (
    "helpful {maximise.hh_08_08.helpful} against {maximise.hh_08_02.helpful}, harmless "
    "{maximise.hh_08_08.harmless} against {maximise.hh_02_08.harmless}"
)
results.state(
    "cannot_maximise_both",
    rule(in_all),
    expect="holds",
    text={
        "holds": f"No request brings both: {{price}} is lost in the mean of both, {sides}.",
        "fails": f"That asking for both costs anything is not established: {{price}} in the mean of both, {sides}.",
    },
)

# %%
results.state(
    "less_of_each_when_asked_for_both",
    rule(*of_each.values()),
    expect="holds",
    text={
        "holds": f"Asked for both, the policy gets less of each than when asked for it alone: {sides}.",
        "fails": f"That the policy gets less of each when asked for both is not established: {sides}.",
    },
)
results.show("price", "cannot_maximise_both", "less_of_each_when_asked_for_both")

# %% [markdown]
# Before we ask why: how much would the rule need to be true? Suppose that the helpful and harmless scores of the
# answers to a prompt are normal, with the same spread and correlation $r$. Take the best tenth by one score, and the
# best tenth by the mean of both. The mean is normal, too, with $\sqrt{(1 + r)/2}$ of a score's spread, so its best
# tenth is that much less far above average; and by symmetry these answers are on average as far above average in each
# score as in the mean. So they have, of each score, the share $\sqrt{(1 + r)/2}$ of what the tenth chosen for it has.


# %%
def share_left(r):
    """How much of a score the best texts by the mean of two have, of what the best by that score alone have."""
    return np.sqrt((1 + r) / 2)


rng = np.random.default_rng(0)
for r in (0.5, 0.0, -0.5, -0.9):
    one, other = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], size=200_000).T
    top = [one[np.argsort(-values)[: len(one) // 10]].mean() for values in (one + other, one)]
    print(f"r = {r:+.1f}: {share_left(r):.2f} by the formula, {top[0] / top[1]:.2f} of 200,000 draws")
    assert abs(top[0] / top[1] - share_left(r)) < 0.02

# %% [markdown]
# So asking for both costs something even where the two have nothing to do with each other: whoever is best in one thing
# is seldom best in another. The source's conclusion needs no conflict. What a conflict changes is the price, and for
# that one has to look at $r$.

# %% [markdown]
# ## 4. Do the rewards conflict?
#
# The texts that the policies imitate come in pairs, two answers to the same prompt. So we can ask of the truth and of
# the reward models what section 1 asked of four prompts: within prompts, does the answer that is more helpful tend to
# be less harmless?
#
# Where one reward hardly ever differs, a correlation rests on few pairs. To a question most answers are equally
# harmless, so first the share of pairs whose gold reward is the same (they are used like all others):


# %%
def kept(kinds, kind):
    """Which prompts are of one kind, (N,); "all" are all."""
    return np.array([kind in ("all", other) for other in kinds])


def gold_of(rows):
    """The true rewards (N,) of texts, by their names."""
    functions = {"helpful": gold.helpfulness, "harmless": gold.harmlessness}
    return {name: np.array([of(row["prompt"], row["response"]) for row in rows]) for name, of in functions.items()}


KINDS = ("all", *REWARDS)
truth, judged, kinds = [], [], []  # of each seed: rewards (N,) by name, twice; the kinds of the pairs' prompts (N/2,)
for seed in SEEDS:
    rows = recipes.offline_texts(size.prompted_texts, seed)
    truth.append(gold_of(rows))
    judged.append({r: np.array(labels[r, size.rung, RUN.pairs, RUN.texts, seed]) for r in REWARDS})
    kinds.append([row["subset"] for row in rows[::2]])
print(len(kinds[0]), "pairs of texts for each seed")


# %%
def apart(values, kind, seed):
    """The differences (N,) between the two texts of each pair on prompts of one kind."""
    return (values[::2] - values[1::2])[kept(kinds[seed], kind)]


for reward, kind in itertools.product(REWARDS, REWARDS):
    ties = [np.mean(apart(truth[s][reward], kind, s) == 0) for s in SEEDS]
    record(f"ties.{reward}.{kind}", ties, f"share of pairs to {kind} prompts with the same gold {reward}")
results.table(*(f"ties.{reward}.{kind}" for reward in REWARDS for kind in REWARDS))

# %% [markdown]
# Then the same of answers that a policy gave: those of `hh_08_02` and `hh_02_08` to the same test prompts. These two
# were asked for opposite things. A policy that does as it is told on both makes this correlation negative even if it
# could have given both. So these bars say whether the requests moved both rewards, in opposite directions, and by the
# truth or by the models only; no rule uses them.
#
# > **Predict.** Four bars to come for questions and four for requests. Which of them are near zero, which near -1?

# %%
conflict = {}
for kind in KINDS:
    for name, rewards in (("gold", truth), ("proxy", judged)):
        found = [within_prompt(*(apart(rewards[s][r], kind, s) for r in REWARDS)) for s in SEEDS]
        unit = f"within-prompt correlation, texts to {kind} prompts"
        conflict["texts", name, kind] = record(f"conflict.{name}.{kind}", found, unit)
    for name, prefix in (("gold", "gold_"), ("proxy", "")):
        found = []
        for s in SEEDS:
            here, there = final["hh_08_02", s], final["hh_02_08", s]
            which = kept(here["subsets"], kind)
            found.append(within_prompt(*(np.subtract(here[prefix + r], there[prefix + r])[which] for r in REWARDS)))
        unit = f"within-prompt correlation, answers to {kind} prompts"
        conflict["answers", name, kind] = record(f"conflict_of_answers.{name}.{kind}", found, unit)

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True, layout="tight")
for axis, (of, title) in zip(axes, (("texts", "texts of the data"), ("answers", "answers of the policy")), strict=True):
    for index, name in enumerate(("gold", "proxy")):
        at = np.arange(len(KINDS)) + 0.36 * (index - 0.5)
        intervals = [t_interval(conflict[of, name, kind]) for kind in KINDS]
        style = {"color": plots.COLORS[index], "hatch": ("", "//")[index], "alpha": 0.7}
        axis.bar(at, [i.value for i in intervals], width=0.34, label=("truth", "reward models")[index], **style)
        for position, i in zip(at, intervals, strict=True):
            if i.low is not None:
                axis.vlines(position, i.low, i.high, color="black", linewidth=1.5)
    axis.axhline(0, color="0.3", linewidth=1)
    axis.set_xticks(range(len(KINDS)), ("all prompts", "questions", "harmful requests"))
    axis.set(title=title)
    axis.margins(y=0.08)
axes[0].set_ylabel("correlation of helpful and harmless\nwithin prompts")
style = {"ncols": 2, "fontsize": "small", "loc": "lower center", "bbox_to_anchor": (0.5, 0.98)}
figure.legend(*axes[0].get_legend_handles_labels(), **style)
words = "; ".join(
    f"{of}, {name}: " + ", ".join(f"{conflict[of, name, kind].mean():.2f}" for kind in KINDS)
    for of, name in itertools.product(("texts", "answers"), ("gold", "proxy"))
)
alt = f"""Bars of the within-prompt correlation of the helpful and the harmless reward, by truth and by reward models,
with 95 % intervals over seeds ({seeds}) where there are several; all prompts, questions, harmful requests. {words}."""
plots.show(figure, alt, name="maximise_conflict")

# %% [markdown]
# The rules, on the texts of the data. The gold rewards *conflict* if the interval over seeds of their within-prompt
# correlation over all prompts lies below zero. The proxy *exaggerates* the conflict if its correlation is more negative
# than gold's over all prompts. By kind of prompt: it *invents* one on questions if its correlation there is more
# negative than gold's, and gold's lies within .1 of zero; it *understates* the conflict on harmful requests if its
# correlation is less negative there. (The trial run had shown gold's and the models' correlations by kind before these
# rules were published. So the first and the last two repeat what was seen, on new seeds. Over all prompts, each kind
# weighs by its squared differences, which the models' units change; which way the two errors go together there is what
# the second rule asks.)

# %%
results.state(
    "gold_rewards_conflict",
    rule(better(np.zeros(seeds), conflict["texts", "gold", "all"])),
    expect="holds",
    text={
        "holds": "The true rewards conflict: within prompts they correlate by {conflict.gold.all} over all prompts, "
        "{conflict.gold.helpful} on questions and {conflict.gold.harmless} on harmful requests.",
        "fails": "That the true rewards conflict is not established: {conflict.gold.all} over all prompts.",
    },
)
results.show("gold_rewards_conflict")

# %%
RULES = (
    ("proxy_exaggerates_conflict", "all", "Over all prompts", "exaggerate the conflict"),
    ("proxy_understates_conflict_on_harmful_prompts", "harmless", "On harmful requests", "understate the conflict"),
)
for key, kind, where, does in RULES:
    pair = [conflict["texts", name, kind] for name in ("gold", "proxy")]  # better(): the first is less negative
    other = "overstate it" if kind == "harmless" else "show less of it than there is"
    sides = f"{{conflict.proxy.{kind}}} against {{conflict.gold.{kind}}} in truth"
    results.state(
        key,
        better(*(reversed(pair) if kind == "harmless" else pair)),
        expect="better",
        text={
            "better": f"{where} the reward models {does}: {sides}.",
            "inconclusive": f"{where} it is inconclusive whether the reward models {does}: {sides}.",
            "worse": f"{where} the reward models do not {does} but {other}: {sides}.",
        },
    )
results.show(*(key for key, *_ in RULES))

# %%
gold_q, proxy_q = (conflict["texts", name, "helpful"] for name in ("gold", "proxy"))
results.state(
    "proxy_invents_conflict_on_helpful_prompts",
    rule(better(gold_q, proxy_q), equivalent(gold_q, np.zeros(seeds), margin=0.1)),
    expect="holds",
    text={
        "holds": "On questions the reward models invent a conflict: {conflict.proxy.helpful}, where the truth has "
        "{conflict.gold.helpful}, within .1 of none.",
        "fails": "That the reward models invent a conflict on questions is not established: {conflict.proxy.helpful}, "
        "where the truth has {conflict.gold.helpful}.",
    },
)
results.show("proxy_invents_conflict_on_helpful_prompts")

# %% [markdown]
# Pairs with the same gold harmlessness (see the ties above) pull gold's correlation on questions toward zero. Over
# those pairs alone in which it differs:

# %%
found = []
for s in SEEDS:
    helpful, harmless = (apart(truth[s][reward], "helpful", s) for reward in REWARDS)
    found.append(within_prompt(helpful[harmless != 0], harmless[harmless != 0]))
unit = "within-prompt correlation, texts to helpful prompts whose gold harmlessness differs"
record("conflict.gold.helpful.where_harmless_differs", found, unit)
results.show("conflict.gold.helpful.where_harmless_differs")

# %% [markdown]
# ### Why
#
# The helpful model was fitted to answers to questions, and the harmless one to answers to harmful requests. Neither has
# ever read a prompt of the other kind, and what each has learned of *its* prompts it applies to all. On requests the
# better answer was the one without instructions. Now let the harmless model read answers that instruct somebody in the
# cooking of pasta (one seed):

# %%
prompts, answers = zip(*((prompt, text) for prompt, texts in LISTED.items() for text in texts.values()), strict=True)
scores = [recipes.class_token_rewards(r, size.rung, size.judge_pairs, prompts, answers, SEEDS[0]) for r in REWARDS]
rows = ["| prompt | answer | gold helpful | helpful model | gold harmless | harmless model |", "|---|---|" + "--:|" * 4]
names = [name for texts in LISTED.values() for name in texts]
for prompt, name, h, s in zip(prompts, names, *scores, strict=True):
    said, (helpful, harmless) = prompt.split("\n\n")[1].removeprefix("Human: "), worth[prompt][name]
    rows.append(f"| {said} | {name} | {helpful:+.2f} | {h:.2f} | {harmless:+.2f} | {s:.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# In truth all four answers about pasta are equally harmless. Whether the model ranks them by how much they tell is what
# to look at; and on the lock, whether the helpful model, which never met a harmful request, ranks steps as high as it
# should. Over all pairs of texts, what each model's score goes with, within prompts:

# %%
for judge, kind, reward in itertools.product(REWARDS, repeat=3):
    found = [within_prompt(apart(judged[s][judge], kind, s), apart(truth[s][reward], kind, s)) for s in SEEDS]
    record(f"reads.{judge}.{kind}.{reward}", found, "within-prompt correlation with gold")
rows = ["| model | on | with gold helpful | with gold harmless |", "|---|---|--:|--:|"]
for judge, kind in itertools.product(REWARDS, repeat=2):
    where = "questions" if kind == "helpful" else "harmful requests"
    found = [shown(f"reads.{judge}.{kind}.{reward}") for reward in REWARDS]
    rows.append(f"| {judge} | {where}{'' if judge == kind else ' (never read)'} | " + " | ".join(found) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# If a conflict is invented on questions, the third row is where to look: a negative number under *helpful* says that
# the harmless model holds helpfulness against an answer to a plain question. If the conflict on requests is
# understated, look at the second and the fourth: numbers far from 1 or -1 are errors, and those that the two models do
# not share hide a conflict (section 1).
#
# ### The third explanation: the policy
#
# Is the price the policy's? Take no policy at all, but of the two texts to each prompt the better one: by the helpful
# score, by the harmless one, by their mean. Every prompt counts once, so nothing is gained by picking prompts. If the
# two scores never disagreed, the three lines would be alike.


# %%
def offered(by, reward, seed):
    """The mean of a reward over one text to each prompt, the better of the two by another reward (or the mean)."""
    scores = np.mean([judged[seed][name] for name in (REWARDS if by == "both" else (by,))], axis=0).reshape(-1, 2)
    chosen_one = scores.argmax(axis=1)  # (N/2,): which of the two texts
    return judged[seed][reward].reshape(-1, 2)[np.arange(len(scores)), chosen_one].mean()


for by, reward in itertools.product((*REWARDS, "both"), REWARDS):
    record(f"offered.{by}.{reward}", [offered(by, reward, s) for s in SEEDS], f"{reward} reward (proxy)")
rows = [
    "| better of two by | helpful | harmless | the policy, asked for it: helpful | harmless |",
    "|---|" + "--:|" * 4,
]
for by, column in zip((*REWARDS, "both"), ("hh_08_02", "hh_02_08", "hh_08_08"), strict=True):
    cells = [shown(f"{of}.{reward}") for of in (f"offered.{by}", f"maximise.{column}") for reward in REWARDS]
    rows.append(f"| {by} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# What the third line of the data lacks of the first in helpful, and of the second in harmless, is the price that these
# two scores put on a choice between two texts, with no policy in it. A policy that does not follow its targets has
# three lines that are alike; one that follows them and still pays, pays what its data made it pay. (Levels are not to
# be compared across: a choice of two is a mild one.)
#
# ## 5. Where each counts
#
# All columns so far average over all prompts: helpfulness counts on harmful requests, where an asker who is told how to
# open a lock was helped, and harmlessness counts on questions. Nobody would run an assistant by that measure. What is
# wanted is help where help is asked for, and a refusal where harm is:

# %%
where_it_counts = {}
for column, reward in itertools.product(COLUMNS, REWARDS):
    found = []
    for s in SEEDS:
        values = np.array(final[column, s][f"gold_{reward}"])
        found.append(values[kept(final[column, s]["subsets"], reward)].mean())
    unit = f"gold points, on {'questions' if reward == 'helpful' else 'harmful requests'}"
    where_it_counts[column, reward] = record(f"gold_where_it_counts.{column}.{reward}", found, unit)
figure, axis = plt.subplots(figsize=(6.4, 4.4), layout="tight")
plane(axis, COLUMNS, "gold_where_it_counts.%s.%s")
axis.set(xlabel="gold helpfulness on questions (points)", ylabel="gold harmlessness on harmful requests (points)")
axis.margins(0.12)
legend_of(figure, COLUMNS)
alt = f"""Columns in the plane of gold helpfulness on questions and gold harmlessness on harmful requests, with 95 %
intervals over seeds ({seeds}) where there are several: {places(COLUMNS, "gold_where_it_counts.%s.%s")}."""
plots.show(figure, alt, name="maximise_where_it_counts")

# %% [markdown]
# The rule: both *rise where each counts* if a policy named beforehand, `joint` at its best target, is better than
# cloning the chosen texts, as it is and tuned (`bc_both`, `bc_tuned`), in helpfulness on questions **and** in
# harmlessness on harmful requests: four comparisons. Its reward model has read comparisons of both kinds, and so has
# one score for "the right thing to say here".

# %%
won = [
    better(where_it_counts["joint", reward], where_it_counts[cloned, reward])
    for cloned, reward in itertools.product(("bc_both", "bc_tuned"), REWARDS)
]
sides = ", ".join(
    f"{name} {{gold_where_it_counts.joint.{reward}}} against {{gold_where_it_counts.bc_both.{reward}}} of cloning and "
    f"{{gold_where_it_counts.bc_tuned.{reward}}} of cloning tuned"
    for reward, name in zip(REWARDS, ("helpfulness on questions", "harmlessness on harmful requests"), strict=True)
)
results.state(
    "both_rise_where_each_counts",
    rule(*won),
    expect="holds",
    text={
        "holds": f"Both rise together where each counts: {sides}.",
        "fails": f"That both rise together where each counts is not established: {sides}.",
    },
)
results.show("both_rise_where_each_counts")

# %% [markdown]
# ## 6. Other sizes
#
# Would a smaller policy, or smaller reward models, come to another conclusion? The comparison of section 3 again, for
# the sizes that we can afford: the main one, a smaller policy with the same reward models, and smaller reward models,
# too. Targets are chosen anew for each, from every second target of the grid, for the main size, too. (The scores of
# two sizes of reward models are not in the same unit; compare signs, not gaps, across them.)

# %%
OTHERS = {pair: three_requests(run, GRID[::2]) for pair, run in OF_SIZE.items()}
candidates = [request for columns in OTHERS.values() for requests in columns.values() for request in requests]
validated |= answers_to(candidates, "validation", size.prompted_answers // 4)
chosen_there = {
    (pair, column, s): best(requests, CHOSEN_BY.get(column, "both"), s)
    for pair, columns in OTHERS.items()
    for column, requests in columns.items()
    for s in SEEDS
}
tested |= answers_to(chosen_there.values(), "test", size.prompted_answers)


def of_size(pair, column, reward):
    """The mean reward (S,) of a policy of this size at this request."""
    return [score(tested[*chosen_there[pair, column, s], s], reward) for s in SEEDS]


# %%
def slug(rung):
    """A size as a part of a key: "0.5M" is 0_5m."""
    return rung.lower().replace(".", "_")


gaps, price_of_size = (
    {pair: cost(lambda column, reward, pair=pair: of_size(pair, column, reward)) for pair in SIZES}
    for cost in (prices, price)
)
for (policy, judge), of_reward in gaps.items():
    for reward, comparison in of_reward.items():
        unit = f"{reward} reward (proxy), asked for it alone minus asked for both"
        results.number(f"gap.{slug(policy)}.{slug(judge)}.{reward}", comparison.difference, unit)
    unit = "mean of both rewards (proxy), each asked for alone minus asked for both"
    results.number(f"price.{slug(policy)}.{slug(judge)}", price_of_size[policy, judge].difference, unit)

# %%
rows = [
    "| policy | reward models | helpful: alone minus both | harmless: alone minus both | mean |",
    "|---|---|" + "--:|" * 3,
]
for policy, judge in SIZES:
    pair = f"{slug(policy)}.{slug(judge)}"
    cells = [shown(key) for key in (*(f"gap.{pair}.{reward}" for reward in REWARDS), f"price.{pair}")]
    rows.append(f"| {policy} | {judge} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# The rule: the conclusion *holds at each size* if at every one of them the price in the mean is above zero.

# %%
sides = "; ".join(
    f"policy {policy}, reward models {judge}: {{price.{slug(policy)}.{slug(judge)}}}" for policy, judge in SIZES
)
results.state(
    "conclusion_holds_at_each_size",
    rule(*price_of_size.values()),
    expect="holds",
    text={
        "holds": f"At each size asking for both costs something in the mean of both rewards: {sides}.",
        "fails": f"That asking for both costs something is not shown at every size, in the mean of both: {sides}.",
    },
)
results.show("conclusion_holds_at_each_size")

# %% [markdown]
# ## 7. What they say
#
# One question and one harmful request, and what each column answers (one seed, one answer each, drawn at random).


# %%
def table_of(kind):
    """All columns' answers to the first one-turn prompt of a kind (no sorting), with their true and judged rewards."""
    rows = ["| column | gold helpful, harmless | proxy helpful, harmless | answer |", "|---|--:|--:|---|"]
    prompts, of = (final["base", SEEDS[0]][name] for name in ("prompts", "subsets"))
    place = next(
        i
        for i, prompt in enumerate(prompts)
        if of[i] == kind and prompt.count("Human:") == 1 and not isinstance(subject(prompt), SortingTask)
    )
    for column in COLUMNS:
        a = final[column, SEEDS[0]]
        said = " ".join(a["responses"][place].split()).replace("|", "\\|")
        true, seen = ([a[prefix + r][place] for r in REWARDS] for prefix in ("gold_", ""))
        values = f"{true[0]:+.2f}, {true[1]:+.2f} | {seen[0]:.2f}, {seen[1]:.2f}"
        rows.append(f"| `{column}` | {values} | {said} |")
    question = prompts[place].strip().removesuffix("Assistant:").strip()
    return f"> {question}\n\n" + "\n".join(rows)


Markdown(table_of("helpful") + "\n\n" + table_of("harmless"))

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# How all conclusions of the source fare here, of this notebook and the three before it, stands in one table in
# `docs/reward_in_the_prompt.md`.
#
# **Errata of the sources.** The table of section 1 calls its second policy a cloning of *helpful and harmless* texts;
# the code that trained it takes the chosen texts of the helpful comparisons only. Which of the two it is decides what
# the row can be compared with, so both stand above (`bc_helpful`, `bc_both`). The row *both* of the source is the mean
# of the other two, which was computed again:

# %%
off = [abs(reported(column, "both") - np.mean([reported(column, reward) for reward in REWARDS])) for column in SOURCE]
print(f"mean of helpful and harmless against what is printed as both: apart by {max(off):.3f} at most")
assert max(off) <= 0.01  # half a digit for rounding both, and half a digit for what was rounded before

# %% [markdown]
# What the source says of both targets above .8 rests, its line charts of one reward aside, on two more runs that its
# table leaves out. Their scores stand unrounded in comments of its code: both targets .99, and both 1.00, in helpful,
# harmless and mean.

# %%
for asked, name in ((".99", "099_099"), ("1.00", "100_100")):
    pair = [source_figures.figure(f"reward_in_the_prompt.maximise_hh_{name}_{r}").value for r in REWARDS]
    print("both targets", asked, *(f"{value:.4f}" for value in (*pair, np.mean(pair))))

# %% [markdown]
# At the greatest targets harmlessness is the highest of all and helpfulness falls. One run each, so a claim that .8 is
# *best* is more than they carry.

# %% [markdown]
# ## Exercises
#
# **1.** In section 1, *instead* is on the frontier of the lock. Find a policy that is better than it in both rewards on
# average.
#
# <details><summary>Hint</summary>
#
# A policy may answer at random.
#
# </details>
#
# <details><summary>Answer</summary>
#
# *One step* is worth $(1, -.6)$ and *refusal, instead* $(-1.2, 1.4)$. Half of each gives $(-.1, .4)$: more helpful than
# *instead*, $(-.2, .4)$, and as harmless. With $.48$ of the steps it is $(-.144, .44)$, better in both. Policies that
# mix reach the straight lines between answers, so the frontier of policies is the upper hull of that of answers.
#
# </details>
#
# **2.** Two models err each for itself, in truth all is conflict: differences $h + w s$ and $-h + w u$, with $h$, $s$,
# $u$ of section 1. Which correlation do they show? For which $w$ is it $-.8$?
#
# <details><summary>Hint</summary>
#
# $h$, $s$ and $u$ are at right angles, each with a sum of squares of 4.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The products sum to $-4$, the squares to $4 + 4 w^2$ each, so $r = -1 / (1 + w^2)$, and $-.8$ at $w = 1/2$. Whoever
# knows how reliable the two models are can correct for it; errors that they share cannot be seen in that way.
#
# </details>
#
# **3.** Three requests bring (helpful, harmless) of $(.60, .30)$, $(.50, .50)$ and $(.45, .70)$. Which does the mean
# choose, which the smaller of the two rewards? Why does the mean lean to the reward that varies more?
#
# <details><summary>Answer</summary>
#
# The means are $.45$, $.50$, $.575$: the third. The smaller ones are $.30$, $.50$, $.45$: the second. In a mean, what
# hardly varies hardly matters: from the first to the third, helpful falls by .15 and harmless rises by .40. "Both" in a
# table is a decision about units. (To try it, give `score` another "both".)
#
# </details>
#
# **4.** The pair of targets for `hh_08_08` is the best of 36 on 125 validation prompts. Suppose that all 36 were
# equally good, that the mean of both rewards has a standard deviation of .1 between answers, and that their errors were
# independent. By how much would the best look better than it is? What protects the table from it?
#
# <details><summary>Hint</summary>
#
# The largest of 36 standard normal numbers is 2.12 on average.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The standard error is $.1 / \sqrt{125} = .0089$, so the best looks better by $2.12 \cdot .0089 = .019$. The table is
# made on other prompts, where no choice was made. `hh_08_02` had 6 candidates, and would look better by less ($1.27
# \cdot .0089 = .011$): without test prompts the comparison would favor the column with more candidates.
#
# </details>
#
# **5.** With real people there is no gold reward. Which labels would you buy to tell an invented conflict from a true
# one?
#
# <details><summary>Answer</summary>
#
# Both verdicts on the *same* pairs: which answer is more helpful, and which is more harmless, for questions and for
# harmful requests. The correlation of the verdicts within pairs has the sign of the truth's (for normal differences it
# is $\frac{2}{\pi} \arcsin r$; independent slips of the labelers bring it closer to zero, as in exercise 2), and
# models fitted to both verdicts on both kinds of prompts no longer have to guess about prompts that they never read.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - [*Attempts to align language models by putting the reward in the prompt*](https://github.com/thejaminator/prompt_reward_rl)
#   (2023): the source of this part.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*,
#   [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): the tension of the two wishes, and how it shrinks with size.
# - Dai et al. (2023), *Safe RLHF*, [arXiv 2310.12773](https://arxiv.org/abs/2310.12773): both verdicts on the same
#   pairs, and harmlessness as a constraint.
# - Ramé et al. (2023), *Rewarded soups*, [arXiv 2306.04488](https://arxiv.org/abs/2306.04488): a frontier of two
#   rewards from the weights of two policies.
# - Yang et al. (2024), *Rewards-in-Context*, [arXiv 2402.10207](https://arxiv.org/abs/2402.10207): several rewards in
#   the prompt of a large model.
