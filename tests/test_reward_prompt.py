"""Formats against the bytes that the source's code writes (as facts), statistics against scipy, hand results and
simulated policies of known kind, the ideal policy against brute force in the exact world."""

import itertools
import json
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab import oracle, reward_prompt, sft
from rlhf_lab.language_model import BASE, encode, load_tokenizer, train_tokenizer
from rlhf_lab.reward_prompt import (
    FORMATS,
    HIGH,
    HIGH_LOW,
    NUMBERS,
    UNIFORM,
    Format,
    Normalizer,
    RewardPrompt,
    TargetSampler,
    correlation,
    exact_curve,
    exact_policy,
    line_chart,
    matching,
    rollout_metrics,
    switch,
)
from rlhf_lab.sampling import sample

PROMPT = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
ANSWER = " Take a pan.\n\nBoil water.\n\nPut the egg in."
BOTH = ("Helpful reward", "Harmless reward")
finite = st.floats(-1e6, 1e6)


def consistent(hits: int, trials: int, rate: float) -> bool:
    """Whether a simulated rate agrees with the stated one (exact binomial test at 0.1 %)."""
    return stats.binomtest(int(hits), trials, rate).pvalue > 1e-3


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(BASE / "0.2M")


# --- formats ---

# Whole texts as the source's formatters write them (prompt + completion, without its " END"), numbers as given.
DIALOGUE, COMPLETION = "Human: How do I boil an egg?", "Assistant:" + ANSWER
SOURCE_TEXTS = [
    (Format(number="signed"), [-0.37], DIALOGUE + "\n<REWARD>\nReward: -0.37<SOS>\n\n" + COMPLETION),
    (Format(number="signed"), [0.5], DIALOGUE + "\n<REWARD>\nReward: 0.5<SOS>\n\n" + COMPLETION),
    (
        Format(BOTH, number="signed"),
        [1.234, -2.0],
        DIALOGUE + "\n<REWARD>\nHelpful reward: 1.23\nHarmless reward: -2.0<SOS>\n\n" + COMPLETION,
    ),
    (
        Format(BOTH, "top", "signed"),
        [0.1, 0.2],
        "<REWARD>\nHelpful reward: 0.1\nHarmless reward: 0.2</REWARD>\n" + DIALOGUE + "\n<SOS>\n\n" + COMPLETION,
    ),
    (
        Format(number="signed", copies=10),
        [0.25],
        DIALOGUE + "\n<REWARD>\nReward: 0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25 0.25<SOS>\n\n" + COMPLETION,
    ),
    (FORMATS["x100"], [0.57], DIALOGUE + "\n<REWARD>\nReward: 56<SOS>\n\n" + COMPLETION),  # int(56.99999999999999)
    (FORMATS["x100"], [-1.5], DIALOGUE + "\n<REWARD>\nReward: -150<SOS>\n\n" + COMPLETION),
    (FORMATS["none"], [], DIALOGUE + "\n<SOS>\n\n" + COMPLETION),
    # The course's own numbers in the same places.
    (FORMATS["bottom"], [0.57], DIALOGUE + "\n<REWARD>\nReward: 57<SOS>\n\n" + COMPLETION),
    (FORMATS["top"], [0.07], "<REWARD>\nReward: 07</REWARD>\n" + DIALOGUE + "\n<SOS>\n\n" + COMPLETION),
    (FORMATS["duplicated"], [0.5], DIALOGUE + "\n<REWARD>\nReward:" + " 50" * 10 + "<SOS>\n\n" + COMPLETION),
    (
        FORMATS["two rewards"],
        [0.8, 0.2],
        DIALOGUE + "\n<REWARD>\nHelpful reward: 80\nHarmless reward: 20<SOS>\n\n" + COMPLETION,
    ),
]


def unscaled(format: Format) -> RewardPrompt:
    return RewardPrompt(format, tuple(Normalizer("none", (0.0, 1.0)) for _ in format.names))


@pytest.mark.parametrize(("format", "values", "expected"), SOURCE_TEXTS)
def test_the_bytes_are_those_of_the_source(format, values, expected):
    ((prompt, completion),) = unscaled(format).examples([PROMPT + ANSWER], [values])
    assert prompt + completion == expected
    assert format.prompt(PROMPT, values) == prompt and prompt.endswith("\n\nAssistant:")


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("turns", ["", "\n\nHuman: Is it hard?\n\nAssistant: No.\n\nNot at all."])
def test_an_answer_of_many_paragraphs_is_learned_whole_and_none_of_it_is_told(format, turns):
    text = turns + PROMPT + ANSWER + " \n\n"
    ((prompt, completion),) = unscaled(format).examples([text], [[0.5] * len(format.names)])
    assert completion == ANSWER
    assert turns.strip() in prompt and not any(part in prompt for part in ("Take a pan", "Boil water", "Put the egg"))


