"""Is a checkpoint whole? Names, shapes and dtypes from its headers, then every value, then its tokenizer."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._hub import TOKENIZER_FILES
from siglip_jax.checkpoints.checkpoint import Contents
from siglip_jax.checkpoints.describe import released_variant
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.params import flatten
from siglip_jax.processing import SiglipTokenizer


class Check(NamedTuple):
    """One thing that was checked.

    Attributes:
      name: what was checked.
      right: whether it is as it should be.
      found: what was found, in words.
    """

    name: str
    right: bool
    found: str


def verify(name_or_path: str | os.PathLike[str], *, on_progress: OnProgress | None = None) -> list[Check]:
    """Checks a checkpoint: its tensors, every value, and the tokenizer beside it.

    Where the checkpoint has the sizes of a released one, its tokenizer is compared with the published token ids.

    Args:
      name_or_path: local directory or file, or a Hub name.
      on_progress: called with (bytes checked, bytes in all).

    Returns:
      What was checked; the checkpoint is whole if every `Check.right` is True.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if tensors are missing, unexpected, of the wrong shape or dtype, or a file is damaged: nothing else can
        be checked then.

    Example:
      >>> import siglip_jax
      >>> all(check.right for check in verify(siglip_jax.assets.BUNDLED_MODEL))
      True
    """
    contents = read_contents(name_or_path)
    return [*verify_contents(contents, on_progress), *verify_tokenizer(contents)]


def verify_contents(contents: Contents, on_progress: OnProgress | None = None) -> Iterator[Check]:
    """Yields the checks of the tensors of a checkpoint, cheapest first; see `verify`."""
    checkpoint = select(contents)
    flat = flatten(checkpoint.params)
    counter = Counter(on_progress, sum(x.nbytes for x in flat.values()))
    yield Check("names, shapes, types", True, f"{len(flat)} parameters of a {checkpoint.architecture}")
    bad, constant = [], []
    for path, x in flat.items():
        values = np.asarray(x)
        # A sum is finite only if all its terms are: no array of booleans as large as the tensor is made.
        if not np.isfinite(values.sum(dtype=np.float64)):
            bad.append(path)
        elif values.ndim > 1 and path != "classifier/kernel" and values.min() == values.max():  # a fresh one is zero
            constant.append(path)
        release(values)
        counter.add(values.nbytes)
    yield Check("every value finite", not bad, ", ".join(bad[:4]) or "no NaN, no infinity")
    yield Check("no matrix of one value", not constant, ", ".join(constant[:4]) or "none")
    if "logit_scale" in flat:
        temperature = math.exp(np.float64(np.asarray(flat["logit_scale"]).reshape(-1)[0]))
        bias = float(np.asarray(flat["logit_bias"]).reshape(-1)[0])
        found = f"temperature {temperature:.4f}, bias {bias:.4f}"
        yield Check("temperature and bias of a trained model", 1 <= temperature <= 1000 and -100 <= bias <= 10, found)


def verify_tokenizer(contents: Contents) -> Iterator[Check]:
    """Yields the checks of the tokenizer beside a checkpoint; none where there is none. See `verify`."""
    if not has_tokenizer(contents):
        return
    tokenizer = SiglipTokenizer.from_pretrained(directory_of(contents))
    yield Check("tokenizer", True, f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} pieces")
    variant = released_variant(contents.config, contents.architecture)
    if variant is not None and variant.token_ids:
        yield from verify_tokens(lambda text: tokenizer(text)["input_ids"], variant.token_ids)


def verify_tokens(encode: Callable[[str], list[int]], expected: Mapping[str, tuple[int, ...]]) -> Iterator[Check]:
    """Yields a check for each published text.

    Args:
      encode: function from a text to its token ids, padding left out.
      expected: published token ids by text.
    """
    for text, ids in expected.items():
        found = tuple(encode(text))
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        said = "as published" if found == ids else f"{list(found)[:8]}, expected {list(ids)[:8]}"
        yield Check(f"token ids of {shown!r}", found == ids, said)


def has_tokenizer(contents: Contents) -> bool:
    """Returns whether the files of a tokenizer are beside the weights."""
    return any((directory_of(contents) / name).is_file() for name in TOKENIZER_FILES[:2])


def directory_of(contents: Contents) -> Path:
    """Returns the directory that holds the files of the processor, if there are any."""
    return contents.path if contents.path.is_dir() else contents.path.parent
