"""What the sources report: figures to stand beside our own, each with its place and how it was read.

They are kept in `course/source_figures.toml`, never in code or prose. A notebook shows them in a table, or in a figure:

    figure("reward_in_the_prompt.accuracy_helpful")  # Figure(value=0.721, source=..., where=..., how="printed")
"""

import difflib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rlhf_lab import ROOT
from rlhf_lab.errors import CourseError

PATH = Path("course", "source_figures.toml")  # in the repository
HOW = re.compile(r"printed|recomputed|read off, \+-\d+(\.\d+)?")


class SourceFiguresError(CourseError, ValueError):
    """The file of figures is not as it should be. The message is one sentence that says where, and the remedy."""


@dataclass(frozen=True)
class Figure:
    """A number, or the ends of a range, that a source reports; `where` is its place there, `how` how it was read:
    "printed", "read off, +-E" a diagram by eye, or "recomputed" from printed numbers."""

    value: float | tuple[float, ...]
    source: str
    where: str
    how: str


def figure(key: str) -> Figure:
    """The figure "source.name". Raises ValueError for an unknown key, with those that are close."""
    known = figures(ROOT / PATH)
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else f"enter it, or take one of {', '.join(known)}."
        raise ValueError(f"{PATH} has no figure {key!r}: {remedy}")
    return known[key]


@cache
def figures(path: Path) -> dict[str, Figure]:
    """All figures of a file by their keys. Raises SourceFiguresError for a file that is not as its head says."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceFiguresError(f"{path} is not there: take it from the repository again.") from None
    except tomllib.TOMLDecodeError as error:
        raise SourceFiguresError(f"{path} is no TOML ({error}): mend that line.") from None
    return {
        f"{name}.{entry}": _figure(f"{path}, [{name}.{entry}]", table[entry], source)
        for name, table in tables.items()
        for source in [_text(f"{path}, [{name}]", table, "source")]
        for entry in table
        if entry != "source"
    }


def _figure(place: str, entry: object, source: str) -> Figure:
    if not isinstance(entry, dict):
        raise SourceFiguresError(f"{place} is no table: give it a value, where and how.")
    if unknown := sorted(set(entry) - {"value", "where", "how"}):
        raise SourceFiguresError(f"{place} has {', '.join(unknown)}, which means nothing here: remove it.")
    how = _text(place, entry, "how")
    if not HOW.fullmatch(how):
        raise SourceFiguresError(f"{place} has how = {how!r}: write 'printed', 'recomputed' or 'read off, +-0.01'.")
    return Figure(_value(place, entry), source, _text(place, entry, "where"), how)


def _text(place: str, table: object, field: str) -> str:
    text = table.get(field) if isinstance(table, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise SourceFiguresError(f"{place} has no text {field!r}: say it, as the head of the file explains.")
    return text


def _value(place: str, entry: dict) -> float | tuple[float, ...]:
    value = entry.get("value")
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise SourceFiguresError(f"{place} has value = {value!r}: write a number, or a list of numbers.")
    return tuple(value) if isinstance(value, list) else value
