"""Dialogues as text, in the format of Anthropic's hh-rlhf (arXiv 2204.05862): "\\n\\nHuman: ...\\n\\nAssistant: ...".

A turn begins where a blank line is followed by "Human:" or "Assistant:". The same words inside a sentence, or after a
single line break, are ordinary text. Turns need not alternate: in hh-rlhf one in a hundred dialogues does not.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

ROLES = ("Human", "Assistant")
ASSISTANT = "\n\nAssistant:"  # how the Assistant's turn opens
_OPENING = re.compile(r"\n\n(Human|Assistant):")


class TranscriptError(ValueError):
    """A text is no transcript. The message never quotes the text: real transcripts can be offensive."""


class Turn(NamedTuple):
    """What one side said; `text` is without the space that follows the colon."""

    role: str  # "Human" or "Assistant"
    text: str  # may hold several paragraphs; empty where the side has yet to speak


def parse(text: str) -> list[Turn]:
    """The turns of a transcript, in order. Raises TranscriptError if there are none, or for text before the first."""
    stray, *pieces = _OPENING.split(text)
    if not pieces:
        raise TranscriptError('No turn found: begin each turn with a blank line and "Human:" or "Assistant:".')
    if stray:
        raise TranscriptError('Text stands before the first turn: remove it, or put "\\n\\nHuman: " in front of it.')
    return [Turn(role, _without_space(said)) for role, said in zip(pieces[::2], pieces[1::2], strict=True)]


def format(turns: Iterable[Turn]) -> str:
    """The transcript of `turns`; `format(parse(text)) == text` wherever white space or nothing follows the colons.

    Raises TranscriptError for an unknown role, and for a text that would be read back as more than one turn.
    """
    transcript = ""
    for role, text in turns:
        if role not in ROLES:
            raise TranscriptError(f"No role {role!r}: use {' or '.join(map(repr, ROLES))}.")
        if _OPENING.search(text):
            raise TranscriptError("The text of a turn holds the opening of another one: make it a Turn of its own.")
        # Nothing follows the colon of an empty text, so that prompts end in "Assistant:", and no second white space.
        transcript += f"\n\n{role}: {text}" if text[:1].strip() else f"\n\n{role}:{text}"
    return transcript


def split_last_turn(text: str) -> tuple[str, str]:
    """(prompt, response): the text up to and including the last "\\n\\nAssistant:", and all that follows it.

    The response keeps its leading space and all its paragraphs, and prompt + response is `text` to the byte. Raises
    TranscriptError if the Assistant has no turn. (Splitting at the first turn or at the last blank line, as public
    code has done, hands part of the answer to the prompt.)
    """
    prompt, opening, response = text.rpartition(ASSISTANT)
    if not opening:
        raise TranscriptError('No Assistant turn found: a blank line and "Assistant:" must open the response.')
    return prompt + opening, response


def first_instruction(text: str) -> str:
    """What the Human said first. Raises TranscriptError if the Human never speaks, or where `parse` does."""
    for role, said in parse(text):
        if role == "Human":
            return said
    raise TranscriptError("No Human turn found: there is no instruction in this transcript.")


def _without_space(said: str) -> str:
    # Only a single space belongs to the format. More white space, or nothing else, is what the turn really holds.
    return said[1:] if said[:1] == " " and said[1:2].strip() else said
