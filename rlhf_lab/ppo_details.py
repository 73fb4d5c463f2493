"""PPO with one of its details switched off: the mistakes of real programs, made on purpose, one at a time.

Every entry of `DETAILS` is a tiny change of `ppo.PPO`: other fields of its config, or a subclass that overrides one
step. Most of them run, log plausible numbers and learn something, which is why they go unnoticed. `row` is that of the
checklist in docs/ppo.md.
"""

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlhf_lab.language_model import length_batches, response_log_probabilities
from rlhf_lab.ppo import PPO, PPOConfig
from rlhf_lab.sampling import Samples

DROPOUT = 0.1
COOL = 0.7  # temperature, TRL's default
FEW_ROWS = 4  # a micro-batch so small that a minibatch has several


class WithDropout(PPO):
    """Dropout is on in the update, and off where the policy samples."""

    def _improve(self, rollout, advantages, returns):
        with _dropout(self.policy):
            return super()._improve(rollout, advantages, returns)


class TemperatureForgotten(PPO):
    """The sampler divides the logits by `COOL`, and reports what it drew from; the reference and the update, which read
    the text again, divide by nothing."""

    def generate(self, queries):
        config, self.config = self.config, replace(self.config, temperature=COOL)
        try:
            return super().generate(queries)
        finally:
            self.config = config


class DrawnValueHead(PPO):
    """The value head begins as reward models' heads do, drawn from N(0, 1/(d + 1)), and not at zero."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        generator = torch.Generator().manual_seed(self.seed)
        width = self.value_head.in_features
        drawn = torch.randn(1, width, generator=generator) * (width + 1) ** -0.5
        self.value_head.weight.data.copy_(drawn)


class ScoreInLastColumn(PPO):
    """The score is the reward of the last *column* of the padded batch, so only the longest responses get theirs."""

    def _rewards(self, rollout, scores, log_ratio):
        rewards = super()._rewards(rollout, torch.zeros_like(scores), log_ratio)
        rewards[:, -1] += scores * rollout.mask[:, -1]
        return rewards


class PaddingCounts(PPO):
    """Whitening takes its moments, and the losses their means, over all cells of the batch, padding included."""

    def _whiten(self, x, mask, shift_mean=True):
        return super()._whiten(x, torch.ones_like(mask), shift_mean)

    def _losses(self, of_policy, of_values, mask, count):
        return super()._losses(of_policy, of_values, mask, count * (mask.numel() / mask.sum()))


class MeanOfMeans(PPO):
    """Each micro-batch has a mean of its own, and the step is the mean of these, however many tokens they are of."""

    def _losses(self, of_policy, of_values, mask, count):
        rows = self.config.batch_size // self.config.minibatches
        return super()._losses(of_policy, of_values, mask, mask.sum() * -(-rows // self.config.micro_batch))


class WhitenedTargets(PPO):
    """The value function aims at the *whitened* advantages plus the old values."""

    def _advantages(self, rollout, rewards):
        advantages, _, metrics = super()._advantages(rollout, rewards)
        return advantages, (advantages + rollout.values) * rollout.mask, metrics


@dataclass(frozen=True)
class Detail:
    """One detail switched off: `what` happens then, in a sentence; the `row` of the checklist; and how it is built."""

    what: str
    row: int
    changes: Mapping[str, object] = field(default_factory=dict)  # fields of the config
    trainer: type[PPO] = PPO
    separate_value_model: bool = False  # a copy of the reward model
    control: str = "full"  # the run it is compared with


CONTROLS: dict[str, dict[str, object]] = {"full": {}, "full_cool": {"temperature": COOL}}  # nothing is switched off

DETAILS: dict[str, Detail] = {
    "no_kl": Detail("No penalty for leaving the reference.", 18, {"kl_coef": 0.0}),
    "no_whitening": Detail("Advantages are used as they are.", 25, {"whiten_advantages": False}),
    "dropout": Detail(f"Dropout of {DROPOUT} in the update, none where the policy samples.", 16, trainer=WithDropout),
    "wrong_temperature": Detail(
        f"Sampled at temperature {COOL}; the reference and the update compute log-probabilities at 1.",
        5,
        trainer=TemperatureForgotten,
        control="full_cool",
    ),
    "drawn_value_head": Detail("The value head does not begin at zero.", 13, trainer=DrawnValueHead),
    "separate_value_model": Detail(
        "Values come from a model of their own, at first a copy of the reward model.", 13, separate_value_model=True
    ),
    "no_value_clip": Detail("The value loss is not clipped.", 28, {"value_clip": None}),
    "no_eos_penalty": Detail("A response that the limit cut pays nothing.", 9, {"eos_penalty": 0.0}),
    "score_in_last_column": Detail(
        "The score arrives in the last column of the padded batch; only the longest responses get theirs.",
        11,
        trainer=ScoreInLastColumn,
    ),
    "padding_counts": Detail("Whitening and losses average over padding, too.", 25, trainer=PaddingCounts),
    "mean_of_means": Detail(
        f"The loss is a mean over micro-batches ({FEW_ROWS} rows each) of means over tokens.",
        29,
        {"micro_batch": FEW_ROWS},
        MeanOfMeans,
    ),
    "whitened_targets": Detail("Values aim at whitened advantages plus old values.", 24, trainer=WhitenedTargets),
    "adam_epsilon": Detail("Adam's epsilon is the library's 1e-8.", 30, {"adam_epsilon": 1e-8}),
}


def build(name: str, policy, reference, config: PPOConfig, tokenizer, seed: int, judge=None) -> PPO:
    """PPO with the detail `name` of `DETAILS` switched off, or one of the `CONTROLS`.

    `judge` is the reward model, of which a separate value model is a copy. Raises ValueError for an unknown name, and
    where the judge is missing.
    """
    if name in CONTROLS:
        return PPO(policy, reference, replace(config, **CONTROLS[name]), tokenizer, seed)
    if name not in DETAILS:
        raise ValueError(f"There is no detail {name!r}: choose one of {', '.join((*CONTROLS, *DETAILS))}.")
    detail = DETAILS[name]
    if detail.separate_value_model and judge is None:
        raise ValueError(f"The detail {name!r} begins with a copy of the reward model: pass `judge`.")
    value_model = copy.deepcopy(judge).requires_grad_(True) if detail.separate_value_model else None
    config = replace(config, **detail.changes)
    return detail.trainer(policy, reference, config, tokenizer, seed, value_model=value_model)


def sampling_temperature(name: str) -> float:
    """The temperature at which a run of `build` samples, so the one at which its policy is to be used and judged."""
    return COOL if "full_cool" in (name, DETAILS[name].control if name in DETAILS else name) else 1.0


@torch.no_grad()
def log_ratios(reference, queries: Sequence[list[int]], samples: Samples, temperature: float) -> Tensor:
    """log pi(y | x) - log pi_ref(y | x) of whole samples (N,), in nats, both at the temperature of the samples. Their
    mean estimates the KL of the distributions that are really sampled from, without bias."""
    ratios = torch.stack([values.sum() for values in samples.log_probabilities])
    for rows in length_batches(list(zip(queries, samples.responses, strict=True)), batch_size=64):
        read = [queries[i] for i in rows], [samples.responses[i] for i in rows]
        ratios[rows] -= response_log_probabilities(reference, *read, temperature)[0].sum(dim=1).to(ratios)
    return ratios


@contextlib.contextmanager
def _dropout(model):
    """Train mode with a dropout of `DROPOUT`, and what was before afterwards."""
    layers = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    rates = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = DROPOUT
        model.train()
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate
        model.eval()
