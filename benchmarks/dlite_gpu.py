"""The DLite tutorial's PPO at its true size on a GPU, with random weights: memory and time.

    python benchmarks/dlite_gpu.py [--steps N] [--batch N]

The policy is a GPT-2 medium with DLite's three special tokens, beside its frozen reference; the reward model has the
shape of DeBERTa-v3-large with one label. All weights are drawn, none is downloaded: what a step takes depends on sizes,
not on what a model has learned. The settings are those of the profile `gpu` (`recipes.tutorial_config`), and so is the
code: `PPO.generate`, `PairReward`, `PPO.step`. Prompts are random tokens, as many as the template and an instruction of
up to 100 characters have; the reward model reads them and the responses as if they were its own tokenizer's.

A policy of random weights hardly ever writes the end key, so every response is as long as it may be. That is the worst
case: a trained policy ends some of them earlier. Not timed: loading, tokenizing, and what the notebook measures after
the training. Without a GPU nothing is measured.
"""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import copy
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from types import SimpleNamespace

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    BatchEncoding,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from benchmarks.measure import timed
from rlhf_lab.pair_reward import PairReward
from rlhf_lab.ppo import PPO
from rlhf_lab.profiles import Profile
from rlhf_lab.recipes import TUTORIAL_BATCH, TutorialRun, tutorial_config

GPT2_VOCABULARY, SPECIAL = 50257, 3  # DLite adds its end key and the two headings of its template
POLICY = GPT2Config(
    vocab_size=GPT2_VOCABULARY + SPECIAL,
    n_embd=1024,
    n_layer=24,
    n_head=16,
    bos_token_id=GPT2_VOCABULARY,
    eos_token_id=GPT2_VOCABULARY,
)
JUDGE = DebertaV2Config(
    vocab_size=128100,
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    max_position_embeddings=512,
    relative_attention=True,
    position_buckets=256,
    max_relative_positions=-1,
    norm_rel_ebd="layer_norm",
    share_att_key=True,
    pos_att_type="p2c|c2p",
    position_biased_input=False,
    type_vocab_size=0,
    pad_token_id=0,
    num_labels=1,
)
TEMPLATE, SHORTEST, LONGEST = 6, 14, 26  # tokens around an instruction, and of one
WARM_UP = 3  # steps
GIB = 2**30


@dataclass(frozen=True)
class Report:
    """What was measured. Times in seconds, one of each timed step, whose parts are `generate`, `score` and `step`."""

    device: str
    dtype: str
    parameters: tuple[int, int]  # of the policy, which its reference has too, and of the reward model
    batch: int  # episodes a step
    length: float  # tokens of a response on average
    tutorial_steps: int  # of the whole tutorial
    generate: list[float]
    score: list[float]
    step: list[float]
    allocated: int | None  # bytes, the most at once; None: no GPU
    reserved: int | None  # the same with what PyTorch keeps for later

    @property
    def seconds(self) -> float:
        """Of a whole step, the median."""
        return median(map(sum, zip(self.generate, self.score, self.step, strict=True)))

    @property
    def episodes_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def tutorial_seconds(self) -> float:
        return self.tutorial_steps * self.seconds

    def __str__(self) -> str:
        policy, judge = self.parameters
        parts = ", ".join(f"{name} {median(getattr(self, name)):.3f}" for name in ("generate", "score", "step"))
        rows = [
            ("device", f"{self.device}, PyTorch {torch.__version__}"),
            ("policy", f"{policy:,} parameters, and as many of the reference, {self.dtype}"),
            ("reward model", f"{judge:,} parameters"),
            ("episodes a step", f"{self.batch}, with responses of {self.length:.1f} tokens on average"),
            ("timed steps", f"{len(self.step)}, after {WARM_UP} that do not count"),
            ("seconds a step", f"{self.seconds:.3f} (medians: {parts})"),
            ("episodes a second", f"{self.episodes_per_second:.1f}"),
            (f"{self.tutorial_steps} steps", f"would take {self.tutorial_seconds / 60:.1f} minutes"),
            ("peak GPU memory", memory(self.allocated, self.reserved)),
        ]
        lines = [f"{what:<20}{value}" for what, value in rows]
        return "\n".join([*lines, "The weights are random: hardly a response ends by itself, which is the worst case."])


def memory(allocated: int | None, reserved: int | None) -> str:
    if allocated is None:
        return "not measured: no GPU"
    return f"{allocated / GIB:.2f} GiB allocated, {reserved / GIB:.2f} GiB reserved"


