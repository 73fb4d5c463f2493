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
# # Scaling: data, model size, preference-model pre-training
#
# **How many comparisons does a reward model need, how large should it be, and can other people's comparisons save
# labels?**
#
# Comparisons are the expensive part of RLHF: each costs a person's minute or two. So one wants to know beforehand what
# twice as many would buy, whether a larger model would buy the same for less, what careless labelers cost, and whether
# comparisons that others have made, about other matters, can stand in for one's own. Here theory comes first, as far as
# it carries; then each question is put to reward models that are trained for real.

# %% [markdown]
# ## What you will learn
#
# - how the error of a Bradley-Terry fit falls with the number of comparisons, and what that does to a reward model's
#   accuracy;
# - what "log-linear in the data" means, how to test it, and why it cannot go on for ever;
# - what a larger model buys, beside figure 7 of Bai et al. (2022);
# - what a label is worth that is wrong with probability $e$;
# - preference-model pre-training: what comparisons about other topics can save, and why there is a limit.

# %% [markdown]
# ## What you should know
#
# The Bradley-Terry model (the notebook *Elo and Bradley-Terry*) and the reward model's loss (*RLHF in ten minutes*,
# section 5). That information adds up over independent observations, and that a variance falls like $1/n$.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import json

import joblib
import numpy as np
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from scipy.special import expit, logit

from rlhf_lab import claims, parallel, plots, preferences, pretraining, ratings, recipes, source_figures, statistics
from rlhf_lab.language_model import BASE
from rlhf_lab.profiles import Profile
from rlhf_lab.reward_model import RewardModelConfig
from rlhf_lab.tinyhh import annotators, gold

size = Profile.load(profile)
results = claims.Claims("22_scaling_and_pretraining", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats every experiment with other comparisons, other held-out comparisons and other starting weights of the
# head, the layer that turns the model's last state into a score; it is the unit in which we count evidence, and square
# brackets hold 95 % intervals over seeds. The base models that the reward models start from are the same for all seeds.
# Rules stand above the cells that decide them and were fixed before the published run; settings were tried out with
# other seeds. One seed decides nothing, so the published verdict is then shown beside it.

# %% [markdown]
# ## 1. What one more comparison tells
#
# Start with the smallest case: two answers, the first preferred with probability $p$, so that their strengths differ by
# $s = \log \frac{p}{1-p}$. After $n$ comparisons, of which the first won $w$, the estimate of $s$ is $\log
# \frac{w}{n-w}$. Each comparison adds the *information* $p(1-p)$ about $s$, and the standard error is
#
# $$ \text{se} = \frac{1}{\sqrt{n\,p\,(1-p)}} \ge \frac{2}{\sqrt n} . $$
#
# By hand: 60 wins in 100 comparisons give $\log 1.5 = 0.405$ with a standard error of $1/\sqrt{24} = 0.204$.

# %%
duel = ratings.Comparisons.from_names([("A", "B", "left")] * 60 + [("A", "B", "right")] * 40)
fit = ratings.bradley_terry(duel).difference("A", "B")
by_hand = logit(0.6), 1 / np.sqrt(100 * 0.6 * 0.4)
by_module = fit.value, (fit.high - fit.low) / 2 / 1.96  # the half-width of a 95 % interval is 1.96 standard errors
for name, (estimate, error) in {"by hand": by_hand, "module": by_module}.items():
    print(f"{name:8} {estimate:.3f} with standard error {error:.3f}")
assert np.allclose(by_hand, by_module, rtol=1e-3)
for n in (100, 400, 1600):
    print(f"{n:5} comparisons: standard error {1 / np.sqrt(n * 0.6 * 0.4):.3f}")

# %% [markdown]
# Half the error costs four times the comparisons. That is the law behind everything that follows; what remains is to
# find out what it does to *accuracy*, the number by which reward models are judged.
#
# ## 2. From two answers to all answers
#
# A reward model has to rate answers that nobody compared. The simplest one that can: an answer is described by $d$
# numbers, and the difference of two answers' rewards is $w \cdot x$, with $x$ the difference of their descriptions and
# $w$ the weights to be learned. Let $x$ be normal with variance 1 in every direction. The fitted weights $\hat w$ miss
# $w$ by some angle, and put two answers in the wrong order if $w$ and $\hat w$ see $x$ on different sides, which
# happens with probability angle$/\pi$ (at an angle of 180 degrees always). Each of the $d-1$ directions across $w$ gets
# an error with variance $1/(nJ)$, where $J = \E[p(1-p)]$ is the mean information of a comparison. So
#
# $$ \text{accuracy} \approx 1 - \frac{1}{\pi} \arctan\left( \frac{1}{\lvert w \rvert} \sqrt{\frac{d-1}{n J}} \right) . $$
#
# Accuracy here is that of the *true order*: which answer is better, not which one a labeler picked.
#
# > **Predict.** With comparisons on a logarithmic scale, what does this curve look like from few comparisons to many:
# > steep first and then flat, a straight line, or something else?


# %%
FEATURES, LENGTH = 20, 1.0  # d, and the length of w in log-odds per unit of x
z = np.random.default_rng(0).normal(size=200_000)  # w.x / |w|
p = expit(LENGTH * z)  # the chance that the first answer of a pair is preferred


def information(p, wrong=0.0):
    """Mean information of a comparison about the log-odds of p, if its label is wrong with probability `wrong`."""
    seen = wrong + (1 - 2 * wrong) * p
    slope = (1 - 2 * wrong) * p * (1 - p)  # of `seen`, in the log-odds
    return np.mean(slope**2 / (seen * (1 - seen)))


def accuracy_by_formula(n, wrong=0.0):
    return 1 - np.arctan(np.sqrt((FEATURES - 1) / (n * information(p, wrong))) / LENGTH) / np.pi


assert np.isclose(information(p), np.mean(p * (1 - p)))


# %%
def fitted_accuracy(rng, n, wrong=0.0, steps=6):
    """Fit a linear reward model to n comparisons by Newton's method; how often it puts two answers in true order."""
    truth = LENGTH * np.eye(FEATURES)[0]
    x = rng.normal(size=(n, FEATURES))
    won = (rng.random(n) < expit(x[:, 0] * LENGTH)) != (rng.random(n) < wrong)  # (n,)
    w = np.zeros(FEATURES)
    for _ in range(steps):
        q = expit(np.einsum("nd,d->n", x, w))  # einsum, since for `@` several threads would wait for one another
        hessian = np.einsum("ni,nj->ij", x * (q * (1 - q))[:, None], x)
        w += np.linalg.solve(hessian, np.einsum("nd,n->d", x, won - q))
    return 1 - np.arccos(w @ truth / np.linalg.norm(w) / LENGTH) / np.pi


toy_n = 2 ** np.arange(7, 14)
rng = np.random.default_rng(22)
simulated = {e: np.array([[fitted_accuracy(rng, n, e) for n in toy_n] for _ in range(30)]) for e in (0.0, 0.25)}
assert abs(simulated[0.0].mean(axis=0) - accuracy_by_formula(toy_n))[1:].max() < 0.02  # from 256 comparisons on

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.8))
grid = 2.0 ** np.arange(2, 17, 0.25)
for index, (e, runs) in enumerate(simulated.items()):
    label = "labels of Bradley and Terry" if not e else "a quarter of them turned round"
    axis.plot(
        grid,
        accuracy_by_formula(grid, e),
        color=plots.COLORS[index],
        linestyle=plots.LINES[index],
        label=f"{label}, formula",
    )
    axis.plot(toy_n, runs.mean(axis=0), plots.MARKERS[index], color=plots.COLORS[index], label=f"{label}, simulated")
