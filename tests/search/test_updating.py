"""Updates: only what is new is embedded, and the collection is then that of its source as it is now."""

import os
import shutil

import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.search import embed, open_collection, updating, verify_collection
from tests.support.tiny_checkpoint import picture

COUNT = 20


@pytest.fixture(scope="module")
def siglip():
    return siglip_jax.load()


@pytest.fixture
def folder(tmp_path):
    home = tmp_path / "images"
    home.mkdir()
    for i in range(COUNT):
        PIL.Image.fromarray(picture(i)).save(home / f"{i:02}.png")
    return home


def rows(directory):
    collection = open_collection(directory)
    parts = range(collection.manifest.parts)
    names = [name for part in parts for name in collection.ids(part)]
    return dict(zip(names, np.concatenate([collection.embeddings(part) for part in parts]), strict=True))


def change(folder):
    """Adds two images, one of them before all others, removes three and changes one."""
    PIL.Image.fromarray(picture(40)).save(folder / "a.png")
    PIL.Image.fromarray(picture(41)).save(folder / "000.png")
    for name in ("03.png", "04.png", "19.png"):
        (folder / name).unlink()
    PIL.Image.fromarray(picture(42)).save(folder / "07.png")
    os.utime(folder / "07.png", (1, 1))


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_an_update_embeds_what_is_new_and_removes_what_is_gone(siglip, folder, format, tmp_path):
    out, options = tmp_path / "out", {"part_size": 6, "batch_size": 4, "format": format}
    embed(folder, out, siglip, **options)
    before = rows(out)
    change(folder)
    with pytest.raises(ValueError, match=r"the data was changed, .*; give another directory, or update this one"):
        embed(folder, out, siglip)
    progress = []
    result = embed(folder, out, siglip, update=True, on_progress=lambda *seen: progress.append(seen))
    assert (result.embedded, result.rows, result.parts_left, progress[0]) == (3, COUNT - 1, 0, (0, 3))
    assert verify_collection(out) == []
    after = rows(out)
    assert list(after) == sorted(path.name for path in folder.iterdir())
    for name in set(after) - {"a.png", "000.png", "07.png"}:
        np.testing.assert_array_equal(after[name], before[name])
    embed(folder, tmp_path / "anew", siglip, **options)
    anew = rows(tmp_path / "anew")
    for name in after:
        np.testing.assert_allclose(after[name], anew[name], atol=2e-6)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "anew").iterdir()}
    again = embed(folder, out, siglip, update=True)
    assert (again.embedded, again.rows) == (0, COUNT - 1)


def test_images_of_a_table_are_embedded_anew_if_one_of_them_was_changed(siglip, folder, tmp_path):
    table, out = folder / "table.csv", tmp_path / "out"
    table.write_text("image\n" + "".join(f"{i:02}.png\n" for i in range(3)))
    embed(table, out, siglip)
    before = rows(out)
    PIL.Image.fromarray(picture(42)).save(folder / "01.png")
    assert embed(table, out, siglip, update=True).embedded == 3
    after = rows(out)
    assert np.abs(after["table.csv:3"] - before["table.csv:3"]).max() > 0.01
    np.testing.assert_array_equal(after["table.csv:2"], before["table.csv:2"])


def test_lines_of_a_text_file_are_known_by_their_text(siglip, tmp_path):
    file, out = tmp_path / "texts.txt", tmp_path / "out"
    file.write_text("".join(f"a photo of {i} cats\n" for i in range(9)))
    embed(file, out, siglip, part_size=4)
    file.write_text("a new line\n" + "".join(f"a photo of {i} cats\n" for i in range(9) if i != 5))
    assert embed(file, out, siglip, update=True).embedded == 1
    collection = open_collection(out)
    assert [collection.ids(0)[0], collection.metadata(0)["text"][0]] == ["texts.txt:1", "a new line"]
    assert (len(collection), collection.metadata(1)["text"][2]) == (9, "a photo of 6 cats")


@pytest.mark.parametrize("stopped_in", ["embedding", "moving"])
def test_an_update_that_is_stopped_resumes(siglip, folder, stopped_in, tmp_path, monkeypatch):
    out = tmp_path / "out"
    embed(folder, out, siglip, part_size=6, batch_size=4)
    before = rows(out)
    change(folder)

    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if stopped_in == "moving":
            moved, replace = [], os.replace

            def stopping(source, target):
                if source.parent.name == ".update" and source.name.startswith("part-"):
                    moved.append(source)
                    if len(moved) == 4:
                        raise KeyboardInterrupt
                replace(source, target)

            patched.setattr(updating.os, "replace", stopping)
        with pytest.raises(KeyboardInterrupt):
            embed(folder, out, siglip, update=True, on_progress=stop if stopped_in == "embedding" else None)
    if stopped_in == "embedding":
        assert rows(out).keys() == before.keys()  # the old collection is whole until it is replaced
    result = embed(folder, out, siglip, update=True)
    assert (result.embedded, result.rows) == (0 if stopped_in == "moving" else 2, COUNT - 1)
    assert list(rows(out)) == sorted(path.name for path in folder.iterdir())
    assert verify_collection(out) == [] and not (out / ".update").exists()


def test_an_update_of_another_model_or_source_is_refused(siglip, shared_siglip, folder, tmp_path):
    out = tmp_path / "out"
    embed(folder, out, siglip)
    change(folder)
    with pytest.raises(ValueError, match="another model made it"):
        embed(folder, out, shared_siglip, update=True)
    (tmp_path / "texts.txt").write_text("a cat\n")
    with pytest.raises(ValueError, match="items.kind must be images, got texts"):
        embed(tmp_path / "texts.txt", out, siglip, update=True)
    with pytest.raises(ValueError, match="shard must be None for an update, got 0/2; leave it out"):
        embed(folder, out, siglip, update=True, shard=(0, 2))
    shutil.rmtree(out)
    assert embed(folder, out, siglip, update=True).rows == COUNT - 1  # nothing to update: it is made
