"""Models that others have trained, from the Hugging Face Hub or from a folder with the same files.

Where an environment variable names a folder, it stands in for the checkpoint of the Hub, in every profile. A check
before a long run says in one sentence all that is missing.
"""

import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import datasets
import huggingface_hub
import safetensors
import torch
from huggingface_hub.errors import HFValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_lab import pair_reward
from rlhf_lab.errors import CourseError
from rlhf_lab.instructions import END
from rlhf_lab.profiles import Profile

POLICY, REWARD_MODEL, DATA = "DLITE_DIR", "REWARD_MODEL_DIR", "HH_RLHF_DIR"  # environment variables
SECONDS_TO_ANSWER = 5  # for the Hub
LONGEST_REASON = 160  # characters of what a library says
FILES = "the files of a model, such as config.json, model.safetensors and tokenizer.json"


class CheckpointError(CourseError, ValueError):
    """A model cannot be had. The message is one sentence that names it and the folder that would do instead."""


def device() -> torch.device:
    """Where models of others run: on the GPU if there is one. Ours are too small for that."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(checkpoint: str, variable: str) -> str:
    """The folder that the environment variable names, or else the checkpoint of the Hub, or "" for neither."""
    return os.environ.get(variable) or checkpoint


def load_policy(checkpoint: str | Path) -> tuple:
    """A causal language model and its tokenizer, in float32, whose end token is the end key. Raises CheckpointError
    where the files cannot be had, and where the end key is no token of theirs."""
    tokenizer = _read(AutoTokenizer.from_pretrained, checkpoint, POLICY)
    end = tokenizer.convert_tokens_to_ids(END)
    if end is None or end == tokenizer.unk_token_id:
        raise CheckpointError(
            f"The tokenizer of {checkpoint} has no token {END!r}, with which a response ends, so set {POLICY} to the "
            "folder of a model that was fine-tuned on this template."
        )
    model = load_model(checkpoint)
    tokenizer.eos_token = END
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    return model, tokenizer


def load_model(checkpoint: str | Path):
    """A causal language model alone, in float32. Raises CheckpointError where the files cannot be had, and where some
    of the weights are not among them."""
    model, report = _read(
        AutoModelForCausalLM.from_pretrained, checkpoint, POLICY, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):  # the library would draw them at random, and say so in a warning
        raise CheckpointError(
            f"{checkpoint} lacks {len(missing)} of the weights of a language model ({missing[0]}), so set {POLICY} to "
            f"a folder with {FILES}."
        )
    return model.eval()


def load_reward_model(checkpoint: str | Path) -> pair_reward.PairReward:
    """A reward model of pairs. Raises CheckpointError where the files cannot be had, and RewardModelError where they
    are of another kind of model."""
    return _read(pair_reward.load, checkpoint, REWARD_MODEL)


def check(profile: Profile) -> None:
    """Raise CheckpointError, one sentence with all that is missing, where a profile that takes its models and data from
    elsewhere cannot have them, or has no GPU for them."""
    if not profile.tutorial_policy:
        return
    wanted = {
        POLICY: ("policy", profile.tutorial_policy),
        REWARD_MODEL: ("reward model", profile.tutorial_reward_model),
        DATA: ("data", profile.tutorial_data),
    }
    with ThreadPoolExecutor() as pool:  # a network that swallows questions is waited for once, not thrice
        lacks = dict(zip(wanted, pool.map(lambda variable: _lack(variable, *wanted[variable]), wanted), strict=True))
    variables = [variable for variable, lack in lacks.items() if lack]
    gpu = [] if torch.cuda.is_available() else ["a GPU"]
    if gpu or variables:
        raise CheckpointError(
            f"The profile {profile.name!r} lacks {_listed(gpu + [lacks[variable] for variable in variables])}: "
            f"{_remedy(variables)}use the profile 'laptop', which needs none of this."
        )


def _lack(variable: str, what: str, name: str) -> str:
    """What cannot be had, and why; empty if it can."""
    kind = "dataset" if variable == DATA else "model"
    if folder := os.environ.get(variable):
        fault = _fault_of_data(Path(folder)) if variable == DATA else _fault(Path(folder))
        return fault and f"the {what} ({variable} names {folder}, which {fault})"
    return "" if _on_this_machine(name, kind) or _on_the_hub(name, kind) else f"the {what} {name}"


def _remedy(variables: list[str]) -> str:
    if not variables:
        return ""
    folders = "a folder with its files" if len(variables) == 1 else "folders with their files"
    asked = any(not os.environ.get(variable) for variable in variables)
    return f"set {_listed(variables)} to {folders}{', which the Hugging Face Hub does not give here,' * asked} or "


def _fault(folder: Path) -> str:
    """What is wrong with the files of a model, as far as a glance can tell; empty if nothing is."""
    if not folder.is_dir():
        return "is no folder"
    if not (folder / "config.json").is_file():
        return "has no config.json"
    if not any(file for pattern in ("tokenizer.json", "vocab.*", "*.model") for file in folder.glob(pattern)):
        return "has no tokenizer.json"
    weights = list(folder.glob("*.safetensors"))
    if not weights and not any(folder.glob("pytorch_model*.bin")):
        return "has no model.safetensors"
    for file in weights:
        try:
            safetensors.safe_open(file, "pt")  # looks at the header and the size
        except Exception as error:  # of the library or the system
            return f"has a damaged {file.name} ({_reason(error)})"
    return ""


def _fault_of_data(folder: Path) -> str:
    return "" if any(folder.glob("helpful-base/*.jsonl.gz")) else "has no helpful-base/train.jsonl.gz"


def _on_this_machine(name: str, kind: str) -> Path | None:
    """The folder in which the Hub's library keeps what it has once got."""
    if kind == "dataset":
        folder = Path(datasets.config.HF_DATASETS_CACHE) / name.replace("/", "___")
        return folder if any(folder.glob("*/*/*")) else None
    try:
        file = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a path, not a name
        return None
    return Path(file).parent if isinstance(file, str) and not _fault(Path(file).parent) else None


def _on_the_hub(name: str, kind: str) -> bool:
    """Whether the Hub gives it, now and to us."""
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=SECONDS_TO_ANSWER)
    except Exception:  # no network, offline mode, no such repository: a dozen types, all mean no
        return False
    return True


def _read(load: Callable, checkpoint: str | Path, variable: str, **settings):
    """What `load` makes of the files. The Hub is used only where it answers: the library would ask it for minutes."""
    source = checkpoint
    if not Path(checkpoint).is_dir() and not _on_the_hub(str(checkpoint), "model"):
        source = _on_this_machine(str(checkpoint), "model")
        if not source:
            raise CheckpointError(
                f"{checkpoint} is neither a folder nor to be had from the Hugging Face Hub here, so set {variable} to "
                f"a folder with {FILES}."
            )
    with _quiet():
        try:
            return load(source, **settings)
        except CourseError:
            raise
        except Exception as error:  # of half a dozen libraries, about as many kinds of bad files
            fault = Path(source).is_dir() and _fault(Path(source)) or f"cannot be read ({_reason(error)})"
            raise CheckpointError(f"{checkpoint} {fault}, so set {variable} to a folder with {FILES}.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _reason(error: Exception) -> str:
    """The kind of an error and the first sentence of what it says."""
    first, *_ = re.split(r"\.?\n|\.\s|\.$", str(error).strip())
    return f"{type(error).__name__}: {first[:LONGEST_REASON]}"


def _listed(items: list[str]) -> str:
    *most, last = items
    return f"{', '.join(most)} and {last}" if most else last
