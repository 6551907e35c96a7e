"""Collections: the embeddings are those of the engine, and no way of making one changes a byte of its files."""

import hashlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

import siglip_jax
from siglip_jax import _files
from siglip_jax.search import checked, making, parts
from siglip_jax.search.collection import open_collection
from siglip_jax.search.items import open_items
from siglip_jax.search.making import embed_collection
from siglip_jax.search.manifest import read_manifest
from siglip_jax.search.search import load_for, search
from siglip_jax.search.verify import verify_collection
from tests.support.quick import environment as quick_environment
from tests.support.tiny_checkpoint import picture

PART, COUNT, BAD = 16, 50, 20  # the last part is shorter; the image of this number is broken


@pytest.fixture(scope="module")
def siglip():
    return siglip_jax.load()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "images"
    for i in range(COUNT):
        path = home / f"{i % 2}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(picture(i)).save(path)
    sorted(home.rglob("*.png"))[BAD].write_bytes(b"no image")
    return home


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("data") / "texts.txt"
    file.write_text("".join(f"a photo of {i} cats\n" for i in range(COUNT)))
    return file


@pytest.fixture(scope="module")
def whole(siglip, folder, tmp_path_factory):
    """A collection made in one run."""
    out = tmp_path_factory.mktemp("whole")
    outcome = embed_collection(siglip, open_items(folder), out, part_size=PART, batch_size=8)
    assert outcome == (COUNT - 1, 1, 0)
    return out


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_embeddings_are_those_of_the_engine(siglip, folder, whole):
    opened = open_collection(whole)
    paths = [path for i, path in enumerate(sorted(folder.rglob("*.png"))) if i != BAD]
    found = np.concatenate([opened.embeddings(part) for part in range(opened.manifest.parts)])
    assert isinstance(opened.embeddings(0), np.memmap)
    np.testing.assert_allclose(found, siglip.encode_image(paths), atol=2e-6)
    names = [name for part in range(opened.manifest.parts) for name in opened.ids(part)]
    assert names == [str(path.relative_to(folder)) for path in paths]
    assert [opened.position(row) for row in range(len(opened))] == [i for i in range(COUNT) if i != BAD]
    rows = np.array([48, 0, 16, 16])
    np.testing.assert_array_equal(opened.rows(rows), found[rows])
    (entry,) = map(json.loads, (whole / "errors.jsonl").read_text().splitlines())
    assert (entry["position"], entry["id"]) == (BAD, str(sorted(folder.rglob("*.png"))[BAD].relative_to(folder)))
    assert "data must be an image" in entry["error"]
    assert verify_collection(whole) == []


def test_the_manifest_names_the_model_the_preparation_and_the_data(siglip, folder, whole):
    manifest = read_manifest(whole)
    assert manifest.model["name"] is None
    assert manifest.model["dtype"] == "float32"
    assert set(manifest.model["weights"]) == {"logit_bias", "logit_scale", "text_model", "vision_model"}
    assert {len(digest) for digest in (manifest.model["config"], *manifest.model["weights"].values())} == {64}
    assert manifest.preprocessing["image"]["resample"] == "bicubic"
    assert manifest.preprocessing["text"]["length"] == 16
    assert manifest.items["count"] == COUNT
    assert manifest.source == str(folder)
    width = siglip.config.vision_config.hidden_size
    assert manifest.layout == {"format": "npy", "part_size": PART, "batch_size": 8, "width": width}
    assert manifest.version == siglip_jax.__version__
    assert manifest.done is not None
    assert (manifest.done["rows"], manifest.done["unreadable"]) == (COUNT - 1, 1)


def test_shards_in_any_order_equal_the_whole(siglip, folder, whole, tmp_path):
    left = []
    for index in (2, 0, 1):
        outcome = embed_collection(
            siglip, open_items(folder), tmp_path / "out", part_size=PART, batch_size=8, shard=(index, 3)
        )
        left.append(outcome.parts_left)
    assert left == [3, 1, 0]
    assert contents(tmp_path / "out") == contents(whole)


