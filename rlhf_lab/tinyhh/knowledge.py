"""The knowledge of the miniature world, read from `knowledge.toml`, and the recognition of what a text is about."""

import re
import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, lru_cache
from pathlib import Path

_TURN = re.compile(r"\n\n(Human|Assistant):")


class Kind(StrEnum):
    """What a sentence of the world is."""

    TIP = "tip"
    FALSE_TIP = "false tip"
    RISKY_TIP = "risky tip"
    CAUTION = "caution"
    STEP = "step"  # a step towards a harmful request
    REASON = "reason"  # why a harmful request is refused
    ALTERNATIVE = "alternative"  # something harmless to do instead
    FILLER = "filler"
    HEDGE = "hedge"
    CLOSING = "closing"
    REFUSAL = "refusal"


@dataclass(frozen=True)
class Topic:
    """An everyday topic that people ask about."""

    name: str
    about: str
    keywords: tuple[str, ...]
    questions: tuple[str, ...]
    tips: tuple[str, ...]
    false_tips: tuple[str, ...]
    unlabelled: bool = False
    risky_tips: tuple[str, ...] = ()
    caution: str | None = None


@dataclass(frozen=True)
class Request:
    """A mild request that deserves a refusal."""

    name: str
    about: str
    keywords: tuple[str, ...]
    asks: tuple[str, ...]
    disguised: tuple[str, ...]
    lead_in: str
    steps: tuple[str, ...]
    reasons: tuple[str, ...]
    alternatives: tuple[str, ...]


@dataclass(frozen=True)
class SortingTask:
    """The mechanical skill: three words to put in alphabetical order."""

    words: tuple[str, str, str]

    @property
    def answer(self) -> str:
        """The one right answer, for example "apple, fig, pear."."""
        return ", ".join(sorted(self.words)) + "."


Subject = Topic | Request | SortingTask


@dataclass(frozen=True)
class Phrases:
    """Sentences that belong to no topic."""

    openers: tuple[str, ...]
    afterthoughts: tuple[str, ...]
    frames: tuple[str, ...]
    follow_ups: tuple[str, ...]
    fillers: tuple[str, ...]
    hedges: tuple[str, ...]
    closings: tuple[str, ...]
    refusals: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class World:
    """Everything `knowledge.toml` says."""

    version: str
    topics: tuple[Topic, ...]
    requests: tuple[Request, ...]
    phrases: Phrases
    skill_words: tuple[str, ...]
    skill_prompts: tuple[str, ...]
    note_templates: tuple[str, ...]
    note_slots: dict[str, tuple[str, ...]]

    def labelled_topics(self) -> list[Topic]:
        """The topics that occur in comparisons and RL prompts; the others are met in pre-training only."""
        return [topic for topic in self.topics if not topic.unlabelled]


@cache
def world() -> World:
    """The world of `knowledge.toml`, read once."""
    raw = tomllib.loads((Path(__file__).parent / "knowledge.toml").read_text(encoding="utf-8"))
    return World(
        version=raw["world_version"],
        topics=tuple(Topic(**_tuples(entry)) for entry in raw["topic"]),
        requests=tuple(Request(**_tuples(entry)) for entry in raw["request"]),
        phrases=Phrases(**_tuples(raw["phrases"])),
        skill_words=tuple(raw["skill"]["words"]),
        skill_prompts=tuple(raw["skill"]["prompts"]),
        note_templates=tuple(raw["notes"]["templates"]),
        note_slots={slot: tuple(entries) for slot, entries in raw["notes"]["slots"].items()},
    )


def sentences(text: str) -> list[str]:
    """The finished sentences of `text`: what follows the last full stop, exclamation or question mark is dropped,
    because a length limit cut it."""
    return [part.strip() for part in re.split(r"(?<=[.!?])", text)[:-1]]


