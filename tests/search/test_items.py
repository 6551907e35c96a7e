"""Items: what of each kind of source is embedded, under which names, and that a change of it shows."""

import json
import os
import shutil
import sys

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax.search.items import IMAGES, TEXTS, Items, open_items
from tests.support.data_sets import encoded, write_tar


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "arrow"])
def test_columns_of_tables_come_with_the_items(kind, tmp_path):
    PIL.Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    file, image = tmp_path / f"data.{kind}", (tmp_path / "a.png").read_bytes()
    if kind == "jsonl":
        file.write_text('{"image": "a.png", "url": "x", "year": 1}\n{"image": "a.png", "url": "y"}\n')
    elif kind == "csv":
        file.write_text("image,url,year\na.png,x,1\na.png,y,\n")
    else:
        table = pa.table({"image": [image, image], "url": ["x", "y"], "year": [1, None]})
        if kind == "parquet":
            pq.write_table(table, file)
        else:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table)
    items = open_items(file, columns=["url", "year"])
    year = ["1", ""] if kind == "csv" else [1, None]
    assert [items.metadata(i) for i in range(2)] == [{"url": "x", "year": year[0]}, {"url": "y", "year": year[1]}]
    with pytest.raises(ValueError, match=r"the columns must be some of .*url.*, got 'licence'"):
        open_items(file, columns=["licence"])
    with pytest.raises(ValueError, match="columns must be those of a table, Parquet or Arrow, got other data"):
        shutil.move(file, tmp_path.parent / file.name)
        open_items(tmp_path, columns=["url"])


def everything(items):
    assert isinstance(items, Items)
    assert items.kind == IMAGES
    return [(items.name(i), items.read(i)) for i in range(len(items))]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """Images in a folder and in folders in it, and other files."""
    home = tmp_path / "photos"
    for i, name in enumerate(("b.jpg", "a.JPG", "deep/er/c.jpg", "deep/d.jpg")):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(encoded(i))
    (home / "notes.md").write_text("no image")
    (home / ".hidden.jpg").write_text("no image")
    return home


def test_a_folder_of_images(folder):
    names = ["a.JPG", "b.jpg", "deep/d.jpg", "deep/er/c.jpg"]
    assert everything(open_items(folder)) == list(zip(names, map(encoded, (1, 0, 3, 2)), strict=True))


def test_folders_named_like_parts_are_taken_whole_unless_one_is_asked_for(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "x" / part / "cats").mkdir(parents=True)
        (tmp_path / "x" / part / "cats" / "1.jpg").write_bytes(encoded())
    assert [name for name, _ in everything(open_items(tmp_path / "x"))] == ["test/cats/1.jpg", "train/cats/1.jpg"]
    assert [name for name, _ in everything(open_items(tmp_path / "x", split="test"))] == ["cats/1.jpg"]


def test_tar_shards_without_captions(tmp_path):
    write_tar(tmp_path / "s" / "a.tar", {"0017.jpg": encoded(0), "0018.jpg": encoded(1), "0018.json": b"{broken"})
    write_tar(tmp_path / "s" / "b.tar", {"0017.jpg": encoded(2), "0017.txt": b"a caption"})
    names = ["a.tar:0017.jpg", "a.tar:0018.jpg", "b.tar:0017.jpg"]
    assert everything(open_items(tmp_path / "s")) == list(zip(names, map(encoded, range(3)), strict=True))


def test_parquet_without_captions(tmp_path):
    for part in range(2):
        table = pa.table({"jpeg": [encoded(2 * part), encoded(2 * part + 1)], "id": [1, 2]})
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "rows" / f"{part}.parquet")
    expected = [(f"rows:{i}", encoded(i)) for i in range(4)]
    items = open_items(tmp_path / "rows")
    assert everything(items) == expected
    before = items.fingerprint
    for copy in (tmp_path / "cache").rglob("*.arrow"):
        copy.unlink()  # made again at another time, it is the same data
    assert open_items(tmp_path / "rows", image_key="jpeg").fingerprint == before


def test_arrow_without_captions(tmp_path):
    table = pa.table({"image": [encoded(0), encoded(1)]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    assert everything(open_items(tmp_path / "a.arrow")) == [("a.arrow:0", encoded(0)), ("a.arrow:1", encoded(1))]


@pytest.mark.parametrize("name", ["list.jsonl", "list.csv"])
def test_a_table_without_captions(folder, name):
    rows = ["b.jpg", "missing.jpg", "deep/d.jpg"]
    text = "image\n" + "\n".join(rows) if name.endswith("csv") else "\n".join(json.dumps({"image": r}) for r in rows)
    (folder / name).write_text(text + "\n")
    items = open_items(folder / name)
    lines = (2, 3, 4) if name.endswith("csv") else (1, 2, 3)
    assert [items.name(i) for i in range(3)] == [f"{name}:{line}" for line in lines]
    assert items.read(2) == encoded(3)
    with pytest.raises(FileNotFoundError, match=r"missing\.jpg"):
        items.read(1)
    before = items.fingerprint
    (folder / "missing.jpg").write_bytes(encoded(9))
    assert open_items(folder / name).fingerprint != before


def test_lines_of_a_text_file(tmp_path):
    file = tmp_path / "q.txt"
    file.write_bytes("\ufeffeins\n\n  zwei \r\n".encode() + b"\xff\xfe\n" + "drei ☕".encode())
    items = open_items(file)
    assert isinstance(items, Items)
    assert (items.kind, len(items)) == (TEXTS, 4)
    assert [items.name(i) for i in range(4)] == ["q.txt:1", "q.txt:3", "q.txt:4", "q.txt:5"]
    assert [items.read(i) for i in (0, 1, 3)] == ["eins", "zwei", "drei ☕"]
    with pytest.raises(ValueError, match="q.txt:4: the text must be UTF-8, got other bytes"):
        items.read(2)


def test_every_change_of_the_data_shows(folder, tmp_path):
    def of_folder():
        return open_items(folder).fingerprint

    seen = [of_folder()]
    assert of_folder() == seen[0]
    os.utime(folder / "b.jpg", (1, 1))
    seen.append(of_folder())
    (folder / "b.jpg").rename(folder / "bb.jpg")
    seen.append(of_folder())
    (folder / "new.jpg").write_bytes(encoded(5))
    seen.append(of_folder())
    (folder / "new.jpg").unlink()
    assert of_folder() == seen[2]
    text = tmp_path / "q.txt"
    for lines in ("a\nb\n", "a\nc\n", "a\n\nc\n"):
        text.write_text(lines)
        seen.append(open_items(text).fingerprint)
    assert len(set(seen)) == len(seen)


def test_mistakes_are_said_clearly(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        open_items(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="a data set must be tar shards .*, got "):
        open_items(tmp_path / "empty")
    (tmp_path / "q.txt").write_text("\n \n")
    with pytest.raises(ValueError, match="the file must have a line of text, got none"):
        open_items(tmp_path / "q.txt")
    with pytest.raises(ValueError, match="leave image_key and split out"):
        open_items(tmp_path / "q.txt", image_key="image")
    with pytest.raises(ValueError, match="image_key must be None for folders of images, got 'image'; leave it out"):
        (tmp_path / "empty" / "a.jpg").write_bytes(encoded())
        open_items(tmp_path / "empty", image_key="image")
    for name in [name for name in sys.modules if name.startswith("siglip_jax.data.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"pip install .*pyarrow.* \(the extra 'data'\)$"):
        open_items(tmp_path / "empty")
