"""Golden renderings, the layout of design section 5 spelled out, and everything that must be refused."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from rlhf_lab import claims
from rlhf_lab.claims import Claims, check, read, results_path, rewrite, stamp, tables, update_markers
from rlhf_lab.statistics import Interval, better, equivalent, rule

TEXT = {
    "better": "PPO raises the gold reward by {difference}, to {rl.gold_peak}.",
    "inconclusive": "PPO changes the gold reward by {difference}.",
    "worse": "PPO lowers the gold reward by {difference}.",
}
RULE_TEXT = {"holds": "Gold falls from {rl.gold_peak}.", "fails": "Gold stays up."}
SAME_TEXT = {
    "equivalent": "Within {margin} the two are the same: {difference}.",
    "inconclusive": "Whether the two are the same within {margin} is open: {difference}.",
    "different": "The two differ by more than {margin}: {difference}.",
}
SAME = equivalent([1.5, 1.6, 1.7], [1.5, 1.7, 1.7], margin=0.2)  # differences 0 -.1 0: -.033 +- .143
UP = better([1.5, 1.6, 1.7], [1.0, 1.1, 1.3])  # differences .5 .5 .4: .467 +- 4.303 * .0577 / sqrt(3)
ONE_SEED = better([1.52], [1.0])


def interval(value, low, high, n=5, unit="seed"):
    return Interval(value, low, high, 0.95, n, unit)


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.delenv("RLHF_LAB_RESULTS", raising=False)
    return tmp_path


@pytest.fixture
def book():
    book = Claims("00_test", profile="laptop", seeds=5)
    book.number("rl.gold_peak", interval(1.2111, 1.0511, 1.3711), unit="gold reward")
    return book


def publish(root, book):
    path = root / "results" / "laptop" / f"{book.notebook}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(book.write().read_bytes())
    return path


# --- rendering ---


@pytest.mark.parametrize(
    "value, rendered",
    [
        (interval(1.2111, 1.0511, 1.3711), "1.21 [1.05, 1.37]"),
        (interval(0.7344, 0.7144, 0.7544), "0.734 [0.714, 0.754]"),
        (interval(118.31, 106.1, 130.5), "118 [106, 130]"),
        (interval(-0.0004, -0.2, 0.2), "0.00 [-0.20, 0.20]"),
        (interval(2.0, 2.0, 2.0), "2.00"),
        (interval(0.525, None, None, n=1), "0.525"),
        (3200, "3,200"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.500"),
        (1234.5, "1,234"),
        (0.0, "0.00"),
        (3.217e-8, "3.22e-08"),
    ],
)
def test_numbers_are_shown_to_the_digits_they_have(book, value, rendered):
    book.number("x", value, unit="nats")
    assert book.show("x").data.split(": ")[1].startswith(f"{rendered} nats")


def test_show_a_number_says_what_the_interval_is_over(book):
    expected = "`rl.gold_peak`: 1.21 [1.05, 1.37] gold reward <small>(95% interval over 5 seeds)</small>"
    assert book.show("rl.gold_peak").data == expected
    book.number("rl.end", interval(1.0, None, None, n=1), unit="gold reward")
    assert book.show("rl.end").data == "`rl.end`: 1.00 gold reward <small>(1 seed)</small>"


def test_show_a_met_claim(book):
    book.state("ppo_beats_sft", UP, expect="better", text=TEXT)
    assert book.show("ppo_beats_sft").data == (
        "PPO raises the gold reward by +0.47 [0.32, 0.61], to 1.21 [1.05, 1.37]. "
        "<small>Expected: better; found: better.</small>"
    )


def test_show_a_missed_claim_says_so_plainly(book):
    book.state("ppo_beats_sft", better([1, 2, 3], [3, 2, 1]), expect="better", text=TEXT)
    assert book.show().data.endswith("**Expected better, found inconclusive.**")


def test_one_seed_decides_nothing_and_shows_the_published_verdict(root, book):
    book.state("ppo_beats_sft", UP, expect="better", text=TEXT)
    book.state("gold_falls", rule(UP), expect="holds", text=RULE_TEXT)
    publish(root, book)

    student = Claims("00_test", profile="laptop", seeds=1)
    student.number("rl.gold_peak", interval(1.3, None, None, n=1), unit="gold reward")
    student.state("ppo_beats_sft", ONE_SEED, expect="better", text=TEXT)
    student.state("gold_falls", rule(ONE_SEED), expect="holds", text=RULE_TEXT)
    student.state("new", rule(ONE_SEED), expect="holds", text=RULE_TEXT)
    shown, rule_shown, new = student.show().data.split("\n\n")
    assert shown == (
        "`ppo_beats_sft` is not decided: one seed gives no interval (difference +0.520). The published run (5 seeds) "
        "found *better*: PPO raises the gold reward by +0.47 [0.32, 0.61], to 1.21 [1.05, 1.37]. "
        "<small>Expected: better.</small>"
    )
    assert "found *holds*: Gold falls from 1.21 [1.05, 1.37]." in rule_shown
    assert new == "`new` is not decided: one seed gives no interval. <small>Expected: holds.</small>"
    written = read(student.write())["claims"]["ppo_beats_sft"]
    assert (written["verdict"], written["met"]) == ("not decided", None)


def test_show_an_equivalence_with_its_margin(book):
    book.state("same", SAME, expect="equivalent", text=SAME_TEXT)
    assert book.show("same").data == (
        "Within 0.2 the two are the same: -0.03 [-0.18, 0.11]. <small>Expected: equivalent; found: equivalent.</small>"
    )
    book.state("same", equivalent([1, 2, 3], [3, 2, 1], margin=0.2), expect="equivalent", text=SAME_TEXT)
    assert book.show("same").data.endswith("**Expected equivalent, found inconclusive.**")
    book.state("same", equivalent([1], [1.1], margin=0.25), expect="equivalent", text=SAME_TEXT)
    assert "one seed gives no interval (difference -0.100, margin 0.25)" in book.show("same").data


def test_latex_braces_are_no_placeholders(book):
    text = {"holds": r"$\mathrm{kl} = x_{t}^{n}$ at {rl.gold_peak} ($\frac{a}{b}$)", "fails": ""}
    book.state("x", "holds", expect="holds", text=text)
    assert book.claims["x"]["text"] == r"$\mathrm{kl} = x_{t}^{n}$ at 1.21 [1.05, 1.37] ($\frac{a}{b}$)"


def test_table_of_numbers(book):
    book.number("rl.steps", 12000, unit="updates")
    assert book.table().data == (
        "| what | value [95% interval] | n | unit |\n"
        "| --- | --- | --- | --- |\n"
        "| `rl.gold_peak` | 1.21 [1.05, 1.37] | 5 seeds | gold reward |\n"
        "| `rl.steps` | 12,000 |  | updates |"
    )
    assert "gold_peak" not in book.table("rl.steps").data


# --- what is refused ---


def test_an_accuracy_needs_its_audit_whichever_the_model(book):
    with pytest.raises(ValueError, match="record 'audit.longer_wins.hh' before 'accuracy.hh'"):
        book.number("accuracy.hh", interval(0.63, 0.6, 0.66), unit="share of pairs")
    book.number("audit.longer_wins.hh", interval(0.56, 0.54, 0.58), unit="share of pairs")
    book.number("accuracy.hh", interval(0.63, 0.6, 0.66), unit="share of pairs")
    with pytest.raises(ValueError, match="audit.longer_wins.other"):
        book.number("accuracy.other", 0.5, unit="share of pairs")
    book.number("accuracy.helpful.hh", 0.6, unit="share of pairs")  # another model, the same pairs
    with pytest.raises(ValueError, match="record 'audit.longer_wins.harmless' before 'accuracy.hh.harmless'"):
        book.number("accuracy.hh.harmless", 0.6, unit="share of pairs")
    book.number("audit.longer_wins.harmless", 0.45, unit="share of pairs")
    book.number("accuracy.hh.harmless", 0.6, unit="share of pairs")


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("x", float("nan"), "'x' is nan"),
        ("x", interval(1.0, 0.0, float("inf")), "'x' is inf"),
        ("x", "1.2", "'x' must be a number"),
        ("x", True, "'x' must be a number"),
        ("x", None, "'x' must be a number"),
        ("x", Interval(1.0, 0.9, 1.1, 0.9, 5, "seed"), "90% interval; the course reports 95%"),
        ("Gold peak", 1.0, "'Gold peak' is no key"),
        ("a claim", 1.0, "is no key"),
        ("claim", 1.0, "'claim' is taken"),
    ],
)
def test_bad_numbers_are_refused(book, key, value, message):
    book.state("claim", "holds", expect="holds", text=RULE_TEXT)
    with pytest.raises(ValueError, match=message):
        book.number(key, value, unit="nats")


@pytest.mark.parametrize(
    "found, expect, text, message",
    [
        (UP, "better", {"better": "", "worse": ""}, "could turn out 'inconclusive', but has no text"),
        ("holds", "holds", {"holds": ""}, "could turn out 'fails', but has no text"),
        (UP, "better", TEXT | {"beter": ""}, "cannot turn out 'beter', only one of better, inconclusive, worse"),
        (UP, "holds", TEXT, "cannot turn out 'holds'"),
        ("better", "better", TEXT, "pass the Comparison of better"),
        (True, "holds", RULE_TEXT, "the verdict of rule"),
        (SAME, "better", SAME_TEXT, "cannot turn out 'better', only one of equivalent, inconclusive, different"),
        (SAME, "equivalent", TEXT, "could turn out 'equivalent', but has no text"),
        (SAME, "equivalent", SAME_TEXT | {"different": "They differ."}, "for 'different' does not say .* add {margin}"),
        (UP, "better", TEXT | {"worse": "by {margin}"}, "names {margin}"),
        ("equivalent", "equivalent", SAME_TEXT, "pass the Comparison of better"),
        (UP, "better", TEXT | {"worse": "to {rl.gold_pek}"}, "names {rl.gold_pek}: record that number"),
        ("holds", "holds", RULE_TEXT | {"fails": "{difference}"}, "names {difference}"),
    ],
)
def test_bad_claims_are_refused_whatever_the_verdict(book, found, expect, text, message):
    with pytest.raises(ValueError, match=message):
        book.state("claim", found, expect=expect, text=text)
    assert not book.claims


def test_unknown_keys_and_shared_keys_are_refused(book):
    with pytest.raises(ValueError, match="No number 'rl.gold' is recorded; there are: rl.gold_peak"):
        book.show("rl.gold")
    with pytest.raises(ValueError, match="No number 'rl.gold'"):
        book.table("rl.gold")
    with pytest.raises(ValueError, match="'rl.gold_peak' is taken"):
        book.state("rl.gold_peak", "holds", expect="holds", text=RULE_TEXT)


def test_duration_is_read_from_the_committed_results(root, book):
    assert "Not measured yet" in book.duration().data
    path = root / "results" / "laptop" / "00_test.json"
    path.parent.mkdir(parents=True)
    times = {"seconds": 1500.0, "seconds_warm": 41.2, "seconds_one_seed": 65.0}
    path.write_text(json.dumps(times | {"seeds": 5, "environment": {"cpu": "A Chip"}}), encoding="utf-8")
    words = book.duration().data
    assert "About 1 minute with one seed and 25 minutes with the 5 seeds" in words
    assert "41 seconds" in words and "A Chip" in words


# --- results files ---


def test_results_file_has_the_layout_of_the_design(root, book):
    book.number("rl.kl_end", 1 / 3, unit="nats")
    book.state("ppo_beats_sft", UP, expect="worse", text=TEXT, sanity=True)
    path = book.write(seconds=61.23456789)
    assert path == root / "build" / "results" / "laptop" / "00_test.json"
    assert list(path.parent.iterdir()) == [path]  # no temporary file is left
    results = json.loads(path.read_text(encoding="utf-8"))
    assert list(results) == [
        "notebook", "profile", "seeds", "seconds", "seconds_warm", "seconds_one_seed", "peak_mb", "environment",
        "numbers", "claims",
    ]  # fmt: skip
    assert (results["notebook"], results["profile"]) == ("00_test", "laptop")
    assert (results["seeds"], results["seconds"], results["seconds_warm"]) == (5, 61.2346, None)
    assert list(results["environment"]) == ["python", "torch", "transformers", "trl", "cpu", "threads", "commit"]
    assert results["environment"]["commit"] is None  # the test's folder is no repository
    assert results["environment"]["threads"] >= 1 and results["environment"]["cpu"]
    assert results["numbers"] == {
        "rl.gold_peak": {
            "value": 1.2111, "low": 1.0511, "high": 1.3711, "level": 0.95, "n": 5,
            "unit": "gold reward", "unit_of_replication": "seed",
        },
        "rl.kl_end": {
            "value": 0.333333, "low": None, "high": None, "level": None, "n": None,
            "unit": "nats", "unit_of_replication": None,
        },
    }  # fmt: skip
    assert results["claims"] == {
        "ppo_beats_sft": {
            "text": "PPO raises the gold reward by +0.47 [0.32, 0.61], to 1.21 [1.05, 1.37].",
            "verdict": "better", "expected": "worse", "met": False, "sanity": True,
        }
    }  # fmt: skip


def test_an_equivalence_keeps_its_margin_in_the_results(book):
    book.state("same", SAME, expect="equivalent", text=SAME_TEXT)
    book.state("ppo_beats_sft", UP, expect="better", text=TEXT)
    written = read(book.write())["claims"]
    assert (written["same"]["verdict"], written["same"]["met"], written["same"]["margin"]) == ("equivalent", True, 0.2)
    assert "margin" not in written["ppo_beats_sft"]


def test_results_go_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("RLHF_LAB_RESULTS", str(tmp_path / "elsewhere"))
    assert results_path("smoke", "00_test") == tmp_path / "elsewhere" / "smoke" / "00_test.json"


def test_a_write_that_fails_leaves_the_old_file(book, monkeypatch):
    path = book.write(seconds=1)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        book.write(seconds=2)
    assert path.read_bytes() == before


def test_stamp_fills_the_times_only(book):
    path = book.write()
    before = read(path)
    stamp(path, seconds=100.0)
    stamp(path, seconds_warm=3.5)
    assert read(path) == before | {"seconds": 100.0, "seconds_warm": 3.5}


def test_broken_results_say_which_file_and_line(tmp_path):
    path = tmp_path / "00_test.json"
    path.write_text('{\n "notebook": ')
    with pytest.raises(ValueError, match=r"00_test.json, line 2: .* delete the file and run its notebook again"):
        read(path)


# --- what fails the build ---


def run_with(verdict, expected="better", sanity=False):
    met = None if verdict == "not decided" else verdict == expected
    claim = {"text": "", "verdict": verdict, "expected": expected, "met": met, "sanity": sanity}
    return {"notebook": "00_test", "seeds": 5, "numbers": {}, "claims": {"c": claim}}


@pytest.mark.parametrize(
    "new, committed, failures",
    [
        (run_with("worse"), run_with("worse"), 0),  # a missed expectation is a finding
        (run_with("better"), run_with("worse"), 1),
        (run_with("worse"), run_with("better"), 1),
        (run_with("inconclusive"), run_with("better"), 0),
        (run_with("different"), run_with("equivalent"), 1),
        (run_with("equivalent"), run_with("different"), 1),
        (run_with("inconclusive"), run_with("equivalent"), 0),
        (run_with("not decided"), run_with("worse"), 0),
        (run_with("better"), None, 0),
        (run_with("fails", "holds", sanity=True), None, 1),
        (run_with("holds", "holds", sanity=True), None, 0),
        (run_with("not decided", "holds", sanity=True), None, 0),
        (run_with("fails", "holds"), run_with("holds", "holds"), 0),
        (run_with("worse", sanity=True), run_with("better"), 2),
    ],
)
def test_check(new, committed, failures):
    found = check(new, committed)
    assert len(found) == failures
    assert all(failure.startswith("00_test: claim 'c' is ") for failure in found)


def test_check_ignores_claims_that_are_new():
    assert check(run_with("better"), run_with("worse") | {"claims": {}}) == []


# --- README ---


README = """# Course
<!-- results:book -->
old
<!-- /results -->
text
<!-- results:00_test --><!-- /results -->
"""
BOOK = """
[[notebook]]
name = "00_test"
title = "Ten minutes"
question = "Does it work | at all?"
part = 0
[[notebook]]
name = "10_later"
title = "Later"
question = "What then?"
part = 1
"""


@pytest.fixture
def readme(root, book):
    book.state("ppo_beats_sft", UP, expect="better", text=TEXT)
    stamp(publish(root, book), seconds=1234.0)
    (root / "book.toml").write_text(BOOK)
    path = root / "README.md"
    path.write_text(README)
    return path


def test_readme_is_rewritten_once(root, readme):
    assert rewrite(readme, tables(root), check=True)
    assert readme.read_text() == README
    assert rewrite(readme, tables(root))
    assert not rewrite(readme, tables(root), check=True)
    assert (
        readme.read_text()
        == """# Course
