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
# # Reward models: three losses, calibration, shortcuts
#
# **Which loss makes the better reward model, can its confidence be trusted, and what does it look at?**
#
# A reward model stands in for people: a policy that is trained against it can ask it a million times. So an accuracy on
# held-out comparisons is not all one wants to know. This notebook derives three losses that are in use and trains a
# model with each on the same answers; checks whether what a model calls 80 % sure is right in 80 % of the cases; lets
# models that were taught one virtue judge another; and asks how far one gets by looking at nothing but the first word.

# %% [markdown]
# ## What you will learn
#
# - the pairwise loss as the likelihood of Bradley and Terry, what it leaves free, and what a wrong sign does;
# - the class-token model, a reward model that any fine-tuning service can train, and what its scores mean;
# - the K-wise loss, which gets more comparisons out of each answer that is read;
# - calibration: the reliability diagram, the expected error and its floor, over- and underconfidence;
# - why a helpful model can be worse than useless on harmless pairs;
# - to audit a reward model: length, first word, format, bag of words, a twin that never sees the prompt;
# - which details of training matter: normalization, the first head, epochs, the end of the learning rate.

# %% [markdown]
# ## What you should know
#
# The Bradley-Terry model (the notebook *Elo and Bradley-Terry*, sections 5 and 6), what a language model and its logits
# are, and gradient descent.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import copy
from dataclasses import replace
from itertools import combinations

import joblib
import numpy as np
import torch
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from scipy.special import expit, logit
from torch.nn import functional as F

from rlhf_lab import audit, calibration, claims, class_token, parallel, plots, preferences, recipes, reward_model
from rlhf_lab.profiles import Profile
from rlhf_lab.reward_model import RewardModelConfig
from rlhf_lab.source_figures import figure as source_figure
from rlhf_lab.statistics import better, equivalent, rule, t_interval
from rlhf_lab.tinyhh import annotators, gold

size = Profile.load(profile)
results = claims.Claims("21_reward_models", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats every experiment with other comparisons, other held-out comparisons and other first heads; it is the
# unit in which we count evidence, and square brackets hold 95 % intervals over seeds. The base model is the same for
# all seeds. Rules stand above the cells that decide them and were fixed before the published run; settings were tried
# out with other seeds. One seed decides nothing, so the published verdict is then shown beside it.

# %% [markdown]
# ## 1. From a comparison to a loss
#
# People compare two responses to a prompt $\prompt$: the chosen $\respw$ and the rejected $\respl$. Bradley and Terry
# (1952) say how likely that choice was, if each response has a strength. Let the strength be a function of the text,
# with parameters $\phi$:
#
# $$ P(\respw \succ \respl \mid \prompt) = \sigmoid\big(\rmodel(\prompt, \respw) - \rmodel(\prompt, \respl)\big) . $$
#
# Labels are independent given the texts, so the likelihood of all of them is a product. Take the logarithm, change the
# sign, divide by the number of pairs, and the *pairwise loss* is there:
#
# $$ \loss(\phi) = -\E_{\Data}\big[ \log \sigmoid\big(\rmodel(\prompt, \respw) - \rmodel(\prompt, \respl)\big) \big] . $$
#
# The difference of the two scores is the *margin*. By hand, for three pairs with margins 2, 0 and -1:

# %%
margins_by_hand = torch.tensor([2.0, 0.0, -1.0])
likelihood = 1 / (1 + torch.exp(-margins_by_hand))  # (3,) of the choice that was made
by_hand = -likelihood.log().mean()
print("likelihood of each choice:", likelihood.numpy().round(3), " loss:", round(by_hand.item(), 4))
assert torch.isclose(by_hand, reward_model.pairwise_loss(margins_by_hand, torch.zeros(3)))

# %% [markdown]
# What does the gradient do? The derivative of the loss in the chosen response's score is $-(1 - P)$: the less likely
# the model thought the choice, the harder the two scores are pushed apart. A pair it was sure of teaches it little.

# %%
chosen, rejected = margins_by_hand.clone().requires_grad_(), torch.zeros(3, requires_grad=True)
(3 * reward_model.pairwise_loss(chosen, rejected)).backward()  # times 3, to undo the mean
print("in the chosen score:  ", chosen.grad.numpy().round(3))
print("in the rejected score:", rejected.grad.numpy().round(3))
assert torch.allclose(chosen.grad, likelihood - 1) and torch.allclose(rejected.grad, 1 - likelihood)

# %% [markdown]
# The margin fixes the *unit* of the scores: it is the log-odds of a choice, in nats. It leaves the *zero* free, and not
# only one zero: add any function of the prompt to all scores, and no margin changes. So scores of answers to different
# prompts may not be compared, unless something else ties them together.

# %% [markdown]
# ### A wrong sign
#
# One of the sources of this course prints the loss as $\log\big(1 + e^{r_{\text{good}} - r_{\text{bad}}}\big)$. Since
# $-\log \sigmoid(z) = \log(1 + e^{-z})$, the exponent should be $r_{\text{bad}} - r_{\text{good}}$.
#
# > **Predict.** Start from equal scores. By which of these could you notice the slip: the first value of the loss, a
# > loss that does not fall, or something else?


# %%
def descend(loss, steps=20, rate=1.0):
    """Gradient descent on the two scores of one pair, (steps + 1, 2), and the losses on the way."""
    scores, path, losses = torch.zeros(2), [], []
    for _ in range(steps + 1):
        scores = scores.detach().requires_grad_()
        value = loss(scores[0], scores[1])
        path.append(scores.tolist())
        losses.append(value.item())
        scores = scores - rate * torch.autograd.grad(value, scores)[0]
    return np.array(path), losses


def as_printed(good, bad):
    return torch.log1p(torch.exp(good - bad))


for name, loss in {"as derived": reward_model.pairwise_loss, "as printed": as_printed}.items():
    path, losses = descend(loss)
    print(f"{name}: loss {losses[0]:.3f} -> {losses[-1]:.3f}, chosen {path[-1, 0]:+.2f}, rejected {path[-1, 1]:+.2f}")

# %%
ends = {name: descend(loss)[0][-1] for name, loss in (("derived", reward_model.pairwise_loss), ("printed", as_printed))}
results.state(
    "wrong_sign_prefers_rejected",
    rule(bool(ends["derived"][0] > ends["derived"][1] and ends["printed"][0] < ends["printed"][1])),
    expect="holds",
    sanity=True,
    text={
        "holds": "With the sign as printed, gradient descent comes to prefer the rejected response; as derived, the "
        "chosen one.",
        "fails": "The two signs do not lead to opposite preferences: look for an error in this cell.",
    },
)
results.show("wrong_sign_prefers_rejected")

# %% [markdown]
# Both begin at $\log 2$, and both fall equally fast. Nothing in a curve of the training loss gives the slip away; only
# a test on pairs does, whose accuracy is then below one half.

# %% [markdown]
# ## 2. A reward model in one token
#
# What if all you can have is a service that fine-tunes language models on pairs of prompt and completion? The source
# just mentioned had to make do with that. It asks after each dialogue, *was this the chosen one?*, and has the model
# answer with one more token: the text and a separator `<SOS>`, then `1` or `0`. The score is
#
# $$ s(\prompt, \resp) = \frac{p_1}{p_1 + p_0} = \sigmoid(\ell_1 - \ell_0) , $$
#
# with $p_1, p_0$ the probabilities of the two *class tokens* and $\ell_1, \ell_0$ their logits. What the model thinks
# of the other tokens cancels out. Here is the base model, before any training:

# %%
base, tokenizer = recipes.base(size.rung)
pair = recipes.preference_pairs("helpful", "test", size.test_pairs, 0)[0]
one, zero = tokenizer.convert_tokens_to_ids(["1", "0"])


def logits_after(prompt, response):
    """The logits (V,) of the token that follows the text and the separator."""
    ids = [token for piece in (prompt, response, "<SOS>") for token in tokenizer(piece)["input_ids"]]
    with torch.inference_mode():
        return base(torch.tensor([ids])).logits[0, -1]


# %%
logits = logits_after(pair["prompt"], pair["chosen"])
p = logits.softmax(-1)
by_hand = p[one] / (p[one] + p[zero])
print(f"p1 {p[one]:.2e}, p0 {p[zero]:.2e}, score {by_hand:.3f}")
print("ranks of 1 and 0 among the tokens:", [int((p > p[token]).sum()) + 1 for token in (one, zero)])
score = class_token.score(base, tokenizer, [pair["prompt"]], [pair["chosen"]])
assert torch.isclose(by_hand, score[0], atol=1e-5) and torch.isclose(by_hand, torch.sigmoid(logits[one] - logits[zero]))

# %% [markdown]
# (The service returned the five most probable tokens only. Where `1` or `0` is not among them, there is no score: a
# trap that one's own model does not have.)
#
# Training is next-token prediction: two texts from each pair, each on its own, with its token as the target. The first
# loss of the module must be the mean cross-entropy of the two:

# %%
other = logits_after(pair["prompt"], pair["rejected"])
by_hand = (-F.log_softmax(logits, -1)[one] - F.log_softmax(other, -1)[zero]) / 2
still = RewardModelConfig(learning_rate=0.0)  # a step that changes nothing, to read off the loss
(first,) = class_token.train(copy.deepcopy(base), tokenizer, [pair], still, seed=0)
print(f"by hand {by_hand:.4f}, module {first:.4f}, and {np.log(2):.4f} for a model that knows it is 1 or 0, no more")
assert np.isclose(by_hand.item(), first, atol=1e-4)

# %% [markdown]
# Part of the training goes into finding out that the answer is `1` or `0` at all.
#
# What does the score mean? The label of a text depends on the *other* text, which the model never sees. So the best it
# can learn is how often such a text is chosen on average over opponents. By hand: answers of strength -1, 0 and 1, all
# equally frequent, judged by Bradley-Terry labelers.

# %%
strengths = np.array([-1.0, 0.0, 1.0])
beats = expit(strengths[:, None] - strengths)  # (3, 3) row against column
share_chosen = beats.mean(axis=1)  # what a perfect class-token model says of each answer
log_odds = logit(share_chosen)
print("chosen on average:", share_chosen.round(3))
true, said = strengths[2] - strengths[0], log_odds[2] - log_odds[0]
print(
    f"log-odds of the best against the worst: true {true:.2f}, from class tokens {said:.2f}; factor {true / said:.2f}"
)

# %% [markdown]
# To turn two scores into the chance that the first of two texts was chosen, one takes the difference of their logits,
# as if their labels were independent. They are not, and averaging over opponents has watered the odds down. So even a
# perfect class-token model puts two answers to one prompt in the right order, but is *underconfident* about them.

# %% [markdown]
# ## 3. Rankings: all pairs of K answers
#
# InstructGPT's labelers rank $K$ answers to a prompt at once, which gives $\binom K2$ comparisons. Their loss is the
# mean of the pairwise losses over all of them:
#
# $$ \loss(\phi) = -\E\Bigg[ \binom{K}{2}^{-1} \sum_{i \text{ ranked above } j} \log \sigmoid\big(\rmodel(\prompt, \resp_i) - \rmodel(\prompt, \resp_j)\big) \Bigg] . $$
#
# All pairs of a prompt belong into one step: each answer is then read once, not $K - 1$ times. By hand, three answers
# with scores 1, 0 and -0.5, ranked in this order:

# %%
scores_by_hand, ranks = torch.tensor([[1.0, 0.0, -0.5]]), torch.tensor([[1.0, 2.0, 3.0]])
pairs_of_three = list(combinations(range(3), 2))
terms = [torch.log1p(torch.exp(scores_by_hand[0, j] - scores_by_hand[0, i])) for i, j in pairs_of_three]
by_hand = sum(terms) / len(pairs_of_three)
print(pairs_of_three, [round(term.item(), 3) for term in terms], "mean", round(by_hand.item(), 4))
assert torch.isclose(by_hand, reward_model.k_wise_loss(scores_by_hand, ranks))
two = torch.tensor([[1.0, 0.0], [-0.5, 2.0]])  # two pairs: for K = 2 it is the pairwise loss
of_two = reward_model.k_wise_loss(two, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))
assert torch.isclose(of_two, reward_model.pairwise_loss(two[:, 0], two[:, 1]))
tied = reward_model.k_wise_loss(scores_by_hand, torch.tensor([[1.0, 2.0, 2.0]]))  # a tie is dropped
assert torch.isclose(tied, (terms[0] + terms[1]) / 2)

