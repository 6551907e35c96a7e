"""Batches do not depend on workers, processes or start; unreadable examples are replaced and named."""

import itertools
import multiprocessing
import re
import time

import numpy as np
import pytest

from siglip_jax.data import pipeline as pipeline_module
from siglip_jax.data.pipeline import Batch, Pipeline, ordered
from siglip_jax.data.transform import Transform
from tests.support.data_sets import Memory


@pytest.fixture(scope="module")
def transform(processor) -> Transform:
    return Transform(processor, augment="crop_flip")


def first(pipeline: Pipeline, count: int, start: int = 0) -> list[Batch]:
    """Returns the batches of a few steps."""
    batches = pipeline.batches(start)
    try:
        return list(itertools.islice(batches, count))
    finally:
        batches.close()


def same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.arrays.keys() == other.arrays.keys()
        for name in one.arrays:
            assert one.arrays[name].dtype == other.arrays[name].dtype
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name], name)
        assert one.skipped == other.skipped


def test_shapes_and_kinds(transform):
    batch = first(Pipeline([(Memory(20), 1.0)], transform, batch_size=6), 1)[0]
    kinds = {name: (array.shape, array.dtype.name) for name, array in batch.arrays.items()}
    assert kinds == {
        "pixels": ((6, 32, 32, 3), "uint8"),
        "input_ids": ((6, 16), "int32"),
        "image_ids": ((6,), "int32"),
        "index": ((6,), "int64"),
    }
    assert batch.skipped == ()


def test_every_epoch_is_another_permutation(transform):
    pipeline = Pipeline([(Memory(12), 1.0)], transform, batch_size=4)
    index = np.stack([batch.arrays["index"] for batch in first(pipeline, 9)]).reshape(3, 12)
    assert (np.sort(index, axis=1) == np.arange(12)).all()
    assert len({tuple(epoch) for epoch in index.tolist()}) == 3


def test_neighbouring_seeds_share_no_epoch(transform):
    epochs = set()
    for seed in range(4):
        index = [
            b.arrays["index"] for b in first(Pipeline([(Memory(12), 1.0)], transform, batch_size=12, seed=seed), 3)
        ]
        epochs |= {tuple(epoch.tolist()) for epoch in index}
    assert len(epochs) == 12


def test_start_is_where_skipping_leads(transform):
    pipeline = Pipeline([(Memory(10, bad=[3]), 1.0), (Memory(7), 2.0)], transform, batch_size=4, seed=5)
    whole = first(pipeline, 9)
    for start in (1, 4, 8):
        same(first(pipeline, 9 - start, start), whole[start:])


def test_batches_of_another_size_go_on_after_the_examples_before(transform):
    whole = np.concatenate(
        [b.arrays["index"] for b in first(Pipeline([(Memory(20), 1.0)], transform, batch_size=6), 4)]
    )
    later = Pipeline([(Memory(20), 1.0)], transform, batch_size=4, before=12)
    assert [b.arrays["index"].tolist() for b in first(later, 2, start=1)] == whole[16:].reshape(2, 4).tolist()


def test_far_start(transform):
    pipeline = Pipeline([(Memory(10), 1.0), (Memory(7), 2.0)], transform, batch_size=4)
    assert len(first(pipeline, 1, 10**9)[0].arrays["index"]) == 4


def alive(count: int) -> bool:
    """Waits until as many worker processes are left."""
    deadline = time.monotonic() + 20
    while len(multiprocessing.active_children()) != count and time.monotonic() < deadline:
        time.sleep(0.05)
    return len(multiprocessing.active_children()) == count


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shared_memory"), [(2, True), (1, False)])
def test_workers_change_nothing_and_end(transform, monkeypatch, workers, shared_memory):
    monkeypatch.setattr(Pipeline, "_shared_memory_suffices", lambda self: shared_memory)
    sources = [(Memory(30, bad=[1, 2, 3, 4, 5]), 1.0), (Memory(7), 0.5)]
    threads = first(Pipeline(sources, transform, batch_size=32, seed=3), 5, 2)
    assert any(batch.skipped for batch in threads)
    batches = Pipeline(sources, transform, batch_size=32, seed=3, workers=workers).batches(2)
    taken = list(itertools.islice(batches, 5))
    assert alive(workers)
    if shared_memory:
        batches.close()
    else:
        del batches  # releasing it is enough
    assert alive(0)
    same(taken, threads)
    assert all(type(array) is np.ndarray for batch in taken for array in batch.arrays.values())


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_each_batch(transform, count):
    sources = [(Memory(30, bad=[4, 9]), 1.0), (Memory(7), 0.5)]
    whole = first(Pipeline(sources, transform, batch_size=12), 4)
    parts = [
        first(Pipeline(sources, transform, batch_size=12, process_index=i, process_count=count), 4)
        for i in range(count)
    ]
    for step, batch in enumerate(whole):
        for name, array in batch.arrays.items():
            np.testing.assert_array_equal(np.concatenate([part[step].arrays[name] for part in parts]), array)
        assert sum((part[step].skipped for part in parts), ()) == batch.skipped


