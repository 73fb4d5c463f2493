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
# # Evaluation: win rates, Elo between models, the alignment tax
#
# **Who prefers the aligned model, what did it forget, and what does mixing in the old texts repair?**
#
# InstructGPT's best-known figure compares five kinds of model: the language model as it is, the same one with a few
# examples in its prompt, the supervised one, and the two that reinforcement learning made from it. This notebook draws
# that figure again, from models that we trained ourselves, and then asks what a single number of preference leaves out:
# who was asked, which of the labelers' wishes nobody paid for, and what the model could do before and no longer can.

# %% [markdown]
# ## What you will learn
#
# - what a win rate is, and how several of them become one strength for each model;
# - why one asks labelers whose verdicts no model was trained on, and what gold adds that no labeler sees;
# - to read boxes that labelers tick (attempts the task, keeps to a constraint, tells something false) beside a reward;
# - the *alignment tax*: how to measure it, and what the pretraining term of PPO-ptx does about it;
# - to tell whether a gain carries over to topics on which nobody gave feedback.

# %% [markdown]
# ## What you should know
#
# The three steps of InstructGPT (the notebooks before this one), and the Bradley-Terry model and Elo's scale (*Elo and
# Bradley-Terry*, sections 2 to 6).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import itertools
from dataclasses import replace

import joblib
import numpy as np
from IPython.display import Markdown
from matplotlib import pyplot as plt
from scipy.special import expit, logit

from rlhf_lab import claims, evaluation, metadata, parallel, plots, ratings, recipes, source_figures, statistics
from rlhf_lab.profiles import Profile
from rlhf_lab.tinyhh import annotators, gold
from rlhf_lab.tinyhh.annotators import Annotator
from rlhf_lab.tinyhh.knowledge import Topic, subject

