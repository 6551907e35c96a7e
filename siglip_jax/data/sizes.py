"""How many examples each training step takes, and how long the sequences of its images are."""

import functools
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import numpy as np


class StepSizes:
    """The examples and the sequence length of every step: a pure function of a seed and the step.

    Steps come in kinds, each with its length and its number of examples. Of every n steps in a row, counted from the
    first, each of the n kinds has one, in an order that is drawn anew each time; a kind given twice has twice as many
    steps. So the number of examples before a step is known without drawing the steps before.

    Attributes:
      kinds: (length in patches, examples) of each kind; the length is None for images of one size.
    """

    def __init__(self, kinds: Sequence[tuple[int | None, int]], seed: int) -> None:
        """Draws nothing.

        Args:
          kinds: (length in patches, examples) of each kind, one or more.
          seed: seed of the order of the kinds.
        """
        self.kinds, self._seed = tuple(kinds), seed
        self._examples = sum(examples for _, examples in self.kinds)

    def at(self, step: int) -> tuple[int | None, int]:
        """Returns the length and the number of examples of a step."""
        cycle, place = divmod(step, len(self.kinds))
        return self.kinds[self._order(cycle)[0][place]]

    def before(self, step: int) -> int:
        """Returns how many examples the steps before a step take."""
        cycle, place = divmod(step, len(self.kinds))
        return cycle * self._examples + self._order(cycle)[1][place]

    def step_of(self, example: int) -> tuple[int, int]:
        """Returns the step that takes an example, counted over all steps, and how many it takes before that one."""
        cycle, place = divmod(example, self._examples)
        starts = self._order(cycle)[1]
        within = bisect_right(starts, place) - 1
        return cycle * len(self.kinds) + within, place - starts[within]

    def share(self, processes: int) -> "StepSizes":
        """Returns the sizes of what each of several processes takes of every step."""
        return StepSizes([(length, examples // processes) for length, examples in self.kinds], self._seed)

    def _order(self, cycle: int) -> tuple[list[int], list[int]]:
        """Returns the kinds of the steps of a cycle in their order, and the examples before each of them."""
        return _order(self.kinds, self._seed, cycle)


@functools.lru_cache(maxsize=256)
def _order(kinds: tuple[tuple[int | None, int], ...], seed: int, cycle: int) -> tuple[list[int], list[int]]:
    order = np.random.default_rng((seed, cycle)).permutation(len(kinds)).tolist()
    return order, [0, *accumulate(kinds[kind][1] for kind in order)][:-1]
