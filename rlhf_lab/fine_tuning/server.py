"""Our own server that speaks OpenAI's language: files, fine-tuning jobs and their events, models, completions.

It answers this machine only, over a `LocalBackend`; jobs are trained one at a time, those of an earlier server first.
Beyond OpenAI's fields it knows `prompt_loss_weight` and `layers` of a job and `class_tokens` of a completion, whose
log-probabilities it tells wherever it tells any, and it tells a completion's tokens always. Its form is that of the API
reference (developers.openai.com/api) as the package `openai` 3 reads it.
"""

import functools
import json
import queue
import threading
import time
from contextlib import suppress
from dataclasses import replace
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from rlhf_lab.errors import CourseError
from rlhf_lab.fine_tuning import (
    EXTENSIONS,
    FAILED,
    HYPERPARAMETERS,
    OWNER,
    SUCCEEDED,
    Completion,
    Event,
    FineTuningError,
    Job,
    Settings,
    from_jsonl,
)
from rlhf_lab.fine_tuning.local import LocalBackend

HOST, PORT = "127.0.0.1", 8008
LARGEST_BODY = 512 * 2**20  # bytes
PATIENCE = 60  # seconds, for which a client may be silent in the middle of its request
SECONDS_TO_END = 0.05
PAGE = 20  # jobs or events, where a request does not say how many
TOKENS = 16  # of a completion, where a request does not say how many
FIXED = {"n": 1, "best_of": 1, "top_p": 1, "echo": False, "stream": False, "logit_bias": {}, "suffix": ""}
FIXED |= {"presence_penalty": 0, "frequency_penalty": 0}  # fields of a completion that can have this value only


class Server:
    """A server on loopback, as a context: `with Server(folder) as server: OpenAIBackend(server.url)`. Port 0 takes a
    free one. At its end, the job that is being trained leaves off and is queued for the next server of the folder.
    Raises FineTuningError for a port that is taken."""

    def __init__(self, folder: Path | None = None, port: int = 0):
        self.backend = LocalBackend(folder)
        try:
            self._http = ThreadingHTTPServer((HOST, port), _Handler)
        except (OSError, OverflowError) as error:
            raise FineTuningError(f"Port {port} cannot be used ({error}): name another one.") from None
        self._http.daemon_threads = True
        self._http.course = self
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._failures: dict[str, str] = {}  # what may not have been written down, job by job
        work = (functools.partial(self._http.serve_forever, SECONDS_TO_END), self._train)
        self._threads = [threading.Thread(target=target, daemon=True) for target in work]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._http.server_port}/v1"

    def __enter__(self) -> "Server":
        for job in reversed(self.backend.jobs()):
            self.enqueue(job)
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._http.shutdown()
        self._http.server_close()
        self.backend.stop()
        self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def enqueue(self, job: Job) -> None:
        """Train it when its turn comes, unless it is over."""
        if not job.over:
            self._failures.pop(job.id, None)
            self._queue.put(job.id)

    def job(self, job: Job) -> Job:
        """What is to be told of a job: it has failed also where the disk is too full to say so."""
        failure = "" if job.over else self._failures.get(job.id, "")
        return replace(job, status=FAILED, error=failure) if failure else job

    def _train(self) -> None:
        while (id := self._queue.get()) is not None:
            try:
                self.backend.wait(id)
            except FineTuningError:
                pass  # the job's own status says what went wrong
            except Exception as error:
                self._failures[id] = str(error)


