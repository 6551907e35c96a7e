"""Which example stands at which place of an endless, shuffled mixture: a pure function of the seed and the place."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from siglip_jax._optional import import_optional

grain: Any = import_optional("grain", "the input pipeline", "data")

TRIES = 100  # examples that are tried for one place


class Order:
    """Sources in turn by their weights, each shuffled anew for every pass through it.

    An epoch of a source is a permutation of it. Which source is next follows from the weights alone, never from chance:
    after any number of places each source has had its share, which Grain keeps to within 1 in 100.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        """Prepares the permutations; nothing is stored for the examples."""
        self._lengths = tuple(lengths)
        # Grain's seed for epoch e is seed + e, so seeds next to each other would share their permutations.
        seeds = [int(np.random.SeedSequence((seed, i)).generate_state(1)[0]) for i in range(len(lengths))]
        both = zip(lengths, seeds, strict=True)
        self._shuffled = [grain.MapDataset.range(n).shuffle(seed=s).repeat() for n, s in both]
        endless = [grain.MapDataset.range(sys.maxsize).map(partial(_tagged, i)) for i in range(len(lengths))]
        self._turns = grain.MapDataset.mix(endless, list(weights))

    def turn(self, place: int) -> tuple[int, int]:
        """Returns the source at a place, and how many examples of it came before."""
        turn = self._turns[place]
        assert turn is not None  # Grain's type allows gaps, which ranges do not have
        return turn

    def tries(self, source: int) -> int:
        """Returns how many different examples may be tried for one place."""
        return min(TRIES, self._lengths[source])

    def example(self, source: int, before: int, attempt: int = 0) -> int:
        """Returns the example of a source whose turn it is.

        Later attempts give those half an epoch away and what follows there: far from where they are due themselves.
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
