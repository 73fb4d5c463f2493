"""The tutorial's template to the byte, and what it makes of dialogues. Oracles: the strings themselves, counted limits,
another way to split the real file."""

import gzip
import json
import os
from pathlib import Path

import pytest

from rlhf_lab import instructions, language_model
from rlhf_lab.instructions import answers, demonstrations, first_instruction, is_short, short_instructions, template
from rlhf_lab.tinyhh import generator, gold
from rlhf_lab.transcripts import TranscriptError


def dialogue(*said: str) -> str:
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[turn % 2]}: {text}" for turn, text in enumerate(said)) + "\n\nAssistant:"


def test_the_template_is_the_tutorials_to_the_byte():
    asked = template("How do I teach kids to meditate?")
    assert asked == "\n### Instruction:\nHow do I teach kids to meditate?\n### Response:\n"
    # As its notebook writes it: an empty introduction, then headings and instruction on lines of their own.
    form = "{intro}\n{instruction_key}\n{instruction}\n{response_key}\n"
    keys = {"instruction_key": "### Instruction:", "response_key": "### Response:"}
    assert asked == form.format(intro="", instruction="How do I teach kids to meditate?", **keys)
    assert instructions.END == "### End"


def test_what_the_human_said_first_stands_on_one_line():
    assert first_instruction(dialogue("Two\nlines,\n\nand a third.")) == "Two lines,  and a third."
    assert first_instruction(dialogue("First?", "Yes.", "Second?")) == "First?"
    with pytest.raises(TranscriptError, match="No Human turn"):
        first_instruction("\n\nAssistant: Nobody asked.")


@pytest.mark.parametrize(
    ("instruction", "short"), [("x" * 99, True), ("x" * 100, False), ("x", True), ("", False), ("  \n", False)]
)
def test_an_instruction_is_short_below_a_hundred_characters(instruction, short):
    assert is_short(instruction) == short


def test_newlines_count_as_the_spaces_that_they_become():
    exactly = "a\n" + "b" * 97
    assert short_instructions([dialogue(exactly)]) == ["a " + "b" * 97]
    assert short_instructions([dialogue(exactly + "b")]) == []


def test_short_instructions_keep_their_order_and_come_as_often_as_they_are_asked():
    dialogues = [dialogue(text) for text in ("b", "x" * 100, "a", "", "b")]
    assert short_instructions(dialogues) == ["b", "a", "b"]


def test_only_dialogues_of_one_turn_are_demonstrations():
    rows = [
        (dialogue("Ask\nme."), " An answer.\n"),
        (dialogue("Ask.", "What?", "This."), " An answer."),
        (dialogue("Ask."), " An answer.\n\nHuman: Thanks."),
    ]
    assert demonstrations(rows) == [("\n### Instruction:\nAsk me.\n### Response:\n", " An answer.\n")]


def test_answers_are_what_was_written_but_for_special_tokens_and_space_around():
    _, tokenizer = language_model.load_base("0.2M")
    tokenizer.eos_token = instructions.END
    end, pad = tokenizer.convert_tokens_to_ids(["### End", "<pad>"])
    words = tokenizer(" Be kind. ")["input_ids"]
    (heading,) = tokenizer("### Response:")["input_ids"]
    responses = [[*words, end], words, [end], [*words, heading, *words, pad, end], [pad]]
    assert answers(tokenizer, responses) == ["Be kind.", "Be kind.", "", "Be kind.  Be kind.", ""]
    assert answers(tokenizer, []) == []


def test_helpfulness_is_that_of_the_same_dialogue():
    rows = generator.preference_rows("helpful-base", "test", 20, seed=0)
    rows = [row for row in rows if row["prompt"].count("\n\nHuman:") == 1]
    asked = [first_instruction(row["prompt"]) for row in rows]
    for side in ("chosen", "rejected"):
        expected = [gold.helpfulness(row["prompt"], row[side]) for row in rows]
        assert instructions.helpfulness(asked, [row[side].strip() for row in rows]) == expected
    assert len(set(expected)) > 5


@pytest.mark.real_data
def test_real_dialogues_split_in_another_way_give_the_same_instructions():
    with gzip.open(Path(os.environ["HH_RLHF_DIR"]) / "helpful-base" / "test.jsonl.gz") as file:
        dialogues = [json.loads(line)["chosen"] for line in file]
    assert len(dialogues) == 2354  # as the tutorial counts
    said = [text.split("\n\nAssistant:")[0].removeprefix("\n\nHuman:").removeprefix(" ") for text in dialogues]
    expected = [text.replace("\n", " ") for text in said if text.strip() and len(text) <= 99]
    assert short_instructions(dialogues) == expected and 0.5 < len(expected) / len(dialogues) < 1
