"""`siglip-jax embed` and `siglip-jax search`: killed and sharded runs, their output, and mistakes."""

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import PIL.Image
import pytest

from siglip_jax.inference import load
from siglip_jax.plots.contact_sheet import GAP, LINE, SIDE
from siglip_jax.search.collection import open_collection
from siglip_jax.search.verify import verify_collection
from tests.support.data_sets import write_tar
from tests.support.killing import records, run_until_done
from tests.support.tiny_checkpoint import picture

COUNT, KILLS = 240, 3
COMMAND = [sys.executable, "-m", "siglip_jax", "embed"]


@pytest.fixture(autouse=True, scope="module")
def loaded_once():
    """Every call of `load` with the same arguments gives the same model, so that little is compiled."""
    with pytest.MonkeyPatch.context() as patch:
        once = functools.cache(load)
        for module in ("siglip_jax.search.embed", "siglip_jax.search.search"):
            patch.setattr(sys.modules[module], "load", once)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("data") / "images"
    home.mkdir()
    for i in range(COUNT):
        PIL.Image.fromarray(picture(i)).save(home / f"{i:03}.png")
    (home / "100.png").write_bytes(b"no image")
    return home


@pytest.fixture
def embedded(run, folder, tmp_path):
    """A collection of a few of the images."""
    few = tmp_path / "few"
    few.mkdir()
    for i in range(6):
        shutil.copy(folder / f"{i:03}.png", few)
    assert run("embed", few, "--out", tmp_path / "out").status == 0
    return tmp_path / "out"


