"""The way of the profile `gpu`, on a CPU: checkpoints of DLite's and DeBERTa's architectures, random and small, are
saved to disk and put in the place of the true ones. Oracles: texts cut and read one at a time, the library's own loss,
the same step done by hand."""

import math
import random
import shutil
from dataclasses import replace

import pytest
import torch
from dlite_checkpoints import (
    ANSWERS,
    GPT2_END,
    INSTRUCTIONS,
    RESPONSE,
    make_all,
    make_deberta,
    make_dialogues,
    make_dlite,
)
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from rlhf_lab import ROOT, checkpoints, instructions, language_model, packing, pretrained, recipes
from rlhf_lab.pair_reward import PairReward
from rlhf_lab.ppo import PPO, PPOConfig
from rlhf_lab.profiles import Profile
from rlhf_lab.recipes import TutorialRun, tutorial_config
from rlhf_lab.sampling import sample

# One update of sixteen episodes, as the profile `gpu` has it but for its size.
RUN = replace(TutorialRun.of(Profile.load("gpu")), prompts=16, test_prompts=5, learning_rate=1e-3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def elsewhere(folders, monkeypatch):
    """Everything comes from these folders; keys of recipes that were made before do not count, nor do these later."""
    for variable, name in (("DLITE_DIR", "dlite"), ("REWARD_MODEL_DIR", "deberta"), ("HH_RLHF_DIR", "hh-rlhf")):
        monkeypatch.setenv(variable, str(folders / name))
    monkeypatch.setenv("RLHF_LAB_CACHE", str(folders / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    forget_keys()
    yield
    forget_keys()


def forget_keys() -> None:
    checkpoints._snapshot(ROOT / "rlhf_lab")._recipe.cache_clear()


@pytest.fixture
def both():
    return recipes.tutorial_policy(RUN, seed=0)


def queries(tokenizer, asked=INSTRUCTIONS) -> list[list[int]]:
    return [tokenizer(instructions.template(instruction))["input_ids"] for instruction in asked]


# --- loading, templating, the end key ---


def test_the_settings_of_the_profile_gpu_are_the_tutorials():
    """TRL 0.9.6, all of whose defaults it took, with batches of 16."""
    run = TutorialRun.of(Profile.load("gpu"))
    elsewhere = ("aisquared/dlite-v1-355m", "OpenAssistant/reward-model-deberta-v3-large-v2", "Anthropic/hh-rlhf")
    assert (run.policy, run.reward_model, run.data) == elsewhere
    assert run.prompts == 6400 and run.lengths == (16, 16)
    assert tutorial_config(run) == PPOConfig(
        updates=400,
        batch_size=16,
        minibatches=1,
        epochs=4,
        learning_rate=1.41e-5,
        value_learning_rate=1.41e-5,
        warmup=0,
        adam_epsilon=1e-8,
        max_gradient_norm=math.inf,
        clip=0.2,
        value_clip=0.2,
        value_coef=0.1,
        gamma=1.0,
        lam=0.95,
        kl_coef=0.2,
        kl_target=6.0,
        kl_horizon=10_000,
        whiten_advantages=True,
        whiten_rewards=False,
        temperature=1.0,
        max_new_tokens=16,
        eos_penalty=0.0,
        ptx_coef=0.0,
    )


def test_the_folders_stand_in_for_the_checkpoints_in_every_profile(folders):
    for profile in ("smoke", "laptop", "gpu"):
        run = TutorialRun.of(Profile.load(profile))
        policy, _ = recipes.tutorial_policy(run, seed=0)
        judge = recipes.tutorial_reward_model(run, seed=0)
        assert type(policy) is GPT2LMHeadModel and policy.config.n_embd == 32 and not policy.training
        assert judge.model.config.model_type == "deberta-v2" and not judge.model.training
        assert {policy.dtype, judge.model.dtype} == {torch.float32}


def test_each_marker_of_the_template_is_one_token(both):
    _, tokenizer = both
    ids = tokenizer(instructions.template("Boil\nit?"))["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[1], tokens[-1]) == ("### Instruction:", RESPONSE) and tokens.count(RESPONSE) == 1
    assert tokenizer.decode(ids) == instructions.template("Boil\nit?")
    base = len(tokenizer.get_vocab()) - 3
    assert tokenizer.convert_tokens_to_ids(["### End", "### Instruction:", RESPONSE]) == [base, base + 1, base + 2]


def test_the_end_key_takes_the_place_of_gpt2s_end_token(both, folders):
    model, tokenizer = both
    saved = language_model.load_tokenizer(folders / "dlite")
    assert saved.eos_token == saved.bos_token == saved.unk_token == GPT2_END and saved.pad_token is None
    assert tokenizer.eos_token == "### End" != tokenizer.bos_token
    assert tokenizer("### End")["input_ids"] == [tokenizer.eos_token_id] == [model.config.eos_token_id]
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id != tokenizer.unk_token_id


def test_a_response_is_what_would_have_been_written_without_end_cut_behind_the_end_key(both):
    model, tokenizer = both
    end, asked = tokenizer.eos_token_id, queries(tokenizer) * 4
    endless = sample(model, asked, 16, eos=-1, seed=3).responses
    cut = [r[: r.index(end) + 1] if end in r else r for r in endless]
    assert sample(model, asked, 16, end, seed=3).responses == cut
    assert 3 < sum(r[-1] == end for r in cut) < len(cut) - 3
    gpt2_end = tokenizer.convert_tokens_to_ids(GPT2_END)
    assert any(gpt2_end in r[:-1] for r in cut)  # which ends nothing


def test_neighbors_and_padding_change_no_log_probability(both):
    model, tokenizer = both
    rng, asked = random.Random(0), queries(tokenizer)
    written = [[rng.randrange(len(tokenizer)) for _ in range(rng.randint(1, 16))] for _ in asked]
    for read in (language_model.response_log_probabilities, packing.read_responses):
        together, mask, *_ = read(model, asked, written)
        assert mask.sum(dim=1).tolist() == list(map(len, written))
        for row, query, response in zip(together, asked, written, strict=True):
            logits = model(torch.tensor([query + response])).logits[0, len(query) - 1 : -1]
            alone = F.log_softmax(logits, dim=-1)[range(len(response)), response]
            torch.testing.assert_close(row[: len(response)], alone, atol=1e-4, rtol=0)


# --- one update by the recipe, and what comes after it ---


def test_the_prompts_are_the_first_short_instructions_of_the_folder():
    asked, held_out = recipes.tutorial_data(RUN, seed=0)
    written = [text.replace("\n", " ") for text in INSTRUCTIONS]
    assert asked == written[:16]
    assert [row["instruction"] for row in held_out] == written[17:22]


def test_one_update_is_sampling_judging_and_learning_in_turn(both):
    """By hand: the same responses, read by DeBERTa one pair at a time."""
    before, tokenizer = both
    judge = recipes.tutorial_reward_model(RUN, seed=0)
    asked, _ = recipes.tutorial_data(RUN, seed=0)
    after, metrics = recipes.tutorial_run(RUN, seed=0)
    responses = PPO(before, GPT2LMHeadModel(before.config), tutorial_config(RUN), tokenizer, 0).generate(
        queries(tokenizer, asked)
    )
    special = set(tokenizer.all_special_ids)
    assert any(special & set(response[:-1]) for response in responses)
    scores = []
    for instruction, response in zip(asked, responses, strict=True):
        answer = tokenizer.decode([token for token in response if token not in special]).strip()
        pair = judge.tokenizer(instruction, answer, return_tensors="pt")
        scores.append(judge.model(pair["input_ids"]).logits.item())
    assert metrics["score"] == pytest.approx([sum(scores) / 16], rel=1e-3)
    assert metrics["length"] == pytest.approx([sum(map(len, responses)) / 16], rel=1e-3)
    assert metrics["kl"] == pytest.approx([0], abs=1e-4)
    assert metrics["first_ratio_error"] == pytest.approx([0], abs=1e-3)
    assert metrics["ended"] == pytest.approx([sum(r[-1] == tokenizer.eos_token_id for r in responses) / 16], rel=1e-3)
    changed = [not torch.equal(a, b) for a, b in zip(after.parameters(), before.parameters(), strict=True)]
    assert all(changed)


def test_what_was_saved_answers_to_the_bit_like_what_is_read(both, tmp_path):
    """The recipe's artefact, a folder written by hand and put in DLite's place, and the judge."""
    (after, _), (_, tokenizer) = recipes.tutorial_run(RUN, seed=0), both
    ids = torch.tensor(queries(tokenizer)[:1])
    language_model.save_with_tokenizer((after, tokenizer), tmp_path)
    again, its_tokenizer = pretrained.load_policy(tmp_path)
    assert torch.equal(after(ids).logits, again(ids).logits)
    assert torch.equal(after(ids).logits, recipes.tutorial_run(RUN, seed=0)[0](ids).logits)
    assert queries(its_tokenizer) == queries(tokenizer) and its_tokenizer.eos_token_id == tokenizer.eos_token_id


def test_weights_in_the_older_format_are_the_same(both, folders, tmp_path):
    make_dlite(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(both[0].state_dict(), tmp_path / "pytorch_model.bin")
    again, tokenizer = pretrained.load_policy(tmp_path)
    ids = torch.tensor(queries(tokenizer)[:1])
    assert torch.equal(both[0](ids).logits, again(ids).logits)


def test_the_judge_sees_no_special_tokens(both, monkeypatch):
    seen, call = [], PairReward.__call__
    monkeypatch.setattr(PairReward, "__call__", lambda self, *pair: seen.append(pair) or call(self, *pair))
    recipes.tutorial_run(replace(RUN, learning_rate=0.0), seed=1)
    recipes.tutorial_answers(RUN, "before", 16, seed=1)
    names = ["###", "<|", *both[1].all_special_tokens]
    texts = [text for pair in seen for side in pair for text in side]
    assert len(texts) == 2 * (16 + 5) and not any(name in text for name in names for text in texts)


def test_answers_are_judged_counted_and_compared_one_by_one(both):
    policy, tokenizer = both
    judge = recipes.tutorial_reward_model(RUN, seed=0)
    asked = [row["instruction"] for row in recipes.tutorial_data(RUN, seed=0)[1]]
    before, after = (recipes.tutorial_answers(RUN, stage, 16, seed=0) for stage in ("before", "after"))
    responses = sample(policy, queries(tokenizer, asked), 16, tokenizer.eos_token_id, 0).responses
    assert before["answers"] == instructions.answers(tokenizer, responses)
    for found in (before, after):
        for i, (instruction, answer) in enumerate(zip(asked, found["answers"], strict=True)):
            pair = judge.tokenizer(instruction, answer, return_tensors="pt")
            assert found["score"][i] == pytest.approx(judge.model(pair["input_ids"]).logits.item(), abs=1e-3)
    ended = [response[-1] == tokenizer.eos_token_id for response in responses]
    assert before["ended"] == ended
    assert before["length"] == [len(r) - e for r, e in zip(responses, ended, strict=True)]
    assert before["kl"] == pytest.approx([0] * 5, abs=1e-3) and max(map(abs, after["kl"])) > 1e-2
    assert "gold" not in before  # nobody knows it of real instructions


def test_perplexity_of_whole_dialogues_is_the_librarys_loss(both):
    policy, tokenizer = both
    rows = recipes.tutorial_data(RUN, seed=0)[1]
    found = recipes.tutorial_perplexity(RUN, "before", seed=0)
    total, count = torch.zeros(2), torch.zeros(2)
    for row in rows:
        first, second = (tokenizer(row[side])["input_ids"] for side in ("prompt", "chosen"))
        ids = torch.tensor([first + second])
        for part, ignored in enumerate((slice(len(first), None), slice(0, len(first)))):
            labels = ids.clone()
            labels[0, ignored] = -100
            seen = int((labels[0, 1:] != -100).sum())
            total[part] += policy(ids, labels=labels).loss.item() * seen
            count[part] += seen
    assert found["asking"] == pytest.approx((total[0] / count[0]).item(), rel=1e-4)
    assert found["answering"] == pytest.approx((total[1] / count[1]).item(), rel=1e-4)
    assert found["whole"] == pytest.approx((total.sum() / count.sum()).item(), rel=1e-4)
    assert recipes.tutorial_perplexity(RUN, "after", seed=0)["whole"] != pytest.approx(found["whole"], rel=1e-4)


def test_other_files_make_another_artefact_and_another_place_does_not(folders, monkeypatch, tmp_path):
    """Models of the same sizes, too: it is the weights that count."""

    def key(**moved) -> str:
        with monkeypatch.context() as patch:
            for variable, folder in moved.items():
                patch.setenv(variable, str(folder))
            forget_keys()
            return recipes.tutorial_run.key(RUN, 0)

    shutil.copytree(folders / "deberta", tmp_path / "deberta")
    assert key(REWARD_MODEL_DIR=tmp_path / "deberta") == key()
    others = [
        key(DLITE_DIR=make_dlite(tmp_path / "seed" / "dlite", seed=1)),
        key(REWARD_MODEL_DIR=make_deberta(tmp_path / "seed" / "deberta", seed=1)),
        key(HH_RLHF_DIR=make_dialogues(tmp_path / "hh-rlhf", train=12)),
    ]
    assert len({key(), *others}) == 4


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_whole_dialogues_of_one_side_teach(monkeypatch, side):
    """A sixth as many as there are prompts: here the first two."""
    texts = []
    monkeypatch.setattr(recipes.sft, "train", lambda model, tokenizer, rows, *_: texts.extend(rows))
    recipes.taught(RUN, side, seed=2)
    # The rows of make_dialogues take turns in which of the answers is chosen.
    said = ANSWERS[::-1] if side == "chosen" else ANSWERS
    opening = "\n\nHuman: {}\n\nAssistant: {}"
    assert texts == [("", opening.format(*pair)) for pair in zip(INSTRUCTIONS[:2], said, strict=True)]
