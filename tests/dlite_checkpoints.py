"""Checkpoints of DLite's and its reward model's architectures, random and small, in the layout that they have on the
Hugging Face Hub; and a folder of dialogues like hh-rlhf's. What learns nothing here shows that everything fits.

`aisquared/dlite-v1-355m` is a GPT-2 medium whose tokenizer has three tokens more, behind the base vocabulary and
special: the end key and the two headings, the second with its newline. Its own end token is GPT-2's, and it has no pad.
`OpenAssistant/reward-model-deberta-v3-large-v2` is a DeBERTa-v2 classifier with one label, which reads a pair as
[CLS] instruction [SEP] answer [SEP].
"""

import gzip
import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DebertaV2Tokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

END, INSTRUCTION, RESPONSE = "### End", "### Instruction:", "### Response:\n"
GPT2_END = "<|endoftext|>"

INSTRUCTIONS = [
    *(f"How do I {verb} {thing}?" for verb in ("boil", "paint", "mend", "clean") for thing in ("an egg", "a door")),
    *(f"What is\na good {thing} for {who}?" for thing in ("gift", "book", "song") for who in ("a child", "my boss")),
    *(f"Can you explain {what} to me?" for what in ("rain", "taxes", "chess", "yeast", "tides", "jazz", "glue", "ice")),
]
ANSWERS = ["Sure. Take your time, and begin with the easy part.", "I would ask a friend who has done it before."]


def make_all(home: Path) -> Path:
    """Write policy, reward model and dialogues into folders of `home`."""
    make_dlite(home / "dlite"), make_deberta(home / "deberta"), make_dialogues(home / "hh-rlhf")
    return home


def make_dlite(folder: Path, seed: int = 0, width: int = 32, layers: int = 2, context: int = 128) -> Path:
    """Write a GPT-2 with DLite's tokenizer. Weights are drawn wide, so that some tokens are likelier than others, and
    those of special tokens wider, so that it often writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _byte_pairs()
    added = {token: len(vocabulary) + i for i, token in enumerate((END, INSTRUCTION, RESPONSE))}
    own = {name: GPT2_END for name in ("bos_token", "eos_token", "unk_token")}
    files = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges),
        "added_tokens.json": json.dumps(added, indent=2) + "\n",  # 80 bytes with GPT-2's vocabulary, as on the Hub
        "special_tokens_map.json": json.dumps(own | {"additional_special_tokens": list(added)}),
        "tokenizer_config.json": json.dumps(
            own | {"add_prefix_space": False, "model_max_length": context, "tokenizer_class": "GPT2Tokenizer"}
        ),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(vocabulary) + len(added),
        n_positions=context,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        bos_token_id=vocabulary[GPT2_END],
        eos_token_id=vocabulary[GPT2_END],
        initializer_range=0.3,
    )
    model = GPT2LMHeadModel(config)
    model.transformer.wte.weight.data[vocabulary[GPT2_END] :] *= 1.5
    model.save_pretrained(folder)
    return folder


def make_deberta(folder: Path, seed: int = 0, labels: int = 1, context: int = 96) -> Path:
    """Write a DeBERTa-v2 classifier, with the third version's settings, and its tokenizer."""
    tokenizer = _pieces()
    torch.manual_seed(seed)
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=context,
        relative_attention=True,
        position_buckets=16,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        type_vocab_size=0,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=labels,
        initializer_range=0.3,
    )
    DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_dialogues(folder: Path, train: int = 17) -> Path:
    """Write helpful-base/{train,test}.jsonl.gz: a row in four has two turns, and the last of each file is long."""
    rows = []
    for i, instruction in enumerate(INSTRUCTIONS):
        opening = f"\n\nHuman: {instruction}\n\nAssistant:"
        if i % 4 == 3:
            opening += " Well, it depends.\n\nHuman: On what?\n\nAssistant:"
        chosen, rejected = ANSWERS if i % 2 else ANSWERS[::-1]
        rows.append({"chosen": f"{opening} {chosen}", "rejected": f"{opening} {rejected}"})
    opening = f"\n\nHuman: {'Well, ' * 20}what now?\n\nAssistant:"
    long = {"chosen": f"{opening} {ANSWERS[0]}", "rejected": f"{opening} {ANSWERS[1]}"}
    (folder / "helpful-base").mkdir(parents=True, exist_ok=True)
    for split, part in {"train": rows[:train], "test": rows[train:]}.items():
        with gzip.open(folder / "helpful-base" / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in [*part, long])
    return folder


def _byte_pairs() -> tuple[dict[str, int], list[list[str]]]:
    """The vocabulary and the merges of a byte-level tokenizer; as in GPT-2's, the end token comes last."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(INSTRUCTIONS + ANSWERS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"] | {GPT2_END: len(model["vocab"])}, model["merges"]


def _pieces() -> DebertaV2Tokenizer:
    """Words and characters: to train a vocabulary of pieces gives another one each time."""
    special, words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"], " ".join(INSTRUCTIONS[::2] + ANSWERS).split()
    scores = dict.fromkeys(special, 0.0)
    scores |= {f"▁{word}": -5.0 for word in sorted(set(words))} | {c: -9.0 for c in sorted(set("▁" + "".join(words)))}
    return DebertaV2Tokenizer(vocab=list(scores.items()), unk_id=special.index("[UNK]"))
