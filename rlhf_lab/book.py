"""Run the book: the notebooks of book.toml, in order, each by papermill in a kernel of its own, skipping the unchanged.

A run leaves the executed notebook in build/book/<profile>-<seeds>/ and its results in build/results/. A published run
(the laptop profile with five seeds or more) also copies both to where they are committed: the outputs into the pair
notebooks/<name>.ipynb, the numbers into results/.
"""

import ast
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

import jupytext
from nbformat import NotebookNode

from rlhf_lab import ROOT, checkpoints

PUBLISHED_PROFILE, PUBLISHED_SEEDS = "laptop", 5
LARGEST_NOTEBOOK = 400_000  # bytes of a committed notebook, so that GitHub still renders it

# What no committed notebook may hold. Paths of this machine are added by `leaks`.
SECRETS = {
    "a key": r"\b(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[0-9A-Z]{16})",
    "a path of an installed package": r"site-packages",
    "an absolute path": r"(?<!\w)(?:/home/\w|/Users/\w|[A-Z]:\\+Users\b)",
}


# --- the table of notebooks ---


@dataclass(frozen=True)
class Notebook:
    """One entry of book.toml, where the fields are explained."""

    name: str
    part: int
    title: str
    question: str
    needs: tuple[str, ...]
    budget_seconds: dict[str, int]
    limit_seconds: int


def contents(root: Path = ROOT) -> list[Notebook]:
    """The notebooks of book.toml, in its order."""
    table = tomllib.loads((root / "book.toml").read_text(encoding="utf-8"))["notebook"]
    return [Notebook(**entry | {"needs": tuple(entry["needs"])}) for entry in table]


def select(notebooks: list[Notebook], wanted: Sequence[str]) -> list[Notebook]:
    """Those with one of these names ("00_rlhf_in_ten_minutes"), numbers ("00") or parts ("0"); all, if none is given.
    Raises ValueError for one that is not in the book."""
    chosen = set()
    for word in wanted:
        found = {n.name for n in notebooks if word in (n.name, n.name.partition("_")[0], str(n.part))}
        if not found:
            parts = ", ".join(str(part) for part in sorted({n.part for n in notebooks}))
            names = ", ".join(n.name for n in notebooks)
            raise ValueError(f"There is no notebook or part {word!r}: the book has parts {parts}; notebooks {names}.")
        chosen |= found
    return [notebook for notebook in notebooks if not wanted or notebook.name in chosen]


# --- running ---


@dataclass(frozen=True)
class Run:
    """What the notebooks of one call are run with, and where their files are."""

    root: Path
    profile: str
    seeds: int
    jobs: int

    @property
    def folder(self) -> Path:
        return self.root / "build" / "book" / f"{self.profile}-{self.seeds}"

    @property
    def publishes(self) -> bool:
        return self.profile == PUBLISHED_PROFILE and self.seeds >= PUBLISHED_SEEDS

    def source(self, notebook: Notebook) -> Path:
        return self.root / "notebooks" / f"{notebook.name}.py"

    def executed(self, notebook: Notebook) -> Path:
        return self.folder / f"{notebook.name}.ipynb"

    def state(self, notebook: Notebook) -> Path:
        return self.folder / f"{notebook.name}.json"

    def results(self, notebook: Notebook) -> Path:
        return self.root / "build" / "results" / self.profile / f"{notebook.name}.json"

    def published_results(self, notebook: Notebook) -> Path:
        return self.root / "results" / PUBLISHED_PROFILE / f"{notebook.name}.json"


def run_book(
    wanted: Sequence[str] = (), profile: str = "laptop", seeds: int = 1, jobs: int = 1, root: Path = ROOT
) -> int:
    """Run these notebooks (and those they need), `jobs` at a time; returns 0, or 1 after the first failure.

    Raises ValueError for a notebook, part or profile that does not exist, and for numbers below one.
    """
    notebooks = select(contents(root), wanted)
    profiles = tomllib.loads((root / "profiles.toml").read_text(encoding="utf-8"))
    if profile not in profiles:
        raise ValueError(f"There is no profile {profile!r}: profiles.toml has {', '.join(profiles)}.")
    if min(seeds, jobs) < 1:
        raise ValueError("The number of seeds and of jobs must be at least 1.")
    for notebook in notebooks:
        if profile not in notebook.budget_seconds:
            known = ", ".join(notebook.budget_seconds)
            raise ValueError(f"{notebook.name} does not run in the profile {profile!r}: book.toml has {known} for it.")
    run = Run(root, profile, seeds, jobs)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not _run_in_order(run, contents(root), [notebook.name for notebook in notebooks]):
        return 1
    place = run.executed(notebooks[0]) if len(notebooks) == 1 else run.folder
    say(f"The executed notebook{'s are in' if place == run.folder else ' is'} {_shown(place, root)}; to read it, type")
    say(f"    {shlex.quote(_shown(Path(sys.executable), root))} -m jupyter lab {_shown(place, root)}")
    return 0


