"""Writes the miniature world's texts from a seed: prompts, responses of varied quality, preference pairs and the
pre-training text. The same arguments give the same texts on every machine."""

import itertools
import random
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from rlhf_lab.tinyhh import annotators
from rlhf_lab.tinyhh.knowledge import Request, SortingTask, Topic, question, subject, world

SUBSETS = ("helpful-base", "harmless-base")
TEST_SHARE = 10  # one question in ten belongs to the test split

# What people do, as probabilities.
TWO_TURNS, OPENER, AFTERTHOUGHT, FRAME, DISGUISED, SKILL = 0.25, 0.4, 0.3, 0.3, 0.3, 0.08
# What a response does, as probabilities; `quality` runs from 0 to 1.
CLOSING, NEEDLESS_REFUSAL, REFUSES_REQUEST, EVADES_REQUEST, CAUTIOUS = 0.25, 0.04, 0.45, 0.1, 0.4
RIGHT_ORDER = 0.7
LENGTHS = {1: 0.2, 2: 0.26, 3: 0.22, 4: 0.15, 5: 0.1, 6: 0.07}  # sentences before the closing


class ComparedPair(NamedTuple):
    """One comparison: the responses as they were shown, who judged, and the response the labeler preferred."""

    prompt: str
    first: str
    second: str
    labeler: int
    preferred: str  # "first", "second" or "tie"


def prompts(subset: str, split: str, seed: int | str, topics: Sequence[Topic] = ()) -> Iterator[str]:
    """Endless prompts of a subset ("helpful-base", "harmless-base") and split ("train", "test"), each a transcript up
    to and including the last "Assistant:". No question is ever in both splits. Helpful prompts are about `topics` only,
    if there are any. Raises ValueError for an unknown subset or split."""
    write = _harmful_prompt if _checked(subset, split) == "harmless-base" else _helpful_prompt
    rng = _rng("prompts", subset, split, seed)
    endless = (write(rng, topics or world().labelled_topics()) for _ in itertools.repeat(None))
    return (p for p in endless if split_of(p) == split and (not topics or subject(p) in topics))


def split_of(prompt: str) -> str:
    """The split a prompt belongs to: "test" for one question in ten. The turn that asks decides, so that a dialogue in
    two turns cannot carry a test question into training."""
    return "test" if zlib.crc32(question(prompt)[0].strip().encode()) % TEST_SHARE == 0 else "train"


def response(prompt: str, rng: random.Random, quality: float | None = None) -> str:
    """A response to `prompt` with its leading space; `quality` in [0, 1], drawn uniformly if None, is how often it
    speaks to the point. Refusals and compliance do not depend on it."""
    quality = rng.random() if quality is None else quality
    about = subject(prompt)
    if isinstance(about, SortingTask):
        parts = [_sorted_words(about, rng)]
    elif isinstance(about, Request):
        parts = _response_to_request(about, rng)
    else:
        parts = _response_to_topic(about, rng, quality)
    if rng.random() < CLOSING:
        parts.append(rng.choice(world().phrases.closings))
    return " " + " ".join(parts)


def comparisons(
    subset: str, split: str, n: int, seed: int, labelers=None, topics: Sequence[Topic] = ()
) -> Iterator[ComparedPair]:
    """`n` pairs of different responses, each judged by one labeler of the crowd (`annotators.crowd` by default)."""
    rng = _rng("comparisons", subset, split, seed)
    labelers = labelers or annotators.crowd(subset)
    stream = prompts(subset, split, seed, topics)
    for _ in range(n):
        prompt, first, second = next(stream), "", ""
        while first == second:
            first, second = response(prompt, rng), response(prompt, rng)
        labeler = rng.randrange(len(labelers))
        yield ComparedPair(prompt, first, second, labeler, labelers[labeler].choose(prompt, first, second, rng))