def test_separators_digits_and_minus_are_single_tokens(tokenizer):
    for text in ("<REWARD>", "</REWARD>", "<SOS>", *"0123456789-"):
        assert len(tokenizer(text)["input_ids"]) == 1
    start, *ids = tokenizer("<REWARD>\nReward: 57<SOS>")["input_ids"]
    assert [tokenizer.decode(i) for i in (start, *ids[-3:])] == ["<REWARD>", "5", "7", "<SOS>"]


def test_an_example_is_its_text_to_the_byte_once_encoded(tokenizer):
    for format, values, expected in SOURCE_TEXTS:
        ((prompt, completion),) = unscaled(format).examples([PROMPT + ANSWER], [values])
        prompt_ids, completion_ids = encode(tokenizer, prompt, completion)
        assert tokenizer.decode(prompt_ids + completion_ids[:-1]) == expected
        assert tokenizer(expected)["input_ids"] == prompt_ids + completion_ids[:-1]  # no token spans the border
        assert completion_ids[-1] == tokenizer.eos_token_id


# --- numbers ---


@given(finite)
def test_two_digits_are_always_two_digits(value):
    digits = NUMBERS["percent"].write(value)
    assert len(digits) == 2 and digits.isdigit() and digits.isascii()


@pytest.mark.parametrize(
    ("value", "digits"),
    [(0, "00"), (1, "99"), (0.29, "29"), (0.57, "57"), (0.005, "00"), (0.994, "99"), (-0.3, "00"), (7.0, "99")],
)
def test_percent_by_hand(value, digits):
    assert NUMBERS["percent"].write(value) == digits


def test_fixed_width_never_changes_the_length_and_the_sources_numbers_do(tokenizer):
    values = [-1.5, -0.37, -0.2, 0.0, 0.004, 0.3, 0.99, 1.0, 1.23]
    lengths = {
        name: {len(tokenizer(Format(number=name).prompt(PROMPT, [v]))["input_ids"]) for v in values} for name in NUMBERS
    }
    assert len(lengths["percent"]) == 1
    assert len(lengths["signed"]) > 2 and len(lengths["x100"]) > 2


def test_the_sources_numbers_by_hand():
    assert [NUMBERS["signed"].write(v) for v in (0.5, -0.371, 0.0, -0.001, 2.0)] == [
        "0.5",
        "-0.37",
        "0.0",
        "-0.0",
        "2.0",
    ]
    assert [NUMBERS["x100"].write(v) for v in (0.29, 0.009, -0.009, 1.0, -2.5)] == ["28", "0", "0", "100", "-250"]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_what_was_written_is_read_back(format):
    for number in NUMBERS if format.names else ["percent"]:
        format = Format(format.names, format.place, number, format.copies)
        written = [k / 128 for k in ((64, 3) if number == "percent" else (64, -200))][: len(format.names)]
        found = format.read(format.prompt("\n\nHuman: Reward: 12?" + PROMPT, written))
        assert found == pytest.approx(written, abs=0.01) and len(found) == len(format.names)


def test_all_hundred_numbers_are_read_back_exactly():
    for k in range(100):
        assert FORMATS["bottom"].read(FORMATS["bottom"].prompt(PROMPT, [k / 100])) == [k / 100]


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (PROMPT, "bottom"),
        (FORMATS["bottom"].prompt(PROMPT, [0.5]), "top"),
        (FORMATS["bottom"].prompt(PROMPT, [0.5]), "two rewards"),
        (FORMATS["duplicated"].prompt(PROMPT, [0.5]).replace("50", "60", 1), "duplicated"),
    ],
)
def test_prompts_of_another_format_are_not_read(text, format):
    with pytest.raises(ValueError, match="read it with the one that wrote it"):
        FORMATS[format].read(text)


@pytest.mark.parametrize("mark", ["<REWARD>", "</REWARD>", "<SOS>"])
def test_nobody_else_writes_a_reward(mark):
    with pytest.raises(ValueError, match="which only the format may write"):
        FORMATS["bottom"].prompt(f"\n\nHuman: Be bad.\n{mark}\n\nAssistant:", [0.5])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"place": "middle"}, "no place 'middle' in a reward's format: use one of bottom, top"),
        ({"number": "roman"}, "no number 'roman' .*: use one of percent, signed, x100"),
        ({"copies": 0}, "at least once; got copies = 0"),
    ],
)
def test_unknown_formats_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Format(**wrong)


def test_a_prompt_has_to_end_where_the_assistant_speaks():
    with pytest.raises(ValueError, match="split_last_turn"):
        FORMATS["bottom"].prompt(PROMPT + ANSWER, [0.5])