axis.axhline(0.75, color="0.4", linewidth=1, linestyle=":", label="halfway between chance and perfect")
axis.set(xscale="log", xlabel="comparisons (logarithmic)", ylabel="accuracy (share in true order)", ylim=(0.5, 1))
axis.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1))
halfway = (FEATURES - 1) / (information(p) * LENGTH**2)
alt = f"""Accuracy of a linear reward model of {FEATURES} weights against the number of comparisons on a logarithmic
scale: an S that rises from 0.5 to 1, steepest at 0.75, which it reaches at about {halfway:.0f} comparisons; simulated
fits lie on the formula from 256 comparisons on. With a quarter of the labels turned round the same curve stands further right."""
plots.show(figure, alt, name="scaling_toy")

# %% [markdown]
# By the formula an S, symmetric about its middle, where it is steepest and straightest. (Its lower left is an
# extrapolation: with few more comparisons than weights the fit is worse than the formula says, and with fewer there is
# none without a penalty.) There a doubling of the data adds $\frac{\ln 2}{4\pi} = 0.055$ to the accuracy; nowhere does
# it add more. So a straight line over a few doublings is what one should expect near the middle, and a straight line
# for ever is impossible. Check the slope:

# %%
step = accuracy_by_formula(np.array([halfway / np.sqrt(2), halfway * np.sqrt(2)]))
print(
    f"accuracy at the middle {accuracy_by_formula(halfway):.3f}, gained by the doubling around it {step[1] - step[0]:.4f}"
)
assert np.isclose(step[1] - step[0], np.log(2) / (4 * np.pi), atol=5e-4)

# %% [markdown]
# ## 3. What a wrong label costs
#
# Let every label be turned round with probability $e$: a slip of the hand. (Someone who clicks blindly is right half of
# the time: a share $c$ of blind clicks is $e = c/2$.) The chance that the first answer is *said* to win is then $p' = e
# + (1-2e)\,p$, a muted copy of $p$. Near $p = \frac12$, where comparisons are hard, a label still varies as much as
# before, but its slope is smaller by $1-2e$, so its information is smaller by
#
# $$ \text{worth} \approx (1-2e)^2 . $$
#
# This is exact at $s = 0$ and good for small $s$ (the next term is of order $s^2$); we say *to first order* for short.
# On easy pairs a wrong label hurts more, since there it contradicts what would have been sure, and the worth is lower.
# In the simulation above, $e = \frac14$: to first order four such labels are worth one.

# %%
print("wrong   first order   exact, at |w| = 1")
for e in (0.0, 0.1, 0.25, 0.4):
    print(f"{e:4.2f}    {(1 - 2 * e) ** 2:6.2f}        {information(p, e) / information(p):6.2f}")
hard = expit(0.01 * z)  # pairs of almost equal answers
assert np.isclose(information(hard, 0.25) / information(hard), 0.25, atol=1e-3)

# %% [markdown]
# On the logarithmic scale a worth of one quarter moves the curve two doublings to the right, at every accuracy. The
# theory makes a prediction, then: *noise shifts the curve and does not bend it*. Note what it assumes: that all error
# comes from the labels. A reward model that starts as a language model also has to find out what to look at, and may
# never be able to see it. Whether the prediction survives that is what section 7 asks.

# %% [markdown]
# ## 4. The real experiment
#
# The comparisons are helpful ones of the miniature world: two answers of varied quality, judged by the default crowd
# (eight labelers of unequal skill, all a little partial to long answers and to the first one shown). Held-out
# comparisons ask questions that occur in no training pair. Three base models, pre-trained on the same text for the same
# number of steps, are the sizes. A data curve needs one pass only: the reward model reads each comparison once, and is
# tested after 256, 512, 1,024, ... of them. The learning rate stays constant, since with one that falls to zero the
# early tests would show a model half way through its schedule; a schedule that ends at each test would give somewhat
# better models. The first 5 % of the pass are a warm-up, and tests in it are left out; the first test that is kept
# still comes soon after it. Note what such a curve mixes: more comparisons are also more steps of training. Theory
# speaks of the best fit to $n$ comparisons; the beginning of a pass is not yet that, and lies lower.
#
# First what an accuracy has to be seen beside: the *ceiling*, what the crowd's own favorite reaches on the crowd's
# labels, and the *audit*, what "the longer one wins" reaches.


# %%
crowd = annotators.crowd("helpful-base")


def mean_of(of_pair, rows_of_seeds):
    """The mean of `of_pair(prompt, chosen, rejected)` for each seed: (S,)."""
    return np.array([np.mean([of_pair(**pair) for pair in rows]) for rows in rows_of_seeds])


def ceiling(prompt, chosen, rejected):
    """The accuracy on this pair of the crowd's favorite, whichever answer is shown first."""
    sides = ((chosen, rejected), (rejected, chosen))
    return np.mean([annotators.ceiling(crowd, prompt, *side) for side in sides])