size = Profile.load(profile)
results = claims.Claims("33_evaluation", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: demonstrations, rankings, reward model, reinforcement learning, and
# the held-out prompts. It is the unit in which we count evidence, and square brackets hold 95 % intervals over seeds.
# Rules stand above the cells that decide them and were fixed before the published run; settings were tried out with
# other seeds. (Validation prompts of the notebook on PPO and the held-out ones here are drawn separately and share
# some; nothing here was chosen on them. One thing was not blind: that each prompt has a zero of its own was decided
# after runs of these seeds with raw scores had been looked at, as the notebook on PPO tells.) One seed decides nothing,
# so the published verdict is then shown beside it.

# %% [markdown]
# ## 1. A win rate by hand
#
# Two answers to one question, two labelers. Here the true worth of an answer is known, in points: two tips are worth
# 1.7, one tip is worth 1. A labeler of skill $k$ prefers the better of two answers with probability
# $\sigmoid(k \cdot \text{difference})$, and the *win rate* of the first answer is the mean over labelers. With skills 1
# and 2:
#
# $$ \frac{\sigmoid(0.7) + \sigmoid(1.4)}{2} = \frac{.668 + .802}{2} = .735 . $$
#
# Somebody has to be shown first, and labelers are a little partial to what they see first. So the module asks both ways
# round and takes the mean; a tie counts half.

# %%
question = "\n\nHuman: How do I keep my cat happy?\n\nAssistant:"
two_tips = " Clean the litter box every day. Brush your cat to keep its fur neat."
one_tip = " Clean the litter box every day."
labelers = [Annotator(skill=1.0), Annotator(skill=2.0)]
difference = gold.helpfulness(question, two_tips) - gold.helpfulness(question, one_tip)
by_hand = np.mean(expit([1.0 * difference, 2.0 * difference]))
by_module = evaluation.win_rate(labelers, [question], [two_tips], [one_tip])[0]
print(f"difference {difference:.2f} points; by hand {by_hand:.3f}, by the module {by_module:.3f}")
assert np.isclose(by_hand, by_module) and round(by_hand, 3) == 0.735

# %% [markdown]
# (With real people one counts verdicts. Ours are simulated, so we can take the probabilities themselves and save the
# noise of counting.) Over many prompts, the win rate of a *policy* against another is the mean over prompts, one answer
# each.

# %% [markdown]
# ## 2. From win rates to one strength for each model
#
# The Bradley-Terry model turns a win rate into a difference of strengths: $s_a - s_b = \log \frac{p}{1-p}$. Above,
# $\log \frac{.735}{.265} = 1.02$ nats, or 177 of Elo's points. With more than two models there are more win rates than
# strengths, and the fit is a compromise. `ratings.bradley_terry` takes comparisons with weights, and weights may be
# fractions: one comparison that the first wins with weight $p$, one that it loses with weight $1-p$.


# %%
def elo_points(table, names, zero):
    """Strengths in Elo points, those of `zero` being 0, from win rates (I, I) of rows over columns: (I,)."""
    pairs = list(itertools.combinations(range(len(names)), 2))
    rows = [(names[i], names[j], winner) for i, j in pairs for winner in ("left", "right")]
    weights = [weight for i, j in pairs for weight in (table[i, j], table[j, i])]
    fit = ratings.bradley_terry(ratings.Comparisons.from_names(rows), np.array(weights))
    strengths = np.array([fit.strengths[fit.items.index(name)] for name in names])
    return ratings.ELO_POINTS_PER_UNIT * (strengths - strengths[list(names).index(zero)])


two = np.array([[0.5, by_hand], [1 - by_hand, 0.5]])
print("two models:", elo_points(two, ("A", "B"), "B").round(1), "by hand", round(logit(by_hand) * 400 / np.log(10), 1))
assert np.allclose(elo_points(two, ("A", "B"), "B"), [logit(by_hand) * 400 / np.log(10), 0])

# %% [markdown]
# Three models: A beats B in .7 of the comparisons, B beats C in .7. If one strength each were all there is, A would be
# $2 \log \frac{.7}{.3} = 1.69$ nats above C and beat it in .845. Suppose that A beats C in .75 only. What then?

# %%
three = np.array([[0.5, 0.7, 0.75], [0.3, 0.5, 0.7], [0.25, 0.3, 0.5]])
points = elo_points(three, ("A", "B", "C"), "C")
explained = ratings.expected_score(points[:, None] - points[None, :])  # (3, 3)
print("Elo points:", points.round(0))
print("win rates that these explain:", {"AB": explained[0, 1].round(3), "AC": explained[0, 2].round(3)})
assert np.allclose(explained.sum(axis=1), three.sum(axis=1))  # each model wins as often as it did

# %% [markdown]
# The fit keeps how often each model wins in all, and spreads the rest: no strengths explain these three numbers. So
# whoever publishes Elo points of models should also say how far they are from the win rates. We shall.

# %% [markdown]
# ## 3. Five policies
#
# | name | what it is |
# |---|---|
# | `base` | the language model after its first training |
# | `prompted` | the same, with two of the labelers' demonstrations before the prompt |
# | `sft` | fine-tuned on demonstrations (step 1), with a tenth as many texts of the first training's kind |
# | `ppo` | then PPO against the reward model (steps 2 and 3) |
# | `ppo_ptx` | the same with pretraining texts mixed into every update |
#
# All answer the same prompts, once each, at temperature 1: *held-out* prompts as they come, prompts about *unseen*
# topics (they occur in texts of the first training's kind only: in no demonstration, ranking or prompt of PPO),
# *sorting* tasks, and *hurried* prompts, which ask for a short answer. Where a policy goes on and speaks for the
# person, its answer ends there. What has to be trained is trained here, side by side on all cores, the models of the
# whole ladder of sizes.

# %%
POLICIES = ("base", "prompted", "sft", "ppo", "ppo_ptx")
LABELS = dict(zip(POLICIES, ("base", "prompted", "SFT", "PPO", "PPO-ptx"), strict=True))
asked = min(300, size.test_prompts)  # prompts of each kind


def answers_of(policy, rung, seed):
    """A job: the policy's answers to all prompts, and its perplexity of notes."""
    run = recipes.PPORun(  # as in the notebook on PPO
        rung, size.rung, size.demonstrations, size.ranking_prompts, size.ppo_updates, size.ppo_batch
    )
    name, _, mixed = policy.partition("_")
    run = replace(run, ptx_coef=recipes.PTX_COEF if mixed else 0.0)
    return joblib.delayed(recipes.policy_answers)(name, run, size.test_prompts // 3, asked, seed=seed)


rungs = sorted(size.ladder, key=lambda rung: rung != size.rung)  # first the one whose reward model all others use
wanted = list(itertools.product(reversed(POLICIES), rungs, range(seeds)))
answers = dict(zip(wanted, parallel.run(answers_of(*job) for job in wanted), strict=True))
print(len(answers), "policies;", asked, "prompts of each kind")


# %%
def texts(policy, kind, seed, rung=size.rung):
    """Prompts and responses of one kind."""
    return answers[policy, rung, seed][kind]["prompts"], answers[policy, rung, seed][kind]["responses"]


def per_seed(measure, policy, kind="held_out", rung=size.rung):
    """The mean of `measure(prompt, response)` over prompts, for each seed: (S,)."""
    return np.array([np.mean(list(map(measure, *texts(policy, kind, seed, rung)))) for seed in range(seeds)])


place = next(i for i, prompt in enumerate(texts("base", "held_out", 0)[0]) if prompt.count("Human:") == 1)
rows = []
for policy in POLICIES:
    prompts, responses = texts(policy, "held_out", 0)
    worth = gold.helpfulness(prompts[place], responses[place])
    rows.append(f"| {LABELS[policy]} | {worth:+.2f} | {responses[place].strip().replace(chr(10), ' ')} |")
said = prompts[place].strip().replace("\n\n", " ")
Markdown(f"> {said}\n\n| policy | gold | answer |\n|---|--:|---|\n" + "\n".join(rows))

# %% [markdown]
# ## 4. What the answers are worth
#
# Nobody who trained these models saw the gold reward. It is the first thing to look at, and only a made-up world has
# it.
#
# > **Predict.** In which order will the five be? Remember what the base model has read: texts of *one* dialogue each,
# > the answers good and bad.

# %%
worth = {policy: per_seed(gold.helpfulness, policy) for policy in POLICIES}  # of (S,)
for policy in POLICIES:
    results.number(f"gold.{policy}", statistics.t_interval(worth[policy]), "points of gold helpfulness")
intervals = [statistics.t_interval(worth[policy]) for policy in POLICIES]
figure, axis = plt.subplots(figsize=(6.4, 3.6))
plots.interval_bars(axis, list(LABELS.values()), intervals, reference_line=0)
axis.set(ylabel="gold helpfulness (points)", xlabel="policy")
shown = ", ".join(f"{LABELS[p]} {i.value:.2f}" for p, i in zip(POLICIES, intervals, strict=True))
alt = f"""Bars of the mean gold helpfulness of answers to the same {asked} held-out prompts, in points, with 95 % intervals over
seeds ({seeds}) where there are several: {shown}."""
plots.show(figure, alt, name="evaluation_gold")

# %% [markdown]
# The prompted model deserves a word. A large language model has read pages on which questions and answers follow one
# another, and carries on what it finds in its prompt. Ours has read texts that hold one dialogue on one topic, so
# examples about something else may tell it nothing that it can use, and what comes after them is unlike anything it has
# read. The rule: prompting *helps* if gold is better with the demonstrations than without. The expectation is the
# paper's; trial runs with another seed already spoke against it.

# %%
results.state(
    "prompting_helps",
    statistics.better(worth["prompted"], worth["base"]),
    expect="better",
    text={
        "better": "Two demonstrations in the prompt raise the base model's gold reward by {difference}.",
        "inconclusive": "Whether two demonstrations in the prompt help the base model is inconclusive: {difference}.",
        "worse": "Two demonstrations in the prompt make the base model worse, by {difference} points. A likely reason: "
        "few-shot prompting comes from the text of the first training, and no text of ours holds two dialogues.",
    },
)
results.show("prompting_helps")


# %% [markdown]
# ## 5. Who prefers which
#
# Two groups of labelers. The *training* labelers are those whose rankings the reward model was fitted to: unequal in
# skill, all a little partial to long answers and to the one shown first. The *held-out* labelers gave no label to any
# model, and have the same taste without the partiality. What pleases only the first group, the policy has learned from
# their faults.

# %%
CROWDS = {"training": annotators.crowd("helpful-base"), "held_out": annotators.held_out_crowd()}


def win_table(labelers, prompts, responses):
    """Win rates (I, I), row over column, of I policies' responses (I, N)."""
    table = np.full((len(responses), len(responses)), 0.5)
    for i, j in itertools.combinations(range(len(responses)), 2):
        table[i, j] = evaluation.win_rate(labelers, prompts, responses[i], responses[j]).mean()
        table[j, i] = 1 - table[i, j]
    return table


def judged(labelers, seed):
    """A job: the table of all five policies."""
    prompts, _ = texts("base", "held_out", seed)
    return joblib.delayed(win_table)(labelers, prompts, [texts(p, "held_out", seed)[1] for p in POLICIES])


tables = {name: np.array(parallel.run(judged(c, s) for s in range(seeds))) for name, c in CROWDS.items()}  # (S, 5, 5)
for name, table in tables.items():
    for policy, rates in zip(POLICIES, table[:, :, POLICIES.index("sft")].T, strict=True):
        if policy != "sft":
            results.number(f"winrate.{policy}.{name}", statistics.t_interval(rates), "share preferred to SFT")

# %% [markdown]
# > **Predict.** By which group will PPO be preferred to SFT more often, and by how much?

# %%
figure, axis = plt.subplots(figsize=(6.6, 3.8))
rivals = [policy for policy in POLICIES if policy != "sft"]
for index, (name, label) in enumerate((("training", "training labelers"), ("held_out", "held-out labelers"))):
    found = [results.numbers[f"winrate.{policy}.{name}"] for policy in rivals]
    at = np.arange(len(rivals)) + 0.36 * (index - 0.5)
    hatch, color = ("", "//")[index], plots.COLORS[index]
    axis.bar(at, [n["value"] for n in found], width=0.34, color=color, alpha=0.7, hatch=hatch, label=label)
    for position, n in zip(at, found, strict=True):
        if n["low"] is not None:
            axis.vlines(position, n["low"], n["high"], color="black", linewidth=1.5)
axis.axhline(0.5, color="0.3", linestyle="--", linewidth=1)
axis.set_xticks(range(len(rivals)), [LABELS[policy] for policy in rivals])
axis.set(ylabel="win rate against SFT (share)", xlabel="policy", ylim=(0, 1))
axis.legend(fontsize="small", loc="upper left")
rate = {key: n["value"] for key, n in results.numbers.items() if key.startswith("winrate")}
alt = "Bars of win rates against SFT, judged by training and held-out labelers, with a dashed line at one half: " + (
    "; ".join(
        f"{LABELS[p]} {rate[f'winrate.{p}.training']:.2f} and {rate[f'winrate.{p}.held_out']:.2f}" for p in rivals
    )
)
plots.show(figure, alt + ".", name="evaluation_win_rates")

# %% [markdown]
# The rules. PPO *beats* SFT if on held-out prompts its gold reward is better **and** held-out labelers prefer it in
# more than half of the comparisons. And the groups *agree* if their win rates of PPO against SFT are equivalent within
# .05 (InstructGPT says so of its models against GPT-3: held-out labelers prefer them "at about the same rate").

# %%
MARGIN = 0.05  # of a win rate
ppo, sft = POLICIES.index("ppo"), POLICIES.index("sft")
by_training, by_held_out = (tables[name][:, ppo, sft] for name in ("training", "held_out"))  # (S,)
rates = "{winrate.ppo.training} by training labelers and {winrate.ppo.held_out} by held-out ones"
results.state(
    "ppo_beats_sft",
    statistics.rule(statistics.better(worth["ppo"], worth["sft"]), statistics.better(by_held_out, np.full(seeds, 0.5))),
    expect="holds",
    text={
        "holds": "PPO beats SFT on held-out prompts: gold {gold.ppo} against {gold.sft}, and held-out labelers prefer "
        "it in {winrate.ppo.held_out} of the comparisons.",
        "fails": "That PPO beats SFT is not established: gold {gold.ppo} against {gold.sft}; held-out labelers prefer it "
        "in {winrate.ppo.held_out} of the comparisons.",
    },
)
results.show("ppo_beats_sft")

# %%
results.state(
    "held_out_labelers_agree",
    statistics.equivalent(by_training, by_held_out, MARGIN),
    expect="equivalent",
    text={
        "equivalent": f"Both groups prefer PPO to SFT at about the same rate, within {{margin}}: {rates}.",
        "inconclusive": f"Whether both groups prefer PPO at the same rate within {{margin}} is inconclusive: {rates}.",
        "different": f"The two groups do not prefer PPO at the same rate within {{margin}}: {rates}.",
    },
)
results.show("held_out_labelers_agree")

# %% [markdown]
# ## 6. Elo between models
#
# All ten pairs of policies, judged by the held-out labelers; the strengths are fitted as in section 2 for each seed,
# and SFT is the zero of the scale.

# %%
elo = np.array([elo_points(table, POLICIES, "sft") for table in tables["held_out"]])  # (S, 5)
for policy, column in zip(POLICIES, elo.T, strict=True):
    if policy != "sft":
        results.number(f"elo.{policy}", statistics.t_interval(column), "Elo points above SFT, by held-out labelers")
explained = ratings.expected_score(elo[:, :, None] - elo[:, None, :])  # (S, 5, 5)
misfit = abs(explained - tables["held_out"]).max(axis=(1, 2))
results.number("elo.misfit", statistics.t_interval(misfit), "largest distance of a win rate from its fit (share)")
results.table(*(f"elo.{policy}" for policy in rivals), "elo.misfit")

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.2))
order = np.argsort(elo.mean(axis=0))
for height, index in enumerate(order):
    interval = statistics.t_interval(elo[:, index])
    axis.plot(interval.value, height, "o", color=plots.COLORS[0])
    if interval.low is not None:
        axis.hlines(height, interval.low, interval.high, color=plots.COLORS[0])
    axis.annotate(
        f"{interval.value:+.0f}", (interval.value, height), xytext=(0, 7), textcoords="offset points", ha="center"
    )