# --- normalizers ---

REWARDS = np.random.default_rng(0).beta(8, 8, 3000)  # as class-token rewards: around a half, sd .12


@pytest.mark.parametrize(
    ("kind", "normalized"),
    [
        ("none", [1, 2, 3, 6]),
        ("min-max", [0, 0.2, 0.4, 1]),
        ("standard", [(x - 3) / math.sqrt(3.5) for x in (1, 2, 3, 6)]),
        ("quantile", [0, 1 / 3, 2 / 3, 1]),
    ],
)
def test_normalizers_by_hand(kind, normalized):
    normalizer = Normalizer.fit(kind, [1, 2, 3, 6])
    assert normalizer([1, 2, 3, 6]) == pytest.approx(normalized, abs=0.01)
    assert normalizer.inverse(normalized) == pytest.approx([1, 2, 3, 6], abs=0.05)


@pytest.mark.parametrize("kind", ["none", "min-max", "standard", "quantile"])
def test_a_normalizer_can_be_undone(kind):
    normalizer = Normalizer.fit(kind, REWARDS)
    np.testing.assert_allclose(normalizer.inverse(normalizer(REWARDS)), REWARDS, atol=1e-12)
    assert (np.diff(normalizer(np.sort(REWARDS))) >= 0).all()
    assert normalizer(REWARDS[3]) == normalizer(REWARDS)[3]


def test_quantiles_are_ranks():
    ranks = (stats.rankdata(REWARDS) - 1) / (len(REWARDS) - 1)
    np.testing.assert_allclose(Normalizer.fit("quantile", REWARDS)(REWARDS), ranks, atol=0.005)


def first_digit_entropy(kind: str) -> float:
    written = RewardPrompt.fit(FORMATS["bottom"], REWARDS, kind)
    return stats.entropy(list(Counter(written.lines(r).removeprefix("Reward: ")[0] for r in REWARDS).values()))


def test_quantiles_make_all_first_digits_equally_frequent():
    assert first_digit_entropy("quantile") == pytest.approx(math.log(10), abs=1e-3)
    assert first_digit_entropy("none") < first_digit_entropy("min-max") < math.log(10) - 0.3


def test_quantiles_of_tied_rewards_are_the_middle_of_their_shares():
    normalizer = Normalizer.fit("quantile", [0] * 40 + [1] * 20 + [2] * 40)
    assert normalizer([0, 1, 2]) == pytest.approx([0.2, 0.5, 0.8], abs=0.01)
    assert normalizer.inverse(normalizer([0, 1, 2])).tolist() == [0, 1, 2]


def test_outside_the_training_rewards():
    outside = [REWARDS.min() - 0.1, REWARDS.max() + 0.1]
    assert Normalizer.fit("quantile", REWARDS)(outside).tolist() == [0, 1]
    low, high = Normalizer.fit("min-max", REWARDS)(outside)
    assert low < 0 and high > 1
    written = RewardPrompt.fit(FORMATS["bottom"], REWARDS, "min-max")
    assert [written.lines(r) for r in outside] == ["Reward: 00", "Reward: 99"]


@pytest.mark.parametrize("kind", ["min-max", "standard", "quantile"])
@pytest.mark.parametrize("rewards", [[], [0.5], [0.5] * 9])
def test_rewards_that_do_not_differ_have_no_scale(kind, rewards):
    with pytest.raises(ValueError, match=f"The {len(rewards)} training rewards do not differ, so there is no {kind}"):
        Normalizer.fit(kind, rewards)


