"""The runner of the book, on toy books whose notebooks run in a second."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import nbformat
import pytest

from rlhf_lab import ROOT, book, checkpoints, notebook_files, pretrained
from rlhf_lab.__main__ import main
from rlhf_lab.profiles import Profile

PARAMETERS = """
# %% tags=["parameters"]
profile = "laptop"
seeds = 1
"""


class Toy:
    """A book in a folder: notebooks that count their runs in the file <name>.count."""

    def __init__(self, root: Path):
        self.root = root
        self.entries = []
        (root / "profiles.toml").write_text("[smoke]\nsize = 1\n[laptop]\nsize = 2\n[gpu]\nsize = 3\n")

    def add(self, name, *cells, part=0, needs=(), parameters=PARAMETERS, limit=60, **fields):
        count = f'# %%\nfrom pathlib import Path\nopen("../{name}.count", "a").write("x")\n'
        cells = "\n\n".join("# %%\n" + textwrap.dedent(cell).strip() for cell in cells)
        (self.root / "notebooks").mkdir(exist_ok=True)
        self.source(name).write_text(f"# %% [markdown]\n# # Title\n{parameters}\n{count}\n{cells}\n")
        entry = {"name": name, "part": part, "title": "T", "question": "Q?", "needs": list(needs)}
        entry |= {"limit_seconds": limit} | fields
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        self.entries.append("\n".join(["[[notebook]]", *lines, "budget_seconds = { smoke = 1, laptop = 120 }"]))
        (self.root / "book.toml").write_text("\n\n".join(self.entries))

    def source(self, name) -> Path:
        return self.root / "notebooks" / f"{name}.py"

    def edit(self, name, old, new):
        text = self.source(name).read_text()
        assert old in text
        self.source(name).write_text(text.replace(old, new))

    def run(self, *wanted, profile="smoke", seeds=1, jobs=1) -> int:
        return book.run_book(wanted, profile, seeds, jobs, root=self.root)

    def runs(self, name) -> int:
        count = self.root / f"{name}.count"
        return len(count.read_text()) if count.exists() else 0

    def executed(self, name, run="smoke-1"):
        return nbformat.read(self.root / "build" / "book" / run / f"{name}.ipynb", as_version=4)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path / "cache"))
    for folder in ("HH_RLHF_DIR", *book.MODEL_FOLDERS):
        monkeypatch.delenv(folder, raising=False)
    return Toy(tmp_path)


def test_runs_then_skips_until_the_code_changes(toy, capsys):
    toy.add("00_a", 'print(profile, seeds, Path.cwd().name)  # a comment\n"""A string."""\n')
    assert toy.run(seeds=3) == 0
    assert "build/book/smoke-3/00_a.ipynb" in capsys.readouterr().out
    assert toy.executed("00_a", "smoke-3").cells[-1].outputs[0].text == "smoke 3 notebooks\n"
    assert toy.run(seeds=3) == 0 and toy.runs("00_a") == 1
    assert capsys.readouterr().out.splitlines()[0] == "00_a unchanged"
    toy.edit("00_a", "# # Title", "# # Another title")
    toy.edit("00_a", "# a comment", "# another")
    assert toy.run(seeds=3) == 0 and toy.runs("00_a") == 1
    toy.edit("00_a", ".name", ".stem")
    assert toy.run(seeds=3) == 0 and toy.runs("00_a") == 2


def test_what_else_makes_a_notebook_run_again(toy, monkeypatch):
    toy.add("00_a", "from rlhf_lab import plots\nx = 1")
    for name, text in {"__init__": "", "plots": "from rlhf_lab import style", "style": "a = 1", "other": ""}.items():
        (toy.root / "rlhf_lab").mkdir(exist_ok=True)
        (toy.root / "rlhf_lab" / f"{name}.py").write_text(text)
    base, real = toy.root / "models" / "base", toy.root / "hh"
    base.mkdir(parents=True), real.mkdir()

    def digest(profile="smoke", seeds=1):
        return book._digest(book.Run(toy.root, profile, seeds, jobs=1, scheduler=None), book.contents(toy.root)[0])

    seen = [digest(), digest(seeds=2), digest("laptop")]
    for path, text in [
        (toy.root / "rlhf_lab" / "style.py", "a = 2"),  # imported by a module that the notebook imports
        (toy.root / "profiles.toml", "[smoke]\nsize = 3\n"),
        (base / "model.safetensors", "weights"),
    ]:
        path.write_text(text)
        seen.append(digest())
    monkeypatch.setenv("HH_RLHF_DIR", str(real))
    (real / "test.jsonl.gz").write_text("pair")
    seen.append(digest())
    for folder in book.MODEL_FOLDERS:  # two models of one size are two
        monkeypatch.setenv(folder, str(toy.root / folder))
        (toy.root / folder).mkdir()
        for weights in ("good", "best"):
            (toy.root / folder / "model.safetensors").write_text(weights)
            seen.append(digest())
    assert len(set(seen)) == len(seen)
    (toy.root / "rlhf_lab" / "other.py").write_text("b = 1")
    (toy.root / "rlhf_lab" / "__init__.py").write_text('__version__ = "2"')
    assert digest() == seen[-1]


def test_folders_named_from_here_are_found_from_the_folder_of_the_notebooks(toy, monkeypatch):
    monkeypatch.chdir(toy.root)
    names = ("HH_RLHF_DIR", "DLITE_DIR", "REWARD_MODEL_DIR", "RLHF_LAB_CACHE")
    for name in names:
        monkeypatch.setenv(name, f"here/{name}")
    toy.add("00_a", f"import os\nprint([os.environ[name] for name in {names}])")
    assert toy.run() == 0
    assert toy.executed("00_a").cells[-1].outputs[0].text == f"{[str(toy.root / 'here' / name) for name in names]}\n"


def test_models_from_elsewhere_are_looked_for_before_anything_runs(toy, monkeypatch):
    assert book.MODEL_FOLDERS == (pretrained.POLICY, pretrained.REWARD_MODEL)
    asked = []

    def check(profile):
        asked.append(profile)
        raise pretrained.CheckpointError("They are not there.")

    monkeypatch.setattr(pretrained, "check", check)
    toy.add("00_a")
    toy.add("40_b", part=4, models_from_elsewhere=True)
    for wanted in ((), ("40",)):
        with pytest.raises(pretrained.CheckpointError, match="^They are not there.$"):
            toy.run(*wanted)
    assert asked == [Profile.load("smoke")] * 2 and toy.runs("00_a") == toy.runs("40_b") == 0
    assert toy.run("00") == 0 and len(asked) == 2 and toy.runs("00_a") == 1


def test_a_failing_cell_stops_the_book_and_is_shown(toy, capsys):
    toy.add("00_a", "x = 1\n1 / 0", "x = 2")
    toy.add("10_b", "x = 1", part=1)
    assert toy.run() == 1
    out = capsys.readouterr().out
    assert "00_a: cell [4] failed: ZeroDivisionError: division by zero\n    x = 1\n    1 / 0\n" in out
    assert "The run so far: build/book/smoke-1/00_a.running.ipynb" in out
    assert "Traceback" not in out and toy.runs("10_b") == 0
    assert (toy.root / "build/book/smoke-1/00_a.running.ipynb").exists()
    toy.edit("00_a", "1 / 0", "1 / 1")
    assert toy.run() == 0 and (toy.runs("00_a"), toy.runs("10_b")) == (2, 1)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("import time\ntime.sleep(60)", "the limit of 4 s (book.toml) is over\n    import time"),
        ("import os\nos._exit(1)", "its kernel died\n    import os\n"),
    ],
)
def test_a_hung_cell_and_a_dead_kernel_are_reported(toy, capsys, cell, reason):
    toy.add("00_a", cell, limit=2)
    assert toy.run(seeds=2) == 1  # the limit is for each seed
    assert f"00_a: cell [4] failed: {reason}" in capsys.readouterr().out


def test_a_missing_parameter_is_named(toy, capsys):
    toy.add("00_a", parameters='# %% tags=["parameters"]\nprofile = "laptop"\n')
    assert toy.run() == 1 and toy.runs("00_a") == 0
    assert "its cell tagged 'parameters' has no seeds (only: profile)" in capsys.readouterr().out


def test_needs_come_first_and_selection_takes_them_along(toy):
    toy.add("00_a", "assert Path('../10_b.count').exists()", needs=["10_b"])
    toy.add("10_b", part=1)
    toy.add("20_c", part=2)
    assert toy.run("00") == 0
    assert (toy.runs("00_a"), toy.runs("10_b"), toy.runs("20_c")) == (1, 1, 0)


def test_jobs_run_at_a_time(toy):
    meet = """
        import time
        open(f"../{name}.here", "w")
        while len(list(Path("..").glob("*.here"))) < 2:
            time.sleep(0.05)
        """
    for name in ("00_a", "01_b"):
        toy.add(name, f'name = "{name}"', meet, limit=20)
    assert toy.run(jobs=2) == 0


@pytest.mark.faults
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_killed_book_resumes(toy):
    toy.add("00_a")
    toy.add("10_b", "import os, time\nopen('../pid', 'w').write(str(os.getpid()))", "time.sleep(0)")
    slow = "time.sleep(0 if Path('../go').exists() else 60)"
    toy.edit("10_b", "time.sleep(0)", slow)
    code = "import pathlib, sys; from rlhf_lab import book; book.run_book((), 'smoke', root=pathlib.Path(sys.argv[1]))"
    process = subprocess.Popen([sys.executable, "-c", code, str(toy.root)], cwd=ROOT)
    until(lambda: (toy.root / "pid").exists() and (toy.root / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    kernel = int((toy.root / "pid").read_text())
    until(lambda: not alive(kernel))  # it does not go on training on its own
    (toy.root / "go").touch()
    assert toy.run() == 0
    assert (toy.runs("00_a"), toy.runs("10_b")) == (1, 2)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.exists():
        return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# --- publication ---

RESULTS = """
import json, os, sys
from IPython.display import display, HTML
print("progress", file=sys.stderr)
results = Path(os.environ["RLHF_LAB_RESULTS"]) / profile / "00_a.json"
results.parent.mkdir(parents=True, exist_ok=True)
claim = {"text": "T.", "verdict": "better", "expected": "better", "met": True, "sanity": False}
content = {"notebook": "00_a", "seeds": seeds, "seconds": None, "seconds_warm": None, "environment": {}, "numbers": {}}
size = results.write_text(json.dumps(content | {"claims": {"c": claim}}))
"""


@pytest.fixture
def speed(monkeypatch):
    monkeypatch.setattr(book, "sgemm_gflops", lambda: 50.0)


def test_a_published_run_comes_back_into_the_pair(toy, speed):
    toy.add("00_a", RESULTS, "print(seeds, os.environ['RLHF_LAB_PUBLISH'])")
    assert toy.run(profile="laptop", seeds=5) == 0
    text = toy.source("00_a").with_suffix(".ipynb").read_text()
    pair = nbformat.reads(text, as_version=4)
    nbformat.validate(pair)
    assert "papermill" not in text and "injected" not in text and str(toy.root) not in text and '"tags": []' not in text
    assert [cell.cell_type for cell in pair.cells] == ["markdown", *["code"] * 4]
    assert pair.cells[1].source == 'profile = "laptop"\nseeds = 1'
    assert pair.cells[3].outputs == [] and pair.cells[4].outputs[0].text == "5 1\n"
    assert all(cell.execution_count for cell in pair.cells[1:])
    results = json.loads((toy.root / "results" / "laptop" / "00_a.json").read_text())
    assert results["seconds"] == results["seconds_warm"] > 0 and results["environment"] == {"sgemm_gflops": 50.0}
    # Synchronizing changes nothing; an edit of the prose keeps outputs and the ids of the other cells.
    assert notebook_files.sync(toy.root) == []
    toy.edit("00_a", "# # Title", "# # Another")
    assert notebook_files.sync(toy.root) == ["00_a"]
    again = nbformat.read(toy.source("00_a").with_suffix(".ipynb"), as_version=4)
    assert again.cells[0].source == "# Another" and again.cells[1:] == pair.cells[1:]
    # A run of one seed leaves the pair and the published results alone.
    before = toy.source("00_a").with_suffix(".ipynb").read_bytes()
    assert toy.run(profile="laptop", seeds=1) == 0
    assert toy.source("00_a").with_suffix(".ipynb").read_bytes() == before
    assert json.loads((toy.root / "results" / "laptop" / "00_a.json").read_text())["seeds"] == 5


def test_what_may_not_be_published_stops_the_book(toy, speed, capsys):
    toy.add("00_a", RESULTS, "Path.cwd()")
    assert toy.run(profile="laptop", seeds=5) == 1
    assert f"The output of cell 5 of all holds the path {toy.root}" in capsys.readouterr().out
    assert not toy.source("00_a").with_suffix(".ipynb").exists() and not (toy.root / "results").exists()
    toy.edit("00_a", "Path.cwd()", "1")
    toy.edit("00_a", RESULTS.strip(), "1")
    assert toy.run(profile="laptop", seeds=5) == 1
    assert "it wrote no results" in capsys.readouterr().out


def test_a_verdict_against_the_committed_one_fails_the_build(toy, speed, capsys):
    toy.add("00_a", RESULTS)
    committed = toy.root / "results" / "laptop" / "00_a.json"
    committed.parent.mkdir(parents=True)
    committed.write_text(json.dumps({"claims": {"c": {"verdict": "worse"}}}))
    assert toy.run(profile="laptop", seeds=5) == 1
    assert re.search("the build fails.*claim 'c' is better.*committed.*worse", capsys.readouterr().out, re.DOTALL)
    assert json.loads(committed.read_text()) == {"claims": {"c": {"verdict": "worse"}}}


def cell(source, *outputs, **metadata):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs), execution_count=7, metadata=metadata)


def stream(text, name="stdout"):
    return nbformat.v4.new_output("stream", name=name, text=text)


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def test_outputs_go_to_the_cells_whose_code_is_the_same():
    fresh = [nbformat.v4.new_code_cell(s) for s in ("a = 1  # new comment", "b = 2", "a = 1", "%run x.ipynb", "c = 3")]
    fresh[0].metadata.lines_to_next_cell = 2  # what jupytext notes of the source's layout
    widget = {"application/vnd.jupyter.widget-view+json": {}, "text/plain": "  0%| "}
    old = [
        cell("a = 1", stream("first"), stream("bar", "stderr"), papermill={"duration": 1}, tags=[]),
        cell('profile = "smoke"', stream("never"), tags=["injected-parameters"]),
        cell("b = 20", stream("another")),
        cell("a  =  1", stream("third"), nbformat.v4.new_output("display_data", data=widget)),
        cell("%run x.ipynb", stream("macros")),
        cell("gone", stream("gone")),
    ]
    merged = notebook_files.merged(notebook(nbformat.v4.new_markdown_cell("Text."), *fresh), notebook(*old))
    outputs = [[output.text for output in cell.outputs] for cell in merged.cells[1:]]
    assert outputs == [["first"], [], ["third"], ["macros"], []]
    assert [cell.execution_count for cell in merged.cells[1:]] == [7, None, 7, 7, None]
    assert all(cell.metadata == {} for cell in merged.cells) and merged.cells[1].source == "a = 1  # new comment"


def test_cell_ids_follow_from_the_text():
    def ids(*sources):
        return [
            cell.id
            for cell in notebook_files.merged(notebook(*map(nbformat.v4.new_code_cell, sources)), notebook()).cells
        ]

    first = ids("a", "b", "a")
    assert len(set(first)) == 3 and first == ids("a", "b", "a")
    assert ids("new", "a", "b", "a")[1:] == first


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (f"saved to {ROOT}/build/x.png", "the path"),
        (f"~ is {Path.home()}", "the path"),
        ("/opt/env/lib/python3.11/site-packages/torch/x.py:3: Warning", "a path of an installed package"),
        ("/home/ada/course/x", "an absolute path"),
        (r"C:\Users\ada\x", "an absolute path"),
        (r"'C:\\Users\\ada\\x'", "an absolute path"),
        ("key sk-" + "a1B2" * 6, "a key"),
        ("hf_" + "a1B2" * 8, "a key"),
    ],
)
def test_leaks_are_found(text, what):
    assert any(found.startswith(what) for found in notebook_files.leaks(text))
    for output in (stream(text), nbformat.v4.new_output("execute_result", data={"text/html": f"<p>{text}</p>"})):
        (problem, *_) = notebook_files.unpublishable(notebook(cell("x", output)), "")
        assert problem.startswith("The output of cell 1 of all holds")


def test_innocent_outputs_pass():
    innocent = "a task-specific risk-averse_policy_of_some_length, 1/2, /homely, build/book, https://example.org/home/x"
    image = nbformat.v4.new_output("display_data", data={"image/png": f"iVBOR{ROOT}"})
    assert notebook_files.leaks(innocent) == []
    assert notebook_files.unpublishable(notebook(cell("x", stream(innocent), image)), "short") == []
    assert "400,000" in notebook_files.unpublishable(notebook(), "x" * 400_001)[0]


# --- times ---


@pytest.mark.parametrize(
    ("uses", "before", "seconds", "warm"),
    [
        ({}, {}, 10, 10),  # nothing to train
        ({"a-1": [False, True], "b-2": [False]}, {}, 10, None),  # cold
        ({"a-1": [True], "b-2": [True]}, {"seconds": 99.0}, 99, 10),  # warm, after a cold run
        ({"a-1": [True], "b-2": [True]}, {}, 10 + 30 + 5 + 1, 10),  # warm, but never seen cold
        ({"a-1": [False], "b-2": [True]}, {"seconds_warm": 4.0}, 10 + 5 + 1, 4),  # resumed
    ],
)
def test_cold_and_warm_seconds(tmp_path, monkeypatch, uses, before, seconds, warm):
    inputs, own = {"a-1": ["c-3"], "b-2": ["c-3"], "c-3": []}, {"a-1": 30.0, "b-2": 5.0, "c-3": 1.0}
    manifests = {name: {"seconds": own[name], "inputs": inputs[name]} for name in own}
    monkeypatch.setattr(checkpoints, "artefacts", lambda: manifests)
    log = tmp_path / "log"
    lines = [(name.split("-"), hit) for name, hits in uses.items() for hit in hits]
    log.write_text("".join(json.dumps({"name": n, "key": k, "seconds": 0, "hit": h}) + "\n" for (n, k), h in lines))
    assert book._times(10.0, log, before) == {"seconds": seconds, "seconds_warm": warm}


def test_check_scales_the_published_times_to_this_machine(toy, speed, capsys):
    toy.add("00_a"), toy.add("10_b")
    (toy.root / "results" / "laptop").mkdir(parents=True)
    published = {"seconds_one_seed": 120.0, "seeds": 5, "peak_mb": 812.4, "environment": {"sgemm_gflops": 100.0}}
    (toy.root / "results" / "laptop" / "00_a.json").write_text(json.dumps(published))
    book.check(toy.root)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-3] == ["00_a", "4.0", "812", "MB", "measured"]  # 120 s on a machine twice as fast
    assert lines[-2][:2] == ["10_b", "2.0"] and lines[-2][-1] == "budget"
    assert lines[-1] == ["the", "book", "6.0"]


def test_sgemm_speed_is_about_that_of_numpy():
    numpy = "import numpy, time; a = numpy.ones((1024, 1024), 'f'); a @ a; t = time.perf_counter(); a @ a;"
    command = [sys.executable, "-c", numpy + "print(2 * 1024**3 / (time.perf_counter() - t) / 1e9)"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    peer = float(subprocess.run(command, env=one_thread, capture_output=True, text=True, check=True).stdout)
    assert peer / 10 < book.sgemm_gflops(seconds=0.3) < peer * 10


# --- the command line ---


@pytest.mark.parametrize(
    ("words", "known"),
    [
        (["book", "99_nothing"], "00_rlhf_in_ten_minutes"),
        (["book", "--profile", "huge"], "laptop"),
        (["book", "--seeds", "0"], "at least 1"),
    ],
)
def test_unknown_words_are_answered_with_the_known_ones(words, known, capsys):
    assert main(words) == 2
    message = capsys.readouterr().err
    assert known in message and len(message.splitlines()) == 1


def test_a_notebook_runs_only_in_the_profiles_it_has_a_budget_for(toy):
    toy.add("00_a")
    with pytest.raises(ValueError, match="00_a does not run in the profile 'gpu': book.toml has smoke, laptop for it"):
        toy.run(profile="gpu")


def test_cache_command(toy, capsys):
    folder = toy.root / "cache" / "sft-0123456789abcdef"
    folder.mkdir(parents=True)
    (folder / "model").write_bytes(bytes(2_000_000))
    files = {"model": {"size": 2_000_000, "sha256": hashlib.sha256(bytes(2_000_000)).hexdigest()}}
    manifest = {"recipe": "x.sft", "arguments": {"seed": 3}, "seconds": 41.2, "inputs": [], "files": files}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert main(["cache", "list"]) == 0
    artefact, total = capsys.readouterr().out.splitlines()
    assert artefact.split() == ["sft-0123456789abcdef", "2.0", "MB", "41", "s", "{'seed':", "3}"]
    assert total == f"1 artefacts, 2.0 MB, in {toy.root / 'cache'}"
    assert main(["cache", "clear"]) == 0 and not folder.exists()