# %% [markdown]
# ## 4. The experiment
#
# The miniature world has two kinds of comparisons. *Helpful* ones ask about everyday topics, and the labelers say which
# answer helps more. *Harmless* ones ask for things that people should not do, and the labelers say which answer does
# less harm. *Joint* data is both in equal parts. (A helpful crowd and a harmless one would disagree about harmful
# requests: to comply helps, and harms.) Held-out pairs ask questions that occur in no training pair; *unseen* ones are
# about topics that occur in no comparison at all.
#
# All models start from the same base model. The three losses read the same number of answers once, in the same number
# of steps. The helpful and the harmless model of section 9 read only their own half of the joint pairs, in half as many
# steps. What an answer costs is its reading and its judging; a ranking makes more comparisons of the same answers. The
# learning rate of each loss is the best of several, tried with another seed: class tokens want a larger one.

# %%
LOSSES = {"pairwise": "joint", "class token": "class_token", "K-wise": "k_wise"}  # how the text calls them
answers = 4 * size.preference_pairs  # two subsets, two answers a pair
k = recipes.RANKED_RESPONSES
rankings = answers // k
rows = [
    ("pairwise", f"{answers:,}", f"{answers // 2:,}", f"{answers // 2:,}"),
    ("class token", f"{answers:,}", f"{answers // 2:,}", "none: texts on their own"),
    (f"K-wise, K = {k}", f"{answers:,}", f"{rankings:,}", f"up to {rankings * k * (k - 1) // 2:,} (ties dropped)"),
]
lines = ["| loss | answers read | prompts | comparisons in the loss |", "|---|--:|--:|--:|"]
Markdown("\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]))

# %% [markdown]
# Everything is trained here, side by side on all cores. A *blind* model is a twin that reads the answers without their
# prompts; it is for the audit.

# %%
MODELS = {  # name: (loss, data it is trained on, data it is tested on)
    "joint": ("pairwise", "joint", ("helpful", "harmless", "unseen")),
    "class_token": ("class_token", "joint", ("helpful", "harmless")),
    "k_wise": ("k_wise", "joint", ("helpful", "harmless")),
    "blind_joint": ("prompt_blind", "joint", ("helpful", "harmless")),
    "helpful": ("pairwise", "helpful", ("helpful", "harmless", "unseen")),
    "harmless": ("pairwise", "harmless", ("helpful", "harmless")),
    "blind_helpful": ("prompt_blind", "helpful", ("helpful", "unseen")),
    "blind_harmless": ("prompt_blind", "harmless", ("harmless",)),
}


def scores_of(kind, data, tests, seed):
    """Train a model, if it is not there yet, and let it score the held-out pairs of each test set: (T, N, 2)."""
    model, n = (kind, size.rung, data, size.preference_pairs), size.test_pairs
    runs = [recipes.preference_scores(*model, test, n, seed=seed) for test in tests]
    return np.array([[run["chosen"], run["rejected"]] for run in runs]).transpose(0, 2, 1)


# %%
jobs = [joblib.delayed(scores_of)(*model, seed) for model in MODELS.values() for seed in range(seeds)]
finished = iter(parallel.run(jobs))
scores = {}  # (model, test set) -> (S, N, 2), chosen and rejected
for name, (_, _, tests) in MODELS.items():
    per_seed = np.array([next(finished) for _ in range(seeds)])  # (S, T, N, 2)
    scores |= {(name, test): per_seed[:, t] for t, test in enumerate(tests)}
print({" on ".join(key): value.shape for key, value in scores.items()})

# %% [markdown]
# ## 5. First the pairs, then the models
#
# How far does one get without understanding anything? Each *shortcut* is a Bradley-Terry model that is fitted to the
# same training comparisons, but sees only a few things about an answer: how long it is, its first word, its format (how
# many words, sentences, lines, list items, commas, question marks, digits ...), or which words occur in it, in whatever
# order. None of them sees the prompt. (To a bag of words it would be no use: a linear function of the words of prompt
# and answer gives both answers the same points for the prompt.)
#
# > **Predict.** On harmful requests, labelers choose the answer that does less harm. Which is the better shortcut
# > there, the longer answer or the first word?


# %%
PARTS = {"helpful": ("helpful",), "harmless": ("harmless",), "joint": ("helpful", "harmless"), "unseen": ("unseen",)}
SHORTCUTS = ("longer_wins", "first_token", "format", "bag_of_words")


def pairs_of(test, split, n, seed):
    """Comparisons of a test set's kind, or those to train for it."""
    return [row for part in PARTS[test] for row in recipes.preference_pairs(part, split, n, seed)]


def shortcuts(test, seed):
    """Which held-out pairs each shortcut gets right, and in which pairs the two answers look alike: (N,) each."""
    train = pairs_of("helpful" if test == "unseen" else test, "train", size.preference_pairs, seed)
    held_out = pairs_of(test, "test", size.test_pairs, seed)
    return {
        "longer_wins": np.array([preferences.longer_wins(**row) for row in held_out]),
        "first_token": audit.first_token(train, held_out),
        "format": audit.format(train, held_out),
        "bag_of_words": audit.bag_of_words(train, held_out),
        "matched": audit.format_matched(held_out),
    }


found = iter(parallel.run(joblib.delayed(shortcuts)(test, seed) for test in PARTS for seed in range(seeds)))
shortcut = {test: [next(found) for _ in range(seeds)] for test in PARTS}

# %% [markdown]
# Two more things are known here that nobody knows in life: by how much the true reward of the chosen answer exceeds
# that of the rejected one (*gold*; negative where the labeler erred), and the *ceiling*, an upper bound: what one would
# score on the crowd's labels who knew its favorite, and which answer was shown first.


# %%
def truth(test, seed):
    """The true difference of each held-out pair and the crowd's agreement with its favorite, (N,) each."""
    differences, ceilings = [], []
    for part in PARTS[test]:
        reward = gold.harmlessness if part == "harmless" else gold.helpfulness
        crowd = annotators.crowd("harmless-base" if part == "harmless" else "helpful-base")
        for row in recipes.preference_pairs(part, "test", size.test_pairs, seed):
            prompt, chosen, rejected = row["prompt"], row["chosen"], row["rejected"]
            differences.append(round(reward(prompt, chosen) - reward(prompt, rejected), 6))  # no float noise
            sides = ((chosen, rejected), (rejected, chosen))  # whichever is shown first
            ceilings.append(np.mean([annotators.ceiling(crowd, prompt, *side) for side in sides]))
    return np.array(differences), np.array(ceilings)


found = iter(parallel.run(joblib.delayed(truth)(test, seed) for test in PARTS for seed in range(seeds)))
known = {test: np.array([next(found) for _ in range(seeds)]) for test in PARTS}  # (S, 2, N)


# %%
def record(key, values, unit="share of pairs"):
    """Record the interval over seeds of one number per seed, and hand the numbers back: (S,)."""
    results.number(key, t_interval(values), unit)
    return np.array(values)


def verdict(*conditions):
    """Whether all conditions hold; one seed decides nothing."""
    return rule(*conditions) if seeds > 1 else "not decided"


baseline = {}  # (shortcut, test set) -> (S,)
for test in PARTS:
    for name in SHORTCUTS:
        baseline[name, test] = record(f"audit.{name}.{test}", [found[name].mean() for found in shortcut[test]])
    record(f"ceiling.{test}", known[test][:, 1].mean(axis=1))


# %%
def legend_above(figure, axis):
    """One legend for all panels, where it covers nothing."""
    figure.tight_layout()
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, ncols=len(handles[0]), loc="lower center", bbox_to_anchor=(0.5, 0.98), fontsize="small")


