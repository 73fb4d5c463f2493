"""Fine-tuning at a server that speaks OpenAI's language: OpenAI itself, another one, or our own (server.py).

No job is started twice, and no answer that has arrived is asked for again. Before a job is started, a line in a ledger
on disk says so, and the job itself carries the hash of its content, so that one whose start was not heard of is found
again in the server's list; every answer of a model is kept under the whole question. (An answer that is lost on its way
is asked for again, and a server may bill both; only what arrives counts against the budget.) What a server does wrong
for a moment (too many requests, errors of its own, silence, a lost connection, half an answer) is tried again, a
limited number of times, after pauses that double and vary (full jitter: Brooker, "Exponential Backoff and Jitter",
2015).

The key is read from the environment variable OPENAI_API_KEY and is written nowhere.
"""

import functools
import hashlib
import json
import math
import os
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import openai
from filelock import FileLock

from rlhf_lab import checkpoints
from rlhf_lab.files import write
from rlhf_lab.fine_tuning import (
    CANCELLED,
    EXTENSIONS,
    FAILED,
    HYPERPARAMETERS,
    OWNER,
    QUEUED,
    Completion,
    Event,
    FineTuningError,
    Job,
    Settings,
    beyond_openai,
    check_stop,
    requests,
    succeeded,
    to_jsonl,
)
from rlhf_lab.fine_tuning.spending import Estimate, Prices, Purse, by_rule_of_thumb, training_cost

KEY, ADDRESS = "OPENAI_API_KEY", "OPENAI_BASE_URL"  # environment variables
OPENAI = "https://api.openai.com/v1"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_LOGPROBS = 5  # of the likeliest tokens that OpenAI tells
TRIES = 6
LONGEST_PAUSE = 60.0  # seconds
FIRST_LOOK = 0.1  # seconds, after which a new job is looked at
LONGEST_REASON = 300  # characters of what a server says
SHORTEST_KEY = 16  # characters; what is shorter holds the place of a key, and may be a word of an answer
JOBS_A_PAGE, EVENTS_A_PAGE = 100, 1000
HASH = "content"  # the field of a job's metadata that holds the hash of what it is made of
OUT_OF_MONEY = "insufficient_quota"  # a 429 that no pause helps


class RefusedError(FineTuningError):
    """The server heard the request and will not do it."""


def server_address() -> str:
    """$OPENAI_BASE_URL, or OpenAI itself."""
    return os.environ.get(ADDRESS) or OPENAI


