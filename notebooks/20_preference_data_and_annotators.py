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
# # Preference data and annotators
#
# **What is a comparison worth, and whose preference does a reward model learn?**
#
# A reward model knows nothing but comparisons: someone saw two answers and said which one is better. So before we build
# reward models we look at the people behind them, at how much a single judgment says, and at everything that can go
# wrong with it: noise, haste, a weakness for long answers, an eye on whatever stands first, and plain differences of
# taste. Here you judge answers yourself, and train a reward model and a policy of your own taste. After that the people
# are simulated, because only then do we know what they wanted, and can say what a reward model has made of it.

# %% [markdown]
# ## What you will learn
#
# - what a comparison is, how much it says, and how the data of hh-rlhf look;
# - how thirty labels of your own become a reward and a policy;
# - what labelers do wrong, and how kappa, alpha, gold questions and the method of Dawid and Skene find out;
# - when more labels help, when more labelers do, and what neither can repair;
# - whose taste a reward model learns where people disagree;
# - what the Bradley-Terry model can recover from comparisons, and what it cannot.

# %% [markdown]
# ## What you should know
#
# What a reward model and a policy gradient are (the notebook *RLHF in ten minutes* is enough), and the Bradley-Terry
# model (*Elo and Bradley-Terry*, whose section 6 fits it by hand).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import json
from dataclasses import replace

import joblib
import numpy as np
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from scipy import special, stats

from rlhf_lab import ROOT, claims, parallel, plots, preferences, ratings, recipes, reward_model, statistics, taste
from rlhf_lab.label_quality import cohen_kappa, dawid_skene, krippendorff_alpha, majority
from rlhf_lab.labeling import Interface, Session, read_labels, simulate
from rlhf_lab.profiles import Profile
from rlhf_lab.source_figures import figure as reported
from rlhf_lab.tinyhh import annotators, generator, gold
from rlhf_lab.tinyhh.annotators import Annotator
from rlhf_lab.tinyhh.knowledge import Kind, SortingTask
from rlhf_lab.transcripts import split_last_turn