axis.axvline(0, color="0.3", linestyle="--", linewidth=1)
axis.set_yticks(range(len(order)), [LABELS[POLICIES[index]] for index in order])
axis.set(xlabel="Elo points above SFT, by held-out labelers", ylim=(-0.5, len(order) - 0.3))
axis.margins(x=0.12)
shown = ", ".join(f"{LABELS[POLICIES[index]]} {elo[:, index].mean():+.0f}" for index in order)
alt = f"""Elo points of the five policies with SFT at zero, from all ten pairs judged by held-out labelers, with 95 %
intervals over seeds ({seeds}) where there are several, from weakest to strongest: {shown}."""
plots.show(figure, alt, name="evaluation_elo")

# %% [markdown]
# How far are the win rates from what these points explain? `elo.misfit` is the largest distance. It need not be zero
# even if each labeler follows Bradley-Terry exactly: a policy's answers are good on one prompt and poor on another, so
# a win rate between two policies is a mean of many chances, and means of Bradley-Terry chances do not follow
# Bradley-Terry. What two policies a hundred points apart do against each other, look up in the table of win rates, not
# in the points:

# %%
mean = tables["held_out"].mean(axis=0)
lines = [
    f"| **{LABELS[p]}** | " + " | ".join(f"{v:.2f}" for v in row) + " |" for p, row in zip(POLICIES, mean, strict=True)
]
head = f"| row against column | {' | '.join(LABELS.values())} |\n|---|{'--:|' * len(POLICIES)}\n"
Markdown(head + "\n".join(lines))

