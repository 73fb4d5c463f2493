"""What `knowledge.toml` must hold, what its prompts are about (every one is tried), and the tables of the datasheet."""

import re
from collections import Counter
from itertools import chain, permutations, product
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import ROOT
from rlhf_lab.tinyhh import annotators, generator, gold
from rlhf_lab.tinyhh.knowledge import (
    Kind,
    SortingTask,
    already_said,
    normalize,
    recognize,
    sentences,
    subject,
    world,
)

WORLD = world()
PHRASES = WORLD.phrases
DUAL_USE = [topic for topic in WORLD.topics if topic.risky_tips]
OPENERS, AFTERTHOUGHTS = ("", *PHRASES.openers), ("", *PHRASES.afterthoughts)


def transcript(*turns: str) -> str:
    """Human and Assistant in turn, the Human first and last, and the Assistant about to speak."""
    roles = ("Human", "Assistant")
    return "".join(f"\n\n{roles[i % 2]}: {turn}" for i, turn in enumerate(turns)) + "\n\nAssistant:"


def dressed(question: str) -> list[str]:
    """The question in every dress: each opener and none before it, each afterthought and none after it."""
    return [" ".join(filter(None, parts)) for parts in product(OPENERS, [question], AFTERTHOUGHTS)]


def questions(topic) -> list[str]:
    return [*topic.questions, *(frame.replace("{about}", topic.about) for frame in PHRASES.frames)]


def asks(request) -> list[str]:
    return [*request.asks, *request.disguised]


def said() -> list[tuple[str, Kind, str | None]]:
    """(sentence, kind, owner) of all that an assistant may say."""
    groups = [(t.tips, Kind.TIP, t.name) for t in WORLD.topics]
    groups += [(t.false_tips, Kind.FALSE_TIP, t.name) for t in WORLD.topics]
    groups += [(t.risky_tips, Kind.RISKY_TIP, t.name) for t in WORLD.topics]
    groups += [((t.caution,), Kind.CAUTION, t.name) for t in DUAL_USE]
    groups += [(r.steps, Kind.STEP, r.name) for r in WORLD.requests]
    groups += [(r.reasons, Kind.REASON, r.name) for r in WORLD.requests]
    groups += [(r.alternatives, Kind.ALTERNATIVE, r.name) for r in WORLD.requests]
    groups += [(PHRASES.fillers, Kind.FILLER, None), (PHRASES.replies, Kind.FILLER, None)]
    groups += [(PHRASES.hedges, Kind.HEDGE, None), (PHRASES.closings, Kind.CLOSING, None)]
    groups += [(PHRASES.refusals, Kind.REFUSAL, None)]
    return [(text, kind, owner) for texts, kind, owner in groups for text in texts]


def asked() -> list[str]:
    """All that a person may say, frames and sorting prompts apart."""
    texts = [question for topic in WORLD.topics for question in topic.questions]
    texts += [ask for request in WORLD.requests for ask in [*asks(request), request.lead_in]]
    return [*texts, *PHRASES.openers, *PHRASES.afterthoughts, *PHRASES.follow_ups]


# --- what there is ---


def test_the_world_has_the_size_of_its_design():
    assert 38 <= len(WORLD.topics) <= 44 and len(WORLD.requests) == 20
    assert sum(topic.unlabelled for topic in WORLD.topics) == 10
    assert {len(topic.tips) for topic in WORLD.topics} <= {6, 7, 8}
    assert {len(topic.false_tips) for topic in WORLD.topics} == {2}
    assert all(len(r.steps) >= 3 and r.reasons and r.alternatives and r.disguised for r in WORLD.requests)


def test_labelled_topics_are_the_others():
    assert [t.name for t in WORLD.labelled_topics()] == [t.name for t in WORLD.topics if not t.unlabelled]


def test_several_labelled_topics_are_of_dual_use_and_have_a_caution():
    assert len(DUAL_USE) >= 4 and not any(topic.unlabelled for topic in DUAL_USE)
    assert [topic for topic in WORLD.topics if topic.caution] == DUAL_USE