class OpenAIBackend:
    """A `Backend` over HTTP. Without a `base_url`, it is $OPENAI_BASE_URL or OpenAI itself.

    Our own server is free. Everywhere else `prices` are needed, and a `budget` in dollars for everything asked of this
    address from `folder`, or `confirm`, which is asked before each job and each question (spending.Purse). `timeout`,
    `first_pause` and `poll` are seconds: how long an answer may take, the mean first pause before another try, the
    longest time between two looks at a job. `count_tokens` estimates what a text will cost.
    """

    def __init__(
        self,
        base_url: str | None = None,
        folder: Path | None = None,
        prices: Prices | None = None,
        budget: float | None = None,
        confirm: Callable[[Estimate], bool] | None = None,
        count_tokens: Callable[[str], int] = by_rule_of_thumb,
        timeout: float = 120.0,
        first_pause: float = 1.0,
        poll: float = 5.0,
    ):
        self.base_url = (base_url or server_address()).rstrip("/")
        place = hashlib.sha256(self.base_url.encode()).hexdigest()[:8]
        self.folder = Path(folder or checkpoints.cache_folder()) / "openai" / place
        self.first_pause, self.poll, self.count_tokens = first_pause, poll, count_tokens
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=_key(self.base_url), timeout=timeout, max_retries=0
        )
        self._purse = Purse(prices, budget, confirm)
        self._unsaved: dict[Path, dict] = {}
        self._known_as_ours: bool | None = None

    def __repr__(self) -> str:
        return f"OpenAIBackend({self.base_url!r})"

    # --- files ---

    def upload(self, examples: Sequence[tuple[str, str]]) -> str:
        text = to_jsonl(examples)
        content = _hash(text)
        with self._alone():
            known = self._load("files", content)
            if known and self._there(self._client.files.with_raw_response.retrieve, known["file"]):
                return known["file"]
            file = ("train.jsonl", text.encode(), "application/jsonl")
            sent = self._call(
                lambda: self._client.files.with_raw_response.create(file=file, purpose="fine-tune"),
                lambda answer: answer["id"],
            )
            tokens = training_cost(examples, 1, Prices(0, 0), self.count_tokens).tokens
            about = {"file": sent, "content": content, "tokens": tokens, "examples": len(examples)}
            self._save("files", content, about)
        return sent

    def _uploaded(self, file: str) -> dict:
        for path in (self.folder / "files").glob("*.json"):
            if (known := _read(path))["file"] == file:
                return known
        raise FineTuningError(f"File {file!r} was not uploaded from here: upload the examples first.")

    # --- jobs ---

    def fine_tune(self, file: str, model: str, settings: Settings, seed: int = 0, suffix: str = "") -> Job:
        """As `Backend.fine_tune`. Raises FineTuningError for settings of ours where the server is not, and
        BudgetError where the job may not be paid for."""
        uploaded = self._uploaded(file)
        content = _hash(json.dumps([self.base_url, uploaded["content"], model, asdict(settings), seed]))
        with self._alone():
            if job := self._begun(content):
                return job
            return self._begin(content, uploaded, model, settings, seed, suffix)

    def _begun(self, content: str) -> Job | None:
        """The job of this content that has not come to a bad end, of the ledger or of the server's list."""
        known = self._load("ledger", content) or {}
        if "job" in known and self._there(self._client.fine_tuning.jobs.with_raw_response.retrieve, known["job"]):
            job = self.job(known["job"])
            return None if job.status in (FAILED, CANCELLED) else job
        if job := self._find(content):
            self._save("ledger", content, {"dollars": 0.0} | known | {"state": "started", "job": job.id})
        return job

    def _begin(self, content: str, uploaded: dict, model: str, settings: Settings, seed: int, suffix: str) -> Job:
        extra = beyond_openai(settings)
        if extra and not self._ours():
            raise FineTuningError(
                f"{self.base_url} knows no {' and no '.join(extra)}, only our own server does: leave it at its "
                "default, or start 'python -m rlhf_lab serve' and give its address."
            )
        known = self._load("ledger", content) or {}  # jobs of this content that came to a bad end, and were paid for
        if known.get("state") == "starting":  # the server never heard of it, or `_begun` would have found it
            known = known.get("before", {})
            self._save("ledger", content, known)
        dollars = self._approve_training(uploaded, settings) + known.get("dollars", 0.0)
        self._save("ledger", content, {"state": "starting", "dollars": dollars, "before": known})
        chosen = {name: getattr(settings, name) for name in HYPERPARAMETERS}
        request = {
            "model": model,
            "training_file": uploaded["file"],
            "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
            "seed": seed,
            "suffix": suffix or openai.omit,
            "metadata": {HASH: content},
            "extra_body": extra,
        }
        send = functools.partial(self._client.fine_tuning.jobs.with_raw_response.create, **request)
        try:
            job = self._call(send, _job, instead=lambda: self._find(content))
        except RefusedError:
            self._save("ledger", content, known)
            raise
        self._save("ledger", content, {"state": "started", "dollars": dollars, "job": job.id})
        return job

    def _approve_training(self, uploaded: dict, settings: Settings) -> float:
        if self._ours():
            return 0.0
        tokens = settings.n_epochs * uploaded["tokens"]
        dollars = tokens * self._purse.known_prices().training / 1000
        self._approve(Estimate(f"fine-tuning on {uploaded['examples']:,} examples", tokens, dollars))
        return dollars

    def _find(self, content: str) -> Job | None:
        """The newest job in the server's list that carries this hash and has not come to a bad end."""
        after, more = openai.omit, True
        while more:
            jobs, more = self._call(
                lambda after=after: self._client.fine_tuning.jobs.with_raw_response.list(
                    after=after, limit=JOBS_A_PAGE, metadata={HASH: content}
                ),
                lambda answer: ([_job(item) for item in answer["data"]], answer["has_more"]),
            )
            for job in jobs:
                if job.metadata.get(HASH) == content and job.status not in (FAILED, CANCELLED):
                    return job
            more = more and bool(jobs)
            after = jobs[-1].id if jobs else after
        return None

    def job(self, id: str) -> Job:
        return self._call(lambda: self._client.fine_tuning.jobs.with_raw_response.retrieve(id), _job)

    def events(self, id: str) -> list[Event]:
        found: dict[int, Event] = {}
        after, more = openai.omit, True
        while more:
            rows, more = self._call(
                lambda after=after: self._client.fine_tuning.jobs.with_raw_response.list_events(
                    id, after=after, limit=EVENTS_A_PAGE
                ),
                lambda answer: ([(row["id"], _event(row)) for row in answer["data"]], answer["has_more"]),
            )
            found |= {event.step: event for _, event in rows if event}
            more = more and bool(rows)
            after = rows[-1][0] if rows else after
        return [found[step] for step in sorted(found)]

    def wait(self, id: str) -> Job:
        """As `Backend.wait`. A server that goes away meanwhile may come back during the tries; later, wait again."""
        pause = min(FIRST_LOOK, self.poll)
        while not (job := self.job(id)).over:
            time.sleep(pause)
            pause = min(2 * pause, self.poll)
        return succeeded(job)

    def cancel(self, id: str) -> Job:
        return self._call(lambda: self._client.fine_tuning.jobs.with_raw_response.cancel(id), _job)

    # --- what models say ---

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
        """As `Backend.complete`, in portions, each kept on disk. Raises BudgetError where it may not be paid for."""
        check_stop(stop)
        question = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        question |= {"stop": list(stop)} if stop else {}
        question |= {"logprobs": logprobs} if logprobs is not None else {}
        return self._ask(question, prompts, seed)

    def class_probability(
        self, model: str, prompts: Sequence[str], positive: str = "1", negative: str = "0"
    ) -> list[float]:
        """As `Backend.class_probability`. Our server tells both log-probabilities; another one tells those of the five
        likeliest tokens only. Where a class is not among them its probability is unknown, and to take it for 0 would
        move the scores of just the texts that are hard to judge: that raises FineTuningError."""
        question = {"model": model, "temperature": 0, "max_tokens": 1, "logprobs": MOST_LOGPROBS}
        answers = self._ask(question | {"class_tokens": [positive, negative]}, prompts, seed=0)
        return [_share(answer, prompt, positive, negative) for answer, prompt in zip(answers, prompts, strict=True)]

    def cost_estimate(self, examples: Sequence[tuple[str, str]], epochs: int, prices: Prices) -> Estimate:
        return training_cost(examples, epochs, prices, self.count_tokens)

    def _ask(self, question: dict, prompts: Sequence[str], seed: int) -> list[Completion]:
        portions = [question | {"prompt": list(some), "seed": its_seed} for some, its_seed in requests(prompts, seed)]
        if all(map(self._answer_kept, portions)) or self._ours():
            return self._answers(portions)
        with self._alone():
            if new := [portion for portion in portions if not self._answer_kept(portion)]:
                self._approve_questions(new)
            return self._answers(portions)

    def _answers(self, portions: Sequence[dict]) -> list[Completion]:
        return [answer for portion in portions for answer in _completions(self._answer(portion))]

    def _answer(self, portion: dict) -> dict:
        answer = self._answer_kept(portion)
        if answer is None:
            answer = self._call(lambda: self._send(portion), lambda answer: _checked(answer, portion))
            kept = {"question": portion, "answer": answer, "dollars": self._price(portion, answer)}
            self._save("completions", _hash(json.dumps(portion)), kept)
        return answer

    def _answer_kept(self, portion: dict) -> dict | None:
        kept = self._load("completions", _hash(json.dumps(portion)))
        return kept["answer"] if kept else None

    def _send(self, portion: dict):
        asked = {name: value for name, value in portion.items() if name != "class_tokens"}
        extra = {"class_tokens": portion["class_tokens"]} if "class_tokens" in portion and self._ours() else {}
        return self._client.completions.with_raw_response.create(**asked, extra_body=extra)

    def _approve_questions(self, portions: Sequence[dict]) -> None:
        count, tokens = sum(len(portion["prompt"]) for portion in portions), sum(map(self._most_tokens, portions))
        dollars = tokens * self._purse.known_prices().inference / 1000
        self._approve(Estimate(f"{count:,} completions by {portions[0]['model']}, at most", tokens, dollars))

    def _most_tokens(self, portion: dict) -> int:
        return sum(self.count_tokens(prompt) + portion["max_tokens"] for prompt in portion["prompt"])

    # --- money ---

    def _approve(self, estimate: Estimate) -> None:
        """By what the folder says was spent, by whatever process."""
        paid = [path for kind in ("ledger", "completions") for path in (self.folder / kind).glob("*.json")]
        self._purse.approve(estimate, sum(_read(path).get("dollars", 0.0) for path in paid))

    def _price(self, portion: dict, answer: dict) -> float:
        """Dollars for an answer, by the tokens that the server counts; if it does not, by the most there can be."""
        if self._ours():
            return 0.0
        usage = answer.get("usage")
        told = usage.get("total_tokens") if isinstance(usage, dict) else None
        return (told or self._most_tokens(portion)) * self._purse.known_prices().inference / 1000

    def _ours(self) -> bool:
        """Whether this is our own server: on this machine, free, and in the know of our extensions."""
        if self._known_as_ours is None:
            self._known_as_ours = _on_this_machine(self.base_url) and self._call(
                self._client.models.with_raw_response.list,
                lambda answer: any(model.get("owned_by") == OWNER for model in answer["data"]),
            )
        return self._known_as_ours

    # --- over the wire ---

    def _call(self, send: Callable, read: Callable, instead: Callable | None = None):
        """`read` of what the server answers, with tries after what may be a fault of the moment. Between them `instead`
        looks whether the lost request was heard after all; what it finds is the answer. Raises FineTuningError."""
        for number in range(1, TRIES + 1):
            text, advised = None, 0.0
            try:
                text = self._without_key(send().text)
            except openai.APIStatusError as error:
                reason, advised = self._reason(error), _retry_after(error)
                if not _passing(error):
                    raise RefusedError(f"{self.base_url} refuses this: {reason}") from None
            except openai.APITimeoutError:
                reason = "no answer in time"
            except openai.APIConnectionError:
                reason = "no connection"
            if text is not None:
                try:
                    return read(json.loads(text))
                except (ValueError, KeyError, TypeError, AttributeError):
                    reason = "an answer that is not what the API promises"
            if number < TRIES:
                time.sleep(min(LONGEST_PAUSE, max(advised, self.first_pause * 2**number * random.random())))
                if instead and (found := instead()) is not None:
                    return found
        raise FineTuningError(
            f"{self.base_url} was asked {TRIES} times in vain, at last with {reason}: try again later, nothing that "
            "was done is lost."
        )

    def _there(self, retrieve: Callable, id: str) -> bool:
        """Whether the server still has it."""

        def send():
            try:
                return retrieve(id)
            except openai.NotFoundError:
                return _Absent

        return self._call(send, bool)

    def _reason(self, error: openai.APIStatusError) -> str:
        """What the server says."""
        if error.status_code == 401:
            return f"it does not accept the key in {KEY}."
        said = error.body.get("message") if isinstance(error.body, dict) else None
        return self._without_key(f"{error.status_code}, {said or type(error).__name__}")[:LONGEST_REASON]

    def _without_key(self, text: str) -> str:
        """What a server says without the key, which some of them repeat."""
        key = self._client.api_key
        return text.replace(key, "...") if len(key) >= SHORTEST_KEY else text

    # --- on disk ---

    def _load(self, kind: str, name: str) -> dict | None:
        path = self._path(kind, name)
        if path in self._unsaved:
            self._save(kind, name, self._unsaved[path])
        return _read(path) if path.exists() else None

    def _save(self, kind: str, name: str, value: dict) -> None:
        """Where the disk is full, what was paid for stays in memory until there is room and it is asked for again."""
        path = self._path(kind, name)
        self._unsaved[path] = value
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".writing.lock"):  # another process may save the same
                write(path, json.dumps(value) + "\n")
        except OSError as error:
            raise FineTuningError(
                f"{self.folder} cannot be written ({error.strerror}): make room or allow it, and do the same again; "
                "what was started or answered is not paid for twice."
            ) from None
        self._unsaved.pop(path, None)

    def _alone(self):
        """A context in which no other process sends a file, starts a job or asks what has a price: nothing is done
        twice, and what one has spent the next one knows."""
        with checkpoints.writable(self.folder):
            return checkpoints.locked(
                self.folder / ".asking.lock", f"waiting for another process, which asks {self.base_url}"
            )

    def _path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}.json"