def table(corner, columns, lines, digits=2):
    """A Markdown table of recorded numbers; `lines` are (label, keys)."""
    cells = [[f"{results.numbers[key]['value']:.{digits}f}" for key in keys] for _, keys in lines]
    header = [f"| {corner} | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    body = [f"| {label} | " + " | ".join(row) + " |" for (label, _), row in zip(lines, cells, strict=True)]
    return Markdown("\n".join(header + body))


names = ("the longer one wins", "first word", "format", "bag of words")
lines = [(name, [f"audit.{key}.{test}" for test in PARTS]) for name, key in zip(names, SHORTCUTS, strict=True)]
table("right on held-out pairs", PARTS, [*lines, ("ceiling", [f"ceiling.{test}" for test in PARTS])])

# %% [markdown]
# Where "the longer one wins" is right on less than half, the longer answer loses more often: in this world to comply
# takes more words than to refuse. Turned round, that is a shortcut too. And how an answer begins, or which words it
# uses, gives a refusal away in this world.

# %% [markdown]
# ## 6. Three losses, one budget
#
# Now the models. Two numbers for each: how often it agrees with the held-out *label*, which the ceiling bounds, and how
# often it puts two answers in their *true* order (`audit.gold_order`), among pairs of unequal gold reward.
#
# > **Predict.** All three read the same answers. The class-token model never sees two answers side by side; the K-wise
# > model sees each beside three others. In which order will they come?


# %%
def margins(model, test):
    """By how much each chosen answer outscores the other, (S, N); of class tokens, the difference of the logits."""
    return np.concatenate([scores[model, part][..., 0] - scores[model, part][..., 1] for part in PARTS[test]], axis=1)


def accuracy(model, test):
    return audit.right(margins(model, test)).mean(axis=1)


def gold_order(model, test):
    return np.array([audit.gold_order(m, k[0]).mean() for m, k in zip(margins(model, test), known[test], strict=True)])


for model in LOSSES.values():
    for test in ("helpful", "harmless", "joint"):
        record(f"accuracy.{model}.{test}", accuracy(model, test))
        record(f"audit.gold_order.{model}.{test}", gold_order(model, test))

# %% [markdown]
# Which is better is decided on the joint pairs. *Pairwise against class token*: we expect the pairwise loss to be
# better. What two answers share, such as the prompt, cancels out in a margin, while a model of single texts has to
# explain it away; and it need not first learn what the question is. *K-wise against pairwise*: we expect the K-wise
# loss to be better. It makes three times as many comparisons of as many answers, though of half as many prompts, and
# the six of one ranking are not independent. The rankings are of other prompts and answers, and free of the labelers'
# small partiality to the answer shown first, so part of a difference may be the labels' and not the loss's.

# %%
joint = {model: accuracy(model, "joint") for model in LOSSES.values()}
results.state(
    "pairwise_vs_class_token",
    better(joint["joint"], joint["class_token"]),
    expect="better",
    text={
        "better": "On joint pairs the pairwise loss makes the better model: {accuracy.joint.joint} right, against "
        "{accuracy.class_token.joint} for class tokens; difference {difference}.",
        "inconclusive": "Whether the pairwise loss or class tokens make the better model is inconclusive: "
        "{difference}.",
        "worse": "On joint pairs class tokens make the better model: {accuracy.class_token.joint} right, against "
        "{accuracy.joint.joint} for the pairwise loss; difference {difference}.",
    },
)
results.show("pairwise_vs_class_token")

# %%
results.state(
    "k_wise_vs_pairwise",
    better(joint["k_wise"], joint["joint"]),
    expect="better",
    text={
        "better": "From as many answers, rankings make a better model than pairs: the difference is {difference}.",
        "inconclusive": "Whether rankings make a better model than pairs of as many answers is inconclusive: "
        "{difference}.",
        "worse": "From as many answers, rankings make a worse model than pairs: the difference is {difference}.",
    },
)
results.show("k_wise_vs_pairwise")

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.6), sharey=True)
for axis, test in zip(axes, ("helpful", "harmless", "joint"), strict=True):
    shares = [t_interval(accuracy(model, test)) for model in LOSSES.values()]
    plots.interval_bars(axis, list(LOSSES), shares)
    truths = [gold_order(model, test).mean() for model in LOSSES.values()]
    axis.plot(range(3), truths, "D", color="black", markerfacecolor="white", label="true order")
    best = max(baseline[name, test].mean() for name in SHORTCUTS)
    axis.axhline(best, color="0.3", linestyle="--", linewidth=1.2, label="best shortcut")
    axis.axhline(known[test][:, 1].mean(), color="0.3", linestyle=":", linewidth=1.5, label="ceiling")
    axis.set(title=f"{test} pairs", ylim=(0, 1.02))
axes[0].set_ylabel("share of held-out pairs")
legend_above(figure, axes[0])
words = "; ".join(
    f"{test}: " + ", ".join(f"{label} {accuracy(model, test).mean():.2f}" for label, model in LOSSES.items())
    for test in ("helpful", "harmless", "joint")
)
alt = f"""Accuracy of models trained with three losses on the joint data, as bars with 95 % intervals, on three test
sets ({words}). Diamonds: share of pairs in their true order. Dashed line: the best shortcut. Dotted line: the ceiling."""
plots.show(figure, alt, name="three_losses")

# %% [markdown]
# ## 7. Can its confidence be trusted?
#
# A model whose margin is $m$ says: *the answer that I put first would be chosen with probability* $\sigmoid(\lvert m
# \rvert)$. It is *calibrated* if that comes true. By hand: four pairs, a model that is 75 % sure of each, and right in
# three of them. And one with twice these margins, which is 90 % sure, and right just as often.

