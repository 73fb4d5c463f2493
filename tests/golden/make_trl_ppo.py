"""What TRL's PPO computes on small inputs, for tests/test_ppo_golden.py: python tests/golden/make_trl_ppo.py.

Runs TRL 0.11.4 and 1.12.0, the last versions with `step` and with PPO, each in a process of its own, and writes inputs,
results and versions to trl_ppo.json beside this file. Of 0.11.4, functions are called on an object that has the
settings alone. In 1.12.0 the arithmetic stands within `train`: its lines are taken from the installed file, between two
phrases that begin and end a passage, and executed on our numbers. Neither version is changed for it; both run with the
course's other packages, and are installed for the first time into build/peers.
"""

import functools
import importlib.metadata
import inspect
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # of a script, Python looks for modules beside it
from benchmarks.trl_ppo import NEW, OLD, install  # noqa: E402

PAGE = Path(__file__).with_name("trl_ppo.json")
LENGTHS = [4, 1, 6, 3, 2]  # one row of a single token, one that fills the width
STEPS, VOCABULARY = 6, 3
SETTINGS = {"kl_coef": 0.3, "vf_coef": 0.1, "clip": 0.2, "value_clip": 0.25, "target": 6.0, "horizon": 1000}
DISCOUNTS = [(1.0, 0.95), (0.9, 0.7), (1.0, 1.0)]  # gamma, lambda


def inputs() -> dict:
    """The numbers that both versions get, rounded so that the file is short; padding holds numbers too."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, spread: float = 1.0) -> torch.Tensor:
        return (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).round(decimals=3)

    shape = (len(LENGTHS), STEPS)
    old_log_probs, old_values = -normal(*shape).abs() - 0.5, normal(*shape)
    tensors = {
        "old_log_probs": old_log_probs,
        "ref_log_probs": old_log_probs + normal(*shape, spread=0.4),
        "log_probs": old_log_probs + normal(*shape, spread=0.3),  # after some steps: ratios on both sides of the clip
        "old_values": old_values,
        "values": old_values + normal(*shape, spread=0.3),
        "scores": normal(len(LENGTHS), spread=2.0),
        "logits": normal(*shape, VOCABULARY),
    }
    return {"lengths": LENGTHS, "kls": [3.0, 6.5, 40.0, 0.0], "episodes": 64} | {
        name: tensor.round(decimals=3).tolist() for name, tensor in tensors.items()
    }


def tensors(given: dict) -> SimpleNamespace:
    """The inputs as float64 tensors, and their mask."""
    rows = {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items() if name != "lengths"}
    lengths = torch.tensor(given["lengths"])
    return SimpleNamespace(lengths=lengths, mask=torch.arange(STEPS) < lengths[:, None], **rows)


# --- 0.11.4 ---


def old(given: dict) -> dict:
    """Results of TRL 0.11.4's functions."""
    from trl.core import masked_whiten
    from trl.trainer.ppo_trainer import PPOTrainer
    from trl.trainer.utils import AdaptiveKLController

    x = tensors(given)
    controller = AdaptiveKLController(SETTINGS["kl_coef"], SETTINGS["target"], SETTINGS["horizon"])

    def rewards(kind: str):
        trainer = SimpleNamespace(
            kl_ctl=SimpleNamespace(value=SETTINGS["kl_coef"]), config=SimpleNamespace(kl_penalty=kind)
        )
        trainer._kl_penalty = functools.partial(PPOTrainer._kl_penalty, trainer)
        return PPOTrainer.compute_rewards(trainer, x.scores, x.old_log_probs, x.ref_log_probs, x.mask.long())

    def advantages(gamma: float, lam: float, whiten_rewards: bool = False):
        trainer = SimpleNamespace(config=SimpleNamespace(gamma=gamma, lam=lam, whiten_rewards=whiten_rewards))
        return PPOTrainer.compute_advantages(trainer, x.old_values, rewards("kl")[0], x.mask)

    def loss():
        config = SimpleNamespace(
            cliprange=SETTINGS["clip"],
            cliprange_value=SETTINGS["value_clip"],
            vf_coef=SETTINGS["vf_coef"],
            ratio_threshold=10.0,
        )
        _, whitened, returns = advantages(1.0, 0.95)
        return PPOTrainer.loss(
            SimpleNamespace(config=config),
            x.old_log_probs,
            x.old_values,
            x.logits,
            x.values,
            x.log_probs,
            x.mask,
            whitened,
            returns,
        )

    def controlled(kl: float) -> float:
        controller.update(kl, given["episodes"])
        return controller.value

    return {
        "whitened": masked_whiten(x.old_values, x.mask),
        "kept_mean": masked_whiten(x.old_values, x.mask, shift_mean=False),
        "rewards": {kind: rewards(kind)[0] for kind in ("kl", "mse")},
        "penalties": {kind: rewards(kind)[2] for kind in ("kl", "mse")},
        "advantages": [advantages(*discount)[1:] for discount in DISCOUNTS],
        "advantages_of_whitened_rewards": advantages(1.0, 0.95, whiten_rewards=True)[1:],
        "loss": loss(),
        "kl_coefs": [controlled(kl) for kl in given["kls"]],
    }


