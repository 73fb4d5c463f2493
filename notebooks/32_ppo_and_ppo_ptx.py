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
# # InstructGPT, step 3: PPO and PPO-ptx
#
# **Does PPO against a learned reward make better answers, and what do its curves say on the way?**
#
# Step 1 gave a policy that imitates good answers, step 2 a reward model that knows something of what labelers prefer.
# Step 3 sets the one against the other: the policy answers, the reward model scores, and PPO moves the policy towards
# what scored well. We take one update apart until nothing is left of it but a few lines of arithmetic, and show that
# the course's trainer is these lines. Then it runs for real, under several KL penalties, with and without texts of the
# first training mixed in, and once with the truth itself as the reward. A run of PPO writes down some twenty numbers an
# update. We read all of them.

# %% [markdown]
# ## What you will learn
#
# - every line of a PPO update for language models, from the sampled tokens to the new weights;
# - what the usual short form of the algorithm leaves out, and why one cannot do without it;
# - how PPO-ptx mixes pretraining into the update, and what its coefficient means;
# - to read the curves of a run: which of them say that it learns, which that it is broken, which that it cheats;
# - to choose the KL coefficient on prompts that are not those on which you report.

# %% [markdown]
# ## What you should know
#
# Ratio, clip, advantage estimation, value loss and the KL estimators (*From policy gradient to PPO*, sections 1 to 4
# and 8), and the first two steps (the two notebooks before this one).

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import copy
import itertools
import random
from dataclasses import replace

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt

from rlhf_lab import claims, evaluation, parallel, plots, ppo, recipes, statistics
from rlhf_lab.language_model import encode, read_responses
from rlhf_lab.profiles import Profile
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh import annotators
from rlhf_lab.tinyhh.knowledge import Topic, subject

size = Profile.load(profile)
results = claims.Claims("32_ppo_and_ppo_ptx", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: demonstrations, rankings, reward model, PPO, and the prompts on
# which it is judged. It is the unit in which we count evidence, and square brackets hold 95 % intervals over seeds.
# Rules stand above the cells that decide them and were fixed before the published run; settings were tried out with
# other seeds. One seed decides nothing, so the published verdict is then shown beside it.

# %% [markdown]
# ## 1. What step 3 is
#
# Four functions take part, and only two of them learn:
#
# | | what it is | learns |
# |---|---|---|
# | policy $\policy$ | answers prompts; begins as the SFT policy | yes |
# | value function $V$ | foretells, before each token, the rest of the reward; a linear head on the policy's last layer, so that its loss moves the policy's weights as well | yes |
# | reference $\policyref$ | the SFT policy, to which the policy is held | no |
# | reward model $\rmodel$ | scores whole answers | no |
#
# What is to be maximized is the score, less the KL coefficient $\klcoef$ times how far the policy has moved:
#
# $$ J(\theta) = \E_{\prompt \sim \Data, \; \resp \sim \policy}\Big[ \rmodel(\prompt, \resp)
#    - \klcoef \log \frac{\policy(\resp \mid \prompt)}{\policyref(\resp \mid \prompt)} \Big] $$
#
# Both terms stand *inside* the expectation: each answer pays for its own log-ratio. A step of reinforcement learning is
# one token. The state is the prompt and what has been written so far, the action the next token, and the episode ends
# with the end token. Only the last token earns the score.

# %% [markdown]
# ## 2. One update, by hand
#
# **Sample.** Four questions, at most sixteen tokens for each answer, so that some are cut; the smallest base model. In
# the middle of a run the policy is no longer the reference. Here a little noise on the weights stands for what it has
# learned, and the value head has some random weights. (All in double precision, so that identities hold to the last
# digits.)

# %%
reference, tokenizer = recipes.base("0.2M")
reference, draws = reference.double(), torch.Generator().manual_seed(0)
policy = copy.deepcopy(reference)
head = torch.nn.Linear(policy.config.hidden_size, 1, dtype=torch.float64)
with torch.no_grad():
    for weights in policy.parameters():
        weights += 0.006 * torch.randn(weights.shape, generator=draws)
    head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=draws))
    head.bias.zero_()

questions = (
    "help my houseplants grow well",
    "make a good sketch",
    "keep my gutters in good shape",
    "do well on an exam",
)
prompts = [f"\n\nHuman: How can I {question}?\n\nAssistant:" for question in questions]
queries = tokenizer(prompts)["input_ids"]
samples = sample(policy, queries, 16, tokenizer.eos_token_id, seed=26)
responses, texts = samples.responses, samples.texts(tokenizer)

# %% [markdown]
# **Score.** One number for each whole answer. Any function of texts will do; here it is the *gold reward*, the true
# helpfulness in points, which only a made-up world can know and which needs no training. An answer that the limit cut
# pays a penalty, or the policy would never learn to stop.

