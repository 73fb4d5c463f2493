"""Numbers and claims: recorded by a notebook, rendered into its prose, written to `results/`, shown in pages.

    book = Claims("00_rlhf_in_ten_minutes", profile="laptop", seeds=5)
    book.number("rl.gold_peak", t_interval(peaks), unit="gold reward")
    book.state("ppo_beats_sft", better(gold_ppo, gold_sft), expect="better",
               text={"better": "PPO raises the gold reward by {difference}, to {rl.gold_peak}.",
                     "inconclusive": "...", "worse": "..."})
    book.show("ppo_beats_sft")
    book.write()

A template holds {difference} (of a comparison), {margin} (of an equivalence, whose every template has to name it) and
{key} of any number recorded before it. All of a claim's templates are checked at once, so that a run with an unexpected
verdict cannot stop at a misspelled key.
"""

import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
import tomllib
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path

from IPython.display import Markdown

from rlhf_lab import ROOT, files
from rlhf_lab.statistics import Comparison, Interval

LEVEL = 0.95  # of every interval in the tables
COMPARISON_VERDICTS = ("better", "inconclusive", "worse")
EQUIVALENCE_VERDICTS = ("equivalent", "inconclusive", "different")
RULE_VERDICTS = ("holds", "fails")
OPPOSITES = ({"better", "worse"}, {"equivalent", "different"})
NOT_DECIDED = "not decided"

KEY = re.compile(r"[a-z][a-z0-9_]*(\.[a-z0-9_]+)*")
PLACEHOLDER = re.compile(r"(?<![\w^}])\{(" + KEY.pattern + r")\}")  # LaTeX's braces follow a command, _, ^ or }
MARKER = re.compile(r"<!-- (?:results:(?P<name>\S+)|/results) -->")