def test_two_runs_of_the_same_parts_are_refused_and_of_other_parts_are_not(siglip, folder, tmp_path):
    refused = []

    def others(done, total):
        if done == 8:
            for shard in ((0, 1), (2, 4), (0, 2), (1, 2), (3, 4)):
                try:
                    embed_collection(siglip, open_items(folder), tmp_path, part_size=8, batch_size=8, shard=shard)
                except BlockingIOError as error:
                    refused.append((shard, str(error)))

    outcome = embed_collection(
        siglip, open_items(folder), tmp_path, part_size=8, batch_size=8, shard=(0, 2), on_progress=others
    )
    assert [shard for shard, _ in refused] == [(0, 1), (2, 4), (0, 2)]
    for (index, count), said in refused:
        what = "a collection" if count == 1 else f"share {index}/{count} of a collection"
        assert said.startswith(
            f"{tmp_path}: {what} must be written by one process at a time, got process {os.getpid()} on"
        )
    assert outcome.parts_left == 0 and verify_collection(tmp_path) == []
    assert not [name for name in contents(tmp_path) if name.startswith(".")]


def test_a_finishing_run_leaves_what_a_live_one_writes(siglip, folder, tmp_path):
    with _files.written_aside(tmp_path / "part-000009.npy") as live:
        (tmp_path / ".part-000001.npy.1234.tmp").touch()
        (tmp_path / ".embed-1-of-2.lock").touch()
        embed_collection(siglip, open_items(folder), tmp_path, batch_size=8)
        assert [path.name for path in tmp_path.glob(".*")] == [live.name]


def test_by_default_the_shard_is_the_process_of_jax(siglip, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(making.jax, "process_index", lambda: 3)
    monkeypatch.setattr(making.jax, "process_count", lambda: 4)
    embed_collection(siglip, open_items(folder), tmp_path, part_size=PART, batch_size=8)
    assert {path.name for path in tmp_path.glob("part-??????.json")} == {"part-000003.json"}


@pytest.mark.slow
def test_a_run_that_stops_anywhere_goes_on_to_the_same_bytes(siglip, folder, whole, tmp_path, monkeypatch):
    """The first run stops at its first file, the second at its second, and so on: arrays, names and records."""
    stops = written = 0

    def stopping(function):
        def write(path, data):
            nonlocal written
            written += 1
            if written > stops:
                (path.parent / f".{path.name}.abc.tmp").write_bytes(b"half")
                raise KeyboardInterrupt
            return function(path, data)

        return write

    monkeypatch.setattr(parts, "write_atomically", stopping(parts.write_atomically))
    monkeypatch.setattr(parts, "_write_array", stopping(parts._write_array))
    out = tmp_path / "out"
    for _ in range(20):
        written = 0
        try:
            embed_collection(siglip, open_items(folder), out, part_size=PART, batch_size=8)
            break
        except KeyboardInterrupt:
            stops += 1
            assert verify_collection(out)[-1].endswith("run the same siglip-jax embed again")
            with pytest.raises(ValueError, match="the collection must be complete, got an unfinished one"):
                open_collection(out)
    assert stops >= 5
    assert contents(out) == contents(whole)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, ValueError])
def test_a_run_that_stops_within_a_part_keeps_what_it_has_done(siglip, folder, whole, stop, tmp_path):
    def stopping(done, total):
        if done == 2 * PART + 8:
            raise stop

    out, progress = tmp_path / "out", []
    with pytest.raises(stop):
        embed_collection(siglip, open_items(folder), out, part_size=PART, batch_size=8, on_progress=stopping)
    assert [path.name for path in out.glob("*.unfinished")] == ["part-000002.unfinished"]
    embed_collection(siglip, open_items(folder), out, on_progress=lambda *seen: progress.append(seen))
    assert progress[0] == (0, COUNT - 2 * PART - 8)
    assert contents(out) == contents(whole)


