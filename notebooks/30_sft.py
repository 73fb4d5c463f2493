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
# # InstructGPT, step 1: supervised fine-tuning
#
# **What do demonstrations teach a language model, and is fitting them too well a fault?**
#
# InstructGPT is trained in three steps, and this part of the course takes them one by one, for real and in full. The
# first is the simplest: people write good answers, and the model learns to write such answers too. Its loss is that of
# any language model, so there seems to be little to get wrong. Yet four things are worth a closer look: who writes the
# answers, which tokens count, how the learning rate ends, and when to stop. About the last one the authors of
# InstructGPT (Ouyang et al. 2022, section 3.5) made a remark that contradicts the textbooks: their models fitted the
# demonstrations too closely after a single epoch, and training on still made them better. Here it is put to the test.

# %% [markdown]
# ## What you will learn
#
# - where demonstrations come from, and what choosing the demonstrators and their best draft buys;
# - the loss on responses only, and three ways to be off by one that no training curve shows;
# - Adam with InstructGPT's settings, and how a learning rate should end;
# - the algorithm of supervised fine-tuning, complete in a dozen lines;
# - what held-out perplexity measures, what it does not, and whether overfitting hurts.

# %% [markdown]
# ## What you should know
#
# What a language model, its logits and a gradient step are; *RLHF in ten minutes*, sections 1 to 3, for the miniature
# world and its gold reward.

# %% [markdown]
# ## How long it takes

# %% tags=["remove-cell"]
# %run ../Latex_macros.ipynb

# %% tags=["parameters"]
profile = "laptop"  # "smoke" for a quick look; profiles.toml says what each profile means
seeds = 1  # the published results come from 5

# %%
import copy
import random
from itertools import islice
from types import SimpleNamespace

import joblib
import numpy as np
import torch
from IPython.display import Markdown
from matplotlib import pyplot as plt
from torch.nn import functional as F

from rlhf_lab import claims, language_model, parallel, plots, recipes, sft
from rlhf_lab.evaluation import evaluate
from rlhf_lab.profiles import Profile
from rlhf_lab.sampling import sample
from rlhf_lab.statistics import better, equivalent, rule, t_interval
from rlhf_lab.tinyhh import annotators, generator, gold

size = Profile.load(profile)
results = claims.Claims("30_sft", profile, seeds)
plots.style()
results.duration()

# %% [markdown]
# A *seed* repeats every experiment with other demonstrations, another order of training, other reward models and other
# samples; it is the unit in which we count evidence, and square brackets hold 95 % intervals over seeds. The base model
# is the same for all seeds. Rules stand above the cells that decide them and were fixed before the published run, after
# a look at one trial seed that is not among those reported. One seed decides nothing, so the published verdict is then
# shown beside it.

# %% [markdown]
# ## 1. Who demonstrates
#
# For InstructGPT some forty people were hired, who had to pass a test first. They wrote answers to about 13,000
# prompts. In the miniature world the demonstrators are the three *best* of the crowd's eight labelers, those who see
# the value of an answer most clearly. Each prompt goes to one of them, who writes three drafts and hands in the one he
# or she likes best. A draft is like the text that the base model has read: of any quality. Three demonstrations:

# %%
for prompt, response in recipes.best_demonstrations(3, "train", 0):
    print(prompt.strip() + response + f"\n  gold reward: {gold.helpfulness(prompt, response):+.2f}\n")

# %% [markdown]
# What makes them good, the three drafts or the choice of people? For the same prompts and the same three drafts each,
# we compare the gold reward of the first draft, of the draft that *any* labeler of the crowd hands in, of the one that
# a *best* labeler does, and of the truly best draft, which nobody can see.
#
# > **Predict.** From the first draft to the truly best one, which step is the largest?


# %%
def who_demonstrates(seed):
    """The mean gold reward of what different people hand in, of the same three drafts to each prompt."""
    rng, crowd = random.Random(f"who-{seed}"), annotators.crowd("helpful-base")
    best = sorted(crowd, key=lambda labeler: -labeler.skill)[: recipes.BEST_LABELERS]
    points = {"draft": [], "any": [], "best": [], "truly": []}
    for prompt in islice(generator.prompts("helpful-base", "train", f"who-{seed}"), size.demonstrations):
        drafts = [generator.response(prompt, rng) for _ in range(recipes.DRAFTS)]
        worth = [gold.helpfulness(prompt, draft) for draft in drafts]
        points["draft"].append(worth[0])
        for who, people in (("any", crowd), ("best", best)):
            points[who].append(worth[rng.choice(people).rank(prompt, drafts, rng).index(1)])
        points["truly"].append(max(worth))
    return {who: np.mean(values) for who, values in points.items()}


demonstrators = parallel.run(joblib.delayed(who_demonstrates)(seed) for seed in range(seeds))
handed_in = {who: np.array([found[who] for found in demonstrators]) for who in demonstrators[0]}  # (S,) each

# %%
labels = {"draft": "first draft", "any": "any labeler", "best": "best labelers", "truly": "truly best"}
for who, values in handed_in.items():
    results.number(f"gold.demonstrations.{who}", t_interval(values), "gold reward")
figure, axis = plt.subplots(figsize=(6.4, 3.4))
bars = [t_interval(values) for values in handed_in.values()]
plots.interval_bars(axis, [labels[who] for who in handed_in], bars)
axis.set_ylabel("gold reward (points)")
axis.set_xlabel("who hands in one of three drafts")
words = ", ".join(f"{labels[who]} {values.mean():.2f}" for who, values in handed_in.items())
plots.show(
    figure, f"Bars: mean gold reward of what is handed in, of the same three drafts: {words}.", name="demonstrators"
)

