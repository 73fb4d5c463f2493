"""Run the book: the notebooks of book.toml, in order, each by papermill in its own kernel; what is unchanged is skipped.

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
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
            raise ValueError(f"There is no notebook or part {word!r}: the book has the parts {parts}; notebooks {names}.")
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
    if not _ordered(run, contents(root), [notebook.name for notebook in notebooks]):
        return 1
    place = run.executed(notebooks[0]) if len(notebooks) == 1 else run.folder
    say(f"The executed notebook{'s are in' if place == run.folder else ' is'} {_shown(place, root)}; to read it, type")
    say(f"    {shlex.quote(_shown(Path(sys.executable), root))} -m jupyter lab {_shown(place, root)}")
    return 0


def _ordered(run: Run, notebooks: list[Notebook], names: list[str]) -> bool:
    """Let doit order the notebooks, skip the unchanged, and run the others; True if none failed.

    doit keeps no state of ours: it writes its own only when it ends, and a killed run must not redo what was done.
    """
    from doit.cmd_base import ModuleTaskLoader
    from doit.doit_cmd import DoitMain
    from doit.reporter import ConsoleReporter

    class Reporter(ConsoleReporter):
        def execute_task(self, task):
            pass  # execute() says so itself

        def skip_uptodate(self, task):
            say(f"{task.name} unchanged")

        def _write_failure(self, result, write_exception=True):
            if not run.executed_failed(result):
                super()._write_failure(result, write_exception)

    def task_notebook():
        for notebook in notebooks:
            yield {
                "basename": notebook.name,
                "actions": [(execute, [run, notebook])],
                "uptodate": [(unchanged, [run, notebook])],
                "targets": [str(run.executed(notebook))],
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
