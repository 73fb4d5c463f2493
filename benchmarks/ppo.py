"""PPO, against both of TRL's and against this machine's peak.

Ours is `rlhf_lab.ppo.PPO`; theirs are `PPOTrainer` of TRL 0.11.4, the last with `step`, and `PPOTrainer` of TRL 1.12.0,
the last with PPO. Each improves the shipped 1M base model in one update on 128 helpful prompts of the miniature world:
one response each, sampled from the full distribution until its end token or 64 tokens; a score, by a sequence
classifier on the 1M trunk; two epochs of four minibatches of 32 episodes, in float32 on one thread. The models are
loaded and the prompts tokenized before, for every turn anew. Both TRLs run with the course's version of transformers,
each in a process of its own, without logging, saving and gradient checkpointing, and read or generate 64 rows at a
time, the default of the newer one; the older one's default for generating, 4, would slow it down. The promise is made
against both, and so against the faster.

The parts of an update are: "generate", the responses, with what is known of them then (ours: log-probabilities and
values; TRL 1.12.0: logits; TRL 0.11.4: nothing); "score"; "reference", the log-probabilities of the reference, and
whatever else is read before the first step (TRL 0.11.4: log-probabilities and values; TRL 1.12.0: values); "update",
advantages, losses, steps and metrics.

The three do not do the same in everything. Ours and TRL 0.11.4 learn the values with a head on the policy, TRL 1.12.0
with a model of its own, which it demands. TRL 0.11.4 leaves scoring to its user, who is taken to call the classifier on
padded batches, as TRL 1.12.0 does. Ours and TRL 0.11.4 clip the norm of the gradient, TRL 1.12.0 does not. TRL samples,
reads and learns from rows that are padded to the longest of the batch; ours does without most of that.

The share of the peak is the speed of our "update", at six operations for each weight and token, over the best speed of
float32 products of two matrices of 1,024 by 1,024, measured in turn with it. Tokens are those of prompts and responses
without padding, twice for two epochs; weights are those of the matrix products, those of the head for tokens of the
responses alone. Attention is not counted, nor is anything but the products taken off the time.
"""

if __name__ == "__main__":  # python benchmarks/ppo.py is python -m benchmarks ppo
    import runpy
    import sys
    from pathlib import Path

    sys.path[0], sys.argv = str(Path(__file__).resolve().parents[1]), [__file__, "ppo", *sys.argv[1:]]
    runpy.run_module("benchmarks", run_name="__main__")

from collections.abc import Sequence
from itertools import islice

from benchmarks.measure import Row, compare, in_turn, timed
from benchmarks.trl_ppo import NEW, OLD, Peer, Prompts, Seconds, models
from rlhf_lab import reward_model
from rlhf_lab.book import sgemm_gflops
from rlhf_lab.language_model import load_base
from rlhf_lab.ppo import PPO, PPOConfig
from rlhf_lab.tinyhh import generator

PARTS = ("generate", "score", "reference", "update")
WHOLE, PART, SHARE = "TRL {}", "TRL {}, {}", "share of the peak, update"
PROMISES = {WHOLE.format(version): 3.0 for version in (OLD, NEW)}
PROMPTS, WARM_UP = 128, 32
CONFIG = PPOConfig(max_new_tokens=64)
SETTINGS = {
    name: getattr(CONFIG, name)
    for name in (
        "minibatches",
        "epochs",
        "learning_rate",
        "kl_coef",
        "value_coef",
        "max_gradient_norm",
        "max_new_tokens",
    )
}  # for TRL


def measure(repeats: int) -> list[Row]:
    """Episodes a second against TRL, and billions of operations a second against the peak, `repeats` times."""
    _, tokenizer = load_base("1M")
    prompts = tokenizer(list(islice(generator.prompts("helpful-base", "test", 0), PROMPTS)))["input_ids"]
    with Peer(OLD, SETTINGS) as old, Peer(NEW, SETTINGS) as new:
        contenders = [ours, old.update, new.update, peak]
        mine, olds, news, peaks = in_turn(contenders, prompts, WARM_UP, repeats)
    both = [(OLD, olds), (NEW, news)]
    wholes = [against(WHOLE.format(version), mine, theirs, PARTS) for version, theirs in both]
    parts = [against(PART.format(version, part), mine, theirs, [part]) for version, theirs in both for part in PARTS]
    billions = [turn["operations"] / turn["update"] / 1e9 for turn in mine]
    return [*wholes, *parts, compare(SHARE, billions, peaks, "GF/s")]


def against(what: str, mine: Sequence[Seconds], theirs: Sequence[Seconds], parts: Sequence[str]) -> Row:
    """Episodes a second in these parts of an update, ours and theirs."""
    speeds = [[PROMPTS / sum(turn[part] for part in parts) for turn in turns] for turns in (mine, theirs)]
    return compare(what, *speeds, "episodes/s", PROMISES.get(what))


def ours(prompts: Prompts) -> Seconds:
    """Seconds of each part of one update, and the `operations` of the last."""
    policy, reference, judge, tokenizer = models()
    trainer = PPO(policy, reference, CONFIG, tokenizer)
    responses, generating = timed(lambda: trainer.generate(prompts))
    eos = tokenizer.eos_token_id
    scores, scoring = timed(lambda: reward_model.score_tokens(judge, prompts, responses, eos))
    metrics, stepping = timed(lambda: trainer.step(prompts, responses, scores))
    reading = metrics["reference_seconds"]
    seconds = dict(zip(PARTS, (generating, scoring, reading, stepping - reading), strict=True))
    return seconds | {"operations": CONFIG.epochs * operations(policy, prompts, responses)}


def operations(model, prompts: Prompts, responses: Prompts) -> float:
    """Of the matrix products, forward and backward, when a GPT-2 reads these episodes once and learns from them."""
    width, layers, vocabulary = model.config.n_embd, model.config.n_layer, model.config.vocab_size
    of_prompts, of_responses = (sum(map(len, rows)) for rows in (prompts, responses))
    return 6 * (12 * width**2 * layers * (of_prompts + of_responses) + vocabulary * width * of_responses)


def peak(_: Prompts) -> float:
    """Billions of operations a second of matrix products."""
    return sgemm_gflops()