def test_bad_examples_change_no_other_row(transform):
    bad = [7, 50, 51, 199]
    clean = first(Pipeline([(Memory(200), 1.0)], transform, batch_size=25), 16)
    dirty = first(Pipeline([(Memory(200, bad=bad), 1.0)], transform, batch_size=25), 16)
    named = []
    for one, other in zip(clean, dirty, strict=True):
        good = ~np.isin(one.arrays["index"], bad)
        assert not np.isin(other.arrays["index"], bad).any()
        assert (one.arrays["index"][good] == other.arrays["index"][good]).all()
        for name in one.arrays:
            np.testing.assert_array_equal(one.arrays[name][good], other.arrays[name][good])
        assert len(other.skipped) >= (~good).sum()
        replaced = other.arrays["index"][~good]
        assert not np.isin(replaced, one.arrays["index"]).any(), "a replacement comes from far away in the order"
        named += other.skipped
    assert sorted(set(named)) == sorted(f"memory:{i}: broken" for i in bad)


def test_one_good_example_among_many_is_found(transform):
    batch = first(Pipeline([(Memory(40, bad=range(1, 40)), 1.0)], transform, batch_size=5), 1)[0]
    assert (batch.arrays["index"] == 0).all() and batch.skipped


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_no_good_example_at_all(transform, workers):
    source = Memory(300, bad=range(300), path="/somewhere/shards")
    with pytest.raises(
        ValueError,
        match=r"^shards: one of 100 examples must be readable, got errors for all; the last: memory:\d+: broken",
    ):
        first(Pipeline([(source, 1.0)], transform, batch_size=5, workers=workers), 1)


def test_weights(transform):
    pipeline = Pipeline([(Memory(1000), 1.0), (Memory(10), 3.0)], transform, batch_size=40)
    index = np.concatenate([batch.arrays["index"] for batch in first(pipeline, 4)])
    assert (index >= 1000).sum() == 120
    assert np.bincount(index[index >= 1000] - 1000).tolist() == [12] * 10
    assert pipeline.examples == 1010


def test_fingerprint(transform):
    def of(count=10, path="a/shards", weight=1.0, **options):
        return Pipeline([(Memory(count, path=path), weight)], transform, **{"batch_size": 4} | options).fingerprint

    assert re.fullmatch(r"shards:10\*1:[0-9a-f]{16} seed=0 batch=4", of())
    assert of() == of(path="elsewhere/shards") == of(process_count=2) == of(workers=2)
    assert len({of(), of(count=11), of(path="b"), of(weight=2.0), of(seed=1), of(batch_size=8)}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a multiple of the 1 processes, got 0"),
        ({"batch_size": 3, "process_count": 2}, "batch_size must be a multiple of the 2 processes, got 3; it counts"),
        ({"process_index": 2, "process_count": 2}, "process_index must be from 0 to 1, got 2"),
        ({"seed": -1}, "workers and seed must be 0 or more, got 0 and -1"),
        ({"workers": -1}, "workers and seed must be 0 or more, got -1 and 0"),
        ({"before": -1}, "before must be 0 or more examples, got -1"),
    ],
)
def test_impossible_numbers(transform, options, message):
    with pytest.raises(ValueError, match=message):
        Pipeline([(Memory(10), 1.0)], transform, **{"batch_size": 4} | options)


def test_impossible_sources(transform):
    with pytest.raises(ValueError, match=r"sources must be one or more, each with examples, got the lengths \[\]"):
        Pipeline([], transform, batch_size=4)
    with pytest.raises(ValueError, match=r"got the lengths \[0\]"):
        Pipeline([(Memory(0), 1.0)], transform, batch_size=4)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weights must be finite and above 0, got"):
            Pipeline([(Memory(4), weight)], transform, batch_size=4)
    with pytest.raises(ValueError, match="start must be a step of 0 or more, got -1"):
        Pipeline([(Memory(4), 1.0)], transform, batch_size=4).batches(-1)


def test_ordered(processor):
    transform = Transform(processor, labels=True)
    batches = list(ordered(Memory(11, bad=[0, 5, 10], classes=3), transform, 4))
    assert [batch.arrays["index"].tolist() for batch in batches] == [[1, 2, 3, 4], [6, 7, 8, 9]]
    assert [batch.arrays["label"].tolist() for batch in batches] == [[1, 2, 0, 1], [0, 1, 2, 0]]
    assert [batch.skipped for batch in batches] == [
        ("memory:0: broken", "memory:5: broken"),
        ("memory:10: broken",),
    ]
    assert [
        len(batch.arrays["index"]) for batch in ordered(Memory(9), transform=Transform(processor), batch_size=4)
    ] == [
        4,
        4,
        1,
    ]
    with pytest.raises(
        ValueError, match="memory: one of 3 examples must be readable, got errors for all; the last: memory:2: broken"
    ):
        list(ordered(Memory(3, bad=range(3)), transform, 4))


def test_little_shared_memory_is_noticed(transform, monkeypatch):
    pipeline = Pipeline([(Memory(30), 1.0)], transform, batch_size=1024, workers=2)
    for free, suffices in [(2**26, True), (2**25, False)]:  # a batch counts as 4 MiB, and twelve of them may exist
        usage = type("Usage", (), {"free": free})
        monkeypatch.setattr(pipeline_module.shutil, "disk_usage", lambda path, usage=usage: usage)
        monkeypatch.setattr(pipeline_module.os.path, "isdir", lambda path: True)
        assert pipeline._shared_memory_suffices() == suffices