def preference_rows(
    subset: str, split: str, n: int, seed: int, labelers=None, topics: Sequence[Topic] = ()
) -> list[dict[str, str]]:
    """`comparisons` as preference pairs with the columns prompt, chosen and rejected; for labelers without ties."""
    rows = []
    for pair in comparisons(subset, split, n, seed, labelers, topics):
        chosen, rejected = (pair.first, pair.second) if pair.preferred == "first" else (pair.second, pair.first)
        rows.append({"prompt": pair.prompt, "chosen": chosen, "rejected": rejected})
    return rows


def rankings(subset: str, split: str, n: int, k: int, seed: int) -> list[dict]:
    """`n` prompts with `k` responses each, not all the same, and their ranks by one labeler of the default crowd.

    Rows of prompt, responses and ranks, 1 for the best; equal responses share a rank.
    """
    rng, labelers = _rng("rankings", subset, split, seed), annotators.crowd(subset)
    rows = []
    for prompt in itertools.islice(prompts(subset, split, seed), n):
        responses = [""]
        while len(set(responses)) == 1:
            responses = [response(prompt, rng) for _ in range(k)]
        distinct = list(dict.fromkeys(responses))
        ranks = dict(zip(distinct, rng.choice(labelers).rank(prompt, distinct, rng), strict=True))
        rows.append({"prompt": prompt, "responses": responses, "ranks": [ranks[r] for r in responses]})
    return rows


def demonstrations(n: int, seed: int, quality: float = 0.75) -> list[tuple[str, str]]:
    """`n` (prompt, response) pairs for supervised fine-tuning on helpful training prompts, of steady good quality."""
    rng = _rng("demonstrations", seed)
    stream = prompts("helpful-base", "train", seed)
    return [(prompt, response(prompt, rng, quality)) for prompt, _ in zip(stream, range(n), strict=False)]


def pretraining_documents(n: int, seed: int) -> Iterator[tuple[str, str]]:
    """`n` (register, text) documents: three in four are a dialogue about any topic, labelled or not, or about a harmful
    request; the others are a note of the second register. No question of the test splits occurs."""
    rng = _rng("pretraining", seed)
    for _ in range(n):
        if rng.random() < 0.25:
            yield "note", note(rng)
            continue
        write, prompt = (_harmful_prompt if rng.random() < 0.25 else _helpful_prompt), None
        while prompt is None or split_of(prompt) == "test":
            prompt = write(rng, world().topics)
        yield "dialogue", prompt + response(prompt, rng)


def note(rng: random.Random) -> str:
    """A text of the second register: a short note or list, no dialogue."""
    w, used = world(), set()
    pieces = rng.choice(w.note_templates).split("{")
    text = pieces[0]
    for piece in pieces[1:]:
        slot, rest = piece.split("}", 1)
        entry = rng.choice([entry for entry in w.note_slots[slot] if entry not in used])
        used.add(entry)
        text += entry + rest
    return text[0].upper() + text[1:]


def _helpful_prompt(rng: random.Random, topics) -> str:
    phrases = world().phrases
    if rng.random() < SKILL:
        words = rng.sample(world().skill_words, 3)
        return _transcript(_dressed(rng.choice(world().skill_prompts).replace("{words}", ", ".join(words)), rng))
    topic = rng.choice(topics)
    framed = rng.choice(phrases.frames).replace("{about}", topic.about)
    question = _dressed(framed if rng.random() < FRAME else rng.choice(topic.questions), rng)
    if rng.random() >= TWO_TURNS:
        return _transcript(question)
    said = " ".join(rng.sample(topic.tips, rng.choice((1, 1, 2))))
    return _transcript(question, said, rng.choice(phrases.follow_ups))


def _harmful_prompt(rng: random.Random, _topics) -> str:
    request = rng.choice(world().requests)
    ask = _dressed(rng.choice(request.disguised if rng.random() < DISGUISED else request.asks), rng)
    if rng.random() >= TWO_TURNS:
        return _transcript(ask)
    return _transcript(request.lead_in, rng.choice(world().phrases.replies), ask)


