"""Oracles: closed forms, brute force over pairs, TRL's own loss and gradient, the libraries' own forward passes, the
plain computation beside the one that reads a prompt once, a separable preference."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from rlhf_lab import language_model, reward_model
from rlhf_lab.language_model import encode, train_tokenizer
from rlhf_lab.reward_model import RewardModelConfig, k_wise_loss, pairwise_loss, score, score_tokens

CONTEXT = 48
PROMPT = "\n\nHuman: How do I boil an egg?\n\nAssistant:"
PAIRS = [
    {"prompt": PROMPT, "chosen": " For 10 minutes.", "rejected": " I cannot say."},
    {"prompt": "\n\nHuman: And a soft one?\n\nAssistant:", "chosen": " Four.", "rejected": " Boil it for 10 minutes."},
    {"prompt": "Ask", "chosen": " so.", "rejected": ""},
    {"prompt": PROMPT, "chosen": " Four minutes, then cool it in water.", "rejected": " Four."},
]
PROMPTS = [pair["prompt"] for pair in PAIRS]
RESPONSES = [pair["chosen"] for pair in PAIRS]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([p["prompt"] + p["chosen"] + p["rejected"] for p in PAIRS], vocabulary=320)


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    sizes = {"vocab_size": 320, "n_positions": CONTEXT, "n_embd": 32, "n_layer": 2, "n_head": 2}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, initializer_range=0.2, pad_token_id=0, eos_token_id=1))


@pytest.fixture
def model(policy):
    return reward_model.from_language_model(policy, seed=0)


def encoded(tokenizer, prompts=PROMPTS, responses=RESPONSES) -> tuple[list[list[int]], list[list[int]]]:
    both = [encode(tokenizer, p, r) for p, r in zip(prompts, responses, strict=True)]
    return [p for p, _ in both], [r for _, r in both]


# --- the loss ---


def test_equal_scores_cost_log_2():
    assert pairwise_loss(torch.tensor([3.0, -1.0]), torch.tensor([3.0, -1.0])).item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("difference", [-30.0, -2.0, 0.0, 0.5, 200.0])
def test_loss_and_gradient_in_closed_form(difference):
    chosen = torch.tensor([1.0 + difference], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    loss = pairwise_loss(chosen, rejected)
    loss.backward()
    assert loss.item() == pytest.approx(math.log1p(math.exp(-difference)))
    # The better response gains by as much as the model doubts it.
    assert chosen.grad.item() == pytest.approx(-1 / (1 + math.exp(difference)))
    assert rejected.grad.item() == pytest.approx(1 / (1 + math.exp(difference)))


def test_the_loss_is_a_mean_over_pairs():
    chosen, rejected = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 0.0, -1.0])
    expected = sum(math.log1p(math.exp(-d)) for d in (-1.0, 2.0, 0.0)) / 3
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(expected)


def test_gradcheck():
    scores = torch.randn(2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: pairwise_loss(s[0], s[1]), scores)


# --- the loss of rankings ---

NAN = float("nan")
RANKS = {
    "strict": [[1, 2, 3, 4], [3, 1, 4, 2]],
    "ties": [[1, 1, 2, 3], [2, 1, 2, 1]],
    "fewer responses": [[2, 1, 3, NAN], [1, 2, NAN, NAN]],
    "nothing to learn": [[1, 1, 1, 1], [1, NAN, NAN, NAN]],
    "some of each": [[1, 3, 2, NAN], [2, 2, 2, 2]],
}


def mean_over_pairs(scores: list[float], ranks: list[float]) -> float:
    """The mean of log(1 + exp(r_worse - r_better)) over all pairs of unequal ranks; 0 without any."""
    pairs = [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
    return sum(math.log1p(math.exp(scores[j] - scores[i])) for i, j in pairs) / max(1, len(pairs))


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_the_loss_of_rankings_is_the_mean_over_prompts_of_the_mean_over_pairs(ranks):
    scores = 2 * torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = sum(map(mean_over_pairs, scores.tolist(), ranks)) / 2
    assert k_wise_loss(scores, torch.tensor(ranks)).item() == pytest.approx(expected, abs=1e-12)


def test_a_strict_ranking_of_k_has_k_over_2_pairs():
    """InstructGPT, eq. 1: all scores equal, each of the C(K, 2) pairs costs log 2 / C(K, 2)."""
    for k in range(2, 10):
        assert k_wise_loss(torch.zeros(1, k), torch.arange(k)[None]).item() == pytest.approx(math.log(2))


def test_a_ranking_of_two_costs_what_a_pair_costs():
    scores = torch.randn(8, 2, generator=torch.Generator().manual_seed(4))
    chosen_first = torch.tensor([[1.0, 2.0]]).expand(8, 2)
    assert k_wise_loss(scores, chosen_first).item() == pytest.approx(pairwise_loss(*scores.T).item(), abs=1e-7)
    assert k_wise_loss(scores.flip(1), chosen_first.flip(1)) == k_wise_loss(scores, chosen_first)


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_gradcheck_of_rankings(ranks):
    scores = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: k_wise_loss(s, torch.tensor(ranks)), scores)


# --- scores ---


def library_scores(model, tokenizer, texts: list[list[int]], padding: int = 0) -> torch.Tensor:
    """What the model's own class makes of texts padded on the right, `padding` more than they need."""
    width = max(map(len, texts)) + padding
    ids = torch.tensor([text + [tokenizer.pad_token_id] * (width - len(text)) for text in texts])
    with torch.no_grad():
        return model(ids, attention_mask=(ids != tokenizer.pad_token_id).long()).logits.squeeze(-1)