def test_names_and_keywords_belong_to_one_subject():
    subjects = WORLD.topics + WORLD.requests
    names, keywords = [s.name for s in subjects], [word for s in subjects for word in s.keywords]
    assert len(set(names)) == len(names) and len(set(keywords)) == len(keywords)
    assert all(word == word.lower() for word in keywords)


def test_what_an_assistant_says_is_one_short_plain_sentence():
    for text, _, _ in said():
        assert sentences(text) == [text] and re.fullmatch(r"[A-Z][A-Za-z,' ]+\.", text) and "  " not in text, text
        assert 3 <= len(text.split()) <= 9, text


def test_what_a_person_says_is_plain_and_finished():
    for text in asked() + [question for topic in WORLD.topics for question in questions(topic)]:
        assert re.fullmatch(r"[A-Z][A-Za-z,.'? ]+[.?!]", text) and "  " not in text, text
        assert " ".join(sentences(text)) == text and len(text.split()) <= 14, text


def test_no_two_sentences_written_by_hand_are_the_same():
    counts = Counter(map(normalize, [text for text, _, _ in said()] + asked()))
    assert [text for text, n in counts.items() if n > 1] == []


def test_skill_words_are_plain_and_distinct():
    assert len(set(WORLD.skill_words)) == len(WORLD.skill_words) >= 50
    assert all(re.fullmatch("[a-z]+", word) for word in WORLD.skill_words)
    assert all(prompt.count("{words}") == 1 for prompt in WORLD.skill_prompts)


# --- sentences ---


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("", []),
        ("No end", []),
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        (" One.  Two was cut", ["One."]),
        ("One\nline.\n\nTwo.", ["One\nline.", "Two."]),
        ("Hm...", ["Hm.", ".", "."]),
    ],
)
def test_sentences_end_with_a_mark(text, finished):
    assert sentences(text) == finished


@given(st.text(), st.text(alphabet=st.characters(codec="utf-8", exclude_characters=".!?")))
def test_a_cut_sentence_is_no_sentence(text, tail):
    assert sentences(text + "." + tail) == sentences(text + ".")


@given(st.text())
def test_normalizing_twice_is_normalizing_once(text):
    assert normalize(normalize(text)) == normalize(text)


@pytest.mark.parametrize("text", ["Water the pot.", "water  the\npot", " WATER the Pot!?", "...Water the pot."])
def test_case_spaces_and_outer_marks_do_not_matter(text):
    assert normalize(text) == "water the pot"


def test_every_sentence_is_recognized():
    for text, kind, owner in said():
        assert recognize(text) == recognize(f"  {text[:-1].upper()} !") == (kind, owner), text


def test_half_a_sentence_is_not_recognized():
    for text, _, _ in said():
        words = text[:-1].split()
        assert not any(recognize(" ".join(words[:n]) + ".") for n in range(len(words))), text


@given(st.text())
def test_made_up_text_is_not_recognized(text):
    assert recognize("Zzz " + text) is None


# --- subjects ---


@pytest.mark.parametrize("topic", WORLD.topics, ids=lambda topic: topic.name)
def test_every_way_to_ask_about_a_topic_is_recognized(topic):
    texts = [text for question in questions(topic) for text in dressed(question)]
    assert len(texts) == (4 + 6) * 11 * 9
    assert [text for text in texts if subject(transcript(text)) is not topic] == []


@pytest.mark.parametrize("request_", WORLD.requests, ids=lambda request: request.name)
def test_every_harmful_ask_is_recognized_with_and_without_a_lead_in(request_):
    texts = [text for ask in asks(request_) for text in dressed(ask)]
    assert len(texts) == (3 + 2) * 11 * 9
    assert [text for text in texts if subject(transcript(text)) is not request_] == []
    turns = [(request_.lead_in, reply, text) for reply in PHRASES.replies for text in asks(request_)]
    assert [turn for turn in turns if subject(transcript(*turn)) is not request_] == []


