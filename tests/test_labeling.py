"""What people rely on: nothing judged is lost, nothing is asked twice, and a file says what was judged."""

import json
import subprocess
import sys

import pytest
from scipy import stats

from rlhf_lab.errors import CourseError
from rlhf_lab.labeling import Interface, LabelsError, Question, Session, as_html, read_labels, simulate
from rlhf_lab.tinyhh import generator
from rlhf_lab.tinyhh.annotators import Annotator

PAIRS = [(f"\n\nHuman: question {i}?\n\nAssistant:", f" answer {i}.", f" another answer {i}.") for i in range(6)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "build" / "mine.jsonl"


def judge(path, *answers, pairs=PAIRS, seed=0) -> list[Question]:
    """Judge the next pairs in a session of its own; the questions that were asked."""
    session, asked = Session(pairs, path, seed), []
    for answer in answers:
        asked.append(session.question)
        session.judge(answer)
    return asked


def written(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- a session ---


def test_a_judgment_is_one_line_with_both_responses_as_they_were_shown(path):
    asked = judge(path, "first", "tie", "second")
    answers = ("first", "tie", "second")
    assert written(path) == [q._asdict() | {"preferred": a} for q, a in zip(asked, answers, strict=True)]


def test_each_judgment_is_in_the_file_before_the_next_question(path):
    session = Session(PAIRS, path, seed=0)
    for count in range(1, 4):
        session.judge("first")
        assert len(written(path)) == count


def test_no_judgment_is_lost_when_the_process_is_killed(path):
    program = f"""
import os, signal
from rlhf_lab.labeling import Session
session = Session({PAIRS!r}, {str(path)!r}, seed=0)
session.judge("first"); session.judge("tie")
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    assert [judgment["preferred"] for judgment in written(path)] == ["first", "tie"]
    assert Session(PAIRS, path, seed=0).done == 2


def test_a_session_goes_on_where_another_stopped(path):
    before = judge(path, "first", "second")
    session = Session(PAIRS, path, seed=0)
    assert session.done == 2
    after = judge(path, *["tie"] * 4)
    assert {q.prompt for q in before} | {q.prompt for q in after} == {prompt for prompt, _, _ in PAIRS}
    assert Session(PAIRS, path, seed=0).question is None
    assert before + after == judge(path.with_name("at_once.jsonl"), *["tie"] * 6)


def test_a_judged_pair_is_not_asked_again_whatever_its_order_and_the_seed(path):
    judge(path, "first", "first")
    turned = [(prompt, b, a) for prompt, a, b in PAIRS]
    assert Session(turned, path, seed=7).done == 2
    assert Session(turned[:2], path, seed=7).question is None


def test_the_same_answers_to_another_prompt_are_another_pair(path):
    pairs = [(prompt, " yes", " no") for prompt, _, _ in PAIRS]
    assert len({question.prompt for question in judge(path, *["first"] * 6, pairs=pairs)}) == 6


def test_judgments_of_other_pairs_are_kept_and_not_counted(path):
    judge(path, "first", "first", pairs=PAIRS[:2])
    session = Session(PAIRS[2:], path, seed=0)
    assert session.done == 0
    session.judge("second")
    assert len(written(path)) == 3


def test_which_response_is_shown_first_is_random_and_depends_on_the_seed_alone(path):
    pairs = [(f"prompt {i}", "a", "b") for i in range(400)]
    orders = [[q.first == "a" for q in Session(pairs, path, seed).questions] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert stats.binomtest(sum(orders[0]), 400).pvalue > 1e-3
    assert stats.binomtest(sum(a == b for a, b in zip(orders[0], orders[2], strict=True)), 400).pvalue > 1e-3


@pytest.mark.parametrize("answer", ["chosen", "", "First"])
def test_only_the_three_answers_count(path, answer):
    with pytest.raises(ValueError, match="answers nothing: say first, second, tie"):
        judge(path, answer)
    assert not path.exists()


def test_when_all_is_judged_no_answer_is_taken(path):
    session = Session(PAIRS[:1], path, seed=0)
    session.judge("first")
    with pytest.raises(ValueError, match="while a pair is asked"):
        session.judge("first")
    assert len(written(path)) == 1


def test_equal_responses_are_not_asked(path):
    with pytest.raises(ValueError, match="Pair 1 has two equal responses: leave it out"):
        Session([PAIRS[0], ("p", "same", "same")], path, seed=0)


# --- reading ---


def test_labels_are_rows_of_chosen_and_rejected_and_ties_are_counted(path):
    asked = judge(path, "first", "tie", "second")
    rows, ties, cut = read_labels(path)
    assert rows == [
        {"prompt": asked[0].prompt, "chosen": asked[0].first, "rejected": asked[0].second},
        {"prompt": asked[2].prompt, "chosen": asked[2].second, "rejected": asked[2].first},
    ]
    assert (ties, cut) == (1, False)


def test_any_text_survives(path):
    odd = [('\n\nHuman: Ünïcode "quotes"\t\u2028?', " {braces}\n\n and lines", " \U0001f600 \\n </td> \x00 \ud800")]
    asked = judge(path, "second", pairs=odd)
    assert read_labels(path).rows == [{"prompt": odd[0][0], "chosen": asked[0].second, "rejected": asked[0].first}]
    assert Session(odd, path, seed=0).question is None


@pytest.mark.parametrize("kept", range(1, 12))
def test_a_line_cut_off_at_any_place_is_left_out_and_its_pair_asked_again(path, kept):
    asked = judge(path, "first", "second")
    first, second = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second[: kept * len(second) // 12])
    assert [row["prompt"] for row in read_labels(path).rows] == [asked[0].prompt]
    assert read_labels(path).cut
    assert judge(path, "tie")[0] == asked[1]
    assert [judgment["preferred"] for judgment in written(path)] == ["first", "tie"]


def test_a_cut_line_longer_than_the_next_judgment_leaves_nothing_behind(path):
    judge(path, "first")
    judge(path, "first", pairs=[("p", "long " * 100, "longer " * 100)])
    path.write_bytes(path.read_bytes()[:-20])
    judge(path, "second")
    assert [judgment["preferred"] for judgment in written(path)] == ["first", "second"]


def test_a_missing_last_newline_costs_nothing(path):
    judge(path, "first", "second")
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert len(read_labels(path).rows) == 2
    assert not read_labels(path).cut
    judge(path, "tie")
    assert [judgment["preferred"] for judgment in written(path)] == ["first", "second", "tie"]


def test_blank_lines_and_windows_line_ends_do_not_matter(path):
    judge(path, "first", "second")
    path.write_bytes(b"\n" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(read_labels(path).rows) == 2
    judge(path, "tie")
    assert read_labels(path).ties == 1


GOOD = '{"prompt": "p", "first": "a", "second": "b", "preferred": "first"}'


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"prompt": "p", "first"', r"line 2, is broken JSON \(.*column 24\): mend or delete it"),
        ("[1, 2]", "line 2, is no judgment: write texts for prompt, first, second, preferred, or delete it"),
        (GOOD.replace('"a"', "3"), "line 2, is no judgment"),
        (GOOD.replace("prompt", "query"), "line 2, is no judgment"),
        (GOOD.replace('"first"}', '"a"}'), "line 2, prefers 'a': write first, second, tie, or delete it"),
        ("\udcff", "line 2, is not UTF-8 text: save the file in that encoding"),
    ],
)
def test_a_bad_line_gets_one_sentence_with_file_line_and_remedy(path, line, message):
    path.parent.mkdir()
    path.write_bytes(f"{GOOD}\n{line}\n{GOOD}\n".encode(errors="surrogateescape"))
    for read in (read_labels, lambda p: Session(PAIRS, p, seed=0)):
        with pytest.raises(CourseError, match=message) as error:
            read(path)
        assert str(path) in str(error.value)
        assert str(error.value).endswith(".")


def test_a_last_line_that_is_whole_but_no_judgment_is_not_taken_for_one_cut_off(path):
    path.parent.mkdir()
    path.write_text(f'{GOOD}\n{{"prompt": "p"}}')
    with pytest.raises(LabelsError, match="line 2, is no judgment"):
        read_labels(path)


def test_a_file_that_is_not_there_gets_a_sentence(path):
    with pytest.raises(LabelsError, match="There is no file .*mine.jsonl: judge some pairs first"):
        read_labels(path)


# --- simulated labelers ---


def test_a_simulated_labeler_writes_what_a_person_with_the_same_verdicts_would(path):
    pairs = [(p.prompt, p.first, p.second) for p in generator.comparisons("helpful-base", "train", 20, 100)]
    never_errs = Annotator(skill=1e6, length_bias=1e-3)
    simulate(pairs, never_errs, path, seed=3)
    session = Session(pairs, path.with_name("person.jsonl"), seed=3)
    while q := session.question:
        better = never_errs.utility(q.prompt, q.first) > never_errs.utility(q.prompt, q.second)
        session.judge("first" if better else "second")
    assert path.read_bytes() == session.path.read_bytes()


def test_simulated_labelers_go_on_as_if_they_had_not_been_interrupted(path):
    pairs = [(p.prompt, p.first, p.second) for p in generator.comparisons("helpful-base", "train", 12, 101)]
    labeler, whole = Annotator(tie_propensity=1.0), path.with_name("whole.jsonl")
    simulate(pairs, labeler, whole, seed=0)
    simulate(pairs[:5], labeler, path, seed=0)
    simulate(pairs, labeler, path, seed=0)
    assert path.read_bytes() == whole.read_bytes()
    assert read_labels(path).ties > 0


def test_simulated_labelers_err_as_often_as_they_should(path):
    pairs = [("\n\nHuman: hm?\n\nAssistant:", " a", f" b {i}") for i in range(200)]
    simulate(pairs, Annotator(skill=0.0, position_bias=1.0), path, seed=0)
    firsts = sum(judgment["preferred"] == "first" for judgment in written(path))
    assert stats.binomtest(firsts, 200, 1 / (1 + 2.718281828**-1)).pvalue > 1e-3


# --- the interface ---


def test_clicks_are_judgments_of_what_is_shown(path):
    interface = Interface(Session(PAIRS, path, seed=0))
    for answer in ("first", "second", "tie"):
        shown = interface.session.question
        assert shown.prompt.strip() in interface.text.value
        assert interface.text.value.index(shown.first.strip()) < interface.text.value.index(shown.second.strip())
        interface.buttons[answer].click()
        assert written(path)[-1] == shown._asdict() | {"preferred": answer}
    assert interface.progress.value == 3
    assert interface.progress.max == len(PAIRS)


def test_at_the_end_the_buttons_rest(path):
    interface = Interface(Session(PAIRS, path, seed=0))
    for _ in PAIRS:
        assert not interface.buttons["tie"].disabled
        interface.buttons["tie"].click()
    assert all(button.disabled for button in interface.buttons.values())
    assert "All 6 pairs are judged" in interface.text.value
    assert Interface(Session(PAIRS, path, seed=0)).buttons["first"].disabled


def test_texts_cannot_become_html(path):
    attack = "<script>alert(1)</script> & <b>bold</b>"
    shown = as_html(Question(attack, attack + "1", attack + "2"))
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;alert(1)&lt;/script&gt; &amp; &lt;b&gt;bold&lt;/b&gt;") == 3
    assert "<script" not in Interface(Session([(attack, attack + "1", attack + "2")], path, seed=0)).text.value


def test_where_nothing_can_be_written_the_person_is_told_and_asked_again(path):
    interface = Interface(Session(PAIRS, path, seed=0))
    path.parent.mkdir()
    path.mkdir()  # a folder in the file's place
    shown = interface.text.value
    interface.buttons["first"].click()
    assert "mine.jsonl cannot be" in interface.message.value
    assert interface.text.value == shown
    path.rmdir()
    interface.buttons["first"].click()
    assert interface.message.value == ""
    assert interface.progress.value == 1
