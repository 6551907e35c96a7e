"""The examples and lengths of steps are a function of the step, and count every example once."""

import numpy as np
import pytest

from siglip_jax.data.sizes import StepSizes

KINDS = ((128, 12), (256, 12), (1024, 4))


def test_every_cycle_has_each_kind_once_in_changing_order():
    sizes = StepSizes(KINDS, 7)
    cycles = [tuple(sizes.at(3 * cycle + i) for i in range(3)) for cycle in range(40)]
    assert all(sorted(cycle) == sorted(KINDS) for cycle in cycles)
    assert len(set(cycles)) == 6
    assert cycles != [tuple(StepSizes(KINDS, 8).at(3 * cycle + i) for i in range(3)) for cycle in range(40)]


def test_steps_take_consecutive_examples():
    sizes = StepSizes(KINDS, 3)
    example = 0
    for step in range(30):
        assert sizes.before(step) == example
        for place in range(sizes.at(step)[1]):
            assert sizes.step_of(example) == (step, place)
            example += 1
    assert sizes.before(3 * 10**9) == 28 * 10**9  # without the steps before


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_each_step(processes):
    sizes = StepSizes(KINDS, 3)
    own = sizes.share(processes)
    for step in range(12):
        length, examples = sizes.at(step)
        assert own.at(step) == (length, examples // processes) and own.before(step) * processes == sizes.before(step)


def test_one_kind_is_a_fixed_batch():
    sizes = StepSizes(((None, 5),), 0)
    assert [sizes.before(step) for step in range(4)] == [0, 5, 10, 15] and sizes.step_of(13) == (2, 3)
    np.testing.assert_array_equal([sizes.at(step)[1] for step in (0, 10**12)], 5)
