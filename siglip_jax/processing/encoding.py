"""From texts or pairs to a batch of ids and masks: the call that the tokenizers of SigLIP and SigLIP 2 share.

Mirrors `PreTrainedTokenizerBase.__call__` of the reference. It differs in these: padding to a maximum that is unknown
is an error, not a silent nothing; rows of unequal length do not become an array of objects; arrays are int32; token
types are zero, for the second text of a pair too.
"""

import abc
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from siglip_jax.processing.batch import Batch, one_of
from siglip_jax.processing.sequences import (
    Ids,
    attention,
    is_ids,
    pad,
    stacked,
    strategies,
    texts_and_pairs,
    truncate_all,
)

UNBOUNDED = 10**20  # the reference writes 1e30 where it means "no limit"


class TextEncoder(abc.ABC):
    """Texts to token ids, but for the way from one text to its ids, which is the subclass's.

    Attributes:
      model_max_length: the longest text the model takes, in tokens.
      model_input_names: what `__call__` returns by default.
    """

    model_max_length: int
    model_input_names: list[str]
    padding_side: str
    truncation_side: str
    eos_token_id: int
    pad_token_id: int
    _settings: dict[str, Any]

    @abc.abstractmethod
    def encode_texts(self, texts: Sequence[str], split_special_tokens: bool = False) -> list[Ids]:
        """Returns the ids of each text, without a final eos, all texts at once."""

    @abc.abstractmethod
    def _lacks_end(self, ids: Ids) -> bool:
        """Whether an eos is put behind the ids of a text."""

    def __call__(
        self,
        text: Any,
        text_pair: Any = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool | str | None = None,
        max_length: int | None = None,
        padding_side: str | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        return_special_tokens_mask: bool = False,
        return_token_type_ids: bool | None = None,
        split_special_tokens: bool | None = None,
    ) -> Batch:
        """Encodes one text, a list of texts, or a list of pairs; lists of token ids may stand for texts.

        By default nothing is padded or cut, as in the reference; `SiglipProcessor` does both.

        Args:
          text_pair: a second text for each.
          padding: False, True or `"longest"`, or `"max_length"`.
          truncation: True or `"longest_first"`, `"only_first"`, `"only_second"`, or False; the eos is always kept.
          max_length: in tokens, for both; the default is `model_max_length`.
          return_tensors: None for lists, `"np"`, or `"jax"`.

        Returns:
          `input_ids` and what was asked for; for one text lists of numbers, for several lists of lists, and arrays
          of shape (texts, positions) int32 with `return_tensors`.

        Raises:
          ValueError: for anything else than texts, and for arrays of rows that differ in length.
        """
        one_of("return_tensors", return_tensors, (None, "np", "jax"))
        side = padding_side or self.padding_side
        one_of("padding_side", side, ("right", "left"))
        padding, truncation = strategies(padding, truncation, max_length)
        if max_length is None and (padding == "max_length" or truncation != "do_not_truncate"):
            if self.model_max_length > UNBOUNDED:
                raise ValueError("this tokenizer knows no maximum length; pass max_length, for example max_length=64")
            max_length = self.model_max_length
        split = bool(self._settings["split_special_tokens"] if split_special_tokens is None else split_special_tokens)

        single, texts, pairs = texts_and_pairs(text, text_pair)
        firsts, seconds = self._encoded(texts, split), None if pairs is None else self._encoded(pairs, split)
        if max_length:
            room = max_length - add_special_tokens * (1 if seconds is None else 2)
            firsts, seconds = truncate_all(firsts, seconds, room, truncation, self.truncation_side)
        parts = [firsts] if seconds is None else [firsts, seconds]
        if add_special_tokens:
            for ids in itertools.chain(*parts):
                if self._lacks_end(ids):
                    ids.append(self.eos_token_id)
        rows = firsts if seconds is None else [a + b for a, b in zip(firsts, seconds, strict=True)]
        special: list[Ids] = []
        if return_special_tokens_mask:
            ends = [[[0] * (len(ids) - 1) + [1] if add_special_tokens else [0] * len(ids) for ids in p] for p in parts]
            special = [list(itertools.chain(*row)) for row in zip(*ends, strict=True)]
        width = None
        if padding != "do_not_pad":
            width = max(map(len, rows)) if padding == "longest" else int(max_length or 0)
            width += -width % (pad_to_multiple_of or 1)

        wants_types, wants_mask = (
            name in self.model_input_names if given is None else given
            for name, given in (("token_type_ids", return_token_type_ids), ("attention_mask", return_attention_mask))
        )
        batch = Batch()
        if return_tensors:
            batch["input_ids"], there = stacked(rows, width, self.pad_token_id, side)
            if wants_types:
                batch["token_type_ids"] = np.zeros(there.shape, np.int32)
            if return_special_tokens_mask:
                batch["special_tokens_mask"], _ = stacked(special, width, 1, side)
            if wants_mask:
                batch["attention_mask"] = there.astype(np.int32)
            return batch if return_tensors == "np" else Batch({k: jnp.asarray(v) for k, v in batch.items()})
        mask = attention(rows, width, side) if wants_mask else []
        pad(rows, width or 0, self.pad_token_id, side)
        pad(special, width or 0, 1, side)
        batch["input_ids"] = rows
        if wants_types:
            batch["token_type_ids"] = [[0] * len(row) for row in rows]
        if return_special_tokens_mask:
            batch["special_tokens_mask"] = special
        if wants_mask:
            batch["attention_mask"] = mask
        return Batch({name: values[0] for name, values in batch.items()}) if single else batch

    def _encoded(self, texts: Sequence[Any], split: bool) -> list[Ids]:
        if all(isinstance(text, str) for text in texts):
            return self.encode_texts(texts, split)
        if all(is_ids(text) for text in texts):
            return [list(map(int, ids)) for ids in texts]
        wrong = next(text for text in texts if not isinstance(text, str))
        raise ValueError(f"text: expected a string or a list of strings, found {wrong!r} in the list")

    def encode(self, text: Any, text_pair: Any = None, **options: Any) -> Any:
        """Returns only the `input_ids` of `__call__`, which takes the same options."""
        return self(text, text_pair, return_attention_mask=False, **options)["input_ids"]
