"""`OpenAIBackend` over real HTTP against our own server, which is made to fail in every way that servers do.

What is asked of both: the answers of a `LocalBackend`, and counts of requests.
"""

import json
import logging
import math
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import openai
import pytest

from rlhf_lab import ROOT, checkpoints
from rlhf_lab.fine_tuning import Completion, FineTuningError, Settings, backends, openai_backend, server
from rlhf_lab.fine_tuning.local import LocalBackend
from rlhf_lab.fine_tuning.openai_backend import TRIES, OpenAIBackend
from rlhf_lab.fine_tuning.server import Server
from rlhf_lab.fine_tuning.spending import BudgetError, Prices

BASE, PROMPT = "base-0.2M", "\n\nHuman: How do I keep bread fresh?\n\nAssistant:"
EXAMPLES = [(PROMPT, " Keep it in a paper bag."), ("\n\nHuman: Thanks.<SOS>", "1"), ("So", " it is.")] * 2
SETTINGS = Settings(n_epochs=2, batch_size=3, prompt_loss_weight=0.1)
LONG = replace(SETTINGS, n_epochs=3000)
PLAIN = Settings(batch_size=3)
FAKE_KEY = "sk-" + "not-a-real-key-but-as-long"  # in two parts: no file of ours may look as if it held one
START = ("POST", "/v1/fine_tuning/jobs")
ASK = ("POST", "/v1/completions")
PATIENCE = 0.8  # seconds
FOREIGN = {"prices": Prices(0.01, 0.02)}  # dollars per 1,000 tokens


class Faulty(server._Handler):
    """Notes every request, and misbehaves at those to the place that `faults` name, as long as there are any. A fault
    that is `heard` comes after the request was carried out."""

    def _answer(self):
        course, request = self.server.course, (self.command, self.path.partition("?")[0])
        course.requests.append(request)
        due = course.faults and request == course.place
        self.fault, self.heard = course.faults.pop(0) if due else ("", True)
        if self.heard:
            return super()._answer()
        self.rfile.read(self._length())
        self._misbehave(b"{}")

    def _send(self, status, answer):
        if not self.fault:
            return super()._send(status, answer)
        self._misbehave(json.dumps(answer).encode())

    def _misbehave(self, body):
        refusals = {"429": 429, "500": 500, "503": 503, "400": 400, "401": 401, "no money": 429}
        if self.fault in refusals:
            code = openai_backend.OUT_OF_MONEY if self.fault == "no money" else None
            message = f"Not with {self.headers['Authorization']}".ljust(openai_backend.LONGEST_REASON - 20) + FAKE_KEY
            said = {"message": message, "code": code, "type": "x", "param": None}
            self.fault, status = "", refusals[self.fault]
            return super()._send(status, {"error": said})
        if self.fault == "silence":
            time.sleep(2 * PATIENCE)
        if self.fault in ("drop", "silence"):
            return self.connection.shutdown(socket.SHUT_RDWR)
        bodies = {"garbage": b"<html>busy</html>", "half": body[: len(body) // 2], "empty": b"{}", "list": b"[]"}
        bodies["null"] = b"null"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(bodies[self.fault])


@contextmanager
def faulty(folder, port=0):
    with Server(folder, port) as running:
        running.requests, running.faults, running.place = [], [], ASK
        running._http.RequestHandlerClass = Faulty
        yield running


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv(openai_backend.KEY, FAKE_KEY)
    monkeypatch.delenv(openai_backend.ADDRESS, raising=False)


@pytest.fixture
def running(tmp_path):
    with faulty(tmp_path / "server") as running:
        yield running


@pytest.fixture
def client(running, tmp_path):
    def client(**options):
        usual = {"first_pause": 0.001, "poll": 0.05, "timeout": 60}
        return OpenAIBackend(running.url, tmp_path / "client", **usual | options)

    return client


@pytest.fixture
def foreign(monkeypatch):
    """Our server passes for somebody else's."""
    monkeypatch.setattr(server, "OWNER", "somebody")


def impatient(fault):
    """Options of a client that does not wait for a silent server, and for all others as long as it takes."""
    return {"timeout": PATIENCE} if fault == "silence" else {}


FULL = checkpoints.CacheError("The cache could not be saved: make room.")


def openai_client(running, **options):
    return openai.OpenAI(base_url=running.url, api_key="any", max_retries=0, **options)


def sent(running, request):
    return running.requests.count(request)


# --- the same as on this machine ---


def test_over_http_everything_is_as_on_this_machine(client, tmp_path):
    here, there = LocalBackend(tmp_path / "here"), client()
    found = []
    for backend in (here, there):
        file = backend.upload(EXAMPLES)
        job = backend.wait(backend.fine_tune(file, BASE, SETTINGS, seed=3, suffix="test").id)
        model = job.fine_tuned_model
        found.append(
            {
                "file": file,
                "job": replace(job, created=0, finished=0, metadata={}),
                "events": backend.events(job.id),
                "plain": backend.complete(model, [PROMPT] * 3, max_tokens=8, seed=5),
                "stop": backend.complete(model, [PROMPT, "So"], stop=[" the", "."], max_tokens=20),
                "cold": backend.complete(model, [PROMPT], temperature=0, max_tokens=8, logprobs=2),
                "classes": backend.class_probability(model, ["\n\nHuman: Thanks.<SOS>", "So"]),
                "other classes": backend.class_probability(BASE, [PROMPT], ".", "1"),
                "cost": [backend.cost_estimate(EXAMPLES, 2, Prices(1, 1)).what],
            }
        )
    (local, remote), close = found, ("classes", "other classes")
    for name in close:
        assert remote.pop(name) == pytest.approx(local.pop(name), abs=1e-5)
    assert local == remote


def test_many_prompts_are_asked_in_portions_and_answered_as_on_this_machine(client, running, monkeypatch):
    monkeypatch.setattr("rlhf_lab.fine_tuning.PROMPTS_PER_REQUEST", 3)
    prompts = [f"\n\nHuman: {word}\n\nAssistant:" for word in "one two three four five six seven".split()]
    assert client().complete(BASE, prompts, max_tokens=5) == running.backend.complete(BASE, prompts, max_tokens=5)
    assert sent(running, ASK) == 3


def test_the_wire_format_is_what_the_package_openai_promises(client, running):
    backend = client()
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS).id)
    strict = openai_client(running, _strict_response_validation=True)
    assert [found.id for found in strict.fine_tuning.jobs.list()] == [job.id]
    assert strict.fine_tuning.jobs.retrieve(job.id).trained_tokens == job.trained_tokens
    assert [event.data["step"] for event in strict.fine_tuning.jobs.list_events(job.id, limit=3)] == [4, 3, 2, 1]
    assert strict.models.retrieve(job.fine_tuned_model).owned_by == "rlhf_lab"
    assert job.fine_tuned_model in [model.id for model in strict.models.list()]
    file = strict.files.retrieve(job.file)
    assert (file.purpose, file.bytes) == ("fine-tune", len(strict.files.content(job.file).content))
    assert [found.id for found in strict.files.list()] == [job.file]
    answer = strict.completions.create(model=BASE, prompt=PROMPT, max_tokens=3, logprobs=1, stop=None)
    assert answer.usage.completion_tokens == 3 and answer.choices[0].logprobs.text_offset[0] == 0
    with pytest.raises(openai.NotFoundError, match="no 'gpt-5'"):
        strict.completions.create(model="gpt-5", prompt="x")


