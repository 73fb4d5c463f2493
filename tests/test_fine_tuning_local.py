"""Oracles: losses and probabilities from the logits of whole texts, bits before and after, counts of trainings."""

import json
import math
import resource
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_lab import ROOT, checkpoints, sft, sources
from rlhf_lab.fine_tuning import (
    PROMPTS_PER_REQUEST,
    SEED_STEP,
    Event,
    FineTuningError,
    Settings,
    backends,
    from_jsonl,
    local,
    requests,
    spending,
    to_jsonl,
    training,
)
from rlhf_lab.fine_tuning.local import LocalBackend
from rlhf_lab.language_model import encode, load_base, load_tokenizer, load_with_tokenizer

BASE = "base-0.2M"
PROMPT = "\n\nHuman: How do I keep bread fresh?\n\nAssistant:"
EXAMPLES = [
    (PROMPT, " Keep it in a paper bag."),
    ("\n\nHuman: Hello!\n\nAssistant:", " Hi, what can I do for you today?"),
    ("\n\nHuman: Thanks.<SOS>", "1"),
    ("So", " it is."),
]
SETTINGS = Settings(n_epochs=2, batch_size=2, prompt_loss_weight=0.1)


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(tmp_path)


@pytest.fixture
def trainings(monkeypatch):
    """The jobs that were trained, one entry each time."""
    done, fine_tune = [], training.fine_tune
    monkeypatch.setattr(training, "fine_tune", lambda *args: done.append(args[2:4]) or fine_tune(*args))
    return done


@pytest.fixture(scope="module")
def base():
    return load_base("0.2M")


def small(seed=0, **settings):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=2048, n_positions=64, n_embd=32, n_layer=3, n_head=1, **settings)
    return GPT2LMHeadModel(config)


def folder_of(model, path):
    model.save_pretrained(path)
    load_tokenizer(local.BASE_MODELS[BASE]).save_pretrained(path)
    return str(path)


def weights_of(backend, model):
    return load_file(backend.model_folder(model) / "model.safetensors")


@torch.no_grad()
def token_losses(model, prompt, completion):
    """Minus the log-probabilities of all tokens of a text but the first, one at a time."""
    ids = prompt + completion
    logs = [model(torch.tensor([ids[:t]])).logits[0, -1].log_softmax(-1)[ids[t]].item() for t in range(1, len(ids))]
    return [-value for value in logs]


# --- the loss ---


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_the_loss_is_the_mean_over_tokens_in_which_a_prompt_token_counts_as_often_as_its_weight(base, weight):
    model, tokenizer = base
    pairs = [encode(tokenizer, *example) for example in EXAMPLES]
    total = count = 0.0
    for prompt, completion in pairs:
        for position, loss in enumerate(token_losses(model, prompt, completion), start=1):
            share = weight if position < len(prompt) else 1.0
            total, count = total + share * loss, count + share
    found = training.weighted_loss(model, *zip(*pairs, strict=True), weight)
    assert found.item() == pytest.approx(total / count, abs=1e-5)


def test_without_a_prompt_weight_the_first_loss_is_that_of_supervised_fine_tuning():
    losses = []
    for train in (sft.train, training.train):
        config = sft.SFTConfig(epochs=1, batch_size=4) if train is sft.train else Settings(batch_size=4)
        losses.append(train(*load_base("0.2M"), EXAMPLES, config, seed=0)[0])
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_only_the_last_layers_change_where_only_they_are_trained(backend):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, replace(SETTINGS, layers="last"))
    before = {name: tensor.clone() for name, tensor in load_base("0.2M")[0].state_dict().items()}
    after = weights_of(backend, backend.wait(job.id).fine_tuned_model)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    last = {name for name in after if name.startswith(("transformer.h.1.", "transformer.ln_f."))}
    assert len(last) == 14
    assert changed == last  # the embedding is the head as well, and stays, as do the other block and the positions


def test_all_layers_change_where_all_are_trained(backend):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS)
    before = load_base("0.2M")[0].state_dict()
    after = weights_of(backend, backend.wait(job.id).fine_tuned_model)
    assert not any(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_the_last_layers_of_another_model_are_its_last_block_its_norm_and_its_own_head():
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 12, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **shape))
    chosen = {id(parameter) for parameter in training.parameters(model, "last")}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in chosen}
    expected = ("model.layers.11.", "model.norm.", "lm_head.")
    assert names == {name for name, _ in model.named_parameters() if name.startswith(expected)}
    assert training.base_rate(model) == training.LADDER_RATE


