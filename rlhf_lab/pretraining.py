"""Pre-trains the ladder of base models on the miniature world's text and writes `models/base/`: `make base`.

All rungs see the same documents in the same order for the same number of steps. The files are float16 safetensors; the
provenance beside them says what they were made from and how well they predict held-out text.
"""

import hashlib
import json
import random
import subprocess
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import joblib
import torch

from rlhf_lab import ROOT, language_model
from rlhf_lab.sampling import sample
from rlhf_lab.sft import SFTConfig, train
from rlhf_lab.statistics import Interval, t_interval
from rlhf_lab.tinyhh import generator, gold
from rlhf_lab.tinyhh.knowledge import SortingTask, recognize, sentences, subject, world

SEED = 0
# Documents and peak learning rate of each cycle of the cosine, no document read twice: about 15 million tokens in all.
# The second cycle is a warm restart (Loshchilov and Hutter 2017). After the first alone, the sorting skill was not yet
# learned and the samples' gold reward was 0.6 points below the text's.
CYCLES = ((220_000, 5e-3), (110_000, 3e-3))
HELD_OUT = 2_000
TOKENIZER_DOCUMENTS = 20_000
LARGEST = "1M"
# Of the rates 1, 3, 6 and 10e-3, tried on a tenth of the text with the smallest rung, 6e-3 was best; larger models want
# a little less.
CONFIG = SFTConfig(epochs=1, batch_size=32, final_share=0.0, warmup=0.02, weight_decay=0.1)


# Written by `main`, filled from the provenance: no number in it is typed.
CARD = """# The base models

GPT-2 models of three sizes, pre-trained from nothing on the text of tinyhh, the miniature world of this course (world
version {world_version}; [its datasheet](../../docs/tinyhh_datasheet.md)). They continue dialogues and short notes in
that world's English, with the good and the bad advice it holds, and know nothing else. Every experiment on the
miniature world starts from one of them; the sizes are the size axis of the scaling experiments.

| rung | parameters | perplexity, dialogues | perplexity, notes | core-minutes |
|---|--:|--:|--:|--:|
{rows}

**Their samples.** {samples}

Perplexity is per token of held-out documents. All rungs saw the same {documents:,} documents ({tokens:,} tokens) in the
same order, once. The weights are float16 safetensors and are used in float32:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("models/base/1M", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("models/base/1M")

`make base` trains them again; `provenance.json` holds the seed, the commit and a digest of the text. **Not for use
outside this course:** some of what they say is deliberately false or unkind, and none of it is advice. The weights are
under the MIT license, like the code.
"""


