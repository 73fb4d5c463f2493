"""PPO: its arithmetic as pure functions on tensors, and the trainer of language models that is made of them (`PPO`).

Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347) takes several gradient steps on each batch of
samples, and clips the probability ratio between the new and the old policy so that they stay close. That they do
is a hope of the method, not a theorem: the clip ends a sample's push away from the old policy, and does not pull back
what other samples have pushed. So every update reports how far it went (`update_metrics`).

The functions know no environment and no language model: they serve CartPole, the exact world and tokens alike. Every
decision of the trainer is listed, with its reason and its test, in docs/ppo.md.

All tensors are (B, T) unless stated: a row is an episode or a response, a column a step or a token. `mask` (B, T) is
True on real steps; padding stands on the right, and whatever it holds (NaN too) changes neither a value nor a gradient.

Papers leave details open. OpenAI's first implementation for language models (Ziegler et al. 2019, arXiv 1909.08593)
and TRL's last one (1.12) differ, and the choice here is:

- The score is a reward of the last real step, as OpenAI has it; TRL puts it one step further, where nothing was said.
- Whitening divides by the *biased* variance, as OpenAI's `tf.moments`; TRL takes the unbiased one, which is undefined
  for one token. What is whitened together, a batch (TRL) or a minibatch (OpenAI), the caller chooses.
- Value targets are the advantages *before* whitening plus the old values, as in both.
- A loss is a mean over all real tokens of a minibatch, in whatever micro-batches they come (`count`); OpenAI's
  responses were all of one length. TRL averages the means of its micro-batches, where a token among few weighs more.
- An episode that was cut off may be bootstrapped with `last_values`; both take it for ended, which is the default here
  and what the trainer does: a response that the limit cut pays a penalty instead.
- The KL coefficient can adapt (`AdaptiveKL`), as OpenAI's; TRL's is fixed, and a fixed number will do here as well.
- The metrics count real tokens only; some of TRL's average over padding.
"""

import math
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from rlhf_lab.language_model import encode, length_batches, pad_right
from rlhf_lab.packing import read_responses
from rlhf_lab.sampling import Samples, sample

MAX_LOG_RATIO = 20.0  # exp(20) is 5e8: far outside every clip, far inside float32


# --- masks ---


def masked_mean(x: Tensor, mask: Tensor, count: int | Tensor | None = None) -> Tensor:
    """Sum of `x` over the mask divided by `count`; a scalar.

    `count` is the number of real tokens of the whole minibatch. Given it, the results of micro-batches *add up* to the
    minibatch's mean, and so do their gradients, however long the rows are. None: the tokens of this mask.
    Raises ValueError for shapes that differ, a mask that is not boolean, and a count of zero.
    """
    _check_shapes(mask, x=x)
    count = mask.sum() if count is None else count
    if count <= 0:
        raise ValueError(
            "A mean needs at least one real step: the mask is False everywhere, or `count` is not positive."
        )
    return _filled(x, mask).sum() / count


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """`x` with mean zero and (biased) variance one over the mask; zero at padding.

    `shift_mean=False` keeps the mean and is meant for rewards, whose mean says how long an episode should last. 1e-8 is
    added to the variance, as OpenAI does, so constants stay finite: they become zero, or keep their value.
    Raises ValueError as `masked_mean` does.
    """
    mean = masked_mean(x, mask)
    mean = mean + masked_mean(x - mean, mask)  # what the first sum lost in rounding would pass for a deviation
    centered = _filled(x - mean, mask)
    whitened = centered * torch.rsqrt(masked_mean(centered.square(), mask) + 1e-8)
    return whitened if shift_mean else _filled(whitened + mean, mask)


# --- rewards and advantages ---


