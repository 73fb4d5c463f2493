"""Fine-tuning as a service: upload examples, start a job, wait for it, ask the model that came of it.

`LocalBackend` (local.py) does it on this machine, `OpenAIBackend` (openai_backend.py) over HTTP: at OpenAI, at any
server that speaks its language, or at our own (server.py), which puts that language over a `LocalBackend`.
`backends.connect` gives either by name. What both say and are told is defined here.
"""

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rlhf_lab.errors import CourseError
from rlhf_lab.fine_tuning.spending import Estimate, Prices

QUEUED, RUNNING, SUCCEEDED, FAILED, CANCELLED = STATES = ("queued", "running", "succeeded", "failed", "cancelled")
LAYERS = ("all", "last")
HYPERPARAMETERS = ("n_epochs", "batch_size", "learning_rate_multiplier")  # settings that OpenAI knows
EXTENSIONS = {"prompt_loss_weight": 0.0, "layers": "all"}  # settings that OpenAI does not know, and what it does
OWNER = "rlhf_lab"  # of the models of our own server, by which a client knows it
PROMPTS_PER_REQUEST = 128
SEED_STEP = 1_000_003  # between requests: a prime, so that the seeds 0, 1, ... of a course never meet


class FineTuningError(CourseError):
    """A file, a job or a model cannot be had, or a server does not do what it was asked."""


@dataclass(frozen=True)
class Settings:
    """How to fine-tune, in the words of OpenAI's API; `EXTENSIONS` are ours. Raises ValueError for what makes no
    sense."""

    n_epochs: int = 1
    learning_rate_multiplier: float = 0.1  # times the base rate of the model (`training.base_rate`)
    batch_size: int = 32  # examples
    prompt_loss_weight: float = 0.0  # weight of a prompt's token in the loss; one of the completion has 1
    layers: str = "all"  # or "last", as the source believed of OpenAI's API (`training.parameters`)

    def __post_init__(self):
        if not all(isinstance(number, int) and number > 0 for number in (self.n_epochs, self.batch_size)):
            raise ValueError(f"{self}: n_epochs and batch_size are whole numbers, at least 1.")
        if not 0 < self.learning_rate_multiplier < math.inf:
            raise ValueError(f"{self}: learning_rate_multiplier is a number above 0.")
        if not 0 <= self.prompt_loss_weight <= 1:
            raise ValueError(f"{self}: prompt_loss_weight lies between 0 and 1.")
        if self.layers not in LAYERS:
            raise ValueError(f"{self}: layers is one of {', '.join(LAYERS)}.")


@dataclass(frozen=True)
class Job:
    """A fine-tuning job. `status` is one of STATES."""

    id: str
    status: str
    model: str  # that is fine-tuned
    file: str
    settings: Settings
    seed: int
    fine_tuned_model: str | None = None  # its name, once the job has succeeded
    error: str = ""  # why it failed
    trained_tokens: int | None = None
    created: int = 0  # seconds since 1970
    finished: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return self.status in (SUCCEEDED, FAILED, CANCELLED)


