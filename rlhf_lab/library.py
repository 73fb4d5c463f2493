"""The library route: the trainers that TRL maintains, one function each, on settings that work on a CPU.

TRL's defaults are those of a large model on a GPU, and some of its habits surprise; whatever has to be said against
them is said here, with its reason. The methods that learn from data have the optimizer and the learning rate with which
the course trains for itself, so that two results differ by the method.

A trainer rewires the model that it is given (`forward`, configuration, end tokens), sets the seeds of the whole
process, keeps files in its output folder and reports home. So each trains a copy, in a folder that goes away, and what
is left of it are its logs and the weights.
"""

import contextlib
import copy
import logging
import random
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import huggingface_hub.constants
import numpy as np
import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging

from rlhf_lab import instructions, reward_model, sft
from rlhf_lab.dpo import DPOConfig

Reward = Callable[[list[str], list[str]], Sequence[float]]  # instructions, answers -> one score each

ON_A_CPU = {  # most of it against a default, which is made for a GPU
    "use_cpu": True,
    "bf16": False,  # half precision is the default; on a CPU it is slow, and never exact
    "gradient_checkpointing": False,  # on by default; it computes everything twice to save memory
    "dataloader_pin_memory": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
}

# What TRL calls them, and we: what is logged of every step.
FITTED = {"loss": "loss"}
COMPARED = FITTED | {
    "rewards/accuracies": "accuracy",
    "rewards/chosen": "chosen_reward",
    "rewards/rejected": "rejected_reward",
    "rewards/margins": "margin",
}
SAMPLED = FITTED | {
    "reward": "reward",
    "kl": "kl",
    "completions/mean_length": "length",
    "completions/clipped_ratio": "ended",
    "entropy": "entropy",
    "grad_norm": "gradient_norm",
    "learning_rate": "learning_rate",
}


@dataclass(frozen=True)
class OnlineConfig:
    """How RLOO improves a policy, and with another learning rate GRPO: on its own answers, each batch of them used for
    one step."""

    kl_coef: float = 0.1  # beta
    # It falls linearly to 0 with the tokens that are left. Of 1, 2, 4 and 8e-4, for twenty steps of a model of half a
    # million parameters: with the smaller ones it has not arrived at the end, with the largest the KL costs too much.
    learning_rate: float = 4e-4
    answers: int = 128  # a step, as many as PPO's batch
    group: int = 4  # answers to an instruction
    max_new_tokens: int = 64
    max_gradient_norm: float = 1.0


# Beside advantages of size one, a nat costs less than in rewards: with RLOO's learning rate, GRPO runs far away.
GRPO = OnlineConfig(learning_rate=2.5e-5)


# --- methods that learn from data ---


def fine_tune(model, tokenizer, examples: Sequence[tuple[str, str]], config: sft.SFTConfig, seed: int) -> list[float]:
    """Train `model` in place on (prompt, response) pairs with `SFTTrainer`; as `sft.train`, but for the batches.

    Returns the loss of every step, in nats per token of the responses and their end tokens. Longer texts than
    `max_tokens` lose their ends, where `sft.train` would also cut prompts. Raises ValueError for no examples.
    """
    rows = [{"prompt": prompt, "completion": response} for prompt, response in examples]
    with _trl() as (trl, folder):
        args = trl.SFTConfig(
            **_settings(folder, model, seed, config.learning_rate, config.max_gradient_norm, config.batch_size),
            num_train_epochs=config.epochs,
            max_length=config.max_tokens,
            train_sampling_strategy="group_by_length",  # as our batches: little padding
        )
        return _fit(trl.SFTTrainer, model, tokenizer, args, rows, config, FITTED)["loss"]


def fit_reward_model(
    model, tokenizer, pairs: Sequence[dict], config: reward_model.RewardModelConfig, seed: int
) -> list[float]:
    """Fit `model` in place to pairs with prompt, chosen and rejected with `RewardTrainer`; as `reward_model.train`, but
    for the batches, and for pairs longer than `max_tokens`, which TRL leaves out.

    Returns the loss of every step, in nats. Raises ValueError for no pairs, where all are too long, and for a
    tokenizer that pads with its end token: the model would be read one token too early, with no warning.
    """
    if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
        raise ValueError("The tokenizer pads with its end token, which the reward model is to read: give it its own.")
    rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    with _trl() as (trl, folder):
        args = trl.RewardConfig(
            **_settings(folder, model, seed, config.learning_rate, config.max_gradient_norm, config.batch_size),
            num_train_epochs=config.epochs,
            max_length=config.max_tokens,
        )
        return _fit(trl.RewardTrainer, model, tokenizer, args, rows, config, FITTED)["loss"]