# %% [markdown]
# ## 7. The paper's figure, from our own run
#
# Figure 1 of the InstructGPT paper: how often each policy of each size is preferred to the *largest SFT model*. On the
# left ours, on the ladder of sizes, with the held-out labelers; on the right the paper's, read off by eye.
#
# The heights are not to be compared: other prompts, other people, and a base model that cannot be prompted. What can be
# compared is the pattern: the order of the lines, and whether a small model after reinforcement learning passes the
# largest supervised one. (The paper's most quoted finding, 1.3B PPO-ptx preferred to 175B GPT-3, is the same with an
# easier rival; against SFT of 175B the bar of 1.3B PPO-ptx stands little above one half.)
#
# > **Predict.** Are the gaps between the kinds of policy larger or smaller than those between the sizes?

# %%
ladder, largest = size.ladder, size.ladder[-1]


def against_largest_sft(policy, rung, seed):
    """A job: win rates (N,) against the largest SFT policy."""
    prompts, responses = texts(policy, "held_out", seed, rung)
    job = (CROWDS["held_out"], prompts, responses, texts("sft", "held_out", seed, largest)[1])
    return joblib.delayed(evaluation.win_rate)(*job)


cells = list(itertools.product(POLICIES, range(seeds), ladder))
found = [rates.mean() for rates in parallel.run(against_largest_sft(p, rung, s) for p, s, rung in cells)]
by_size = dict(zip(POLICIES, np.reshape(found, (len(POLICIES), seeds, len(ladder))), strict=True))  # of (S, rungs)
parameters = [recipes.base(rung)[0].num_parameters() for rung in ladder]
theirs = {
    policy: [source_figures.figure(f"instructgpt.win_rate_{policy}_{name}").value for name in ("1b", "6b", "175b")]
    for policy in POLICIES
}

