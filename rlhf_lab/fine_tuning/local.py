"""Fine-tuning on this machine: any causal language model of `transformers`, kept on disk under what it was made of.

In the folder of a `LocalBackend` lie

    fine_tuning/files/<id>.jsonl     what was uploaded; the id is made of its bytes
    fine_tuning/jobs/<id>/           job.json and, a line a step, events.jsonl; the id is made of the job's content
    fine_tuned-<key>/                the model, an artefact of the cache, found again by whoever wants the same job

A job is trained by whoever waits for it first; one that was interrupted begins again, and ends with the same weights.
"""

import bisect
import functools
import hashlib
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event as Flag

import torch
from filelock import FileLock

from rlhf_lab import checkpoints, sources
from rlhf_lab.files import write
from rlhf_lab.fine_tuning import (
    CANCELLED,
    FAILED,
    QUEUED,
    RUNNING,
    SUCCEEDED,
    Completion,
    Event,
    FineTuningError,
    Job,
    Settings,
    check_stop,
    from_jsonl,
    requests,
    succeeded,
    to_jsonl,
    training,
)
from rlhf_lab.fine_tuning.spending import Estimate, Prices, training_cost
from rlhf_lab.language_model import (
    BASE,
    RUNGS,
    load_tokenizer,
    load_with_tokenizer,
    next_token_logits,
    save_with_tokenizer,
)
from rlhf_lab.sampling import sample

BASE_MODELS = {f"base-{rung}": BASE / rung for rung in RUNGS}
CODE = checkpoints.code_digest("rlhf_lab.fine_tuning.training")
ID_LENGTH = 16  # hexadecimal digits
READ_AT_ONCE = 64  # prompts