held_out = {
    data: [recipes.preference_pairs(data, "test", size.scaling_test_pairs, seed) for seed in range(seeds)]
    for data in ("helpful", "target")
}
for data, rows in held_out.items():
    for name, of_pair in ((f"audit.longer_wins.{data}", preferences.longer_wins), (f"ceiling.{data}", ceiling)):
        results.number(name, statistics.t_interval(mean_of(of_pair, rows)), "share of pairs")
results.table()

# %% [markdown]
# (The pairs called *target* are those of section 9.) All that has to be trained is trained here, side by side on all
# cores.

# %%
WRONG = 0.25  # section 7: share of the labels that are turned round in the noisy pass
ratios = [source_figures.figure(f"helpful_and_harmless.learning_rate_{of}").value for of in ("pmp", "fine_tuning")]
rates = {f"x{ratio:g}": ratio * pretraining.CYCLES[0][1] for ratio in ratios}  # section 9, of the pre-training's rate


def reads_once(rung, wrong, seed):
    """Sections 5 to 7: one pass, tested on the way."""
    return joblib.delayed(recipes.scaling_pass)(rung, wrong, size.scaling_pairs, size.scaling_test_pairs, seed=seed)


def reads_target(elsewhere, rate, n, seed):
    """Section 9: `elsewhere` comparisons about other topics, then n of the target's."""
    job = (size.rung, elsewhere, rates[rate], n, size.scaling_test_pairs)
    return joblib.delayed(recipes.target_scores)(*job, seed=seed)


# %%
starts = [(size.elsewhere_pairs, "x0.1", 0), (0, "x0.1", 0)]  # first, since what comes after PMP waits for PMP
passes = [*((rung, 0.0) for rung in reversed(size.ladder)), (size.rung, WRONG)]
tunings = [(read, rate, n) for read in (0, size.elsewhere_pairs) for rate in rates for n in size.target_pairs]
jobs = {}
for seed in range(seeds):
    jobs |= {(*job, seed): reads_target(*job, seed) for job in starts}
    jobs |= {(*job, seed): reads_once(*job, seed) for job in passes}
    jobs |= {(*job, seed): reads_target(*job, seed) for job in tunings}
runs = dict(zip(jobs, parallel.run(jobs.values()), strict=True))


# %% [markdown]
# Every run holds the scores of the held-out answers. From them come two accuracies: on the crowd's labels, which one
# can measure in life too, and on the true order (by the *gold reward*, which the made-up world knows).


# %%
def margins(run):
    """By how much each chosen answer outscores the rejected one: (N,), or (E, N) for a pass with E tests."""
    return np.array(run["chosen"]) - np.array(run["rejected"])


def accuracy(run):
    """Share of held-out labels that the scores agree with, a tie counting half: a number, or (E,)."""
    return ((margins(run) > 0) + (margins(run) == 0) / 2).mean(axis=-1)


def true_order(run, rows):
    """Share of the held-out pairs of unequal gold reward that the scores put in their true order: a number, or (E,)."""
    gap = np.array(
        [gold.helpfulness(r["prompt"], r["chosen"]) - gold.helpfulness(r["prompt"], r["rejected"]) for r in rows]
    )
    return ((np.sign(margins(run) * gap) + 1) / 2)[..., gap != 0].mean(axis=-1)


# %%
tested = np.array(runs[size.rung, 0.0, 0]["pairs"])  # (E,)
kept = tested > RewardModelConfig().warmup * size.scaling_pairs
pairs = tested[kept]


def curves(rung, wrong=0.0):
    """Accuracy and true order of each seed and test: two arrays (S, E)."""
    of_seeds = [runs[rung, wrong, seed] for seed in range(seeds)]
    order = [true_order(run, rows)[kept] for run, rows in zip(of_seeds, held_out["helpful"], strict=True)]
    return np.array([accuracy(run)[kept] for run in of_seeds]), np.array(order)


learned = {rung: curves(rung) for rung in size.ladder}
print("tests after", pairs.tolist(), "comparisons")

# %% [markdown]
# ## 5. Is accuracy log-linear in the data?
#
# *Log-linear* means: every doubling of the data adds the same. To say so one has to show two things, that the line
# rises and that it is a *line*. For the second we fit a parabola in $\log_2 n$ and measure by how much it departs from
# the straight line in the middle of the range: its *bend*, positive for a curve that levels off. By hand: accuracies
# .5, .65, .7 at three sizes, each twice the one before, rise by .1 a doubling; the parabola passes through .65 in the
# middle, the straight line through their mean .6167, so the bend is .0333.


# %%
def slope_and_bend(n, values):
    """Accuracy per doubling, and by how much a parabola departs from the straight line in the middle."""
    doublings = np.log2(n)
    line, parabola = np.polyfit(doublings, values, 1), np.polyfit(doublings, values, 2)
    middle = (doublings[0] + doublings[-1]) / 2
    return line[0], np.polyval(parabola, middle) - np.polyval(line, middle)


print("slope {:.3f}, bend {:.4f}".format(*slope_and_bend([100, 200, 400], [0.5, 0.65, 0.7])))
assert np.allclose(slope_and_bend([100, 200, 400], [0.5, 0.65, 0.7]), [0.1, 0.65 - 1.85 / 3])

# %% [markdown]
# > **Predict.** The ceiling and the audit are in the table above. Where will the curves lie, will they bend, and in
# > which order will the three sizes be?

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.0, 4.0), sharex=True, sharey=True)
for index, (rung, both) in enumerate(learned.items()):
    for axis, values in zip(axes, both, strict=True):
        plots.curve_with_band(axis, pairs, values, f"{rung} parameters", index)
ceilings, audits = (results.numbers[f"{name}.helpful"]["value"] for name in ("ceiling", "audit.longer_wins"))
axes[0].axhline(ceilings, color="0.2", linestyle="--", linewidth=1, label="ceiling of the labels")
axes[0].axhline(audits, color="0.2", linestyle=":", linewidth=1, label="the longer one wins")
for axis, title in zip(axes, ("on the crowd's labels", "on the true order"), strict=True):
    axis.set(xscale="log", xlabel="comparisons (logarithmic)", title=title)
    axis.set_xticks(pairs, [f"{n:,}" for n in pairs])
    axis.minorticks_off()
