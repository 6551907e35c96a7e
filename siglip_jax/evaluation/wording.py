"""How the names of classes become embeddings, which every evaluation with class names shares."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from siglip_jax.evaluation.embeddings import embed_texts
from siglip_jax.evaluation.prompts import names_of, prompts
from siglip_jax.inference.engine import Siglip
from siglip_jax.inference.labels import ensemble
from siglip_jax.inference.preprocessing import describe


class Wording(NamedTuple):
    """How the prompts of a class are written.

    Attributes:
      templates: sentences in which the name of a class replaces `{}`.
      canonicalize: whether names and templates are written in lower case, without punctuation and with spaces for
        underscores.
      first_name_only: whether only the name before the first comma is used.
    """

    templates: Sequence[str]
    canonicalize: bool
    first_name_only: bool

    def prompts(self, names: Sequence[str]) -> list[list[str]]:
        """Returns the prompts of each class."""
        return prompts(names, self.templates, canonicalize=self.canonicalize, first_name_only=self.first_name_only)

    def describe(self, siglip: Siglip, model_name: str) -> dict[str, Any]:
        """Returns the model and its preparation of images and texts, as a dictionary that JSON can hold."""
        return describe(siglip, model_name=model_name, **self._asdict())


def embed_classes(
    siglip: Siglip, by_class: Sequence[Sequence[str]], batch_size: int | None = None
) -> Float[np.ndarray, "classes embed"]:
    """Returns the L2-normalised mean embedding of the prompts of each class.

    Args:
      siglip: the model.
      by_class: prompts of each class.
      batch_size: texts per forward pass; None: the size that suits model and device.
    """
    text_embeds = embed_texts(siglip, list(itertools.chain(*by_class)), batch_size=batch_size)
    return ensemble(text_embeds, list(map(len, by_class)))


def other_names(names: Sequence[str]) -> int:
    """Returns the number of names after the first ones."""
    return sum(len(names_of(name)) - 1 for name in names)