class Claims:
    """What one run of one notebook measured and found."""

    def __init__(self, notebook: str, profile: str, seeds: int):
        self.notebook, self.profile, self.seeds = notebook, profile, seeds
        self.numbers: dict[str, dict] = {}  # key -> its entry in the results file
        self.claims: dict[str, dict] = {}

    def number(self, key: str, value: Interval | float, unit: str) -> None:
        """Record a number, with its interval if it has one; `unit` is what it is measured in ("gold reward").

        Recording a key again replaces it. Raises ValueError for a value that is not finite, an interval of a level
        other than 95 %, a badly formed key, or an accuracy before the audit that puts it in proportion: the last part
        of `accuracy.<model>.<testset>` names the pairs, and what length alone is right on there stands beside it.
        """
        self._check_key(key, self.claims)
        if key.startswith("accuracy."):
            audit = "audit.longer_wins." + key.rpartition(".")[2]
            if audit not in self.numbers:
                raise ValueError(f"An accuracy means little alone: record {audit!r} before {key!r}.")
        if not isinstance(value, Interval):
            value = Interval(value, None, None, None, None, None)
        elif value.level != LEVEL:
            raise ValueError(f"{key!r} has a {value.level:.0%} interval; the course reports {LEVEL:.0%} intervals.")
        self.numbers[key] = {
            "value": _plain(key, value.value),
            "low": None if value.low is None else _plain(key, value.low),
            "high": None if value.high is None else _plain(key, value.high),
            "level": value.level,
            "n": value.n,
            "unit": unit,
            "unit_of_replication": value.unit,
        }

    def state(
        self, key: str, found: Comparison | str, expect: str, text: Mapping[str, str], sanity: bool = False
    ) -> None:
        """Record what was found about a hypothesis: a `Comparison`, or the verdict of a `rule`.

        `expect` is the verdict expected beforehand; `text` maps each verdict that could have come out to its sentence.
        `sanity=True` marks an identity or oracle, whose miss fails the build. Raises ValueError for a missing or
        unknown verdict, for a template that names a number not recorded yet, or for one of an equivalence that does not
        name its margin.
        """
        self._check_key(key, self.numbers)
        comparison = found if isinstance(found, Comparison) else None
        verdict, reachable = comparison.verdict if comparison else found, _reachable(found)
        if verdict not in (*reachable, NOT_DECIDED):
            raise ValueError(
                f"Claim {key!r} got {found!r}: pass the Comparison of better() or of equivalent(), or the verdict of "
                "rule()."
            )
        for name in reachable:
            if name not in text:
                raise ValueError(f"Claim {key!r} could turn out {name!r}, but has no text for it: add one.")
            if reachable == EQUIVALENCE_VERDICTS and "{margin}" not in text[name]:
                raise ValueError(
                    f"The text of claim {key!r} for {name!r} does not say the same within what: add {{margin}}."
                )
        for name in (*text, expect):
            if name not in reachable:
                raise ValueError(f"Claim {key!r} cannot turn out {name!r}, only one of {', '.join(reachable)}.")
        rendered = {name: self._fill(key, template, comparison) for name, template in text.items()}
        self.claims[key] = {
            "text": rendered.get(verdict, _undecided(key, comparison)),
            "verdict": verdict,
            "expected": expect,
            "met": None if verdict == NOT_DECIDED else verdict == expect,
            "sanity": sanity,
        }
        if reachable == EQUIVALENCE_VERDICTS:
            self.claims[key]["margin"] = comparison.margin

    def show(self, *keys: str) -> Markdown:
        """The numbers and claims of these keys as Markdown, to stand last in a cell; without keys, all claims."""
        committed = published(self.notebook)
        return Markdown("\n\n".join(self._shown(key, committed) for key in keys or self.claims))

    def table(self, *keys: str) -> Markdown:
        """The numbers of these keys as a table; without keys, all numbers."""
        return Markdown(_numbers_table({key: self._number(key) for key in keys or self.numbers}))

    def duration(self) -> Markdown:
        """How long this notebook takes, from the committed results, as a sentence."""
        run = published(self.notebook)
        if not run or not run.get("seconds_one_seed"):
            return Markdown("Not measured yet: the published results are missing.")
        warm = f", {run['seconds_warm']:.0f} seconds once it is" if run["seconds_warm"] else ""
        return Markdown(
            f"About {_minutes(run['seconds_one_seed'])} with one seed and {_minutes(run['seconds'])} with the "
            f"{run['seeds']} seeds of the published results, everything trained from nothing{warm}. "
            f"Measured on: {run['environment']['cpu']}."
        )

    def write(self, seconds: float | None = None, seconds_warm: float | None = None) -> Path:
        """Write the results file, whole or not at all, and return its path.

        `seconds` is the wall time of a cold run, with everything trained from nothing; `seconds_warm` of one that
        found the artefacts. A notebook does not know its own times and memory: `stamp` fills them in after the run.
        """
        path = results_path(self.profile, self.notebook)
        _write(
            path,
            {
                "notebook": self.notebook,
                "profile": self.profile,
                "seeds": self.seeds,
                "seconds": seconds,
                "seconds_warm": seconds_warm,
                "seconds_one_seed": None,
                "peak_mb": None,
                "environment": environment(),
                "numbers": self.numbers,
                "claims": self.claims,
            },
        )
        return path

    def _check_key(self, key: str, others: Mapping) -> None:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key: use lower-case words joined by '_' and '.', such as 'rl.gold_peak'.")
        if key in others:
            raise ValueError(f"{key!r} is taken: a number and a claim cannot share a key.")

    def _number(self, key: str) -> dict:
        if key not in self.numbers:
            raise ValueError(f"No number {key!r} is recorded; there are: {', '.join(self.numbers) or 'none'}.")
        return self.numbers[key]

    def _fill(self, claim: str, template: str, comparison: Comparison | None) -> str:
        """The template with its placeholders replaced; str.format would read the dots of keys as attributes."""

        def replacement(match: re.Match) -> str:
            key = match[1]
            if key == "difference" and comparison:
                return _difference(comparison)
            if key == "margin" and comparison and comparison.margin is not None:
                return f"{comparison.margin:g}"
            if key not in self.numbers:
                raise ValueError(f"The text of claim {claim!r} names {{{key}}}: record that number before the claim.")
            return formatted(self.numbers[key])

        return PLACEHOLDER.sub(replacement, template)

    def _shown(self, key: str, committed: dict | None) -> str:
        if key not in self.claims:
            return _number_line(key, self._number(key))
        claim = self.claims[key]
        if claim["verdict"] == NOT_DECIDED:
            return f"{claim['text']}{_published_claim(key, committed)} <small>Expected: {claim['expected']}.</small>"
        if claim["met"]:
            return f"{claim['text']} <small>Expected: {claim['expected']}; found: {claim['verdict']}.</small>"
        return f"{claim['text']} **Expected {claim['expected']}, found {claim['verdict']}.**"


# --- results files ---


def results_path(profile: str, notebook: str) -> Path:
    """Where a run writes its results: under $RLHF_LAB_RESULTS, by default build/results."""
    return Path(os.environ.get("RLHF_LAB_RESULTS") or ROOT / "build" / "results") / profile / f"{notebook}.json"


def published(notebook: str) -> dict | None:
    """The committed results of a notebook, if there are any."""
    path = ROOT / "results" / "laptop" / f"{notebook}.json"
    return read(path) if path.exists() else None