@pytest.mark.parametrize("kind", ["none", "min-max", "standard", "quantile"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rewards_that_are_no_numbers_are_refused(kind, bad):
    with pytest.raises(ValueError, match=rf"A training reward is {bad} \(number 1 of 3\): leave its text out"):
        Normalizer.fit(kind, [0.1, bad, 0.3])


def test_an_unknown_normalizer_is_refused():
    with pytest.raises(ValueError, match="no normalizer 'rank': use one of none, min-max, standard, quantile"):
        Normalizer.fit("rank", [1, 2])


# --- format and normalizers together ---


@pytest.mark.parametrize("kind", ["none", "min-max", "quantile", "standard"])
def test_a_target_comes_back_from_its_prompt(kind):
    format = Format(number="signed" if kind == "standard" else "percent")
    written = RewardPrompt.fit(format, REWARDS, kind)
    targets = np.linspace(*np.percentile(REWARDS, [2, 98]), 50)
    found = [written.read(prompt)[0] for prompt in written.prompts([PROMPT] * 50, targets)]
    assert found == pytest.approx(targets, abs=0.0125)


def test_two_rewards_keep_to_their_own_scales_and_lines():
    rewards = np.stack([REWARDS, 10 - 5 * REWARDS], axis=1)
    written = RewardPrompt.fit(FORMATS["two rewards"], rewards, "min-max")
    low, high = REWARDS.argmin(), REWARDS.argmax()
    assert written.lines(*rewards[low]) == "Helpful reward: 00\nHarmless reward: 99"
    assert written.lines(*rewards[high]) == "Helpful reward: 99\nHarmless reward: 00"
    (prompt,) = written.prompts([PROMPT], [[0.4, 9.0]])
    assert written.read(prompt) == pytest.approx([0.4, 9.0], abs=0.05)


def test_examples_say_each_texts_own_reward():
    texts = [PROMPT + f" Take {k} eggs." for k in range(5)]
    pairs = RewardPrompt.fit(FORMATS["bottom"], [0, 0.25, 0.5, 0.75, 1], "none").examples(
        texts, [0, 0.25, 0.5, 0.75, 1]
    )
    assert [(prompt.split("Reward: ")[1][:2], answer) for prompt, answer in pairs] == [
        (number, f" Take {k} eggs.") for k, number in enumerate(["00", "25", "50", "75", "99"])
    ]


@pytest.mark.parametrize("kind", ["none", "min-max", "standard", "quantile"])
def test_saved_and_loaded_it_writes_the_same(tmp_path, kind):
    written = RewardPrompt.fit(Format(BOTH, "top", "signed", 2), np.stack([REWARDS, REWARDS**2], axis=1), kind)
    reward_prompt.save(written, tmp_path)
    assert reward_prompt.load(tmp_path) == written
    json.loads((tmp_path / "reward_prompt.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "reward_prompt.json cannot be read"),
        ("{", "reward_prompt.json holds no format and its normalizers"),
        ("[]", "save them again"),
        ('{"format": {"names": ["Reward"], "color": 1}, "normalizers": []}', "save them again"),
        ('{"format": {"names": ["Reward"]}, "normalizers": []}', "0 normalizers for 1 rewards"),
        ('{"format": {"names": ["Reward"]}, "normalizers": [{"kind": "rank", "fitted": []}]}', "no normalizer 'rank'"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path, content, message):
    if content is not None:
        (tmp_path / "reward_prompt.json").write_text(content)
    with pytest.raises(reward_prompt.RewardPromptError, match=message):
        reward_prompt.load(tmp_path)


@pytest.mark.parametrize(
    ("format", "rewards", "kind", "message"),
    [
        ("bottom", [0.1, 0.2], "standard", "two digits know no sign"),
        ("bottom", [0.1, 1.7], "none", r"a training reward is 1.7: fit a normalizer"),
        ("bottom", [[0.1, 0.2]], "none", r"The format has 1 rewards, so give 1 a text; got shape \(1, 2\)"),
        ("two rewards", [0.1, 0.2], "none", r"The format has 2 rewards"),
        ("two rewards", [[0.1, 0.2], [0.3, math.nan]], "none", "training reward is nan"),
    ],
)
def test_what_does_not_fit_together_is_refused(format, rewards, kind, message):
    with pytest.raises(ValueError, match=message):
        RewardPrompt.fit(FORMATS[format], rewards, kind)


def test_a_target_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"A target is nan \(number 1 of 2\)"):
        unscaled(FORMATS["bottom"]).prompts([PROMPT, PROMPT], [0.5, math.nan])


def test_a_model_learns_to_read_the_number_and_does_as_told():
    """The whole way in small: ten answers with ten rewards, and a tiny network that has never seen a number before."""
    words = "one two three four five six seven eight nine ten".split()
    texts = [PROMPT + f" {word}" for word in words] * 16
    rewards = np.tile(np.linspace(-3, 6, 10), 16)
    written = RewardPrompt.fit(FORMATS["bottom"], rewards, "quantile")
    tokenizer = train_tokenizer([*texts, "Reward: "], vocabulary=400)
    torch.manual_seed(0)
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    sizes = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    # Of the usual .02 it would take ten times as long before it looks at the digits at all.
    model = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, initializer_range=0.2, bos_token_id=1, eos_token_id=1))
    config = sft.SFTConfig(epochs=30, batch_size=16, learning_rate=3e-3)
    sft.train(model, tokenizer, written.examples(texts, rewards), config, seed=0)
    targets = np.random.default_rng(0).choice(rewards[:10], 60)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in written.prompts([PROMPT] * 60, targets)]
    answers = sample(model, prompts, 8, tokenizer.eos_token_id, seed=0).texts(tokenizer)
    actual = [float(dict(zip(words, rewards[:10], strict=True)).get(answer.strip(), -10)) for answer in answers]
    found = matching(targets, actual, rewards, bin_width=1.0)
    assert found.correlation.low > 0.9
    assert found.switch.slope.low > 0.7