@dataclass(frozen=True)
class Event:
    """A step of a job."""

    step: int  # from 1
    loss: float  # nats per token, as `training.weighted_loss` counts
    tokens: int  # read so far, of prompts and completions


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt. `finish_reason` is "stop" (it ended, or met a stop sequence) or "length".

    `text` has neither the end token nor the stop sequence. `tokens` are those that begin before the stop sequence and,
    where the model ended by itself, its end token last; servers other than ours tell them only with log-probabilities.
    Where they were asked for, `logprobs` are their log-probabilities in nats under the model itself, whatever the
    temperature, and `top` those of the likeliest tokens in the place of each.
    """

    text: str
    tokens: tuple[str, ...]
    finish_reason: str
    logprobs: tuple[float, ...] | None = None
    top: tuple[Mapping[str, float], ...] | None = None


def beyond_openai(settings: Settings) -> dict:
    """The settings that only our backends know, as far as they are not what OpenAI does anyway."""
    return {name: getattr(settings, name) for name, usual in EXTENSIONS.items() if getattr(settings, name) != usual}


class Backend(Protocol):
    """Who fine-tunes. All methods raise FineTuningError, one sentence, for what cannot be had."""

    def upload(self, examples: Sequence[tuple[str, str]]) -> str:
        """Keep (prompt, completion) pairs; the id of the file. Raises ValueError for none."""

    def fine_tune(self, file: str, model: str, settings: Settings, seed: int = 0, suffix: str = "") -> Job:
        """Start a job, or find the one with the same file, model, settings and seed: none is ever done twice, unless it
        failed or was cancelled. `suffix` is a word for the name of the new model."""

    def job(self, id: str) -> Job:
        """The job as it stands."""

    def events(self, id: str) -> list[Event]:
        """The steps of a job so far, in order."""

    def wait(self, id: str) -> Job:
        """The job once it has succeeded, whichever process began it. Raises FineTuningError if it did not succeed."""

    def cancel(self, id: str) -> Job:
        """End a job that is queued or running."""

    def complete(
        self,
        model: str,
        prompts: Sequence[str],
        temperature: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 64,
        logprobs: int | None = None,
        seed: int = 0,
    ) -> list[Completion]:
        """Continue each prompt. Temperature 0 takes the likeliest token; `logprobs` asks for log-probabilities, with
        those of that many of the likeliest tokens. Equal prompts of one call get different answers, and so do equal
        calls with different seeds; an equal call gets equal answers."""

    def class_probability(
        self, model: str, prompts: Sequence[str], positive: str = "1", negative: str = "0"
    ) -> list[float]:
        """p(positive) / (p(positive) + p(negative)) of the token after each prompt."""

    def cost_estimate(self, examples: Sequence[tuple[str, str]], epochs: int, prices: Prices) -> Estimate:
        """What training on these pairs would cost."""


def to_jsonl(examples: Sequence[tuple[str, str]]) -> str:
    """The file of (prompt, completion) pairs: a line of JSON each. Raises ValueError for no pairs."""
    if not examples:
        raise ValueError("There is nothing to train on: `examples` is empty; pass at least one (prompt, completion).")
    lines = (json.dumps({"prompt": prompt, "completion": completion}) for prompt, completion in examples)
    return "\n".join(lines) + "\n"


def from_jsonl(text: str, name: str) -> list[tuple[str, str]]:
    """The pairs in such a file. Raises FineTuningError, with the line, where it is not one; `name` says which file."""
    examples = []
    for number, line in enumerate(io.StringIO(text), start=1):  # JSON may hold separators at which `splitlines` cuts
        try:
            row = json.loads(line)
            pair = row["prompt"], row["completion"]
        except (ValueError, KeyError, TypeError):
            pair = (None, None)
        if not all(isinstance(part, str) for part in pair):
            raise FineTuningError(
                f'{name}, line {number}: write {{"prompt": "...", "completion": "..."}}, two texts, on a line of its '
                "own for each example."
            )
        examples.append(pair)
    if not examples:
        raise FineTuningError(f"{name} is empty: it needs a line for each example.")
    return examples


def requests(prompts: Sequence[str], seed: int) -> Iterator[tuple[Sequence[str], int]]:
    """Prompts in the portions in which a server is asked, each with a seed of its own. The first has the seed itself,
    so a portion is continued in the same way wherever the division is done."""
    for number, start in enumerate(range(0, len(prompts), PROMPTS_PER_REQUEST)):
        yield prompts[start : start + PROMPTS_PER_REQUEST], seed + number * SEED_STEP


def check_stop(stop: Sequence[str]) -> None:
    """Raises ValueError for a bare string, whose every letter would end an answer, and for an empty stop sequence."""
    if "" in stop:  # as in every string
        raise ValueError(f"stop = {stop!r}: pass a list of texts, none of them empty.")


def succeeded(job: Job) -> Job:
    """The job itself. Raises FineTuningError for one that came to another end."""
    if job.status == SUCCEEDED:
        return job
    reason = f": {job.error}" if job.error else "."
    raise FineTuningError(
        f"Job {job.id}, fine-tuning {job.model}, has {_ENDED.get(job.status, 'been interrupted')}{reason}"
    )


_ENDED = {FAILED: "failed", CANCELLED: "been cancelled"}