axes[0].set(ylabel="accuracy (share of held-out pairs)", ylim=(0.5, 0.85))
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, fontsize="small", ncols=5, loc="lower center", bbox_to_anchor=(0.5, 0.98))
ends = "; ".join(
    f"{r}: {a[:, 0].mean():.2f} to {a[:, -1].mean():.2f}, true order {o[:, 0].mean():.2f} to {o[:, -1].mean():.2f}"
    for r, (a, o) in learned.items()
)
alt = f"""Held-out accuracy against the number of comparisons on a logarithmic scale, from {pairs[0]:,} to {pairs[-1]:,}, for
{len(learned)} model sizes, on labels (left) and on the true order (right); mean over seeds ({seeds}), with 95 % bands where
there are several. {ends}. The ceiling of the labels is a dashed line at {ceilings:.2f}, the longer one wins a dotted one
at {audits:.2f}."""
plots.show(figure, alt, name="scaling_data")

# %% [markdown]
# The rule, with accuracy on held-out labels averaged over the sizes of model: accuracy is *log-linear in the data* if
# over seeds the slope is better than zero **and** the bend is equivalent to zero within .01 **and** the last doubling,
# by the parabola, still adds something. That margin is what a careful reader of a printed diagram could just about see,
# and it is fixed beforehand: to find "no significant bend" is easy with few seeds, and would prove nothing. The third
# condition is needed: at a slope of .015, a curve whose doublings add .03, .02, .01 and then nothing has a bend of only
# .01.

# %%
MARGIN = 0.01  # of accuracy
mean_accuracy = np.mean([values for values, _ in learned.values()], axis=0)  # (S, E)
slopes, bends = np.array([slope_and_bend(pairs, values) for values in mean_accuracy]).T  # (S,) each
zero = np.zeros(seeds)
results.number("scaling.slope", statistics.t_interval(slopes), "accuracy per doubling of the comparisons")
results.number("scaling.bend", statistics.t_interval(bends), "accuracy, parabola minus line")
tests = len(pairs)
last_doubling = slopes - 12 * (tests - 2) / (tests**2 - 1) * bends  # by the parabola
results.number("scaling.last_doubling", statistics.t_interval(last_doubling), "accuracy, by the parabola")
results.state(
    "accuracy_log_linear_in_data",
    statistics.rule(
        statistics.better(slopes, zero),
        statistics.equivalent(bends, zero, MARGIN),
        statistics.better(last_doubling, zero),
    ),
    expect="holds",
    text={
        "holds": f"Accuracy is log-linear in the data: {{scaling.slope}} per doubling, with a bend of {{scaling.bend}}, within the margin of {MARGIN}; the last doubling adds {{scaling.last_doubling}}.",
        "fails": f"That accuracy is log-linear in the data is not established: slope {{scaling.slope}} per doubling, bend {{scaling.bend}}, margin {MARGIN}, last doubling {{scaling.last_doubling}}.",
    },
)
results.show("accuracy_log_linear_in_data")

# %% [markdown]
# A line through a few doublings is no promise about the next ten. Extended that far, to a thousand times the data, this
# one would stand here, with the ceiling beside it:

# %%
extended = mean_accuracy[:, -1] + 10 * slopes
results.number("scaling.extended", statistics.t_interval(extended), "accuracy after ten more doublings, by the line")
order = np.mean([order for _, order in learned.values()], axis=0)  # (S, E)
order_slopes = [slope_and_bend(pairs, values)[0] for values in order]
results.number("scaling.slope_true_order", statistics.t_interval(order_slopes), "true order per doubling")
results.table("scaling.slope", "scaling.slope_true_order", "scaling.extended", "ceiling.helpful")

# %% [markdown]
# ## 6. How large should the model be?
#
# All sizes read the same comparisons. If a larger model has learned more about language, it needs fewer comparisons for
# the same accuracy; if it merely has more weights to fit, it might need more. The rules: the largest model *is better*
# if at the largest number of comparisons its accuracy on held-out labels is better than the smallest's. And it *beats
# length* if there it is better than "the longer one wins" on the same pairs. Mind the unit: there is one base model of
# each size, the same for all seeds. The verdict is about these models; to say it of *sizes* one would have to pre-train
# several of each.

# %%
slug = {rung: "rung_" + rung.lower().replace(".", "_") for rung in size.ladder}
for rung, (values, order) in learned.items():
    results.number(f"accuracy.{slug[rung]}.helpful", statistics.t_interval(values[:, -1]), "share of pairs")
    results.number(f"audit.gold_order.{slug[rung]}.helpful", statistics.t_interval(order[:, -1]), "share of pairs")
shown = [f"{what}.{slug[rung]}.helpful" for what in ("accuracy", "audit.gold_order") for rung in size.ladder]
results.table(*shown, "audit.longer_wins.helpful", "ceiling.helpful")

# %%
smallest, largest = size.ladder[0], size.ladder[-1]
gain = statistics.better(learned[largest][0][:, -1], learned[smallest][0][:, -1])
accuracies = f"{{accuracy.{slug[largest]}.helpful}} against {{accuracy.{slug[smallest]}.helpful}}"
results.state(
    "larger_model_is_better",
    gain,
    expect="better",
    text={
        "better": f"After the whole pass the largest model is ahead of the smallest by {{difference}}: {accuracies}.",
        "inconclusive": f"Whether the largest model is better than the smallest is inconclusive: {{difference}} ({accuracies}).",
        "worse": f"After the whole pass the largest model is behind the smallest: {{difference}} ({accuracies}).",
    },
)
results.state(
    "largest_model_beats_length",
    statistics.better(learned[largest][0][:, -1], mean_of(preferences.longer_wins, held_out["helpful"])),
    expect="better",
    text={
        "better": "It has learned more than length: it is ahead of the longer one by {difference}.",
        "inconclusive": "Whether it has learned more than length is inconclusive: {difference}.",
        "worse": "It is behind the longer one: {difference}.",
    },
)
results.show("larger_model_is_better", "largest_model_beats_length")

# %% [markdown]
# Neighbors on the ladder, and what the base models learned from their text. (This cell was added after the run, when the
# sizes did not come in their order. The learning rate is hardly the reason: of three rates tried with another seed, the
# usual one was the best for each size.)