def dpo(policy, reference, tokenizer, pairs: Sequence[dict], config: DPOConfig, seed: int) -> dict[str, list[float]]:
    """Fit `policy` in place to pairs with prompt, chosen and rejected with `DPOTrainer`; as `dpo.train`, but for the
    batches. With `config.mean`, TRL's loss "sigmoid_norm".

    Returns the same lists as `dpo.train`, one value a step; the rewards are those of sums in either case. Every text
    gets an end token, also an answer that the length limit cut. Raises ValueError for no pairs.
    """
    rows = [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in pairs]
    with _trl() as (trl, folder):
        args = trl.DPOConfig(
            **_settings(folder, policy, seed, config.learning_rate, config.max_gradient_norm, config.batch_size),
            num_train_epochs=config.epochs,
            max_length=config.max_tokens,
            beta=config.beta,
            loss_type="sigmoid_norm" if config.mean else "sigmoid",
        )
        anchor = copy.deepcopy(reference)  # TRL rewires this one, too
        return _fit(trl.DPOTrainer, policy, tokenizer, args, rows, config, COMPARED, ref_model=anchor)


def _fit(trainer_class, model, tokenizer, args, rows, config, names: dict[str, str], **options) -> dict:
    if not rows:
        raise ValueError("There is nothing to learn from: pass at least one example.")
    student = copy.deepcopy(model)
    trainer = trainer_class(
        student,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=copy.deepcopy(tokenizer),
        **options,
    )
    if not len(trainer.train_dataset):
        raise ValueError(f"Nothing is left to learn from: every text is longer than {args.max_length} tokens.")
    steps = config.epochs * -(-len(trainer.train_dataset) // config.batch_size)
    trainer.optimizer, trainer.lr_scheduler = sft.adamw(
        student, config.learning_rate, steps, config.warmup, config.final_share, getattr(config, "weight_decay", 0.0)
    )
    return _trained(trainer, model, names)


# --- methods that learn from their own answers ---


def rloo(
    policy,
    reference,
    tokenizer,
    asked: Sequence[str],
    reward: Reward,
    config: OnlineConfig,
    tokens: int,
    seed: int,
) -> dict:
    """Improve `policy` in place with `RLOOTrainer`, until it has generated `tokens` tokens.

    `asked` are instructions without the template. `reward` gets them and the answers as text, without special tokens.
    The KL penalty is part of the reward, `kl_coef` reward units a nat, as in our RLOO and PPO.

    Returns a list for each of `SAMPLED`, one value a step: `kl` in nats a response, the mean log-ratio to the
    reference, which may be negative; `length` in tokens with the end token; `ended`, the share of the answers that
    ended by themselves. And `tokens` and `answers`, how many were generated: the step that exceeds the budget is the
    last one. Raises ValueError where the instructions are too few for a step, and for a `kl_coef` of 0.
    """
    return _improve("RLOO", policy, reference, tokenizer, asked, reward, config, tokens, seed)


def grpo(
    policy,
    reference,
    tokenizer,
    asked: Sequence[str],
    reward: Reward,
    config: OnlineConfig,
    tokens: int,
    seed: int,
) -> dict:
    """The same with `GRPOTrainer`: advantages are divided by the standard deviation of their group, and the KL is no
    part of the reward but of the loss, with weight `kl_coef` beside advantages of size one.

    `kl` is that of the estimator k3, which is never negative.
    """
    return _improve("GRPO", policy, reference, tokenizer, asked, reward, config, tokens, seed)


class _Budget(TrainerCallback):
    """Counts the tokens of all answers, end tokens included, and stops the training when there are enough."""

    def __init__(self, tokens: int):
        self.budget, self.tokens, self.answers = tokens, 0, 0

    def spend(self, answers: Sequence[Sequence[int]]) -> None:
        self.tokens += sum(map(len, answers))
        self.answers += len(answers)

    def share_left(self, _step: int) -> float:
        return max(0.0, 1 - self.tokens / self.budget)

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= self.tokens >= self.budget


def _improve(method, policy, reference, tokenizer, asked, reward, config: OnlineConfig, tokens, seed) -> dict:
    if len(asked) * config.group < config.answers:
        raise ValueError(
            f"{len(asked)} instructions with {config.group} answers each do not fill a step of {config.answers} "
            "answers: pass more instructions."
        )
    if config.kl_coef <= 0:
        raise ValueError(f"kl_coef = {config.kl_coef} must be above 0: else TRL has no reference, and measures no KL.")
    budget = _Budget(tokens)

    def score(completion_ids, instruction, **_):
        # TRL's own texts lack every special token, not the end key alone, and a reward should see them.
        budget.spend(completion_ids)
        return [float(value) for value in reward(instruction, instructions.answers(tokenizer, completion_ids))]

    student = copy.deepcopy(policy)
    student.generation_config.eos_token_id = tokenizer.eos_token_id  # or any end token of the model ends an answer
    optimizer, _ = sft.adamw(student, config.learning_rate, steps=1)
    with _trl() as (trl, folder):
        reference.save_pretrained(folder / "reference")
        student.config._name_or_path = str(folder / "reference")  # where the trainer takes the reference from
        trainer = getattr(trl, f"{method}Trainer")(
            student,
            score,
            args=getattr(trl, f"{method}Config")(
                **_settings(folder, policy, seed, config.learning_rate, config.max_gradient_norm, config.answers),
                **_sampling(config),
                max_steps=-(-tokens // config.answers),  # no answer has less than one token
            ),
            train_dataset=datasets.Dataset.from_list(
                [{"prompt": instructions.template(text), "instruction": text} for text in asked]
            ),
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[budget],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, budget.share_left)),
        )
        for model in (trainer.model, trainer.ref_model):
            count_positions(model)
        logs = _trained(trainer, policy, SAMPLED)
    logs["kl"] = [kl * length for kl, length in zip(logs["kl"], logs["length"], strict=True)]  # a token -> a response
    logs["ended"] = [1 - cut for cut in logs["ended"]]
    return logs | {"tokens": budget.tokens, "answers": budget.answers}


