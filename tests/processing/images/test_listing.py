"""Which files of a folder are its images, and what is said of the others."""

from pathlib import Path

import pytest

from siglip_jax.processing.images.listing import is_set_aside, list_images, walk
from tests.support.hard_images import LEFT_OUT, write_hard_images


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_thumbnails_and_folders_of_the_system_are_left_out_and_counted(tmp_path):
    touch(tmp_path, "a.png", "deep/b.JPE", "deep/er/c.dib", "notes.txt", "film.mp4", ".hidden.png", "deep/._b.jpg")
    touch(tmp_path, ".thumbnails/a.png", "deep/@eaDir/b.JPE/thumb.jpg", "__MACOSX/._a.png", "$RECYCLE.BIN/x.png")
    images, left_out = list_images(tmp_path)
    assert images == ["a.png", "deep/b.JPE", "deep/er/c.dib"]
    system = "in folders of thumbnails or of the system"
    assert left_out.counts == {"not images": 2, "hidden": 2, system: 4}
    assert len(left_out) == 8
    assert left_out.names["not images"] == ["film.mp4", "notes.txt"]
    assert left_out.names[system] == ["$RECYCLE.BIN/x.png", ".thumbnails/a.png", "__MACOSX/._a.png"] + [
        "deep/@eaDir/b.JPE/thumb.jpg"
    ]
    assert str(left_out) == (
        "8 files are left out: 2 not images ('film.mp4', 'notes.txt'), 2 hidden ('.hidden.png', 'deep/._b.jpg'), 4 in"
        " folders of thumbnails or of the system ('$RECYCLE.BIN/x.png', '.thumbnails/a.png', '__MACOSX/._a.png',"
        " 'deep/@eaDir/b.JPE/thumb.jpg')"
    )


def test_one_folder_alone(tmp_path):
    touch(tmp_path, "a.png", "deep/b.png", ".thumbnails/a.png")
    images, left_out = list_images(tmp_path, recursive=False)
    assert (images, left_out.counts) == (["a.png"], {"in folders of thumbnails or of the system": 1})


def test_only_the_first_names_are_kept_and_files_that_are_used_do_not_count(tmp_path):
    touch(tmp_path, "a.png", *[f"{i}.txt" for i in range(9)], *[f"{i}.csv" for i in range(7)])
    assert str(list_images(tmp_path, used=[".txt"])[1]) == (
        "7 files are left out: 7 not images ('0.csv', '1.csv', '2.csv', '3.csv', '4.csv', ...)"
    )
    assert len(list_images(tmp_path, used=[".txt", ".csv"])[1]) == 0


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "in/a.png", "out/b.png")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "side").symlink_to("../out")
    (tmp_path / "in" / ".secret").symlink_to("../out")
    assert list_images(tmp_path / "in")[0] == ["a.png", "side/b.png"]
    assert [Path(directory).name for directory, _ in walk(tmp_path)] == [tmp_path.name, "in", "out"]


@pytest.mark.parametrize("name", [".git", ".thumbnails", "@eaDir", "__MACOSX", "System Volume Information"])
def test_folders_that_are_set_aside(name):
    assert is_set_aside(name) and not is_set_aside("thumbs")


def test_hard_files(tmp_path):
    outcomes = write_hard_images(tmp_path)
    images, left_out = list_images(tmp_path)
    assert images == sorted(name for name, outcome in outcomes.items() if outcome != LEFT_OUT)
    assert len(left_out) == list(outcomes.values()).count(LEFT_OUT)