def test_events_are_read_page_by_page(client, running, monkeypatch):
    monkeypatch.setattr(openai_backend, "EVENTS_A_PAGE", 3)
    backend = client()
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, replace(SETTINGS, n_epochs=4)).id)
    assert backend.events(job.id) == running.backend.events(job.id)
    before = len(running.requests)
    assert [event.step for event in backend.events(job.id)] == list(range(1, 9))
    assert len(running.requests) - before == 3


def test_a_job_can_be_cancelled_while_it_runs_and_the_next_one_is_trained(client, running, tmp_path):
    backend = client()
    file = backend.upload(EXAMPLES)
    long, short = (backend.fine_tune(file, BASE, settings) for settings in (LONG, SETTINGS))
    while not backend.events(long.id):
        time.sleep(0.01)
    assert backend.cancel(long.id).status == "cancelled"
    assert backend.wait(short.id).status == "succeeded"
    with pytest.raises(FineTuningError, match="has been cancelled"):
        backend.wait(long.id)
    again = backend.fine_tune(file, BASE, LONG)
    assert not again.over and sent(running, START) == 3
    backend.cancel(again.id)
    shutil.rmtree(tmp_path / "client")
    again = backend.fine_tune(backend.upload(EXAMPLES), BASE, LONG)  # neither the ledger nor the list has one to go on
    assert not again.over and sent(running, START) == 4
    backend.cancel(again.id)


def test_a_notebook_gets_either_backend_by_name(tmp_path, running, monkeypatch):
    assert isinstance(backends.connect(backends.address("local"), folder=tmp_path), LocalBackend)
    monkeypatch.setenv(openai_backend.ADDRESS, running.url)
    assert backends.connect(backends.address("openai"), folder=tmp_path).base_url == running.url
    monkeypatch.delenv(openai_backend.ADDRESS)
    assert backends.address("openai") == openai_backend.OPENAI


# --- nothing twice ---


