"""The fingerprint of a source: equal for a copy of its files, different where an example differs."""

import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax.data import Example, open_source
from siglip_jax.data.fingerprint import SAMPLED, fingerprint
from tests.support.data_sets import Memory, encoded, write_tar

CAPTIONS = ["a red disc", "a blue bar"]


def jsonl(folder, captions, seed=0):
    lines = [{"image": f"{i}.jpg", "caption": caption} for i, caption in enumerate(captions)]
    for i in range(len(captions)):
        (folder / f"{i}.jpg").write_bytes(encoded(seed + i))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def tar(folder, captions, seed=0):
    members = {}
    for i, caption in enumerate(captions):
        members |= {f"{i}.jpg": encoded(seed + i), f"{i}.txt": caption.encode()}
    write_tar(folder / "a.tar", members)


def parquet(folder, captions, seed=0):
    images = [encoded(seed + i) for i in range(len(captions))]
    pq.write_table(pa.table({"image": images, "caption": captions}), folder / "a.parquet", compression="none")


def of(write, folder, captions=CAPTIONS, seed=0, **options):
    """Returns the fingerprint of a data set that is written into a new folder."""
    folder.mkdir(parents=True)
    write(folder, captions, seed)
    return fingerprint(open_source(folder, cache=folder.with_name(f"{folder.name}-cache")), **options)


@pytest.mark.parametrize("write", [jsonl, tar, parquet])
class TestFiles:
    def test_a_copy_in_another_folder_is_the_same(self, write, tmp_path):
        assert of(write, tmp_path / "a") == of(write, tmp_path / "b")

    @pytest.mark.parametrize("captions", [["a red disc", "a blue ban"], ["a red disc", "a blue bars"], CAPTIONS[::-1]])
    def test_other_captions_are_other_data(self, write, captions, tmp_path):
        assert of(write, tmp_path / "a") != of(write, tmp_path / "b", captions)

    def test_other_images_are_other_data(self, write, tmp_path):
        assert of(write, tmp_path / "a") != of(write, tmp_path / "b", seed=1)

    def test_times_count_where_asked_for(self, write, tmp_path):
        before = of(write, tmp_path / "a", times=True)
        for file in (tmp_path / "a").iterdir():
            if file.is_file():
                os.utime(file, (1, 1))
        source = open_source(tmp_path / "a", cache=tmp_path / "cache")
        assert fingerprint(source, times=True) != before
        assert fingerprint(source) == of(write, tmp_path / "b")


def test_a_late_caption_of_many_is_seen(tmp_path):
    captions = [f"number {i:04}" for i in range(3 * SAMPLED)]
    changed = [*captions[:-1], "number xxxx"]
    assert of(parquet, tmp_path / "a", captions) != of(parquet, tmp_path / "b", changed)
    lengths = [*captions[:-1], "a longer caption"]
    assert of(tar, tmp_path / "c", captions) != of(tar, tmp_path / "d", lengths)


def test_class_folders(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "a" / name).mkdir(parents=True)
        (tmp_path / "a" / name / "0.jpg").write_bytes(encoded())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first = fingerprint(open_source(tmp_path / "a"))
    assert fingerprint(open_source(tmp_path / "b")) == first
    (tmp_path / "b" / "dog").rename(tmp_path / "b" / "fox")
    assert fingerprint(open_source(tmp_path / "b")) != first


def test_a_missing_and_a_broken_image_do_not_stop_it(tmp_path):
    jsonl(tmp_path, CAPTIONS)
    whole = fingerprint(open_source(tmp_path))
    (tmp_path / "0.jpg").unlink()
    assert fingerprint(open_source(tmp_path)) != whole


def test_sources_without_files():
    class Changed(Memory):
        def __getitem__(self, index):
            return Example(np.zeros((8, 8, 3), np.uint8), ("a cat",), None, "x")

    assert fingerprint(Memory(10)) == fingerprint(Memory(10, path="elsewhere"))
    assert len({fingerprint(s) for s in (Memory(10), Memory(11), Memory(10, classes=2), Changed(10))}) == 4


def test_a_source_may_state_its_own():
    source = Memory(10)
    source.fingerprint = "version 3"
    assert fingerprint(source) == "version 3"
