"""Oracles: ratios by hand, a clock that is told what to say, brute-force counts of what the libraries produce, the
model's own probabilities, operations in closed form."""

import subprocess
import sys
from collections import Counter
from itertools import islice
from types import ModuleType

import pytest
import torch
from scipy import stats

from benchmarks import __main__ as command
from benchmarks import ppo, report, reward_model, sampling, seeds, training, trl_ppo
from benchmarks.measure import Row, compare, in_turn, table, timed
from rlhf_lab import ROOT, sft
from rlhf_lab import reward_model as lab_reward_model
from rlhf_lab import sampling as lab_sampling
from rlhf_lab.language_model import RUNGS, VOCABULARY, encode, load_base
from rlhf_lab.sampling import GPT2Decoder
from rlhf_lab.tinyhh import generator

LIMIT = 24
EXAMPLES = generator.demonstrations(32, seed=3)
PAIRS = generator.preference_rows("helpful-base", "train", 32, seed=3)


@pytest.fixture(scope="module")
def base():
    return load_base("1M")


@pytest.fixture(scope="module")
def prompts(base):
    return base[1](list(islice(generator.prompts("helpful-base", "test", 1), 24)))["input_ids"]


# --- measuring ---


class Clock:
    """Says what time it is, and passes only when told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_is_timed_from_its_start_to_its_end():
    clock = Clock()

    def run() -> str:
        clock.now += 2.5
        return "done"

    assert timed(run, clock) == ("done", 2.5)


def test_contenders_take_turns_after_a_warm_up_that_does_not_count():
    clock, calls = Clock(), []

    def contender(name: str, seconds: list[float]):
        waits = iter([1000.0, *seconds])  # the warm-up takes ages

        def run(work: str) -> float:
            calls.append((name, work))

            def pause() -> None:
                clock.now += next(waits)

            return 12 / timed(pause, clock)[1]

        return run

    speeds = in_turn([contender("A", [2, 3]), contender("B", [6, 4])], "prompts", 3, repeats=2)
    assert speeds == [[6, 4], [2, 3]]
    assert calls == [("A", "pro"), ("B", "pro"), *[("A", "prompts"), ("B", "prompts")] * 2]


def test_the_ratio_is_the_median_of_the_ratios():
    # 10/5 = 2, 30/10 = 3, 20/2 = 10: their median is 3, while the quotient of the medians would be 4.
    assert compare("x", [10, 30, 20], [5, 10, 2], "tokens/s", 2.5) == Row("x", 20, 5, "tokens/s", 3, 2, 10, 2.5)


def test_contenders_without_a_partner_are_an_error():
    with pytest.raises(ValueError):
        compare("x", [1, 2], [1], "tokens/s")


@pytest.mark.parametrize(("promise", "kept"), [(2.99, True), (3.0, True), (3.01, False), (None, True)])
def test_a_promise_is_kept_from_its_ratio_on(promise, kept):
    assert Row("x", 3, 1, "tokens/s", 3.0, 1.0, 4.0, promise).kept is kept


def test_the_table_says_plainly_what_is_missed():
    rows = [
        Row("good", 12345.6, 2469.12, "tokens/s", 5.0, 4.896, 5.1, 4.0),
        Row("bad", 40, 100, "GF/s", 0.4, 0.39, 0.41, 0.45),
        Row("free", 1, 2, "GF/s", 0.5, 0.5, 0.5, None),
    ]
    assert table(rows).splitlines() == [
        "| what | ours | theirs | unit | ratio (range) | promise |",
        "| --- | --- | --- | --- | --- | --- |",
        "| good | 12,346 | 2,469 | tokens/s | 5.00 (4.90 to 5.10) | at least 4: kept |",
        "| bad | 40 | 100 | GF/s | 0.40 (0.39 to 0.41) | at least 0.45: **missed** |",
        "| free | 1 | 2 | GF/s | 0.50 (0.50 to 0.50) |  |",
    ]


# --- sampling ---

ANSWERS = [sampling.sampled, sampling.sampled_through_cache, sampling.generated]


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_fixed_number_is_that_many_tokens_and_the_end_token_ends_nothing(base, prompts, answer):
    model, tokenizer = base
    responses = answer(model, sampling.FIXED_TOKENS, sampling.NEVER, prompts)
    assert [len(response) for response in responses] == [48] * len(prompts)
    assert any(tokenizer.eos_token_id in response[:-1] for response in responses)
    assert not any(tokenizer.pad_token_id in response for response in responses)


@pytest.mark.parametrize("answer", ANSWERS)
def test_responses_end_with_their_end_token_or_at_the_limit(base, prompts, answer):
    model, eos = base[0], base[1].eos_token_id
    responses = answer(model, LIMIT, eos, prompts)
    assert len(responses) == len(prompts)
    assert all(eos not in response[:-1] for response in responses)
    assert {response[-1] == eos or len(response) == LIMIT for response in responses} == {True}
    assert len({len(response) for response in responses}) > 1


def test_of_what_generate_returns_the_tokens_up_to_the_end_token_count(base, prompts, monkeypatch):
    model, eos = base[0], base[1].eos_token_id
    generate, returned = model.generate, []

    def recorded(ids, **options):
        returned.append(generate(ids, **options)[:, ids.shape[1] :])
        return returned[-1]

    monkeypatch.setattr(sampling, "BATCH", 10)  # three batches, the last of them smaller
    monkeypatch.setattr(model, "generate", lambda ids, **options: torch.cat([ids, recorded(ids, **options)], dim=1))
    responses = sampling.generated(model, LIMIT, eos, prompts)
    expected = 0
    for row in (row for batch in returned for row in batch):
        for token in row:
            expected += 1
            if token == eos:
                break
    assert [len(batch) for batch in returned] == [10, 10, 4]
    assert sum(map(len, responses)) == expected < sum(batch.numel() for batch in returned)


def test_generate_draws_from_the_full_distribution(base, prompts):
    """A chi-square test of the first token of two prompts, the shorter of which is padded."""
    model, draws = base[0], 600
    both = sorted(prompts, key=len)[:: len(prompts) // 2][:2]
    responses = sampling.generated(model, 1, sampling.NEVER, both * draws)
    for i, prompt in enumerate(both):
        found = Counter(response[0] for response in responses[i::2])
        with torch.no_grad():
            expected = model(torch.tensor([prompt])).logits[0, -1].double().softmax(dim=-1) * draws
        often = [token for token in range(VOCABULARY) if expected[token] >= 5]
        rest = draws - sum(expected[often].tolist())
        assert len(often) > 5 and rest > 5  # what a limit to the likely tokens would draw too rarely
        observed = [*(found[token] for token in often), draws - sum(found[token] for token in often)]
        assert stats.chisquare(observed, [*expected[often].tolist(), rest]).pvalue > 1e-3


def test_only_one_of_ours_takes_the_decoder_of_gpt2(base, prompts, monkeypatch):
    monkeypatch.setattr(lab_sampling, "CacheDecoder", None)
    sampling.sampled(base[0], 2, sampling.NEVER, prompts)
    with pytest.raises(AttributeError):
        sampling.sampled_through_cache(base[0], 2, sampling.NEVER, prompts)
    assert GPT2Decoder.supports(base[0])  # as before


def test_a_speed_is_tokens_over_seconds(monkeypatch):
    monkeypatch.setattr(sampling, "timed", lambda run: (run(), 2.0))
    assert sampling.speed(lambda prompts: [[5] * len(prompt) for prompt in prompts], [[1, 2, 3], [4]]) == 2.0


# --- training ---


@pytest.mark.parametrize("order", training.ORDERS)
def test_trl_trains_on_the_same_tokens(base, tmp_path, order):
    encoded = [encode(base[1], prompt, response) for prompt, response in EXAMPLES]
    batches = list(training.trainer("1M", order, EXAMPLES, str(tmp_path)).get_train_dataloader())
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == sum(len(r) for _, r in encoded)
    assert sum(int(batch["attention_mask"].sum()) for batch in batches) == training.tokens(base[1], EXAMPLES)
    assert training.tokens(base[1], EXAMPLES) == sum(len(p) + len(r) for p, r in encoded)


def test_trl_finds_the_same_loss(tmp_path):
    trained = training.trainer("1M", "random", EXAMPLES, str(tmp_path)).train()
    model, tokenizer = load_base("1M")
    losses = sft.train(model, tokenizer, EXAMPLES, training.CONFIG, seed=0)
    assert trained.global_step == len(losses) == 1
    assert trained.training_loss == pytest.approx(losses[0], abs=1e-4)


def test_examples_of_similar_length_leave_trl_less_padding(tmp_path):
    examples = generator.demonstrations(512, seed=3)
    padded = {}
    for order in training.ORDERS:
        batches = training.trainer("1M", order, examples, str(tmp_path)).get_train_dataloader()
        padded[order] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padded["group_by_length"] < 0.6 * padded["random"]


def test_what_is_tokenized_beforehand_is_encoded_alike(base):
    tokenized = training.Tokenized(base[1], EXAMPLES)
    assert [encode(tokenized, *example) for example in EXAMPLES] == [encode(base[1], *example) for example in EXAMPLES]


@pytest.mark.parametrize("contender", [training.ours, lambda rung, part: training.theirs(rung, "random", part)])
def test_the_time_of_training_is_divided_through(base, monkeypatch, contender):
    monkeypatch.setattr(training, "timed", lambda run: (run(), 4.0))
    assert contender("0.2M", EXAMPLES[:2]) == training.tokens(base[1], EXAMPLES[:2]) / 4


@pytest.mark.parametrize("rung", RUNGS)
def test_operations_in_closed_form(base, rung):
    """Two per weight and token forward and four backward: 12 D^2 weights a block, V D in the head, the latter for the
    tokens of the responses alone. Equal examples need no padding."""
    (prompt, response), (width, layers) = encode(base[1], *EXAMPLES[0]), RUNGS[rung]
    expected = 6 * (12 * width**2 * layers * len(prompt + response) + VOCABULARY * width * len(response))
    found = training.flops_per_token(rung, EXAMPLES[:1] * 4) * len(prompt + response)
    assert found == pytest.approx(expected, rel=1e-9)


# --- reward models ---


@pytest.mark.parametrize("order", reward_model.ORDERS)
def test_trl_reads_the_same_texts(tmp_path, order):
    judge, tokenizer = reward_model.model()
    batches = list(reward_model.trainer(order, PAIRS, str(tmp_path)).get_train_dataloader())
    found = sorted(
        ids[mask.bool()].tolist()
        for batch in batches
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    )
    texts = [(pair["prompt"], pair[side]) for pair in PAIRS for side in ("chosen", "rejected")]
    assert found == sorted(sum(encode(tokenizer, *text), []) for text in texts)


def test_trl_finds_the_same_loss_of_the_same_reward_model(tmp_path):
    trained = reward_model.trainer("random", PAIRS, str(tmp_path)).train()
    judge, tokenizer = reward_model.model()
    losses = lab_reward_model.train(judge, tokenizer, PAIRS, reward_model.CONFIG, seed=0)
    assert trained.global_step == len(losses) == 1
    assert trained.training_loss == pytest.approx(losses[0], abs=1e-5)


def test_pairs_of_similar_length_leave_trl_less_padding(tmp_path):
    pairs = generator.preference_rows("helpful-base", "train", 512, seed=3)
    padded = {}
    for order in reward_model.ORDERS:
        batches = reward_model.trainer(order, pairs, str(tmp_path)).get_train_dataloader()
        padded[order] = sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
    assert padded["group_by_length"] < 0.6 * padded["random"]


@pytest.mark.parametrize("contender", [reward_model.ours, lambda pairs: reward_model.theirs("random", pairs)])
def test_a_speed_is_pairs_over_the_seconds_of_training(monkeypatch, contender):
    monkeypatch.setattr(reward_model, "timed", lambda run: (run(), 4.0))
    assert contender(PAIRS[:6]) == 1.5


# --- seeds ---


def test_the_same_seeds_are_tuned_here_there_and_on_a_cluster(monkeypatch):
    """Whoever does the work, it is the same: two seeds, each with the losses that it has alone."""
    expected, done = [seeds.tuned(8, seed) for seed in (0, 1)], []
    monkeypatch.setattr(seeds, "timed", lambda run: (done.append(run()), 30.0))
    address = "tcp://127.0.0.1:1"
    on_cluster = lambda address, jobs: done.append(address) or [f(*args, **kwargs) for f, args, kwargs in jobs]  # noqa: E731
    monkeypatch.setattr("rlhf_lab.parallel._run_on_cluster", on_cluster)
    contenders = [seeds.one_after_the_other, seeds.on_joblib, seeds.on_dask(address)]
    assert [contender(range(8)) for contender in contenders] == [4.0] * 3
    assert done == [expected, expected, address, expected]


# --- the command and its page ---


def test_the_older_trl_is_given_the_scores_that_ours_gets(base, prompts):
    _, _, judge, tokenizer = trl_ppo.models()
    eos = tokenizer.eos_token_id
    responses = lab_sampling.sample(base[0], prompts, LIMIT, eos, seed=0).responses
    assert len({response[-1] == eos for response in responses}) == 2  # some have ended, some were cut
    found = trl_ppo.scores(judge, tokenizer, [p + r for p, r in zip(prompts, responses, strict=True)])
    expected = lab_reward_model.score_tokens(judge, prompts, responses, eos)
    torch.testing.assert_close(torch.stack(found), expected, atol=1e-5, rtol=0)


def test_operations_are_those_of_supervised_training_on_the_same_tokens(base):
    prompt, response = encode(base[1], *EXAMPLES[0])
    expected = training.flops_per_token("1M", EXAMPLES[:1] * 4) * len(prompt + response)
    assert ppo.operations(base[0], [prompt] * 2, [response] * 2) == pytest.approx(2 * expected, rel=1e-9)


def test_our_update_is_timed_in_its_parts(prompts, monkeypatch):
    clock = iter([0.25, 0.5, 2.0])
    monkeypatch.setattr(ppo, "timed", lambda run: (run(), next(clock)))
    found = ppo.ours(prompts)
    reading = found["reference"]
    assert 0 < reading < 2
    assert found["generate"], found["score"] == (0.25, 0.5)
    assert found["update"] == 2 - reading


def test_an_update_is_as_fast_as_its_parts_together():
    turns = [[{"generate": 1.0, "score": 1.0, "reference": 2.0, "update": seconds}] for seconds in (4.0, 12.0)]
    whole, update = (ppo.against("x", *turns, parts) for parts in (ppo.PARTS, ["update"]))
    assert (whole.ours, whole.theirs, whole.ratio) == (128 / 8, 128 / 16, 2)
    assert update.ratio == 3


def test_both_get_our_settings():
    assert ppo.SETTINGS.items() <= vars(ppo.CONFIG).items()
    assert (ppo.CONFIG.epochs, ppo.CONFIG.minibatches, ppo.CONFIG.batch_size) == (2, 4, ppo.PROMPTS)


@pytest.mark.faults
def test_a_peer_that_fails_says_why(monkeypatch, tmp_path):
    """The course's own TRL has no PPO."""
    monkeypatch.setattr(trl_ppo, "install", lambda version: tmp_path)
    with trl_ppo.Peer(trl_ppo.NEW, ppo.SETTINGS) as peer, pytest.raises(RuntimeError, match="trl.experimental.ppo"):
        peer.update([[5, 6]] * 4)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Two benchmarks, one of which may miss its promise; the page goes to a folder of its own."""
    ratios = {"first": 3.0, "second": 5.0}
    for name in ratios:
        module = ModuleType(f"benchmarks.{name}", f"The {name} one.\n\nTimed is nothing.")
        module.measure = lambda repeats, name=name: [compare(name, [ratios[name]] * repeats, [1.0] * repeats, "x", 2.0)]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(command, "BENCHMARKS", tuple(ratios))
    monkeypatch.setattr(report, "PAGE", tmp_path / "speed.md")
    monkeypatch.setattr("rlhf_lab.book.sgemm_gflops", lambda: 77.0)
    return ratios


def test_all_benchmarks_write_the_page(fake, capsys):
    assert command.main(["--repeats", "2"]) == 0
    text, printed = report.PAGE.read_text(encoding="utf-8"), capsys.readouterr().out
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Speed",
        "## The first one",
        "## The second one",
    ]
    assert "| first | 3 | 1 | x | 3.00 (3.00 to 3.00) | at least 2: kept |\n\nTimed is nothing.\n" in text
    assert "77 GF/s" in text and f"torch {torch.__version__.partition('+')[0]}" in text and ", 2 turns\n" in text
    assert printed.index("## The first one") < printed.index("## The second one")


def test_some_benchmarks_leave_the_page_alone(fake, capsys):
    assert command.main(["second"]) == 0
    assert "| second |" in capsys.readouterr().out
    assert not report.PAGE.exists()


def test_a_missed_promise_fails_the_command(fake):
    fake["first"] = 1.9
    assert command.main([]) == 1
    assert "at least 2: **missed**" in report.PAGE.read_text(encoding="utf-8")


@pytest.mark.faults
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["sampling", "nope"],
            "There is no benchmark 'nope': there are sampling, training, reward_model, ppo, seeds.\n",
        ),
        (["--repeats", "0"], "The number of repeats must be at least 1.\n"),
    ],
)
def test_what_cannot_be_meant_gets_one_sentence(capsys, words, sentence):
    assert command.main(words) == 2
    assert capsys.readouterr().err == sentence


def test_the_page_itself_is_no_change_of_the_code(monkeypatch, tmp_path):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    page, code = tmp_path / report.PAGE, tmp_path / "code.py"
    page.parent.mkdir()
    page.write_text("1")
    code.write_text("1")
    settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(tmp_path), *settings, *words], check=True)
    page.write_text("2")
    assert not report.changed()
    code.write_text("2")
    assert report.changed()


@pytest.mark.parametrize("benchmark", [sampling, training, reward_model, ppo, seeds], ids=command.BENCHMARKS)
def test_the_published_page_keeps_every_promise(benchmark):
    text = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    _, _, explanation = benchmark.__doc__.partition("\n\n")
    assert explanation.strip() in text
    assert benchmark.PROMISES
    for what, promise in benchmark.PROMISES.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"| {what} |")]
        assert line.endswith(f"| at least {promise:g}: kept |")
