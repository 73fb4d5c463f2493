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
# # Reward in the prompt: one joint reward
#
# **Does a policy do as well as it is told to, no better and no worse?**
#
# Reinforcement learning asks for the most reward there is. Here a policy is asked for a *certain* reward: it has
# imitated texts whose prompts say how good they are, and is then given a prompt that says how good to be. If it has
# understood, a picture of what was asked against what came out is the line $y = x$. We begin in a world so small that
# the ideal policy can be written down, and see what even that one cannot do. Then a language model is trained on
# labelled dialogues, and asked for everything between 0 and 1, also for what it has never read of.

# %% [markdown]
# ## What you will learn
#
# - what a policy with the reward in its prompt becomes with endless data: a posterior, found by Bayes' rule;
# - how much loss the digits can save (their entropy) and what a high target costs (nats, as in best-of-$n$);
# - why nothing defines the policy beyond the rewards of its data, and how normalizers hide that;
# - to measure whether a policy follows its target, and why a correlation alone cannot say it;
# - to run the same notebook against a fine-tuning service over HTTP.

# %% [markdown]
# ## What you should know
#
# Formats, normalizers and the class-token reward models (*Reward in the prompt: labelling and formats*), the KL
# divergence and the exact world (*From policy gradient to PPO*), and what a Pearson correlation is.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5
backend = "local"  # or "openai", a server that speaks OpenAI's language, named by $OPENAI_BASE_URL (section 7)

# %%
import functools
import itertools
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt
from scipy import stats

# %%
from rlhf_lab import claims, oracle, parallel, plots, recipes, reward_prompt
from rlhf_lab.fine_tuning import Settings, backends
from rlhf_lab.fine_tuning.server import Server
from rlhf_lab.profiles import Profile
from rlhf_lab.source_figures import figure as reported
from rlhf_lab.statistics import better, equivalent, rule, t_interval
from rlhf_lab.tinyhh import gold
from rlhf_lab.tinyhh.knowledge import Topic, subject