def test_a_tar_of_names_with_dots_and_a_folder_of_two_kinds(run, folder, tmp_path):
    members = {f"2023.01.0{i}.png": (folder / f"{i:03}.png").read_bytes() for i in range(4)}
    path = write_tar(tmp_path / "mixed" / "b.tar", members)
    ran = run("embed", path, "--out", tmp_path / "tar", "--json")
    assert (ran.status, json.loads(ran.out)["embedded"]) == (0, 4)
    assert open_collection(tmp_path / "tar").ids(0) == [f"b.tar:{name}" for name in members]
    for i in range(3):
        shutil.copy(folder / f"{i:03}.png", tmp_path / "mixed")
    ran = run("embed", tmp_path / "mixed", "--out", tmp_path / "none")
    assert (ran.status, ran.out) == (2, "")
    assert "got tar ('b.tar') and images ('000.png', '001.png', '002.png'); choose with kind (--kind tar or" in ran.err
    assert not (tmp_path / "none").exists()
    for out in ("images", "images"):  # the second resumes the first
        ran = run("embed", tmp_path / "mixed", "--kind", "images", "--out", tmp_path / out, "--json")
        assert (ran.status, json.loads(ran.out)["complete"]["rows"]) == (0, 3)


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.slow
def test_killed_runs_end_with_the_bytes_of_the_whole_one(folder, tmp_path):
    def command(out):
        return [*COMMAND, folder, "--out", out, "--part-size", 8]

    cache, whole, killed = tmp_path / "cache", tmp_path / "whole", tmp_path / "killed"
    assert run_until_done(command(whole), lambda: records(whole), cache, 0, 0) == 0
    assert run_until_done(command(killed), lambda: records(killed), cache, KILLS, longest=0.1) == KILLS
    assert contents(killed) == contents(whole)
    opened = open_collection(killed)
    names = [name for part in range(opened.manifest.parts) for name in opened.ids(part)]
    assert sorted([*names, "100.png"]) == sorted(path.name for path in folder.iterdir())
    assert verify_collection(killed) == []


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_says_how_much_is_kept_and_how_to_go_on(run, folder, tmp_path):
    out = tmp_path / "out"
    command = [*map(str, (*COMMAND, folder, "--out", out, "--part-size", 8))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not records(out):
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate()[1]
    assert process.returncode == 143
    said = rf"siglip-jax: stopped: (\d+) of 240 items are done and kept in {out}; the same command resumes the run\n$"
    (done,) = re.search(said, errors).groups()
    assert 8 <= int(done) < 240
    ran = run("embed", folder, "--out", out, "--json")
    assert json.loads(ran.out)["embedded"] + json.loads(ran.out)["unreadable"] == 240 - int(done)
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
def test_shards(run, folder, tmp_path):
    options = ("--part-size", 64, "--json")
    assert run("embed", folder, "--out", tmp_path / "whole", *options).status == 0
    first = run("embed", folder, "--out", tmp_path / "out", "--shard", "1/2", *options)
    facts = json.loads(first.out)
    assert (first.status, facts["embedded"], facts["unreadable"]) == (0, 111, 1)
    assert (facts["parts_left"], facts["complete"]) == (2, None)
    second = run("embed", folder, "--out", tmp_path / "out", "--shard", "0/2", *options)
    assert json.loads(second.out)["complete"] == {"rows": COUNT - 1, "unreadable": 1}
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_in_words(run, folder, tmp_path):
    out = tmp_path / "out"
    left = run("embed", folder, "--out", out, "--part-size", "64", "--shard", "1/2")
    assert left.out.splitlines()[-1].split() == ["left", "2", "parts,", "for", "other", "shards"]
    ran = run("embed", folder, "--out", out)
    assert ran.status == 0
    facts = dict(re.split("  +", line, maxsplit=1) for line in ran.out.splitlines())
    assert facts["images"] == "240"
    assert facts["done now"].startswith("128 in ")
    assert facts["unreadable"] == f"1, listed in {out / 'errors.jsonl'}"
    assert facts["complete"] == f"239 embeddings in {out}"
    assert left.err == "siglip-jax: 100.png: data must be an image that Pillow can read, got other bytes\n"


@pytest.mark.slow
def test_texts_are_found_by_an_image(run, folder, tmp_path):
    (tmp_path / "q.txt").write_text("a red square\na blue circle\n")
    assert run("embed", tmp_path / "q.txt", "--out", tmp_path / "out", "--format", "parquet").status == 0
    ran = run("search", tmp_path / "out", "--image", folder / "001.png", "--json")
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert {match["id"] for match in found["matches"]} == {"q.txt:1", "q.txt:2"}
    assert all(0 < match["probability"] < 1 for match in found["matches"])
    assert found["query"] == {"image": str(folder / "001.png")}
    texts = {match["id"]: match["metadata"] for match in found["matches"]}
    assert texts == {"q.txt:1": {"text": "a red square"}, "q.txt:2": {"text": "a blue circle"}}
    table = run("search", tmp_path / "out", "a square").out.splitlines()
    assert table[0].split() == ["rank", "name", "text", "cosine"]
    assert {re.split("  +", line)[2] for line in table[1:]} == {"a red square", "a blue circle"}
    ran = run("search", tmp_path / "out", "a square", "--save-plot", tmp_path / "sheet.png")
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "the collection must be of images, got one of texts" in ran.err


@pytest.mark.slow
def test_search_prints_a_table_json_and_a_contact_sheet(run, embedded, folder, tmp_path):
    ran = run("search", embedded, "stripes", "--top-k", 4)
    lines = ran.out.splitlines()
    assert lines[0].split() == ["rank", "name", "cosine", "probability"]
    assert [line.split()[0] for line in lines[1:]] == ["1", "2", "3", "4"]
    sheet = tmp_path / "sheet.png"
    ran = run("search", embedded, "stripes", "--top-k", 4, "--json", "--save-plot", sheet)
    assert (ran.status, ran.err) == (0, "")
    found = json.loads(ran.out)
    assert found["embeddings"] == 6
    assert [match["id"] for match in found["matches"]] == [line.split()[1] for line in lines[1:]]
    with PIL.Image.open(sheet) as drawn:
        assert drawn.size == (4 * (SIDE + GAP) + GAP, SIDE + 3 * LINE + 3 * GAP)
        own = np.asarray(drawn.crop((GAP, 2 * GAP + LINE, GAP + SIDE, 2 * GAP + LINE + SIDE)), np.float32)
    best = PIL.Image.open(folder / found["matches"][0]["id"]).resize((SIDE, SIDE * 30 // 40))
    middle = own[(SIDE - best.height) // 2 :][: best.height]
    assert np.abs(middle - np.asarray(best, np.float32)).mean() < 12


def test_search_by_an_index(run, embedded):
    exact = json.loads(run("search", embedded, "stripes", "--json").out)
    ran = run("search", embedded, "stripes", "--json", "--approximate")
    found = json.loads(ran.out)
    assert [match["id"] for match in found["matches"]] == [match["id"] for match in exact["matches"]]
    assert (exact["recall"], found["recall"]) == (None, 1)
    ran = run("search", embedded, "stripes", "--approximate")
    assert "the index finds 100.0 % of the 10 nearest" in ran.out.splitlines()[-1]


def test_nothing_that_can_be_read_is_status_2(run, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "a.png").write_bytes(b"")
    ran = run("embed", tmp_path / "x", "--out", tmp_path / "out")
    assert ran.status == 2
    assert ran.err.startswith("siglip-jax: a.png: ")


MISTAKES = {
    "no source": (("embed", "{tmp}/none", "--out", "{tmp}/o"), "no such file or folder"),
    "shard": (
        ("embed", "{tmp}", "--out", "{tmp}/o", "--shard", "4/4"),
        "a shard must be I/N with I from 0 to N - 1, got '4/4'",
    ),
    "changed data": (("embed", "{few}", "--out", "{out}"), "the data was changed"),
    "other options": (("embed", "{few}", "--out", "{out}", "--part-size", "3"), "part_size must be 2048, got 3"),
    "other model": (
        ("search", "{out}", "x", "--model", "{model}"),
        "the model must be the one that made the collection, the bundled model with .*, got ",
    ),
    "no query": (("search", "{out}"), "the query must be a text or --image FILE, got none"),
    "two queries": (
        ("search", "{out}", "x", "--image", "{few}/000.png"),
        "the query must be a text or --image FILE, got both",
    ),
    "no collection": (("search", "{few}", "x"), "siglip-jax embed writes it"),
    "a pipe": (("search", "{out}", "--image", "{tmp}/pipe"), "image must be a file, got a device or pipe"),
    "no image": (("search", "{out}", "--image", "{few}/none.png"), "no such image file"),
    "sheet": (
        ("search", "{out}", "x", "--save-plot", "{tmp}/a.doc"),
        "the ending of a plot must be one of .*, got '.doc'",
    ),
    "moved": (("search", "{moved}", "x", "--save-plot", "{tmp}/a.png"), "cannot be opened.*put them back"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_one_line_and_status_2(run, embedded, checkpoint, tmp_path, name):
    few, moved = tmp_path / "few", tmp_path / "moved"
    if name == "moved":
        shutil.copytree(embedded, moved)
        shutil.move(few, tmp_path / "elsewhere")
    elif name == "a pipe":
        os.mkfifo(tmp_path / "pipe")
    elif name.startswith("changed"):
        (few / "000.png").unlink()
    words, said = MISTAKES[name]
    places = {"tmp": tmp_path, "few": few, "out": embedded, "moved": moved, "model": checkpoint}
    ran = run(*(word.format(**places) for word in words))
    assert ran.status == 2
    assert ran.err.count("\n") == 1
    assert re.search(said, ran.err)
