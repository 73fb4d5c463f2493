"""Run the book: the notebooks of book.toml, in order, each by papermill in a kernel of its own, skipping the unchanged.

A run leaves the executed notebook in build/book/<profile>-<seeds>/ and its results in build/results/. A published run
(the laptop profile with five seeds or more) also copies both to where they are committed: the outputs into the pair
notebooks/<name>.ipynb, the numbers into results/.
"""

import ast
import hashlib
import json
import os
import shlex
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rlhf_lab import ROOT, checkpoints, sources
from rlhf_lab.errors import NotebookFailed
from rlhf_lab.execution import execute, say
from rlhf_lab.files import write
from rlhf_lab.notebook_files import as_typed, code_of, ipynb, merged, read, read_source, unpublishable
from rlhf_lab.profiles import Profile

PUBLISHED_PROFILE, PUBLISHED_SEEDS = "laptop", 5
MODEL_FOLDERS = ("DLITE_DIR", "REWARD_MODEL_DIR")  # environment variables of `pretrained`, whose import takes seconds


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
    models_from_elsewhere: bool = False


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
    scheduler: str | None

    @property
    def folder(self) -> Path:
        return self.root / "build" / "book" / f"{self.profile}-{self.seeds}"

    def lock(self, notebook: Notebook) -> Path:
        """Of its results, which are one file for any number of seeds."""
        return self.root / "build" / "book" / ".locks" / f"{self.profile}-{notebook.name}.lock"

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
    wanted: Sequence[str] = (),
    profile: str = "laptop",
    seeds: int = 1,
    jobs: int = 1,
    scheduler: str | None = None,
    root: Path = ROOT,
) -> int:
    """Run these notebooks (and those they need), `jobs` at a time; returns 0, or 1 after the first failure.

    `scheduler` is the address of a Dask scheduler, whose workers take over what `parallel.run` is given. Raises
    ValueError for a notebook, part or profile that does not exist, and for numbers below one; parallel.ClusterError for
    a scheduler that does not answer; pretrained.CheckpointError for models from elsewhere that cannot be had.
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
    if any(notebook.models_from_elsewhere for notebook in notebooks):
        from rlhf_lab import pretrained

        pretrained.check(Profile.load(profile))
    if scheduler:
        from rlhf_lab import parallel

        parallel.connect(scheduler).close()
    run = Run(root, profile, seeds, jobs, scheduler)
    run.folder.mkdir(parents=True, exist_ok=True)
    if not _run_in_order(run, contents(root), [notebook.name for notebook in notebooks]):
        return 1
    place = as_typed(run.executed(notebooks[0]) if len(notebooks) == 1 else run.folder, root)
    python = shlex.quote(as_typed(Path(sys.executable), root))
    say(f"To read what was executed, type\n    {python} -m jupyter lab {place}")
    return 0


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
            with checkpoints.locked(run.lock(notebook), f"waiting for another book, which is running {notebook.name}"):
                if _unchanged(run, notebook):  # since that other book has run it
                    say(f"{notebook.name} unchanged")
                else:
                    _run_notebook(run, notebook)
        except (NotebookFailed, OSError) as failure:
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
    peak = execute(
        read_source(run.source(notebook)),
        run.executed(notebook),
        folder=run.root / "notebooks",
        parameters={"profile": run.profile, "seeds": run.seeds},
        environment=_environment(run, uses),
        limit_seconds=notebook.limit_seconds * run.seeds,
        root=run.root,
    )
    wall = round(time.perf_counter() - start, 2)
    before = before if before.get("digest") == digest else {}
    cost = _times(wall, uses, before) | {"peak_mb": round(max(peak, before.get("peak_mb", 0)))}
    if results.exists():
        _check_results(run, notebook, cost)
    if run.publishes:
        _publish(run, notebook)
    write(run.state(notebook), json.dumps({"digest": digest, "results": results.exists()} | cost))
    cold = f"; {cost['seconds']:.0f} s with everything trained from nothing" if cost["seconds"] > wall else ""
    say(f"{notebook.name} done in {wall:.0f} s{cold}")


def _environment(run: Run, uses: Path) -> dict[str, str]:
    """What the kernels know from us; `uses` is the file in which they log the artefacts they ask for."""
    environment = {
        "RLHF_LAB_RESULTS": str(run.root / "build" / "results"),
        "RLHF_LAB_ARTEFACT_LOG": str(uses),
        "RLHF_LAB_PUBLISH": "1" if run.publishes else "",
    } | ({"RLHF_LAB_SCHEDULER": run.scheduler} if run.scheduler else {})
    # Relative to where the command was typed, not to notebooks/.
    for folder in ("HH_RLHF_DIR", *MODEL_FOLDERS, "RLHF_LAB_CACHE"):
        if os.environ.get(folder):
            environment[folder] = str(Path(os.environ[folder]).absolute())
    if run.jobs > 1 and "OMP_NUM_THREADS" not in os.environ:  # kernels share the cores
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // run.jobs))
    return environment


# --- what is unchanged, and how long it took ---


def _digest(run: Run, notebook: Notebook) -> str:
    """Of all that can change what the notebook shows: its code (never its prose), that of the modules it imports, the
    profile, the number of seeds, the shipped model, the real data, and models in folders that stand in for ours."""
    cells = [code_of(cell.source) for cell in read_source(run.source(notebook)).cells if cell.cell_type == "code"]
    code = sources.Sources(run.root / "rlhf_lab")
    modules = {module for cell in cells for _, _, module in code.imports(ast.parse(cell))}
    real = Path(os.environ.get("HH_RLHF_DIR") or os.devnull)
    parts = [
        cells,
        code.digest(code.closure(modules, without=frozenset({""}))),  # "": a new version number changes nothing
        tomllib.loads((run.root / "profiles.toml").read_text(encoding="utf-8"))[run.profile],
        run.seeds,
        sources.fingerprint(run.root / "models" / "base"),
        sorted((str(path.relative_to(real)), path.stat().st_size) for path in real.rglob("*") if path.is_file()),
        # By content: two models of one architecture have files of the same sizes.
        *((name, sources.fingerprint(Path(os.environ[name]))) for name in MODEL_FOLDERS if os.environ.get(name)),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _unchanged(run: Run, notebook: Notebook) -> bool:
    state, made = _state(run, notebook), [run.source(notebook), run.executed(notebook)]
    made += [run.results(notebook)] if state.get("results") else []
    made += [run.published_results(notebook)] if run.publishes else []
    return all(path.exists() for path in made) and state.get("digest") == _digest(run, notebook)


def _state(run: Run, notebook: Notebook) -> dict:
    """Of the last run that came through: its digest, whether it wrote results, its cost; empty if there was none."""
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


def _check_results(run: Run, notebook: Notebook, cost: dict[str, float | None]) -> None:
    from rlhf_lab import claims

    path, committed = run.results(notebook), run.published_results(notebook)
    claims.stamp(path, **cost)
    failures = claims.check(claims.read(path), claims.read(committed) if committed.exists() else None)
    if failures:
        raise NotebookFailed("\n    ".join(["the build fails.", *failures, f"Results: {as_typed(path, run.root)}"]))


def _publish(run: Run, notebook: Notebook) -> None:
    """Copy outputs and results to where they are committed, if nothing speaks against it."""
    if not run.results(notebook).exists():
        raise NotebookFailed("it wrote no results, so it cannot be published: end it with Claims.write().")
    nb = merged(read_source(run.source(notebook)), read(run.executed(notebook)))
    text = ipynb(nb)
    if problems := unpublishable(nb, text, run.root):
        raise NotebookFailed("\n    ".join(["it cannot be published.", *problems]))
    results = json.loads(run.results(notebook).read_text(encoding="utf-8"))
    results["environment"] = results.get("environment", {}) | {"sgemm_gflops": round(sgemm_gflops(), 1)}
    # What students wait for and need: the cost of `make book`, if it was run in this checkout.
    one_seed = _state(replace(run, seeds=1), notebook)
    results["seconds_one_seed"] = one_seed.get("seconds")
    results["peak_mb"] = max(results["peak_mb"], one_seed.get("peak_mb", 0))
    write(run.published_results(notebook), json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write(run.source(notebook).with_suffix(".ipynb"), text)
    say(f"{notebook.name} published: notebooks/{notebook.name}.ipynb, results/{run.profile}/{notebook.name}.json")


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