def serve(port: int = PORT, folder: Path | None = None) -> None:
    """Serve until interrupted."""
    with Server(folder, port) as server:
        print(f"Serving {server.url} for this machine. In another terminal: OPENAI_BASE_URL={server.url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


class _Refusal(Exception):
    """A request that cannot be answered, with the HTTP status that says why."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server_version = "rlhf_lab"
    timeout = PATIENCE

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, *arguments) -> None:
        """Nothing: whatever is logged may hold what a client sent."""

    def _answer(self) -> None:
        try:
            self._check_sender()
            status, answer = 200, self._route(self.rfile.read(self._length()))
        except _Refusal as refusal:
            status, answer = refusal.status, _error(str(refusal), "invalid_request_error")
        except (ValueError, KeyError, TypeError, AttributeError, CourseError) as error:
            missing = f"The field {error} is missing." if isinstance(error, KeyError) else str(error)
            status, answer = 400, _error(missing, "invalid_request_error")
        except Exception as error:
            status, answer = 500, _error(f"{type(error).__name__}: {error}", "server_error")
        self._send(status, answer)

    def _length(self) -> int:
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 <= length <= LARGEST_BODY:
            raise _Refusal(413, f"The request has {length} bytes, and {LARGEST_BODY} are the most.")
        return length

    def _check_sender(self) -> None:
        """Refuse web pages: a browser names the page a request comes from, or the host it believes to talk to."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if "Origin" in self.headers or host not in (HOST, "localhost"):
            raise _Refusal(403, "This server answers programs of this machine only.")

    def _route(self, body: bytes) -> dict | bytes:
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        match self.command, *address.path.strip("/").split("/"):
            case "GET", "v1", "models":
                return _page([_model(name) for name in self._backend.models()])
            case "GET", "v1", "models", *rest:
                return _model(self._known("/".join(rest), self._backend.models()))
            case "POST", "v1", "files":
                return self._upload(body)
            case "GET", "v1", "files":
                return _page([_file(*file) for file in self._backend.files().items()])
            case "GET", "v1", "files", id:
                return _file(self._known(id, self._backend.files()), self._backend.files()[id])
            case "GET", "v1", "files", id, "content":
                return self._backend.files()[self._known(id, self._backend.files())].read_bytes()
            case "POST", "v1", "fine_tuning", "jobs":
                return self._start(json.loads(body))
            case "GET", "v1", "fine_tuning", "jobs":
                return self._jobs(query)
            case "GET", "v1", "fine_tuning", "jobs", id:
                return _job(self._job(id))
            case "POST", "v1", "fine_tuning", "jobs", id, "cancel":
                return _job(self._backend.cancel(self._job(id).id))
            case "GET", "v1", "fine_tuning", "jobs", id, "events":
                return self._events(self._job(id), query)
            case "POST", "v1", "completions":
                return self._complete(json.loads(body))
        raise _Refusal(404, f"There is no {self.command} {address.path} here.")

    @property
    def _backend(self) -> LocalBackend:
        return self.server.course.backend

    def _known(self, name: str, names) -> str:
        if name not in names:
            raise _Refusal(404, f"There is no {name!r} here: list what there is, or upload or train it first.")
        return name

    def _job(self, id: str) -> Job:
        try:
            return self.server.course.job(self._backend.job(id))
        except FineTuningError as error:
            raise _Refusal(404, str(error)) from None

    def _upload(self, body: bytes) -> dict:
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {part.get_param("name", header="content-disposition"): part for part in _parts(head + body)}
        if "file" not in parts or "purpose" not in parts:
            raise _Refusal(400, "A file comes as multipart/form-data with the parts purpose and file.")
        text = parts["file"].get_payload(decode=True).decode("utf-8")
        id = self._backend.upload(from_jsonl(text, parts["file"].get_filename() or "the file"))
        return _file(id, self._backend.files()[id])

    def _start(self, request: dict) -> dict:
        method, metadata = request.get("method") or {}, request.get("metadata") or {}
        if method.get("type", "supervised") != "supervised":
            raise _Refusal(400, f"This server trains by the method supervised, not {method['type']}.")
        if not all(isinstance(word, str) for item in metadata.items() for word in item):
            raise _Refusal(400, "The metadata of a job are names and texts.")
        supervised = method.get("supervised") or {}
        chosen = supervised.get("hyperparameters") or request.get("hyperparameters") or {}
        given = {name: value for name, value in chosen.items() if value not in ("auto", None)}
        if unknown := sorted(set(given) - set(HYPERPARAMETERS)):
            raise _Refusal(400, f"This server has no hyperparameter {unknown[0]!r}: leave it away.")
        given |= {name: request[name] for name in EXTENSIONS if name in request}
        job = self._backend.fine_tune(
            request["training_file"],
            self._known(request["model"], self._backend.models()),
            Settings(**given),
            int(request.get("seed") or 0),
            request.get("suffix") or "",
            metadata,
        )
        self.server.course.enqueue(job)
        return _job(job)

    def _jobs(self, query: dict) -> dict:
        wanted = {name[9:-1]: value for name, value in query.items() if name.startswith("metadata[")}
        jobs = [job for job in self._backend.jobs() if wanted.items() <= job.metadata.items()]
        return _page([_job(self.server.course.job(job)) for job in jobs], query)

    def _events(self, job: Job, query: dict) -> dict:
        return _page([_event(job, event) for event in reversed(self._backend.events(job.id))], query)

    def _complete(self, request: dict) -> dict:
        if other := [name for name, only in FIXED.items() if request.get(name) not in (None, only)]:
            raise _Refusal(400, f"This server has one {other[0]} only, {FIXED[other[0]]!r}: leave the field away.")
        prompts, stop = ([x] if isinstance(x, str) else x or [] for x in (request["prompt"], request.get("stop")))
        completions = self._backend.complete(
            self._known(request["model"], self._backend.models()),
            prompts,
            temperature=_or(request.get("temperature"), 1.0),
            stop=stop,
            max_tokens=_or(request.get("max_tokens"), TOKENS),
            logprobs=request.get("logprobs"),
            seed=_or(request.get("seed"), time.time_ns() % 2**31),
            also=request.get("class_tokens") or (),
        )
        return _answer(request["model"], self._backend.count_tokens(request["model"], prompts), completions)

    def _send(self, status: int, answer: dict | bytes) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        with suppress(ConnectionError, TimeoutError):  # the client has left
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)


