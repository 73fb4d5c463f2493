"""Every notebook of book.toml: well built, in sync with its pair, executed, and running at its smallest size."""

import ast
import base64
import json
import re
import time

import jupytext
import pytest
from jupytext.compare import compare_notebooks

from rlhf_lab import ROOT, book, notebook_files

NOTEBOOKS = [pytest.param(notebook, id=notebook.name) for notebook in book.contents()]
FIRST_SECTIONS = ["What you will learn", "What you should know", "How long it takes"]
LAST_SECTIONS = ["What we found", "Exercises", "Further reading"]
LONGEST_CELL = 25  # lines
REMEDY = "type: python -m rlhf_lab sync"

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS)


def source_of(notebook):
    return ROOT / "notebooks" / f"{notebook.name}.py"


def read_source(notebook):
    return jupytext.read(source_of(notebook), fmt="py:percent")


def read_pair(notebook):
    return jupytext.read(source_of(notebook).with_suffix(".ipynb"))


def code_cells(nb):
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def tagged(nb, tag):
    return [cell for cell in nb.cells if tag in cell.metadata.get("tags", [])]


def test_every_notebook_is_in_the_book():
    assert {path.stem for path in (ROOT / "notebooks").glob("*.py")} == {notebook.name for notebook in book.contents()}
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} == {n.name for n in book.contents()}


@every_notebook
def test_pair_is_in_sync(notebook):
    format = {"extension": ".py", "format_name": "percent"}
    compare_notebooks(read_pair(notebook), read_source(notebook), fmt=format, compare_outputs=False)
    text = source_of(notebook).with_suffix(".ipynb").read_text(encoding="utf-8")
    assert text == notebook_files.pair_of(source_of(notebook)), REMEDY


# --- structure ---


@every_notebook
def test_it_opens_with_its_title_and_question(notebook):
    first = read_source(notebook).cells[0]
    assert first.cell_type == "markdown" and first.source.splitlines()[0] == f"# {notebook.title}"
    assert notebook.question in " ".join(first.source.split())


@every_notebook
def test_sections(notebook):
    text = "\n".join(cell.source for cell in read_source(notebook).cells if cell.cell_type == "markdown")
    sections = re.findall(r"^## (.+?)\s*$", text, re.MULTILINE)
    assert sections[: len(FIRST_SECTIONS)] == FIRST_SECTIONS
    assert [section for section in sections if section in LAST_SECTIONS] == LAST_SECTIONS


@every_notebook
def test_one_parameters_cell(notebook):
    (cell,) = tagged(read_source(notebook), "parameters")
    names = [target.id for node in ast.parse(cell.source).body for target in node.targets]
    assert names[:2] == ["profile", "seeds"]


@every_notebook
def test_macros_are_loaded_and_hidden(notebook):
    macros = [cell for cell in code_cells(read_source(notebook)) if "%run ../Latex_macros.ipynb" in cell.source]
    assert macros and all("remove-cell" in cell.metadata.get("tags", []) for cell in macros)


@every_notebook
def test_code_cells_are_short(notebook):
    for cell in code_cells(read_source(notebook)):
        assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source


# --- what is committed ---


@every_notebook
def test_it_is_executed_without_errors(notebook):
    for cell in code_cells(read_pair(notebook)):
        assert cell.execution_count, f"not executed, or its code has changed since:\n{cell.source}"
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source


@every_notebook
def test_its_outputs_and_the_committed_results_are_of_one_run(notebook):
    """What results/ says of each claim stands, to the letter, in the outputs; and no sanity check is missed."""
    path = ROOT / "results" / book.PUBLISHED_PROFILE / f"{notebook.name}.json"
    results = json.loads(path.read_text(encoding="utf-8"))
    shown = json.dumps([cell.outputs for cell in code_cells(read_pair(notebook))], ensure_ascii=False)
    texts = {key: json.dumps(claim["text"], ensure_ascii=False)[1:-1] for key, claim in results["claims"].items()}
    missing = [key for key, text in texts.items() if text not in shown]
    assert results["claims"] and not missing
    assert results["seeds"] >= book.PUBLISHED_SEEDS
    assert all(claim["met"] for claim in results["claims"].values() if claim["sanity"])


@every_notebook
def test_its_saved_figures_are_those_it_shows(notebook):
    saved = 0
    for cell in code_cells(read_pair(notebook)):
        for name in re.findall(r'plots\.show\(.*name="(\w+)"\)', cell.source):
            (shown,) = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            assert (ROOT / "images" / f"{name}.png").read_bytes() == base64.b64decode(shown), name
            saved += 1
    assert saved


@every_notebook
def test_nothing_of_this_machine_is_committed(notebook):
    path = source_of(notebook).with_suffix(".ipynb")
    assert notebook_files.unpublishable(read_pair(notebook), path.read_text(encoding="utf-8")) == []
    assert notebook_files.leaks(source_of(notebook).read_text(encoding="utf-8")) == []
    metadata = read_pair(notebook).metadata
    assert set(metadata) <= {"jupytext", "kernelspec"} and metadata.kernelspec.name == "python3"
    for cell in read_pair(notebook).cells:
        assert set(cell.metadata) <= {"tags", "slideshow", "mystnb", "name"} and cell.metadata.get("tags") != []


# --- running ---


@every_notebook
def test_smoke_run(notebook, capsys):
    assert book.run_book([notebook.name], profile="smoke") == 0
    results = json.loads((ROOT / "build" / "results" / "smoke" / f"{notebook.name}.json").read_text(encoding="utf-8"))
    assert results["notebook"] == notebook.name and results["profile"] == "smoke" and results["seeds"] == 1
    assert results["numbers"] and results["claims"] and results["seconds"] > 0
    executed = jupytext.read(ROOT / "build" / "book" / "smoke-1" / f"{notebook.name}.ipynb")
    for cell in code_cells(executed):
        assert not [output for output in cell.outputs if output.output_type == "error"], cell.source
    capsys.readouterr()
    start = time.perf_counter()
    assert book.run_book([notebook.name], profile="smoke") == 0
    assert capsys.readouterr().out.splitlines()[0] == f"{notebook.name} unchanged"
    assert time.perf_counter() - start < 15  # seconds
