"""Labels by hand: one pair of responses after another, which is better?

A judgment is one line of JSON in a file: the prompt, the `first` and the `second` response in the order in which they
were shown, and which one is `preferred`: "first", "second" or "tie". It is on the disk before the next pair is shown,
and a pair that is in the file is not asked again, so whoever stops, or is stopped, goes on where they were.
"""

import html
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import ipywidgets as widgets

from rlhf_lab.errors import CourseError
from rlhf_lab.tinyhh.annotators import Annotator

BUTTONS = {"first": "The first is better", "second": "The second is better", "tie": "Tie, or skip"}


class LabelsError(CourseError, ValueError):
    """A file of labels cannot be read or written. The message says where, and the remedy."""


class _BrokenLine(LabelsError):
    """A line that is not even JSON: it may have been cut off."""


class Question(NamedTuple):
    """What is asked: which of two responses to a prompt is better? In the order in which they are shown."""

    prompt: str
    first: str
    second: str


class Labels(NamedTuple):
    """What a file of judgments holds."""

    rows: list[dict[str, str]]  # prompt, chosen and rejected
    ties: int  # judgments without a preference; they are no rows
    cut: bool  # whether a last line was left out that had been written by half


class Session:
    """Pairs to be judged, and the file where the judgments go."""

    def __init__(self, pairs: Iterable[tuple[str, str, str]], path: str | Path, seed: int):
        """Pairs are a prompt and two responses; `seed` decides which response is shown first, pair by pair.

        Raises ValueError for a pair of equal responses, and LabelsError for a file that holds no judgments.
        """
        self.path = Path(path)
        self.questions = [_shuffled(Question(*pair), seed) for pair in pairs]
        for number, question in enumerate(self.questions):
            if question.first == question.second:
                raise ValueError(f"Pair {number} has two equal responses: leave it out.")
        judgments = _read(self.path)[0] if self.path.exists() else []
        self._judged = {_identity(Question(j["prompt"], j["first"], j["second"])) for j in judgments}

    @property
    def done(self) -> int:
        """How many of the pairs are judged."""
        return sum(_identity(question) in self._judged for question in self.questions)

    @property
    def question(self) -> Question | None:
        """The next pair to judge; None if there is none left."""
        return next((question for question in self.questions if _identity(question) not in self._judged), None)

    def judge(self, preferred: str) -> None:
        """Write down the judgment of the pair that is asked: "first", "second" or "tie".

        Raises ValueError for another one or where all pairs are judged, and LabelsError where it cannot be written; the
        pair is then asked again.
        """
        question = self.question
        if preferred not in BUTTONS or question is None:
            raise ValueError(f"{preferred!r} answers nothing: say {', '.join(BUTTONS)} while a pair is asked.")
        _append(self.path, question._asdict() | {"preferred": preferred})
        self._judged.add(_identity(question))


def simulate(pairs: Iterable[tuple[str, str, str]], annotator: Annotator, path: str | Path, seed: int) -> None:
    """Have a simulated labeler judge what is left of the pairs, through a session as a person would."""
    session = Session(pairs, path, seed)
    while question := session.question:
        session.judge(annotator.choose(*question, random.Random(f"judgment/{seed}/{question}")))


def read_labels(path: str | Path) -> Labels:
    """The judgments of a file as preference pairs, in the order in which they were made.

    Raises LabelsError, with file, line and remedy, for a file that is not there or a line that is no judgment. A last
    line cut off by a crash is no error: its pair will be asked again.
    """
    judgments, whole, size = _read(Path(path))
    rows = []
    for judgment in judgments:
        sides = judgment["first"], judgment["second"]
        if judgment["preferred"] != "tie":
            chosen, rejected = sides if judgment["preferred"] == "first" else sides[::-1]
            rows.append({"prompt": judgment["prompt"], "chosen": chosen, "rejected": rejected})
    return Labels(rows, ties=len(judgments) - len(rows), cut=whole < size)


# What people see -----------------------------------------------------------------------------------------------------