def _parts(message: bytes) -> list:
    parsed = BytesParser().parsebytes(message)
    return parsed.get_payload() if parsed.is_multipart() else []


def _or(value, default):
    return default if value is None else value


# --- objects of the API ---


def _error(message: str, kind: str) -> dict:
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _page(items: list[dict], query: dict | None = None) -> dict:
    """A list, or the page of it that begins after an item and has a number of them."""
    more = False
    if query is not None:
        ids = [item["id"] for item in items]
        start = ids.index(query["after"]) + 1 if query.get("after") in ids else 0
        end = start + int(query.get("limit", PAGE))
        items, more = items[start:end], end < len(items)
    return {"object": "list", "data": items, "has_more": more}


def _model(name: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": OWNER}


def _file(id: str, path: Path) -> dict:
    about = path.stat()
    fields = {"id": id, "object": "file", "bytes": about.st_size, "created_at": int(about.st_mtime)}
    return fields | {"filename": path.name, "purpose": "fine-tune", "status": "processed"}


def _job(job: Job) -> dict:
    chosen = {name: getattr(job.settings, name) for name in HYPERPARAMETERS}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": job.created,
        "finished_at": job.finished,
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": OWNER,
        "status": job.status,
        "error": {"code": "failed", "message": job.error, "param": None} if job.error else None,
        "hyperparameters": chosen,
        "method": {"type": "supervised", "supervised": {"hyperparameters": chosen}},
        **{name: getattr(job.settings, name) for name in EXTENSIONS},
        "training_file": job.file,
        "validation_file": None,
        "result_files": [],
        "seed": job.seed,
        "trained_tokens": job.trained_tokens if job.status == SUCCEEDED else None,
        "metadata": dict(job.metadata),
    }


def _event(job: Job, event: Event) -> dict:
    return {
        "id": f"ftevent-{job.id.removeprefix('ftjob-')}-{event.step}",
        "object": "fine_tuning.job.event",
        "created_at": job.created,
        "level": "info",
        "type": "metrics",
        "message": f"Step {event.step}: training loss={event.loss:.4f}",
        "data": {"step": event.step, "train_loss": event.loss, "tokens": event.tokens},
    }


def _answer(model: str, prompt_tokens: int, completions: list[Completion]) -> dict:
    written = sum(len(completion.tokens) for completion in completions)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": written, "total_tokens": prompt_tokens + written}
    return {
        "id": f"cmpl-{time.time_ns():x}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": model,
        "choices": [_choice(index, completion) for index, completion in enumerate(completions)],
        "usage": usage,
    }


def _choice(index: int, completion: Completion) -> dict:
    choice = {"index": index, "text": completion.text, "finish_reason": completion.finish_reason, "logprobs": None}
    choice["tokens"] = completion.tokens  # which OpenAI tells with log-probabilities only
    if completion.logprobs is not None:
        starts = [sum(map(len, completion.tokens[:i])) for i in range(len(completion.tokens))]
        choice["logprobs"] = {
            "tokens": completion.tokens,
            "token_logprobs": completion.logprobs,
            "top_logprobs": completion.top,
            "text_offset": starts,
        }
    return choice