size = Profile.load(profile)
address = backends.address(backend)
results = claims.Claims("51_one_joint_reward", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: the comparisons, the reward models, the texts that they label, the
# policies, the prompts and the targets. It is the unit in which we count evidence, and square brackets hold 95 %
# intervals over seeds. *The source* is "Attempts to align language models by putting the reward in the prompt" (2023);
# its conclusions are our expectations. Rules stand above the cells that decide them and were fixed before the published
# run. (Settings were tried out with another seed, and that trial did not always agree with the source. The expectations
# have been kept.) One seed decides nothing, so the published verdict is then shown beside it.


# %%
SEEDS = range(seeds)


def record(key, values, unit):
    """Record the interval over seeds of one number per seed, unless it is undefined in one of them; (S,)."""
    values = np.array(values, dtype=float)
    if np.isfinite(values).all():
        results.number(key, t_interval(values), unit)
    return values


def named(key):
    """What a claim's text says for a number, which a run as small as "smoke" may not have."""
    return f"{{{key}}}" if key in results.numbers else "(undefined)"


def condition(compare, a, b, *margin):
    """The comparison of one number per seed on both sides; what is undefined in a seed has not been shown."""
    return compare(a, b, *margin) if np.isfinite([a, b]).all() else False


def verdict(*conditions):
    """Whether all conditions hold; one seed decides nothing."""
    return rule(*conditions) if seeds > 1 else "not decided"


# %% [markdown]
# ## 1. What an ideal policy would do
#
# ### Nine texts
#
# A language of three letters and two places has nine texts. A reference writes them with known probabilities, and a
# reward says whether the letters rise (1), fall (1/2) or repeat (0). Every text is written into a file of examples with
# its reward in front, in two digits, as the format of the last notebook has it. Which policy has the lowest loss on
# that file?
#
# For each line $\ell$ that stands in the file, there are some texts below it, and the loss (the cross-entropy) is
# lowest if the policy writes these texts as often as the file does. That is Bayes' rule,
#
# $$ \pi(\resp \mid \ell)
#    = \frac{p(\ell \mid \resp) \, \policyref(\resp)}{\sum_{\resp'} p(\ell \mid \resp') \, \policyref(\resp')} , $$
#
# and $p(\ell \mid \resp)$ is 1 if the text's reward is written as $\ell$, else 0: strike out all texts of other
# rewards, and divide by what is left.

# %%
tiny = oracle.Language(tokens=3, horizon=2)
log_ref = oracle.log_probabilities(oracle.TabularPolicy.random(tiny, seed=0).tables()).detach()  # (9,)
rewards = (oracle.letters_in_order(tiny) + 1) / 2
written = reward_prompt.RewardPrompt.fit(reward_prompt.FORMATS["bottom"], rewards.tolist(), "none")
line_of = [written.lines(reward) for reward in rewards.tolist()]
share = {
    line: sum(p for p, own in zip(log_ref.exp().tolist(), line_of, strict=True) if own == line) for line in line_of
}
rows = ["| text | probability | reward | its line | after *Reward: 99* |", "|---|--:|--:|---|--:|"]
by_hand = []
for number, p in enumerate(log_ref.exp().tolist()):
    by_hand.append(p / share["Reward: 99"] if line_of[number] == "Reward: 99" else 0.0)
    rows.append(f"| {tiny.spell(number)} | {p:.3f} | {rewards[number]:g} | {line_of[number]} | {by_hand[-1]:.3f} |")
ideal = reward_prompt.exact_policy(log_ref, rewards, 1.0, written.lines)  # (9,)
assert np.allclose(ideal.exp(), by_hand)
Markdown("\n".join(rows))

# %% [markdown]
# Three things can be read off this table, and they hold in every world (where there are prompts: for each prompt, among
# its answers; the reference is what wrote the data, not the model before fine-tuning).
#
# **The KL to the reference is minus the logarithm of the line's share.** Where the ideal policy has mass it is the
# reference divided by the share, so the log-ratio is the same for every text. To ask for what half of the data has
# costs $\log 2$ nats, to ask for the best hundredth $\log 100$. That is also the currency of best-of-$n$, which has to
# draw about $n$ answers to find the best $n$-th.
#
# **The loss falls by the entropy of the lines.** Without a line the best loss is the entropy of the texts. With it, a
# text costs $-\log \policyref(\resp) + \log(\text{share of its line})$, and the mean of the second term is minus the
# entropy of the lines. (In other words: it is the mutual information of line and text, and since the text decides its
# line, that is all of the line's entropy.) With equal shares of 100 lines it would be $\log 100$.
#
# **It imitates, it does not optimize.** Among the texts of one line, the proportions are those of the data.


# %%
def losses(log_ref, rewards, lines):
    """In nats a text: the best loss without lines, that with them, and the entropy of the lines."""
    by_line = {lines(reward): reward for reward in rewards.tolist()}
    ideal = {line: reward_prompt.exact_policy(log_ref, rewards, r, lines) for line, r in by_line.items()}
    own = torch.stack([ideal[lines(reward)][number] for number, reward in enumerate(rewards.tolist())])
    shares = [log_ref.exp()[policy > -torch.inf].sum().item() for policy in ideal.values()]
    without, told = (-(log_ref.exp() * log_probs).sum().item() for log_probs in (log_ref, own))
    return without, told, stats.entropy(shares)


cost, (without, told, entropy) = oracle.kl(ideal, log_ref).item(), losses(log_ref, rewards, written.lines)
print(f"KL {cost:.4f} nats, minus the log of the share {-math.log(share['Reward: 99']):.4f}")
print(f"loss without lines {without:.4f}, with them {told:.4f}, entropy of the lines {entropy:.4f} nats")
assert math.isclose(cost, -math.log(share["Reward: 99"])) and math.isclose(without - told, entropy)

# %% [markdown]
# ### 625 texts, and a reward model's rewards
#
# Now five letters and four places, and rewards as a reward model gives them: probabilities that stay away from 0 and 1
# and are not the same for all texts that deserve the same. The identity of the losses is a claim of this notebook, and
# a build that misses it fails.

# %%
language = oracle.Language()
log_ref = oracle.log_probabilities(oracle.TabularPolicy.random(language, seed=0).tables()).detach()  # (625,)
noise = torch.randn(len(language), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
rewards = torch.sigmoid(0.5 * oracle.letters_in_order(language) + 0.2 * noise)
p, ascending = log_ref.exp(), rewards.argsort()
low, high = rewards[ascending][torch.searchsorted(p[ascending].cumsum(0), torch.tensor([0.01, 0.99]).double())].tolist()
written = reward_prompt.RewardPrompt.fit(reward_prompt.FORMATS["bottom"], rewards.tolist(), "none")
lines = functools.cache(written.lines)
without, told, entropy = losses(log_ref, rewards, lines)
results.number("exact.loss_gain", without - told, "nats a text that the loss falls by")
results.number("exact.line_entropy", float(entropy), "nats, entropy of the lines")
print(f"98 % of the texts have rewards between {low:.2f} and {high:.2f}")

# %%
results.state(
    "loss_gain_is_entropy",
    rule(math.isclose(without - told, entropy, abs_tol=1e-9)),
    expect="holds",
    text={
        "holds": "In the exact world the loss falls by the entropy of the lines: {exact.loss_gain} nats a text.",
        "fails": "The loss falls by {exact.loss_gain} nats a text, the entropy of the lines is {exact.line_entropy}.",
    },
    sanity=True,
)
results.show("loss_gain_is_entropy")

# %% [markdown]
# And for targets that no text has? Then the file has no example with this line, the loss says nothing about it, and
# Bayes' rule divides zero by zero. (The module says so in an error.) A network does not divide; it does *something*
# with digits that it has never read. Four small networks, alike but for their first random weights, are fitted to the
# exact loss. Each reads two digits, as a language model reads two tokens.

# %%
numbers = torch.arange(100)
digits = torch.cat([torch.nn.functional.one_hot(part, 10) for part in (numbers // 10, numbers % 10)], 1).double()
said = torch.tensor([int(lines(reward)[-2:]) for reward in rewards.tolist()])  # (625,), the two digits of each text


def fitted(seed, steps=200):
    """Log-probabilities of all texts after every two digits, (100, 625), of a network, and its loss."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, len(rewards)))
    optimizer = torch.optim.Adam(network.double().parameters(), lr=0.03)
    for _ in range(steps):
        log_probs = network(digits).log_softmax(dim=1)
        loss = -(p * log_probs[said, torch.arange(len(rewards))]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return log_probs.detach(), loss.item()


networks, network_losses = zip(*(fitted(seed) for seed in range(4)), strict=True)
print(f"ideal loss {told:.3f}; of the networks", [round(loss, 3) for loss in network_losses])

# %% [markdown]
# > **Predict.** Draw the reward that the ideal policy gets against the target, from 0 to 1. Where do the four networks
# > agree with it, and with each other?

# %%
targets = numbers.double() / 100
curve = reward_prompt.exact_curve(log_ref, rewards, targets.tolist(), lines)
by_network = torch.stack([(network.exp() * rewards).sum(dim=1) for network in networks])  # (4, 100)
mean = oracle.expected_reward(log_ref, rewards).item()
front = oracle.frontier(log_ref, rewards, np.geomspace(0.004, 5, 60).tolist())
best = [oracle.best_of_n(log_ref, rewards, 2**k) for k in range(9)]
of_best = [(oracle.kl(law, log_ref).item(), oracle.expected_reward(law, rewards).item()) for law in best]
spread = by_network.amax(dim=0) - by_network.amin(dim=0)  # (100,)
defined = ~curve.reward.isnan()
inside = (targets >= low) & (targets <= high)
rows = ["| targets | how many | no text says it | networks differ by, on average |", "|---|--:|--:|--:|"]
for label, where in {"below": targets < low, "inside": inside, "above": targets > high}.items():
    rows.append(f"| {label} | {where.sum()} | {(where & ~defined).sum()} | {spread[where].mean():.3f} |")
Markdown("\n".join(rows))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.4, 3.9))
axes[0].axvspan(low, high, color="0.93")
axes[0].plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="y = x")
for index, network in enumerate(by_network):
    axes[0].plot(targets, network, color=plots.COLORS[1], linewidth=0.8, label="four networks" if not index else None)
axes[0].plot(targets, curve.reward, "o", color=plots.COLORS[0], markersize=3, label="ideal policy")
axes[0].set(xlabel="target reward", ylabel="mean reward of the texts", xlim=(0, 1), ylim=(0, 1))
axes[1].plot(*front.T, color="0.3", linewidth=1, label="the best for its KL")
axes[1].plot(*zip(*of_best, strict=True), "s--", color=plots.COLORS[2], markersize=4, label="best of 1, 2, 4, ... 256")
upper = defined & (targets > mean)
axes[1].plot(curve.kl[upper], curve.reward[upper], "o", color=plots.COLORS[0], markersize=3, label="ideal policy")
axes[1].set(xlabel="KL to the reference (nats)", ylabel="mean reward of the texts", xlim=(0, None))
for axis, place in zip(axes, ("upper left", "lower right"), strict=True):
    axis.legend(fontsize="small", loc=place)
figure.tight_layout()
differ = [f"{spread[where].mean():.2f}" for where in (inside, ~inside)]
alt = f"""Left: mean reward by target. The ideal policy lies on y = x wherever a text has the target's digits, which is
so for {defined.sum()} of 100 targets; 98 % of the texts lie between {low:.2f} and {high:.2f}, shaded. Four networks
differ by {differ[0]} on average there, and by {differ[1]} outside. Right: mean reward by KL. The ideal policy's targets
above the mean of {mean:.2f} cost {curve.kl[upper].min():.1f} to {curve.kl[upper].max():.1f} nats and lie on or below
the curve of the best policies, which best-of-n follows closely."""
plots.show(figure, alt, name="prompted_ideal_policy")

# %% [markdown]
# Where there are data, the ideal policy is on the line $y = x$, in steps of a hundredth, with a hole wherever no text
# happens to say just these digits. A network fills holes from their neighbors, which is what we want of it. Outside,
# there is nothing on one side to fill from: the tens digit was hardly ever read, or never (then its weights are still
# the first random ones). What they do out there enters none of the four losses printed above: digits that no text has
# can be answered in any way at the same loss. **Beyond its data, a target is not a request but an accident.**
#
# The right side shows the price. A target costs minus the logarithm of how many texts have *just this* line, not of how
# many are at least as good. So a little more than the mean costs several nats, where an optimizer pays next to nothing:
# conditioning pays for exactness. Near the top it can cost more still, if few texts say just this. Only for the very
# last line, with nothing better to be had, do the two prices meet: there *just this* and *at least this* are the same
# texts. Nothing beats the frontier.
#
# ### What a normalizer hides
#
# With the normalizer "none" the prompt says the reward itself, and a target beyond the data is written as nothing in
# the data is. "min-max" and "quantile" write the data's least and best as 00 and 99, and two digits have no way to say
# more: such a target is cut to the best that was read.

# %%
drawn = rewards[oracle.draw(log_ref, 5000, torch.Generator().manual_seed(0))].tolist()  # the texts to fit to
rows = ["| target | " + " | ".join(f"*{kind}*: line | texts | mean reward" for kind in ("none", "min-max", "quantile"))]
rows = [rows[0] + " |", "|--:|" + "---|--:|--:|" * 3]
for target in (0.0, 0.3, 0.5, 0.7, 1.0):
    row = [f"{target:.2f}"]
    for kind in ("none", "min-max", "quantile"):
        said_as = functools.cache(reward_prompt.RewardPrompt.fit(written.format, drawn, kind).lines)
        got = reward_prompt.exact_curve(log_ref, rewards, [target], said_as)
        share, reward = math.exp(-got.kl.item()), got.reward.item()
        row += [said_as(target), *((f"{share:.2%}", f"{reward:.2f}") if share == share else ("none", "undefined"))]
    rows.append("| " + " | ".join(row) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# So a normalizer makes the outside *defined*, by refusing to go there: "be perfect" becomes "be among the best that you
# have read". Here we leave the rewards as they are, as the source's scatter has them. Then the figure to come shows
# both: how a policy follows inside its data, and what it makes of requests beyond.

# %% [markdown]
# ## 2. A policy, trained for real
#
# The class-token reward model that was fitted to helpful and harmless comparisons together (*joint*) has labelled
# dialogues that it was not fitted to. The policy imitates them all, the good and the bad, each with its reward in the
# prompt. One example, to the letter:

# %%
RUN = recipes.PromptedRun(size.rung, size.rung, size.judge_pairs, size.prompted_texts)
HELPFUL_ONLY = replace(RUN, rewards=("helpful",), subsets=("helpful",))  # for section 5
RUNS = {"joint": RUN, "helpful_only": HELPFUL_ONLY}
AT_ONCE = -1 if address == "local" else 1  # a server trains one job at a time
policies = list(itertools.product(RUNS, SEEDS))
parallel.run([joblib.delayed(recipes.prompted_policy)(RUNS[name], address, seed) for name, seed in policies], AT_ONCE)
data = {(name, seed): recipes.prompted_data(RUNS[name], seed) for name, seed in policies}
training = {key: np.array(rewards)[:, 0] for key, (_, rewards) in data.items()}  # (N,)
prompt, completion = RUN.written.examples(*(part[:1] for part in data["joint", SEEDS[0]]))[0]
print("PROMPT:", prompt, "\n\nCOMPLETION:", completion, sep="\n")

# %% [markdown]
# What two policies read (the second one comes in section 5), beside what the source's rewards were:

# %%
rows = ["| training rewards | texts | mean | sd | 1st percentile | 99th percentile |", "|---|--:|--:|--:|--:|--:|"]
for name, label in (("joint", "joint"), ("helpful_only", "helpful")):
    given = training[name, SEEDS[0]]
    ours = [given.mean(), given.std(), *np.percentile(given, [1, 99])]
    rows.append(f"| {label}, here | {len(given):,} | " + " | ".join(f"{value:.2f}" for value in ours) + " |")
    theirs = [reported(f"reward_in_the_prompt.{label}_rewards_{of}").value for of in ("mean", "sd", "p1", "p99")]
    rows.append(f"| {label}, source | | " + " | ".join(f"{value:.2f}" for value in theirs) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# The training has been done by a *backend*: a service that takes a file of prompts and completions, fine-tunes a model
# on it and answers prompts. By default it lives on this machine; section 7 puts it behind HTTP. What the recipe of the
# last cells said to it are these lines. To say them again costs nothing, because a service of ours never does the same
# job twice:

# %%
service = backends.connect(address)


def job_of(seed):
    """The fine-tuning job of the joint policy."""
    file = service.upload(RUN.written.examples(*data["joint", seed]))
    return service.wait(service.fine_tune(file, f"base-{size.rung}", RUN.settings, seed, "joint").id)


jobs = [job_of(seed) for seed in SEEDS]
logs = [service.events(job.id) for job in jobs]
assert jobs[0].fine_tuned_model == recipes.prompted_policy(RUN, address, SEEDS[0])
print(f"{jobs[0].status}: {len(logs[0]):,} steps, {jobs[0].trained_tokens:,} tokens, {RUN.settings}")

# %% [markdown]
# How much can the digits lower this loss? By section 1, at most by their entropy. (Less, in truth. The loss is that of
# a completion after its prompt, and the prompt already tells something about the reward; what can be gained is the
# entropy of the line *given the prompt*, since prompt and answer together decide the line.) The loss is counted in nats
# a token, so we divide by the tokens of a completion.
#
# > **Predict.** Does the loss fall steadily, or in stages? What must the policy find out before the digits help it at
# > all?

# %%
tokenizer = recipes.base(size.rung)[1]
count = np.unique(np.round(training["joint", SEEDS[0]] * 100), return_counts=True)[1]
completions = [row[1] for row in RUN.written.examples(*(part[:400] for part in data["joint", SEEDS[0]]))]
tokens = np.mean([len(tokenizer(text)["input_ids"]) + 1 for text in completions])  # and the end token
results.number("lines.entropy", float(stats.entropy(count)), "nats a text, entropy of the lines, first seed")
results.number("lines.entropy_per_token", float(stats.entropy(count) / tokens), "nats a token of the completion")
PARTS = min(50, *map(len, logs))
parts = np.array([[part.mean() for part in np.array_split([e.loss for e in log], PARTS)] for log in logs])  # (S, P)
at = (np.arange(PARTS) + 0.5) / PARTS * len(logs[0])
results.table("lines.entropy", "lines.entropy_per_token")

# %%
figure, axis = plt.subplots(figsize=(6.6, 3.4))
plots.curve_with_band(axis, at, parts, "loss", 0)
late = parts[:, PARTS // 10 :]
bottom, bar = late.min(), results.numbers["lines.entropy_per_token"]["value"]
axis.vlines(at[-1] * 1.04, bottom, bottom + bar, color="black", linewidth=3)
axis.annotate("entropy of\nthe lines", (at[-1] * 1.06, bottom + bar / 2), va="center", fontsize="small")
axis.set(xlabel="step", ylabel="loss (nats a token)", xlim=(0, at[-1] * 1.25))
axis.set_ylim(bottom - 0.2 * np.ptp(late) - 0.01, max(late.max(), bottom + bar) + 0.2 * np.ptp(late) + 0.01)
figure.tight_layout()
marks = ", ".join(f"{value:.3f}" for value in parts.mean(axis=0)[[0, PARTS // 4, PARTS // 2, 3 * PARTS // 4, -1]])
alt = f"""Loss of the joint policy by step, means of {PARTS} stretches, all seeds ({seeds}). At the start, after each
quarter and at the end: {marks} nats a token. The loss axis is cut to what follows the first tenth of the
steps. A bar beside it is as long as the most that the digits can save: {bar:.3f}."""
plots.show(figure, alt, name="prompted_training_loss")

# %% [markdown]
# What to look for. At first the loss may even rise: while the learning rate climbs, and at so large a rate, a model that
# was fluent is disturbed before it settles, which has nothing to do with rewards. (The axis is drawn for what follows
# the first tenth.) Then there may be a plateau. A likely reason: the digits are there, but they help only if they are
# read together with what is being written, and as long as no layer makes anything of them, no other layer learns from
# what it makes. If the policy begins to read them, the loss bends down again. Where it is still settling at that time,
# the two falls are one to the eye; compare it with the bar, which is all that the digits can save. In trial runs, when
# a policy began to read them depended on the number of steps and on the learning rate, and a training that stopped
# before left it fluent and deaf.

# %% [markdown]
# ## 3. Asked for everything between 0 and 1
#
# The policy answers held-out prompts, half of them helpful ones, half harmful, each with a target that is drawn
# uniformly between 0 and 1. The same joint reward model scores the answers. (It is a proxy. Whether its opinion is
# worth following is asked in section 5.)
#
# > **Predict.** Draw the curve: mean actual reward against target. Mark the 1st and the 99th percentile of the training
# > rewards first.

# %%
ASKED = {"joint": "joint", "helpful_only": "helpful"}  # the prompts that each policy is asked
found = parallel.run(
    [
        joblib.delayed(recipes.prompted_answers)(
            RUNS[name], (), ASKED[name], "test", size.prompted_answers, address, seed
        )
        for name, seed in policies
    ],
    AT_ONCE,
)
answers = dict(zip(policies, found, strict=True))
asked = {key: np.array(answer["targets"])[:, 0] for key, answer in answers.items()}  # (N,)
actual = {key: np.array(answers[key][RUNS[key[0]].rewards[0]]) for key in policies}  # (N,)
match = {key: reward_prompt.matching(asked[key], actual[key], training[key]) for key in policies}
r = {name: record(f"r.{name}", [match[name, s].correlation.value for s in SEEDS], "Pearson's r") for name in RUNS}


# %%
def correlations(*names):
    """r by policy: the source's, our first seed's with Fisher's interval over prompts, and ours over seeds."""
    rows = ["| policy | source | here, first seed | p-value | here, over seeds |", "|---|--:|--:|--:|--:|"]
    for name in names:
        theirs, ends = (reported(f"reward_in_the_prompt.r_{name}{of}").value for of in ("", "_interval"))
        one, every = match[name, SEEDS[0]], t_interval(r[name])
        row = [name.replace("_", "-"), f"{theirs:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"]
        row.append(f"{one.correlation.value:.2f} [{one.correlation.low:.2f}, {one.correlation.high:.2f}]")
        row.append(f"{one.p_value:.1g}")
        row.append(f"{every.value:.2f}" + (f" [{every.low:.2f}, {every.high:.2f}]" if seeds > 1 else ""))
        rows.append("| " + " | ".join(row) + " |")
    return Markdown("\n".join(rows))


correlations("joint")


# %% [markdown]
# Mind the two kinds of interval. Fisher's says how well so many prompts determine the $r$ of *one* policy; the source
# has one policy, and gives that. The last column says how well all seeds' policies determine the $r$ of *such*
# policies, trained on other data.


# %%
LABELS = {"joint": "joint policy", "helpful_only": "helpful-only policy"}


def draw_line(axis, name, index=0):
    """The line chart of all seeds together, each seed's thin, y = x and the support; what is drawn, as words."""
    low, high = np.mean([match[name, s].support for s in SEEDS], axis=0)
    axis.axvspan(low, high, color="0.93")
    axis.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="y = x")
    for s in SEEDS:
        axis.plot(*match[name, s].line[:2], color=plots.COLORS[index], alpha=0.5, linewidth=0.6)
    line = reward_prompt.line_chart(*(np.concatenate([of[name, s] for s in SEEDS]) for of in (asked, actual)), 0.05)
    axis.plot(line.target, line.actual, plots.MARKERS[index], ls="-", color=plots.COLORS[index], label=LABELS[name])
    axis.set(xlabel="target reward", ylabel="actual reward (mean)", xlim=(0, 1), ylim=(0, 1))
    axis.legend(fontsize="small", loc="upper left")
    marks = ", ".join(f"{y:.2f} at {x:.2f}" for x, y in list(zip(*line[:2], strict=True))[:: max(1, len(line[0]) // 7)])
    return f"{marks}; the training rewards' 1st and 99th percentiles are {low:.2f} and {high:.2f}, shaded", line


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 4.4))
first = "joint", SEEDS[0]
axes[0].scatter(asked[first], actual[first], s=8, alpha=0.5, color=plots.COLORS[0])
axes[0].axvspan(*match[first].support, color="0.93", zorder=0)
axes[0].plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1)
axes[0].set(xlabel="target reward", ylabel="actual reward", xlim=(0, 1), ylim=(0, 1))
words, joint_line = draw_line(axes[1], "joint")
figure.tight_layout()
alt = f"""Left: actual against target reward of {len(asked[first])} answers of the first seed, r =
{match[first].correlation.value:.2f}. Right: mean actual reward by target, all seeds ({seeds}): {words}."""
plots.show(figure, alt, name="prompted_joint_matching")

# %% [markdown]
# ## 4. Following, switching, flat
#
# A correlation is one number, and several kinds of policy have the same. One that follows its target with some noise,
# and one that knows only *bad* and *good* and jumps from one to the other at a threshold, can both have $r = .6$.
# (Exercise 2.) The second kind is no fantasy. In trials with signed numbers (last notebook), a small model read little
# but the sign. So we fit the best jump first and ask what slope is left on either side of it. By hand, for a switch and
# for a policy that follows:

# %%
rng = np.random.default_rng(0)
wanted = rng.random(500)
kinds = {"follows": wanted, "switches": np.where(wanted < 0.5, 0.25, 0.75)}
for kind, mean_reward in kinds.items():
    got = mean_reward + 0.2 * rng.standard_normal(500)
    fit = reward_prompt.switch(wanted, got)
    left = [np.polyfit(wanted[side], got[side], 1)[0] for side in (wanted < fit.split, wanted > fit.split)]
    print(f"{kind}: r {np.corrcoef(wanted, got)[0, 1]:.2f}, jump at {fit.split:.2f},", end=" ")
    print(f"slope beside it {fit.slope.value:+.2f} (on the left {left[0]:+.2f}, on the right {left[1]:+.2f})")

# %% [markdown]
# **Rule: `joint_policy_matches_target`.** It holds if the interval of $r$ over seeds lies above zero, **and** so does
# that of the slope beside the best jump, fitted within the support for helpful and for harmful prompts apart (two
# switches with thresholds of their own would look like a slope together) and averaged. (A seed with fewer than 20 such
# targets of a kind has no slope, and then the rule is not met.)
#
# The rule asks whether the digits count, not whether a target is met. A policy that tosses a coin between a bad and a
# good text, with the target as its chance, has a straight line of means and hits no target: look at the scatter, and at
# how far answers lie from what was asked.


# %%
def slope_beside(seed):
    """The slope beside the best jump of each kind of prompts, within the support; the mean of both kinds."""
    x, y, (low, high) = asked["joint", seed], actual["joint", seed], match["joint", seed].support
    kinds, fits = np.array(answers["joint", seed]["subsets"]), []
    for kind in recipes.SUBSETS:
        kept = (kinds == kind) & (low <= x) & (x <= high)
        fits.append(reward_prompt.switch(x[kept], y[kept]) if kept.sum() >= reward_prompt.FEWEST_TARGETS else None)
    return np.mean([fit.slope.value for fit in fits]) if all(fits) else math.nan


def by_side(name, seed):
    """(targets, rewards) below, inside and above the support."""
    x, y, (low, high) = asked[name, seed], actual[name, seed], match[name, seed].support
    return [(x[where], y[where]) for where in (x < low, (low <= x) & (x <= high), x > high)]


beside = record("slope.beside_switch", [slope_beside(s) for s in SEEDS], "reward per target, within support")
pairs = [by_side("joint", s)[1] for s in SEEDS]
away = [np.abs(y - x).mean() if len(x) else math.nan for x, y in pairs]
chance = [np.abs(y[:, None] - x).mean() if len(x) else math.nan for x, y in pairs]
record("distance.inside", away, "mean distance of reward and target, within support")
record("distance.shuffled", chance, "the same if targets are shuffled")
results.table(*(key for key in ("distance.inside", "distance.shuffled") if key in results.numbers))

# %%
follows = condition(better, beside, np.zeros(seeds))
results.state(
    "joint_policy_matches_target",
    verdict(better(r["joint"], np.zeros(seeds)), follows),
    expect="holds",
    text={
        "holds": "The joint policy follows its target: r = {r.joint}, and beside the best jump a slope of "
        f"{named('slope.beside_switch')} is left.",
        "fails": "That the joint policy follows its target and is no mere switch is not established: r = {r.joint}, "
        f"slope beside the best jump {named('slope.beside_switch')}.",
    },
)
results.show("joint_policy_matches_target")


# %% [markdown]
# **Rule: `flat_outside_training_rewards`.** The source's line is flat for all targets below the data, and stays
# so well into them (absence of data cannot be the only reason); above them it climbs hardly further. We take the
# least-squares slope of the reward on the target beyond the 1st and the 99th percentile (one slope for both sides, each
# side with a mean of its own). It is *flat* if that slope is smaller than the slope inside, in a paired comparison over
# seeds, **and** equivalent to zero within .5, half of what a policy that follows would have, **and** each side alone is
# equivalent to zero within 1, the slope of a policy that follows: else a climb on one side could cancel a fall on the
# other. (With so few targets a side, a narrower margin could hardly be established.) If seeds do different things out
# there, as the four networks of section 1 do, this is not established either.


# %%
def slope(*sides):
    """The least-squares slope common to several (targets, rewards), each with means of its own; nan without spread."""
    x, y = (np.concatenate([side[of] - side[of].mean() for side in sides if len(side[of])] or [[]]) for of in (0, 1))
    return x @ y / (x @ x) if len(x) and x.any() else math.nan


MARGIN = 0.5  # reward per target
sides = [by_side("joint", s) for s in SEEDS]
unit = "reward per target, joint policy"
places = ("slope.below", "slope.inside", "slope.above")
low_side, steep, high_side = [record(key, [slope(three[i]) for three in sides], unit) for i, key in enumerate(places)]
outside = record("slope.outside", [slope(three[0], three[2]) for three in sides], unit)
results.table(*(key for key in (*places, "slope.outside") if key in results.numbers))

# %%
slopes = f"below {named('slope.below')}, inside {named('slope.inside')}, above {named('slope.above')}"
results.state(
    "flat_outside_training_rewards",
    verdict(
        condition(better, steep, outside),
        condition(equivalent, outside, np.zeros(seeds), MARGIN),
        *(condition(equivalent, side, np.zeros(seeds), 2 * MARGIN) for side in (low_side, high_side)),
    ),
    expect="holds",
    text={
        "holds": f"Beyond the training rewards the curve is flat (slope {named('slope.outside')}, within {MARGIN:g} of "
        f"zero). Slopes: {slopes}.",
        "fails": f"That the curve is flat beyond the training rewards (slope {named('slope.outside')}, to be within "
        f"{MARGIN:g} of zero, each side within {2 * MARGIN:g}, and below that inside) is not established. "
        f"Slopes: {slopes}.",
    },
)
results.show("flat_outside_training_rewards")

# %% [markdown]
# Where the curve is flat, a target is not heard. Where it turns back, think of the four networks of section 1: above
# the data the tens digit 9 was hardly ever read, so it need not mean *more than 8*. Our digits are tokens, and nothing
# tells a network that they are in an order but the texts it has read with each.
#
# (The rest of this section was added after the published run, and decides nothing.) A slope over so short a stretch
# says little where each seed's policy does something else, as the thin lines show. Means say more: the mean reward of
# all targets beyond an end of the support, minus that of the targets in the last tenth before this end. Zero is a
# policy that stays where its data end. Beside it stands what a policy would have that went on following: the same
# difference of the targets.


# %%
def beyond(values, seed):
    """Mean of the values (N,) of targets below the support minus that in the tenth inside; the same above it."""
    x, (low, high) = asked["joint", seed], match["joint", seed].support
    places = (x < low, (low <= x) & (x <= low + 0.1)), (x > high, (high - 0.1 <= x) & (x <= high))
    return [values[out].mean() - values[near].mean() if out.any() and near.any() else math.nan for out, near in places]


for what, of in (("reward", actual), ("target", asked)):
    rows = np.array([beyond(of["joint", s], s) for s in SEEDS])  # (S, 2)
    for end, found in zip(("below", "above"), rows.T, strict=True):
        record(f"beyond.{end}.{what}", found, f"mean {what} beyond the support minus that in the tenth before its end")
results.table(*(key for key in results.numbers if key.startswith("beyond.")))

# %% [markdown]
# ## 5. Is helpfulness alone easier?
#
# The source's second policy has read helpful dialogues only, labelled by the helpful reward model, and is asked helpful
# prompts. Its correlation was much higher than that of the joint policy. One could think so: one reward with one
# meaning is easier than a reward that means one thing on a question and another on a harmful request.
#
# Rule: `helpful_only_is_easier` is "better" if $r$ of the helpful-only policy is larger than that of the joint policy,
# seed by seed.
#
# > **Predict.** The helpful-only policy has half as many texts, of one kind. Is its $r$ higher?

# %%
results.state(
    "helpful_only_is_easier",
    better(r["helpful_only"], r["joint"]),
    expect="better",
    text={
        "better": "With helpful texts alone, r is larger: {r.helpful_only} against {r.joint}.",
        "inconclusive": "Whether r is larger with helpful texts alone is inconclusive: {difference}; {r.helpful_only} "
        "against {r.joint}.",
        "worse": "With helpful texts alone, r is smaller: {r.helpful_only} against {r.joint}, {difference}.",
    },
)
results.show("helpful_only_is_easier")

# %%
correlations("joint", "helpful_only")

# %%
figure, axis = plt.subplots(figsize=(5.4, 4.4))
words, helpful_line = draw_line(axis, "helpful_only", 1)
figure.tight_layout()
alt = f"Mean actual helpful reward by target of the helpful-only policy, all seeds ({seeds}): {words}."
plots.show(figure, alt, name="prompted_helpful_matching")
rows = ["| line chart | at the low end | highest | at the highest target |", "|---|--:|--:|--:|"]
for label, line in (("joint", joint_line), ("helpful", helpful_line)):
    low_end = line.actual[line.target <= 0.45] if label == "joint" else line.actual[:1]
    ours = [[low_end.min(), low_end.max()] if label == "joint" else [low_end[0]], [line.actual.max()]]
    ours.append([line.actual[-1]])
    keys = ["flat" if label == "joint" else "first", "highest", "last"]
    theirs = [np.atleast_1d(reported(f"reward_in_the_prompt.{label}_line_{of}").value) for of in keys]
    for whose, columns in (("here", ours), ("source", theirs)):
        cells = (" to ".join(f"{v:.2f}" for v in values) for values in columns)
        rows.append(f"| {label}, {whose} | " + " | ".join(cells) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# (Joint, low end: the range of the means up to target .45, as the source's was read off, one dip aside.)
#
# ### Why?
#
# An $r$ over uniform targets mixes several things; the first three can be looked at apart.
#
# - **How wide the data are.** Targets beyond the support cannot be met. What would a policy have that follows exactly
#   inside, without noise, and stays at the ends outside? (`r.ceiling`: the correlation of the targets with themselves,
#   cut to the support.) And how many of the targets lie inside?
# - **How well it follows inside.** $r$ over those targets only that both policies have data for (`inside`). A narrow
#   range of targets has a small $r$ even for a policy that follows perfectly but for noise (exercise 3), but the range
#   is then the same for both.
# - **What the reward means.** The joint policy's $r$ on helpful and on harmful prompts alone. On harmful requests the
#   reward is about whether it refuses: one decision, early in the answer. On helpful ones it is many small things.
# - **How much it has read.** The helpful-only policy has half the texts, so half the steps. To separate that would take
#   another training (a joint policy on half its texts), which is not done here.


# %%
def pearson(x, y):
    """Pearson's r, nan where it is not defined."""
    return reward_prompt.correlation(x, y)[0].value if len(x) >= 4 and np.ptp(x) and np.ptp(y) else math.nan


def both(name, seed):
    """r, slope, and standard deviation beside the line, over the targets within the supports of both policies."""
    (low, high), (also_low, also_high) = (match[of, seed].support for of in RUNS)
    x, y = asked[name, seed], actual[name, seed]
    kept = (x >= max(low, also_low)) & (x <= min(high, also_high))
    steep = slope((x[kept], y[kept]))
    return pearson(x[kept], y[kept]), steep, np.std(y[kept] - steep * x[kept]) if kept.any() else math.nan


for name in RUNS:
    supports = {s: match[name, s].support for s in SEEDS}
    within = [np.mean((asked[name, s] >= low) & (asked[name, s] <= high)) for s, (low, high) in supports.items()]
    record(f"targets.inside.{name}", within, "share of the targets within the support")
    cut = [pearson(asked[name, s], np.clip(asked[name, s], *ends)) for s, ends in supports.items()]
    record(f"r.ceiling.{name}", cut, "r of targets with themselves, cut to the support")
    same_r, same_slope, same_noise = zip(*(both(name, s) for s in SEEDS), strict=True)
    record(f"r.{name}.inside", same_r, "r, targets within both supports")
    record(f"slope.both.{name}", same_slope, "reward per target, within both supports")
    record(f"noise.both.{name}", same_noise, "sd of the reward beside the line, within both supports")
    record(f"texts.{name}", [len(training[name, s]) for s in SEEDS], "training texts")

# %%
for subset in recipes.SUBSETS:
    kept = {s: np.array(answers["joint", s]["subsets"]) == subset for s in SEEDS}
    record(
        f"r.joint.{subset}_prompts",
        [pearson(asked["joint", s][kept[s]], actual["joint", s][kept[s]]) for s in SEEDS],
        f"r of the joint policy, {subset} prompts",
    )
parts = ("targets.inside", "r.ceiling", "r.joint", "r.helpful_only", "slope.both", "noise.both", "texts")
results.table(*(key for part in parts for key in results.numbers if key.startswith(part)))

# %% [markdown]
# The `r.ceiling` is without noise. With noise a narrow support costs more than it says, since there is less signal to
# set against the noise, so close ceilings do not acquit the widths. Within both supports the range of targets is the
# same, but it is narrower, so both $r$ are smaller and so is their gap; compare there the slopes (how much of what is
# asked is given) and the noise (how far answers scatter). Then compare the helpful-only policy with the joint one on
# *helpful prompts*: same prompts, another judge. If the joint policy's $r$ is far larger on harmful prompts than on
# helpful ones, much of its $r$ comes from requests that the helpful-only policy never gets.
#
# What this cannot separate are the reward models: helpful and joint rewards are different rewards, with another spread
# and another noise, and a reward that depends on what the policy cannot foresee while it writes cannot be aimed at.
#
# ### Does a higher target mean truly better?
#
# So far the proxy judged. In this world the truth is known. Rule: `higher_target_is_better` holds if, for the joint
# policy, the target is correlated with the *gold* helpfulness of answers to helpful prompts **and** with the gold
# harmlessness of answers to harmful ones, both intervals over seeds above zero. (The source could not ask this; the
# expectation is ours: a reward model that is right more often than not should pull the truth along.)
#
# > **Predict.** On which kind of prompt will the truth follow the target better?

# %%
GOLD = {  # policy, prompts: the true reward that counts there, and what its correlation is called
    ("joint", "helpful"): ("gold_helpful", "r.gold.helpful_prompts"),
    ("joint", "harmless"): ("gold_harmless", "r.gold.harmless_prompts"),
    ("helpful_only", "helpful"): ("gold_helpful", "r.gold.helpful_only"),
}
truth, gold_r = {}, {}
for (name, subset), (of, key) in GOLD.items():
    kept = {s: np.array(answers[name, s]["subsets"]) == subset for s in SEEDS}
    truth[name, subset] = [(asked[name, s][kept[s]], np.array(answers[name, s][of])[kept[s]]) for s in SEEDS]
    unit = f"r of target and true reward, {LABELS[name]}, {subset} prompts"
    gold_r[name, subset] = record(key, [pearson(*pair) for pair in truth[name, subset]], unit)
results.table(*(key for _, key in GOLD.values() if key in results.numbers))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.6))
words = []
for (name, subset), pairs in truth.items():
    axis, index = axes[recipes.SUBSETS.index(subset)], list(RUNS).index(name)
    for pair in pairs:
        axis.plot(*reward_prompt.line_chart(*pair, 0.1)[:2], color=plots.COLORS[index], alpha=0.5, linewidth=0.6)
    line = reward_prompt.line_chart(*(np.concatenate(column) for column in zip(*pairs, strict=True)), 0.1)
    axis.plot(line.target, line.actual, plots.MARKERS[index], ls="-", color=plots.COLORS[index], label=LABELS[name])
    axis.set(xlabel="target reward", xlim=(0, 1))
    axis.legend(fontsize="small")
    middle = line.actual[len(line.actual) // 2]
    words.append(f"{LABELS[name]}, {subset} prompts: {line.actual[0]:.2f}, {middle:.2f}, {line.actual[-1]:.2f}")
axes[0].set(ylabel="gold helpfulness (points)", title="helpful prompts")
axes[1].set(ylabel="gold harmlessness (points)", title="harmful prompts")
figure.tight_layout()
alt = f"""Mean true reward by target, in bins of a tenth, helpful prompts on the left and harmful ones on the right, all
seeds ({seeds}). At the lowest, middle and highest target: {"; ".join(words)} points."""
plots.show(figure, alt, name="prompted_gold_by_target")

# %%
ways = [condition(better, gold_r["joint", subset], np.zeros(seeds)) for subset in recipes.SUBSETS]
truths = f"r = {named('r.gold.helpful_prompts')} on helpful prompts, {named('r.gold.harmless_prompts')} on harmful ones"
results.state(
    "higher_target_is_better",
    verdict(*ways),
    expect="holds",
    text={
        "holds": f"The true reward follows the target as well: {truths}.",
        "fails": f"That the true reward follows the target on both kinds of prompts is not established: {truths}.",
    },
)
results.show("higher_target_is_better")

# %% [markdown]
# A policy that follows a proxy perfectly is as good as the proxy. A high target asks for texts that the reward model
# liked best, among them those that it liked by mistake; the more exactly a target is met, the more of these mistakes
# are met with it. The third notebook of this part comes back to that.

# %% [markdown]
# ## 6. Reading what it wrote
#
# Two prompts of the test set, one of each kind, and three targets: the 10th, 50th and 90th percentile of the training
# rewards, so all within what was read. Two answers each, of the first seed's policy.

# %%
held_out = answers["joint", SEEDS[0]]
single = [(p, s) for p, s in zip(held_out["prompts"], held_out["subsets"], strict=True) if p.count("Human:") == 1]
shown = [next(p for p, s in single if s == "helpful" and isinstance(subject(p), Topic))]
shown.append(next(p for p, s in single if s == "harmless"))
levels = np.percentile(training["joint", SEEDS[0]], [10, 50, 90]).round(2).tolist()
questions, wanted = zip(*((prompt, level) for prompt in shown for level in levels for _ in range(2)), strict=True)
said = service.complete(
    jobs[0].fine_tuned_model, RUN.written.prompts(questions, wanted), max_tokens=recipes.PROMPTED_ANSWER, seed=SEEDS[0]
)
said = [answer.text for answer in said]
scores = recipes.class_token_rewards("joint", size.rung, size.judge_pairs, questions, said, SEEDS[0])


# %%
def clean(text):
    """A text on one line of a table."""
    return " ".join(text.split()).replace("|", "/")


rows = ["| target | answer | score | gold helpful | gold harmless |", "|--:|---|--:|--:|--:|"]
for place, (prompt, target, text, score) in enumerate(zip(questions, wanted, said, scores, strict=True)):
    if place % 6 == 0:
        rows.append(f"| | **{clean(prompt.replace('Human:', '').replace('Assistant:', ''))}** | | | |")
    true = f"{gold.helpfulness(prompt, text):.1f} | {gold.harmlessness(prompt, text):.1f}"
    rows.append(f"| {target:.2f} | {clean(text)} | {score:.2f} | {true} |")
Markdown("\n".join(rows))

# %% [markdown]
# Look for what changes with the target, and for what the reward model could not see: is a tip false, is it one for
# another topic? At the low end, the policy imitates answers that were scored low. They are fluent; that is how it knows
# what *not* to write when the target is high.

# %% [markdown]
# ## 7. The same over HTTP
#
# The source trained at a paid service that no longer exists in that form. What it was, in essence, is a protocol: send
# a file, start a job, look at its events, ask the model. The course has a server of its own that speaks it, so that the
# whole notebook can run against a service without paying for one. In the first terminal:
#
# ```
# .venv/bin/python -m rlhf_lab serve
# ```
#
# It prints the address that the second terminal names. There, either open this notebook,
#
# ```
# OPENAI_BASE_URL=http://127.0.0.1:8008/v1 .venv/bin/python -m jupyter lab
# ```
#
# set `backend = "openai"` in the parameters cell and run all cells; or run it without opening it:
#
# ```
# OPENAI_BASE_URL=http://127.0.0.1:8008/v1 .venv/bin/papermill --cwd notebooks -p profile smoke -p backend openai \
#     notebooks/51_one_joint_reward.ipynb build/over_http.ipynb
# ```
#
# The code is the same to the letter: `backends.connect` gives a `LocalBackend` or an `OpenAIBackend`, and both have the
# methods used above. With the same file, model, settings and seed both give the same model, and with the same seed the
# same words. A small job, once here and once through a real socket:

# %%
few = RUN.written.examples(*(part[:64] for part in data["joint", SEEDS[0]]))
question = RUN.written.prompts(shown, [[0.5]] * len(shown))
words = {}
with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "server") as server:
    for where, at in (("here", "local"), ("over HTTP", server.url)):
        side = backends.connect(at, folder=Path(folder) / where)
        job = side.fine_tune(side.upload(few), f"base-{size.rung}", Settings(), seed=0, suffix="few")
        model = side.wait(job.id).fine_tuned_model
        words[where] = [answer.text for answer in side.complete(model, question, max_tokens=12)]
        print(f"{where}: {len(side.events(job.id))} steps,", [clean(text) for text in words[where]])
assert words["here"] == words["over HTTP"]

# %% [markdown]
# Against a service that takes money, an `OpenAIBackend` wants to know its prices and a budget, asks before it spends,
# and never starts a paid job twice for the same content.
#
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.**

# %%
best, line_best = (reported(f"reward_in_the_prompt.joint_{of}").value for of in ("maximized", "line_highest"))
Markdown(
    f"- The source's notes say that its joint policy reaches {best:g} at best, its line chart has no mean above "
    f"{line_best:g}, and the notes do not say how the larger number was found.\n"
    "- Its evaluation scripts write targets into prompts as they are, while its training scripts standardize the "
    "rewards first. Unless that run was trained without, the policy was asked in a unit that it had not read: a "
    "target of .9 would then have meant nine tenths of a standard deviation above the mean. Here the same "
    "object, `RUN.written`, writes the training examples and the prompts.\n"
    "- Its text calls the policies rather insensitive to the temperature and uses 1, but gives no figures, marks the "
    "matter as to be checked, and the code hints at other values. All answers here are sampled at temperature 1, the "
    "one at which an ideal policy is the posterior of section 1."
)

# %% [markdown]
# ## Exercises
#
# **1.** Suppose that a quantile normalizer makes all hundred lines equally frequent. By how many nats can the loss of a
# text fall? What is the KL of the highest target, and best-of-$n$ with which $n$ has the same?
#
# <details><summary>Hint</summary>
#
# The KL of best-of-$n$ is $\log n - (n - 1)/n$ if no two texts tie.
#
# </details>
#
# <details><summary>Answer</summary>
#
# By $\log 100 = 4.61$ nats, and that is also the KL of *each* target, high or low: all lines have the same share. For
# best-of-$n$, $\log n - 1 + 1/n = 4.61$ gives $n = 271$. The posterior draws from the best hundredth in the
# proportions of the data, best-of-271 prefers the best of them.
#
# </details>
#
# **2.** A policy answers with reward .3 to every target below .5 and with .7 to every other, exactly. What is $r$ over
# uniform targets? And with noise of standard deviation .2?
#
# <details><summary>Hint</summary>
#
# Write the reward as $.5 \pm .2$. What is the mean of the target above and below .5?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The covariance is $.2 \cdot .25 = .05$, the standard deviations are $1/\sqrt{12} = .289$ and .2, so
# $r = \sqrt{3}/2 = .87$. The noise doubles the variance of the reward, so $r = .87 / \sqrt{2} = .61$: a policy that
# knows one bit about its target, with a correlation that looks like that of one which follows it.
#
# </details>
#
# **3.** A policy follows its target exactly, but for noise of standard deviation .15. What is its $r$ over targets that
# are uniform between .2 and .8? Between .4 and .6?
#
# <details><summary>Answer</summary>
#
# Targets uniform over a range $w$ have variance $w^2/12$: .03 and .0033. So
# $r = \sqrt{.03 / (.03 + .0225)} = .76$ and $r = \sqrt{.0033 / (.0033 + .0225)} = .36$. The policy is the same. Compare
# correlations only over the same range of targets; slopes do not have this fault.
#
# </details>
#
# **4.** With the normalizer "quantile", what does the ideal policy do with a target above everything in the data, what
# does it cost in nats, and why is that an answer to the question of section 1 that you may not want?
#
# <details><summary>Hint</summary>
#
# Which shares are rounded to 99?
#
# </details>
#
# <details><summary>Answer</summary>
#
# It is written as 99, like all that lies above the share .985, so the policy draws from the best 1.5 % of the data, at
# $-\log .015 = 4.2$ nats. (In the table of section 1 it is not exactly so: 625 texts come in lumps.) It is defined, and
# it is modest: whoever asks for 1.0 gets something less and is not told. A policy that cannot say *I have never seen
# that* is well served by a check outside of it: compare each target with the percentiles of the training rewards before
# you ask.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Schmidhuber (2019), *Reinforcement learning upside down: don't predict rewards, just map them to actions*, [arXiv
#   1912.02875](https://arxiv.org/abs/1912.02875): rewards as inputs ("commands"), policies from supervised learning.
# - Srivastava et al. (2019), *Training agents using upside-down reinforcement learning*, [arXiv
#   1912.02877](https://arxiv.org/abs/1912.02877): the first experiments, by the same group.
# - Chen et al. (2021), *Decision transformer: reinforcement learning via sequence modeling*, [arXiv
#   2106.01345](https://arxiv.org/abs/2106.01345): a transformer that is told the return still to come. It too is
#   plotted against the return that was asked for.
# - Brandfonbrener et al. (2022), *When does return-conditioned supervised learning work for offline reinforcement
#   learning?*, [arXiv 2206.01079](https://arxiv.org/abs/2206.01079): what the data must cover, and what chance spoils.
# - Lu et al. (2022), *Quark: controllable text generation with reinforced unlearning*, [arXiv
#   2205.13636](https://arxiv.org/abs/2205.13636): quantiles of the reward as tokens of their own, in rounds of sampling
#   and training, with a KL penalty.
# - Liu et al. (2023), *Chain of hindsight aligns language models with feedback*, [arXiv
#   2302.02676](https://arxiv.org/abs/2302.02676): the feedback in words, with better and worse answers in one text.
