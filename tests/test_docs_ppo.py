"""docs/ppo.md is a page of promises: all details are there, and what it names exists."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.splitlines()
    if re.match(r"\| \d+ \|", line)
]
FILES = {"P": "ppo", "S": "sampling", "L": "language_model", "K": "packing", "R": "reward_model", "F": "sft"}


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_all_forty_details_are_decided_once():
    assert sorted(int(row[0]) for row in ROWS) == list(range(1, 41))
    assert all(len(row) == 5 and all(row) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_code_of_a_detail_exists(row):
    assert names(row[3])
    for name in names(row[3]):
        module, *attributes = name.split(".")
        found = importlib.import_module(f"rlhf_lab.{module}")
        for attribute in attributes:
            assert hasattr(found, attribute), name
            found = getattr(found, attribute)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_tests_of_a_detail_exist(row):
    assert names(row[4])
    for name in names(row[4]):
        letter, _, test = name.rpartition("::")
        file = FILES[letter] if letter else "ppo_trainer"
        assert f"\ndef {test}(" in (ROOT / "tests" / f"test_{file}.py").read_text(encoding="utf-8"), name


def test_what_the_page_names_elsewhere_exists():
    prose = "\n".join(line for line in PAGE.splitlines() if not line.startswith("|"))
    tests = [name for name in names(prose) if re.fullmatch(r"test_\w+", name)]
    trainer = (ROOT / "tests" / "test_ppo_trainer.py").read_text(encoding="utf-8")
    assert len(tests) == 3 and all(f"\ndef {test}(" in trainer for test in tests)
    links = re.findall(r"\]\(([^)#]+)\)", PAGE)
    assert links and all((ROOT / "docs" / link).is_file() for link in links)
    order = [(letter, f"test_{file}.py") for letter, file in FILES.items()]
    assert re.findall(r"`([A-Z])`", prose) == [letter for letter, _ in order]
    assert [name for name in names(prose) if name in dict(order).values()] == [file for _, file in order]