class Interface(widgets.VBox):
    """The pair that is asked, a button for each answer, and how far one has come. Let it stand last in a cell."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        self.progress = widgets.IntProgress(max=len(session.questions), description="judged")
        self.text, self.message = widgets.HTML(), widgets.HTML()
        self.buttons = {answer: widgets.Button(description=label) for answer, label in BUTTONS.items()}
        for answer, button in self.buttons.items():
            button.layout.width = "14em"
            button.on_click(lambda _, answer=answer: self._judge(answer))
        self.children = [self.progress, self.text, widgets.HBox(list(self.buttons.values())), self.message]
        self._refresh()

    def _judge(self, answer: str) -> None:
        self.message.value = ""
        try:
            self.session.judge(answer)
        except LabelsError as error:
            self.message.value = f"<b>{html.escape(str(error))}</b>"
        self._refresh()

    def _refresh(self) -> None:
        question, done = self.session.question, self.session.done
        self.progress.value = done
        self.progress.bar_style = "" if question else "success"
        self.text.value = (
            as_html(question) if question else f"All {done} pairs are judged. Thank you: run the next cell."
        )
        for button in self.buttons.values():
            button.disabled = question is None


def as_html(question: Question) -> str:
    """The prompt, and both responses side by side, as HTML; the texts are escaped."""
    text = "white-space: pre-wrap; line-height: 1.4; font-family: inherit"
    cells = "".join(
        f'<td style="width: 50%; vertical-align: top; text-align: left; padding: 0.5em; border: 1px solid gray">'
        f'<b>{title}</b><div style="{text}">{html.escape(response.strip())}</div></td>'
        for title, response in (("First", question.first), ("Second", question.second))
    )
    prompt = f'<div style="{text}">{html.escape(question.prompt.strip())}</div>'
    return f'{prompt}<table style="width: 100%; border-collapse: collapse"><tr>{cells}</tr></table>'


# Files ---------------------------------------------------------------------------------------------------------------


def _read(path: Path) -> tuple[list[dict], int, int]:
    """The judgments, the length in bytes of the file without a last line that was cut off, and its whole length."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise LabelsError(f"There is no file {path}: judge some pairs first, or mend its name.") from None
    except OSError as error:
        raise LabelsError(f"{path} cannot be read ({error.strerror}): check its name and permissions.") from None
    lines, judgments = content.split(b"\n"), []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                judgments.append(_parse(line, f"{path}, line {number},"))
        except _BrokenLine:
            if number < len(lines):
                raise
            return judgments, len(content) - len(line), len(content)  # no newline follows: cut off while written
    return judgments, len(content), len(content)


def _parse(line: bytes, where: str) -> dict:
    try:
        judgment = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        raise _BrokenLine(f"{where} is not UTF-8 text: save the file in that encoding.") from None
    except json.JSONDecodeError as error:
        raise _BrokenLine(f"{where} is broken JSON ({error.msg}, column {error.colno}): mend or delete it.") from None
    columns = (*Question._fields, "preferred")
    if not isinstance(judgment, dict) or not all(isinstance(judgment.get(column), str) for column in columns):
        raise LabelsError(f"{where} is no judgment: write texts for {', '.join(columns)}, or delete it.")
    if judgment["preferred"] not in BUTTONS:
        raise LabelsError(f"{where} prefers {judgment['preferred']!r}: write {', '.join(BUTTONS)}, or delete it.")
    return judgment


def _append(path: Path, judgment: dict) -> None:
    """One more line, on the disk when this returns; a last line that was cut off makes room."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        whole = _read(path)[1]
        with open(path, "r+b") as file:
            file.truncate(whole)
            file.seek(max(0, whole - 1))
            newline = b"" if file.read(1) in (b"", b"\n") else b"\n"
            file.write(newline + json.dumps(judgment).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise LabelsError(f"{path} cannot be written ({error.strerror}), so this was not kept: make room.") from None


def _shuffled(question: Question, seed: int) -> Question:
    turned = random.Random(f"order/{seed}/{question}").random() < 0.5
    return Question(question.prompt, question.second, question.first) if turned else question


def _identity(question: Question) -> tuple[str, frozenset[str]]:
    """What makes two questions the same: prompt and responses, in whichever order they are shown."""
    return question.prompt, frozenset((question.first, question.second))
