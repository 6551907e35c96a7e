"""Arrow files as `datasets` writes them, and Parquet with its copy."""

import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax.data.open import open_source
from siglip_jax.data.sources import parquet
from tests.support.data_sets import encoded

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(count: int = 5, first: int = 0, **more: pa.Array) -> pa.Table:
    """Returns images in the struct of `datasets`, captions, and a column of no interest."""
    images = pa.array([{"bytes": encoded(first + i), "path": f"{i}.jpg"} for i in range(count)], STRUCT)
    texts = pa.array([f"caption {first + i}" for i in range(count)])
    return pa.table({"image": images, "caption": texts, "width": pa.array(range(count)), **more})


def write_stream(path, content: pa.Table, rows: int = 2):
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(os.fspath(path), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
        writer.write_table(content, max_chunksize=rows)
    return path


def write_saved(folder, *shards: pa.Table):
    """Writes what `save_to_disk` writes."""
    names = [f"data-{i:05}-of-{len(shards):05}.arrow" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_stream(folder / name, shard)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def check(source, count: int = 10):
    assert len(source) == count
    for i in range(count):
        assert source[i][:3] == (encoded(i), (f"caption {i}",), None)
    with pytest.raises(IndexError):
        source[count]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[count - 1] == source[count - 1]


def test_saved_to_disk(tmp_path):
    check(open_source(write_saved(tmp_path / "set", table(5), table(5, 5))))
    parts = tmp_path / "parts"
    write_saved(parts / "train", table(5), table(5, 5))
    write_saved(parts / "test", table(3))
    (parts / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    check(open_source(parts))
    check(open_source(parts, split="test"), 3)
    with pytest.raises(ValueError, match="must have the split 'dev', got 'train', 'test'; choose one with split"):
        open_source(parts, split="dev")
    (parts / "dataset_dict.json").write_text('{"splits": ["../set", "/etc"]}')
    with pytest.raises(ValueError, match="must have the split 'train', got none"):
        open_source(parts)


def test_a_state_that_leads_elsewhere_or_to_nothing(tmp_path):
    folder = write_saved(tmp_path / "set", table(5))
    for state, message in [
        (
            {"_data_files": [{"filename": "../a.arrow"}]},
            r"_data_files must name files in this folder, got \[\{'filename': '../a.arrow'\}\]",
        ),
        ({"_data_files": []}, r"_data_files must name files in this folder, got \[\]"),
        ({}, "_data_files must name files in this folder, got None"),
        ({"_data_files": [{"filename": "b.arrow"}]}, "b.arrow: no such file"),
        (
            {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": [{}]},
            "rows must be stored in their order, got .*flatten_indices",
        ),
    ]:
        (folder / "state.json").write_text(json.dumps(state))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_source(folder)


def test_the_cache_of_datasets(tmp_path):
    write_stream(tmp_path / "pairs-train-00000-of-00002.arrow", table(5))
    write_stream(tmp_path / "pairs-train-00001-of-00002.arrow", table(5, 5))
    write_stream(tmp_path / "pairs-test.arrow", table(2))
    write_stream(tmp_path / "cache-1234.arrow", table(1))
    check(open_source(tmp_path))
    check(open_source(tmp_path, split="test"), 2)


def test_parquet(tmp_path, cache):
    folder = tmp_path / "set" / "data"
    folder.mkdir(parents=True)
    pq.write_table(table(5), folder / "train-00000-of-00002.parquet", row_group_size=2)
    pq.write_table(table(5, 5), folder / "train-00001-of-00002.parquet")
    pq.write_table(table(2), folder / "test-00000-of-00001.parquet")
    source = open_source(tmp_path / "set", cache=cache)
    check(source)
    assert source[3].name == "set:3"
    copies = list(cache.iterdir())
    assert len(copies) == 1 and pa.ipc.open_file(copies[0]).schema.names == ["image", "caption"]
    before = copies[0].stat().st_mtime_ns
    check(open_source(folder, cache=cache))
    assert [copy.stat().st_mtime_ns for copy in cache.iterdir()] == [before]
    check(open_source(folder, split="test", cache=cache), 2)
    os.utime(folder / "train-00000-of-00002.parquet", ns=(1, 1))
    check(open_source(folder, cache=cache))
    assert len(list(cache.iterdir())) == 3
    check(open_source(folder / "test-00000-of-00001.parquet", cache=cache), 2)


def test_the_copy_goes_to_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    pq.write_table(table(2), tmp_path / "a.parquet")
    check(open_source(tmp_path / "a.parquet"), 2)
    assert len(list((tmp_path / "home" / "siglip_jax").iterdir())) == 1


def test_a_full_disk_and_a_failure_leave_nothing(tmp_path, cache, monkeypatch):
    pq.write_table(table(2), tmp_path / "a.parquet")
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(parquet.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="free space must be .* bytes for a copy of the Parquet files, got 10; "):
        open_source(tmp_path / "a.parquet", cache=cache)
    monkeypatch.undo()
    data = bytearray((tmp_path / "a.parquet").read_bytes())
    data[20 : len(data) // 2] = bytes(len(data) // 2 - 20)
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises((ValueError, OSError)):
        open_source(tmp_path / "a.parquet", cache=cache)
    assert list(cache.iterdir()) == []


def test_parquet_files_that_differ(tmp_path, cache):
    pq.write_table(table(2), tmp_path / "a.parquet")
    pq.write_table(table(2).drop_columns("caption"), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="b.parquet: columns must include 'caption', got 'image', 'width'"):
        open_source(tmp_path, cache=cache)
    pq.write_table(table(2).set_column(1, "caption", pa.array([1, 2])), tmp_path / "b.parquet")
    with pytest.raises(
        ValueError, match=r"b.parquet: columns must be those of .*a.parquet, got image \(.*\), caption \(int64\)$"
    ):
        open_source(tmp_path, cache=cache)


def test_not_what_it_is_called(tmp_path, cache):
    for name in ("a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"something else, long enough to be read as a file")
        with pytest.raises(ValueError, match=f"{name}: the file must be an? (Arrow|Parquet) file, got something else"):
            open_source(tmp_path / name, cache=cache)


def test_columns(tmp_path):
    images = pa.array([encoded(0), encoded(1)], pa.large_binary())
    captions = pa.array([["a", None, "b"], None], pa.list_(pa.string()))
    content = pa.table({"PNG_data": images, "Sentences": captions, "target": pa.array(["dog", "cat"])})
    source = open_source(write_stream(tmp_path / "a.arrow", content))
    assert source.classes == ("cat", "dog")
    assert [source[i][:3] for i in range(2)] == [(encoded(0), ("a", "b"), 1), (encoded(1), (), 0)]
    with pytest.raises(
        ValueError, match=r"text_key must be one of the columns 'PNG_data', 'Sentences', 'target', got 'x'"
    ):
        open_source(tmp_path / "a.arrow", text_key="x")
    with pytest.raises(ValueError, match="the column 'Sentences' must hold bytes or paths of images, got large_list"):
        open_source(tmp_path / "a.arrow", image_key="Sentences")
    with pytest.raises(
        ValueError, match="the column 'PNG_data' must hold texts, got large_binary; name the captions with text_key"
    ):
        open_source(tmp_path / "a.arrow", text_key="PNG_data")
    with pytest.raises(
        ValueError,
        match="a column must hold captions, such as caption, .*got 'PNG_data'; name it with text_key or label_key",
    ):
        open_source(write_stream(tmp_path / "b.arrow", content.select(["PNG_data"])))
    with pytest.raises(
        ValueError, match="a column must hold bytes of images, such as image, .*got 'Sentences'; name it with image_key"
    ):
        open_source(write_stream(tmp_path / "c.arrow", content.select(["Sentences"])))
    with pytest.raises(ValueError, match="a data set must have a row for each image, got no rows"):
        open_source(write_stream(tmp_path / "d.arrow", content.slice(0, 0)))


def test_names_of_classes(tmp_path):
    info = {"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}

    def of(labels, metadata=info):
        content = table(len(labels), label=pa.array(labels))
        content = content.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        source = open_source(write_stream(tmp_path / "a.arrow", content))
        return source.classes, [source[i].label for i in range(len(labels))]

    assert of([1, 0, None, -1]) == (("dog", "cat"), [1, 0, None, None])
    assert of([2, 0], {}) == (("0", "1", "2"), [2, 0])
    assert of([2.0, None, 0.0, float("nan"), -1.0], {}) == (("0", "1", "2"), [2, None, 0, None, None])
    with pytest.raises(ValueError, match="labels must be below 2, the number of classes, got 2"):
        of([2])
    with pytest.raises(ValueError, match="the column 'label' must hold integers or names of classes, got double"):
        of([0.5])


def test_images_that_are_missing(tmp_path):
    images = pa.array([None, {"bytes": None, "path": "/etc/passwd"}, {"bytes": b"", "path": None}], STRUCT)
    content = pa.table({"image": images, "caption": ["a", "b", "c"]})
    source = open_source(write_stream(tmp_path / "a.arrow", content))
    for i in (0, 2):
        with pytest.raises(ValueError, match=f"a.arrow:{i}: the image must be bytes of an image file, got none"):
            source[i]
    with pytest.raises(ValueError, match="a.arrow:1: an image must be inside .*, got /etc/passwd, which leads out of"):
        source[1]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
@pytest.mark.parametrize("form", ["struct", "string", "dictionary"])
def test_images_named_by_paths(tmp_path, cache, kind, form):
    """Paths are relative to the file that names them; a struct may have bytes or a path in each row."""
    paths = ["images/0.jpg", None, "../b/images/2.jpg", "images/0.jpg"]
    for folder in ("a", "b"):
        (tmp_path / folder / "images").mkdir(parents=True)
        for i in range(3):
            (tmp_path / folder / "images" / f"{i}.jpg").write_bytes(encoded(i + 10 * (folder == "b")))
        if form == "struct":
            held = [{"bytes": encoded(7) if path is None else None, "path": path} for path in paths]
            images = pa.array(held, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        else:
            images = pa.array(paths)
            images = images.dictionary_encode() if form == "dictionary" else images
        content = pa.table({"file_name": images, "text": pa.array(list("abcd"))})
        if kind == "parquet":
            pq.write_table(content, tmp_path / folder / "data.parquet")
        else:
            write_stream(tmp_path / folder / "data.arrow", content)
    source = open_source(f"{tmp_path}/*/data.{kind}", cache=cache, root=tmp_path)
    read = {0: 0, 2: 12, 3: 0, 4: 10, 6: 12, 7: 10} | ({1: 7, 5: 7} if form == "struct" else {})
    for i, seed in read.items():
        assert source[i].image == encoded(seed)
        assert source[i].texts == ("abcd"[i % 4],)
    if form != "struct":
        with pytest.raises(ValueError, match=f"data.{kind}:1: the image must be bytes of an image file, got none"):
            source[1]
        assert source.image_numbers.tolist()[:1] == [0]
    named = [path for _, path in source.files()]
    assert named.count(str(tmp_path / "b" / "images" / "2.jpg")) == 2 and len(named) == 2 + 6
    copy = pickle.loads(pickle.dumps(source))
    assert copy[6] == source[6]
    with pytest.raises(ValueError, match="got ../b/images/2.jpg, which leads out of it"):
        open_source(f"{tmp_path}/*/data.{kind}", cache=cache)[2]


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_the_same_values_of_several_types(tmp_path, cache, kind):
    """Shards of other writers: strings, large ones, dictionaries of them, and columns without any value."""
    texts, labels = [f"caption {i}" for i in range(2)], ["dog", "cat"]
    raw, of_text = [encoded(0), encoded(1)], pa.dictionary(pa.int8(), pa.string())
    shards = [
        (pa.array(raw), pa.nulls(2), pa.array(labels)),
        (pa.array(raw, pa.large_binary()), pa.array(texts, pa.large_string()), pa.array(labels).dictionary_encode()),
        (pa.array(raw, pa.binary_view()), pa.array(texts).dictionary_encode(), pa.nulls(2)),
        (pa.array(raw, pa.binary()), pa.array(texts, pa.string_view()), pa.array(labels, of_text)),
    ]
    for i, (images, captions, names) in enumerate(shards):
        content = pa.table({"image": images, "alt_text": pa.nulls(2), "caption": captions, "label": names})
        path = tmp_path / "set" / f"{i}.{kind}"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(content, path) if kind == "parquet" else write_stream(path, content)
    source = open_source(tmp_path / "set", cache=cache)
    assert source.classes == ("cat", "dog")
    for i in range(8):
        example = source[i]
        assert example.image == raw[i % 2]
        assert example.texts == (() if i < 2 else (texts[i % 2],))
        assert example.label == (None if i in (4, 5) else 1 - i % 2)
    with pytest.raises(ValueError, match="the column 'alt_text' must hold texts, got null"):
        open_source(tmp_path / "set", cache=cache, text_key="alt_text")


def test_an_offset_that_leads_elsewhere(tmp_path):
    """It ended the process, or returned the bytes of another row."""
    raw = [encoded(i) for i in range(4)]
    content = pa.table({"image": pa.array(raw), "caption": list("abcd")})
    path = write_stream(tmp_path / "a.arrow", content, rows=2)
    data = path.read_bytes()
    sizes = b"".join(n.to_bytes(4, "little") for n in (0, len(raw[0]), len(raw[0]) + len(raw[1])))
    at = data.index(sizes) + 4
    path.write_bytes(data[:at] + (len(raw[0]) + len(raw[1]) + 9).to_bytes(4, "little") + data[at + 4 :])
    source = open_source(path)
    for i in (0, 1):
        with pytest.raises(ValueError, match="a.arrow: the file must be a valid Arrow file, got a broken one "):
            source[i]
    assert source[2][:2] == (raw[2], ("c",))
    assert source[3].image == raw[3]
    with pytest.raises(ValueError, match="a.arrow: the file must be a valid Arrow file"):
        list(source.contents())


def test_a_broken_batch_of_paths_is_an_error_of_its_rows(tmp_path):
    (tmp_path / "0.jpg").write_bytes(encoded())
    names = pa.array(["0.jpg", "1.jpg", "2.jpg", "0.jpg"])
    path = write_stream(tmp_path / "a.arrow", pa.table({"image": names, "caption": list("abcd")}), rows=2)
    data = path.read_bytes()
    at = data.index(b"".join(n.to_bytes(4, "little") for n in (0, 5, 10))) + 4
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    source = open_source(path)
    assert [os.path.basename(name) for _, name in source.files()] == ["a.arrow", "2.jpg", "0.jpg"]
    assert source[3].image == encoded()
    with pytest.raises(ValueError, match="a.arrow: the file must be a valid Arrow file"):
        source[0]