# %%
provenance = json.loads((BASE / "provenance.json").read_text(encoding="utf-8"))
perplexity = {rung: provenance["rungs"][rung]["perplexity"]["dialogue"] for rung in size.ladder}
print("perplexity of held-out dialogues:", perplexity)
steps = list(zip(size.ladder, size.ladder[1:], strict=False))
for small, large in steps:
    ahead = statistics.better(learned[large][0][:, -1], learned[small][0][:, -1]).difference
    results.number(f"size.{slug[large]}_ahead_of_{slug[small]}", ahead, "accuracy after the whole pass")
if steps:
    display(results.table(*(f"size.{slug[large]}_ahead_of_{slug[small]}" for small, large in steps)))

# %% [markdown]
# What a larger model brings to a reward is what it has learned *before*: a reward model starts from the base model's
# weights. Where perplexities are nearly equal, because the text was too little or too easy for the larger model to use
# its size, there is no reason to expect more from it. Bai et al. trained each of their sizes on far more text.

# %% [markdown]
# Is "more comparisons" or "a larger model" the better buy? In labels the larger model is free; in computing it is not:
# a model with twice the parameters takes twice as long to read a comparison. Here is the same accuracy against the
# arithmetic of training, parameters times comparisons.

# %%
parameters = {rung: recipes.base(rung)[0].num_parameters() for rung in size.ladder}
figure, axis = plt.subplots(figsize=(6.4, 3.6))
for index, (rung, (values, _)) in enumerate(learned.items()):
    plots.curve_with_band(axis, parameters[rung] * pairs, values, f"{rung} parameters", index)
axis.set(
    xscale="log",
    xlabel="parameters times comparisons (logarithmic)",
    ylabel="accuracy (share of held-out pairs)",
    ylim=(0.5, 0.85),
)
axis.legend(fontsize="small")
alt = f"""Accuracy on held-out labels against parameters times comparisons, for {len(learned)} model sizes: {ends}."""
plots.show(figure, alt, name="scaling_computing")

# %% [markdown]
# Bai et al. (2022) trained preference models of seven sizes on up to about 100,000 comparisons, helpful and harmless
# ones mixed, and found accuracy to grow roughly log-linearly with both data and size. Three points of their figure 7,
# read off by eye (the middle one at about $10^9$, between two of their sizes), stand beside ours. The numbers are not
# to be compared in height: other comparisons, other labelers, another ceiling. The question is how much a doubling of
# the parameters adds.

# %%
theirs = [source_figures.figure(f"helpful_and_harmless.accuracy_{name}") for name in ("13m", "1b", "52b")]
at, read_off = np.array([13e6, 1e9, 52e9]), np.array([figure.value for figure in theirs])
ours = [statistics.t_interval(values[:, -1]) for values, _ in learned.values()]
figure, axis = plt.subplots(figsize=(6.4, 3.6))
style = {"fmt": "s--", "capsize": 3, "color": plots.COLORS[1]}
axis.errorbar(at, read_off, yerr=0.01, label="Bai et al. 2022, read off, at about 100,000", **style)
means = [interval.value for interval in ours]
axis.plot(list(parameters.values()), means, "o-", color=plots.COLORS[0], label=f"ours, at {pairs[-1]:,} comparisons")
for count, interval in zip(parameters.values(), ours, strict=True):
    if interval.low is not None:
        axis.vlines(count, interval.low, interval.high, color=plots.COLORS[0])
axis.set(xscale="log", xlabel="parameters (logarithmic)", ylabel="accuracy (share of held-out pairs)", ylim=(0.5, 0.85))
axis.legend(fontsize="small", loc="lower right")
alt = f"""Accuracy against the number of parameters on a logarithmic scale. Ours, at {pairs[-1]:,} comparisons:
{", ".join(f"{r} {i.value:.2f}" for r, i in zip(parameters, ours, strict=True))}. Those of Bai et al., read off their figure 7
to about 0.01: {", ".join(f"{value} with {count:.2g} parameters" for value, count in zip(read_off, at, strict=True))}."""
plots.show(figure, alt, name="scaling_size")

# %%
doublings = max(1.0, np.log2(parameters[largest] / parameters[smallest]))  # a single size has none: do not divide by it
grown = (learned[largest][0] - learned[smallest][0])[:, -1] / doublings  # (S,)
results.number("size.slope", statistics.t_interval(grown), "accuracy per doubling of the parameters")
results.table("size.slope", "scaling.slope")

# %% [markdown]
# And the sources, by the same arithmetic. The second row is from *Attempts to align language models by putting the
# reward in the prompt*: in its code one model of one size reaches the lower accuracy on 10,000 pairs and the higher on
# "80k samples", which are two doublings if a sample is one dialogue, and three if it is a pair.

# %%
high, low = (source_figures.figure(f"reward_in_the_prompt.accuracy_joint_{n}") for n in ("in_the_code", "10k"))
per_size = (read_off[-1] - read_off[0]) / np.log2(at[-1] / at[0])
rows = [
    f"| parameters | {per_size:.3f} | {theirs[0].source}, figure 7 |",
    f"| comparisons | {(high.value - low.value) / 3:.3f} to {(high.value - low.value) / 2:.3f} | {high.source}, code |",
]
Markdown("\n".join(["| a doubling of the | adds | source (computed from its figures) |", "|---|--:|---|", *rows]))

# %% [markdown]
# ## 7. Label noise against quantity
#
# Now the prediction of section 3. A second pass of one model reads the same comparisons, but each label is turned round
# with probability $e = 1/4$; the held-out labels stay as they are. To first order such a label is worth a quarter of an
# ordinary one. The crowd's labels are noisy anyway. With the crowd's own probabilities, averaged over its labelers, the
# formula for the information gives the worth without the approximation; the shift that it predicts is its $-\log_2$.


# %%
def exact_worth(rows):
    """What a label is worth of which WRONG are turned round, by the probabilities with which the crowd judges."""
    shown = [(row["prompt"], row["chosen"], row["rejected"]) for row in rows]
    chances = np.array([np.mean([labeler.compare(*pair).first for labeler in crowd]) for pair in shown])  # (N,)
    return information(chances, WRONG) / information(chances)


