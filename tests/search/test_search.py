"""Search: exact against float64, the index against exact, and what it says of a collection."""

import hashlib
import json
import os
import shutil

import jax
import numpy as np
import PIL.Image
import pytest

import siglip_jax
from siglip_jax.plots.contact_sheet import COLUMNS, GAP, LINE, SIDE, contact_sheet
from siglip_jax.search import approximate, nearest
from siglip_jax.search.approximate import open_index
from siglip_jax.search.collection import open_collection
from siglip_jax.search.items import IMAGES, TEXTS, open_items
from siglip_jax.search.making import embed_collection
from siglip_jax.search.nearest import merged
from siglip_jax.search.search import load_for, open_source_of, search
from siglip_jax.search.verify import verify_collection
from tests.support.tiny_checkpoint import picture

COUNT = 60


@pytest.fixture(scope="module")
def siglip():
    return siglip_jax.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "images"
    home.mkdir()
    for i in range(COUNT):
        PIL.Image.fromarray(picture(i)).save(home / f"{i:02}.png")
    shutil.copy(home / "07.png", home / "40.png")  # equally near to anything
    (home / "03.png").write_bytes(b"no image")
    return home


@pytest.fixture(scope="module")
def made(siglip, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("made")
    embed_collection(siglip, open_items(folder), out, part_size=16, batch_size=8)
    return open_collection(out)


def units(seed, *shape):
    x = np.random.default_rng(seed).normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("rows", [5, 8192, 20_000])
def test_exact_search_is_that_of_float64(rows):
    vectors, queries, k = units(0, rows, 50), units(1, 3, 50), 7
    parts = np.split(vectors, sorted(np.random.default_rng(2).integers(0, rows, 5)))  # of any lengths, also none
    scores, found = nearest(queries, iter(parts), k)
    truth = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.argsort(-truth, axis=1, kind="stable")[:, :k]
    assert found.shape == (3, min(rows, k))
    np.testing.assert_allclose(scores, np.take_along_axis(truth, order, 1), atol=3e-7)
    assert np.diff(np.sort(truth, axis=1)[:, -k - 1 :], axis=1).min() > 1e-6  # so that the order is beyond doubt
    np.testing.assert_array_equal(found, order)


def test_equal_ones_come_in_the_order_of_the_rows():
    few, queries = units(0, 40, 50), units(1, 2, 50)
    vectors = np.tile(few, (600, 1))  # each 600 times, over three blocks
    _, found = nearest(queries, [vectors[:9000], vectors[9000:]], 1000)
    best = np.argsort(-(queries.astype(np.float64) @ few.T.astype(np.float64)), axis=1)[:, :2]
    expected = (best[:, :, None] + 40 * np.arange(600)).reshape(2, -1)[:, :1000]
    np.testing.assert_array_equal(found, expected)


def test_one_program_serves_any_number_of_embeddings():
    before = merged._cache_size()
    for rows in (1, 9000, 30_000):
        nearest(units(1, 1, 24), [units(0, rows, 24)], 3)
    assert merged._cache_size() == before + 1


@pytest.mark.slow
def test_a_text_finds_pictures_with_probabilities(siglip, folder, made):
    matches = search(siglip, made, "a red square", top_k=5)
    paths = [path for path in sorted(folder.iterdir()) if path.name != "03.png"]
    cosines = (siglip.encode_image(paths).astype(np.float64) @ siglip.encode_text("a red square").T)[:, 0]
    order = np.argsort(-cosines, kind="stable")[:5]
    assert [match.id for match in matches] == [paths[i].name for i in order]
    assert [match.position for match in matches] == [int(paths[i].stem) for i in order]
    np.testing.assert_allclose([match.score for match in matches], cosines[order], atol=3e-6)
    chances = siglip.similarity([paths[i] for i in order], ["a red square"])[:, 0]
    np.testing.assert_allclose([match.probability for match in matches], chances, rtol=1e-3)
    assert [match.rank for match in matches] == [1, 2, 3, 4, 5]


def test_an_image_finds_itself_and_its_copy(siglip, folder, made):
    matches = search(siglip, made, folder / "40.png", kind=IMAGES, top_k=100)
    assert len(matches) == COUNT - 1
    assert [match.id for match in matches[:2]] == ["07.png", "40.png"]
    assert matches[0].score == pytest.approx(1, abs=1e-6)
    assert {match.probability for match in matches} == {None}


def test_only_the_model_that_made_it_is_taken(made, checkpoint):
    assert load_for(made).config.vision_config.hidden_size == made.manifest.layout["width"]
    with pytest.raises(
        ValueError,
        match=r"the one that made the collection, the bundled model with config \w{16}, got .* config \w{16};",
    ):
        load_for(made, str(checkpoint))


def test_a_processor_that_was_changed_since_is_refused(checkpoint, tmp_path):
    model, out = shutil.copytree(checkpoint, tmp_path / "model"), tmp_path / "out"
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    siglip = siglip_jax.load(model)
    embed_collection(siglip, open_items(tmp_path / "texts.txt"), out, model_name=str(model))
    load_for(open_collection(out))
    config = model / "preprocessor_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_mean": [0.1, 0.5, 0.5]}))
    load_for(open_collection(out), kinds=[TEXTS])
    with pytest.raises(ValueError, match=r"image image_mean of the processor must be \[0.5, 0.5, 0.5\], as when"):
        load_for(open_collection(out), kinds=[IMAGES])
    facts = json.loads((out / "manifest.json").read_text())
    facts["preprocessing"]["text"]["vocabulary"] = "0" * 64
    (out / "manifest.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"text vocabulary of the processor must be 0{16}, as when .*, got \w{16};"):
        load_for(open_collection(out), kinds=[TEXTS])
    with pytest.raises(ValueError, match="images or texts were prepared in another way"):
        embed_collection(siglip, open_items(tmp_path / "texts.txt"), out)


def test_a_table_of_other_contents_is_other_data(folder, tmp_path):
    shutil.copy(folder / "00.png", tmp_path / "a.png")
    shutil.copy(folder / "01.png", tmp_path / "b.png")
    table, prints = tmp_path / "table.jsonl", []
    for name in ("a", "b"):
        table.write_text(json.dumps({"image": f"{name}.png"}) + "\n" + json.dumps({"image": "b.png", "x": name}) + "\n")
        os.utime(table, (1, 1))
        prints.append(open_items(table).fingerprint)
    table.write_text(table.read_text().replace('"x": "b"', '"x": "a"'))
    os.utime(table, (1, 1))
    assert open_items(table).fingerprint not in prints


@pytest.mark.slow
def test_only_the_tower_of_the_query_is_read_and_compared(siglip, folder, tmp_path):
    params = dict(siglip.params)
    siglip.with_params(params).save_pretrained(tmp_path / "model")
    original = siglip_jax.load(tmp_path / "model")
    embed_collection(original, open_items(folder), tmp_path / "out", model_name=str(tmp_path / "model"))
    params["vision_model"] = jax.tree.map(lambda x: 2 * x, params["vision_model"])
    siglip.with_params(params).save_pretrained(tmp_path / "model")
    made = open_collection(tmp_path / "out")
    found = search(load_for(made, kinds=[TEXTS]), made, "a red square")
    assert found == search(siglip, made, "a red square")
    for kinds in ({"kinds": [IMAGES]}, {}):
        with pytest.raises(
            ValueError, match=r"made the collection, .* with vision_model \w{16}, got .* with vision_model \w{16};"
        ):
            load_for(made, **kinds)


def test_the_index_finds_what_exact_search_finds(siglip, made):
    seen = []
    index = open_index(made, on_progress=lambda *counts: seen.append(counts))
    assert seen[0] == (0, len(made)) and seen[-1] == (len(made), len(made))
    assert index.recall >= 0.95
    exact = search(siglip, made, "a red square", top_k=5)
    found = search(siglip, made, "a red square", top_k=5, approximate=index)
    assert [match.id for match in found] == [match.id for match in exact]
    np.testing.assert_allclose([match.score for match in found], [match.score for match in exact], atol=1e-6)
    again = open_index(made, on_progress=lambda *counts: pytest.fail("it is there and need not be built"))
    assert again.recall == index.recall
    facts = json.loads((made.directory / "index.json").read_text())
    assert facts["collection"] == made.checksum
    (made.directory / "index.json").write_text(json.dumps(facts | {"collection": "another"}))
    seen.clear()
    open_index(made, on_progress=lambda *counts: seen.append(counts))
    assert seen[-1] == (len(made), len(made))


def test_the_recall_is_measured(made):
    """An index that finds half of the rows has half of the recall."""

    class Half:
        def search(self, query, k):
            rows = np.arange(0, len(made), 2)
            best = rows[np.argsort(-(made.rows(rows) @ query))][:k]
            return type("Matches", (), {"keys": best.astype(np.uint64)})

    assert 0.3 < approximate._recall(Half(), made) < 0.7


def test_a_damaged_index_is_refused(made, tmp_path):
    out = shutil.copytree(made.directory, tmp_path / "out")
    own = open_collection(out)
    open_index(own)
    whole = (out / "index.usearch").read_bytes()
    (out / "index.usearch").write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"must have {len(whole)} bytes, got {len(whole) - 1}"):
        open_index(own)
    (out / "index.usearch").write_bytes(b"x" * len(whole))
    with pytest.raises(
        ValueError, match=r"the SHA-256 must be \w{16}, got \w{16}: the file was changed; remove index.js"
    ):
        open_index(own)
    facts = json.loads((out / "index.json").read_text()) | {"sha256": hashlib.sha256(b"x" * len(whole)).hexdigest()}
    (out / "index.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="must be an index of usearch, got another"):
        open_index(own)


def test_no_flipped_byte_of_an_index_reaches_usearch(made, tmp_path, monkeypatch):
    """It crashes on some of them."""
    out = shutil.copytree(made.directory, tmp_path / "out")
    own = open_collection(out)
    open_index(own)
    whole = (out / "index.usearch").read_bytes()
    monkeypatch.setattr(approximate, "_restored", lambda path: pytest.fail("the native reader got a changed file"))
    for place in range(0, len(whole), len(whole) // 40):
        (out / "index.usearch").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="the file was changed"):
            open_index(own)
    assert any("index.usearch: the SHA-256 must be" in fault for fault in verify_collection(out))


def test_an_index_without_a_checksum_is_built_anew(made, tmp_path):
    out = shutil.copytree(made.directory, tmp_path / "out")
    open_index(open_collection(out))
    facts = json.loads((out / "index.json").read_text())
    (out / "index.json").write_text(json.dumps({name: facts[name] for name in facts if name != "sha256"}))
    (out / "index.usearch").write_bytes(b"x" * facts["bytes"])
    assert len(open_index(open_collection(out)).search(made.embeddings(0)[0], 3)[1]) == 3
    assert len(json.loads((out / "index.json").read_text())["sha256"]) == 64


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_and_queries_that_are_not_finite_are_refused(value):
    vectors, queries = units(0, 3000, 24), units(1, 2, 24)
    for array, place in ((vectors, (2999, 5)), (vectors, (0, 0)), (queries, (1, 3))):
        before, array[place] = array[place].copy(), value
        with pytest.raises(ValueError, match="queries and embeddings must be finite, got NaN or infinity"):
            nearest(queries, [vectors], 3)
        array[place] = before
    assert nearest(queries, [vectors], 3)[0].shape == (2, 3)


def test_an_empty_collection_and_lost_images(siglip, made, folder, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    embed_collection(siglip, open_items(tmp_path / "x"), tmp_path / "out")
    with pytest.raises(ValueError, match="must have an embedding to search, got none"):
        search(siglip, open_collection(tmp_path / "out"), "a cat")
    assert open_source_of(made).path == str(folder)
    shutil.rmtree(tmp_path / "x")
    with pytest.raises(ValueError, match="cannot be opened: .*x: no such file or folder; put them back"):
        open_source_of(open_collection(tmp_path / "out"))


def test_a_contact_sheet_keeps_its_margin_whatever_its_captions():
    words = [
        "x" * 200,
        "Äjgpqy " * 20,
        "日本語の画像" * 9,
        "שלום עולם " * 9,
        "a\u0301\u0328\u0489" * 40,
        "\t\r\u2028 " * 30,
        "",
    ]
    black = PIL.Image.new("RGB", (300, 200), "black")
    for count in (1, 2, 7):
        captions = [words[-2:]] + [words[:2]] * (count - 1)
        sheet = np.array(contact_sheet([black] * count, captions, words[1]).convert("L"))
        inner = sheet[GAP:-GAP, GAP:-GAP].copy()
        assert inner.min() < 50
        sheet[GAP:-GAP, GAP:-GAP] = 255
        assert sheet.min() == 255


def test_a_long_title_loses_its_end_and_a_long_caption_its_beginning():
    image, query = PIL.Image.new("RGB", (30, 30), "white"), "two dogs on a beach"
    whole = np.asarray(contact_sheet([image], [["x.png"]], query))
    cut = np.asarray(contact_sheet([image], [["photos/" * 30 + "x.png"]], query + " with a red ball in the evening"))
    np.testing.assert_array_equal(cut[: GAP + LINE, :100], whole[: GAP + LINE, :100])


def test_a_contact_sheet():
    colours = ["red", "lime", "blue", "black", "gray", "yellow", "cyan"]
    images = [PIL.Image.new("RGB", (30, 30), colour) for colour in colours]
    sheet = contact_sheet(images, [("1: 0.9", "x" * 200)] * 7, "a title")
    assert sheet.size == (COLUMNS * (SIDE + GAP) + GAP, 2 * (SIDE + 2 * LINE + GAP) + LINE + 2 * GAP)
    for i, colour in enumerate(colours):
        x, y = GAP + i % COLUMNS * (SIDE + GAP), LINE + 2 * GAP + i // COLUMNS * (SIDE + 2 * LINE + GAP)
        assert sheet.getpixel((x + SIDE // 2, y + SIDE // 2)) == PIL.ImageColor.getrgb(colour)
        caption = np.asarray(sheet.crop((x, y + SIDE, x + SIDE, y + SIDE + 2 * LINE)))
        assert caption.min() < 128
        beside = np.asarray(sheet.crop((x + SIDE, y + SIDE, x + SIDE + GAP, y + SIDE + 2 * LINE)))
        assert beside.min() == 255  # a long name was cut