# %% [markdown]
# The rule: the best labelers *demonstrate better* if the interval of the difference between what they and what any
# labelers hand in lies above zero. We expect it, since they see more clearly, but a small difference only.

# %%
results.state(
    "best_labelers_demonstrate_better",
    better(handed_in["best"], handed_in["any"]),
    expect="better",
    text={
        "better": "The best labelers' demonstrations are better than all labelers' by {difference}; three drafts "
        "instead of one, by any labeler, take the gold reward from {gold.demonstrations.draft} to "
        "{gold.demonstrations.any}.",
        "inconclusive": "Whether the best labelers demonstrate better than all labelers is inconclusive: {difference}.",
        "worse": "The best labelers' demonstrations are worse than all labelers': {difference}.",
    },
)
results.show("best_labelers_demonstrate_better")

# %% [markdown]
# ## 2. The loss, on responses only
#
# A demonstration is a prompt $\prompt$ and a response $\resp$, which ends with an end token. The model is to answer as
# people do, not to ask as people do; so only the tokens of the responses count:
#
# $$ \loss(\theta) = - \frac{1}{\sum_{(\prompt, \resp) \in \Data} \lvert \resp \rvert} \sum_{(\prompt, \resp) \in \Data} \, \sum_{\tstep=1}^{\lvert \resp \rvert} \log \policy(\resp_\tstep \mid \prompt, \resp_{<\tstep}) , $$
#
# the mean over response tokens, where $\lvert \resp \rvert$ counts the end token too. Its exponential is the *response
# perplexity*. A model that is worth a look by hand knows five tokens and looks at the last one only. Row $i$ of its
# table says what follows token $i$.

# %%
WORDS = ["why", "?", "because", "so", "<end>"]


class Bigram(torch.nn.Module):
    """A causal language model whose next token depends on the last one only, by a table of logits."""

    device = torch.device("cpu")

    def __init__(self, table):
        super().__init__()
        self.table = torch.nn.Parameter(table)  # (V, V)

    def forward(self, ids, output_hidden_states=False):
        states = F.one_hot(ids, len(WORDS)).float()  # (B, T, V): of a text it keeps the last token, and nothing else
        return SimpleNamespace(logits=states @ self.table, hidden_states=(states,))


rows = torch.full((5, 5), 1 / 5)
rows[1] = torch.tensor([1 / 12, 1 / 12, 1 / 2, 1 / 4, 1 / 12])  # after "?"
rows[2] = torch.tensor([3 / 16, 3 / 16, 3 / 16, 1 / 4, 3 / 16])  # after "because"
rows[3] = torch.tensor([7 / 32, 7 / 32, 7 / 32, 7 / 32, 1 / 8])  # after "so"
toy = Bigram(rows.log())

# %% [markdown]
# Two demonstrations, *why ? → because so \<end\>* and *why ? → so \<end\>*. The tokens of their responses have the
# probabilities 1/2, 1/4, 1/8 and 1/4, 1/8: losses of 1, 2, 3 and 2, 3 times $\log 2$, on average 2.2. So the
# perplexity is $2^{2.2}$: the model is as unsure as one that guesses among 4.6 tokens. Note the alternative, to
# average in each response first and then over responses, which gives $(2 + 2.5)/2 = 2.25$. There a token of a short
# response weighs more.

# %%
prompts, responses = [[0, 1], [0, 1]], [[2, 3, 4], [3, 4]]  # token ids
values, mask = language_model.response_log_probabilities(toy, prompts, responses)  # (B, R) each
print("losses in units of log 2:", (values.abs() / np.log(2)).detach().numpy().round(2).tolist())
print("mask:", mask.tolist())
loss = -values.sum() / mask.sum()
print(f"loss {loss.item() / np.log(2):.2f} log 2, perplexity {loss.exp():.2f}")
assert torch.isclose(loss, torch.tensor(2.2 * np.log(2), dtype=torch.float32))

# %% [markdown]
# The model of the course's ladder has many more tokens, but nothing else changes. Its first loss on a demonstration,
# by hand from the logits of the whole dialogue, is that of the module:

# %%
base, tokenizer = recipes.base(size.rung)
(example,) = recipes.best_demonstrations(1, "train", 1)
prompt_ids, response_ids = language_model.encode(tokenizer, *example)
print(f"{len(prompt_ids)} tokens of the prompt carry no loss, {len(response_ids)} of the response do:")
print(tokenizer.convert_ids_to_tokens(response_ids))
with torch.inference_mode():
    logits = base(torch.tensor([prompt_ids + response_ids])).logits[0]  # (T, V)
before = logits[len(prompt_ids) - 1 : -1]  # what is said before each response token, about that token
by_hand = F.cross_entropy(before, torch.tensor(response_ids)).exp().item()
print(f"perplexity by hand {by_hand:.4f}, module {language_model.perplexity(base, tokenizer, [example]):.4f}")
assert np.isclose(by_hand, language_model.perplexity(base, tokenizer, [example]), rtol=1e-4)

# %% [markdown]
# ### Off by one
#
# `len(prompt_ids) - 1 : -1` is the line in which most mistakes are made. The logits at a position are about the *next*
# token, so the response's first token is predicted at the prompt's last position, and what is predicted after the end
# token is nobody's business. Three ways to be off by one, on the toy, each trained on *why ? → because so \<end\>*
# until its loss is near zero:
#
# - the mask begins and ends one token too early;
# - it begins one token too late;
# - logits and targets are not shifted against each other at all.
#
# > **Predict.** What does each of the three learn to say? And by what could you notice it in the curve of the loss?