class LocalBackend:
    """A `Backend` that trains here. Base models are those of `BASE_MODELS`, folders, and models it has fine-tuned."""

    def __init__(self, folder: Path | None = None):
        self.folder = Path(folder or checkpoints.cache_folder())
        self._files, self._jobs = self.folder / "fine_tuning" / "files", self.folder / "fine_tuning" / "jobs"
        self._stopping = Flag()

    # --- files ---

    def upload(self, examples: Sequence[tuple[str, str]]) -> str:
        text = to_jsonl(examples)
        file = f"file-{_digest(text)}"
        with self._writing():
            if not self._file(file).exists():
                write(self._file(file), text)
        return file

    def files(self) -> dict[str, Path]:
        """Every file, by its id."""
        return {path.stem: path for path in sorted(self._files.glob("file-*.jsonl"))}

    def _file(self, file: str) -> Path:
        return self._files / f"{file}.jsonl"

    def examples(self, file: str) -> list[tuple[str, str]]:
        """The pairs of an uploaded file."""
        if file not in self.files():
            raise FineTuningError(f"There is no file {file!r} here: upload the examples first.")
        return from_jsonl(self._file(file).read_text(encoding="utf-8"), file)

    # --- jobs ---

    def fine_tune(
        self,
        file: str,
        model: str,
        settings: Settings,
        seed: int = 0,
        suffix: str = "",
        metadata: Mapping[str, str] | None = None,
    ) -> Job:
        self.examples(file)
        name = Path(model).name if Path(model).is_dir() else model
        content = [CODE, file, self._content(model), asdict(settings), seed]
        key = _digest(json.dumps(content))
        new = Job(
            f"ftjob-{key}", QUEUED, model, file, settings, seed, created=int(time.time()), metadata=metadata or {}
        )
        with self._writing():
            known = self._read(new.id)
            if known and known.status not in (FAILED, CANCELLED):
                new = replace(known, metadata=metadata or known.metadata)
            else:
                new = replace(new, fine_tuned_model=_new_name(name, suffix, key))
            self._write(new)
        return self.job(new.id)

    def job(self, id: str) -> Job:
        job = self._read(id)
        if job is None:
            raise FineTuningError(f"There is no job {id!r} here.")
        return job if job.status == SUCCEEDED else replace(job, fine_tuned_model=None)

    def jobs(self) -> list[Job]:
        """Every job, the newest first."""
        jobs = [self.job(path.parent.name) for path in self._jobs.glob("ftjob-*/job.json")]
        return sorted(jobs, key=lambda job: (job.created, job.id), reverse=True)

    def events(self, id: str) -> list[Event]:
        self.job(id)
        path = self._jobs / id / "events.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]  # a line that is being written is not one yet
        return [Event(**json.loads(line)) for line in whole.splitlines()]

    def wait(self, id: str) -> Job:
        """As `Backend.wait`. Trains, in this thread, what nobody has trained."""
        if not self.job(id).over:
            self._run(id)
        return succeeded(self.job(id))

    def cancel(self, id: str) -> Job:
        if not self.job(id).over:
            self._update(id, status=CANCELLED, finished=int(time.time()))
        return self.job(id)

    def stop(self) -> None:
        """The job that another thread is training leaves off at its next step, and is queued again. For good."""
        self._stopping.set()

    def _run(self, id: str) -> None:
        self._update(id, status=RUNNING)
        job, key = self.job(id), id.removeprefix("ftjob-")
        train = functools.partial(fine_tuned_model, self, job)
        described = {"model": Path(job.model).name, "file": job.file, "seed": job.seed}
        described |= {"settings": asdict(job.settings) | {"class": "Settings"}}
        try:
            checkpoints.stored(self._artefact(key), train, save_with_tokenizer, _not_yet, described)
        except _LeaveOff:
            self._update(id, status=QUEUED)
        except Exception as error:
            with suppress(checkpoints.CacheError):  # the disk may be full
                self._update(id, status=FAILED, error=str(error), finished=int(time.time()))
            raise
        else:
            tokens = max((event.tokens for event in self.events(id)), default=None)
            self._update(id, status=SUCCEEDED, finished=int(time.time()), trained_tokens=tokens, error="")

    def steps(self, job: Job) -> Callable[[Event], None]:
        """What a job does at a step: it writes it down, and ends where it is not to go on."""
        path = self._jobs / job.id / "events.jsonl"
        with checkpoints.writable(self.folder):
            path.write_text("")  # of an earlier, interrupted attempt

        def on_step(event: Event) -> None:
            if self._stopping.is_set() or self.job(job.id).status == CANCELLED:
                raise _LeaveOff
            with checkpoints.writable(self.folder), path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(event)) + "\n")

        return on_step

    def _read(self, id: str) -> Job | None:
        path = self._jobs / id / "job.json"
        if not re.fullmatch(r"ftjob-[0-9a-f]+", id) or not path.exists():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            job = Job(**fields | {"settings": Settings(**fields["settings"])})
        except (ValueError, KeyError, TypeError):
            raise FineTuningError(f"{path} is damaged: delete it, and start the job again.") from None
        lost = job.status == SUCCEEDED and not checkpoints.whole(self._artefact(id.removeprefix("ftjob-")))
        return replace(job, status=QUEUED, finished=None) if lost else job  # the cache was cleared

    def _write(self, job: Job) -> None:
        write(self._jobs / job.id / "job.json", json.dumps(asdict(job), indent=1) + "\n")

    def _update(self, id: str, **changes) -> None:
        """Unless it was cancelled meanwhile, at whatever moment."""
        with self._writing():
            if (job := self._read(id)).status != CANCELLED:
                self._write(replace(job, **changes))

    @contextmanager
    def _writing(self):
        """Alone among threads and processes."""
        with checkpoints.writable(self.folder):
            self._jobs.mkdir(parents=True, exist_ok=True)
            with FileLock(self._jobs / ".lock"):
                yield

    # --- models ---

    def models(self) -> dict[str, Path]:
        """The folder of every base model of the ladder and of every fine-tuned one, by name."""
        tuned = [job for job in self.jobs() if job.status == SUCCEEDED]
        return BASE_MODELS | {job.fine_tuned_model: self._artefact(job.id.removeprefix("ftjob-")) for job in tuned}

    def _artefact(self, key: str) -> Path:
        return self.folder / f"fine_tuned-{key}"

    def model_folder(self, name: str) -> Path:
        """Where the files of a model are. One that was fine-tuned here and is lost or damaged is trained again."""
        if name in BASE_MODELS:
            return BASE_MODELS[name]
        if found := re.fullmatch(r"ft:.*:([0-9a-f]+)", name):
            folder, job = self._artefact(found[1]), f"ftjob-{found[1]}"
            if not checkpoints.whole(folder) and self._read(job):
                self.wait(job)
            if checkpoints.whole(folder):
                return folder
        elif (Path(name) / "config.json").is_file():
            return Path(name).resolve()
        raise FineTuningError(
            f"There is no model {name!r}: name {', '.join(BASE_MODELS)}, one that was fine-tuned here, or a folder "
            "with a model's files."
        )

    def _content(self, model: str) -> list:
        """What identifies a model: what it was made of, or its files."""
        folder = self.model_folder(model)
        tuned = folder.parent == self.folder
        return [folder.name] if tuned else sources.fingerprint(folder)

    def count_tokens(self, model: str, texts: Sequence[str]) -> int:
        """Of all texts together, to this model."""
        _, tokenizer = _loaded(self.model_folder(model))
        return sum(len(tokenizer(text)["input_ids"]) for text in texts)

    # --- what they say ---

    def complete(
        self,
        model: str,
        prompts: Sequence[str],
        temperature: float = 1.0,
        stop: Sequence[str] = (),
        max_tokens: int = 64,
        logprobs: int | None = None,
        seed: int = 0,
        also: Sequence[str] = (),
    ) -> list[Completion]:
        """As `Backend.complete`; `also` are tokens whose log-probabilities `top` has beside those of the likeliest.
        Raises ValueError for a prompt that is empty or too long."""
        check_stop(stop)
        network, tokenizer = _loaded(self.model_folder(model))
        reported = [_single_token(tokenizer, token) for token in also]
        answers = []
        for portion, its_seed in requests(prompts, seed):
            ids = [tokenizer(prompt)["input_ids"] for prompt in portion]
            samples = sample(
                network,
                ids,
                max_tokens,
                tokenizer.eos_token_id,
                its_seed,
                temperature=temperature or 1.0,
                greedy=temperature == 0,
            )
            for prompt, response in zip(ids, samples.responses, strict=True):
                kept, answer = _cut(tokenizer, response, stop)
                if logprobs is not None:
                    answer = _with_logprobs(answer, network, tokenizer, prompt, response[:kept], logprobs, reported)
                answers.append(answer)
        return answers

    def class_probability(
        self, model: str, prompts: Sequence[str], positive: str = "1", negative: str = "0"
    ) -> list[float]:
        """As `Backend.class_probability`, from the full distribution, so it is always exact. Raises ValueError for a
        class that is not a single token and a prompt that is empty or too long."""
        network, tokenizer = _loaded(self.model_folder(model))
        classes = [_single_token(tokenizer, label) for label in (positive, negative)]
        ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
        _check_lengths(network, ids)
        scores: list[float] = []
        with torch.inference_mode():
            for start in range(0, len(ids), READ_AT_ONCE):
                first, second = next_token_logits(network, ids[start : start + READ_AT_ONCE])[:, classes].unbind(1)
                scores += torch.sigmoid(first - second).tolist()  # (B,)
        return scores

    def cost_estimate(self, examples: Sequence[tuple[str, str]], epochs: int, prices: Prices) -> Estimate:
        """What a server with these prices and our tokenizer would take; here it is free."""
        tokenizer = load_tokenizer(next(iter(BASE_MODELS.values())))
        return training_cost(examples, epochs, prices, lambda text: len(tokenizer(text)["input_ids"]))