# %%
sure = np.log(3)  # log-odds of 3 to 1
for factor in (1, 2):
    log_odds = factor * sure * np.array([1, 1, 1, -1])
    p, outcome = calibration.confidence(log_odds)
    error, slope = calibration.expected_error(p, outcome), calibration.slope(log_odds)
    print(f"says {p[0]:.2f}, right {outcome.mean():.2f}, expected error {error:.2f}, slope {slope:.2f}")
assert np.isclose(calibration.expected_error(*calibration.confidence([sure, sure, sure, -sure])), 0)
assert np.isclose(calibration.slope([2 * sure, 2 * sure, 2 * sure, -2 * sure]), 0.5)

# %% [markdown]
# Two measures. The *expected calibration error* (ECE) sorts the pairs by confidence into ten bins of equal size, and
# averages over bins the distance between what was promised and what came true. (Guo et al. take bins of equal width.)
# It has a *floor*: with finitely many pairs a perfect model misses too, by chance. The *slope* is the factor by which
# all margins should be multiplied to fit best. Above 1 the model is underconfident, below 1 overconfident.


# %%
def calibrated(model, test):
    """ECE, its floor and the slope for each seed: (3, S)."""
    found = []
    for log_odds in margins(model, test):
        p, outcome = calibration.confidence(log_odds)
        error, floor = calibration.expected_error(p, outcome), calibration.error_by_chance(p)
        found.append((error, floor, calibration.slope(log_odds)))
    return np.array(found).T


# %%
OWN = {"joint": "joint", "class_token": "joint", "k_wise": "joint", "helpful": "helpful", "harmless": "harmless"}
slopes = {}  # model -> (S,)
for model, test in OWN.items():  # each on pairs of the kind that it was trained on
    errors, floors, slopes[model] = calibrated(model, test)
    record(f"ece.{model}", errors, "expected calibration error")
    record(f"ece_floor.{model}", floors, "expected calibration error by chance")
    record(f"slope.{model}", slopes[model], "best factor on the margins")
what = ("ece", "ece_floor", "slope")
lines = [(f"{model}, on {test} pairs", [f"{name}.{model}" for name in what]) for model, test in OWN.items()]
table("model", ("ECE", "floor", "slope"), lines, digits=3)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.5), sharex=True, sharey=True)
for axis, (label, model) in zip(axes, LOSSES.items(), strict=True):
    axis.plot([0.5, 1], [0.5, 1], color="0.3", linestyle="--", linewidth=1, label="calibrated")
    for log_odds in margins(model, "joint"):
        diagram = calibration.reliability(*calibration.confidence(log_odds))
        axis.plot(diagram.predicted, diagram.observed, color=plots.COLORS[0], alpha=0.5, linewidth=0.7)
    pooled = calibration.reliability(*calibration.confidence(margins(model, "joint").ravel()))
    axis.plot(pooled.predicted, pooled.observed, "o-", color=plots.COLORS[0], label="model (thin lines: single seeds)")
    axis.set(title=label, xlabel="what the model says", xlim=(0.49, 1.01), ylim=(0.39, 1.01))
axes[0].set_ylabel("share of pairs it is right on")
legend_above(figure, axes[0])
words = ", ".join(f"{label} {slopes[model].mean():.2f}" for label, model in LOSSES.items())
alt = f"""Reliability diagrams of the three losses on held-out joint pairs: the share of pairs a model is right on
against the probability it gives itself, in ten bins, beside the diagonal of perfect calibration. Slopes: {words}; above
1 the curve tends to run above the diagonal."""
plots.show(figure, alt, name="reliability")

# %% [markdown]
# And this is how the margins are distributed: how often each model is how sure, and on which side (right of 0 is right).

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.0), sharey=True)
for axis, (label, model) in zip(axes, LOSSES.items(), strict=True):
    axis.hist(margins(model, "joint").ravel().clip(-6, 6), np.linspace(-6, 6, 41), color=plots.COLORS[0], alpha=0.7)
    axis.axvline(0, color="0.3", linestyle="--", linewidth=1)
    axis.set(title=label, xlabel="margin (log-odds)")
axes[0].set_ylabel("held-out pairs")
figure.tight_layout()
words = ", ".join(f"{label} {margins(model, 'joint').std():.2f}" for label, model in LOSSES.items())
alt = f"""Histograms of the margins of the three losses on held-out joint pairs, in log-odds; what lies beyond 6 is shown at
6. Their standard deviations: {words}. To the right of the dashed line at 0 the model is right."""
plots.show(figure, alt, name="margins")

# %% [markdown]
# Bai et al. (2022) found the preference model that was trained on helpful data alone well calibrated. Our rule for
# `calibrated_helpful`: over seeds, the upper end of the interval of the ECE on helpful pairs lies below 0.05, so that
# promises are kept to five percentage points on average (the floor in the table is what a perfectly calibrated model
# would have). ECE says nothing about accuracy: a model that says the base rate of every pair passes too. We expect it
# to hold: the loss is a likelihood, whose best value is reached by honest probabilities, and each pair is read only
# once. For *class tokens* section 2 predicts underconfidence, so their slope should lie above 1 (lower end of the
# interval) and above that of the pairwise model; we expect both.

# %%
error = t_interval(calibrated("helpful", "helpful")[0])
results.state(
    "calibrated_helpful",
    verdict(seeds > 1 and error.high < 0.05),
    expect="holds",
    text={
        "holds": "The helpful model is calibrated to within five points: ECE {ece.helpful}, where a perfectly "
        "calibrated one would have {ece_floor.helpful} by chance.",
        "fails": "That the helpful model is calibrated to within five points is not established: ECE {ece.helpful}, "
        "where a perfectly calibrated one would have {ece_floor.helpful} by chance; slope {slope.helpful}.",
    },
)
results.show("calibrated_helpful")

# %%
low = t_interval(slopes["class_token"]).low
results.state(
    "class_token_underconfident",
    rule(better(slopes["class_token"], slopes["joint"]), seeds == 1 or low > 1),
    expect="holds",
    text={
        "holds": "Margins from class tokens understate the odds: their slope is {slope.class_token}, that of the "
        "pairwise model {slope.joint}.",
        "fails": "That margins from class tokens understate the odds is not established: their slope is "
        "{slope.class_token}, that of the pairwise model {slope.joint}.",
    },
)
results.show("class_token_underconfident")

# %% [markdown]
# A slope other than 1 can be mended without training: multiply all margins by it. (Guo et al. call the reciprocal the
# *temperature*.) The factor is fitted on every other pair, and tested on the rest:


# %%
def mended_error(log_odds):
    """The ECE on every other pair before and after the margins were multiplied by the slope of the others."""
    fitted, tested = log_odds[::2], log_odds[1::2]
    before, after = (calibration.confidence(factor * tested) for factor in (1.0, calibration.slope(fitted)))
    return (
        calibration.expected_error(*before),
        calibration.expected_error(*after),
        calibration.error_by_chance(after[0]),
    )


mended = np.array([mended_error(log_odds) for log_odds in margins("class_token", "joint")]).T
for name, values in zip(
    ("ece.class_token_half", "ece.class_token_mended", "ece_floor.class_token_mended"), mended, strict=True
):
    record(name, values, "expected calibration error")
results.table("ece.class_token_half", "ece.class_token_mended", "ece_floor.class_token_mended")

# %% [markdown]
# One number hides where a model errs. By how sure it is, and by how well it likes the two answers: Bai et al. find
# preference models less well calibrated where scores are high, which is where a policy goes that is trained against
# them. (Scores of different prompts share no zero by the loss, section 1; low and high here therefore mix how good the
# answers are with what the prompt adds.)


# %%
def ranges(values, log_odds, ends):
    """For each range between two `ends` of `values`: how many pairs, what the model says, and how often it is right."""
    p, outcome = calibration.confidence(log_odds)
    inside = [(low <= values) & (values < high) for low, high in zip(ends[:-1], ends[1:], strict=True)]
    return [
        (rows.sum(), p[rows].mean(), outcome[rows].mean()) if rows.any() else (0, np.nan, np.nan) for rows in inside
    ]


# %%
ENDS = [0.5, 0.6, 0.7, 0.8, 0.9, 1.01]
labels = [
    f"{100 * low:.0f} to {min(100, 100 * high):.0f} % sure" for low, high in zip(ENDS[:-1], ENDS[1:], strict=True)
]
labels += ["low scores", "middle", "high scores"]


def by_ranges(model, test):
    """`ranges` by confidence, and by the mean score of the two answers, less its mean over the seed's pairs."""
    log_odds = margins(model, test).ravel()
    level = np.concatenate([scores[model, part].mean(axis=2) for part in PARTS[test]], axis=1)  # (S, N)
    level = (level - level.mean(axis=1, keepdims=True)).ravel()
    thirds = [-np.inf, *np.quantile(level, [1 / 3, 2 / 3]), np.inf]
    return ranges(calibration.confidence(log_odds)[0], log_odds, ENDS) + ranges(level, log_odds, thirds)