@pytest.mark.parametrize("padding", [0, 7])
def test_scores_are_those_of_the_library(model, tokenizer, padding, tmp_path):
    """Also of the model that was saved and is loaded by the library alone."""
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.num_labels == 1
    texts = [p + r for p, r in zip(*encoded(tokenizer), strict=True)]
    ours = score(model, tokenizer, PROMPTS, RESPONSES)
    torch.testing.assert_close(library_scores(loaded, tokenizer, texts, padding), ours, atol=1e-5, rtol=0)


def test_scores_come_in_order_and_do_not_depend_on_other_rows(model, tokenizer):
    prompts, responses = encoded(tokenizer)
    together = score_tokens(model, prompts, responses, tokenizer.eos_token_id)
    assert together.std() > 0.1
    for batch_size in (1, 3):
        apart = score_tokens(model, prompts, responses, tokenizer.eos_token_id, batch_size)
        torch.testing.assert_close(apart, together, atol=1e-5, rtol=0)


def test_scores_are_read_at_the_end_token_and_never_at_pads(model, tokenizer):
    before = score(model, tokenizer, PROMPTS, RESPONSES)
    other = torch.randn(32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.pad_token_id] = other
    assert torch.equal(score(model, tokenizer, PROMPTS, RESPONSES), before)
    with torch.no_grad():
        model.transformer.wte.weight[tokenizer.eos_token_id] = other
    assert ((score(model, tokenizer, PROMPTS, RESPONSES) - before).abs() > 1e-3).all()


def test_a_cut_response_gets_an_end_token(model, tokenizer):
    eos = tokenizer.eos_token_id
    scores = score_tokens(model, [[5, 9]] * 3, [[7, 8], [7, 8, eos], [7, 8, eos, eos]], eos)
    assert scores[0] == pytest.approx(scores[1].item(), abs=1e-6)
    assert scores[2] != pytest.approx(scores[1].item(), abs=1e-3)


def test_an_empty_response_is_scored_at_its_end_token(model, tokenizer):
    eos = tokenizer.eos_token_id
    assert score_tokens(model, [[5, 9]], [[]], eos).item() == pytest.approx(
        score_tokens(model, [[5, 9]], [[eos]], eos).item()
    )


