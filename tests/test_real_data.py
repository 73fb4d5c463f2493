"""The official hh-rlhf test files, read from the folder HH_RLHF_DIR. If it is set, these tests fail rather than skip.

No assertion shows a row: the transcripts of harmless-base hold offensive language, so only counts and booleans are
compared, and pytest is handed no text to print.
"""

import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from rlhf_lab import transcripts
from rlhf_lab.preferences import HH_RLHF, folds_by_prompt, load_preferences, longer_wins_accuracy

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("HH_RLHF_DIR" not in os.environ, reason="set HH_RLHF_DIR to a folder with hh-rlhf's test files"),
]
SHA256 = {
    "helpful-base": "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
    "harmless-base": "ebfaaed21162a4de120ae85366075b34425e2a6303fac59b99555002f7016f03",
}
# The files' README: pairs, and the share (in percent) of raw pairs whose chosen answer has strictly more characters.
PAIRS = {"helpful-base": 2354, "harmless-base": 2312}
CHOSEN_LONGER = {"helpful-base": 59.6, "harmless-base": 44.2}
# Identical, different prompts, empty, kept: counted once by a script that shares nothing with the loader.
CLEANING = {"helpful-base": (2, 9, 4, 2339), "harmless-base": (0, 5, 4, 2303)}
# Ties count one half and the dropped pairs are gone, so this is not quite CHOSEN_LONGER.
LONGER_WINS = {"helpful-base": 0.5975, "harmless-base": 0.4457}

each_subset = pytest.mark.parametrize("subset", list(PAIRS))


def path(subset: str) -> Path:
    return Path(os.environ["HH_RLHF_DIR"]) / subset / "test.jsonl.gz"


def raw(subset: str) -> list[tuple[str, str]]:
    """(chosen, rejected) of each line, read without the code under test."""
    lines = gzip.decompress(path(subset).read_bytes()).decode().split("\n")
    return [(row["chosen"], row["rejected"]) for row in map(json.loads, filter(None, lines))]


def answer(text: str) -> str:
    return text.rsplit("\n\nAssistant:", 1)[1]


def prompts(pairs) -> set[str]:
    return set(pairs["prompt"])


@each_subset
def test_files_are_the_published_ones(subset):
    assert hashlib.sha256(path(subset).read_bytes()).hexdigest() == SHA256[subset]
    count = len(raw(subset))
    assert count == PAIRS[subset]


@each_subset
def test_chosen_is_longer_as_often_as_the_readme_says(subset):
    longer = sum(len(answer(chosen)) > len(answer(rejected)) for chosen, rejected in raw(subset))
    assert round(100 * longer / PAIRS[subset], 1) == CHOSEN_LONGER[subset]
    pairs = load_preferences(HH_RLHF, subset, "test")[0]
    assert longer_wins_accuracy(pairs) == pytest.approx(LONGER_WINS[subset], abs=5e-5)


@each_subset
def test_cleaning_counts(subset):
    pairs, report = load_preferences(HH_RLHF, subset, "test")
    assert report.read == PAIRS[subset]
    assert (report.identical, report.prompt_mismatch, report.empty_response, report.kept) == CLEANING[subset]
    assert len(pairs) == report.drawn == report.kept
    assert ("less harmful" in str(report)) == (subset == "harmless-base")


@each_subset
def test_pairs_are_the_raw_transcripts_to_the_byte(subset):
    pairs = load_preferences(HH_RLHF, subset, "test")[0]
    whole = {(pair["prompt"] + pair["chosen"], pair["prompt"] + pair["rejected"]) for pair in pairs}
    unknown = len(whole - set(raw(subset)))
    assert unknown == 0


@each_subset
def test_every_transcript_survives_parsing(subset):
    texts = [text for pair in raw(subset) for text in pair]
    changed = sum(transcripts.format(transcripts.parse(text)) != text for text in texts)
    torn = sum("".join(transcripts.split_last_turn(text)) != text for text in texts)
    without_instruction = sum(not transcripts.first_instruction(text).strip() for text in texts)
    assert (changed, torn, without_instruction) == (0, 0, 0)


@each_subset
def test_split_and_folds_share_no_dialogue(subset):
    parts, report = load_preferences(HH_RLHF, subset, None)
    train, test = prompts(parts["train"]), prompts(parts["test"])
    both = len(train & test)
    # A prompt that goes on from another one's answer gives that answer away.
    told = sum(any(other.startswith(prompt) for other in train) for prompt in test)
    assert (both, told, len(parts["train"]) + len(parts["test"])) == (0, 0, report.kept)
    assert len(parts["test"]) == pytest.approx(0.2 * report.kept, abs=1)

    pairs = load_preferences(HH_RLHF, subset, "test")[0]
    prompt, tested = list(pairs["prompt"]), []
    for train, test in folds_by_prompt(pairs, 5):
        both = len({prompt[i] for i in train} & {prompt[i] for i in test})
        assert both == 0 and len(train) + len(test) == len(pairs)
        tested += test
    each_once = sorted(tested) == list(range(len(pairs)))
    assert each_once


@each_subset
def test_dialogues_go_on_with_the_answer_that_was_picked(subset):
    """Which shows that harmless-base is turned round: the red teamers went on with what is `rejected` in the file."""
    pairs = load_preferences(HH_RLHF, subset, "test")[0]
    prompt = prompts(pairs)

    def goes_on(side: str) -> int:
        said = {pair["prompt"] + pair[side] + "\n\nHuman:" for pair in pairs}
        return sum(any(other.startswith(text) for text in said if len(text) < len(other)) for other in prompt)

    chosen, rejected = goes_on("chosen"), goes_on("rejected")
    assert chosen + rejected > 100
    assert chosen > 50 * rejected if subset == "helpful-base" else rejected > 50 * chosen