class NotebookFailed(Exception):
    """A notebook did not come through; the message tells a person why."""


def _run_in_order(run: Run, notebooks: list[Notebook], names: list[str]) -> bool:
    """Let doit order the notebooks and skip the unchanged; True if none failed.

    What is unchanged is ours to say (`_unchanged`): doit writes what it knows only at its end, but a killed run must
    not redo what was done. So its own file is thrown away.
    """
    from doit.cmd_base import ModuleTaskLoader
    from doit.doit_cmd import DoitMain
    from doit.exceptions import TaskFailed
    from doit.reporter import ConsoleReporter

    class Reporter(ConsoleReporter):
        def execute_task(self, task):
            pass

        def skip_uptodate(self, task):
            say(f"{task.name} unchanged")

        def _write_failure(self, result, write_exception=True):
            if not isinstance(result["exception"], TaskFailed):  # which has been told already
                super()._write_failure(result, write_exception)

    def attempt(notebook: Notebook) -> bool:
        try:
            _run_notebook(run, notebook)
        except NotebookFailed as failure:
            say(f"{notebook.name}: {failure}")
            return False
        return True

    def task_notebook():
        for notebook in notebooks:
            yield {
                "basename": notebook.name,
                "actions": [(attempt, [notebook])],
                "uptodate": [(_unchanged, [run, notebook])],
                "task_dep": list(notebook.needs),
                "io": {"capture": False},
                "verbosity": 2,
            }

    with tempfile.TemporaryDirectory() as temporary:
        config = {
            "default_tasks": names,
            "dep_file": str(Path(temporary) / "doit.json"),
            "backend": "json",
            "reporter": Reporter,
            "num_process": run.jobs if run.jobs > 1 else 0,
            "par_type": "thread",
        }
        return DoitMain(ModuleTaskLoader({"DOIT_CONFIG": config, "task_notebook": task_notebook})).run(["run"]) == 0


def _run_notebook(run: Run, notebook: Notebook) -> None:
    """Run one notebook and keep what it made; the file that marks it as done comes last."""
    say(f"{notebook.name} running ({run.profile}, {run.seeds} seed{'s' if run.seeds > 1 else ''})")
    digest, before = _digest(run, notebook), _state(run, notebook)
    results, uses = run.results(notebook), run.folder / f"{notebook.name}.artefacts.jsonl"
    for leftover in (run.state(notebook), results, uses):
        leftover.unlink(missing_ok=True)
    start = time.perf_counter()
    _execute(run, notebook, uses)
    wall = time.perf_counter() - start
    times = _times(wall, uses, before if before.get("digest") == digest else {})
    if results.exists():
        _check_results(run, notebook, times)
    if run.publishes:
        _publish(run, notebook)
    _write(run.state(notebook), json.dumps({"digest": digest, "results": results.exists()} | times))
    cold = f"; {times['seconds']:.0f} s with everything trained from nothing" if times["seconds"] > wall else ""
    say(f"{notebook.name} done in {wall:.0f} s{cold}")


