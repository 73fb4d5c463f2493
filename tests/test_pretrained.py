"""What is said where models from elsewhere cannot be had, and that nothing is said where they can. Every way to fail is
made for real: folders without a file, files cut short, a Hub that does not answer, a cache of the Hub's library."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import datasets
import huggingface_hub
import pytest
import torch
from dlite_checkpoints import make_all

from rlhf_lab import book, language_model, pretrained
from rlhf_lab.__main__ import main
from rlhf_lab.errors import CourseError
from rlhf_lab.pretrained import CheckpointError, check, load_model, load_policy, load_reward_model
from rlhf_lab.profiles import Profile

GPU = Profile.load("gpu")
VARIABLES = {"DLITE_DIR": "dlite", "REWARD_MODEL_DIR": "deberta", "HH_RLHF_DIR": "hh-rlhf"}
NAMES = {
    "DLITE_DIR": f"the policy {GPU.tutorial_policy}",
    "REWARD_MODEL_DIR": f"the reward model {GPU.tutorial_reward_model}",
    "HH_RLHF_DIR": f"the data {GPU.tutorial_data}",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return make_all(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def nothing(monkeypatch, tmp_path):
    """No folder, no GPU, nothing of the Hub on this machine; that the Hub is offline is every test's (conftest.py)."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def everything(monkeypatch, folders, nothing):
    for variable, name in VARIABLES.items():
        monkeypatch.setenv(variable, str(folders / name))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def complaint(of, *arguments) -> str:
    with pytest.raises(CheckpointError) as caught:
        of(*arguments)
    text = str(caught.value)
    assert isinstance(caught.value, CourseError) and "\n" not in text and text.endswith(".") and ". " not in text
    return text


# --- the check before a run ---


def test_the_one_sentence_where_nothing_is_there():
    assert complaint(check, GPU) == (
        "The profile 'gpu' lacks a GPU, the policy aisquared/dlite-v1-355m, the reward model "
        "OpenAssistant/reward-model-deberta-v3-large-v2 and the data Anthropic/hh-rlhf: set DLITE_DIR, "
        "REWARD_MODEL_DIR and HH_RLHF_DIR to folders with their files, which the Hugging Face Hub does not give here, "
        "or use the profile 'laptop', which needs none of this."
    )


def test_nothing_is_said_where_everything_is_there(everything):
    check(GPU)


@pytest.mark.parametrize("profile", ["smoke", "laptop"])
def test_profiles_with_models_of_their_own_need_nothing(profile):
    check(Profile.load(profile))


@pytest.mark.parametrize("variable", VARIABLES)
def test_a_single_missing_thing_is_named_alone(everything, monkeypatch, variable):
    monkeypatch.delenv(variable)
    assert complaint(check, GPU) == (
        f"The profile 'gpu' lacks {NAMES[variable]}: set {variable} to a folder with its files, which the Hugging Face "
        "Hub does not give here, or use the profile 'laptop', which needs none of this."
    )