def test_a_text_cut_by_max_tokens_still_fits_the_context(model, tokenizer):
    # Cut to the whole context, it has to leave room for the end token at which it is read.
    long = " water" * 100
    scores = score(model, tokenizer, [PROMPT, "Ask"], [long, long], max_tokens=CONTEXT)
    assert scores.isfinite().all()


def test_a_response_that_fills_the_context_can_be_scored(model, tokenizer):
    # As `sampling.sample` may return it: prompt and response fill the context and no end token came.
    assert score_tokens(model, [[5] * 8], [[7] * (CONTEXT - 8)], tokenizer.eos_token_id).isfinite().all()


# --- the head ---


def test_the_head_starts_at_one_over_the_root_of_width_plus_one(policy):
    heads = [reward_model.from_language_model(policy, seed).score for seed in range(20)]
    weights = torch.stack([head.weight.flatten() for head in heads])  # (20, 32)
    # The relative standard error of the standard deviation of n normal draws is 1 / sqrt(2 n); three of them are 8 %.
    assert weights.std().item() == pytest.approx(33**-0.5, rel=0.08)
    assert weights.mean().item() == pytest.approx(0, abs=3 * (33 * 640) ** -0.5)
    assert all(head.bias is None for head in heads)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(reward_model.from_language_model(policy, 0).score.weight.flatten(), weights[0])


def test_the_trunk_is_the_policys_own_and_the_policy_stays_as_it_was(policy, model, tokenizer):
    with torch.no_grad():
        ids = torch.arange(20)[None]
        torch.testing.assert_close(
            model.base_model(ids).last_hidden_state, policy.base_model(ids).last_hidden_state, atol=1e-6, rtol=0
        )
    before = [parameter.clone() for parameter in policy.parameters()]
    reward_model.train(model, tokenizer, PAIRS, RewardModelConfig(learning_rate=0.1), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_training_mode_has_no_dropout(model):
    ids = torch.arange(20)[None]
    assert torch.equal(model.train()(ids).logits, model(ids).logits)


# --- training ---


@pytest.mark.parametrize("max_tokens", [CONTEXT, 24])
def test_what_is_trained_is_what_is_scored(model, tokenizer, max_tokens):
    """The first loss is the pairwise loss of the scores, also of texts that are cut."""
    lengths = [len(p) + len(r) for p, r in zip(*encoded(tokenizer), strict=True)]
    assert (max(lengths) > max_tokens) == (max_tokens < CONTEXT)
    chosen = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens)
    rejected = score(model, tokenizer, PROMPTS, [pair["rejected"] for pair in PAIRS], max_tokens)
    losses = reward_model.train(model, tokenizer, PAIRS, RewardModelConfig(max_tokens=max_tokens), seed=0)
    assert losses == [pytest.approx(pairwise_loss(chosen, rejected).item(), abs=1e-5)]


def test_every_pair_is_used_once_an_epoch(model, tokenizer):
    chosen = score(model, tokenizer, PROMPTS, RESPONSES)
    rejected = score(model, tokenizer, PROMPTS, [pair["rejected"] for pair in PAIRS])
    own = sorted(pairwise_loss(c, r).item() for c, r in zip(chosen, rejected, strict=True))
    config = RewardModelConfig(epochs=2, batch_size=1, learning_rate=0.0)
    losses = reward_model.train(model, tokenizer, PAIRS, config, seed=0)
    assert sorted(losses[:4]) == pytest.approx(own, abs=1e-5)
    assert sorted(losses[4:]) == pytest.approx(own, abs=1e-5)


def test_after_each_step_the_caller_hears_how_many_pairs_were_read(model, tokenizer):
    heard = []
    config = RewardModelConfig(epochs=2, batch_size=3)
    reward_model.train(model, tokenizer, PAIRS, config, seed=0, after_step=heard.append)
    assert heard in ([3, 4, 7, 8], [3, 4, 5, 8], [1, 4, 7, 8], [1, 4, 5, 8])


def test_nothing_to_learn_from_is_an_error(model, tokenizer):
    with pytest.raises(ValueError, match="nothing to learn from"):
        reward_model.train(model, tokenizer, [], RewardModelConfig(), seed=0)