def test_the_learning_rate_is_the_multiplier_times_the_base_rate(monkeypatch):
    rates, adamw = [], training.adamw
    monkeypatch.setattr(training, "adamw", lambda *args: rates.append(args[1]) or adamw(*args))
    training.train(*load_base("0.2M"), EXAMPLES, Settings(learning_rate_multiplier=0.2))
    assert rates == [pytest.approx(1e-3)]


# --- jobs ---


def test_the_same_content_is_trained_once(backend, tmp_path, trainings):
    file = backend.upload(EXAMPLES)
    job = backend.fine_tune(file, BASE, SETTINGS, seed=3, suffix="first")
    done = backend.wait(job.id)
    other = LocalBackend(tmp_path)
    again = other.fine_tune(other.upload(list(EXAMPLES)), BASE, replace(SETTINGS), seed=3, suffix="second")
    assert again == other.wait(again.id) == done
    assert done.fine_tuned_model == f"ft:{BASE}:first:{job.id.removeprefix('ftjob-')}"
    assert trainings == [(SETTINGS, 3)]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 4},
        {"model": "base-0.5M"},
        {"examples": EXAMPLES[1:]},
        *({"settings": replace(SETTINGS, **{name: value})} for name, value in [("layers", "last"), ("n_epochs", 3)]),
        {"settings": replace(SETTINGS, prompt_loss_weight=0.2)},
        {"settings": replace(SETTINGS, learning_rate_multiplier=0.2)},
        {"settings": replace(SETTINGS, batch_size=3)},
    ],
)
def test_another_content_is_another_job(backend, change):
    def start(examples=EXAMPLES, model=BASE, settings=SETTINGS, seed=3):
        return backend.fine_tune(backend.upload(examples), model, settings, seed).id

    assert start() == start() != start(**change)


def test_the_key_of_a_job_holds_the_code_that_trains_and_no_other():
    known = sources.Sources(ROOT / "rlhf_lab")
    code = known.closure({"rlhf_lab.fine_tuning.training"}, sources.NEVER_PART_OF_AN_ARTEFACT)
    short = {module.removeprefix("rlhf_lab.") for module in code}
    assert short == {"fine_tuning", "fine_tuning.training", "language_model", "sft"}
    recipe = known.closure({"rlhf_lab.fine_tuning.backends"}, sources.NEVER_PART_OF_AN_ARTEFACT)
    of_us = {module.removeprefix("rlhf_lab.fine_tuning.") for module in recipe if "fine_tuning." in module}
    assert of_us == {"backends", "local", "training"}  # neither the server nor who talks to it


def test_events_say_step_loss_and_tokens(backend, base):
    model, tokenizer = base
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, replace(SETTINGS, batch_size=4)).id)
    pairs = [encode(tokenizer, *example) for example in EXAMPLES]
    tokens = sum(len(prompt) + len(completion) for prompt, completion in pairs)
    first, second = backend.events(job.id)
    assert (first.step, first.tokens, second.step, second.tokens) == (1, tokens, 2, 2 * tokens)
    assert first.loss == pytest.approx(training.weighted_loss(model, *zip(*pairs, strict=True), 0.1).item(), abs=1e-5)
    assert second.loss < first.loss
    assert job.trained_tokens == 2 * tokens


def test_a_model_that_was_fine_tuned_can_be_fine_tuned_again(backend):
    file = backend.upload(EXAMPLES)
    first = backend.wait(backend.fine_tune(file, BASE, SETTINGS, suffix="one").id).fine_tuned_model
    job = backend.wait(backend.fine_tune(file, first, SETTINGS, suffix="two").id)
    assert job.fine_tuned_model.startswith(f"ft:{BASE}:two:")
    expected, tokenizer = load_with_tokenizer(backend.model_folder(first))
    training.train(expected, tokenizer, EXAMPLES, SETTINGS)
    found = weights_of(backend, job.fine_tuned_model)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items() if name in found)
    shutil.rmtree(backend.model_folder(first))
    backend.wait(backend.fine_tune(file, BASE, SETTINGS).id)  # the same model, made in another time
    assert backend.fine_tune(file, first, SETTINGS) == job