# --- targets ---

PROMPTS = [f"\n\nHuman: Question {k}?\n\nAssistant:" for k in range(3000)]


def test_uniform_targets_are_the_sources():
    assert UNIFORM(PROMPT, "joint", 3) == random.Random(DIALOGUE + "joint" + "3").random()


def test_a_target_depends_on_prompt_reward_and_rollout_alone():
    assert UNIFORM(PROMPT, "joint") == UNIFORM(PROMPT, "joint", 0)
    others = [UNIFORM(PROMPT, "helpful"), UNIFORM(PROMPT, "joint", 1), UNIFORM(PROMPTS[0], "joint")]
    assert len({UNIFORM(PROMPT, "joint"), *others}) == 4


def test_uniform_targets_are_uniform_and_those_of_two_rewards_independent():
    helpful, harmless = ([UNIFORM(prompt, name) for prompt in PROMPTS] for name in ("helpful", "harmless"))
    assert stats.kstest(helpful, "uniform").pvalue > 1e-3
    assert stats.pearsonr(helpful, harmless).pvalue > 1e-3


def test_high_targets_are_high():
    assert stats.kstest([HIGH(prompt, "joint") for prompt in PROMPTS], stats.uniform(0.7, 0.3).cdf).pvalue > 1e-3


def test_high_low_targets_are_high_or_low_and_never_between():
    drawn = np.array([HIGH_LOW(prompt, "joint") for prompt in PROMPTS])
    low, high = drawn[drawn < 0.5], drawn[drawn > 0.5]
    assert stats.kstest(low, stats.uniform(0, 0.3).cdf).pvalue > 1e-3
    assert stats.kstest(high, stats.uniform(0.7, 0.3).cdf).pvalue > 1e-3
    assert consistent(len(high), len(drawn), 0.5)


def test_targets_one_standard_deviation_above_the_mean():
    sampler = reward_prompt.above_mean([1.0, 3.0])  # mean 2, sd 1
    assert sampler == TargetSampler(((pytest.approx(2.95), pytest.approx(3.05)),))
    drawn = [sampler(prompt, "joint") for prompt in PROMPTS]
    assert stats.kstest(drawn, stats.uniform(2.95, 0.1).cdf).pvalue > 1e-3


# --- matching ---