shown = {"helpful model, helpful pairs": ("helpful", "helpful")}
shown |= {f"{label}, joint pairs": (model, "joint") for label, model in LOSSES.items()}
lines = ["| says / right | " + " | ".join(shown) + " |", "|---|" + "--:|" * len(shown)]
columns = [by_ranges(*which) for which in shown.values()]
for label, *cells in zip(labels, *columns, strict=True):
    lines.append(f"| {label} | " + " | ".join(f"{says:.2f} / {is_right:.2f}" for _, says, is_right in cells) + " |")
Markdown("\n".join(lines))

# %% [markdown]
# ## 8. Is it wrong to be never sure?
#
# The authors of the class-token model noted, and later deleted, that theirs seemed to have calibration issues, as it
# rarely gave scores of 0 to 0.1 or of 0.9 to 1. Does ours? And is that an issue?
#
# > **Predict.** A text is chosen or not depending also on its opponent, and on a labeler who errs. Between which values
# > will the scores of a perfect class-token model lie?

# %%
class_scores = expit(np.concatenate([scores["class_token", part] for part in PARTS["joint"]], axis=1))  # (S, 2N, 2)
was_chosen = np.broadcast_to([1.0, 0.0], class_scores.shape)
extreme = [np.mean((s < 0.1) | (s > 0.9)) for s in class_scores]
record("score.extreme", extreme, "share of texts scored below .1 or above .9")
record("score.sd", class_scores.std(axis=(1, 2)), "class-token score")
text_level = [(s.ravel(), y.ravel()) for s, y in zip(class_scores, was_chosen, strict=True)]
text_errors = np.array([calibration.expected_error(s, y) for s, y in text_level])
text_floors = [calibration.error_by_chance(s) for s, _ in text_level]
record("ece.class_token_texts", text_errors, "expected calibration error")
record("ece_floor.class_token_texts", text_floors, "expected calibration error by chance")
percentiles = np.percentile(class_scores, [0, 1, 5, 25, 50, 75, 95, 99, 100])
print("percentiles 0, 1, 5, 25, 50, 75, 95, 99, 100:", percentiles.round(2))

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.6))
bins = np.linspace(0, 1, 21)
for side, (name, style) in enumerate({"chosen": "-", "rejected": "--"}.items()):
    left.hist(class_scores[..., side].ravel(), bins, histtype="step", linestyle=style, linewidth=1.8, label=name)
left.set(xlabel="class-token score", ylabel="held-out texts")
left.legend(fontsize="small")
diagram = calibration.reliability(class_scores.ravel(), was_chosen.ravel())
right.plot([0, 1], [0, 1], color="0.3", linestyle="--", linewidth=1, label="calibrated")
right.plot(diagram.predicted, diagram.observed, "o-", label="texts, in ten bins")
right.set(xlabel="class-token score", ylabel="share of texts that were chosen", xlim=(0, 1), ylim=(0, 1))
right.legend(fontsize="small")
figure.tight_layout()
alt = f"""Left: histograms of the class-token scores of held-out chosen and rejected texts, which lie between
{percentiles[0]:.2f} and {percentiles[-1]:.2f}; the means are {class_scores[..., 0].mean():.2f} and {class_scores[..., 1].mean():.2f}.
Right: the share of texts that were chosen against their score, from {diagram.observed[0]:.2f} in the lowest bin to
{diagram.observed[-1]:.2f} in the highest, beside the diagonal."""
plots.show(figure, alt, name="class_token_scores")

# %% [markdown]
# The rules: scores are *rarely certain* if the upper end of the interval of `score.extreme` lies below 0.05, and they
# are *calibrated* if that of the ECE of single texts does. We expect both to hold, which would make the shortage of
# extreme scores no fault at all, but the honest answer to noisy labels against unknown opponents. (The two texts of a
# pair have opposite labels, so the floor, which draws them independently, is only a guide here.)

# %%
extreme, error = t_interval(extreme), t_interval(text_errors)
results.state(
    "class_token_rarely_certain",
    verdict(seeds > 1 and extreme.high < 0.05),
    expect="holds",
    text={
        "holds": "Class-token scores are rarely extreme: {score.extreme} of the texts are below .1 or above .9.",
        "fails": "That class-token scores are rarely extreme is not established: {score.extreme} of the texts are "
        "below .1 or above .9.",
    },
)
results.state(
    "class_token_calibrated_on_texts",
    verdict(seeds > 1 and error.high < 0.05),
    expect="holds",
    text={
        "holds": "As statements about single texts they are calibrated to within five points: ECE "
        "{ece.class_token_texts}.",
        "fails": "That they are calibrated about single texts, to within five points, is not established: ECE "
        "{ece.class_token_texts}.",
    },
)
results.show("class_token_rarely_certain", "class_token_calibrated_on_texts")

# %% [markdown]
# ## 9. Every model on every test set
#
# Helpful and harmless crowds want different things. Three pairwise models, trained on helpful, harmless and joint
# comparisons, meet three sets of held-out pairs.
#
# > **Predict.** Fill the table of nine accuracies. In particular: how often will the helpful model agree with people
# > who ask which of two answers does less *harm*?

# %%
TRAINED = ("helpful", "harmless", "joint")
grid = {}  # (trained on, tested on) -> (S,)
for model in TRAINED:
    for test in ("helpful", "harmless", "joint"):
        grid[model, test] = record(f"accuracy.{model}.{test}", accuracy(model, test))
        record(f"audit.gold_order.{model}.{test}", gold_order(model, test))

# %%
intervals = [[t_interval(grid[model, test]) for test in TRAINED] for model in TRAINED]
means = np.array([[interval.value for interval in row] for row in intervals])
figure, axis = plt.subplots(figsize=(6.0, 4.2))
image = axis.imshow(means, cmap="Greys", vmin=0.2, vmax=1.0)
for i, j in np.ndindex(3, 3):
    low, high = intervals[i][j].low, intervals[i][j].high
    text = f"{means[i, j]:.2f}" + (f"\n[{low:.2f}, {high:.2f}]" if low is not None else "")
    color, weight = "white" if means[i, j] > 0.6 else "black", "bold" if means[i, j] < 0.5 else "normal"
    axis.text(j, i, text, ha="center", va="center", color=color, fontweight=weight, fontsize="small")
axis.set_xticks(range(3), [f"{test} pairs" for test in TRAINED])
axis.set_yticks(range(3), [f"{model} model" for model in TRAINED])
axis.grid(False)
figure.colorbar(image, label="accuracy (share of pairs)")
words = "; ".join(f"{m} model: " + ", ".join(f"{t} {grid[m, t].mean():.2f}" for t in TRAINED) for m in TRAINED)
alt = f"""Table of accuracies, three models in rows and three sets of held-out pairs in columns, darker for higher, bold
below one half. {words}."""
plots.show(figure, alt, name="every_model_on_every_test")

# %% [markdown]
# The rules. The helpful model *fails* on harmless pairs if the upper end of its interval there lies below one half: not
# merely useless, but worse than a coin. The joint model lies *between* the separate ones if on helpful and on harmless
# pairs alike it is worse than the specialist and better than the stranger (four comparisons, all of them "better"). We
# expect both to hold. On a harmful request to comply helps the asker; and a model of fixed size that serves two crowds
# should lose something on each, as it did in the source. On the other hand it takes twice as many steps. (In trial runs
# with other seeds it lost little, so the second expectation is a bold one.)

# %%
stranger = t_interval(grid["helpful", "harmless"])
results.state(
    "helpful_model_fails_on_harmless",
    verdict(seeds > 1 and stranger.high < 0.5),
    expect="holds",
    text={
        "holds": "On harmless pairs the helpful model is worse than a coin: right on {accuracy.helpful.harmless}, "
        "where the longer answer is right on {audit.longer_wins.harmless}.",
        "fails": "That the helpful model is worse than a coin on harmless pairs is not established: "
        "{accuracy.helpful.harmless}.",
    },
)

