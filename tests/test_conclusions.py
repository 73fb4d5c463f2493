"""A small course whose table is spelled out, everything that must be refused, and the files of the course itself."""

import json
import re
import tomllib

import pytest

import rlhf_lab
from rlhf_lab import ROOT, claims, source_figures
from rlhf_lab.__main__ import main
from rlhf_lab.conclusions import PAGE, PATH, ConclusionsError, read, table
from rlhf_lab.statistics import Interval, better, equivalent

FIGURES = """
[paper]
source = "A paper (2020)"
[paper.r]
value = 0.5
where = "scatter, r"
how = "printed"
[paper.r_interval]
value = [0.4, 0.62]
where = "the same, 95 % interval"
how = "printed"
[paper.line]
value = [0.43, 0.5]
where = "line chart, targets below .4"
how = "read off, +-0.01"
[paper.price]
value = 0.00006
where = "table of prices"
how = "printed"
[paper.texts]
value = 150000
where = "section 2"
how = "printed"
"""
BOOK = """
[[notebook]]
name = "51_one"
title = "One"
question = "What?"
[[notebook]]
name = "52_two"
title = "Two"
question = "And then?"
"""
CONCLUSION = """
[follows]
conclusion = "It does as it is told."
source = ["paper.r", "paper.line"]
here = ["51_one:r.joint", "51_one:r.steps"]
claim = "51_one:follows"
same = ["holds"]
"""
UP = better([1.5, 1.6, 1.7], [1.0, 1.1, 1.3])
SAME = equivalent([1.5, 1.6, 1.7], [1.5, 1.7, 1.7], margin=0.2)
TEXTS = (
    dict.fromkeys(("holds", "fails"), ""),
    dict.fromkeys(("better", "inconclusive", "worse"), ""),
    dict.fromkeys(("equivalent", "inconclusive", "different"), "{margin}"),
)


def publish(root, found="holds", expect="holds", notebook="51_one"):
    """Commit results whose one claim got `found`, written by Claims itself."""
    run = claims.Claims(notebook, profile="laptop", seeds=5)
    run.number("r.joint", Interval(0.6111, 0.5511, 0.6711, 0.95, 5, "seed"), unit="correlation")
    run.number("r.steps", 1250, unit="steps")
    run.state("follows", found, expect=expect, text=next(text for text in TEXTS if expect in text))
    written = claims.read(run.write())
    path = root / "results" / "laptop" / f"{notebook}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written), encoding="utf-8")


def conclude(root, text=CONCLUSION):
    (root / PATH).write_text(text, encoding="utf-8")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A course of two notebooks with one conclusion, and no results yet."""
    monkeypatch.setenv("RLHF_LAB_RESULTS", str(tmp_path / "build"))
    (tmp_path / "course").mkdir()
    (tmp_path / source_figures.PATH).write_text(FIGURES, encoding="utf-8")
    (tmp_path / "book.toml").write_text(BOOK, encoding="utf-8")
    conclude(tmp_path)
    return tmp_path


def cells(root):
    """The cells of the table's only row."""
    (row,) = table(root).splitlines()[2:]
    return row.removeprefix("| ").removesuffix(" |").split(" | ")


# --- rendering ---


def test_the_table_of_a_small_course(root):
    publish(root)
    later = CONCLUSION.replace("[follows]", "[later]").replace("51_one", "52_two").replace("is told", "is | told")
    conclude(root, CONCLUSION + later)
    figures = "`r`: 0.50 [0.40, 0.62]<br>`line`: 0.43 to 0.50 (read off, ±0.01)"
    assert table(root) == (
        "| conclusion of the source | source | here | same conclusion? |\n"
        "| --- | --- | --- | --- |\n"
        f"| It does as it is told. | {figures} | `r.joint`: 0.611 [0.551, 0.671]<br>`r.steps`: 1,250 "
        "| **yes**: `follows` holds ([51](../notebooks/51_one.ipynb)) |\n"
        f"| It does as it is \\| told. | {figures} | not yet run | not yet run |"
    )