def measure(
    steps: int,
    batch: int = TUTORIAL_BATCH,
    device: torch.device | str = "cuda",
    policy_config: GPT2Config = POLICY,
    judge_config: DebertaV2Config = JUDGE,
    clock: Callable[[], float] | None = None,
) -> Report:
    """`steps` timed updates of `batch` episodes by models of these sizes with random weights.

    Raises ValueError for fewer than one step or episode.
    """
    if min(steps, batch) < 1:
        raise ValueError(f"Steps and batch must be at least 1, not {steps} and {batch}.")
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    policy, judge = models(policy_config, judge_config, device)
    config = replace(tutorial_config(TutorialRun.of(Profile.load("gpu"))), batch_size=batch)
    tokenizer = SimpleNamespace(eos_token_id=policy_config.vocab_size - SPECIAL)
    trainer = PPO(policy, copy.deepcopy(policy), config, tokenizer)
    rng, clock = random.Random(0), clock or clock_of(device)
    runs = [one_step(trainer, judge, prompts(batch, policy_config, rng), clock) for _ in range(WARM_UP + steps)]
    *parts, lengths = zip(*runs[WARM_UP:], strict=True)
    on_gpu = device.type == "cuda"
    return Report(
        torch.cuda.get_device_name(device) if on_gpu else device.type,
        f"{str(policy.dtype).removeprefix('torch.')}, products at precision {torch.get_float32_matmul_precision()!r}",
        tuple(sum(p.numel() for p in model.parameters()) for model in (policy, judge.model)),
        batch,
        sum(lengths) / len(lengths),
        config.updates,
        *map(list, parts),
        torch.cuda.max_memory_allocated(device) if on_gpu else None,
        torch.cuda.max_memory_reserved(device) if on_gpu else None,
    )


def models(policy_config: GPT2Config, judge_config: DebertaV2Config, device: torch.device) -> tuple:
    """A policy and a reward model of random weights, in float32."""
    torch.manual_seed(0)
    with torch.device(device):
        policy, judge = GPT2LMHeadModel(policy_config), DebertaV2ForSequenceClassification(judge_config)
    return policy.eval(), PairReward(judge.eval(), joined)


def prompts(batch: int, config: GPT2Config, rng: random.Random) -> list[list[int]]:
    """Random tokens without special ones, as many as an instruction in its template has."""
    lengths = [TEMPLATE + rng.randint(SHORTEST, LONGEST) for _ in range(batch)]
    return [[rng.randrange(config.vocab_size - SPECIAL) for _ in range(length)] for length in lengths]


def joined(firsts: Sequence[list[int]], seconds: Sequence[list[int]], **_) -> BatchEncoding:
    """In the place of DeBERTa's tokenizer: pairs of token lists as [CLS] first [SEP] second [SEP], padded on the
    right."""
    rows = [torch.tensor([1, *first, 2, *second, 2]) for first, second in zip(firsts, seconds, strict=True)]
    ids, mask = (pad_sequence(columns, batch_first=True) for columns in (rows, list(map(torch.ones_like, rows))))
    return BatchEncoding({"input_ids": ids, "attention_mask": mask})  # (B, T) each


joined.model_max_length = JUDGE.max_position_embeddings


def one_step(trainer: PPO, judge: PairReward, queries: list[list[int]], clock) -> tuple[float, float, float, float]:
    """Seconds to generate, to score and to learn, and the mean length of the responses."""
    responses, generating = timed(lambda: trainer.generate(queries), clock)
    asked = [query[TEMPLATE:] for query in queries]
    scores, scoring = timed(lambda: judge(asked, responses), clock)
    _, learning = timed(lambda: trainer.step(queries, responses, scores), clock)
    return generating, scoring, learning, sum(map(len, responses)) / len(responses)


def clock_of(device: torch.device) -> Callable[[], float]:
    """Says what time it is once everything that the GPU was told to do is done."""
    if device.type != "cuda":
        return time.perf_counter

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python benchmarks/dlite_gpu.py", description="Time the DLite tutorial's PPO.")
    top.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    top.add_argument("--batch", type=int, default=TUTORIAL_BATCH, help=f"episodes a step (default: {TUTORIAL_BATCH})")
    return top


def main(words: list[str] | None = None) -> int:
    """Returns the exit code: 0, 1 where there is no GPU, 2 for a command that cannot be meant."""
    arguments = parser().parse_args(words)
    if not torch.cuda.is_available():
        print("This benchmark needs a GPU, and PyTorch finds none, so nothing was measured.", file=sys.stderr)
        return 1
    try:
        print(measure(arguments.steps, arguments.batch))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
