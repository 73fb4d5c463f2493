"""Independent work on the cores of this machine and on a Dask cluster of two workers: equal results, at once."""

import gc
import importlib
import json
import os
import socket

import dask
import distributed
import joblib
import nbformat
import pytest
from joblib.externals.loky import get_reusable_executor

from rlhf_lab import ROOT, book, checkpoints, parallel
from rlhf_lab.__main__ import main

TOY = """
import hashlib, os, time
import torch
from rlhf_lab import language_model, sft
from rlhf_lab.checkpoints import load_json, recipe, save_json
from rlhf_lab.tinyhh import generator

torch.set_num_threads(1)

@recipe(save=save_json, load=load_json)
def tuned(demonstrations, seed):
    return work(demonstrations, seed)

def work(demonstrations, seed):
    model, tokenizer = language_model.load_base("0.2M")
    losses = sft.train(model, tokenizer, generator.demonstrations(demonstrations, seed), sft.SFTConfig(epochs=1), seed)
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
    return [losses, hashlib.sha256(weights).hexdigest()]

def timed(demonstrations, seed):
    begin = time.time()
    return work(demonstrations, seed), begin, time.time()

def process(number, folder, others):
    # Wait until as many processes are at work as there are to be.
    open(os.path.join(folder, str(os.getpid())), "w").close()
    end = time.monotonic() + 60
    while len(os.listdir(folder)) < others and time.monotonic() < end:
        time.sleep(0.02)
    return number, os.getpid(), torch.get_num_threads()

def failing(seed):
    raise ValueError(f"seed {seed} diverged")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a module of functions, and for a cache; processes that are started from here on know both."""
    folder = tmp_path_factory.mktemp("parallel")
    (folder / "toy_parallel.py").write_text(TOY)
    get_reusable_executor().shutdown()  # its processes, if an earlier test started some, do not
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_LAB_CACHE", str(folder / "cache"))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT)]))
        patch.delenv("RLHF_LAB_SCHEDULER", raising=False)
        patch.syspath_prepend(str(folder))
        yield folder
    get_reusable_executor().shutdown()


@pytest.fixture(scope="module")
def two_workers(folder):
    """The address of a scheduler with two workers of one thread, which have imported what they need."""
    with (
        dask.config.set(parallel.WORKER_SETTINGS),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
    ):
        with distributed.Client(cluster, set_as_default=False) as client:
            client.run(importlib.import_module, "toy_parallel")
        yield cluster.scheduler_address


@pytest.fixture
def toy(folder):
    return importlib.import_module("toy_parallel")


