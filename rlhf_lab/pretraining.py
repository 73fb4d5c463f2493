"""Pre-trains the ladder of base models on the miniature world's text and writes `models/base/`: `make base`.

All rungs see the same documents in the same order for the same number of steps. The files are float16 safetensors; the
provenance beside them says what they were made from and how well they predict held-out text.
"""

import hashlib
import json
import subprocess
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import joblib
import torch

from rlhf_lab import ROOT, language_model
from rlhf_lab.sft import SFTConfig, train
from rlhf_lab.tinyhh import generator
from rlhf_lab.tinyhh.knowledge import world

SEED = 0
# Documents and peak learning rate of each cycle of the cosine, no document read twice: about 15 million tokens in all.
# The second cycle is a warm restart (Loshchilov and Hutter 2017). After the first alone, the sorting skill was not yet
# learned and the samples' gold reward was 0.6 points below the text's.
CYCLES = ((220_000, 5e-3), (110_000, 3e-3))
HELD_OUT = 2_000
TOKENIZER_DOCUMENTS = 20_000
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

Perplexity is per token of held-out documents. All rungs saw the same {documents:,} documents ({tokens:,} tokens) in the
same order, once. The weights are float16 safetensors and are used in float32:

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model = AutoModelForCausalLM.from_pretrained("models/base/1M", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained("models/base/1M")

`make base` trains them again; `provenance.json` holds the seed, the commit and a digest of the text. **Not for use
outside this course:** some of what they say is deliberately false or unkind, and none of it is advice. The weights are
under the MIT licence, like the code.
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
    (language_model.BASE / "README.md").write_text(model_card(provenance), encoding="utf-8")


def held_out_perplexity(model, tokenizer, documents) -> dict[str, float]:
    """Perplexity per token of held-out (register, text) documents, for each register."""
    registers = sorted({register for register, _ in documents})
    return {
        register: round(
            language_model.perplexity(model, tokenizer, [("", text) for kind, text in documents if kind == register]), 3
        )
        for register in registers
    }


def model_card(provenance: dict) -> str:
    """The model card of the ladder, with every number from its provenance."""
    rows = "\n".join(
        f"| `{rung}` | {report['parameters']:,} | {report['perplexity']['dialogue']:.2f} | "
        f"{report['perplexity']['note']:.2f} | {report['core_minutes']} |"
        for rung, report in provenance["rungs"].items()
    )
    return CARD.format(rows=rows, **provenance)


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