size = Profile.load(profile)
results = claims.Claims("20_preference_data_and_annotators", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# Every random choice follows from a seed. A *seed* repeats every experiment with new prompts, new judgments and new
# models, and it is the unit in which we count evidence. Square brackets hold 95 % intervals over seeds. The rule of a
# claim stands above the cell that decides it and was fixed before the published run; settings were tried out with other
# seeds. One seed decides nothing, so the published verdict is then shown beside it.

# %%
RUNG = "0.2M"  # all models of this notebook are of the smallest size: there are many of them


def pairs_of(split, n, seed):
    """n prompts with two different responses each, about helpful matters: (prompt, response, response)."""
    return [pair[:3] for pair in generator.comparisons("helpful-base", split, n, 10_000 + seed)]


def interval(values):
    """The interval over seeds."""
    return statistics.t_interval(np.asarray(values, dtype=float))


# %% [markdown]
# ## 1. What a comparison is worth
#
# A comparison is a prompt $\prompt$, two responses $\resp_1$ and $\resp_2$, and a verdict. The model behind all that
# follows says how likely each verdict is. Let $u(\prompt, \resp)$ be what a response is worth to the person who judges,
# and $s$ the person's skill at seeing the difference. Then, with $\sigmoid(z) = 1 / (1 + e^{-z})$,
#
# $$ P(\resp_1 \succ \resp_2 \mid \prompt) = \sigmoid\big(s\,(u(\prompt, \resp_1) - u(\prompt, \resp_2))\big) . $$
#
# The argument of $\sigmoid$ is in *log-odds*: 0 is a coin flip, 1 stands for about three in four. How often must a pair
# be judged, by people like this one, until the majority is right in 95 of 100 cases?

# %%
print("log-odds  P(first)  judgments needed  Fisher information of one")
for log_odds in (0.25, 0.5, 1.0, 2.0, 3.0):
    p = special.expit(log_odds)
    needed = next(n for n in range(1, 2000, 2) if stats.binom.sf(n // 2, n, p) >= 0.95)
    print(f"{log_odds:8.2f}  {p:8.2f}  {needed:16d}  {p * (1 - p):12.3f}")

# %% [markdown]
# One judgment of two answers that are nearly equal says almost nothing about *which* is better. But it says most about
# *how much* better: the Fisher information $p(1-p)$ is largest for a coin flip, and after $n$ judgments the log-odds
# are known up to a standard error of $1 / \sqrt{n\,p(1-p)}$. A pair whose outcome is certain teaches nothing about the
# difference. By hand, for 100 judgments of which 73 went one way, against the module of the Bradley-Terry notebook:

# %%
p, n = 0.73, 100
by_hand = np.log(p / (1 - p)), 1 / np.sqrt(n * p * (1 - p))
two = ratings.Comparisons.from_names([("y1", "y2", "left")] * 73 + [("y1", "y2", "right")] * 27)
found = ratings.bradley_terry(two).difference("y1", "y2")
print("log-odds", by_hand[0].round(3), "standard error", by_hand[1].round(3))
assert np.isclose(found.value, by_hand[0]) and np.isclose((found.high - found.low) / 2, 1.96 * by_hand[1], rtol=1e-3)

# %% [markdown]
# So a comparison carries little, and labels are bought by the thousand. That makes it worth knowing what else is in
# them.
#
# ## 2. The format of hh-rlhf
#
# Anthropic published its comparisons, *hh-rlhf*, as lines of JSON with two transcripts each, `chosen` and `rejected`.
# They are, with few exceptions, the same up to the last turn of the assistant. The miniature world *tinyhh* of this
# course writes the same format:

# %%
rows, report = preferences.load_preferences("tinyhh", "helpful-base", "test", size=200)
row = next(row for row in rows if len(row["prompt"] + row["chosen"] + row["rejected"]) < 250)
print(json.dumps({side: row["prompt"] + row[side] for side in ("chosen", "rejected")}, indent=1))
print("\nprompt:  ", repr(row["prompt"]))
assert split_last_turn(row["prompt"] + row["chosen"]) == (row["prompt"], row["chosen"])

# %% [markdown]
# The prompt ends where the assistant is about to speak: split at the *last* `\n\nAssistant:`, not at the first, and not
# at the last blank line, or a part of a longer answer ends up in the prompt. A loader should also drop pairs whose
# sides are equal or whose prompts differ, and say how many. If a copy of the real data is at hand (`HH_RLHF_DIR`), this
# is how its dialogues look from afar; to read one, print a row of `real`:

# %%
try:
    real, real_report = preferences.load_preferences(preferences.HH_RLHF, "helpful-base", "test")
    print(real_report, "\n")
    turns = [row["prompt"].count("\n\nHuman:") for row in real]
    words = [len(row[side].split()) for row in real for side in ("chosen", "rejected")]
    print("human turns of a dialogue: median", int(np.median(turns)), "at most", max(turns))
    print("words of an answer: median", int(np.median(words)), "at most", max(words))
except preferences.PreferenceDataError as missing:
    print(missing, "The rest of the notebook does not need it.")

# %% [markdown]
# A trap in the *harmless* half of hh-rlhf (whose texts no notebook shows): there the labelers were asked which
# answer is *more* harmful, and the published file is turned round, so that `chosen` is again the better one.
#
# ## 3. Judge for yourself
#
# Now you are the labeler. Set `label_by_hand` to `True` and run the cell: you see a prompt and two answers, and press a
# button; thirty pairs take about five minutes. There is no right answer. Decide beforehand what *you* like (short
# answers? kind ones? those that admit doubt?), and stay with it. Three habits of professionals are built in: which
# response stands first is random and recorded, you may say that you cannot tell, and every judgment is written to the
# file at once.

# %%
label_by_hand = False  # True: judge thirty pairs yourself, then run the cells below
THIRTY = 30
mine = ROOT / "build" / "mine.jsonl"
if label_by_hand:
    display(Interface(Session(pairs_of("train", THIRTY, seed=0), mine, seed=0)))
else:
    print("The labels below are those of a simulated person.")

# %% [markdown]
# Whoever lets the notebook run unattended gets a simulated person instead: one who likes helpful answers, likes them
# short (each word costs a tenth of a point), and sometimes cannot decide. This person goes through the same questions,
# and writes a file of the same format. A judgment is one line:

# %%
person = Annotator(length_bias=-0.1, tie_propensity=0.3)
ASKED = (10, THIRTY, 100, 300)  # for the simulated person, to see what more labels would bring


def judged_by_person(seed):
    """The labels of the simulated person, through the same file as yours, with the ties left out."""
    path = ROOT / "build" / "labels" / f"simulated-{profile}-{seed}.jsonl"
    path.unlink(missing_ok=True)
    simulate(pairs_of("train", max(ASKED), seed), person, path, seed)
    return path


files = [judged_by_person(seed) for seed in range(seeds)]
print(files[0].read_text().splitlines()[0])

# %%
labels = [read_labels(path) for path in files]
my_rows = read_labels(mine).rows if label_by_hand else labels[0].rows[:THIRTY]
print(f"The simulated person: {len(labels[0].rows)} preferences and {labels[0].ties} ties")
print(f"{len(my_rows)} preferences of {'yours' if label_by_hand else 'the simulated person'} to learn from")


# %% [markdown]
# ## 4. Thirty labels become a reward and a policy
#
# Thirty labels cannot fix the weights of a neural network. But they can *correct* one. We start from a reward model
# that has learned from many comparisons what most people prefer, with score $r_0$, and add three things that people
# differ in and that can be counted: words, friendly words, careful words. The reward of one person is
#
# $$ r(\prompt, \resp) = w_0\, r_0(\prompt, \resp) + \sum_j w_j\, f_j(\resp) , $$
#
# and the four weights maximize the likelihood of the labels under Bradley-Terry, minus a *ridge* that draws $w_0$ to 1
# and the others to 0: until your labels say otherwise, you are taken for one of many. (Large models do the same with
# all their weights: pre-train on everybody's preferences, then fine-tune on few.)
#
# The ridge by hand, for a single feature and two labels with differences 1 and 2: at the maximum, the labels' pull
# $\sum_i \sigmoid(-w d_i)\, d_i$ and the ridge's pull are equal.

# %%
differences = np.array([[1.0], [2.0]])
w = taste.ridge(differences, prior=np.zeros(1))
pull = (special.expit(-differences @ w) @ differences).item()
print(f"weight {w[0]:.3f}: the labels pull with {pull:.3f}, the ridge with {taste.STRENGTH * w[0]:.3f}")
assert np.isclose(pull, taste.STRENGTH * w[0], atol=1e-4)

# %%
prepared = parallel.run(  # the fine-tuned policies are needed a little later
    [joblib.delayed(recipes.pairwise_model)(RUNG, "helpful", size.label_pairs, seed=seed) for seed in range(seeds)]
    + [joblib.delayed(recipes.sft_policy)(RUNG, size.demonstrations, seed=seed) for seed in range(seeds)]
)
judges, (_, tokenizer) = prepared[:seeds], recipes.base(RUNG)


def general(seed):
    """The score of the reward model that learned what most people prefer, in log-odds."""
    return lambda prompts, responses: reward_model.score(judges[seed], tokenizer, prompts, responses).numpy()


my_taste = taste.fit(my_rows, general(0))
print(f"general score {my_taste.general_weight:5.2f}  per log-odds")
for name, weight, unit in zip(taste.FEATURES, my_taste.weights, my_taste.units, strict=True):
    print(f"{name:14}{weight:5.2f}  per {unit:.2g}")

# %% [markdown]
# These four numbers are what the labels say about the person, in log-odds of a choice. How well do they predict? For
# the simulated person we know the true preference between *any* two answers, and can count in how many new pairs the
# reward puts them in that order.
#
# > **Predict.** How often is the general reward model right about a person who likes short answers? How many labels
# > does it take until the correction pays?


# %%
def agreement(score, pairs):
    """How often a score and the person, freed of all noise, put the responses of a pair in the same order."""
    prompts, first, second = (list(column) for column in zip(*pairs, strict=True))
    wanted = np.array([person.utility(p, a) - person.utility(p, b) for p, a, b in pairs])
    margin = score(prompts, first) - score(prompts, second)
    return np.mean((margin > 0) == (wanted > 0), where=wanted != 0)


def agreement_curve(seed):
    """The agreement after each number of labels, that of the general model, and that of "the shorter one wins"."""
    unseen = pairs_of("test", size.test_pairs // 4, seed)
    tastes = [taste.fit(labels[seed].rows[:n], general(seed)) for n in ASKED]
    shorter = agreement(lambda _, responses: -np.array([len(r.split()) for r in responses]), unseen)
    return [agreement(mine.score, unseen) for mine in tastes], agreement(general(seed), unseen), shorter


measured = parallel.run(joblib.delayed(agreement_curve)(seed) for seed in range(seeds))
curves, generally, shorter = (np.array(values) for values in zip(*measured, strict=True))  # (S, labels), (S,), (S,)

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.6))
plots.curve_with_band(axis, ASKED, curves, "the corrected model")
plots.curve_with_band(axis, ASKED, np.tile(generally[:, None], len(ASKED)), "the general model", 1)
axis.set_xscale("log")
axis.set_xticks(ASKED, ASKED)
axis.minorticks_off()
axis.set_xlabel("labels of the person")
axis.set_ylabel("unseen pairs in the person's order (share)")
axis.axhline(shorter.mean(), color="0.2", linestyle="--", linewidth=1, label="the shorter one wins")
axis.set_ylim(generally.min() - 0.1, max(curves.max(), shorter.max()) + 0.1)
axis.legend(fontsize="small")
alt = f"""Share of unseen pairs that a reward puts in the order of a person who likes short answers, against the
number of that person's labels: the corrected model goes from {curves[:, 0].mean():.2f} with {ASKED[0]} labels to
{curves[:, -1].mean():.2f} with {ASKED[-1]}; the general model has {generally.mean():.2f}, "the shorter one
wins" {shorter.mean():.2f}. The axis does not begin at zero."""
plots.show(figure, alt, name="thirty_labels")

# %% [markdown]
# The rule: *thirty labels find the taste* if, with 30 labels, the corrected model is better than the general one. That
# is a low bar: what sets this person apart, length, is one of the three features. So there is a second rule, which we
# do not expect to pass with so few labels: the model *beats the shortcut* if it is better than "the shorter one wins".

# %%
results.number("taste.general", interval(generally), "share of pairs in the person's order")
results.number("taste.thirty_labels", interval(curves[:, ASKED.index(THIRTY)]), "share of pairs in the person's order")
results.state(
    "thirty_labels_find_the_taste",
    statistics.better(curves[:, ASKED.index(THIRTY)], generally),
    expect="better",
    text={
        "better": "Thirty labels raise the agreement with one person's taste from {taste.general} to "
        "{taste.thirty_labels}.",
        "inconclusive": "Whether thirty labels improve on the general model is inconclusive: {taste.thirty_labels} "
        "against {taste.general}.",
        "worse": "With thirty labels the corrected model is worse than the general one: {taste.thirty_labels} against "
        "{taste.general}.",
    },
)

# %%
results.number("taste.shorter_wins", interval(shorter), "share of pairs in the person's order")
results.state(
    "thirty_labels_beat_the_shortcut",
    statistics.better(curves[:, ASKED.index(THIRTY)], shorter),
    expect="inconclusive",
    text={
        "better": "That is also better than the shortcut, the shorter one wins: {taste.shorter_wins}.",
        "inconclusive": "Whether that is better than the shortcut, the shorter one wins, is inconclusive: "
        "{taste.shorter_wins}.",
        "worse": "The shortcut, the shorter one wins, does better: {taste.shorter_wins}.",
    },
)
results.show("thirty_labels_find_the_taste", "thirty_labels_beat_the_shortcut")

# %% [markdown]
# A reward is made to be followed. The policy gradient of *RLHF in ten minutes* now improves a fine-tuned policy against
# the corrected reward, and another copy of it against the general one, for comparison. Both are held near the
# fine-tuned policy by a KL penalty that is stronger than there, because the general model is small and was trained for
# seconds.

# %%
sizes = (size.rl_updates // 4, size.rl_prompts_per_update, size.test_prompts // 3)


def policy_job(rows, seed):
    triples = tuple((row["prompt"], row["chosen"], row["rejected"]) for row in rows)
    return joblib.delayed(recipes.taste_run)(RUNG, size.demonstrations, size.label_pairs, triples, *sizes, seed=seed)


jobs = [policy_job(labels[seed].rows[:THIRTY], seed) for seed in range(seeds)]
jobs += [policy_job([], seed) for seed in range(seeds)]  # without labels: the general model alone
finished = parallel.run([*jobs, policy_job(my_rows, 0)] if label_by_hand else jobs)
my_run = finished.pop() if label_by_hand else finished[0]
corrected_runs, general_runs = finished[:seeds], finished[seeds:]


def worth(run, stage):
    """The mean utility of a policy's answers for the simulated person, in points."""
    return np.mean([person.utility(p, r) for p, r in zip(run["prompts"], run[stage], strict=True)])


# %% [markdown]
# The rule: *the policy follows the taste* if, to the person, the answers of the corrected policy are worth more than
# those of the fine-tuned policy **and** more than those of the policy that followed the general reward model.

# %%
before, after = ([worth(run, stage) for run in corrected_runs] for stage in ("before", "after"))
followed_general = [worth(run, "after") for run in general_runs]
for name, values in (("before", before), ("general", followed_general), ("corrected", after)):
    results.number(f"policy.{name}", interval(values), "points to the person")
results.state(
    "policy_follows_the_taste",
    statistics.rule(statistics.better(after, before), statistics.better(after, followed_general)),
    expect="holds",
    text={
        "holds": "To the person whose thirty labels it follows, the policy's answers are worth {policy.corrected} "
        "points: more than before ({policy.before}) and more than under the general reward model ({policy.general}).",
        "fails": "That thirty labels make a policy of one's taste is not established: {policy.corrected} points, "
        "against {policy.before} before and {policy.general} under the general reward model.",
    },
)
results.show("policy_follows_the_taste")

# %% [markdown]
# Read the answers. The first of each pair is the fine-tuned policy's, the second that of the policy which followed the
# labels of section 3 (yours, if you judged). Would you have known whose taste it is?

# %%
table = ["| | answer | words |", "|---|---|--:|"]
single = [i for i, prompt in enumerate(my_run["prompts"]) if prompt.count("Human:") == 1]
for i in single[:4]:
    question = my_run["prompts"][i].split("Human:")[-1].replace("Assistant:", "").strip()
    table.append(f"| **asked** | **{question}** | |")
    for stage in ("before", "after"):
        answer = " ".join(my_run[stage][i].split())
        table.append(f"| {stage} | {answer} | {len(answer.split())} |")
Markdown("\n".join(table))

# %% [markdown]
# ## 5. What labelers do
#
# From here on all labelers are simulated. Their dials are those that studies of real labelers talk about: *skill* (how
# well they see a difference), a weakness for *length* (in points a word), for the *position* (log-odds for whatever
# stands first), *ties*, and *intransitivity* (short answers lose to medium ones, medium to long, and long to short
# ones). One pair, shown in both orders, and what each kind of labeler would say:


# %%
def shows_much(prompt, first, second):
    """Whether a pair is easily read, the first response better, and the second much longer."""
    better = gold.helpfulness(prompt, first) > gold.helpfulness(prompt, second) + 0.5
    return prompt.count("Human:") == 1 and better and len(second) > len(first) + 100


prompt, first, second = next(pair for pair in pairs_of("test", 400, 0) if shows_much(*pair))
print(prompt.strip(), "\n A:", first.strip(), "\n B:", second.strip())
KINDS = {
    "usual skill": Annotator(),
    "low skill": Annotator(skill=0.3),
    "loves length": Annotator(length_bias=0.1),
    "loves what is first": Annotator(position_bias=1.5),
    "often undecided": Annotator(tie_propensity=1.5),
    "going in circles": Annotator(intransitivity=1.5),
}
for name, labeler in KINDS.items():
    shown, turned = labeler.compare(prompt, first, second), labeler.compare(prompt, second, first)
    print(f"{name:20} says A: {shown.first:.2f} (A shown first), {turned.second:.2f} (B first); tie: {shown.tie:.2f}")

# %% [markdown]
# The course's default crowd has eight labelers of unequal skill, all a little partial to length and to what stands
# first. How often do two of them agree? And how often would even the crowd's own favorite be right about one more
# judgment? That is the *ceiling* for every reward model tested on such labels.

# %%
crowd = annotators.crowd("helpful-base")
pairs = [pairs_of("test", size.test_pairs // 4, seed) for seed in range(seeds)]
for name, share in (("agreement", annotators.agreement), ("ceiling", annotators.ceiling)):
    values = [np.mean([share(crowd, *pair) for pair in of_seed]) for of_seed in pairs]
    results.number(f"crowd.{name}", interval(values), "share of pairs")
lines = ["| who | agreement | where |", "|---|--:|---|"]
lines += [f"| our default crowd | {results.numbers['crowd.agreement']['value']:.2f} | two labelers, same pair |"]
sources = (
    "instructgpt.agreement_training_labelers",
    "instructgpt.agreement_held_out_labelers",
    "helpful_and_harmless.agreement",
)
for key in sources:
    said = reported(key)
    lines.append(f"| {said.source.split(',')[0]} | {said.value:.2f} | {said.where} |")
display(results.table("crowd.agreement", "crowd.ceiling"), Markdown("\n".join(lines)))


# %% [markdown]
# ## 6. Who can be trusted?
#
# Agreement alone says little: two labelers who nearly always press "first" nearly always agree. *Cohen's kappa*
# subtracts what chance would give. With $p$ the share of items on which two labelers agree, and $e$ the share to be
# expected if each pressed their buttons as often as they do, but at random,
#
# $$ \kappa = \frac{p - e}{1 - e} . $$
#
# By hand: of 50 pairs, both say "first" 20 times and both "second" 15 times; the first labeler says "first" in 25
# cases, the second in 30.

# %%
p, e = (20 + 15) / 50, (25 * 30 + 25 * 20) / 50**2
one = [0] * 20 + [0] * 5 + [1] * 10 + [1] * 15
other = [0] * 20 + [1] * 5 + [0] * 10 + [1] * 15
print(f"agreement {p}, by chance {e}, kappa {(p - e) / (1 - e):.2f}")
assert np.isclose((p - e) / (1 - e), cohen_kappa(one, other))

# %% [markdown]
# *Krippendorff's alpha* does the same for any number of labelers, and does not mind missing labels. Now a team of
# eight, hired without looking: five from the default crowd, two who do not read, and one who presses "first" most of
# the time. All judge the same pairs, and since we simulate, we know which response is truly better.

# %%
careless = Annotator(skill=0.0)
team = (*crowd[1:6], careless, careless, Annotator(skill=0.0, position_bias=4.0))
MEMBERS = [f"crowd {i}" for i in range(1, 6)] + ["careless 1", "careless 2", "presses first"]


def with_a_better_one(n, seed):
    """n pairs whose responses are not equally good, and which is better: 0 for the first, 1 for the second."""
    pairs = pairs_of("test", 2 * n, seed)
    differences = np.array([gold.helpfulness(p, a) - gold.helpfulness(p, b) for p, a, b in pairs])
    unequal = np.flatnonzero(differences)[:n]
    return [pairs[i] for i in unequal], (differences[unequal] < 0).astype(int)


def label_matrix(labelers, pairs, seed):
    """What every labeler says of every pair: 0 for the first response, 1 for the second, (L, N)."""
    chances = np.array([[labeler.compare(*pair).first for pair in pairs] for labeler in labelers])
    return (np.random.default_rng([6, seed]).random(chances.shape) >= chances).astype(float)


items = [with_a_better_one(size.test_pairs // 5, seed) for seed in range(seeds)]  # (pairs, truth) of every seed
matrices = [label_matrix(team, pairs, seed) for seed, (pairs, _) in enumerate(items)]
print(f"labels (labelers, pairs): {matrices[0].shape}, alpha: {krippendorff_alpha(matrices[0]):.2f}")
for name, k in (("crowd 1 and crowd 2", 1), ("crowd 1 and careless 1", 5)):
    print(f"kappa of {name}: {cohen_kappa(matrices[0][0], matrices[0][k]):.2f}")

# %% [markdown]
# A low alpha has two possible causes, careless labelers or pairs that are hard to tell apart, and it names nobody. Two
# ways to find out who it is:
#
# - **Gold questions**: mix in pairs whose answer you know (here 20), and do without those who miss too many (here:
#   right on fewer than 65 %). Simple and common; every gold question is paid for and teaches nothing new.
# - **Dawid and Skene** (1979): no answer key at all. Guess the truth by majority; from that, estimate how each labeler
#   confuses answers; with that, weigh the votes and guess the truth again; and so on (this is the EM algorithm).
#   A labeler who agrees with reliable labelers is taken to be reliable.
#
# One step of it by hand: three labelers, of whom the third is right half of the time, judge one pair. If the first two
# are right in 80 % and disagree, their votes cancel; the third one's vote should not count.

# %%
likelihood_first = 0.8 * 0.2 * 0.5  # labelers 1 and 3 say "first", 2 says "second", if the first is better
likelihood_second = 0.2 * 0.8 * 0.5
print(
    "P(first is better) =",
    likelihood_first / (likelihood_first + likelihood_second),
    "- a majority vote says first, for certain",
)

# %%
fits = [dawid_skene(labels_of) for labels_of in matrices]
true_accuracy = np.mean(
    [(m == truth).mean(axis=1) for m, (_, truth) in zip(matrices, items, strict=True)], axis=0
)  # (L,)
estimated = np.mean([fit.accuracy for fit in fits], axis=0)  # (L,), without an answer key
figure, axis = plt.subplots(figsize=(6.4, 3.8))
at = np.arange(len(team))
axis.plot(at, true_accuracy, "o", color="black", label="true (from the gold rewards)")
axis.plot(at, estimated, "x", color=plots.COLORS[1], markersize=9, label="estimated (Dawid and Skene)")
axis.axhline(0.5, color="0.3", linestyle=":", linewidth=1)
axis.set_xticks(at, MEMBERS, rotation=30, ha="right")
axis.set_ylabel("right (share of pairs)")
axis.set_ylim(0.4, 1)
axis.legend(fontsize="small")
each = ", ".join(f"{name} {t:.2f} and {e:.2f}" for name, t, e in zip(MEMBERS, true_accuracy, estimated, strict=True))
alt = f"""How often each of eight labelers is right, in truth and as estimated without an answer key: {each}. Means over
seeds; the axis begins at 0.4. Dotted: chance."""
plots.show(figure, alt, name="dawid_skene")

# %% [markdown]
# Without an answer key, the method tells who reads and who does not. Where its crosses lie above the dots, it thinks
# too well of the honest ones: it takes their errors for independent, but a pair that is hard for one is hard for all,
# and they share small biases.
#
# > **Predict.** Eight votes on each pair, three of them worthless. How much is lost by counting them all alike?
#
# The rule: *Dawid-Skene beats majority* if its labels are right more often than those of the majority vote of all eight
# (a split vote counts half).


# %%
def share_right(found, truth):
    return np.where(np.isnan(found), 0.5, found == truth).mean()


def screened(seed):
    """The majority of those who passed 20 gold questions."""
    questions, answers = with_a_better_one(20, 1000 + seed)
    passed = (label_matrix(team, questions, 1000 + seed) == answers).mean(axis=1) >= 0.65
    return majority(matrices[seed][passed]) if passed.any() else np.full(len(items[seed][1]), np.nan)


found = {
    "majority": [majority(labels_of) for labels_of in matrices],
    "gold_questions": [screened(seed) for seed in range(seeds)],
    "dawid_skene": [fit.labels for fit in fits],
}
right = {way: [share_right(f, truth) for f, (_, truth) in zip(by, items, strict=True)] for way, by in found.items()}
for way, shares in right.items():
    results.number(f"right.{way}", interval(shares), "share of pairs labeled right")
results.table(*(f"right.{way}" for way in right))

# %%
results.state(
    "dawid_skene_beats_majority",
    statistics.better(right["dawid_skene"], right["majority"]),
    expect="better",
    text={
        "better": "With three worthless labelers among eight, Dawid-Skene labels {right.dawid_skene} of the pairs "
        "right, the majority vote {right.majority}.",
        "inconclusive": "Whether Dawid-Skene beats the majority vote is inconclusive: {right.dawid_skene} against "
        "{right.majority}.",
        "worse": "Dawid-Skene labels fewer pairs right than the majority vote: {right.dawid_skene} against "
        "{right.majority}.",
    },
)
results.show("dawid_skene_beats_majority")

# %% [markdown]
# Both methods find those who err *alone*. What if all err in the same direction? Take the default crowd once without
# any bias, and once with a strong weakness for length that all of them share (a tenth of a point a word).
#
# > **Predict.** Which of the two crowds has the higher alpha? Which is right more often? What will Dawid and Skene say?
#
# The rule: *a shared bias looks like agreement* if the biased crowd has the higher alpha **and** is right less often.

# %%
fair = tuple(replace(labeler, length_bias=0.0, position_bias=0.0) for labeler in crowd)
biased = tuple(replace(labeler, length_bias=0.1) for labeler in fair)
measured = {"alpha": [], "right": [], "believed": []}  # each (S, 2): fair, biased
for seed, (pairs_shown, truth) in enumerate(items):
    both = [label_matrix(labelers, pairs_shown, seed) for labelers in (fair, biased)]
    measured["alpha"].append([krippendorff_alpha(m) for m in both])
    measured["right"].append([(m == truth).mean() for m in both])
    measured["believed"].append([dawid_skene(m).accuracy.mean() for m in both])
measured = {name: np.array(values) for name, values in measured.items()}
units = {"alpha": "alpha", "right": "share right about the truth", "believed": "share right, as Dawid-Skene believes"}
for name, values in measured.items():
    for k, which in enumerate(("fair", "biased")):
        results.number(f"{which}_crowd.{name}", interval(values[:, k]), units[name])
results.table(*(f"{which}_crowd.{name}" for name in measured for which in ("fair", "biased")))

# %%
alpha, share = measured["alpha"], measured["right"]
results.state(
    "shared_bias_looks_like_agreement",
    statistics.rule(statistics.better(alpha[:, 1], alpha[:, 0]), statistics.better(share[:, 0], share[:, 1])),
    expect="holds",
    text={
        "holds": "A bias that all labelers share raises alpha from {fair_crowd.alpha} to {biased_crowd.alpha}, while "
        "they are right less often: {biased_crowd.right} instead of {fair_crowd.right}.",
        "fails": "That a shared bias looks like agreement is not established: alpha {fair_crowd.alpha} without and "
        "{biased_crowd.alpha} with it, right {fair_crowd.right} and {biased_crowd.right}.",
    },
)
results.show("shared_bias_looks_like_agreement")


# %% [markdown]
# Agreement measures whether labels can be *repeated*, not whether they are what you wanted. Against a shared bias only
# an answer key helps, or instructions, or other people.
#
# ## 7. How many labels, how many labelers?
#
# To see what labels alone can do, take the reward model's eyes out of the picture. Suppose it knew *exactly what to
# look at*: how many tips there are, how many sentences belong elsewhere, repeat or break off, and so on. In our world,
# what one response is worth more than another is linear in fourteen such counts $f$; we add the number of words, which
# is worth nothing by itself. Then a reward model is fifteen weights $w$, and the log-odds of a choice are
#
# $$ w \cdot \big(f(\resp_1) - f(\resp_2)\big) . $$
#
# We can compare each weight with the truth, which is written in the source code of the world. (Only differences between
# responses to the same prompt can show. So a first tip counts for what it earns *and* for the penalty on "no answer"
# that it averts, and a right order for what it earns and for what a wrong one costs.)

# %%
WORLD = {f"tip {k + 1}": points for k, points in enumerate(gold.TIPS)} | {"tip 1": gold.TIPS[0] - gold.NO_ANSWER}
WORLD |= {"off topic": gold.OFF_TOPIC, "broken": gold.UNKNOWN, "repeated": gold.REPETITION, "filler": gold.FILLER}
WORLD |= {"hedge": gold.HEDGE, "closing": gold.CLOSING, "refusal": gold.REFUSAL}
WORLD |= {"sorted": gold.RIGHT_ORDER - gold.WRONG_ORDER, "rambling": gold.RAMBLING, "word": 0.0}
POINTS = np.array(list(WORLD.values()))


def counts(prompt, response):
    """What the true reward looks at, in the order of `WORLD`."""
    r = gold.read(prompt, response)
    tips, closings = r.count(Kind.TIP, Kind.FALSE_TIP, Kind.RISKY_TIP, Kind.STEP), r.count(Kind.CLOSING)
    off_topic, filler = r.count(*Kind, on_topic=False), r.count(Kind.FILLER) + max(0, closings - 1)
    faults = [off_topic, r.kinds[None, False], r.repeated, filler, r.count(Kind.HEDGE)]
    rest = [closings > 0, r.count(Kind.REFUSAL) > 0, isinstance(r.subject, SortingTask) and r.right_orders > 0]
    return [*(tips > k for k in range(5)), *faults, *rest, max(0, r.words - gold.PATIENCE), len(response.split())]


def count_differences(split, n, seed):
    """The counts of the first response minus those of the second, (N, 15)."""
    return np.array([np.subtract(counts(p, a), counts(p, b), dtype=float) for p, a, b in pairs_of(split, n, seed)])


truth = [gold.helpfulness(p, a) - gold.helpfulness(p, b) for p, a, b in pairs_of("train", 300, 0)]
assert np.allclose(count_differences("train", 300, 0) @ POINTS, truth)

# %% [markdown]
# The assertion holds: these counts, times these points, *are* the true reward. Now labelers judge, and we fit the
# weights by Bradley-Terry (with the ridge of section 4, drawn to zero). A weight is skill times points, so we divide by
# the factor $c$ for which $c$ times the true points comes closest to the weights.

# %%
SKILL = 1.5
LABELS, LABELERS = (125, 250, 500, 1000, 2000, 4000), (1, 3, 10, 30)
DRAWS = max(1, size.rating_datasets // 20)  # simulated sets of labels for each seed and setting


def choices(rng, differences, points, position=0.0):
    """+1 where the first response is preferred and -1 elsewhere, by people to whom a count is worth `points`."""
    log_odds = SKILL * (differences * points).sum(axis=1) + position
    return np.where(rng.random(len(differences)) < special.expit(log_odds), 1, -1)


def fitted(differences, chosen):
    return taste.ridge(differences * chosen[:, None], np.zeros(differences.shape[1]), strength=1.0)


def in_points(weights):
    """Weights divided by the c for which c times the true points comes closest to them."""
    return weights / (weights @ POINTS / (POINTS @ POINTS))


def true_order(weights, differences):
    truth = differences @ POINTS
    return np.mean((differences @ weights > 0) == (truth > 0), where=truth != 0)


# %% [markdown]
# Three experiments, for each seed. First, 4,000 labels of people who want exactly what the world says is good. Second,
# people with *private tastes*: to each, every count is worth something else, the truth plus a deviation of 0.3 points
# (a word: 0.015) that is that person's own; we vary the number of people and the number of labels. Third, a crowd with
# a bias for what is shown first, once shown the responses in random order, and once always the longer one first.

# %%
PRIVATE = np.where(np.isin(list(WORLD), ["rambling", "word"]), 0.015, 0.3)


def with_private_tastes(rng, train, test, people, n):
    """The share of test pairs in true order after `n` labels by so many people."""
    points = POINTS + PRIVATE * rng.normal(size=(people, len(POINTS)))
    shown = train[rng.choice(len(train), n, replace=False)]
    return true_order(fitted(shown, choices(rng, shown, points[rng.integers(people, size=n)])), test)


def with_position_bias(rng, train, order, position):
    """The weights in points of people with this position bias, and the weight of standing first if it is recorded."""
    turn = np.where(train[:, -1] < 0, -1, 1) if order == "longer first" else rng.choice([-1, 1], len(train))
    shown = train * turn[:, None]  # what stands first, minus what stands second
    chosen = choices(rng, shown, POINTS, position)
    recorded = fitted(np.column_stack([shown, np.ones(len(shown))]), chosen)
    return in_points(fitted(shown, chosen)), recorded[-1]


# %%
def repeated(experiment, *arguments):
    """What `DRAWS` simulated sets of labels give."""
    return [experiment(*arguments) for _ in range(DRAWS)]


def label_experiments(seed):
    rng = np.random.default_rng([7, seed])
    train, test = count_differences("train", 4000, seed), count_differences("test", 1000, seed)
    unbiased = repeated(lambda: fitted(train, choices(rng, train, POINTS)))
    shown = {order: repeated(with_position_bias, rng, train, order, 1.0) for order in ("random", "longer first")}
    return {
        "points": in_points(unbiased[0]),
        "order": np.mean([true_order(weights, test) for weights in unbiased]),
        "grid": [
            [np.mean(repeated(with_private_tastes, rng, train, test, people, n)) for n in LABELS] for people in LABELERS
        ],
        "word": {order: np.mean([weights[-1] for weights, _ in fits]) for order, fits in shown.items()},
        "position": np.mean([first for _, first in shown["random"]]),
    }


ran = parallel.run(joblib.delayed(label_experiments)(seed) for seed in range(seeds))

# %%
recovered = np.array([run["points"] for run in ran])  # (S, 15)
figure, axis = plt.subplots(figsize=(7.2, 3.8))
at = np.arange(len(WORLD))
axis.bar(at, POINTS, color="0.8", label="true points")
for number, dots in enumerate(recovered):
    label = f"recovered from {LABELS[-1]:,} labels, one dot a seed"
    axis.plot(at, dots, "o", color=plots.COLORS[0], alpha=0.5, markersize=5, label=label if number == 0 else None)
axis.axhline(0, color="black", linewidth=0.8)
axis.set_xticks(at, list(WORLD), rotation=45, ha="right", fontsize="small")
axis.set_ylabel("reward (points)")
axis.legend(fontsize="small")
misses = np.abs(recovered - POINTS).mean(axis=0)
worst = misses.argmax()
alt = f"""The true points of fifteen counts as bars, and the weights recovered from {LABELS[-1]} noisy comparisons as
dots: they miss the bars by {misses.mean():.2f} points on average, and by {misses[worst]:.2f}, the most, at
"{list(WORLD)[worst]}"."""
plots.show(figure, alt, name="recovered_points")
results.number("recovered.order", interval([run["order"] for run in ran]), "share of pairs in true order")
results.number("recovered.error", interval(np.abs(recovered - POINTS).mean(axis=1)), "points, mean over counts")
results.table("recovered.order", "recovered.error")

# %% [markdown]
# So comparisons, which never mention points, are enough to recover them, up to a noise that shrinks with their number.
# Private tastes also average out, but only over *people*.
#
# > **Predict.** For one person, 3, 10 and 30: draw the share of pairs in true order against the number of labels. Which
# > curves stop rising?

# %%
grid = np.array([run["grid"] for run in ran])  # (S, people, labels)
figure, axis = plt.subplots(figsize=(6.4, 3.8))
for index, people in enumerate(LABELERS):
    plots.curve_with_band(axis, LABELS, grid[:, index], f"{people} {'people' if people > 1 else 'person'}", index)
axis.set_xscale("log")
axis.set_xticks(LABELS, LABELS)
axis.minorticks_off()
axis.set_xlabel("labels in all")
axis.set_ylabel("pairs in their true order (share)")
axis.set_ylim(grid.min() - 0.05, 1)
axis.legend(fontsize="small")
ends = ", ".join(f"{people}: {grid[:, k, -1].mean():.2f}" for k, people in enumerate(LABELERS))
alt = f"""Share of unseen pairs in true order (the axis does not begin at zero) against the number of labels, for
labels by 1, 3, 10 and 30 people with private tastes. At {LABELS[-1]} labels, by number of people: {ends}."""
plots.show(figure, alt, name="labels_and_labelers")

# %% [markdown]
# The rule: *many labelers beat many labels* if 1,000 labels by 30 people recover the true order better than 4,000
# labels by one.

# %%
few, many = grid[:, LABELERS.index(1), LABELS.index(4000)], grid[:, LABELERS.index(30), LABELS.index(1000)]
results.number("order.one_person_4000_labels", interval(few), "share of pairs in true order")
results.number("order.thirty_people_1000_labels", interval(many), "share of pairs in true order")
results.state(
    "many_labelers_beat_many_labels",
    statistics.better(many, few),
    expect="better",
    text={
        "better": "A thousand labels by thirty people put {order.thirty_people_1000_labels} of the pairs in true "
        "order, four thousand by one person {order.one_person_4000_labels}.",
        "inconclusive": "Whether 1,000 labels by thirty people beat 4,000 by one is inconclusive: "
        "{order.thirty_people_1000_labels} against {order.one_person_4000_labels}.",
        "worse": "Four thousand labels by one person beat a thousand by thirty: {order.one_person_4000_labels} against "
        "{order.thirty_people_1000_labels}.",
    },
)
results.show("many_labelers_beat_many_labels")

# %% [markdown]
# Now what stands first. In every judgment the first response gets 1 log-odds as a present. If the longer response
# always stands first, the present goes to length, and no statistics can take it back. In random order it goes to either
# side alike: it is noise. And if the order is *recorded*, as section 3 does, it can even be measured, as one more
# weight.
#
# The rule: *random order protects* if, with the longer one always first, a word seems to be worth more points than in
# random order, **and** in random order it seems to be worth nothing, up to 0.01 points (equivalence), on average over
# the simulated sets of labels: no *bias* is left, while a single set still has its noise.

# %%
fixed, shuffled = ([run["word"][order] for run in ran] for order in ("longer first", "random"))
results.number("word.longer_first", interval(fixed), "points a word")
results.number("word.random_order", interval(shuffled), "points a word")
results.number("position.recorded", interval([run["position"] for run in ran]), "log-odds, 1 in truth")
results.state(
    "random_order_protects",
    statistics.rule(statistics.better(fixed, shuffled), statistics.equivalent(shuffled, np.zeros(seeds), margin=0.01)),
    expect="holds",
    text={
        "holds": "With the longer response always first, labelers' bias for the first one makes a word look worth "
        "{word.longer_first} points; in random order {word.random_order}, nothing up to 0.01.",
        "fails": "That random order protects against position bias is not established: a word seems to be worth "
        "{word.longer_first} points with the longer one first and {word.random_order} in random order.",
    },
)
display(results.show("random_order_protects"), results.table("position.recorded"))


# %% [markdown]
# ## 8. Whose preference does a reward model learn?
#
# So far the model knew where to look. A real reward model is a language model and has to find that out, from the same
# labels. We train four of the smallest size, on comparisons of the same prompts and responses, judged by:
#
# - **fair**: the default crowd without any bias, one judgment for each pair;
# - **loves length**: the same crowd, for whom every word is worth a tenth of a point;
# - **divided**: six labelers to whom a word costs a tenth of a point, and two to whom it is worth one;
# - **three votes**: the fair crowd, but each pair is judged three times and the majority counts; with the same number
#   of judgments, that leaves a third of the pairs.

# %%
long, short = (tuple(replace(labeler, length_bias=bias) for labeler in fair) for bias in (0.1, -0.1))
divided = (*short[:3], *short[5:], *long[3:5])  # six and two, of about the same skill
ARMS = {
    "fair": (fair, size.label_pairs, 1),
    "loves length": (long, size.label_pairs, 1),
    "divided": (divided, size.label_pairs, 1),
    "three votes": (fair, size.label_pairs // 3, 3),
}
train_one = joblib.delayed(recipes.judged_by)
trained = parallel.run(train_one(RUNG, *arm, size.test_pairs, seed=s) for arm in ARMS.values() for s in range(seeds))
scores = {arm: trained[k * seeds : (k + 1) * seeds] for k, arm in enumerate(ARMS)}

# %% [markdown]
# Each model scores the same held-out pairs. What do we know of these pairs? The difference in true reward, and the
# difference in words; so we know what each labeler prefers, without noise. We ask of a model how often it prefers the
# longer response, how often it puts two responses in true order, and how often it agrees with someone to whom a word is
# worth so much.


# %%
def held_out(seed):
    """The differences in true reward and in words of the test pairs, chosen minus rejected: (N,) and (N,)."""
    rows = recipes.preference_pairs("helpful", "test", size.test_pairs, seed)
    points = [gold.helpfulness(r["prompt"], r["chosen"]) - gold.helpfulness(r["prompt"], r["rejected"]) for r in rows]
    return np.array(points), np.array([len(r["chosen"].split()) - len(r["rejected"].split()) for r in rows])


def same_order(margins, differences):
    return np.mean((margins > 0) == (differences > 0), where=differences != 0)


tested = [held_out(seed) for seed in range(seeds)]
margins = {arm: [np.subtract(run["chosen"], run["rejected"]) for run in runs] for arm, runs in scores.items()}


def over_arms(measure):
    """A measure of (margins, points, words) for every arm and seed."""
    return {arm: [measure(m, *tested[s]) for s, m in enumerate(by_seed)] for arm, by_seed in margins.items()}


longer = over_arms(lambda margins, points, words: same_order(margins, words))
ordered = over_arms(lambda margins, points, words: same_order(margins, points))
likes_long = over_arms(lambda margins, points, words: same_order(margins, points + 0.1 * words))
likes_short = over_arms(lambda margins, points, words: same_order(margins, points - 0.1 * words))
truly_longer = [same_order(points, words) for points, words in tested]

# %% [markdown]
# > **Predict.** In how many of the pairs is the longer response truly the better one? In how many will each model say
# > so?

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.6))
plots.interval_bars(axis, list(ARMS), [interval(longer[arm]) for arm in ARMS])
axis.axhline(np.mean(truly_longer), color="0.2", linestyle="--", linewidth=1, label="the longer one is truly better")
axis.axhline(0.5, color="0.2", linestyle=":", linewidth=1, label="no preference for length")
axis.set_ylim(0, 1.35)  # room for the legend
axis.set_yticks(np.linspace(0, 1, 6))
axis.set_ylabel("longer one scores higher (share)")
axis.set_xlabel("who judged the training pairs")
axis.legend(fontsize="small", loc="upper left")
each = ", ".join(f"{arm} {np.mean(longer[arm]):.2f}" for arm in ARMS)
alt = f"""In how many held-out pairs the longer response gets the higher score, for four reward models by who judged
their training pairs: {each}. Dashed: the longer one is truly better in {np.mean(truly_longer):.2f} of the pairs.
Dotted: one half."""
plots.show(figure, alt, name="whose_preference")

# %% [markdown]
# The rules: *the labelers' length bias reaches the reward model* if the model of those who love length prefers the
# longer response more often than the model of the fair crowd. *The reward model sides with the majority* if the model
# of the divided crowd agrees more often with the taste of the six than with that of the two. (An average of the tastes
# would do so too; section 9 tells the two apart.)

# %%
results.number("longer.truth", interval(truly_longer), "share of pairs, longer one truly better")
for arm in ARMS:
    results.number(f"longer.{arm.replace(' ', '_')}", interval(longer[arm]), "share of pairs, longer one preferred")
results.state(
    "labeler_length_bias_reaches_reward_model",
    statistics.better(longer["loves length"], longer["fair"]),
    expect="better",
    text={
        "better": "The labelers' length bias reaches the reward model: it prefers the longer response in "
        "{longer.loves_length} of the pairs, that of fair labelers in {longer.fair}; truly better it is in "
        "{longer.truth}.",
        "inconclusive": "Whether the labelers' length bias reaches the reward model is inconclusive: "
        "{longer.loves_length} against {longer.fair}.",
        "worse": "Labelers who love length give a reward model that prefers the longer response less often: "
        "{longer.loves_length} against {longer.fair}.",
    },
)
results.show("labeler_length_bias_reaches_reward_model")

# %%
results.number("divided.agrees_with_six", interval(likes_short["divided"]), "share of pairs in their order")
results.number("divided.agrees_with_two", interval(likes_long["divided"]), "share of pairs in their order")
results.state(
    "reward_model_sides_with_majority",
    statistics.better(likes_short["divided"], likes_long["divided"]),
    expect="better",
    text={
        "better": "Where six labelers like short answers and two long ones, the reward model agrees with the six on "
        "{divided.agrees_with_six} of the pairs and with the two on {divided.agrees_with_two}.",
        "inconclusive": "Whether the reward model sides with the majority is inconclusive: {divided.agrees_with_six} "
        "with the six, {divided.agrees_with_two} with the two.",
        "worse": "The reward model sides with the minority: {divided.agrees_with_two} with the two, "
        "{divided.agrees_with_six} with the six.",
    },
)
results.show("reward_model_sides_with_majority")

# %% [markdown]
# Where such a number falls below one half, those people would do better with the model's opposite. There is one reward,
# and nobody told the model that there are two groups. Section 9 shows what it makes of them.
#
# Would anybody have noticed the bias? In life there is no true order; models are tested on held-out judgments *of the
# same labelers*. Let us do that too, with the expected accuracy: the mean probability that a labeler of the crowd
# agrees.
#
# The rule: *biased labels look better* if the model of those who love length predicts its own labelers better than the
# model of the fair crowd predicts its own.


# %%
def accuracy_on_own_labels(arm, seed):
    """The share of its own labelers' judgments that a model predicts, and the most that any model could."""
    points, words = tested[seed]
    chances = [special.expit(labeler.skill * (points + labeler.length_bias * words)) for labeler in ARMS[arm][0]]
    first = np.mean(chances, axis=0)
    return np.mean(np.where(margins[arm][seed] > 0, first, 1 - first)), np.mean(np.maximum(first, 1 - first))


both = {arm: [accuracy_on_own_labels(arm, seed) for seed in range(seeds)] for arm in ARMS}
own, most = ({arm: [pair[i] for pair in pairs] for arm, pairs in both.items()} for i in (0, 1))
for arm in ARMS:
    name = arm.replace(" ", "_")
    results.number(f"own_labels.{name}", interval(own[arm]), "share of its own labelers' judgments")
    results.number(f"ceiling.{name}", interval(most[arm]), "share of its own labelers' judgments")
    results.number(f"true_order.{name}", interval(ordered[arm]), "share of pairs in true order")
compared = [f"{what}.{arm.replace(' ', '_')}" for what in ("own_labels", "ceiling", "true_order") for arm in ARMS]
results.table(*compared)

# %%
results.state(
    "biased_labels_look_better",
    statistics.better(own["loves length"], own["fair"]),
    expect="better",
    text={
        "better": "Tested on their own labelers' judgments, the model of those who love length looks better "
        "({own_labels.loves_length}) than that of the fair crowd ({own_labels.fair}).",
        "inconclusive": "Which model looks better on its own labelers' judgments is inconclusive: "
        "{own_labels.loves_length} (loves length) against {own_labels.fair} (fair).",
        "worse": "Even tested on its own labelers' judgments the model of those who love length looks worse: "
        "{own_labels.loves_length} against {own_labels.fair}.",
    },
)
results.show("biased_labels_look_better")

# %% [markdown]
# Part of this is the labels' doing: a bias moves utilities apart, so the judgments are less noisy and their ceiling is
# higher. Held-out labels carry the bias too, so they cannot show it. That is why an accuracy never stands alone in this
# course: the next notebook puts an audit beside each.
#
# Last, the budget. Are judgments better spent on asking three people about each pair, or on three times as many pairs?
# The rule: *more pairs beat repeated votes* if, for the same number of judgments, one vote a pair gives the better true
# order. (One vote a pair also means three times as many texts and training steps. That is part of what the pairs buy.)

# %%
results.state(
    "more_pairs_beat_repeated_votes",
    statistics.better(ordered["fair"], ordered["three votes"]),
    expect="better",
    text={
        "better": "At the same number of judgments, one vote on each pair beats three on a third of the pairs: "
        "{true_order.fair} against {true_order.three_votes} of the pairs in true order.",
        "inconclusive": "Whether one vote on each pair or three on a third of them are better is inconclusive: "
        "{true_order.fair} against {true_order.three_votes}.",
        "worse": "At the same number of judgments, three votes on a third of the pairs beat one on each: "
        "{true_order.three_votes} against {true_order.fair}.",
    },
)
results.show("more_pairs_beat_repeated_votes")

# %% [markdown]
# ## 9. What Bradley-Terry can recover, and what it cannot
#
# With endless labels shares become probabilities. What is then left of a labeler's utility? Four responses to a prompt,
# compared in all six pairs by a labeler we know exactly; the strengths are fitted to the probabilities themselves.

# %%
prompt = "\n\nHuman: My sink drain is clogged. What can I do?\n\nAssistant:"
one, two, empty = (
    " Use a plunger to push the clog loose.",
    " Pull hair out of the drain with a hook.",
    " This can be a big subject.",
)
ANSWERS = {"two tips": one + two, "one tip": one, "tip, filler": one + empty, "filler": empty}


def chance_of(labeler, answers):
    """The function of two names that says how likely the labeler prefers the first."""
    return lambda a, b: labeler.compare(prompt, answers[a], answers[b]).first


def strengths(chance, names):
    """Bradley-Terry strengths of items whose chances to win are known: chance(a, b) for every pair."""
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    table = ratings.Comparisons.from_names([(*pair, winner) for pair in pairs for winner in ("left", "right")])
    shares = [(chance(*pair), 1 - chance(*pair)) for pair in pairs]
    return ratings.bradley_terry(table, np.ravel(shares)).strengths


# %%
worths = np.array([gold.helpfulness(prompt, answer) for answer in ANSWERS.values()])
exact = {skill: strengths(chance_of(Annotator(skill=skill), ANSWERS), list(ANSWERS)) for skill in (1.0, 2.0)}
for name, values in {"true reward": worths, **{f"skill {skill}": fit for skill, fit in exact.items()}}.items():
    print(f"{name:12}", dict(zip(ANSWERS, values.round(2).tolist(), strict=True)))

# %% [markdown]
# The *differences* come back, exactly, and two things are gone:
#
# - **the zero**: whatever is added to all responses of a prompt cancels in every comparison. Strengths have mean zero
#   because someone has to choose. So a reward model cannot say that *all* answers to a prompt are bad, and its scores
#   for different prompts are comparable only as far as it generalizes from one to the other;
# - **the unit**: it is a log-odds, so a labeler of twice the skill makes all strengths twice as large. Points and skill
#   come only as a product.
#
# Both hold whatever happens, so the build fails if they do not: strengths are skill times the reward, less its mean.

# %%
results.state(
    "strengths_are_skill_times_reward",
    statistics.rule(all(np.allclose(exact[skill], skill * (worths - worths.mean()), atol=1e-6) for skill in exact)),
    expect="holds",
    sanity=True,
    text={
        "holds": "From exact probabilities Bradley-Terry recovers the reward, up to its zero and its unit.",
        "fails": "From exact probabilities Bradley-Terry does not recover the reward.",
    },
)
results.show("strengths_are_skill_times_reward")

# %% [markdown]
# **Disagreement looks like doubt.** Three in four people are convinced that A is better (log-odds 3), one in four is as
# convinced of B. Pooled, their labels are those of a single person who is not sure:

# %%
pooled = 0.75 * special.expit(3) + 0.25 * special.expit(-3)
print(f"P(A preferred) = {pooled:.3f}, a strength difference of {np.log(pooled / (1 - pooled)):.2f} instead of 3 or -3")
same_twice = {
    "convinced people": special.expit(3) ** 2 + special.expit(-3) ** 2,
    "one doubter": pooled**2 + (1 - pooled) ** 2,
}
for who, share in same_twice.items():
    print(f"{who}: asked again, the same person says the same with probability {share:.2f}")

# %% [markdown]
# No amount of single labels tells the two apart; to ask the *same person* again does. This is what the labels of the
# divided crowd look like to a reward model: between the two tastes, as if everyone were in doubt.
#
# > **Predict.** Now vary the share of those who like long answers from none to all, in the world of section 7 where the
# > model knows what to look at. How much is a word worth in the fitted reward? Does the majority win all at once, or do
# > tastes average?

# %%
SHARES = np.linspace(0, 1, 9)


def word_of_divided(seed):
    """The points a fitted word is worth, when a word is worth -0.1 to some people and 0.1 to the others: (shares,)."""
    rng, train = np.random.default_rng([9, seed]), count_differences("train", 4000, seed)
    words = []
    for share in SHARES:
        points = np.tile(POINTS, (len(train), 1))
        points[:, -1] = np.where(rng.random(len(train)) < share, 0.1, -0.1)  # the word, to whoever judges this pair
        words.append(in_points(fitted(train, choices(rng, train, points)))[-1])
    return words


words = np.array(parallel.run(joblib.delayed(word_of_divided)(seed) for seed in range(seeds)))  # (S, shares)

# %%
figure, axis = plt.subplots(figsize=(6.4, 3.6))
plots.curve_with_band(axis, SHARES, words, "fitted to the labels")
axis.plot(SHARES, 0.2 * SHARES - 0.1, color="0.4", linestyle=":", label="mean taste")
axis.step(SHARES, 0.1 * np.sign(SHARES - 0.5), where="mid", color="0.4", linestyle="--", label="taste of the majority")
axis.set_ylim(-0.2, 0.2)
axis.set_xlabel("share of those who like long answers")
axis.set_ylabel("reward of a word (points)")
axis.legend(fontsize="small")
alt = f"""What a word is worth in a reward fitted to the labels of two groups, against the share of the group that likes
long answers: {words[:, 0].mean():.2f} points if there are none, {words[:, 4].mean():.2f} at one half,
{words[:, -1].mean():.2f} if they are all. The mean taste is a straight line, the majority's taste a step."""
plots.show(figure, alt, name="divided_tastes")

# %% [markdown]
# **Circles vanish.** Here is a pure circle, whose three preferences are equally strong and equally often asked. Someone
# prefers medium answers to short ones, long ones to medium ones, and short ones to long ones. Each preference is real,
# and no reward can express them together: a reward that rises along the circle does not come back to where it began.

# %%
circling = Annotator(skill=0.0, intransitivity=1.0)
CIRCLE = {"short": one, "medium": one + two + empty, "long": one + two + empty + one + two}
chances = chance_of(circling, CIRCLE)
for a, b in (("medium", "short"), ("long", "medium"), ("short", "long")):
    print(f"P({a} preferred to {b}) = {chances(a, b):.2f}")
flat = strengths(chances, list(CIRCLE))
print("fitted strengths:", dict(zip(CIRCLE, (flat.round(6) + 0.0).tolist(), strict=True)), "so every chance is 0.5")
results.state(
    "circles_vanish",
    statistics.rule(bool(np.allclose(flat, 0, atol=1e-6))),
    expect="holds",
    sanity=True,
    text={
        "holds": "Preferences that go evenly in a circle leave no trace in a Bradley-Terry reward: all strengths are equal.",
        "fails": "Preferences that go in a circle left a trace in the strengths.",
    },
)
results.show("circles_vanish")

# %% [markdown]
# They leave a trace in the *fit*: the win rates are further from one half than equal strengths allow. That can be
# tested (the deviance of the Bradley-Terry notebook), provided that the same items meet often. In preference data for
# language models every pair is new, and nobody can see it.

# %%
rng, names = np.random.default_rng(0), list(CIRCLE)
rows = [
    (a, b, "left" if rng.random() < chances(a, b) else "right")
    for a in names
    for b in names
    if a < b
    for _ in range(100)
]
fit = ratings.lack_of_fit(ratings.Comparisons.from_names(rows))
print(f"100 judgments of each pair: deviance {fit.deviance:.1f} with {fit.degrees_of_freedom} degree of freedom")
print(f"Were there no circle, it would be as large with probability {fit.p_value:.1g}.")

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** *Attempts to align language models by putting the reward in the prompt* (2023) measures in
# its code how often the longer dialogue was chosen, and counts two dialogues of equal length as if the chosen one were
# longer. A tie decides nothing and should count one half, as it does in this course. And the check runs on the harmless
# pairs unless told otherwise: whoever quotes "the longer one wins" should say for which pairs.

# %% [markdown]
# ## Exercises
#
# **1.** A labeler is right in 80 % of the cases, independently of the others. You ask three such labelers about each
# pair and take the majority. How often is it right? Is that worth three judgments?
#
# <details><summary>Hint</summary>
#
# Right are three of three, or two of three.
#
# </details>
#
# <details><summary>Answer</summary>
#
# $0.8^3 + 3 \cdot 0.8^2 \cdot 0.2 = 0.896$. A reward model averages over pairs anyway, so for training it three labels
# on three pairs usually hold more than one better label on one pair (section 8 measures it). For a *test* set it may be
# worth it: there the label is the ruler.
#
# </details>
#
# **2.** Two labelers agree on 90 % of the pairs, and kappa is 0. How is that possible?
#
# <details><summary>Hint</summary>
#
# What if one answer is nearly always the better one?
#
# </details>
#
# <details><summary>Answer</summary>
#
# If both say "first" in about 95 % of the cases, independently of each other, they agree on $0.95^2 + 0.05^2 = 0.905$
# of the pairs by chance alone. Random order of the two responses would have prevented it.
#
# </details>
#
# **3.** In section 6, let five of the eight team members not read at all. Does the method of Dawid and Skene still find
# out who is right? And what if four honest labelers face four who press the wrong button on purpose (skill $-1.5$)?
#
# <details><summary>Hint</summary>
#
# The method starts from the majority vote. What does it take for granted about the votes?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Those who do not read agree with nobody, so their votes soon weigh nothing, and three honest labelers are enough: try
# it. Liars are another matter. Exchange the two classes and everybody's confusions, and the likelihood is the same, for
# any team: only the start, the majority, says which solution is meant. A minority of liars is found out (their votes
# even help, turned round); against four of eight the start is a coin flip, and a majority of liars is believed.
#
# </details>
#
# **4.** Judge thirty pairs yourself (section 3), with a taste that has nothing to do with words, friendliness or
# caution, say answers that begin with a verb. Which weights do you get, and what would you add to `taste.FEATURES`?
#
# <details><summary>Hint</summary>
#
# A model can learn only what its features can express.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The weights stay near the prior, or follow by accident what your choices had in common. A feature such as "the first
# word is a verb" has to be among the features, or among what the hidden states of a large model express: that is what
# its size is good for. With thirty labels, more features also mean more accidents; the ridge guards against them.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Bradley and Terry (1952), *Rank analysis of incomplete block designs*, Biometrika 39; Davidson (1970) for ties.
# - Dawid and Skene (1979), *Maximum likelihood estimation of observer error-rates using the EM algorithm*, Applied
#   Statistics 28.
# - Krippendorff (2011), *Computing Krippendorff's alpha-reliability*; Cohen (1960) for kappa.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*, [arXiv
#   2204.05862](https://arxiv.org/abs/2204.05862): how hh-rlhf was collected.
# - Ouyang et al. (2022), InstructGPT, [arXiv 2203.02155](https://arxiv.org/abs/2203.02155), section 3.4 and appendix B:
#   who the labelers were, and how they were chosen.
# - Casper et al. (2023), *Open problems and fundamental limitations of RLHF*, [arXiv
#   2307.15217](https://arxiv.org/abs/2307.15217), section 3.1: what goes wrong with human feedback.
# - Siththaranjan, Laidlaw and Hadfield-Menell (2023), *Distributional preference learning*, [arXiv
#   2312.08358](https://arxiv.org/abs/2312.08358): what is learned where people disagree for reasons the model does not
#   see.
