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
# # The library route: the same task with TRL
#
# **Which of TRL's trainers makes the most of a given number of generated tokens, and why do its logs look so odd?**
#
# So far the course has trained with loops of its own, so that you could read them. In practice most people call a
# library, and the library is TRL. This notebook takes the task of the last one, to make a small model's answers more
# helpful, and gives it to five of the trainers that TRL maintains: those for supervised fine-tuning, reward models,
# DPO, RLOO and GRPO. For each we first make sure that it computes what we think it computes, on the same tokens, to the
# last digits. Then all methods, and our PPO, get the same number of tokens to generate, and the miniature world says
# what came of them. And four questions that everybody asks who reads a trainer's log for the first time are answered by
# running code.

# %% [markdown]
# ## What you will learn
#
# - what TRL offers today, what happened to its PPO, and which of its defaults do not suit a small computer;
# - five habits of a trainer that raise no error and change the result;
# - DPO's loss and the advantages of RLOO and GRPO, by hand and against TRL;
# - to compare methods at equal cost, and what "equal" leaves out;
# - why a GRPO loss is 0, why both rewards of DPO fall, whether to sum or to average log-probabilities, and why a KL can
#   be negative.

# %% [markdown]
# ## What you should know
#
# The task, its template and its reward model (*Making a language model more helpful with PPO*, sections 2 to 4), the
# policy gradient with a baseline (*Reinforcement learning basics*) and the KL estimators (*From policy gradient to
# PPO*, section 8).

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
import math
import tempfile
from dataclasses import replace

import datasets
import joblib
import numpy as np
import torch
import transformers
from datasets import Dataset
from IPython.display import Markdown
from matplotlib import pyplot as plt
from scipy import stats
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

# %%
from rlhf_lab import (
    claims,
    dpo,
    instructions,
    library,
    parallel,
    plots,
    preferences,
    recipes,
    reward_model,
    rloo,
    sft,
    trl_losses,
)
from rlhf_lab.language_model import load_base, response_log_probabilities
from rlhf_lab.profiles import Profile
from rlhf_lab.statistics import better, bootstrap_interval, equivalent, rule, t_interval

