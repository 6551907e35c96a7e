"""Verification of a checkpoint: names, shapes and dtypes of its tensors, every value, and its tokenizer."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from siglip_jax._callbacks import Counter, OnProgress
from siglip_jax._files import folder_of
from siglip_jax._hub import TOKENIZER_FILES
from siglip_jax.checkpoints.checkpoint import Contents
from siglip_jax.checkpoints.describe import released_variant
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.read import read_contents, select
from siglip_jax.params import flatten
from siglip_jax.processing import SiglipTokenizer


class Check(NamedTuple):
    """The result of one check.

    Attributes:
      name: name of the check, as in "every value finite".
      right: whether the check passed.
      found: what the check found, in words.

    Example:
      >>> Check("every value finite", False, "text_model/head/kernel").right
      False
    """

    name: str
    right: bool
    found: str


def verify(name_or_path: str | os.PathLike[str], *, on_progress: OnProgress | None = None) -> list[Check]:
    """Verifies the tensors of a checkpoint, all their values, and the tokenizer beside them.

    If a released checkpoint has the same sizes, the tokenizer is compared with its published token ids.

    Args:
      name_or_path: local directory or file, or a Hub name.
      on_progress: called with (bytes checked, total bytes); None: not called.

    Returns:
      The results of the checks; the checkpoint is intact if `right` is True in all of them.

    Raises:
      FileNotFoundError: if the checkpoint does not exist.
      ValueError: if tensors are missing, unexpected, or of the wrong shape or dtype, or a file is damaged, so that
        nothing else can be checked.

    Example:
      >>> import siglip_jax
      >>> all(check.right for check in verify(siglip_jax.assets.BUNDLED_MODEL))
      True
    """
    contents = read_contents(name_or_path)
    return [*verify_contents(contents, on_progress), *verify_tokenizer(contents)]


def verify_contents(contents: Contents, on_progress: OnProgress | None = None) -> Iterator[Check]:
    """Yields the checks of the tensors of a checkpoint, cheapest first.

    Args:
      contents: headers of the files, as returned by `read_contents`.
      on_progress: called with (bytes checked, total bytes); None: not called.

    Yields:
      One result per check.

    Raises:
      ValueError: if tensors are missing, unexpected, or of the wrong shape or dtype.
    """
    checkpoint = select(contents)
    flat = flatten(checkpoint.params)
    counter = Counter(on_progress, sum(x.nbytes for x in flat.values()))
    yield Check("names, shapes, dtypes", True, f"{len(flat)} parameters of a {checkpoint.architecture}")
    bad, constant = [], []
    for path, x in flat.items():
        values = np.asarray(x)
        # A sum is finite only if all its terms are; it needs no boolean array of the size of the tensor.
        if not np.isfinite(values.sum(dtype=np.float64)):
            bad.append(path)
        elif values.ndim > 1 and path != "classifier/kernel" and values.min() == values.max():  # a new one is zero
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
    """Yields the checks of the tokenizer beside a checkpoint; none if it has no tokenizer.

    Args:
      contents: headers of the files, as returned by `read_contents`.

    Yields:
      One result per check.
    """
    if not has_tokenizer(contents):
        return
    tokenizer = SiglipTokenizer.from_pretrained(folder_of(contents.path))
    yield Check("tokenizer", True, f"{type(tokenizer).__name__}, {tokenizer.vocab_size:,} pieces")
    rows = getattr(getattr(contents.config, "text_config", contents.config), "vocab_size", None)
    if rows is not None:
        try:
            tokenizer.check_rows(rows)
            yield Check("ids of the tokenizer", True, f"0 to {tokenizer.largest_id:,}, for a table of {rows:,} rows")
        except ValueError as error:
            yield Check("ids of the tokenizer", False, str(error))
    variant = released_variant(contents.config, contents.architecture)
    if variant is not None and variant.token_ids:
        yield from verify_tokens(lambda text: tokenizer(text)["input_ids"], variant.token_ids)


def verify_tokens(encode: Callable[[str], list[int]], expected: Mapping[str, tuple[int, ...]]) -> Iterator[Check]:
    """Yields one check per published text.

    Args:
      encode: function from a text to its token ids without padding.
      expected: published token ids by text.

    Yields:
      One result per text.
    """
    for text, ids in expected.items():
        found = tuple(encode(text))
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        said = "as published" if found == ids else f"{list(found)[:8]}, expected {list(ids)[:8]}"
        yield Check(f"token ids of {shown!r}", found == ids, said)


def has_tokenizer(contents: Contents) -> bool:
    """Returns whether there is a vocabulary beside the weights."""
    return any((folder_of(contents.path) / name).is_file() for name in TOKENIZER_FILES[:2])