# %%
SHAPES = "v^sDo"  # five lines, told apart without color
figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 4.2), sharey=True)
for index, policy in enumerate(POLICIES):
    plots.curve_with_band(left, parameters, by_size[policy], LABELS[policy], index)
    left.lines[-1].set_marker(SHAPES[index])
    style = {"color": plots.COLORS[index], "linestyle": plots.LINES[index % 4], "marker": SHAPES[index]}
    right.plot([1.3e9, 6e9, 175e9], theirs[policy], **style)
for axis, title in ((left, f"ours, against SFT of {largest}"), (right, "Ouyang et al. 2022, against SFT of 175B")):
    axis.axhline(0.5, color="0.3", linestyle="--", linewidth=1)
    axis.set(xscale="log", xlabel="parameters (logarithmic)", ylim=(0, 1))
    axis.set_title(title, fontsize=11)
left.set_ylabel("win rate against the largest SFT (share)")
left.set_xticks(parameters, ladder)
right.set_xticks([1.3e9, 6e9, 175e9], ["1.3B", "6B", "175B"])
for axis in (left, right):
    axis.minorticks_off()
figure.legend(
    *left.get_legend_handles_labels(), ncols=5, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 0.98)
)
shown = "; ".join(f"{LABELS[p]} {', '.join(f'{v:.2f}' for v in by_size[p].mean(axis=0))}" for p in POLICIES)
paper = "; ".join(f"{LABELS[p]} {', '.join(map(str, theirs[p]))}" for p in POLICIES)
alt = f"""Win rates against the largest SFT policy over the sizes of policies. Left ours, {", ".join(ladder)} parameters, by held-out
labelers: {shown}. Right InstructGPT's, 1.3B, 6B and 175B, read off: {paper}."""
plots.show(figure, alt, name="evaluation_paper_figure")

# %% [markdown]
# The rule: a *small PPO-ptx beats the largest SFT* if its win rate, with the smallest rung of the ladder, is better
# than one half. (Sizes here differ by a factor of four, the paper's by more than a hundred; and all of our policies are
# trained against one reward model, as the paper's are.)

# %%
smallest = by_size["ppo_ptx"][:, 0]
results.number("winrate.smallest_ppo_ptx", statistics.t_interval(smallest), "share preferred to the largest SFT")
results.state(
    "small_ppo_ptx_beats_largest_sft",
    statistics.better(smallest, np.full(seeds, 0.5)),
    expect="better",
    text={
        "better": "The smallest PPO-ptx policy is preferred to the largest SFT policy: it wins {winrate.smallest_ppo_ptx} "
        "of the comparisons.",
        "inconclusive": "Whether the smallest PPO-ptx policy is preferred to the largest SFT policy is inconclusive: it "
        "wins {winrate.smallest_ppo_ptx} of the comparisons.",
        "worse": "The smallest PPO-ptx policy is not preferred to the largest SFT policy: it wins "
        "{winrate.smallest_ppo_ptx} of the comparisons.",
    },
)
results.show("small_ppo_ptx_beats_largest_sft")

# %% [markdown]
# ## 8. Boxes that labelers tick
#
# InstructGPT's labelers also ticked boxes about every answer, and figure 4 of the paper shows four of them. (Its bars
# are averages over the model sizes, and its hallucinations are those on closed-domain tasks, so compare orders, not
# heights.) Here the world itself can say what an answer holds. By hand, for somebody who is in a hurry:

# %%
hurried = "\n\nHuman: How do I keep my cat happy? I am in a hurry.\n\nAssistant:"
for answer in (
    two_tips,
    two_tips + " Offer your cat a high place to sit. Give your cat a post to scratch.",
    " Bathe your cat with soap every day.",
    "",
):
    print(repr(answer[:45]), metadata.read(hurried, answer), f"gold {gold.helpfulness(hurried, answer):.2f}")
assert metadata.read(hurried, two_tips) == metadata.Metadata(True, True, False, True)

# %% [markdown]
# - *attempts*: at least one new tip on the topic, true or false, or a list of the words that were to be sorted;
# - *follows the constraint*: to somebody who asks for a short answer, no more than half of the words that a reader
#   likes (on the hurried prompts); an empty answer keeps to it, too;
# - *false tip*: the world's hallucination;
# - *appropriate*: every sentence is whole and makes sense.
#
# Look at what the labelers of this world pay for. A tip more is worth something to them up to a length of some 36
# words, whoever is in a hurry; and they cannot tell a false tip from a true one.
#
# > **Predict.** From SFT to PPO, which of the four boxes will go up, and which down?

# %%
BOXES = {"attempts": "attempts", "follows_constraint": "follows_constraints", "false_tip": "hallucinations"}
BOXES |= {"appropriate": "appropriate"}  # ours -> the paper's
boxes = {
    (box, policy): np.array(
        [
            metadata.shares(*texts(policy, "hurried" if box == "follows_constraint" else "held_out", seed))[box]
            for seed in range(seeds)
        ]
    )
    for box in BOXES
    for policy in POLICIES
}
for (box, policy), shares in boxes.items():
    results.number(f"metadata.{box}.{policy}", statistics.t_interval(shares), "share of answers")