RANKINGS = [
    {"prompt": PROMPT, "responses": [" Four.", " Ten.", " Boil it.", " I cannot say."], "ranks": [2, 1, 2, 4]},
    {"prompt": "Ask", "responses": [" so.", " it."], "ranks": [2, 1]},
    {"prompt": PROMPT, "responses": [" And a soft one?", " Four minutes.", " Four."], "ranks": [1, 2, 3]},
    {"prompt": "Ask", "responses": [" egg.", " egg.", " egg, then cool it in water"], "ranks": [1, 2, 1]},
    {"prompt": "Ask", "responses": [" alone."], "ranks": [1]},
]


def ranking_costs(model, tokenizer, max_tokens=256) -> list[float]:
    scores = [
        score(model, tokenizer, [r["prompt"]] * len(r["responses"]), r["responses"], max_tokens) for r in RANKINGS
    ]
    return [mean_over_pairs(s.tolist(), r["ranks"]) for s, r in zip(scores, RANKINGS, strict=True)]


@pytest.mark.parametrize("max_tokens", [CONTEXT, 12])
def test_rankings_of_any_length_are_trained_as_they_are_scored(model, tokenizer, max_tokens):
    expected = sum(ranking_costs(model, tokenizer, max_tokens)) / len(RANKINGS)
    config = RewardModelConfig(max_tokens=max_tokens)
    losses = reward_model.train_on_rankings(model, tokenizer, RANKINGS, config, seed=0)
    assert losses == [pytest.approx(expected, abs=1e-5)]


def test_all_pairs_of_a_prompt_are_in_one_step(model, tokenizer):
    expected, heard = sorted(ranking_costs(model, tokenizer)), []
    config = RewardModelConfig(batch_size=1, learning_rate=0.0)
    losses = reward_model.train_on_rankings(model, tokenizer, RANKINGS, config, 0, heard.append)
    assert sorted(losses) == pytest.approx(expected, abs=1e-5)
    assert heard == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("ranking", [{"responses": ["a", "b"], "ranks": [1]}, {"responses": [], "ranks": []}])
def test_a_ranking_without_a_rank_for_each_response_is_an_error(model, tokenizer, ranking):
    rankings = [RANKINGS[0], ranking | {"prompt": "Ask"}]
    with pytest.raises(ValueError, match="Ranking 2 has . responses and . ranks: give each response a rank"):
        reward_model.train_on_rankings(model, tokenizer, rankings, RewardModelConfig(), seed=0)


def separable_pairs(topics: str) -> list[dict]:
    """Whoever says "Four" is preferred, whatever else is said."""
    others = [" minutes", " water", " boil", " egg", " say"]
    return [
        {"prompt": f"Ask {topic}:", "chosen": f"{other} Four{another}.", "rejected": f"{other} soft{another}."}
        for topic in topics
        for other in others
        for another in others
    ]


def test_a_separable_preference_is_learned(model, tokenizer):
    held_out = separable_pairs("xyz")
    config = RewardModelConfig(epochs=4, batch_size=16, learning_rate=3e-3)
    losses = reward_model.train(model, tokenizer, separable_pairs("abcdef"), config, seed=0)
    assert sum(losses[-5:]) / 5 < 0.1 < math.log(2) < sum(losses[:3])
    margins = reward_model.margins(model, tokenizer, held_out)
    assert sum(margin > 0 for margin in margins) / len(margins) > 0.95
    assert not model.training