def test_the_seed_decides_what_dropout_does(tmp_path):
    base = folder_of(small(n_inner=32), tmp_path / "base")  # dropout .1 everywhere
    weights = []
    for seed, name in [(0, "a"), (0, "b"), (1, "c")]:
        backend = LocalBackend(tmp_path / name)
        torch.manual_seed(len(weights))
        job = backend.fine_tune(backend.upload(EXAMPLES), base, replace(SETTINGS, batch_size=8), seed)
        weights.append(weights_of(backend, backend.wait(job.id).fine_tuned_model))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_a_cancelled_job_is_not_trained_and_can_be_wanted_again(backend, trainings):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS)
    assert backend.cancel(job.id).status == "cancelled"
    with pytest.raises(FineTuningError, match="has been cancelled"):
        backend.wait(job.id)
    assert trainings == []
    again = backend.fine_tune(job.file, BASE, SETTINGS)
    assert (again.id, again.status) == (job.id, "queued")
    assert backend.wait(job.id).status == "succeeded"


def test_a_running_job_leaves_off_at_the_step_after_it_is_cancelled(backend, monkeypatch):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, replace(SETTINGS, n_epochs=50))
    steps = LocalBackend.steps

    def cancelling(self, job):
        on_step = steps(self, job)
        return lambda event: (on_step(event), event.step == 3 and self.cancel(job.id))

    monkeypatch.setattr(LocalBackend, "steps", cancelling)
    with pytest.raises(FineTuningError, match="has been cancelled"):
        backend.wait(job.id)
    assert [event.step for event in backend.events(job.id)] == [1, 2, 3]
    assert job.id not in str(backend.models())


@pytest.mark.parametrize(("owner", "moment"), [(LocalBackend, "_run"), (local, "save_with_tokenizer")])
def test_a_job_that_is_cancelled_as_it_begins_or_ends_stays_cancelled(backend, monkeypatch, owner, moment):
    job, usual = backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS), getattr(owner, moment)
    monkeypatch.setattr(owner, moment, lambda *args: backend.cancel(job.id) and usual(*args))
    with pytest.raises(FineTuningError, match="has been cancelled"):
        backend.wait(job.id)
    assert backend.models() == local.BASE_MODELS
    monkeypatch.undo()
    assert backend.wait(backend.fine_tune(job.file, BASE, SETTINGS).id).status == "succeeded"


# --- faults ---


@pytest.mark.faults
def test_an_interrupted_job_ends_with_the_weights_of_an_undisturbed_one(tmp_path, monkeypatch):
    disturbed, steps = LocalBackend(tmp_path / "a"), LocalBackend.steps
    job = disturbed.fine_tune(disturbed.upload(EXAMPLES), BASE, SETTINGS)

    def killed(self, job):
        def on_step(event):
            steps(self, job)(event)
            raise KeyboardInterrupt

        return on_step

    with monkeypatch.context() as patch:
        patch.setattr(LocalBackend, "steps", killed)
        with pytest.raises(KeyboardInterrupt):
            disturbed.wait(job.id)
    later = LocalBackend(tmp_path / "a")
    assert later.job(job.id).status == "running" and later.models() == local.BASE_MODELS
    assert later.wait(job.id).status == "succeeded"
    undisturbed = LocalBackend(tmp_path / "b")
    undisturbed.wait(undisturbed.fine_tune(undisturbed.upload(EXAMPLES), BASE, SETTINGS).id)
    name = later.job(job.id).fine_tuned_model
    one, other = weights_of(later, name), weights_of(undisturbed, name)
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert later.events(job.id) == undisturbed.events(job.id)


@pytest.mark.faults
def test_a_full_disk_fails_the_job_in_one_sentence_and_loses_nothing(backend, tmp_path):
    file = backend.upload(EXAMPLES)
    first = backend.wait(backend.fine_tune(file, BASE, SETTINGS, seed=1).id)
    job = backend.fine_tune(file, BASE, SETTINGS, seed=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # bytes; the model has a million
    try:
        with pytest.raises(checkpoints.CacheError, match="could not be saved .* make room in"):
            backend.wait(job.id)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert backend.job(job.id).status == "failed" and "make room" in backend.job(job.id).error
    assert backend.job(first.id) == first and first.fine_tuned_model in backend.models()
    assert [path.name for path in tmp_path.glob("fine_tuned*")] == [f"fine_tuned-{first.id.removeprefix('ftjob-')}"]
    assert backend.wait(backend.fine_tune(file, BASE, SETTINGS, seed=2).id).status == "succeeded"


@pytest.mark.faults
def test_a_model_that_was_lost_or_damaged_is_trained_again(backend, trainings):
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS).id)
    weights = backend.model_folder(job.fine_tuned_model) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert backend.job(job.id).status == "queued" and job.fine_tuned_model not in backend.models()
    backend.complete(job.fine_tuned_model, ["So"], max_tokens=1)
    assert backend.wait(job.id) == replace(job, finished=backend.job(job.id).finished)
    assert len(trainings) == 2