def read(path: Path) -> dict:
    """A results file as a dict. Raises ValueError if it holds no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {error.lineno}: this is not JSON ({error.msg}); delete the file and run its notebook again."
        ) from None


def stamp(path: Path, **measured: float | None) -> None:
    """Fill what a finished run has cost into its results file: `seconds`, `seconds_warm`, `peak_mb`; what is left out
    or None keeps what stands there."""
    _write(path, read(path) | {key: value for key, value in measured.items() if value is not None})


def check(results: dict, committed: dict | None) -> list[str]:
    """What must fail the build, one sentence each: a missed sanity claim, or a verdict that is the committed one's
    opposite. A missed expectation is no failure: it is a finding.
    """
    failures = []
    before = committed["claims"] if committed else {}
    for key, claim in results["claims"].items():
        name = f"{results['notebook']}: claim {key!r}"
        if claim["sanity"] and claim["met"] is False:
            failures.append(f"{name} is a sanity check and {claim['verdict']} (expected {claim['expected']}).")
        if {claim["verdict"], before.get(key, claim)["verdict"]} in OPPOSITES:
            failures.append(f"{name} is {claim['verdict']}, but the committed result says {before[key]['verdict']}.")
    return failures


def environment() -> dict:
    """What a run ran on: versions, CPU, threads, commit (None where unknown)."""
    import torch  # here, since tables and markers need no torch and its import takes seconds

    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "transformers", "trl")},
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "commit": _commit(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    """The CPU's name; Linux keeps it in a file that the platform module does not read."""
    info = Path("/proc/cpuinfo")
    name = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return name[1].strip() if name else platform.processor() or platform.machine()


def _commit() -> str | None:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None