# %%
config = ppo.PPOConfig(updates=1, warmup=1, batch_size=4, epochs=2, minibatches=1, max_new_tokens=16)
scores = recipes.gold_helpfulness(prompts, texts)
ended = torch.tensor([response[-1] == tokenizer.eos_token_id for response in responses])
penalized = torch.tensor(scores).double() - config.eos_penalty * ~ended  # (B,)
rows = ["| answer | ended | score | after the penalty |", "|---|---|--:|--:|"]
for text, end, score, paid in zip(texts, ended, scores, penalized, strict=True):
    rows.append(f"| {' '.join(text.split())} | {'yes' if end else 'no'} | {score:.2f} | {paid:.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# **Read.** Log-probabilities of the sampled tokens under policy and reference, and the value *before* each token. All
# are matrices of (answers, tokens), with padding on the right, and a mask says what is real. These are the *old*
# numbers of the update: whatever the policy does next, it is measured against them.


# %%
def read(policy, head):
    """Log-probabilities and values (B, R) of the four responses, zero at padding, and the mask. Gradients flow."""
    log_probs, mask, states = read_responses(policy, queries, responses)  # states (N, D): one for each real token
    return log_probs, log_probs.new_zeros(mask.shape).masked_scatter(mask, head(states).squeeze(-1)), mask


with torch.no_grad():
    old_log_probs, old_values, mask = read(policy, head)
    log_ratio = old_log_probs - read_responses(reference, queries, responses)[0]
print("tokens of each answer:", mask.sum(dim=1).tolist())
print("log-ratio of each answer in nats:", log_ratio.sum(dim=1).numpy().round(2))

# %% [markdown]
# **Reward of each token.** Every token pays $\klcoef$ times its own log-ratio; the last real one receives the score as
# well. So a row of rewards sums to score minus $\klcoef$ times the log-ratio of the answer: the bracket of section 1.

# %%
rewards = ppo.penalized_rewards(penalized, log_ratio, mask, config.kl_coef)  # (B, R)
by_hand = -config.kl_coef * log_ratio
for row, length in enumerate(mask.sum(dim=1)):
    by_hand[row, length - 1] += penalized[row]
assert torch.allclose(rewards, by_hand)
assert torch.allclose(rewards.sum(dim=1), penalized - config.kl_coef * log_ratio.sum(dim=1))

# %% [markdown]
# **Advantages and returns.** From the last token backwards: the TD error is reward plus next value minus value, and the
# advantage is the TD error plus $\lambda$ times the next advantage ($\disc = 1$). The *return*, at which the value
# function will aim, is advantage plus old value. Then the advantages are *whitened*: mean 0 and variance 1 over all
# tokens of the batch. In this order, or the values would chase numbers in the wrong unit.

# %%
advantages, returns = ppo.gae(rewards, old_values, mask, config.gamma, config.lam)
for row, length in enumerate(mask.sum(dim=1).tolist()):
    advantage = next_value = 0.0
    for t in reversed(range(length)):
        error = rewards[row, t] + next_value - old_values[row, t]
        advantage, next_value = error + config.lam * advantage, old_values[row, t]
        assert torch.isclose(advantages[row, t], advantage)
whitened = ppo.whiten(advantages, mask)
real = advantages[mask]
assert torch.allclose(whitened[mask], (real - real.mean()) / real.std(correction=0))
assert torch.allclose(returns[mask], real + old_values[mask])

# %% [markdown]
# The first answer that came to its end, token by token:

# %%
columns = (old_log_probs, log_ratio, rewards, old_values, advantages, returns, whitened)
rows = [
    "| token | log-probability | log-ratio | reward | value | advantage | return | whitened |",
    "|---|" + "--:|" * 7,
]
shown = ended.int().argmax()
for t, token in enumerate(responses[shown]):
    name = tokenizer.decode([token]).strip() or "(space)"
    rows.append(f"| {name.replace('<eos>', '(end)')} | " + " | ".join(f"{c[shown, t]:+.3f}" for c in columns) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# One score, at one token, has become an opinion about every token: through $\lambda$ it reaches back to the first, and
# where the value rose or fell more than it should have, a token gets credit or blame of its own. How good that credit
# is depends on the value function, which is why its curves will be watched.
#
# **Step.** Ratio, clip and value loss are those of *From policy gradient to PPO*. The samples serve for two epochs:
# before the first step every ratio is one, before the second no longer.

# %%
mine, my_head = copy.deepcopy(policy), copy.deepcopy(head)
rates = ((mine, config.learning_rate), (my_head, config.value_learning_rate))
groups = [{"params": list(part.parameters()), "lr": rate} for part, rate in rates]
optimizer = torch.optim.Adam(groups, betas=(0.9, 0.95), eps=config.adam_epsilon)
for epoch in range(config.epochs):
    log_probs, values, _ = read(mine, my_head)
    loss = ppo.policy_loss(log_probs, old_log_probs, whitened, mask, config.clip)
    loss = loss + config.value_coef * ppo.value_loss(values, old_values, returns, mask, config.value_clip)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(groups[0]["params"] + groups[1]["params"], config.max_gradient_norm)
    optimizer.step()
    moved = ppo.update_metrics(log_probs.detach(), old_log_probs, mask, config.clip)
    print(f"before step {epoch + 1}:", {name: round(value, 4) for name, value in moved.items()})

# %% [markdown]
# (A single full-size step on four answers already carries some tokens out of the clip. The real runs have larger
# batches, and their learning rate warms up.) That is all. The trainer, given the same policy, answers and scores, must
# arrive at the same weights:

# %%
trainer = ppo.PPO(copy.deepcopy(policy), reference, config, tokenizer)
trainer.value_head.load_state_dict(head.state_dict())
metrics = trainer.step(queries, responses, scores)
apart, moved = 0.0, 0.0
for ours, theirs, before in zip(mine.parameters(), trainer.policy.parameters(), policy.parameters(), strict=True):
    apart, moved = max(apart, (ours - theirs).abs().max().item()), max(moved, (ours - before).abs().max().item())
print(f"largest change of a weight {moved:.1e}, largest distance between the two results {apart:.1e}")
assert apart < 1e-9 < moved and torch.allclose(my_head.weight, trainer.value_head.weight, atol=1e-9)
assert np.isclose(metrics["kl"], log_ratio.sum(dim=1).mean()) and np.isclose(metrics["reward"], penalized.mean())

# %% [markdown]
# What the trainer adds is organization: several minibatches an epoch, drawn anew; micro-batches, so that memory
# suffices; a learning rate that warms up and then falls to zero; the texts of PPO-ptx; saving and resuming; several
# processes. docs/ppo.md lists forty decisions with their tests, and the notebook *Thirty details* shows what happens
# when one of them is wrong.

# %% [markdown]
# ## 3. What the short form leaves out
#
# The slides on InstructGPT (2024) print step 3 as an algorithm of a few lines: answer a prompt, take the reward model's
# score, take the log-ratio to the SFT policy, put both and a pretraining term into an objective, follow its gradient.
# That is a policy gradient, and a good way to remember what the step is for. It is not PPO, and it does not run as
# printed:
#
# | left out or misplaced | what happens without it | in section 2 |
# |---|---|---|
# | the clip of the ratio | a batch is good for one step only; more of them run away with its noise | `policy_loss` |
# | the value function | every token of an answer gets the whole score as its credit, above-average or not | `read`, `value_loss` |
# | advantage estimation (GAE) | no way to choose between the value function's bias and the noise of whole answers | `gae` |
# | the batch of pretraining texts, among the inputs | the term in $\gamma_{\text{ptx}}$ has nothing to be computed on | section 4 |
# | the KL *inside* the expectation over the policy's own answers | outside of it, it is a number without answers; as a plain loss, its gradient is zero on average (*From policy gradient to PPO*, section 9) | `penalized_rewards` |

# %% [markdown]
# ## 4. PPO-ptx: mixing in the first training
#
# A policy that is paid for scores alone forgets what nobody scores. InstructGPT adds the log-likelihood of texts $z$ of
# the first training, with a coefficient (the paper's $\gamma$; it has nothing to do with a discount):
#
# $$ J_{\text{ptx}}(\theta) = J(\theta) + \gamma_{\text{ptx}} \, \E_{z \sim \Data_{\text{pretrain}}}\big[\log \policy(z)\big] $$
#
# The two terms share nothing but the weights: other texts, another batch, no prompt, no reward, no reference. A
# gradient of a sum is the sum of the gradients, so in each minibatch one runs backward twice, and steps once. We let
# the trainer take one step without the term and one with it, and hold the difference of their gradients against a
# backward pass of our own.

# %%
old_texts = recipes.pretraining_texts(8, "by-hand")


def gradient_of_step(ptx_coef):
    """The gradient (P,) by the policy's weights in the trainer's first step on the batch of section 2, not clipped."""
    settings = replace(config, epochs=1, max_gradient_norm=1e9, ptx_coef=ptx_coef, ptx_batch=len(old_texts))
    trainer = ppo.PPO(copy.deepcopy(policy), reference, settings, tokenizer, pretraining=old_texts)
    trainer.step(queries, responses, scores)
    return torch.cat([weights.grad.flatten() for weights in trainer.policy.parameters()])


without, with_texts = gradient_of_step(0.0), gradient_of_step(2.0)
policy.zero_grad()
log_probs, real, _ = read_responses(policy, *zip(*(encode(tokenizer, "", text) for text in old_texts), strict=True))
(-ppo.masked_mean(log_probs, real)).backward()
pretraining = torch.cat([weights.grad.flatten() for weights in policy.parameters()])
assert torch.allclose(with_texts, without + 2.0 * pretraining)
angle = torch.nn.functional.cosine_similarity(without, pretraining, dim=0).item()
print(f"lengths: PPO {without.norm():.2f}, pretraining {pretraining.norm():.2f}; cosine between them {angle:+.2f}")

# %% [markdown]
# The coefficient has to be read together with the unit of the loss and the number of texts. The formula sums over the
# tokens of a text, our pretraining loss is a mean over tokens; whether the paper's is a mean or a sum it does not say,
# so 27.8 there and the number here are not on one scale. Beside each other, what InstructGPT did (its appendix C; where
# nothing stands, the paper does not say) and what we do:

# %%
usual, texts_each = ppo.PPOConfig(), ppo.PPOConfig.ptx_batch * ppo.PPOConfig.epochs * ppo.PPOConfig.minibatches
settings = {
    "episodes": ("256,000", f"{size.ppo_updates * size.ppo_batch:,}"),
    "episodes an update": ("512", size.ppo_batch),
    "episodes a minibatch": ("64", size.ppo_batch // usual.minibatches),
    "epochs on a batch": ("1", usual.epochs),
    "clip of the ratio": ("0.2", usual.clip),
    "KL coefficient": ("0.02", f"{recipes.KL_COEF:g}, and others"),
    "discount": ("none", "none" if usual.gamma == 1 else usual.gamma),
    "lambda of GAE": ("", usual.lam),
    "temperature": ("1", f"{usual.temperature:g}"),
    "warm-up of the learning rate (updates)": ("10", usual.warmup),
    "weight of the pretraining loss": ("27.8", f"{recipes.PTX_COEF:g}, of a mean over tokens"),
    "pretraining texts for each episode": ("8", f"{texts_each / size.ppo_batch:g}"),
    "value function": ("a model of its own, begins as the reward model", "a linear head on the policy, begins at zero"),
    "weights that are reported": ("a moving average, decay .992", "the last"),
}
rows = [f"| {name} | {theirs} | {ours} |" for name, (theirs, ours) in settings.items()]
Markdown("\n".join(["| | InstructGPT | here |", "|---|---|---|", *rows]))

# %% [markdown]
# ## 5. A zero for each prompt
#
# Our first runs for this notebook disappointed (ten of them were of the published seeds): the score rose, the KL rose
# faster, and gold hardly moved. Yet the reward model was good: whoever takes the one of several answers that it likes
# best has a much better answer (the last line below). What was wrong? A reward model is fitted to comparisons of
# answers to *one* prompt. They fix nothing about scores of *different* prompts, whose zeros are left wherever training
# puts them. PPO does compare them: a batch holds answers to many prompts, and whoever answers a prompt with a high zero
# is praised for the prompt. The value function can take that off, but ours begins at zero and has to find it out on the
# way. Here are answers of the SFT policy, four to each prompt: how much do scores differ between prompts, beyond what
# the answers make of it, and how much within them?


# %%
world, validation = (size.rung, size.demonstrations), size.test_prompts // 3


def spread(seed, answers=recipes.ZERO_ANSWERS):
    """Standard deviations, between prompts and within them, of the score and of gold of SFT answers."""
    policy, (_, tokenizer) = recipes.instruct_sft(*world, seed=seed), recipes.base(size.rung)
    judge = recipes.instruct_reward_model(*world, size.ranking_prompts, seed=seed)
    asked = [p for p in recipes.held_out_prompts(validation, seed, "validation") for _ in range(answers)]
    ids, most = tokenizer(asked)["input_ids"], ppo.PPOConfig.max_new_tokens
    texts = sample(policy, ids, most, tokenizer.eos_token_id, seed).texts(tokenizer)
    scorers = {"proxy": recipes.proxy_of(judge, tokenizer), "gold": recipes.gold_helpfulness}
    scores = {name: np.reshape(scorer(asked, texts), (-1, answers)) for name, scorer in scorers.items()}
    found = {}
    for name, of in scores.items():  # (prompts, answers)
        within = of.var(axis=1, ddof=1).mean()
        between = of.mean(axis=1).var(ddof=1) - within / answers  # less what chance leaves in a mean
        found |= {f"spread.{name}.within": within**0.5, f"spread.{name}.between": max(0.0, between) ** 0.5}
    best = scores["gold"][np.arange(len(scores["gold"])), scores["proxy"].argmax(axis=1)]
    return found | {"spread.best_of_four": best.mean() - scores["gold"].mean()}


# %%
spreads = parallel.run(joblib.delayed(spread)(seed) for seed in range(seeds))
for name in spreads[0]:
    unit = "log-odds, standard deviation" if "proxy" in name else "points, standard deviation"
    unit = "points of gold, best of four by proxy minus mean" if "best" in name else unit
    results.number(name, statistics.t_interval([found[name] for found in spreads]), unit)
results.table(*spreads[0])

# %% [markdown]
# Gold differs between prompts too, as some questions are easier, but what PPO has to learn from lies within them. So
# from here on the reward of an answer is its score *less the mean score of four answers of the SFT policy to the same
# prompt* (`recipes.above_policy`). A constant for each prompt changes no comparison, and the same policy is best with
# it as without it; it takes noise off. (InstructGPT has one zero for all prompts, and a value function that begins as
# the reward model. Each of our training prompts is asked eight times, as often as theirs, so the zeros cost half as
# many answers again as one run needs.) One of the runs below does without, to see what it is worth.
#
# ## 6. The runs
#
# All begin from the same SFT policy (of their seed) and answer the same training prompts. Four KL coefficients with the
# reward model of step 2; PPO-ptx; the usual coefficient with *raw* scores; and a run that no laboratory could make,
# with the *gold reward itself* in place of the reward model. At the start and after each quarter, every policy answers
# the same *validation* prompts, which no model was trained on; we note gold, the score of the reward model (now called
# the *proxy*), KL and length. The usual coefficient, that of PPO-ptx and of the run with gold, was fixed in trial runs.

# %%
BETAS = (0.0, 0.03, 0.1, 0.3)
plain = recipes.PPORun(
    size.rung, size.rung, size.demonstrations, size.ranking_prompts, size.ppo_updates, size.ppo_batch
)
key_of = {beta: f"beta_{beta:g}".replace(".", "_") for beta in BETAS}
arms = {key_of[beta]: replace(plain, kl_coef=beta) for beta in BETAS}
arms |= {"ptx": replace(plain, ptx_coef=recipes.PTX_COEF), "raw": replace(plain, reward="raw")}
arms |= {"gold_reward": replace(plain, reward="gold")}
LABELS = {key_of[beta]: f"β = {beta:g}" for beta in BETAS}
LABELS |= {"ptx": "PPO-ptx", "raw": "raw scores", "gold_reward": "gold as reward"}
LOOSE, USUAL = key_of[0.0], key_of[recipes.KL_COEF]


def history_of(run, seed):
    """What a run wrote down."""
    return recipes.ppo_run(run, validation, seed)[1]


wanted = list(itertools.product(arms, range(seeds)))
found = parallel.run(joblib.delayed(history_of)(arms[arm], seed) for arm, seed in wanted)
histories = dict(zip(wanted, found, strict=True))


# %%
def logged(arm, name):
    """A metric of every update, (S, U)."""
    return np.array([histories[arm, seed]["metrics"][name] for seed in range(seeds)])


def watched(arm, name):
    """A mean over the validation prompts at every evaluation, (S, E)."""
    return np.array([histories[arm, seed][name] for seed in range(seeds)]).mean(axis=2)


evaluations = histories[USUAL, 0]["updates"]
print(len(arms), "runs a seed;", size.ppo_updates, "updates; evaluated after", evaluations, "updates")
print("metrics:", ", ".join(histories["ptx", 0]["metrics"]))

# %% [markdown]
# Two things must hold whatever the reward model is worth, so the build fails if they do not.
#
# The *first ratio is one*: before the first step on a batch, the policy that is asked for probabilities is the one that
# sampled, so no ratio may differ from one by more than rounding. We allow $10^{-3}$, in every update of every run of
# every seed. A wrong temperature, dropout, a shifted mask or answers that were cut and tokenized again would all show
# here, and hardly anywhere else.

# %%
largest = max(logged(arm, "first_ratio_error").max() for arm in arms)
results.number("first_ratio_error", float(largest), "largest distance of a first ratio from one")
results.state(
    "first_minibatch_ratio_is_one",
    statistics.rule(bool(largest < 1e-3)),
    expect="holds",
    sanity=True,
    text={
        "holds": "Before the first step on a batch every ratio is one in all updates of all runs, within {first_ratio_error}.",
        "fails": "A ratio before the first step on a batch is off by {first_ratio_error}.",
    },
)
results.show("first_minibatch_ratio_is_one")

# %% [markdown]
# And *PPO can optimize*: with the gold reward itself as reward, gold on validation prompts is higher at the end than at
# the start, in every seed. If this fails, do not look for the fault in the reward model.

# %%
before, after = watched("gold_reward", "gold")[:, 0], watched("gold_reward", "gold")[:, -1]
results.number("gold_reward.gold_rise", statistics.t_interval(after - before), "points of gold, end minus start")
results.state(
    "gold_reward_ppo_beats_sft",
    statistics.rule(bool((after > before).all())),
    expect="holds",
    sanity=profile != "smoke",  # three updates teach nothing that could be measured
    text={
        "holds": "With the gold reward as its reward, PPO raises it in every seed, by {gold_reward.gold_rise} points.",
        "fails": "With the gold reward as its reward, PPO does not raise it in every seed: {gold_reward.gold_rise} points.",
    },
)
results.show("gold_reward_ppo_beats_sft")

# %% [markdown]
# ## 7. Reading the curves
#
# What follows are the curves of all metrics of `PPO.step`, for the usual coefficient and for none at all. Thin lines
# are seeds, thick ones their means. Each point is one update, on one batch of *training* prompts: scores, KL, lengths
# and values are those of the batch as it was sampled; losses, ratios, clip fractions and gradient norms are means over
# the steps that follow, each measured before its step.


# %%
def panels(units):
    """A figure with a panel for each metric of {name: unit}, and what it shows in words."""
    figure, axes = plt.subplots(1, len(units), figsize=(8.8, 2.1))
    words = []
    for axis, (name, unit) in zip(axes, units.items(), strict=True):
        for index, arm in enumerate(("ptx",) if name == "ptx_loss" else (USUAL, LOOSE)):
            look = {"color": plots.COLORS[2 if arm == "ptx" else index], "linestyle": plots.LINES[index]}
            curves = logged(arm, name)  # (S, U)
            updates, mean = np.arange(1, curves.shape[1] + 1), curves.mean(axis=0)
            axis.plot(updates, curves.T, color=look["color"], linewidth=0.4, alpha=0.5)
            axis.plot(updates, mean, **look, linewidth=1.8, label=LABELS[arm])
            words.append(f"{name} ({LABELS[arm]}) {mean[0]:.3g} to {mean[-1]:.3g}")
        axis.set_title(f"{name}\n({unit})", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.yaxis.get_offset_text().set_fontsize(7)
        axis.set_xlabel("update", fontsize=8)
        if axis is axes[0] or name == "ptx_loss":
            axis.legend(fontsize=7)
    figure.tight_layout(w_pad=0.3)
    return figure, "From the first to the last update, means over seeds: " + "; ".join(words) + "."


# %% [markdown]
# ### Score, reward, objective
#
# > **Predict.** A difference of scores is the log-odds that three labelers together rank one answer above another, and
# > 0 is what the SFT policy's own answers to the prompt get on average. Where does the score start? Which of the three
# > curves coincide without a penalty, and which with one?

# %%
figure, alt = panels({"score": "log-odds", "reward": "log-odds", "objective": "log-odds"})
plots.show(figure, alt, name="ppo_rewards")

# %% [markdown]
# `score` is what the reward model says of the batch, less the zero of each prompt, `reward` the same less the penalty
# for answers that the limit cut, and `objective` the reward less $\klcoef$ times the KL: the one thing that PPO
# maximizes. *Healthy*: all three rise, fast at first, and level off. *Sick*: the score rises while the objective falls
# (the policy pays more for drift than it earns: the coefficient is too high or the steps are too large); score and
# reward part (it no longer ends its answers); a sudden fall (the policy broke; look at the KL at the same update). And
# a warning: **a rising score is not a sign of health by itself.** It is what is optimized, so it rises if anything
# works at all, also when the policy has found a hole in the reward model.

# %% [markdown]
# ### KL, length, end, entropy
#
# > **Predict.** The KL of the first update is known beforehand. What is it? And which of the two policies will be more
# > sure of itself at the end?

# %%
units = {"kl": "nats a response", "kl_coef": "reward a nat", "entropy": "nats a token"}
units |= {"length": "tokens", "ended": "share"}
figure, alt = panels(units)
plots.show(figure, alt, name="ppo_kl_and_text")

# %% [markdown]
# `kl` is the mean log-ratio of whole answers to the reference: how much of the SFT policy has been spent. It starts at
# zero, since the policy *is* the reference. *Healthy*: it rises and slows down. *Sick*: negative by more than its noise
# (a KL cannot be negative, only its estimate near zero: sampling and training disagree about probabilities), or ever
# steeper. `kl_coef` is flat here, because the coefficient is fixed; an adaptive one (section 10) would answer to the
# KL. `entropy` is how undecided the policy is for each token. It falls slowly in a healthy run; near zero, all answers
# to a prompt are alike and there is nothing left to learn from. `length` and `ended` show the cheapest hack of all: if
# labelers are a little partial to long answers, so is the reward model, and the policy grows long-winded until the
# limit cuts it. Very short is the other way out. Never judge a score without the length beside it.

# %% [markdown]
# ### Losses
#
# > **Predict.** In supervised learning the loss falls. Does the policy loss?

# %%
figure, alt = panels(
    {"policy_loss": "sd of the advantages", "value_loss": "log-odds squared", "ptx_loss": "nats a token"}
)
plots.show(figure, alt, name="ppo_losses")

# %% [markdown]
# `policy_loss` says almost nothing. Before the first step on a batch it is minus the mean of the whitened advantages,
# zero by construction, whatever the policy can do; during the update it goes a little below. Next batch, new zero.
# *Sick* is only what is far from zero. `value_loss` is an ordinary regression loss on a moving target: it falls while
# the value function catches up. If it rises for long, returns change faster than the values can follow. `ptx_loss` (of
# the run with PPO-ptx) is an ordinary language-model loss on the texts that are mixed in: flat means that nothing is
# forgotten, and that is all one asks of it.

# %% [markdown]
# ### How far each update goes
#
# > **Predict.** What must the mean ratio be near, and the fraction that is clipped: nearer to 0, to .1 or to .5?

# %%
units = {"ratio": "new over old", "clip_fraction": "share of tokens", "approx_kl": "nats a token"}
figure, alt = panels(units | {"first_ratio_error": "distance from one"})
plots.show(figure, alt, name="ppo_step_sizes")

# %% [markdown]
# These four compare the policy with *itself* at the beginning of the update, not with the reference. `ratio` should
# stay at one on average: probabilities that one token gains another loses. `clip_fraction` is how many tokens have left
# $[1 - \clipeps, 1 + \clipeps]$. *Healthy*: one to a few in a hundred, less as the learning rate falls. Zero for long:
# steps so small that the clip is idle and samples are wasted. A quarter or more: steps too large, and since the clip
# does not pull back, `approx_kl` will show how far things went. `first_ratio_error` belongs to the plumbing: it is zero
# but for rounding, or there is a bug.

# %% [markdown]
# ### The value function
#
# > **Predict.** The values begin at zero. Which share of the variance of the returns do they explain at the first
# > update, and at the last?

# %%
units = {"value": "log-odds", "return": "log-odds", "explained_variance": "share", "advantage_std": "log-odds"}
figure, alt = panels(units)
plots.show(figure, alt, name="ppo_values")

# %% [markdown]
# `value` is what was expected, `return` what the values aim at: the rewards that came, blended with the values of later
# tokens. *Healthy*: the values follow the returns at a short distance. `explained_variance` is one minus the share of
# the returns' variance that the values miss: 0 for a constant, 1 for an oracle, and *negative* for values that mislead.
# It should not reach one, since nobody can know at the first token how an answer will end; and it flatters, since for
# $\lambda < 1$ the values are part of the returns. If it stays near zero, as it may where the level of each prompt has
# been taken off beforehand, the head knows little more than a constant, and the advantages are hardly less noisy than
# the rewards: there is something to be gained from a better critic. `advantage_std`, before whitening, is the size of
# the surprises; whitening divides by it. When it becomes tiny, whitening blows noise up to full size, and it is time to
# stop.

# %% [markdown]
# ### The optimizer and the clock

# %%
units = {"gradient_norm": "before its clip", "learning_rate": "of the policy"}
units |= {"reference_seconds": "seconds an update", "update_seconds": "seconds an update"}
figure, alt = panels(units)
plots.show(figure, alt, name="ppo_optimizer")

# %% [markdown]
# `gradient_norm` is measured before it is held at the limit. *Healthy*: of one order of magnitude throughout. Single
# spikes are caught by the limit; if most updates are above it, the limit has become part of the learning rate.
# `learning_rate` should be what was asked for: a warm-up and a straight line down. The two times say where an update
# goes; they grow with the length of the answers and are the first place where long-windedness costs something.

# %% [markdown]
# ## 8. Which coefficient?
#
# In life nobody has gold. One has labelers, and few of their hours, so the coefficient is chosen by what *they* prefer:
# for each coefficient, the win rate of the last answers to the validation prompts against the SFT policy's answers,
# averaged over seeds. (Our labelers' probabilities are known, so we take these and save the noise of counting.) The
# rule: the highest win rate is chosen, whatever gold says. (InstructGPT found .01 to .02 best, and both 0 and 2 poor,
# in the unit of its own reward model.)
#
# > **Predict.** Which of the four?

# %%
crowd = annotators.crowd("helpful-base")


def against_sft(arm, seed):
    """A job: win rates (N,) of a run's last answers against its first ones, which are those of the SFT policy."""
    history = histories[arm, seed]
    columns = (history["prompts"], history["responses"][-1], history["responses"][0])
    return joblib.delayed(evaluation.win_rate)(crowd, *columns)


rates = [found.mean() for found in parallel.run(against_sft(*job) for job in wanted)]
win_rates = dict(zip(arms, np.reshape(rates, (len(arms), seeds)), strict=True))  # of (S,)
chosen_beta = max(BETAS, key=lambda beta: win_rates[key_of[beta]].mean())
CHOSEN = key_of[chosen_beta]
results.number("chosen.kl_coef", chosen_beta, "log-odds a nat")
results.table("chosen.kl_coef")

# %%
measures = {"gold": "points", "proxy": "log-odds", "kl": "nats a response", "length": "tokens"}
for name, unit in measures.items():
    results.number(f"sft.{name}", statistics.t_interval(watched(USUAL, name)[:, 0]), f"{unit}, validation")
for arm, (name, unit) in itertools.product(arms, measures.items()):
    results.number(f"{arm}.{name}", statistics.t_interval(watched(arm, name)[:, -1]), f"{unit}, validation")
for arm in arms:
    results.number(f"{arm}.win_rate", statistics.t_interval(win_rates[arm]), "share preferred to SFT, validation")
shown = {"sft": "SFT, the start", **LABELS}
rows = ["| policy | gold (points) | proxy (log-odds) | KL (nats) | length (tokens) | win rate |", "|---|" + "--:|" * 5]
for arm, label in shown.items():
    cells = [results.numbers.get(f"{arm}.{name}") for name in (*measures, "win_rate")]
    entries = [
        f"{n['value']:.2f}" + (f" ± {n['high'] - n['value']:.2f}" if n["low"] is not None else "") if n else ""
        for n in cells
    ]
    rows.append(f"| {label} | " + " | ".join(entries) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# All on validation prompts, at the end of training, with half the width of the interval over seeds. To choose the best
# of four by these numbers and then to report the same numbers would flatter it. So the chosen one is reported on *test*
# prompts, less those that happen to be among the validation prompts too. (The next notebook takes the usual
# coefficient, fixed in trial runs, whatever is chosen here: an evaluation should not depend on the outcome of another.)
#
# One rule about the penalty itself: it *works* if a larger coefficient ends with a smaller KL, for each neighboring
# pair of the four.

# %%
ends = [watched(key_of[beta], "kl")[:, -1] for beta in BETAS]
results.state(
    "penalty_holds_the_policy",
    statistics.rule(*(statistics.better(weak, strong) for weak, strong in itertools.pairwise(ends))),
    expect="holds",
    text={
        "holds": "The larger the coefficient, the smaller the KL at the end, from {beta_0.kl} nats without a penalty to "
        "{beta_0_3.kl} with the largest.",
        "fails": "That each larger coefficient ends with a smaller KL is not established: {beta_0.kl} nats without a "
        "penalty, {beta_0_03.kl}, {beta_0_1.kl} and {beta_0_3.kl} with ever larger ones.",
    },
)
results.show("penalty_holds_the_policy")

# %% [markdown]
# And one about section 5: a zero for each prompt *helps* if, with the usual coefficient, gold at the end is better than
# with raw scores.

# %%
results.state(
    "zero_per_prompt_helps",
    statistics.better(watched(USUAL, "gold")[:, -1], watched("raw", "gold")[:, -1]),
    expect="better",
    text={
        "better": "A zero for each prompt is worth {difference} points of gold: {beta_0_1.gold} at a KL of {beta_0_1.kl} "
        "nats, against {raw.gold} at {raw.kl} with raw scores.",
        "inconclusive": "Whether a zero for each prompt helps is inconclusive: {difference} points of gold.",
        "worse": "A zero for each prompt costs gold: {difference} points.",
    },
)
results.show("zero_per_prompt_helps")

# %% [markdown]
# The figure lays all runs over each other: not against time but against the KL that they have spent, which is the price
# of whatever was gained.
#
# > **Predict.** On the left what was optimized, on the right the truth. Do the runs share one curve? Which of them
# > bends down on the right?

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), sharex=True)
for index, (arm, label) in enumerate(LABELS.items()):
    look = {"color": plots.COLORS[index], "linestyle": plots.LINES[index % 4], "marker": "os^Dv*P"[index]}
    for axis, name in zip(axes, ("proxy", "gold"), strict=True):
        axis.plot(watched(arm, "kl").mean(axis=0), watched(arm, name).mean(axis=0), **look, label=label, markersize=5)
        axis.plot(
            watched(arm, "kl")[:, -1], watched(arm, name)[:, -1], ".", color=look["color"], markersize=3, alpha=0.6
        )
        axis.set_xlabel("KL from the SFT policy (nats a response)", fontsize="small")
axes[0].set_ylabel("proxy: the score (log-odds)")
axes[1].set_ylabel("gold: the truth (points)")
axes[0].legend(fontsize="x-small")
figure.tight_layout()
ends = "; ".join(
    f"{label} {watched(arm, 'kl')[:, -1].mean():.2f} nats, proxy {watched(arm, 'proxy')[:, -1].mean():.2f}, "
    f"gold {watched(arm, 'gold')[:, -1].mean():.2f}"
    for arm, label in LABELS.items()
)
alt = f"""Proxy and gold on validation prompts against the KL from the SFT policy, a line for each run from the start (gold
{watched(USUAL, "gold")[:, 0].mean():.2f}) over each quarter of training, means over seeds ({seeds}); dots are the ends of single seeds. At the end: {ends}."""
plots.show(figure, alt, name="ppo_frontier")

# %% [markdown]
# The run with gold as its reward shows what the same trainer makes of its nats when nothing is mismeasured. Where it
# and another line pass the same KL, the gap is roughly what the reward model's errors cost. It is no upper bound, and
# its coefficient is another price: points a nat, not log-odds a nat.

# %% [markdown]
# ## 9. Is it better?
#
# The chosen policy and the SFT policy answer the test prompts. The rule: PPO *beats SFT* if the chosen policy's gold is
# better.


# %%
def tested(policy, run, seed):
    """Answers with gold rewards and scores to the test prompts that are not validation prompts as well."""
    answers = recipes.policy_answers(policy, run, validation, size.test_prompts // 2, seed)["held_out"]
    seen = set(recipes.held_out_prompts(validation, seed, "validation"))
    new = [place for place, prompt in enumerate(answers["prompts"]) if prompt not in seen]
    answers = {name: [column[place] for place in new] for name, column in answers.items()}
    judge = recipes.instruct_reward_model(size.rung, size.demonstrations, size.ranking_prompts, seed)
    scorers = {"gold": recipes.gold_helpfulness, "proxy": recipes.proxy_of(judge, recipes.base(size.rung)[1])}
    columns = answers["prompts"], answers["responses"]
    return answers | {name: np.mean(scorer(*columns)) for name, scorer in scorers.items()}


rivals = {"sft": ("sft", plain), "chosen": ("ppo", arms[CHOSEN])}
jobs = list(itertools.product(rivals, range(seeds)))
found = parallel.run(joblib.delayed(tested)(*rivals[name], seed) for name, seed in jobs)
answers = dict(zip(jobs, found, strict=True))
test = {
    (name, of): np.array([answers[name, s][of] for s in range(seeds)]) for name in rivals for of in ("gold", "proxy")
}
for (name, of), values in test.items():
    results.number(f"test.{name}.{of}", statistics.t_interval(values), f"{measures[of]}, test prompts")

# %%
results.state(
    "ppo_beats_sft",
    statistics.better(test["chosen", "gold"], test["sft", "gold"]),
    expect="better",
    text={
        "better": "PPO raises gold on test prompts from {test.sft.gold} to {test.chosen.gold}, by {difference}.",
        "inconclusive": "Whether PPO raises gold on test prompts is inconclusive: {difference}, from {test.sft.gold}.",
        "worse": "PPO lowers gold on test prompts: {difference}, from {test.sft.gold} to {test.chosen.gold}.",
    },
)
results.show("ppo_beats_sft")

# %% [markdown]
# And the labelers' verdict on the same answers:

# %%
columns = [(answers["chosen", s], answers["sft", s]) for s in range(seeds)]
on_test = [evaluation.win_rate(crowd, a["prompts"], a["responses"], b["responses"]).mean() for a, b in columns]
results.number("test.chosen.win_rate", statistics.t_interval(on_test), "share preferred to SFT, test prompts")
results.table("test.chosen.win_rate")

# %% [markdown]
# ### Too much of a good thing
#
# A policy is *over-optimized* if going on has made it worse by the truth and better by the score. That is a matter of
# one run, not of two: its gold falls from a peak while its score goes on rising. The rule for the run without a penalty
# has three parts: gold at its peak is better than at the end; the score at the end is better than at that peak; and
# gold at the end is worse than with the usual coefficient, or the missing penalty would not be to blame. If gold does
# not fall, the run is too short to over-optimize; if gold and score fall together, it is broken and not over-optimized.
# That the score ends above that of the *other* run is not required: a policy without a penalty may also be the worse
# optimizer. (One half of the validation prompts finds the peak of each seed, and the other half measures it: found and
# measured on the same prompts, a peak looks higher than it is. Neither coefficient was chosen on these prompts.)

# %%
loose = {name: np.array([histories[LOOSE, seed][name] for seed in range(seeds)]) for name in ("gold", "proxy")}
peak = loose["gold"][:, :, ::2].mean(axis=2).argmax(axis=1)  # (S,), where gold is highest in each seed
reported = {name: values[:, :, 1::2].mean(axis=2) for name, values in loose.items()}  # (S, E), on the other half
at_peak = {name: values[np.arange(seeds), peak] for name, values in reported.items()}
falls = statistics.better(at_peak["gold"], reported["gold"][:, -1])
climbs = statistics.better(reported["proxy"][:, -1], at_peak["proxy"])
protects = statistics.better(watched(USUAL, "gold")[:, -1], watched(LOOSE, "gold")[:, -1])
results.number("no_kl.gold_fall", falls.difference, "points of gold, peak minus end")
results.number("no_kl.proxy_rise", climbs.difference, "log-odds, end minus gold peak")
results.number("no_kl.gold_lost", protects.difference, "points of gold at the end, usual coefficient minus none")
print("gold peak after", [evaluations[e] for e in peak], "of", evaluations[-1], "updates")
results.table("no_kl.gold_fall", "no_kl.proxy_rise", "no_kl.gold_lost")

# %%
results.state(
    "no_kl_over_optimises",
    statistics.rule(falls, climbs, protects),
    expect="holds",
    text={
        "holds": "Without a penalty gold falls by {no_kl.gold_fall} from its peak while the score rises by "
        "{no_kl.proxy_rise}, and gold ends {no_kl.gold_lost} below the run with the usual coefficient.",
        "fails": "That the run without a penalty over-optimizes is not established. Gold, peak minus end: "
        "{no_kl.gold_fall}; score, end minus that peak: {no_kl.proxy_rise}; gold at the end, usual coefficient minus "
        "none: {no_kl.gold_lost}.",
    },
)
results.show("no_kl_over_optimises")

# %% [markdown]
# ### Samples beside the curve
#
# Curves say that something happened; only the answers say what. First the curves of the chosen policy and of the one
# without a penalty, on validation prompts.

# %%
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.0))
pair = dict.fromkeys((CHOSEN, LOOSE))
for index, arm in enumerate(pair):
    for axis, name in zip(axes, ("proxy", "gold"), strict=True):
        plots.curve_with_band(axis, evaluations, watched(arm, name), LABELS[arm], index)
        axis.set_xlabel("updates")
axes[0].set_ylabel("proxy (log-odds)")
axes[1].set_ylabel("gold (points)")
axes[0].legend(fontsize="small")
figure.tight_layout()
words = "; ".join(
    f"{LABELS[arm]}: proxy {', '.join(f'{v:.2f}' for v in watched(arm, 'proxy').mean(axis=0))}, "
    f"gold {', '.join(f'{v:.2f}' for v in watched(arm, 'gold').mean(axis=0))}"
    for arm in pair
)
alt = f"""Proxy and gold on validation prompts at the start and after each quarter of training, means over seeds ({seeds}) with 95 %
bands where there are several. {words}."""
plots.show(figure, alt, name="ppo_gold_and_proxy")

# %% [markdown]
# And the answers of the first seed to two questions for advice, drawn by chance, at the start, in the middle and at the
# end.
#
# > **Predict.** What would you do to please this reward model, if nothing held you back?


# %%
def clean(text):
    """A text on one line of a table."""
    return " ".join(text.split()).replace("|", "/")


start = histories[LOOSE, 0]
asks = [
    i for i, p in enumerate(start["prompts"]) if p.count("Human:") == 1 and isinstance(subject(p), Topic)
]  # one turn
rows = ["| update | answer | gold | proxy | log-ratio | tokens |", "|---|---|--:|--:|--:|--:|"]
for place in random.Random(0).sample(asks, 2):
    asked = clean(start["prompts"][place].replace("Human:", "").replace("Assistant:", ""))
    rows.append(f"| **asked** | **{asked}** | | | | |")
    for arm, e in itertools.product(pair, (0, len(evaluations) // 2, len(evaluations) - 1)):
        history = histories[arm, 0]
        if e or arm == CHOSEN:  # both begin with the same answer
            numbers = " | ".join(f"{history[name][e][place]:.2f}" for name in ("gold", "proxy", "kl"))
            label = f"{evaluations[e]}, {LABELS[arm]}" if e else "0, SFT"
            rows.append(
                f"| {label} | {clean(history['responses'][e][place])} | {numbers} | {history['length'][e][place]:.0f} |"
            )
Markdown("\n".join(rows))

# %% [markdown]
# Read the two blocks line by line, and compare *proxy* with *gold*. Where the score rises and gold does not, look for
# what the later answer has more of: words, tips that belong to another topic, politeness, the same tip twice. Two
# questions prove nothing; they give you an idea of what to count, and the next notebook counts.

# %% [markdown]
# ## 10. A coefficient that adapts
#
# Ziegler et al. (2019) fix the KL that they are willing to spend and let the coefficient find itself: after each batch
# of $n$ episodes,
#
# $$ \klcoef \leftarrow \klcoef \cdot \Big(1 + \operatorname{clip}\Big(\frac{\KL}{\text{target}} - 1, -0.2, 0.2\Big) \cdot \frac{n}{\text{horizon}}\Big) . $$
#
# By hand: a KL of twice the target, 256 episodes, a horizon of 10,000. The error is 1, clipped to .2, and .2 times
# .0256 is .00512, so the coefficient is multiplied by 1.00512.

# %%
controller = ppo.AdaptiveKL(coef=1.0, target=6.0, horizon=10_000)
controller.update(kl=12.0, episodes=256)
print(f"times {controller.coef:.5f}; to double at this pace takes {np.log(2) / np.log(controller.coef):.0f} updates")
assert np.isclose(controller.coef, 1 + 0.2 * 256 / 10_000)

# %% [markdown]
# It is a patient controller: the horizon is the number of episodes over which a coefficient can change by a fifth. What
# would it have made of our run? We show it the KL that the run with the usual coefficient wrote down, with targets of
# twice the KL at the end and of half of it. (In a run that it steers, the KL would answer; here we only see which way
# it pushes, and how hard.)

# %%
kls = logged(USUAL, "kl").mean(axis=0)  # (U,)
rows = ["| target (nats) | horizon (episodes) | coefficient at the end |", "|--:|--:|--:|"]
for share, horizon in itertools.product((2.0, 0.5), (10_000, 1_000)):
    controller = ppo.AdaptiveKL(recipes.KL_COEF, target=max(share * kls[-1], 0.01), horizon=horizon)
    for kl in kls:
        controller.update(kl, size.ppo_batch)
    rows.append(f"| {controller.target:.2f} | {horizon:,} | {recipes.KL_COEF:g} → {controller.coef:.4f} |")
Markdown("\n".join(rows))

# %% [markdown]
# A run shorter than the horizon cannot move the coefficient by more than about a fifth. A controller pays where runs
# are long and nobody knows the right coefficient beforehand: it is easier to say how many nats one wants to spend than
# what a nat should cost. It does *not* know what the right number of nats is. For runs that are cheap, to try four
# coefficients and ask labelers, as in section 8, answers the real question.

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The slides on InstructGPT (2024) print as their third algorithm a step of policy gradient
# without clip, value function and advantage estimation, and call it PPO; the pretraining batch that its objective needs
# is not among its inputs; and the printed objective has the KL term outside the expectation over the policy's answers,
# where it cannot be what the InstructGPT paper optimizes (its equation 2 has it inside). Section 3 lists what each of
# these costs.

# %% [markdown]
# ## Exercises
#
# **1.** In the table of section 2, set $\lambda = 0$, then $\lambda = 1$ (`lam=...` among the arguments of
# `PPOConfig`). Which tokens lose and which gain advantage, and what does the value head have to do with it?
#
# <details><summary>Hint</summary>
#
# With $\lambda = 1$ the values between cancel: each advantage is the sum of the rewards to come minus one value.
#
# </details>
#
# <details><summary>Answer</summary>
#
# With $\lambda = 1$ nearly all advantages are alike: the score, less the KL still to pay, less the value at that token.
# With $\lambda = 0$ only the last token sees the score, and all others see their own KL and how the (random) value head
# changes from token to token. In the first update, when the head and the KL are zero, all tokens but the last would
# have the advantage zero (after whitening, one common number, which on average teaches nothing).
#
# </details>
#
# **2.** A colleague adds $\klcoef$ times the mean log-ratio of the batch to the *loss* instead of taking it from the
# rewards. What will the KL curve look like?
#
# <details><summary>Hint</summary>
#
# *From policy gradient to PPO*, section 9.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Like that of the run without a penalty, or steeper. Before the first step on a batch the gradient of that loss is zero
# on average, so it is noise. In later steps the samples are those of an older policy, and to lower their
# log-probabilities drives the policy away from it, with no clip to stop that. The score curve may look fine, so this
# bug lives long.
#
# </details>
#
# **3.** You get a log with `score` rising, `kl` at 0.000 throughout, and `clip_fraction` at a few in a hundred.
# What do you ask first?
#
# <details><summary>Answer</summary>
#
# Whether the reference is a copy. The clip fraction says that the weights move; if reference and policy are the same
# object, the log-ratio is zero for ever and no penalty is paid. (The trainer of the course refuses that: try it.) Were
# `clip_fraction` zero as well, the first question would be whether any weight moves at all.
#
# </details>
#
# **4.** The KL coefficient was chosen by labelers who are a little partial to long answers. What does that do to the
# choice, and how would you find out?
#
# <details><summary>Hint</summary>
#
# The reward model learned from the same labelers.
#
# </details>
#
# <details><summary>Answer</summary>
#
# The choice shares the reward model's partiality, so it leans to too small a coefficient: what pleases the faults of
# the reward model also pleases the judges. Choose by `annotators.held_out_crowd()` in section 8, whose labelers are not
# partial, and see whether another coefficient wins; or compare the win rates among answers of equal length.
#
# </details>
#
# **5.** Why is `ptx_loss` not part of `objective`, and could PPO-ptx end with a higher score than plain PPO?
#
# <details><summary>Answer</summary>
#
# The objective is what the episodes earn; the pretraining texts are no episodes. It could: the term keeps weights in
# place that the policy needs for good sentences, and a policy that stays sane can be pushed further. The InstructGPT
# paper reports that without the term learning rates above 8.05e-6 diverged.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. (2022), *Training language models to follow instructions with human feedback* (InstructGPT), [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): section 3.5 and appendices C.4 and E.
# - Ziegler et al. (2019), *Fine-tuning language models from human preferences*, [arXiv 1909.08593](https://arxiv.org/abs/1909.08593): the KL in the reward, the adaptive coefficient.
# - Stiennon et al. (2020), *Learning to summarize from human feedback*, [arXiv 2009.01325](https://arxiv.org/abs/2009.01325): what a long run against a reward model does to summaries.
# - Gao, Schulman and Hilton (2022), *Scaling laws for reward model overoptimization*, [arXiv 2210.10760](https://arxiv.org/abs/2210.10760): gold and proxy against KL.
# - Huang et al. (2024), *The N+ implementation details of RLHF with PPO*, [arXiv 2403.17031](https://arxiv.org/abs/2403.17031).
# - Schulman et al. (2017), *Proximal policy optimization algorithms*, [arXiv 1707.06347](https://arxiv.org/abs/1707.06347).