def test_a_question_that_was_answered_is_not_sent_again(client, running):
    first = client()
    questions = [
        {"prompts": [PROMPT, "So"], "max_tokens": 4},
        {"prompts": [PROMPT, "So"], "max_tokens": 4, "seed": 1},
        {"prompts": [PROMPT, "So"], "max_tokens": 5},
        {"prompts": ["So", PROMPT], "max_tokens": 4},
        {"prompts": [PROMPT, "So"], "max_tokens": 4, "temperature": 0.5},
        {"prompts": [PROMPT, "So"], "max_tokens": 4, "stop": ["."]},
        {"prompts": [PROMPT, "So"], "max_tokens": 4, "logprobs": 1},
    ]
    answers = [first.complete(BASE, **question) for question in questions]
    classes = first.class_probability(BASE, ["So"])
    assert sent(running, ASK) == len(questions) + 1
    before = len(running.requests)
    later = client()
    assert [later.complete(BASE, **question) for question in questions] == answers
    assert later.class_probability(BASE, ["So"]) == classes
    assert len(running.requests) == before
    later.class_probability(BASE, ["So"], "0", "1")
    assert sent(running, ASK) == len(questions) + 2


def test_the_same_job_is_started_once_by_whoever_wants_it(client, running, tmp_path):
    first = client()
    job = first.wait(first.fine_tune(first.upload(EXAMPLES), BASE, SETTINGS, suffix="one").id)
    later = client()
    assert later.fine_tune(later.upload(list(EXAMPLES)), BASE, SETTINGS, suffix="two") == job
    shutil.rmtree(tmp_path / "client")  # the ledger with it: the server's list still knows
    assert client().fine_tune(client().upload(EXAMPLES), BASE, SETTINGS) == job
    assert sent(running, START) == 1
    assert sent(running, ("POST", "/v1/files")) == 2
    assert later.fine_tune(job.file, BASE, SETTINGS, seed=1).id != job.id
    assert sent(running, START) == 2


def test_a_job_is_found_among_all_others_where_a_server_does_not_search_for_it(client, running, monkeypatch):
    jobs = server._Handler._jobs
    paging = ("after", "limit")
    monkeypatch.setattr(
        server._Handler,
        "_jobs",
        lambda self, query: jobs(self, {name: query[name] for name in paging if name in query}),
    )
    monkeypatch.setattr(openai_backend, "JOBS_A_PAGE", 1)
    backend = client()
    file = backend.upload(EXAMPLES)
    first, second = (backend.fine_tune(file, BASE, SETTINGS, seed).id for seed in (1, 2))
    shutil.rmtree(backend.folder / "ledger")
    assert [backend.fine_tune(file, BASE, SETTINGS, seed).id for seed in (1, 2)] == [first, second]
    assert sent(running, START) == 2 and first != second


def at_once(clients, ask):
    with ThreadPoolExecutor(len(clients)) as pool:
        return [answer.result() for answer in [pool.submit(ask, client, i) for i, client in enumerate(clients)]]


def test_who_wants_the_same_at_once_gets_it_and_it_is_paid_for_once(client, running, foreign, monkeypatch):
    clients = [client(**FOREIGN, budget=100.0) for _ in range(4)]
    whole = server._answer
    monkeypatch.setattr(server, "_answer", lambda *about: time.sleep(0.2) or whole(*about))

    def want(backend, _):
        job = backend.fine_tune(backend.upload(EXAMPLES), BASE, PLAIN)
        return job.id, backend.complete(BASE, [PROMPT], max_tokens=4)

    first, *others = at_once(clients, want)
    assert others == [first] * 3
    assert [sent(running, request) for request in (("POST", "/v1/files"), START, ASK)] == [1, 1, 1]


def test_who_spends_at_once_does_not_pass_the_budget(client, running, foreign):
    clients = [client(**FOREIGN, count_tokens=lambda text: 100, budget=0.003) for _ in range(3)]

    def want(backend, i):
        try:
            return backend.complete(BASE, ["So"], max_tokens=4, seed=i)  # at most $.00208, and about .0001 in the end
        except BudgetError:
            return None

    whole, running.place = server._answer, None
    assert all(at_once(clients, want))  # one after the other, with what the answers before have cost
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "_answer", lambda *about: whole(*about) | {"usage": None})  # so the most is what counts
        assert len([answer for answer in at_once(clients, lambda backend, i: want(backend, 10 + i)) if answer]) == 1


def test_two_clients_and_a_job_do_not_disturb_each_other(client, running):
    backend = client()
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, LONG)
    found = at_once([client(), client()], lambda one, i: one.complete(BASE, [PROMPT] * 4, max_tokens=8, seed=i))
    assert found == [running.backend.complete(BASE, [PROMPT] * 4, max_tokens=8, seed=i) for i in range(2)]
    assert not backend.cancel(job.id).error


@pytest.mark.faults
def test_one_file_is_written_by_one_at_a_time(client, monkeypatch):
    write, writing, most = openai_backend.write, [], []

    def slow(*args):
        writing.append(args)
        most.append(len(writing))
        time.sleep(0.1)
        write(*args)
        writing.pop()

    monkeypatch.setattr(openai_backend, "write", slow)
    answers = at_once([client() for _ in range(3)], lambda one, _: one.complete(BASE, [PROMPT], max_tokens=4))
    assert answers == [answers[0]] * 3 and max(most) == 1


