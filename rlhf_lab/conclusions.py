"""Does the course come to a source's conclusions? A table: the source's figures, those measured here, and a verdict.

`course/conclusions.toml` has a table for each conclusion. Its numbers come from `course/source_figures.toml` and from
the committed results, and whether the conclusion is the same is decided by the verdict of a claim, by nothing else:

    table()  # Markdown, what `python -m rlhf_lab tables` puts where a page says <!-- results:conclusions -->
"""

import difflib
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from pathlib import Path

from rlhf_lab import ROOT, claims, source_figures
from rlhf_lab.errors import CourseError
from rlhf_lab.source_figures import Figure

PATH = Path("course", "conclusions.toml")  # in the repository
PAGE = Path("docs", "reward_in_the_prompt.md")  # that shows the table
HEADER = ("conclusion of the source", "source", "here", "same conclusion?")
NOT_RUN = "not yet run"
UNDECIDED = (claims.NOT_DECIDED, "inconclusive")
DECIDED = {*claims.COMPARISON_VERDICTS, *claims.EQUIVALENCE_VERDICTS, *claims.RULE_VERDICTS} - set(UNDECIDED)


class ConclusionsError(CourseError, ValueError):
    """A conclusion is not as the head of the file says, or names what is not there. The message is one sentence that
    says where, and the remedy."""


@dataclass(frozen=True)
class Conclusion:
    """One table of the file. What it names is written as "source.figure" and as "NOTEBOOK:key"."""

    conclusion: str
    source: tuple[str, ...]  # figures of the source
    here: tuple[str, ...]  # numbers of the course
    claim: str  # the claim of the course that decides
    same: tuple[str, ...]  # its verdicts that mean the source's conclusion


def table(root: Path = ROOT) -> str:
    """The conclusions of the file, one a row, in Markdown with links that hold in `docs`.

    Raises ConclusionsError for a file that is not as its head says, or for a figure, notebook, number or claim that it
    names and that is not there. A notebook of the book without committed results is no error: it is not yet run.
    """
    figures, runs = source_figures.figures(root / source_figures.PATH), _runs(root)
    rows = [_row(f"{PATH}, [{name}]", entry, figures, runs) for name, entry in read(root / PATH).items()]
    return claims.markdown_table(HEADER, rows)


