"""TRL's two PPO trainers, each in a process of its own, because only one TRL can be imported at a time.

`install` puts a version into a folder beside the course's packages, without what it depends on: both run with the
course's own versions of everything else. `Peer` starts a process that sees this folder first, hands it tokenized
prompts, and gets back how many seconds one update on them took, stage by stage.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rlhf_lab import ROOT

OLD, NEW = "0.11.4", "1.12.0"  # the last version with `step`, and the last version with PPO
BESIDES = {OLD: ["tyro", "docstring_parser", "typeguard"]}  # what a version needs and the course does not
MICRO_BATCH = 64  # rows that TRL generates and reads at a time: the default of 1.12; 32 and 128 are no faster

Prompts = Sequence[Sequence[int]]
Seconds = dict[str, float]  # stage -> seconds: generate, score, reference, update


def install(version: str) -> Path:
    """The folder with this version of TRL, installed at the first call by pip, from wherever pip is told to look.

    Raises RuntimeError with pip's own words where it cannot.
    """
    folder = ROOT / "build" / "peers" / f"trl-{version}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            target = Path(unfinished) / "packages"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
            done = subprocess.run([*pip, f"trl=={version}", *BESIDES.get(version, [])], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"pip could not install TRL {version}:\n{done.stderr}")
            target.rename(folder)
    return folder


class Peer:
    """A process with one TRL trainer, which waits until it is asked."""

    def __init__(self, version: str, settings: dict):
        path = os.pathsep.join([str(install(version)), str(ROOT)])
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.trl_ppo", version, json.dumps(settings)],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        with contextlib.suppress(BrokenPipeError):  # a process that has failed does not listen
            self.process.stdin.close()
        self.process.wait()
        self.errors.close()

    def update(self, prompts: Prompts) -> Seconds:
        """Seconds of one update of the base model on these prompts. Raises RuntimeError where the process fails."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(prompts), file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            self.process.wait()
            self.errors.seek(0)
            raise RuntimeError(f"TRL's process has failed:\n{self.errors.read()}")
        return json.loads(line)


# --- within the process ---


def answer(version: str, settings: dict) -> None:
    """Read prompts line by line and write the seconds that an update took, until there are no more."""
    import torch

    torch.set_num_threads(1)
    run = {OLD: update_old, NEW: update_new}[version]
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # TRL prints
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), settings)), file=replies, flush=True)


def models():
    """The base model, a copy of it, a reward model on its trunk, and the tokenizer."""
    from rlhf_lab import reward_model
    from rlhf_lab.language_model import load_base

    (policy, tokenizer), (reference, _) = load_base("1M"), load_base("1M")
    return policy, reference, reward_model.from_language_model(reference, seed=0), tokenizer


def update_old(prompts: Prompts, settings: dict) -> Seconds:
    """`generate` and `step` of TRL 0.11.4, with `scores` in between."""
    import torch
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    policy, reference, judge, tokenizer = models()
    tokenizer.padding_side = "left"
    config = PPOConfig(
        batch_size=len(prompts),
        mini_batch_size=len(prompts) // settings["minibatches"],
        ppo_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        adap_kl_ctrl=False,
        init_kl_coef=settings["kl_coef"],
        vf_coef=settings["value_coef"],
        max_grad_norm=settings["max_gradient_norm"],
    )
    wrap = AutoModelForCausalLMWithValueHead.from_pretrained
    trainer = PPOTrainer(config, wrap(policy), wrap(reference), tokenizer)
    queries = [torch.tensor(prompt) for prompt in prompts]
    start = time.perf_counter()
    responses = trainer.generate(
        queries,
        batch_size=MICRO_BATCH,
        return_prompt=False,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=settings["max_new_tokens"],
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    generated = time.perf_counter()
    judged = scores(judge, tokenizer, [p + r.tolist() for p, r in zip(prompts, responses, strict=True)])
    scored = time.perf_counter()
    stats = trainer.step(queries, responses, judged)
    reference_seconds = stats["time/ppo/forward_pass"]
    return {
        "generate": generated - start,
        "score": scored - generated,
        "reference": reference_seconds,
        "update": time.perf_counter() - scored - reference_seconds,
    }


def scores(judge, tokenizer, texts: Prompts) -> list:
    """A score of each text, by the classifier's own class on padded batches; a text that was cut gets an end token."""
    import torch

    eos, found = tokenizer.eos_token_id, []
    texts = [text if text[-1] == eos else [*text, eos] for text in texts]
    for start in range(0, len(texts), MICRO_BATCH):
        batch = {"input_ids": texts[start : start + MICRO_BATCH]}
        with torch.no_grad():
            found += judge(**tokenizer.pad(batch, padding_side="right", return_tensors="pt")).logits.squeeze(-1)
    return found


def update_new(prompts: Prompts, settings: dict) -> Seconds:
    """One update of `train` of TRL 1.12."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

    from rlhf_lab import reward_model

    policy, reference, judge, tokenizer = models()
    tokenizer.padding_side = "left"
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            PPOConfig(
                output_dir=folder,
                total_episodes=len(prompts),
                per_device_train_batch_size=len(prompts),
                gradient_accumulation_steps=1,
                num_mini_batches=settings["minibatches"],
                num_ppo_epochs=settings["epochs"],
                local_rollout_forward_batch_size=MICRO_BATCH,
                response_length=settings["max_new_tokens"],
                stop_token="eos",
                temperature=1.0,
                missing_eos_penalty=1.0,
                learning_rate=settings["learning_rate"],
                kl_coef=settings["kl_coef"],
                vf_coef=settings["value_coef"],
                num_sample_generations=0,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                disable_tqdm=True,
            ),
            tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=judge,
            train_dataset=Dataset.from_list([{"input_ids": list(prompt)} for prompt in prompts]),
            value_model=reward_model.from_language_model(policy, seed=0),
        )
    trainer.remove_callback(PrinterCallback)
    with stopwatch(ppo_trainer, trainer, judge) as seconds:
        start = time.perf_counter()
        trainer.train()
        end = time.perf_counter()
    update = end - seconds.pop("learning")
    rest = end - start - update - sum(seconds.values())
    return seconds | {"reference": rest, "update": update}


@contextlib.contextmanager
def stopwatch(module, trainer, judge):
    """Take the time within `train` of TRL 1.12, which keeps none itself: the seconds that generating and scoring took,
    and when `learning` began, that is, when the model that learns was first read."""
    seconds = {"generate": 0.0, "score": 0.0}
    generate, score, forward = module.batch_generation, module.get_reward, module.forward

    def timed(stage, function):
        def run(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            seconds[stage] += time.perf_counter() - start
            return result

        return run

    timed_score = timed("score", score)

    def read(model, *arguments):
        if model is trainer.model:
            seconds.setdefault("learning", time.perf_counter())
        return forward(model, *arguments)

    module.batch_generation = timed("generate", generate)
    module.get_reward = lambda model, *arguments: (timed_score if model is judge else score)(model, *arguments)
    module.forward = read
    try:
        yield seconds
    finally:
        module.batch_generation, module.get_reward, module.forward = generate, score, forward


if __name__ == "__main__":
    answer(sys.argv[1], json.loads(sys.argv[2]))
