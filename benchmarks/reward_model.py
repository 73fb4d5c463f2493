"""Reward models, against TRL.

Ours is `rlhf_lab.reward_model.train`, theirs `trl.RewardTrainer`; both fit the shipped 1M base model, with the same
head, to 2,048 helpful comparisons of the miniature world in one epoch, in float32, 32 pairs a step. Timed is training
alone: the models are loaded and the texts tokenized before. Ours reads a prompt once for both of its responses; loss
and gradient are the same.

TRL runs without gradient checkpointing, logging and saving, once with the pairs in random order, its default, and once
with pairs of similar length side by side, as ours has them. For that it wants a column with the length of each pair,
which it gets: that of the longer text.
"""

import tempfile
from collections.abc import Sequence
from functools import partial

from datasets import Dataset
from transformers import PrinterCallback
from trl import RewardConfig, RewardTrainer

from benchmarks.measure import Row, compare, in_turn, timed
from benchmarks.training import Tokenized
from rlhf_lab import reward_model
from rlhf_lab.language_model import load_base
from rlhf_lab.tinyhh import generator

ORDERS = {
    "random": "RewardTrainer, random order",
    "group_by_length": "RewardTrainer, similar lengths",
}  # TRL's name -> ours
PROMISES = dict.fromkeys(ORDERS.values(), 1.5)
CONFIG = reward_model.RewardModelConfig()
PAIRS = 2048

Pairs = Sequence[dict[str, str]]


def measure(repeats: int) -> list[Row]:
    """Pairs a second, `repeats` times."""
    pairs = generator.preference_rows("helpful-base", "train", PAIRS, seed=0)
    contenders = [ours, *(partial(theirs, order) for order in ORDERS)]
    mine, *trls = in_turn(contenders, pairs, 2 * CONFIG.batch_size, repeats)
    return [
        compare(what, mine, trl, "pairs/s", PROMISES[what]) for what, trl in zip(ORDERS.values(), trls, strict=True)
    ]


def ours(pairs: Pairs) -> float:
    """Pairs a second of `reward_model.train`."""
    judge, tokenizer = model()
    tokenized = Tokenized(tokenizer, [tuple(pair.values()) for pair in pairs])
    _, seconds = timed(lambda: reward_model.train(judge, tokenized, pairs, CONFIG, seed=0))
    return len(pairs) / seconds


def theirs(order: str, pairs: Pairs) -> float:
    """Pairs a second of `RewardTrainer`."""
    with tempfile.TemporaryDirectory() as folder:
        ready = trainer(order, pairs, folder)
        _, seconds = timed(ready.train)
    return len(pairs) / seconds


def model():
    """A reward model before training, and its tokenizer."""
    base, tokenizer = load_base("1M")
    return reward_model.from_language_model(base, seed=0), tokenizer


def trainer(order: str, pairs: Pairs, folder: str) -> RewardTrainer:
    """TRL's trainer, ready to train on these pairs."""
    judge, tokenizer = model()
    rows = [
        {
            f"{side}_ids": reward_model.read(judge, tokenizer, pair["prompt"], pair[side], CONFIG.max_tokens)
            for side in ("chosen", "rejected")
        }
        for pair in pairs
    ]
    made = RewardTrainer(
        judge,
        RewardConfig(
            output_dir=folder,
            num_train_epochs=CONFIG.epochs,
            per_device_train_batch_size=CONFIG.batch_size,
            learning_rate=CONFIG.learning_rate,
            train_sampling_strategy=order,
            remove_unused_columns=False,  # or the lengths would be
            max_length=None,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([row | {"length": max(map(len, row.values()))} for row in rows]),
        processing_class=tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made
