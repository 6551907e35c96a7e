"""The engine's input stream."""

import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from siglip_jax.inference.stream import batches, in_threads, padded


def test_in_threads_keeps_order_and_distance():
    release = threading.Event()
    started: list[int] = []
    drawn: list[int] = []

    def draw():
        for i in range(20):
            drawn.append(i)
            yield i

    def work(i: int) -> int:
        started.append(i)
        if i == 0:
            release.wait(10)  # the first is the slowest, but must still be first
        return i * i

    stream = in_threads(work, draw(), workers=3, ahead=5)
    first = next(stream)
    assert drawn == list(range(6))
    release.set()
    assert [first.result()] + [future.result() for future in stream] == [i * i for i in range(20)]
    assert sorted(started) == list(range(20))


def test_in_threads_stops_when_the_reader_stops():
    started: list[int] = []
    stream = in_threads(started.append, range(1000), workers=1, ahead=10)
    next(stream).result()
    stream.close()
    assert len(started) <= 12


def test_batches():
    rows = [(np.full(2, i), np.full((3, 1), -i)) for i in range(7)]
    found = list(batches(rows, 3))
    assert [first[:, 0].tolist() for first, _ in found] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [second[:, 2, 0].tolist() for _, second in found] == [[0, -1, -2], [-3, -4, -5], [-6]]
    assert list(batches([], 3)) == []


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (9, 12), (12, 12)])
def test_padded_to_few_sizes(rows, size):
    batch = np.ones((rows, 2), np.int32)
    assert padded(batch, 12).shape == (size, 2)
    assert padded(batch, 12).sum() == 2 * rows
    on_device = padded(jnp.asarray(batch), 12)
    assert isinstance(on_device, jax.Array)
    np.testing.assert_array_equal(on_device, padded(batch, 12))


def test_a_full_batch_is_not_copied():
    batch = np.ones((8, 2), np.float32)
    assert padded(batch, 8) is batch
