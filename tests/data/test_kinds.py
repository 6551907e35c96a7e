"""Folders of one kind, of several kinds, and of kinds that are not recognised."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from siglip_jax.data.open import open_source
from tests.support.data_sets import encoded, write_tar


def write(folder, *names):
    """Writes images of different contents."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(i))


def names(source):
    return [source.name(i) for i in range(len(source))]


@pytest.fixture
def mixed(tmp_path):
    """Three images beside a tar."""
    write(tmp_path, "a.png", "c.png", "d.png")
    write_tar(tmp_path / "b.tar", {"0.jpg": encoded(), "0.txt": b"a"})
    return tmp_path


@pytest.mark.parametrize("images_only", [True, False])
def test_images_beside_a_tar_are_refused_unless_one_is_chosen(mixed, images_only):
    if not images_only:
        for name in "acd":
            (mixed / f"{name}.txt").write_text("a")
    there = "images" if images_only else "texts"
    with pytest.raises(ValueError) as error:
        open_source(mixed, images_only=images_only)
    assert str(error.value) == (
        f"{mixed}: a data set must be of one kind, got tar ('b.tar') and {there} ('a.png', 'c.png', 'd.png');"
        f" choose with kind (--kind tar or --kind {there}), or pass the path of one"
    )
    assert names(open_source(mixed, images_only=images_only, kind="tar")) == ["b.tar:0.jpg"]
    assert names(open_source(mixed, images_only=images_only, kind=there)) == ["a.png", "c.png", "d.png"]
    with pytest.raises(ValueError, match=rf"kind must be one of those in the folder, 'tar', '{there}', got 'parquet'"):
        open_source(mixed, images_only=images_only, kind="parquet")
    with pytest.raises(ValueError, match=r"kind must be 'tar' for this file, got 'images'; leave kind out"):
        open_source(mixed / "b.tar", kind="images")
    with pytest.raises(ValueError, match=r"kind must be one of 'tar', 'parquet', 'arrow', .*, got 'zip'"):
        open_source(mixed, kind="zip")