@pytest.mark.faults
def test_what_many_upload_at_once_is_written_once(tmp_path, monkeypatch):
    written, write = [], local.write
    monkeypatch.setattr(local, "write", lambda *args: (time.sleep(0.1), written.append(args), write(*args)))
    with ThreadPoolExecutor() as pool:
        ids = set(pool.map(lambda _: LocalBackend(tmp_path).upload(EXAMPLES), range(4)))
    assert (len(ids), len(written)) == (1, 1)


@pytest.mark.faults
def test_a_line_of_events_that_is_being_written_is_not_read(backend, tmp_path):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS)
    path = tmp_path / "fine_tuning" / "jobs" / job.id / "events.jsonl"
    path.write_text('{"step": 1, "loss": 2.5, "tokens": 9}\n{"step": 2, "lo')
    assert backend.events(job.id) == [Event(1, 2.5, 9)]


@pytest.mark.faults
def test_a_damaged_job_is_named_and_can_be_started_again(backend, tmp_path):
    job = backend.fine_tune(backend.upload(EXAMPLES), BASE, SETTINGS)
    path = tmp_path / "fine_tuning" / "jobs" / job.id / "job.json"
    path.write_text('{"id": "ft')
    with pytest.raises(FineTuningError, match=f"{job.id}.job.json is damaged: delete it"):
        backend.models()
    path.unlink()
    assert backend.fine_tune(job.file, BASE, SETTINGS) == replace(job, created=backend.job(job.id).created)


@pytest.mark.faults
def test_training_that_diverges_fails_with_the_step_and_the_remedy(backend, tmp_path):
    model = small()
    model.transformer.wte.weight.data.fill_(math.nan)
    job = backend.fine_tune(backend.upload(EXAMPLES), folder_of(model, tmp_path / "base"), SETTINGS)
    with pytest.raises(FineTuningError, match="loss of step 1 is nan: .* lower learning_rate_multiplier"):
        backend.wait(job.id)
    assert "step 1" in backend.job(job.id).error
    with pytest.raises(FineTuningError, match=f"Job {job.id}, .*, has failed: The loss of step 1"):
        backend.wait(job.id)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("ask", "error", "sentence"),
    [
        (lambda b: b.upload([]), ValueError, "`examples` is empty"),
        (lambda b: b.fine_tune("file-0", BASE, SETTINGS), FineTuningError, "no file 'file-0' .* upload"),
        (lambda b: b.fine_tune("../jobs/x", BASE, SETTINGS), FineTuningError, "no file"),
        (lambda b: b.fine_tune(b.upload(EXAMPLES), "gpt-5", SETTINGS), FineTuningError, "'gpt-5': name base-0.2M"),
        (lambda b: b.job("ftjob-../x"), FineTuningError, "There is no job"),
        (lambda b: b.complete("ft:base-0.2M::00", ["x"]), FineTuningError, "There is no model 'ft:base-0.2M::00'"),
        (lambda b: b.complete(BASE, [" tea" * 250]), ValueError, "do not fit the model's context of 256"),
        (lambda b: b.complete(BASE, ["x"], stop="\n\n"), ValueError, "stop = .* pass a list of texts"),
        (lambda b: b.complete(BASE, ["x"], stop=[""]), ValueError, "stop = .* none of them empty"),
        (lambda b: b.class_probability(BASE, [" tea" * 300]), ValueError, "300 tokens does not fit"),
        (lambda b: b.class_probability(BASE, [""]), ValueError, "A prompt is empty"),
        (lambda b: b.class_probability(BASE, ["x"], "10"), ValueError, "'10' is 2 tokens"),
        (lambda b: Settings(n_epochs=0), ValueError, "n_epochs=0.* at least 1"),
        (lambda b: Settings(batch_size=8.0), ValueError, "batch_size are whole numbers"),
        (lambda b: Settings(learning_rate_multiplier=math.nan), ValueError, "learning_rate_multiplier is a number"),
        (lambda b: Settings(prompt_loss_weight=2), ValueError, "prompt_loss_weight lies between 0 and 1"),
        (lambda b: Settings(layers="first"), ValueError, "layers is one of all, last"),
        (
            lambda b: from_jsonl('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}', "f"),
            FineTuningError,
            "f, line 2",
        ),
        (lambda b: from_jsonl('{"prompt": 1, "completion": "b"}', "f"), FineTuningError, "f, line 1: write"),
        (lambda b: from_jsonl("[]\n", "f"), FineTuningError, "f, line 1"),
        (lambda b: from_jsonl("", "f"), FineTuningError, "f is empty"),
        (lambda b: backends.address("cloud"), ValueError, "no backend 'cloud': it is local or openai"),
    ],
)
def test_bad_input_gets_a_sentence(backend, ask, error, sentence):
    with pytest.raises(error, match=sentence):
        ask(backend)


