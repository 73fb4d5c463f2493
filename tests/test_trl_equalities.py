"""Oracle: TRL's DPOTrainer, RLOOTrainer and GRPOTrainer, of the oldest and of the newest TRL that requirements.txt
admits, each in a process of its own (trl_peer.py). What they read, lose and differentiate is compared with ours on the
same tokens and weights."""

import json
import math
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import trl_peer
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor
from transformers import GPT2LMHeadModel

from benchmarks.trl_ppo import install
from rlhf_lab import dpo, language_model
from rlhf_lab.library import count_positions
from rlhf_lab.rloo import leave_one_out_advantages, log_ratios, rloo_losses
from rlhf_lab.trl_losses import online_steps

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = metadata.version("trl")
BETA, GROUP = trl_peer.BETA, trl_peer.GROUP


def requirement() -> Requirement:
    (line,) = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line.startswith("trl>")]
    return Requirement(line)


def oldest() -> str:
    (lowest,) = [Version(part.version) for part in requirement().specifier if part.operator == ">="]
    return f"{lowest.major}.{lowest.minor}.{lowest.micro}"


def newest() -> str:
    """What pip would install today; where no index answers, what is installed."""
    options = ["--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-", str(requirement())]
    pip = [sys.executable, "-m", "pip", "--retries", "0", "--timeout", "5", "install", *options]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        return INSTALLED
    return json.loads(done.stdout)["install"][0]["metadata"]["version"]


@pytest.fixture(scope="module", params=[oldest, newest], ids=["oldest", "newest"])
def found(request, tmp_path_factory) -> dict:
    """What trl_peer.py found with this TRL."""
    version, file = request.param(), tmp_path_factory.mktemp("peer") / "found.pt"
    path = [str(ROOT)]
    if version != INSTALLED:
        try:
            path.insert(0, str(install(version)))
        except RuntimeError as error:
            pytest.skip(str(error))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(ROOT / "tests" / "trl_peer.py"), str(file)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"TRL {version} has failed:\n{done.stderr}"
    results = torch.load(file)
    assert results["version"] == version
    return results


def steps_of(found: dict, name: str) -> list[SimpleNamespace]:
    return [SimpleNamespace(**step) for step in found[name]]


def step_of(found: dict, name: str) -> SimpleNamespace:
    (step,) = steps_of({name: found[name] if isinstance(found[name], list) else [found[name]]}, name)
    return step


def read(step: SimpleNamespace, weights: dict[str, Tensor] | None = None) -> tuple[GPT2LMHeadModel, Tensor, Tensor]:
    """The policy with the step's weights, the log-probabilities of its responses (B,) and their lengths (B,)."""
    policy = trl_peer.tiny(0)
    policy.load_state_dict(weights or step.weights)
    values, mask = language_model.response_log_probabilities(policy, step.prompts, step.responses)
    return policy, values.sum(dim=1), mask.sum(dim=1)


def gradient(loss: Tensor, model) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_the_oldest_and_the_installed_trl_are_admitted():
    admits = requirement().specifier.contains
    assert admits(oldest()) and admits(INSTALLED)
    major, minor, _ = oldest().split(".")
    assert not admits(f"{major}.{int(minor) - 1}.9")


# --- DPO ---


def test_dpo_reads_our_tokens(found):
    step, (_, _, tokenizer) = step_of(found, "dpo"), trl_peer.models_and_tokenizer()
    theirs = list(zip(step.prompts, step.responses, strict=True))
    for side in ("chosen", "rejected"):
        ours = [language_model.encode(tokenizer, pair["prompt"], pair[side]) for pair in trl_peer.PAIRS]
        assert sorted(ours) == sorted(theirs[: len(ours)])  # TRL shuffles
        theirs = theirs[len(ours) :]


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_our_dpo_loss_and_gradient_are_trls(found, mean):
    """The mean over tokens is what TRL calls "sigmoid_norm"."""
    step = step_of(found, "dpo of means" if mean else "dpo")
    policy, totals, lengths = read(step)
    fixed = read(step, trl_peer.models_and_tokenizer()[1].state_dict())[1].detach()
    scale = lengths if mean else 1
    (chosen, rejected), (reference_chosen, reference_rejected) = (totals / scale).chunk(2), (fixed / scale).chunk(2)
    loss = dpo.dpo_loss(chosen, rejected, reference_chosen, reference_rejected, BETA)
    assert abs(step.loss - math.log(2)) > 0.01
    assert loss.item() == pytest.approx(step.loss, abs=1e-6)
    close(gradient(loss, policy), step.gradient)


def test_our_implicit_rewards_are_trls(found):
    step = step_of(found, "dpo")
    fixed = read(step, trl_peer.models_and_tokenizer()[1].state_dict())[1]
    chosen, rejected = dpo.implicit_rewards(read(step)[1], fixed, BETA).chunk(2)
    assert chosen.mean().item() == pytest.approx(step.logs["rewards/chosen"], abs=1e-6)
    assert rejected.mean().item() == pytest.approx(step.logs["rewards/rejected"], abs=1e-6)


@pytest.mark.parametrize("mean", [False, True], ids=["sum", "mean"])
def test_our_first_step_is_trls(found, mean):
    step = step_of(found, "dpo of means" if mean else "dpo")
    policy, reference, tokenizer = trl_peer.models_and_tokenizer()
    config = dpo.DPOConfig(beta=BETA, batch_size=len(trl_peer.PAIRS), mean=mean)
    ours = dpo.train(policy, reference, tokenizer, trl_peer.PAIRS, config, seed=0)
    assert ours["loss"] == [pytest.approx(step.loss, abs=1e-6)]
    if not mean:  # TRL logs sums, whatever its loss
        names = {
            "accuracy": "accuracies",
            "chosen_reward": "chosen",
            "rejected_reward": "rejected",
            "margin": "margins",
        }
        for name, theirs in names.items():
            assert ours[name] == [pytest.approx(step.logs[f"rewards/{theirs}"], abs=1e-6)]


