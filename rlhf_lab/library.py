"""The library route: the trainers that TRL maintains, with settings that work on a CPU, one function each.

TRL's defaults are made for one large model on a GPU; `_common` holds what has to be said on a CPU, `_trl` what keeps a
run from leaving traces. A trainer rewires the model that it is given (its `forward`, its configuration, its end
tokens), so each trains a copy, whose weights go back into ours at the end.
"""

import contextlib
import copy
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import torch
import transformers
from transformers import DefaultFlowCallback, PrinterCallback, ProgressCallback, TrainerCallback, set_seed

from rlhf_lab import reward_model, sft
from rlhf_lab.instructions import template

Reward = Callable[[list[str], list[str]], Sequence[float]]  # instructions, answers -> one score each
Logs = dict[str, list[float]]


@dataclass(frozen=True)
class OnlineConfig:
    """How RLOO and GRPO improve a policy: on its own samples, each used for one step."""

    kl_coef: float = 0.1  # beta; of RLOO in reward units a nat, of GRPO a weight beside normalized advantages
    learning_rate: float = 2e-4
    answers: int = 128  # a step, as in our PPO
    group: int = 4  # answers to an instruction
    max_new_tokens: int = 64
    max_gradient_norm: float = 1.0


# --- trainers that learn from data ---


def fine_tune(model, tokenizer, examples: Sequence[tuple[str, str]], config: sft.SFTConfig, seed: int) -> list[float]:
    if not examples:
        raise ValueError("There is nothing to train on: `examples` is empty; pass at least one (prompt, response).")
    rows = [{"prompt": prompt, "completion": response} for prompt, response in examples]
    with _trl() as (trl, folder):
        args = trl.SFTConfig(**_common(folder, model, config, seed), max_length=config.max_tokens)
        logs = _train(trl.SFTTrainer, model, tokenizer, args, rows, config)
    return logs["loss"]


def fit_reward_model(
    model, tokenizer, pairs: Sequence[dict], config: reward_model.RewardModelConfig, seed: int
) -> list[float]:
    with _trl() as (trl, folder):
        args = trl.RewardConfig(**_common(folder, model, config, seed), max_length=config.max_tokens)
        logs = _train(trl.RewardTrainer, model, tokenizer, args, pairs, config)
    return logs["loss"]


def dpo(policy, reference, tokenizer, pairs: Sequence[dict], config, seed: int) -> Logs:
    with _trl() as (trl, folder):
        args = trl.DPOConfig(
            **_common(folder, policy, config, seed), beta=config.beta, max_length=policy.config.max_position_embeddings
        )
        return _train(trl.DPOTrainer, policy, tokenizer, args, pairs, config, ref_model=copy.deepcopy(reference))


# --- trainers that learn from their own answers ---


def rloo(policy, reference, tokenizer, instructions, reward: Reward, config: OnlineConfig, tokens: int, seed: int):
    return _online("RLOO", policy, reference, tokenizer, instructions, reward, config, tokens, seed)


def grpo(policy, reference, tokenizer, instructions, reward: Reward, config: OnlineConfig, tokens: int, seed: int):
    return _online("GRPO", policy, reference, tokenizer, instructions, reward, config, tokens, seed)


class _Budget(TrainerCallback):
    """Counts the tokens of all answers, their end tokens included, and stops the training once there are enough."""

    def __init__(self, tokens: int):
        self.tokens, self.generated, self.answers = tokens, 0, 0

    def spend(self, answers: Sequence[Sequence[int]]) -> None:
        self.answers += len(answers)
        self.generated += sum(map(len, answers))

    def left(self, _step: int) -> float:
        return max(0.0, 1 - self.generated / self.tokens)

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop |= self.generated >= self.tokens


def _online(method, policy, reference, tokenizer, instructions, reward, config, tokens, seed) -> dict:
    budget = _Budget(tokens)

    def judge(completions, completion_ids, instruction, **_):
        budget.spend(completion_ids)
        return [float(score) for score in reward(instruction, completions)]

    rows = [{"prompt": template(instruction), "instruction": instruction} for instruction in instructions]
    with _trl() as (trl, folder):
        student = copy.deepcopy(policy)
        student.config._name_or_path = str(_saved(reference, folder / "reference"))
        student.generation_config.eos_token_id = tokenizer.eos_token_id
        args = getattr(trl, f"{method}Config")(
            **_base(folder, policy, seed),
            learning_rate=config.learning_rate,
            max_grad_norm=config.max_gradient_norm,
            per_device_train_batch_size=config.answers,
            num_generations=config.group,
            max_completion_length=config.max_new_tokens,
            beta=config.kl_coef,
            disable_dropout=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_steps=-(-tokens // config.answers),
        )
        optimizer = _optimizer(student, config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, budget.left)
        trainer = getattr(trl, f"{method}Trainer")(
            student,
            judge,
            args=args,
            train_dataset=datasets.Dataset.from_list(rows),
            processing_class=copy.deepcopy(tokenizer),
            callbacks=[budget],
            optimizers=(optimizer, schedule),
        )
        _go(trainer)
    policy.load_state_dict(student.state_dict())
    return _logs(trainer) | {"tokens": budget.generated, "answers": budget.answers}


# --- what all have in common ---


def _optimizer(model, rate):
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True)


def _saved(model, folder):
    model.save_pretrained(folder)
    return folder


def _base(folder, model, seed):
    return {
        "output_dir": str(folder / "output"),
        "seed": seed,
        "use_cpu": model.device.type == "cpu",
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _common(folder, model, config, seed):
    return _base(folder, model, seed) | {
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
        "learning_rate": config.learning_rate,
        "max_grad_norm": config.max_gradient_norm,
    }


def _train(kind, model, tokenizer, args, rows, config, **options):
    student = copy.deepcopy(model)
    steps = config.epochs * -(-len(rows) // config.batch_size)
    trainer = kind(
        student,
        args=args,
        train_dataset=datasets.Dataset.from_list(list(rows)),
        processing_class=copy.deepcopy(tokenizer),
        optimizers=sft.adamw(student, config.learning_rate, steps, config.warmup, config.final_share),
        **options,
    )
    _go(trainer)
    model.load_state_dict(student.state_dict())
    return _logs(trainer)


def _go(trainer):
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def _logs(trainer):
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {key: [entry[key] for entry in history] for key in history[0]}


@contextlib.contextmanager
def _trl():
    import trl

    with tempfile.TemporaryDirectory() as folder:
        yield trl, Path(folder)