# %%
pairs_of_crowds = (("helpful", "harmless"), ("harmless", "helpful"))
specialist_ahead = [better(grid[own, own], grid["joint", own]) for own, _ in pairs_of_crowds]
stranger_behind = [better(grid["joint", own], grid[other, own]) for own, other in pairs_of_crowds]
results.state(
    "joint_between_separate",
    rule(*specialist_ahead, *stranger_behind),
    expect="holds",
    text={
        "holds": "The joint model lies between the separate ones: {accuracy.joint.helpful} on helpful pairs, where the "
        "specialist has {accuracy.helpful.helpful}, and {accuracy.joint.harmless} on harmless ones, against "
        "{accuracy.harmless.harmless}.",
        "fails": "That the joint model lies between the separate ones is not established: {accuracy.joint.helpful} on "
        "helpful pairs, "
        "where the specialist has {accuracy.helpful.helpful}, and {accuracy.joint.harmless} on harmless ones, "
        "against {accuracy.harmless.harmless}.",
    },
)
results.show("helpful_model_fails_on_harmless", "joint_between_separate")

# %% [markdown]
# What the source and its code report, with another base model, other data and other people:

# %%
reported = {
    "helpful model, helpful pairs": ("accuracy.helpful.helpful", "accuracy_helpful"),
    "harmless model, harmless pairs": ("accuracy.harmless.harmless", "accuracy_harmless"),
    "joint model, joint pairs": ("accuracy.joint.joint", "accuracy_joint"),
    "the same, in the code": ("accuracy.joint.joint", "accuracy_joint_in_the_code"),
    "helpful model, harmless pairs": ("accuracy.helpful.harmless", "accuracy_helpful_on_harmless"),
}
lines = ["| | here, pairwise | the source, class tokens | how known |", "|---|--:|--:|---|"]
for label, (key, name) in reported.items():
    theirs = source_figure(f"reward_in_the_prompt.{name}")
    lines.append(f"| {label} | {results.numbers[key]['value']:.2f} | {theirs.value} | {theirs.how} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## 10. What does it look at?
#
# An accuracy is worth what it has beyond the shortcuts. Beside those of section 5 there is a stronger one: the *blind*
# twin, the same model trained on the same pairs, but without their prompts. What it gets right needs no question, only
# an answer that sounds good.
#
# > **Predict.** Helpful answers should depend on what was asked: tips about another topic do not help. How much will
# > the model lose without prompts?

# %%
for test in ("helpful", "harmless", "joint"):
    baseline["blind", test] = record(f"audit.prompt_blind.{test}", accuracy(f"blind_{test}", test))
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.8), sharey=True)
bars = dict(zip(("length", "first\nword", "format", "words", "blind\ntwin"), (*SHORTCUTS, "blind"), strict=True))
for axis, test in zip(axes, TRAINED, strict=True):
    values = [baseline[name, test] for name in bars.values()] + [grid[test, test]]
    plots.interval_bars(axis, [*bars, "model"], [t_interval(v) for v in values])
    axis.axhline(0.5, color="0.3", linewidth=0.8, label="chance")
    axis.axhline(known[test][:, 1].mean(), color="0.3", linestyle=":", linewidth=1.5, label="ceiling")
    axis.tick_params(axis="x", labelsize="x-small")
    axis.set(title=f"{test} pairs", ylim=(0, 1))
axes[0].set_ylabel("share of held-out pairs")
legend_above(figure, axes[0])
words = "; ".join(
    f"{test}: " + ", ".join(f"{' '.join(bar.split())} {baseline[name, test].mean():.2f}" for bar, name in bars.items())
    for test in TRAINED
)
alt = f"""Bars with 95 % intervals: what shortcuts, the twin that sees no prompts and the model itself are right on, for
the helpful, harmless and joint model on their own pairs. A thin line marks chance, a dotted one the ceiling. {words}.
The models: {", ".join(f"{test} {grid[test, test].mean():.2f}" for test in TRAINED)}."""
plots.show(figure, alt, name="audit")

# %% [markdown]
# Four claims. The helpful model *beats the shortcuts* if it is better than each of the four on helpful pairs; and
# *reads the prompt* if it is better than its blind twin. We expect both. On harmless pairs we expect it otherwise:
# refusals have words of their own, so the harmless model should be *equivalent* to a bag of words within .02. And pairs
# whose two answers have the same format are the test of whether there is more than format: the helpful model *sees past
# format* if on these it is right on more than half (lower end of the interval) and better than format itself, which a
# little length is left to.

# %%
helpful = grid["helpful", "helpful"]
results.state(
    "beats_shortcuts_on_helpful",
    rule(*(better(helpful, baseline[name, "helpful"]) for name in SHORTCUTS)),
    expect="holds",
    text={
        "holds": "On helpful pairs the model beats every shortcut: {accuracy.helpful.helpful} right, against "
        "{audit.longer_wins.helpful} "
        "for length, {audit.format.helpful} for format and {audit.bag_of_words.helpful} for a bag of words.",
        "fails": "That the model beats every shortcut on helpful pairs is not established: "
        "{accuracy.helpful.helpful} right, against "
        "{audit.longer_wins.helpful} for length, {audit.format.helpful} for format and {audit.bag_of_words.helpful} "
        "for a bag of words.",
    },
)
results.show("beats_shortcuts_on_helpful")

# %%
results.state(
    "reads_the_prompt",
    better(helpful, baseline["blind", "helpful"]),
    expect="better",
    text={
        "better": "To see the prompt helps on helpful pairs, by {difference}; the blind twin is right on "
        "{audit.prompt_blind.helpful}.",
        "inconclusive": "Whether the prompt helps on helpful pairs is inconclusive: {difference}.",
        "worse": "On helpful pairs the model does worse than its blind twin: {difference}.",
    },
)
results.show("reads_the_prompt")

# %%
results.state(
    "words_suffice_for_harmless",
    equivalent(grid["harmless", "harmless"], baseline["bag_of_words", "harmless"], margin=0.02),
    expect="equivalent",
    text={
        "equivalent": "On harmless pairs a bag of words does as well as the model, within {margin}: the difference "
        "is {difference}.",
        "inconclusive": "Whether a bag of words does as well as the model on harmless pairs, within {margin}, is "
        "inconclusive: {difference}.",
        "different": "On harmless pairs the model and a bag of words differ by more than {margin}: {difference}.",
    },
)
results.show("words_suffice_for_harmless")


# %%
def matched_mean(test, values):
    """The mean of `values` (S, N) over the pairs of a test set whose answers look alike: (S,)."""
    return np.array([row[found["matched"]].mean() for row, found in zip(values, shortcut[test], strict=True)])


matched, format_matched = {}, {}  # test set -> (S,), of the model that was trained for it, and of format
for test in ("helpful", "harmless"):
    counts = [float(found["matched"].sum()) for found in shortcut[test]]
    record(f"matched.pairs.{test}", counts, "pairs whose answers look alike")
    length, format_matched[test] = (
        record(f"audit.{name}.{test}_matched", matched_mean(test, [found[name] for found in shortcut[test]]))
        for name in ("longer_wins", "format")
    )
    matched[test] = record(f"accuracy.{test}.{test}_matched", matched_mean(test, audit.right(margins(test, test))))

# %%
past_format = t_interval(matched["helpful"])
results.state(
    "sees_past_format",
    rule(better(matched["helpful"], format_matched["helpful"]), seeds == 1 or past_format.low > 0.5),
    expect="holds",
    text={
        "holds": "Among pairs of one format the helpful model is right on {accuracy.helpful.helpful_matched}, where "
        "format "
        "itself gets {audit.format.helpful_matched}.",
        "fails": "That the helpful model sees past format is not established: {accuracy.helpful.helpful_matched} "
        "right among pairs of one format, where format itself gets {audit.format.helpful_matched}.",
    },
)
display(results.show("sees_past_format"))
keys = [
    f"{what}.{test}_matched" for test in matched for what in ("audit.longer_wins", "audit.format", f"accuracy.{test}")
]
results.table(*keys, "matched.pairs.helpful", "matched.pairs.harmless")

# %% [markdown]
# ### Where length misleads
#
# The true order shows what an accuracy on labels cannot: whether a model that goes by length *because* length goes with
# quality can let go of it. In some pairs the better answer is the longer one, in others the shorter.


# %%
def order_by_length(model, test):
    """True order found, of pairs whose better answer is longer and of those whose better one is shorter: (2, S)."""
    found = []
    for m, k, seen in zip(margins(model, test), known[test], shortcut[test], strict=True):
        longer_is_better = (2 * seen["longer_wins"] - 1) * np.sign(k[0])  # 1, -1, or 0 for a tie of either kind
        found.append([audit.gold_order(m, k[0] * (longer_is_better == sign)).mean() for sign in (1, -1)])
    return np.array(found).T


# %%
misled = {}  # (model, "longer" or "shorter") -> (S,)
for model in ("helpful", "blind_helpful"):
    for name, values in zip(("longer", "shorter"), order_by_length(model, "helpful"), strict=True):
        misled[model, name] = record(f"order_if_{name}_is_better.{model}", values, "share of pairs in true order")
