import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import transcripts
from rlhf_lab.transcripts import TranscriptError, Turn

TWO_TURNS = (
    "\n\nHuman: How do I boil an egg?\n\nAssistant: For six minutes.\n\nHuman: And a soft one?\n\nAssistant: Four."
)


def opens_a_turn(text: str) -> bool:
    return "\n\nHuman:" in text or "\n\nAssistant:" in text


# Texts in which openings, or something close to one, are likely.
pieces = st.sampled_from(
    ["\n", "\n\n", " ", "Human:", "Assistant:", "Human", ":", "an egg", "\t", "é", "\r\n", "\u2028"]
)
ragged = st.one_of(st.text(max_size=20), st.lists(pieces, max_size=8).map("".join))
said = ragged.filter(lambda text: not opens_a_turn(text))
roles = st.sampled_from(transcripts.ROLES)


def test_parse_gives_the_turns_in_order():
    assert transcripts.parse(TWO_TURNS) == [
        Turn("Human", "How do I boil an egg?"),
        Turn("Assistant", "For six minutes."),
        Turn("Human", "And a soft one?"),
        Turn("Assistant", "Four."),
    ]


def test_only_the_start_of_a_paragraph_opens_a_turn():
    text = "\n\nHuman: Is Human: a word?\nAssistant: one too?\n\n Human: and here?\n\nHumans: say\n\nAssistant: No."
    assert transcripts.parse(text) == [
        Turn("Human", "Is Human: a word?\nAssistant: one too?\n\n Human: and here?\n\nHumans: say"),
        Turn("Assistant", "No."),
    ]


@pytest.mark.parametrize(
    ("text", "turns"),
    [
        ("\n\nHuman: Hi\n\nAssistant:", [Turn("Human", "Hi"), Turn("Assistant", "")]),  # a prompt
        (
            "\n\nHuman: Hi\n\nAssistant: ",
            [Turn("Human", "Hi"), Turn("Assistant", " ")],
        ),  # an empty answer, as in hh-rlhf
        ("\n\nHuman:  Hi", [Turn("Human", "  Hi")]),  # two spaces, as in hh-rlhf
        ("\n\nHuman:\nHi\n", [Turn("Human", "\nHi\n")]),
        ("\n\nHuman:\n\nAssistant: Yes?", [Turn("Human", ""), Turn("Assistant", "Yes?")]),
        ("\n\nHuman: a\n\n\nHuman: b", [Turn("Human", "a\n"), Turn("Human", "b")]),  # turns need not alternate
    ],
)
def test_white_space_survives_both_ways(text, turns):
    assert transcripts.parse(text) == turns
    assert transcripts.format(turns) == text


@given(st.lists(st.tuples(roles, said), min_size=1, max_size=5), st.data())
def test_format_undoes_parse(turns, data):
    """Well-formed: white space, or nothing at all, follows each colon."""
    text = ""
    for role, words in turns:
        bare = not words or words[0].isspace()
        text += f"\n\n{role}:" + (data.draw(st.sampled_from(["", " "])) if bare else " ") + words
    assert transcripts.format(transcripts.parse(text)) == text


@given(st.lists(st.builds(Turn, roles, said), min_size=1, max_size=5))
def test_parse_undoes_format(turns):
    # A text that begins with one space is the exception: the space is read as the format's own.
    turns = [Turn(role, text.lstrip(" ")) for role, text in turns]
    assert transcripts.parse(transcripts.format(turns)) == turns


@given(said, st.lists(st.tuples(roles, said), max_size=4), said)
def test_split_last_turn_is_the_shortest_tail_after_an_opening(before, turns, response):
    """Oracle: try every place to cut, from the end, until the left part ends with the opening."""
    text = before + "".join(f"\n\n{role}: {words}" for role, words in turns) + "\n\nAssistant:" + response
    cut = next(i for i in range(len(text), -1, -1) if text[:i].endswith("\n\nAssistant:"))
    assert transcripts.split_last_turn(text) == (text[:cut], text[cut:])
    assert text[cut:] == response


def test_split_keeps_a_last_answer_of_several_paragraphs_whole():
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A list?\n\nAssistant:"
    answer = " Here:\n\n1. eggs\n\n2. the word Assistant: in a sentence"
    assert transcripts.split_last_turn(start + answer) == (start, answer)


def test_split_of_an_empty_last_answer():
    assert transcripts.split_last_turn("\n\nHuman: Hi\n\nAssistant:") == ("\n\nHuman: Hi\n\nAssistant:", "")


def test_first_instruction_is_the_first_human_turn():
    assert transcripts.first_instruction(TWO_TURNS) == "How do I boil an egg?"
    assert transcripts.first_instruction("\n\nAssistant: Welcome.\n\nHuman: Hi\n\nHuman: there") == "Hi"


@pytest.mark.parametrize(
    ("call", "text", "words"),
    [
        (transcripts.parse, "", "No turn"),
        (transcripts.parse, "an egg", "No turn"),
        (transcripts.parse, "Human: an egg", "No turn"),  # the blank line is missing
        (transcripts.parse, "\r\n\r\nHuman: an egg", "No turn"),
        (transcripts.parse, "an egg" + TWO_TURNS, "before the first turn"),
        (transcripts.parse, "\n" + TWO_TURNS, "before the first turn"),
        (transcripts.split_last_turn, "\n\nHuman: an egg", "No Assistant turn"),
        (transcripts.split_last_turn, "\n\nHuman: an egg\nAssistant: Yes.", "No Assistant turn"),
        (transcripts.first_instruction, "\n\nAssistant: an egg", "No Human turn"),
        (transcripts.format, [("System", "an egg")], "No role 'System'"),
        (transcripts.format, [("Human", "an egg\n\nAssistant: is ready")], "opening of another"),
    ],
)
def test_errors_are_one_sentence_and_quote_nothing(call, text, words):
    with pytest.raises(TranscriptError, match=words) as error:
        call(text)
    message = str(error.value)
    assert message.endswith(".") and ". " not in message and "egg" not in message