def test_the_seed_decides_training(policy, tokenizer):
    runs = []
    for seed in (0, 0, 1):
        model = reward_model.from_language_model(policy, seed=0)
        torch.manual_seed(len(runs))
        config = RewardModelConfig(batch_size=8)
        runs.append(reward_model.train(model, tokenizer, separable_pairs("ab"), config, seed))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_margins_are_differences_of_scores(model, tokenizer):
    rejected = [pair["rejected"] for pair in PAIRS]
    expected = score(model, tokenizer, PROMPTS, RESPONSES) - score(model, tokenizer, PROMPTS, rejected)
    mirrored = [{"prompt": p["prompt"], "chosen": p["rejected"], "rejected": p["chosen"]} for p in PAIRS]
    same = {"prompt": PROMPT, "chosen": " Four.", "rejected": " Four."}
    assert reward_model.margins(model, tokenizer, PAIRS) == pytest.approx(expected.tolist(), abs=1e-5)
    assert reward_model.margins(model, tokenizer, mirrored) == pytest.approx((-expected).tolist(), abs=1e-5)
    assert reward_model.margins(model, tokenizer, [same, *PAIRS])[0] == 0


# --- a prompt is read once ---

GROUPS = {
    "a pair": [[5, 6, 7, 8, 1], [5, 6, 9, 1]],
    "nothing in common": [[5, 6, 1], [7, 8, 9, 1]],
    "the same twice": [[5, 6, 1], [5, 6, 1]],
    "one is how the other begins": [[5, 6, 1, 7, 1], [5, 6, 1]],
    "four": [[5, 6, 7, 8, 1], [5, 6, 9, 1], [5, 6, 1], [5, 6, 9, 9, 9, 9, 1]],
    "one alone": [[5, 6, 7, 1]],
    "longer than the context together": [[5] * 9 + [token] * (CONTEXT - 10) + [1] for token in (6, 7, 8)],
}


def test_texts_in_one_row_by_hand():
    row = reward_model._row([[5, 6, 7, 8, 1], [5, 6, 9, 1]])
    assert row.ids == [5, 6, 7, 8, 1, 9, 1]
    assert row.positions == [0, 1, 2, 3, 4, 2, 3]
    assert row.owners == [0, 0, 1, 1, 1, 2, 2]
    assert row.ends == [4, 6]