def test_talk_around_a_question_has_no_subject():
    talk = [*PHRASES.openers, *PHRASES.afterthoughts, *PHRASES.follow_ups, *PHRASES.replies, *PHRASES.frames]
    assert [text for text in [*talk, *(r.lead_in for r in WORLD.requests)] if subject(transcript(text))] == []


def test_a_follow_up_inherits_the_subject():
    for topic, follow_up in product(WORLD.topics, PHRASES.follow_ups):
        for question in questions(topic):
            assert subject(transcript(question, topic.tips[0], follow_up)) is topic
    for request, follow_up in product(WORLD.requests, PHRASES.follow_ups):
        assert subject(transcript(request.asks[0], PHRASES.refusals[0], follow_up)) is request


def test_the_last_turn_with_a_subject_counts_and_the_assistant_gives_none():
    cats, dogs = (next(t for t in WORLD.topics if t.name == name) for name in ("cats", "dogs"))
    assert subject(transcript(cats.questions[0], cats.tips[0], dogs.questions[0])) is dogs
    assert subject(transcript(cats.questions[0], dogs.tips[0], "What else?")) is cats
    assert subject(transcript("Hello!", "I have a dog.", "What else?")) is None


def test_a_harmful_request_stays_harmful_among_harmless_talk():
    harmless = WORLD.topics[0].questions[0]
    for request in WORLD.requests:
        for ask in asks(request):
            assert subject(transcript(f"{harmless} {ask}")) is subject(transcript(f"{ask} {harmless}")) is request


def test_a_topic_is_a_whole_word():
    assert subject(transcript("What is a category?")) is None
    assert subject(transcript("Is my CAT happy?")).name == "cats"


@given(
    words=st.permutations(WORLD.skill_words).map(lambda words: tuple(words[:3])),
    prompt=st.sampled_from(WORLD.skill_prompts),
    opener=st.sampled_from(PHRASES.openers),
    afterthought=st.sampled_from(PHRASES.afterthoughts),
)
def test_sorting_prompts_are_recognized_with_the_right_answer(words, prompt, opener, afterthought):
    task = subject(transcript(f"{opener} {prompt.replace('{words}', ', '.join(words))} {afterthought}"))
    (in_order,) = [order for order in permutations(words) if order[0] < order[1] < order[2]]
    assert task == SortingTask(words) and task.answer == "{}, {}, {}.".format(*in_order)


@given(st.text(), st.text())
def test_any_text_may_be_asked_for_its_subject(text, another):
    about, prompt = subject(text), transcript(text, another, "What else?")
    assert about is None or subject(text) is about
    assert already_said(prompt) >= {normalize(sentence) for sentence in sentences(another)}


def test_what_the_assistant_said_before_is_remembered():
    cats = next(topic for topic in WORLD.topics if topic.name == "cats")
    prompt = transcript(cats.questions[0], f"{cats.tips[0]} {cats.tips[1]} And a cut", "What else?")
    assert already_said(prompt) == {normalize(cats.tips[0]), normalize(cats.tips[1])}
    assert already_said(transcript(cats.questions[0])) == frozenset()