# %%
figure, axes = plt.subplots(2, 2, figsize=(9.0, 6.0), sharex=True)
at = np.arange(len(POLICIES))
for axis, (box, name) in zip(axes.flat, BOXES.items(), strict=True):
    ours = [statistics.t_interval(boxes[box, policy]) for policy in POLICIES]
    paper = [source_figures.figure(f"instructgpt.{name}_{policy}").value for policy in POLICIES]
    axis.bar(at - 0.2, [i.value for i in ours], width=0.38, color=plots.COLORS[0], label="ours")
    axis.bar(at + 0.2, paper, width=0.38, color=plots.COLORS[1], hatch="//", alpha=0.6, label="Ouyang et al. 2022")
    for position, interval in zip(at - 0.2, ours, strict=True):
        if interval.low is not None:
            axis.vlines(position, interval.low, interval.high, color="black", linewidth=1.5)
    axis.set_title(name.replace("_", " ") if box != "false_tip" else "hallucinations (ours: a false tip)", fontsize=11)
    axis.set_ylim(0, 1)
for axis in axes[1]:
    axis.set_xticks(at, LABELS.values(), fontsize="small")
for axis in axes[:, 0]:
    axis.set_ylabel("share of answers")
figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=2, loc="lower center", bbox_to_anchor=(0.5, 0.93))
alt = "Four pairs of bars for the five policies, ours beside those read off the paper's figure 4. Ours: " + "; ".join(
    f"{name} " + ", ".join(f"{boxes[box, policy].mean():.2f}" for policy in POLICIES) for box, name in BOXES.items()
)
plots.show(figure, alt + f" (of {', '.join(LABELS.values())}).", name="evaluation_metadata")

# %% [markdown]
# The rules, from how the labelers judge: PPO *costs brevity* if SFT keeps to the constraint more often than PPO, and
# PPO *tells more false tips* if its answers hold one more often than those of SFT. (In the paper the first went the
# other way, since its labelers minded constraints; the second went this way too.)

# %%
pairs = "{metadata.%s.sft} of the answers of SFT, {metadata.%s.ppo} of those of PPO"
keeps, lies = pairs % ("follows_constraint", "follows_constraint"), pairs % ("false_tip", "false_tip")
results.state(
    "ppo_costs_brevity",
    statistics.better(boxes["follows_constraint", "sft"], boxes["follows_constraint", "ppo"]),
    expect="better",
    text={
        "better": f"PPO costs brevity, for which nobody paid: the constraint is kept by {keeps}.",
        "inconclusive": f"Whether PPO costs brevity is inconclusive: the constraint is kept by {keeps}.",
        "worse": f"PPO keeps to the constraint more often, though nobody paid for it: {keeps}.",
    },
)
results.state(
    "ppo_tells_more_false_tips",
    statistics.better(boxes["false_tip", "ppo"], boxes["false_tip", "sft"]),
    expect="better",
    text={
        "better": f"PPO tells more false tips, which labelers cannot tell from true ones: {lies}.",
        "inconclusive": f"Whether PPO tells more false tips is inconclusive: {lies}.",
        "worse": f"PPO tells fewer false tips: {lies}.",
    },
)
results.show("ppo_costs_brevity", "ppo_tells_more_false_tips")

# %% [markdown]
# Longer answers have more room for a false tip. Per tip, then: what share of the tips on the topic is false?


# %%
def false_share(policy):
    """False tips among the true and false ones on the topic, for each seed: (S,)."""
    readings = [list(map(gold.read, *texts(policy, "held_out", seed))) for seed in range(seeds)]
    kinds = gold.Kind.FALSE_TIP, gold.Kind.TIP
    false, true = (np.array([sum(r.count(kind) for r in of_seed) for of_seed in readings]) for kind in kinds)
    return false / np.maximum(1, false + true)


for policy in POLICIES:
    results.number(f"metadata.false_per_tip.{policy}", statistics.t_interval(false_share(policy)), "share of tips")
    words = per_seed(lambda _, response: len(response.split()), policy)
    results.number(f"length.{policy}", statistics.t_interval(words), "words an answer")
results.table(*(f"{name}.{p}" for name in ("metadata.false_per_tip", "length") for p in POLICIES))

# %% [markdown]
# ## 9. The alignment tax
#
# A policy that is trained to answer may forget what else it could do. InstructGPT calls the loss on other tasks the
# *alignment tax*. Two things can be measured here without a judge:
#
# - the *second register*: a quarter of the base model's text were short notes, no dialogues. Nobody asks for notes any
#   more. The tax is the rise of the log-perplexity of held-out notes over the base model's, in nats per token. By hand:
#   a perplexity that goes from 1.80 to 1.90 is a tax of $\log \frac{1.90}{1.80} = .054$;
# - the *skill*: putting three words in alphabetical order. It has an exact score, the share of right answers, and it
#   may rise as well as fall, since one prompt in twelve asks for it.
#
# PPO-ptx adds the pretraining loss, on new texts of the first training's kind, to every update. That should hold the
# policy where such texts stay likely. (Notes come from few templates, so some held-out notes are also, word for word,
# among those texts: what is measured is keeping the register, not generalizing beyond it.)
#
# > **Predict.** Which of SFT, PPO and PPO-ptx pays most, and does a larger model pay more or less?


# %%
def notes_tax(policy, rung):
    """The rise of the log-perplexity of held-out notes over the base model's, for each seed: (S,)."""
    return np.array(
        [np.log(answers[policy, rung, s]["notes"] / answers["base", rung, s]["notes"]) for s in range(seeds)]
    )


