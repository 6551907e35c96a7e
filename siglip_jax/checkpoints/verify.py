"""Is a checkpoint whole? Names, shapes and types from its headers, then every value, then its tokenizer.

Where the checkpoint has the sizes of a released one, its tokenizer is held against the published token ids.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from siglip_jax.checkpoints.checkpoint import Contents
from siglip_jax.checkpoints.load import select
from siglip_jax.checkpoints.mapped import release
from siglip_jax.checkpoints.table import flatten


class Check(NamedTuple):
    """One thing that was looked at: its name, whether it is right, and what was found."""

    name: str
    right: bool
    found: str


def verify(contents: Contents, advance: Callable[[int], object] = lambda _: None) -> Iterator[Check]:
    """Yields what was checked, cheapest first.

    Args:
      advance: is told the bytes of each parameter whose values have been looked at.

    Raises:
      ValueError: if tensors are missing, unexpected, of the wrong shape or no floats; nothing else can be checked then.
    """
    checkpoint = select(contents)
    flat = flatten(checkpoint.params)
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
        advance(values.nbytes)
    yield Check("every value finite", not bad, ", ".join(bad[:4]) or "no NaN, no infinity")
    yield Check("no matrix of one value", not constant, ", ".join(constant[:4]) or "none")
    if "logit_scale" in flat:
        temperature = float(np.exp(np.float64(np.asarray(flat["logit_scale"]).reshape(-1)[0])))
        bias = float(np.asarray(flat["logit_bias"]).reshape(-1)[0])
        found = f"temperature {temperature:.4f}, bias {bias:.4f}"
        yield Check("temperature and bias of a trained model", 1 <= temperature <= 1000 and -100 <= bias <= 10, found)


def verify_tokens(encode: Any, expected: dict[str, tuple[int, ...]]) -> Iterator[Check]:
    """Yields a check for each published text.

    Args:
      encode: from a text to its token ids, padding left out.
    """
    for text, ids in expected.items():
        found = tuple(encode(text))
        shown = text if len(text) <= 40 else f"{text[:39]}…"
        said = "as published" if found == ids else f"{list(found)[:8]}, expected {list(ids)[:8]}"
        yield Check(f"token ids of {shown!r}", found == ids, said)


def directory_of(contents: Contents) -> Path:
    """Returns where the files of the processor would lie."""
    return contents.path if contents.path.is_dir() else contents.path.parent
