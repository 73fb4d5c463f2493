"""Instructions in the template that DLite and its relatives were fine-tuned on: an instruction, a response, an end key.

    \\n### Instruction:\\n{instruction}\\n### Response:\\n{response}### End

The end key is a token of its own, and the end token of every model of part 4: a response ends where it was written.
"""

from collections.abc import Iterable, Sequence

from rlhf_lab import transcripts
from rlhf_lab.tinyhh import gold

INSTRUCTION, RESPONSE, END = "### Instruction:", "### Response:", "### End"
LONGEST = 100  # characters: the tutorial takes instructions that are shorter


def template(instruction: str) -> str:
    """What a model is asked: the text up to where its response begins."""
    return f"\n{INSTRUCTION}\n{instruction}\n{RESPONSE}\n"


def first_instruction(transcript: str) -> str:
    """What the Human said first, on one line. Raises TranscriptError if the Human never speaks."""
    return transcripts.first_instruction(transcript).replace("\n", " ")


def is_short(instruction: str) -> bool:
    """Whether the tutorial takes it."""
    return bool(instruction.strip()) and len(instruction) < LONGEST


def short_instructions(dialogues: Iterable[str]) -> list[str]:
    """The first instructions of those transcripts in which it is short, in their order; nothing is drawn, and whatever
    is asked in two dialogues is there twice."""
    return list(filter(is_short, map(first_instruction, dialogues)))


def demonstrations(dialogues: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """(prompt, response) pairs of one-turn dialogues in the template; longer dialogues are left out. A response keeps
    the space that it opens with: without it its first word would be other tokens than everywhere else."""
    return [
        (template(first_instruction(prompt)), response)
        for prompt, response in dialogues
        if len(transcripts.parse(prompt + response)) == 2
    ]


def answers(tokenizer, responses: Sequence[Sequence[int]]) -> list[str]:
    """Responses as text, without special tokens (the end key is one) and without space around them: a judge with a
    tokenizer of its own would take "### End" for words."""
    # Those that have a role, and those that the tokenizer only has, as the end token that the end key has replaced.
    special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
    words = ([token for token in response if token not in special] for response in responses)
    return [tokenizer.decode(tokens).strip() for tokens in words]


def helpfulness(asked: Sequence[str], answers: Sequence[str]) -> list[float]:
    """The true helpfulness of answers to instructions of the miniature world, in points."""
    return [
        gold.helpfulness(f"\n\nHuman: {instruction}\n\nAssistant:", f" {answer.strip()}")
        for instruction, answer in zip(asked, answers, strict=True)
    ]
