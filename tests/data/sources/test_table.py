"""JSON lines, CSV and TSV beside images: columns, broken lines, and paths that lead elsewhere."""

import json
import os
import pickle

import pytest

from siglip_jax.data.open import open_source
from tests.support.data_sets import encoded


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "set" / "images").mkdir(parents=True)
    for i in range(4):
        (tmp_path / "set" / "images" / f"{i}.jpg").write_bytes(encoded(i))
    return tmp_path / "set"


def write(path, text: str, encoding: str = "utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def lines(*rows) -> str:
    return "\n".join(map(json.dumps, rows))


def test_json_lines(folder):
    rows = [{"image": f"images/{i}.jpg", "caption": c} for i, c in enumerate(["a", ["b", "c"], "", None])]
    path = write(folder / "pairs.jsonl", "\ufeff" + lines(*rows[:2]) + "\n\n" + lines(*rows[2:]) + "\n")
    for name in (path, folder):
        source = open_source(name)
        assert [source[i].texts for i in range(4)] == [("a",), ("b", "c"), ("",), ()]
        assert [source[i].name for i in range(4)] == [
            "pairs.jsonl:1",
            "pairs.jsonl:2",
            "pairs.jsonl:4",
            "pairs.jsonl:5",
        ]
        assert source[3].image == encoded(3) and source[3].label is None and source.classes == ()
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 4 and copy[1] == source[1]


def test_captions_that_are_none(folder):
    rows = [{"image": "images/0.jpg", "text": value} for value in ("fine", float("nan"), 7, ["a", 1], {"a": "b"})]
    source = open_source(write(folder / "a.jsonl", lines(*rows)))
    assert source[0].texts == ("fine",)
    for i in range(1, 5):
        with pytest.raises(
            ValueError, match=f"a.jsonl:{i + 1}: captions must be a string or a list of strings, got something else"
        ):
            source[i]


@pytest.mark.parametrize(("name", "separator"), [("a.csv", ","), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_csv_with_a_byte_order_mark(folder, name, separator):
    rows = ["File_Name,Title", 'images/0.jpg,"größer, ""schöner"""', 'images/1.jpg,"two\nlines"']
    text = "\r\n".join(row.replace(",i", "\ti").replace(",T", f"{separator}T") for row in rows)
    text = text.replace('.jpg,"', f'.jpg{separator}"')
    source = open_source(write(folder / name, "\ufeff" + text + "\r\n"))
    assert source[0].texts == ('größer, "schöner"',)
    assert source[1].texts == ("two\nlines",)
    assert source[1].image == encoded(1)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("separator", [";", "\t", "|", ", ", ","])
def test_separators(folder, name, separator):
    rows = [["image", "caption", "label"], ["images/0.jpg", '"one, two; three"', "1"], ["images/1.jpg", "größer", "0"]]
    source = open_source(write(folder / name, "\n".join(separator.join(row) for row in rows)))
    assert [source[i][1:3] for i in range(2)] == [
        (("one, two; three",), 1),
        (("größer",), 0),
    ]
    assert source[1].image == encoded(1) and source.classes == ("0", "1")


def test_a_separator_in_the_names_of_columns(folder):
    text = "file_name,caption;de|fr\tit,caption\nimages/0.jpg,a;b,c\n"
    assert open_source(write(folder / "a.csv", text))[0].texts == ("c",)


def test_labels(folder):
    def of(*labels, **options):
        rows = [{"image": f"images/{i}.jpg", "label": label} for i, label in enumerate(labels)]
        source = open_source(write(folder / "a.jsonl", lines(*rows)), **options)
        return source.classes, [source[i].label for i in range(len(labels))]

    assert of("dog", "cat", None, "dog") == (("cat", "dog"), [1, 0, None, 1])
    assert of(2, 0, -1) == (("0", "1", "2"), [2, 0, None])
    assert of("1", "0") == (("0", "1"), [1, 0])
    with pytest.raises(ValueError, match="labels must be integers or names of classes, got 1.5"):
        of("a", 1.5)
    with pytest.raises(ValueError, match="labels must be below 10,000,000, got 99999999"):
        of(99999999)


@pytest.mark.parametrize("form", ["{}", " {}", "+{}", "{}.0", "{:02}", "{:.3e}"])
def test_numbers_as_text_are_the_indices_of_classes(folder, form):
    labels = [10, 2, 0, 11, 9]
    rows = [f"images/0.jpg,{form.format(float(x) if 'e' in form else x)}" for x in labels]
    source = open_source(write(folder / "a.csv", "\n".join(["image,label", *rows, "images/0.jpg,-1", "images/0.jpg,"])))
    assert source.classes == tuple(map(str, range(12)))
    assert [source[i].label for i in range(7)] == [*labels, None, None]


def test_names_that_are_numbers_are_in_the_order_of_numbers(folder):
    labels = ["10", "9", "none", "-1", "2.5", " 9 "]
    path = write(folder / "a.csv", "\n".join(["image,label", *(f"images/0.jpg,{x}" for x in labels)]))
    source = open_source(path)
    assert source.classes == ("2.5", "9", "10", "none")
    assert [source[i].label for i in range(6)] == [2, 1, 3, None, 0, 1]


@pytest.mark.parametrize("label", [["dog"], {"a": 1}, True, 1.5, [1, 2]])
def test_a_label_of_another_type_names_file_line_and_field(folder, label):
    rows = [{"image": "images/0.jpg", "label": value} for value in ("dog", label)]
    with pytest.raises(ValueError) as error:
        open_source(write(folder / "a.jsonl", "\n" + lines(*rows)))
    assert str(error.value) == (
        f"{folder}/a.jsonl: label: labels must be integers or names of classes, got {label!r} in line 3"
    )


def test_missing_columns(folder):
    path = write(folder / "a.csv", "drawing,words\nimages/0.jpg,hello\n")
    with pytest.raises(
        ValueError,
        match=r"a column must hold paths of images, such as .*, got 'drawing', 'words'; name it with image_key",
    ):
        open_source(path)
    with pytest.raises(
        ValueError, match=r"a column must hold captions, such as caption, .*, got 'drawing', 'words'; .*text_key"
    ):
        open_source(path, image_key="drawing")
    with pytest.raises(ValueError, match=r"text_key must be one of the columns 'drawing', 'words', got 'word'"):
        open_source(path, image_key="drawing", text_key="word")
    assert open_source(path, image_key="drawing", text_key="words")[0].texts == ("hello",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "a", "text": "b"}\n{"image": \n', "a.jsonl: line 2 must be JSON, got other text"),
        ('{"image": "a", "text": "b"}\n\n[1]\n', "line 3 must be a JSON object, got a list"),
        ("[" * 100_000, "line 1 must be JSON, got other text"),
        ("", "a data set must have a row for each image, got no rows"),
    ],
)
def test_broken_json_lines(folder, text, message):
    with pytest.raises(ValueError, match=message):
        open_source(write(folder / "a.jsonl", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,text\na.jpg,b\nc.jpg,d, e\n", "line 3 must have 2 fields, got 3"),
        ("image,text\na.jpg\n", "line 2 must have 2 fields, got 1"),
        ("image,image\na,b\n", "names of columns must be different, got 'image', 'image'"),
        ('image,text\na.jpg,"b\n', "must be valid CSV, got other text"),
        (f"image,text\na.jpg,{'b' * 200_000}\n", "line 2 must be valid CSV, got other text"),
        ("image,text\n", "a data set must have a row for each image, got no rows"),
        ("", "a data set must have a row for each image, got no rows"),
    ],
)
def test_broken_csv(folder, text, message):
    with pytest.raises(ValueError, match=message):
        open_source(write(folder / "a.csv", text))


def test_not_utf8(folder):
    with pytest.raises(ValueError, match="a table must be text in UTF-8, got other bytes after line"):
        open_source(write(folder / "a.csv", "image,text\na.jpg,größer\n", "latin-1"))


def test_paths_that_lead_elsewhere(folder):
    (folder.parent / "secret.jpg").write_bytes(encoded(9))
    (folder / "link.jpg").symlink_to(folder.parent / "secret.jpg")
    (folder / "way").symlink_to(folder.parent)
    (folder / "fine.jpg").symlink_to(folder / "images" / "2.jpg")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "images" / "deeper").symlink_to(folder.parent)
    names = [
        "../secret.jpg",
        os.fspath(folder.parent / "secret.jpg"),
        "images/../../secret.jpg",
        "way/../../secret.jpg",
    ]
    more = ["https://host/a.jpg", "images/none.jpg", "images", "a\0b", "pipe.jpg", None, 5, "fine.jpg", "\ud800.jpg"]
    more += ["link.jpg", "way/secret.jpg", "images/deeper/../2.jpg"]
    source = open_source(write(folder / "a.jsonl", lines(*({"image": n, "text": "a"} for n in [*names, *more]))))
    for i, name in enumerate(names):
        with pytest.raises(
            ValueError, match=f"^a.jsonl:{i + 1}: .*, got .*{os.path.basename(name)}, which leads out of "
        ):
            source[i]
    for i, message in [
        (4, "got the URL https://host/a.jpg"),
        (5, "no such image as images/none.jpg"),
        (6, "images must be a regular file"),
        (7, r"an image must be the path of a file, got 'a\\x00b' with a null byte"),
        (8, "pipe.jpg must be a regular file"),
        (9, "an image must be the path of a file, got none"),
        (10, "an image must be the path of a file, got none"),
        (12, "no such image"),
    ]:
        with pytest.raises((ValueError, FileNotFoundError), match=f"^a.jsonl:{i + 1}: .*{message}"):
            source[i]
    assert source[11].image == encoded(2)
    assert [source[i].image for i in (13, 14, 15)] == [encoded(9), encoded(9), encoded(2)]


def test_a_path_that_is_not_utf8_is_found(folder):
    try:
        with open(os.fsencode(folder) + b"/caf\xe9.jpg", "wb") as file:
            file.write(encoded(7))
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    source = open_source(write(folder / "a.jsonl", lines({"image": "caf\udce9.jpg", "text": "a"})))
    assert source[0].image == encoded(7)
    assert [name for name, _ in source.files()] == ["a.jsonl", "caf\udce9.jpg"]


def test_images_outside_the_folder_of_the_table_are_read_with_root(folder, tmp_path):
    home = tmp_path / "set"
    (home / "tables").mkdir()
    names = ["../images/0.jpg", os.fspath(home / "images" / "1.jpg"), "images/2.jpg", "../../x.jpg"]
    table = write(home / "tables" / "a.jsonl", lines(*({"image": n, "text": "a"} for n in names)))
    source = open_source(table, root=home)
    assert [source[i].image for i in range(3)] == [encoded(i) for i in range(3)]
    advice = "name the folder that holds the images with root (--root DIR)"
    with pytest.raises(ValueError) as error:
        source[3]
    outside = f"an image must be inside {home}, got ../../x.jpg, which leads out of it"
    assert str(error.value) == f"a.jsonl:4: {outside}; {advice}"
    for i in (0, 1):
        with pytest.raises(ValueError) as error:
            open_source(table)[i]
        assert str(error.value).endswith(f", got {names[i]}, which leads out of it; {advice}")
    (tmp_path / "link").symlink_to(home)  # the same folder by another path
    assert open_source(table, root=tmp_path / "link")[1].image == encoded(1)


def test_a_long_path_has_a_short_message(folder):
    names = ["a" * 5000, "../" + "b/" * 3000 + "c.jpg", "https://host/" + "d" * 5000, "images/" + "e" * 200 + ".jpg"]
    source = open_source(write(folder / "a.jsonl", lines(*({"image": n, "text": "a"} for n in names))))
    for i in range(4):
        with pytest.raises((ValueError, OSError)) as error:
            source[i]
        assert str(error.value).startswith(f"a.jsonl:{i + 1}: ") and len(str(error.value)) < 400