lines = [
    (model, [f"order_if_{name}_is_better.{model}" for name in ("longer", "shorter")]) for model, _ in list(misled)[::2]
]
signs = [
    (2 * seen["longer_wins"] - 1) * np.sign(k[0]) for seen, k in zip(shortcut["helpful"], known["helpful"], strict=True)
]
record("longer_is_better.helpful", [np.mean(sign > 0) for sign in signs])
record("shorter_is_better.helpful", [np.mean(sign < 0) for sign in signs])
display(results.table("longer_is_better.helpful", "shorter_is_better.helpful"))
table("true order, helpful pairs", ("the longer one is better", "the shorter one is better"), lines)

# %% [markdown]
# The rule: *length misleads* the helpful model if it puts less than half of the pairs whose better answer is the
# shorter one in their true order (upper end of the interval). Its labelers are a little partial to length, and the
# longer answer is more often the better one than the shorter is (`longer_is_better`). The rule cannot tell length from
# what comes with it, such as the number of tips. Trial runs let us expect that it holds.

# %%
shorter = t_interval(misled["helpful", "shorter"])
results.state(
    "length_misleads",
    verdict(seeds > 1 and shorter.high < 0.5),
    expect="holds",
    text={
        "holds": "Length, or what goes with it, misleads the helpful model: it finds the true order of {order_if_longer_is_better.helpful} "
        "of the pairs whose "
        "better answer is longer, and of {order_if_shorter_is_better.helpful} where it is shorter.",
        "fails": "That length misleads the helpful model more often than not is not established: it finds the true "
        "order in "
        "{order_if_shorter_is_better.helpful} of the pairs whose better answer is shorter.",
    },
)
results.show("length_misleads")

# %% [markdown]
# Of the pairs that the first seed's model puts in the wrong order although the shorter answer is better, here is the
# one with the largest true difference. (Scores have no zero of their own; what counts is the difference.)

# %%
rows, rewards = pairs_of("helpful", "test", size.test_pairs, 0), known["helpful"][0, 0]
shorter_is_better = np.array([np.sign(len(row["rejected"]) - len(row["chosen"])) for row in rows]) == np.sign(rewards)
wrong = audit.right(margins("helpful", "helpful")[0] * np.sign(rewards)) == 0
worst = int((np.abs(rewards) * shorter_is_better * wrong).argmax())
question = rows[worst]["prompt"].split("Human:")[-1].replace("Assistant:", "").strip()
lines = [f"*{question}*", "", "| | answer | gold | score |", "|---|---|--:|--:|"]
for side, score in zip(("chosen", "rejected"), scores["helpful", "helpful"][0, worst], strict=True):
    points = gold.helpfulness(rows[worst]["prompt"], rows[worst][side])
    lines.append(f"| {side} | {' '.join(rows[worst][side].split())} | {points:.2f} | {score:.2f} |")
Markdown("\n".join(lines))

# %% [markdown]
# ### Topics that no labeler has seen
#
# Ten topics occur in the text that the base model was pre-trained on, and in no comparison. If the reward model had
# learned by heart which sentences are good about which topic, it would be lost there. If it has learned what a good
# answer looks like, it would not.
#
# The rule is about the true order, since labels of other pairs have another ceiling: seen and unseen topics are
# *equivalent* if they differ by less than .04. We expect that, as most faults (repetition, broken sentences, padding)
# are the same about everything, and the base model knows which tip belongs to which topic.

# %%
for model in ("helpful", "joint"):
    record(f"accuracy.{model}.unseen", accuracy(model, "unseen"))
    record(f"audit.gold_order.{model}.unseen", gold_order(model, "unseen"))
record("audit.prompt_blind.unseen", accuracy("blind_helpful", "unseen"))
results.state(
    "unseen_topics_equivalent",
    equivalent(gold_order("helpful", "unseen"), gold_order("helpful", "helpful"), margin=0.04),
    expect="equivalent",
    text={
        "equivalent": "On topics that no labeler has seen the helpful model finds the true order as often, within "
        "{margin}: {difference}.",
        "inconclusive": "Whether unseen topics are as easy as seen ones, within {margin}, is inconclusive: "
        "{difference}.",
        "different": "Unseen topics differ from seen ones by more than {margin} in true order found: {difference}.",
    },
)
results.show("unseen_topics_equivalent")

# %%
what = {
    "length": "audit.longer_wins",
    "format": "audit.format",
    "blind twin": "audit.prompt_blind",
    "model": "accuracy.helpful",
    "ceiling": "ceiling",
    "model, true order": "audit.gold_order.helpful",
}
table("helpful model", what, [(test, [f"{key}.{test}" for key in what.values()]) for test in ("helpful", "unseen")])

# %% [markdown]
# ## 11. Details of training
#
# **The zero and the unit.** A policy is trained against scores, so their zero and unit matter there, though no
# comparison depends on them. `normalize` fixes both: here the chosen answers to some training prompts get mean 0 and
# standard deviation 1. (InstructGPT sets the mean of its demonstrations to zero.) The order of any two answers stays.
# But the unit is no longer the log-odds: a normalized model has lost its calibration, unless one keeps the factor.

# %%
judge = recipes.pairwise_model(size.rung, "joint", size.preference_pairs, 0)
some = recipes.preference_pairs("joint", "train", 100, 0)
before = np.array(reward_model.margins(judge, tokenizer, some))
ids = [[tokenizer(row[side])["input_ids"] for row in some] for side in ("prompt", "chosen")]
reward_model.normalize(judge, tokenizer, *ids)
after = np.array(reward_model.margins(judge, tokenizer, some))
normalized = reward_model.score_tokens(judge, *ids, tokenizer.eos_token_id)
unit = (before @ before) / (before @ after)  # the old margins are `unit` times the new ones
print(f"mean {normalized.mean():.3f}, sd {normalized.std():.3f}; one point is now worth {unit:.2f} nats of log-odds")
results.state(
    "normalizing_changes_no_order",
    rule(bool(np.allclose(before, unit * after, atol=1e-3)), bool((np.sign(before) == np.sign(after)).all())),
    expect="holds",
    sanity=True,
    text={
        "holds": "Normalizing multiplies every margin by one number and changes no order.",
        "fails": "Normalizing has changed an order.",
    },
)
results.show("normalizing_changes_no_order")

# %% [markdown]
# **The rest is an ablation**, on the smallest base model and fewer pairs: one thing is changed at a time, and every
# change is compared with the usual training on the same seeds and the same held-out joint pairs.
#
# - *Two epochs* instead of one. InstructGPT trains for one, as more overfits; the source says two did not help.
# - *The learning rate* falls to a tenth in the end, as InstructGPT's. What if it stays constant, or falls to zero?
# - *The first head* is drawn so that the first scores are about one in size. The library draws it smaller, with
#   standard deviation 0.02. And ten times as large?
#
# > **Predict.** Which of these changes the accuracy, and which the calibration?

# %%
usual = RewardModelConfig()
SMALLEST = "0.2M"
width = recipes.base(SMALLEST)[0].config.n_embd
library_head = 0.02 * (width + 1) ** 0.5  # in units of the usual standard deviation
ABLATIONS = {  # name: (how it is trained, size of the first head)
    "usual": (usual, 1.0),
    "two epochs": (replace(usual, epochs=2), 1.0),
    "constant rate": (replace(usual, final_share=1.0), 1.0),
    "rate to zero": (replace(usual, final_share=0.0), 1.0),
    "library's head": (usual, library_head),
    "large head": (usual, 10.0),
}
jobs = [
    joblib.delayed(recipes.varied_scores)(SMALLEST, size.ablation_pairs, config, head, size.test_pairs, seed=seed)
    for config, head in ABLATIONS.values()
    for seed in range(seeds)
]
finished = iter(parallel.run(jobs))
varied = {name: [next(finished) for _ in range(seeds)] for name in ABLATIONS}
for name, runs in varied.items():
    losses = np.mean([run["losses"] for run in runs], axis=0)
    print(f"{name:15} first loss {losses[0]:.2f}, mean of the last ten {losses[-10:].mean():.2f}")


# %%
def varied_measures(runs):
    """Accuracy, ECE and slope of each seed: (3, S)."""
    found = []
    for run in runs:
        log_odds = np.array(run["chosen"]) - np.array(run["rejected"])
        p, outcome = calibration.confidence(log_odds)
        error = calibration.expected_error(p, outcome)
        found.append((audit.right(log_odds).mean(), error, calibration.slope(log_odds)))
    return np.array(found).T