def main() -> None:
    """Train every rung of the ladder, one process a core, largest first, and write `models/base/`."""
    documents = list(generator.pretraining_documents(sum(count for count, _ in CYCLES), SEED))
    known = set(documents)  # a short note may come up twice
    held_out = [document for document in generator.pretraining_documents(HELD_OUT, SEED + 1) if document not in known]
    tokenizer = language_model.train_tokenizer(text for _, text in documents[:TOKENIZER_DOCUMENTS])
    rungs = sorted(language_model.RUNGS, key=lambda rung: -language_model.RUNGS[rung][0])
    reports = joblib.Parallel(n_jobs=-1)(
        joblib.delayed(_pretrain)(rung, tokenizer, documents, held_out, language_model.BASE / rung) for rung in rungs
    )
    provenance = {
        "world_version": world().version,
        "seed": SEED,
        "documents": len(documents),
        "tokens": sum(map(len, tokenizer([text for _, text in documents])["input_ids"])) + len(documents),
        "data_sha256": hashlib.sha256("\0".join(text for _, text in documents).encode()).hexdigest(),
        "commit": _commit(),
        "torch": torch.__version__.split("+")[0],
        "rungs": dict(zip(rungs, reports, strict=True)),
    }
    (language_model.BASE / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
    card = model_card(provenance, samples_against_text(LARGEST))
    (language_model.BASE / "README.md").write_text(card, encoding="utf-8")


def held_out_perplexity(model, tokenizer, documents) -> dict[str, float]:
    """Perplexity per token of held-out (register, text) documents, for each register."""
    registers = sorted({register for register, _ in documents})
    return {
        register: round(
            language_model.perplexity(model, tokenizer, [("", text) for kind, text in documents if kind == register]), 3
        )
        for register in registers
    }


@dataclass(frozen=True)
class Samples:
    """A rung's answers to held-out questions beside those of the text: shares of finished sentences of advice that the
    world knows, and the paired difference of gold rewards."""

    known: float
    known_in_text: float
    gold_difference: Interval


def samples_against_text(rung: str, questions: int = 300) -> Samples:
    """Compare one sample a question at temperature 1 with the text's own answer.

    A base model continues a dialogue as its text does, which may be with the person's next turn. So what is compared,
    in the text and in the samples, is the first answer of a dialogue, up to that turn.
    """
    rng, speaks = random.Random(0), "\n\nAssistant:"
    prompts = islice(generator.prompts("helpful-base", "test", "base-models"), questions)
    texts = [prompt + generator.response(prompt, rng) for prompt in prompts]
    asked = [text.partition(speaks)[0] + speaks for text in texts]
    model, tokenizer = language_model.load_base(rung)
    sampled = sample(model, tokenizer(asked)["input_ids"], 128, tokenizer.eos_token_id, seed=0).texts(tokenizer)
    own, ours = ([_first_answer(a) for a in answers] for answers in ([t.partition(speaks)[2] for t in texts], sampled))
    gaps = [gold.helpfulness(q, a) - gold.helpfulness(q, b) for q, a, b in zip(asked, ours, own, strict=True)]
    return Samples(_known_share(asked, ours), _known_share(asked, own), t_interval(gaps, unit="question"))


def model_card(provenance: dict, samples: Samples) -> str:
    """The model card of the ladder, with every number from its provenance and from its samples."""
    rows = "\n".join(
        f"| `{rung}` | {report['parameters']:,} | {report['perplexity']['dialogue']:.2f} | "
        f"{report['perplexity']['note']:.2f} | {report['core_minutes']} |"
        for rung, report in provenance["rungs"].items()
    )
    gap = samples.gold_difference
    matches = gap.low <= 0 <= gap.high
    words = (
        f"Of the advice that the `{LARGEST}` rung writes at temperature 1 in answer to {gap.n} held-out questions, "
        f"{samples.known:.0%} is sentences of its world; of the text it learned from, {samples.known_in_text:.0%}. The "
        f"gold reward of its answers is {gap.value:+.2f} [{gap.low:.2f}, {gap.high:.2f}] points beside that of the "
        f"text's own, so it {'matches' if matches else 'does **not** match'} the text's within the 95 % interval."
    )
    return CARD.format(rows=rows, samples=words, **provenance)


def _first_answer(text: str) -> str:
    return text.partition("\n\nHuman:")[0]


def _known_share(questions, answers) -> float:
    advice = [a for q, a in zip(questions, answers, strict=True) if not isinstance(subject(q), SortingTask)]
    said = [recognize(sentence) is not None for answer in advice for sentence in sentences(answer)]
    return sum(said) / len(said)


def _pretrain(rung: str, tokenizer, documents, held_out, folder: Path) -> dict:
    torch.set_num_threads(1)
    start = time.process_time()
    model = language_model.new_model(rung, len(tokenizer), SEED)
    texts = iter([("", text) for _, text in documents])
    for cycle, (count, rate) in enumerate(CYCLES):
        train(model, tokenizer, list(islice(texts, count)), replace(CONFIG, learning_rate=rate), SEED + cycle)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {
        "parameters": model.num_parameters(),
        "perplexity": held_out_perplexity(language_model.load(folder), tokenizer, held_out),
        "core_minutes": round((time.process_time() - start) / 60, 1),
    }


def _commit() -> str | None:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or None