def test_two_kinds_of_files_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.jpg": encoded(), "0.txt": b"a"})
    (tmp_path / "pairs.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"of one kind, got tar \('a.tar'\) and table \('pairs.csv'\); choose with k"):
        open_source(tmp_path)


def test_the_folder_data_counts_and_deeper_files_are_named(tmp_path):
    for i, name in enumerate(("a.tar", "data/b.tar", "more/c.tar")):
        write_tar(tmp_path / name, {f"{i}.jpg": encoded(i), f"{i}.txt": b"a"})
    with pytest.warns(UserWarning) as warned:
        source = open_source(tmp_path)
    assert names(source) == ["a.tar:0.jpg", "b.tar:1.jpg"]
    assert str(warned[0].message) == (
        f"{tmp_path}: 1 files of the kind tar in deeper folders are left out: 'more/c.tar'; pass the path of a folder"
        " to read it"
    )
    (tmp_path / "data" / "d.csv").write_text("image,caption\n")
    with pytest.raises(ValueError, match=r"of one kind, got tar \('a.tar', 'b.tar'\) and table \('d.csv'\); choose"):
        open_source(tmp_path)


def test_the_table_that_img2dataset_writes_beside_a_tar_is_no_data_set_of_its_own(tmp_path):
    write_tar(tmp_path / "00000.tar", {"0.jpg": encoded(), "0.txt": b"a"})
    pq.write_table(pa.table({"caption": ["a"], "url": ["u"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 1}')
    assert names(open_source(tmp_path)) == ["00000.tar:0.jpg"]


def test_a_table_beside_images_is_the_data_set_and_names_what_it_leaves_out(tmp_path):
    write(tmp_path, "a.png", "b.png", "x/c.png")
    (tmp_path / "pairs.csv").write_text("image,caption\nb.png,b\n")
    with pytest.warns(UserWarning) as warned:
        source = open_source(tmp_path)
    assert names(source) == ["pairs.csv:2"]
    assert str(warned[0].message) == (
        f"{tmp_path}: 2 of 3 images in the folder are not in pairs.csv and are left out: 'a.png', 'x/c.png'"
    )
    assert names(open_source(tmp_path / "pairs.csv")) == ["pairs.csv:2"]
    assert names(open_source(tmp_path, images_only=True)) == ["a.png", "b.png", "x/c.png"]
    with pytest.warns(UserWarning, match="2 of 3 images"):
        assert names(open_source(tmp_path, images_only=True, kind="table")) == ["pairs.csv:2"]


def test_images_beside_class_folders_are_refused(tmp_path):
    write(tmp_path, "top.png", "cat/a.png")
    with pytest.raises(ValueError) as error:
        open_source(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: images must be in a folder of their class or split, got 1 beside the folders 'cat': 'top.png';"
        " move them into one, or pass the path of a folder"
    )
    assert names(open_source(tmp_path, images_only=True)) == ["cat/a.png", "top.png"]


def test_images_beside_folders_of_splits_are_refused_unless_a_split_is_chosen(tmp_path):
    write(tmp_path, "top.png", "train/cat/a.png", "train/dog/b.png", "test/cat/c.png")
    with pytest.raises(ValueError, match="got 1 beside the folders 'test', 'train': 'top.png'"):
        open_source(tmp_path)
    assert names(open_source(tmp_path, split="test")) == ["cat/c.png"]


def test_texts_beside_images_are_captions(tmp_path):
    write(tmp_path, "a.jpg", "b.png", "deep/c.jpg")
    (tmp_path / "a.txt").write_bytes("\ufeff a größer cat \n".encode())
    (tmp_path / "b.txt").write_bytes("café".encode("latin-1"))
    (tmp_path / "deep" / "c.txt").write_text("a cow")
    source = open_source(tmp_path)
    assert (names(source), source.classes) == (["a.jpg", "b.png", "deep/c.jpg"], ())
    assert source[0][:3] == (encoded(0), ("a größer cat",), None)
    assert source[2].texts == ("a cow",)
    with pytest.raises(ValueError) as error:
        source[1]
    assert str(error.value) == r"b.png: the caption must be text in UTF-8, got b'caf\xe9'; convert it"
    assert [name for name, _ in source.files()] == ["a.jpg", "a.txt", "b.png", "b.txt", "deep/c.jpg", "deep/c.txt"]
    (tmp_path / "b.txt").unlink()
    with pytest.warns(UserWarning, match=r"1 images without a .txt are left out: 'b.png'$"):
        assert names(open_source(tmp_path)) == ["a.jpg", "deep/c.jpg"]


def test_class_folders_with_some_texts_are_refused_unless_one_is_chosen(tmp_path):
    write(tmp_path, "cat/a.jpg", "dog/b.jpg")
    (tmp_path / "cat" / "a.txt").write_text("a cat")
    with pytest.raises(ValueError, match=r"got class folders, and a .txt beside 1 of 2 images \('cat/a.jpg'\); choose"):
        open_source(tmp_path)
    assert open_source(tmp_path, kind="images").classes == ("cat", "dog")
    with pytest.warns(UserWarning, match=r"1 images without a .txt are left out: 'dog/b.jpg'$"):
        assert open_source(tmp_path, kind="texts")[0].texts == ("a cat",)
    (tmp_path / "dog" / "b.txt").write_text("a dog")
    assert open_source(tmp_path)[1].texts == ("a dog",)


def test_unrecognised_images_get_an_example_of_a_line(tmp_path):
    write(tmp_path, "a.png")
    with pytest.raises(ValueError, match=r'a line: {"image": "cat.jpg", "caption": "a cat"}.*got a folder of .a.png'):
        open_source(tmp_path)


@pytest.fixture
def coco(tmp_path):
    """COCO's captions in one folder and its images in another."""
    write(tmp_path / "val2017", "1.jpg", "2.jpg", "3.jpg")
    facts = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 48} for i in (2, 1, 3)],
        "annotations": [{"image_id": i, "id": n, "caption": f"caption {n} "} for n, i in enumerate([1, 2, 1])],
    }
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps(facts))
    return path


def test_captions_of_coco(coco, tmp_path):
    with pytest.warns(UserWarning, match=r"1 images without a caption are left out: '3.jpg'$"):
        source = open_source(coco, root=tmp_path / "val2017")
    assert names(source) == ["captions_val2017.json:2.jpg", "captions_val2017.json:1.jpg"]
    assert [source[i].texts for i in range(2)] == [("caption 1",), ("caption 0", "caption 2")]
    assert [source[i].image for i in range(2)] == [encoded(1), encoded(0)]
    assert len(open_source(coco, root=tmp_path / "val2017", images_only=True)) == 3
    with pytest.raises(FileNotFoundError) as error, pytest.warns(UserWarning):
        open_source(coco)
    assert str(error.value) == (
        f"{coco}: the images must be in {coco.parent}, got no 2.jpg there; name their folder with root (--root DIR)"
    )
    coco.rename(tmp_path / "val2017" / coco.name)
    with pytest.warns(UserWarning):
        assert len(open_source(tmp_path / "val2017")) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "without the lists images and annotations"),
        ("{", "Expecting"),
        ('{"images": [], "annotations": []}', "without the file_name of each image"),
        ('{"images": [{"id": 1}], "annotations": []}', "without the field 'file_name'"),
        (
            '{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]}',
            "got none; pass CO",
        ),
    ],
)
def test_json_that_is_not_of_coco(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        open_source(path)
    assert str(error.value).startswith(f"{path}: ")