def normalize(sentence: str) -> str:
    """A sentence without case, outer punctuation and double spaces: what two sentences must share to be the same."""
    return " ".join(sentence.lower().split()).strip(" .!?")


@cache
def _known_sentences() -> dict[str, tuple[Kind, str | None]]:
    w = world()
    known: dict[str, tuple[Kind, str | None]] = {}

    def add(kind: Kind, texts: tuple[str, ...], subject: str | None = None) -> None:
        known.update({normalize(text): (kind, subject) for text in texts})

    for topic in w.topics:
        add(Kind.TIP, topic.tips, topic.name)
        add(Kind.FALSE_TIP, topic.false_tips, topic.name)
        add(Kind.RISKY_TIP, topic.risky_tips, topic.name)
        add(Kind.CAUTION, (topic.caution,) if topic.caution else (), topic.name)
    for request in w.requests:
        add(Kind.STEP, request.steps, request.name)
        add(Kind.REASON, request.reasons, request.name)
        add(Kind.ALTERNATIVE, request.alternatives, request.name)
    add(Kind.FILLER, w.phrases.fillers + w.phrases.replies)
    add(Kind.HEDGE, w.phrases.hedges)
    add(Kind.CLOSING, w.phrases.closings)
    add(Kind.REFUSAL, w.phrases.refusals)
    return known


def recognize(sentence: str) -> tuple[Kind, str | None] | None:
    """What a sentence is and the name of the topic or request it belongs to; None if the world does not hold it."""
    return _known_sentences().get(normalize(sentence))


@cache
def _subjects_by_keyword() -> tuple[re.Pattern, dict[str, Topic | Request]]:
    # Requests come second so that they win where a phrase could be read both ways; the longest phrase is tried first.
    subjects = {word: subject for subject in world().topics + world().requests for word in subject.keywords}
    pattern = "|".join(re.escape(word) for word in sorted(subjects, key=len, reverse=True))
    return re.compile(rf"\b(?:{pattern})\b"), subjects


@cache
def _sorting_prompt() -> re.Pattern:
    prompts = [re.escape(prompt).replace(r"\{words\}", r"[a-z]+, [a-z]+, [a-z]+") for prompt in world().skill_prompts]
    return re.compile("|".join(prompts))


def _subject_of_turn(text: str) -> Subject | None:
    if task := _sorting_prompt().search(text):
        return SortingTask(tuple(re.search(r"([a-z]+), ([a-z]+), ([a-z]+)", task[0]).groups()))
    pattern, subjects = _subjects_by_keyword()
    found = [subjects[match] for match in pattern.findall(text.lower())]
    # A harmful request stays harmful however much harmless talk surrounds it.
    return next((subject for subject in found if isinstance(subject, Request)), found[0] if found else None)


@lru_cache(maxsize=1 << 16)
def question(prompt: str) -> tuple[str, Subject | None]:
    """The human turn that says what the dialogue is about, and its subject: the last turn that has one ("What else?"
    has none of its own). Without any, the first human turn and None."""
    turns = _turns(prompt, "Human")
    for text in reversed(turns):
        if found := _subject_of_turn(text):
            return text, found
    return (turns[0] if turns else ""), None


def subject(prompt: str) -> Subject | None:
    """What the person asks about; None for a text that is about nothing the world knows."""
    return question(prompt)[1]


@lru_cache(maxsize=1 << 16)
def already_said(prompt: str) -> frozenset[str]:
    """The normalized sentences of the assistant's earlier turns: to say them again is repetition."""
    return frozenset(normalize(sentence) for text in _turns(prompt, "Assistant") for sentence in sentences(text))


def _turns(prompt: str, role: str) -> list[str]:
    # More forgiving than `transcripts.parse`: any string at all may be asked for its subject.
    parts = _TURN.split(prompt)
    return [text for speaker, text in zip(parts[1::2], parts[2::2], strict=True) if speaker == role]


def _tuples(entry: dict) -> dict:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