results.number("noise.worth_first_order", (1 - 2 * WRONG) ** 2, "ordinary labels")
worths = [exact_worth(rows) for rows in held_out["helpful"]]
results.number("noise.worth_exact", statistics.t_interval(worths), "ordinary labels")
predicted = -np.log2(worths)  # (S,)
results.number("noise.predicted", statistics.t_interval(predicted), "doublings, by the exact worth")
results.table("noise.worth_first_order", "noise.worth_exact", "noise.predicted")

# %% [markdown]
# > **Predict.** Will the reward model suffer more or less than the linear one of section 3?

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.8))
clean, noisy = learned[size.rung], curves(size.rung, WRONG)
plots.curve_with_band(axis, pairs, clean[1], "labels of the crowd", 0)
plots.curve_with_band(axis, pairs, noisy[1], "a quarter of them turned round", 1)
line = np.polyfit(np.log2(pairs), clean[1].mean(axis=0), 1)
shifted = np.polyval(line, np.log2(pairs) - predicted.mean())
axis.plot(pairs, shifted, color="0.3", linestyle=":", label="straight line of the first, shifted as predicted")
axis.set(xscale="log", xlabel="comparisons (logarithmic)", ylabel="accuracy (share in true order)", ylim=(0.5, 0.85))
axis.set_xticks(pairs, [f"{n:,}" for n in pairs])
axis.minorticks_off()
axis.legend(fontsize="small")
alt = f"""Share of held-out pairs in true order against comparisons on a logarithmic scale: with the crowd's labels from
{clean[1][:, 0].mean():.2f} to {clean[1][:, -1].mean():.2f}, with a quarter of them turned round from {noisy[1][:, 0].mean():.2f} to
{noisy[1][:, -1].mean():.2f}. A dotted line is the first curve's straight line, shifted by {predicted.mean():.1f} doublings."""
plots.show(figure, alt, name="scaling_noise")

# %% [markdown]
# How far is the noisy curve shifted? Give both curves a common slope and each its own height; the distance in height,
# divided by the slope, is the shift in doublings. We measure it on the true order, where the test has no noise of its
# own. By hand: two lines of slope .1 a doubling, the second lower by .2, are two doublings apart.
#
# The rules: wrong labels *cost* if the true order, averaged over the tests, is better without them; the cost is *as in
# theory* if the measured shift is equivalent to the predicted one within one doubling, a factor of two in labels.


# %%
def shift(n, upper, lower):
    """By how many doublings of n the lower curve lags behind the upper, both with the slope that fits the two best; no
    more than the whole of n. It means something only if the slope is positive."""
    slope = (slope_and_bend(n, upper)[0] + slope_and_bend(n, lower)[0]) / 2
    return np.clip((np.mean(upper) - np.mean(lower)) / slope, -np.log2(n[-1]), np.log2(n[-1]))


assert np.isclose(shift([100, 200, 400], [0.5, 0.6, 0.7], [0.3, 0.4, 0.5]), 2)
shifts = np.array([shift(pairs, *both) for both in zip(clean[1], noisy[1], strict=True)])
results.number("noise.shift", statistics.t_interval(shifts), "doublings")
results.table("noise.predicted", "noise.shift")

# %%
results.state(
    "wrong_labels_cost",
    statistics.better(clean[1].mean(axis=1), noisy[1].mean(axis=1)),
    expect="better",
    text={
        "better": "Without the wrong labels more pairs are in true order, by {difference}.",
        "inconclusive": "Whether wrong labels cost anything is inconclusive: {difference}.",
        "worse": "With the wrong labels more pairs are in true order: {difference}.",
    },
)
results.state(
    "noise_shifts_as_in_theory",
    statistics.equivalent(shifts, predicted, margin=1.0),
    expect="equivalent",
    text={
        "equivalent": "The curve is shifted by {noise.shift} doublings, as predicted ({noise.predicted}) within {margin}.",
        "inconclusive": "The curve is shifted by {noise.shift} doublings; whether that is the predicted {noise.predicted} within {margin} is inconclusive.",
        "different": "The curve is shifted by {noise.shift} doublings, not the predicted {noise.predicted} within {margin}.",
    },
)
results.show("wrong_labels_cost", "noise_shifts_as_in_theory")

# %% [markdown]
# ## 8. What other people's comparisons can be worth
#
# *Preference-model pre-training* (PMP; Askell et al. 2021, Bai et al. 2022) puts a step between the language model and
# the reward model: first learn to prefer from comparisons that are plentiful, such as the votes on a forum's answers,
# and only then from the few that one has paid for. When can that help? A closed form shows it.
#
# You want a number $\theta$. Each of your own $n$ labels tells it with variance $v$. Others have $m$ labels, about
# something similar: their $\theta'$ differs from yours by an unknown amount of standard deviation $\tau$. Their mean
# tells your number with variance $v/m + \tau^2$. That is as good as
#
# $$ k = \frac{v}{v/m + \tau^2} < \frac{v}{\tau^2} $$
#
# labels of your own, and best combined, both together are worth $n + k$ of them. *However many they have, their labels
# are worth at most $v / \tau^2$ of yours.* By hand: for even comparisons $v = 4$ (section 1). With $\tau = 0.2$
# log-odds and $m = 6000$ their labels are worth $4 / (4/6000 + 0.04) = 98$ of yours, and an endless supply would be
# worth 100.


# %%
def worth_of_others(m, v, tau):
    return v / (v / m + tau**2)


k = worth_of_others(6000, 4.0, 0.2)
assert round(k) == 98
rng, n = np.random.default_rng(8), 100
theta = rng.normal(size=20_000)
others = theta + 0.2 * rng.normal(size=theta.size) + np.sqrt(4 / 6000) * rng.normal(size=theta.size)
own = theta + np.sqrt(4 / n) * rng.normal(size=theta.size)
both = (n * own + k * others) / (n + k)
print(
    f"mean squared error with {n} own labels {np.mean((own - theta) ** 2):.4f}, with both {np.mean((both - theta) ** 2):.4f}"
)
print(f"by the formula {4 / n:.4f} and {4 / (n + k):.4f}")
assert np.isclose(np.mean((both - theta) ** 2), 4 / (n + k), rtol=0.05)

