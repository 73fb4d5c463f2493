"""A reward model that somebody else built: any sequence classifier with one label, and the tokenizer that goes with it.

It is asked in words, about an instruction and an answer as a pair, and its raw logit is the reward. So the policy may
have another tokenizer: nothing passes between the two but text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lab.errors import CourseError

BATCH = 64  # pairs read at once


class RewardModelError(CourseError, ValueError):
    """A model is no reward model of pairs. The message is one sentence that names it."""


class PairReward(NamedTuple):
    """Calling it gives one score for each instruction and its answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @torch.inference_mode()
    def __call__(self, instructions: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Raw logits, (N,). What is too long for the model is cut at its end, the longer text of a pair first. Raises
        ValueError where the two differ in length."""
        pairs = list(zip(instructions, answers, strict=True))
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))  # little padding
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = self.tokenizer(
                [pairs[i][0] for i in rows],
                [pairs[i][1] for i in rows],
                padding=True,
                padding_side="right",  # causal models count positions from the left
                truncation=True,
                max_length=min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings),
                return_tensors="pt",
            ).to(self.model.device)
            for i, logit in zip(rows, self.model(**inputs).logits[:, 0].tolist(), strict=True):
                scores[i] = logit
        return scores


def load(checkpoint: str | Path) -> PairReward:
    """Read model and tokenizer from a folder or the Hub, in float32. Raises RewardModelError for a model with more than
    one label, for one whose head is not among the weights, and for one that cannot tell its pads from its text."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        checkpoint, dtype=torch.float32, output_loading_info=True
    )
    if model.config.num_labels != 1:
        raise RewardModelError(f"{checkpoint} has {model.config.num_labels} labels, but a reward model has one.")
    if missing := sorted(report["missing_keys"]):  # the library would draw them at random, and say so in a warning
        raise RewardModelError(
            f"{checkpoint} lacks {len(missing)} of the weights of a reward model ({missing[0]}): its scores would be "
            "noise."
        )
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != model.config.pad_token_id:
        raise RewardModelError(
            f"The pad token of {checkpoint} is {tokenizer.pad_token_id} to its tokenizer and "
            f"{model.config.pad_token_id} to its model, so give both the same one."
        )
    return PairReward(model.eval(), tokenizer)


def joining(model, tokenizer, before_instruction: str, before_answer: str) -> PairReward:
    """A reward model of our own, whose tokenizer from now on joins a pair as these two tokens of it say, and ends it
    with its end token. Single texts are read as before."""
    end = tokenizer.eos_token
    names = [before_instruction, before_answer, end]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A",
        pair=f"{before_instruction} $A {before_answer} $B {end}",
        special_tokens=list(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)),
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return PairReward(model, tokenizer)


def save(judge: PairReward, folder: Path) -> None:
    """Write model and tokenizer to a folder."""
    judge.model.save_pretrained(folder)
    judge.tokenizer.save_pretrained(folder)