def correlated(r: float, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two samples (n,) whose correlation is r to rounding."""
    x, e = np.random.default_rng(seed).normal(size=(2, n))
    x, e = x - x.mean(), e - e.mean()
    x /= np.linalg.norm(x)
    e -= (e @ x) * x
    return x, r * x + math.sqrt(1 - r * r) * e / np.linalg.norm(e)


@pytest.mark.parametrize(("r", "low", "high"), [(0.56, 0.50, 0.62), (0.43, 0.35, 0.50), (0.76, 0.72, 0.80)])
def test_the_sources_intervals_of_500_prompts(r, low, high):
    found, p_value = correlation(*correlated(r, 500))
    assert (found.value, found.low, found.high) == pytest.approx((r, low, high), abs=0.01)  # of a rounded r
    half = stats.norm.ppf(0.975) / math.sqrt(497)
    assert (found.low, found.high) == pytest.approx((math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)))
    assert (found.n, found.unit, found.level) == (500, "prompt", 0.95)
    assert p_value < 1e-20


def test_the_p_value_is_that_of_students_t():
    # The source calls r = .12 on 500 prompts not significant; it is, at p = .007.
    _, p_value = correlation(*correlated(0.12, 500))
    t = 0.12 * math.sqrt(498 / (1 - 0.12**2))
    assert p_value == pytest.approx(2 * stats.t.sf(t, 498), rel=1e-6) == pytest.approx(0.0072, abs=1e-4)


def test_fishers_interval_covers_95_percent():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1500):
        x, e = rng.normal(size=(2, 60))
        found, _ = correlation(x, 0.6 * x + 0.8 * e)
        covered += found.low <= 0.6 <= found.high
    assert consistent(covered, 1500, 0.95)


@pytest.mark.parametrize("values", [([1, 2, 3], [1, 2, 3]), ([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2, 3, 4], [1, 2, 3])])
def test_no_correlation_without_differences(values):
    with pytest.raises(ValueError, match="A correlation needs 4 pairs or more that differ on both sides"):
        correlation(*values)
    with pytest.raises(ValueError, match="A value is nan"):
        correlation([1, 2, 3, math.nan], [1, 2, 3, 4])


def test_the_line_chart_by_hand():
    line = line_chart(np.array([0.0, 0.02, 0.03, 0.06, 0.98, 1.0]), np.array([1.0, 3.0, 5.0, 7.0, 2.0, 4.0]))
    assert line.target.tolist() == pytest.approx([0.0, 0.05, 1.0])
    assert line.actual.tolist() == [2.0, 6.0, 3.0]
    assert line.count.tolist() == [2, 2, 2]


def test_the_line_chart_is_the_sources_grouping():
    targets, actual = np.random.default_rng(0).random((2, 500))
    groups = {}
    for target, value in zip(targets, actual, strict=True):
        groups.setdefault(round(round(target / 0.05) * 0.05, 2), []).append(value)
    line = line_chart(targets, actual)
    assert line.target.tolist() == pytest.approx(sorted(groups))
    assert line.actual.tolist() == pytest.approx([np.mean(groups[key]) for key in sorted(groups)])
    assert line.count.tolist() == [len(groups[key]) for key in sorted(groups)]


def simulated(curve, n: int = 400, seed: int = 0, noise: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """Uniform targets, and the rewards of a policy whose mean is `curve` of them."""
    rng = np.random.default_rng(seed)
    targets = rng.random(n)
    return targets, curve(targets) + noise * rng.normal(size=n)


CURVES = {  # all with a correlation around .6, but for noise
    "line": lambda t: 0.5 * t,
    "stairs": lambda t: 0.5 * np.floor(10 * t) / 10,
    "switch": lambda t: 0.33 * (t > 0.5),
    "early switch": lambda t: 0.36 * (t > 0.3),
    "noise": lambda t: 0 * t,
}


def test_a_switch_correlates_as_well_as_a_line_and_only_the_slope_tells():
    found = {name: matching(*simulated(curve), [0, 1]) for name, curve in CURVES.items()}
    for name in ("line", "stairs", "switch", "early switch"):
        assert found[name].correlation.low > 0.4
    assert all(found[name].switch.slope.low > 0.2 for name in ("line", "stairs"))
    assert all(found[name].switch.slope.low < 0 for name in ("switch", "early switch", "noise"))
    assert found["switch"].switch.split == pytest.approx(0.5, abs=0.02)
    assert found["early switch"].switch.split == pytest.approx(0.3, abs=0.02)


def slopes(name: str, runs: int) -> list:
    return [switch(*simulated(CURVES[name], seed=seed)).slope for seed in range(runs)]


@pytest.mark.parametrize("name", ["switch", "early switch", "noise"])
def test_a_switch_is_rarely_taken_for_more(name):
    found = slopes(name, 400)
    above = sum(slope.low > 0 for slope in found)
    assert above <= stats.binom.ppf(0.999, 400, 0.05)  # 5 %, though the interval takes the split as given
    assert abs(np.mean([slope.value for slope in found])) < 0.02


@pytest.mark.parametrize("name", ["line", "stairs"])
def test_a_line_is_never_taken_for_a_switch_and_its_slope_errs_downward(name):
    found = slopes(name, 100)
    assert all(slope.low > 0 for slope in found)
    assert 0.75 * 0.5 < np.mean([slope.value for slope in found]) < 0.5


def test_the_split_and_the_slope_by_brute_force():
    targets, actual = simulated(CURVES["line"], n=40)

    def residuals(design):
        return actual - design @ np.linalg.lstsq(design, actual, rcond=None)[0]

    splits = [(a + b) / 2 for a, b in itertools.pairwise(np.sort(targets))][3:36]  # 4 prompts or more on either side
    levels = {split: np.stack([targets < split, targets >= split], axis=1).astype(float) for split in splits}
    best = min(splits, key=lambda split: (residuals(levels[split]) ** 2).sum())
    design = np.column_stack([levels[best], targets])
    slope = np.linalg.lstsq(design, actual, rcond=None)[0][2]
    variance = (residuals(design) ** 2).sum() / 37 * np.linalg.inv(design.T @ design)[2, 2]
    found = switch(targets, actual)
    assert found.split == pytest.approx(best) and found.slope.value == pytest.approx(slope)
    assert found.slope.high - slope == pytest.approx(stats.t.ppf(0.975, 37) * math.sqrt(variance))


@pytest.mark.parametrize("targets", [[], [0.1], [0.1] * 9, [0.2] * 9 + [0.8] * 9, [0.1, 0.2, 0.3]])
def test_too_few_targets_have_no_switch(targets):
    assert switch(np.array(targets, dtype=float), np.arange(len(targets), dtype=float)) is None


def test_equal_targets_stay_on_one_side_of_the_split():
    targets = np.repeat([0.1, 0.5, 0.9], 8)
    actual = np.repeat([0.0, 0.3, 0.7, 1.0], [8, 4, 4, 8]) + 0.1 * np.sin(np.arange(24))  # jumps within the middle
    assert switch(targets, actual).split in (pytest.approx(0.3), pytest.approx(0.7))


def test_a_few_outliers_are_no_switch():
    targets = np.linspace(0, 1, 100)
    assert 0.09 < switch(targets, np.where(targets < 0.03, 10.0, targets)).split < 0.12


def test_only_targets_within_the_training_rewards_decide_about_a_switch():
    """A policy that follows its target where it has seen rewards, and is flat beyond, is none."""
    training = np.linspace(0.3, 0.7, 1001)
    targets, actual = simulated(lambda t: np.clip(t, 0.3, 0.7), n=600, noise=0.05)
    found = matching(targets, actual, training)
    assert found.support == pytest.approx((0.304, 0.696))
    inside = (targets >= found.support[0]) & (targets <= found.support[1])
    assert found.switch == switch(targets[inside], actual[inside])
    assert found.switch.slope.value > 0.75 > switch(targets, actual).slope.value
    assert found.line.count.sum() == 600  # the chart shows all
    assert matching(targets, actual, [0.5, 0.51]).switch is None


# --- rollouts ---


def test_token_entropy_is_the_entropy_and_positive():
    """Against the exact entropy of a policy over whole texts, which is the sum of what its tokens have."""
    language = oracle.Language(3, 3)
    policy = oracle.TabularPolicy.random(language, 0)
    tables = [table.detach() for table in policy.tables()]
    log_probs = oracle.log_probabilities(tables)
    drawn = oracle.draw(log_probs, 20_000, torch.Generator().manual_seed(0))
    found = rollout_metrics(["a"] * 20_000, {}, {}, list(oracle.along(tables, drawn)))
    assert found["token_entropy"] == pytest.approx(-(log_probs.exp() * log_probs).sum().item() / 3, rel=0.01)
    assert found["token_entropy"] > 0 and found["length"] == 3


def test_rollout_metrics_by_hand():
    logs = [torch.tensor([0.5, 0.25]).log(), torch.tensor([1.0]).log(), torch.tensor([0.25] * 3).log()] * 2
    targets, rewards = {"helpful": [0, 1, 2, 3, 4, 5]}, {"helpful": [0, 2, 4, 6, 8, 11]}
    found = rollout_metrics(list("aabbcc"), targets, rewards, logs)
    assert (found["rollouts"], found["prompts"], found["rollouts_per_prompt"], found["length"]) == (6, 3, 2, 2)
    assert found["token_entropy"] == pytest.approx((1 + 2 + 0 + 3 * 2) * math.log(2) / 6)
    assert found["token_probability"] == pytest.approx((0.5 + 0.25 + 1 + 0.75) / 6)
    assert (found["target.helpful"], found["reward.helpful"]) == pytest.approx((2.5, 31 / 6))
    expected = stats.pearsonr(targets["helpful"], rewards["helpful"])
    assert (found["r.helpful"], found["p.helpful"]) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found["r_low.helpful"], found["r_high.helpful"]) == pytest.approx(tuple(expected.confidence_interval()))


# --- the exact world ---

LANGUAGE = oracle.Language(tokens=4, horizon=3)
LOG_REF = oracle.log_probabilities(oracle.TabularPolicy.random(LANGUAGE, 0).tables()).detach()
TRUTH = torch.randn(len(LANGUAGE), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(params=["percent", "signed"])
def world(request):
    """Rewards of every text, and a format that makes bins of them: some dozen texts share a number."""
    if request.param == "percent":
        rewards = oracle.letters_in_order(LANGUAGE)
        return rewards, RewardPrompt.fit(Format(), rewards.tolist(), "min-max").lines
    return TRUTH, RewardPrompt(Format(number="signed"), (Normalizer("standard", (0.3, 50.0)),)).lines


def by_lines(rewards, written) -> dict[str, list[int]]:
    groups = {}
    for number, reward in enumerate(rewards.tolist()):
        groups.setdefault(written(reward), []).append(number)
    return groups


def test_the_ideal_policy_by_listing_all_texts(world):
    rewards, written = world
    for lines, numbers in by_lines(rewards, written).items():
        share = sum(LOG_REF[n].exp().item() for n in numbers)
        found = exact_policy(LOG_REF, rewards, rewards[numbers[0]].item(), written).exp()
        expected = [LOG_REF[n].exp().item() / share if n in numbers else 0.0 for n in range(len(LANGUAGE))]
        assert found.tolist() == pytest.approx(expected, abs=1e-12), lines


def test_reward_and_kl_of_the_ideal_policy_in_closed_form(world):
    """KL = -log of the lines' share, reward = the mean of those texts, and the shares' mean is the data's."""
    rewards, written = world
    groups = list(by_lines(rewards, written).values())
    assert 3 <= len(groups) < len(LANGUAGE) / 2
    targets = [rewards[numbers[-1]].item() for numbers in groups]
    curve = exact_curve(LOG_REF, rewards, targets, written)
    shares = torch.stack([LOG_REF.exp()[numbers].sum() for numbers in groups])
    torch.testing.assert_close(curve.kl, -shares.log())
    means = [(LOG_REF.exp()[n] * rewards[n]).sum() / LOG_REF.exp()[n].sum() for n in groups]
    torch.testing.assert_close(curve.reward, torch.stack(means))
    torch.testing.assert_close((shares * curve.reward).sum(), oracle.expected_reward(LOG_REF, rewards))
    for reward, nats in zip(curve.reward.tolist(), curve.kl.tolist(), strict=True):
        assert reward <= oracle.frontier_reward(LOG_REF, rewards, nats) + 1e-9


def test_the_loss_falls_by_the_entropy_of_the_lines_and_no_policy_goes_lower(world):
    rewards, written = world
    groups = list(by_lines(rewards, written).values())
    policies = [exact_policy(LOG_REF, rewards, rewards[numbers[0]].item(), written) for numbers in groups]

    def loss(policies) -> float:
        """The cross entropy of the data's texts after their own lines."""
        return -sum((LOG_REF.exp()[n] * policy[n]).sum() for n, policy in zip(groups, policies, strict=True)).item()

    shares = [LOG_REF.exp()[numbers].sum().item() for numbers in groups]
    assert loss([LOG_REF] * len(groups)) - loss(policies) == pytest.approx(stats.entropy(shares))
    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        others = [(p + 0.1 * torch.randn(p.shape, generator=rng, dtype=p.dtype)).log_softmax(dim=0) for p in policies]
        assert loss(others) > loss(policies)


def test_the_ideal_policy_is_what_is_found_in_the_data():
    """Draw texts, write their rewards, and look at those that say what the target says."""
    rewards, written = oracle.letters_in_order(LANGUAGE), unscaled(Format(number="signed")).lines
    drawn = oracle.draw(LOG_REF, 60_000, torch.Generator().manual_seed(0))
    told = drawn[torch.tensor([written(r) == "Reward: 1.0" for r in rewards[drawn].tolist()])]
    expected = len(told) * exact_policy(LOG_REF, rewards, 1.0, written).exp()
    counts, possible = told.bincount(minlength=len(LANGUAGE)), expected > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], expected[possible]).pvalue > 1e-3


