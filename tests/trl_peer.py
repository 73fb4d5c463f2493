"""What the TRL that this process imports computes, for tests/test_trl_equalities.py: python tests/trl_peer.py FILE.

A process of its own, because only one TRL can be imported at a time; which one, PYTHONPATH says. Results and inputs go
to FILE, for `torch.load`.
"""

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

WORDS = ["<pad>", "<eos>", "ask", "so", "no", "yes", "ten", "eggs", "boil", "and", "then", "not"]
PAIRS = [
    {"prompt": "ask ten", "chosen": " boil ten eggs and then not", "rejected": " no"},
    {"prompt": "boil", "chosen": " yes yes", "rejected": " not so and not then and so"},
    {"prompt": "so ask and boil", "chosen": " eggs", "rejected": " then ten eggs"},
]
PROMPTS = ["ask", "boil ten eggs", "so ask and boil"]  # of unequal length, so that TRL pads
EQUAL = ["ask", "boil", "no"]
BETA, GROUP = 0.05, 4


def models_and_tokenizer() -> tuple:
    """A policy, another one as its reference, and a tokenizer of whole words: so few that many responses end, and that
    a log-probability is a small number, which float32 knows to the sixth digit."""
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tiny(3), tiny(4), PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def tiny(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    sizes = {"vocab_size": len(WORDS), "n_positions": 16, "n_embd": 8, "n_layer": 1, "n_head": 1}
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    ends = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropout, **ends, initializer_range=0.3)).eval()


def reward(response: list[int]) -> float:
    return (len(set(response)) - 0.5 * response.count(3)) / 8


def online(method: str, prompts: list[str], **options) -> list[dict]:
    from rlhf_lab import trl_losses

    steps = trl_losses.online_steps(
        method, *models_and_tokenizer(), prompts, reward, group=GROUP, max_new_tokens=8, **{"beta": BETA} | options
    )
    return [vars(step) for step in steps]


def everything() -> dict:
    import trl

    from rlhf_lab import trl_losses

    everyone = models_and_tokenizer()
    return {
        "version": trl.__version__,
        "dpo": vars(trl_losses.dpo_step(*everyone, PAIRS, BETA)),
        "dpo of means": vars(trl_losses.dpo_step(*everyone, PAIRS, BETA, loss_type=["sigmoid_norm"])),
        "rloo": online("RLOO", PROMPTS, num_iterations=2, learning_rate=1e-4),
        "rloo as it is": online("RLOO", PROMPTS, positions=False),
        "rloo as it is, nothing padded": online("RLOO", EQUAL, positions=False),
        "grpo": online("GRPO", PROMPTS, beta=0.0, loss_type="grpo"),
        "grpo by tokens": online("GRPO", PROMPTS, beta=0.0, loss_type="dapo"),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(everything(), sys.argv[1])