def _execute(run: Run, notebook: Notebook, uses: Path) -> None:
    """Execute the notebook to <name>.running.ipynb, which becomes <name>.ipynb once it has come through."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    running = run.folder / f"{notebook.name}.running.ipynb"
    parameters = {"profile": run.profile, "seeds": run.seeds}
    nb = _read_source(run.source(notebook))
    nb.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    _write(running, _ipynb(nb))
    known = papermill.inspect_notebook(running)
    if unknown := sorted(set(parameters) - set(known)):
        raise NotebookFailed(
            f"its cell tagged 'parameters' has no {' and no '.join(unknown)} (only: {', '.join(known) or 'nothing'})."
        )
    environment = {
        "RLHF_LAB_RESULTS": str(run.root / "build" / "results"),
        "RLHF_LAB_ARTEFACT_LOG": str(uses),
        "RLHF_LAB_PUBLISH": "1" if run.publishes else "",
        "TQDM_DISABLE": "1",  # plain lines: nobody watches the bars of a kernel
    }
    if folder := os.environ.get("HH_RLHF_DIR"):  # relative to where the command was typed, not to notebooks/
        environment["HH_RLHF_DIR"] = str(Path(folder).absolute())
    if run.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:  # kernels share the cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // run.jobs))
    deadline = time.monotonic() + notebook.limit_seconds * run.seeds
    try:
        with _kernel_manager(environment) as manager:
            papermill.execute_notebook(
                running,
                running,
                parameters=parameters,
                progress_bar=False,
                kernel_manager_class=manager,
                timeout_func=lambda cell: max(1, int(deadline - time.monotonic())),
                resources={"metadata": {"path": str(run.root / "notebooks")}},  # cwd=, but for this kernel alone
                stderr_file=_TrainingLines(),
            )
    except PapermillExecutionError as error:
        reason = f"{error.ename}: {error.evalue}"
        raise NotebookFailed(_failure(run, running, error.exec_count, error.source, reason)) from None
    except (CellTimeoutError, DeadKernelError) as error:
        stuck = isinstance(error, CellTimeoutError)
        limit = f"the limit of {notebook.limit_seconds * run.seeds} s (book.toml) is over" if stuck else ""
        raise NotebookFailed(_failure(run, running, *_last_started(running), limit or "its kernel died")) from None
    os.replace(running, run.executed(notebook))


@contextmanager
def _kernel_manager(environment: dict[str, str]) -> Iterator[type]:
    """A class of kernels that run this very Python, with some more environment variables.

    On POSIX they talk through sockets in a folder of their own: TCP ports can be taken by another kernel between choice
    and use, and IPC without a private path makes kernels share theirs.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager

    with tempfile.TemporaryDirectory(prefix="nb-", ignore_cleanup_errors=True) as private:

        class Manager(AsyncKernelManager):
            def __init__(self, **settings):
                if os.name == "posix":
                    settings |= {"transport": "ipc", "ip": str(Path(private) / "s")}
                super().__init__(connection_file=str(Path(private) / "kernel.json"), **settings)
                self._kernel_spec = KernelSpec(
                    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                    display_name="Python 3",
                    language="python",
                    env=environment,
                )

            async def _async_launch_kernel(self, kernel_cmd, **settings):
                # What matters of it arrives as messages, see _TrainingLines; the raw stream would say it all twice.
                await super()._async_launch_kernel(kernel_cmd, stderr=subprocess.DEVNULL, **settings)

        yield Manager


class _TrainingLines:
    """Where a kernel's stderr goes: shows what `checkpoints` says about training, and no progress bars or warnings."""

    def write(self, text: str) -> None:
        for line in text.splitlines():
            if re.match(r"training |waiting |\w.*: done in ", line):
                say(f"    {line}")

    def flush(self) -> None:
        pass


def _last_started(running: Path) -> tuple[int, str]:
    """(number in brackets, source) of the code cell that was running when the kernel was lost."""
    started = [cell for cell in _read(running).cells if cell.metadata.get("papermill", {}).get("start_time")]
    code = [cell.source for cell in started if cell.cell_type == "code"]
    return len(code), code[-1]


def _failure(run: Run, running: Path, number: int, source: str, reason: str) -> str:
    lines = "".join(f"    {line}\n" for line in source.splitlines())
    return f"cell [{number}] failed: {reason}\n{lines}The run so far: {_shown(running, run.root)}"


# --- what is unchanged, and how long it took ---


def code_of(cell: str) -> str:
    """The code of a cell without comments, docstrings and layout; magics become calls, what is no Python a string."""
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        return ast.unparse(checkpoints.stripped(TransformerManager().transform_cell(cell)))
    except SyntaxError:
        return repr(cell)