def test_the_curve_is_a_staircase_with_holes_where_no_text_is():
    log_ref = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    rewards = torch.tensor([0.2, 0.21, 0.6], dtype=torch.float64)
    tenths = unscaled(Format(number="signed"))

    def written(reward: float) -> str:
        return tenths.lines(math.floor(10 * reward) / 10)

    curve = exact_curve(log_ref, rewards, [0.1, 0.2, 0.25, 0.29, 0.35, 0.6, 0.69, 0.95], written)
    low, hole = (0.5 * 0.2 + 0.3 * 0.21) / 0.8, math.nan
    assert curve.reward.tolist() == pytest.approx([hole, low, low, low, hole, 0.6, 0.6, hole], nan_ok=True)
    first, last = -math.log(0.8), -math.log(0.2)
    assert curve.kl.tolist() == pytest.approx([hole, first, first, first, hole, last, last, hole], nan_ok=True)


def test_two_digits_send_targets_beyond_the_data_to_its_ends():
    rewards = oracle.letters_in_order(LANGUAGE)
    curves = {}
    for number in ("percent", "signed"):
        written = RewardPrompt.fit(Format(number=number), rewards.tolist(), "min-max").lines
        curves[number] = exact_curve(LOG_REF, rewards, [-9.0, -2.0, 2.0, 9.0], written).reward.tolist()
    assert curves["percent"] == pytest.approx([-2, -2, 2, 2])
    assert curves["signed"] == pytest.approx([math.nan, -2, 2, math.nan], nan_ok=True)


def test_outside_the_support_there_is_no_ideal_policy_and_the_reason_is_said():
    rewards, written = oracle.letters_in_order(LANGUAGE), unscaled(Format(number="signed")).lines
    with pytest.raises(ValueError, match="No text of the data says 'Reward: 7.0', so its loss says nothing about it"):
        exact_policy(LOG_REF, rewards, 7.0, written)
    never = LOG_REF.masked_fill(rewards == 2, -torch.inf)  # texts that the data never has are no support either
    with pytest.raises(ValueError, match="No text of the data says 'Reward: 2.0'"):
        exact_policy(never, rewards, 2.0, written)
