"""The one dial of the course: how large everything is. `profiles.toml` holds only what differs between profiles."""

import tomllib
from dataclasses import dataclass
from functools import cache

from rlhf_lab import ROOT


@dataclass(frozen=True)
class Profile:
    """Sizes of one profile; each field is a column of `profiles.toml`, explained there."""

    name: str
    rung: str
    demonstrations: int
    reward_pairs: int
    rl_updates: int
    rl_evaluate_every: int
    rl_prompts_per_update: int
    test_pairs: int
    test_prompts: int
    episodes: int
    bandits: int
    gradient_batches: int
    reinforce_updates: int
    cartpole_steps: int
    exact_ppo_updates: int
    rating_datasets: int
    rating_resamples: int
    label_pairs: int
    preference_pairs: int
    ablation_pairs: int
    ladder: tuple[str, ...]
    scaling_pairs: int
    scaling_test_pairs: int
    elsewhere_pairs: int
    target_pairs: tuple[int, ...]
    shown_demonstrations: int
    sft_epochs: int
    ranking_prompts: int
    compared_rankings: int
    ppo_updates: int
    ppo_batch: int
    detail_updates: int
    detail_batch: int
    tutorial_prompts: int
    tutorial_learning_rate: float
    tutorial_documents: int
    tutorial_pairs: int
    library_tokens: int
    judge_pairs: int
    prompted_texts: int
    prompted_answers: int
    hh_max_tokens: int
    tutorial_policy: str = ""
    tutorial_reward_model: str = ""
    tutorial_data: str = "tinyhh"
    hh_pairs: int | None = None

    @classmethod
    def load(cls, name: str) -> "Profile":
        """The profile called `name`. Raises ValueError, listing the known ones, if there is none."""
        if name not in _tables():
            raise ValueError(f"Unknown profile {name!r}: profiles.toml has {', '.join(_tables())}.")
        fields = {key: tuple(value) if isinstance(value, list) else value for key, value in _tables()[name].items()}
        return cls(name=name, **fields)


def names() -> list[str]:
    """The profiles of `profiles.toml`, in its order."""
    return list(_tables())


@cache
def _tables() -> dict[str, dict]:
    return tomllib.loads((ROOT / "profiles.toml").read_text(encoding="utf-8"))