datasets.disable_progress_bars()
transformers.utils.logging.disable_progress_bar()
size = Profile.load(profile)
results = claims.Claims("41_library_route", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats everything after the base model: the policy that all methods start from, the reward model, the
# instructions, every training and the answers that are judged. It is the unit in which we count evidence, and square
# brackets hold 95 % intervals over seeds. Rules stand above the cells that decide them and were fixed before the
# published run; settings and expectations come from trial runs with other seeds. One seed decides nothing, so the
# published verdict is then shown beside it.


# %%
SEEDS = range(seeds)


def record(key, values, unit):
    """Record the interval over seeds of one number per seed, and hand the numbers back: (S,)."""
    results.number(key, t_interval(values), unit)
    return np.array(values)


def verdict(*conditions):
    """Whether all conditions hold; one seed decides nothing."""
    return rule(*conditions) if seeds > 1 else "not decided"


# %% [markdown]
# ## 1. What TRL maintains, and what it dropped
#
# TRL ("transformer reinforcement learning") is Hugging Face's library for everything that comes after pretraining. Its
# trainers are transformers' `Trainer` with another loss and another reading of the data. What the installed version
# promises to keep:

# %%
import trl

PURPOSE = {
    "SFTTrainer": ("prompt, completion", "imitates the completions"),
    "RewardTrainer": ("prompt, chosen, rejected", "a head that scores texts, by the pairwise loss"),
    "DPOTrainer": ("prompt, chosen, rejected", "a policy from comparisons, without a reward model"),
    "KTOTrainer": ("prompt, completion, good or bad", "a policy from single judgments"),
    "RLOOTrainer": ("prompts, a reward function", "policy gradient, leave-one-out baseline, KL in the reward"),
    "GRPOTrainer": ("prompts, a reward function", "the same with normalized advantages, KL in the loss"),
    "DistillationTrainer": ("prompts, a teacher", "imitates a larger model"),
}
rows = [f"TRL {trl.__version__}:\n", "| trainer | learns from | what it does |", "|---|---|---|"]
for name in sorted(name for name in dir(trl) if name.endswith("Trainer")):
    rows.append(f"| `{name}` | " + " | ".join(PURPOSE.get(name, ("", ""))) + " |")
print("PPO among them:", hasattr(trl, "PPOTrainer"))
Markdown("\n".join(rows))

# %% [markdown]
# ### What happened to PPO
#
# | when | version | what |
# |---|---|---|
# | until summer 2024 | up to 0.10 | `PPOTrainer` with `generate` and `step(queries, responses, scores)`: you write the loop, any number may be a score |
# | September 2024 | 0.11 | this interface is deprecated ([#2016](https://github.com/huggingface/trl/pull/2016)); 0.11.4 of October is the last to have it |
# | November 2024 | 0.12 | its successor `PPOv2Trainer` takes the name: it runs the loop itself, and wants reward and value *models* that read the policy's tokens |
# | November 2025 | | moved to `trl.experimental`, where anything may break in any release ([#4482](https://github.com/huggingface/trl/pull/4482)) |
# | February 2026 | | the old name is gone from the top level ([#5051](https://github.com/huggingface/trl/pull/5051)) |
# | 2026 | 1.13 | deleted ([#7020](https://github.com/huggingface/trl/pull/7020)); 1.12 is the last version with a PPO |
#
# Users asked for what the successor no longer had: a plain function as the reward
# ([#2518](https://github.com/huggingface/trl/issues/2518), [#3093](https://github.com/huggingface/trl/issues/3093)),
# and a reward model with a tokenizer of its own ([#1674](https://github.com/huggingface/trl/issues/1674)), which is our
# task. The newer trainers do take any function. Their lesson is that much of PPO can be left out; whether it should be
# is what section 5 asks. The course keeps a PPO of its own, because it is the method to be understood here, and because
# its numbers have to be the same next year.
#
# ### Defaults
#
# A library's defaults are those of its usual user: a large model, a GPU. What they are, read off the configurations,
# and what this notebook uses (`rlhf_lab.library`):

# %%
RATES = [config.learning_rate for config in (library.OnlineConfig, library.GRPO, dpo.DPOConfig)]
OURS = {
    "bf16": "False: half precision is slow on a CPU",
    "gradient_checkpointing": "False: it saves memory that we have, at the price of time",
    "learning_rate": f"{RATES[0]:g} RLOO, {RATES[1]:g} GRPO, {RATES[2]:g} DPO: small models stand more",
    "disable_dropout": "True: the policy that learns is the one that answered",
    "beta": f"{recipes.KL_COEF:g}",
    "num_generations": library.OnlineConfig.group,
    "max_completion_length": recipes.LIBRARY_ANSWER,
}
with tempfile.TemporaryDirectory() as folder:  # a configuration makes its output folder
    kinds = [getattr(trl, f"{kind}Config")(folder, use_cpu=True) for kind in ("SFT", "Reward", "DPO", "RLOO", "GRPO")]
rows = ["| setting | SFT | reward | DPO | RLOO | GRPO | here |", "|---|" + "--|" * 6]
for name, ours in OURS.items():
    rows.append(f"| `{name}` | " + " | ".join(str(getattr(kind, name, "")) for kind in kinds) + f" | {ours} |")
Markdown("\n".join(rows))

# %% [markdown]
# Without `use_cpu=True` these lines would have stopped with an error on a machine without a GPU, which is the pleasant
# kind of trap. The others do not stop.
#
# **Trap 1: the reference is not the policy that you passed.** An online trainer gets a policy and makes the reference
# itself, from the folder or the Hub name that the policy *once was read from*. Here a policy is read, then changed (as
# by fine-tuning), then given to the trainer:


# %%
def distance(one, other):
    """The largest difference between two models' weights."""
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


policy, tokenizer = load_base("0.2M")
with torch.no_grad():
    for weights in policy.parameters():
        weights += 0.01
asked = Dataset.from_list([{"prompt": "Why?"}] * 4)
quiet = {"use_cpu": True, "bf16": False, "report_to": "none"}
with tempfile.TemporaryDirectory() as folder:
    settings = trl.RLOOConfig(folder, beta=0.1, **quiet)
    trainer = trl.RLOOTrainer(policy, lambda **_: [0.0], args=settings, train_dataset=asked, processing_class=tokenizer)
print(f"reference to the policy that was passed: {distance(trainer.ref_model, policy):.3f}")
print(f"reference to the base model: {distance(trainer.ref_model, load_base('0.2M')[0]):.3f}")

# %% [markdown]
# All KLs of such a run are distances to the wrong model, and its penalty pulls there. (A model that was never read from
# anywhere, whose name is empty, gives an error about a repository id.) The remedy: save the policy, and read it from
# there. `DPOTrainer` takes the reference as an argument.
#
# **Trap 2: what is too long goes away.** `RewardTrainer` leaves out every pair with a text longer than `max_length`,
# and says so only in its progress bar:

# %%
pairs = [{"prompt": "Why?", "chosen": " Because." * n, "rejected": " So."} for n in (1, 2, 20, 40)]
judge = reward_model.from_language_model(load_base("0.2M")[0], seed=0)
with tempfile.TemporaryDirectory() as folder:
    settings = trl.RewardConfig(folder, max_length=32, **quiet)
    of = Dataset.from_list(pairs)
    trainer = trl.RewardTrainer(judge, args=settings, train_dataset=of, processing_class=tokenizer)
print(len(pairs), "pairs,", len(trainer.train_dataset), "are trained on")

# %% [markdown]
# The long ones are not any pairs: a reward model that never sees them learns nothing about length where it matters.
#
# **Trap 3: the pad token is the end token.** Many tokenizers have no pad token, and everybody's remedy is `pad = eos`.
# `transformers` reads a score at the last token that is no pad. If the end token is one, it reads one token too early,
# in training and afterwards:

# %%
text = torch.tensor([tokenizer("Why? Because.")["input_ids"] + [tokenizer.eos_token_id]])  # (1, T)
with torch.inference_mode():
    every = judge.score(judge.base_model(text).last_hidden_state)[0, :, 0]  # (T,), the score at each token
    for name, pad in (("a token of its own", tokenizer.pad_token_id), ("the end token", tokenizer.eos_token_id)):
        judge.config.pad_token_id = pad
        score = judge(text, attention_mask=torch.ones_like(text)).logits.item()
        place = (every - score).abs().argmin().item() + 1
        print(f"pad token is {name}: the score is read at token {place} of {len(every)}")

# %% [markdown]
# **Trap 4: prompts padded on the left, and nobody says where they begin.** The online trainers pad prompts to one
# length, on the left, and (in the versions 1.12 to 1.16) do not tell the model where the text begins. A model that
# counts positions from the left, such as GPT-2, then gives other probabilities than those with which the answers were
# drawn. **Trap 5: dropout stays on** in the online trainers, unless it is switched off: the policy that learns is not
# the one that answered. Trap 4 returns in section 4; `rlhf_lab.library` knows all five.

# %% [markdown]
# ## 2. The same step as ours: SFTTrainer and RewardTrainer
#
# Does `SFTTrainer` compute the loss of *InstructGPT, step 1*: the mean over the tokens of the responses, end token
# included, prompts carrying none? The first loss of a training is that of the untrained model on the first batch, so
# with a single batch both must report the same number. It is also what we can compute by hand.

# %%
base, tokenizer = recipes.base(size.rung)
tokenizer.eos_token = instructions.END
shown = instructions.demonstrations(recipes.best_demonstrations(40, "train", 0))[:16]
one_epoch = sft.SFTConfig(epochs=1)
encoded = [(tokenizer(p)["input_ids"], tokenizer(r)["input_ids"] + [tokenizer.eos_token_id]) for p, r in shown]
with torch.inference_mode():
    log_probs, mask = response_log_probabilities(base, *zip(*encoded, strict=True))  # (B, R) each
by_hand = -(log_probs.sum() / mask.sum()).item()
ours = sft.train(copy.deepcopy(base), tokenizer, shown, one_epoch, seed=0)[0]
theirs = library.fine_tune(copy.deepcopy(base), tokenizer, shown, one_epoch, seed=0)[0]
print(f"by hand {by_hand:.5f}, ours {ours:.5f}, TRL {theirs:.5f} nats a token")
assert max(abs(by_hand - ours), abs(by_hand - theirs)) < 1e-4

# %% [markdown]
# And `RewardTrainer` that of *Reward models*: $-\log \sigmoid(\rmodel(\prompt, \respw) - \rmodel(\prompt, \respl))$,
# averaged over pairs, each score read at the end token?

# %%
pairs = recipes.preference_pairs("helpful", "train", 16, seed=0)
once = reward_model.RewardModelConfig()
judge = reward_model.from_language_model(base, seed=0)
margins = torch.tensor(reward_model.margins(judge, tokenizer, pairs))  # (B,)
by_hand = torch.log1p(torch.exp(-margins)).mean().item()
ours = reward_model.train(copy.deepcopy(judge), tokenizer, pairs, once, seed=0)[0]
theirs = library.fit_reward_model(copy.deepcopy(judge), tokenizer, pairs, once, seed=0)[0]
print(f"by hand {by_hand:.5f}, ours {ours:.5f}, TRL {theirs:.5f} nats")
assert max(abs(by_hand - ours), abs(by_hand - theirs)) < 1e-4

# %% [markdown]
# What is left to differ are the batches (both draw them at random, from other generators) and the few texts that are
# too long, which TRL leaves out or cuts at the other end. So trainings from the same weights, on the same data, must
# come out alike but for that. A small run of each, held against ours. Two things count as the same if they differ by
# less than the margin, which was fixed beforehand: .02 nats a token of a held-out demonstration (2 % of perplexity),
# and .03 of the held-out comparisons. The second margin is as wide as it is because other batches alone move an
# accuracy.

# %%
TRAINERS = ("ours", "trl")
tuned = [
    joblib.delayed(recipes.fine_tuned_by)(trainer, size.rung, size.shown_demonstrations, seed)
    for trainer, seed in itertools.product(TRAINERS, SEEDS)
]
fitted = [
    joblib.delayed(recipes.fitted_by)(trainer, size.rung, size.ablation_pairs, size.test_pairs, seed)
    for trainer, seed in itertools.product(TRAINERS, SEEDS)
]
found = iter(parallel.run(tuned + fitted))
peers = {task: {trainer: [next(found) for _ in SEEDS] for trainer in TRAINERS} for task in ("sft", "reward")}

# %%
held_out = [recipes.preference_pairs("helpful", "test", size.test_pairs, seed) for seed in SEEDS]
longer = [np.mean([preferences.longer_wins(**row) for row in rows]) for rows in held_out]
record("audit.longer_wins.held_out", longer, "share of held-out pairs, chosen is longer")
nats, right = {}, {}
for name in TRAINERS:
    nats[name] = record(f"sft.nats.{name}", [f["nats"] for f in peers["sft"][name]], "nats a held-out token")
    shares = [np.mean(f["right"]) for f in peers["reward"][name]]
    right[name] = record(f"accuracy.{name}.held_out", shares, "share of held-out pairs")
results.table(
    "sft.nats.ours", "sft.nats.trl", "audit.longer_wins.held_out", "accuracy.ours.held_out", "accuracy.trl.held_out"
)

# %%
for key, values, margin, what, numbers in (
    ("sft_trainer_equals_ours", nats, 0.02, "fine-tuning, in nats a token", ("sft.nats.trl", "sft.nats.ours")),
    (
        "reward_trainer_equals_ours",
        right,
        0.03,
        "a reward model, in accuracy",
        ("accuracy.trl.held_out", "accuracy.ours.held_out"),
    ),
):
    beside = f"TRL minus ours in {what}: {{difference}}, margin {{margin}}; {{{numbers[0]}}} against {{{numbers[1]}}}."
    results.state(
        key,
        equivalent(values["trl"], values["ours"], margin),
        expect="equivalent",
        text={
            "equivalent": f"The same. {beside}",
            "inconclusive": f"Whether they are the same is inconclusive. {beside}",
            "different": f"Not the same. {beside}",
        },
    )
results.show("sft_trainer_equals_ours", "reward_trainer_equals_ours")

# %% [markdown]
# ## 3. DPO: a reward model with the policy in its place
#
# PPO maximizes $J = \E[r] - \klcoef \KL(\pi \,\Vert\, \policyref)$. The best policy is known in closed form, and can be
# solved for the reward:
#
# $$ \pi^*(\resp \mid \prompt) = \frac{1}{Z(\prompt)} \, \policyref(\resp \mid \prompt) \, e^{r(\prompt, \resp) / \klcoef}
#    \qquad \Longrightarrow \qquad
#    r(\prompt, \resp) = \klcoef \log \frac{\pi^*(\resp \mid \prompt)}{\policyref(\resp \mid \prompt)} + \klcoef \log Z(\prompt) $$
#
# So each policy is the best one for some reward, its *implicit reward*. The last term is the same for all answers to a
# prompt and cancels in a comparison. On three answers:

# %%
beta, reference = 0.5, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
reward = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
best = reference * torch.exp(reward / beta)
best = best / best.sum()
implicit = beta * torch.log(best / reference)
print("best policy:    ", best.numpy().round(4))
print("implicit reward:", implicit.numpy().round(4), " differences:", implicit.diff().numpy().round(4))
assert torch.allclose(implicit.diff(), reward.diff())

# %% [markdown]
# Now put the implicit reward into the loss of a reward model, and train the *policy*:
#
# $$ \loss_{\text{DPO}}(\theta) = - \E_{(\prompt, \respw, \respl)} \log \sigmoid\Big(
#      \klcoef \log \frac{\policy(\respw \mid \prompt)}{\policyref(\respw \mid \prompt)}
#    - \klcoef \log \frac{\policy(\respl \mid \prompt)}{\policyref(\respl \mid \prompt)} \Big) $$
#
# Two pairs by hand. Log-probabilities are those of whole answers. In the first pair the policy has moved towards the
# chosen answer by 1 nat and away from the rejected one by 1; in the second it has not moved.

# %%
chosen, rejected = torch.tensor([-4.0, -6.0], requires_grad=True), torch.tensor([-9.0, -3.0], requires_grad=True)
reference_chosen, reference_rejected = torch.tensor([-5.0, -6.0]), torch.tensor([-8.0, -3.0])
margin = 0.5 * (chosen - reference_chosen) - 0.5 * (rejected - reference_rejected)  # (2,)
losses = -torch.nn.functional.logsigmoid(margin)
print("margins:", margin.tolist(), " losses:", losses.detach().numpy().round(4))
loss = dpo.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=0.5)
assert torch.isclose(loss, losses.mean()) and math.isclose(losses[1].item(), math.log(2), rel_tol=1e-6)
loss.backward()
print("gradient by the chosen log-probabilities:", chosen.grad.numpy().round(4))
assert torch.allclose(chosen.grad, -0.5 * torch.sigmoid(-margin) / 2)

