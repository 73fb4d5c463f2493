"""Part 5's recipes, from labelled texts to judged answers: against the same done by hand, and over HTTP."""

from dataclasses import replace

import pytest
import torch

from rlhf_lab import class_token, language_model, recipes, reward_prompt
from rlhf_lab.fine_tuning import Settings, server, training
from rlhf_lab.fine_tuning.local import LocalBackend
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh import generator, gold

TEXTS, SEED = 80, 7
RUN = recipes.PromptedRun("0.2M", "0.2M", pairs=16, texts=TEXTS, settings=Settings(batch_size=16))
TWO = replace(RUN, rewards=("helpful", "harmless"))
CLONED = replace(RUN, rewards=(), sides=("chosen",))
BASE = replace(RUN, rewards=(), settings=None)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """One for this file, and no other: what is tested is how artefacts are made."""
    monkeypatch.setenv("RLHF_LAB_CACHE", str(tmp_path_factory.getbasetemp() / "prompted"))


def test_policies_read_both_sides_of_comparisons_that_no_judge_was_fitted_to():
    rows = recipes.offline_texts(TEXTS, SEED)
    assert [row["side"] for row in rows[:4]] == ["chosen", "rejected"] * 2
    assert [row["subset"] for row in rows] == ["helpful", "helpful", "harmless", "harmless"] * (TEXTS // 4)
    assert rows[0]["prompt"] == rows[1]["prompt"] and rows[0]["response"] != rows[1]["response"]
    fitted = {row[side] for row in recipes.preference_pairs("joint", "train", TEXTS, SEED) for side in recipes.SIDES}
    assert len(fitted & {row["response"] for row in rows}) < TEXTS // 4  # but short answers, which come by themselves
    assert {generator.split_of(row["prompt"]) for row in rows} == {"train"}


@pytest.mark.parametrize("judge", recipes.JUDGES)
def test_offline_rewards_are_the_probabilities_of_the_judge_that_was_fitted_to_those_data(judge):
    rows, (_, tokenizer) = recipes.offline_texts(TEXTS, SEED), recipes.base("0.2M")
    model, _ = recipes.base("0.2M")
    pairs = recipes.preference_pairs(judge, "train", RUN.pairs, SEED)
    class_token.train(model, tokenizer, pairs, recipes.CLASS_TOKEN, SEED)
    by_hand = class_token.score(model, tokenizer, [r["prompt"] for r in rows], [r["response"] for r in rows])
    torch.testing.assert_close(
        torch.tensor(recipes.offline_rewards(judge, "0.2M", RUN.pairs, TEXTS, SEED)), by_hand, rtol=0, atol=1e-4
    )


def test_what_a_policy_imitates_is_chosen_by_side_and_subset_and_keeps_its_rewards():
    rows = recipes.offline_texts(TEXTS, SEED)
    helpful, harmless = (recipes.offline_rewards(j, "0.2M", RUN.pairs, TEXTS, SEED) for j in recipes.SUBSETS)
    texts, rewards = recipes.prompted_data(TWO, SEED)
    assert texts == [row["prompt"] + row["response"] for row in rows]
    assert rewards == [list(pair) for pair in zip(helpful, harmless, strict=True)]
    texts, rewards = recipes.prompted_data(replace(RUN, rewards=("helpful",), subsets=("helpful",)), SEED)
    kept = [i for i, row in enumerate(rows) if row["subset"] == "helpful"]
    assert texts == [rows[i]["prompt"] + rows[i]["response"] for i in kept]
    assert rewards == [[helpful[i]] for i in kept]
    texts, rewards = recipes.prompted_data(CLONED, SEED)
    assert texts == [row["prompt"] + row["response"] for row in rows if row["side"] == "chosen"]
    assert rewards == [[]] * (TEXTS // 2)


def test_prompts_say_rewards_in_two_digits_as_they_are_and_in_the_order_of_the_run():
    prompt = "\n\nHuman: Hello?\n\nAssistant:"
    assert "\nReward: 57<SOS>" in RUN.written.prompts([prompt], [0.57])[0]
    assert "\nHelpful reward: 99\nHarmless reward: 05<SOS>" in TWO.written.prompts([prompt], [(1.2, 0.05)])[0]
    assert "eward:" not in CLONED.written.prompts([prompt], [[]])[0]


def test_a_prompted_policy_is_the_base_model_fine_tuned_on_its_examples():
    name = recipes.prompted_policy(TWO, "local", SEED)
    tuned, tokenizer = language_model.load_with_tokenizer(LocalBackend().model_folder(name))
    model, _ = recipes.base("0.2M")
    texts, rewards = recipes.prompted_data(TWO, SEED)
    written = reward_prompt.RewardPrompt.fit(reward_prompt.FORMATS["two rewards"], rewards, "none")
    training.train(model, tokenizer, written.examples(texts, rewards), TWO.settings, SEED)
    for ours, theirs in zip(model.parameters(), tuned.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert recipes.prompted_policy(BASE, "local", SEED) == "base-0.2M"


def test_answers_are_the_policy_s_own_and_judged_by_the_labelling_models_and_the_truth():
    found = recipes.prompted_answers(TWO, (), "joint", "test", 9, "local", SEED)
    assert found["targets"] == [
        [round(reward_prompt.UNIFORM(prompt, name), 4) for name in ("helpful", "harmless")]
        for prompt in found["prompts"]
    ]
    folder = LocalBackend().model_folder(recipes.prompted_policy(TWO, "local", SEED))
    model, tokenizer = language_model.load_with_tokenizer(folder)
    asked = tokenizer(TWO.written.prompts(found["prompts"], found["targets"]))["input_ids"]
    samples = sample(model, asked, recipes.PROMPTED_ANSWER, tokenizer.eos_token_id, SEED)
    assert found["responses"] == samples.texts(tokenizer)
    assert found["tokens"] == [len(response) for response in samples.responses]
    pairs = list(zip(found["prompts"], found["responses"], strict=True))
    assert found["gold_helpful"] == [gold.helpfulness(*pair) for pair in pairs]
    assert found["gold_harmless"] == [gold.harmlessness(*pair) for pair in pairs]
    for judge in recipes.JUDGES:
        scores = class_token.score(
            recipes.class_token_model("0.2M", judge, 16, SEED), tokenizer, found["prompts"], found["responses"]
        )
        torch.testing.assert_close(torch.tensor(found[judge]), scores, rtol=0, atol=1e-4)


def test_a_fixed_target_is_asked_of_every_prompt_and_a_base_model_is_asked_in_plain_prompts():
    found = recipes.prompted_answers(RUN, (0.8,), "helpful", "test", 4, "local", SEED)
    assert found["targets"] == [[0.8]] * 4 and found["subsets"] == ["helpful"] * 4
    plain = recipes.prompted_answers(BASE, (), "helpful", "test", 4, "local", SEED)
    model, tokenizer = recipes.base("0.2M")
    asked = tokenizer(plain["prompts"])["input_ids"]
    assert plain["responses"] == sample(model, asked, 64, tokenizer.eos_token_id, SEED).texts(tokenizer)
    assert plain["prompts"] == found["prompts"]


@pytest.mark.parametrize("subset", ["joint", "helpful", "harmless"])
def test_prompts_are_held_out_and_serve_one_purpose_and_fewer_are_the_first_of_more(subset):
    test, few, other = (
        recipes.steering_prompts(subset, *asked, SEED) for asked in (("test", 60), ("test", 11), ("validation", 61))
    )
    assert len(set(test)) == 60 and test[:11] == few and len(set(other)) == 61
    assert not {prompt for prompt, _ in test} & {prompt for prompt, _ in other}
    assert {generator.split_of(prompt) for prompt, _ in test + other} == {"test"}
    turns = [subset] if subset != "joint" else ["helpful", "harmless"]
    assert [side for _, side in test] == (turns * 60)[:60]


def test_a_server_with_a_folder_of_its_own_trains_to_the_same_answers_as_this_process(tmp_path):
    local = recipes.prompted_answers(RUN, (), "joint", "test", 6, "local", SEED)
    with server.Server(tmp_path) as running:
        served = recipes.prompted_answers(RUN, (), "joint", "test", 6, running.url, SEED)
    assert served == local