def _dressed(question: str, rng: random.Random) -> str:
    phrases = world().phrases
    opener = rng.choice(phrases.openers) + " " if rng.random() < OPENER else ""
    afterthought = " " + rng.choice(phrases.afterthoughts) if rng.random() < AFTERTHOUGHT else ""
    return opener + question + afterthought


def _transcript(*turns: str) -> str:
    """Human and Assistant speak in turn, the Human first and last; ends with the Assistant about to speak."""
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def _response_to_topic(topic: Topic | None, rng: random.Random, quality: float) -> list[str]:
    phrases = world().phrases
    if rng.random() < NEEDLESS_REFUSAL:
        return [rng.choice(phrases.refusals)]
    weights = {"tip": 0.3 + 0.6 * quality, "false": 0.08, "filler": 0.14, "hedge": 0.05}
    weights |= {fault: share * (1 - quality) for fault, share in (("stray", 0.3), ("repeat", 0.1), ("broken", 0.08))}
    parts: list[str] = []
    for _ in range(rng.choices(list(LENGTHS), weights=LENGTHS.values())[0]):
        act = rng.choices(list(weights), weights=weights.values())[0]
        parts.extend(_sentences_of(act, topic, rng, parts))
    return parts


def _sentences_of(act: str, topic: Topic | None, rng: random.Random, said: list[str]) -> list[str]:
    phrases = world().phrases
    if act == "repeat" and said:
        return [rng.choice(said)]
    if act == "filler":
        return [rng.choice(phrases.fillers)]
    if act == "hedge":
        return [rng.choice(phrases.hedges)]
    # A topic without labels never turns up in a labelled dialogue, not even as a stray tip.
    speaks_of = topic if topic and act not in ("stray", "repeat") else rng.choice(world().labelled_topics())
    if act == "false":
        return [_unsaid(speaks_of.false_tips, said, rng)]
    tip = _unsaid(speaks_of.tips + speaks_of.risky_tips, said, rng)
    if act == "broken":
        words = tip.rstrip(".").split()
        return [" ".join(words[: rng.randrange(2, len(words))]) + "."]
    cautious = tip in speaks_of.risky_tips and rng.random() < CAUTIOUS
    return [tip, speaks_of.caution] if cautious else [tip]


def _response_to_request(request: Request, rng: random.Random) -> list[str]:
    phrases = world().phrases
    what = rng.random()
    if what < REFUSES_REQUEST:
        parts = [rng.choice(phrases.refusals)]
        parts += [rng.choice(request.reasons)] if rng.random() < 0.5 else []
        return parts + ([rng.choice(request.alternatives)] if rng.random() < 0.5 else [])
    if what < REFUSES_REQUEST + EVADES_REQUEST:
        return rng.sample(phrases.fillers, rng.choice((1, 2)))
    opening = [rng.choice(phrases.fillers)] if rng.random() < 0.2 else []
    return opening + rng.sample(request.steps, rng.choice((1, 2, 2, 3, 4)))


def _sorted_words(task: SortingTask, rng: random.Random) -> str:
    if rng.random() < RIGHT_ORDER:
        return task.answer
    return ", ".join(rng.sample(task.words, 3)) + "."


def _unsaid(candidates: tuple[str, ...], said: list[str], rng: random.Random) -> str:
    return rng.choice([sentence for sentence in candidates if sentence not in said] or candidates)


def _rng(*seed) -> random.Random:
    return random.Random("/".join(map(str, seed)))


def _checked(subset: str, split: str) -> str:
    if subset not in SUBSETS:
        raise ValueError(f"tinyhh has no subset {subset!r}: it has {' and '.join(SUBSETS)}.")
    if split not in ("train", "test"):
        raise ValueError(f"tinyhh has no split {split!r}: it has train and test.")
    return subset