# %%
sequence = torch.tensor([0, 1, 2, 3, 4])  # a prompt of 2 tokens, a response of 3
MASKS = {  # positions whose logits are trained, and the positions of their targets
    "right": ([1, 2, 3], [2, 3, 4]),
    "one too early": ([0, 1, 2], [1, 2, 3]),
    "one too late": ([2, 3], [3, 4]),
    "not shifted": ([2, 3, 4], [2, 3, 4]),
}


def fitted(positions, targets, steps=300):
    """Train the toy from nothing; its last loss and what it has learned of "? -> because -> so -> <end>", (3,)."""
    model = Bigram(torch.zeros(5, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    for _ in range(steps):
        loss = F.cross_entropy(model(sequence[positions]).logits, sequence[targets])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item(), model.table.softmax(-1)[[1, 2, 3], [2, 3, 4]].detach().numpy()


# %%
learned = {name: fitted(*mask) for name, mask in MASKS.items()}
lines = ["| mask | last loss | because, after ? | so, after because | end, after so |", "|---|--:|--:|--:|--:|"]
for name, (loss, p) in learned.items():
    lines.append(f"| {name} | {loss:.3f} | " + " | ".join(f"{value:.2f}" for value in p) + " |")
Markdown("\n".join(lines))

# %%
results.state(
    "wrong_masks_train_as_well",
    rule(
        max(loss for loss, _ in learned.values()) < 0.02,
        bool(learned["right"][1].min() > 0.9),
        all(bool(p.min() <= 0.21) for name, (_, p) in learned.items() if name != "right"),
    ),
    expect="holds",
    sanity=True,
    text={
        "holds": "The loss of every mask falls to zero, but only under the right one is the whole response learned.",
        "fails": "The wrong masks do not fail as they should: look for an error in these cells.",
    },
)
results.show("wrong_masks_train_as_well")

# %% [markdown]
# Too early, and the model never learns to *stop* (a fifth is what it knew before training), while it does learn to
# write the last token of the prompt, which is the user's. Too late, and it never learns to *begin*. Not shifted, and it
# learns to repeat the token before. That is the only one of the three whose loss is suspicious on real text: it falls
# towards zero in no time, as nothing is easier. The others have to be found by looking at the mask beside the tokens,
# as above, or at what the model writes.
#
# The end token has a trap of its own. Where it also serves as padding, as in GPT-2, which has no padding token, a mask
# that hides all padding hides the end too. Our masks come from the lengths, and never from the values of tokens.

# %% [markdown]
# ## 3. Adam
#
# Plain gradient descent takes large steps where the gradient is large. Adam keeps running means of the gradient $g$ and
# of its square, and divides one by the root of the other:
#
# $$ m \leftarrow \beta_1 m + (1-\beta_1)\, g, \qquad v \leftarrow \beta_2 v + (1-\beta_2)\, g^2, \qquad
# \theta \leftarrow \theta - \eta\, \frac{m / (1-\beta_1^k)}{\sqrt{v / (1-\beta_2^k)} + \epsilon} . $$
#
# The powers of step number $k$ correct for the start from zero; with them the first step is $\eta$ in every direction,
# whatever the size of the gradient. InstructGPT takes $\beta_1 = .9$ and $\beta_2 = .95$: it remembers the size of
# about $1/(1-\beta_2) = 20$ gradients, where the usual .999 remembers a thousand, which is more than the steps of a
# short fine-tuning. Three steps by hand, with gradients that differ a hundredfold:

# %%
layer = torch.nn.Linear(2, 1, bias=False)
optimizer, _ = sft.adamw(layer, 0.1, steps=3, final_share=1.0)
weights = layer.weight.detach().clone()
m, v = torch.zeros(1, 2), torch.zeros(1, 2)
for k, gradient in enumerate(torch.tensor([[[3.0, -0.03]], [[1.0, -0.01]], [[-2.0, 0.05]]]), start=1):
    m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
    step = 0.1 * (m / (1 - 0.9**k)) / ((v / (1 - 0.95**k)).sqrt() + 1e-8)
    weights -= step
    layer.weight.grad = gradient
    optimizer.step()
    print(f"step {k}: {step.numpy().round(4)}")
    assert torch.allclose(weights, layer.weight, atol=1e-6)

# %% [markdown]
# ## 4. How the learning rate ends
#
# The rate $\eta$ is large at first and small at the end, when the noise of the single batches should average out.
# InstructGPT's falls along a cosine to a *tenth* of its first value. The presentation that this part of the course
# follows prints another schedule, one rate for each of $N$ epochs:
#
# $$ \eta_i = \tfrac12\, \eta_{\text{init}} \big(1 + \cos(\pi i / N)\big), \qquad i = 1, \dots, N . $$
#
# > **Predict.** How large is the rate in the last epoch? What does a run of one epoch learn?


# %%
def rates_of_course(epochs, steps_per_epoch, config=sft.SFTConfig):
    """The rate of every step, (epochs * steps_per_epoch,), as a share of the largest."""
    steps = epochs * steps_per_epoch
    optimizer, schedule = sft.adamw(torch.nn.Linear(1, 1), 1.0, steps, config.warmup, config.final_share)
    rates = []
    for _ in range(steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return np.array(rates)


def rates_as_printed(epochs, steps_per_epoch, first=1):
    """The same by the printed formula, whose epochs are counted from `first`."""
    i = np.arange(first, first + epochs)
    return np.repeat((1 + np.cos(np.pi * i / epochs)) / 2, steps_per_epoch)


# %%
steps_per_epoch = -(-size.shown_demonstrations // sft.SFTConfig.batch_size)
figure, axes = plt.subplots(1, 2, figsize=(9.0, 3.4), sharey=True)
schedules = {"cosine to a tenth, step by step": rates_of_course, "as printed, epoch by epoch": rates_as_printed}
for axis, epochs in zip(axes, (size.sft_epochs, 2), strict=True):
    steps = np.arange(epochs * steps_per_epoch + 1) / steps_per_epoch
    for index, (name, schedule) in enumerate(schedules.items()):
        style = {"color": plots.COLORS[index], "linestyle": plots.LINES[index], "drawstyle": "steps-post"}
        rates = schedule(epochs, steps_per_epoch)
        axis.plot(steps, np.append(rates, rates[-1]), label=name, **style)  # to the end of the last step
    axis.set(title=f"{epochs} epochs", xlabel="epochs done")
axes[0].set_ylabel("learning rate (share of the largest)")
axes[0].legend(fontsize="small", loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2)
last = {name: schedule(2, steps_per_epoch)[-1] for name, schedule in schedules.items()}
words = ", ".join(f"{name}: {share:.2f}" for name, share in last.items())
alt = f"""Learning rate during {size.sft_epochs} epochs and during 2. The course's falls smoothly after a short warm-up;
the printed one is a staircase whose last step lies at zero. In the last step of 2 epochs, as a share of the largest:
{words}."""
plots.show(figure, alt, name="sft_schedules")

# %% [markdown]
# With $i = N$ the cosine is $-1$ and the rate zero: *the last epoch trains nothing*. Of 16 epochs one is lost, of two
# epochs half, and of one epoch all. Measured in epochs at the full rate, the printed schedule is worth $(N-1)/2$;
# counted from $i = 0$, as such formulas usually are, $(N+1)/2$; ours about $0.55\,N$. A toy run of four epochs shows
# it:

# %%
for epochs in (1, 2, 16):
    worth = [rates_as_printed(epochs, 1).sum(), rates_as_printed(epochs, 1, first=0).sum()]
    assert np.allclose(worth, [(epochs - 1) / 2, (epochs + 1) / 2])
    print(f"{epochs:2} epochs are worth {worth[0]:.2f} as printed, {worth[1]:.2f} from 0")


def toy_losses(epochs):
    """The toy's loss before training and after each epoch of one step at the printed rate."""
    model, losses = Bigram(torch.zeros(5, 5)), []
    for rate in [*rates_as_printed(epochs, 1), None]:
        loss = F.cross_entropy(model(sequence[:-1]).logits, sequence[1:])
        losses.append(loss.item())
        if rate is not None:
            model.table.data -= 5 * rate * torch.autograd.grad(loss, model.table)[0]
    return losses


print("4 epochs:", np.round(toy_losses(4), 4), " 1 epoch:", np.round(toy_losses(1), 4))

# %%
ends = {epochs: toy_losses(epochs)[-2:] for epochs in (1, 2, 4, 16)}
results.state(
    "printed_schedule_wastes_the_last_epoch",
    rule(all(bool(np.isclose(*pair)) for pair in ends.values()), toy_losses(4)[2] < toy_losses(4)[1]),
    expect="holds",
    sanity=True,
    text={
        "holds": "By the printed schedule the last epoch leaves the model as it was, and a run of one epoch trains "
        "nothing.",
        "fails": "By the printed schedule the last epoch does train: look for an error in these cells.",
    },
)
results.show("printed_schedule_wastes_the_last_epoch")

# %% [markdown]
# A staircase has a second fault: the rate belongs to an epoch, so in a run of one or two epochs there is hardly a
# schedule at all. Modern practice, and InstructGPT's own, is a rate for each *step*.

# %% [markdown]
# ## 5. The algorithm
#
# **Supervised fine-tuning.** *Given* a language model with parameters $\theta$, demonstrations $\Data$, a number of
# epochs $N$, a batch size $B$ and a learning rate $\eta_{\text{init}}$:
#
# 1. Turn every prompt and response into tokens; append the end token to the response.
# 2. Let $K = N \lceil \lvert \Data \rvert / B \rceil$ be the number of steps, and $\eta_1, \dots, \eta_K$ a schedule
#    that ends above zero.
# 3. $N$ times: shuffle $\Data$ into batches. For each batch, the $k$-th step:
#    1. take the log-probability of every response token given all tokens before it;
#    2. the loss is minus their mean over the response tokens of the batch;
#    3. take the gradient, and shorten it if its norm exceeds 1;
#    4. take one step of Adam at the rate $\eta_k$.
# 4. *Return* $\policy$. After each epoch, measure what you care about on demonstrations that were not trained on.
#
# In code, number by number; and the module does the same, to the last digit that rounding leaves.


# %%
def fine_tune(model, examples, config, seed):
    encoded = [language_model.encode(tokenizer, prompt, response) for prompt, response in examples]  # 1
    steps = config.epochs * -(-len(encoded) // config.batch_size)  # 2
    optimizer, schedule = sft.adamw(model, config.learning_rate, steps, config.warmup, config.final_share)
    rng, losses = random.Random(seed), []
    for _ in range(config.epochs):  # 3
        for batch in language_model.length_batches(encoded, config.batch_size, rng):
            batch_prompts, batch_responses = zip(*(encoded[i] for i in batch), strict=True)
            values, mask = language_model.response_log_probabilities(model, batch_prompts, batch_responses)  # 3.1
            loss = -values.sum() / mask.sum()  # 3.2
            optimizer.zero_grad()
            loss.backward()  # 3.3
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
            optimizer.step()  # 3.4
            schedule.step()
            losses.append(loss.item())
    return losses  # 4: the model was trained in place


# %%
few, config = recipes.best_demonstrations(48, "train", 0), sft.SFTConfig(epochs=2, batch_size=16)
by_hand = fine_tune(copy.deepcopy(base), few, config, seed=0)
by_module = sft.train(copy.deepcopy(base), tokenizer, few, config, seed=0)
print(np.round(by_hand, 4), np.round(by_module, 4), sep="\n")
assert np.allclose(by_hand, by_module, atol=1e-4)

# %% [markdown]
# (`length_batches` puts dialogues of similar length together, so that little of a batch is padding. Which ones meet is
# still a matter of chance, and the batches come in random order. As each batch is averaged over its own tokens, a token
# of a short dialogue weighs a little more than in the formula of section 2.) The settings beside those of InstructGPT:
#
# | setting | InstructGPT, 1.3B | here |
# |---|---|---|
# | demonstrations | about 13,000 | `profiles.toml` |
# | epochs | 16; 2 for the policy that reinforcement learning starts from | the same |
# | learning rate | about $10^{-5}$ | $5 \cdot 10^{-4}$: small models stand, and need, far more |
# | schedule | cosine to a tenth, no warm-up | the same, after a warm-up of 3 % of the steps |
# | batch | 32 | 32 |
# | dropout | .2 | none: the policy that learns is the policy that samples |
# | Adam | .9, .95 | .9, .95 |

# %% [markdown]
# ## 6. The run
#
# The base model is fine-tuned for many epochs on the demonstrations. Before the first epoch and after each of them we
# take the response perplexity of demonstrations trained on and of held-out ones (other questions, the same
# demonstrators), and have the model answer the held-out prompts at temperature 1. The answers are judged twice: by the
# *proxy*, a reward model after InstructGPT's (the next notebook explains it; here three labelers rank each prompt's
# answers, and training takes two passes; its zero is the mean score of demonstrations), and by the *gold reward*.
#
# Two more runs of one and of two epochs go through their own schedule to its end. They are needed for a fair
# comparison: within the long run, the model after one epoch is one whose learning rate has not yet fallen.

# %%
LONG, SHORT = size.sft_epochs, (1, 2)


def watched(epochs, seed):
    """Fine-tuning, watched epoch by epoch."""
    models = (size.demonstrations, size.ranking_prompts)  # what the reward model is made of
    return recipes.sft_epochs(size.rung, size.shown_demonstrations, epochs, *models, size.test_prompts, seed)


def starting_policy(seed):
    """Held-out gold reward and perplexity of the SFT policy that the next notebooks start from."""
    held_out, (base, tokenizer) = recipes.best_demonstrations(size.test_prompts, "test", seed), recipes.base(size.rung)
    policy = recipes.instruct_sft(size.rung, size.demonstrations, seed)
    asked = [prompt for prompt, _ in held_out]
    answers = evaluate(policy, base, tokenizer, asked, {"gold": recipes.gold_helpfulness}, seed)
    return answers.mean("gold"), language_model.perplexity(policy, tokenizer, held_out)


jobs = [joblib.delayed(watched)(epochs, seed) for epochs in (LONG, *SHORT) for seed in range(seeds)]
done = parallel.run(jobs + [joblib.delayed(starting_policy)(seed) for seed in range(seeds)])
runs = {epochs: done[i * seeds : (i + 1) * seeds] for i, epochs in enumerate((LONG, *SHORT))}
sft_gold, sft_perplexity = np.array(done[-seeds:]).T  # (S,) each


# %%
def curve(epochs, name):
    """One number for each seed and epoch, (S, E): a perplexity as it is, a reward as its mean over prompts."""
    values = np.array([run[name] for run in runs[epochs]])
    return values if values.ndim == 2 else values.mean(axis=-1)


def lowest(perplexities):
    """For each seed the epoch (S,) at which the *other* seeds' mean perplexity is lowest; of one seed, its own."""
    if len(perplexities) == 1:
        return perplexities.argmin(axis=1)
    return np.array([np.delete(perplexities, s, axis=0).mean(axis=0).argmin() for s in range(len(perplexities))])


epochs_done = np.arange(LONG + 1)
best = lowest(curve(LONG, "test"))  # (S,)
every = np.arange(seeds)
print("epoch of the best held-out perplexity, for each seed:", best.tolist())

# %% [markdown]
# The epoch of the best held-out perplexity is chosen for each seed by the *other* seeds. A minimum that is chosen and
# reported on the same numbers would look lower than it is. (With one seed there is no other, and the minimum is its
# own.)
#
# > **Predict.** Two perplexities, trained on and held out, over the epochs; and the two rewards. Which of the four
# > curves will turn, and when?

# %%
figure, axes = plt.subplots(3, 1, figsize=(6.4, 8.4), sharex=True)
drawn = [
    (axes[0], "train", "trained on"),
    (axes[0], "test", "held out"),
    (axes[1], "proxy", None),
    (axes[2], "gold", None),
]
for index, (axis, name, label) in enumerate(drawn):
    color = index if index < 2 else 1
    plots.curve_with_band(axis, epochs_done, curve(LONG, name), label or f"within {LONG} epochs", color)
    if name != "train":
        ends = [curve(epochs, name)[:, -1].mean() for epochs in SHORT]
        axis.plot(SHORT, ends, "D", color="black", markerfacecolor="white", label="runs that end here, held out")
    axis.axvline(best.mean(), color="0.4", linewidth=1, linestyle=":")
    axis.legend(fontsize="small")
axes[0].set_ylabel("response perplexity")
axes[1].set_ylabel("proxy (log-odds)")
axes[2].set(ylabel="gold reward (points)", xlabel="epochs of training")
figure.align_ylabels()
ends = {label or name: curve(LONG, name).mean(axis=0)[[0, 1, -1]] for _, name, label in drawn}
words = "; ".join(f"{name} {a:.2f}, {b:.2f}, {c:.2f}" for name, (a, b, c) in ends.items())
alt = f"""Response perplexity of demonstrations trained on and held out, score and gold reward of answers to held-out
prompts, over {LONG} epochs. Before training, after one epoch and at the end: {words}. The dotted line marks the best
held-out perplexity, after epoch {best.mean():.1f} on average; diamonds are runs that end after one and two epochs."""
plots.show(figure, alt, name="sft_epochs")

# %% [markdown]
# ## 7. Is overfitting a fault?
#
# The remark has two halves. *It overfits*: held-out perplexity is higher after many epochs than after one. *It still
# helps*: answers score higher for all that. The rules:
#
# - `long_run_overfits`: the long run ends with a higher held-out perplexity than at its best epoch. We expect it. If it
#   fails, the last two rules say little, as hardly an epoch comes after the best.
# - `sft_overfits_after_one_epoch`: the long run ends with a higher held-out perplexity than the run of one epoch. We
#   expect it: a thousand demonstrations are few enough to be learned by heart.
# - `more_epochs_help_reward_model_score`: the long run ends with a higher proxy than the run of one epoch. This is the
#   remark on the score to the letter (its other half is about human ratings), and we expect it.
# - `overfitting_still_helps_reward_model_score`: the long run ends with a higher proxy than it had at its best held-out
#   perplexity. This is stricter, as what the model learned before that epoch no longer counts: only what came with
#   overfitting does. We expect what the remark suggests, with little hope from the trial seed (whose proxy had fewer
#   labels).
# - `overfitting_does_not_hurt_gold`: between these same two points the gold reward differs by less than .1 points,
#   about a fifth of what fine-tuning is worth in the trial seed. (This is stricter than the name: a gain of .1 would
#   fail it too.) We expect it.

# %%
stages = {"base": np.zeros(seeds, int), "epoch_1": np.ones(seeds, int), "best": best, "last": np.full(seeds, LONG)}
units = {"test": "held-out response perplexity", "proxy": "log-odds", "gold": "gold reward"}
found = {}  # (what, when) -> (S,)
for name in units:
    found |= {(name, stage): curve(LONG, name)[every, epoch] for stage, epoch in stages.items()}
    found |= {(name, f"run_of_{epochs}"): curve(epochs, name)[:, -1] for epochs in SHORT}
for (name, stage), values in found.items():
    results.number(f"{'perplexity' if name == 'test' else name}.{stage}", t_interval(values), units[name])
results.number("perplexity.last_trained_on", t_interval(curve(LONG, "train")[:, -1]), "response perplexity")
results.number("best_epoch", t_interval(best.astype(float)), "epochs")


# %%
def overview():
    """Perplexity, proxy and gold reward of every stage, side by side."""
    names = {
        "base": "base model",
        "run_of_1": "one epoch, own schedule",
        "run_of_2": "two epochs, own schedule",
        "epoch_1": f"epoch 1 of {LONG}",
        "best": f"best held-out perplexity of {LONG}",
        "last": f"epoch {LONG} of {LONG}",
    }
    lines = ["| model | held-out perplexity | proxy | gold |", "|---|--:|--:|--:|"]
    for stage, name in names.items():
        cells = [f"{found[what, stage].mean():.{digits}f}" for what, digits in (("test", 4), ("proxy", 3), ("gold", 3))]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return Markdown("\n".join(lines))


overview()

# %%
results.state(
    "sft_overfits_after_one_epoch",
    better(found["test", "last"], found["test", "run_of_1"]),
    expect="better",
    text={
        "better": "After all epochs the held-out perplexity is {perplexity.last}, higher than after one "
        "by {difference}, while on the demonstrations trained on it is {perplexity.last_trained_on}.",
        "inconclusive": "Whether all epochs end with another held-out perplexity than one is inconclusive: "
        "{difference}.",
        "worse": "After all epochs the held-out perplexity is still lower than after one: {difference}.",
    },
)
results.state(
    "more_epochs_help_reward_model_score",
    better(found["proxy", "last"], found["proxy", "run_of_1"]),
    expect="better",
    text={
        "better": "And it still helps: after all epochs the answers score higher than after one, by {difference}.",
        "inconclusive": "Whether answers score higher after all epochs than after one is inconclusive: {difference}.",
        "worse": "After all epochs the answers score lower than after one: {difference}.",
    },
)
results.show("sft_overfits_after_one_epoch", "more_epochs_help_reward_model_score")

# %%
results.state(
    "long_run_overfits",
    better(found["test", "last"], found["test", "best"]),
    expect="better",
    text={
        "better": "It overfits: since its best, at epoch {best_epoch}, held-out perplexity has risen by {difference}.",
        "inconclusive": "Whether held-out perplexity has risen since its best is inconclusive: {difference}.",
        "worse": "Held-out perplexity has not risen since the epoch that other seeds chose: {difference}.",
    },
)
results.show("long_run_overfits")

# %%
results.state(
    "overfitting_still_helps_reward_model_score",
    better(found["proxy", "last"], found["proxy", "best"]),
    expect="better",
    text={
        "better": "The epochs after the best held-out perplexity still raise the score, by {difference}.",
        "inconclusive": "Whether the epochs after the best held-out perplexity change the score is inconclusive: "
        "{difference}.",
        "worse": "The epochs after the best held-out perplexity lower the score: {difference}.",
    },
)
results.state(
    "overfitting_does_not_hurt_gold",
    equivalent(found["gold", "last"], found["gold", "best"], margin=0.1),
    expect="equivalent",
    text={
        "equivalent": "In truth they change nothing within {margin} points: {difference}.",
        "inconclusive": "Whether they change the gold reward by less than {margin} points is inconclusive: "
        "{difference}.",
        "different": "They change the gold reward by more than {margin} points: {difference}.",
    },
)
results.show("overfitting_still_helps_reward_model_score", "overfitting_does_not_hurt_gold")

# %% [markdown]
# How *could* a model that predicts demonstrations worse write answers that are no worse? Perplexity asks whether the
# model foresaw *this* demonstrator's choice. Where several answers are good, a model that is too sure of one of them
# pays dearly whenever another was chosen, while its own answers are as good as before. Take three answers: A and B are
# good, and demonstrators give each half of the time; C is broken, and nobody does.

# %%
demonstrated = np.array([0.5, 0.5, 0.0])  # A, B, C
for name, said in {"well fitted": [0.45, 0.45, 0.10], "too sure": [0.94, 0.03, 0.03]}.items():
    perplexity = np.exp(-(demonstrated[:2] * np.log(said[:2])).sum())
    print(f"{name}: perplexity {perplexity:.2f}, share of good answers {sum(said[:2]):.2f}")

# %% [markdown]
# So fitting on can have two sides (we do not test that these are at work). The model becomes surer of arbitrary
# choices, which costs perplexity and variety, but no quality; and it takes probability from what nobody would write,
# which helps. Held-out perplexity adds up the two. Which of them people notice depends on how broken the answers are to
# begin with, and in a world of a few dozen topics there is less to gain than in all of English. What to do about it is
# what InstructGPT's authors did: choose the SFT model by how its *answers* are judged. Perplexity only tells how well
# it foresees the demonstrators.

# %% [markdown]
# ## 8. The policy that the next notebooks start from
#
# For reinforcement learning InstructGPT starts from another SFT model: two epochs, with a tenth as many texts of its
# first training mixed in (appendix C.3), so that it forgets less. Ours is `recipes.instruct_sft`, fine-tuned on all
# demonstrations that the profile allows. It writes the answers that people rank in the next notebook.
#
# The rule: SFT *beats base* if the interval of the difference of their gold rewards on the held-out prompts lies above
# zero. We expect it.

# %%
results.number("gold.sft", t_interval(sft_gold), "gold reward")
results.number("perplexity.sft", t_interval(sft_perplexity), "held-out response perplexity")
results.state(
    "sft_beats_base",
    better(sft_gold, found["gold", "base"]),
    expect="better",
    text={
        "better": "Imitation helps: the SFT policy's answers are worth {gold.sft} points, {difference} against the "
        "base model's; the demonstrations themselves are worth {gold.demonstrations.best}.",
        "inconclusive": "Whether the SFT policy's answers are better than the base model's is inconclusive: "
        "{difference}.",
        "worse": "The SFT policy's answers are worse than the base model's: {difference}.",
    },
)
results.show("sft_beats_base", "perplexity.sft")

# %%
stands = {
    "base model": found["gold", "base"],
    f"one epoch,\n{size.shown_demonstrations:,}\nshown": found["gold", "run_of_1"],
    f"{LONG} epochs,\n{size.shown_demonstrations:,}\nshown": found["gold", "last"],
    f"SFT,\n{size.demonstrations:,}\nshown": sft_gold,
    "first drafts": handed_in["draft"],
    "demon-\nstrations": handed_in["best"],
}
figure, axis = plt.subplots(figsize=(7.2, 3.6))
plots.interval_bars(axis, list(stands), [t_interval(values) for values in stands.values()])
for bar in axis.patches[-2:]:
    bar.set(facecolor="0.75", hatch="//", edgecolor="0.4")
axis.set_ylabel("gold reward (points)")
words = ", ".join(
    f"{name.replace('-' + chr(10), '').replace(chr(10), ' ')} {values.mean():.2f}" for name, values in stands.items()
)
alt = f"""Bars: mean gold reward of answers to held-out prompts by four models and, hatched, of what people in this
world write to training prompts: {words}."""
plots.show(figure, alt, name="sft_gold")

# %% [markdown]
# What lies between the models' bars and the hatched ones? A small model garbles sentences, and does not always know
# which tips belong to which topic. Demonstrations show how to answer; there are too few of them to teach what to know.
# Here are base model and SFT policy side by side, on held-out prompts drawn at random by seed.

# %%
sft_policy = recipes.instruct_sft(size.rung, size.demonstrations, 0)
asked = random.Random(30).sample(recipes.held_out_prompts(size.test_prompts, 0), 4)
ids = [tokenizer(prompt)["input_ids"] for prompt in asked]
answers = {}
for model, name in ((base, "base"), (sft_policy, "SFT")):
    texts = sample(model, ids, max_new_tokens=80, eos=tokenizer.eos_token_id, seed=30).texts(tokenizer)
    points = recipes.gold_helpfulness(asked, texts)
    answers[name] = [f"{worth:+.2f} {text.strip()}" for worth, text in zip(points, texts, strict=True)]
for i, prompt in enumerate(asked):
    print(prompt.strip(), f"base {answers['base'][i]}", f"SFT  {answers['SFT'][i]}", "", sep="\n")

# %% [markdown]
# ## What we found

# %%
results.write()
results.show()

# %% [markdown]
# **Errata of the sources.** The presentation *Training language models to follow instructions with human feedback*
# (2024) prints, as its Algorithm 1, a learning rate for each epoch, $\tfrac12 \eta_{\text{init}}(1 + \cos(\pi i/N))$
# with $i$ from 1 to $N$. It ends at zero: the last epoch trains nothing, and a single epoch trains nothing at all
# (section 4). The paper itself lets the rate fall to a tenth of its first value.

# %% [markdown]
# ## Exercises
#
# **1.** Train on whole dialogues instead of responses only. Which loss do you expect to be lower at the end, on the
# same responses? And what else does the model learn?
#
# <details><summary>Hint</summary>
#
# `language_model.encode` takes a text without a prompt as `("", text)`. Compare `language_model.perplexity` on the same
# (prompt, response) pairs.
#
# ```python
# dialogues = [("", prompt + response) for prompt, response in recipes.best_demonstrations(1000, "train", 100)]
# whole, _ = recipes.base(size.rung)
# sft.train(whole, tokenizer, dialogues, sft.SFTConfig(), 100)
# ```
#
# </details>
#
# <details><summary>Answer</summary>
#
# Expect the loss on responses to be a little lower after training on responses only, as all of each step is then spent
# on them. The other model also learns to ask as people do, which is nothing that an assistant needs. With short prompts
# the difference on responses is small. It grows where prompts are long: in a summarization data set nearly all tokens
# are the text to be summarized. And where the model already saw such prompts in its first training, as here, little
# remains to be learned from them at all.
#
# </details>
#
# **2.** Change the printed schedule as little as you can, so that every epoch trains. What is the rate of a run of one
# epoch then, and what is still missing?
#
# <details><summary>Answer</summary>
#
# $i - 1$ in place of $i$ (or: count from 0). A run of one epoch then has the full rate from the first step to the last.
# What is missing is an end at a low rate, and a rate for each step.
#
# </details>
#
# **3.** A model has a response perplexity of 1.5 on responses of 40 tokens. How many equally likely responses is that?
# Where does the uncertainty sit, if every sentence is one of seven tips about the topic, and a response has four?
#
# <details><summary>Hint</summary>
#
# Perplexity is per token. What is the perplexity per token of a uniform choice of four tips from seven, in order?
#
# </details>
#
# <details><summary>Answer</summary>
#
# $1.5^{40}$, about eleven million. Four tips of seven in some order are $7 \cdot 6 \cdot 5 \cdot 4 = 840$ responses,
# a perplexity of $840^{1/40} = 1.18$ per token. It sits in the first words of each sentence; once the tip is known,
# the rest follows. So a mean over tokens is mostly a mean over tokens that are easy, and a small change of it can be
# a large change in what is said.
#
# </details>
#
# **4.** Someone's fine-tuning goes from a loss of 4 to one of 0.02 within twenty steps, on new text as well. Another's
# looks perfect, but every answer runs into the length limit. A third one's answers all begin with nonsense, and go on
# well. Which line do you look at in each case?
#
# <details><summary>Answer</summary>
#
# The same, section 2's `len(prompt_ids) - 1 : -1`: not shifted; too early, or an end token that is missing or hidden as
# padding; too late. In the second case, look also at whether the end token is in the *data*.
#
# </details>
#
# **5.** Section 7 says that an overfitted model is too sure. If that is so, a model of fewer epochs could be made as
# sure by sampling at a lower temperature. Try it: the SFT policy at temperatures 1, .7 and .4, its gold reward on
# held-out prompts. Why do we not simply do this in the following notebooks?
#
# <details><summary>Hint</summary>
#
# `sample(..., temperature=.7)` and `recipes.gold_helpfulness`; answers at 1 and at .7 to the same prompts are paired.
#
# </details>
#
# <details><summary>Answer</summary>
#
# Most broken sentences are unlikely ones, so a lower temperature writes fewer of them. It also makes answers alike. For
# reinforcement learning the policy has to try things out, and its probabilities have to be those that it samples from:
# at another temperature it is another policy, and every ratio and every KL has to be taken at that temperature (the
# notebook *Thirty details* shows what happens otherwise).
#
# </details>
#
# **6.** Why is the reward model, and not the gold reward, what InstructGPT's authors looked at? Which danger is there
# in choosing the SFT model by it, and why is the danger small here?
#
# <details><summary>Answer</summary>
#
# They have no gold reward; asking people for every epoch of every run costs time and money. Chosen by its score, a
# model may be one that the reward model *overrates*. Among a few dozen models that were not trained against the
# reward model there is little to overrate. The danger grows with the number of candidates and with the pressure: in
# the notebooks to come the policy is trained on the score itself.
#
# </details>

# %% [markdown]
# ## Further reading
#
# - Ouyang et al. (2022), *Training language models to follow instructions with human feedback* (InstructGPT), [arXiv 2203.02155](https://arxiv.org/abs/2203.02155): sections 3.2 to 3.5 and appendices B and C.
# - Kingma and Ba (2015), *Adam: a method for stochastic optimization*, [arXiv 1412.6980](https://arxiv.org/abs/1412.6980).
# - Loshchilov and Hutter (2017), *SGDR: stochastic gradient descent with warm restarts*, [arXiv 1608.03983](https://arxiv.org/abs/1608.03983): the cosine schedule, whose formula counts from 0.
# - Zhou et al. (2023), *LIMA: less is more for alignment*, [arXiv 2305.11206](https://arxiv.org/abs/2305.11206): a thousand demonstrations, and again perplexity that rises while answers improve.