<!-- results:book -->
| notebook | question | one seed | published, five seeds |
| --- | --- | --- | --- |
| [Ten minutes](notebooks/00_test.ipynb) | Does it work \\| at all? |  | 21 minutes |
| [Later](notebooks/10_later.ipynb) | What then? |  |  |

Comparisons between seeds: 1. Were none of these differences real, about 0.05 of them would still be called \
better or worse by chance.
<!-- /results -->
text
<!-- results:00_test -->
| what | value [95% interval] | n | unit |
| --- | --- | --- | --- |
| `rl.gold_peak` | 1.21 [1.05, 1.37] | 5 seeds | gold reward |

| claim | expected | found | in words |
| --- | --- | --- | --- |
| `ppo_beats_sft` | better | better | PPO raises the gold reward by +0.47 [0.32, 0.61], to 1.21 [1.05, 1.37]. |
<!-- /results -->
"""
    )


def test_errors_by_chance_are_counted_by_kind(root, book):
    one_seed = equivalent([1], [1], margin=1)
    book.state("rule", rule(UP), expect="holds", text=RULE_TEXT)
    book.state("open", one_seed, expect="equivalent", text=SAME_TEXT)
    publish(root, book)
    (root / "book.toml").write_text(BOOK)
    assert tables(root)["book"].endswith("| What then? |  |  |")  # a rule is no comparison, and nothing is decided

    for key, found in {"same": SAME, "not_same": equivalent([1, 2, 3], [3, 2, 1], margin=0.2)}.items():
        book.state(key, found, expect="equivalent", text=SAME_TEXT)
    (root / "results" / "laptop" / "00_test.json").write_bytes(book.write().read_bytes())
    assert "Comparisons" not in tables(root)["book"]
    expected = "Tests of equivalence: 2. Were every difference as large as its margin, at most about 0.05 of them"
    assert expected in tables(root)["book"]

    book.state("up", UP, expect="better", text=TEXT)
    (root / "results" / "laptop" / "00_test.json").write_bytes(book.write().read_bytes())
    assert "Comparisons between seeds: 1. " in tables(root)["book"] and expected in tables(root)["book"]


def test_tables_without_results_still_list_the_book(root):
    (root / "book.toml").write_text(BOOK)
    assert list(tables(root)) == ["book"]
    assert tables(root)["book"].endswith("| What then? |  |  |")


@pytest.mark.parametrize(
    "text, message",
    [
        ("a\n<!-- results:x -->\n<!-- /results -->", "line 2: <!-- results:x --> has no table; there are: book"),
        ("<!-- results:book -->\n", "line 1: <!-- results:book --> is not closed"),
        (
            "<!-- results:book -->\n<!-- results:book --><!-- /results -->",
            "line 1: <!-- results:book --> is not closed",
        ),
        ("a\n\n<!-- /results -->", "line 3: <!-- /results --> closes nothing"),
    ],
)
def test_bad_markers_are_refused(root, text, message):
    with pytest.raises(ValueError, match=message):
        update_markers(text, {"book": "t"})
    (root / "README.md").write_text(text)
    with pytest.raises(ValueError, match=f"README.md, {message}"):
        rewrite(root / "README.md", {"book": "t"})


def test_text_without_markers_stays():
    assert update_markers("plain\n", {}) == "plain\n"


def test_environment_names_this_repository_s_commit_and_versions(monkeypatch):
    monkeypatch.setattr(claims, "ROOT", Path(__file__).parents[1])
    environment = claims.environment()
    assert environment["python"].startswith("3.")
    assert environment["torch"][0].isdigit() and environment["transformers"][0].isdigit()
    assert environment["commit"] is None or int(environment["commit"], 16)  # None in a checkout without git