@pytest.mark.parametrize(
    "found, expect, same, answer",
    [
        ("holds", "holds", ["holds"], "**yes**: `follows` holds"),
        ("fails", "holds", ["holds"], "**no**: `follows` fails"),
        ("fails", "fails", ["fails"], "**yes**: `follows` fails"),
        ("holds", "holds", ["fails"], "**no**: `follows` holds"),  # the expectation is ours, not the source's
        (UP, "better", ["better"], "**yes**: `follows` better"),
        (UP, "better", ["worse"], "**no**: `follows` better"),
        (UP, "better", ["worse", "better"], "**yes**: `follows` better"),
        (better([1, 2, 3], [3, 2, 1]), "better", ["better"], "**not decided**: `follows` inconclusive"),
        (SAME, "equivalent", ["equivalent"], "**yes**: `follows` equivalent"),
        (SAME, "equivalent", ["different"], "**no**: `follows` equivalent"),
        (equivalent([1, 2, 3], [3, 2, 1], margin=0.2), "equivalent", ["equivalent"], "**not decided**: `follows` inc"),
        ("not decided", "holds", ["holds"], "**not decided**: `follows` not decided"),
    ],
)
def test_the_verdict_of_the_claim_decides(root, found, expect, same, answer):
    publish(root, found, expect)
    conclude(root, CONCLUSION.replace('["holds"]', json.dumps(same)))
    assert cells(root)[3].startswith(answer)


def test_a_claim_of_a_notebook_that_is_not_run_leaves_the_numbers_of_others(root):
    publish(root)
    conclude(root, CONCLUSION.replace('claim = "51_one', 'claim = "52_two'))
    assert cells(root)[2:] == ["`r.joint`: 0.611 [0.551, 0.671]<br>`r.steps`: 1,250", "not yet run"]


def test_figures_keep_the_decimals_they_are_printed_with(root):
    conclude(root, CONCLUSION.replace("paper.r", "paper.price").replace("paper.line", "paper.texts"))
    assert cells(root)[1] == "`price`: 0.00006<br>`texts`: 150000"


def test_the_command_renews_the_page_and_finds_it_stale(root, monkeypatch, capsys):
    monkeypatch.setattr(rlhf_lab, "ROOT", root)
    (root / "docs").mkdir()
    (root / "README.md").write_text("No tables.\n")
    (root / PAGE).write_text("# Page\n<!-- results:conclusions --><!-- /results -->\nEnd\n")
    assert main(["tables", "--check"]) == 1
    stale = "docs/reward_in_the_prompt.md does not show the results: type python -m rlhf_lab tables\n"
    assert capsys.readouterr().err == stale
    assert main(["tables"]) == 0
    page = f"# Page\n<!-- results:conclusions -->\n{table(root)}\n<!-- /results -->\nEnd\n"
    assert (root / PAGE).read_text(encoding="utf-8") == page
    assert main(["tables", "--check"]) == 0
    publish(root)
    assert main(["tables", "--check"]) == 1
    assert (root / PAGE).read_text(encoding="utf-8") == page  # looking changes nothing


# --- what is refused ---