class _Absent:
    """The answer of a server that has nothing of that name."""

    text = "{}"


def _on_this_machine(base_url: str) -> bool:
    return urlsplit(base_url).hostname in LOOPBACK


def _key(base_url: str) -> str:
    if "@" in urlsplit(base_url).netloc:
        raise FineTuningError(
            f"The address of a server holds no key, so put yours into the environment variable {KEY}."
        )
    if key := os.environ.get(KEY, "").strip():
        if not re.fullmatch("[!-~]+", key):
            raise FineTuningError(f"{KEY} holds a blank or another character that no key has: copy your key once more.")
        return key
    if _on_this_machine(base_url):
        return "no-key-needed"  # the package wants one; a server of this machine does not
    raise FineTuningError(
        f"{base_url} wants a key: put yours into the environment variable {KEY}, and nowhere else, or start 'python -m "
        "rlhf_lab serve' and give its address as base_url."
    )


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise FineTuningError(f"{path} is damaged: delete it; a job that was started is found again.") from None


def _passing(error: openai.APIStatusError) -> bool:
    """Whether the same request may succeed a little later."""
    return (
        error.status_code in (408, 409)
        or error.status_code >= 500
        or (error.status_code == 429 and error.code != OUT_OF_MONEY)
    )


def _retry_after(error: openai.APIStatusError) -> float:
    """Seconds that the server asks for; 0 if it does not, or gives a date."""
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _job(answer: dict) -> Job:
    method = (answer.get("method") or {}).get("supervised") or {}
    chosen = method.get("hyperparameters") or answer.get("hyperparameters") or {}
    settings = {name: chosen[name] for name in HYPERPARAMETERS if chosen.get(name, "auto") not in ("auto", None)}
    return Job(
        id=answer["id"],
        status=QUEUED if answer["status"] == "validating_files" else answer["status"],
        model=answer["model"],
        file=answer["training_file"],
        settings=Settings(**settings | {name: answer[name] for name in EXTENSIONS if name in answer}),
        seed=answer.get("seed") or 0,
        fine_tuned_model=answer["fine_tuned_model"],
        error=(answer.get("error") or {}).get("message") or "",
        trained_tokens=answer.get("trained_tokens"),
        created=answer["created_at"],
        finished=answer.get("finished_at"),
        metadata=answer.get("metadata") or {},
    )