# --- RLOO ---


def our_advantages(step: SimpleNamespace) -> Tensor:
    """Of responses that the policy before the first step has drawn."""
    policy, reference, _ = trl_peer.models_and_tokenizer()
    rewards = torch.tensor([trl_peer.reward(response) for response in step.responses])
    ratios = log_ratios(policy, reference, step.prompts, step.responses)
    assert ratios.abs().max() > 0.5
    return leave_one_out_advantages(rewards - BETA * ratios, GROUP)


def test_our_advantages_are_trls_with_the_kl_in_the_reward(found):
    for step in steps_of(found, "rloo"):
        assert len({len(response) for response in step.responses}) > 3
        close(our_advantages(step), step.inputs["advantages"])


def test_our_rloo_loss_and_gradient_are_trls(found):
    """At the first step, and at a second one on the same responses, where the ratio is no longer one."""
    first, second = steps_of(found, "rloo")
    assert first.responses == second.responses
    for step, ratio in ((first, False), (second, True)):
        policy, log_probs, _ = read(step)
        old = read(step, first.weights)[1].detach()
        losses = rloo_losses(log_probs, old, our_advantages(step))
        assert ((log_probs - old).abs().max() > 1e-3) == ratio
        assert (log_probs - old).abs().max() < math.log(1.2)  # nothing is clipped
        assert losses.mean().item() == pytest.approx(step.loss, abs=1e-6)
        close(gradient(losses.mean(), policy), step.gradient)


def test_the_first_loss_of_rloo_is_zero_and_its_gradient_is_not(found):
    """The ratio is one, and so the loss minus the mean advantage; those of a group sum to zero, each being a return
    minus the mean of the others. The gradient weighs the responses' scores with them, and does not vanish."""
    first, second = steps_of(found, "rloo")
    assert abs(first.loss) < 1e-6 < 0.1 < first.gradient.norm()
    assert abs(second.loss) > 1e-3  # the ratio has moved


def test_the_first_loss_of_grpo_is_zero_only_where_responses_count_alike(found):
    """Advantages of a group sum to zero here too. GRPO's own loss is a mean over responses; TRL's default, of DAPO, is
    one over tokens, so that long responses count more."""
    alike, by_tokens = step_of(found, "grpo"), step_of(found, "grpo by tokens")
    assert alike.responses == by_tokens.responses
    lengths = torch.tensor([float(len(response)) for response in by_tokens.responses])
    rewards = torch.tensor([trl_peer.reward(response) for response in by_tokens.responses]).view(-1, GROUP)
    centered = rewards - rewards.mean(dim=1, keepdim=True)
    advantages = (centered / (rewards.std(dim=1, keepdim=True) + 1e-4)).flatten()
    close(advantages, by_tokens.inputs["advantages"])
    assert abs(alike.loss) < 1e-6 < 0.1 < alike.gradient.norm()
    assert by_tokens.loss == pytest.approx(-(lengths * advantages).sum().item() / lengths.sum().item(), abs=1e-6)
    assert abs(by_tokens.loss) > 0.01


# --- positions ---


def log_probability(policy, prompt: list[int], response: list[int], first: int) -> float:
    """Of a response, if the text's first token stands at position `first`."""
    text = torch.tensor([prompt + response])
    logits = policy(text, position_ids=first + torch.arange(text.shape[1])[None]).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=1)[range(len(response)), response].sum().item()


@pytest.mark.parametrize("told", [True, False], ids=["told where a text begins", "as TRL is"])
def test_positions_of_padded_prompts(found, told):
    """As it is, TRL takes for the log-probability of a response what it would be at the end of a longer text."""
    step = step_of(found, "rloo as it is") if not told else steps_of(found, "rloo")[0]
    policy, ours, _ = read(step)
    longest = max(map(len, step.prompts))
    shifts = [0 if told else longest - len(prompt) for prompt in step.prompts]
    expected = [log_probability(policy, *row) for row in zip(step.prompts, step.responses, shifts, strict=True)]
    assert step.inputs["old_logps"].tolist() == pytest.approx(expected, abs=1e-5)
    assert ((step.inputs["old_logps"] - ours.detach()).abs().max() > 0.5) != told


def test_where_nothing_is_padded_trl_needs_no_telling(found):
    step = step_of(found, "rloo as it is, nothing padded")
    assert step.inputs["old_logps"].tolist() == pytest.approx(read(step)[1].tolist(), abs=1e-5)


def test_counted_positions_make_a_padded_text_what_it_is_alone():
    policy, text = trl_peer.tiny(0), torch.tensor([[4, 5, 6]])
    padded, mask = torch.tensor([[0, 0, 4, 5, 6, 0]]), torch.tensor([[0, 0, 1, 1, 1, 0]])
    alone = policy(text).logits
    assert not torch.allclose(policy(padded, attention_mask=mask).logits[:, 2:5], alone, atol=1e-2)
    count_positions(policy)
    torch.testing.assert_close(policy(padded, attention_mask=mask).logits[:, 2:5], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(policy(text).logits, alone, atol=0, rtol=0)  # without a mask nothing changes
    told = policy(text, attention_mask=torch.ones_like(text), position_ids=torch.tensor([[3, 4, 5]])).logits
    assert not torch.allclose(told, alone, atol=1e-2)  # what is said holds


def test_equal_prompts_are_refused():
    with pytest.raises(ValueError, match="Two prompts are equal"):
        online_steps("RLOO", *trl_peer.models_and_tokenizer(), ["ask", "ask"], trl_peer.reward, BETA)
