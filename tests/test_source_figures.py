"""The file itself, entry by entry; figures against what part of the sources says elsewhere; and bad files."""

import math
import re

import pytest

from rlhf_lab import ROOT
from rlhf_lab.source_figures import PATH, Figure, SourceFiguresError, figure, figures

ALL = figures(ROOT / PATH)
GOOD = """
[paper]
source = "A paper (2020)"
[paper.accuracy]
value = 0.5
where = "table 1"
how = "printed"
"""


@pytest.fixture
def file(tmp_path):
    """Writes a file of figures and returns its path."""

    def write(text):
        path = tmp_path / "figures.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


# --- the file of the course ---


@pytest.mark.parametrize("key", ALL)
def test_every_figure_says_whose_it_is_where_it_stands_and_how_it_was_read(key):
    found = ALL[key]
    assert re.fullmatch(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*", key)
    assert len(found.source) > 10 and len(found.where) > 10
    assert re.fullmatch(r"printed|recomputed|read off, \+-0\.\d+", found.how)
    values = found.value if isinstance(found.value, tuple) else (found.value,)
    assert all(math.isfinite(value) for value in values) and list(values) == sorted(values)


@pytest.mark.parametrize("key", [key for key in ALL if key.split(".")[1].startswith(("accuracy", "agreement"))])
def test_accuracies_and_agreements_are_shares(key):
    assert 0 < ALL[key].value < 1  # 72.6 % is 0.726


def test_every_table_of_the_file_is_read():
    # By counting headings, since a slip in one could hide a figure from everybody.
    text = (ROOT / PATH).read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\[(\w+\.\w+)\]$", text, re.M)) == sorted(ALL)
    assert len(re.findall(r"^\[", text, re.M)) == len(ALL) + len({key.split(".")[0] for key in ALL})


def test_a_figure_has_its_source():
    assert figure("reward_in_the_prompt.accuracy_helpful").value == 0.721
    found = figure("helpful_and_harmless.accuracy_13m")
    assert found.how == "read off, +-0.01" and "2204.05862" in found.source and "figure 7" in found.where


def test_the_joint_model_s_table_and_code_disagree():
    # an erratum of the source, which the course teaches: both figures have to stay
    joint = [figure(f"reward_in_the_prompt.accuracy_joint{where}").value for where in ("", "_in_the_code")]
    parts = [figure(f"reward_in_the_prompt.accuracy_joint_on_{pairs}").value for pairs in ("helpful", "harmless")]
    assert joint[0] > joint[1] and min(parts) <= joint[1] <= max(parts)


# --- what is refused ---


def test_an_unknown_key_is_answered_with_those_that_are_close():
    with pytest.raises(ValueError, match=r"has no figure 'instructgpt.agrement_training_labelers': did you mean inst"):
        figure("instructgpt.agrement_training_labelers")
    with pytest.raises(ValueError, match="has no figure 'x': enter it, or take one of reward_in_the_prompt"):
        figure("x")


def test_a_good_file_is_read(file):
    whole = {"paper.accuracy": Figure(0.5, "A paper (2020)", "table 1", "printed")}
    assert figures(file(GOOD)) == whole


def test_a_range_keeps_both_ends(file):
    assert figures(file(GOOD.replace("0.5", "[0.4, 0.6]")))["paper.accuracy"].value == (0.4, 0.6)


@pytest.mark.faults
@pytest.mark.parametrize(
    "old, new, message",
    [
        ('where = "table 1"', "", r"\[paper.accuracy\] has no text 'where'"),
        ('where = "table 1"', 'where = " "', "has no text 'where'"),
        ('how = "printed"', "", "has no text 'how'"),
        ('how = "printed"', 'how = "by eye"', "has how = 'by eye': write 'printed'"),
        ('how = "printed"', 'how = "read off"', "has how = 'read off'"),  # how well?
        ('how = "printed"', 'how = "printed, or so"', "has how = 'printed, or so'"),
        ('source = "A paper (2020)"', "", r"\[paper\] has no text 'source'"),
        ("value = 0.5", "", "has value = None: write a number"),
        ("value = 0.5", 'value = "0.5"', "has value = '0.5'"),
        ("value = 0.5", "value = true", "has value = True"),
        ("value = 0.5", "value = []", r"has value = \[\]"),
        ("value = 0.5", "value = 0.5\nwheer = 1", "has wheer, which means nothing here"),
        ("[paper.accuracy]", "", r"\[paper.value\] is no table"),
        ("[paper]", "[paper", r"figures.toml is no TOML \(.*line 2"),
        ("[paper]", "", r"\[source\] has no text 'source'"),
    ],
)
def test_a_bad_file_says_which_entry_and_what_to_do(file, old, new, message):
    assert old in GOOD
    with pytest.raises(SourceFiguresError, match=message):
        figures(file(GOOD.replace(old, new, 1)))


@pytest.mark.faults
def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SourceFiguresError, match="gone.toml is not there"):
        figures(tmp_path / "gone.toml")
