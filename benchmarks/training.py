"""Supervised fine-tuning, against TRL and against this machine's peak.

Ours is `rlhf_lab.sft.train`, theirs `trl.SFTTrainer`; both train the shipped 1M base model for one epoch on 2,048
demonstrations of the miniature world, in float32, 32 examples a step, with the loss on the responses. Timed is training
alone: the models are loaded and the examples tokenized before. Tokens are those of prompts and responses; padding does
not count.

TRL runs without gradient checkpointing, logging and saving, once with the examples in random order, its default, and
once with examples of similar length side by side, as ours has them. Entropy and accuracy, which it computes in every
step, cannot be switched off. Its `padding_free` gives the same loss, but is no remedy on a CPU: attention then spans
the whole batch, which takes longer than the padding.

The share of the peak is the speed of the matrix products of our training, counted by torch's `FlopCounterMode`, over
the best speed of float32 products of two matrices of 1,024 by 1,024, measured in turn with it. The products within
attention are not counted, those with padding are. The smaller models are here for comparison.
"""

import tempfile
from collections.abc import Sequence
from functools import partial

from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode
from transformers import PrinterCallback
from trl import SFTConfig, SFTTrainer

from benchmarks.measure import Row, compare, in_turn, timed
from rlhf_lab import sft
from rlhf_lab.book import sgemm_gflops
from rlhf_lab.language_model import encode, load_base
from rlhf_lab.tinyhh import generator

RUNGS = ("1M", "0.5M", "0.2M")
SHARE = "share of the peak, {}"
PROMISES = {SHARE.format("1M"): 0.45}
ORDERS = {"random": "TRL, random order", "group_by_length": "TRL, similar lengths"}  # TRL's name -> ours
CONFIG = sft.SFTConfig(epochs=1)
EXAMPLES = 2048

Examples = Sequence[tuple[str, str]]


def measure(repeats: int) -> list[Row]:
    """Tokens a second against TRL, and billions of operations a second against the peak, `repeats` times."""
    examples = generator.demonstrations(EXAMPLES, seed=0)
    against_trl, shares = [], []
    for rung in RUNGS:
        orders = ORDERS if rung == RUNGS[0] else {}
        contenders = [partial(ours, rung), peak, *(partial(theirs, rung, order) for order in orders)]
        mine, peaks, *trls = in_turn(contenders, examples, 2 * CONFIG.batch_size, repeats)
        against_trl += [compare(ORDERS[o], mine, trl, "tokens/s") for o, trl in zip(orders, trls, strict=True)]
        what, billions = SHARE.format(rung), flops_per_token(rung, examples) / 1e9
        shares.append(compare(what, [speed * billions for speed in mine], peaks, "GF/s", PROMISES.get(what)))
    return against_trl + shares


def ours(rung: str, examples: Examples) -> float:
    """Tokens a second of `sft.train`."""
    model, tokenizer = load_base(rung)
    tokenized = Tokenized(tokenizer, examples)
    _, seconds = timed(lambda: sft.train(model, tokenized, examples, CONFIG, seed=0))
    return tokens(tokenized, examples) / seconds


def theirs(rung: str, order: str, examples: Examples) -> float:
    """Tokens a second of `SFTTrainer`."""
    with tempfile.TemporaryDirectory() as folder:
        ready = trainer(rung, order, examples, folder)
        _, seconds = timed(ready.train)
    return tokens(ready.processing_class, examples) / seconds


def peak(_: Examples) -> float:
    """Billions of operations a second of matrix products."""
    return sgemm_gflops()


def trainer(rung: str, order: str, examples: Examples, folder: str) -> SFTTrainer:
    """TRL's trainer, ready to train on these examples."""
    model, tokenizer = load_base(rung)
    made = SFTTrainer(
        model,
        SFTConfig(
            output_dir=folder,
            num_train_epochs=CONFIG.epochs,
            per_device_train_batch_size=CONFIG.batch_size,
            learning_rate=CONFIG.learning_rate,
            train_sampling_strategy=order,
            completion_only_loss=True,
            max_length=None,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
            logging_strategy="no",
            save_strategy="no",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list([{"prompt": p, "completion": r} for p, r in examples]),
        processing_class=tokenizer,
    )
    made.remove_callback(PrinterCallback)
    return made


def tokens(tokenizer, examples: Examples) -> int:
    """Tokens of prompts and responses, their end tokens included."""
    return sum(len(ids) for prompt, response in examples for ids in encode(tokenizer, prompt, response))


def flops_per_token(rung: str, examples: Examples) -> float:
    """Operations of the matrix products of our training, those within attention left out."""
    model, tokenizer = load_base(rung)
    with FlopCounterMode(display=False) as counter:
        sft.train(model, tokenizer, examples, CONFIG, seed=0)
    return counter.get_total_flops() / tokens(tokenizer, examples)


class Tokenized:
    """Stands in for a tokenizer, its work done beforehand: TRL tokenizes when the trainer is made."""

    def __init__(self, tokenizer, examples: Examples):
        self.eos_token_id = tokenizer.eos_token_id
        self.known = {text: tokenizer(text) for example in examples for text in example}

    def __call__(self, text: str, add_special_tokens: bool = True):
        return self.known[text]