def _event(row: dict) -> Event | None:
    """None for an event that is no step."""
    data = row.get("data") or {}
    return Event(data["step"], data["train_loss"], data.get("tokens", 0)) if row.get("type") == "metrics" else None


def _checked(answer: dict, portion: dict) -> dict:
    """The answer, if it answers every prompt. Raises ValueError or KeyError for half an answer."""
    if len(_completions(answer)) != len(portion["prompt"]):
        raise ValueError("not as many choices as prompts")
    return answer


def _completions(answer: dict) -> list[Completion]:
    return [_completion(choice) for choice in sorted(answer["choices"], key=lambda choice: choice["index"])]


def _completion(choice: dict) -> Completion:
    logs = choice.get("logprobs")
    if not logs:
        return Completion(choice["text"], tuple(choice.get("tokens") or ()), choice["finish_reason"])
    return Completion(
        choice["text"],
        tuple(logs["tokens"]),
        choice["finish_reason"],
        tuple(logs["token_logprobs"]),
        tuple(logs["top_logprobs"] or ()),
    )


def _share(answer: Completion, prompt: str, positive: str, negative: str) -> float:
    top = answer.top[0] if answer.top else {}
    if missing := [label for label in (positive, negative) if label not in top]:
        raise FineTuningError(
            f"The server tells the {len(top)} likeliest tokens after ...{prompt[-20:]!r}, and {missing[0]!r} is none "
            "of them, so its probability is unknown: train the model on these classes first, or use our own server."
        )
    most = max(top[positive], top[negative])  # so that one of the two is 1: some servers tell -9999 for a zero
    yes, no = math.exp(top[positive] - most), math.exp(top[negative] - most)
    return yes / (yes + no)