def losses_and_gradients(model, scores) -> list[torch.Tensor]:
    model.zero_grad()
    loss = (scores.sigmoid() * torch.arange(1, len(scores) + 1)).mean()  # every score has a weight of its own
    loss.backward()
    return [scores.detach(), loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_scores_and_gradients_are_those_of_texts_read_apart(model, attention):
    model.set_attn_implementation(attention)
    groups = list(GROUPS.values())
    plain = losses_and_gradients(model, reward_model._scores(model, [text for group in groups for text in group]))
    rows = [reward_model._row(group) for group in groups]
    shared = losses_and_gradients(model, reward_model._scores_of_rows(model, rows))
    assert plain[0].std() > 0.1
    for ours, theirs in zip(shared, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_what_responses_have_in_common_is_read_once(model, tokenizer, monkeypatch):
    read, forward = [], model.base_model.forward
    monkeypatch.setattr(
        model.base_model, "forward", lambda ids, **rest: read.append(ids.numel()) or forward(ids, **rest)
    )
    reward_model.train(model, tokenizer, PAIRS[:1], RewardModelConfig(), seed=0)
    prompt, chosen = encode(tokenizer, PROMPT, PAIRS[0]["chosen"])
    _, rejected = encode(tokenizer, PROMPT, PAIRS[0]["rejected"])
    assert read == [len(prompt) + len(chosen) + len(rejected)]


# --- normalization ---


def test_normalized_scores_have_mean_0_and_standard_deviation_1(model, tokenizer):
    ids = encoded(tokenizer)
    raw = score(model, tokenizer, PROMPTS, RESPONSES)
    margins = torch.tensor(reward_model.margins(model, tokenizer, PAIRS))
    reward_model.normalize(model, tokenizer, *ids)
    scores = score(model, tokenizer, PROMPTS, RESPONSES)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std())  # hence the same order
    torch.testing.assert_close(torch.tensor(reward_model.margins(model, tokenizer, PAIRS)), margins / raw.std())
    reward_model.normalize(model, tokenizer, *ids)  # once more changes nothing
    torch.testing.assert_close(score(model, tokenizer, PROMPTS, RESPONSES), scores)


def test_normalization_survives_saving(model, tokenizer, tmp_path):
    reward_model.normalize(model, tokenizer, *encoded(tokenizer))
    language_model.save(model, tmp_path / "saved")
    loaded = reward_model.load(tmp_path / "saved")
    texts = PROMPTS, [pair["rejected"] for pair in PAIRS]
    torch.testing.assert_close(score(loaded, tokenizer, *texts), score(model, tokenizer, *texts), atol=1e-6, rtol=0)


def test_the_unit_is_for_every_library_to_see_and_the_zero_is_in_the_config(model, tokenizer, tmp_path):
    ids = encoded(tokenizer)
    reward_model.normalize(model, tokenizer, *ids)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    theirs = library_scores(loaded, tokenizer, [p + r for p, r in zip(*ids, strict=True)])
    assert theirs.std().item() == pytest.approx(1, abs=1e-5)
    assert theirs.mean().item() == pytest.approx(loaded.config.reward_zero, abs=1e-5)


# --- the zero alone ---


def test_after_centering_the_demonstrations_average_0_and_no_comparison_changes(model, tokenizer):
    raw, margins = score(model, tokenizer, PROMPTS, RESPONSES), reward_model.margins(model, tokenizer, PAIRS)
    assert abs(raw.mean()) > 0.01
    reward_model.center(model, tokenizer, PROMPTS, RESPONSES)
    torch.testing.assert_close(score(model, tokenizer, PROMPTS, RESPONSES), raw - raw.mean())  # the unit stays, too
    assert reward_model.margins(model, tokenizer, PAIRS) == pytest.approx(margins, abs=1e-5)
    elsewhere = score(model, tokenizer, PROMPTS[:1], [PAIRS[0]["rejected"]]).item()  # one zero for all texts
    assert elsewhere == pytest.approx(raw[0].item() - raw.mean().item() - margins[0], abs=1e-5)


def test_centering_starts_from_the_zero_there_is(model, tokenizer):
    reward_model.normalize(model, tokenizer, *encoded(tokenizer))
    others = [pair["rejected"] for pair in PAIRS]
    before = score(model, tokenizer, PROMPTS, others)
    for _ in range(2):  # the second time changes nothing
        reward_model.center(model, tokenizer, PROMPTS, others)
        torch.testing.assert_close(score(model, tokenizer, PROMPTS, others), before - before.mean())


def test_the_zero_survives_saving(model, tokenizer, tmp_path):
    reward_model.center(model, tokenizer, PROMPTS, RESPONSES)
    language_model.save(model, tmp_path / "saved")
    loaded = reward_model.load(tmp_path / "saved")
    assert score(loaded, tokenizer, PROMPTS, RESPONSES).mean().item() == pytest.approx(0, abs=1e-5)
    ids = encoded(tokenizer)  # and it is the zero of tokenized texts, which a policy is scored by
    theirs = score_tokens(loaded, *ids, tokenizer.eos_token_id)
    torch.testing.assert_close(theirs, score(model, tokenizer, PROMPTS, RESPONSES), atol=1e-5, rtol=0)


# --- with TRL ---


@pytest.fixture
def trainer(model, tokenizer, tmp_path):
    """TRL's trainer of a model that we saved, for pairs that it tokenizes itself."""
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer  # takes seconds to import

    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    config = RewardConfig(
        output_dir=tmp_path,
        per_device_train_batch_size=len(PAIRS),
        num_train_epochs=1,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    return RewardTrainer(str(tmp_path / "saved"), config, train_dataset=Dataset.from_list(PAIRS))


def test_loss_and_gradient_of_every_parameter_are_those_of_trl(model, tokenizer, trainer):
    """Same numbers, read in another way: TRL pads, masks, and lets the library look for the end."""
    (batch,) = trainer.get_train_dataloader()
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    theirs.backward()
    gradients, step = [], torch.optim.AdamW.step
    with pytest.MonkeyPatch.context() as patch:
        kept = lambda self: gradients.extend(p.grad.clone() for p in model.parameters()) or step(self)  # noqa: E731
        patch.setattr(torch.optim.AdamW, "step", kept)
        config = RewardModelConfig(max_gradient_norm=math.inf)
        (ours,) = reward_model.train(model, tokenizer, PAIRS, config, seed=0)
    assert ours == pytest.approx(theirs.item(), abs=1e-6)
    for (name, parameter), gradient in zip(trainer.model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-6, rtol=0, msg=name)


def test_trl_trains_the_model_that_we_saved(model, tokenizer, trainer):
    rejected = [pair["rejected"] for pair in PAIRS]
    first = pairwise_loss(*(score(model, tokenizer, PROMPTS, side) for side in (RESPONSES, rejected)))
    assert trainer.train().training_loss == pytest.approx(first.item(), abs=1e-5)
    assert score(trainer.model.eval(), tokenizer, PROMPTS, RESPONSES).isfinite().all()
    assert not torch.equal(trainer.model.score.weight, model.score.weight)


def test_trl_takes_it_for_a_reward_function(policy, model, tokenizer, tmp_path):
    """RLOOTrainer scores with the library's forward pass, so in our unit. The texts it passes have no end token (TRL
    1.16 decodes without special tokens): where that matters, pass a function that calls `score`."""
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    policy.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = RLOOConfig(
        output_dir=tmp_path,
        per_device_train_batch_size=4,
        num_generations=2,
        max_completion_length=4,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    asked, forward = [], model.forward
    model.forward = lambda **inputs: (
        asked.append((inputs, forward(**inputs).logits)) or SimpleNamespace(logits=asked[-1][1])
    )
    prompts = Dataset.from_list([{"prompt": PROMPT}, {"prompt": "Ask"}])
    trainer = RLOOTrainer(str(tmp_path), model, config, train_dataset=prompts, reward_processing_classes=tokenizer)
    trainer.train()
    ((inputs, rewards),) = asked
    texts = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    torch.testing.assert_close(rewards.squeeze(-1), reward_model._scores(model, texts), atol=1e-5, rtol=0)
    (logged,) = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert logged == pytest.approx(rewards.mean().item(), abs=1e-5)


# --- any checkpoint ---

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "vocab_size": 320,
}
LANGUAGE_MODELS = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 320, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}),
    "llama": ("LlamaForCausalLM", SIZES | {"num_key_value_heads": 1}),
    "gpt_neox": ("GPTNeoXForCausalLM", SIZES),
    "opt": ("OPTForCausalLM", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "qwen3": ("Qwen3ForCausalLM", SIZES | {"num_key_value_heads": 1, "head_dim": 16}),
}
ENCODERS = {
    "bert": ("BertModel", SIZES),
    "deberta-v2": ("DebertaV2Model", SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
}
CHECKPOINTS = LANGUAGE_MODELS | ENCODERS


@pytest.fixture
def checkpoint(tokenizer, tmp_path):
    """A function that makes a folder like a Hub checkpoint of an architecture, with random weights. Language models
    come with a tokenizer without a pad token (`pad`: with this one), encoders with one that frames each text."""

    def make(name: str, pad: str | None = None):
        torch.manual_seed(0)
        class_name, sizes = CHECKPOINTS[name]
        config = transformers.AutoConfig.for_model(name, **sizes)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = None, 1, None if name in LANGUAGE_MODELS else 0
        getattr(transformers, class_name)(config).save_pretrained(tmp_path / name)
        backend = type(tokenizer._tokenizer).from_str(tokenizer._tokenizer.to_str())
        special = {"eos_token": "<eos>", "pad_token": pad}
        if name in ENCODERS:
            special = {"cls_token": "<SOS>", "sep_token": "<MASKED>", "pad_token": "<pad>"}
            frame = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<SOS>", "<MASKED>")]
            backend.post_processor = TemplateProcessing(single="<SOS> $A <MASKED>", special_tokens=frame)
        wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
        wrapped.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_any_checkpoint_learns_scores_and_is_found_again(checkpoint, name, tmp_path):
    model, tokenizer = reward_model.from_checkpoint(checkpoint(name), seed=0)
    before = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens=24)
    separate = [
        score(model, tokenizer, [p], [r], max_tokens=24).item() for p, r in zip(PROMPTS, RESPONSES, strict=True)
    ]
    assert before.tolist() == pytest.approx(separate, abs=1e-5)
    config = RewardModelConfig(max_tokens=24, learning_rate=1e-2, epochs=10)
    losses = reward_model.train(model, tokenizer, PAIRS, config, seed=0)
    assert losses[-1] < losses[0] - 0.1
    after = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens=24)
    assert ((after - before).abs() > 1e-3).all()
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "saved")
    again = reward_model.load(tmp_path / "saved"), AutoTokenizer.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(score(*again, PROMPTS, RESPONSES, max_tokens=24), after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_of_any_checkpoint_the_librarys_own_scores_are_ours(checkpoint, name):
    model, tokenizer = reward_model.from_checkpoint(checkpoint(name), seed=0)
    texts = [reward_model.read(model, tokenizer, p, r, 24) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    assert max(map(len, texts)) == 24 > min(map(len, texts))
    ours = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens=24)
    torch.testing.assert_close(library_scores(model, tokenizer, texts, padding=3), ours, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_the_seed_draws_the_head_of_any_checkpoint(checkpoint, name):
    folder, scores = checkpoint(name), []
    for seed in (0, 0, 1):
        model, tokenizer = reward_model.from_checkpoint(folder, seed)
        torch.manual_seed(len(scores))
        scores.append(score(model, tokenizer, PROMPTS, RESPONSES))
        assert model.dtype == torch.float32 and not model.training
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("pad", [None, "<eos>", "<MASKED>"])
def test_a_tokenizer_that_pads_with_its_end_token_gets_a_pad_token(checkpoint, pad):
    """Or else the library would take the end for padding, and read the score one token too early."""
    model, tokenizer = reward_model.from_checkpoint(checkpoint("gpt2", pad), seed=0)
    assert tokenizer.pad_token == (pad if pad == "<MASKED>" else "<pad>")
    assert tokenizer.eos_token_id != tokenizer.pad_token_id == model.config.pad_token_id
    assert model.get_input_embeddings().num_embeddings == 320  # there was room: the token was known


def test_a_pad_token_that_is_new_gets_an_embedding(checkpoint):
    folder = checkpoint("gpt2")
    other = train_tokenizer([PROMPT], vocabulary=320)  # whose 320 tokens do not reach that far
    backend = type(other._tokenizer).from_str(other._tokenizer.to_str().replace("<pad>", "<other>"))
    backend.add_tokens([f"token {n}" for n in range(320 - backend.get_vocab_size())])
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>").save_pretrained(folder)
    model, tokenizer = reward_model.from_checkpoint(folder, seed=0)
    assert tokenizer.pad_token_id == 320 and model.get_input_embeddings().num_embeddings == 321
    texts = [reward_model.read(model, tokenizer, p, r, 24) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    ours = score(model, tokenizer, PROMPTS, RESPONSES, max_tokens=24)
    torch.testing.assert_close(library_scores(model, tokenizer, texts), ours, atol=1e-5, rtol=0)


def test_an_encoder_loses_the_beginning_of_what_is_too_long(checkpoint):
    model, tokenizer = reward_model.from_checkpoint(checkpoint("bert"), seed=0)
    ids = reward_model.read(model, tokenizer, PROMPT * 9, " Four minutes.", 16)
    whole = tokenizer(PROMPT * 9 + " Four minutes.")["input_ids"]
    assert ids == [whole[0], *whole[-15:]]


def test_an_encoder_that_is_a_reward_model_keeps_its_head(checkpoint, tmp_path):
    model, tokenizer = reward_model.from_checkpoint(checkpoint("bert"), seed=0)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "judge")
    again, _ = reward_model.from_checkpoint(tmp_path / "judge", seed=1)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
