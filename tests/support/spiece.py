"""SentencePiece models trained here, captions to train and try them on, and a quiet reference."""

import contextlib
import logging
import random
import warnings
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

_WORDS = """a an the of on in and with two photo picture drawing cat cats dog dogs lion tiger zebra beach red blue green
car house tree mountain view under over lazy quick brown fox jumps real san francisco zürich istanbul paragraph summary
text small large old young man woman child riding bicycle street night day morning snow rain sunny window table plate
food pizza bread apple banana ocean boat river bridge tower people group standing sitting running flying bird horse
don't cat's hello world score code 2 3 10 2024"""
WORDS = _WORDS.split()


def captions(count: int, seed: int) -> list[str]:
    """Returns lower-case sentences of one to twelve words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]


def train(path: Path, **layout: object) -> Path:
    """Trains a unigram model into `path`."""
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(captions(3000, 0)),
            model_writer=file,
            vocab_size=700,
            hard_vocab_limit=False,
            minloglevel=2,
            **layout,
        )
    return path


@contextlib.contextmanager
def quiet_reference() -> Iterator[None]:
    """The reference warns on purpose; its calls are wrapped in this, ours are not."""
    logging.getLogger("transformers").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