# %% [markdown]
# The gradient pushes the two answers of a pair apart by $\klcoef$ times the probability that the label is wrong
# (according to the policy): pairs that are settled push no more.
#
# ### Against TRL, to the last digits
#
# We let `DPOTrainer` take a step and note what passes through it: the tokens it read, its loss, its gradient, its logs.
# Then we compute the same from these tokens with `rlhf_lab.dpo`. A policy and another one as its reference, both
# untrained, speak a language of twelve words, in which a log-probability is a small number that single precision knows
# to the sixth digit.


# %%
def tiny(seed):
    """An untrained GPT-2 with a vocabulary of twelve words."""
    torch.manual_seed(seed)
    none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    sizes = {"vocab_size": len(WORDS), "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **none, **ends, initializer_range=0.3)).eval()


WORDS = ["<pad>", "<eos>", "who", "feeds", "the", "cat", "not", "fish", "daily", "she", "does", "always"]
words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
speaker = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
TOLD = [
    {"prompt": "who feeds the cat", "chosen": " she always does daily", "rejected": " not she"},
    {"prompt": "who does", "chosen": " she", "rejected": " the cat does not feed the fish daily"},
    {"prompt": "feeds the cat fish", "chosen": " daily fish", "rejected": " the fish does"},
]


# %%
def whole(model, step):
    """Log-probabilities (B,) of the responses of a step of TRL, and their lengths (B,)."""
    values, mask = response_log_probabilities(model, step.prompts, step.responses)
    return values.sum(dim=1), mask.sum(dim=1)


def gradient_of(loss, model):
    """By all weights, (P,)."""
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def dpo_apart(mean):
    """The largest differences of loss, rewards and gradient between TRL's step and ours."""
    policy, reference = tiny(3), tiny(4)
    kind = {"loss_type": ["sigmoid_norm"]} if mean else {}
    step = trl_losses.dpo_step(policy, reference, speaker, TOLD, beta=0.1, **kind)
    (totals, lengths), fixed = whole(policy, step), whole(reference, step)[0].detach()
    scale = lengths if mean else 1
    loss = dpo.dpo_loss(*(totals / scale).chunk(2), *(fixed / scale).chunk(2), beta=0.1)
    rewards = dpo.implicit_rewards(totals.detach(), fixed, beta=0.1).chunk(2)
    logged = (step.logs["rewards/chosen"], step.logs["rewards/rejected"])  # of sums, whatever the loss
    apart = [abs(ours.mean().item() - theirs) for ours, theirs in zip(rewards, logged, strict=True)]
    return [abs(loss.item() - step.loss), max(apart), (gradient_of(loss, policy) - step.gradient).abs().max().item()]


# %%
by_sum, by_mean = dpo_apart(mean=False), dpo_apart(mean=True)
for name, *values in zip(("loss", "rewards", "gradient"), by_sum, by_mean, strict=True):
    print(f"{name}: apart by {values[0]:.1e}; with mean log-probabilities, which section 6 needs, by {values[1]:.1e}")
results.number("dpo.apart", max(by_sum + by_mean), "largest difference to TRL in loss, rewards, gradient")
results.state(
    "dpo_matches_trl",
    rule(results.numbers["dpo.apart"]["value"] < 1e-6),
    expect="holds",
    sanity=True,
    text={
        "holds": "On the same tokens, our DPO has TRL's loss, rewards and gradient: the largest difference is "
        "{dpo.apart}.",
        "fails": "On the same tokens, our DPO differs from TRL's by {dpo.apart}.",
    },
)
results.show("dpo_matches_trl")

# %% [markdown]
# (The test suite makes these comparisons with the oldest and the newest TRL that `requirements.txt` admits.)
#
# ## 4. RLOO and GRPO: a group is its own baseline
#
# Both ask the policy for several answers to each prompt, a *group*, and let the group say what is to be expected. There
# is no value function. RLOO takes from each return the mean of the *others* (leave one out). GRPO takes the mean of all
# and divides by the standard deviation of the group. By hand, for the returns 1, 2, 3 and 6:

# %%
returns = torch.tensor([1.0, 2.0, 3.0, 6.0])
leave_one_out = torch.tensor([1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3])
normalized = (returns - returns.mean()) / (returns.std() + 1e-4)  # TRL's 1e-4, against a division by zero
print("leave one out:", leave_one_out.numpy().round(3), " sum", f"{abs(leave_one_out.sum()):.3f}")
print("normalized:   ", normalized.numpy().round(3), " sum", f"{abs(normalized.sum()):.3f}")
assert torch.allclose(rloo.leave_one_out_advantages(returns, group=4), leave_one_out)
assert torch.allclose(leave_one_out, (returns - returns.mean()) * 4 / 3)
tenth = rloo.leave_one_out_advantages(returns / 10, group=4)
print("returns a tenth the size, leave one out:", tenth.numpy().round(3), " - normalized: as before, but for the 1e-4")

# %% [markdown]
# RLOO's advantages are $G / (G - 1)$ times the distances to the group's mean, and keep the unit of the reward. GRPO's
# advantages have no unit: a group in which answers hardly differ pulls as hard as one in which they differ much, and
# the KL coefficient is no longer a price in reward units. Therefore RLOO takes the KL off the *returns*, as PPO does,
# and aims at the same $J$; GRPO adds a KL (the estimator k3) to the *loss*, and what it aims at depends on the noise.
# So with "the same" $\klcoef$ it has another objective, and only its position in the plane of KL and reward can be
# compared.
#
# One step of `RLOOTrainer` against ours on its tokens: advantages, loss and gradient, and a second step on the same
# answers, where the ratio is no longer one.

# %%
ASKED, KL_PRICE = ["who", "feeds the cat", "she does not feed the fish"], 0.05


def useful(response):
    """A reward, of tokens: how many different words, less some for cats."""
    return (len(set(response)) - 0.5 * response.count(5)) / 8


def online(method, reward=useful, **options):
    """What TRL did in its steps on one batch of twelve answers."""
    return trl_losses.online_steps(method, tiny(3), tiny(4), speaker, ASKED, reward, max_new_tokens=8, **options)


def rloo_apart(step, first):
    """The differences in advantages, loss and gradient; `first`: the weights with which the answers were drawn."""
    policy, old = tiny(3), tiny(3)
    policy.load_state_dict(step.weights)
    old.load_state_dict(first)
    ratios = rloo.log_ratios(old, tiny(4), step.prompts, step.responses)
    paid = torch.tensor([useful(response) for response in step.responses]) - KL_PRICE * ratios
    advantages = rloo.leave_one_out_advantages(paid, group=4)
    loss = rloo.rloo_losses(whole(policy, step)[0], whole(old, step)[0].detach(), advantages).mean()
    apart = [(advantages - step.inputs["advantages"]).abs().max().item(), abs(loss.item() - step.loss)]
    return [*apart, (gradient_of(loss, policy) - step.gradient).abs().max().item()]


# %%
steps = online("RLOO", beta=KL_PRICE, num_iterations=2, learning_rate=1e-4)
apart = [rloo_apart(step, steps[0].weights) for step in steps]
for name, *values in zip(("advantages", "loss", "gradient"), *apart, strict=True):
    print(f"{name}: apart by {values[0]:.1e} in the first step, {values[1]:.1e} in the second")
results.number("rloo.apart", max(map(max, apart)), "largest difference to TRL in advantages, loss, gradient")
results.state(
    "rloo_matches_trl",
    rule(results.numbers["rloo.apart"]["value"] < 1e-6),
    expect="holds",
    sanity=True,
    text={
        "holds": "On the same tokens, our RLOO has TRL's advantages, loss and gradient: the largest difference is "
        "{rloo.apart}.",
        "fails": "On the same tokens, our RLOO differs from TRL's by {rloo.apart}.",
    },
)
results.show("rloo_matches_trl")

# %% [markdown]
# That holds once TRL's models are told where a text begins. As they come (trap 4), what `RLOOTrainer` takes for the
# log-probability of an answer to a short prompt is something else:

# %%
for told in (True, False):
    (step,) = online("RLOO", beta=KL_PRICE, positions=told)
    wrong = (step.inputs["old_logps"] - whole(tiny(3), step)[0]).abs().detach()  # (B,)
    longest = max(map(len, step.prompts))
    padded = [longest - len(prompt) for prompt in step.prompts]
    where = "told where texts begin" if told else "as it is"
    print(
        f"{where}: off by", {pads: f"{wrong[padded.index(pads)]:.1e}" for pads in sorted(set(padded))}, "nats, by pads"
    )

# %% [markdown]
# ## 5. All methods at equal generated tokens
#
# What is expensive in practice is to generate, so that is what every method gets the same amount of. All begin with the
# same policy (the last notebook's stand-in), ask the same instructions in whole answers of at most 64 tokens, and
# please the same reward model, the *proxy*. A method stops when it has spent its tokens. The learning rate of RLOO and
# GRPO falls to zero with the tokens that are left. PPO plans its fall beforehand, for answers of 26 tokens: if they
# grow longer, it is stopped with a rate above zero; if they become shorter, it may not spend all.
#
# | method | whose | what its tokens are spent on |
# |---|---|---|
# | PPO | ours | its answers; raw scores, a value function from zero |
# | PPO with zeros | ours | the same with *a zero for each prompt* (*InstructGPT, step 3*, section 5): four answers of the start policy to each prompt come first, each prompt is then asked up to eight times, and what the zeros cost is missing afterwards |
# | RLOO | TRL | its answers, four to a prompt |
# | GRPO | TRL | the same |
# | DPO | TRL | two answers of the *start* policy to each instruction, labeled by the proxy: the first wins with probability $\sigmoid$(difference of the scores), as Bradley and Terry have it |
# | DPO, mean | ours | the same pairs, log-probabilities averaged over tokens; for section 6 |
# | DPO, mean, scaled | ours | the same, $\klcoef$ times the tokens of a usual answer; for section 6 |
#
# PPO, RLOO and DPO have one objective, $J$ = proxy − $\klcoef$ · KL, with the same $\klcoef$; GRPO has another one
# (section 4).
#
# **Rules and expectations.**
#
# - `tokens_are_equal`: every method has generated what it may, but for one batch of the longest possible answers (the
#   one that exceeds the budget is finished). We expect it.
# - `methods_differ_at_equal_tokens`: Friedman's test of the seeds' mean gold rewards of PPO, PPO with zeros, RLOO, GRPO
#   and DPO has p < .05. Its null hypothesis is that the five are exchangeable within each seed; it looks only at their
#   ranks. One method that always comes last is enough, and which methods differ it does not say: that is for the pairs
#   below. We expect it, because of DPO and GRPO.
# - `zero_per_prompt_helps_at_equal_tokens`: PPO with zeros has more gold than PPO. We expect it although a third of its
#   tokens are spent before it learns: without zeros, a batch compares scores of different prompts, and how far these
#   differ by themselves the value function has to learn first.
# - `rloo_beats_ppo_at_equal_tokens`: RLOO has more gold than PPO. It brings a baseline for each prompt along, and no
#   value function that has to be learned; but it takes one step where PPO takes eight. We expect no decision.
# - `dpo_stays_behind_ppo_at_equal_tokens`: PPO has more gold than DPO. We expect it: of each two answers DPO is told
#   one bit, often the wrong one, as scores of the same policy's answers hardly differ; and it never sees what its
#   changes lead to.
# - `dpo_stays_behind_rloo_at_equal_tokens`: RLOO has more gold than DPO. We expect it, for the same reasons.
# - `grpo_stays_behind_rloo_at_equal_tokens`: RLOO has more gold than GRPO. We expect it: they draw the same groups, but
#   beside advantages of size one the same coefficient makes a nat cheap (where scores within a group spread by less
#   than one log-odd), and what is small or noise in the scores is made as loud as the rest. In trial runs with larger
#   learning rates it went farther than RLOO, wrote longer answers that ended less often, and had less gold; with the
#   small rate that it has now it simply had learned less of the proxy.
# - `online_methods_of_one_objective_help`: PPO, PPO with zeros and RLOO all have more gold than the start. We expect
#   it. Of GRPO we do not: in trial runs it ended near the start, or below it.
#
# Each comparison has its own risk of 5 %; with several of them, one alone that barely passes means little.

# %%
METHODS = {
    "start": "start",
    "ppo": "PPO",
    "ppo_zero": "PPO with zeros",
    "rloo": "RLOO",
    "grpo": "GRPO",
    "dpo": "DPO",
    "dpo_mean": "DPO, mean",
    "dpo_mean_scaled": "DPO, mean, scaled",
}
LEARNING, RIVALS = list(METHODS)[1:], ("ppo", "ppo_zero", "rloo", "grpo", "dpo")
# Stand-ins and the miniature world in every profile: what came of it, only gold can say.
run = replace(recipes.TutorialRun.of(size), policy="", reward_model="", data="tinyhh")
jobs = list(itertools.product(METHODS, SEEDS))
found = parallel.run(
    joblib.delayed(recipes.library_run)(method, run, size.library_tokens, seed) for method, seed in jobs
)
runs = dict(zip(jobs, found, strict=True))

# %%
MEASURES = {
    "gold": ("gold", "points"),
    "proxy": ("score", "log-odds above the start"),
    "kl": ("kl", "nats an answer, to the start"),
    "length": ("length", "tokens an answer"),
    "ended": ("ended", "share of the answers that end by themselves"),
}
zero_of_seed = np.array([np.mean(runs["start", s]["score"]) for s in SEEDS])  # which comparisons leave free
measured = {}
for method, (key, (name, unit)) in itertools.product(METHODS, MEASURES.items()):
    means = np.array([np.mean(runs[method, s][name]) for s in SEEDS])  # (S,)
    measured[key, method] = record(f"{key}.{method}", means - zero_of_seed if key == "proxy" else means, unit)
for method in METHODS:
    worth = measured["proxy", method] - recipes.KL_COEF * measured["kl", method]
    measured["objective", method] = record(
        f"objective.{method}", worth, "log-odds above the start, proxy minus beta KL"
    )
    spent = [float(runs[method, s]["tokens"]) for s in SEEDS]
    measured["tokens", method] = record(f"tokens.{method}", spent, "tokens generated to learn from")

# %%
columns = {"gold": 2, "proxy": 2, "kl": 2, "objective": 2, "length": 1, "ended": 2, "tokens": 0}


def cell(key, method):
    """A recorded number in a table, with its interval if there is one."""
    entry, digits = results.numbers[f"{key}.{method}"], columns[key]
    interval = (
        "" if entry["low"] is None else f" <small>[{entry['low']:,.{digits}f}, {entry['high']:,.{digits}f}]</small>"
    )
    return f"{entry['value']:,.{digits}f}{interval}"


rows = ["| method | gold | proxy | KL | proxy − β KL | length | ended | tokens |", "|---|" + "--:|" * len(columns)]
rows += [f"| {label} | " + " | ".join(cell(key, m) for key in columns) + " |" for m, label in METHODS.items()]
Markdown("\n".join(rows))

# %% [markdown]
# > **Predict.** Which method lies farthest to the right for the gold that it has?


# %%
MARKERS = (*plots.MARKERS, "v", "P", "X", "*")


def at(axis, method, index, y):
    """A method in the plane of KL and `y`: each seed a small mark, the mean a large one with its name, intervals."""
    points = measured["kl", method], measured[y, method]
    look = {"color": plots.COLORS[index], "marker": MARKERS[index], "linestyle": "none"}
    if seeds > 1:
        axis.plot(*points, **look, alpha=0.5, markersize=3)
        means, lows, highs = zip(*((i.value, i.low, i.high) for i in map(t_interval, points)), strict=True)
        axis.hlines(means[1], lows[0], highs[0], color=look["color"], linewidth=1)
        axis.vlines(means[0], lows[1], highs[1], color=look["color"], linewidth=1)
    x, height = (values.mean() for values in points)
    axis.plot(x, height, **look, markersize=9, markeredgecolor="black", label=METHODS[method])


# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.8))
ticks = (0, 0.5, 1, 2, 4, 8, 16, 32, 64)
for axis, y, unit in zip(axes, ("gold", "proxy"), ("points", "log-odds above the start"), strict=True):
    for index, method in enumerate(METHODS):
        at(axis, method, index, y)
    axis.set_xscale("symlog", linthresh=1)  # one of them lies far out
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(-0.15, 1.3 * max(24, *(measured["kl", m].max() for m in METHODS)))
    axis.set_xlabel("KL to the start\n(nats an answer, logarithmic above 1)")
    axis.set_ylabel(f"{y} ({unit})")
figure.tight_layout()
figure.legend(
    *axes[0].get_legend_handles_labels(), ncols=4, loc="lower center", bbox_to_anchor=(0.5, 0.98), fontsize="small"
)
words = "; ".join(
    f"{label} {measured['kl', m].mean():.2f}, {measured['gold', m].mean():.2f}, {measured['proxy', m].mean():.2f}"
    for m, label in METHODS.items()
)
alt = f"""Gold (left) and proxy (right) against the KL, one mark a method, with 95 % intervals and a small mark for each seed where
there are several ({seeds}). KL, gold and proxy: {words}."""
plots.show(figure, alt, name="library_route_kl_gold")

# %% [markdown]
# Differences to PPO in gold, seed by seed:

# %%
against = {m: better(measured["gold", m], measured["gold", "ppo"]) for m in METHODS if m != "ppo"}
for method, comparison in against.items():
    results.number(f"difference.gold.{method}", comparison.difference, "points of gold, minus PPO's")
results.table(*(f"difference.gold.{method}" for method in against))

# %%
off = max(np.abs(measured["tokens", m] / size.library_tokens - 1).max() for m in LEARNING)
results.number("tokens.most_off", off, "largest deviation from the budget, as a share of it")
results.state(
    "tokens_are_equal",
    verdict(off <= recipes.LIBRARY_BATCH * recipes.LIBRARY_ANSWER / size.library_tokens),
    expect="holds",
    text={
        "holds": "Every method generated its budget of tokens: the largest deviation is a share of {tokens.most_off}.",
        "fails": "The methods did not generate equally many tokens: the largest deviation is a share of {tokens.most_off}.",
    },
)
p = stats.friedmanchisquare(*(measured["gold", m] for m in RIVALS)).pvalue if seeds > 1 else 1.0
results.number("friedman.p", float(p), "p-value of Friedman's test; 1 stands for a single seed")
results.state(
    "methods_differ_at_equal_tokens",
    verdict(p < 0.05),
    expect="holds",
    text={
        "holds": "At equal tokens the five methods do not end at the same gold (Friedman's test, p = {friedman.p}).",
        "fails": "That the five methods end at different gold is not established (Friedman's test, p = {friedman.p}).",
    },
)
results.show("tokens_are_equal", "methods_differ_at_equal_tokens")

# %%
PAIRED = {
    "zero_per_prompt_helps_at_equal_tokens": ("ppo_zero", "ppo", "better"),
    "rloo_beats_ppo_at_equal_tokens": ("rloo", "ppo", "inconclusive"),
    "dpo_stays_behind_ppo_at_equal_tokens": ("ppo", "dpo", "better"),
    "dpo_stays_behind_rloo_at_equal_tokens": ("rloo", "dpo", "better"),
    "grpo_stays_behind_rloo_at_equal_tokens": ("rloo", "grpo", "better"),
}
for key, (one, other, expected) in PAIRED.items():
    beside = f"{METHODS[one]} {{gold.{one}}}, {METHODS[other]} {{gold.{other}}}, difference {{difference}} points"
    results.state(
        key,
        better(measured["gold", one], measured["gold", other]),
        expect=expected,
        text={
            "better": f"{METHODS[one]} ends with more gold than {METHODS[other]}: {beside}.",
            "inconclusive": f"Which of {METHODS[one]} and {METHODS[other]} has more gold is inconclusive: {beside}.",
            "worse": f"{METHODS[one]} ends with less gold than {METHODS[other]}: {beside}.",
        },
    )
results.show(*PAIRED)

# %%
gains = [better(measured["gold", m], measured["gold", "start"]) for m in ("ppo", "ppo_zero", "rloo")]
ends = "from {gold.start} to {gold.ppo} (PPO), {gold.ppo_zero} (with zeros) and {gold.rloo} (RLOO)"
results.state(
    "online_methods_of_one_objective_help",
    rule(*gains),
    expect="holds",
    text={
        "holds": f"The online methods whose objective is J raise gold: {ends}.",
        "fails": f"Not all online methods whose objective is J surely raise gold: {ends}.",
    },
)
results.show("online_methods_of_one_objective_help")

# %% [markdown]
# Equal tokens are not equal everything. What else each method did with them, in the first seed:

# %%
steps_per_update = recipes.PPOConfig.epochs * recipes.PPOConfig.minibatches
rows = [
    "| method | batches | gradient steps | answers learned from | share of tokens for zeros |",
    "|---|" + "--:|" * 4,
]
for method in LEARNING:
    log, total = (runs[method, SEEDS[0]][name] for name in ("log", "tokens"))
    batches = len(next(iter(log.values())))
    steps = batches * (steps_per_update if method.startswith("ppo") else 1)
    answers, zeros = batches * recipes.LIBRARY_BATCH, 0.0
    if method.startswith("dpo"):
        answers = 2 * len(recipes.library_pairs(run, size.library_tokens, SEEDS[0])["pairs"])
    if method == "ppo_zero":
        zeros = 1 - sum(log["length"]) * recipes.LIBRARY_BATCH / total
    rows.append(f"| {METHODS[method]} | {batches} | {steps} | {answers:,} | {zeros:.2f} |")
Markdown("\n".join(rows))

# %% [markdown]
# The reward model is asked about every answer, those for the zeros included; of DPO's only a bit a pair is kept. A
# method whose answers grow longer gets fewer of them. PPO meets an instruction once, with zeros up to eight times; RLOO
# and GRPO answer four times, DPO twice. Not counted are the forward and backward passes of learning, and the trial
# runs.
#
# The learning rates were chosen in trial runs with one other seed: of two to four values a method, the one with the
# largest $J$ on held-out instructions, never by gold. Neighboring values were close for DPO, and GRPO's is the smallest
# that was tried, so a smaller one may do better; $J$ is not what GRPO maximizes either. The two trainings with means
# took DPO's rate. All other settings are defaults of their modules. With much more search every method would do better,
# and not all equally much. So read the table as "what one gets from a reasonable first attempt", and its largest
# differences as what needs an explanation. Section 6 has some.
#
# ## 6. Questions that people ask
#
# ### Why is my GRPO loss 0?
#
# (Asked in [#2703](https://github.com/huggingface/trl/issues/2703) and often since.) Because its *value* says nothing.
# In the first step on a batch the ratio of new and old probabilities is one everywhere, so what is left of the loss is
# minus the mean advantage, and the advantages of a group sum to zero. The *gradient* is another matter: it weighs each
# answer's score function with its advantage. On the tiny language, a step of `GRPOTrainer` with its original loss (a
# mean over answers), with today's default (`dapo`, a mean over tokens, so that long answers count more), with the
# original one and a KL coefficient, and with a reward that is the same for all answers:

# %%
CASES = {
    "mean over answers": {"loss_type": "grpo"},
    "mean over tokens (default)": {"loss_type": "dapo"},
    "mean over answers, β = 0.1": {"loss_type": "grpo", "beta": 0.1},
    "all answers get the same reward": {"loss_type": "dapo", "reward": lambda response: 1.0},
}
rows, found = ["| | loss | norm of the gradient |", "|---|--:|--:|"], []
for name, options in CASES.items():
    (step,) = online("GRPO", **({"beta": 0.0} | options))
    rows.append(f"| {name} | {step.loss:+.6f} | {step.gradient.norm():.3f} |")
    found.append((abs(step.loss) > 1e-5, step.gradient.norm().item() > 0.01))
assert found == [(False, True), (True, True), (True, True), (False, False)]  # is there a loss, is there a gradient?
Markdown("\n".join(rows))

# %% [markdown]
# With a KL coefficient, what is left of the first kind of loss is $\klcoef$ times the KL estimate. It is 0 only as long
# as the policy is the reference, and then rises while the training goes well. The GRPO of section 5 has both, that and
# the mean over tokens; RLOO keeps its KL in the returns, so its loss stays at zero.
#
# The last line is the one to fear: a group whose answers are all equally good (or bad) teaches *nothing*, and no
# message says so (an example: [#3857](https://github.com/huggingface/trl/issues/3857)). With rewards of right or wrong
# that is most groups, at the start and again at the end; TRL logs their share as `frac_reward_zero_std`. Here the two
# losses that TRL logged in the first seed of section 5, first and last steps:

# %%
for method in ("rloo", "grpo"):
    log = runs[method, SEEDS[0]]["log"]
    for name in ("loss", "reward", "gradient_norm"):
        ends = [f"{value:+.4f}" for value in log[name][:3]] + ["..."] + [f"{value:+.4f}" for value in log[name][-2:]]
        print(f"{METHODS[method]:5} {name:14}", *ends)

# %% [markdown]
# Watch the reward, the KL and the length; the loss of an online method is not a measure of anything.
#
# ### Why do both DPO rewards fall?
#
# The log of a DPO run shows the mean implicit reward of chosen and of rejected answers. One expects the first to rise;
# [many have asked](https://github.com/eric-mitchell/direct-preference-optimization/issues/8) why it does not.
#
# > **Predict.** Both start at 0. Where are they at the end?

# %%
steps = min(len(runs["dpo", s]["log"]["loss"]) for s in SEEDS)
window = max(1, steps // 6)  # single batches are noisy
smooth = np.ones(window) / window
figure, axis = plt.subplots(figsize=(6.6, 3.4))
for index, (name, label) in enumerate(
    (("chosen_reward", "chosen"), ("rejected_reward", "rejected"), ("margin", "margin"))
):
    curves = [np.convolve(runs["dpo", s]["log"][name][:steps], smooth, mode="valid") for s in SEEDS]
    plots.curve_with_band(axis, np.arange(window, steps + 1), np.array(curves), label, index)
axis.axhline(0, color="0.3", linewidth=1)
axis.set_xlabel(f"step (moving mean of {window})")
axis.set_ylabel("implicit reward (log-odds)")
axis.legend(fontsize="small")
tail = {
    name: np.array([np.mean(runs["dpo", s]["log"][name][-max(1, steps // 4) :]) for s in SEEDS])
    for name in ("chosen_reward", "rejected_reward")
}
alt = f"""Implicit rewards of chosen and rejected answers and their difference during TRL's DPO, moving means over {window} steps, seeds:
{seeds}. In the last quarter chosen answers are at {tail["chosen_reward"].mean():+.3f}, rejected ones at {tail["rejected_reward"].mean():+.3f}."""
plots.show(figure, alt, name="dpo_rewards_fall")

# %% [markdown]
# There are two reasons, and neither is a fault. **First**, the loss contains only the difference. A toy makes both
# fall: three answers, one weight $w$, and a policy whose logits are $w$ times how often an answer says "water". The
# chosen answer says it twice, the rejected one three times, and a third answer, which is in no pair, never.

# %%
mentions = torch.tensor([2.0, 3.0, 0.0], dtype=torch.float64)  # chosen, rejected, "I do not know."
weight, beta = torch.zeros(1, dtype=torch.float64, requires_grad=True), 0.1
start = torch.log_softmax(weight * mentions, dim=0).detach()
rows = [
    "| step | P(chosen) | P(rejected) | P(neither) | reward, chosen | reward, rejected | margin |",
    "|--:|" + "--:|" * 6,
]
for step in range(41):
    now = torch.log_softmax(weight * mentions, dim=0)
    loss = dpo.dpo_loss(now[:1], now[1:2], start[:1], start[1:2], beta)
    if step % 10 == 0:
        implied = (beta * (now - start)).detach()
        numbers = [*now.exp().tolist(), *implied[:2].tolist(), (implied[0] - implied[1]).item()]
        rows.append(f"| {step} | " + " | ".join(f"{number:.3f}" for number in numbers) + " |")
    (slope,) = torch.autograd.grad(loss, weight)
    weight = (weight - 2.0 * slope).detach().requires_grad_()
Markdown("\n".join(rows))

# %% [markdown]
# The margin grows, as it should. The probability of *both* falls, and goes to the answer that nobody has compared with
# anything: to say "water" less often is the only way to tell the two apart. Real policies have many weights, but
# answers to one prompt share most of their words (Razin et al. 2024 call it likelihood displacement).
#
# **Second**, where the pairs are samples of the reference itself, as here, the mean of both rewards *must* lie below
# zero, on average. Over all its samples,
# $\E_{\policyref}[\klcoef \log (\pi / \policyref)] = -\klcoef \KL(\policyref \,\Vert\, \pi)$: minus the distance
# covered, by definition. On the best policy of section 3:

# %%
mean_reward = (reference * beta * torch.log(best / reference)).sum()
reverse_kl = (reference * torch.log(reference / best)).sum()
print(f"mean implicit reward {mean_reward:.4f}; minus beta KL(reference, best) {-beta * reverse_kl:.4f}")
assert torch.isclose(mean_reward, -beta * reverse_kl)
middle = (tail["chosen_reward"] + tail["rejected_reward"]) / 2  # (S,)
record("dpo.chosen_reward_end", tail["chosen_reward"], "log-odds, last quarter of the steps")
record("dpo.rejected_reward_end", tail["rejected_reward"], "log-odds, last quarter of the steps")
record("dpo.distance_by_rewards", -middle / recipes.KL_COEF, "nats, KL(reference, policy) from both rewards")
results.table("dpo.chosen_reward_end", "dpo.rejected_reward_end", "dpo.distance_by_rewards", "kl.dpo")

# %% [markdown]
# (In the real run each batch is read before it is learned from, and only once, so the identity holds on average, with
# the policy of that step, and nearly: pairs of two equal answers were left out, and an answer that the limit cut gets
# an end token.) The rule of `dpo_chosen_reward_falls`: the chosen answers' mean reward in the last quarter of the steps
# is below zero. We expect it. What you should worry about is a margin that stays at zero, or a chosen reward that falls
# by *many* log-odds: that is a policy which has left its samples behind.

# %%
results.state(
    "dpo_chosen_reward_falls",
    better(np.zeros(seeds), tail["chosen_reward"]),
    expect="better",
    text={
        "better": "The implicit reward of the chosen answers falls, too: to {dpo.chosen_reward_end}, that of the rejected ones to {dpo.rejected_reward_end}.",
        "inconclusive": "Whether the implicit reward of the chosen answers falls is inconclusive: {dpo.chosen_reward_end}.",
        "worse": "The implicit reward of the chosen answers rises, to {dpo.chosen_reward_end}.",
    },
)
results.show("dpo_chosen_reward_falls")

# %% [markdown]
# ### Sum or mean of log-probabilities?
#
# The probability of an answer is the product of its tokens' probabilities, so its log-probability is a *sum*, and so is
# it in the derivation of section 3. Some programs take the mean over tokens instead (TRL calls it `sigmoid_norm`), for
# fear that long answers count too much. What each does to the tokens of a long chosen and a short rejected answer:

# %%
long, short, none = torch.zeros(6, requires_grad=True), torch.zeros(2, requires_grad=True), torch.zeros(1)
for name, pool in (("sum", torch.sum), ("mean", torch.mean)):
    loss = dpo.dpo_loss(pool(long)[None], pool(short)[None], none, none, beta=0.1)
    up, down = (-gradient[0].item() for gradient in torch.autograd.grad(loss, (long, short)))
    print(f"{name:5} each of 6 chosen tokens {up:+.4f}, each of 2 rejected tokens {down:+.4f}")
    parts = (6, 2) if name == "mean" else (1, 1)
    assert math.isclose(up, 0.05 / parts[0], rel_tol=1e-5) and math.isclose(down, -0.05 / parts[1], rel_tol=1e-5)

# %% [markdown]
# By a sum all tokens are pulled alike, by $\klcoef \cdot \sigmoid(-\text{margin})$, and a long answer, having more of
# them, moves more. By a mean a token of a short answer weighs more, and its end token is one of few: a short answer
# that lost teaches loudly not to stop there. That is one difference. The other is larger: **a mean changes the unit of
# $\klcoef$.** Margins become smaller by the length of an answer, so the sigmoid is satisfied only much farther out. It
# is as if $\klcoef$ had been divided by the number of tokens. So there are two trainings with means: one with the same
# $\klcoef$, and one with $\klcoef$ times the tokens of a usual answer.
#
# Rules: `mean_needs_another_beta`: with the same $\klcoef$, the mean leads to a larger KL and a smaller $J$ than the
# sum, and $\klcoef$ times the tokens leads to a larger $J$ than the mean alone. `mean_makes_answers_longer`: with the
# same $\klcoef$ its answers are longer than those of the sum. We expect both: in trial runs the longer answer won
# somewhat more often than not (the next cell measures it).

# %%
pairs = [recipes.library_pairs(run, size.library_tokens, seed)["pairs"] for seed in SEEDS]
wins = [np.mean([preferences.longer_wins(**pair) for pair in rows]) for rows in pairs]
record("audit.longer_wins.sampled", wins, "share of the sampled pairs, chosen is longer")
DPOS = ("dpo", "dpo_mean", "dpo_mean_scaled")
further = better(measured["kl", "dpo_mean"], measured["kl", "dpo"])
poorer = better(measured["objective", "dpo"], measured["objective", "dpo_mean"])
rescued = better(measured["objective", "dpo_mean_scaled"], measured["objective", "dpo_mean"])
sides = "KL {kl.dpo_mean} against {kl.dpo} nats, J {objective.dpo_mean} against {objective.dpo}"
results.state(
    "mean_needs_another_beta",
    rule(further, poorer, rescued),
    expect="holds",
    text={
        "holds": f"With the same β, the mean goes too far: {sides}. With the larger β its J is better: {{objective.dpo_mean_scaled}}.",
        "fails": "That the mean goes too far with the same β and a larger one helps is not established: "
        f"{sides}; scaled: {{objective.dpo_mean_scaled}}.",
    },
)
results.table("audit.longer_wins.sampled", *(f"{key}.{m}" for key in ("length", "ended", "gold") for m in DPOS))

# %%
results.state(
    "mean_makes_answers_longer",
    better(measured["length", "dpo_mean"], measured["length", "dpo"]),
    expect="better",
    text={
        "better": "With the same β, the mean makes answers longer than the sum: {length.dpo_mean} against {length.dpo} tokens.",
        "inconclusive": "Whether mean or sum makes answers longer is inconclusive: {difference} tokens.",
        "worse": "With the same β, the mean makes answers shorter than the sum: {length.dpo_mean} against {length.dpo} tokens.",
    },
)
results.show("mean_needs_another_beta", "mean_makes_answers_longer")

# %% [markdown]
# So whoever takes the mean has to choose $\klcoef$ anew. A comparison of the two at one $\klcoef$ compares strengths,
# not losses.
#
# ### Why is my KL negative?
#
# $\KL(\pi \,\Vert\, \policyref)$ is never negative, but what a log shows is an estimate: the mean log-ratio (k1) over a
# batch of answers. It can be negative for an honest reason and for a bad one (both have been met:
# [#235](https://github.com/huggingface/trl/issues/235), [#925](https://github.com/huggingface/trl/issues/925)). Four
# tokens, two policies:

# %%
pi, other = np.array([0.31, 0.29, 0.2, 0.2]), np.array([0.4, 0.3, 0.2, 0.1])
ratio = np.log(pi / other)
exact = (pi * ratio).sum()
print("log-ratios:", ratio.round(3), f" exact KL {exact:.4f}")
batches = list(itertools.product(range(4), repeat=4))  # all batches of four samples
negative = sum(pi[list(batch)].prod() for batch in batches if ratio[list(batch)].mean() < 0)
print(f"few samples: the mean over four is negative in {negative:.0%} of batches, and right on average")
top_two = np.where(pi >= np.sort(pi)[-2], pi, 0.0)
top_two /= top_two.sum()
biased = (top_two * ratio).sum()
print(f"top-k = 2: the mean over all samples is {biased:.4f}, however many")
assert exact > 0 > biased

# %% [markdown]
# **Few samples**: the single log-ratios are large beside their mean, so a small batch may well be negative. That
# averages out, and nothing is wrong. **Other samples than those of the policy**: with top-k, top-p, a temperature or a
# minimal length, the answers are drawn from one distribution and their probabilities taken from another. Then the mean
# estimates something that is no KL, and no number of samples helps. Worse, that number is part of the reward: the
# policy is paid for it. In *real* runs, first the honest reason. Of the answers of PPO's policies in section 5, how
# often is the mean over $n$ of them negative?

# %%
counts = (1, 2, 4, 8, 16, 32, 64)


def negative_share(values, n, draws=2000):
    """How often the mean over n of the values, drawn at random, is negative."""
    return np.mean(np.random.default_rng(0).choice(values, (draws, n)).mean(axis=1) < 0)


shares = np.array([[negative_share(runs["ppo", s]["kl"], n) for n in counts] for s in SEEDS])  # (S, 7)
record("kl.negative_answers", shares[:, 0], "share of PPO's answers whose log-ratio is negative")
results.show("kl.negative_answers")

# %% [markdown]
# And the bad one, on the policy of the last notebook: its KL to the policy that it began with, estimated from answers
# that were drawn as they should be, in ways that people choose for nicer-looking answers, and by a sampler whose
# weights are out of date: those of the start. The log-probabilities are those of the full distribution and of today's
# weights each time, as in a trainer that knows nothing of its sampler. (One seed; intervals over instructions.)
#
# > **Predict.** Which of these five numbers has a sign that you know beforehand?


# %%
def log_ratios_by(sampler, **how):
    """Log-ratios (N,) of the trained policy to its start, of answers that `sampler` has drawn in this way."""
    torch.manual_seed(0)
    answers = sampler.generate(
        **batch,
        do_sample=True,
        max_new_tokens=recipes.LIBRARY_ANSWER,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **how,
    )[:, batch["input_ids"].shape[1] :].tolist()
    end = tokenizer.eos_token_id
    cut = [answer[: answer.index(end) + 1] if end in answer else answer for answer in answers]
    return rloo.log_ratios(trained, began, queries, cut).numpy()


began, tokenizer = recipes.tutorial_policy(run, seed=SEEDS[0])
trained = recipes.tutorial_run(run, SEEDS[0])[0].eval()
held_out = [row["instruction"] for row in recipes.tutorial_data(run, SEEDS[0])[1]][: size.test_prompts // 2]
prompts = [instructions.template(instruction) for instruction in held_out]
queries = tokenizer(prompts)["input_ids"]
padded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
batch = {name: padded[name] for name in ("input_ids", "attention_mask")}

# %%
WAYS = {
    "full": ("all tokens", trained, {"top_k": 0}),
    "top_20": ("top-k 20", trained, {"top_k": 20}),
    "top_5": ("top-k 5", trained, {"top_k": 5}),
    "cold": ("temperature 0.7", trained, {"top_k": 0, "temperature": 0.7}),
    "stale": ("stale weights", began, {"top_k": 0}),
}
estimates = {}
for key, (_, sampler, how) in WAYS.items():
    estimates[key] = bootstrap_interval(log_ratios_by(sampler, **how), unit="prompt")
    results.number(f"kl.by_{key}", estimates[key], "nats an answer, mean log-ratio")
results.table(*(f"kl.by_{key}" for key in WAYS))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.2, 3.3), width_ratios=(1, 1.4))
plots.curve_with_band(axes[0], np.log2(counts), shares, "PPO", 0)
axes[0].set_xticks(np.log2(counts), counts)
axes[0].set_xlabel("answers in the mean")
axes[0].set_ylabel("share of means below zero")
plots.interval_bars(
    axes[1], [name.replace(" ", "\n") for name, *_ in WAYS.values()], list(estimates.values()), reference_line=0
)
axes[1].set_ylabel("mean log-ratio\n(nats an answer)")
figure.tight_layout()
words = ", ".join(f"{WAYS[key][0]} {interval.value:.2f}" for key, interval in estimates.items())
alt = f"""Left: share of means of log-ratios that are negative, from {shares[:, 0].mean():.2f} for single answers to
{shares[:, -1].mean():.2f} for the mean over {counts[-1]}. Right: the estimated KL of one policy by the way its answers are drawn:
{words} nats."""
plots.show(figure, alt, name="negative_kl")

# %% [markdown]
# Only the first bar estimates the KL. With a top-k or a temperature the number may come out too high or too low,
# depending on what the policy has learned; that it is another number does not depend. The last bar has to be negative:
# over samples of the start, the mean log-ratio is $-\KL(\policyref \,\Vert\, \policy)$, as in the question before last.
# A sampler that lags behind (a separate server, old weights, a batch that is used too often) moves the estimate in that
# direction.
#
# So: sample at temperature 1 from the full distribution, with the weights that learn, or take the probabilities from
# the distribution that was sampled from. TRL's online trainers sample so by default and divide by the temperature in
# both places; `generate` on its own takes what the model's folder says.
#
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# ## Exercises
#
# **1.** The default of `num_generations` is 2 in `RLOOConfig` and 8 in `GRPOConfig`; here it is 4. What does a larger
# group gain and what does it cost, when the number of tokens is fixed?
#
# <details><summary>Hint</summary>
#
# The baseline of an answer is a mean over $G - 1$ others. Which other number falls as $G$ grows?
#
# </details>
#
# <details><summary>Answer</summary>
#
# With $N$ answers in all, the variance of the gradient is about $(G V_b + \frac{G}{G-1} V_w)/N$, $V_b$ between prompts,
# $V_w$ within one. It is smallest at $G = 1 + \sqrt{V_w / V_b}$: large groups pay where answers to one prompt differ
# much more than prompts do. From $G = 4$ on the second term can fall by at most a quarter.
#
# </details>
#
# **2.** Show that GRPO's advantages lead a policy to care as much for a prompt where all answers are nearly equally
# good as for one where they differ much. When would you want that?
#
# <details><summary>Answer</summary>
#
# Dividing by the group's standard deviation makes the mean square of the advantages of every group $(G - 1) / G$,
# whatever the returns. With rewards from different sources, whose units have nothing to do with each other, that is a
# virtue. With a reward model, whose small differences are mostly noise, it makes noise loud. RLOO weighs a prompt by
# how much there is to gain.
#
# </details>
#
# **3.** Trap 1, in a log: how would you see in the first step of a run that the reference is not the policy that you
# began with?
#
# <details><summary>Hint</summary>
#
# What must the KL be before anything has been learned?
#
# </details>
#
# <details><summary>Answer</summary>
#
# The first `kl` must be zero to rounding. With the wrong reference it is a proper KL, between base and fine-tuned model
# for example, and the first thing that such a run learns is to undo the fine-tuning. (Trap 4 alone does not show
# there: policy and reference are both read at the wrong positions.)
#
# </details>
#
# **4.** In section 5 DPO's labels are drawn with probability $\sigmoid$(difference). What would change if the answer
# with the higher score always won? Which $\klcoef$ would then be comparable with PPO's?
#
# <details><summary>Answer</summary>
#
# The labels would carry no noise, and DPO would learn faster from the same pairs. But certain labels say that the
# difference of rewards is infinite, for every pair: no finite margin satisfies the loss, and the policy that minimizes
# it does not maximize $J$ for any $\klcoef$. Only labels with Bradley-Terry probabilities make DPO's $\klcoef$ the
# price that PPO pays. To try it, change the line with `rng.random()` in `recipes.library_pairs`.
#
# </details>
#
# **5.** Equal generated tokens was our choice of what is fair. Name two others, and say which method would gain.
#
# <details><summary>Answer</summary>
#
# Equal *queries of the reward model* changes little for RLOO, GRPO and plain PPO, which ask once an answer, but where
# people label, one comparison of two answers is what costs, and DPO is made for it. Equal *gradient steps* would give
# RLOO and GRPO many times their tokens, as PPO takes several steps on each batch. Equal *time* depends on the machine:
# DPO can use any pairs that lie around, and generates nothing while it learns.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - [TRL's documentation](https://huggingface.co/docs/trl): one page a trainer, with the formulas behind each
#   `loss_type`.
# - Rafailov et al. (2023), *Direct preference optimization: your language model is secretly a reward model*, [arXiv
#   2305.18290](https://arxiv.org/abs/2305.18290): section 4 has the derivation of section 3.
# - Ahmadian et al. (2024), *Back to basics: revisiting REINFORCE-style optimization for learning from human feedback in
#   LLMs*, [arXiv 2402.14740](https://arxiv.org/abs/2402.14740): RLOO, and what of PPO a language model needs.
# - Shao et al. (2024), *DeepSeekMath*, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300): GRPO, section 4.
# - Yu et al. (2025), *DAPO*, [arXiv 2503.14476](https://arxiv.org/abs/2503.14476), and Liu et al. (2025),
#   *Understanding R1-Zero-like training*, [arXiv 2503.20783](https://arxiv.org/abs/2503.20783): means over tokens or
#   answers, and what the normalization does.
# - Razin et al. (2024), *Unintentional unalignment: likelihood displacement in direct preference optimization*, [arXiv
#   2410.08847](https://arxiv.org/abs/2410.08847).
# - Park et al. (2024), *Disentangling length from quality in direct preference optimization*, [arXiv
#   2403.19159](https://arxiv.org/abs/2403.19159), and Meng et al. (2024), *SimPO*, [arXiv
#   2405.14734](https://arxiv.org/abs/2405.14734): length, sums and means.
# - Schulman (2020), [*Approximating KL divergence*](http://joschu.net/blog/kl-approx.html): k1, k2 and k3.