def fine_tuned_model(backend: LocalBackend, job: Job) -> tuple:
    """The model and the tokenizer that come of a job; its name is what the cache calls them."""
    examples, base = backend.examples(job.file), backend.model_folder(job.model)
    return training.fine_tune(base, examples, job.settings, job.seed, backend.steps(job))


class _LeaveOff(Exception):
    """A job is to end before it is done."""


def _not_yet(folder: Path) -> None:
    """A trained model is read where it is asked something."""


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _new_name(model: str, suffix: str, key: str) -> str:
    base = model.split(":")[1] if model.startswith("ft:") else model
    return f"ft:{base}:{suffix}:{key}"


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple:
    return load_with_tokenizer(folder)


def _single_token(tokenizer, text: str) -> int:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"{text!r} is {len(ids)} tokens to this model: take a class that is a single one.")
    return ids[0]


def _check_lengths(model, ids: Sequence[Sequence[int]]) -> None:
    context = getattr(model.config, "max_position_embeddings", None)
    lengths = [len(prompt) for prompt in ids]
    if min(lengths, default=1) == 0:
        raise ValueError("A prompt is empty: begin it with at least one token, for example the end token.")
    if context and max(lengths, default=0) > context:
        raise ValueError(
            f"A prompt of {max(lengths)} tokens does not fit the model's context of {context}: shorten it."
        )


def _cut(tokenizer, response: Sequence[int], stop: Sequence[str]) -> tuple[int, Completion]:
    """A response up to its end token or the first stop sequence, and how many of its tokens that takes."""
    ended = response[-1] == tokenizer.eos_token_id
    written = response[:-1] if ended else response
    text = tokenizer.decode(written)
    ends = [place for sequence in stop if (place := text.find(sequence)) >= 0]
    kept = len(response)
    if ends:
        text = text[: min(ends)]
        # As many tokens as begin before the stop sequence: the first prefix that is as long as what stays.
        kept = bisect.bisect_left(range(len(written)), len(text), key=lambda n: len(tokenizer.decode(written[:n])))
    tokens = tuple(tokenizer.decode([token]) for token in response[:kept])
    return kept, Completion(text, tokens, "stop" if ended or ends else "length")


@torch.inference_mode()
def _with_logprobs(answer, model, tokenizer, prompt: list[int], response: list[int], count: int, also: list[int]):
    """A completion with the log-probabilities of its tokens, of the `count` likeliest in the place of each, and of the
    tokens `also`; all from one reading of the whole text."""
    if not response:
        return replace(answer, logprobs=(), top=())
    logits = model(torch.tensor([prompt + response], device=model.device)).logits[0, len(prompt) - 1 : -1]  # (R, V)
    logs = logits.float().log_softmax(dim=-1)
    own = logs[torch.arange(len(response)), response].tolist()
    likeliest = logs.topk(min(count, logs.shape[-1]), dim=-1).indices.tolist()  # (R, count)
    named = {token: tokenizer.decode([token]) for token in {*also, *(token for row in likeliest for token in row)}}
    top = tuple(
        {named[token]: values[token].item() for token in [*row, *also]}
        for row, values in zip(likeliest, logs, strict=True)
    )
    return replace(answer, logprobs=tuple(own), top=top)
