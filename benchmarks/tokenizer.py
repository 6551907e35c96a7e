"""Tokenization beside `transformers.SiglipTokenizer` on this machine: texts per second, and agreement of the ids.

    python benchmarks/tokenizer.py [--vocabulary spiece.model] [--texts 5000] [--repeats 5] [--json]

Both sides turn the same captions into ids padded and truncated to 64, in turns, after one round to warm up. Results are
medians; a ratio above 1 means that this package is faster. Without `--vocabulary` a small vocabulary is trained on the
captions; a larger one splits a text into fewer pieces and favours both sides alike.
"""

import argparse
import json
import logging
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import sentencepiece
import transformers

from siglip_jax.processing import SiglipTokenizer

_WHO = "cat,dog,lion,zebra,man,woman,child,horse,bird,boat,car,bicycle,bridge,tower,house,tree,table,pizza"
_LOOKS = "red,blue,green,small,large,old,young,lazy,quick,brown,wooden,bright,dark,happy,sleeping,flying"
_WHERE = "on the beach,in the street,near a river,under a tree,at night,in the snow,by the window,on a table"
WHO, LOOKS, WHERE = (words.split(",") for words in (_WHO, _LOOKS, _WHERE))


def captions(count: int) -> list[str]:
    """Returns captions with capitals and punctuation, about fifty characters each."""
    rng = random.Random(0)
    pick = rng.choice
    return [
        f"A photo of {rng.randint(1, 9)} {pick(LOOKS)} {pick(WHO)}s and a {pick(LOOKS)} {pick(WHO)}, {pick(WHERE)}."
        for _ in range(count)
    ]


def train(path: Path, texts: list[str]) -> Path:
    """Trains a vocabulary in the layout of SigLIP and returns its path."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(text.lower() for text in texts),
            model_writer=file,
            vocab_size=700,
            hard_vocab_limit=False,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    return path


def measure(vocabulary: Path, count: int, repeats: int) -> list[dict[str, object]]:
    """Returns a row for each type of output."""
    logging.getLogger("transformers").setLevel(logging.ERROR)
    texts = captions(count)
    ours, reference = SiglipTokenizer(vocabulary), transformers.SiglipTokenizer(str(vocabulary))
    rows = []
    for kind in (None, "np"):
        options = {"padding": "max_length", "truncation": True, "return_tensors": kind}
        sides = {"siglip_jax": ours, "transformers": reference}
        a, b = (np.asarray(side(texts, **options)["input_ids"]) for side in sides.values())
        times: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(repeats):
            for name, side in sides.items():
                start = time.perf_counter()
                side(texts, **options)
                times[name].append(time.perf_counter() - start)
        rates = {name: count / statistics.median(t) for name, t in times.items()}
        row = {"output": "numpy" if kind else "lists", **{name: round(rate) for name, rate in rates.items()}}
        row |= {"ratio": round(rates["siglip_jax"] / rates["transformers"], 1), "differing_ids": int((a != b).sum())}
        rows.append(row)
    return rows


def main() -> None:
    """Runs the benchmark and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=Path, help="a spiece.model (default: one trained here)")
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = options.vocabulary or train(Path(folder) / "spiece.model", captions(options.texts))
        rows = measure(vocabulary, options.texts, options.repeats)
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'texts per second':<18} {'siglip_jax':>12} {'transformers':>13} {'ratio':>6} {'differing ids':>14}")
    for row in rows:
        print("{output:<18} {siglip_jax:>12} {transformers:>13} {ratio:>6} {differing_ids:>14}".format(**row))


if __name__ == "__main__":
    main()