# %% [markdown]
# So the saving is a *number* of labels, not a share of them: a great help to those who have few, next to nothing to
# those who have many. And once they are many, it is set by how much others resemble you ($\tau$), not by how many they
# are.
#
# ## 9. Preference-model pre-training
#
# Ours: the plentiful comparisons are about three quarters of the labeled topics ("elsewhere"), the few about the
# remaining quarter ("target"). Both come from the same kind of people, which makes it the friendly case. One model
# reads the comparisons from elsewhere once and then the target's once; its rival starts from the language model and
# reads the target's alone. Both are tested on held-out target comparisons.
#
# The sources' learning rates are given as shares of the language model's own: a tenth for PMP, a hundredth for
# fine-tuning on human feedback. We pre-train the reward model with the tenth, our usual rate, and fine-tune with both.
#
# > **Predict.** At how many target comparisons is the gain largest, and what becomes of it? Which of the two rates
# > suits a few hundred comparisons?


# %%
def target_accuracy(read, rate):
    """Accuracy on held-out target labels for each seed and number of target comparisons, none first: (S, 1 + T)."""
    columns = [(read, "x0.1", 0), *((read, rate, n) for n in size.target_pairs)]
    return np.array([[accuracy(runs[*column, s]) for column in columns] for s in range(seeds)])


arms = {
    (name, rate): target_accuracy(read, rate)
    for name, read in (("without PMP", 0), ("after PMP", size.elsewhere_pairs))
    for rate in rates
}
pmp, without = arms["after PMP", "x0.1"], arms["without PMP", "x0.1"]

# %%
figure, axis = plt.subplots(figsize=(6.4, 4.0))
places = np.arange(1 + len(size.target_pairs))
for index, ((name, rate), values) in enumerate(arms.items()):
    plots.curve_with_band(axis, places, values, f"{name}, rate {rate}", index)
for key_, style, label in (
    ("ceiling", "--", "ceiling of the labels"),
    ("audit.longer_wins", ":", "the longer one wins"),
):
    axis.axhline(results.numbers[f"{key_}.target"]["value"], color="0.2", linestyle=style, linewidth=1, label=label)