def test_a_missing_gpu_is_named_alone(everything, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert complaint(check, GPU) == (
        "The profile 'gpu' lacks a GPU: use the profile 'laptop', which needs none of this."
    )


def broken(folders, tmp_path, name: str, *missing: str) -> Path:
    folder = Path(shutil.copytree(folders / name, tmp_path / name))
    for file in missing:
        (folder / file).unlink()
    return folder


@pytest.mark.parametrize(
    ("variable", "missing", "fault"),
    [
        ("DLITE_DIR", ["config.json"], "has no config.json"),
        ("DLITE_DIR", ["vocab.json"], "has no tokenizer.json"),
        ("DLITE_DIR", ["model.safetensors"], "has no model.safetensors"),
        ("REWARD_MODEL_DIR", ["tokenizer.json"], "has no tokenizer.json"),
        ("HH_RLHF_DIR", ["helpful-base/train.jsonl.gz", "helpful-base/test.jsonl.gz"], "has no helpful-base/"),
    ],
)
def test_a_folder_that_lacks_files_is_named_with_the_first_of_them(
    everything, folders, monkeypatch, tmp_path, variable, missing, fault
):
    folder = broken(folders, tmp_path, VARIABLES[variable], *missing)
    monkeypatch.setenv(variable, str(folder))
    what = NAMES[variable].rpartition(" ")[0]
    start = f"The profile 'gpu' lacks {what} ({variable} names {folder}, which {fault}"
    text = complaint(check, GPU)
    assert text.startswith(start) and f"set {variable} to a folder with its files or use the profile" in text


def test_a_folder_that_is_not_there_is_named(everything, monkeypatch):
    monkeypatch.setenv("REWARD_MODEL_DIR", "no/such/folder")
    assert "(REWARD_MODEL_DIR names no/such/folder, which is no folder)" in complaint(check, GPU)
    monkeypatch.setenv("HH_RLHF_DIR", "no/such/data")
    assert "(HH_RLHF_DIR names no/such/data, which has no helpful-base/" in complaint(check, GPU)


def test_a_file_that_was_cut_short_is_named_before_the_run(everything, folders, monkeypatch, tmp_path):
    folder = broken(folders, tmp_path, "dlite")
    cut_short(folder / "model.safetensors")
    monkeypatch.setenv("DLITE_DIR", str(folder))
    assert f"(DLITE_DIR names {folder}, which has a damaged model.safetensors (SafetensorError" in complaint(check, GPU)


def test_weights_in_the_older_format_will_do(everything, folders, monkeypatch, tmp_path):
    folder = broken(folders, tmp_path, "dlite", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    monkeypatch.setenv("DLITE_DIR", str(folder))
    check(GPU)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


# --- the Hub ---


def test_what_the_hub_gives_needs_no_folder(everything, monkeypatch):
    asked = []

    def repo_info(self, name, repo_type, timeout):
        asked.append((name, repo_type))

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)
    for variable in VARIABLES:
        monkeypatch.delenv(variable)
    check(GPU)
    assert sorted(asked) == [
        ("Anthropic/hh-rlhf", "dataset"),
        ("OpenAssistant/reward-model-deberta-v3-large-v2", "model"),
        ("aisquared/dlite-v1-355m", "model"),
    ]


def test_a_hub_that_swallows_questions_is_waited_for_once(monkeypatch):
    def swallow(*_, timeout, **__):
        time.sleep(1)
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", swallow)
    start = time.perf_counter()
    assert "lacks a GPU, the policy" in complaint(check, GPU)
    assert time.perf_counter() - start < 2.5 and pretrained.SECONDS_TO_ANSWER <= 5


def in_the_hubs_cache(name: str, folder: Path, *files: str) -> Path:
    """Put these files of a folder (or all) where the Hub's library keeps what it has got."""
    place = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    snapshot = place / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for file in [folder / file for file in files] or folder.iterdir():
        shutil.copy(file, snapshot)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    return snapshot


def test_what_the_hub_once_gave_will_do(everything, folders, monkeypatch):
    for variable in VARIABLES:
        monkeypatch.delenv(variable)
    in_the_hubs_cache(GPU.tutorial_policy, folders / "dlite")
    in_the_hubs_cache(GPU.tutorial_reward_model, folders / "deberta")
    assert "lacks the data Anthropic/hh-rlhf: set HH_RLHF_DIR" in complaint(check, GPU)
    (datasets.config.HF_DATASETS_CACHE / "Anthropic___hh-rlhf" / "default-0" / "0.0.0" / "abc").mkdir(parents=True)
    check(GPU)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    policy, tokenizer = load_policy(GPU.tutorial_policy)
    expected, _ = load_policy(folders / "dlite")
    assert torch.equal(policy.lm_head.weight, expected.lm_head.weight) and tokenizer.eos_token == "### End"
    judge, same = (load_reward_model(place) for place in (GPU.tutorial_reward_model, folders / "deberta"))
    assert judge(["Ask?"], ["Yes."]) == same(["Ask?"], ["Yes."])


def test_what_the_hub_gave_in_part_will_not_do(folders):
    in_the_hubs_cache(GPU.tutorial_policy, folders / "dlite", "config.json", "vocab.json", "merges.txt")
    assert NAMES["DLITE_DIR"] in complaint(check, GPU)
    assert complaint(load_policy, GPU.tutorial_policy).startswith(
        "aisquared/dlite-v1-355m is neither a folder nor to be had from the Hugging Face Hub here, so set DLITE_DIR to"
    )


def test_a_file_that_the_hub_is_known_not_to_have_is_not_taken_for_one_that_is_there():
    place = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--aisquared--dlite-v1-355m"
    (place / ".no_exist" / "0123abc").mkdir(parents=True)
    (place / ".no_exist" / "0123abc" / "config.json").touch()
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123abc")
    assert NAMES["DLITE_DIR"] in complaint(check, GPU)


@pytest.mark.parametrize(
    ("load", "variable"),
    [(load_policy, "DLITE_DIR"), (load_model, "DLITE_DIR"), (load_reward_model, "REWARD_MODEL_DIR")],
)
def test_the_library_is_not_sent_to_a_hub_that_does_not_answer(monkeypatch, load, variable):
    """It would ask again and again, for half a minute a file."""
    for library in (pretrained.AutoTokenizer, pretrained.AutoModelForCausalLM):
        monkeypatch.setattr(library, "from_pretrained", lambda *_, **__: pytest.fail("it was"))
    monkeypatch.setattr(pretrained.pair_reward, "load", lambda *_: pytest.fail("it was"))
    assert f"neither a folder nor to be had from the Hugging Face Hub here, so set {variable}" in complaint(load, "a/b")


# --- loading what is no model, or a broken one ---


@pytest.mark.faults
@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("model.safetensors", None, "has a damaged model.safetensors (SafetensorError: "),
        ("model.safetensors", "version https://git-lfs.github.com/spec/v1", "has a damaged model.safetensors"),
        ("config.json", "{", "cannot be read (OSError: It looks like the config file at"),
        ("config.json", "{}", "cannot be read (ValueError: "),
        ("config.json", '{"model_type": "t5"}', "cannot be read (ValueError: "),
        ("vocab.json", "{", "cannot be read ("),
    ],
)
def test_damaged_files_are_told_in_one_sentence(folders, tmp_path, file, content, fault):
    folder = broken(folders, tmp_path, "dlite")
    cut_short(folder / file) if content is None else (folder / file).write_text(content)
    text = complaint(load_policy, folder)
    assert text.startswith(f"{folder} {fault}") and text.endswith(
        "so set DLITE_DIR to a folder with the files of a model, such as config.json, model.safetensors and "
        "tokenizer.json."
    )
    assert len(text) < 500