@pytest.mark.faults
def test_a_file_or_a_job_that_the_server_has_lost_is_sent_again(client, running, tmp_path):
    backend = client()
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS).id)
    shutil.rmtree(tmp_path / "server" / "fine_tuning")
    assert backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS).id).id == job.id
    assert (sent(running, ("POST", "/v1/files")), sent(running, START)) == (2, 2)


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["500", "drop", "silence", "garbage", "half", "empty", "null"])
def test_a_start_whose_answer_was_lost_is_found_and_not_repeated(client, running, fault):
    backend = client(**impatient(fault))
    file = backend.upload(EXAMPLES)
    running.place, running.faults = START, [(fault, True)]
    job = backend.fine_tune(file, BASE, SETTINGS)
    assert sent(running, START) == 1
    assert [found.id for found in running.backend.jobs()] == [job.id]


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["429", "503", "drop", "silence", "garbage"])
def test_a_start_that_was_not_heard_is_repeated(client, running, fault):
    backend = client(**impatient(fault))
    file = backend.upload(EXAMPLES)
    running.place, running.faults = START, [(fault, False)] * 2
    assert backend.wait(backend.fine_tune(file, BASE, SETTINGS).id).status == "succeeded"
    assert sent(running, START) == 3


@pytest.mark.faults
@pytest.mark.parametrize("heard", [True, False])
def test_killed_while_starting_a_job_the_next_process_finds_it_or_starts_it(client, running, heard, monkeypatch):
    backend = client()
    file = backend.upload(EXAMPLES)
    with monkeypatch.context() as patch:
        call = OpenAIBackend._call

        def killed(self, send, read, instead=None):
            if instead:  # the start of a job
                if heard:
                    send()
                raise KeyboardInterrupt
            return call(self, send, read)

        patch.setattr(OpenAIBackend, "_call", killed)
        with pytest.raises(KeyboardInterrupt):
            backend.fine_tune(file, BASE, SETTINGS)
    (entry,) = (backend.folder / "ledger").glob("*.json")
    assert json.loads(entry.read_text())["state"] == "starting"
    later = client()
    assert later.wait(later.fine_tune(file, BASE, SETTINGS).id).status == "succeeded"
    assert sent(running, START) == 1


# --- faults of the moment ---


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["429", "500", "503", "silence", "drop", "garbage", "half", "empty", "list", "null"])
def test_a_fault_of_the_moment_is_tried_again(client, running, fault):
    running.faults = [(fault, True)] * 2
    found = client(**impatient(fault)).complete(BASE, [PROMPT], max_tokens=4)
    assert found == running.backend.complete(BASE, [PROMPT], max_tokens=4)
    assert sent(running, ASK) == 3


@pytest.mark.faults
def test_an_answer_to_fewer_prompts_is_no_answer(client, running, monkeypatch):
    whole, lacking = server._answer, [True]
    monkeypatch.setattr(
        server, "_answer", lambda model, tokens, found: whole(model, tokens, found[1:] if lacking.pop() else found)
    )
    lacking.insert(0, False)
    assert len(client().complete(BASE, [PROMPT, "So"], max_tokens=4)) == 2
    assert sent(running, ASK) == 2


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("500", "500"),
        ("429", "429"),
        ("drop", "no connection"),
        ("garbage", "an answer that is not what the API promises"),
    ],
)
def test_the_tries_are_limited(client, running, fault, sentence):
    running.faults = [(fault, True)] * (TRIES + 1)
    with pytest.raises(FineTuningError, match=f"asked {TRIES} times in vain, at last with {sentence}"):
        client().complete(BASE, [PROMPT], max_tokens=4)
    assert sent(running, ASK) == TRIES


@pytest.mark.faults
@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("400", "refuses this: 400, Not with Bearer"),
        ("401", f"does not accept the key in {openai_backend.KEY}"),
        ("no money", "refuses this: 429"),
    ],
)
def test_what_no_pause_helps_is_not_tried_again(client, running, fault, sentence):
    running.faults = [(fault, True)] * 2
    with pytest.raises(FineTuningError, match=sentence):
        client().complete(BASE, [PROMPT], max_tokens=4)
    assert sent(running, ASK) == 1


@pytest.mark.faults
def test_pauses_double_and_vary_and_a_server_may_ask_for_longer_ones(client, monkeypatch):
    pauses, shares = [], iter([0.5, 1.0, 0.25, 0.5, 0.5] * 2)
    monkeypatch.setattr(openai_backend.time, "sleep", pauses.append)
    monkeypatch.setattr(openai_backend.random, "random", lambda: next(shares))
    backend = client(first_pause=4.0)
    request = openai_backend.openai.DefaultHttpxClient().build_request("GET", backend.base_url)
    for headers in ({"retry-after": "Thu, 01 Jan 2026 00:00:00 GMT"}, {"retry-after": "7"}):
        response = type("Response", (), {"request": request, "status_code": 500, "headers": headers})()

        def send(response=response):
            raise openai.InternalServerError("busy", response=response, body=None)

        with pytest.raises(FineTuningError):
            backend._call(send, dict)
    assert pauses == [4.0, 16.0, 8.0, 32.0, 60.0, 7.0, 16.0, 8.0, 32.0, 60.0]