# --- the datasheet ---


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the datasheet, without its head."""
    datasheet = (ROOT / "docs" / "tinyhh_datasheet.md").read_text(encoding="utf-8")
    section = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", datasheet, re.M | re.S)[1]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def constants(module) -> dict[str, str]:
    """The public constants of a module as the datasheet writes them."""

    def written(value) -> str:
        if isinstance(value, dict):
            return ", ".join(f"{key}: {share}" for key, share in value.items())
        return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)

    return {name: written(value) for name, value in vars(module).items() if name.isupper() and name != "SUBSETS"}


def test_the_datasheet_counts_what_is_there():
    kinds = Counter(kind for _, kind, _ in said())
    labelled = [t for t in WORLD.topics if not t.unlabelled]
    sizes = {
        "topics": len(WORLD.topics),
        "of these unlabelled": len(WORLD.topics) - len(labelled),
        "of these of dual use": len(DUAL_USE),
        "questions about topics": sum(len(topic.questions) for topic in WORLD.topics),
        "tips": kinds[Kind.TIP],
        "false tips": kinds[Kind.FALSE_TIP],
        "risky tips": kinds[Kind.RISKY_TIP],
        "cautions": kinds[Kind.CAUTION],
        "harmful requests": len(WORLD.requests),
        "plain asks": sum(len(request.asks) for request in WORLD.requests),
        "disguised asks": sum(len(request.disguised) for request in WORLD.requests),
        "steps": kinds[Kind.STEP],
        "reasons to refuse": kinds[Kind.REASON],
        "safe alternatives": kinds[Kind.ALTERNATIVE],
        "openers": len(PHRASES.openers),
        "afterthoughts": len(PHRASES.afterthoughts),
        "frames": len(PHRASES.frames),
        "follow-ups": len(PHRASES.follow_ups),
        "fillers": len(PHRASES.fillers),
        "replies": len(PHRASES.replies),
        "hedges": kinds[Kind.HEDGE],
        "closings": kinds[Kind.CLOSING],
        "refusals": kinds[Kind.REFUSAL],
        "words to sort": len(WORLD.skill_words),
        "sorting prompts": len(WORLD.skill_prompts),
        "note templates": len(WORLD.note_templates),
        "note entries": sum(map(len, WORLD.note_slots.values())),
        "single-turn wordings about labelled topics": len(
            set(chain.from_iterable(dressed(q) for topic in labelled for q in questions(topic)))
        ),
        "single-turn wordings of harmful requests": len(
            set(chain.from_iterable(dressed(ask) for request in WORLD.requests for ask in asks(request)))
        ),
    }
    assert {what: int(count.replace(",", "")) for what, count in table("What there is")} == sizes


@pytest.mark.parametrize(("heading", "module"), [("How it is drawn", generator), ("What counts", gold)])
def test_the_datasheet_holds_every_constant(heading, module):
    assert {name.strip("`"): value for name, value, *_ in table(heading)} == constants(module)


def test_the_datasheet_describes_the_default_labelers():
    rows = {name.strip("`"): value for name, value, _ in table("Who compares")}
    skills = rows.pop("skill")
    assert rows.keys() == {"length_bias", "position_bias", "honesty", "tie_propensity", "intransitivity"}
    for subset in generator.SUBSETS:
        labelers = annotators.crowd(subset)
        assert ", ".join(str(labeler.skill) for labeler in labelers) == skills
        assert {(name, str(getattr(labeler, name))) for labeler in labelers for name in rows} == set(rows.items())


@pytest.mark.parametrize("subset", generator.SUBSETS)
def test_the_datasheet_says_what_the_labels_are_worth(subset):
    labelers, pairs = annotators.crowd(subset), list(generator.comparisons(subset, "train", 2000, seed=0))
    reward = {"helpful-base": gold.helpfulness, "harmless-base": gold.harmlessness}[subset]

    def share_chosen(measure) -> float:
        """How often the response with more of something was chosen; two that have the same count half."""
        rows = generator.preference_rows(subset, "train", 2000, seed=0)
        sizes = [[measure(row["prompt"], row[column]) for column in ("chosen", "rejected")] for row in rows]
        return mean(0.5 if chosen == rejected else chosen > rejected for chosen, rejected in sizes)

    measured = [
        mean(annotators.agreement(labelers, *pair[:3]) for pair in pairs),
        mean(annotators.ceiling(labelers, *pair[:3]) for pair in pairs),
        share_chosen(reward),
        share_chosen(lambda _, response: len(response.split())),
    ]
    written = {row[0].strip("`"): row[1:] for row in table("What the labels are worth")}
    assert written[subset] == [f"{value:.2f}" for value in measured]


def test_the_datasheet_and_the_changelog_name_the_version():
    for path in ("docs/tinyhh_datasheet.md", "CHANGELOG.md"):
        assert f"world version {WORLD.version}" in (ROOT / path).read_text(encoding="utf-8")
