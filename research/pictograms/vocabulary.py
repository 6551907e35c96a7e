"""The vocabulary of the bundled model: a small sentencepiece unigram model in the layout of SigLIP's own (`c4_en`).

`<pad>` is 0, `</s>` 1, `<unk>` 2; there is no beginning-of-sentence piece and no byte fallback. `SiglipTokenizer`
lower-cases texts and removes ASCII punctuation, so the model needs no normaliser tables: `identity` keeps the file at
33 KB instead of 280 KB.
"""

import os
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece

from research.pictograms.dataset import PROMPTS
from siglip_jax.processing.text.canonical import canonicalize

VOCABULARY_SIZE = 2048
# "<" and ">" because the tokenizer encodes "<unk>" + text: an unknown first character would merge with an unknown ">".
REQUIRED_CHARACTERS = string.ascii_lowercase + string.digits + "<>" + "éüñçãôåíó’“”"


def corpus(rows: Iterable[dict[str, Any]]) -> list[str]:
    """Returns the different captions (four times each), the strings of tags, and every third caption in a prompt."""
    captions: dict[str, None] = {}
    tags: dict[str, None] = {}
    for row in rows:
        captions.setdefault(canonicalize(row["caption"]))
        tags.setdefault(canonicalize(" ".join(row["tags"])))
    prompted = [
        canonicalize(PROMPTS[i % len(PROMPTS)].format(caption)) for i, caption in enumerate(captions) if i % 3 == 0
    ]
    return [line for line in [*captions] * 4 + [*tags] + prompted if line]


def write_vocabulary(lines: Iterable[str], path: str | Path, size: int = VOCABULARY_SIZE) -> None:
    """Trains on `lines` and writes the sentencepiece model to `path`; equal lines make equal bytes."""
    path = Path(path)
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as out:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=out,
            model_type="unigram",
            vocab_size=size,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            normalization_rule_name="identity",
            character_coverage=0.9999,
            required_chars=REQUIRED_CHARACTERS,
            num_threads=1,
            minloglevel=2,
        )
    os.replace(aside, path)