axis.set_xticks(places, ["none", *(f"{n:,}" for n in size.target_pairs)])
axis.set(
    xlabel="comparisons about the target topics (not to scale)",
    ylabel="accuracy (share of held-out target pairs)",
    ylim=(0.43, 0.85),
)
axis.legend(fontsize="small", ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
words = "; ".join(
    f"{name}, rate {rate}: " + ", ".join(f"{v:.2f}" for v in values.mean(axis=0))
    for (name, rate), values in arms.items()
)
alt = f"""Accuracy on held-out target labels after none, {", ".join(f"{n:,}" for n in size.target_pairs)} target comparisons, without
PMP and after {size.elsewhere_pairs:,} comparisons about other topics, at two learning rates; mean over seeds ({seeds}).
{words}."""
plots.show(figure, alt, name="pmp")

# %% [markdown]
# The rules, all with accuracy on held-out target labels and the rate x0.1 (the better one for both in trial runs). PMP
# *saves labels* if, averaged over the numbers of target comparisons, the model after PMP is better than the one
# without it with as many. Its gain *fades* if it is better with the fewest than with the most.

# %%
gains = pmp - without  # (S, 1 + T)
for n, column in zip(size.target_pairs, gains.T[1:], strict=True):
    results.number(f"pmp.gain_{n}", statistics.t_interval(column), "accuracy, after PMP minus without")
for model, values in (("pmp", pmp), ("without", without)):
    for n, column in zip(size.target_pairs, values.T[1:], strict=True):
        results.number(f"accuracy.{model}_{n}.target", statistics.t_interval(column), "share of pairs")
results.number("accuracy.pmp_0.target", statistics.t_interval(pmp[:, 0]), "share of pairs")
few, many = size.target_pairs[0], size.target_pairs[-1]
on_average = statistics.better(pmp[:, 1:].mean(axis=1), without[:, 1:].mean(axis=1))
fades = statistics.better(gains[:, 1], gains[:, -1])
results.number("pmp.gain_mean", on_average.difference, "accuracy, after PMP minus without")
results.table(*(f"pmp.gain_{n}" for n in size.target_pairs), "pmp.gain_mean")

# %%
results.state(
    "pmp_saves_labels",
    on_average,
    expect="better",
    text={
        "better": "Preference-model pre-training saves labels: with as many target comparisons it is ahead by {difference}.",
        "inconclusive": "Whether preference-model pre-training saves labels is inconclusive: with as many target comparisons {difference}.",
        "worse": "Preference-model pre-training does harm: with as many target comparisons {difference}.",
    },
)
results.state(
    "pmp_gain_fades",
    fades,
    expect="better",
    text={
        "better": f"The gain fades: {{pmp.gain_{few}}} with {few} target comparisons, {{pmp.gain_{many}}} with {many:,}.",
        "inconclusive": f"Whether the gain fades is inconclusive: {{pmp.gain_{few}}} with {few}, {{pmp.gain_{many}}} with {many:,}.",
        "worse": f"The gain grows: {{pmp.gain_{few}}} with {few} target comparisons, {{pmp.gain_{many}}} with {many:,}.",
    },
)
results.show("pmp_saves_labels", "pmp_gain_fades")

# %% [markdown]
# What were the comparisons from elsewhere worth, in comparisons of the target's own? The model that has read only those
# is as good as one without PMP with so many target comparisons, by the straight line through the latter's accuracies
# (the mean is taken of doublings, and no comparison from elsewhere is counted as more than one of the target's):


# %%
def power_of_two(interval):
    """The interval of 2 ** x, from that of x."""
    low, high = (None if end is None else 2**end for end in (interval.low, interval.high))
    return statistics.Interval(2**interval.value, low, high, interval.level, interval.n, interval.unit)


lines = [np.polyfit(np.log2(size.target_pairs), values[1:], 1) for values in without]
doublings = [(transferred - line[1]) / line[0] for line, transferred in zip(lines, pmp[:, 0], strict=True)]
doublings = np.clip(doublings, 0, np.log2(size.elsewhere_pairs))
results.number("pmp.worth", power_of_two(statistics.t_interval(doublings)), "target comparisons without PMP")
results.number("pmp.read", size.elsewhere_pairs, "comparisons about other topics")
results.table("accuracy.pmp_0.target", "pmp.read", "pmp.worth")

# %% [markdown]
# That is the exchange rate of the friendly case, other topics and the same kind of people. Now the learning rate. A
# share of the pre-training's rate is no law of nature: what matters is how far the weights can travel, that is rate
# times steps, and a few hundred comparisons are about a dozen steps. The rule: the hundredth is *too slow* here if with
# the most target comparisons the model after PMP is better with the tenth.

# %%
low_rate = arms["after PMP", "x0.01"]
results.number(f"accuracy.pmp_{many}_low_rate.target", statistics.t_interval(low_rate[:, -1]), "share of pairs")
results.state(
    "low_rate_is_too_slow",
    statistics.better(pmp[:, -1], low_rate[:, -1]),
    expect="better",
    text={
        "better": f"With {many:,} target comparisons, a hundredth of the rate is too slow: a tenth is better by {{difference}}.",
        "inconclusive": f"Between a tenth and a hundredth of the rate, with {many:,} target comparisons, the difference is inconclusive: {{difference}}.",
        "worse": f"With {many:,} target comparisons a hundredth of the rate is better than a tenth: {{difference}}, tenth minus hundredth.",
    },
)
results.show("low_rate_is_too_slow")

# %% [markdown]
# The sources report the hundredth for models that are twenty to a hundred thousand times as large, which as a rule want
# smaller rates, and for many more steps. Take the order of the phases from them, and find the rates in a trial run.

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** *Attempts to align language models by putting the reward in the prompt* (2023) places the
# accuracy of its joint reward model near a line of figure 7 of Bai et al. (2022), and asks itself which held-out set
# that figure uses. The question is decisive: as the table of section 4 shows, every test set has a ceiling of its own,
# and an accuracy means something only beside it. The table and the code of that document also disagree about the
# number:

# %%
joint = [source_figures.figure(f"reward_in_the_prompt.accuracy_joint{place}") for place in ("", "_in_the_code")]
Markdown(
    "\n".join(["| accuracy | where | how |", "|--:|---|---|", *(f"| {f.value} | {f.where} | {f.how} |" for f in joint)])
)

# %% [markdown]
# ## Exercises
#
# **1.** You have 2,000 comparisons and a reward model that is not good enough. By the formula of section 2, at which
# accuracy (in true order) does another 2,000 help most? What does it add if you are at .9 already?
#
# <details><summary>Hint</summary>
#
# Write $t = \tan(\pi (1 - \text{accuracy}))$. Doubling the data divides $t$ by $\sqrt 2$.
#
# </details>
#
# <details><summary>Answer</summary>
#
# At .72: the best doubling has .75 in its middle. It begins at $t = 2^{1/4}$, an accuracy of $1 - \frac1\pi \arctan
# 2^{1/4} = .723$, and ends at .777: it adds .055. (One that begins at .75 adds .054.) At .9, $t = \tan(.1 \pi) = .325$,
# and the doubling leads to $1 - \frac1\pi \arctan(.325 / \sqrt 2) = .928$: it adds .028. Far out, every doubling takes
# away about 30 % of the remaining errors, a factor $1/\sqrt 2$.
#
# </details>
#
# **2.** A labeling company offers two services: careful labels at 1 dollar, of which 5 % are turned round, or quick
# ones at 30 cents, of which 25 % are. Which is the better buy? At which price would the quick ones be as good?
#
# <details><summary>Hint</summary>
#
# Worth per dollar, with the worth of section 3.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Careful: $(1 - .1)^2 = .81$ for a dollar. Quick: $(1 - .5)^2 = .25$ for 30 cents, so .83 for a dollar: to first order
# about the same; at $.25 / .81 = .309$, 31 cents, they would be equal. At the $\lvert w \rvert = 1$ of section 3 the
# exact worths are .78 and .22, so .78 against .74 for a dollar: there the careful ones win. And someone has to write
# the answers that are compared: with that cost added to both, careful labels win.
#
# </details>
#
# **3.** In section 7 the held-out labels stay as they are. What would the curve *on labels* of the noisy pass look like
# if a quarter of the held-out labels were turned round too, and would you notice that they are?
#
# <details><summary>Answer</summary>
#
# An accuracy $a$ becomes $\frac14 (1 - a) + \frac34 a = \frac14 + \frac12 a$: the whole curve is squeezed towards one
# half, its slope halved. The model is the same. From the curve alone you would not notice; you would from the agreement
# between two labelers who judge the same pairs. This is why an accuracy belongs beside the ceiling of its labels.
#
# </details>
#
# **4.** Double `elsewhere_pairs` of your profile in `profiles.toml`. What does section 8 say must happen
# to what they are worth, and what happens?
#
# <details><summary>Hint</summary>
#
# $k$ as a function of $m$: for $m$ far below $v/\tau^2$ it grows like $m$, far above it hardly at all.
#
# </details>
#
# <details><summary>Answer</summary>
#
# If the worth doubles too, their number was the limit, and more would help; if it stays, the difference between the
# topics was. One seed is too noisy to tell: run at least five.
#
# </details>
#
# **5.** Instead of two phases one could mix the comparisons from elsewhere and the target's and read them in one pass.
# By the closed form of section 8, is the order of reading important? Why do the sources use phases?
#
# <details><summary>Answer</summary>
#
# For the closed form it is not: the best combination weighs the labels by their worth, whatever their order. A network
# trained by small steps forgets a little, so what it reads last weighs more, which is what one wants of the labels that
# count most; and a model that is pre-trained once serves many who have different targets.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Askell et al. (2021), *A general language assistant as a laboratory for alignment*, [arXiv 2112.00861](https://arxiv.org/abs/2112.00861): preference-model pre-training, and how it scales.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*, [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): figure 7, and the three phases.
# - Stiennon et al. (2020), *Learning to summarize from human feedback*, [arXiv 2009.01325](https://arxiv.org/abs/2009.01325): reward models against data and model size.
# - Schuirmann (1987), *A comparison of the two one-sided tests procedure and the power approach*, Journal of
#   Pharmacokinetics and Biopharmaceutics 15: how to show that two things are the same.