# --- 1.12.0 ---


def passage(begin: str, end: str) -> str:
    """The lines of `train` from the first that contains `begin` to the next that contains `end`."""
    from trl.experimental.ppo import PPOTrainer

    lines = inspect.getsource(PPOTrainer.train).splitlines()
    first = next(i for i, line in enumerate(lines) if begin in line)
    last = next(i for i, line in enumerate(lines[first:], start=first) if end in line)
    return textwrap.dedent("\n".join(lines[first : last + 1]))


def new(given: dict) -> dict:
    """Results of the lines of TRL 1.12.0."""
    from trl.experimental.ppo import ppo_trainer

    x = tensors(given)

    def rollout(gamma: float, lam: float, estimator: str = "k1", whiten_rewards: bool = False) -> dict:
        names = {
            "args": SimpleNamespace(
                kl_coef=SETTINGS["kl_coef"],
                kl_estimator=estimator,
                whiten_rewards=whiten_rewards,
                gamma=gamma,
                lam=lam,
            ),
            "responses": torch.zeros(len(LENGTHS), STEPS),
            "sequence_lengths": x.lengths - 1,  # TRL means the index of the last token
            "logprobs": x.old_log_probs.clone(),
            "ref_logprobs": x.ref_log_probs.clone(),
            "values": x.old_values.clone(),
            "scores": x.scores,
        }
        code = passage("response_idxs = ", "advantages = torch.masked_fill(")
        return _executed(code, vars(ppo_trainer) | names)

    def results(*settings) -> dict:
        found = rollout(*settings)
        return {name: found[name] for name in ("rewards", "returns", "advantages")}

    def loss() -> dict:
        found = rollout(1.0, 0.95)
        padding = found["padding_mask"]
        names = found | {
            "args": SimpleNamespace(
                cliprange=SETTINGS["clip"], cliprange_value=SETTINGS["value_clip"], vf_coef=SETTINGS["vf_coef"]
            ),
            "micro_batch_inds": slice(None),
            "mb_advantage": found["advantages"],
            "mb_logprobs": found["logprobs"],
            "mb_return": found["returns"],
            "mb_values": found["values"],
            "new_logprobs": x.log_probs.masked_fill(padding, found["INVALID_LOGPROB"]),
            "vpred": x.values.masked_fill(found["padding_mask_p1"], 0),
        }
        done = _executed(passage("vpredclipped = torch.clamp(", "loss = pg_loss + "), names)
        return {name: done[name] for name in ("pg_loss", "vf_loss", "loss")}

    return {
        "k1": [results(*discount) for discount in DISCOUNTS],
        "k3": results(1.0, 0.95, "k3"),
        "whitened_rewards": results(1.0, 0.95, "k1", True),
        "loss": loss(),
    }


def _executed(code: str, names: dict) -> dict:
    exec(code, names)
    return names


# --- the file ---


def listed(value):
    """Tensors as lists, within whatever holds them."""
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: listed(part) for name, part in value.items()}
    return [listed(part) for part in value] if isinstance(value, list | tuple) else value


def in_its_own_process(version: str, given: dict) -> dict:
    """Results of one version, from this script started again with that version's folder first in its path."""
    environment = os.environ | {"PYTHONPATH": str(install(version)), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", __file__, version]
    done = subprocess.run(command, env=environment, input=json.dumps(given), stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"TRL {version} has failed; its last words are above.")
    return json.loads(done.stdout)


def main() -> None:
    if sys.argv[1:]:
        found = {OLD: old, NEW: new}[sys.argv[1]](json.load(sys.stdin))
        assert importlib.metadata.version("trl") == sys.argv[1]
        print(json.dumps(listed(found)))
        return
    given = inputs()
    page = {
        "made by": "python tests/golden/make_trl_ppo.py",
        "versions": {"torch": torch.__version__.partition("+")[0], "trl": [OLD, NEW]},
        "settings": SETTINGS,
        "discounts": DISCOUNTS,
        "inputs": given,
        OLD: in_its_own_process(OLD, given),
        NEW: in_its_own_process(NEW, given),
    }
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in page.items())
    PAGE.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")
    print(f"{PAGE.name} written")


if __name__ == "__main__":
    main()