def read(path: Path) -> dict[str, Conclusion]:
    """The conclusions of a file by their names. Raises ConclusionsError for a file that is not as its head says."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConclusionsError(f"{path} is not there: take it from the repository again.") from None
    except tomllib.TOMLDecodeError as error:
        raise ConclusionsError(f"{path} is no TOML ({error}): mend that line.") from None
    return {name: _conclusion(f"{PATH}, [{name}]", entry) for name, entry in tables.items()}


def _conclusion(place: str, entry: object) -> Conclusion:
    names = [field.name for field in fields(Conclusion)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise ConclusionsError(
            f"{place} does not have the entries {', '.join(names)}, and no others: see the file's head."
        )
    texts = {name: _text(place, name, entry[name]) for name in ("conclusion", "claim")}
    lists = {name: _texts(place, name, entry[name]) for name in ("source", "here", "same")}
    for verdict in lists["same"]:
        _check(place, "'same' may hold no", DECIDED, verdict)
    return Conclusion(**texts, **lists)


def _text(place: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConclusionsError(f"{place} has {name} = {value!r}: write a text there.")
    return value


def _texts(place: str, name: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise ConclusionsError(f"{place} has {name} = {value!r}: write a list of texts there, with one at least.")
    return tuple(_text(place, name, item) for item in value)


# --- what the table refers to ---


def _runs(root: Path) -> dict[str, dict | None]:
    """The committed results of each notebook of the book; None for one without."""
    book = tomllib.loads((root / "book.toml").read_text(encoding="utf-8"))
    paths = {entry["name"]: root / "results" / "laptop" / f"{entry['name']}.json" for entry in book["notebook"]}
    return {name: claims.read(path) if path.exists() else None for name, path in paths.items()}


def _recorded(place: str, runs: Mapping[str, dict | None], reference: str, kind: str) -> dict | None:
    """The entry of "NOTEBOOK:key" among the "numbers" or "claims" of its results; None if it is not yet run."""
    notebook, _, key = reference.partition(":")
    _check(place, "book.toml has no notebook", runs, notebook)
    if runs[notebook] is None:
        return None
    entries = runs[notebook][kind]
    _check(place, f"results/laptop/{notebook}.json has no {kind[:-1]}", entries, key)
    return entries[key]


def _check(place: str, problem: str, known: Collection[str], key: str) -> None:
    if key not in known:
        close = difflib.get_close_matches(key, known, n=3)
        remedy = f"did you mean {' or '.join(close)}?" if close else "mend the name."
        raise ConclusionsError(f"{place}: {problem} {key!r}: {remedy}")


# --- cells ---


def _row(place: str, entry: Conclusion, figures: Mapping[str, Figure], runs: Mapping[str, dict | None]) -> tuple:
    source = [_figure(place, figures, key) for key in entry.source]
    numbers = [_number(place, runs, reference) for reference in entry.here]
    numbers = dict.fromkeys(numbers)  # "not yet run" once, not for every number
    return entry.conclusion, "<br>".join(source), "<br>".join(numbers), _same(place, runs, entry)


def _figure(place: str, figures: Mapping[str, Figure], key: str) -> str:
    """As "`r_joint`: 0.56 [0.50, 0.62]", the interval from the figure of the same name with "_interval" behind it."""
    _check(place, f"{source_figures.PATH} has no figure", figures, key)
    found, interval = figures[key], figures.get(f"{key}_interval")
    values, ends = _values(found), _values(interval) if interval else ()
    decimals = max(map(_decimals, (*values, *ends)))  # of the source: beside .62, .5 is .50
    shown = " to ".join(f"{value:.{decimals}f}" for value in values)
    shown += f" [{', '.join(f'{end:.{decimals}f}' for end in ends)}]" if ends else ""
    how = "" if found.how == "printed" else f" ({found.how.replace('+-', '±')})"
    return f"`{key.partition('.')[2]}`: {shown}{how}"


def _decimals(value: float) -> int:
    return max(0, -Decimal(repr(value)).as_tuple().exponent)


def _values(figure: Figure) -> tuple[float, ...]:
    return figure.value if isinstance(figure.value, tuple) else (figure.value,)


def _number(place: str, runs: Mapping[str, dict | None], reference: str) -> str:
    entry = _recorded(place, runs, reference, "numbers")
    return f"`{reference.partition(':')[2]}`: {claims.formatted(entry)}" if entry else NOT_RUN


def _same(place: str, runs: Mapping[str, dict | None], entry: Conclusion) -> str:
    """Whether the claim has one of the verdicts of `same`, with the verdict and where it was found."""
    claim = _recorded(place, runs, entry.claim, "claims")
    if claim is None:
        return NOT_RUN
    notebook, _, key = entry.claim.partition(":")
    for verdict in entry.same:
        _check(place, f"claim {key!r} of {notebook} never turns out", _reachable(claim), verdict)
    found = claim["verdict"]
    answer = claims.NOT_DECIDED if found in UNDECIDED else "yes" if found in entry.same else "no"
    return f"**{answer}**: `{key}` {found} ([{notebook[:2]}](../notebooks/{notebook}.ipynb))"


def _reachable(claim: Mapping) -> tuple[str, ...]:
    """The verdicts that a recorded claim could have had."""
    if claim["expected"] in claims.RULE_VERDICTS:
        return claims.RULE_VERDICTS
    return claims.EQUIVALENCE_VERDICTS if "margin" in claim else claims.COMPARISON_VERDICTS