TRAINED = ("sft", "ppo", "ppo_ptx")
tax = {p: np.stack([notes_tax(p, rung) for rung in ladder], axis=1) for p in TRAINED}  # of (S, rungs)
skill = {
    p: np.stack([per_seed(gold.solved, p, "sorting", rung) for rung in ladder], axis=1) for p in ("base", *TRAINED)
}
here = ladder.index(size.rung)
for policy in TRAINED:
    results.number(f"tax.notes.{policy}", statistics.t_interval(tax[policy][:, here]), "nats per token of notes")
for policy in skill:
    results.number(
        f"tax.skill.{policy}", statistics.t_interval(skill[policy][:, here]), "share of sorting tasks solved"
    )
results.table(*(f"tax.notes.{p}" for p in TRAINED), *(f"tax.skill.{p}" for p in skill))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.2, 4.0), layout="tight")
for policy in ("base", *TRAINED):
    index = POLICIES.index(policy)
    if policy in tax:
        plots.curve_with_band(left, parameters, tax[policy], LABELS[policy], index)
        left.lines[-1].set_marker(SHAPES[index])
    plots.curve_with_band(right, parameters, skill[policy], LABELS[policy], index)
    right.lines[-1].set_marker(SHAPES[index])
left.axhline(0, color="0.3", linestyle="--", linewidth=1)
left.set(ylabel="rise of log-perplexity (nats per token)", title="second register: what it costs")
right.set(ylabel="sorting tasks solved (share)", title="the skill: what is left", ylim=(0, 1))
for axis in (left, right):
    axis.set(xscale="log", xlabel="parameters (logarithmic)")
    axis.set_xticks(parameters, ladder)
    axis.minorticks_off()
figure.legend(
    *right.get_legend_handles_labels(), ncols=4, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 0.98)
)
costs, left_over = (
    "; ".join(f"{LABELS[p]} {', '.join(f'{v:.{digits}f}' for v in values.mean(axis=0))}" for p, values in found.items())
    for found, digits in ((tax, 3), (skill, 2))
)
alt = f"""Alignment tax over the sizes {", ".join(ladder)}. Left, the rise of the log-perplexity of held-out notes over the base
model's, in nats per token: {costs}. Right, the share of sorting tasks answered right: {left_over}."""
plots.show(figure, alt, name="evaluation_tax")

# %% [markdown]
# The rule: PPO-ptx *reduces the alignment tax* if, at the main size and seed by seed, the log-perplexity of notes is
# higher after PPO than after PPO-ptx (the interval of the difference lies above zero). What it costs stands beside it:
# the gold reward of PPO-ptx less that of PPO.

# %%
repaired = statistics.better(tax["ppo"][:, here], tax["ppo_ptx"][:, here])
results.number("tax.repaired", repaired.difference, "nats per token of notes, PPO minus PPO-ptx")
cost = statistics.better(worth["ppo_ptx"], worth["ppo"]).difference
results.number("tax.gold_of_ptx", cost, "points of gold helpfulness, PPO-ptx minus PPO")
results.state(
    "ptx_reduces_alignment_tax",
    repaired,
    expect="better",
    text={
        "better": "Mixing in the old texts reduces the tax by {difference} nats per token, from {tax.notes.ppo} to "
        "{tax.notes.ppo_ptx}; the gold reward changes by {tax.gold_of_ptx}.",
        "inconclusive": "Whether mixing in the old texts reduces the tax is inconclusive: {difference} nats per token "
        "({tax.notes.ppo} against {tax.notes.ppo_ptx}).",
        "worse": "Mixing in the old texts raises the tax: {difference} nats per token ({tax.notes.ppo} against "
        "{tax.notes.ppo_ptx}).",
    },
)
results.show("ptx_reduces_alignment_tax")

# %% [markdown]
# ## 10. Topics on which nobody gave feedback
#
# Ten of the world's topics occur in no demonstration, ranking or prompt of PPO, only in texts of the first training's
# kind. (A few of these are mixed into SFT, and many into PPO-ptx, so the rule compares PPO with SFT.) If feedback
# teaches *how to answer*, the gain carries over to these topics; if it teaches which sentences to say, it does not.
# Only prompts of one turn about a topic are compared, since sorting tasks and follow-ups are not equally frequent in
# both.


# %%
def on_topics(policy, kind):
    """Mean gold of one-turn prompts about topics, for each seed: (S,). No sorting tasks, no follow-ups."""
    means = []
    for seed in range(seeds):
        answered = zip(*texts(policy, kind, seed), strict=True)
        kept = [(p, r) for p, r in answered if isinstance(subject(p), Topic) and p.count("Human:") == 1]
        means.append(np.mean(list(itertools.starmap(gold.helpfulness, kept))))
    return np.array(means)


# %%
seen, unseen = ({policy: on_topics(policy, kind) for policy in POLICIES} for kind in ("held_out", "unseen"))  # of (S,)
for policy in POLICIES:
    results.number(f"gold_unseen.{policy}", statistics.t_interval(unseen[policy]), "points of gold helpfulness")
figure, axis = plt.subplots(figsize=(6.6, 3.8))
for index, (values, label) in enumerate(((seen, "seen topics"), (unseen, "unseen topics"))):
    found = [statistics.t_interval(values[policy]) for policy in POLICIES]
    at = np.arange(len(POLICIES)) + 0.36 * (index - 0.5)
    hatch, color = ("", "//")[index], plots.COLORS[index]
    axis.bar(at, [i.value for i in found], width=0.34, color=color, alpha=0.7, hatch=hatch, label=label)
    for position, i in zip(at, found, strict=True):
        if i.low is not None:
            axis.vlines(position, i.low, i.high, color="black", linewidth=1.5)