def _digest(run: Run, notebook: Notebook) -> str:
    """Of all that can change what the notebook shows: its code (never its prose), that of the modules it imports, the
    profile, the number of seeds, the shipped model, the real data."""
    cells = [code_of(cell.source) for cell in _read_source(run.source(notebook)).cells if cell.cell_type == "code"]
    sources = checkpoints.Sources(run.root / "rlhf_lab")
    modules = {module for cell in cells for _, _, module in sources.imports(ast.parse(cell))}
    real = Path(os.environ.get("HH_RLHF_DIR") or os.devnull)
    parts = [
        cells,
        sources.digest(sources.closure(modules, without=frozenset({""}))),  # "": a new version number changes nothing
        tomllib.loads((run.root / "profiles.toml").read_text(encoding="utf-8"))[run.profile],
        run.seeds,
        checkpoints.fingerprint(run.root / "models" / "base"),
        sorted((str(path.relative_to(real)), path.stat().st_size) for path in real.rglob("*") if path.is_file()),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _unchanged(run: Run, notebook: Notebook) -> bool:
    state, made = _state(run, notebook), [run.source(notebook), run.executed(notebook)]
    made += [run.results(notebook)] if state.get("results") else []
    made += [run.published_results(notebook)] if run.publishes else []
    return all(path.exists() for path in made) and state.get("digest") == _digest(run, notebook)


def _state(run: Run, notebook: Notebook) -> dict:
    """Of the last run that came through: its digest, whether it wrote results, its times; empty if there was none."""
    path = run.state(notebook)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _times(wall: float, uses: Path, before: dict) -> dict[str, float | None]:
    """`seconds` is the time with every artefact trained in the run, `seconds_warm` with every artefact found.

    A run that found some but not all is neither. Unless a run of the same code was cold (`before`), `seconds` is then
    its time plus what the found ones once took: a sum, so an upper bound where two were trained at a time.
    """
    lines = uses.read_text(encoding="utf-8").splitlines() if uses.exists() else []
    hits = {f"{use['name']}-{use['key']}": use["hit"] for use in reversed([json.loads(line) for line in lines])}
    made = {name for name, hit in hits.items() if not hit}  # at its first use
    older = {name: s for name, s in checkpoints.cost(set(hits) - made).items() if name not in made}
    return {
        "seconds": before.get("seconds") or wall + sum(older.values()) if older else wall,
        "seconds_warm": before.get("seconds_warm") if made else wall,
    }


# --- results and publication ---


def _check_results(run: Run, notebook: Notebook, times: dict[str, float | None]) -> None:
    from rlhf_lab import claims

    path, committed = run.results(notebook), run.published_results(notebook)
    claims.stamp(path, **times)
    failures = claims.check(claims.read(path), claims.read(committed) if committed.exists() else None)
    if failures:
        raise NotebookFailed("\n    ".join(["the build fails.", *failures, f"Results: {_shown(path, run.root)}"]))


def _publish(run: Run, notebook: Notebook) -> None:
    """Copy outputs and results to where they are committed, if nothing speaks against it."""
    if not run.results(notebook).exists():
        raise NotebookFailed("it wrote no results, so it cannot be published: end it with Claims.write().")
    nb = merged(_read_source(run.source(notebook)), _read(run.executed(notebook)))
    text = _ipynb(nb)
    if problems := unpublishable(nb, text, run.root):
        raise NotebookFailed("\n    ".join(["it cannot be published.", *problems]))
    results = json.loads(run.results(notebook).read_text(encoding="utf-8"))
    results["environment"] = results.get("environment", {}) | {"sgemm_gflops": round(sgemm_gflops(), 1)}
    # What students wait for: the time of `make book`, if it was run in this checkout.
    results["seconds_one_seed"] = _state(replace(run, seeds=1), notebook).get("seconds")
    _write(run.published_results(notebook), json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    _write(run.source(notebook).with_suffix(".ipynb"), text)
    say(f"{notebook.name} published: notebooks/{notebook.name}.ipynb, results/{run.profile}/{notebook.name}.json")


def merged(source: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """The notebook of the source, with the outputs of those executed cells whose code is still the same.

    Nothing else comes from the executed one: no papermill metadata, no timings, no injected parameters. Progress bars
    and what went to stderr are dropped. Cell ids follow from the text, so the same cells always make the same file.
    """
    fresh = [cell for cell in source.cells if cell.cell_type == "code"]
    old = [cell for cell in executed.cells if cell.cell_type == "code" and not _injected(cell)]
    match = SequenceMatcher(None, [code_of(cell.source) for cell in fresh], [code_of(cell.source) for cell in old])
    for block in match.get_matching_blocks():
        for cell, run_cell in zip(fresh[block.a :][: block.size], old[block.b :][: block.size], strict=True):
            cell.outputs = [output for output in run_cell.outputs if not _is_noise(output)]
            cell.execution_count = run_cell.execution_count
    seen = {}
    for cell in source.cells:
        text = f"{cell.cell_type}\n{cell.source}"
        seen[text] = seen.get(text, 0) + 1
        cell.id = hashlib.sha256(f"{seen[text]}\n{text}".encode()).hexdigest()[:12]
    return source


def _injected(cell: NotebookNode) -> bool:
    return "injected-parameters" in cell.metadata.get("tags", [])


def _is_noise(output: NotebookNode) -> bool:
    widget = "application/vnd.jupyter.widget-view+json" in output.get("data", {})  # nothing to see without its kernel
    return widget or output.get("name") == "stderr"


def unpublishable(nb: NotebookNode, text: str, root: Path = ROOT) -> list[str]:
    """What keeps an executed notebook, written as `text`, from being committed; one sentence each."""
    problems = []
    for number, cell in enumerate(nb.cells, 1):
        for output in cell.get("outputs", []):
            problems += [f"The output of cell {number} of all holds {what}." for what in leaks(_text_of(output), root)]
    size = len(text.encode())
    if size > LARGEST_NOTEBOOK:
        problems.append(f"It has {size:,} bytes, more than {LARGEST_NOTEBOOK:,}: draw smaller figures or print less.")
    return problems


def _text_of(output: NotebookNode) -> str:
    """All that a reader could find in an output, without the base64 of images, in which anything occurs by chance."""
    data = {mime: value for mime, value in output.get("data", {}).items() if mime not in ("image/png", "image/jpeg")}
    return "\n".join([str(output.get("text", "")), *map(str, data.values()), *output.get("traceback", [])])


def leaks(text: str, root: Path = ROOT) -> list[str]:
    """What in a text belongs to this machine or to nobody else: its paths, keys."""
    found = [f"{what} ({match[0][:12]}...)" for what, pattern in SECRETS.items() if (match := re.search(pattern, text))]
    for folder in {root, Path.home(), Path(tempfile.gettempdir())}:
        for path in {str(folder), str(folder.resolve()), folder.as_posix()}:
            if len(path) > 1 and re.search(rf"(?<!\w){re.escape(path)}(?![\w-])", text.replace("\\\\", "\\")):
                found.append(f"the path {path}")
    return sorted(set(found))


def pair_of(source: Path) -> str:
    """What the .ipynb beside this .py should be: its text, with the outputs that are there for the same code."""
    pair = source.with_suffix(".ipynb")
    return _ipynb(merged(_read_source(source), _read(pair) if pair.exists() else NotebookNode(cells=[])))


def sync(root: Path = ROOT) -> list[str]:
    """Bring each .ipynb of notebooks/ up to its .py; returns the names of those that were not."""
    changed = []
    for source in sorted((root / "notebooks").glob("*.py")):
        pair, text = source.with_suffix(".ipynb"), pair_of(source)
        if not pair.exists() or pair.read_text(encoding="utf-8") != text:
            _write(pair, text)
            changed.append(source.stem)
    return changed


# --- what to expect ---


def check(root: Path = ROOT) -> None:
    """Print this machine's speed, and what one seed of the laptop profile is expected to take, notebook by notebook.

    From the committed results where there are some (scaled by the machines' speeds), else from the budget.
    """
    speed = sgemm_gflops()
    say(f"This machine: {os.cpu_count()} cores, {speed:.0f} GF/s on one (float32 matrix products).\n")
    say(f"{'notebook':<40} {'minutes':>8} {'memory':>9}  (laptop, one seed, everything trained from nothing)")
    total = 0.0
    for notebook in [notebook for notebook in contents(root) if PUBLISHED_PROFILE in notebook.budget_seconds]:
        path = root / "results" / PUBLISHED_PROFILE / f"{notebook.name}.json"
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        seconds, origin = notebook.budget_seconds[PUBLISHED_PROFILE], "budget"
        if results.get("seconds_one_seed"):
            scale = results.get("environment", {}).get("sgemm_gflops", speed) / speed
            seconds, origin = results["seconds_one_seed"] * scale, "measured"
        memory = f"{results['peak_mb']:.0f} MB" if results.get("peak_mb") else "under 2 GB"
        say(f"{notebook.name:<40} {seconds / 60:>8.1f} {memory:>10}  {origin}")
        total += seconds
    say(f"{'the book':<40} {total / 60:>8.1f}")


def sgemm_gflops(size: int = 1024, seconds: float = 1.0) -> float:
    """The best speed of float32 matrix products on one thread, in 1e9 operations a second."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, fastest, end = torch.rand(size, size), float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        fastest = min(fastest, time.perf_counter() - start)
    torch.set_num_threads(threads)
    return 2 * size**3 / fastest / 1e9


# --- files ---


def _read_source(path: Path) -> NotebookNode:
    if not path.exists():
        raise NotebookFailed(f"notebooks/{path.name} is missing, but book.toml names it.")
    return jupytext.read(path, fmt="py:percent")


def _read(path: Path) -> NotebookNode:
    return jupytext.read(path, fmt="ipynb")


def _ipynb(nb: NotebookNode) -> str:
    return jupytext.writes(nb, fmt="ipynb") + "\n"


def _write(path: Path, text: str) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)


def _shown(path: Path, root: Path) -> str:
    """As a person in the repository would type it."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def say(line: str) -> None:
    print(line, flush=True)