@pytest.fixture
def cluster(two_workers, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_SCHEDULER", two_workers)


def processes(toy, n: int, folder, others: int) -> list[tuple[int, int, int]]:
    """What `n` calls say that wait until `others` processes have begun."""
    folder.mkdir()
    return parallel.run(joblib.delayed(toy.process)(number, str(folder), others) for number in range(n))


def test_each_core_has_a_process_of_one_thread(toy, tmp_path):
    cores = joblib.cpu_count()
    numbers, pids, threads = zip(*processes(toy, 3 * cores, tmp_path / "pids", cores), strict=True)
    assert numbers == tuple(range(3 * cores)) and os.getpid() not in pids
    assert len(set(pids)) == cores and set(threads) == {1}


def test_one_at_once_stays_in_this_process():
    assert parallel.run((joblib.delayed(os.getpid)() for _ in range(3)), at_once=1) == [os.getpid()] * 3


def test_two_workers_give_the_same_results_at_the_same_time(toy, cluster):
    """How much faster they are, `make bench` measures: here other programs may leave no second core free."""
    expected = [toy.work(500, seed) for seed in (0, 1)]
    done = parallel.run(joblib.delayed(toy.timed)(500, seed=seed) for seed in (0, 1))
    assert [result for result, *_ in done] == expected and expected[0] != expected[1]
    assert max(begin for _, begin, _ in done) < min(end for _, _, end in done)


def test_work_on_the_cluster_is_found_again_and_logged(toy, cluster, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_ARTEFACT_LOG", str(tmp_path / "log.jsonl"))
    checkpoints.log.clear()
    (first,) = parallel.run([joblib.delayed(toy.tuned)(10, seed=3)])
    assert toy.tuned.cached(10, 3) and toy.tuned(10, 3) == first
    assert [(use["name"], use["hit"]) for use in checkpoints.log] == [("tuned", False), ("tuned", True)]
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == checkpoints.log
    assert [path.name for path in (folder / "cache").glob(".seen*")] == []


def test_an_error_on_a_worker_comes_home(toy, cluster):
    with pytest.raises(ValueError, match="seed 3 diverged"):
        parallel.run([joblib.delayed(toy.failing)(3)])


@pytest.mark.faults
def test_a_worker_without_our_cache_is_told_so(toy, cluster, tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(parallel.ClusterError, match="The Dask worker on .* does not see our cache: start it with RLHF"):
        parallel.run([joblib.delayed(toy.tuned)(10, 0)])


def test_the_notebooks_of_a_book_use_its_cluster(toy, two_workers, tmp_path, monkeypatch):
    """A book of one notebook, which asks where its work is done."""
    (tmp_path / "profiles.toml").write_text("[smoke]\n")
    entry = 'name = "00_a"\npart = 0\ntitle = "T"\nquestion = "Q?"\nneeds = []\nlimit_seconds = 60\n'
    (tmp_path / "book.toml").write_text(f"[[notebook]]\n{entry}budget_seconds = {{ smoke = 9 }}\n")
    (tmp_path / "notebooks").mkdir()
    parameters = '# %% tags=["parameters"]\nprofile = "laptop"\nseeds = 1\n'
    ask = "import joblib, toy_parallel\nfrom rlhf_lab import parallel\n"
    (tmp_path / "pids").mkdir()
    ask += f"where = {str(tmp_path / 'pids')!r}\n"
    ask += "jobs = [joblib.delayed(toy_parallel.process)(n, where, 2) for n in range(4)]\n"
    ask += "print(*{pid for _, pid, _ in parallel.run(jobs)})"
    (tmp_path / "notebooks" / "00_a.py").write_text(f"{parameters}\n# %%\n{ask}\n")
    assert book.run_book(profile="smoke", scheduler=two_workers, root=tmp_path) == 0
    executed = nbformat.read(tmp_path / "build" / "book" / "smoke-1" / "00_a.ipynb", as_version=4)
    with distributed.Client(two_workers, set_as_default=False) as client:
        assert set(map(int, executed.cells[-1].outputs[-1].text.split())) == set(client.run(os.getpid).values())


@pytest.mark.faults
def test_no_scheduler_and_no_workers_are_one_sentence(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "SECONDS_TO_CONNECT", 1)
    with socket.socket() as silent:  # bound, so that nobody else can listen there
        silent.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        for bad in (address, "nonsense"):
            with pytest.raises(parallel.ClusterError, match=f"No Dask scheduler answers at {bad} .*: start one by"):
                parallel.connect(bad)
        assert main(["book", "--scheduler", address]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:
        monkeypatch.setenv("RLHF_LAB_SCHEDULER", empty.scheduler_address)
        with pytest.raises(parallel.ClusterError, match="has no workers: start some with 'dask worker'"):
            processes(toy, 1, tmp_path / "pids", 1)


@pytest.mark.faults
def test_a_failure_to_connect_leaves_no_client_behind(monkeypatch):
    """One that is collected while another starts waits for itself, forever."""
    monkeypatch.setattr(parallel, "SECONDS_TO_CONNECT", 0.1)
    gc.collect()
    before = sum(type(thing) is distributed.Client for thing in gc.get_objects())
    gc.disable()
    try:
        with pytest.raises(parallel.ClusterError):
            parallel.connect("tcp://127.0.0.1:1")
        assert sum(type(thing) is distributed.Client for thing in gc.get_objects()) == before
    finally:
        gc.enable()


@pytest.mark.faults
def test_a_worker_with_other_code_is_told_so(toy, cluster, folder):  # the last: from here on, our code is another
    (folder / "toy_parallel.py").write_text(TOY.replace("epochs=1", "epochs=2"))
    checkpoints._snapshot.cache_clear()
    edited = importlib.reload(toy)
    with pytest.raises(parallel.ClusterError, match="has other code or data than we: bring it up to date"):
        parallel.run([joblib.delayed(edited.tuned)(10, 0)])
