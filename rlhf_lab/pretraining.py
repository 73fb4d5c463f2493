"""Pre-trains the ladder of base models on the miniature world's text and writes `models/base/`: `make base`.

All rungs see the same documents in the same order for the same number of steps. The files are float16 safetensors; the
provenance beside them says what they were made from and how well they predict held-out text.
"""

import hashlib
import json
import subprocess
import time
from pathlib import Path

import joblib
import torch

from rlhf_lab import ROOT, language_model
from rlhf_lab.sft import SFTConfig, train
from rlhf_lab.tinyhh import generator
from rlhf_lab.tinyhh.knowledge import world

SEED = 0
DOCUMENTS = 180_000  # about 9.5 million tokens, each document seen once
HELD_OUT = 2_000
TOKENIZER_DOCUMENTS = 20_000
# One pass. Of the rates 1, 3, 6 and 10e-3, tried on a tenth of the text, 6e-3 was best for the smallest rung.
CONFIG = SFTConfig(epochs=1, batch_size=32, learning_rate=5e-3, warmup=0.02, weight_decay=0.1)


def main() -> None:
    """Train every rung of the ladder, one process a core, largest first, and write `models/base/`."""
    documents = list(generator.pretraining_documents(DOCUMENTS, SEED))
    held_out = list(generator.pretraining_documents(HELD_OUT, SEED + 1))
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
    print(json.dumps(provenance["rungs"], indent=2))


def held_out_perplexity(model, tokenizer, documents) -> dict[str, float]:
    """Perplexity per token of held-out (register, text) documents, for each register."""
    registers = sorted({register for register, _ in documents})
    return {
        register: round(
            language_model.perplexity(model, tokenizer, [("", text) for kind, text in documents if kind == register]), 3
        )
        for register in registers
    }


def _pretrain(rung: str, tokenizer, documents, held_out, folder: Path) -> dict:
    torch.set_num_threads(1)
    start = time.process_time()
    model = language_model.new_model(rung, len(tokenizer), SEED)
    train(model, tokenizer, [("", text) for _, text in documents], CONFIG, SEED)
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
