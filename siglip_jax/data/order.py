"""Order of an endless, shuffled mixture: the example at each place is a pure function of the seed and the place."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from siglip_jax._optional import import_optional

grain: Any = import_optional("grain", "the input pipeline", "data")

TRIES = 100  # examples that are tried for one place before the pipeline gives up


class Order:
    """Interleaves sources by their weights and shuffles each source anew for every epoch of it.

    An epoch of a source is a permutation of it. The choice of the next source depends on the weights alone and is never
    random: after any number of places each source has had its share, which Grain keeps to within 1 in 100.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Prepares the permutations; nothing is stored per example.

        Args:
          lengths: number of examples of each source.
          weights: weight of each source; its share of the places is its weight divided by the sum of the weights.
          seed: seed of all permutations.
        """
        self._lengths = tuple(lengths)
        # Grain's seed for epoch e is seed + e, so consecutive seeds would share permutations.
        seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in range(len(lengths))]
        both = zip(lengths, seeds, strict=True)
        self._shuffled = [grain.MapDataset.range(n).shuffle(seed=s).repeat() for n, s in both]
        endless = [grain.MapDataset.range(sys.maxsize).map(partial(_tagged, i)) for i in range(len(lengths))]
        self._turns = grain.MapDataset.mix(endless, list(weights))

    def turn(self, place: int) -> tuple[int, int]:
        """Returns the index of the source at a place, and how many examples of that source precede the place."""
        turn = self._turns[place]
        assert turn is not None  # Grain's return type allows gaps, which ranges do not have
        return turn

    def tries(self, source: int) -> int:
        """Returns how many different examples of a source may be tried for one place."""
        return min(TRIES, self._lengths[source])

    def example(self, source: int, before: int, attempt: int = 0) -> int:
        """Returns the index of an example in its source.

        Later attempts return the examples half an epoch away and after, which are far from their own turn.

        Args:
          source: index of the source.
          before: how many examples of the source precede this one, over all epochs; `turn` returns it.
          attempt: 0 for the example whose turn it is, 1 and up for the replacements of an unreadable one.
        """
        n = self._lengths[source]
        if attempt:
            epoch, place = divmod(before, n)
            away = 1 + (n // 2 - 1 + attempt - 1) % (n - 1)
            before = epoch * n + (place + away) % n
        found = self._shuffled[source][before]
        assert found is not None
        return found


def _tagged(source: int, before: int) -> tuple[int, int]:
    return source, before
