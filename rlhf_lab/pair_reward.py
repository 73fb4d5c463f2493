"""A reward model that somebody else built: any sequence classifier with one label, and the tokenizer that belongs to it.

It is asked in words, about an instruction and an answer as a pair, and its raw logit is the reward. So the policy may
have another tokenizer: nothing passes between the two but text.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

BATCH = 64  # pairs read at once


class PairReward(NamedTuple):
    """Calling it gives one score for each instruction and its answer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @torch.inference_mode()
    def __call__(self, instructions: Sequence[str], answers: Sequence[str]) -> list[float]:
        """Raw logits, (N,). What is too long for the model is cut, the longer text of a pair first."""
        pairs = list(zip(instructions, answers, strict=True))
        order = sorted(range(len(pairs)), key=lambda i: sum(map(len, pairs[i])))  # little padding
        scores = [0.0] * len(pairs)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            inputs = self.tokenizer(
                [pairs[i][0] for i in rows],
                [pairs[i][1] for i in rows],
                padding=True,
                truncation=True,
                max_length=self._room(),
                return_tensors="pt",
            ).to(self.model.device)
            for i, logit in zip(rows, self.model(**inputs).logits[:, 0].tolist(), strict=True):
                scores[i] = logit
        return scores

    def _room(self) -> int:
        return min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)


def load(checkpoint: str | Path) -> PairReward:
    """Read model and tokenizer from a folder or the Hub, in float32. Raises ValueError for a model with more than one
    label, and for one that cannot tell its pads from its text."""
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    if model.config.num_labels != 1:
        raise ValueError(f"{checkpoint} has {model.config.num_labels} labels: a reward model has one.")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id != model.config.pad_token_id:
        raise ValueError(
            f"The pad token of {checkpoint} is {tokenizer.pad_token_id} to its tokenizer and "
            f"{model.config.pad_token_id} to its model: give both the same one."
        )
    return PairReward(model, tokenizer)


def joining(model, tokenizer, before_instruction: str, before_answer: str) -> PairReward:
    """A reward model of our own, whose tokenizer from now on joins a pair as these two tokens of it say, and ends it
    with its end token."""
    end = tokenizer.eos_token
    names = [before_instruction, before_answer, end]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}",
        pair=f"{before_instruction} $A {before_answer} $B {end}",
        special_tokens=list(zip(names, tokenizer.convert_tokens_to_ids(names), strict=True)),
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    return PairReward(model, tokenizer)


def save(judge: PairReward, folder: Path) -> None:
    """Write model and tokenizer to a folder."""
    judge.model.save_pretrained(folder)
    judge.tokenizer.save_pretrained(folder)
