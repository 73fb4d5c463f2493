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
# # Real people: reward models on hh-rlhf
#
# **How well can a reward model that starts from nothing predict what real people prefer, and does it see more than
# length?**
#
# In the miniature world we know how good every answer is, so we can say why a reward model errs. Of real people's
# answers we know only which of two somebody preferred. Here the reward models of notebook 21 meet Anthropic's
# *hh-rlhf*: two subsets, labeled under two instructions, and a few thousand comparisons of each. Unless you name a
# `checkpoint`, nothing is pre-trained: tokenizer, language model and reward model are made from the training pairs
# alone. The published figures stand beside ours, and the end of the notebook says under which conditions they came
# about.

# %% [markdown]
# ## What you will learn
#
# - what "helpful" and "harmless" comparisons are, and a trap in the direction of the labels;
# - how to test on every pair of a small data set without testing on what was trained on;
# - how a class-token model, whose training never sets two texts against each other, decides between two;
# - how to find out whether a model sees more than length, and more than which words occur;
# - why two honest sets of preferences can contradict each other, and what that costs a joint model;
# - what separates a model from nothing from the published ones.

# %% [markdown]
# ## What you should know
#
# The pairwise loss, the class-token model and the audit (notebook 21). Folds and the bootstrap are explained where they
# are used.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # changes nothing here: the evidence is counted in pairs, each tested once
subsets = ["helpful-base", "harmless-base"]  # one or more of preferences.SUBSETS
checkpoint = None  # a folder or a Hub id such as "gpt2" to start from, in place of nothing

# %%
import itertools

import joblib
import numpy as np
import torch
from datasets import Dataset
from IPython.display import Markdown, display
from matplotlib import pyplot as plt

from rlhf_lab import audit, calibration, claims, class_token, parallel, plots, preferences, recipes, statistics
from rlhf_lab.profiles import Profile
from rlhf_lab.source_figures import figure as source_figure
from rlhf_lab.transcripts import ASSISTANT