def test_examples_survive_the_way_through_a_file():
    odd = [("a\nb\u2028c", ' "quoted" \\n é \x85'), ("", "1")]
    assert from_jsonl(to_jsonl(odd), "f") == odd
    foreign = "\r\n".join(json.dumps({"prompt": p, "completion": c}, ensure_ascii=False) for p, c in odd)
    assert from_jsonl(foreign, "f") == odd


# --- what models say ---


def test_logprobs_are_the_models_own_whatever_the_temperature(backend, base):
    model, tokenizer = base
    (found,) = backend.complete(BASE, [PROMPT], temperature=1.7, max_tokens=12, logprobs=3)
    ids = tokenizer(PROMPT)["input_ids"]
    written = tokenizer(found.text, add_special_tokens=False)["input_ids"]
    assert [tokenizer.decode([token]) for token in written] == list(found.tokens[: len(written)])
    for own, top, token in zip(found.logprobs, found.top, written, strict=False):
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert own == pytest.approx(logs[token].item(), abs=1e-5)
        best = logs.topk(3)
        assert [tokenizer.decode([i]) for i in best.indices] == list(top)
        assert list(top.values()) == pytest.approx(best.values.tolist(), abs=1e-5)
        ids = [*ids, token]


def test_an_answer_that_ended_by_itself_has_its_end_token_last(backend):
    ended, cut = (
        next(c for c in backend.complete(BASE, [PROMPT] * 20, max_tokens=n, logprobs=0) if c.finish_reason == reason)
        for n, reason in [(60, "stop"), (4, "length")]
    )
    assert ended.tokens[-1] == "<eos>" and "".join(ended.tokens[:-1]) == ended.text
    assert "".join(cut.tokens) == cut.text and len(cut.tokens) == 4
    assert [len(c.tokens) == len(c.logprobs) == len(c.top) for c in (ended, cut)] == [True, True]


def test_temperature_zero_takes_the_likeliest_tokens(backend):
    (found,) = backend.complete(BASE, [PROMPT], temperature=0, max_tokens=8, logprobs=1)
    assert [token for top in found.top for token in top] == list(found.tokens)


@pytest.mark.parametrize("stop", [[" the"], [".", " the"], ["e"], ["\n\nHuman"], ["never written"]])
def test_a_completion_ends_before_its_first_stop_sequence(backend, stop):
    prompts = [PROMPT] * 8
    whole = backend.complete(BASE, prompts, max_tokens=24, logprobs=0)
    for full, cut in zip(whole, backend.complete(BASE, prompts, stop=stop, max_tokens=24, logprobs=0), strict=True):
        places = [full.text.find(word) for word in stop if word in full.text]
        assert cut.text == full.text[: min(places, default=None)]
        assert cut.finish_reason == ("stop" if places else full.finish_reason)
        assert cut.tokens == full.tokens[: len(cut.tokens)]
        assert cut.logprobs == pytest.approx(full.logprobs[: len(cut.tokens)], abs=1e-4)
        if places:  # every token that begins before the stop sequence, and none that begins after
            assert len("".join(cut.tokens[:-1])) < len(cut.text) <= len("".join(cut.tokens)) or cut.tokens == ()


