"""Models that others have trained, from the Hugging Face Hub or from a folder with the same files.

Where an environment variable names a folder, it stands in for the checkpoint of the Hub, in every profile. A check
before a long run says in one sentence all that is missing.
"""

import os
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from rlhf_lab import pair_reward, preferences
from rlhf_lab.errors import CourseError
from rlhf_lab.instructions import END
from rlhf_lab.profiles import Profile

POLICY, REWARD_MODEL = "DLITE_DIR", "REWARD_MODEL_DIR"  # environment variables, as HH_RLHF_DIR is for the data
SECONDS_TO_ANSWER = 10  # for the Hub


class CheckpointError(CourseError, ValueError):
    """A model cannot be had. The message is one sentence that names it and the folder that would do instead."""


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(checkpoint: str, variable: str) -> str:
    """The folder that the environment variable names, or else the checkpoint of the Hub, or "" for neither."""
    return os.environ.get(variable) or checkpoint


def load_policy(checkpoint: str | Path) -> tuple:
    """A causal language model and its tokenizer, in float32, whose end token is the end key. Raises CheckpointError
    where the files cannot be had, and where the end key is no token of theirs."""
    tokenizer = _from_there(AutoTokenizer.from_pretrained, checkpoint, POLICY)
    end = tokenizer.convert_tokens_to_ids(END)
    if end is None or end == tokenizer.unk_token_id:
        raise CheckpointError(
            f"The tokenizer of {checkpoint} has no token {END!r}, with which a response ends, so give {POLICY} a model "
            "that was fine-tuned on this template."
        )
    model = load_model(checkpoint)
    tokenizer.eos_token = END
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    return model, tokenizer


def load_model(checkpoint: str | Path):
    """A causal language model alone, in float32. Raises CheckpointError where the files cannot be had."""
    return (
        _from_there(AutoModelForCausalLM.from_pretrained, checkpoint, POLICY, dtype=torch.float32).eval().to(device())
    )


def load_reward_model(checkpoint: str | Path) -> pair_reward.PairReward:
    """A reward model of pairs. Raises CheckpointError where the files cannot be had."""
    judge = _from_there(pair_reward.load, checkpoint, REWARD_MODEL)
    judge.model.to(device())
    return judge


def check(profile: Profile) -> None:
    """Raise CheckpointError, one sentence with all that is missing, where a profile that takes its models and data from
    elsewhere cannot have them, or has no GPU for them."""
    if not profile.tutorial_policy:
        return
    missing = [] if torch.cuda.is_available() else ["a GPU (PyTorch finds none)"]
    missing += _missing_model(profile.tutorial_policy, POLICY)
    missing += _missing_model(profile.tutorial_reward_model, REWARD_MODEL)
    if not os.environ.get("HH_RLHF_DIR") and not _on_the_hub(preferences.HH_RLHF, "dataset"):
        missing.append(f"the data {preferences.HH_RLHF} (or a folder with helpful-base/*.jsonl.gz, in HH_RLHF_DIR)")
    if missing:
        *most, last = missing
        raise CheckpointError(
            f"The profile {profile.name!r} lacks {', '.join(most) + ' and ' if most else ''}{last}: the Hugging Face "
            "Hub was asked for what is not in a folder, and the profile 'laptop' needs nothing of this."
        )


def _missing_model(checkpoint: str, variable: str) -> list[str]:
    folder = os.environ.get(variable)
    if folder and not (Path(folder) / "config.json").is_file():
        return [f"the files of a model in {folder} (named by {variable})"]
    if folder or _on_the_hub(checkpoint, "model"):
        return []
    return [f"the model {checkpoint} (or a folder with its files, in {variable})"]


def _on_the_hub(name: str, kind: str) -> bool:
    """Whether the Hub has it, or has given it to us before."""
    if huggingface_hub.try_to_load_from_cache(name, "config.json", repo_type=kind):
        return True
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=SECONDS_TO_ANSWER)
    except Exception:  # no network, offline mode, no such repository: a dozen types, all mean no
        return False
    return True


def _from_there(load: Callable, checkpoint: str | Path, variable: str, **settings):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return load(checkpoint, **settings)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint} cannot be read ({type(error).__name__}: {reason[:160]}), so set {variable} to a folder with "
            "its files (config.json, model.safetensors and those of the tokenizer)."
        ) from None
    finally:
        logging.set_verbosity(verbosity)