size = Profile.load(profile)
subsets = tuple(subsets)
results = claims.Claims("23_real_people", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# Square brackets hold 95 % intervals. A claim was written down, with the verdict we *expected* and the rule that
# decides it, before the run. Section 2 says what is counted: here it is not seeds, but people's comparisons.

# %% [markdown]
# ## 1. Two questions that people were asked
#
# In both subsets a person talks with a language model, which answers each turn twice; the person chooses one, and the
# dialogue goes on. For *helpful-base* they asked for help and chose the answer that helped more. For *harmless-base*
# they tried to get something harmful out of the model ("red teaming"). We use the official test files, cut the
# dialogues to a fixed number of tokens, and print no text of harmless-base: much of it is offensive.

# %%
try:
    for subset in subsets:
        print(preferences.load_preferences(preferences.HH_RLHF, subset, "test", size=size.hh_pairs)[1], "\n")
    data = recipes.real_comparisons(subsets, size.hh_pairs, 0)
except preferences.PreferenceDataError as missing:
    data = None
    print(missing, "What needs real comparisons is left out below.")
real = data is not None

# %% [markdown]
# Mind the direction. A red teamer *picked the more harmful* answer, and the dialogue went on with it; the published
# file is turned round, so that in both subsets `chosen` is the answer a good assistant should give. Whoever turns it
# round once more trains a model that prefers harm.
#
# Three test sets follow: the pairs of each subset, and all of them, called *joint*. `of[name]` marks the pairs of a
# test set, and `own[name]` says which subsets its own model is trained on. The first shortcut is already in the table:
# how often the longer answer wins where people wanted help, and where the other kind of answer was wanted.

# %%
names = {"hh_" + subset.removesuffix("-base").replace("-", "_"): (subset,) for subset in subsets}
own = names | ({"hh_joint": subsets} if len(subsets) > 1 else {})
units = "share of pairs"
if real:
    rows = data.to_list()
    of = {name: np.isin(data["subset"], trained_on) for name, trained_on in own.items()}  # (N,) each
    longer = np.array([preferences.longer_wins(row["prompt"], row["chosen"], row["rejected"]) for row in rows])  # (N,)
    for name, mask in of.items():
        results.number(f"audit.longer_wins.{name}", longer[mask].mean(), units)
    display(results.table())

# %% [markdown]
# ## 2. Every pair tested once
#
# With a few thousand pairs, a test set large enough to trust would leave too little to train on. *Folds* use every pair
# for both: the data is dealt into five parts; five times a model is trained on four of them and tested on the fifth.
# Two dialogues that open with the same words stay on the same side: hh-rlhf holds some dialogues several times, a turn
# longer each time, and a model that has read the longer one has read the answers of the shorter one. By hand, with
# three folds:

# %%
toy = ["a", "b", "c", "a", "d"]  # how five prompts open; the fourth is the first one, a turn later
prompts = [f"\n\nHuman: {opening}{ASSISTANT}" for opening in toy]
prompts[3] += f" an answer\n\nHuman: more{ASSISTANT}"
for train, test in preferences.folds_by_prompt(Dataset.from_dict({"prompt": prompts}), k=3):
    print("train on", [toy[i] for i in train], " test on", [toy[i] for i in test])
    assert not {toy[i] for i in train} & {toy[i] for i in test}

# %% [markdown]
# The five models of an experiment share most of their training data, so five accuracies are not five independent
# numbers, and splits of one data set are not seeds. What is independent are people's comparisons, or more carefully the
# *dialogues* they come from: pairs that open alike are of one dialogue. So intervals come from a bootstrap of openings:
# draw as many openings as there are, with replacement, take all their pairs, compute the number, and repeat. To draw an
# opening twice is to count its pairs twice, so a resample is a weight for each pair. Such an interval is about the
# pairs: it says what other people's comparisons could have shown of *these five models*. How another seed or another
# deal of the folds would have changed the models is not in it, so a narrow difference between two kinds of model
# deserves caution.


# %%
def resamples(openings, count, seed=0):
    """For each of `count` resamples how often each pair is drawn, (count, N)."""
    distinct, opening_of = np.unique(openings, return_inverse=True)
    rng = np.random.default_rng(seed)
    return rng.multinomial(len(distinct), [1 / len(distinct)] * len(distinct), size=count)[:, opening_of]


def over_pairs(values, weights, *groups):
    """The mean of `values` (N,) over a group of pairs, a mask (N,), or the mean of such means over several groups."""
    with np.errstate(invalid="ignore"):  # a resample may miss a small group
        drawn = np.nanmean([(weights[:, g] @ values[g]) / weights[:, g].sum(axis=1) for g in groups], axis=0)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    value, n = np.mean([values[g].mean() for g in groups]), int(np.any(groups, axis=0).sum())
    return statistics.Interval(float(value), float(low), float(high), 0.95, n, "pair")


judged, everyone = np.array([1.0, 1.0, 0.0, 0.0] * 10), np.ones(40, dtype=bool)
for kind, openings in {"40 dialogues of one pair": range(40), "20 dialogues of two pairs": np.arange(40) // 2}.items():
    interval = over_pairs(judged, resamples(openings, 2000), everyone)
    print(f"{kind}: {interval.value:.2f} [{interval.low:.2f}, {interval.high:.2f}]")

# %% [markdown]
# The same forty judgments are worth less if they come from twenty dialogues in which both pairs went the same way. (In
# hh-rlhf about one pair in eight shares its opening with another, so it makes little difference there.)

# %% [markdown]
# ## 3. How a class-token model decides
#
# The source of the figures below could not put a head on its model, because it used a service that only fine-tunes
# language models. So its reward model reads a text followed by `<SOS>`, and says `1` for a chosen text or `0` for a
# rejected one; its score is $p_1 / (p_1 + p_0)$. Asked which of two texts was chosen, it scores each by itself (a
# pairwise model does too, but is trained on the difference). Suppose it gives the first .8 and the second .6, and
# treats them as independent. Then enumerate:

# %%
first, second = 0.8, 0.6
both, only_first = first * second, first * (1 - second)
only_second, neither = (1 - first) * second, (1 - first) * (1 - second)
given_one = only_first / (only_first + only_second)  # exactly one of the two was chosen
print(f"both {both:.2f}, only the first {only_first:.2f}, only the second {only_second:.2f}, neither {neither:.2f}")
margin = torch.logit(torch.tensor(first)) - torch.logit(torch.tensor(second))
print(f"P(first | exactly one) = {given_one:.3f}; sigmoid of the difference of logits = {torch.sigmoid(margin):.3f}")

# %% [markdown]
# So the difference of the two logits is the log-odds of the choice, as the difference of two scores is for a pairwise
# model. The module's `margins` are these differences, here with a model that has not learned the task yet.

# %%
base, base_tokenizer = recipes.base("0.2M")
prompt, answers = "\n\nHuman: How do I boil an egg?\n\nAssistant:", [" Put it in boiling water.", " I don't know."]
shares = class_token.score(base, base_tokenizer, [prompt] * 2, answers).double()
by_hand = shares[0] * (1 - shares[1]) / (shares[0] * (1 - shares[1]) + shares[1] * (1 - shares[0]))
pair = {"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}
odds = class_token.margins(base, base_tokenizer, [pair])[0]
results.number("class_token.toy", float(by_hand), "probability, untrained")
results.state(
    "class_token_margin_is_bayes",
    statistics.rule(bool(abs(1 / (1 + np.exp(-odds)) - by_hand) < 1e-4)),
    expect="holds",
    sanity=True,
    text={
        "holds": "The difference of a class-token model's two logits is its log-odds, given that one text was chosen.",
        "fails": "The difference of a class-token model's two logits is not its log-odds given that one was chosen.",
    },
)
results.show("class_token_margin_is_bayes")

# %% [markdown]
# ## 4. Training
#
# Each fold first makes a tokenizer and a small language model from its training dialogues, chosen and rejected alike.
# Then come two kinds of reward model, *pairwise* and *class token*, each trained anew for every test set: on one
# subset, on the other, and on both. All of them score *all* pairs that the fold leaves out. With `checkpoint` set,
# reward models start from that instead.
#
# > **Predict.** The agreement of Anthropic's researchers with its crowd workers and the source's accuracies are in
# > section 9. What will a model reach that has read nothing but a few thousand dialogues?

# %%
kinds = ("pairwise", "class_token")
if real:
    sizes, folds_of = (subsets, size.hh_pairs), range(recipes.REAL_FOLDS)
    if not checkpoint:  # first, since all models of a fold start from it
        parallel.run(
            joblib.delayed(recipes.real_language_model)(*sizes, k, size.hh_max_tokens, seed=0) for k in folds_of
        )
    arms = list(itertools.product(kinds, own, folds_of))
    runs = parallel.run(
        joblib.delayed(recipes.real_scores)(kind, own[name], *sizes, k, size.hh_max_tokens, checkpoint, seed=0)
        for kind, name, k in arms
    )
    margins = {(kind, name): np.full(len(rows), np.nan) for kind, name, _ in arms}  # (N,) each
    for (kind, name, _), run in zip(arms, runs, strict=True):
        margins[kind, name][run["test"]] = np.array(run["chosen"]) - np.array(run["rejected"])
    assert not any(np.isnan(values).any() for values in margins.values())  # each pair was tested
    print(len(runs), "reward models")

# %% [markdown]
# Their rivals cannot understand a thing (notebook 21): *the longer one wins*; *length*, which first looks in the
# training pairs whether longer or shorter wins; the *first word* of the answers; their *format*; and the *bag of
# words*, a linear model on which words occur (TF-IDF). Each is trained on the same pairs as the reward model beside it.


# %%
def length(train, test):
    """Right or wrong (N,) with the longer answer, or with the shorter one if those win in training."""
    wins = [preferences.longer_wins(row["prompt"], row["chosen"], row["rejected"]) for row in test]
    helps = np.mean([preferences.longer_wins(row["prompt"], row["chosen"], row["rejected"]) for row in train]) >= 0.5
    return np.array(wins) if helps else 1 - np.array(wins)


rivals = {"length": length, "first word": audit.first_token, "format": audit.format, "bag of words": audit.bag_of_words}
if real:
    folds = preferences.folds_by_prompt(data, recipes.REAL_FOLDS, 0)
    right = {(kind, name): audit.right(values) for (kind, name), values in margins.items()}  # 1, 0 or 1/2
    right |= {("the longer one wins", name): longer for name in own}
    for (rival, fit), name in itertools.product(rivals.items(), own):
        right[rival, name] = np.full(len(rows), np.nan)
        for train, test in folds:
            mine, theirs = ([i for i in part if of[name][i]] for part in (train, test))
            right[rival, name][theirs] = fit([rows[i] for i in mine], [rows[i] for i in theirs])

# %% [markdown]
# ## 5. How often is it right?

# %%
keys = {"length": "audit.length", "first word": "audit.first_token", "format": "audit.format"}
keys |= {"bag of words": "accuracy.bag_of_words", "class_token": "accuracy.class_token", "pairwise": "accuracy"}
if real:
    weights = resamples([row["prompt"].split(ASSISTANT, 1)[0] for row in rows], 1000)  # (R, N)
    for (kind, key), (name, mask) in itertools.product(keys.items(), of.items()):
        results.number(f"{key}.{name}", over_pairs(right[kind, name], weights, mask), units)
    header = ["trained and tested on", "the longer one wins", *(kind.replace("_", " ") for kind in keys)]
    table = ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name, mask in of.items():
        cells = [longer[mask].mean()] + [results.numbers[f"{key}.{name}"]["value"] for key in keys.values()]
        table.append(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |")
    display(Markdown("\n".join(table)))

# %%
known = [name for name in ("hh_helpful", "hh_harmless", "hh_joint") if name in own]
published = {n: source_figure(f"reward_in_the_prompt.accuracy_{n.removeprefix('hh_')}").value for n in known}


def draw_accuracies(axis, name):
    """One row for each contender: its accuracy with its interval; those that understand nothing are hollow."""
    for row, (kind, key) in enumerate(keys.items()):
        entry, model = results.numbers[f"{key}.{name}"], kind in kinds
        axis.hlines(row, entry["low"], entry["high"], color="0.3", linewidth=1.5)
        marker, fill = ("s", "full") if model else ("o", "none")
        axis.plot(entry["value"], row, marker=marker, fillstyle=fill, color=plots.COLORS[0])
    if name in published:
        axis.plot(published[name], len(keys), marker="D", color="black", linestyle="none")
    axis.set_yticks(range(len(keys) + 1), [*(kind.replace("_", " ") for kind in keys), "published"])
    axis.axvline(0.5, color="0.3", linestyle=":")
    axis.set_xlim(0.4, 0.75)
    axis.set_title(name, fontsize="medium")
    axis.set_xlabel("accuracy (share of pairs)")


# %%
if real:
    figure, axes = plt.subplots(1, len(own), figsize=(3.0 * len(own) + 1, 3.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], own, strict=True):
        draw_accuracies(axis, name)
    figure.suptitle("hh-rlhf test files, five folds, each pair tested once", fontsize="medium")
    figure.tight_layout()
    best = {name: results.numbers[f"accuracy.{name}"]["value"] for name in own}
    words = "; ".join(
        f"{name}: pairwise {best[name]:.2f}, bag of words {right['bag of words', name][of[name]].mean():.2f}"
        + (f", published {published[name]:.2f}" if name in published else "")
        for name in own
    )
    alt = f"""Accuracy of four shortcuts (hollow circles, the bag of words among them) and two reward models (squares) with
    95 % intervals, and the published accuracy (diamond), one panel for each test set; chance is a dotted line. {words}."""
    plots.show(figure, alt, name="real_people_accuracy")

# %% [markdown]
# The rules: a reward model *beats chance* if on each subset the interval of its accuracy lies above one half. It
# *beats* a rival if on each subset the interval of the paired difference lies above zero: for each pair one point if
# the model is right, less one if the rival is. The rival of `rm_beats_longer_wins_on_hh` is *length*, in whichever
# direction wins in training: where the longer answer loses more often than not, to beat "the longer one wins" would
# prove nothing.
#
# We expected little, going by section 9 of notebook 00 and by one trial fold of another seed, on which the learning
# rate was chosen. (That fold was dealt from the same pairs, so the learning rate has seen some of what is tested here.
# With one setting chosen from a few, the advantage is small, but it is one.) There are few pairs to learn words from,
# and a bag of words has far fewer weights to find.


# %%
def each(key):
    """The number `key` of each subset, as a template."""
    return " and ".join(f"{{{key}.{name}}} ({name.removeprefix('hh_')})" for name in names)


def versus(ours, rival, key, tests):
    """The paired difference of two contenders on each test set, recorded; whether all intervals lie above zero."""
    for name in tests:
        ahead = over_pairs(right[ours, name] - right[rival, name], weights, of[name])
        results.number(f"{key}.{name}", ahead, f"{units}, {ours.replace('_', ' ')} minus {rival.replace('_', ' ')}")
    return all(results.numbers[f"{key}.{name}"]["low"] > 0 for name in tests)


# %%
if real:
    beats_chance = all(results.numbers[f"accuracy.{name}"]["low"] > 0.5 for name in names)
    results.state(
        "rm_beats_chance_on_hh",
        statistics.rule(beats_chance),
        expect="holds",
        text={
            "holds": f"The reward model predicts real preferences better than chance: it is right on {each('accuracy')} of the pairs.",
            "fails": f"The reward model is not shown to beat chance on each subset: it is right on {each('accuracy')} of the pairs.",
        },
    )
    results.state(
        "rm_beats_longer_wins_on_hh",
        statistics.rule(versus("pairwise", "length", "audit.ahead_of_length", names)),
        expect="fails",
        text={
            "holds": f"It beats length on each subset. The differences are {each('audit.ahead_of_length')}.",
            "fails": f"It is not shown to beat length on each subset. The differences are {each('audit.ahead_of_length')}.",
        },
    )
    display(results.show("rm_beats_chance_on_hh", "rm_beats_longer_wins_on_hh"))

# %%
if real:
    results.state(
        "rm_beats_bag_of_words_on_hh",
        statistics.rule(versus("pairwise", "bag of words", "audit.ahead_of_bag_of_words", names)),
        expect="fails",
        text={
            "holds": f"It beats a bag of words on each subset. The differences are {each('audit.ahead_of_bag_of_words')}.",
            "fails": f"It is not shown to beat a bag of words on each subset. The differences are {each('audit.ahead_of_bag_of_words')}.",
        },
    )
    results.state(
        "pairwise_beats_class_token_on_hh",
        statistics.rule(versus("pairwise", "class_token", "audit.ahead_of_class_token", names)),
        expect="fails",
        text={
            "holds": f"With the same settings, the pairwise model beats the class-token model. The differences are {each('audit.ahead_of_class_token')}.",
            "fails": f"Pairwise is not shown to beat class token on each subset. The differences are {each('audit.ahead_of_class_token')}.",
        },
    )
    display(results.show("rm_beats_bag_of_words_on_hh", "pairwise_beats_class_token_on_hh"))

# %% [markdown]
# ## 6. Does it see more than length?
#
# An accuracy hides *where* a model is right. Divide the pairs in two: those in which people preferred the longer
# answer, and those in which they preferred the shorter one. A model that goes by which one is longer is right on all of
# the first and none of the second, or the other way round; one that picks the longer with some fixed chance is right on
# that share of the first and on the rest of the second. The mean of the two shares is one half for all of them.
#
# > **Predict.** The curves below show how often the longer answer is preferred, against how much longer it is. Where
# > does the model's curve run if it sees nothing but length?


# %%
def equal_groups(values, mask, count):
    """`mask` (N,) cut into `count` groups of about as many pairs, by `values` (N,)."""
    group = np.digitize(values, np.quantile(values[mask], np.arange(1, count) / count)) if mask.any() else 0 * values
    return [mask & (group == g) for g in range(count)]


def preference_for_longer(name, values):
    """How often the longer answer is preferred, in five equal groups of pairs by how much longer it is: the middle of
    each group, and an interval."""
    masks = equal_groups(ratio, of[name] & (longer != 0.5), 5)
    return [np.median(ratio[mask]) for mask in masks], [over_pairs(values, weights, mask) for mask in masks]


if real:
    lengths = np.array([sorted((len(row["chosen"]), len(row["rejected"]))) for row in rows])  # (N, 2) characters
    ratio, gap = lengths[:, 1] / lengths[:, 0], lengths[:, 1] - lengths[:, 0]
    picks = {name: np.where(longer == 1, right["pairwise", name], 1 - right["pairwise", name]) for name in names}
    curves = {name: {"people": longer, "model": picks[name]} for name in names}
    drawn = {name: {who: preference_for_longer(name, v) for who, v in curves[name].items()} for name in names}

# %%
if real:
    figure, axes = plt.subplots(1, len(names), figsize=(3.4 * len(names) + 0.6, 3.4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for index, (who, (middles, spans)) in enumerate(drawn[name].items()):
            ends = np.abs([[s.low - s.value, s.high - s.value] for s in spans]).T
            style = {"color": plots.COLORS[index], "linestyle": plots.LINES[index], "marker": plots.MARKERS[index]}
            at = np.array(middles) * 1.05**index  # beside each other
            axis.errorbar(at, [s.value for s in spans], yerr=ends, capsize=2, label=who, **style)
        axis.axhline(0.5, color="0.3", linestyle=":")
        axis.set_xscale("log")
        axis.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_title(name, fontsize="medium")
        axis.set_xlabel("longer / shorter (characters)")
    axes[0, 0].set_ylim(0, 1)
    axes[0, 0].set_ylabel("longer preferred (share of pairs)")
    axes[0, 0].legend(loc="lower left", fontsize="small")
    ends = {(name, who): [spans[e].value for e in (0, -1)] for name in names for who, (_, spans) in drawn[name].items()}
    words = "; ".join(f"{name}, {who}: from {low:.2f} to {high:.2f}" for (name, who), (low, high) in ends.items())
    alt = f"""How often the longer of two answers is preferred, by people and by the pairwise model, against how many times as
    long it is, with 95 % intervals, in five groups of pairs from nearly equal to most unequal lengths. {words}."""
    plots.show(figure, alt, name="real_people_length")

# %% [markdown]
# A model that always takes the longer answer runs along 1, one that always takes the shorter along 0. One that goes by
# how much longer jumps between the two. In between, something else than these lengths decides as well, though not
# necessarily rightly: to lie on the people's curve is not to agree with people pair by pair.
#
# The people's curve is not flat, and that spoils the simple mean of the two shares: a model that takes the longer
# answer only if it is *much* longer gets more than one half of it. So we first sort the pairs into fifteen cells, by
# the ratio and by the difference of the two lengths. In a cell, a model that sees only lengths makes nearly the same
# pick throughout, and the mean of the two shares, averaged over cells, is about one half. What clearly exceeds it is
# something else than length.


# %%
def halves_of_cells(mask):
    """Pairs in which the longer answer won, and those in which the shorter one did, in cells of pairs of alike lengths."""
    cells = [c for g in equal_groups(ratio, mask & (longer != 0.5), 5) for c in equal_groups(gap, g, 3)]
    halves = [(cell & (longer == 1), cell & (longer == 0)) for cell in cells]
    return [half for both in halves if all(h.any() for h in both) for half in both]


if real:
    for name in names:
        for rule_name, takes_longer in (("much longer", ratio > 2), ("a hundred characters longer", gap > 100)):
            by_length = np.where(takes_longer, longer, 1 - longer)
            halves = [of[name] & (longer == wins) for wins in (1, 0)]
            simple, in_cells = (
                over_pairs(by_length, weights, *halves),
                over_pairs(by_length, weights, *halves_of_cells(of[name])),
            )
            print(f"{name}, takes the longer if {rule_name}: mean {simple.value:.3f}, in cells {in_cells.value:.3f}")

# %% [markdown]
# The rule of `rm_sees_more_than_length_on_hh`: on each subset the interval of the mean of the two shares, in cells of
# alike lengths, lies above one half.

# %%
if real:
    for name in names:
        halves = [of[name] & (longer == wins) for wins in (1, 0)]
        for half, what in zip(halves, ("longer", "shorter"), strict=True):
            results.number(f"audit.where_{what}_won.{name}", over_pairs(right["pairwise", name], weights, half), units)
        results.number(
            f"audit.beyond_length.{name}",
            over_pairs(right["pairwise", name], weights, *halves_of_cells(of[name])),
            units,
        )
    more = all(results.numbers[f"audit.beyond_length.{name}"]["low"] > 0.5 for name in names)
    results.state(
        "rm_sees_more_than_length_on_hh",
        statistics.rule(more),
        expect="holds",
        text={
            "holds": f"It sees more than length: among pairs of alike lengths, the mean of the two shares is {each('audit.beyond_length')}.",
            "fails": f"It is not shown to see more than length: among pairs of alike lengths, the mean of the two shares is {each('audit.beyond_length')}.",
        },
    )
    wanted = [
        f"audit.{what}.{name}" for name in names for what in ("where_longer_won", "where_shorter_won", "beyond_length")
    ]
    display(results.table(*wanted), results.show("rm_sees_more_than_length_on_hh"))

# %% [markdown]
# ## 7. Two kinds of good that disagree
#
# Every model scored every pair, so each can be tested on the other's. A helpful answer takes a request seriously; a
# harmless one often declines it. Where a request is harmful, both cannot be had, and a model that has only learned what
# helps has learned the wrong thing. Rows are models, columns test sets.

# %%
if real and len(names) > 1:
    table = ["| pairwise model of | " + " | ".join(of) + " |", "|---|" + "--:|" * len(of)]
    for model in own:
        short = model.removeprefix("hh_")
        for name in of:
            if name != model:
                results.number(
                    f"accuracy.{short}.{name}", over_pairs(right["pairwise", model], weights, of[name]), units
                )
        shares = [right["pairwise", model][mask].mean() for mask in of.values()]
        table.append(f"| {short} | " + " | ".join(f"{share:.3f}" for share in shares) + " |")
    display(Markdown("\n".join(table)))

# %% [markdown]
# The rules: the two kinds *conflict* if the model of each is right on fewer than half of the other's pairs, with both
# intervals below one half. The joint model *pays* if on all pairs together the paired difference, the subset's own
# model minus the joint one, has an interval above zero. The joint model has read as much of each subset as the subset's
# own. (The source reports the first in one direction only, the helpful model on harmless pairs, and joint accuracy
# below both separate ones.)

# %%
if real and {"hh_helpful", "hh_harmless"} <= set(names):
    crossed = [results.numbers[key] for key in ("accuracy.helpful.hh_harmless", "accuracy.harmless.hh_helpful")]
    figures = "the helpful model is right on {accuracy.helpful.hh_harmless} of the harmless pairs, the harmless one on {accuracy.harmless.hh_helpful} of the helpful ones"
    results.state(
        "subsets_conflict_on_hh",
        statistics.rule(all(share["high"] < 0.5 for share in crossed)),
        expect="holds",
        text={
            "holds": f"Each model is wrong about the other's pairs more often than not: {figures}.",
            "fails": f"That each model is wrong about the other's pairs more often than not is not shown: {figures}.",
        },
    )
    display(results.show("subsets_conflict_on_hh"))

# %% [markdown]
# Is it only that one kind of people wants longer and the other shorter answers? A pure length rule would pass this
# test, too. So here is the mean of the two shares in cells of alike lengths (section 6), which is about one half if the
# conflict is about length alone. The conflict goes *beyond length* if both intervals lie below one half.

# %%
if real and {"hh_helpful", "hh_harmless"} <= set(names):
    strangers = {"audit.beyond_length.helpful.hh_harmless": ("hh_helpful", "hh_harmless")}
    strangers |= {"audit.beyond_length.harmless.hh_helpful": ("hh_harmless", "hh_helpful")}
    for key, (model, name) in strangers.items():
        results.number(key, over_pairs(right["pairwise", model], weights, *halves_of_cells(of[name])), units)
    figures = "the helpful model has {audit.beyond_length.helpful.hh_harmless} on harmless pairs, the harmless one {audit.beyond_length.harmless.hh_helpful} on helpful ones"
    results.state(
        "subsets_conflict_beyond_length_on_hh",
        statistics.rule(all(results.numbers[key]["high"] < 0.5 for key in strangers)),
        expect="holds",
        text={
            "holds": f"And about more than length: among pairs of alike lengths {figures}.",
            "fails": f"That they contradict each other about more than length is not shown: among pairs of alike lengths {figures}.",
        },
    )
    display(results.show("subsets_conflict_beyond_length_on_hh"))

# %%
if real and len(names) > 1:
    right["separate", "hh_joint"] = np.select([of[name] for name in names], [right["pairwise", name] for name in names])
    results.state(
        "joint_model_pays_on_hh",
        statistics.rule(versus("separate", "pairwise", "audit.separate_ahead_of_joint", ["hh_joint"])),
        expect="holds",
        text={
            "holds": "One model for all pays for it: separate ones are right on {audit.separate_ahead_of_joint.hh_joint} more of the pairs.",
            "fails": "One model for all is not shown to pay for it: separate ones are ahead by {audit.separate_ahead_of_joint.hh_joint} of the pairs.",
        },
    )
    display(results.show("joint_model_pays_on_hh"))

# %% [markdown]
# ## 8. How sure should it be?
#
# A model that fits a few thousand pairs can be sure of what it has seen and wrong about the rest. The *expected
# calibration error* (notebook 21) compares how sure it is with how often it is right, and the *slope* is the factor by
# which its log-odds should be multiplied: below one it is overconfident. Both pool the five models of the folds, and
# have no intervals.

# %%
if real:
    for name, mask in of.items():
        odds = margins["pairwise", name][mask]
        results.number(f"ece.{name}", calibration.expected_error(*calibration.confidence(odds)), "probability")
        results.number(
            f"ece.by_chance.{name}", calibration.error_by_chance(calibration.confidence(odds)[0]), "probability"
        )
        results.number(f"slope.{name}", calibration.slope(odds), "factor")
    display(results.table(*(f"{key}.{name}" for name in of for key in ("ece", "ece.by_chance", "slope"))))

# %% [markdown]
# ## 9. The gap, and what would close it
#
# What the sources report, with the conditions:

# %%
whats = ("helpful", "harmless", "joint", "joint_10k", "helpful_on_harmless")
reported = [f"reward_in_the_prompt.accuracy_{what}" for what in whats]
reported += [f"helpful_and_harmless.{what}" for what in ("accuracy_13m", "accuracy_1b", "accuracy_52b", "agreement")]
reported += ["reward_bench.deberta_helpful", "reward_bench.deberta_harmless"]
table = ["| figure | what | source | read |", "|--:|---|---|---|"]
for found in map(source_figure, reported):
    ends = found.value if isinstance(found.value, tuple) else (found.value,)
    table.append(f"| {' to '.join(f'{end:.3g}' for end in ends)} | {found.where} | {found.source} | {found.how} |")
display(Markdown("\n".join(table)))

# %% [markdown]
# Four things at least separate these from ours.
#
# **Pre-training.** Our models meet English for the first time in a few thousand dialogues, and learn words and what
# they are worth from the same pairs. The source's model, *babbage*, and Anthropic's had read a large part of the web:
# their comparisons only had to teach them what people like. Anthropic's smallest model is more than fifty times as
# large as ours.
#
# **Data.** The sources trained on the official training files, with tens of thousands of pairs of each subset; we train
# on four fifths of the test files, which have a twentieth of that. What data is worth to a model that *is* pre-trained,
# the table tells: compare the source's joint model on 10,000 pairs with its joint model on all of them.
#
# **Context.** Our models read a fixed number of tokens. Of longer dialogues the beginning is cut, and of long answers
# the end, which the shortcuts are allowed to see. A larger `hh_max_tokens` in `profiles.toml` costs time.
#
# **People.** No model can be right on every pair, since people are not of one mind: the *agreement* in the table is
# that of Anthropic's researchers with its crowd workers. A model can beat it, because it is compared with the crowd
# that it learned from, and need not share any one person's noise; but nobody knows the ceiling, which in the miniature
# world we could compute.
#
# With a network or a folder at hand, try it: `checkpoint = "gpt2"` in the parameters cell fine-tunes that in place of a
# model from nothing, with the loss, folds, audit and claims of this notebook; `subsets` takes any of
# `preferences.SUBSETS`. On two cores that takes hours.

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The document *Attempts to align language models by putting the reward in the prompt* and
# the comments in its code disagree about the joint model's accuracy (the code says less). It gives no length baseline
# for its test sets; the one in its code counts a tie as right, and by default runs on the harmless pairs alone. And its
# accuracies have no intervals: with the 1,000 pairs or so of its evaluations, one would reach about three hundredths to
# either side. (That is $1.96 \sqrt{p (1 - p) / n}$.)

# %% [markdown]
# ## Exercises
#
# **1.** The helpful model tested on harmless pairs: what accuracy would it have if you turned its scores round? Is it
# then a harmless model?
#
# <details><summary>Hint</summary>
#
# Turning round exchanges right and wrong.
#
# </details>
#
# <details><summary>Answer</summary>
#
# One minus its accuracy. That may come near the model that was trained on harmless pairs. But it has been told nothing
# about harm: turned round, it prefers what people who wanted help did not, be it unhelpful or merely shorter. On a
# request that is not harmful it would prefer the unhelpful answer.
#
# </details>
#
# **2.** Why is "the longer one wins" no fair rival on harmless-base, and what makes `length` fair? Could there be a
# rival that uses length and is better than either?
#
# <details><summary>Answer</summary>
#
# A rule that is right on less than half of the pairs is beaten by a coin. `length` learns from the training pairs which
# direction wins, as the model can. A better one knows that it depends on *how much* longer (the curves of section 6),
# or on the prompt: the best direction differs between the subsets, so on the joint pairs a rival that knows which
# subset it is in would gain most.
#
# </details>
#
# **3.** A model is right on .62 of the pairs in which the longer answer won and on .48 of those in which the shorter
# one won, and the longer one wins in .6 of all pairs. What is its accuracy, and does it see more than length? (Both
# shares are means over cells of alike lengths, and ties do not occur.)
#
# <details><summary>Answer</summary>
#
# Accuracy $.6 \times .62 + .4 \times .48 = .564$, less than the .6 of length. But the mean of the two shares is .55: if
# the interval leaves out one half, it does see something else. To be behind a shortcut and to know nothing but the
# shortcut are two things.
#
# </details>
#
# **4.** Set `subsets = ["helpful-base"]` and run again. What changes for the helpful model, although it is trained and
# tested on the same set of comparisons?
#
# <details><summary>Hint</summary>
#
# Look at what `recipes.real_language_model` reads.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Tokenizer and language model come from the helpful dialogues alone, about half as many. The folds are dealt anew as
# well, so each model meets other training pairs. The difference mixes less text, text of another kind, and chance; the
# bootstrap covers only a part of the last.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*, [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): the data, and reward models from 13M to 52B parameters on it.
# - Ganguli et al. (2022), *Red teaming language models to reduce harms*, [arXiv 2209.07858](https://arxiv.org/abs/2209.07858): how red teaming was done and what it found; its own transcripts are a separate data set, published beside harmless-base.
# - *Attempts to align language models by putting the reward in the prompt* (2023), the repository [thejaminator/prompt_reward_rl](https://github.com/thejaminator/prompt_reward_rl): the class-token models whose figures stand beside ours.
# - Singhal et al. (2023), *A long way to go: investigating length correlations in RLHF*, [arXiv 2310.03716](https://arxiv.org/abs/2310.03716): how far length alone gets.
# - Lambert et al. (2024), *RewardBench*, [arXiv 2403.13787](https://arxiv.org/abs/2403.13787): published reward models side by side.