def _write(path: Path, results: dict) -> None:
    files.write(path, json.dumps(_rounded(results), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _minutes(seconds: float) -> str:
    count = max(1, round(seconds / 60))
    return f"{count} minute{'s' if count > 1 else ''}"


def _plain(key: str, value: Real) -> int | float:
    """A finite Python number from any real one, numpy's too; an int stays an int, and is shown as one."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{key!r} must be a number or an Interval, but got {value!r}.")
    if not math.isfinite(value):
        raise ValueError(f"{key!r} is {value}: only finite numbers are recorded.")
    return int(value) if isinstance(value, Integral) else float(value)


def _rounded(value):
    """Floats to 6 significant digits, all the way down: more would differ between machines."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


# --- Markdown ---


def formatted(entry: Mapping, signed: bool = False) -> str:
    """As "1.21 [1.05, 1.37]", with as many decimals as give half the interval's width two digits."""
    value, low, high = entry["value"], entry["low"], entry["high"]
    if low is None or low == high:
        return _significant(value, signed)
    decimals = min(6, max(0, 1 - math.floor(math.log10((high - low) / 2))))
    plus = "+" if signed else ""
    return f"{value:{plus}z,.{decimals}f} [{low:z,.{decimals}f}, {high:z,.{decimals}f}]"


def _significant(value: float, signed: bool) -> str:
    """Three significant digits, without an exponent where people would not use one."""
    plus = "+" if signed else ""
    if isinstance(value, int):
        return f"{value:{plus},}"
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:{plus}.3g}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 2
    return f"{value:{plus}z,.{decimals}f}"


def _difference(comparison: Comparison) -> str:
    return formatted(vars(comparison.difference), signed=True)


def _reachable(found: Comparison | str) -> tuple[str, ...]:
    """The verdicts that a claim of this kind can have, but for "not decided"."""
    if not isinstance(found, Comparison):
        return RULE_VERDICTS
    return COMPARISON_VERDICTS if found.margin is None else EQUIVALENCE_VERDICTS


def _undecided(key: str, comparison: Comparison | None) -> str:
    text = f"`{key}` is not decided: one seed gives no interval"
    if comparison is None:
        return f"{text}."
    margin = "" if comparison.margin is None else f", margin {comparison.margin:g}"
    return f"{text} (difference {_difference(comparison)}{margin})."


def _replications(entry: Mapping) -> str:
    """As "5 seeds"; nothing for a number without replications."""
    if entry["n"] is None:
        return ""
    return f"{entry['n']:,} {entry['unit_of_replication']}{'s' if entry['n'] > 1 else ''}"


def _number_line(key: str, entry: Mapping) -> str:
    replications = _replications(entry)
    if replications and entry["low"] is not None:
        replications = f"{LEVEL:.0%} interval over {replications}"
    note = f" <small>({replications})</small>" if replications else ""
    return f"`{key}`: {formatted(entry)} {entry['unit']}{note}"


def _published_claim(key: str, committed: dict | None) -> str:
    claim = committed["claims"].get(key) if committed else None
    if not claim or claim["verdict"] == NOT_DECIDED:
        return ""
    return f" The published run ({committed['seeds']} seeds) found *{claim['verdict']}*: {claim['text']}"


def markdown_table(header: tuple, rows: list[tuple]) -> str:
    """A table of cells of one line each, as they are but for "|"."""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _numbers_table(numbers: Mapping[str, Mapping]) -> str:
    rows = [(f"`{key}`", formatted(entry), _replications(entry), entry["unit"]) for key, entry in numbers.items()]
    return markdown_table(("what", f"value [{LEVEL:.0%} interval]", "n", "unit"), rows)


def render_table(results: dict) -> str:
    """The numbers of one results file, then its claims, as two Markdown tables."""
    rows = [(f"`{key}`", c["expected"], c["verdict"], c["text"]) for key, c in results["claims"].items()]
    claims = markdown_table(("claim", "expected", "found", "in words"), rows) if rows else ""
    numbers = _numbers_table(results["numbers"]) if results["numbers"] else ""
    return "\n\n".join(filter(None, (numbers, claims)))


def book_table(notebooks: list[dict], results: Mapping[str, dict]) -> str:
    """Notebook -> question -> minutes, and how many verdicts of the book chance alone could account for."""
    rows = []
    for notebook in notebooks:
        run = results.get(notebook["name"], {})
        times = [_minutes(run[key]) if run.get(key) else "" for key in ("seconds_one_seed", "seconds")]
        rows.append((f"[{notebook['title']}](notebooks/{notebook['name']}.ipynb)", notebook["question"], *times))
    table = markdown_table(("notebook", "question", "one seed", "published, five seeds"), rows)
    decided = [
        claim
        for run in results.values()
        for claim in run["claims"].values()
        if claim["verdict"] not in (NOT_DECIDED, *RULE_VERDICTS)
    ]
    equivalences = sum("margin" in claim for claim in decided)
    return "\n\n".join((table, *_errors_by_chance(len(decided) - equivalences, equivalences)))


def _errors_by_chance(compared: int, equivalences: int) -> list[str]:
    """How many of so many comparisons chance alone would decide wrongly, in a sentence or two."""
    sentences = []
    if compared:
        sentences.append(
            f"Comparisons between seeds: {compared}. Were none of these differences real, about "
            f"{(1 - LEVEL) * compared:.2g} of them would still be called better or worse by chance."
        )
    if equivalences:
        sentences.append(
            f"Tests of equivalence: {equivalences}. Were every difference as large as its margin, at most about "
            f"{(1 - LEVEL) / 2 * equivalences:.2g} of them would still be called equivalent by chance."
        )
    return sentences


def tables(root: Path = ROOT) -> dict[str, str]:
    """Every table that a marker may name: "book", and one for each notebook with committed results."""
    results = {path.stem: read(path) for path in sorted((root / "results" / "laptop").glob("*.json"))}
    book = tomllib.loads((root / "book.toml").read_text(encoding="utf-8"))
    return {"book": book_table(book["notebook"], results)} | {name: render_table(run) for name, run in results.items()}


def update_markers(text: str, tables: Mapping[str, str]) -> str:
    """The text with what stands between `<!-- results:NAME -->` and `<!-- /results -->` replaced by tables[NAME].

    Raises ValueError for a NAME without a table, a marker that is not closed, or a closing one that opens nothing.
    """
    pieces, end, opened = [], 0, None
    for marker in MARKER.finditer(text):
        if marker["name"] and opened or not marker["name"] and not opened:
            raise ValueError(_unpaired(text, opened or marker))
        if marker["name"]:
            if marker["name"] not in tables:
                known = ", ".join(sorted(tables)) or "none"
                raise ValueError(f"{_place(text, marker)} has no table; there are: {known}.")
            pieces.append(text[end : marker.end()])
            opened = marker
        else:
            pieces.append(f"\n{tables[opened['name']]}\n")
            opened, end = None, marker.start()
    if opened:
        raise ValueError(_unpaired(text, opened))
    return "".join(pieces) + text[end:]


def rewrite(path: Path, tables: Mapping[str, str], check: bool = False) -> bool:
    """Bring the tables of a page up to date with `update_markers`; True if they were not. With `check`, only look."""
    text = path.read_text(encoding="utf-8")
    try:
        updated = update_markers(text, tables)
    except ValueError as error:
        raise ValueError(f"{path.name}, {error}") from None
    if updated != text and not check:
        path.write_text(updated, encoding="utf-8", newline="\n")
    return updated != text


def _place(text: str, marker: re.Match) -> str:
    return f"line {text.count(chr(10), 0, marker.start()) + 1}: {marker[0]}"


def _unpaired(text: str, marker: re.Match) -> str:
    partner = "is not closed: add <!-- /results -->" if marker["name"] else "closes nothing: remove it"
    return f"{_place(text, marker)} {partner}."