@pytest.mark.faults
def test_a_server_that_is_not_there_gets_a_sentence(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with pytest.raises(FineTuningError, match="in vain, at last with no connection: try again later"):
        OpenAIBackend(url, tmp_path, first_pause=0.001).job("ftjob-1")


SERVE = """
import time
from rlhf_lab.fine_tuning import local
steps = local.LocalBackend.steps
def slow(self, job):
    on_step = steps(self, job)
    return lambda event: (on_step(event), time.sleep(0.2))
local.LocalBackend.steps = slow
from rlhf_lab.__main__ import main
main(["serve", "--port", "{port}", "--folder", r"{folder}"])
"""


@pytest.mark.faults
def test_a_server_killed_in_the_middle_of_a_job_ends_it_when_it_is_back(tmp_path, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = SERVE.format(port=port, folder=tmp_path / "server")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert f"127.0.0.1:{port}/v1" in process.stdout.readline()
        backend = OpenAIBackend(f"http://127.0.0.1:{port}/v1", tmp_path / "client", first_pause=0.05, poll=0.05)
        file = backend.upload(EXAMPLES)
        job = backend.fine_tune(file, BASE, replace(SETTINGS, n_epochs=8))
        while len(backend.events(job.id)) < 2:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert LocalBackend(tmp_path / "server").job(job.id).status == "running"
    with faulty(tmp_path / "server", port) as running:
        done = OpenAIBackend(running.url, tmp_path / "client", poll=0.05).wait(job.id)
        assert backend.fine_tune(file, BASE, replace(SETTINGS, n_epochs=8)) == done
        assert sent(running, START) == 0
    undisturbed = LocalBackend(tmp_path / "undisturbed")
    undisturbed.wait(undisturbed.fine_tune(undisturbed.upload(EXAMPLES), BASE, replace(SETTINGS, n_epochs=8)).id)
    model, name = done.fine_tuned_model, "model.safetensors"
    folders = [LocalBackend(tmp_path / name).model_folder(model) for name in ("server", "undisturbed")]
    assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.mark.faults
def test_a_server_that_ends_queues_what_it_was_training(tmp_path):
    with faulty(tmp_path) as running:
        backend = OpenAIBackend(running.url, tmp_path / "client", poll=0.05)
        job = backend.fine_tune(backend.upload(EXAMPLES), BASE, LONG)
        while not backend.events(job.id):
            time.sleep(0.01)
    assert LocalBackend(tmp_path).job(job.id).status == "queued"


@contextmanager
def full_disk():
    """No file of this process can grow beyond its first byte."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.faults
def test_on_a_full_disk_no_job_is_started_and_no_answer_is_lost(client, running):
    backend = client()
    file = backend.upload(EXAMPLES)
    running.backend.complete(BASE, ["So"], max_tokens=1)  # loads the model, whose progress bar writes to a file here
    with full_disk():
        with pytest.raises(FineTuningError, match="cannot be written .*: make room"):
            backend.fine_tune(file, BASE, SETTINGS)
        with pytest.raises(FineTuningError, match="cannot be written .*: make room"):
            backend.complete(BASE, [PROMPT], max_tokens=4)
    assert (sent(running, START), sent(running, ASK)) == (0, 1)
    answer = backend.complete(BASE, [PROMPT], max_tokens=4)  # there is room again
    assert client().complete(BASE, [PROMPT], max_tokens=4) == answer
    assert sent(running, ASK) == 1
    assert backend.wait(backend.fine_tune(file, BASE, SETTINGS).id).status == "succeeded"


@pytest.mark.faults
def test_a_server_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(client, running, monkeypatch):
    backend = client()
    file = backend.upload(EXAMPLES)
    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "_update", lambda *args, **changes: (_ for _ in ()).throw(FULL))
        job = backend.fine_tune(file, BASE, SETTINGS)
        with pytest.raises(FineTuningError, match="has failed: The cache .* make room"):
            backend.wait(job.id)
        assert next(iter(openai_client(running).fine_tuning.jobs.list())).status == "failed"
    assert backend.wait(backend.fine_tune(file, BASE, SETTINGS).id).status == "succeeded"


@pytest.mark.faults
def test_a_damaged_file_of_the_ledger_is_named(client):
    backend = client()
    file = backend.upload(EXAMPLES)
    backend.fine_tune(file, BASE, SETTINGS)
    (entry,) = (backend.folder / "ledger").glob("*.json")
    entry.write_text('{"state"')
    with pytest.raises(FineTuningError, match=f"{entry.name} is damaged: delete it"):
        client().fine_tune(file, BASE, SETTINGS)


# --- servers of others ---


@pytest.mark.parametrize("setting", ["prompt_loss_weight", "layers"])
def test_our_own_settings_are_refused_elsewhere(client, running, foreign, setting):
    backend = client(**FOREIGN, budget=100.0)
    settings = replace(PLAIN, **{setting: {"prompt_loss_weight": 0.1, "layers": "last"}[setting]})
    with pytest.raises(FineTuningError, match=f"knows no {setting}, only our own server does"):
        backend.fine_tune(backend.upload(EXAMPLES), BASE, settings)
    assert sent(running, START) == 0
    assert backend.fine_tune(backend.upload(EXAMPLES), BASE, PLAIN).settings == PLAIN


def test_our_own_server_takes_its_own_settings(client, running):
    backend = client()
    settings = replace(SETTINGS, layers="last")
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, settings)
    assert job.settings == running.backend.job(job.id).settings == settings


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "may cost money.*pass `prices`"),
        (FOREIGN, "Nothing is spent unasked .*: pass `budget`"),
        (FOREIGN | {"budget": 0.0001}, "more than the budget"),
        (FOREIGN | {"confirm": lambda estimate: False}, "Not confirmed"),
    ],
)
def test_elsewhere_nothing_is_spent_unasked(client, running, foreign, options, sentence):
    backend = client(**options)
    file = backend.upload(EXAMPLES)
    with pytest.raises(BudgetError, match=sentence):
        backend.fine_tune(file, BASE, PLAIN)
    with pytest.raises(BudgetError, match=sentence):
        backend.complete(BASE, [PROMPT], max_tokens=4)
    assert (sent(running, START), sent(running, ASK)) == (0, 0)


def test_a_budget_counts_what_was_spent_before_by_any_process(client, foreign):
    count = {"count_tokens": lambda text: 100}
    backend = client(**FOREIGN, **count, budget=0.012 + 0.003)
    file = backend.upload(EXAMPLES)  # 1,200 tokens at $.01 a thousand
    job = backend.wait(backend.fine_tune(file, BASE, PLAIN).id)
    later = client(**FOREIGN, **count, budget=0.012 + 0.003)
    assert later.fine_tune(file, BASE, PLAIN) == job  # costs nothing
    later.complete(BASE, ["So"], max_tokens=4)  # at most 104 tokens at $.02 a thousand
    with pytest.raises(BudgetError, match=r"\$0\.01 are spent already"):
        later.fine_tune(file, BASE, replace(PLAIN, n_epochs=2))


def test_a_job_that_was_refused_is_not_paid_for(client, running, foreign):
    backend = client(**FOREIGN, count_tokens=lambda text: 100, budget=0.013)
    file = backend.upload(EXAMPLES)
    running.place, running.faults = START, [("400", False)]
    with pytest.raises(openai_backend.RefusedError):
        backend.fine_tune(file, BASE, PLAIN)
    assert backend.wait(backend.fine_tune(file, BASE, PLAIN).id).status == "succeeded"


def test_what_was_paid_for_a_job_that_failed_still_counts_when_the_next_one_is_refused(client, running, foreign):
    count = {"count_tokens": lambda text: 100}  # $.012 a job
    backend = client(**FOREIGN, **count, budget=0.025)
    file = backend.upload(EXAMPLES)
    backend.cancel(backend.fine_tune(file, BASE, replace(PLAIN, n_epochs=2, batch_size=1)).id)  # $.024
    with pytest.raises(BudgetError, match=r"\$0\.02 are spent already"):
        backend.fine_tune(file, BASE, replace(PLAIN, n_epochs=2, batch_size=1))
    richer = client(**FOREIGN, **count, budget=0.05)
    running.place, running.faults = START, [("400", False)]
    with pytest.raises(openai_backend.RefusedError):
        richer.fine_tune(file, BASE, replace(PLAIN, n_epochs=2, batch_size=1))
    with pytest.raises(BudgetError, match=r"\$0\.02 are spent already"):
        backend.fine_tune(file, BASE, PLAIN)


@pytest.mark.faults
def test_a_start_that_the_server_never_heard_costs_nothing(client, running, foreign):
    backend = client(**FOREIGN, count_tokens=lambda text: 100, budget=0.013)  # $.012 a job
    file = backend.upload(EXAMPLES)
    running.place, running.faults = START, [("drop", False)] * TRIES
    with pytest.raises(FineTuningError, match=f"asked {TRIES} times in vain"):
        backend.fine_tune(file, BASE, PLAIN)
    assert backend.wait(backend.fine_tune(file, BASE, PLAIN).id).status == "succeeded"


@pytest.mark.faults
def test_what_a_failed_job_cost_outlives_a_start_that_the_server_never_heard(client, running, foreign):
    backend = client(**FOREIGN, count_tokens=lambda text: 100, budget=0.037)
    file, long = backend.upload(EXAMPLES), replace(PLAIN, n_epochs=2, batch_size=1)
    backend.cancel(backend.fine_tune(file, BASE, PLAIN).id)  # $.012
    running.place, running.faults = START, [("drop", False)] * TRIES
    with pytest.raises(FineTuningError, match="in vain"):
        backend.fine_tune(file, BASE, PLAIN)
    with pytest.raises(BudgetError, match=r"\$0\.02 are spent already"):  # and the start, as long as it is in doubt
        backend.fine_tune(file, BASE, long)
    assert backend.wait(backend.fine_tune(file, BASE, PLAIN).id).status == "succeeded"
    with pytest.raises(BudgetError, match=r"\$0\.02 are spent already"):
        backend.fine_tune(file, BASE, long)


def test_an_answer_costs_what_the_server_counts(client, running, foreign):
    dear = {"prices": Prices(0, 1000)}  # a dollar a token
    client(**dear, budget=100.0).complete(BASE, [PROMPT], max_tokens=4, temperature=0)
    tokens = running.backend.count_tokens(BASE, [PROMPT]) + 4
    with pytest.raises(BudgetError, match=rf"\${tokens}\.00 are spent already"):
        client(**dear, budget=tokens).complete(BASE, [PROMPT], max_tokens=5)


def test_a_server_that_is_free_needs_no_budget(client, foreign):
    assert len(client(prices=Prices(0, 0)).complete(BASE, [PROMPT], max_tokens=4)) == 1


def test_only_a_server_of_this_machine_can_be_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(OpenAIBackend, "_call", lambda *args: True)  # whatever it says of itself
    assert OpenAIBackend("http://localhost:1/v1", tmp_path)._ours()
    assert not OpenAIBackend("https://example.org/v1", tmp_path)._ours()


def test_classes_of_which_a_server_tells_the_least_number_have_a_probability():
    def answer(**top):
        return Completion("", (), "length", (), (top,))

    asked = ("", "a", "b")
    assert openai_backend._share(answer(a=-9999.0, b=0.0), *asked) == 0
    assert openai_backend._share(answer(a=0.0, b=-9999.0), *asked) == 1
    assert openai_backend._share(answer(a=-9999.0, b=-9999.0), *asked) == 0.5
    assert openai_backend._share(answer(a=math.log(0.6), b=math.log(0.2)), *asked) == pytest.approx(0.75)


def test_a_confirmation_sees_the_estimate(client, foreign):
    asked = []
    backend = client(**FOREIGN, count_tokens=lambda text: 100, confirm=lambda estimate: asked.append(estimate) or True)
    backend.fine_tune(backend.upload(EXAMPLES), BASE, replace(PLAIN, n_epochs=3))
    assert [(estimate.tokens, round(estimate.dollars, 6)) for estimate in asked] == [(3600, 0.036)]


def test_elsewhere_a_class_beyond_the_likeliest_tokens_is_an_error_and_not_a_zero(client, running, foreign):
    backend = client(**FOREIGN, budget=100.0)
    with pytest.raises(FineTuningError, match="tells the 5 likeliest tokens .* its probability is unknown"):
        backend.class_probability(BASE, [PROMPT])
    file = backend.upload([(PROMPT, "1"), (PROMPT, "0")])
    settings = Settings(n_epochs=60, batch_size=2, learning_rate_multiplier=0.6)
    model = backend.wait(backend.fine_tune(file, BASE, settings).id).fine_tuned_model
    (exact,) = running.backend.class_probability(model, [PROMPT])
    assert backend.class_probability(model, [PROMPT]) == [pytest.approx(exact, abs=1e-5)]


# --- the key ---


def test_the_key_is_nowhere(client, running, tmp_path, caplog, capfd):
    """Not in files, not in logs of any level, not in errors, though this server repeats it in every refusal."""
    caplog.set_level(logging.DEBUG)
    said = []
    backend = client()
    file = backend.upload(EXAMPLES)
    job = backend.wait(backend.fine_tune(file, BASE, SETTINGS).id)
    backend.complete(job.fine_tuned_model, [PROMPT], max_tokens=4)
    for fault in ("400", "401", "429", "500"):
        running.faults = [(fault, True)] * TRIES
        with pytest.raises(FineTuningError) as error:
            backend.complete(BASE, [PROMPT], max_tokens=4, seed=1)
        said += [str(error.value), repr(error.value), str(error.value.__context__ if fault == "500" else "")]
    said += [repr(backend), caplog.text, *capfd.readouterr()]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [path for path in written if FAKE_KEY.encode() in path.read_bytes()]
    assert not [text for text in said if FAKE_KEY[:6] in text]


def test_a_key_that_a_server_repeats_in_an_answer_is_not_kept(client, tmp_path, monkeypatch):
    whole = server._answer
    monkeypatch.setattr(server, "_answer", lambda *about: whole(*about) | {"seen": FAKE_KEY})
    client().complete(BASE, [PROMPT], max_tokens=4)
    kept = [path for path in (tmp_path / "client").rglob("*.json") if path.parent.name == "completions"]
    assert len(kept) == 1 and FAKE_KEY not in kept[0].read_text()


def test_a_word_in_the_place_of_a_key_is_left_in_answers(client, running, monkeypatch):
    monkeypatch.setenv(openai_backend.KEY, "e")
    assert client().complete(BASE, [PROMPT]) == running.backend.complete(BASE, [PROMPT])


@pytest.mark.parametrize("key", [f"{FAKE_KEY}\nx", f"{FAKE_KEY} x", f"{FAKE_KEY}\u00e9"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_shown(tmp_path, monkeypatch, key):
    monkeypatch.setenv(openai_backend.KEY, key)
    with pytest.raises(FineTuningError, match=f"{openai_backend.KEY} holds a blank or another") as error:
        OpenAIBackend(folder=tmp_path)
    assert FAKE_KEY[:6] not in str(error.value)
    monkeypatch.setenv(openai_backend.KEY, f" {FAKE_KEY}\n")
    OpenAIBackend(folder=tmp_path)


def test_a_key_in_an_address_is_refused_and_not_shown(tmp_path):
    with pytest.raises(FineTuningError, match="address of a server holds no key") as error:
        OpenAIBackend(f"https://me:{FAKE_KEY}@example.org/v1", tmp_path)
    assert FAKE_KEY[:6] not in str(error.value)


def test_without_a_key_one_sentence_says_where_it_goes(tmp_path, monkeypatch, running):
    monkeypatch.delenv(openai_backend.KEY)
    with pytest.raises(FineTuningError, match=f"environment variable {openai_backend.KEY}, and nowhere else"):
        OpenAIBackend(folder=tmp_path)
    OpenAIBackend(running.url, tmp_path).upload(EXAMPLES)  # a server of this machine wants none


# --- the server ---


def start(client, **options):
    return client.fine_tuning.jobs.create(model=BASE, training_file="file-1", **options)


def refused(url, **headers):
    request = urllib.request.Request(url, headers=headers)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=10)
    with error.value as answer:
        return answer.code, json.loads(answer.read())["error"]["message"]


def test_the_server_answers_no_web_page(running):
    assert refused(running.url + "/models", Origin="https://example.org")[0] == 403
    assert refused(running.url + "/models", Host="example.org")[0] == 403
    assert running._http.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("length", [str(server.LARGEST_BODY + 1), "-1"])
def test_a_body_that_is_too_large_is_not_read(running, length):
    assert refused(running.url + "/completions", **{"Content-Length": length})[0] == 413
    assert refused(running.url + "/completions", **{"Content-Length": length, "Origin": "null"})[0] == 403


def test_a_client_that_falls_silent_is_not_waited_for(running, monkeypatch):
    monkeypatch.setattr(server._Handler, "timeout", 0.1)
    assert "timed out" in refused(running.url + "/completions", **{"Content-Length": "10"})[1]


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda c: c.files.create(file=("t.jsonl", b'{"prompt": "a"}'), purpose="fine-tune"), "t.jsonl, line 1: write"),
        (lambda c: c.files.retrieve("file-1"), "no 'file-1'"),
        (lambda c: start(c), "no file 'file-1'"),
        (lambda c: c.fine_tuning.jobs.create(model="/etc", training_file="file-1"), "no '/etc'"),
        (lambda c: c.fine_tuning.jobs.retrieve("..%2F..%2Fx"), "There is no"),
        (lambda c: c.completions.create(model=BASE, prompt=" tea" * 300), "do not fit"),
        (lambda c: c.post("/completions", cast_to=object, body={"model": BASE}), "field 'prompt' is missing"),
        (lambda c: c.get("/chat", cast_to=object), "no GET /v1/chat here"),
        (lambda c: c.completions.create(model=BASE, prompt="x", n=2), "one n only, 1: leave"),
        (lambda c: c.completions.create(model=BASE, prompt="x", stop="\n", echo=True), "one echo only, False"),
        (lambda c: start(c, method={"type": "dpo"}), "by the method supervised, not dpo"),
        (lambda c: start(c, hyperparameters={"n_epoch": 1}), "no hyperparameter 'n_epoch': leave"),
        (lambda c: start(c, metadata={"x": 1}), "names and texts"),
        (lambda c: start(c, extra_body={"layers": "first"}), "layers is one of all, last"),
    ],
)
def test_the_server_says_what_is_wrong(running, ask, sentence):
    with pytest.raises(openai.APIStatusError) as error:
        ask(openai_client(running))
    assert error.value.status_code in (400, 404) and sentence in str(error.value)


def test_a_port_that_is_taken_is_named(running, tmp_path):
    port = running._http.server_port
    with pytest.raises(FineTuningError, match=f"Port {port} cannot be used .*: name another"):
        Server(tmp_path / "other", port)