axis.axhline(0, color="0.3", linewidth=1)
axis.set_xticks(range(len(POLICIES)), LABELS.values())
axis.set(ylabel="gold helpfulness (points)", xlabel="policy")
axis.legend(fontsize="small")
shown = "; ".join(f"{LABELS[p]} {seen[p].mean():.2f} and {unseen[p].mean():.2f}" for p in POLICIES)
alt = f"""Bars of mean gold helpfulness on one-turn held-out prompts about seen and about unseen topics, with 95 % intervals
over seeds ({seeds}) where there are several: {shown}."""
plots.show(figure, alt, name="evaluation_unseen")

# %% [markdown]
# The rule: the gain *carries over* if on unseen topics the gold reward of PPO is better than that of SFT. How much of
# it carries over is the number beside it, the gain on unseen topics less the gain on seen ones.

# %%
kept = statistics.better(unseen["ppo"] - unseen["sft"], seen["ppo"] - seen["sft"]).difference
results.number("gold_unseen.gain_less_than_seen", kept, "points, gain of PPO on unseen topics minus on seen ones")
results.state(
    "gain_carries_over_to_unseen_topics",
    statistics.better(unseen["ppo"], unseen["sft"]),
    expect="better",
    text={
        "better": "On topics without any feedback PPO is better than SFT, too, by {difference} points; its gain "
        "there minus its gain on seen topics is {gold_unseen.gain_less_than_seen}.",
        "inconclusive": "Whether PPO's gain carries over to topics without feedback is inconclusive: {difference}.",
        "worse": "On topics without any feedback PPO is worse than SFT: {difference}.",
    },
)
results.show("gain_carries_over_to_unseen_topics")

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The presentation that we follow lists beside the paper's bars that InstructGPT's models are
# *more truthful*. Of hallucinations that holds against GPT-3; of the models after demonstrations alone it does not: the
# bar of PPO stands well above that of SFT in the same figure, which section 8 shows. The axis of its first figure reads
# "win rate against SFT 175B", so a line at .5 is that model, not an even contest between all.

# %% [markdown]
# ## Exercises
#
# **1.** Labelers of skill 1 compare two policies. On half of the prompts the first policy's answer is worth 2 points
# more, on the other half 1 point less. What is its win rate, what the mean difference in worth, and what win rate would
# a constant difference of that size give?
#
# <details><summary>Answer</summary>
#
# $(\sigmoid(2) + \sigmoid(-1))/2 = (.881 + .269)/2 = .575$. The mean difference is $.5$ points, and $\sigmoid(.5) =
# .622$. A win rate counts how often, not by how much, so a few large differences weigh little.
#
# </details>
#
# **2.** Two policies win .8 and .7 against SFT. What win rate of the first over the second does Bradley-Terry expect?
#
# <details><summary>Hint</summary>
#
# Odds multiply.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The odds are 4 and 7/3, so $4 / (7/3) = 12/7$, a win rate of $12/19 = .632$.
#
# </details>
#
# **3.** To the training labelers of section 5 each word of an answer is worth 0.01 points more than to the held-out
# ones. Suppose that PPO's answers are ten words longer than SFT's. By how much does that change the win rate of two
# answers of equal worth, at skill 1.5? Does it matter?
#
# <details><summary>Answer</summary>
#
# $\sigmoid(1.5 \cdot 0.1) = .537$, so by less than .04. At fifty words it would be $\sigmoid(0.75) = .679$; but a word
# beyond the 36th costs .05 points, five times what the partiality gives, so here length alone does not pay that far.
#
# </details>
#
# **4.** Somebody reports a tax on the skill of *minus* .2: after PPO the policy solves more sorting tasks. Is that a
# contradiction? What would you have to do to measure whether reinforcement learning makes the policy forget sorting?
#
# <details><summary>Answer</summary>
#
# No: one prompt in twelve asks for sorting, and the labelers see whether the order is right, so the skill is among the
# things that are rewarded. To measure forgetting, leave the sorting prompts out of demonstrations, rankings and the
# prompts of PPO.
#
# </details>
#
# **5.** Which change to the labelers of this world would make PPO keep to "Please keep it short"? Which would make it
# tell fewer false tips, and why is that harder in the real world?
#
# <details><summary>Answer</summary>
#
# A cost of words beyond the constraint, where the prompt has one, in their utility. For false tips a taste for honesty
# (`Annotator(honesty=...)`), which assumes labelers who *know*. Real labelers would have to check facts, which takes
# time and knowledge; that they then reward what sounds right is one of the known faults of RLHF.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. (2022), *Training language models to follow instructions with human feedback*,
#   [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): figures 1 and 4; section 4.2 and appendix E on the tax.
# - Askell et al. (2021), *A general language assistant as a laboratory for alignment*,
#   [arXiv 2112.00861](https://arxiv.org/abs/2112.00861): where the words *alignment tax* come from.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*,
#   [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): Elo between models, and a tax that large models do not pay.
# - Chiang et al. (2024), *Chatbot Arena*, [arXiv 2403.04132](https://arxiv.org/abs/2403.04132): Bradley-Terry between
#   models from a crowd's votes.