def _sampling(config: OnlineConfig) -> dict:
    return {
        "num_generations": config.group,
        "max_completion_length": config.max_new_tokens,
        "beta": config.kl_coef,
        "disable_dropout": True,  # not the default; else the policy that learns is not the one that answered
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }


def count_positions(model) -> None:
    """Have a model count the positions of each text from its first token on, where it is not told them.

    The trainers pad prompts on the left and, in TRL 1.12 to 1.16, leave the positions to the model; one with absolute
    positions, such as GPT-2, then counts the pads, too, and the probabilities are not those with which the answers were
    drawn (https://github.com/huggingface/trl/issues/6800 says so of their relatives).
    """

    def tell(_model, inputs: tuple, named: dict) -> tuple:
        mask = named.get("attention_mask")  # (B, T)
        if mask is not None and named.get("position_ids") is None:
            named["position_ids"] = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return inputs, named

    model.base_model.register_forward_pre_hook(tell, with_kwargs=True)


# --- what all of them need ---


def _settings(folder: Path, model, seed: int, learning_rate: float, max_gradient_norm: float, batch_size: int) -> dict:
    """What every trainer is told; most of it against a default."""
    return ON_A_CPU | {
        "output_dir": str(folder / "output"),
        "seed": seed,
        "learning_rate": learning_rate,
        "max_grad_norm": max_gradient_norm,
        "per_device_train_batch_size": batch_size,
        "use_cpu": model.device.type == "cpu",
    }


def _trained(trainer, model, names: dict[str, str]) -> dict[str, list[float]]:
    """Train, bring the weights home, and return what was logged, step by step."""
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.load_state_dict(trainer.model.state_dict())
    steps = [step for step in trainer.state.log_history if "loss" in step]
    return {ours: [step[theirs] for step in steps] for theirs, ours in names.items()}


@contextlib.contextmanager
def _trl() -> Iterator[tuple]:
    """The library, which takes seconds to import, and a folder that goes away. What runs within leaves the process as
    it was: its random numbers, its loggers, its progress bars. Nothing is said, and nobody is told."""
    import trl

    with tempfile.TemporaryDirectory() as folder, _quiet(), _own_random_numbers():
        yield trl, Path(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("trl", "transformers", "accelerate", "datasets")]
    levels = [logger.level for logger in loggers]
    bars = datasets.are_progress_bars_disabled(), transformers_logging.is_progress_bar_enabled()
    constants = huggingface_hub.constants
    telemetry = constants.HF_HUB_DISABLE_TELEMETRY
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        constants.HF_HUB_DISABLE_TELEMETRY = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not bars[0]:
            datasets.enable_progress_bars()
        if bars[1]:
            transformers_logging.enable_progress_bar()
        constants.HF_HUB_DISABLE_TELEMETRY = telemetry


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
