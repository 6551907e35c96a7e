"""Tar shards: what the index finds, formats of names, broken and hostile files, captions and labels."""

import io
import json
import os
import pickle
import tarfile

import pytest

from siglip_jax.data.open import open_source
from siglip_jax.data.sources import tar as tar_module
from siglip_jax.data.sources.tar_index import members, pax_entries
from tests.support.data_sets import encoded, write_tar

IMAGE = encoded()
LONG = "folder/" * 20 + "é" * 60


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_are_those_of_tarfile(tmp_path, layout):
    long = "folder/" * 14 + "name" if layout == tarfile.USTAR_FORMAT else LONG
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for name, size in [("a", 0), (long + ".jpg", 513), ("b.txt", 512), ("ü.txt", 1)]:
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
            link = tarfile.TarInfo(f"{name}.link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
            folder = tarfile.TarInfo(f"{name}.folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert len(expected) == 4
    assert list(map(tuple, members(str(path)))) == expected


def test_examples(tmp_path):
    images = {f"{i:04}": encoded(i) for i in range(4)}
    files = {}
    for key, image in images.items():
        files |= {f"{key}.jpg": image, f"{key}.txt": f"caption {key} ü\n".encode(), f"{key}.cls": key[-1].encode()}
    write_tar(tmp_path / "a-0.tar", dict(list(files.items())[:6]))
    write_tar(tmp_path / "a-1.tar", dict(list(files.items())[6:]))
    for name in (tmp_path, tmp_path / "a-{0..1}.tar", tmp_path / "*.tar", tmp_path / "{a-0,a-1}.tar"):
        source = open_source(name)
        assert len(source) == 4
        example = source[2]
        assert example.image == images["0002"]
        assert (example.texts, example.label, example.name) == (("caption 0002 ü",), 2, "a-1.tar:0002.jpg")
    assert len(open_source(tmp_path / "a-1.tar")) == 2
    copy = pickle.loads(pickle.dumps(source))
    assert [copy[i] for i in range(4)] == [source[i] for i in range(4)]


def test_captions_in_json(tmp_path):
    notes = [
        {"caption": "one", "similarity": 0.3},
        {"caption": ["two", "deux"]},
        {"caption": None},
        {"caption": "half \ud83d of a pair"},
        {"caption": 5},
        [1],
    ]
    files = {}
    for i, note in enumerate(notes):
        files |= {f"{i}.jpg": IMAGE, f"{i}.json": json.dumps(note).encode()}
    source = open_source(write_tar(tmp_path / "a.tar", files | {"6.jpg": IMAGE, "6.json": b"{"}))
    assert [source[i].texts for i in range(4)] == [("one",), ("two", "deux"), (), ("half \ufffd of a pair",)]
    for i, message in [
        (4, "a.tar:4.jpg: captions must be a string or a list of strings, got 5"),
        (5, "its .json must be an object, got a list"),
        (6, "its .json must be JSON"),
    ]:
        with pytest.raises(ValueError, match=message):
            source[i]
    with pytest.raises(ValueError, match=r"text_key must be one of the columns 'caption', 'similarity', got 'text'"):
        open_source(tmp_path / "a.tar", text_key="text")


def test_labels_by_name_and_number(tmp_path):
    files = {"0.jpg": IMAGE, "0.cls": b"cat", "1.jpg": IMAGE, "1.cls": b"0\n", "2.jpg": IMAGE, "2.cls": b"cow"}
    write_tar(tmp_path / "test" / "0.tar", files | {"3.jpg": IMAGE, "3.cls": b"7"})
    (tmp_path / "classnames.txt").write_text("dog\ncat\n")
    source = open_source(tmp_path / "test")
    assert source.classes == ("dog", "cat")
    assert [source[i].label for i in range(4)] == [1, 0, None, None]


def test_a_label_in_json_counts_where_it_was_asked_for(tmp_path):
    note = json.dumps({"caption": "a", "label": 3}).encode()
    path = write_tar(tmp_path / "a.tar", {"0.jpg": IMAGE, "0.json": note})
    assert open_source(path)[0].label is None
    assert open_source(path, label_key="label")[0].label == 3


def test_endings(tmp_path):
    files = {"a/0.b.png": b"mask", "a/0.jpg": IMAGE, "a/0.Caption.TXT": b"long", "a/0.txt": b"short"}
    path = write_tar(tmp_path / "a.tar", files | {"b/0.jpg": encoded(1), "b/0.txt": b"other", "b/.hidden": b""})
    with pytest.warns(UserWarning, match=r"1 images in tar files are left out, .* the first dot .*: a.tar:a/0.b.png$"):
        source = open_source(path)
    assert [source[i].texts for i in range(2)] == [("short",), ("other",)]
    assert [source[i].image for i in range(2)] == [IMAGE, encoded(1)]
    with pytest.warns(UserWarning, match="1 examples .* have no image with the ending 'b.png': a.tar:b/0.jpg$"):
        source = open_source(path, image_key="b.png", text_key=".caption.txt")
    assert source[0][:2] == (b"mask", ("long",))


DOTTED = {f"2023.01.0{i}.jpg": encoded(i) for i in range(4)}


def test_images_are_examples_by_their_full_names_where_only_images_are_wanted(tmp_path):
    path = write_tar(tmp_path / "a.tar", DOTTED | {"x/2023.01.00.seg.PNG": encoded(4), "x/2023.txt": b"a"})
    source = open_source(path, images_only=True)
    assert [source.name(i) for i in range(len(source))] == [
        *(f"a.tar:2023.01.0{i}.jpg" for i in range(4)),
        "a.tar:x/2023.01.00.seg.PNG",
    ]
    assert [source[i].image for i in range(5)] == [encoded(i) for i in range(5)]
    assert [source[i].texts for i in range(5)] == [()] * 5
    assert [e.name for e in open_source(path, images_only=True, image_key="seg.png")] == ["a.tar:x/2023.01.00.seg.PNG"]


def test_images_that_share_a_name_up_to_the_first_dot_are_counted_and_named(tmp_path):
    path = write_tar(tmp_path / "a.tar", DOTTED | {"2023.txt": b"a year", "0.txt": b"alone", "README": b""})
    with pytest.warns(UserWarning) as warned:
        source = open_source(path)
    assert [e.image for e in source] == [encoded(0)]
    assert [str(warning.message).removeprefix(f"{path}: ") for warning in warned] == [
        "1 members of tar files are left out, whose names are hidden or have no ending: a.tar:README",
        "3 images in tar files are left out, because members whose names agree up to the first dot are one example;"
        " rename them, or choose the images with image_key: a.tar:2023.01.01.jpg, a.tar:2023.01.02.jpg,"
        " a.tar:2023.01.03.jpg",
        "1 examples in tar files are left out, because they have no image: a.tar:0.txt",
    ]


def write_twice(path, names):
    with tarfile.open(path, "w") as tar:
        for i, name in enumerate(names):
            member = tarfile.TarInfo(name)
            data = encoded(i) if name.endswith("jpg") else b"a"
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_repeated_names_are_refused_within_an_example_and_named_elsewhere(tmp_path):
    path = write_twice(tmp_path / "a.tar", ["0.jpg", "0.JPG", "0.txt"])
    with pytest.raises(ValueError, match=r"names of members in an example must differ, got 1 .*: a.tar:0.JPG$"):
        open_source(path)
    path = write_twice(tmp_path / "b.tar", ["0.jpg", "0.txt", "1.jpg", "1.txt", "0.jpg", "0.txt"])
    with pytest.warns(UserWarning, match="1 names in tar files are repeated, and each is an example: b.tar:0$"):
        source = open_source(path)
    assert [e.image for e in source] == [encoded(i) for i in (0, 2, 4)]
    with pytest.warns(UserWarning, match="1 names in tar files are repeated, and each is an example: b.tar:0.jpg$"):
        source = open_source(path, images_only=True)
    assert [e.image for e in source] == [encoded(i) for i in (0, 2, 4)]


def test_members_of_an_example_that_do_not_stand_together(tmp_path):
    path = write_twice(tmp_path / "a.tar", ["0.jpg", "1.jpg", "0.txt", "1.txt"])
    with pytest.raises(ValueError) as error:
        open_source(path)
    assert str(error.value) == (
        f"{path}: members of an example must stand together, got 2 examples in several places; write the tar sorted"
        " by name, as with tar --sort=name: a.tar:0, a.tar:1"
    )


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_are_those_of_whole_members(tmp_path, layout):
    long = [f"{'folder/' * 15}{name}.jpg" for name in ("one", "two")]
    path = write_tar(tmp_path / "a.tar", {name: encoded(i) for i, name in enumerate(long)}, layout)
    assert [e.name for e in open_source(path, images_only=True)] == [f"a.tar:{name}" for name in long]


def test_names_that_are_not_utf8_stay_different(tmp_path):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as tar:
        for name in (b"\xe9.jpg", b"\xe8.jpg"):
            member = tarfile.TarInfo(os.fsdecode(name))
            member.size = len(IMAGE)
            tar.addfile(member, io.BytesIO(IMAGE))
    assert [e.name for e in open_source(path, images_only=True)] == ["a.tar:\udce9.jpg", "a.tar:\udce8.jpg"]


def test_shards_of_the_same_name_in_two_folders_differ_in_their_names(tmp_path):
    for folder in "ab":
        write_tar(tmp_path / folder / "0.tar", {"0.jpg": IMAGE})
    source = open_source(tmp_path / "{a,b}" / "0.tar", images_only=True)
    assert [e.name for e in source] == ["a/0.tar:0.jpg", "b/0.tar:0.jpg"]


def test_text_that_is_not_utf8_is_an_error_of_its_example(tmp_path):
    files = {"0.jpg": IMAGE, "0.txt": "café".encode("latin-1"), "1.jpg": IMAGE, "1.txt": b"\xef\xbb\xbftea"}
    source = open_source(write_tar(tmp_path / "a.tar", files))
    with pytest.raises(ValueError) as error:
        source[0]
    assert str(error.value) == "a.tar:0.jpg: the caption must be text in UTF-8, got b'caf\\xe9'; convert it"
    assert source[1].texts == ("tea",)


class Counted(bytes):
    """Bytes that count how many of them are copied."""

    copied = 0

    def __getitem__(self, index):
        found = super().__getitem__(index)
        if isinstance(found, int):
            return found
        Counted.copied += len(found)
        return Counted(found)


def test_a_long_pax_header_is_read_in_linear_time():
    entries = [b"%d key%d=value\n" % (len(b"%d key%d=value\n" % (10, i)), i) for i in range(1000, 3000)]
    notes = b"".join(entries)
    found = pax_entries(Counted(notes), 0)
    assert (len(found), found[b"key2999"]) == (2000, b"value")
    assert Counted.copied < 2 * len(notes)


def test_a_pax_size_of_thousands_of_digits_is_ignored(tmp_path):
    entry = b" size=" + b"9" * 5000 + b"\n"
    notes = b"%d" % (len(entry) + 4) + entry
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, len(notes)
    rest = write_tar(tmp_path / "rest.tar", {"0.jpg": IMAGE}).read_bytes()
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + notes.ljust(-(-len(notes) // 512) * 512, b"\0") + rest)
    assert open_source(path, images_only=True)[0].image == IMAGE


def test_nothing_to_train_on(tmp_path):
    empty = write_tar(tmp_path / "empty.tar", {})
    with pytest.raises(ValueError, match="tar files must hold images, got the endings none"):
        open_source(empty)
    (tmp_path / "zero.tar").touch()
    with pytest.raises(ValueError, match="must hold images, got the endings none"):
        open_source(tmp_path / "zero.tar")
    only = write_tar(tmp_path / "texts.tar", {"0.txt": b"a", "1.txt": b"b"})
    with pytest.raises(ValueError, match="must hold images, got the endings 'txt'"):
        open_source(only)
    bare = write_tar(tmp_path / "bare.tar", {"0.jpg": IMAGE, "0.json": b'{"url": "x"}'})
    with pytest.raises(
        ValueError, match=r"must have captions or labels .*, got the endings 'jpg', 'json', and the keys 'url' in .json"
    ):
        open_source(bare)


def test_broken_shards_are_all_named(tmp_path):
    whole = write_tar(tmp_path / "0.tar", {"0.jpg": IMAGE, "0.txt": b"a"}).read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[: 512 + len(IMAGE) // 2])
    (tmp_path / "2.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "3.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    (tmp_path / "4.tar").write_bytes(whole[:100])
    with pytest.raises(ValueError) as error:
        open_source(tmp_path)
    message = str(error.value)
    assert "shards must be whole tar files, got 4 broken ones of 5; " in message and "0.tar" not in message
    assert (
        f"1.tar (the member at byte 0 must have {len(IMAGE)} bytes, got {len(IMAGE) // 2}; it is truncated)" in message
    )
    assert "2.tar (byte 0 must begin a tar header, got other bytes)" in message
    assert "3.tar (a tar must be uncompressed for random access, got a compressed one; unpack" in message
    assert "4.tar (byte 0 must begin a tar header, got other bytes)" in message


@pytest.mark.parametrize(
    "field", [b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-1         \0", b"1\xff\0"]
)
def test_absurd_sizes(tmp_path, field):
    data = bytearray(write_tar(tmp_path / "a.tar", {"0.jpg": IMAGE}).read_bytes())
    data[124:136] = field
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    with pytest.raises(
        ValueError,
        match=r"a.tar \(the (member at byte 0 must have \d+ bytes, got|header at byte 0 must have a size, got)",
    ):
        open_source(tmp_path / "a.tar")


def test_hostile_pax_headers(tmp_path):
    for i, notes in enumerate([b"999999 path=x\n", b"x", b"0 path=x\n", b"9 path=", b"12345678901234567890"]):
        member = tarfile.TarInfo("x")
        member.type, member.size = tarfile.XHDTYPE, len(notes)
        path = tmp_path / f"{i}.tar"
        path.write_bytes(member.tobuf(tarfile.USTAR_FORMAT) + notes.ljust(512, b"\0") + bytes(1024))
        with pytest.raises(ValueError, match="the pax header at byte 0 must have entries of the stated length"):
            open_source(path)


def test_too_large_a_member_is_refused_when_it_is_read(tmp_path, monkeypatch):
    path = write_tar(tmp_path / "a.tar", {"0.jpg": IMAGE, "0.txt": b"a", "1.jpg": bytes(50000), "1.txt": b"b"})
    monkeypatch.setattr(tar_module, "MAX_BYTES", 40000)
    source = open_source(path)
    assert source[0].image == IMAGE
    with pytest.raises(ValueError, match=r"a.tar:1.jpg: a member must have at most 40000 bytes, got 50000"):
        source[1]


def test_a_shard_that_shrinks_or_goes(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"0.jpg": IMAGE, "0.txt": b"a"})
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match=r"the file must have \d+ bytes, got 600; it was changed"):
        source[0]
    path.unlink()
    with pytest.raises(OSError, match="a.tar"):
        pickle.loads(pickle.dumps(source))[0]


def test_more_shards_than_files_stay_open(tmp_path):
    for i in range(80):
        write_tar(tmp_path / f"{i:03}.tar", {"0.jpg": IMAGE, "0.txt": str(i).encode()})
    source = open_source(tmp_path)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else None
    for i in [*range(80), *range(0, 80, 7)]:
        assert source[i].texts == (str(i),)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 64


def test_no_such_range(tmp_path):
    with pytest.raises(ValueError, match=r"a range must be ascending, such as \{000..010\}, got \{3..1\}"):
        open_source(tmp_path / "a-{3..1}.tar")
    with pytest.raises(ValueError, match=r"a range must be ascending, .*, got \{0..99999999\}"):
        open_source(tmp_path / "a-{0..99999999}.tar")
    with pytest.raises(ValueError, match="a pattern must match at most 1000000 files, got more"):
        open_source(tmp_path / "a-{0..99999}-{0..99999}.tar")
    with pytest.raises(FileNotFoundError, match="a pattern must match one file or more, got none"):
        open_source(tmp_path / "*.tar")
    with pytest.raises(FileNotFoundError, match="a-0.tar: no such file"):
        open_source(tmp_path / "a-{0..1}.tar")
