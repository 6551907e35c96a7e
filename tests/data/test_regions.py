"""Boxes with captions: their texts, what of them is predicted, and the data sets that hold them."""

import json

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax.assets import BUNDLED_MODEL, EXAMPLES
from siglip_jax.data import Example, open_source
from siglip_jax.data.fingerprint import fingerprint
from siglip_jax.data.regions import region_arrays, regions_of
from siglip_jax.data.transform import Transform
from siglip_jax.processing import SiglipProcessor
from tests.support.data_sets import write_tar

BOXES = [[0.0, 0.25, 0.5, 1.0], [0.1, 0.1, 0.1, 0.9]]
CAPTIONS = ["a horse", "a lemon"]


@pytest.fixture(scope="module")
def processor():
    return SiglipProcessor.from_pretrained(BUNDLED_MODEL)


@pytest.fixture(scope="module")
def image():
    return (EXAMPLES / "horse.png").read_bytes()


def test_texts_of_both_tasks(processor):
    tokenizer = processor.tokenizer
    regions = regions_of(BOXES, CAPTIONS, "x")
    found = region_arrays(tokenizer, [regions[0], None, regions[1]], 24)
    ids, weights = found["region_ids"], found["region_weights"]
    assert (ids.shape, ids.dtype, weights.shape, weights.dtype) == ((3, 2, 24), np.int32, (3, 2, 24), np.float32)
    box, caption = tokenizer.encode_texts(["0 125 250 500", "a horse"])
    find, tell = tokenizer.encode_texts(["find", "tell"])
    for task, given, told in ((0, find + caption, box), (1, tell, box + caption)):
        text = [*given, *told, tokenizer.eos_token_id]
        assert ids[0, task].tolist() == text + [tokenizer.pad_token_id] * (24 - len(text))
        share = 1 / (len(told) + 1)
        expected = [0.0] * len(given) + [share] * (len(told) + 1) + [0.0] * (24 - len(text))
        np.testing.assert_allclose(weights[0, task], expected, rtol=1e-6)
    assert (ids[1] == tokenizer.pad_token_id).all() and not weights[1].any()
    np.testing.assert_allclose(weights.sum(axis=2), [[1, 1], [0, 0], [1, 1]], rtol=1e-6)
    assert tokenizer.decode(ids[2, 0].tolist(), skip_special_tokens=True) == "find a lemon 50 50 50 450"


def test_long_captions_are_cut_and_the_box_never(processor):
    tokenizer = processor.tokenizer
    regions = regions_of(BOXES[:1], ["a horse " * 20], "x")
    found = region_arrays(tokenizer, regions, 16)
    box, end = tokenizer.encode_texts(["0 125 250 500"])[0], tokenizer.eos_token_id
    assert found["region_ids"][0, 0].tolist()[-len(box) - 1 :] == [*box, end]
    assert found["region_ids"][0, 1, -1] == end and (found["region_weights"][0, :, -1] > 0).all()
    with pytest.raises(ValueError, match="texts must have .* tokens or more for a box with its caption, got 8; leave"):
        region_arrays(tokenizer, regions, 8)


@pytest.mark.parametrize(
    ("boxes", "captions", "message"),
    [
        ([[0, 0, 320, 200]], ["a"], "boxes must be lists of left, top, right and bottom from 0 to 1.* divide pixels"),
        ([[0, 0, 1]], ["a"], "boxes must be lists"),
        ([0, 0, 1, 1], ["a"], "boxes must be lists"),
        ([[0, 0, 1, None]], ["a"], "boxes must be lists"),
        ([[0, 0, 1, float("nan")]], ["a"], "boxes must be lists"),
        ("everything", ["a"], "boxes must be lists"),
        (7, ["a"], "boxes must be lists"),
        ([[0, 0, 1, 1], [0, 0]], ["a", "b"], "boxes must be lists"),
        ([[0.6, 0, 0.5, 1]], ["a"], r"boxes must be left, top, right and bottom, got \[0.6, 0.0, 0.5, 1.0\]"),
        ([[0, 0, 1, 1]], [], "box_captions must be a text for each of 1 boxes, got"),
        ([[0, 0, 1, 1]], ["  "], "box_captions must be a text for each"),
        ([[0, 0, 1, 1]], "a", "box_captions must be a text for each"),
        ([[0, 0, 1, 1]], [3], "box_captions must be a text for each"),
    ],
)
def test_broken_boxes_are_named(boxes, captions, message):
    with pytest.raises(ValueError, match=f"^pairs.jsonl:3: {message}"):
        regions_of(boxes, captions, "pairs.jsonl:3")


