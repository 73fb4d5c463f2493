"""How good is a policy? Its answers to held-out prompts, scored by whoever can score: gold, proxy, KL, length."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_lab.rloo import RLOOConfig, log_ratios
from rlhf_lab.sampling import sample
from rlhf_lab.tinyhh.annotators import Annotator

Scorer = Callable[[Sequence[str], Sequence[str]], Sequence[float]]  # prompts, responses -> one number each


@dataclass(frozen=True)
class Evaluation:
    """One answer to each prompt and its numbers: `scores` by the scorers' names, `kl` and `length`, each (N,)."""

    prompts: list[str]
    responses: list[str]
    scores: dict[str, np.ndarray]

    def mean(self, name: str) -> float:
        """The mean of a score over the prompts."""
        return float(self.scores[name].mean())


def evaluate(
    policy,
    reference,
    tokenizer,
    prompts: Sequence[str],
    scorers: Mapping[str, Scorer],
    seed: int,
    max_new_tokens: int = RLOOConfig.max_new_tokens,
) -> Evaluation:
    """Answer each prompt once at temperature 1 and score the answers.

    `kl` is the log-ratio to the reference of the whole answer in nats, whose mean estimates KL(pi || pi_ref) without
    bias; `length` is in tokens, without the end token.
    """
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    samples = sample(policy, ids, max_new_tokens, tokenizer.eos_token_id, seed)
    texts = samples.texts(tokenizer)
    scores = {name: np.asarray(scorer(prompts, texts), dtype=float) for name, scorer in scorers.items()}
    scores["kl"] = log_ratios(policy, reference, ids, samples.responses).numpy().astype(float)
    scores["length"] = np.array([len(r) - (r[-1] == tokenizer.eos_token_id) for r in samples.responses], dtype=float)
    return Evaluation(list(prompts), texts, scores)


def win_rate(
    labelers: Sequence[Annotator], prompts: Sequence[str], responses: Sequence[str], rivals: Sequence[str]
) -> np.ndarray:
    """For each prompt the probability (N,) that a random labeler prefers the response to the rival's, whichever of the
    two is shown first; a tie counts half."""

    def preferred(labeler: Annotator, prompt: str, ours: str, theirs: str) -> float:
        first, second = labeler.compare(prompt, ours, theirs), labeler.compare(prompt, theirs, ours)
        return (first.first + second.second) / 2 + (first.tie + second.tie) / 4

    return np.array(
        [
            np.mean([preferred(labeler, prompt, ours, theirs) for labeler in labelers])
            for prompt, ours, theirs in zip(prompts, responses, rivals, strict=True)
        ]
    )