@pytest.mark.faults
def test_a_damaged_reward_model_is_told_with_its_own_variable(folders, tmp_path):
    folder = broken(folders, tmp_path, "deberta")
    cut_short(folder / "model.safetensors")
    assert f"{folder} has a damaged model.safetensors" in (text := complaint(load_reward_model, folder))
    assert "set REWARD_MODEL_DIR to" in text


def test_a_folder_that_holds_no_model_is_told(tmp_path):
    assert complaint(load_policy, tmp_path).startswith(f"{tmp_path} has no config.json, so set DLITE_DIR to a folder")
    assert complaint(load_policy, tmp_path / "none").startswith(
        f"{tmp_path / 'none'} is neither a folder nor to be had"
    )


def test_a_tokenizer_without_the_end_key_is_refused(folders, tmp_path):
    folder = broken(folders, tmp_path, "dlite", "added_tokens.json")
    kept = json.loads((folder / "special_tokens_map.json").read_text())
    kept.pop("additional_special_tokens")
    (folder / "special_tokens_map.json").write_text(json.dumps(kept))
    assert "has no token '### End', with which a response ends, so set DLITE_DIR" in complaint(load_policy, folder)


def test_a_reward_model_is_no_policy(folders):
    assert complaint(load_model, folders / "deberta").startswith(f"{folders / 'deberta'} cannot be read (ValueError: ")


def test_weights_that_are_not_there_are_not_drawn_at_random(folders, tmp_path):
    model, _ = load_policy(folders / "dlite")
    folder = broken(folders, tmp_path, "dlite")
    weights = {name: tensor for name, tensor in model.state_dict().items() if ".h.1." not in name}
    model.save_pretrained(folder, state_dict=weights)
    assert f"{folder} lacks 12 of the weights of a language model (transformer.h.1." in complaint(load_model, folder)


def test_a_model_alone_needs_no_tokenizer(folders, tmp_path):
    model, _ = load_policy(folders / "dlite")
    language_model.save(model, tmp_path)
    assert torch.equal(load_model(tmp_path).lm_head.weight, model.lm_head.weight)


# --- the command ---


def test_the_book_says_what_is_missing_and_starts_nothing(monkeypatch, capsys):
    monkeypatch.setattr(book, "_run_in_order", lambda *_: pytest.fail("a notebook was started"))
    assert main(["book", "40", "--profile", "gpu"]) == 2
    said = capsys.readouterr()
    assert said.err == complaint(check, GPU) + "\n" and said.out == ""


def test_another_profile_of_the_same_kind_is_named(everything, monkeypatch):
    monkeypatch.delenv("DLITE_DIR")
    text = complaint(check, replace(GPU, name="cluster", tutorial_policy="me/mine"))
    assert text.startswith("The profile 'cluster' lacks the policy me/mine: set DLITE_DIR")