def test_lone_surrogates_are_replaced():
    assert regions_of(BOXES[:1], ["a \ud800 horse"], "x")[0].caption == "a \ufffd horse"


@pytest.mark.parametrize("boxes", [[[0, 0], [1, 2, 3]], "none", 7, [None]])
def test_broken_boxes_are_found_when_they_are_used(tmp_path, image, boxes):
    source = opened("table", tmp_path, image, [{"boxes": boxes, "box_captions": 5}])
    assert len(fingerprint(source)) == 64 and source[0].texts == ("a picture",)
    with pytest.raises(ValueError, match="pairs.jsonl:1: boxes must be lists"):
        regions_of(source[0].boxes, source[0].box_captions, source[0].name)


@pytest.mark.parametrize("boxes", [None, [], np.zeros((0, 4))])
def test_an_example_may_have_no_boxes(boxes):
    assert regions_of(boxes, (), "x") == []


def test_the_transform_chooses_a_box_and_changes_nothing_else(processor, image):
    example = Example(image, ("a horse in a field", "a horse"), None, "x", np.array(BOXES), CAPTIONS)
    without, with_boxes = Transform(processor), Transform(processor, boxes=True)
    seen = set()
    for seed in range(20):
        plain, found = (t(example, np.random.default_rng(seed)) for t in (without, with_boxes))
        assert found.keys() - plain.keys() == {"region_ids", "region_weights"}
        for name, array in plain.items():
            np.testing.assert_array_equal(array, found[name])
        assert found["region_ids"].shape == (2, 16)
        seen.add(found["region_ids"].tobytes())
    assert len(seen) == 2
    none = with_boxes(example._replace(boxes=None), np.random.default_rng(0))
    assert not none["region_weights"].any()


@pytest.mark.parametrize("options", [{"augment": "flip"}, {"augment": "crop"}, {"captions": False}])
def test_boxes_need_whole_images(processor, options):
    with pytest.raises(ValueError, match="boxes need captions and whole images, got"):
        Transform(processor, boxes=True, **options)


def opened(kind, directory, image, rows):
    """Writes a data set of a kind with the fields of each row beside image and caption, and opens it."""
    (directory / "horse.png").write_bytes(image)
    if kind == "table":
        path = directory / "pairs.jsonl"
        path.write_text("\n".join(json.dumps({"image": "horse.png", "caption": "a picture"} | row) for row in rows))
    elif kind == "parquet":
        path = directory / "pairs.parquet"
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        count = len(rows)
        pq.write_table(pa.table({"image": [image] * count, "caption": ["a picture"] * count} | columns), path)
    else:
        members = {}
        for i, row in enumerate(rows):
            members |= {f"{i}.png": image, f"{i}.txt": b"a picture", f"{i}.json": json.dumps(row).encode()}
        path = write_tar(directory / "pairs.tar", members)
    return open_source(path, **({"cache": directory} if kind == "parquet" else {}))


@pytest.mark.parametrize("kind", ["table", "parquet", "tar"])
def test_data_sets_hold_boxes(kind, tmp_path, image):
    rows = [{"boxes": BOXES, "box_captions": CAPTIONS}, {}, {"boxes": [], "box_captions": []}]
    source = opened(kind, tmp_path, image, rows)
    assert source.has_boxes
    found = [regions_of(example.boxes, example.box_captions, example.name) for example in source]
    assert [[(list(box), text) for box, text in regions] for regions in found] == [
        list(zip(BOXES, CAPTIONS, strict=True)),
        [],
        [],
    ]


@pytest.mark.parametrize("kind", ["table", "parquet", "tar"])
def test_other_boxes_are_other_data(kind, tmp_path, image):
    def mark(name, boxes):
        (tmp_path / name).mkdir()
        return fingerprint(opened(kind, tmp_path / name, image, [{"boxes": boxes, "box_captions": CAPTIONS}]))

    assert mark("a", BOXES) == mark("b", BOXES) != mark("c", BOXES[::-1])


@pytest.mark.parametrize("kind", ["table", "parquet", "tar"])
def test_boxes_without_captions_are_another_s(kind, tmp_path, image):
    """A column of that name alone may mean anything, such as pixels."""
    rows = [{"boxes": [[3.0, 4.0, 50.0, 60.0]]}]
    source = opened(kind, tmp_path, image, rows)
    assert not source.has_boxes and source[0].boxes is None


def test_folders_have_none(tmp_path):
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a square")
    assert not open_source(tmp_path).has_boxes
