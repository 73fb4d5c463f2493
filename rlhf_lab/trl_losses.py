"""What TRL's trainers compute in a step, taken down while they run: the tokens they read, their loss and its gradient.

Ours is to be compared with theirs on the same tokens and weights; the caller computes ours. The trainers are driven
through what TRL documents, and only watched: `compute_loss` and `training_step` note what passes through.

RLOOTrainer and GRPOTrainer pad prompts on the left and, in TRL 1.12 to 1.16, do not say where a text begins. A model
with absolute positions, such as GPT-2, then reads it some places too far to the right: what is trained is another model
than the one that has sampled (https://github.com/huggingface/trl/issues/6800 says so of their relatives).
`library.count_positions` is the remedy.
"""

import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from rlhf_lab import language_model, library

Tokens = list[list[int]]

# An affair between TRL and transformers, which renames it; every trainer would say so several times.
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)


@dataclass(frozen=True)
class Step:
    """One step of a trainer: everything before its update."""

    loss: float
    gradient: torch.Tensor  # (P,) by all parameters, before it is clipped
    weights: dict[str, torch.Tensor]  # of the policy
    prompts: Tokens
    responses: Tokens  # of DPO, all chosen ones and then all rejected ones, each with its prompt
    inputs: dict[str, torch.Tensor]  # whatever else the loss was given, such as `advantages` (B,) and `old_logps` (B,)
    logs: dict[str, float]  # TRL's metrics of the step, such as "rewards/chosen"


def dpo_step(policy, reference, tokenizer, pairs: Sequence[dict], beta: float, **options) -> Step:
    """DPOTrainer's first step, on all pairs (prompt, chosen, rejected) at once. `options`: further settings of it."""
    import trl  # takes seconds

    with tempfile.TemporaryDirectory() as folder:
        student, anchor = _copies(policy, reference, Path(folder))
        settings = {"beta": beta, "max_steps": 1, "per_device_train_batch_size": len(pairs)} | options
        (step,) = _watch(
            trl.DPOTrainer,
            student,
            positions=False,  # it pads on the right
            ref_model=anchor,
            args=trl.DPOConfig(folder, **library.ON_A_CPU, **settings),
            processing_class=tokenizer,
            train_dataset=_dataset(pairs),
        )
    return step


def online_steps(
    method: str,
    policy,
    reference,
    tokenizer,
    prompts: Sequence[str],
    reward: Callable[[list[int]], float],
    beta: float,
    group: int = 4,
    max_new_tokens: int = 16,
    positions: bool = True,
    **options,
) -> list[Step]:
    """The steps of RLOOTrainer (`method` "RLOO") or GRPOTrainer ("GRPO") on one batch of its own: `group` responses to
    each of the prompts, which have to differ. `reward` takes the tokens of a response.

    `positions` calls `library.count_positions` on both models; without it the trainer is as TRL made it. `options` are
    further settings of it; with `num_iterations` there is more than one step. The rows of a step are in the order of
    their prompts, so that groups stand side by side, while TRL shuffles them. Raises ValueError for equal prompts.
    """
    if len(set(prompts)) < len(prompts):
        raise ValueError("Two prompts are equal, and their groups could not be told apart: pass different ones.")
    import trl

    batch = len(prompts) * group
    settings = {"beta": beta, "num_generations": group, "max_completion_length": max_new_tokens} | options
    settings |= {"per_device_train_batch_size": batch, "max_steps": settings.get("num_iterations", 1)}
    with tempfile.TemporaryDirectory() as folder:
        student, _ = _copies(policy, reference, Path(folder))
        return _watch(
            getattr(trl, f"{method}Trainer"),
            student,
            positions,
            reward_funcs=lambda completion_ids, **_: [reward(response) for response in completion_ids],
            args=getattr(trl, f"{method}Config")(folder, **library.ON_A_CPU, **settings),
            processing_class=tokenizer,
            train_dataset=_dataset([{"prompt": prompt} for prompt in prompts]),
        )


def _copies(policy, reference, folder: Path) -> tuple:
    """Copies of both that TRL may change. The policy says that it comes from the reference's folder, which is where
    RLOOTrainer and GRPOTrainer read their reference from."""
    language_model.save(reference, folder)
    student = language_model.load(folder)
    student.load_state_dict(policy.state_dict())
    return student, language_model.load(folder)


def _dataset(rows: Sequence[dict]):
    from datasets import Dataset  # takes a second

    return Dataset.from_list(list(rows))


def _watch(kind: type, model, positions: bool, **arguments) -> list[Step]:
    """Train with a trainer of this kind, and note each step."""
    from transformers import PrinterCallback

    noted: list[dict] = []

    class Watched(kind):
        def compute_loss(self, model, inputs, *rest, **options):
            weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
            loss = super().compute_loss(model, inputs, *rest, **options)
            noted.append({"loss": loss.item(), "weights": weights, "inputs": inputs})
            return loss

        def training_step(self, model, *rest, **options):
            loss = super().training_step(model, *rest, **options)
            noted[-1]["gradient"] = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
            return loss

    trainer = Watched(model, **arguments)
    trainer.remove_callback(PrinterCallback)
    for model in (trainer.model, trainer.ref_model) if positions else ():
        if model is not None:  # as the reference is with beta = 0
            library.count_positions(model)
    trainer.train()
    logs = [line for line in trainer.state.log_history if "loss" in line]
    return [_step(logs=line, **parts) for parts, line in zip(noted, logs, strict=True)]


def _step(inputs: dict, **parts) -> Step:
    """With token lists in the place of padded tensors."""
    inputs = dict(inputs)
    if "input_ids" in inputs:  # DPO: a prompt and its response in one row, (2B, T)
        rows = [inputs.pop(name) for name in ("input_ids", "attention_mask", "completion_mask")]
        there, response = rows[1].bool(), rows[2].bool()
        prompts, responses = _lists(rows[0], there & ~response), _lists(rows[0], response)
        return Step(prompts=prompts, responses=responses, inputs=inputs, **parts)
    prompts, responses = (
        _lists(inputs.pop(f"{name}_ids"), inputs.pop(f"{name}_mask").bool()) for name in ("prompt", "completion")
    )
    order = sorted(range(len(prompts)), key=prompts.__getitem__)
    inputs = {
        name: value[order] for name, value in inputs.items() if isinstance(value, torch.Tensor) and value.dim() > 0
    }
    return Step(prompts=[prompts[i] for i in order], responses=[responses[i] for i in order], inputs=inputs, **parts)


def _lists(ids: torch.Tensor, mask: torch.Tensor) -> Tokens:
    """The tokens (B, T) that the mask (B, T) leaves, row by row."""
    return [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