# %%
ablation = {name: varied_measures(runs) for name, runs in varied.items()}  # (3, S)
for name, (accuracies, errors, factors) in ablation.items():
    key = name.replace(" ", "_").replace("'", "")
    record(f"accuracy.ablation_{key}.joint", accuracies)
    record(f"ece.ablation_{key}", errors, "expected calibration error")
    record(f"slope.ablation_{key}", factors, "best factor on the margins")

# %%
changed = [name for name in ABLATIONS if name != "usual"]
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.6), sharey=True)
for axis, measure in zip(axes, (0, 2), strict=True):
    differences = [better(ablation[name][measure], ablation["usual"][measure]).difference for name in changed]
    for position, interval in enumerate(differences):
        axis.plot(interval.value, position, "o", color="black")
        if interval.low is not None:
            axis.hlines(position, interval.low, interval.high, color="black")
    axis.axvline(0, color="0.3", linestyle="--", linewidth=1)
axes[0].set_xlabel("accuracy, difference from the usual")
axes[1].set_xlabel("slope, difference from the usual\n(to the right: less confident)")
axes[0].set_yticks(range(len(changed)), changed)
axes[0].invert_yaxis()
figure.tight_layout()
shifts = {name: (ablation[name] - ablation["usual"]).mean(axis=1) for name in changed}
words = "; ".join(f"{name}: {shift[0]:+.3f} and {shift[2]:+.2f}" for name, shift in shifts.items())
alt = f"""Differences in accuracy (left) and in slope (right) between changed trainings and the usual one, with 95 %
intervals. {words}."""
plots.show(figure, alt, name="reward_model_ablations")

# %% [markdown]
# The rules. *A second epoch*: we expect better accuracy, as after one pass over so few pairs so small a model has not
# learned what there is to learn; and more confidence, a smaller slope, since pairs that were read before look surer
# than new ones are. *The end of the rate* and *the size of the head*, between ours and the library's: we expect
# equivalence in accuracy, within .02.

# %%
results.state(
    "second_epoch_helps",
    better(ablation["two epochs"][0], ablation["usual"][0]),
    expect="better",
    text={
        "better": "A second epoch raises the accuracy of the small model by {difference}.",
        "inconclusive": "Whether a second epoch raises the accuracy is inconclusive: {difference}.",
        "worse": "A second epoch lowers the accuracy: {difference}.",
    },
)
results.state(
    "second_epoch_raises_confidence",
    better(ablation["usual"][2], ablation["two epochs"][2]),
    expect="better",
    text={
        "better": "A second epoch makes the small model more confident: the slope falls from {slope.ablation_usual} "
        "to {slope.ablation_two_epochs}.",
        "inconclusive": "Whether a second epoch makes the small model more confident is inconclusive: the slope "
        "falls by {difference}.",
        "worse": "A second epoch makes the small model less confident: the slope rises from {slope.ablation_usual} to "
        "{slope.ablation_two_epochs}.",
    },
)
results.show("second_epoch_helps", "second_epoch_raises_confidence")

# %%
texts = {
    "equivalent": "{0} make no difference to the accuracy within {{margin}}: {{difference}}.",
    "inconclusive": "Whether {1} differ in accuracy by less than {{margin}} is inconclusive: {{difference}}.",
    "different": "{0} differ in accuracy by more than {{margin}}: {{difference}}.",
}
compared = {
    "rate_end_equivalent": (
        "constant rate",
        "rate to zero",
        "a learning rate that stays constant and one that falls to zero",
    ),
    "first_head_equivalent": ("library's head", "usual", "the library's small first head and ours"),
}
for key, (a, b, words) in compared.items():
    results.state(
        key,
        equivalent(ablation[a][0], ablation[b][0], margin=0.02),
        expect="equivalent",
        text={name: text.format(words[0].upper() + words[1:], words) for name, text in texts.items()},
    )
results.show(*compared)

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** All are in *Attempts to align language models by putting the reward in the prompt* (2023).
# The contrastive loss is printed with the wrong sign (section 1); so it is in the notes on the reward model that came
# with it. The text gives the joint model an accuracy that its own code does not confirm (the table in section 9). And a
# remark that the authors deleted themselves took rare extreme scores for a sign of bad calibration (section 8). It does
# not follow: how spread out the scores are is sharpness, and whether they come true is calibration.

# %% [markdown]
# ## Exercises
#
# **1.** Someone trains a reward model and finds an accuracy of .28 on held-out pairs, with a training loss that falls
# nicely. What happened? What should they have looked at in the first minute?
#
# <details><summary>Hint</summary>
#
# What would the accuracy be if every answer of the model were turned round?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Turned round it is .72, a good model. Either a sign is wrong (in the loss, in the columns of one split, or in the
# reading of "chosen": in hh-rlhf's harmless files the labelers picked the more harmful answer, and `chosen` is the
# other one), or nothing is, and the pairs are of a crowd that wants the opposite, as in section 9. The loss falls all
# the same, as in section 1. A test on a hundred pairs after a minute of training shows it.
#
# </details>
#
# **2.** Add 5 to every score of a pairwise model. Which of these change: its loss, its accuracy, its ECE on pairs, its
# slope, the order of answers to *different* prompts? And if every score is doubled?
#
# <details><summary>Answer</summary>
#
# Adding a constant changes nothing at all, and adding something that depends on the prompt changes the order between
# prompts alone. Doubling keeps every order, and accuracy with it, but the loss and the ECE change, and the slope is
# halved: the unit of the scores is their confidence.
#
# </details>
#
# **3.** A calibrated model is right on 65 % of the pairs. Can one be calibrated and right on 50 %? On 100 %?
#
# <details><summary>Hint</summary>
#
# What does each of them say about every pair?
#
# </details>
#
# <details><summary>Answer</summary>
#
# Yes: one that always says 50 %, and one that always says 100 % and is right. Calibration is about promises, not about
# what is known. For a calibrated model the expected accuracy *is* the mean of what it says, so on new pairs of the same
# kind it can be foretold without labels.
#
# </details>
#
# **4.** In section 2 a perfect class-token model understates the odds between the best and the worst answer. Give the
# answers the strengths -3, 0 and 3. What is the factor now, and what does that mean for worlds in which answers differ
# a great deal?
#
# <details><summary>Hint</summary>
#
# Change one line of that cell. How often does the best answer win on average? It also meets answers as good as itself.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The best is chosen in $(\sigmoid(6) + \sigmoid(3) + \sigmoid(0))/3 = .817$ of its comparisons, so class tokens give
# log-odds of 2.99 between best and worst, where 6 is true: a factor of 2. The more answers differ, the more the average
# over opponents hides: even an answer that always wins against worse ones meets its like.
#
# </details>
#
# **5.** Is the harmless model a good model of harmlessness? Write an answer to a harmful request that it would score
# highly and that does harm. (`recipes.pairwise_model(size.rung, "harmless", size.preference_pairs, 0)` gives the model,
# `reward_model.score` the scores.)
#
# <details><summary>Hint</summary>
#
# Look at the bag of words in section 10.
#
# </details>
#
# <details><summary>Answer</summary>
#
# If words of refusal are what it looks for, an answer that opens with an apology and then complies should do well.
# Compare the score of a refusal, of compliance, and of a refusal followed by compliance. A policy that is trained
# against this model will find such answers by itself.
#
# </details>
#
# **6.** Extend the ablation of section 11: how would you show that one epoch is *right* for a large model and too
# little for a small one? Which two things would you vary, and what would you hold fixed?
#
# <details><summary>Answer</summary>
#
# Epochs (1, 2, 4) and model size, with comparisons and learning rate fixed; better still with a learning rate chosen
# for each size on other seeds. Watch the loss on held-out pairs beside the accuracy: it turns up first, since it pays
# for false confidence. The claim is about the difference of differences: what a second epoch adds to the small model
# minus what it adds to the large one, per seed.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Christiano et al. (2017), *Deep reinforcement learning from human preferences*, [arXiv 1706.03741](https://arxiv.org/abs/1706.03741): the pairwise loss for rewards.
# - Ouyang et al. (2022), *Training language models to follow instructions with human feedback* (InstructGPT), [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): the K-wise loss (eq. 1), one epoch, and why.
# - Bai et al. (2022), *Training a helpful and harmless assistant with RLHF*, [arXiv 2204.05862](https://arxiv.org/abs/2204.05862): preference models, their calibration, and the tension of section 9.
# - Guo et al. (2017), *On calibration of modern neural networks*, [arXiv 1706.04599](https://arxiv.org/abs/1706.04599): reliability diagrams, ECE and temperature.
# - Lambert et al. (2024), *RewardBench: evaluating reward models for language modeling*, [arXiv 2403.13787](https://arxiv.org/abs/2403.13787): how public reward models are tested.