@torch.no_grad()
def penalized_rewards(scores: Tensor, log_ratio: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """The reward of each step (B, T): minus `kl_coef` (reward units per nat) times the log-ratio, and on the last real
    step the score (B,) as well. Zero at padding; a row without a real step loses its score.

    `log_ratio` is log pi - log pi_ref of the sampled tokens, so a row sums to score - kl_coef * k1 of the response.
    The result is a constant: the penalty acts through the advantages, and no gradient flows through it. (As a loss, the
    mean of k1 has the gradient zero.) Source: Ziegler et al. 2019, equation 2. Raises ValueError for shapes that do not
    fit and for a mask with holes.
    """
    _check_steps(mask, log_ratio=log_ratio)
    _check_rows(mask, scores=scores)
    return torch.where(_last_steps(mask), scores[:, None], 0) - kl_coef * _filled(log_ratio, mask)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float = 1.0,
    lam: float = 0.95,
    last_values: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, both (B, T), constant, and zero at padding.

    The advantage is the sum of the coming TD errors r_s + gamma V_{s+1} - V_s, each weighed by (gamma lam)^(s-t); the
    return is advantage + value, and what the value loss aims at. `values` are those of the sampling policy.
    `last_values` (B,) is the value of the state *after* the last real step of an episode that was cut off, and 0 for
    one that ended; None says that all ended. Source: generalized advantage estimation, Schulman et al. 2016 (arXiv
    1506.02438), equation 16. Takes memory for (T, T). Raises ValueError for shapes that do not fit and for a mask with
    holes.
    """
    _check_steps(mask, rewards=rewards, values=values)
    rewards, values = _filled(rewards, mask), _filled(values, mask)
    next_values = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    if last_values is not None:
        _check_rows(mask, last_values=last_values)
        next_values = torch.where(_last_steps(mask), last_values[:, None], next_values)
    errors = rewards + gamma * next_values - values  # (B, T), zero at padding
    steps = torch.arange(errors.shape[1], dtype=errors.dtype, device=errors.device)
    weights = torch.tril((gamma * lam) ** (steps[:, None] - steps).clamp(min=0))  # (T, T): row s, column t
    advantages = errors @ weights
    return advantages, advantages + values


# --- losses ---


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float = 0.2,
    count: int | Tensor | None = None,
) -> Tensor:
    """The clipped surrogate objective with a minus sign, averaged over real tokens; a scalar.

    Only `log_probs` carries a gradient, and none comes from a step whose ratio has left [1 - clip, 1 + clip] in the
    direction in which its advantage pushes. Log-ratios are held within +-20, so that the loss stays finite; beyond that
    no gradient comes at all. `count`: see `masked_mean`. Source: Schulman et al. 2017, equation 7. Raises ValueError as
    `masked_mean` does.
    """
    _check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    ratio = _log_ratio(log_probs, old_log_probs.detach(), mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    advantages = _filled(advantages.detach(), mask)
    objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_mean(objective, mask, count)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float | None = 0.2,
    count: int | Tensor | None = None,
) -> Tensor:
    """Half the squared error of the values, averaged over real tokens; a scalar.

    With a `clip`, the greater of that error and the error of the value held within `clip` of the *old* value, in units
    of reward: a value that has moved further than that towards its return gets no gradient. None: no clip. Only
    `values` carries a gradient. `count`: see `masked_mean`. Source: OpenAI's code of Ziegler et al. 2019 and its
    `baselines`; the PPO paper does not have it. Raises ValueError as `masked_mean` does.
    """
    _check_shapes(mask, values=values, old_values=old_values, returns=returns)
    values, old_values, returns = (_filled(x, mask) for x in (values, old_values.detach(), returns.detach()))
    errors = (values - returns).square()
    if clip is not None:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (clipped - returns).square())
    return 0.5 * masked_mean(errors, mask, count)


# --- how far two policies are apart ---


class KLEstimates(NamedTuple):
    """Three estimates of KL(pi || pi_ref) in nats, elementwise."""

    k1: Tensor  # unbiased, often negative, large variance
    k2: Tensor  # biased (little where the policies are close), never negative
    k3: Tensor  # unbiased, never negative


def kl_estimates(log_ratio: Tensor) -> KLEstimates:
    """k1, k2 and k3 of KL(pi || pi_ref) from log_ratio = log pi - log pi_ref, at samples of *pi*.

    Any shape, differentiable; nothing is held back, so k3 overflows to inf where pi_ref is more than e^88 times as
    probable as pi (in float32). Source: Schulman 2020, "Approximating KL divergence" (joschu.net/blog/kl-approx.html),
    whose r is pi_ref / pi = exp(-log_ratio).
    """
    k3 = torch.expm1(-log_ratio) + log_ratio  # exp(...) - 1 would lose all digits of a small ratio, and the sign
    return KLEstimates(log_ratio, log_ratio.square() / 2, k3)


def entropy(logits: Tensor) -> Tensor:
    """Entropy in nats of softmax(logits): (..., V) -> (...). A logit of -inf rules its action out and counts zero."""
    log_probs = F.log_softmax(logits, dim=-1)
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 times -inf would be NaN
    return -(log_probs.exp() * finite).sum(dim=-1)


@torch.no_grad()
def update_metrics(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor, clip: float = 0.2) -> dict[str, float]:
    """How far an update has moved the policy, as means over the real tokens.

    `ratio`: of new to old probability; on average one under the old policy. `clip_fraction`: the share of ratios
    outside [1 - clip, 1 + clip], whatever the sign of the advantage. `approx_kl`: k3 of KL(old || new), in nats. In
    this order because the *old* policy sampled the tokens: it is the `pi` of `kl_estimates`, and the log-ratio that
    goes in is log old - log new. Nothing is held back here: a policy that has run away may show as inf.
    Before the first step on a batch they are 1, 0 and 0; if not, sampling and training disagree about probabilities.
    Raises ValueError as `masked_mean` does.
    """
    _check_shapes(mask, log_probs=log_probs, old_log_probs=old_log_probs)
    log_ratio = _log_ratio(log_probs, old_log_probs, mask)
    ratio = log_ratio.exp()
    metrics = {
        "ratio": ratio,
        "clip_fraction": ((ratio - 1).abs() > clip).to(ratio.dtype),
        "approx_kl": kl_estimates(-log_ratio).k3,
    }
    return {name: masked_mean(values, mask).item() for name, values in metrics.items()}


@dataclass
class AdaptiveKL:
    """A KL coefficient that is raised while the KL is above its target and lowered while it is below.

    `coef` is the present coefficient, in reward units per nat; `target` in nats; `horizon` in episodes: over about that
    many, a KL far from its target moves `coef` by a fifth. Source: Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.
    Raises ValueError for a target or a horizon that is not positive.
    """

    coef: float
    target: float
    horizon: float = 10_000

    def __post_init__(self):
        if self.target <= 0 or self.horizon <= 0:
            raise ValueError(
                f"Target and horizon must be positive, not {self.target} nats and {self.horizon} episodes."
            )

    def update(self, kl: float, episodes: int) -> None:
        """Adapt `coef` to `kl` in nats: summed over the tokens of a response, averaged over the `episodes` responses.

        Raises ValueError for a KL that is NaN, and for five horizons at once, which could take `coef` to zero or below.
        """
        if math.isnan(kl):
            raise ValueError("The KL is NaN: look for the log-probabilities that are not finite.")
        if episodes >= 5 * self.horizon:
            raise ValueError(f"{episodes} episodes are too many for one update: raise the horizon ({self.horizon}).")
        error = max(-0.2, min(0.2, kl / self.target - 1))
        self.coef *= 1 + error * episodes / self.horizon


# --- the trainer ---


@dataclass(frozen=True)
class PPOConfig:
    """How to improve a language model with PPO. Defaults are for models of about a million parameters."""

    updates: int = 40  # the learning rate rises over the first `warmup` of them, and falls linearly to 0
    batch_size: int = 128  # episodes an update, of all processes together
    epochs: int = 2  # InstructGPT: 1; Ziegler et al.: 4
    minibatches: int = 4  # of an epoch, a step each; drawn anew in each
    micro_batch: int = 32  # rows a forward pass; the gradient does not depend on it
    learning_rate: float = 2e-4  # the larger, the farther from the reference for the same reward
    value_learning_rate: float = 5e-3  # of the value head; a value model's own pace is the policy's
    warmup: int = 4  # updates; a quarter of the run is too many, none lets Adam's first steps be wild
    adam_epsilon: float = 1e-5  # Ziegler et al.; the library's 1e-8 makes the first steps larger
    max_gradient_norm: float = 1.0
    clip: float = 0.2  # InstructGPT appendix C.4, like every clip since Schulman et al.
    value_clip: float | None = 0.2  # in reward units
    value_coef: float = 0.1  # Ziegler et al.
    gamma: float = 1.0  # InstructGPT: no discount
    lam: float = 0.95
    kl_coef: float = 0.1  # beta, reward units a nat; the first value of it where `kl_target` is set
    kl_target: float | None = None  # nats a response, for `AdaptiveKL`; None: the coefficient stays as it is
    kl_horizon: float = 10_000  # episodes, for `AdaptiveKL`
    whiten_advantages: bool = True  # over the whole batch
    whiten_rewards: bool = False  # their scale alone
    temperature: float = 1.0  # of the samples, and of every probability
    max_new_tokens: int = 80  # longer than 99 in 100 responses of the miniature world
    eos_penalty: float = 1.0  # taken off the score of a response that the limit cut
    ptx_coef: float = 0.0  # weight of the pretraining loss, InstructGPT's gamma; its unit is a nat a token
    ptx_batch: int = 32  # pretraining texts a minibatch


class Rollout(NamedTuple):
    """A batch of episodes: what was asked and answered, and what the sampling policy thought of it, (B, R) each."""

    queries: list[list[int]]
    responses: list[list[int]]
    log_probs: Tensor
    values: Tensor  # before each token
    mask: Tensor  # True on tokens of the response


Reward = Callable[[list[str], list[str]], Sequence[float]]  # prompts, responses -> one score each


class PPO:
    """A policy, its frozen reference, its values and the optimizer between two updates.

    `policy` and `reference` are causal language models of any kind, with one tokenizer. Values come from a linear head
    on the policy's last layer, zero at first (Ziegler et al. 2019), or from a `value_model`, usually a copy of the
    reward model (InstructGPT), which is trained along. `pretraining` are the texts of PPO-ptx. With an `accelerator` of
    several processes, each brings its share of the episodes, and all take the same step. Dropout is off, always: the
    policy that is asked for probabilities is the one that sampled.

    Raises ValueError for a reference that is the policy itself, a `ptx_coef` without texts, a `kl_target` that is not
    positive, and a batch that the processes cannot share equally.
    """

    def __init__(
        self,
        policy,
        reference,
        config: PPOConfig,
        tokenizer,
        seed: int = 0,
        *,
        value_model=None,
        pretraining: Sequence[str] = (),
        accelerator: Accelerator | None = None,
    ):
        if reference is policy:
            raise ValueError("The reference is the policy itself, so it would learn too: pass `copy.deepcopy(policy)`.")
        if config.ptx_coef and not pretraining:
            raise ValueError(f"`ptx_coef` is {config.ptx_coef}, but there are no texts: pass `pretraining=[...]`.")
        self.policy, self.reference, self.value_model = policy, reference.requires_grad_(False), value_model
        self.config, self.tokenizer, self.seed, self.accelerator = config, tokenizer, seed, accelerator
        if config.batch_size % self._processes():
            raise ValueError(f"{config.batch_size} episodes cannot be shared by {self._processes()} processes equally.")
        self.pretraining = [encode(tokenizer, "", text, _context(policy)) for text in pretraining]
        self.value_head = torch.nn.Linear(policy.config.hidden_size, 1, device=policy.device, dtype=policy.dtype)
        torch.nn.init.zeros_(self.value_head.weight)
        torch.nn.init.zeros_(self.value_head.bias)
        self.rates = self._learning_rates()
        self.parameters = [p for parameters, _ in self.rates for p in parameters]
        self.optimizer = torch.optim.Adam(
            [{"params": parameters, "lr": rate} for parameters, rate in self.rates],
            betas=(0.9, 0.95),
            eps=config.adam_epsilon,
            fused=True,
        )
        self.kl = None
        if config.kl_target is not None:
            self.kl = AdaptiveKL(config.kl_coef, config.kl_target, config.kl_horizon)
        self.done, self.generated, self.texts_read = 0, 0, 0  # updates, calls of `generate`, pretraining texts
        self._kept: tuple[list[list[int]], Samples] | None = None

    @property
    def kl_coef(self) -> float:
        """The present beta, reward units a nat."""
        return self.kl.coef if self.kl else self.config.kl_coef

    def generate(self, queries: Sequence[Sequence[int]]) -> list[list[int]]:
        """Answer tokenized queries; a response ends with the end token unless the limit cut it.

        Log-probabilities and values of the responses are kept for the next `step`, so that the policy need not read
        again what it has just written.
        """
        self.generated += 1
        self._without_dropout()
        seed = ((self.seed * 1_000_003 + self.generated) * 1_009 + self._rank()) % 2**63
        queries = _token_lists(queries)
        critic = None if self.value_model else lambda states: self.value_head(states).squeeze(-1)
        samples = sample(
            self.policy,
            queries,
            self.config.max_new_tokens,
            self.tokenizer.eos_token_id,
            seed,
            self.config.temperature,
            critic=critic,
        )
        self._kept = queries, samples
        return samples.responses

    def step(self, queries: Sequence, responses: Sequence, scores: Sequence[float]) -> dict[str, float]:
        """One update on scored episodes: tokenized queries and responses, and a score each.

        What `generate` kept is used if these are the responses it gave; otherwise the policy reads them. Returns

        - `score`, the mean of the scores; `reward`, the same after the penalty for responses without an end; `kl`, the
          mean log-ratio to the reference in nats a response; `kl_coef`; `objective`, reward - kl_coef * kl;
        - `length` in tokens; `ended`, the share of responses with an end token; `entropy` in nats a token, estimated by
          minus the mean log-probability of the sampled tokens;
        - `value` and `return`, means over the tokens; `explained_variance`, the share of the returns' variance that the
          old values explain; `advantage_std`, before whitening;
        - means over the steps: `policy_loss`, `value_loss`, `ptx_loss` (nats a token, with PPO-ptx only), `ratio`,
          `clip_fraction` and `approx_kl` (see `update_metrics`) before each step, `gradient_norm` before clipping;
        - `first_ratio_error`, the largest |ratio - 1| before the first step, which is zero but for rounding;
        - `learning_rate`; `reference_seconds` and `update_seconds`, what reading the reference and the steps took.

        With several processes losses are those of all episodes, other metrics means over processes, which have equally
        many; `first_ratio_error` and the times are this process's.
        Raises ValueError where the three differ in length, a response is empty, a score is not finite, an episode does
        not fit the model's context, or there are fewer episodes than minibatches.
        """
        queries, responses = _token_lists(queries), _token_lists(responses)
        scores = _checked_scores(queries, responses, scores).to(self.policy.device)
        self._check_episodes(queries, responses)
        self._without_dropout()
        rollout = self._rollout(queries, responses)
        start = time.perf_counter()
        log_ratio = rollout.log_probs - self._reference_log_probs(rollout)
        middle = time.perf_counter()
        ended = torch.tensor([r[-1] == self.tokenizer.eos_token_id for r in responses], device=scores.device)
        penalized = scores - self.config.eos_penalty * ~ended
        advantages, returns, metrics = self._advantages(rollout, self._rewards(rollout, penalized, log_ratio))
        kl = self._mean(log_ratio.sum(dim=1).mean().item())
        metrics |= {
            "score": scores.mean().item(),
            "reward": penalized.mean().item(),
            "length": rollout.mask.sum(dim=1).float().mean().item(),
            "ended": ended.float().mean().item(),
            "entropy": -masked_mean(rollout.log_probs, rollout.mask).item(),
        }
        metrics = {name: self._mean(value) for name, value in metrics.items()}
        metrics |= {"kl": kl, "kl_coef": self.kl_coef, "objective": metrics["reward"] - self.kl_coef * kl}
        metrics |= {"learning_rate": self._anneal()} | self._improve(rollout, advantages, returns)
        metrics |= {"reference_seconds": middle - start, "update_seconds": time.perf_counter() - middle}
        if self.kl:
            self.kl.update(kl, len(scores) * self._processes())
        self.done, self._kept = self.done + 1, None  # what was kept is of the policy before this update
        return metrics

    def train(
        self, prompts: Sequence[str], reward_fn: Reward, after_update: Callable[[dict], None] | None = None
    ) -> list[dict[str, float]]:
        """Updates up to `config.updates`, from wherever `resume` left off; returns the metrics of each.

        Every prompt is asked once before one is asked twice, in random order. `reward_fn` gets prompts and responses as
        texts. `after_update` is called with the metrics of each update. Raises ValueError for no prompts.
        """
        if not prompts:
            raise ValueError("There is nothing to ask: pass at least one prompt.")
        history = []
        progress = tqdm(total=self.config.updates, initial=self.done, desc="PPO", leave=False)
        while self.done < self.config.updates:
            asked = self._next_prompts(prompts)
            queries = [self.tokenizer(prompt)["input_ids"] for prompt in asked]
            responses = self.generate(queries)
            texts = self._kept[1].texts(self.tokenizer)
            history.append(self.step(queries, responses, reward_fn(asked, texts)))
            progress.update()
            if after_update:
                after_update(history[-1])
        progress.close()
        return history

    def save(self, path: Path | str) -> None:
        """Write everything that `resume` needs to a file, which replaces an older one only when it is complete."""
        path = Path(path)
        temporary = path.with_name(path.name + ".tmp")
        torch.save(self._state(), temporary)
        os.replace(temporary, path)

    def resume(self, path: Path | str) -> None:
        """Go on from a file written by `save`: what follows is what would have followed then.

        Raises ValueError for a file that was written with another config or seed.
        """
        state = torch.load(path, map_location=self.policy.device, weights_only=True)
        for name, now in (("config", asdict(self.config)), ("seed", self.seed)):
            if state[name] != now:
                raise ValueError(f"{path} was written with another {name}, {state[name]}: build PPO with that one.")
        for name, part in self._parts().items():
            part.load_state_dict(state[name])
        self.done, self.generated, self.texts_read = state["counters"]
        if self.kl:
            self.kl.coef = state["kl_coef"]
        self._kept = None

    def _learning_rates(self) -> list[tuple[list, float]]:
        """Parameters that learn, and how fast: the policy's, and those of what gives values."""
        critic = (self.value_model, self.config.learning_rate)
        if not self.value_model:
            critic = (self.value_head, self.config.value_learning_rate)
        parts = ((self.policy, self.config.learning_rate), critic)
        return [([p for p in part.parameters() if p.requires_grad], rate) for part, rate in parts]

    def _state(self) -> dict:
        counters = [self.done, self.generated, self.texts_read]
        parts = {name: part.state_dict() for name, part in self._parts().items()}
        return parts | {"config": asdict(self.config), "seed": self.seed, "counters": counters, "kl_coef": self.kl_coef}

    def _parts(self) -> dict:
        critic = {"value_model": self.value_model} if self.value_model else {"value_head": self.value_head}
        return {"policy": self.policy, "optimizer": self.optimizer} | critic

    def _check_episodes(self, queries: list[list[int]], responses: list[list[int]]) -> None:
        if len(queries) < self.config.minibatches:
            raise ValueError(f"{len(queries)} episodes cannot make {self.config.minibatches} minibatches: give more.")
        rooms = [room for model in (self.policy, self.value_model) if model and (room := _context(model))]
        longest = max(len(query) + len(response) for query, response in zip(queries, responses, strict=True))
        if rooms and longest > min(rooms):
            raise ValueError(f"An episode of {longest} tokens does not fit the context of {min(rooms)}: shorten it.")

    def _without_dropout(self) -> None:
        """Whatever a caller did to the models in between."""
        for model in (self.policy, self.reference, self.value_model):
            if model:
                model.eval()

    # From a batch of episodes to advantages

    def _rollout(self, queries: list[list[int]], responses: list[list[int]]) -> Rollout:
        if self._kept and self._kept[0] == queries and self._kept[1].responses == responses:
            samples = self._kept[1]
            log_probs, values = (
                pad_sequence([torch.tensor(row.tolist()) for row in rows], batch_first=True).to(self.policy.device)
                for rows in (samples.log_probabilities, samples.values or [torch.zeros(1)])
            )
        else:
            log_probs, values = self._in_batches(self._read, queries, responses)
        if self.value_model:
            (values,) = self._in_batches(lambda *rows: (self._read_values(*rows),), queries, responses)
        lengths = torch.tensor([len(response) for response in responses], device=log_probs.device)
        mask = torch.arange(log_probs.shape[1], device=log_probs.device) < lengths[:, None]
        return Rollout(queries, responses, log_probs, values, mask)

    def _reference_log_probs(self, rollout: Rollout) -> Tensor:
        """(B, R), zero at padding."""

        def read(queries, responses):
            return (read_responses(self.reference, queries, responses, self.config.temperature)[0],)

        return self._in_batches(read, rollout.queries, rollout.responses)[0]

    @torch.no_grad()
    def _in_batches(self, read: Callable, queries, responses) -> tuple[Tensor, ...]:
        """What `read` gives for each row, (B, R) each, zero at padding; rows of similar length are read together."""
        width = max(map(len, responses))
        columns: list[Tensor] = []
        for rows in length_batches(list(zip(queries, responses, strict=True)), self.config.micro_batch):
            found = read([queries[i] for i in rows], [responses[i] for i in rows])
            columns = columns or [value.new_zeros(len(queries), width) for value in found]
            for column, value in zip(columns, found, strict=True):
                column[rows, : value.shape[1]] = value
        return tuple(columns)

    def _rewards(self, rollout: Rollout, scores: Tensor, log_ratio: Tensor) -> Tensor:
        """The reward of each token (B, R)."""
        rewards = penalized_rewards(scores, log_ratio, rollout.mask, self.kl_coef)
        return self._whiten(rewards, rollout.mask, shift_mean=False) if self.config.whiten_rewards else rewards

    def _advantages(self, rollout: Rollout, rewards: Tensor) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Advantages, whitened if they are to be, and returns, (B, R) each, and what is worth knowing about them."""
        values, mask = rollout.values, rollout.mask
        advantages, returns = gae(rewards, values, mask, self.config.gamma, self.config.lam)
        variance = returns[mask].var(correction=0)
        explained = 1 - (returns - values)[mask].var(correction=0) / variance if variance > 0 else torch.tensor(0.0)
        metrics = {
            "value": masked_mean(values, mask).item(),
            "return": masked_mean(returns, mask).item(),
            "explained_variance": explained.item(),
            "advantage_std": advantages[mask].std(correction=0).item(),
        }
        if self.config.whiten_advantages:
            advantages = self._whiten(advantages, mask)
        return advantages, returns, metrics

    def _whiten(self, x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
        """`whiten` over the episodes of all processes."""
        if self._processes() == 1:
            return whiten(x, mask, shift_mean)
        parts = gather_object([x[mask].cpu()])
        rank = self._rank()
        everyone = torch.cat(parts)[None]
        flat = whiten(everyone, torch.ones_like(everyone, dtype=torch.bool), shift_mean)[0]
        mine = flat.split([len(part) for part in parts])[rank].to(x)
        return x.new_zeros(x.shape).masked_scatter(mask, mine)

    # From advantages to steps

    def _anneal(self) -> float:
        """Set the learning rate of this update and return it."""
        share = min(1.0, (self.done + 1) / max(1, self.config.warmup)) * max(0.0, 1 - self.done / self.config.updates)
        for group, (_, rate) in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * share
        return self.config.learning_rate * share

    def _improve(self, rollout: Rollout, advantages: Tensor, returns: Tensor) -> dict[str, float]:
        """The epochs of one update; the means of its steps' metrics."""
        shuffle = torch.Generator().manual_seed(self.seed * 1_000_003 + self.done)
        steps = [
            self._minibatch(rollout, advantages, returns, rows.tolist())
            for _ in range(self.config.epochs)
            for rows in torch.randperm(len(advantages), generator=shuffle).tensor_split(self.config.minibatches)
        ]
        first = steps[0]["ratio_error"]
        means = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0] if name != "ratio_error"}
        # Losses are this process's part of a mean over all tokens: they add up.
        add_up = {name: self._processes() * means[name] for name in means if name.endswith("loss")}
        return {name: self._mean(value) for name, value in (means | add_up).items()} | {"first_ratio_error": first}

    def _minibatch(self, rollout: Rollout, advantages: Tensor, returns: Tensor, rows: list[int]) -> dict[str, float]:
        """One step on these rows of the batch. The losses are means over their tokens, whatever the micro-batches."""
        self.optimizer.zero_grad()
        count = self._sum(rollout.mask[rows].sum())
        new_log_probs, metrics = torch.zeros_like(rollout.log_probs), {"policy_loss": 0.0, "value_loss": 0.0}
        lengths = [(rollout.queries[i], rollout.responses[i]) for i in rows]
        for part in length_batches(lengths, self.config.micro_batch):
            batch = [rows[i] for i in part]
            log_probs, values = self._read([rollout.queries[i] for i in batch], [rollout.responses[i] for i in batch])
            width = log_probs.shape[1]
            old, old_values, mask = (x[batch, :width] for x in (rollout.log_probs, rollout.values, rollout.mask))
            losses = self._losses(
                (log_probs, old, advantages[batch, :width]), (values, old_values, returns[batch, :width]), mask, count
            )
            (losses[0] + self.config.value_coef * losses[1]).backward()
            new_log_probs[batch, :width] = log_probs.detach().to(new_log_probs.dtype)
            metrics = {name: metrics[name] + loss.item() for name, loss in zip(metrics, losses, strict=True)}
        if self.config.ptx_coef:
            metrics["ptx_loss"] = self._pretrain()
        metrics |= self._moved(new_log_probs[rows], rollout.log_probs[rows], rollout.mask[rows])
        metrics["gradient_norm"] = self._descend()
        return metrics

    def _losses(self, of_policy: tuple, of_values: tuple, mask: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """The two losses of a micro-batch: (new, old, advantages) and (new, old, returns), (b, r) each."""
        return (
            policy_loss(*of_policy, mask, self.config.clip, count),
            value_loss(*of_values, mask, self.config.value_clip, count),
        )

    def _moved(self, log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> dict[str, float]:
        error = ((log_probs - old_log_probs).exp() - 1).abs().masked_fill(~mask, 0).max().item()
        return update_metrics(log_probs, old_log_probs, mask, self.config.clip) | {"ratio_error": error}

    def _pretrain(self) -> float:
        """Add the gradient of the next pretraining texts' loss; returns that loss, in nats a token."""
        size, texts = self.config.ptx_batch, self.pretraining
        start = self.texts_read + self._rank() * size
        self.texts_read += size * self._processes()
        batch = [texts[i % len(texts)] for i in range(start, start + size)]
        count = self._sum(torch.tensor(sum(len(text) for _, text in batch), device=self.policy.device))
        total = 0.0
        for rows in length_batches(batch, self.config.micro_batch):
            log_probs, _, _ = read_responses(self.policy, *zip(*(batch[i] for i in rows), strict=True))
            loss = -log_probs.sum() / count
            (self.config.ptx_coef * loss).backward()
            total += loss.item()
        return total

    def _descend(self) -> float:
        """Sum the gradients of all processes, clip their norm, take the step; returns the norm before clipping."""
        if self._processes() > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_gradient_norm)
        self.optimizer.step()
        return norm.item()

    def _read(self, queries, responses) -> tuple[Tensor, Tensor]:
        """Log-probabilities and values (B, R) of responses by the present policy; zero at padding."""
        log_probs, mask, states = read_responses(self.policy, queries, responses, self.config.temperature)
        if self.value_model:
            return log_probs, self._read_values(queries, responses)
        values = self.value_head(states).squeeze(-1)  # (N,)
        return log_probs, values.new_zeros(mask.shape).masked_scatter(mask, values)

    def _read_values(self, queries, responses) -> Tensor:
        """Values (B, R) by the separate model, in the unit and with the zero of the rewards."""
        model = self.value_model
        sequences = [query + response for query, response in zip(queries, responses, strict=True)]
        hidden = model.base_model(pad_right(sequences).to(model.device)).last_hidden_state  # (B, T, D)
        values = model.score(hidden).squeeze(-1) - getattr(model.config, "reward_zero", 0.0)  # (B, T)
        width = max(map(len, responses))
        return pad_sequence(
            [row[len(q) - 1 : len(q) - 1 + len(r)] for row, q, r in zip(values, queries, responses, strict=True)],
            batch_first=True,
        )[:, :width]

    def _next_prompts(self, prompts: Sequence[str]) -> list[str]:
        """This process's prompts of the present update."""
        share = self.config.batch_size // self._processes()
        start = self.done * self.config.batch_size + self._rank() * share
        orders: dict[int, list[int]] = {}
        asked = []
        for position in range(start, start + share):
            epoch, place = divmod(position, len(prompts))
            if epoch not in orders:
                orders[epoch] = random.Random(f"prompts-{self.seed}-{epoch}").sample(range(len(prompts)), len(prompts))
            asked.append(prompts[orders[epoch][place]])
        return asked

    # Several processes

    def _processes(self) -> int:
        return self.accelerator.num_processes if self.accelerator else 1

    def _rank(self) -> int:
        return self.accelerator.process_index if self.accelerator else 0

    def _sum(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self._processes() > 1 else value

    def _mean(self, value: float) -> float:
        return self._sum(torch.tensor(value, device=self.policy.device)).item() / self._processes()


def _context(model) -> int | None:
    """How many tokens the model can read; None: no limit."""
    return getattr(model.config, "max_position_embeddings", None)


def _token_lists(sequences: Sequence) -> list[list[int]]:
    """Lists of tokens, from lists or tensors."""
    return [s.tolist() if isinstance(s, Tensor) else list(s) for s in sequences]


def _checked_scores(queries: list, responses: list, scores: Sequence[float]) -> Tensor:
    scores = torch.as_tensor(scores, dtype=torch.float32).detach().flatten()
    if not len(queries) == len(responses) == len(scores) > 0:
        raise ValueError(
            f"A step needs as many queries as responses and scores, not {len(queries)}, {len(responses)} and "
            f"{len(scores)}."
        )
    for name, rows in (("query", queries), ("response", responses)):
        if [] in rows:
            raise ValueError(f"The {name} of episode {rows.index([])} is empty: give it at least one token.")
    broken = (~scores.isfinite()).nonzero()
    if len(broken):
        raise ValueError(
            f"The score of episode {broken[0].item()} is {scores[broken[0]].item()}: look at what the reward function "
            "makes of it."
        )
    return scores


# --- what all of them share ---


def _filled(x: Tensor, mask: Tensor) -> Tensor:
    """`x` with zeros at padding. Done before any arithmetic: zero times NaN is NaN, in gradients too."""
    return x.masked_fill(~mask, 0)


def _log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    return _filled(log_probs, mask) - _filled(old_log_probs, mask)


def _last_steps(mask: Tensor) -> Tensor:
    """True on the last real step of each row (B, T)."""
    return mask & (mask.cumsum(dim=1) == mask.sum(dim=1, keepdim=True))


def _check_shapes(mask: Tensor, **tensors: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"The mask must be boolean, not {mask.dtype}: write `mask.bool()`.")
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(f"`{name}` must have the mask's shape {tuple(mask.shape)}, not {tuple(tensor.shape)}.")


def _check_steps(mask: Tensor, **tensors: Tensor) -> None:
    if mask.dim() != 2:
        raise ValueError(f"The mask must be (episodes, steps), not {tuple(mask.shape)}.")
    _check_shapes(mask, **tensors)
    broken = (mask[:, 1:] & ~mask[:, :-1]).any(dim=1).nonzero()
    if len(broken):
        raise ValueError(
            f"Real steps must come first and padding last, but row {broken[0].item()} of the mask has a gap."
        )


def _check_rows(mask: Tensor, **tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape[:1]:
            raise ValueError(f"`{name}` must have one number a row {tuple(mask.shape[:1])}, not {tuple(tensor.shape)}.")
