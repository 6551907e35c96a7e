"""Class folders, and how a path is recognised."""

import pickle

import pytest

from siglip_jax.data.example import Source
from siglip_jax.data.open import open_source
from tests.support.data_sets import encoded, write_tar


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["zebra/b.jpg", "zebra/a.PNG", "cat/deep/er/x.jpeg", "größe/ü.webp", "empty/notes.txt"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(encoded(i))
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "readme.txt").touch()
    return tmp_path


def test_class_folders(folder):
    source = open_source(folder)
    assert isinstance(source, Source)
    assert source.classes == ("cat", "empty", "größe", "zebra")
    assert [source[i].label for i in range(len(source))] == [0, 2, 3, 3]
    assert [source[i].name for i in range(4)] == ["cat/deep/er/x.jpeg", "größe/ü.webp", "zebra/a.PNG", "zebra/b.jpg"]
    assert source[3].image == encoded(0) and source[3].texts == ()
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    with pytest.raises(ValueError, match="text_key must be None for folders of images, got 'caption'; leave it out"):
        open_source(folder, text_key="caption")
    (folder / "zebra" / "a.PNG").unlink()
    with pytest.raises(FileNotFoundError, match="^zebra/a.PNG: no such image as zebra/a.PNG, got no file /.*/a.PNG$"):
        source[2]


def test_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    for name in ("10", "2", "1", "other", "-1", "02"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jpg").write_bytes(encoded())
    source = open_source(tmp_path)
    assert source.classes == ("1", "02", "2", "10", "other")
    assert {source[i].name: source[i].label for i in range(6)} == {
        "-1/a.jpg": None, "1/a.jpg": 0, "02/a.jpg": 1, "2/a.jpg": 2, "10/a.jpg": 3, "other/a.jpg": 4
    }  # fmt: skip


@pytest.mark.parametrize("images_only", [False, True])
def test_links_are_followed_and_no_image_comes_twice(tmp_path, images_only):
    blobs = tmp_path / "cache" / "blobs"
    blobs.mkdir(parents=True)
    for i in range(3):
        (blobs / f"hash{i}").write_bytes(encoded(i))
    snapshot = tmp_path / "cache" / "snapshots" / "main"
    for name, i in (("cat/a.jpg", 0), ("cat/b.jpg", 1)):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(f"../../../blobs/hash{i}")
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deep" / "c.jpg").symlink_to(blobs / "hash2")
    (snapshot / "dog").symlink_to(tmp_path / "elsewhere")
    (snapshot / "cat" / "again").symlink_to(snapshot / "cat")  # a circle
    (tmp_path / "data").symlink_to(snapshot)
    source = open_source(tmp_path / "data", images_only=images_only)
    examples = [source[i] for i in range(len(source))]
    assert [e.name for e in examples] == ["cat/a.jpg", "cat/b.jpg", "dog/deep/c.jpg"]
    assert [e.image for e in examples] == [encoded(i) for i in range(3)]


def test_a_name_that_is_not_text(tmp_path):
    (tmp_path / "cat").mkdir()
    try:
        with open(bytes(tmp_path) + b"/cat/\xff.jpg", "wb") as file:
            file.write(encoded(1))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    example = open_source(tmp_path)[0]
    assert example.image == encoded(1) and example.name == "cat/\udcff.jpg"


def test_splits(tmp_path):
    for i, part in enumerate(["train", "test"]):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "0.jpg").write_bytes(encoded(i))
    assert open_source(tmp_path)[0].image == encoded(0)
    assert open_source(tmp_path, split="test")[0].image == encoded(1)
    with pytest.raises(
        ValueError, match="the data must have the split 'val', got 'test', 'train'; choose one with split"
    ):
        open_source(tmp_path, split="val")


def test_splits_by_the_names_of_files(tmp_path):
    for i, name in enumerate(["a-train-0.tar", "a-train-1.tar", "a-validation-0.tar"]):
        write_tar(tmp_path / name, {"0.jpg": encoded(i), "0.txt": b"a"})
    assert [e.image for e in map(open_source(tmp_path).__getitem__, range(2))] == [encoded(0), encoded(1)]
    assert len(open_source(tmp_path)) == 2
    assert open_source(tmp_path, split="validation")[0].image == encoded(2)
    with pytest.raises(ValueError, match="the data must have the split 'test', got 'train', 'validation'"):
        open_source(tmp_path, split="test")


def test_nothing_recognised(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        open_source(tmp_path / "none")
    with pytest.raises(ValueError, match="a data set must be tar shards .*, got a folder of none"):
        open_source(tmp_path)
    (tmp_path / "a.zip").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a data set must be tar shards .*, got a folder of 'a.zip', 'empty'"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"a.zip: a data set must be tar shards .*, got another kind of file$"):
        open_source(tmp_path / "a.zip")
    (tmp_path / "a.tar.gz").touch()
    with pytest.raises(ValueError, match="got another kind of file; unpack it to a plain .tar"):
        open_source(tmp_path / "a.tar.gz")
    with pytest.raises(
        ValueError, match="path must be on this disk, got the URL https://host/.*; download the data first"
    ):
        open_source("https://host/{000..100}.tar")
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="a folder must hold one table, got 'a.csv', 'b.csv'; pass the path of one"):
        open_source(tmp_path)