def test_equal_calls_get_equal_answers_and_equal_prompts_different_ones(backend):
    one, same, other = (backend.complete(BASE, [PROMPT] * 4, max_tokens=16, seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert len({completion.text for completion in one}) > 1


def test_a_portion_is_answered_alike_wherever_the_division_is_done():
    prompts = [str(i) for i in range(2 * PROMPTS_PER_REQUEST + 1)]
    portions = list(requests(prompts, 7))
    assert [prompt for portion, _ in portions for prompt in portion] == prompts
    assert [seed for _, seed in portions] == [7, 7 + SEED_STEP, 7 + 2 * SEED_STEP]
    assert [list(requests(portion, seed)) for portion, seed in portions] == [[each] for each in portions]


def test_the_class_probability_is_that_of_the_full_distribution(backend, base):
    model, tokenizer = base
    prompts = [PROMPT, "\n\nHuman: Thanks.<SOS>", "So"]
    one, zero = tokenizer("1")["input_ids"][0], tokenizer("0")["input_ids"][0]
    for prompt, found in zip(prompts, backend.class_probability(BASE, prompts), strict=True):
        with torch.no_grad():
            p = F.softmax(model(torch.tensor([tokenizer(prompt)["input_ids"]])).logits[0, -1].double(), dim=-1)
        assert found == pytest.approx((p[one] / (p[one] + p[zero])).item(), abs=1e-5)
        assert {one, zero} - set(p.topk(5).indices.tolist())  # so the five likeliest tokens would not tell
    swapped = backend.class_probability(BASE, prompts, positive="0", negative="1")
    assert [a + b for a, b in zip(swapped, backend.class_probability(BASE, prompts), strict=True)] == pytest.approx(
        [1] * 3
    )


def test_a_class_token_can_be_learned(backend):
    examples = [(f"\n\nHuman: It is {word}.<SOS>", label) for word, label in [("good", "1"), ("bad", "0")]]
    settings = Settings(n_epochs=60, batch_size=2, learning_rate_multiplier=0.6)
    model = backend.wait(backend.fine_tune(backend.upload(examples), BASE, settings).id).fine_tuned_model
    good, bad = backend.class_probability(model, [prompt for prompt, _ in examples])
    assert good > 0.9 and bad < 0.1


# --- money ---


def test_the_cost_is_tokens_times_epochs_times_price(backend, base):
    _, tokenizer = base
    prices = spending.Prices(training=0.0006, inference=0.0024)  # dollars per 1,000 tokens
    tokens = sum(len(tokenizer(part)["input_ids"]) for example in EXAMPLES for part in example)
    estimate = backend.cost_estimate(EXAMPLES, 4, prices)
    assert estimate.tokens == 4 * tokens
    assert estimate.dollars == pytest.approx(4 * tokens * 0.0006 / 1000)


def test_the_bill_of_the_source_is_found_again():
    # "harmless 14,174,817 tokens $8.50", babbage at $.0006 per 1,000 tokens
    prices = spending.Prices(0.0006, 0.0024)
    estimate = spending.training_cost([("x", "y")], 1, prices, lambda text: 14_174_817 if text == "x" else 0)
    assert round(estimate.dollars, 2) == 8.50


@pytest.mark.parametrize(
    ("options", "spent", "sentence"),
    [
        ({}, 0, "Nothing is spent unasked"),
        ({"budget": 1.0}, 0.6, r"\$0\.60 are spent already.*budget of \$1\.00"),
        ({"confirm": lambda estimate: False}, 0, "Not confirmed"),
        ({"budget": 1.0, "confirm": lambda estimate: True}, 0.6, "budget"),
        ({"budget": 1.0, "confirm": lambda estimate: False}, 0, "Not confirmed"),
    ],
)
def test_a_purse_refuses(options, spent, sentence):
    purse = spending.Purse(None, **{"budget": None, "confirm": None} | options)
    with pytest.raises(spending.BudgetError, match=sentence):
        purse.approve(spending.Estimate("a job", 1000, 0.5), spent)


def test_a_purse_pays_up_to_its_budget():
    asked = []
    purse = spending.Purse(None, 1.0, lambda estimate: asked.append(str(estimate)) or True)
    purse.approve(spending.Estimate("a job", 1234, 0.5), 0.5)
    assert asked == ["a job: 1,234 tokens, about $0.50"]


def test_manifests_name_no_path(backend, tmp_path):
    folder = folder_of(small(), tmp_path / "base")
    job = backend.wait(backend.fine_tune(backend.upload(EXAMPLES), folder, SETTINGS).id)
    manifest = (backend.model_folder(job.fine_tuned_model) / "manifest.json").read_text()
    assert json.loads(manifest)["arguments"]["model"] == "base" and str(tmp_path) not in manifest