@pytest.mark.faults
@pytest.mark.parametrize(
    "old, new, message",
    [
        ("paper.line", "paper.lin", "figures.toml has no figure 'paper.lin': did you mean paper.line"),
        ("paper.line", "x", "figures.toml has no figure 'x': mend the name"),
        ("51_one:r.joint", "51_won:r.joint", "book.toml has no notebook '51_won': did you mean 51_one"),
        ("51_one:r.joint", "r.joint", "book.toml has no notebook 'r.joint'"),
        (
            "51_one:r.joint",
            "51_one:r.joined",
            r"results/laptop/51_one.json has no number 'r.joined': did you mean r.jo",
        ),
        ("51_one:r.joint", "51_one", "51_one.json has no number ''"),
        ("51_one:r.joint", "51_one:follows", "has no number 'follows'"),
        ("51_one:follows", "51_one:folows", "51_one.json has no claim 'folows': did you mean follows"),
        ("51_one:follows", "51_one:r.joint", "has no claim 'r.joint'"),
        ('["holds"]', '["hold"]', "'same' may hold no 'hold': did you mean holds"),
        ('["holds"]', '["inconclusive"]', "'same' may hold no 'inconclusive'"),
        ('["holds"]', '["not decided"]', "'same' may hold no 'not decided'"),
        ('["holds"]', '["better"]', "claim 'follows' of 51_one never turns out 'better'"),
        ('["holds"]', '"holds"', "has same = 'holds': write a list"),
        ('["holds"]', "[]", r"has same = \[\]: write a list of texts there, with one at least"),
        ('["holds"]', "[1]", "has same = 1: write a text"),
        ('"It does as it is told."', '" "', "has conclusion = ' ': write a text"),
        ('claim = "51_one:follows"', "", "does not have the entries conclusion, source, here, claim, same"),
        ('claim = "51_one:follows"', 'claim = "51_one:follows"\nclam = "x"', "and no others"),
    ],
)
def test_a_bad_conclusion_says_which_and_what_to_do(root, old, new, message):
    publish(root)
    assert old in CONCLUSION
    conclude(root, CONCLUSION.replace(old, new, 1))
    with pytest.raises(ConclusionsError, match=rf"^course/conclusions.toml, \[follows\].*{message}"):
        table(root)


@pytest.mark.faults
@pytest.mark.parametrize("found, expect, same", [(UP, "better", "equivalent"), (SAME, "equivalent", "better")])
def test_a_verdict_of_another_kind_of_claim_is_refused(root, found, expect, same):
    publish(root, found, expect)
    conclude(root, CONCLUSION.replace("holds", same))
    with pytest.raises(ConclusionsError, match=f"claim 'follows' of 51_one never turns out '{same}'"):
        table(root)


@pytest.mark.faults
def test_a_misspelled_notebook_is_not_one_that_is_not_yet_run(root):
    conclude(root, CONCLUSION.replace("51_one:follows", "51_on:follows"))
    with pytest.raises(ConclusionsError, match="has no notebook '51_on': did you mean 51_one"):
        table(root)


@pytest.mark.faults
def test_a_file_that_is_missing_or_no_toml_is_named(root):
    conclude(root, "[follows\n")
    with pytest.raises(ConclusionsError, match=r"conclusions.toml is no TOML \(.*line 1"):
        table(root)
    (root / PATH).unlink()
    with pytest.raises(ConclusionsError, match="conclusions.toml is not there"):
        table(root)


# --- the files of the course ---

ENTRIES = tomllib.loads((ROOT / PATH).read_text(encoding="utf-8"))
PROSE = (ROOT / PAGE).read_text(encoding="utf-8")


def test_every_conclusion_of_the_course_is_read():
    # By counting headings, since a slip in one could hide a conclusion from everybody.
    headings = re.findall(r"^\[(\w+)\]$", (ROOT / PATH).read_text(encoding="utf-8"), re.M)
    assert headings == list(read(ROOT / PATH)) == list(ENTRIES)
    assert len(table().splitlines()) == 2 + len(headings)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_a_conclusion_of_the_course_names_exists(name):
    entry = ENTRIES[name]
    assert set(entry["source"]) <= set(source_figures.figures(ROOT / source_figures.PATH))
    for kind, references in (("numbers", entry["here"]), ("claims", [entry["claim"]])):
        for notebook, key in (reference.split(":") for reference in references):
            run = claims.published(notebook)
            assert run is None or key in run[kind], f"{notebook} has no {key}"


def test_the_page_shows_the_table():
    assert claims.update_markers(PROSE, {"conclusions": table()}) == PROSE  # else: python -m rlhf_lab tables


def test_the_page_s_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PROSE)
    assert links and [link for link in links if not (ROOT / "docs" / link).is_file()] == []