def test_a_killed_run_loses_no_more_than_it_did_since_it_last_kept_its_work(
    siglip, folder, whole, tmp_path, monkeypatch
):
    monkeypatch.setattr(making, "KEPT_EVERY", -1.0)

    def copied(done, total):
        if done == 16:
            shutil.copytree(tmp_path / "out", tmp_path / "killed")

    embed_collection(siglip, open_items(folder), tmp_path / "out", part_size=48, batch_size=8, on_progress=copied)
    for name, change, left in (
        ("changed", lambda data: data[:-3] + b"xyz", COUNT),
        ("cut", lambda data: data[:-100], COUNT),
        ("whole", lambda data: data, COUNT - 8),
    ):
        out = shutil.copytree(tmp_path / "killed", tmp_path / name)
        kept = out / "part-000000.unfinished"
        kept.write_bytes(change(kept.read_bytes()))
        outcome = embed_collection(siglip, open_items(folder), out)
        assert outcome.embedded + outcome.unreadable == left
        assert contents(out) == contents(tmp_path / "out")


def test_what_is_there_is_not_done_again_and_what_is_damaged_is(siglip, folder, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    progress = []
    again = embed_collection(siglip, open_items(folder), out, on_progress=lambda *seen: progress.append(seen))
    assert (again, progress) == ((0, 0, 0), [(0, 0)])
    damage = {
        "part-000000.npy": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
        "part-000001.ids.json": lambda data: data[:-10],
        "part-000002.json": lambda data: b"{" + data,
        "part-000003.npy": None,
    }
    for name, change in damage.items():
        if change is None:
            (out / name).unlink()
        else:
            (out / name).write_bytes(change((out / name).read_bytes()))
        (fault,) = verify_collection(out)
        assert name in fault
        progress.clear()
        embed_collection(siglip, open_items(folder), out, on_progress=lambda *seen: progress.append(seen))
        assert progress[0][1] == progress[-1][0] == (2 if "3" in name else PART)
        assert contents(out) == contents(whole)


def test_a_record_that_was_changed_is_found_by_the_manifest(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    record = out / "part-000001.json"
    record.write_text(record.read_text().replace("must be an image", "must be a number"))
    (fault,) = verify_collection(out)
    assert "checksum" in fault
    with pytest.raises(ValueError, match="the parts must be those that manifest.json records, got others"):
        open_collection(out)


def test_parquet(siglip, folder, whole, tmp_path):
    embed_collection(siglip, open_items(folder), tmp_path, part_size=PART, batch_size=8, format="parquet")
    found, expected = open_collection(tmp_path), open_collection(whole)
    for part in range(expected.manifest.parts):
        np.testing.assert_array_equal(found.embeddings(part), expected.embeddings(part))
        assert found.ids(part) == expected.ids(part)
    table = pq.read_table(tmp_path / "part-000000.parquet")
    assert table.column_names == ["id", "embedding"]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    assert verify_collection(tmp_path) == []


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_embeddings_are_stored_in_half_the_space(siglip, texts, format, tmp_path):
    embed_collection(siglip, open_items(texts), tmp_path / "full", format=format, part_size=PART)
    embed_collection(siglip, open_items(texts), tmp_path / "half", format=format, part_size=PART, storage="float16")
    full, half = open_collection(tmp_path / "full"), open_collection(tmp_path / "half")
    assert half.embeddings(0).dtype == np.float32
    for part in range(full.manifest.parts):
        np.testing.assert_array_equal(half.embeddings(part), full.embeddings(part).astype(np.float16))
    sizes = [(tmp_path / name / f"part-000000.{format}").stat().st_size for name in ("half", "full")]
    assert sizes[1] - sizes[0] == pytest.approx(PART * half.manifest.layout["width"] * 2, rel=0.01)
    assert verify_collection(tmp_path / "half") == []
    scores = [[match.score for match in search(siglip, made, "a photo of 3 cats")] for made in (full, half)]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    with pytest.raises(ValueError, match="layout.storage must be float16, got None"):
        embed_collection(siglip, open_items(texts), tmp_path / "half", storage="float32")
    with pytest.raises(ValueError, match="storage must be one of 'float32', 'float16', got 'int8'"):
        embed_collection(siglip, open_items(texts), tmp_path / "new", storage="int8")


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_the_metadata_of_the_items_comes_with_the_hits(siglip, format, tmp_path):
    class Labelled:
        kind, path, options, fingerprint, columns = "texts", "/labelled", {}, "1", ("text", "year", "tags")
        texts = ["a cat", "a dog", "a red square"]

        def __len__(self):
            return len(self.texts)

        def name(self, index):
            return f"item {index}"

        def read(self, index):
            return self.texts[index]

        def metadata(self, index):
            return {"text": self.texts[index], "year": 2000 + index, "tags": ["x"] * index or None, "other": 1}

    embed_collection(siglip, Labelled(), tmp_path, format=format, part_size=2)
    assert open_collection(tmp_path).metadata(1) == {"text": ["a red square"], "year": [2002], "tags": [["x", "x"]]}
    found = {match.id: match.metadata for match in search(siglip, open_collection(tmp_path), "a cat")}
    assert found["item 0"] == {"text": "a cat", "year": 2000, "tags": None}
    assert verify_collection(tmp_path) == []
    if format == "npy":
        path = tmp_path / "part-000000.columns.json"
        path.write_bytes(path.read_bytes().replace(b"a dog", b"a pig"))
        with pytest.raises(ValueError, match="part-000000.columns.json: the SHA-256 must be"):
            search(siglip, open_collection(tmp_path), "a cat")


def test_a_hit_of_a_collection_of_texts_has_its_text(siglip, texts, tmp_path):
    embed_collection(siglip, open_items(texts), tmp_path, part_size=PART)
    (match,) = search(siglip, open_collection(tmp_path), "a photo of 3 cats", top_k=1)
    assert (match.id, match.metadata) == ("texts.txt:4", {"text": "a photo of 3 cats"})


def test_ids_that_are_not_utf8_come_back(siglip, tmp_path):
    home = tmp_path / "images"
    home.mkdir()
    try:
        for i, name in enumerate((b"caf\xe9.png", b"caf\xe8.png", b"back\\u00e9.png", b"a\\\xff.png")):
            with open(os.fsencode(home) + b"/" + name, "wb") as file:
                PIL.Image.fromarray(picture(i)).save(file, "PNG")
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    expected = ["a\\\udcff.png", "back\\u00e9.png", "caf\udce8.png", "caf\udce9.png"]
    for format in ("npy", "parquet"):
        embed_collection(siglip, open_items(home), tmp_path / format, batch_size=8, format=format)
        assert open_collection(tmp_path / format).ids(0) == expected
    written = pq.read_table(tmp_path / "parquet" / "part-000000.parquet").column("id").to_pylist()
    assert written == [r"a\\\udcff.png", r"back\u00e9.png", r"caf\udce8.png", r"caf\udce9.png"]
    assert json.loads((tmp_path / "npy" / "part-000000.ids.json").read_bytes()) == expected


@pytest.mark.slow
def test_texts(siglip, texts, tmp_path):
    embed_collection(siglip, open_items(texts), tmp_path, part_size=PART, batch_size=32)
    opened = open_collection(tmp_path)
    found = np.concatenate([opened.embeddings(part) for part in range(opened.manifest.parts)])
    np.testing.assert_allclose(found, siglip.encode_text(texts.read_text().splitlines()), atol=2e-6)
    assert opened.ids(1)[0] == "texts.txt:17"


def test_nothing_that_can_be_read(siglip, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    seen = []
    outcome = embed_collection(
        siglip, open_items(tmp_path / "x"), tmp_path / "out", on_unreadable=lambda *said: seen.append(said)
    )
    assert outcome == (0, 1, 0)
    assert [index for index, _ in seen] == [0]
    assert "a.png" in str(seen[0][1])
    assert len(open_collection(tmp_path / "out")) == 0


@pytest.mark.slow
def test_another_collection_is_not_gone_on_with(siglip, shared_siglip, folder, texts, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    before = contents(out)
    changed = shutil.copytree(folder, tmp_path / "changed")
    cases = [
        (siglip, texts, {}, "items.kind must be images, got texts: the data was changed"),
        (siglip, changed, {}, r"items.fingerprint must be \w{16}, got \w{16}: the data was changed"),
        (shared_siglip, folder, {}, r"model.config must be \w{16}, got \w{16}: another model made it"),
        (siglip, folder, {"format": "parquet"}, "layout.format must be npy, got parquet"),
        (siglip, folder, {"part_size": 17}, "part_size must be 16, got 17"),
        (siglip, folder, {"batch_size": 4}, "batch_size must be 8, got 4"),
    ]
    (changed / "0" / "00.png").write_bytes(b"other")
    for model, source, options, said in cases:
        with pytest.raises(ValueError, match=said):
            embed_collection(model, open_items(source), out, **options)
    params = dict(siglip.params, logit_scale=-siglip.params["logit_scale"])
    with pytest.raises(
        ValueError, match=r"model.weights.logit_scale must be \w{16}, got \w{16}: another model made it"
    ):
        embed_collection(siglip.with_params(params), open_items(folder), out)
    assert contents(out) == before


@pytest.mark.slow
def test_quantized_models_are_told_apart_and_found_again(texts, tmp_path):
    embed_collection(siglip_jax.load(quantization="int8"), open_items(texts), tmp_path)
    assert read_manifest(tmp_path).model["quantization"] == "int8"
    load_for(open_collection(tmp_path))
    with pytest.raises(ValueError, match="another model made it"):
        embed_collection(siglip_jax.load(quantization="fp8"), open_items(texts), tmp_path)


def test_records_of_another_collection_do_not_count(siglip, folder, whole, tmp_path):
    """As if two runs of different data began in one directory at the same moment."""
    out = shutil.copytree(whole, tmp_path / "out")
    record = out / "part-000001.json"
    record.write_text(record.read_text().replace(read_manifest(out).key, "0" * 64))
    (fault,) = verify_collection(out)
    assert "the part must be of this collection, got one of another collection" in fault
    assert embed_collection(siglip, open_items(folder), out).embedded == PART - 1
    assert contents(out) == contents(whole)


def test_mistakes_are_said_clearly(siglip, texts, whole, tmp_path):
    items = open_items(texts)
    for options, said in (
        ({"shard": (2, 2)}, "shard must be i/n with i from 0 to n - 1, got 2/2"),
        ({"part_size": 0}, "part_size must be"),
        ({"batch_size": -1}, "batch_size must be"),
        ({"format": "csv"}, "format must be one of 'npy', 'parquet', got 'csv'"),
    ):
        with pytest.raises(ValueError, match=said):
            embed_collection(siglip, items, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match="siglip-jax embed writes it"):
        open_collection(tmp_path)
    for change, said in (
        (lambda d: d.pop("layout"), "the fields must be done, items, layout, .*, got done, items, model"),
        (lambda d: d["layout"].update(part_size=0), "part_size in layout must be an integer of at least 1, got 0"),
        (lambda d: d["items"].update(count="many"), "count in items must be an integer of at least 1, got 'many'"),
        (lambda d: d["layout"].update(format="../x"), "format in layout must be one of npy, parquet, got '../x'"),
        (lambda d: d.update(model=[]), "model must be an object, got a list"),
    ):
        out = shutil.copytree(whole, tmp_path / "copy")
        facts = json.loads((out / "manifest.json").read_text())
        change(facts)
        (out / "manifest.json").write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=said):
            open_collection(out)
        shutil.rmtree(out)


def test_arrays_are_checked_before_they_are_used(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    np.save(out / "part-000000.npy", np.zeros((3, 5), np.float32))
    (out / "part-000000.ids.json").write_text("[1]")
    resealed(out)
    opened = open_collection(out)
    with pytest.raises(ValueError, match=r"the embeddings must be \(16, \d+\) float32, got \(3, 5\) float32"):
        opened.embeddings(0)
    with pytest.raises(ValueError, match="must hold a list of 16 names"):
        opened.ids(0)
    (out / "part-000000.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((")
    resealed(out)
    with pytest.raises(ValueError, match="part-000000.npy: the file must be an array of numpy, got another"):
        open_collection(out).embeddings(0)


def resealed(out):
    """Makes the checksums of a collection those of its files, as whoever changed them on purpose would."""
    digest = hashlib.sha256()
    for record in sorted(out.glob("part-??????.json")):
        facts = json.loads(record.read_text())
        facts["files"] = {name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in facts["files"]}
        record.write_text(json.dumps(facts))
        digest.update(record.read_bytes())
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["done"]["checksum"] = digest.hexdigest()
    (out / "manifest.json").write_text(json.dumps(manifest))


def test_names_in_another_order_are_refused_and_not_shown_with_the_scores_of_others(siglip, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    path = out / "part-000001.ids.json"
    path.write_text(json.dumps(json.loads(path.read_text())[::-1]) + "\n")
    said = r"part-000001.ids.json: the SHA-256 must be \w{16}, got \w{16}: the file was changed; embed again"
    with pytest.raises(ValueError, match=said):
        search(siglip, open_collection(out), "a red square", top_k=COUNT)
    (fault,) = verify_collection(out)
    assert "part-000001.ids.json" in fault


@pytest.mark.parametrize("format", ["npy", "parquet"])
def test_a_flipped_bit_of_an_embedding_is_refused(siglip, texts, format, tmp_path):
    embed_collection(siglip, open_items(texts), tmp_path, format=format)
    path = tmp_path / f"part-000000.{format}"
    data = path.read_bytes()
    path.write_bytes(data[:2000] + bytes([data[2000] ^ 64]) + data[2001:])
    with pytest.raises(ValueError, match=f"part-000000.{format}: the SHA-256 must be"):
        search(siglip, open_collection(tmp_path), "a cat")


def test_embeddings_that_are_not_finite_are_refused_even_if_the_checksums_agree(siglip, whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    embeds = np.load(out / "part-000002.npy")
    embeds[3] = np.nan
    np.save(out / "part-000002.npy", embeds)
    resealed(out)
    said = "part-000002.npy: the embeddings must be finite, got NaN or infinity; embed again"
    with pytest.raises(ValueError, match=said):
        search(siglip, open_collection(out), "a red square")
    assert verify_collection(out) == [f"{out / said}"]


def test_a_file_is_compared_once_for_each_content_in_this_process_and_the_next(whole, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, hashed = shutil.copytree(whole, tmp_path / "out"), []
    path = out / "part-000000.npy"
    monkeypatch.setattr(checked, "sum_of", lambda path: hashed.append(path) or parts.sum_of(path))
    opened = open_collection(out)
    os.utime(path)
    opened.embeddings(0), opened.embeddings(0)
    assert hashed == [path] * 2  # it is so young that it may change within one tick of the clock
    os.utime(path, ns=(10**18, 10**18))
    hashed.clear()
    opened.embeddings(0), opened.embeddings(0), open_collection(out).embeddings(0)
    assert hashed == [path]
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for collection in (opened, open_collection(out)):
        with pytest.raises(ValueError, match="the file was changed"):
            collection.embeddings(0)


def test_verifying_ends_whatever_number_of_items_a_manifest_says(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "out")
    facts = json.loads((out / "manifest.json").read_text())
    facts["items"]["count"] = 10**9
    facts["layout"]["part_size"] = 1
    (out / "manifest.json").write_text(json.dumps(facts))
    faults = verify_collection(out)
    assert len(faults) == 4 + 10 + 1
    assert faults[-2].startswith(f"{out / 'part-000013.json'}: no such file")
    assert faults[-1] == f"{out}: 1,000,000,000 parts must be there, got 4; run the same siglip-jax embed again"
    with pytest.raises((OSError, ValueError)):
        open_collection(out)


@pytest.mark.slow
def test_two_workers_of_ray_make_the_same_bytes(siglip, folder, tmp_path):
    size = 5  # ten parts, which are handed out four at a time
    embed_collection(siglip, open_items(folder), tmp_path / "alone", part_size=size)
    command = [sys.executable, "-m", "siglip_jax.search.ray", str(folder), str(tmp_path / "ray")]
    environment = os.environ | quick_environment() | {"RAY_USAGE_STATS_ENABLED": "0"}
    ran = subprocess.run(
        [*command, "--part-size", str(size), "--workers", "2"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[-1].startswith("0 parts left")
    assert contents(tmp_path / "ray") == contents(tmp_path / "alone")
