"""Recipes of part 4. Oracles: counts of what was seen to be drawn, hand-made data, an exact probability, weights before
and after. The policy is a small one that ends its answers as the base model ends its texts; nothing is trained that no
test looks at."""

import copy
import hashlib
import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf_lab import instructions, language_model, ppo, recipes, reward_model, transcripts
from rlhf_lab.ppo import PPOConfig
from rlhf_lab.profiles import Profile
from rlhf_lab.sampling import Samples, sample
from rlhf_lab.tinyhh import generator

RUN = replace(recipes.TutorialRun.of(Profile.load("smoke")), test_prompts=8)
BATCH, EXPECTED = 16, 16  # answers a step; tokens of an answer that PPO plans for, fewer than this policy writes
TOKENS = 1500  # a budget of several steps
ONLINE, FROM_PAIRS = ("ppo", "ppo_zero", "rloo", "grpo"), ("dpo", "dpo_mean", "dpo_mean_scaled")
HUMAN, ASSISTANT = recipes.PAIR_TOKENS


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What is made here is made of other things than the recipes say: nobody is to find it again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_LAB_CACHE", str(tmp_path_factory.mktemp("cache")))
        for variable in ("DLITE_DIR", "REWARD_MODEL_DIR", "HH_RLHF_DIR"):
            patch.delenv(variable, raising=False)
        yield


@pytest.fixture(scope="module")
def both():
    """The base model, which writes the end key wherever it would have ended its text, and its tokenizer."""
    model, tokenizer = recipes.base("0.2M")
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(instructions.END)]
    with torch.no_grad():
        model.transformer.wte.weight[ends] = model.transformer.wte.weight[ends[::-1]]
    tokenizer.eos_token = instructions.END
    return model, tokenizer


def fingerprint(model) -> str:
    parts = (name.encode() + value.numpy().tobytes() for name, value in sorted(model.state_dict().items()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def count(responses) -> int:
    return sum(map(len, responses))


# --- data ---


def test_training_instructions_are_the_first_short_ones_and_none_is_held_out(monkeypatch):
    long, opening = "x" * 100, "\n\nHuman: {}\n\nAssistant:"
    more = opening.format("Who?") + " Me." + opening.format("Really?")
    train = [opening.format(asked) for asked in ("Why?", long, "A\nB?", "Why?", "How?", "When?")]
    test = [opening.format(asked) for asked in ("How?", "A B?", long, "When?", "Where?", "What?")] + [more]
    rows = {
        "train": {"prompt": train},
        "test": [{"prompt": prompt, "chosen": f" {n}", "rejected": " no"} for n, prompt in enumerate(test)],
    }
    monkeypatch.setattr(recipes, "tutorial_preferences", lambda run, seed: (rows, None))
    asked, held_out = recipes.tutorial_data(replace(RUN, prompts=4, test_prompts=3), 0)
    assert asked == ["Why?", "A B?", "Why?", "How?"]  # "When?" came too late to be trained on
    assert [(row["instruction"], row["chosen"]) for row in held_out] == [
        ("When?", " 3"),
        ("Where?", " 4"),
        ("What?", " 5"),
    ]
    assert len(recipes.tutorial_data(replace(RUN, prompts=4, test_prompts=9), 0)[1]) == 4  # and "Who?"


def test_the_miniature_world_has_as_many_instructions_as_were_asked_for(cache):
    for seed in range(3):
        asked, held_out = recipes.tutorial_data(RUN, seed)
        assert len(asked) == RUN.prompts and len(held_out) == RUN.test_prompts
        assert not set(asked) & {row["instruction"] for row in held_out}


# --- the two stand-ins ---


def one_turn(text: str) -> bool:
    return len(transcripts.parse(text)) == 2


def test_the_stand_in_learns_from_one_turn_demonstrations_to_end_with_the_end_key(cache, monkeypatch):
    given, train = [], recipes.sft.train
    monkeypatch.setattr(
        recipes.sft, "train", lambda model, tok, rows, *rest: given.extend(rows) or train(model, tok, rows, *rest)
    )
    policy, tokenizer = recipes.instruction_policy("0.2M", 120, seed=3)
    written = recipes.best_demonstrations(120, "train", 3)
    kept = [(prompt, response) for prompt, response in written if one_turn(prompt + response)]
    assert 0 < len(kept) < len(written)
    assert given == [(instructions.template(instructions.first_instruction(p)), response) for p, response in kept]
    assert tokenizer.eos_token == instructions.END
    assert language_model.encode(tokenizer, *given[0])[1][-1] == tokenizer.convert_tokens_to_ids("### End")
    assert policy.config.eos_token_id == policy.generation_config.eos_token_id == tokenizer.eos_token_id
    held_out = instructions.demonstrations(recipes.best_demonstrations(40, "test", 3))
    before, _ = recipes.base("0.2M")
    ends = [ending(model, tokenizer, held_out) for model in (before, policy)]
    assert ends[0] - ends[1] > 1  # nats


@torch.no_grad()
def ending(model, tokenizer, rows) -> float:
    """Nats that the end key costs after responses, on average."""
    encoded = [language_model.encode(tokenizer, *row) for row in rows]
    found, mask = language_model.response_log_probabilities(model, *zip(*encoded, strict=True))
    last = mask.sum(dim=1).long() - 1
    return -found[range(len(rows)), last].mean().item()


@pytest.fixture(scope="module")
def judge_made(cache):
    """A reward model of our own, and what it was made of: the texts and the pairs, tokenized as they were read then."""
    seen, fine_tune, fit = SimpleNamespace(), recipes.sft.train, recipes.reward_model.train

    def tune(model, tokenizer, rows, *rest):
        seen.texts = {text: language_model.encode(tokenizer, prompt, text) for prompt, text in rows}
        return fine_tune(model, tokenizer, rows, *rest)

    def compare(model, tokenizer, rows, *rest):
        seen.rows = rows
        seen.ids = [
            [reward_model.read(model, tokenizer, row["prompt"], row[s], 256) for s in ("chosen", "rejected")]
            for row in rows
        ]
        return fit(model, tokenizer, rows, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes.sft, "train", tune)
        patch.setattr(recipes.reward_model, "train", compare)
        seen.judge = recipes.pair_reward_model(80, 60, seed=1)
    return seen


@pytest.fixture(scope="module")
def judge(judge_made):
    return judge_made.judge


def test_the_reward_model_is_fitted_to_the_one_turn_comparisons(judge_made):
    rows = [row for row in generator.preference_rows("helpful-base", "train", 60, 1) if one_turn(row["prompt"] + " x")]
    assert 0 < len(rows) < 60
    for row, made in zip(rows, judge_made.rows, strict=True):
        assert made["prompt"] == f"{HUMAN}{instructions.first_instruction(row['prompt'])}{ASSISTANT}"
        assert (made["chosen"], made["rejected"]) == (row["chosen"].strip(), row["rejected"].strip())


def test_pairs_are_read_as_they_were_in_training(judge_made):
    """Read from the disk again, by another call of the tokenizer."""
    judge, (_, other) = judge_made.judge, recipes.base("0.2M")
    asked = [row["prompt"].removeprefix(HUMAN).removesuffix(ASSISTANT) for row in judge_made.rows]
    for place, side in enumerate(("chosen", "rejected")):
        said = [row[side] for row in judge_made.rows]
        assert judge.tokenizer(asked, said)["input_ids"] == [ids[place] for ids in judge_made.ids]
        prompts = [row["prompt"] for row in judge_made.rows]
        scores = reward_model.score(judge.model, judge.tokenizer, prompts, said).tolist()
        assert judge(asked, said) == pytest.approx(scores, abs=1e-5)
    assert judge.tokenizer.get_vocab() != other.get_vocab() and len(judge.tokenizer) != len(other)
    assert [judge.tokenizer(text)["input_ids"] for text in asked] != [other(text)["input_ids"] for text in asked]


def test_the_language_model_beneath_it_reads_dialogues_the_same_way(judge_made):
    """A whole one-turn dialogue is, token for token, the pair."""
    assert not any("\n\nHuman: " in text or "\n\nAssistant: " in text for text in judge_made.texts)
    turns = {text: text.removeprefix(HUMAN).split(ASSISTANT) for text in judge_made.texts if text.count(HUMAN) == 1}
    turns = {text: parts for text, parts in turns.items() if len(parts) == 2}
    assert turns
    for text, (asked, said) in turns.items():
        assert (asked, said) == (asked.strip(), said.strip())
        first, rest = judge_made.texts[text]
        assert judge_made.judge.tokenizer(asked, said)["input_ids"] == first + rest


# --- ours and the library's ---


@pytest.mark.parametrize(
    ("recipe", "sizes", "ours", "theirs"),
    [
        (recipes.fine_tuned_by, (20,), (recipes.sft, "train"), (recipes.library, "fine_tune")),
        (recipes.fitted_by, (6, 5), (recipes.reward_model, "train"), (recipes.library, "fit_reward_model")),
    ],
)
def test_ours_and_trls_trainer_start_from_the_same_weights_and_learn_the_same(monkeypatch, recipe, sizes, ours, theirs):
    begun = []

    def learn(name):
        def note(model, tokenizer, rows, config, seed):
            begun.append((name, fingerprint(model), tokenizer.eos_token, rows, config, seed))
            return [1.23456]

        return note

    for name, place in (("ours", ours), ("trl", theirs)):
        monkeypatch.setattr(*place, learn(name))
    found = [recipe.__wrapped__(name, "0.2M", *sizes, 2) for name in ("ours", "trl")]
    assert [name for name, *_ in begun] == ["ours", "trl"] and begun[0][1:] == begun[1][1:]
    assert found[0] == found[1] and found[0]["losses"] == [1.2346]
    base, tokenizer = recipes.base("0.2M")
    _, weights, end, rows, *_ = begun[0]
    if recipe is recipes.fitted_by:
        judge = reward_model.from_language_model(base, 2)
        assert weights == fingerprint(judge) and rows == recipes.preference_pairs("helpful", "train", 6, 2)
        tests = recipes.preference_pairs("helpful", "test", 5, 2)
        sides = recipes.scored(reward_model.score, judge, tokenizer, tests)
        assert found[0]["right"] == [a > b for a, b in zip(sides["chosen"], sides["rejected"], strict=True)]
    else:
        assert weights == fingerprint(base) and end == instructions.END
        assert rows == instructions.demonstrations(recipes.best_demonstrations(20, "train", 2))
        held_out = instructions.demonstrations(recipes.best_demonstrations(20, "test", 2))
        tokenizer.eos_token = instructions.END
        assert found[0]["nats"] == pytest.approx(math.log(language_model.perplexity(base, tokenizer, held_out)))


# --- pairs of the first policy's answers ---


@pytest.fixture
def drawn(monkeypatch):
    """What the recipes draw from now on: model, prompts, settings and responses of each call."""
    calls = []

    def look(model, prompts, *settings):
        samples = sample(model, prompts, *settings)
        calls.append(SimpleNamespace(model=model, prompts=prompts, settings=settings, responses=samples.responses))
        return samples

    monkeypatch.setattr(recipes, "sample", look)
    return calls


@pytest.fixture
def start(monkeypatch, both, judge):
    """Every run of a recipe starts from a copy of the small policy."""
    monkeypatch.setattr(recipes, "tutorial_policy", lambda run, seed: (copy.deepcopy(both[0]), both[1]))
    monkeypatch.setattr(recipes, "tutorial_reward_model", lambda run, seed: judge)


def test_pairs_are_two_answers_of_the_first_policy_until_the_tokens_are_written(start, both, drawn):
    run, (policy, tokenizer) = replace(RUN, prompts=300), both
    found = recipes.library_pairs.__wrapped__(run, 2 * 128 * 20, 4)
    asked, templates = recipes.tutorial_data(run, 4)[0], []
    expected = Counter()
    for call in drawn:
        assert fingerprint(call.model) == fingerprint(policy)
        assert call.settings[:2] == (64, tokenizer.eos_token_id) and len(call.prompts) == recipes.LIBRARY_BATCH
        answers, prompts = instructions.answers(tokenizer, call.responses), tokenizer.batch_decode(call.prompts)
        assert prompts[:64] == prompts[64:]
        templates += prompts[:64]
        for prompt, *sides in zip(prompts, answers[:64], answers[64:], strict=False):
            expected[prompt, frozenset(f" {side}" for side in sides)] += 1
    assert templates == [instructions.template(text) for text in asked[: len(templates)]]
    made = Counter((pair["prompt"], frozenset((pair["chosen"], pair["rejected"]))) for pair in found["pairs"])
    assert made == {key: n for key, n in expected.items() if len(key[1]) == 2}
    tokens = [count(call.responses) for call in drawn]
    assert found["tokens"] == sum(tokens)  # end keys among them, they are in the responses
    assert 1 < len(tokens) and sum(tokens[:-1]) < 2 * 128 * 20 <= sum(tokens)
    assert len({call.settings[2] for call in drawn}) == len(drawn)  # no batch draws the numbers of another


def test_pairs_end_with_the_instructions(start, drawn):
    run = replace(RUN, prompts=70)
    assert recipes.library_pairs.__wrapped__(run, 10**9, 0)["tokens"] == sum(count(call.responses) for call in drawn)
    assert [len(call.prompts) for call in drawn] == [128, 2 * 6]


WORTH = {"yes": 1.5, "no": -0.7, "so": 0.4}


@pytest.fixture
def many_pairs(monkeypatch, both):
    """Some thirteen thousand pairs of three answers of known scores, with the order in which they were drawn."""
    policy, tokenizer = both
    words = {answer: [*tokenizer(f" {answer}")["input_ids"], tokenizer.eos_token_id] for answer in WORTH}
    order, asked = [], [f"Ask {n}" for n in range(20_000)]

    def draw(model, prompts, tokens, eos, seed):
        numbers = torch.randint(3, (len(prompts),), generator=torch.Generator().manual_seed(seed)).tolist()
        order.append([list(WORTH)[number] for number in numbers])
        return Samples([words[answer] for answer in order[-1]], [], [])

    monkeypatch.setattr(recipes, "sample", draw)
    monkeypatch.setattr(recipes, "tutorial_policy", lambda run, seed: (policy, tokenizer))
    monkeypatch.setattr(recipes, "tutorial_data", lambda run, seed: (asked, []))

    def judge(batch, answers):
        return [WORTH[answer] + 10 * (int(text[4:]) % 3) for text, answer in zip(batch, answers, strict=True)]

    monkeypatch.setattr(recipes, "tutorial_reward_model", lambda run, seed: judge)
    found = recipes.library_pairs.__wrapped__(RUN, 10**9, 7)
    drawn = [(a, b) for batch in order for a, b in zip(batch, batch[len(batch) // 2 :], strict=False)]
    assert found["tokens"] == sum(len(words[answer]) for pair in drawn for answer in pair)
    return [pair for pair in drawn if pair[0] != pair[1]], found["pairs"]


def test_the_label_follows_the_scores_with_the_probability_that_they_stand_for(many_pairs):
    """Whichever of the two was drawn first, and whatever the zero of the prompt's scores."""
    drawn, pairs = many_pairs
    assert len(pairs) == len(drawn) > 12_000  # two equal answers are no pair
    wins, seen = Counter(), Counter()
    for sides, pair in zip(drawn, pairs, strict=True):
        assert {pair["chosen"], pair["rejected"]} == {f" {side}" for side in sides}
        seen[sides] += 1
        wins[sides] += pair["chosen"] == f" {sides[0]}"
    assert len(seen) == 6
    for (first, second), number in seen.items():
        chance = 1 / (1 + math.exp(WORTH[second] - WORTH[first]))
        deviation = math.sqrt(chance * (1 - chance) / number)
        assert wins[first, second] / number == pytest.approx(chance, abs=4 * deviation)


# --- the methods ---


def take_small_steps(patch) -> None:
    config = replace(recipes.library.OnlineConfig(), answers=BATCH)
    patch.setattr(recipes, "LIBRARY_BATCH", BATCH)
    patch.setattr(recipes, "LIBRARY_EXPECTED", EXPECTED)
    patch.setattr(recipes.library, "OnlineConfig", lambda: config)
    patch.setattr(recipes.library, "GRPO", replace(recipes.library.GRPO, answers=BATCH))


@pytest.fixture(scope="module")
def runs(cache, both, judge):
    """One run of each method, and what was seen of it."""
    with pytest.MonkeyPatch.context() as patch:
        take_small_steps(patch)
        patch.setattr(recipes, "tutorial_policy", lambda run, seed: (copy.deepcopy(both[0]), both[1]))
        return {method: watched(method, judge) for method in (*ONLINE, *FROM_PAIRS, "start")}


def watched(method: str, judge) -> SimpleNamespace:
    """`found`; `learners`, who learned; the policy's and the reference's `weights` before and after that; `settings`,
    what else the learner was given; `drawn`, lists of the tokens drawn; `judged`, what the reward model read."""
    seen = SimpleNamespace(learners=[], weights=[], settings=[], judged=[], drawn={"ppo": [], "recipes": [], "trl": []})

    def look(learn, name):
        def note(policy, reference, *rest):
            seen.learners.append(name)
            seen.settings.append(rest)
            assert reference is not policy
            seen.weights += [fingerprint(policy), fingerprint(reference)]
            result = learn(policy, reference, *rest)
            seen.weights += [fingerprint(policy), fingerprint(reference)]
            return result

        return note

    def listen(draw, name):
        def note(*settings, **options):
            samples = draw(*settings, **options)
            seen.drawn[name].append(count(samples.responses))
            return samples

        return note

    def answers(tokenizer, responses, read=instructions.answers):
        seen.drawn["trl"].append(count(responses))
        return read(tokenizer, responses)

    def score(asked, answers):
        seen.judged.append((asked, answers))
        return judge(asked, answers)

    with pytest.MonkeyPatch.context() as here:
        here.setattr(recipes, "tutorial_reward_model", lambda run, seed: score)
        for name in ("library.rloo", "library.grpo", "library.dpo", "dpo.train"):
            module, function = getattr(recipes, name.split(".")[0]), name.split(".")[1]
            here.setattr(module, function, look(getattr(module, function), name))
        build, step = recipes.PPO.__init__, recipes.PPO.step

        def build_and_look(self, policy, reference, config, *rest):
            build(self, policy, reference, config, *rest)
            seen.learners.append("ppo")
            seen.settings.append((config,))
            seen.weights += [fingerprint(policy), fingerprint(reference)]

        def step_and_look(self, *rest):
            metrics = step(self, *rest)
            seen.weights[2:] = [fingerprint(self.policy), fingerprint(self.reference)]
            return metrics

        here.setattr(recipes.PPO, "__init__", build_and_look)
        here.setattr(recipes.PPO, "step", step_and_look)
        here.setattr(ppo, "sample", listen(ppo.sample, "ppo"))
        here.setattr(recipes, "sample", listen(recipes.sample, "recipes"))
        here.setattr(instructions, "answers", answers)
        seen.found = recipes.library_run.__wrapped__(method, RUN, TOKENS, 5)
    return seen


@pytest.mark.parametrize("method", [*ONLINE, *FROM_PAIRS])
def test_every_method_moves_the_first_policy_and_leaves_the_reference(runs, both, method):
    assert len(runs[method].learners) == 1
    policy, reference, after, reference_after = runs[method].weights
    assert policy == reference == reference_after == fingerprint(both[0]) != after
    assert max(map(abs, runs[method].found["kl"])) > 1e-2  # what is judged is what has learned


def test_who_learns_with_which_coefficient(runs):
    learners = {method: runs[method].learners[0] for method in (*ONLINE, *FROM_PAIRS)}
    ours = {"ppo": "ppo", "ppo_zero": "ppo", "dpo_mean": "dpo.train", "dpo_mean_scaled": "dpo.train"}
    assert learners == ours | {"rloo": "library.rloo", "grpo": "library.grpo", "dpo": "library.dpo"}
    configs = {m: next(x for x in runs[m].settings[0] if hasattr(x, "learning_rate")) for m in learners}
    assert [configs[method].kl_coef for method in ONLINE] == [0.1] * 4
    assert [configs[method].beta for method in FROM_PAIRS] == pytest.approx([0.1, 0.1, 0.1 * EXPECTED])
    assert [configs[method].mean for method in FROM_PAIRS] == [False, True, True]
    assert [configs[method].max_new_tokens for method in ONLINE] == [64] * 4


def spent_in_steps(seen) -> list[int]:
    """Tokens that each step of an online method has drawn, in front of them those of the zeros."""
    steps = {"ppo": seen.drawn["ppo"], "ppo_zero": seen.drawn["recipes"][:1] + seen.drawn["ppo"]}
    return steps.get(seen.method, seen.drawn["trl"][:-1])  # the last are of the held-out instructions


@pytest.mark.parametrize("method", ONLINE)
def test_an_online_method_stops_with_the_step_that_exceeds_its_tokens(runs, method):
    runs[method].method = method
    steps, log = spent_in_steps(runs[method]), runs[method].found["log"]
    assert sum(steps) == runs[method].found["tokens"]
    assert sum(steps[:-1]) < TOKENS <= sum(steps)
    assert len(steps) - (method == "ppo_zero") == len(log["length"]) > 1
    of_steps = steps[1:] if method == "ppo_zero" else steps
    assert [BATCH * length for length in log["length"]] == pytest.approx(of_steps, rel=1e-3)


@pytest.mark.parametrize("method", FROM_PAIRS)
def test_methods_that_learn_from_pairs_learn_from_those_of_the_recipe(runs, start, monkeypatch, method):
    monkeypatch.setattr(recipes, "LIBRARY_BATCH", BATCH)
    found = recipes.library_pairs.__wrapped__(RUN, TOKENS, 5)
    tokenizer, pairs, _, seed = runs[method].settings[0]
    assert (pairs, runs[method].found["tokens"], seed) == (found["pairs"], found["tokens"], 5)
    assert tokenizer.eos_token == instructions.END


def test_the_start_is_the_tutorials_policy_before(runs, start):
    found = runs["start"].found
    before = recipes.tutorial_answers.__wrapped__(RUN, "before", 64, 5)
    assert found == before | {"log": {}, "tokens": 0}
    assert not runs["start"].learners and found["kl"] == pytest.approx([0] * 8, abs=1e-4)


def test_the_reward_model_reads_instructions_and_answers_without_the_template(runs):
    for method in (*ONLINE, "start"):
        asked, held_out = recipes.tutorial_data(RUN, 5)
        *learned, (last, _) = runs[method].judged
        assert {text for batch, _ in learned for text in batch} <= set(asked)
        assert list(last) == [row["instruction"] for row in held_out]
        assert not any(instructions.END in answer for _, answers in runs[method].judged for answer in answers)
        assert all(answer == answer.strip() for _, answers in runs[method].judged for answer in answers)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_no_method_shows_special_tokens_to_the_reward_model(cache, start, both, judge, monkeypatch, method):
    """Where the policy writes them as often as full stops. The judge's own tokenizer would take them for its own."""
    take_small_steps(monkeypatch)
    (policy, tokenizer), seen = copy.deepcopy(both), []
    marks = ["<eos>", "<REWARD>", "### Response:"]
    with torch.no_grad():
        weights = policy.transformer.wte.weight
        weights[tokenizer.convert_tokens_to_ids(marks)] = weights[tokenizer.convert_tokens_to_ids(".")].clone()
    monkeypatch.setattr(recipes, "tutorial_policy", lambda run, seed: (copy.deepcopy(policy), tokenizer))
    monkeypatch.setattr(
        recipes, "tutorial_reward_model", lambda run, seed: lambda *pair: seen.append(pair) or judge(*pair)
    )
    recipes.library_run.__wrapped__(method, RUN, 100, 1)
    assert not [mark for _, answers in seen for answer in answers for mark in marks if mark in answer]


# --- PPO within a budget ---


class Planned:
    """In the place of PPO: every answer has `length` tokens."""

    length = 26

    def __init__(self, policy, reference, config, tokenizer, seed):
        Planned.config, Planned.made, Planned.asked, Planned.scores, self.done = config, [], [], [], 0
        self.tokenizer = tokenizer

    def generate(self, queries):
        Planned.asked.append(self.tokenizer.batch_decode(queries))
        return [[300] * self.length for _ in queries]

    def step(self, queries, responses, scores):
        Planned.scores.append(scores)
        self.done += 1
        return {"length": float(self.length), "score": 1 / 3}


@pytest.fixture
def planned(monkeypatch, both):
    monkeypatch.setattr(recipes, "PPO", Planned)
    asked, read = [f"Ask {n}?" for n in range(400)], []

    def judge(instructions, answers):
        read.append((instructions, answers))
        return [float(len(answer) + int(text[4:-1])) for text, answer in zip(instructions, answers, strict=True)]

    def plan(tokens: int, zero: bool, length: int):
        monkeypatch.setattr(Planned, "length", length)
        return recipes._ppo_within(tokens, *[both[0]] * 2, both[1], asked, judge, zero, 3)

    return SimpleNamespace(asked=asked, read=read, plan=plan)


def test_ppo_plans_for_answers_of_the_usual_length_and_stops_when_the_tokens_are_spent(planned):
    for length, updates in ((30, 9), (40, 7), (64, 5), (26, 10)):  # the first that makes 10 * 128 * 26
        log, spent = planned.plan(10 * 128 * 26, False, length)
        assert Planned.config.updates == 10
        assert len(log["length"]) == updates and spent == updates * 128 * length
        assert log["score"] == [0.3333] * updates
    plan = PPOConfig(updates=10, batch_size=128, kl_coef=0.1, max_new_tokens=64, eos_penalty=0.0)
    assert Planned.config == plan
    asked = [prompt for batch in Planned.asked for prompt in batch]
    assert sorted(asked[:400]) == sorted(asked[400:800]) == sorted(map(instructions.template, planned.asked))
    assert asked[:400] != asked[400:800]


def test_short_answers_end_ppo_with_its_plan(planned):
    assert planned.plan(10 * 128 * 26, False, 20)[1] == 10 * 128 * 20


def test_a_budget_below_one_update_is_one_update(planned):
    for zero in (False, True):
        log, spent = planned.plan(100, zero, 26)
        assert Planned.config.updates == len(log["length"]) == 1 and spent >= 128 * 26


def test_the_reward_gets_the_instructions_of_a_batch(planned, both):
    planned.plan(3_000, False, 26)
    (batch,), ((asked, answers),) = Planned.asked, planned.read
    assert batch == list(map(instructions.template, asked)) and set(answers) == {both[1].decode([300] * 26).strip()}
    assert Planned.scores == [[float(len(answers[0]) + int(text[4:-1])) for text in asked]]


def test_zeros_are_of_four_answers_of_the_reference_whose_tokens_count(planned, both, drawn):
    """Ten updates without zeros; with four more answers to a prompt for eight episodes, two thirds of that."""
    log, spent = planned.plan(10 * 128 * 26, True, 40)
    (zeros,) = drawn
    assert zeros.model is both[0] and zeros.settings[:2] == (64, both[1].eos_token_id)
    episodes = round(1280 * 8 / 12)
    asked = Counter(both[1].batch_decode(zeros.prompts))
    assert Planned.config.updates == round(episodes / 128) == 7 and len(asked) == episodes // 8 == 106
    assert set(asked.values()) == {4} and set(asked) == {prompt for batch in Planned.asked for prompt in batch}
    assert spent == count(zeros.responses) + len(log["length"]) * 128 * 40
    assert 0 <= spent - 10 * 128 * 26 < 128 * 40 and len(log["length"]) < 7
    (instruction_of_zeros, texts), *_ = planned.read
    assert texts == instructions.answers(both[1], zeros.responses)
    means = torch.tensor([float(len(text)) for text in texts]).view(-1, 4).mean(dim=1).tolist()
    zero = dict(zip(dict.fromkeys(instruction_of_zeros), means, strict=True))
    answer = len(both[1].decode([300] * 40).strip())
    for batch, scores in zip(Planned.asked, Planned.scores, strict=True):
        above = [answer - zero[text.split("\n")[2]] for text in batch]
        assert scores == pytest.approx(above, abs=1e-3)


def test_a_reward_above_answers_is_the_score_less_their_mean():
    worth = {("p", "a"): 1.0, ("p", "b"): 2.0, ("p", "c"): 6.0, ("q", "a"): -4.0, ("q", "b"): 0.5, ("q", "c"): 10.0}
    proxy = lambda prompts, answers: [worth[pair] for pair in zip(prompts, answers, strict=True)]  # noqa: E731
    reward = recipes.above_answers(proxy, [*"ppppqqqq"], [*"aabcbbba"])
    assert reward([*"pqpqqpp"], [*"aabcbcb"]) == [1 - 2.5, -4 + 0.625, 2 - 2.5, 10.625, 1.125, 3.5, -0.5]
    assert recipes.ZERO_ANSWERS == 4


def test_a_reward_above_the_policy_is_the_one_above_its_answers():
    model, tokenizer = recipes.base("0.2M")
    prompts = recipes.training_prompts(5, "above")
    proxy = lambda prompts, answers: [len(p) + math.sqrt(len(a)) for p, a in zip(prompts, answers, strict=True)]  # noqa: E731
    asked = [prompt for prompt in prompts for _ in range(4)]
    texts = sample(model, tokenizer(asked)["input_ids"], PPOConfig().max_new_tokens, tokenizer.eos_token_id, 8).texts(
        tokenizer
    )
    said = [" Yes.", " No, never.", " So.", "", " Perhaps."]
    found = recipes.above_policy(proxy, model, tokenizer, prompts, 8)(prompts, said)
    assert found == recipes.above_answers(proxy, asked, texts)(prompts, said)
    zeros = torch.tensor(proxy(asked, texts)).view(5, 4).mean(dim=1)
    assert found == pytest.approx((torch.tensor(proxy(prompts, said)) - zeros).tolist(), abs=1e-4)
